/* The ops on single token rows: embedding, norm, filter, rope, gate. Forward against loops in double, backward against
 * central differences of those loops, and the same bits for any threads and chunks. */
#include "tests/ops/ops.h"

static const int LENGTHS[] = {5, 1, 9, 2, 0};
static const double BOUND = 2e-6; /* sums of up to 300 products of numbers around 1 */

/* ---- norm ---- */

struct norm_case { int64_t N, D; double *x, *g, *dy; double eps; };

static void norm_reference(const struct norm_case *c, double *y) {
    for (int64_t t = 0; t < c->N; t++) {
        double s = 0;
        for (int64_t j = 0; j < c->D; j++) s += c->x[t * c->D + j] * c->x[t * c->D + j];
        for (int64_t j = 0; j < c->D; j++)
            y[t * c->D + j] = c->g[j] * c->x[t * c->D + j] / sqrt(s / (double)c->D + c->eps);
    }
}
static double weighed(const double *y, const double *dy, int64_t n) {
    double s = 0;
    for (int64_t i = 0; i < n; i++) s += y[i] * dy[i];
    return s;
}
static double norm_objective(void *arg) {
    struct norm_case *c = arg;
    double *y = malloc((size_t)(c->N * c->D) * 8), f;
    norm_reference(c, y);
    f = weighed(y, c->dy, c->N * c->D);
    free(y);
    return f;
}

static void norm_at(int64_t D, int half) {
    struct chunk_of ch = chunk_new(LENGTHS, 0);
    int64_t N = ch.rows.N;
    struct mat x = mat_random(N, D, 2, 1), dy = mat_random(N, D, 1, 1), g = mat_random(1, D, 0, 1);
    uint16_t *g16 = malloc((size_t)D * 2);
    for (int64_t j = 0; j < D; j++) g16[j] = f32_to_bf16(*at(&g, 0, j));
    for (int64_t j = 0; half && j < D; j++) *at(&g, 0, j) = bf16_to_f32(g16[j]);
    struct norm_case c = {N, D, doubles_of(x), doubles_of(g), doubles_of(dy), (double)1e-3f};
    double *y = malloc((size_t)(N * D) * 8);
    norm_reference(&c, y);
    FOR_KERNELS(k) {
        struct mat out[3][4]; /* run 0: whole; 1: three threads; 2: sequence by sequence */
        for (int run = 0; run < 3; run++) {
            struct mat *o = out[run];
            o[0] = mat_new(N, D, 3), o[1] = mat_new(N, D, 4), o[2] = mat_new(1, D, 0), o[3] = mat_new(N, 1, 0);
            memset(o[2].data, 0, (size_t)D * 4);
            struct backend *b = backend_for(*k, run == 1 ? 3 : 1, N, D);
            for (int s = 0; s < (run == 2 ? ch.rows.n_seqs : 1); s++) {
                struct chunk_of part = run == 2 ? chunk_part(&ch, s) : chunk_new(LENGTHS, 0);
                int64_t t = run == 2 ? ch.rows.seq_start[s] : 0, n = part.rows.N;
                struct norm_args a = {.rows = &part.rows, .x = mat_part(x, t, n), .y = mat_part(o[0], t, n), .g = half ? (void *)g16 : g.data,
                                      .g_type = half ? DT_BF16 : DT_F32, .r = at(&o[3], t, 0), .eps = 1e-3f,
                                      .dy = mat_part(dy, t, n), .dx = mat_part(o[1], t, n), .overwrite = 1, .dg = o[2].data};
                op_norm(b, &a);
                op_norm_bwd(b, &a);
                chunk_free(&part);
            }
            if (run) for (int i = 0; i < 4; i++) CHECK(mat_same(out[0][i], o[i]), "%s: run %d, part %d has other bits", (*k)->name, run, i);
            backend_close(b);
        }
        NEAR(out[0][0], y, BOUND);
        GRADIENT(norm_objective, &c, c.x, out[0][1], BOUND);
        GRADIENT(norm_objective, &c, c.g, out[0][2], BOUND);
        struct mat sum = mat_new(N, D, 0); /* += instead of = */
        for (int64_t i = 0; i < N * D; i++) ((float *)sum.data)[i] = 1;
        struct backend *b = backend_for(*k, 1, N, D);
        op_norm_bwd(b, &(struct norm_args){.rows = &ch.rows, .x = x, .g = half ? (void *)g16 : g.data, .g_type = half ? DT_BF16 : DT_F32,
                                           .r = out[0][3].data, .dy = dy, .dx = sum});
        for (int64_t t = 0; t < N; t++)
            for (int64_t j = 0; j < D; j++)
                CHECK(fabsf(*at(&sum, t, j) - 1 - *at(&out[0][1], t, j)) < 1e-6f * (1 + fabsf(*at(&sum, t, j))), "row %d", (int)t);
        backend_close(b);
        mat_free(&sum);
        for (int i = 0; i < 12; i++) mat_free(&out[i / 4][i % 4]);
    }
    free(c.x), free(c.g), free(c.dy), free(y), free(g16);
    mat_free(&x), mat_free(&dy), mat_free(&g), chunk_free(&ch);
}
TEST(norm) {
    for (int i = 0; i < 6; i++) norm_at((int64_t[]){1, 2, 7, 16, 63, 130}[i], i % 2);
}

/* ---- filter ---- */

struct filter_case { struct rows *rows; int64_t in, out; double *x, *w0, *w1, *b, *add, *dy, *before; };

static void filter_reference(const struct filter_case *c, double *y) {
    for (int64_t t = 0; t < c->rows->N; t++)
        for (int64_t o = 0; o < c->out; o++) {
            double s = c->b[o] + (c->add ? c->add[t * c->out + o] : 0);
            const double *last = c->rows->offset[t] ? c->x + (t - 1) * c->in : c->before;
            for (int64_t j = 0; j < c->in; j++)
                s += c->x[t * c->in + j] * c->w1[o * c->in + j] + (last ? last[j] * c->w0[o * c->in + j] : 0);
            y[t * c->out + o] = s;
        }
}
static double filter_objective(void *arg) {
    struct filter_case *c = arg;
    double *y = malloc((size_t)(c->rows->N * c->out) * 8), f;
    filter_reference(c, y);
    f = weighed(y, c->dy, c->rows->N * c->out);
    free(y);
    return f;
}

static void filter_at(int64_t in, int64_t out, int with_add) {
    struct chunk_of ch = chunk_new(LENGTHS, 0);
    int64_t N = ch.rows.N;
    struct mat x = mat_random(N, in, 2, 1), dy = mat_random(N, out, 1, 1), add = mat_random(N, out, 3, 1);
    struct mat w0 = mat_random(out, in, 0, 1), w1 = mat_random(out, in, 0, 1), bias = mat_random(1, out, 0, 1);
    struct filter_case c = {&ch.rows, in, out, doubles_of(x), doubles_of(w0), doubles_of(w1), doubles_of(bias),
                            with_add ? doubles_of(add) : NULL, doubles_of(dy), NULL};
    struct mat none = {0};
    double *y = malloc((size_t)(N * out) * 8);
    filter_reference(&c, y);
    FOR_KERNELS(k) {
        struct mat o[3][5];
        for (int run = 0; run < 3; run++) {
            o[run][0] = mat_new(N, out, 1), o[run][1] = mat_new(N, in, 2), o[run][2] = mat_new(out, in, 0), o[run][3] = mat_new(out, in, 0);
            o[run][4] = mat_new(1, out, 0);
            for (int i = 2; i < 5; i++) memset(o[run][i].data, 0, (size_t)(o[run][i].rows * o[run][i].cols) * 4);
            struct backend *b = backend_for(*k, run == 1 ? 3 : 1, N, 256);
            for (int s = 0; s < (run == 2 ? ch.rows.n_seqs : 1); s++) {
                struct chunk_of part = run == 2 ? chunk_part(&ch, s) : chunk_new(LENGTHS, 0);
                int64_t t = run == 2 ? ch.rows.seq_start[s] : 0, n = part.rows.N;
                struct filter_args a = {
                    .rows = &part.rows, .x = mat_part(x, t, n), .y = mat_part(o[run][0], t, n), .b = bias.data, .b_type = DT_F32,
                    .w0 = {.rows = out, .cols = in, .data = w0.data}, .w1 = {.rows = out, .cols = in, .data = w1.data},
                    .add = with_add ? mat_part(add, t, n) : none, .dy = mat_part(dy, t, n), .dx = mat_part(o[run][1], t, n),
                    .dw0 = o[run][2], .dw1 = o[run][3], .db = o[run][4].data};
                op_filter(b, &a);
                op_filter_bwd(b, &a);
                chunk_free(&part);
            }
            backend_close(b);
            if (run) for (int i = 0; i < 5; i++) CHECK(mat_same(o[0][i], o[run][i]), "%s: run %d, part %d has other bits", (*k)->name, run, i);
        }
        NEAR(o[0][0], y, BOUND);
        GRADIENT(filter_objective, &c, c.x, o[0][1], BOUND);
        GRADIENT(filter_objective, &c, c.w0, o[0][2], BOUND);
        GRADIENT(filter_objective, &c, c.w1, o[0][3], BOUND);
        GRADIENT(filter_objective, &c, c.b, o[0][4], BOUND);
        for (int i = 0; i < 15; i++) mat_free(&o[i / 5][i % 5]);
    }
    free(c.x), free(c.w0), free(c.w1), free(c.b), free(c.add), free(c.dy), free(y);
    mat_free(&x), mat_free(&dy), mat_free(&add), mat_free(&w0), mat_free(&w1), mat_free(&bias), chunk_free(&ch);
}
TEST(filter) {
    filter_at(1, 1, 0), filter_at(6, 3, 1), filter_at(17, 33, 0), filter_at(33, 16, 1);
}

TEST(a_part_of_a_sequence_knows_the_rows_around_it) { /* one sequence in two calls; bf16 weights and bias */
    enum { N = 7, CUT = 3, IN = 10, OUT = 6 };
    struct mat x = mat_random(N, IN, 0, 1), w = mat_random(2 * OUT, IN, 0, 1), dy = mat_random(N, OUT, 0, 1), whole = mat_new(N, OUT, 0), parts = mat_new(N, OUT, 0);
    struct mat dx = mat_new(N, IN, 0), dx_parts = mat_new(N, IN, 0), dw0 = mat_new(OUT, IN, 0), dw0_parts = mat_new(OUT, IN, 0);
    memset(dw0.data, 0, sizeof(float) * OUT * IN), memset(dw0_parts.data, 0, sizeof(float) * OUT * IN);
    uint16_t w16[2 * OUT * IN], b16[OUT];
    for (int i = 0; i < 2 * OUT * IN; i++) w16[i] = f32_to_bf16(((float *)w.data)[i]);
    for (int i = 0; i < OUT; i++) b16[i] = f32_to_bf16(uniform());
    struct chunk_of all = chunk_new((int[]){N, 0}, 0), head = chunk_new((int[]){CUT, 0}, 0), tail = chunk_new((int[]){N - CUT, 0}, 0);
    struct backend *b = backend_for(cpu_kernels_best(), 1, N, 64);
    struct filter_args a = {.rows = &all.rows, .x = x, .y = whole, .b = b16, .b_type = DT_BF16, .dy = dy, .dx = dx, .dw0 = dw0,
                            .w0 = {.format = W_BF16, .rows = OUT, .cols = IN, .data = w16},
                            .w1 = {.format = W_BF16, .rows = OUT, .cols = IN, .data = w16 + OUT * IN}};
    op_filter(b, &a), op_filter_bwd(b, &a);
    for (int i = CUT; i < N; i++) tail.data[2 * (N - CUT) + i - CUT] = i;
    a.rows = &head.rows, a.x = mat_part(x, 0, CUT), a.y = mat_part(parts, 0, CUT), a.dw0 = dw0_parts;
    a.dy = mat_part(dy, 0, CUT), a.after = mat_part(dy, CUT, 1), a.dx = mat_part(dx_parts, 0, CUT);
    op_filter(b, &a), op_filter_bwd(b, &a);
    a.rows = &tail.rows, a.before = mat_part(x, CUT - 1, 1), a.x = mat_part(x, CUT, N - CUT), a.y = mat_part(parts, CUT, N - CUT);
    a.dy = mat_part(dy, CUT, N - CUT), a.after = (struct mat){0}, a.dx = mat_part(dx_parts, CUT, N - CUT);
    op_filter(b, &a), op_filter_bwd(b, &a);
    CHECK(mat_same(whole, parts) && mat_same(dx, dx_parts), "differs");
    for (int i = 0; i < OUT * IN; i++) {
        float one = ((float *)dw0.data)[i], two = ((float *)dw0_parts.data)[i];
        CHECK(fabsf(one - two) <= 1e-6f * (1 + fabsf(one)), "dw0 %d: %g, in parts %g", i, (double)one, (double)two); /* summed part by part */
    }
    backend_close(b);
    chunk_free(&all), chunk_free(&head), chunk_free(&tail);
    mat_free(&x), mat_free(&w), mat_free(&whole), mat_free(&parts), mat_free(&dy), mat_free(&dx), mat_free(&dx_parts), mat_free(&dw0), mat_free(&dw0_parts);
}

/* ---- rope ---- */

TEST(rope_turns_and_turns_back) {
    for (int i = 0; i < 4; i++) {
        int64_t K = (int64_t[]){2, 6, 64, 128}[i], D = K * (i + 1);
        struct chunk_of ch = chunk_new(LENGTHS, 0);
        int64_t N = ch.rows.N;
        ch.data[N - 1] = 8000; /* a far position */
        struct mat x = mat_random(N, D, 5, 1);
        double *ref = doubles_of(x), *plain = doubles_of(x);
        for (int64_t t = 0; t < N; t++)
            for (int64_t j = 0; j < D; j += K)
                for (int64_t m = 0; m < K / 2; m++) {
                    /* the angle is defined in fp32: at position 8000 its rounding alone is 2e-4 */
                    float theta = 1 / powf(10000, (float)(2 * m) / (float)K), angle = (float)ch.rows.position[t] * theta;
                    double a = plain[t * D + j + m], b = plain[t * D + j + m + K / 2], c = cos((double)angle), s = sin((double)angle);
                    ref[t * D + j + m] = a * c - b * s, ref[t * D + j + m + K / 2] = b * c + a * s;
                }
        FOR_KERNELS(k) {
            struct mat y = mat_copy(x), z = mat_copy(x);
            struct backend *b = backend_for(*k, 1, N, D), *b3 = backend_for(*k, 3, N, D);
            struct rope_args a = {.rows = &ch.rows, .x = y, .K = K, .sign = 1}, a3 = {.rows = &ch.rows, .x = z, .K = K, .sign = 1};
            op_rope(b, &a), op_rope(b3, &a3);
            CHECK(mat_same(y, z), "threads change bits");
            NEAR(y, ref, 3e-7); /* two products and a sum */
            a.sign = -1;
            op_rope(b, &a);
            NEAR(y, plain, 6e-7);
            backend_close(b), backend_close(b3);
            mat_free(&y), mat_free(&z);
        }
        free(ref), free(plain), mat_free(&x), chunk_free(&ch);
    }
}

/* ---- gate ---- */

struct gate_case { int64_t n; double *g, *u, *dy; };
static double gate_objective(void *arg) {
    struct gate_case *c = arg;
    double s = 0;
    for (int64_t i = 0; i < c->n; i++) s += c->dy[i] * c->g[i] * c->u[i] / (1 + exp(-c->u[i]));
    return s;
}
TEST(gate) {
    for (int i = 0; i < 4; i++) {
        int64_t N = 3, F = (int64_t[]){1, 9, 64, 259}[i];
        struct mat g = mat_random(N, F, 1, 1), u = mat_random(N, F, 2, 4), dy = mat_random(N, F, 3, 1);
        struct gate_case c = {N * F, doubles_of(g), doubles_of(u), doubles_of(dy)};
        double *ref = malloc((size_t)(N * F) * 8);
        for (int64_t j = 0; j < N * F; j++) ref[j] = c.g[j] * c.u[j] / (1 + exp(-c.u[j]));
        FOR_KERNELS(k) {
            struct mat y = mat_new(N, F, 1), dg = mat_new(N, F, 2), du = mat_new(N, F, 3), again = mat_new(N, F, 4);
            struct backend *b = backend_for(*k, 2, N, F);
            op_gate(b, &(struct gate_args){.g = g, .u = u, .y = y});
            NEAR(y, ref, 5e-7); /* exp to 2 units, a quotient and two products */
            op_gate_bwd(b, &(struct gate_args){.g = g, .u = u, .dy = dy, .dg = dg, .du = du, .y = again});
            GRADIENT(gate_objective, &c, c.g, dg, 1e-6);
            GRADIENT(gate_objective, &c, c.u, du, 1e-6);
            CHECK(mat_same(y, again), "y made again differs");
            struct mat g2 = mat_copy(g), u2 = mat_copy(u);
            op_gate_bwd(b, &(struct gate_args){.g = g2, .u = u2, .dy = dy, .dg = g2, .du = u2});
            CHECK(mat_same(g2, dg) && mat_same(u2, du), "in place differs");
            mat_free(&g2), mat_free(&u2), mat_free(&y), mat_free(&dg), mat_free(&du), mat_free(&again);
            backend_close(b);
        }
        free(c.g), free(c.u), free(c.dy), free(ref), mat_free(&g), mat_free(&u), mat_free(&dy);
    }
}

TEST(exponentials_over_the_whole_range) {
    static const float special[] = {0, -0.f, 88, 88.3f, 100, -87, -87.3f, -87.4f, -100, INFINITY, -INFINITY, NAN, 1e-30f, -1e-8f};
    FOR_KERNELS(k) {
        double worst = 0;
        for (int i = 0; i < 20000; i++) {
            float x = -87 + (float)i * (175.f / 20000), y = x;
            (*k)->exp_sum(&y, 0, 1);
            double error = fabs((double)y / exp((double)x) - 1);
            if (x < 88.37f && error > worst) worst = error;
        }
        CHECK(worst < 2.5e-7, "%s: relative error %g", (*k)->name, worst); /* 4 units in the last place without FMA */
        for (int i = 0; i < 14; i++) {
            float y = special[i];
            (*k)->exp_sum(&y, 0, 1);
            double x = (double)special[i], e = exp(x < (double)88.37f || isnan(x) ? x : (double)88.37f);
            CHECK(isnan(e) ? isnan(y) : fabs((double)y - e) <= 1e-6 * e + 1.2e-38, "%s: exp(%g) = %g", (*k)->name, x, (double)y);
        }
        float g[5] = {1, 1, 1, 1, 1}, u[5] = {-1e4f, 1e4f, NAN, -90, 90}, y[5];
        (*k)->gate(g, u, y, 5);
        CHECK(y[0] == 0 && y[1] == 1e4f && isnan(y[2]) && fabsf(y[3]) < 1e-30f && y[4] == 90, "%g %g %g %g %g", (double)y[0],
              (double)y[1], (double)y[2], (double)y[3], (double)y[4]);
    }
}

/* ---- sums and rows at any address ---- */

TEST(addresses_do_not_change_bits) {
    enum { N = 531 };
    float *x = aligned_alloc(64, 1024 * 4 * 4), *y = x + 1024;
    FOR_KERNELS(k) {
        double d0 = 0, t0 = 0, e0 = 0;
        float m0 = 0;
        for (int shift = 0; shift < 17; shift++) {
            seed_now = 8;
            floats_random(x + shift, N, 1);
            floats_random(y + (shift * 5) % 16, N, 1);
            const float *a = x + shift, *c = y + (shift * 5) % 16;
            double d = (*k)->dot(a, c, N), t = (*k)->dot3(a, c, c, N);
            float m = (*k)->max(a, N);
            double e = (*k)->exp_sum(x + shift, m, N);
            if (!shift) d0 = d, t0 = t, e0 = e, m0 = m;
            CHECK(d == d0 && t == t0 && e == e0 && m == m0, "%s, address +%d: %.17g %.17g %.17g", (*k)->name, shift, d - d0, t - t0, e - e0);
        }
    }
    free(x);
}

/* ---- embedding ---- */

TEST(embedding) {
    enum { V = 11, D = 70 };
    struct chunk_of ch = chunk_new(LENGTHS, 0);
    int64_t N = ch.rows.N;
    struct mat E = mat_random(V, D, 3, 1), dy = mat_random(N, D, 1, 1);
    uint16_t *half = malloc(V * D * 2);
    int32_t ids[17];
    for (int i = 0; i < V * D; i++) half[i] = f32_to_bf16(*at(&E, i / D, i % D));
    for (int i = 0; i < N; i++) ids[i] = (i * 7) % V;
    FOR_KERNELS(k) {
        struct backend *b = backend_for(*k, 3, N, D);
        struct mat y = mat_new(N, D, 2), dE = mat_new(V, D, 4), by_part = mat_new(V, D, 4);
        double *ref = calloc(V * D, 8);
        op_embed(b, &(struct embed_args){.rows = &ch.rows, .ids = ids, .E = E, .y = y});
        for (int64_t t = 0; t < N; t++) CHECK(!memcmp(at(&y, t, 0), at(&E, ids[t], 0), D * 4), "row %d", (int)t);
        op_embed(b, &(struct embed_args){.rows = &ch.rows, .ids = ids, .E = {half, V, D, D, DT_BF16}, .y = y});
        for (int64_t t = 0; t < N; t++)
            for (int j = 0; j < D; j++) CHECK(*at(&y, t, j) == bf16_to_f32(half[ids[t] * D + j]), "row %d", (int)t);
        for (int i = 0; i < V * D; i++) *at(&dE, i / D, i % D) = *at(&by_part, i / D, i % D) = 1, ref[i] = 1;
        for (int64_t t = 0; t < N; t++)
            for (int j = 0; j < D; j++)
                if (ids[t] != 3) ref[ids[t] * D + j] += (double)*at(&dy, t, j);
        op_embed_bwd(b, &(struct embed_args){.rows = &ch.rows, .ids = ids, .dy = dy, .dE = dE, .skip = 3});
        NEAR(dE, ref, 3e-7);
        for (int s = 0; s < ch.rows.n_seqs; s++) {
            struct chunk_of part = chunk_part(&ch, s);
            int64_t t = ch.rows.seq_start[s];
            op_embed_bwd(b, &(struct embed_args){.rows = &part.rows, .ids = ids + t, .dy = mat_part(dy, t, part.rows.N), .dE = by_part, .skip = 3});
            chunk_free(&part);
        }
        CHECK(mat_same(dE, by_part), "%s: chunks change bits", (*k)->name);
        backend_close(b);
        free(ref), mat_free(&y), mat_free(&dE), mat_free(&by_part);
    }
    free(half), mat_free(&E), mat_free(&dy), chunk_free(&ch);
}
TEST_MAIN
