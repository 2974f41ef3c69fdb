/* The matrix product through op_linear and op_linear_bwd: sizes around every tile edge, all weight formats, adapters,
 * dropout, stacked outputs. */
#include "tests/ops/ops.h"
#include "base/rng.h"

/* One linear with up to two outputs. Everything is made once; runs write into fresh copies. */
struct problem {
    struct chunk_of c;
    int64_t N, in, out, R;
    int n, add, accumulate, trains;
    float p;
    enum weight_format format;
    struct weight w[2];
    void *stored[2];
    float *scale[2];
    uint8_t *scale_q[2];
    double *dense[2]; /* what the product sees */
    struct mat x, addend[2], A[2], B[2], dy[2];
};
struct result { struct mat y[2], xa[2], dx, dA[2], dB[2], dW[2]; };

static void make_weight(struct problem *p, int i) {
    int64_t n = p->out * p->in;
    float *w = malloc((size_t)n * 4);
    for (int64_t j = 0; j < n; j++) w[j] = uniform();
    p->w[i] = (struct weight){.format = p->format, .rows = p->out, .cols = p->in};
    p->dense[i] = malloc((size_t)n * sizeof(double));
    if (p->format == W_F32) {
        p->w[i].data = p->stored[i] = w;
        for (int64_t j = 0; j < n; j++) p->dense[i][j] = (double)w[j];
        return;
    }
    uint16_t *half = malloc((size_t)n * 2);
    if (p->format == W_BF16) {
        uint16_t *stored = p->stored[i] = malloc((size_t)n * 2);
        for (int64_t j = 0; j < n; j++) stored[j] = half[j] = f32_to_bf16(w[j]);
    } else if (p->format == W_INT8) {
        p->scale[i] = malloc((size_t)p->out * 4);
        p->stored[i] = malloc((size_t)n);
        int8_encode(w, DT_F32, p->out, p->in, p->stored[i], p->scale[i]);
        int8_decode(p->stored[i], p->scale[i], p->in, 0, p->out, half, DT_BF16);
        p->w[i].scale = p->scale[i];
    } else {
        int64_t blocks = q4_blocks(n, 64);
        p->scale[i] = malloc((size_t)(blocks + q4_nested(blocks)) * 4), p->scale_q[i] = malloc((size_t)blocks);
        p->stored[i] = malloc((size_t)q4_code_bytes(n));
        struct q4_view *v = &p->w[i].q4;
        *v = (struct q4_view){.codes = p->stored[i], .absmax_q = p->scale_q[i], .nested_absmax = p->scale[i] + blocks,
                              .nested_map = bw8_signed, .levels = nf4_levels, .block = 64};
        q4_encode(Q4_NF4, 64, w, DT_F32, n, p->stored[i], p->scale[i]);
        q4_double(p->scale[i], blocks, p->scale_q[i], p->scale[i] + blocks, &v->nested_offset);
        q4_decode(v, 0, n, half, DT_BF16);
    }
    if (p->format != W_Q4) p->w[i].data = p->stored[i];
    for (int64_t j = 0; j < n; j++) p->dense[i][j] = (double)bf16_to_f32(half[j]);
    free(half), free(w);
}

static void make(struct problem *p, const int *lengths) {
    p->c = chunk_new(lengths, 0);
    p->N = p->c.rows.N;
    p->x = mat_random(p->N, p->in, 3, 1);
    for (int i = 0; i < p->n; i++) {
        make_weight(p, i);
        if (p->add) p->addend[i] = mat_random(p->N, p->out, 1, 1);
        if (p->R) p->A[i] = mat_random(p->R, p->in, 0, 0.5f), p->B[i] = mat_random(p->out, p->R, 0, 0.5f);
        p->dy[i] = mat_random(p->N, p->out, 2, 1);
    }
}
static void unmake(struct problem *p) {
    chunk_free(&p->c);
    mat_free(&p->x);
    for (int i = 0; i < p->n; i++) {
        free(p->stored[i]), free(p->scale[i]), free(p->scale_q[i]), free(p->dense[i]);
        mat_free(&p->addend[i]), mat_free(&p->A[i]), mat_free(&p->B[i]), mat_free(&p->dy[i]);
    }
}

static struct result result_new(const struct problem *p) {
    struct result r = {.dx = mat_new(p->N, p->in, 5)};
    seed_now = 77;
    if (p->accumulate)
        for (int64_t i = 0; i < p->N; i++)
            for (int64_t j = 0; j < p->in; j++) *at(&r.dx, i, j) = uniform();
    for (int i = 0; i < p->n; i++) {
        r.y[i] = mat_new(p->N, p->out, 3);
        if (p->R) {
            r.xa[i] = mat_new(p->N, p->R, 0);
            r.dA[i] = mat_random(p->R, p->in, 0, 1), r.dB[i] = mat_random(p->out, p->R, 0, 1);
        }
        if (p->trains) r.dW[i] = mat_random(p->out, p->in, 0, 1);
    }
    return r;
}
static void result_free(struct result *r) {
    mat_free(&r->dx);
    for (int i = 0; i < 2; i++)
        mat_free(&r->y[i]), mat_free(&r->xa[i]), mat_free(&r->dA[i]), mat_free(&r->dB[i]), mat_free(&r->dW[i]);
}

/* Forward and backward over rows t0.. of chunk c. */
static void run(struct backend *b, const struct problem *p, const struct rows *rows, int64_t t0, struct result *r) {
    int64_t N = rows->N;
    struct linear_args a = {.rows = rows, .x = mat_part(p->x, t0, N), .n = p->n, .dx = mat_part(r->dx, t0, N),
                            .accumulate = p->accumulate};
    for (int i = 0; i < p->n; i++) {
        struct linear_out *o = &a.out[i];
        *o = (struct linear_out){.w = p->w[i], .y = mat_part(r->y[i], t0, N), .add = mat_part(p->addend[i], t0, N),
                                 .dy = mat_part(p->dy[i], t0, N), .dW = r->dW[i], .xa = mat_part(r->xa[i], t0, N),
                                 .drop = {.p = p->p, .seed = 0x123456789abcdef0u, .step = 3, .layer = 2, .site = (uint32_t)i}};
        if (p->R) o->lora = (struct adapter){.A = p->A[i], .B = p->B[i], .dA = r->dA[i], .dB = r->dB[i], .scale = 2};
    }
    op_linear(b, &a);
    op_linear_bwd(b, &a);
}

/* The mask by its definition. */
static double kept(const struct problem *p, int site, int64_t token, int64_t j) {
    uint32_t counter[4] = {(uint32_t)(j / 8), (uint32_t)token, (uint32_t)site, 3}, word[4];
    uint32_t key[2] = {0x9abcdef0u, 0x12345678u ^ 2};
    philox4x32(counter, key, word);
    const double share = floor((double)p->p * 65536 + 0.5) / 65536; /* dropped */
    return (word[j % 8 / 2] >> j % 2 * 16 & 65535) / 65536. >= share ? 1 / (1 - share) : 0;
}

/* The same in double; r's accumulated parts hold their starting values. */
static void reference(const struct problem *p, struct result *start, double *y[2], double *xa[2], double *dx, double *dA[2],
                      double *dB[2], double *dW[2]) {
    for (int64_t t = 0; t < p->N; t++)
        for (int64_t j = 0; j < p->in; j++) dx[t * p->in + j] = p->accumulate ? (double)*at(&start->dx, t, j) : 0;
    for (int i = 0; i < p->n; i++) {
        for (int64_t k = 0; k < p->R * p->in; k++) dA[i][k] = (double)((float *)start->dA[i].data)[k];
        for (int64_t k = 0; k < p->R * p->out; k++) dB[i][k] = (double)((float *)start->dB[i].data)[k];
        for (int64_t k = 0; p->trains && k < p->in * p->out; k++) dW[i][k] = (double)((float *)start->dW[i].data)[k];
        for (int64_t t = 0; t < p->N; t++) {
            double drop[600], dyB[64];
            for (int64_t j = 0; p->R && j < p->in; j++)
                drop[j] = p->p > 0 ? kept(p, i, p->c.rows.token0 + t, j) : 1;
            for (int64_t r = 0; r < p->R; r++) {
                double s = 0;
                for (int64_t j = 0; j < p->in; j++) s += drop[j] * (double)*at(&p->x, t, j) * (double)*at(&p->A[i], r, j);
                xa[i][t * p->R + r] = s;
                dyB[r] = 0;
                for (int64_t o = 0; o < p->out; o++) {
                    double d = (double)*at(&p->dy[i], t, o);
                    dyB[r] += d * (double)*at(&p->B[i], o, r);
                    dB[i][o * p->R + r] += 2 * d * s;
                }
                for (int64_t j = 0; j < p->in; j++) {
                    dA[i][r * p->in + j] += 2 * dyB[r] * drop[j] * (double)*at(&p->x, t, j);
                    dx[t * p->in + j] += 2 * dyB[r] * drop[j] * (double)*at(&p->A[i], r, j);
                }
            }
            for (int64_t o = 0; o < p->out; o++) {
                double s = p->add ? (double)*at(&p->addend[i], t, o) : 0, d = (double)*at(&p->dy[i], t, o);
                const double *w = p->dense[i] + o * p->in;
                for (int64_t j = 0; j < p->in; j++) {
                    s += (double)*at(&p->x, t, j) * w[j];
                    dx[t * p->in + j] += d * w[j];
                    if (p->trains) dW[i][o * p->in + j] += d * (double)*at(&p->x, t, j);
                }
                for (int64_t r = 0; r < p->R; r++) s += 2 * xa[i][t * p->R + r] * (double)*at(&p->B[i], o, r);
                y[i][t * p->out + o] = s;
            }
        }
    }
}

/* 600 products of values around 1 in blocks of 256: rounding errors of some 1e-7 of the largest sum. */
static const double BOUND = 2e-6;

static void check(struct problem p, const int *lengths) {
    seed_now = (uint64_t)(p.in * 1000 + p.out);
    make(&p, lengths);
    struct result start = result_new(&p);
    double *y[2], *xa[2], *dA[2], *dB[2], *dW[2], *dx = malloc((size_t)(p.N * p.in) * 8);
    for (int i = 0; i < 2; i++) {
        y[i] = malloc((size_t)(p.N * p.out) * 8), xa[i] = malloc((size_t)(p.N * p.R + 1) * 8);
        dA[i] = malloc((size_t)(p.R * p.in + 1) * 8), dB[i] = malloc((size_t)(p.R * p.out + 1) * 8);
        dW[i] = malloc((size_t)(p.out * p.in) * 8);
    }
    reference(&p, &start, y, xa, dx, dA, dB, dW);
    FOR_KERNELS(k) {
        struct result once = result_new(&p);
        struct backend *b = backend_for(*k, 1, p.N, 640);
        run(b, &p, &p.c.rows, 0, &once);
        backend_close(b);
        int failed = test_failed;
        NEAR(once.dx, dx, BOUND);
        for (int i = 0; i < p.n; i++) {
            NEAR(once.y[i], y[i], BOUND);
            if (p.R) NEAR(once.xa[i], xa[i], BOUND);
            if (p.R) NEAR(once.dA[i], dA[i], BOUND);
            if (p.R) NEAR(once.dB[i], dB[i], BOUND);
            if (p.trains) NEAR(once.dW[i], dW[i], BOUND);
        }
        for (int threads = 2; threads <= 3; threads++) { /* the same bits by more threads, and sequence by sequence */
            struct result again = result_new(&p);
            b = backend_for(*k, threads, p.N, 640);
            if (threads == 2) run(b, &p, &p.c.rows, 0, &again);
            else
                for (int s = 0; s < p.c.rows.n_seqs; s++) {
                    struct chunk_of part = chunk_part(&p.c, s);
                    run(b, &p, &part.rows, p.c.rows.seq_start[s], &again);
                    chunk_free(&part);
                }
            backend_close(b);
            int same = mat_same(once.dx, again.dx);
            for (int i = 0; i < p.n; i++) {
                same &= mat_same(once.y[i], again.y[i]);
                if (p.R) same &= mat_same(once.xa[i], again.xa[i]) && mat_same(once.dA[i], again.dA[i]) && mat_same(once.dB[i], again.dB[i]);
                if (p.trains) same &= mat_same(once.dW[i], again.dW[i]);
            }
            CHECK(same, "other bits %s", threads == 2 ? "with two threads" : "sequence by sequence");
            result_free(&again);
        }
        if (test_failed > failed)
            fprintf(stderr, "  %s: N %lld in %lld out %lld R %lld n %d format %d p %g\n", (*k)->name, (long long)p.N,
                    (long long)p.in, (long long)p.out, (long long)p.R, p.n, p.format, (double)p.p);
        result_free(&once);
    }
    for (int i = 0; i < 2; i++) free(y[i]), free(xa[i]), free(dA[i]), free(dB[i]), free(dW[i]);
    free(dx);
    result_free(&start);
    unmake(&p);
}

TEST(sizes_around_tile_edges) { /* mr 4, 6, 12; nr 8, 16, 32; 64 columns, 96 rows and 256 products a tile */
    static const int rows[] = {1, 2, 3, 5, 6, 7, 11, 13, 47, 49, 95, 97, 193};
    static const int columns[] = {1, 7, 8, 9, 15, 17, 31, 33, 63, 64, 65, 129};
    static const int inner[] = {1, 2, 8, 9, 255, 256, 257, 513};
    for (int i = 0; i < 13; i++) check((struct problem){.in = 33, .out = 17, .n = 1, .trains = 1}, (int[]){rows[i], 0});
    for (int i = 0; i < 12; i++) check((struct problem){.in = 20, .out = columns[i], .n = 1, .trains = 1}, (int[]){7, 0});
    for (int i = 0; i < 8; i++) check((struct problem){.in = inner[i], .out = 35, .n = 1, .trains = 1}, (int[]){9, 0});
    for (int i = 0; i < 8; i++) check((struct problem){.in = 19, .out = 35, .n = 1, .trains = 1}, (int[]){inner[i], 0});
}

TEST(weights_of_every_format) {
    for (enum weight_format f = W_F32; f <= W_Q4; f++) {
        check((struct problem){.in = 64, .out = 48, .n = 1, .format = f}, (int[]){10, 0});
        check((struct problem){.in = 333, .out = 129, .n = 1, .format = f}, (int[]){1, 0}); /* blocks run through row ends */
    }
}

TEST(adapters_and_stacked_outputs) {
    check((struct problem){.in = 70, .out = 50, .R = 8, .n = 1}, (int[]){33, 0});
    check((struct problem){.in = 70, .out = 50, .R = 64, .n = 2, .add = 1, .accumulate = 1, .trains = 1}, (int[]){3, 20, 1, 0});
    check((struct problem){.in = 128, .out = 96, .R = 3, .n = 2, .format = W_Q4}, (int[]){1, 1, 2, 0});
}

TEST(dropout_is_the_defined_mask) {
    check((struct problem){.in = 131, .out = 20, .R = 4, .n = 2, .p = 0.3f}, (int[]){17, 5, 0});
    check((struct problem){.in = 512, .out = 20, .R = 4, .n = 1, .p = 0.05f, .accumulate = 1}, (int[]){300, 9, 0});
    check((struct problem){.in = 600, .out = 8, .R = 4, .n = 1, .p = 0.9f}, (int[]){4, 0});
}

TEST(sums_over_tokens_run_sequence_by_sequence) { /* steps of 64 blocks and of 2048 products are passed */
    int lengths[101] = {0};
    for (int i = 0; i < 100; i++) lengths[i] = 1 + i % 7;
    check((struct problem){.in = 21, .out = 18, .R = 2, .n = 1, .trains = 1}, lengths);
    check((struct problem){.in = 9, .out = 6, .R = 2, .n = 1, .trains = 1}, (int[]){1500, 700, 300, 0});
}

TEST(long_rows_take_several_steps) { /* K beyond 2048, rows beyond 2040: in double only two columns are affordable */
    seed_now = 5;
    struct backend *b = backend_for(cpu_kernels_best(), 2, 4100, 4200);
    struct chunk_of c = chunk_new((int[]){2500, 1600, 0}, 0);
    struct mat x = mat_random(4100, 5, 0, 1), y = mat_new(4100, 3, 0), w = mat_random(3, 5, 0, 1);
    op_linear(b, &(struct linear_args){.rows = &c.rows, .x = x, .n = 1, .out = {{.w = {.rows = 3, .cols = 5, .data = w.data}, .y = y}}});
    double *ref = calloc(4100 * 3, 8);
    for (int t = 0; t < 4100; t++)
        for (int o = 0; o < 3; o++)
            for (int j = 0; j < 5; j++) ref[t * 3 + o] += (double)*at(&x, t, j) * (double)*at(&w, o, j);
    NEAR(y, ref, BOUND);
    free(ref), mat_free(&x), mat_free(&y), mat_free(&w), chunk_free(&c);
    c = chunk_new((int[]){2, 0}, 0);
    x = mat_random(2, 4200, 0, 1), y = mat_new(2, 3, 0), w = mat_random(3, 4200, 0, 1), ref = calloc(6, 8);
    op_linear(b, &(struct linear_args){.rows = &c.rows, .x = x, .n = 1, .out = {{.w = {.rows = 3, .cols = 4200, .data = w.data}, .y = y}}});
    for (int t = 0; t < 2; t++)
        for (int o = 0; o < 3; o++)
            for (int j = 0; j < 4200; j++) ref[t * 3 + o] += (double)*at(&x, t, j) * (double)*at(&w, o, j);
    NEAR(y, ref, BOUND);
    free(ref), mat_free(&x), mat_free(&y), mat_free(&w), chunk_free(&c);
    backend_close(b);
}

TEST(dropout_keeps_its_share) {
    enum { N = 400, IN = 500 };
    struct mat x = mat_new(N, IN, 0), y = mat_new(N, IN, 0);
    struct dropout d = {.p = 0.1f, .seed = 9, .step = 1, .layer = 1, .site = 1};
    FOR_KERNELS(k) {
        double n = 0, pairs = 0;
        for (int t = 0; t < N; t++) {
            for (int j = 0; j < IN; j++) *at(&x, t, j) = 1;
            (*k)->drop(&d, (uint32_t)t, 0, at(&x, t, 0), at(&y, t, 0), 0, IN);
            for (int j = 0; j < IN; j++) n += *at(&y, t, j) > 0;
            for (int j = 0; t && j < IN; j++) pairs += *at(&y, t, j) > 0 && *at(&y, t - 1, j) > 0;
        }
        /* four standard deviations of 2e5 draws are 0.0027; neighbours are independent */
        CHECK(fabs(n / (N * IN) - 0.9) < 0.0027, "kept %g", n / (N * IN));
        CHECK(fabs(pairs / ((N - 1) * IN) - 0.81) < 0.005, "both kept %g", pairs / ((N - 1) * IN));
    }
    mat_free(&x), mat_free(&y);
}

TEST(only_xa_when_y_is_absent) {
    struct problem p = {.in = 40, .out = 30, .R = 5, .n = 1};
    make(&p, (int[]){6, 0});
    struct result r = result_new(&p), s = result_new(&p);
    struct backend *b = backend_for(cpu_kernels_best(), 2, p.N, 640);
    run(b, &p, &p.c.rows, 0, &r);
    struct linear_args a = {.rows = &p.c.rows, .x = p.x, .n = 1,
                            .out = {{.w = p.w[0], .xa = s.xa[0], .lora = {.A = p.A[0], .B = p.B[0], .scale = 2}}}};
    op_linear(b, &a);
    CHECK(mat_same(r.xa[0], s.xa[0]), "xa differs");
    backend_close(b);
    result_free(&r), result_free(&s), unmake(&p);
}
TEST_MAIN
