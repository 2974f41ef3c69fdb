/* DoRA through op_dora, op_linear, op_linear_bwd and op_dora_bwd, against the formula in double and its finite differences, with
 * the norms held constant as the method asks. */
#include "tests/ops/ops.h"
#include "base/rng.h"

enum { IN = 70, OUT = 50, R = 5 };
static const float SCALE = 1.5f;

struct problem {
    struct chunk_of c;
    struct weight w;
    float p;                    /* dropout */
    struct mat x, A, B, m, dy, W;
    double *mask;               /* of dropout: 0, or 1 / (1 - p) */
    double *dense;              /* what products see of W */
    double *dx, *da, *db, *dm, *norm; /* the same in double: what finite differences move; norm stays */
};
struct result { struct mat norm, c, y, xa, dx, dA, dB, dm; };

static const struct dropout MASK = {.seed = 0x123456789abcdef0u, .step = 3, .layer = 2, .site = 1};
static double kept(const struct problem *p, int64_t token, int64_t j) {
    uint32_t counter[4] = {(uint32_t)(j / 8), (uint32_t)token, 1, 3}, word[4], key[2] = {0x9abcdef0u, 0x12345678u ^ 2};
    if (p->p <= 0) return 1;
    philox4x32(counter, key, word);
    const double share = floor((double)p->p * 65536 + 0.5) / 65536; /* dropped */
    return (word[j % 8 / 2] >> j % 2 * 16 & 65535) / 65536. >= share ? 1 / (1 - share) : 0;
}

/* y[o] = m_o / norm_o (x W_oᵀ + s drop(x) Aᵀ B_oᵀ) of row t */
static void output(const struct problem *p, int64_t t, double y[OUT]) {
    double xa[R] = {0};
    for (int j = 0; j < IN; j++)
        for (int r = 0; r < R; r++) xa[r] += p->mask[t * IN + j] * p->dx[t * IN + j] * p->da[r * IN + j];
    for (int o = 0; o < OUT; o++) {
        y[o] = 0;
        for (int j = 0; j < IN; j++) y[o] += p->dx[t * IN + j] * p->dense[o * IN + j];
        for (int r = 0; r < R; r++) y[o] += (double)SCALE * xa[r] * p->db[o * R + r];
        y[o] *= p->dm[o] / p->norm[o];
    }
}
static double objective(void *arg) {
    const struct problem *p = arg;
    double sum = 0, y[OUT];
    for (int64_t t = 0; t < p->c.rows.N; t++) {
        output(p, t, y);
        for (int o = 0; o < OUT; o++) sum += y[o] * (double)*at(&p->dy, t, o);
    }
    return sum;
}

static void make(struct problem *p, const int *lengths, enum weight_format f) {
    seed_now = 11;
    p->c = chunk_new(lengths, 0);
    const int64_t N = p->c.rows.N;
    p->x = mat_random(N, IN, 3, 1), p->A = mat_random(R, IN, 0, 0.5f), p->B = mat_random(OUT, R, 0, 0.5f), p->m = mat_random(1, OUT, 0, 4);
    p->dy = mat_random(N, OUT, 2, 1), p->W = mat_random(OUT, IN, 0, 1);
    p->w = (struct weight){.format = f, .rows = OUT, .cols = IN, .data = p->W.data};
    p->dense = doubles_of(p->W);
    if (f == W_BF16) { /* in place: half the bytes */
        uint16_t *half = p->W.data;
        for (int i = 0; i < OUT * IN; i++) half[i] = f32_to_bf16((float)p->dense[i]), p->dense[i] = (double)bf16_to_f32(half[i]);
    }
    p->dx = doubles_of(p->x), p->da = doubles_of(p->A), p->db = doubles_of(p->B), p->dm = doubles_of(p->m);
    p->mask = malloc((size_t)(N * IN) * sizeof *p->mask);
    for (int64_t i = 0; i < N * IN; i++) p->mask[i] = kept(p, p->c.rows.token0 + i / IN, i % IN);
    p->norm = malloc(OUT * sizeof(double));
    for (int o = 0; o < OUT; o++) {
        double sum = 0;
        for (int j = 0; j < IN; j++) {
            double v = p->dense[o * IN + j];
            for (int r = 0; r < R; r++) v += (double)SCALE * p->db[o * R + r] * p->da[r * IN + j];
            sum += v * v;
        }
        p->norm[o] = sqrt(sum);
    }
}
static void unmake(struct problem *p) {
    chunk_free(&p->c), mat_free(&p->x), mat_free(&p->A), mat_free(&p->B), mat_free(&p->m), mat_free(&p->dy), mat_free(&p->W);
    free(p->dense), free(p->dx), free(p->da), free(p->db), free(p->dm), free(p->norm), free(p->mask);
}

static struct result result_new(int64_t N) {
    struct result r = {.norm = mat_new(1, OUT, 0), .c = mat_new(1, OUT, 0), .y = mat_new(N, OUT, 1), .xa = mat_new(N, R, 0), .dx = mat_new(N, IN, 5),
                       .dA = mat_new(R, IN, 0), .dB = mat_new(OUT, R, 0), .dm = mat_new(1, OUT, 0)};
    memset(r.dA.data, 0, R * IN * 4), memset(r.dB.data, 0, OUT * R * 4), memset(r.dm.data, 0, OUT * 4);
    return r;
}
static void result_free(struct result *r) {
    mat_free(&r->norm), mat_free(&r->c), mat_free(&r->y), mat_free(&r->xa), mat_free(&r->dx), mat_free(&r->dA), mat_free(&r->dB), mat_free(&r->dm);
}

static void run(struct backend *b, const struct problem *p, const struct rows *rows, int64_t t0, const struct result *r) {
    const int64_t N = rows->N;
    const struct adapter l = {.A = p->A, .B = p->B, .dA = r->dA, .dB = r->dB, .scale = SCALE, .m = p->m.data, .c = r->c.data, .dm = r->dm.data};
    struct dropout drop = MASK;
    drop.p = p->p;
    op_dora(b, &(struct dora_args){.w = p->w, .lora = l, .norm = r->norm.data});
    struct linear_args a = {.rows = rows, .x = mat_part(p->x, t0, N), .n = 1, .dx = mat_part(r->dx, t0, N)};
    a.out[0] = (struct linear_out){.w = p->w, .lora = l, .y = mat_part(r->y, t0, N), .xa = mat_part(r->xa, t0, N), .dy = mat_part(p->dy, t0, N), .drop = drop};
    op_linear(b, &a);
    op_linear_bwd(b, &a);
    op_dora_bwd(b, &(struct dora_args){.w = p->w, .lora = l, .rows = rows, .y = a.out[0].y, .dy = a.out[0].dy});
}

static void check(float dropout, enum weight_format f, const int *lengths) {
    struct problem p = {.p = dropout};
    make(&p, lengths, f);
    const int64_t N = p.c.rows.N;
    double scale[OUT], *y = malloc((size_t)(N * OUT) * sizeof *y);
    for (int o = 0; o < OUT; o++) scale[o] = p.dm[o] / p.norm[o];
    for (int64_t t = 0; t < N; t++) output(&p, t, y + t * OUT);
    FOR_KERNELS(k) {
        struct result once = result_new(N);
        struct backend *b = backend_for(*k, 1, N, 128);
        run(b, &p, &p.c.rows, 0, &once);
        backend_close(b);
        const double bound = 2e-6; /* as for linear; c is rounded once more */
        NEAR(once.norm, p.norm, bound);
        NEAR(once.c, scale, bound);
        NEAR(once.y, y, bound);
        GRADIENT(objective, &p, p.dm, once.dm, 1e-5);
        if (N < 30) { /* as many objectives as there are numbers */
            GRADIENT(objective, &p, p.dx, once.dx, 1e-5);
            GRADIENT(objective, &p, p.da, once.dA, 1e-5);
            GRADIENT(objective, &p, p.db, once.dB, 1e-5);
        }
        struct result again = result_new(N);
        b = backend_for(*k, 3, N, 128);
        for (int s = 0; s < p.c.rows.n_seqs; s++) {
            struct chunk_of part = chunk_part(&p.c, s);
            run(b, &p, &part.rows, p.c.rows.seq_start[s], &again);
            chunk_free(&part);
        }
        backend_close(b);
        CHECK(mat_same(once.norm, again.norm) && mat_same(once.c, again.c) && mat_same(once.y, again.y) && mat_same(once.dx, again.dx) &&
                  mat_same(once.dA, again.dA) && mat_same(once.dB, again.dB) && mat_same(once.dm, again.dm),
              "%s: other bits sequence by sequence, with three threads", (*k)->name);
        result_free(&once), result_free(&again);
    }
    free(y), unmake(&p);
}

TEST(forward_and_gradients) {
    check(0, W_F32, (int[]){6, 1, 9, 0});
    check(0.3f, W_F32, (int[]){7, 5, 0});
    check(0, W_BF16, (int[]){3, 4, 0});
}

TEST(long_sequences_are_summed_in_blocks) { check(0, W_F32, (int[]){300, 20, 0}); }

TEST(rows_of_zeros_and_magnitudes_of_zero) { /* no division by either */
    struct problem p = {0};
    make(&p, (int[]){4, 0}, W_F32);
    for (int j = 0; j < IN; j++) *at(&p.W, 3, j) = 0;
    for (int r = 0; r < R; r++) *at(&p.B, 3, r) = 0;
    *at(&p.m, 0, 7) = 0;
    struct result got = result_new(p.c.rows.N);
    struct backend *b = backend_for(cpu_kernels_best(), 2, p.c.rows.N, 128);
    run(b, &p, &p.c.rows, 0, &got);
    backend_close(b);
    CHECK(*at(&got.norm, 0, 3) == 0 && *at(&got.c, 0, 3) == 0 && *at(&got.c, 0, 7) == 0, "norm %g, scales %g %g", (double)*at(&got.norm, 0, 3), (double)*at(&got.c, 0, 3),
          (double)*at(&got.c, 0, 7));
    CHECK(*at(&got.y, 2, 3) == 0 && *at(&got.dm, 0, 3) == 0 && *at(&got.dm, 0, 7) == 0, "y %g, gradients %g %g", (double)*at(&got.y, 2, 3), (double)*at(&got.dm, 0, 3),
          (double)*at(&got.dm, 0, 7));
    result_free(&got), unmake(&p);
}

TEST(the_norms_of_a_start_leave_the_weight_alone) { /* B = 0, m = norm: c is exactly 1 */
    struct problem p = {0};
    make(&p, (int[]){4, 0}, W_F32);
    memset(p.B.data, 0, OUT * R * 4);
    struct mat c = mat_new(1, OUT, 0);
    struct backend *b = backend_for(cpu_kernels_best(), 2, p.c.rows.N, 128);
    struct adapter l = {.A = p.A, .B = p.B, .scale = SCALE};
    op_dora(b, &(struct dora_args){.w = p.w, .lora = l, .norm = p.m.data});
    l.m = p.m.data, l.c = c.data;
    op_dora(b, &(struct dora_args){.w = p.w, .lora = l});
    for (int o = 0; o < OUT; o++) CHECK(*at(&c, 0, o) == 1, "scale %d is %.9g", o, (double)*at(&c, 0, o));
    backend_close(b);
    mat_free(&c), unmake(&p);
}
TEST_MAIN
