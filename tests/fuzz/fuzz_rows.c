/* A file of tokenised rows from anywhere: what is read holds ids, labels and positions that a run can use, and written again it
 * gives the same bytes. */
#include "tests/fuzz/fuzz_file.h"
#include "tests/fuzz/mutate.h"
#include "base/log.h"
#include "datasets/saved.c"

enum { VOCABULARY = 300 };

static void check_row(const struct sequence *s) {
    if (s->n < 1 || !s->positions != !s->documents) abort();
    for (int64_t i = 0; i < s->n; i++) {
        if (s->ids[i] < 0 || s->ids[i] >= VOCABULARY || s->labels[i] >= VOCABULARY || (s->labels[i] < 0 && s->labels[i] != IGNORE_LABEL)) abort();
        if (s->positions && (s->positions[i] < 0 || s->positions[i] >= s->n || s->documents[i] < 0)) abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const struct data_config c = {.memory_limit = 1 << 20};
    struct dataset *d = NULL;
    struct err e = {0};
    char *again = NULL;
    size_t n;
    log_quiet = 1;
    if (rows_read(fuzz_file("train.rows", data, size), &c, VOCABULARY, &d, &e) != (e.code ? -1 : 0) || !d != (e.code != 0)) abort();
    if (!d) {
        if (!strstr(e.text, "train.rows")) abort();
        return 0;
    }
    for (int64_t i = 0; i < data_count(d); i++) {
        struct sequence s;
        data_get(d, i, &s, &e);
        check_row(&s);
    }
    if (write_rows(fuzz_dir, "again.rows", d, &e)) abort();
    char path[300];
    snprintf(path, sizeof path, "%s/again.rows", fuzz_dir);
    if (file_read_all(path, 1 << 20, &again, &n, &e) || n != size || memcmp(again, data, n)) abort();
    sys_free(again), data_free(d);
    unlink(path);
    return 0;
}

/* Mostly numbers of the grammar: a length, a count of columns, an id, at some place of four bytes. */
MUTATORS_BEGIN
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned seed) {
    static const int32_t numbers[] = {0, 1, 2, 3, 4, 5, -1, -100, 299, 300, 1 << 24, (1 << 24) + 1, INT32_MAX, INT32_MIN};
    struct mutator m = mutate_begin(seed);
    if (n < HEAD_BYTES || mutate_plain(&m)) return LLVMFuzzerMutate(data, n, max);
    const int32_t x = numbers[mutate_pick(&m, sizeof numbers / sizeof *numbers)];
    memcpy(data + sizeof MAGIC + 4 * mutate_pick(&m, (n - sizeof MAGIC) / 4), &x, sizeof x);
    return n;
}
MUTATORS_END
