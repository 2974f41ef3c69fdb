/* Each op of the door at SHAPES shapes against a loop in double, written from the op's definition in backend/backend.h, on every
 * backend that is there: the CPU's instruction sets, and the card with QLORA_BACKEND=cuda or QLORA_PLUGIN=/path/to/plugin.so.
 * Shapes have 1, 31..33, 63..65, 127..129 rows and columns, uneven sequences, documents, gaps between rows and odd addresses.
 * The last lines say for each op and backend: shapes, and for each result the largest error found and its bound.
 */
#include "tests/ops/shapes.h"

/* ---- the bounds ---- */

/* In units of one rounding of each type, 2^-24 and 2^-8, of the size of what was added up (shapes.h). fp32: a sum of K terms loses
 * some sqrt(K/2) units, K being up to 2048, in an order that each backend chooses. bf16: a number that is rounded on the way, and
 * the result, costs a unit each; many independent ones cost together what their largest of a million results may be, some two;
 * a part of a sum may be several sizes large before the rest cancels it. What is fp32 on cards too keeps the fp32 bound, unless
 * rounded numbers went into it; theirs is twice the CPU's, for tensor cores cut where others round. */
#define S(n) ((n) * 0x1p-24)
#define H(n) ((n) * 0x1p-8)
enum result {
    EMBED_Y, EMBED_BWD_DE, NORM_Y, NORM_R, NORM_BWD_DX, NORM_BWD_DG, LINEAR_Y, LINEAR_XA, LINEAR_BWD_DX, LINEAR_BWD_DA, LINEAR_BWD_DB,
    LINEAR_BWD_DW, JOIN_TO, DORA_NORM, DORA_C, DORA_BWD_DM, FILTER_Y, FILTER_BWD_DX, FILTER_BWD_DW0, FILTER_BWD_DW1, FILTER_BWD_DB,
    ROPE_X, ATTEND_O, ATTEND_LSE, ATTEND_BWD_DQ, ATTEND_BWD_DK, ATTEND_BWD_DV, GATE_Y, GATE_BWD_DG, GATE_BWD_DU, GATE_BWD_Y, LOSS_NLL,
    LOSS_DY, LOSS_DE, LOSS_BEST, ADAM_P, ADAM_M, ADAM_V, ADAM_HALF, ADAM_SCALES, ADAM_CODES, SQSUM_OUT, SQSUM_HALF, NOISE_Y, RESULTS
};
static const struct bound { const char *op, *result; double f32, bf16; } bounds[RESULTS] = {
    [EMBED_Y] = {"embed", "y", 0, 0}, /* a copy */
    [EMBED_BWD_DE] = {"embed_bwd", "dE", S(8), S(16)}, /* few terms each */
    [NORM_Y] = {"norm", "y", S(8), H(2.1)}, /* x r; g times that */
    [NORM_R] = {"norm", "r", S(8), S(16)},
    [NORM_BWD_DX] = {"norm_bwd", "dx", S(16), H(1.1)}, /* the result alone is rounded */
    [NORM_BWD_DG] = {"norm_bwd", "dg", S(16), S(32)},
    [LINEAR_Y] = {"linear", "y", S(64), H(6)}, /* xa, s B, c W, the part of the base, the result */
    [LINEAR_XA] = {"linear", "xa", S(64), H(3)}, /* drop(x), the result */
    [LINEAR_BWD_DX] = {"linear_bwd", "dx", S(64), H(7)}, /* s dy B, s B, c W, the sum after each of up to four parts */
    [LINEAR_BWD_DA] = {"linear_bwd", "dA", S(64), H(4)}, /* s dy B, s B, drop(x) */
    [LINEAR_BWD_DB] = {"linear_bwd", "dB", S(64), H(3)}, /* xa */
    [LINEAR_BWD_DW] = {"linear_bwd", "dW", S(64), S(128)},
    [JOIN_TO] = {"join", "to", 0, H(2.1)}, /* s B, c times that */
    [DORA_NORM] = {"dora", "norm", S(16), S(32)},
    [DORA_C] = {"dora", "c", S(16), S(32)},
    [DORA_BWD_DM] = {"dora_bwd", "dm", S(16), S(32)},
    [FILTER_Y] = {"filter", "y", S(64), H(5)}, /* the part of the first tap, the result */
    [FILTER_BWD_DX] = {"filter_bwd", "dx", S(64), H(6)}, /* the sum after each of up to three parts */
    [FILTER_BWD_DW0] = {"filter_bwd", "dw0", S(64), S(128)},
    [FILTER_BWD_DW1] = {"filter_bwd", "dw1", S(64), S(128)},
    [FILTER_BWD_DB] = {"filter_bwd", "db", S(64), S(128)},
    [ROPE_X] = {"rope", "x", S(512), H(1.1)}, /* angles of up to 200 are fp32 numbers, as the model has them */
    [ATTEND_O] = {"attend", "o", S(32), H(2.5)}, /* weights of keys, the result */
    [ATTEND_LSE] = {"attend", "lse", S(32), 0x1p-13}, /* cards: powers and logarithms of the special unit */
    [ATTEND_BWD_DQ] = {"attend_bwd", "dq", S(32), H(4)}, /* weights, their gradients, o, the result */
    [ATTEND_BWD_DK] = {"attend_bwd", "dk", S(32), H(4)},
    [ATTEND_BWD_DV] = {"attend_bwd", "dv", S(32), H(2.5)},
    [GATE_Y] = {"gate", "y", S(16), H(1.1)}, /* the result alone is rounded */
    [GATE_BWD_DG] = {"gate_bwd", "dg", S(16), H(1.1)},
    [GATE_BWD_DU] = {"gate_bwd", "du", S(64), H(1.1)}, /* u (1 - sigma) loses u units, u being up to 30 */
    [GATE_BWD_Y] = {"gate_bwd", "y", S(16), H(1.1)},
    [LOSS_NLL] = {"loss", "nll", S(16), H(1.1)}, /* logits */
    [LOSS_DY] = {"loss", "dy", S(64), H(3)}, /* logits, their gradient, the result */
    [LOSS_DE] = {"loss", "dE", S(64), H(3)},
    [LOSS_BEST] = {"loss", "best", S(16), H(2.1)}, /* by how much it is below the largest: two logits */
    [ADAM_P] = {"adam", "p", S(8), S(8)}, /* each operation rounds on its own, alike on every backend */
    [ADAM_M] = {"adam", "m", S(8), S(8)},
    [ADAM_V] = {"adam", "v", S(8), S(8)},
    [ADAM_HALF] = {"adam", "bf16", H(1.02), H(1.02)}, /* values that are kept in bf16: one rounding */
    [ADAM_SCALES] = {"adam", "scales", S(8), S(8)}, /* the largest moment of a block */
    [ADAM_CODES] = {"adam", "codes", S(8), S(8)}, /* by how much another code would have been nearer */
    [SQSUM_OUT] = {"sqsum", "out", 0x1p-40, 0x1p-40}, /* sums in double */
    [SQSUM_HALF] = {"sqsum", "half", 0, 0},
    [NOISE_Y] = {"noise", "y", S(2), H(1.1)}, /* the result alone is rounded */
};
static struct found { int shapes, last; double error; } found[SIDES][RESULTS];

static double bound_of(enum result r) { return on->type == DT_BF16 ? bounds[r].bf16 : bounds[r].f32; }
static void note(enum result r, double error, const struct shape *s, int64_t row, int64_t col) {
    struct found *f = &found[on - sides][r], *op = f;
    while (op > found[on - sides] && !strcmp(bounds[op - found[on - sides] - 1].op, bounds[r].op)) op--; /* where shapes are counted */
    if (!op->shapes || op->last != s->i) op->shapes++, op->last = s->i;
    if (!(error <= f->error)) f->error = error;
    CHECK(error <= bound_of(r), "%s, %s, %s of %s: error %.3g, bound %.3g, at row %lld, column %lld", on->name, where, bounds[r].result,
          bounds[r].op, error, bound_of(r), (long long)row, (long long)col);
}
static void compare(enum result r, const struct shape *s, struct mat m, const struct value *want) {
    double *x = fetch(&m), worst = 0;
    int64_t at_worst = 0;
    for (int64_t i = 0; i < m.rows * m.cols && !isnan(worst); i++) {
        double error = error_of(x[i], want[i]);
        if (!(error <= worst)) worst = error, at_worst = i;
    }
    note(r, worst, s, at_worst / m.cols, at_worst % m.cols);
    free(x);
}

/* ---- rows one by one ---- */

static void embed_at(const struct shape *s) {
    const int64_t N = s->N, D = s->a, V = s->b, skip = s->i % 2 ? below(V) : -1;
    const enum dtype type = s->i % 3 ? DT_BF16 : DT_F32;
    double *E = draw(V * D, 1), *dy = draw(N * D, 1), *dE0 = draw32(V * D, 1);
    int32_t *ids = room((size_t)N * 4);
    struct value *y = values(N * D, NULL), *dE = values(V * D, dE0);
    for (int64_t t = 0; t < N; t++) {
        ids[t] = (int32_t)below(V);
        for (int64_t j = 0; j < D; j++) {
            y[t * D + j] = one_term(E[ids[t] * D + j]);
            if (ids[t] != skip) add(&dE[ids[t] * D + j], dy[t * D + j]);
        }
    }
    EACH_SIDE {
        struct rows rows = rows_on(s);
        struct embed_args a = {.rows = &rows, .ids = ints_on(ids, N), .E = plain(E, V, D, type), .y = activation(NULL, N, D),
                               .dy = activation(dy, N, D), .dE = plain(dE0, V, D, DT_F32), .skip = (int32_t)skip};
        op_embed(on->b, &a), op_embed_bwd(on->b, &a);
        compare(EMBED_Y, s, a.y, y), compare(EMBED_BWD_DE, s, a.dE, dE);
    }
}
TEST(embed) { each_shape(embed_at); }

static void norm_at(const struct shape *s) {
    const int64_t N = s->N, D = s->a;
    const float eps = 1e-3f;
    const int overwrite = s->i % 2;
    const enum dtype type = s->i % 3 ? DT_F32 : DT_BF16;
    double *x = draw(N * D, 1), *g = draw(D, 1), *dy = draw(N * D, 1), *dx0 = draw(N * D, 1), *dg0 = draw32(D, 1);
    struct value *y = values(N * D, NULL), *r = values(N, NULL), *dx = values(N * D, overwrite ? NULL : dx0), *dg = values(D, dg0);
    for (int64_t t = 0; t < N; t++) {
        const double *X = x + t * D, *d = dy + t * D;
        double squares = 0;
        struct value mean = {0};
        for (int64_t j = 0; j < D; j++) squares += X[j] * X[j], add(&mean, d[j] * g[j] * X[j] / (double)D);
        double R = 1 / sqrt(squares / (double)D + (double)eps);
        r[t] = one_term(R);
        for (int64_t j = 0; j < D; j++) {
            y[t * D + j] = one_term(g[j] * X[j] * R);
            add(&dx[t * D + j], R * g[j] * d[j]), add_times(&dx[t * D + j], mean, -X[j] * R * R * R);
            add(&dg[j], d[j] * X[j] * R);
        }
    }
    EACH_SIDE {
        struct rows rows = rows_on(s);
        struct norm_args a = {.rows = &rows, .x = activation(x, N, D), .y = activation(NULL, N, D), .g = plain(g, 1, D, type).data, .g_type = type,
                              .r = floats_on(NULL, N), .eps = eps, .dy = activation(dy, N, D), .dx = activation(overwrite ? NULL : dx0, N, D),
                              .overwrite = overwrite, .dg = floats_on(dg0, D)};
        op_norm(on->b, &a), op_norm_bwd(on->b, &a);
        compare(NORM_Y, s, a.y, y), compare(NORM_R, s, row_of_floats(a.r, N), r);
        compare(NORM_BWD_DX, s, a.dx, dx), compare(NORM_BWD_DG, s, row_of_floats(a.dg, D), dg);
    }
}
TEST(norm) { each_shape(norm_at); }

static void rope_at(const struct shape *s) {
    const int64_t N = s->N, heads = 1 + s->b % 7, K = s->a > 128 ? 128 : 2 * ((s->a + 1) / 2);
    const int sign = s->i % 2 ? 1 : -1;
    double *x = draw(N * heads * K, 1);
    struct value *y = values(N * heads * K, NULL);
    for (int64_t t = 0; t < N; t++)
        for (int64_t k = 0; k < heads * K; k++) {
            const int64_t i = k % K % (K / 2), low = k / K * K + i;
            const double angle = s->c.rows.position[t] * pow(10000, -2 * (double)i / (double)K), a = x[t * heads * K + low], b = x[t * heads * K + low + K / 2];
            struct value *to = &y[t * heads * K + k];
            if (k % K < K / 2) add(to, a * cos(angle)), add(to, -sign * b * sin(angle));
            else add(to, b * cos(angle)), add(to, sign * a * sin(angle));
            to->square = a * a + b * b; /* an error of the angle moves one to the other */
        }
    EACH_SIDE {
        struct rows rows = rows_on(s);
        struct rope_args a = {.rows = &rows, .x = activation(x, N, heads * K), .K = K, .sign = sign};
        op_rope(on->b, &a);
        compare(ROPE_X, s, a.x, y);
    }
}
TEST(rope) { each_shape(rope_at); }

static void gate_at(const struct shape *s) {
    const int64_t N = s->N, F = s->a, n = N * F;
    const int in_place = s->i % 2, with_dg = s->i % 3 != 2;
    double *g = draw(n, 1), *u = draw(n, s->i % 5 ? 3 : 30), *dy = draw(n, 1);
    struct value *y = values(n, NULL), *dg = values(n, NULL), *du = values(n, NULL);
    for (int64_t i = 0; i < n; i++) {
        const double sigma = 1 / (1 + exp(-u[i]));
        y[i] = one_term(g[i] * u[i] * sigma), dg[i] = one_term(dy[i] * u[i] * sigma);
        add(&du[i], dy[i] * g[i] * sigma), add(&du[i], dy[i] * g[i] * sigma * u[i] * (1 - sigma));
    }
    EACH_SIDE {
        struct rows rows = rows_on(s);
        struct gate_args a = {.rows = &rows, .g = activation(g, N, F), .u = activation(u, N, F), .y = activation(NULL, N, F)};
        op_gate(on->b, &a);
        compare(GATE_Y, s, a.y, y);
        a.dy = activation(dy, N, F), a.y = activation(NULL, N, F);
        a.du = in_place ? a.u : activation(NULL, N, F);
        if (with_dg) a.dg = in_place ? a.g : activation(NULL, N, F);
        op_gate_bwd(on->b, &a);
        compare(GATE_BWD_DU, s, a.du, du), compare(GATE_BWD_Y, s, a.y, y);
        if (with_dg) compare(GATE_BWD_DG, s, a.dg, dg);
    }
}
TEST(gate) { each_shape(gate_at); }

/* The word of Philox that the masks and the noise of an element are made of. */
static uint32_t word_of(uint64_t seed, uint32_t key, uint32_t step, uint32_t place, int64_t token, int64_t at) {
    const uint32_t counter[4] = {(uint32_t)(at / 4), (uint32_t)token, place, step}, keys[2] = {(uint32_t)seed, (uint32_t)(seed >> 32) ^ key};
    uint32_t word[4];
    philox4x32(counter, keys, word);
    return word[at % 4];
}

static void noise_at(const struct shape *s) {
    const int64_t N = s->N, D = s->a;
    double *x = draw(N * D, 1), *size = draw(N, 0.25);
    struct value *y = values(N * D, x);
    for (int64_t i = 0; i < N * D; i++) /* (-1,1) in steps of 2^-22, from the upper 23 bits */
        add(&y[i], size[i / D] * (((double)(word_of(77ull << 30, 0, 9, NOISE_SITE, s->c.rows.token0 + i / D, i % D) >> 9) + 0.5) * 0x1p-22 - 1));
    EACH_SIDE {
        struct rows rows = rows_on(s);
        struct noise_args a = {.rows = &rows, .y = activation(x, N, D), .size = floats_on(size, N), .seed = 77ull << 30, .step = 9};
        op_noise(on->b, &a);
        compare(NOISE_Y, s, a.y, y);
    }
}
TEST(noise) { each_shape(noise_at); }

/* ---- linear maps ---- */

/* A weight as it is stored, and what products see of it. */
struct stored { struct weight w; double *dense; const void *part[4]; size_t bytes[4]; };
static struct stored weight_new(enum weight_format f, int64_t rows, int64_t cols, int nested) {
    const int64_t n = rows * cols, blocks = q4_blocks(n, 64);
    struct stored s = {.w = {.format = f, .rows = rows, .cols = cols}, .dense = draw(n, 0.5)};
    float *wide = room((size_t)n * 4);
    uint16_t *half = room((size_t)n * 2);
    for (int64_t i = 0; i < n; i++) wide[i] = (float)s.dense[i], half[i] = f32_to_bf16(wide[i]);
    s.part[0] = f == W_F32 ? (void *)wide : half, s.bytes[0] = (size_t)n * (f == W_F32 ? 4 : 2);
    if (f == W_INT8) {
        int8_t *codes = room((size_t)n);
        float *scale = room((size_t)rows * 4);
        int8_encode(half, DT_BF16, rows, cols, codes, scale);
        for (int64_t i = 0; i < n; i++) s.dense[i] = bf16_value((double)((float)codes[i] * int8_unit(scale[i / cols])));
        s.part[0] = codes, s.bytes[0] = (size_t)n, s.part[1] = scale, s.bytes[1] = (size_t)rows * 4;
    } else if (f == W_Q4) {
        uint8_t *codes = room((size_t)q4_code_bytes(n)), *scale_q = room((size_t)blocks);
        float *scale = room((size_t)blocks * 4), *outer = room((size_t)q4_nested(blocks) * 4);
        struct q4_view *v = &s.w.q4;
        q4_encode(Q4_NF4, 64, half, DT_BF16, n, codes, scale);
        *v = (struct q4_view){.codes = codes, .levels = nf4_levels, .block = 64};
        if (!nested) v->absmax = scale;
        else q4_double(scale, blocks, scale_q, outer, &v->nested_offset), v->absmax_q = scale_q, v->nested_absmax = outer, v->nested_map = bw8_signed;
        for (int64_t i = 0; i < n; i++) s.dense[i] = bf16_value((double)q4_value(v, i));
        s.part[0] = codes, s.bytes[0] = (size_t)q4_code_bytes(n);
        s.part[1] = nested ? (void *)scale_q : scale, s.bytes[1] = (size_t)blocks * (nested ? 1 : 4);
        s.part[2] = outer, s.bytes[2] = (size_t)q4_nested(blocks) * 4;
    }
    return s;
}
static struct weight weight_on(const struct stored *s) {
    struct weight w = s->w;
    void *part[3] = {0};
    for (int i = 0; i < 3; i++)
        if (s->bytes[i]) part[i] = bytes_on(s->part[i], s->bytes[i]);
    w.data = part[0];
    if (w.format == W_INT8) w.scale = part[1];
    if (w.format != W_Q4) return w;
    w.data = NULL, w.q4.codes = part[0], w.q4.levels = bytes_on(nf4_levels, sizeof nf4_levels);
    if (w.q4.absmax) w.q4.absmax = part[1];
    else w.q4.absmax_q = part[1], w.q4.nested_absmax = part[2], w.q4.nested_map = bytes_on(bw8_signed, sizeof bw8_signed);
    return w;
}

/* What a call of linear is made of, drawn for a shape. */
enum { BASE, APART, COLUMNS, MAGNITUDES }; /* without adapter; xa and dxa apart; behind x and dy; with those of DoRA, either way */
enum { NO_ADD, ADD, ADD_IN_PLACE };
struct problem {
    int n, way, columns, add, accumulate, with_dx, with_dW, frozen; /* frozen: no gradient of A, of B */
    int64_t N, in, out, R;
    float p, scale; /* dropout; the adapter's */
    struct stored w[LINEAR_MAX];
    double *x, *dx0, *addend[LINEAR_MAX], *dy[LINEAR_MAX], *A[LINEAR_MAX], *B[LINEAR_MAX], *m[LINEAR_MAX];
    double *dA0[LINEAR_MAX], *dB0[LINEAR_MAX], *dW0[LINEAR_MAX]; /* what is added to */
    struct value *y[LINEAR_MAX], *xa[LINEAR_MAX], *dx, *dA[LINEAR_MAX], *dB[LINEAR_MAX], *dW[LINEAR_MAX];
    struct value *norm[LINEAR_MAX], *c[LINEAR_MAX];
};
static const struct dropout MASK = {.seed = 0x123456789abcdef0u, .step = 3, .layer = 2};

static struct problem problem_of(const struct shape *s) {
    struct problem p = {.n = 1 + (int)below(2), .way = s->i % 4, .add = (int)below(3), .accumulate = (int)below(2), .with_dx = below(8) > 0, .with_dW = 1,
                        .frozen = (int)below(6), .N = s->N, .in = s->a, .out = s->b, .R = (int64_t[]){8, 16, 1, 5, 64, 33}[below(6)], .p = below(3) ? 0 : 0.3f, .scale = 0.7f};
    p.columns = p.way == COLUMNS || (p.way == MAGNITUDES && below(2));
    if (p.way == BASE) p.R = 0, p.p = 0;
    if (p.way == MAGNITUDES) p.with_dW = 0;
    p.x = draw(p.N * p.in, 1), p.dx0 = draw(p.N * p.in, 1), p.dx = values(p.N * p.in, p.accumulate ? p.dx0 : NULL);
    for (int k = 0; k < p.n; k++) {
        p.w[k] = weight_new((enum weight_format)(s->i / 4 % 4), p.out, p.in, (int)below(2));
        p.addend[k] = draw(p.N * p.out, 1), p.dy[k] = draw(p.N * p.out, 1), p.m[k] = draw(p.out, 4);
        p.A[k] = draw(p.R * p.in, 0.5), p.B[k] = draw(p.out * p.R, 0.5);
        p.dA0[k] = draw32(p.R * p.in, 1), p.dB0[k] = draw32(p.out * p.R, 1), p.dW0[k] = draw32(p.out * p.in, 1);
        p.y[k] = values(p.N * p.out, p.add ? p.addend[k] : NULL), p.xa[k] = values(p.N * p.R, NULL);
        p.dA[k] = values(p.R * p.in, p.dA0[k]), p.dB[k] = values(p.out * p.R, p.dB0[k]), p.dW[k] = values(p.out * p.in, p.dW0[k]);
        p.norm[k] = values(p.out, NULL), p.c[k] = values(p.out, NULL);
    }
    return p;
}

/* norm_o = |W_o + s B_o A|, c_o = m_o / norm_o; c_o = 1 without magnitudes. Errors of a column count as much as it does. */
static void magnitudes(const struct problem *p, int k) {
    for (int64_t o = 0; o < p->out; o++) {
        struct value *norm = &p->norm[k][o], *c = &p->c[k][o];
        double squares = 0, sizes = 0;
        for (int64_t j = 0; j < p->in && p->way == MAGNITUDES; j++) {
            struct value v = one_term(p->w[k].dense[o * p->in + j]);
            for (int64_t r = 0; r < p->R; r++) add(&v, (double)p->scale * p->B[k][o * p->R + r] * p->A[k][r * p->in + j]);
            squares += v.v * v.v, sizes += v.v * v.v * size_of(v) * size_of(v);
        }
        *c = one_term(1);
        if (p->way != MAGNITUDES) continue;
        *norm = (struct value){sqrt(squares), squares > 0 ? sizes / squares : 0};
        *c = (struct value){0};
        if (squares > 0) c->v = p->m[k][o] / norm->v, c->square = c->v * c->v * norm->square / squares;
    }
}
static double kept_by(const struct problem *p, int site, int64_t token, int64_t feature) {
    if (p->p <= 0) return 1;
    const double dropped = floor((double)p->p * 65536 + 0.5) / 65536;
    const uint32_t word = word_of(MASK.seed, MASK.layer, MASK.step, (uint32_t)site, token, feature / 2);
    return (word >> feature % 2 * 16 & 65535) / 65536. >= dropped ? 1 / (1 - dropped) : 0;
}
/* Output k of row t, and all that its dy adds to. */
static void linear_row(const struct problem *p, const struct shape *s, int k, int64_t t) {
    const int64_t in = p->in, out = p->out, R = p->R;
    const double *x = p->x + t * in, *dy = p->dy[k] + t * out, *w = p->w[k].dense;
    struct value *dx = p->dx + t * in, *xa = p->xa[k] + t * R, *g = room((size_t)R * sizeof *g);
    double *keep = room((size_t)in * sizeof *keep);
    for (int64_t j = 0; j < in && R; j++) keep[j] = kept_by(p, k, s->c.rows.token0 + t, j);
    for (int64_t r = 0; r < R; r++)
        for (int64_t j = 0; j < in; j++) add(&xa[r], keep[j] * x[j] * p->A[k][r * in + j]);
    for (int64_t o = 0; o < out; o++) {
        struct value *y = &p->y[k][t * out + o];
        const struct value c = p->c[k][o];
        for (int64_t j = 0; j < in; j++) {
            add_times(y, c, x[j] * w[o * in + j]), add_times(&dx[j], c, dy[o] * w[o * in + j]);
            if (p->with_dW) add(&p->dW[k][o * in + j], dy[o] * x[j]);
        }
        for (int64_t r = 0; r < R; r++) {
            const double sB = (double)p->scale * p->B[k][o * R + r];
            add_times(y, times(c, xa[r]), sB), add_times(&g[r], c, dy[o] * sB);
            add_times(&p->dB[k][o * R + r], times(c, xa[r]), (double)p->scale * dy[o]);
        }
    }
    for (int64_t r = 0; r < R; r++)
        for (int64_t j = 0; j < in; j++) {
            add_times(&p->dA[k][r * in + j], g[r], keep[j] * x[j]);
            add_times(&dx[j], g[r], keep[j] * p->A[k][r * in + j]);
        }
    free(kept[--n_kept]), free(kept[--n_kept]); /* keep and g: there may be many rows */
}
/* The joint operand [W_0 s_0B_0 0; W_1 0 s_1B_1; A_0 0 0; A_1 0 0]. */
static struct value *joint_of(const struct problem *p, int64_t cols) {
    struct value *to = values(p->n * (p->out + p->R) * cols, NULL);
    for (int k = 0; k < p->n; k++) {
        for (int64_t o = 0; o < p->out; o++) {
            struct value *row = to + (k * p->out + o) * cols;
            for (int64_t j = 0; j < p->in; j++) row[j] = one_term(p->c[k][o].v * p->w[k].dense[o * p->in + j]);
            for (int64_t r = 0; r < p->R; r++) row[p->in + k * p->R + r] = one_term(p->c[k][o].v * (double)p->scale * p->B[k][o * p->R + r]);
        }
        for (int64_t r = 0; r < p->R; r++)
            for (int64_t j = 0; j < p->in; j++) to[(p->n * p->out + k * p->R + r) * cols + j] = one_term(p->A[k][r * p->in + j]);
    }
    return to;
}

/* x with room for the xa behind it; dy_0 | dy_1 with room for the dxa; both to be overwritten there. */
static struct mat joined_columns(const struct problem *p, int of_dy) {
    const int64_t own = of_dy ? p->n * p->out : p->in, cols = own + p->n * p->R;
    double *x = malloc((size_t)(p->N * cols) * sizeof *x);
    if (!x) abort();
    for (int64_t t = 0; t < p->N; t++)
        for (int64_t j = 0; j < cols; j++)
            x[t * cols + j] = j >= own ? NAN : of_dy ? p->dy[j / p->out][t * p->out + j % p->out] : p->x[t * p->in + j];
    struct mat m = activation(x, p->N, cols);
    free(x);
    return m;
}
static struct linear_args linear_on(const struct problem *p, const struct rows *rows) {
    const int64_t N = p->N, in = p->in, out = p->out, R = p->R;
    struct linear_args a = {.rows = rows, .n = p->n, .accumulate = p->accumulate};
    struct mat x = p->columns ? joined_columns(p, 0) : activation(p->x, N, in), dy = {0}, y = {0};
    if (p->columns) dy = joined_columns(p, 1), y = activation(NULL, N, p->n * out);
    a.x = columns_of(x, 0, in);
    if (p->with_dx) a.dx = activation(p->accumulate ? p->dx0 : NULL, N, in);
    for (int k = 0; k < p->n; k++) {
        struct linear_out *o = &a.out[k];
        o->w = weight_on(&p->w[k]);
        o->y = p->add == ADD_IN_PLACE ? activation(p->addend[k], N, out) : p->columns ? columns_of(y, k * out, out) : activation(NULL, N, out);
        if (p->add) o->add = p->add == ADD_IN_PLACE ? o->y : activation(p->addend[k], N, out);
        o->dy = p->columns ? columns_of(dy, k * out, out) : activation(p->dy[k], N, out);
        if (p->with_dW) o->dW = put(p->dW0[k], out, in, DT_F32, gap, skew);
        if (!R) continue;
        o->xa = p->columns ? columns_of(x, in + k * R, R) : activation(NULL, N, R);
        if (p->columns) o->dxa = columns_of(dy, p->n * out + k * R, R);
        o->lora = (struct adapter){.A = plain(p->A[k], R, in, DT_F32), .B = plain(p->B[k], out, R, DT_F32), .dA = plain(p->dA0[k], R, in, DT_F32),
                                   .dB = plain(p->dB0[k], out, R, DT_F32), .scale = p->scale};
        if (p->frozen == 1) o->lora.dA.data = NULL;
        if (p->frozen == 2) o->lora.dB.data = NULL;
        o->drop = MASK, o->drop.p = p->p, o->drop.site = (uint32_t)k;
        if (p->way == MAGNITUDES) o->lora.m = floats_on(p->m[k], out), o->lora.c = floats_on(NULL, out);
    }
    return a;
}
static struct mat join_on(const struct problem *p, const struct shape *s, const struct linear_args *a) {
    int64_t rows, cols;
    struct join_args j = {.n = a->n};
    for (int k = 0; k < a->n; k++) j.part[k].w = a->out[k].w, j.part[k].lora = a->out[k].lora;
    join_shape(&j, &rows, &cols);
    j.to = put(NULL, rows, cols, on->type, (cols + 7) / 8 * 8 - cols + (s->i % 2 ? 8 : 0), 0);
    op_join(on->b, &j);
    compare(JOIN_TO, s, j.to, joint_of(p, cols));
    return j.to;
}

static void linear_at(const struct shape *s) {
    struct problem p = problem_of(s);
    for (int k = 0; k < p.n; k++) {
        magnitudes(&p, k);
        for (int64_t t = 0; t < p.N; t++) linear_row(&p, s, k, t);
    }
    EACH_SIDE {
        struct rows rows = rows_on(s);
        struct linear_args a = linear_on(&p, &rows);
        for (int k = 0; k < p.n; k++)
            if (p.way == MAGNITUDES) op_dora(on->b, &(struct dora_args){.w = a.out[k].w, .lora = a.out[k].lora});
        struct mat joint = on->joins ? join_on(&p, s, &a) : (struct mat){0};
        if (p.columns) a.joint = joint;
        op_linear(on->b, &a), op_linear_bwd(on->b, &a);
        if (p.with_dx) compare(LINEAR_BWD_DX, s, a.dx, p.dx);
        for (int k = 0; k < p.n; k++) {
            const struct linear_out *o = &a.out[k];
            compare(LINEAR_Y, s, o->y, p.y[k]);
            if (p.with_dW) compare(LINEAR_BWD_DW, s, o->dW, p.dW[k]);
            if (!p.R) continue;
            compare(LINEAR_XA, s, o->xa, p.xa[k]);
            if (p.frozen != 1) compare(LINEAR_BWD_DA, s, o->lora.dA, p.dA[k]);
            if (p.frozen != 2) compare(LINEAR_BWD_DB, s, o->lora.dB, p.dB[k]);
        }
        if (!p.R) continue;
        for (int k = 0; k < p.n; k++) /* xa alone, as recomputation asks */
            a.out[k].y.data = a.out[k].add.data = NULL, a.out[k].xa = activation(NULL, p.N, p.R);
        a.joint.data = NULL;
        op_linear(on->b, &a);
        for (int k = 0; k < p.n; k++) compare(LINEAR_XA, s, a.out[k].xa, p.xa[k]);
    }
}
TEST(linear) { each_shape(linear_at); }

static void dora_at(const struct shape *s) {
    struct problem p = problem_of(s);
    p.way = MAGNITUDES, p.R = p.R ? p.R : 3, p.A[0] = draw(p.R * p.in, 0.5), p.B[0] = draw(p.out * p.R, 0.5);
    p.m[0][below(p.out)] = 0;
    double *y = draw(p.N * p.out, 1), *dm0 = draw32(p.out, 1);
    struct value *dm = values(p.out, dm0);
    magnitudes(&p, 0);
    for (int64_t t = 0; t < p.N; t++)
        for (int64_t o = 0; o < p.out; o++)
            if (p.m[0][o] != 0) add(&dm[o], p.dy[0][t * p.out + o] * y[t * p.out + o] / p.m[0][o]);
    EACH_SIDE {
        struct rows rows = rows_on(s);
        struct adapter l = {.A = plain(p.A[0], p.R, p.in, DT_F32), .B = plain(p.B[0], p.out, p.R, DT_F32), .scale = p.scale, .m = floats_on(p.m[0], p.out),
                            .c = floats_on(NULL, p.out), .dm = floats_on(dm0, p.out)};
        struct dora_args a = {.w = weight_on(&p.w[0]), .lora = l, .norm = floats_on(NULL, p.out), .rows = &rows,
                              .y = activation(y, p.N, p.out), .dy = activation(p.dy[0], p.N, p.out)};
        op_dora(on->b, &a), op_dora_bwd(on->b, &a);
        compare(DORA_NORM, s, row_of_floats(a.norm, p.out), p.norm[0]), compare(DORA_C, s, row_of_floats(l.c, p.out), p.c[0]);
        compare(DORA_BWD_DM, s, row_of_floats(l.dm, p.out), dm);
    }
}
TEST(dora) { each_shape(dora_at); }

static void filter_at(const struct shape *s) {
    const int64_t N = s->N, in = s->a, out = s->b;
    const int part = s->c.rows.n_seqs == 1 && s->i % 2, adds = s->i % 3 == 1; /* a part of a sequence: rows before and after */
    const enum dtype type = s->i % 3 ? DT_F32 : DT_BF16;
    struct stored w0 = weight_new(s->i % 2 ? W_BF16 : W_F32, out, in, 0), w1 = weight_new(s->i % 2 ? W_BF16 : W_F32, out, in, 0);
    double *x = draw(N * in, 1), *dy = draw(N * out, 1), *b = draw(out, 1), *addend = draw(N * out, 1), *dx_add = draw(N * in, 1), *before = draw(in, 1);
    double *after = draw(out, 1), *dw00 = draw32(out * in, 1), *dw10 = draw32(out * in, 1), *db0 = draw32(out, 1);
    struct value *y = values(N * out, adds ? addend : NULL), *dx = values(N * in, adds ? dx_add : NULL);
    struct value *dw0 = values(out * in, dw00), *dw1 = values(out * in, dw10), *db = values(out, db0);
    for (int64_t t = 0; t < N; t++) {
        const double *X = x + t * in, *last = s->c.rows.offset[t] ? X - in : part ? before : NULL;
        const double *next = !last_of_sequence(s, t) ? dy + (t + 1) * out : part ? after : NULL;
        for (int64_t o = 0; o < out; o++) {
            const double d = dy[t * out + o], *W0 = w0.dense + o * in, *W1 = w1.dense + o * in;
            add(&y[t * out + o], b[o]), add(&db[o], d);
            for (int64_t j = 0; j < in; j++) {
                add(&y[t * out + o], X[j] * W1[j]), add(&dx[t * in + j], d * W1[j]), add(&dw1[o * in + j], d * X[j]);
                if (last) add(&y[t * out + o], last[j] * W0[j]), add(&dw0[o * in + j], d * last[j]);
                if (next) add(&dx[t * in + j], next[o] * W0[j]);
            }
        }
    }
    EACH_SIDE {
        struct rows rows = rows_on(s);
        struct filter_args a = {.rows = &rows, .x = activation(x, N, in), .y = activation(NULL, N, out), .w0 = weight_on(&w0), .w1 = weight_on(&w1),
                                .b = plain(b, 1, out, type).data, .b_type = type, .dy = activation(dy, N, out), .dx = activation(NULL, N, in),
                                .dw0 = put(dw00, out, in, DT_F32, gap, skew), .dw1 = put(dw10, out, in, DT_F32, gap, skew), .db = floats_on(db0, out)};
        if (adds) a.add = activation(addend, N, out), a.dx_add = activation(dx_add, N, in);
        if (part) a.before = activation(before, 1, in), a.after = activation(after, 1, out);
        op_filter(on->b, &a), op_filter_bwd(on->b, &a);
        compare(FILTER_Y, s, a.y, y), compare(FILTER_BWD_DX, s, a.dx, dx), compare(FILTER_BWD_DB, s, row_of_floats(a.db, out), db);
        compare(FILTER_BWD_DW0, s, a.dw0, dw0), compare(FILTER_BWD_DW1, s, a.dw1, dw1);
    }
}
TEST(filter) { each_shape(filter_at); }

/* ---- attention ---- */

/* One head: k, v, d_o of the rows' columns; every pointer is a head's first column, rows `step` apart. */
struct head {
    const double *q, *k, *v, *d_o;
    struct value *o, *dq, *dk, *dv;
    int64_t K, row, keys_row; /* elements of a row of o, v, d_o; of q, k */
};
/* Row t of a head, which attends to keys first .. end-1; the log of its sum. */
static struct value attend_row(const struct head *h, int64_t t, int64_t first, int64_t end, int backward) {
    const int64_t K = h->K, n = end - first;
    const double root = 1 / sqrt((double)K), *q = h->q + t * h->keys_row;
    struct value *score = values(n, NULL), *o = h->o + t * h->row, lse = {0}, delta = {0}, *pk = values(K, NULL);
    double top = -INFINITY, sum = 0;
    for (int64_t u = 0; u < n; u++) {
        for (int64_t j = 0; j < K; j++) add(&score[u], root * q[j] * h->k[(first + u) * h->keys_row + j]);
        top = fmax(top, score[u].v);
    }
    for (int64_t u = 0; u < n; u++) sum += exp(score[u].v - top);
    lse.v = top + log(sum);
    for (int64_t u = 0; u < n; u++) {
        const double P = exp(score[u].v - lse.v), size = P * (1 + size_of(score[u])); /* of a weight's error: its score's times it */
        lse.square += size * size;
        for (int64_t j = 0; j < K; j++) {
            const double v = h->v[(first + u) * h->row + j];
            o[j].v += P * v, o[j].square += size * v * (size * v);
            add(&pk[j], P * root * h->k[(first + u) * h->keys_row + j]);
        }
    }
    for (int64_t j = 0; j < K && backward; j++) add_times(&delta, o[j], h->d_o[t * h->row + j]);
    for (int64_t u = 0; u < n && backward; u++) {
        const double P = exp(score[u].v - lse.v), size = P * (1 + size_of(score[u])), *d_o = h->d_o + t * h->row;
        struct value dP = {0}, dS;
        for (int64_t j = 0; j < K; j++) add(&dP, d_o[j] * h->v[(first + u) * h->row + j]);
        dS.v = P * (dP.v - delta.v), dS.square = size * size * (size_of(dP) * size_of(dP) + size_of(delta) * size_of(delta));
        for (int64_t j = 0; j < K; j++) {
            struct value *dv = &h->dv[(first + u) * h->row + j];
            dv->v += P * d_o[j], dv->square += size * d_o[j] * (size * d_o[j]);
            add_times(&h->dq[t * h->keys_row + j], dS, root * h->k[(first + u) * h->keys_row + j]);
            add_times(&h->dk[(first + u) * h->keys_row + j], dS, root * q[j]);
        }
    }
    for (int64_t j = 0; j < K && backward; j++) { /* all keys share the error of delta */
        const double shared = size_of(delta) * pk[j].v;
        h->dq[t * h->keys_row + j].square += shared * shared;
    }
    free(kept[--n_kept]), free(kept[--n_kept]);
    return lse;
}

static void attend_at(const struct shape *s) {
    static const int64_t sizes[] = {16, 64, 128, 64, 8, 128, 64, 34, 32, 2, 96, 64};
    const int64_t H = 1 + s->b % 3, K = sizes[s->i % 12], D = H * K, N = s->N, past = s->c.rows.n_seqs == 1 && s->i % 4 == 0 ? s->b : 0, keys = N + past;
    const int mixed = s->i % 2; /* q and k head by head in one matrix, as the model has them */
    const int64_t qk_row = mixed ? 2 * D : D, step = mixed ? 2 * K : K;
    double *q = draw(N * qk_row, 2), *k = mixed && !past ? q + K : draw(keys * qk_row, 2), *v = draw(keys * D, 1), *d_o = draw(N * D, 1);
    struct value *o = values(N * D, NULL), *dq = values(N * qk_row, NULL), *dk = mixed ? dq + K : values(keys * qk_row, NULL), *dv = values(keys * D, NULL);
    struct value *lse = values(N * H, NULL);
    int32_t *first = room((size_t)N * 4);
    if (past && mixed) abort(); /* i % 4 == 0 is even */
    for (int64_t t = 0; t < N; t++) {
        first[t] = past ? (int32_t)(past > 3 ? 3 : 0) : s->c.rows.first[t];
        for (int64_t h = 0; h < H; h++) {
            const struct head head = {q + h * step, k + h * step, v + h * K, d_o + h * K, o + h * K, dq + h * step, dk + h * step, dv + h * K, K, D, qk_row};
            lse[t * H + h] = attend_row(&head, t, first[t], t + past + 1, !past);
        }
    }
    EACH_SIDE {
        struct rows rows = rows_on(s);
        rows.first = ints_on(first, N);
        struct mat qm = activation(q, N, qk_row), km = mixed ? columns_of(qm, K, qk_row - K) : activation(k, keys, D), dqm = activation(NULL, N, qk_row);
        struct attend_args a = {.rows = &rows, .H = H, .K = K, .past = past, .q = qm, .k = km, .v = activation(v, keys, D), .o = activation(NULL, N, D),
                                .q_step = step, .k_step = step, .v_step = K, .lse = floats_on(NULL, N * H)};
        op_attend(on->b, &a);
        compare(ATTEND_O, s, a.o, o), compare(ATTEND_LSE, s, row_of_floats(a.lse, N * H), lse);
        if (past) continue;
        a.d_o = activation(d_o, N, D), a.dq = dqm, a.dk = mixed ? columns_of(dqm, K, qk_row - K) : activation(NULL, N, D), a.dv = activation(NULL, N, D);
        a.delta = floats_on(NULL, N * H);
        op_attend_bwd(on->b, &a);
        compare(ATTEND_BWD_DQ, s, dqm, dq), compare(ATTEND_BWD_DV, s, a.dv, dv);
        compare(ATTEND_BWD_DK, s, mixed ? dqm : a.dk, mixed ? dq : dk);
    }
}
TEST(attend) { each_shape(attend_at); }

/* ---- the loss head ---- */

struct head_case { int64_t n, V, D; double s; double *y, *E, *weight; int32_t *row, *label; struct value *nll, *dy, *dE, *logits; };

static void loss_row(const struct head_case *c, int64_t i) {
    const int64_t V = c->V, D = c->D;
    const double *y = c->y + c->row[i] * D, spread = c->s / (double)V;
    struct value *x = c->logits + i * V, *nll = &c->nll[i];
    double top = -INFINITY, sum = 0, lse, size = 0, shared = 0;
    for (int64_t v = 0; v < V; v++) {
        x[v] = (struct value){0};
        for (int64_t j = 0; j < D; j++) add(&x[v], y[j] * c->E[v * D + j]);
        top = fmax(top, x[v].v);
    }
    for (int64_t v = 0; v < V; v++) sum += exp(x[v].v - top);
    lse = top + log(sum);
    for (int64_t v = 0; v < V; v++) {
        const double target = spread + (v == c->label[i] ? 1 - c->s : 0), P = exp(x[v].v - lse);
        nll->v += target * (lse - x[v].v), size += (P + target) * (1 + size_of(x[v])), shared += P * size_of(x[v]);
    }
    nll->square = size * size; /* of the logits that are added and subtracted */
    for (int64_t v = 0; v < V && c->dy; v++) {
        const double target = spread + (v == c->label[i] ? 1 - c->s : 0), P = exp(x[v].v - lse), moved = P * (1 + size_of(x[v]) + shared);
        const struct value d = {c->weight[i] * (P - target), c->weight[i] * c->weight[i] * (moved * moved + target * target)};
        for (int64_t j = 0; j < D; j++) add_times(&c->dy[c->row[i] * D + j], d, c->E[v * D + j]), add_times(&c->dE[v * D + j], d, y[j]);
    }
}

static void loss_at(const struct shape *s) {
    const int64_t N = s->N, D = s->b, V = s->i == 5 ? 5003 : s->a;
    const int backward = s->i % 4 > 0, with_dy = s->i % 8 != 1, with_dE = s->i % 8 != 2;
    const float smoothing = s->i % 3 ? 0 : 0.125f;
    double *dE0 = draw32(V * D, 1);
    struct head_case c = {.V = V, .D = D, .s = (double)smoothing, .y = draw(N * D, 1), .weight = draw(N, 1), .row = room((size_t)N * 4), .label = room((size_t)N * 4)};
    struct stored E = weight_new(s->i % 5 ? W_BF16 : W_F32, V, D, 0);
    c.E = E.dense;
    for (int64_t t = 0; t < N; t++) /* most rows; without gradients any twice */
        if (below(5) || N == 1) c.row[c.n] = (int32_t)(backward ? t : t / 2 * 2), c.label[c.n++] = (int32_t)below(V);
    c.nll = values(c.n, NULL), c.logits = values(c.n * V, NULL), c.dE = values(V * D, dE0);
    if (backward) c.dy = values(N * D, NULL);
    for (int64_t i = 0; i < c.n; i++) loss_row(&c, i);
    EACH_SIDE {
        struct rows rows = rows_on(s);
        const size_t bytes = 512 + 2 * (size_t)(V + D) * (size_t[]){1, 5, 1000}[s->i % 3];
        int32_t *zeros = room((size_t)c.n * 4);
        struct loss_args a = {.rows = &rows, .y = activation(c.y, N, D), .E = weight_on(&E), .n = c.n, .row = ints_on(c.row, c.n), .label = ints_on(c.label, c.n),
                              .smoothing = smoothing, .nll = floats_on(NULL, c.n), .best = ints_on(zeros, c.n)};
        if (backward) a.weight = floats_on(c.weight, c.n);
        if (backward && with_dy) a.dy = activation(NULL, N, D);
        if (backward && with_dE) a.dE = put(dE0, V, D, DT_F32, gap, 0);
        if (!on->unified) a.work = bytes_on(room(bytes), bytes), a.work_bytes = bytes;
        op_loss(on->b, &a);
        compare(LOSS_NLL, s, row_of_floats(a.nll, c.n), c.nll);
        on->b->get(on->b->self, zeros, a.best, (size_t)c.n * 4, Q_COMPUTE), on->b->sync(on->b->self, NULL);
        for (int64_t i = 0; i < c.n; i++) {
            struct value *x = c.logits + i * V, *most_likely = x;
            for (int64_t v = 0; v < V; v++) most_likely = x[v].v > most_likely->v ? &x[v] : most_likely;
            int valid = zeros[i] >= 0 && zeros[i] < V;
            note(LOSS_BEST, valid ? (most_likely->v - x[zeros[i]].v) / fmax(size_of(*most_likely), size_of(x[zeros[i]])) : INFINITY, s, i, zeros[i]);
        }
        if (a.dy.data) compare(LOSS_DY, s, a.dy, c.dy);
        if (a.dE.data) compare(LOSS_DE, s, a.dE, c.dE);
    }
}
TEST(loss) { each_shape(loss_at); }

/* ---- parameters ---- */

static double nearest(const float *map, double x, int keep_sign) { /* how far the code of x in units of its scale may be */
    double least = INFINITY;
    for (int i = 0; i < 256; i++)
        if (!(keep_sign && x < 0 && i == BW8_ZERO)) least = fmin(least, fabs((double)map[i] - x));
    return least;
}
static void codes_at(const struct shape *s, const float *map, const uint8_t *codes, const float *scale, const struct value *want, int64_t n, int keep_sign) {
    for (int64_t b = 0; b < n; b += BW8_BLOCK) {
        const int64_t end = b + BW8_BLOCK < n ? b + BW8_BLOCK : n;
        struct value top = {0};
        for (int64_t i = b; i < end; i++)
            if (fabs(want[i].v) > top.v) top = (struct value){fabs(want[i].v), want[i].square};
        note(ADAM_SCALES, error_of((double)scale[b / BW8_BLOCK], top), s, 0, b);
        for (int64_t i = b; i < end; i++) {
            const double x = want[i].v / top.v, is = fabs((double)map[codes[i]] - x), best = nearest(map, x, keep_sign);
            note(ADAM_CODES, is > best ? (is - best) / (size_of(want[i]) / top.v + is) : 0, s, 0, i);
            if (keep_sign) CHECK(want[i].v >= 0 || codes[i] < BW8_ZERO, "%s, %s: a negative moment is stored as 0", on->name, where);
        }
    }
}

/* States are exact numbers before the step; betas and rates are, too, so that only what the step does is measured. */
static void adam_at(const struct shape *s) {
    static const int64_t more[] = {255, 256, 257, 4097, 515, 1000};
    const int64_t n = s->i % 3 == 2 ? more[s->i / 3 % 6] : s->a, blocks = (n + 255) / 256, t = 1 + below(20);
    const int bits8 = s->i % 2, kind = s->i / 2 % 4, by16 = s->i / 8 % 2; /* kind: p; p with a copy; p rounded; the copy alone */
    const double b1 = 0.875, b2 = 0.96875, eps = 0x1p-20, lr = 0x1p-7, decay = 0.125, grad_scale = 0.5;
    double *p0 = kind == 3 ? draw(n, 1) : draw32(n, 1), *g = by16 ? draw(n, 1) : draw32(n, 1), *m0 = draw32(n, 1), *v0 = draw32(n, 1);
    float *moment = room((size_t)n * 4), *scale1 = room((size_t)blocks * 4), *scale2 = room((size_t)blocks * 4);
    uint8_t *code1 = room((size_t)n), *code2 = room((size_t)n);
    nf4_init();
    for (int64_t i = 0; i < n; i++) v0[i] = (double)(float)(v0[i] * v0[i]);
    for (int64_t i = 3; i < n; i += 7) m0[i] = 0, g[i] = -0x1p-23; /* too small for a code, but negative */
    for (int k = 0; k < 2; k++) {
        double *state = k ? v0 : m0;
        for (int64_t i = 0; i < n; i++) moment[i] = (float)state[i];
        if (bits8) {
            bw8_encode(k ? bw8_unsigned : bw8_signed, moment, n, k ? code2 : code1, k ? scale2 : scale1);
            bw8_decode(k ? bw8_unsigned : bw8_signed, k ? code2 : code1, k ? scale2 : scale1, n, moment);
        }
        for (int64_t i = 0; i < n; i++) state[i] = (double)moment[i];
    }
    struct value *p = values(n, NULL), *m = values(n, NULL), *v = values(n, NULL);
    for (int64_t i = 0; i < n; i++) {
        const double G = g[i] * grad_scale, root = sqrt((b2 * v0[i] + (1 - b2) * G * G) / (1 - pow(b2, (double)t))) + eps, keep = 1 - lr * decay;
        add(&m[i], b1 * m0[i]), add(&m[i], (1 - b1) * G);
        v[i] = one_term(b2 * v0[i] + (1 - b2) * G * G);
        add(&p[i], p0[i] * keep), add_times(&p[i], m[i], -lr / (1 - pow(b1, (double)t)) / root * (bits8 ? keep : 1));
    }
    EACH_SIDE {
        struct mat P = put(p0, 1, n, DT_F32, 0, skew), half = put(kind == 3 ? p0 : NULL, 1, n, DT_BF16, 0, skew);
        struct mat m32 = put(m0, 1, n, DT_F32, 0, skew), v32 = put(v0, 1, n, DT_F32, 0, skew);
        struct adam_tensor x = {.p = kind == 3 ? NULL : P.data, .copy = kind == 1 || kind == 3 ? half.data : NULL, .round = kind == 2, .n = n,
                                .lr = lr, .weight_decay = decay};
        struct mat G = put(g, 1, n, by16 ? DT_BF16 : DT_F32, 0, skew);
        if (by16) x.g16 = G.data;
        else x.g = G.data;
        if (!bits8) x.m = m32.data, x.v = v32.data;
        else x.m8 = bytes_on(code1, (size_t)n), x.v8 = bytes_on(code2, (size_t)n),
            x.m_absmax = bytes_on(scale1, (size_t)blocks * 4), x.v_absmax = bytes_on(scale2, (size_t)blocks * 4);
        op_adam(on->b, &(struct adam_args){.tensors = &x, .count = 1, .t = t, .beta1 = b1, .beta2 = b2, .eps = eps, .grad_scale = grad_scale});
        if (kind < 3) compare(kind == 2 ? ADAM_HALF : ADAM_P, s, P, p);
        if (x.copy) compare(ADAM_HALF, s, half, p);
        if (!bits8) {
            compare(ADAM_M, s, m32, m), compare(ADAM_V, s, v32, v);
            continue;
        }
        uint8_t *codes = room((size_t)n);
        float *scales = room((size_t)blocks * 4);
        for (int k = 0; k < 2; k++) {
            on->b->get(on->b->self, codes, k ? x.v8 : x.m8, (size_t)n, Q_COMPUTE);
            on->b->get(on->b->self, scales, k ? x.v_absmax : x.m_absmax, (size_t)blocks * 4, Q_COMPUTE);
            on->b->sync(on->b->self, NULL);
            codes_at(s, k ? bw8_unsigned : bw8_signed, codes, scales, k ? v : m, n, !k);
        }
    }
}
TEST(adam) { each_shape(adam_at); }

static void sqsum_at(const struct shape *s) {
    enum { TENSORS = 5 };
    const int64_t n[TENSORS] = {s->a, 0, s->b, s->a * s->b % 3001, s->i % 2 ? 0 : 16385};
    const int halves = s->i % 3 > 0;
    double *x[TENSORS];
    struct value *sum = values(TENSORS, NULL), *half[TENSORS];
    for (int k = 0; k < TENSORS; k++) {
        x[k] = draw32(n[k], 1), half[k] = values(n[k], NULL);
        for (int64_t i = 0; i < n[k]; i++) half[k][i] = one_term(bf16_value(x[k][i])), sum[k].v += x[k][i] * x[k][i];
        sum[k].square = sum[k].v * sum[k].v;
    }
    EACH_SIDE {
        const float *list[TENSORS];
        uint16_t *to[TENSORS];
        struct mat rounded[TENSORS];
        double *out = on->b->alloc(on->b->self, AT_HOST, TENSORS * sizeof *out);
        REQUIRE(out, "no memory");
        for (int k = 0; k < TENSORS; k++) {
            list[k] = put(x[k], 1, n[k], DT_F32, 0, skew).data;
            rounded[k] = put(NULL, 1, n[k], DT_BF16, 0, skew), to[k] = rounded[k].data;
        }
        op_sqsum(on->b, &(struct sqsum_args){.x = list, .half = halves ? to : NULL, .n = n, .count = TENSORS, .out = out});
        on->b->sync(on->b->self, NULL);
        for (int k = 0; k < TENSORS; k++) {
            note(SQSUM_OUT, error_of(out[k], sum[k]), s, k, 0);
            if (halves && n[k]) compare(SQSUM_HALF, s, rounded[k], half[k]);
        }
        on->b->release(on->b->self, AT_HOST, out);
    }
}
TEST(sqsum) { each_shape(sqsum_at); }

/* ---- figures ---- */

TEST(shapes_of_each_op) {
    for (on = sides; on < sides + n_sides; on++)
        for (int r = 0; r < RESULTS;) {
            const struct found *op = &found[on - sides][r];
            const char *name = bounds[r].op;
            if (op->shapes) printf("  %-7s %-10s %3d shapes, largest error (bound):", on->name, name, op->shapes);
            CHECK(op->shapes >= 50 || !op->shapes, "%s, %s: %d shapes", on->name, name, op->shapes);
            for (; r < RESULTS && !strcmp(bounds[r].op, name); r++)
                if (op->shapes) printf("  %s %.2g (%.2g)", bounds[r].result, found[on - sides][r].error, bound_of((enum result)r));
            if (op->shapes) printf("\n");
        }
}

TEST(no_failure_was_left) {
    struct err e = {0};
    sides_open();
    const int card = !strcmp(sides[n_sides - 1].name, "card");
    for (; n_sides; n_sides--) {
        struct backend *b = sides[n_sides - 1].b;
        CHECK(!b->sync(b->self, &e), "%s: %s", sides[n_sides - 1].name, e.text);
        backend_close(b);
    }
    if (!card) SKIP("no card asked for, or none there (QLORA_BACKEND=cuda, QLORA_PLUGIN)");
}
TEST_MAIN
