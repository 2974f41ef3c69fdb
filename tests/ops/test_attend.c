/* Attention: forward against loops in double, backward against central differences of them, documents, caches, strides of
 * interleaved heads, tile edges (96 queries, 128 keys), and the same bits for any threads and chunks. */
#include "tests/ops/ops.h"

struct attend_case {
    const struct rows *rows;
    int64_t H, K, past, q_step, k_step, v_step; /* matrices below are contiguous copies with the same columns */
    int64_t q_cols, k_cols, v_cols;
    double *q, *k, *v, *d_o;
};

static double attend_reference(const struct attend_case *c, double *o, double *lse) { /* returns Σ o do */
    int64_t N = c->rows->N, K = c->K;
    double total = 0, *p = malloc((size_t)(N + c->past) * 8);
    for (int64_t t = 0; t < N; t++)
        for (int64_t h = 0; h < c->H; h++) {
            double sum = 0, top = -1e300;
            for (int64_t u = c->rows->first[t]; u <= t + c->past; u++) {
                p[u] = 0;
                for (int64_t j = 0; j < K; j++) p[u] += c->q[t * c->q_cols + h * c->q_step + j] * c->k[u * c->k_cols + h * c->k_step + j];
                p[u] /= sqrt((double)K);
                if (p[u] > top) top = p[u];
            }
            for (int64_t u = c->rows->first[t]; u <= t + c->past; u++) sum += p[u] = exp(p[u] - top);
            for (int64_t j = 0; j < K; j++) {
                double s = 0;
                for (int64_t u = c->rows->first[t]; u <= t + c->past; u++) s += p[u] / sum * c->v[u * c->v_cols + h * c->v_step + j];
                if (o) o[(t * c->H + h) * K + j] = s;
                total += s * (c->d_o ? c->d_o[(t * c->H + h) * K + j] : 0);
            }
            if (lse) lse[t * c->H + h] = top + log(sum);
        }
    free(p);
    return total;
}
static double attend_objective(void *arg) { return attend_reference(arg, NULL, NULL); }

/* q and k interleaved in one matrix as the model has them: head h's query at 2Kh, its key at 2Kh + K. */
struct attend_data { struct mat qk, v, d_o; };
struct attend_result { struct mat o, lse, delta, dqk, dv; };

static struct mat columns(struct mat m, int64_t from) {
    m.data = (float *)m.data + from, m.cols -= from;
    return m;
}
static void run(struct backend *b, const struct rows *rows, int64_t H, int64_t K, const struct attend_data *d,
                struct attend_result *r, int64_t t, int backward) {
    int64_t n = rows->N;
    struct mat qk = mat_part(d->qk, t, n), dqk = mat_part(r->dqk, t, n);
    struct attend_args a = {.rows = rows, .H = H, .K = K, .q = qk, .k = columns(qk, K), .v = mat_part(d->v, t, n),
                            .o = mat_part(r->o, t, n), .q_step = 2 * K, .k_step = 2 * K, .v_step = K, .lse = at(&r->lse, t, 0),
                            .d_o = mat_part(d->d_o, t, n), .dq = dqk, .dk = columns(dqk, K), .dv = mat_part(r->dv, t, n),
                            .delta = at(&r->delta, t, 0)};
    op_attend(b, &a);
    if (backward) op_attend_bwd(b, &a);
}
static struct attend_result result_new(int64_t N, int64_t H, int64_t K) {
    return (struct attend_result){mat_new(N, H * K, 1), mat_new(N, H, 0), mat_new(N, H, 0), mat_new(N, 2 * H * K, 3), mat_new(N, H * K, 2)};
}
static void result_free(struct attend_result *r) {
    mat_free(&r->o), mat_free(&r->lse), mat_free(&r->delta), mat_free(&r->dqk), mat_free(&r->dv);
}

/* document: a new one every so many rows of a sequence (0: none). finite: differences too (small shapes only). */
static void attend_at(const int *lengths, int64_t H, int64_t K, int document, int finite) {
    struct chunk_of ch = chunk_new(lengths, document);
    int64_t N = ch.rows.N;
    seed_now = (uint64_t)(N * 100 + K);
    struct attend_data d = {mat_random(N, 2 * H * K, 5, 2), mat_random(N, H * K, 1, 1), mat_random(N, H * K, 2, 1)};
    struct attend_case c = {&ch.rows, H, K, 0, 2 * K, 2 * K, K, 2 * H * K, 2 * H * K, H * K, doubles_of(d.qk), NULL, doubles_of(d.v), doubles_of(d.d_o)};
    c.k = c.q + K;
    double *o = malloc((size_t)(N * H * K) * 8), *lse = malloc((size_t)(N * H) * 8);
    attend_reference(&c, o, lse);
    FOR_KERNELS(k) {
        int failed = test_failed;
        struct attend_result r = result_new(N, H, K);
        struct backend *b = backend_for(*k, 1, N, H * K);
        run(b, &ch.rows, H, K, &d, &r, 0, 1);
        backend_close(b);
        NEAR(r.o, o, 2e-6); /* weights of e^±5 to 3e-7 each, sums of up to 300 */
        NEAR(r.lse, lse, 1e-6);
        if (finite) { /* q and k share c.q: one gradient covers both */
            GRADIENT(attend_objective, &c, c.q, r.dqk, 5e-6);
            GRADIENT(attend_objective, &c, c.v, r.dv, 5e-6);
        }
        for (int again = 0; again < 2; again++) {
            struct attend_result s = result_new(N, H, K);
            b = backend_for(*k, again ? 1 : 3, N, H * K);
            for (int i = 0; i < (again ? ch.rows.n_seqs : 1); i++) {
                struct chunk_of part = again ? chunk_part(&ch, i) : chunk_new(lengths, document);
                run(b, &part.rows, H, K, &d, &s, again ? ch.rows.seq_start[i] : 0, 1);
                chunk_free(&part);
            }
            CHECK(mat_same(r.o, s.o) && mat_same(r.lse, s.lse) && mat_same(r.dqk, s.dqk) && mat_same(r.dv, s.dv), "other bits %s",
                  again ? "sequence by sequence" : "with three threads");
            backend_close(b);
            result_free(&s);
        }
        if (test_failed > failed) fprintf(stderr, "  %s: N %lld H %lld K %lld document %d\n", (*k)->name, (long long)N, (long long)H, (long long)K, document);
        result_free(&r);
    }
    free(c.q), free(c.v), free(c.d_o), free(o), free(lse);
    mat_free(&d.qk), mat_free(&d.v), mat_free(&d.d_o), chunk_free(&ch);
}

TEST(gradients_by_differences) {
    attend_at((int[]){1, 0}, 1, 2, 0, 1);
    attend_at((int[]){7, 3, 1, 0}, 2, 6, 0, 1);
    attend_at((int[]){9, 5, 0}, 2, 4, 4, 1);
}
TEST(gradients_across_tiles) { attend_at((int[]){131, 0}, 1, 2, 50, 1); }

TEST(tile_edges) {
    static const int lengths[] = {95, 96, 97, 127, 128, 129, 193, 257};
    for (int i = 0; i < 8; i++) attend_at((int[]){lengths[i], 0}, 1, 20, 0, 0);
    attend_at((int[]){100, 30, 97, 2, 0}, 2, 64, 0, 0);
    attend_at((int[]){300, 0}, 1, 128, 0, 0);
}
TEST(documents) {
    attend_at((int[]){300, 0}, 2, 16, 70, 0);
    attend_at((int[]){400, 200, 0}, 1, 16, 130, 0); /* whole tiles are skipped */
    attend_at((int[]){40, 0}, 1, 16, 1, 0);         /* each row sees itself only */
}

TEST(a_large_score_does_not_overflow) {
    struct chunk_of ch = chunk_new((int[]){200, 0}, 0);
    struct attend_data d = {mat_random(200, 16, 0, 60), mat_random(200, 8, 0, 1), mat_random(200, 8, 0, 1)};
    struct attend_case c = {&ch.rows, 1, 8, 0, 16, 16, 8, 16, 16, 8, doubles_of(d.qk), NULL, doubles_of(d.v), NULL};
    c.k = c.q + 8;
    double *o = malloc(1600 * 8);
    attend_reference(&c, o, NULL);
    struct attend_result r = result_new(200, 1, 8);
    struct backend *b = backend_for(cpu_kernels_best(), 1, 200, 8);
    run(b, &ch.rows, 1, 8, &d, &r, 0, 0);
    NEAR(r.o, o, 1e-3); /* scores up to 5000: rounded to 3e-4, which the exponential hands on */
    backend_close(b), result_free(&r), chunk_free(&ch);
    free(o), free(c.q), free(c.v), mat_free(&d.qk), mat_free(&d.v), mat_free(&d.d_o);
}

TEST(generation_with_a_cache) { /* rows past.. of a sequence alone, keys of all: as the whole sequence at once */
    enum { N = 270, H = 2, K = 12 };
    static const int cuts[] = {0, 1, 2, 130, 131, 269, 270};
    struct chunk_of all = chunk_new((int[]){N, 0}, 0);
    struct attend_data d = {mat_random(N, 2 * H * K, 5, 2), mat_random(N, H * K, 1, 1), {0}};
    struct attend_case c = {&all.rows, H, K, 0, 2 * K, 2 * K, K, 2 * H * K, 2 * H * K, H * K, doubles_of(d.qk), NULL, doubles_of(d.v), NULL};
    c.k = c.q + K;
    double *o = malloc(N * H * K * 8);
    attend_reference(&c, o, NULL);
    FOR_KERNELS(k) {
        struct backend *b = backend_for(*k, 2, N, H * K);
        struct attend_result r = result_new(N, H, K);
        for (int i = 0; i < 6; i++) {
            int64_t past = cuts[i], n = cuts[i + 1] - past;
            struct chunk_of part = chunk_new((int[]){(int)n, 0}, 0);
            struct mat keys = mat_part(d.qk, 0, past + n);
            op_attend(b, &(struct attend_args){.rows = &part.rows, .H = H, .K = K, .past = past, .q = mat_part(d.qk, past, n), .k = columns(keys, K),
                                               .v = mat_part(d.v, 0, past + n), .o = mat_part(r.o, past, n), .q_step = 2 * K, .k_step = 2 * K,
                                               .v_step = K, .lse = at(&r.lse, past, 0)});
            chunk_free(&part);
        }
        NEAR(r.o, o, 2e-6);
        backend_close(b), result_free(&r);
    }
    free(o), free(c.q), free(c.v), mat_free(&d.qk), mat_free(&d.v), chunk_free(&all);
}
TEST_MAIN
