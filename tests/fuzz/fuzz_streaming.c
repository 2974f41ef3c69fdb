/* tests/fuzz/fuzz_streaming.c - a data file of any bytes as a stream: no sequence is longer than cutoff_len or outside the
 * vocabulary, and skipping leads to where taking does. The first two bytes choose the settings. */
#include "base/log.h"
#include "tests/fuzz/fuzz_file.h"
#include "datasets/datasets.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { CUTOFF = 24, TAKEN = 24, SKIPPED = 11 };

static void need(int ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "%s\n", what);
    abort();
}

static struct tok *small_tok(void) {
    static struct tok *t;
    if (t) return t;
    const struct tok_piece piece[] = {{"\xe2\x96\x81", -1}, {"<eod>", 0}, {"<sep>", 0}, {"a", -2}, {"b", -3}, {"ab", -4}};
    struct str model = {0};
    if (!tok_model_write(piece, 6, &model, NULL)) t = tok_parse(model.p, model.n, "fuzz", NULL);
    str_free(&model);
    need(t != NULL, "no tokenizer");
    return t;
}

/* The lengths and first ids of TAKEN sequences, those before `skip` passed over. How far it came. */
static int take(const struct data_config *c, int64_t skip, int64_t length[TAKEN], int32_t id[TAKEN]) {
    struct err e = {0};
    struct dataset *first, *eval;
    struct data_report r;
    struct data_stream *s = data_stream_open(c, small_tok(), &first, &eval, &r, &e);
    int64_t i = s && !data_stream_skip(s, skip, &e) ? skip : TAKEN + 1, end;
    need(!s == (first == NULL) && (s || e.code), "verdict and data disagree");
    for (end = i; end < TAKEN; end++) {
        const struct dataset *d;
        struct sequence q;
        if (data_stream_take(s, 1, &d, &e)) break;
        need(data_count(d) == 1 && !data_get(d, 0, &q, &e) && q.n > 0 && q.n <= CUTOFF, "a sequence of a wrong length");
        for (int64_t k = 0; k < q.n; k++) need(q.ids[k] >= 0 && q.ids[k] < tok_count(small_tok()), "an id outside the vocabulary");
        length[end] = q.n, id[end] = q.ids[q.n - 1];
    }
    data_free(first), data_free(eval), data_stream_close(s);
    return (int)end;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    int64_t length[2][TAKEN];
    int32_t id[2][TAKEN];
    log_quiet = 1;
    if (size < 2) return 0;
    const int a = data[0], b = data[1];
    struct data_config c = {.dataset = fuzz_file("flow.jsonl", data + 2, size - 2), .dataset_dir = "/", .cutoff_len = CUTOFF, .compat_new = a & 1,
                            .stage = a & 2 ? STAGE_PT : STAGE_SFT, .packing = a & 4 ? 1 : -1, .neat_packing = a & 8 && !(a & 2), .buffer_size = b & 7,
                            .group_size = b & 8 ? 3 : 0, .val_size = b & 16 ? 2 : 0, .seed = (uint64_t)b};
    const int whole = take(&c, 0, length[0], id[0]);
    if (whole > TAKEN) return 0; /* not opened: nor would it be again */
    const int rest = take(&c, SKIPPED, length[1], id[1]);
    if (whole > SKIPPED) {
        need(rest == whole, "skipping leads elsewhere");
        for (int i = SKIPPED; i < whole; i++) need(length[0][i] == length[1][i] && id[0][i] == id[1][i], "another sequence behind what was skipped");
    }
    return 0;
}
