/* tests/unit/test_batch.c - sequences packed of documents against the documents alone: losses and gradients are the same to
 * the bit, whatever the chunks and windows; without documents they are not. A tiny model of random weights, on the CPU. */
#include "base/rng.h"
#include "base/sys.h"
#include "model/engine.h"
#include "tests/test.h"
#include "train/params.h"

enum { ROW = 48, PARTS = 4, V_USED = 97 };
static const int64_t length[PARTS] = {17, 1, 9, 14}; /* and seven of padding */
static int32_t ids[ROW], labels[ROW], positions[ROW], documents[ROW];

static void make_row(void) {
    struct mt19937 g;
    mt_seed(&g, 3);
    int64_t at = 0;
    for (int d = 0; d < PARTS; d++)
        for (int64_t i = 0; i < length[d]; i++, at++) {
            ids[at] = (int32_t)(mt_next(&g) % V_USED);
            labels[at] = i < 4 && d != 2 ? -100 : ids[at]; /* the third is labelled from its first token on */
            positions[at] = (int32_t)i, documents[at] = d + 1;
        }
    for (; at < ROW; at++) ids[at] = 5, labels[at] = -100, positions[at] = documents[at] = 0;
}

static struct batch_sequence part(int64_t at, int64_t n) {
    return (struct batch_sequence){.ids = ids + at, .labels = labels + at, .positions = positions + at, .n = n, .weight = 0.05f};
}
static struct batch_sequence packed(int apart) {
    struct batch_sequence s = part(0, ROW);
    s.documents = apart ? documents : NULL;
    return s;
}
/* The documents as sequences of their own; their number. */
static int alone(struct batch_sequence *s) {
    int64_t at = 0;
    for (int d = 0; d < PARTS; at += length[d++]) s[d] = part(at, length[d]);
    return PARTS;
}

struct result { /* of a pass: losses in order, gradients of the adapters */
    float nll[2 * ROW];
    int64_t n_loss, of[4 * PARTS], grads;
    float *grad;
    int chunks;
};

/* Forward and backward of a batch through a fresh model. */
static void run(const struct batch_sequence *s, int64_t n, int64_t rows, int64_t window, int mask, struct result *r) {
    struct err e = {0};
    struct model m;
    struct model_config c;
    struct lora lora;
    struct params params = {0};
    struct engine g;
    struct batch b;
    struct model_how how = {.resident_layers = -1};
    struct lora_config l = {.rank = 4, .alpha = 8};
    struct backend *be = backend_open("cpu", &e);
    *r = (struct result){0};
    REQUIRE(be && !model_config_find("yuan2-tiny", &c, &e), "%s", e.text);
    c.document_mask = mask, c.eod = 11, c.V = 128;
    model_sketch(&m, be, &c, &how);
    REQUIRE(!model_random(&m, &how, 1, &e) && !lora_parse_targets("all", &l.targets, &e) && !lora_init(&lora, &l, &m.config, &e), "%s", e.text);
    lora_start(&lora, 7);
    for (int64_t i = 0; i < m.config.L * lora.layer_floats; i++) lora.data[i] += 0.01f; /* B is zero at the start */
    const struct params_how all = params_all(&m, 0);
    const struct params_place here = {.values = m.config.L, .state = m.config.L, .layers = m.config.L};
    REQUIRE(!params_describe(&params, &m, &lora, &all, &e) && !params_open(&params, &here, &e), "%s", e.text);
    struct engine_config k = {.rows = rows, .chunks = 8, .longest = ROW, .training = 1, .window = window, .resident_acts = -1, .lora = &lora, .adapters = params.value};
    REQUIRE(!engine_open(&g, &m, &k, &e) && !batch_open(&b, be, rows, window ? window : rows, 2 * ROW, 4 * PARTS, &e), "%s", e.text);
    batch_fill(&b, &m.config, s, n);
    engine_forward(&g, &b, NULL);
    engine_head(&g, &b, 1, NULL);
    r->grads = m.config.L * lora.layer_floats;
    r->grad = calloc((size_t)r->grads, sizeof *r->grad);
    for (int64_t i = m.config.L - 1; i >= 0; i--) {
        void *w = pages_get(m.layers, i, PAGE_READ);
        float *value = pages_get(params.value, i, PAGE_READ), *grad = pages_get(params.grad, i, PAGE_WRITE);
        be->zero(be->self, grad, pages_bytes(params.grad, i), Q_COMPUTE);
        engine_backward_layer(&g, &b, NULL, i, w, value, grad, NULL, i > 0);
        be->get(be->self, r->grad + i * lora.layer_floats, grad, (size_t)lora.layer_floats * 4, Q_COMPUTE);
        pages_put(params.value, i, 0), pages_put(params.grad, i, 1), pages_put(m.layers, i, 0);
    }
    REQUIRE(!batch_losses(&b, &e), "%s", e.text);
    memcpy(r->nll, b.nll, (size_t)b.n_loss * sizeof *r->nll);
    memcpy(r->of, b.loss_of, (size_t)(n + 1) * sizeof *r->of);
    r->n_loss = b.n_loss, r->chunks = b.n_chunks;
    batch_close(&b), engine_close(&g), params_close(&params), lora_free(&lora), model_free(&m);
    backend_close(be), model_config_free(&c);
}

static int same(const struct result *a, const struct result *b) {
    return a->n_loss == b->n_loss && a->n_loss && !memcmp(a->nll, b->nll, (size_t)a->n_loss * sizeof *a->nll) && a->grads == b->grads &&
           !memcmp(a->grad, b->grad, (size_t)a->grads * sizeof *a->grad);
}

TEST(documents_of_a_row_are_as_if_alone) {
    struct batch_sequence s[2 * PARTS], row[2] = {packed(1), packed(1)};
    make_row();
    const int n = alone(s) + alone(s + PARTS);
    static const struct { int64_t rows, window; int mask; } k[] = {{96, 0, 1}, {96, 0, 0}, {48, 0, 1}, {48, 13, 1}, {48, 7, 0}};
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) {
        struct result a, b;
        run(row, 2, k[i].rows, k[i].window, k[i].mask, &a), run(s, n, k[i].rows, k[i].window, k[i].mask, &b);
        CHECK(same(&a, &b) && a.chunks == b.chunks, "case %zu: %lld losses and %lld, %d chunks and %d", i, (long long)a.n_loss, (long long)b.n_loss, a.chunks, b.chunks);
        /* 13 of the first, none of the second, 8 of the third (its first token has nothing before it), 10 of the fourth */
        CHECK(a.of[1] == 31 && a.of[2] == 62 && a.n_loss == 62, "%lld losses of the first row, %lld in all", (long long)a.of[1], (long long)a.n_loss);
        free(a.grad), free(b.grad);
    }
}

TEST(without_documents_they_see_each_other) {
    struct batch_sequence s[PARTS], row = packed(0);
    struct result a, b;
    make_row();
    run(&row, 1, 48, 0, 1, &a), run(s, alone(s), 48, 0, 1, &b);
    CHECK(a.n_loss == b.n_loss + 1 && !memcmp(a.nll, b.nll, 13 * sizeof *a.nll), "the first record has nothing before it");
    CHECK(memcmp(a.nll + 14, b.nll + 13, 18 * sizeof *a.nll), "the others have");
    free(a.grad), free(b.grad);
}

TEST(rows_and_documents_are_counted_as_they_are_filled) {
    int64_t n;
    make_row();
    struct batch_sequence s = packed(1);
    CHECK(batch_rows(&s, &n) == 16 + 8 + 13 && n == 3, "%lld documents", (long long)n);
    s = packed(0);
    CHECK(batch_rows(&s, &n) == 40 && n == 1, "%lld documents", (long long)n);
    s = part(17, 1);
    CHECK(batch_rows(&s, &n) == 0 && n == 0, "%lld documents", (long long)n);
    int64_t counted = 0;
    s = packed(1);
    for (int64_t t = 1; t < ROW; t++) counted += batch_counts(&s, t);
    CHECK(counted == 31, "%lld", (long long)counted);
}

TEST_MAIN

/* The same slices whatever a chunk holds, and never more than it holds; without slices, chunks are filled greedily. */
TEST(chunks_of_whole_slices) {
    struct mt19937 g;
    mt_seed(&g, 11);
    for (int round = 0; round < 300; round++) {
        enum { N = 40, SLICE = 100 };
        int slice_of[3][N], chunk_of[3][N];
        int64_t rows[N];
        for (int i = 0; i < N; i++) rows[i] = 1 + (int64_t)(mt_next(&g) % (round % 3 ? SLICE : 30));
        for (int way = 0; way < 3; way++) {
            static const int64_t capacity[] = {SLICE, 2 * SLICE + 50, 1000000};
            struct chunking k = {.capacity = capacity[way], .slice = SLICE};
            int64_t in_chunk = 0, in_slice = 0;
            int chunk = -1, slice = -1;
            for (int i = 0; i < N; i++) {
                const int begins = chunk_begins(&k, rows[i]);
                if (begins) chunk++, in_chunk = 0;
                if (begins || in_slice + rows[i] > SLICE) slice++, in_slice = 0; /* as the op finds them, from the chunk's first row on */
                in_chunk += rows[i], in_slice += rows[i], slice_of[way][i] = slice, chunk_of[way][i] = chunk;
                CHECK(in_chunk <= capacity[way], "%lld rows in a chunk of %lld", (long long)in_chunk, (long long)capacity[way]);
            }
        }
        CHECK(!memcmp(slice_of[0], slice_of[1], sizeof *slice_of) && !memcmp(slice_of[0], slice_of[2], sizeof *slice_of), "round %d: other slices in larger chunks", round);
        CHECK(!memcmp(slice_of[0], chunk_of[0], sizeof *slice_of) && chunk_of[2][N - 1] == 0, "round %d: a chunk of a slice's rows holds one, a large one all", round);
    }
    struct chunking greedy = {.capacity = 10};
    const int64_t rows[] = {4, 6, 1, 9, 10, 3};
    const int begins[] = {1, 0, 1, 0, 1, 1};
    for (int i = 0; i < 6; i++) CHECK(chunk_begins(&greedy, rows[i]) == begins[i], "sequence %d", i);
}
