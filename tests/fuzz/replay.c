/* tests/fuzz/replay.c - runs a fuzz target over files instead of random inputs, with any compiler: the committed seeds
 * are a test of every build. Arguments: files and folders; without any, tests/fuzz/corpus/NAME of the target fuzz_NAME.
 * Each input is a block of exactly its size, so that reading behind its end is seen by ASan and valgrind. A target that has a
 * mutator of its own also gets some mutations of each seed, always the same ones. */
#include "base/file.h"
#include "base/sys.h"
#include <stdio.h>
#include <string.h>

enum { MUTATIONS = 16 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);
__attribute__((weak)) size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned seed);

/* libFuzzer's, for those mutators: a byte becomes another, or goes, or comes. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max) {
    static unsigned long turn;
    const size_t at = size ? turn * 2654435761u % size : 0;
    if (!size) return 0;
    switch (turn++ % 3) {
    case 0: data[at] ^= (uint8_t)(1u << turn % 8); return size;
    case 1:
        if (size < 2) return size;
        memmove(data + at, data + at + 1, size - at - 1);
        return size - 1;
    default:
        if (size == max) return size;
        memmove(data + at + 1, data + at, size - at);
        return size + 1;
    }
}

/* As a block of its own size. */
static int one(const void *p, size_t n, struct err *e) {
    uint8_t *exact = sys_grow(NULL, n, "input", e);
    if (!exact) return -1;
    if (n) memcpy(exact, p, n);
    LLVMFuzzerTestOneInput(exact, n);
    sys_free(exact);
    return 0;
}

static int mutations(const char *p, size_t n, struct err *e) {
    const size_t max = n + 4096;
    uint8_t *block = sys_grow(NULL, max, "input", e);
    int rc = block ? 0 : -1;
    for (unsigned k = 0; !rc && k < MUTATIONS; k++) {
        if (n) memcpy(block, p, n);
        size_t now = LLVMFuzzerCustomMutator(block, n, max, k);
        ASSERT(now <= max, "a mutation of %zu bytes, %zu are there", now, max);
        rc = one(block, now, e);
    }
    sys_free(block);
    return rc;
}

static int replay(const char *path, int *count, struct err *e) {
    char name[4096], **names, *text;
    size_t n;
    int k, rc = 0;
    if (path_is_dir(path)) {
        if (dir_list(path, &names, &k, e)) return -1;
        for (int i = 0; i < k && !rc; i++)
            if (!(rc = path_join(name, sizeof name, path, names[i], e))) rc = replay(name, count, e);
        dir_list_free(names, k);
        return rc;
    }
    if (file_read_all(path, 1 << 28, &text, &n, e)) return -1;
    rc = one(text, n, e);
    if (!rc && LLVMFuzzerCustomMutator) rc = mutations(text, n, e);
    sys_free(text);
    *count += !rc;
    return rc;
}

int main(int argc, char **argv) {
    struct err e = {0};
    const char *slash = strrchr(argv[0], '/'), *target = slash ? slash + 1 : argv[0];
    char corpus[4096];
    char *paths[] = {corpus, NULL}, **path = argc > 1 ? argv + 1 : paths;
    int count = 0;
    snprintf(corpus, sizeof corpus, "tests/fuzz/corpus/%s", text_starts(target, "fuzz_") ? target + 5 : target);
    for (; *path; path++)
        if (replay(*path, &count, &e)) return err_print(&e);
    printf("%s: %d passed, 0 failed, 0 skipped\n", target, count);
    return 0;
}
