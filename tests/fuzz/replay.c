/* tests/fuzz/replay.c - runs a fuzz target over files instead of random inputs, with any compiler: the committed seeds
 * are a test of every build. Arguments: files and folders; without any, tests/fuzz/corpus/NAME of the target fuzz_NAME.
 * Each input is a block of exactly its size, so that reading behind its end is seen by ASan and valgrind. */
#include "base/file.h"
#include "base/sys.h"
#include <stdio.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

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
    uint8_t *exact = sys_grow(NULL, n, "input", e);
    if (exact) {
        if (n) memcpy(exact, text, n);
        LLVMFuzzerTestOneInput(exact, n);
        ++*count;
    }
    sys_free(exact);
    sys_free(text);
    return exact ? 0 : -1;
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
