/* tests/unit/test_batch_rows.c - model/batch: sequences to rows, labels, documents, chunks and windows, by hand. */
#include "base/sys.h"
#include "model/batch.h"
#include "tests/test.h"

static struct err e;

/* What the ops are told of a chunk's rows. The CPU's memory is the host's. */
static void check_rows(const struct chunk *k, int64_t N, const int32_t *ids, const int32_t *position, const int32_t *first, const int32_t *offset) {
    REQUIRE(k->rows.N == N, "%lld rows", (long long)k->rows.N);
    for (int64_t t = 0; t < N; t++)
        CHECK(k->ids[t] == ids[t] && k->host_ids[t] == ids[t] && k->rows.position[t] == position[t] && k->rows.first[t] == first[t] && k->rows.offset[t] == offset[t],
              "row %lld: id %d position %d first %d offset %d", (long long)t, k->ids[t], k->rows.position[t], k->rows.first[t], k->rows.offset[t]);
}

TEST(rows_labels_and_chunks) {
    struct backend *be = backend_cpu(&e);
    struct batch b;
    const struct model_config c = {.V = 100, .document_mask = 1, .eod = 9};
    /* masked prompt; everything counts; nothing counts; positions of its own */
    const int32_t a[] = {1, 2, 9, 3, 4}, al[] = {-100, -100, -100, 3, 4}, s[] = {5, 9, 6}, n[] = {7, 7}, nl[] = {-100, -100}, d[] = {8, 8, 8}, dl[] = {8, 8, -100}, dp[] = {4, 5, 6};
    const struct batch_sequence q[] = {{.ids = a, .labels = al, .n = 5, .weight = 0.5f}, {.ids = s, .n = 3, .weight = 0.25f}, {.ids = n, .labels = nl, .n = 2}, {.ids = d, .labels = dl, .positions = dp, .n = 3, .weight = 1}};
    REQUIRE(be && !batch_open(&b, be, 6, 6, 32, 4, &e), "%s", e.text);
    batch_fill(&b, &c, q, 4);
    /* rows 4 + 2 fill the first chunk of 6; the third has none; the fourth only the row that predicts its label 1 */
    REQUIRE(b.n_chunks == 2 && b.N == 7 && b.n_loss == 5, "%d chunks, %lld rows, %lld losses", b.n_chunks, (long long)b.N, (long long)b.n_loss);
    check_rows(&b.chunk[0], 6, (int32_t[]){1, 2, 9, 3, 5, 9}, (int32_t[]){0, 1, 2, 3, 0, 1}, (int32_t[]){0, 0, 0, 3, 4, 4}, (int32_t[]){0, 1, 2, 3, 0, 1});
    check_rows(&b.chunk[1], 1, (int32_t[]){8}, (int32_t[]){4}, (int32_t[]){0}, (int32_t[]){0});
    CHECK(b.chunk[0].rows.token0 == 0 && b.chunk[1].rows.token0 == 6 && b.chunk[0].rows.n_seqs == 2 && b.chunk[0].rows.seq_start[1] == 4 && b.chunk[0].rows.seq_start[2] == 6, "sequences");
    const int32_t row[] = {2, 3, 4, 5}, label[] = {3, 4, 9, 6};
    const float weight[] = {0.5f, 0.5f, 0.25f, 0.25f};
    REQUIRE(b.chunk[0].n_loss == 4 && b.chunk[1].n_loss == 1 && b.chunk[1].loss0 == 4, "losses of chunks");
    for (int i = 0; i < 4; i++)
        CHECK(b.chunk[0].row[i] == row[i] && b.chunk[0].label[i] == label[i] && !memcmp(&b.chunk[0].weight[i], &weight[i], 4), "loss %d: row %d label %d", i, b.chunk[0].row[i], b.chunk[0].label[i]);
    CHECK(b.chunk[1].row[0] == 0 && b.chunk[1].label[0] == 8, "row %d label %d", b.chunk[1].row[0], b.chunk[1].label[0]);
    const int64_t loss_of[] = {0, 2, 4, 4, 5};
    for (int i = 0; i < 5; i++) CHECK(b.loss_of[i] == loss_of[i], "loss_of[%d] = %lld", i, (long long)b.loss_of[i]);
    CHECK(!b.chunk[0].noise && !b.chunk[0].best, "noise or best that nobody asked for");
    batch_close(&b), backend_close(be);
}

TEST(no_documents_without_the_mask) {
    struct backend *be = backend_cpu(&e);
    struct batch b;
    const struct model_config c = {.V = 100, .eod = 9};
    const int32_t ids[] = {1, 9, 2, 3};
    REQUIRE(be && !batch_open(&b, be, 8, 8, 8, 1, &e), "%s", e.text);
    batch_fill(&b, &c, &(struct batch_sequence){.ids = ids, .n = 4, .noise = 0.5f}, 1);
    check_rows(&b.chunk[0], 3, ids, (int32_t[]){0, 1, 2}, (int32_t[]){0, 0, 0}, (int32_t[]){0, 1, 2});
    CHECK(b.chunk[0].noise && b.chunk[0].noise[2] > 0.4f, "noise");
    batch_close(&b), backend_close(be);
}

TEST(choices_follow_the_last_token) {
    struct backend *be = backend_cpu(&e);
    struct batch b;
    const struct model_config c = {.V = 100};
    const int32_t ids[] = {1, 2, 3}, choices[] = {10, 11};
    REQUIRE(be && !batch_open(&b, be, 8, 8, 16, 2, &e), "%s", e.text);
    batch_fill(&b, &c, (struct batch_sequence[]){{.ids = ids, .n = 3, .choices = choices, .n_choices = 2}, {.ids = ids, .n = 2, .choices = choices, .n_choices = 1}}, 2);
    REQUIRE(b.n_loss == 3 && b.N == 5, "%lld losses of %lld rows", (long long)b.n_loss, (long long)b.N);
    CHECK(b.chunk[0].row[0] == 2 && b.chunk[0].row[1] == 2 && b.chunk[0].row[2] == 4, "%d %d %d", b.chunk[0].row[0], b.chunk[0].row[1], b.chunk[0].row[2]);
    CHECK(b.chunk[0].label[0] == 10 && b.chunk[0].label[1] == 11 && b.chunk[0].label[2] == 10, "labels");
    batch_close(&b), backend_close(be);
}

TEST(windows_of_a_chunk) {
    struct backend *be = backend_cpu(&e);
    struct batch b;
    const struct model_config c = {.V = 100};
    int32_t ids[16] = {0};
    /* rows 2, 3 join a window of 5; 11 rows go through three; 4 stand alone */
    const struct batch_sequence s[] = {{.ids = ids, .n = 3}, {.ids = ids, .n = 4}, {.ids = ids, .n = 12}, {.ids = ids, .n = 5}};
    static const struct { int64_t at, N; int seam, goes_on, n_seqs; } want[] = {{0, 5, -1, 0, 2}, {5, 5, -1, 1, 1}, {10, 5, 0, 1, 1}, {15, 1, 1, 0, 1}, {16, 4, -1, 0, 1}};
    REQUIRE(be && !batch_open(&b, be, 20, 5, 20, 4, &e), "%s", e.text);
    batch_fill(&b, &c, s, 4);
    REQUIRE(b.n_chunks == 1 && b.chunk[0].n_windows == 5, "%d chunks, %d windows", b.n_chunks, b.chunk[0].n_windows);
    for (int i = 0; i < 5; i++) {
        const struct window *w = &b.chunk[0].window[i];
        CHECK(w->at == want[i].at && w->rows.N == want[i].N && w->seam == want[i].seam && w->goes_on == want[i].goes_on && w->rows.n_seqs == want[i].n_seqs && w->rows.token0 == want[i].at,
              "window %d: %lld rows from %lld, seam %d, on %d, %d sequences", i, (long long)w->rows.N, (long long)w->at, w->seam, w->goes_on, w->rows.n_seqs);
    }
    batch_close(&b), backend_close(be);
}

TEST_MAIN
