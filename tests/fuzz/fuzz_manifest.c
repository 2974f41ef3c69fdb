/* A MANIFEST from anywhere, in a folder with the files a (3 bytes), b (none) and MANIFEST. The first byte chooses: 's', the rest
 * is sealed with its own checksum in the last line; otherwise it stands as it is. */
#include "base/sha1.h"
#include "base/str.h"
#include "tests/fuzz/fuzz_file.h"
#include "tests/fuzz/mutate.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct str s = {0};
    struct sha1 sha;
    struct err e = {0};
    char hex[41], *facts = NULL;
    static int ready;
    if (size) str_add(&s, data + 1, size - 1);
    if (size && *data == 's') {
        sha1_init(&sha), sha1_add(&sha, s.p, s.n), sha1_hex(&sha, hex);
        str_printf(&s, "end %s\n", hex);
    }
    fuzz_file("MANIFEST", s.p ? s.p : "", s.n);
    if (!ready++) {
        fuzz_file("a", "abc", 3);
        fuzz_file("b", "", 0);
    }
    int rc = manifest_verify(fuzz_dir, &facts, &e);
    if ((rc == 1) != (facts != NULL) || (rc != 1) != (e.code != 0)) abort();
    /* what is whole names both files with what they hold */
    if (rc == 1 && (!strstr(s.p, "a9993e364706816aba3e25717850c26c9cd0d89d") || !strstr(s.p, "da39a3ee5e6b4b0d3255bfef95601890afd80709"))) abort();
    if (rc == 1 && strchr(facts, '\n')) abort();
    sys_free(facts);
    str_free(&s);
    return 0;
}

static const char *const words[] = {"qlora manifest 1", "facts {\"step\": 1}", "facts", "file a9993e364706816aba3e25717850c26c9cd0d89d 3 a", "file da39a3ee5e6b4b0d3255bfef95601890afd80709 0 b",
    "file da39a3ee5e6b4b0d3255bfef95601890afd80709 0 ../b", "file da39a3ee5e6b4b0d3255bfef95601890afd80709 -1 b", "file", "end a9993e364706816aba3e25717850c26c9cd0d89d", "MANIFEST", "."};
MUTATORS_BEGIN
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned seed) {
    struct mutator m = mutate_begin(seed);
    if (n < 2 || mutate_plain(&m)) return LLVMFuzzerMutate(data, n, max);
    return 1 + mutate_lines(&m, data + 1, n - 1, max - 1, words, sizeof words / sizeof *words);
}
MUTATORS_END
