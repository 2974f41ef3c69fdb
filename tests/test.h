/* tests/test.h - the whole test framework. A test file is a program: TEST bodies, then TEST_MAIN.
 * Output is one line per failing check and, last, "name: N passed, N failed, N skipped", which tests/run.sh adds up.
 *
 *     TEST(encodes_ties_low) { CHECK(code == 7, "code %d", code); }
 *     TEST_MAIN
 */
#ifndef QLORA_TEST_H
#define QLORA_TEST_H
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct test { const char *name; void (*run)(void); struct test *next; };
static struct test *test_first, **test_last = &test_first;
static int test_failed, test_skipped_now;

#define TEST(id)                                                                                                       \
    static void id(void);                                                                                              \
    static struct test test_##id = {#id, id, 0};                                                                       \
    __attribute__((constructor)) static void add_##id(void) { *test_last = &test_##id; test_last = &test_##id.next; }  \
    static void id(void)
/* CHECK(cond, "values %d", ..) records a failure and goes on; REQUIRE leaves the test. */
#define CHECK(cond, ...)                                                                                               \
    do {                                                                                                               \
        if (!(cond)) {                                                                                                 \
            if (test_failed++ < 20) {                                                                                  \
                fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #cond);                                             \
                fprintf(stderr, __VA_ARGS__);                                                                          \
                fprintf(stderr, "\n");                                                                                 \
            }                                                                                                          \
        }                                                                                                              \
    } while (0)
#define REQUIRE(cond, ...)                                                                                             \
    do {                                                                                                               \
        int failed_ = test_failed;                                                                                     \
        CHECK(cond, __VA_ARGS__);                                                                                      \
        if (test_failed != failed_) return;                                                                            \
    } while (0)
#define SKIP(why)                                                                                                      \
    do {                                                                                                               \
        printf("  skipped: %s\n", why);                                                                                \
        test_skipped_now = 1;                                                                                          \
        return;                                                                                                        \
    } while (0)

/* The shared folder of golden files: $QLORA_SHARED, or ../shared beside the project; NULL when there is none. */
static inline const char *shared_dir(void) {
    static char path[1000];
    const char *s = getenv("QLORA_SHARED");
    snprintf(path, sizeof path, "%s", s && *s ? s : "../shared");
    char probe[1100];
    snprintf(probe, sizeof probe, "%s/goldens", path);
    FILE *f = fopen(probe, "r");
    if (!f) return NULL;
    fclose(f);
    return path;
}

#define TEST_MAIN                                                                                                      \
    int main(int argc, char **argv) {                                                                                  \
        const int list = argc > 1 && !strcmp(argv[1], "list"); /* the tests' names */                                  \
        int passed = 0, failed = 0, skipped = 0;                                                                       \
        for (struct test *t = test_first; t; t = t->next) {                                                            \
            if (list) puts(t->name);                                                                                   \
            if (list || (argc > 1 && !strstr(t->name, argv[1]))) continue;                                             \
            test_failed = test_skipped_now = 0;                                                                        \
            t->run();                                                                                                  \
            if (test_failed) failed++, fprintf(stderr, "FAILED %s (%d checks)\n", t->name, test_failed);               \
            else if (test_skipped_now) skipped++;                                                                      \
            else passed++;                                                                                             \
        }                                                                                                              \
        if (list) return 0;                                                                                            \
        const char *name = strrchr(argv[0], '/');                                                                      \
        printf("%s: %d passed, %d failed, %d skipped\n", name ? name + 1 : argv[0], passed, failed, skipped);          \
        return failed != 0;                                                                                            \
    }
#endif
