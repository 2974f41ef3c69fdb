/* bench/cuda_ops.c - speed of a card's ops at the shapes of Yuan 2B and 51B, as shares of what the card is measured to reach.
 *
 *     cuda_ops [--json FILE] [OP..]      default: all ops; JSON lines to standard output, the table to standard error
 *
 * The backend is $QLORA_PLUGIN (a path) or "cuda". Ceilings first: a device copy of 2 GB, counting what is read and written, and
 * an 8192^3 bf16 product, once cold and once after two seconds of load (clocks fall). Then, for each op: a small case of the
 * same code against the CPU backend, which must agree (unpack and join to the bit, from the weights' definition), and the real
 * shapes, timed: many calls between two syncs, median of several rounds, buffers taken in turn so that no cache holds them.
 * "share" = time at the ceilings / time measured, where time at the ceilings is the larger of FLOPs over product rate and bytes
 * over copy rate, both as the wrappers count them. Where bytes decide, a device copy of as many is timed beside it. */
#define _GNU_SOURCE
#include "backend/backend.h"
#include "base/half.h"
#include "base/sys.h"
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct size { const char *name; int64_t D, F, H, V, R, N, S; }; /* S: tokens a sequence; K = D / H */
static const struct size SMALL = {"small", 128, 256, 2, 512, 8, 96, 32};
static const struct size SIZES[] = {{"2B", 2048, 8192, 32, 135040, 64, 4096, 1024},   {"2B", 2048, 8192, 32, 135040, 64, 16384, 1024},
                                    {"2B", 2048, 8192, 32, 135040, 64, 16384, 8192},  {"51B", 8192, 32768, 64, 135040, 64, 4096, 4096},
                                    {"51B", 8192, 32768, 64, 135040, 64, 16384, 4096}};
enum { SIZES_COUNT = sizeof SIZES / sizeof *SIZES, SETS_MAX = 24, ROUNDS = 7, PIECES_MAX = 4096, LIST_MAX = 512 };
static const size_t CACHE_BYTES = (size_t)256 << 20; /* what a turn of the sets must exceed: five times the L2 of an H100 */
static const double TOLERANCE = 3e-2;                /* bf16 logits of up to 12 differ by 2^-5: probabilities by 3 % */

/* ---- memory: one arena a machine, cut by the cases ---- */

static struct machine {
    struct backend *b;
    enum dtype activation;
    char *arena, *pattern;
    size_t bytes, used;
    int full, pieces;
    struct { void *p; int64_t n; enum dtype type; } piece[PIECES_MAX]; /* what is compared */
} card, cpu, *on; /* on: where a case is being laid out */
enum { PATTERN_BYTES = 32 << 20 };
enum fill { RANDOM, CODES, ZERO, SCRATCH }; /* CODES: any bytes; SCRATCH: nobody reads it after the op */

static uint32_t state;
static uint32_t random_word(void) { return state = state * 1664525u + 1013904223u; }
static float uniform(void) { return bf16_to_f32(f32_to_bf16((float)(int32_t)random_word() * 0x1p-31f)); }

static void *take(int64_t n, enum dtype type, enum fill fill) {
    size_t bytes = (size_t)n * dtype_bytes(type);
    if (on->full || on->used + bytes > on->bytes) return on->full = 1, on->arena;
    char *p = on->arena + on->used;
    on->used += (bytes + 255) / 256 * 256;
    if (fill == ZERO || fill == SCRATCH) on->b->zero(on->b->self, p, bytes, Q_COMPUTE);
    else if (bytes > (1 << 20)) /* timed, not compared */
        for (size_t at = 0; at < bytes; at += PATTERN_BYTES)
            on->b->copy(on->b->self, p + at, on->pattern + (fill == CODES) * PATTERN_BYTES,
                        bytes - at < PATTERN_BYTES ? bytes - at : PATTERN_BYTES, Q_COMPUTE);
    else {
        float *host = malloc(bytes + 4);
        for (int64_t i = 0; i < n; i++) {
            if (type == DT_BF16) ((uint16_t *)(void *)host)[i] = f32_to_bf16(uniform());
            else if (type == DT_F32) host[i] = uniform();
            else ((uint8_t *)host)[i] = (uint8_t)(random_word() >> 24);
        }
        on->b->put(on->b->self, p, host, bytes, Q_COMPUTE), on->b->sync(on->b->self, NULL);
        free(host);
    }
    if (fill != SCRATCH && fill != CODES && on->pieces < PIECES_MAX)
        on->piece[on->pieces].p = p, on->piece[on->pieces].n = n, on->piece[on->pieces++].type = type;
    return p;
}
static struct mat mat(int64_t rows, int64_t cols) {
    return (struct mat){take(rows * cols, on->activation, RANDOM), rows, cols, cols, on->activation};
}
static struct mat out(int64_t rows, int64_t cols) {
    return (struct mat){take(rows * cols, on->activation, ZERO), rows, cols, cols, on->activation};
}
static struct mat mat32(int64_t rows, int64_t cols) { return (struct mat){take(rows * cols, DT_F32, RANDOM), rows, cols, cols, DT_F32}; }
static struct mat columns(struct mat m, int64_t first, int64_t cols) {
    m.data = (char *)m.data + (size_t)first * dtype_bytes(m.type), m.cols = cols;
    return m;
}
static int32_t *indices(const int32_t *host, int64_t n) {
    int32_t *p = take(n, DT_I32, SCRATCH);
    if (!on->full) on->b->put(on->b->self, p, host, (size_t)n * 4, Q_COMPUTE), on->b->sync(on->b->self, NULL);
    return p;
}

/* Random codes are as good as encoded ones. */
static struct weight weight(enum weight_format f, int64_t rows, int64_t cols) {
    struct weight w = {.format = f, .rows = rows, .cols = cols};
    int64_t n = rows * cols, blocks = q4_blocks(n, 64);
    if (f == W_BF16) {
        w.data = take(n, DT_BF16, RANDOM);
    } else if (f == W_INT8) w.data = take(n, DT_I8, CODES), w.scale = take(rows, DT_F32, RANDOM);
    else {
        float *levels = take(16, DT_F32, SCRATCH), *map = take(256, DT_F32, SCRATCH);
        w.q4 = (struct q4_view){.codes = take(q4_code_bytes(n), DT_U8, CODES), .absmax_q = take(blocks, DT_U8, CODES),
                                .nested_absmax = take(q4_nested(blocks), DT_F32, RANDOM),
                                .nested_map = map, .levels = levels, .nested_offset = 0.5f, .block = 64};
        if (!on->full)
            on->b->put(on->b->self, levels, nf4_levels, 64, Q_COMPUTE), on->b->put(on->b->self, map, bw8_signed, 1024, Q_COMPUTE);
    }
    return w;
}
static struct adapter adapter(int64_t R, int64_t in, int64_t o) {
    return (struct adapter){.A = mat32(R, in), .B = mat32(o, R), .dA = mat32(R, in), .dB = mat32(o, R), .scale = 0.5f};
}

static int32_t seq_start[2][1025]; /* small, large: two chunks may be alive */
static struct rows rows_of(const struct size *z) {
    int32_t *host = malloc((size_t)z->N * 12), *start = seq_start[z != &SMALL];
    for (int32_t t = 0; t < z->N; t++) host[t] = host[2 * z->N + t] = t % (int32_t)z->S, host[z->N + t] = t - host[t];
    for (int32_t s = 0; s <= z->N / z->S; s++) start[s] = s * (int32_t)z->S;
    int32_t *p = indices(host, 3 * z->N);
    free(host);
    return (struct rows){.N = z->N, .n_seqs = (int)(z->N / z->S), .seq_start = start, .position = p, .first = p + z->N,
                         .offset = p + 2 * z->N};
}
static int32_t *ids_of(const struct size *z, int64_t step, int64_t below) { /* ids_of(z, 1, N): 0 .. N-1 */
    int32_t *host = malloc((size_t)z->N * 4);
    for (int64_t t = 0; t < z->N; t++) host[t] = (int32_t)(t * step % below);
    int32_t *p = indices(host, z->N);
    free(host);
    return p;
}

/* ---- the cases: each lays out one call ---- */

struct call {
    struct rows rows;
    union {
        struct embed_args embed;
        struct norm_args norm;
        struct linear_args linear;
        struct filter_args filter;
        struct rope_args rope;
        struct attend_args attend;
        struct gate_args gate; struct loss_args loss; struct adam_args adam; struct sqsum_args sqsum;
        struct { struct weight w; void *to; int64_t ld; } unpack;
    };
    struct join_args join; /* of linear */
    struct adam_tensor tensor[LIST_MAX];
    const float *x[LIST_MAX];
    int64_t n[LIST_MAX];
};
static char text[80]; /* what the case is, beside model and tokens */

static void lay_embed(const struct size *z, struct call *c, int v) {
    (void)v, snprintf(text, sizeof text, "D %d", (int)z->D);
    c->embed = (struct embed_args){.ids = ids_of(z, 7919, z->V),
                                   .E = {take(z->V * z->D, DT_BF16, RANDOM), z->V, z->D, z->D, DT_BF16}, .y = out(z->N, z->D)};
}
static void lay_norm(const struct size *z, struct call *c, int v) {
    static const char *const names[] = {"", " +=", " ="}; /* backward: as a residual takes it; alone */
    snprintf(text, sizeof text, "D %d%s", (int)z->D, names[v]);
    c->norm = (struct norm_args){.x = mat(z->N, z->D), .g = take(z->D, DT_F32, RANDOM), .g_type = DT_F32,
                                 .r = take(z->N, DT_F32, RANDOM), .eps = 1e-6f};
    if (!v) c->norm.y = out(z->N, z->D);
    else c->norm.dy = mat(z->N, z->D), c->norm.dx = mat(z->N, z->D), c->norm.overwrite = v == 2;
}
static void lay_norm_bwd(const struct size *z, struct call *c, int v) { lay_norm(z, c, v + 1); }

/* 0 v, o: D to D; 1 q and k; 2 gate and up; 3 down; these NF4 with adapters. 4 D to F, bf16 alone; 5 int8 */
static void lay_linear(const struct size *z, struct call *c, int v) {
    int64_t in = v == 3 ? z->F : z->D, o = v < 2 || v == 3 ? z->D : z->F;
    enum weight_format f = v == 4 ? W_BF16 : v == 5 ? W_INT8 : W_Q4;
    int n = v == 1 || v == 2 ? 2 : 1, lora = v < 4;
    snprintf(text, sizeof text, "%d to %s%d %s%s", (int)in, n == 2 ? "2 x " : "", (int)o,
             f == W_Q4     ? "nf4"
             : f == W_BF16 ? "bf16"
                           : "int8",
             lora ? " lora" : "");
    int64_t tail = lora ? n * z->R : 0;
    struct mat x = mat(z->N, in + tail), y = out(z->N, n * o), dy = mat(z->N, n * o + tail);
    struct join_args j = {.n = n};
    if (!on->full) on->pieces--; /* the columns behind dy are scratch */
    c->linear = (struct linear_args){.x = columns(x, 0, in), .n = n, .dx = out(z->N, in)};
    for (int i = 0; i < n; i++) { /* as the model lays them out: results side by side, the adapter's columns behind */
        struct linear_out *l = &c->linear.out[i];
        *l = (struct linear_out){.w = weight(f, o, in), .y = columns(y, i * o, o), .dy = columns(dy, i * o, o)};
        if (lora) l->lora = adapter(z->R, in, o), l->xa = columns(x, in + i * z->R, z->R), l->dxa = columns(dy, n * o + i * z->R, z->R);
        j.part[i].w = l->w, j.part[i].lora = l->lora;
    }
    if (!lora || on == &cpu) return;
    int64_t rows, cols;
    join_shape(&j, &rows, &cols);
    j.to = (struct mat){take(rows * cols, on->activation, SCRATCH), rows, cols, cols, on->activation};
    c->join = j, c->linear.joint = j.to;
    if (!on->full) op_join(on->b, &j);
}
static void lay_filter(const struct size *z, struct call *c, int v) {
    int64_t in = v ? z->D / 2 : z->D, o = v ? z->D : z->D / 2;
    snprintf(text, sizeof text, "%d to %d", (int)in, (int)o);
    c->filter = (struct filter_args){.x = mat(z->N, in), .y = out(z->N, o), .w0 = weight(W_BF16, o, in),
                                     .w1 = weight(W_BF16, o, in), .b = take(o, DT_F32, RANDOM), .b_type = DT_F32,
                                     .dy = mat(z->N, o), .dx = out(z->N, in)};
    if (!v) c->filter.dx_add = mat(z->N, in);
    if (v) c->filter.add = mat(z->N, o);
}
static void lay_rope(const struct size *z, struct call *c, int v) {
    (void)v, snprintf(text, sizeof text, "%d heads of %d", (int)(2 * z->H), (int)(z->D / z->H));
    c->rope = (struct rope_args){.x = mat(z->N, 2 * z->D), .K = z->D / z->H, .sign = 1};
}
static void lay_attend(const struct size *z, struct call *c, int v) {
    int64_t D = z->D, K = D / z->H;
    (void)v, snprintf(text, sizeof text, "%d heads of %d, %d a sequence", (int)z->H, (int)K, (int)z->S);
    struct mat qk = mat(z->N, 2 * D), dqk = out(z->N, 2 * D);
    c->attend = (struct attend_args){.H = z->H, .K = K, .q = qk, .k = columns(qk, K, 2 * D - K), .v = mat(z->N, D),
                                     .o = out(z->N, D), .q_step = 2 * K, .k_step = 2 * K, .v_step = K,
                                     .lse = take(z->N * z->H, DT_F32, ZERO), .d_o = mat(z->N, D), .dq = dqk,
                                     .dk = columns(dqk, K, 2 * D - K), .dv = out(z->N, D),
                                     .delta = take(z->N * z->H, DT_F32, SCRATCH)};
}
static void lay_attend_bwd(const struct size *z, struct call *c, int v) {
    lay_attend(z, c, v);
    c->attend.rows = &c->rows;
    if (!on->full) op_attend(on->b, &c->attend); /* o and lse */
}
static void lay_gate(const struct size *z, struct call *c, int v) {
    snprintf(text, sizeof text, "F %d%s", (int)z->F, v == 2 ? " and y" : "");
    c->gate = (struct gate_args){.g = mat(z->N, z->F), .u = mat(z->N, z->F)};
    if (v != 1) c->gate.y = out(z->N, z->F);
    if (v) c->gate.dy = mat(z->N, z->F), c->gate.dg = out(z->N, z->F), c->gate.du = out(z->N, z->F);
}
static void lay_gate_bwd(const struct size *z, struct call *c, int v) { lay_gate(z, c, v + 1); }
static void lay_loss(const struct size *z, struct call *c, int v) {
    snprintf(text, sizeof text, "D %d V %d%s", (int)z->D, (int)z->V, v ? " dy" : "");
    c->loss = (struct loss_args){.y = mat(z->N, z->D), .E = weight(W_BF16, z->V, z->D), .n = z->N, .row = ids_of(z, 1, z->N),
                                 .label = ids_of(z, 7919, z->V),
                                 .weight = take(z->N, DT_F32, RANDOM), .nll = take(z->N, DT_F32, ZERO)};
    if (v) c->loss.dy = out(z->N, z->D);
    c->loss.work_bytes = (size_t)(2 * (z->V + z->D)) * (z == &SMALL ? 100 : 1024) + 1024;
    c->loss.work = take((int64_t)c->loss.work_bytes / 2, DT_BF16, SCRATCH);
}
/* Adapters of rank R: 0 of one layer, 1 of 24 layers; of AdamW 2 and 3 the same with 8-bit state. */
static int64_t tensors(const struct size *z, struct call *c, int v, enum fill fill, float **first) {
    const int64_t D = z->D, F = z->F, R = z->R, n[] = {D, D, D, D, D, D, D, D, D, F, D, F, F, D};
    int64_t count = v % 2 ? 24 * 14 : 14, sum = 0;
    for (int64_t i = 0; i < count; i++) sum += c->n[i] = n[i % 14] * R;
    *first = take(sum, DT_F32, fill);
    snprintf(text, sizeof text, "%d tensors, %.1fM", (int)count, (double)sum * 1e-6);
    return count;
}
static void lay_adam(const struct size *z, struct call *c, int v) {
    float *p, *g, *m = NULL, *s = NULL, *scale = NULL;
    uint8_t *small = NULL;
    int64_t count = tensors(z, c, v, RANDOM, &p), all = 0;
    tensors(z, c, v, RANDOM, &g);
    for (int64_t i = 0; i < count; i++) all += c->n[i];
    if (v < 2) tensors(z, c, v, ZERO, &m), tensors(z, c, v, ZERO, &s);
    else
        small = take(2 * all, DT_U8, SCRATCH), scale = take(2 * all / 256, DT_F32, SCRATCH),
        snprintf(text + strlen(text), sizeof text - strlen(text), ", 8 bit");
    for (int64_t i = 0, at = 0; i < count; at += c->n[i++]) {
        c->tensor[i] = (struct adam_tensor){.p = p + at, .g = g + at, .n = c->n[i], .lr = 1e-3, .weight_decay = 0.1};
        if (v < 2) c->tensor[i].m = m + at, c->tensor[i].v = s + at;
        else
            c->tensor[i].m8 = small + at, c->tensor[i].v8 = small + all + at, c->tensor[i].m_absmax = scale + at / 256,
            c->tensor[i].v_absmax = scale + (all + at) / 256;
    }
    c->adam = (struct adam_args){.tensors = c->tensor, .count = count, .t = 1, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .grad_scale = 1};
}
static double *sums; /* AT_HOST of the machine on which the case runs */
static void lay_sqsum(const struct size *z, struct call *c, int v) {
    float *p;
    int64_t count = tensors(z, c, v, RANDOM, &p);
    for (int64_t i = 0; i < count; p += c->n[i++]) c->x[i] = p;
    c->sqsum = (struct sqsum_args){.x = c->x, .n = c->n, .count = count, .out = sums};
}
/* The plugin's own unpacking, which no op shows alone: F x D; 0 NF4, 1 NF4 into wider rows, 2 int8, 3 NF4 of D x D */
static void (*unpack_to)(void *self, const struct weight *w, void *dst, int64_t ld);
static void lay_unpack(const struct size *z, struct call *c, int v) {
    int64_t rows = v == 3 ? z->D : z->F;
    c->unpack.w = weight(v == 2 ? W_INT8 : W_Q4, rows, z->D), c->unpack.ld = z->D + (v == 1 ? z->R : 0);
    c->unpack.to = take(rows * c->unpack.ld, DT_BF16, SCRATCH);
    snprintf(text, sizeof text, "%d x %d %s ld %d", (int)rows, (int)z->D, v == 2 ? "int8" : "nf4", (int)c->unpack.ld);
}

#define CALL(op, field)                                                                                                \
    static void call_##op(struct backend *b, struct call *c) { op_##op(b, &c->field); }
#define CALL_ROWS(op, field)                                                                                           \
    static void call_##op(struct backend *b, struct call *c) { c->field.rows = &c->rows, op_##op(b, &c->field); }
CALL_ROWS(embed, embed)
CALL_ROWS(norm, norm) CALL_ROWS(norm_bwd, norm) CALL_ROWS(linear, linear) CALL_ROWS(linear_bwd, linear) CALL_ROWS(filter, filter)
    CALL_ROWS(filter_bwd, filter) CALL_ROWS(rope, rope) CALL_ROWS(attend, attend) CALL_ROWS(attend_bwd, attend)
        CALL_ROWS(gate, gate) CALL_ROWS(gate_bwd, gate) CALL_ROWS(loss, loss) CALL(adam, adam)
            CALL(sqsum, sqsum) static void call_join(struct backend *b, struct call *c) {
    op_join(b, &c->join);
}
static void call_unpack(struct backend *b, struct call *c) { unpack_to(b->self, &c->unpack.w, c->unpack.to, c->unpack.ld); }

static const struct op {
    const char *name;
    void (*lay)(const struct size *, struct call *, int variant), (*run)(struct backend *, struct call *);
    int variants, once; /* once: tokens do not matter */
} OPS[] = {{"unpack", lay_unpack, call_unpack, 4, 1},
           {"embed", lay_embed, call_embed, 1, 0},
           {"norm", lay_norm, call_norm, 1, 0},
           {"norm_bwd", lay_norm_bwd, call_norm_bwd, 2, 0},
           {"rope", lay_rope, call_rope, 1, 0},
           {"gate", lay_gate, call_gate, 1, 0},
           {"gate_bwd", lay_gate_bwd, call_gate_bwd, 2, 0},
           {"adam", lay_adam, call_adam, 4, 1},
           {"sqsum", lay_sqsum, call_sqsum, 2, 1},
           {"join", lay_linear, call_join, 4, 1},
           {"linear", lay_linear, call_linear, 6, 0},
           {"linear_bwd", lay_linear, call_linear_bwd, 6, 0},
           {"filter", lay_filter, call_filter, 2, 0},
           {"filter_bwd", lay_filter, call_filter_bwd, 2, 0},
           {"attend", lay_attend, call_attend, 1, 0},
           {"attend_bwd", lay_attend_bwd, call_attend_bwd, 1, 0},
           {"loss", lay_loss, call_loss, 2, 0}};
enum { OPS_COUNT = sizeof OPS / sizeof *OPS };

/* ---- running them ---- */

static struct call calls[SETS_MAX];
static struct err e;
static double copy_gbs, product_tflops;
static FILE *json;

static void begin(struct machine *m, double *host_sums) { on = m, m->used = 0, m->full = m->pieces = 0, state = 1, sums = host_sums; }
static double *download(const struct machine *m, int i) {
    int64_t n = m->piece[i].n;
    size_t bytes = (size_t)n * dtype_bytes(m->piece[i].type);
    void *raw = malloc(bytes);
    double *x = malloc((size_t)n * sizeof *x);
    m->b->get(m->b->self, raw, m->piece[i].p, bytes, Q_COMPUTE), m->b->sync(m->b->self, &e);
    for (int64_t k = 0; k < n; k++)
        x[k] = m->piece[i].type == DT_BF16 ? (double)bf16_to_f32(((uint16_t *)raw)[k]) : (double)((float *)raw)[k];
    free(raw);
    return x;
}
/* The small case on both machines: everything they hold must agree. Returns the number of buffers that do not. */
static int validate(const struct op *op, int v, double *host_sums) {
    double cpu_sums[LIST_MAX];
    struct machine *const both[] = {&cpu, &card};
    int wrong = 0;
    for (int k = 0; k < 2; k++) {
        begin(both[k], k ? host_sums : cpu_sums);
        calls[k].rows = rows_of(&SMALL), op->lay(&SMALL, &calls[k], v);
        op->run(both[k]->b, &calls[k]);
        if (both[k]->b->sync(both[k]->b->self, &e)) exit(err_print(&e));
    }
    for (int i = 0; i < card.pieces; i++) {
        double *x = download(&card, i), *y = download(&cpu, i), diff = 0, norm = 0;
        for (int64_t k = 0; k < card.piece[i].n; k++) diff += (x[k] - y[k]) * (x[k] - y[k]), norm += y[k] * y[k];
        if (!(sqrt(diff) <= TOLERANCE * sqrt(norm) + 1e-6))
            wrong++, fprintf(stderr, "✗ %s (%s): buffer %d of %d: relative error %.3g\n", op->name, text, i, card.pieces,
                             sqrt(diff / norm));
        free(x), free(y);
    }
    for (int i = 0; op->run == call_sqsum && i < calls[0].sqsum.count; i++)
        wrong += !(fabs(host_sums[i] - cpu_sums[i]) <= 1e-12 * cpu_sums[i]);
    return wrong;
}

static uint16_t stored(const struct weight *w, int64_t i) {
    if (w->format == W_BF16) return ((const uint16_t *)w->data)[i];
    return f32_to_bf16(w->format == W_INT8 ? (float)((const int8_t *)w->data)[i] * int8_unit(w->scale[i / w->cols]) : q4_value(&w->q4, i));
}
/* What join makes of a linear that is laid out on the CPU (backend.h, join_args), rows of `ld`. */
static void joined(const struct linear_args *a, uint16_t *want, int64_t ld) {
    const int64_t in = a->out[0].w.cols;
    int64_t row = 0, rank = 0;
    for (int i = 0; i < a->n; i++) {
        const struct linear_out *l = &a->out[i];
        const int64_t R = l->lora.A.rows;
        for (int64_t r = 0; r < l->w.rows; r++, row++) {
            for (int64_t c = 0; c < in; c++) want[row * ld + c] = stored(&l->w, r * in + c);
            for (int64_t c = 0; c < R; c++)
                want[row * ld + in + rank + c] = f32_to_bf16(l->lora.scale * ((const float *)l->lora.B.data)[r * R + c]);
        }
        rank += R;
    }
    for (int i = 0; i < a->n; i++)
        for (int64_t r = 0; r < a->out[i].lora.A.rows; r++, row++)
            for (int64_t c = 0; c < in; c++) want[row * ld + c] = f32_to_bf16(((const float *)a->out[i].lora.A.data)[r * in + c]);
}
/* unpack and join, which the CPU has not: to the bit, from the same weights. */
static int validate_bits(const struct op *op, int v) {
    struct machine *const both[] = {&cpu, &card};
    const int join = op->run == call_join;
    int64_t wrong = 0;
    for (int k = 0; k < 2; k++) begin(both[k], NULL), op->lay(&SMALL, &calls[k], v);
    op->run(card.b, &calls[1]);
    const int64_t rows = join ? calls[1].join.to.rows : calls[1].unpack.w.rows,
                  ld = join ? calls[1].join.to.ld : calls[1].unpack.ld, cols = join ? ld : calls[1].unpack.w.cols;
    uint16_t *have = malloc((size_t)(rows * ld) * 2), *want = calloc((size_t)(rows * ld), 2);
    card.b->get(card.b->self, have, join ? calls[1].join.to.data : calls[1].unpack.to, (size_t)(rows * ld) * 2, Q_COMPUTE);
    if (card.b->sync(card.b->self, &e)) exit(err_print(&e));
    if (join) joined(&calls[0].linear, want, ld);
    for (int64_t i = 0; !join && i < rows * cols; i++) want[i / cols * ld + i % cols] = stored(&calls[0].unpack.w, i);
    for (int64_t i = 0; i < rows * ld; i++) wrong += i % ld < cols && have[i] != want[i];
    if (wrong) fprintf(stderr, "✗ %s (%s): %lld of %lld numbers are wrong\n", op->name, text, (long long)wrong, (long long)(rows * cols));
    free(have), free(want);
    return wrong != 0;
}

/* Milliseconds a call: median of ROUNDS, each long enough for the clock, sets in turn. */
static int by_size(const void *a, const void *b) {
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}
static double time_calls(const struct op *op, int sets, double seconds) {
    struct backend *b = card.b;
    double ms[ROUNDS], t;
    int reps = 2, at = 0;
    for (;; reps *= 2) { /* also warms up */
        b->sync(b->self, &e), t = sys_seconds();
        for (int i = 0; i < reps; i++) op->run(b, &calls[at++ % sets]);
        b->sync(b->self, &e), t = sys_seconds() - t;
        if (t >= seconds / 2 || reps >= 4096) break;
    }
    for (int r = 0; r < ROUNDS; r++) {
        b->sync(b->self, &e), t = sys_seconds();
        for (int i = 0; i < reps; i++) op->run(b, &calls[at++ % sets]);
        b->sync(b->self, &e), ms[r] = (sys_seconds() - t) * 1e3 / reps;
    }
    qsort(ms, ROUNDS, sizeof *ms, by_size);
    return ms[ROUNDS / 2];
}

/* copy_ms: of a device copy that moves as many bytes; 0: none was made. */
static void line(const char *op, const char *shape, double ms, double flops, double bytes, double copy_ms) {
    double tflops = flops / ms * 1e-9, gbs = bytes / ms * 1e-6,
           share = fmax(copy_gbs > 0 ? gbs / copy_gbs : 0, product_tflops > 0 ? tflops / product_tflops : 0);
    fprintf(stderr, "%-11s %-52s %9.4f ms %7.1f TFLOP/s %7.0f GB/s %4.0f %%", op, shape, ms, tflops, gbs, share * 100);
    fprintf(json, "{\"op\":\"%s\",\"shape\":\"%s\",\"ms\":%.5f,\"tflops\":%.2f,\"gbs\":%.1f,\"share\":%.4f", op, shape, ms,
            tflops, gbs, share);
    if (copy_ms > 0)
        fprintf(stderr, ", %3.0f %% of a copy of that size", copy_ms / ms * 100),
            fprintf(json, ",\"copy_ms\":%.5f,\"share_of_copy\":%.4f", copy_ms, copy_ms / ms);
    fprintf(stderr, "\n"), fprintf(json, "}\n");
    fflush(json);
}

static void call_copy(struct backend *b, struct call *c) {
    b->copy(b->self, (char *)c->unpack.to + c->unpack.ld, c->unpack.to, (size_t)c->unpack.ld, Q_COMPUTE);
}
/* A copy of the same bytes, through as many places as no cache holds: what a launch costs is in it, too. */
static double time_copy(double bytes) {
    const struct op copy = {"copy", NULL, call_copy, 0, 0};
    const size_t half = (size_t)(bytes / 2) / 256 * 256;
    int sets = 0;
    for (; half && sets < SETS_MAX && (size_t)(sets + 1) * 2 * half <= card.bytes && (size_t)sets * 2 * half < CACHE_BYTES; sets++)
        calls[sets].unpack.to = card.arena + (size_t)sets * 2 * half, calls[sets].unpack.ld = (int64_t)half;
    return sets ? time_calls(&copy, sets, 0.05) : 0;
}

static void measure(const struct op *op, const struct size *z, int v) {
    char shape[160];
    int sets = 0;
    begin(&card, sums);
    do calls[sets].rows = rows_of(z), op->lay(z, &calls[sets], v), sets += !card.full;
    while (!card.full && card.used < CACHE_BYTES && sets < SETS_MAX);
    card.full = 0;
    snprintf(shape, sizeof shape, "%s N %d %s", z->name, (int)z->N, text);
    if (!sets) return (void)fprintf(stderr, "%-11s %-52s does not fit\n", op->name, shape);
    double ms = time_calls(op, sets, 0.05), flops = 0, bytes = 0;
    if (op->run == call_unpack) {
        const struct weight *w = &calls[0].unpack.w;
        bytes = (double)w->rows * (double)w->cols * (w->format == W_Q4 ? 2.5 + 1 / 64. : 3);
    } else {
        int n;
        op_counts_reset(), op->run(card.b, &calls[0]);
        const struct op_count *count = op_counts(&n);
        for (int i = 0; i < n; i++) flops += count[i].flops, bytes += count[i].bytes;
    }
    line(op->name, shape, ms, flops, bytes, bytes / copy_gbs > flops / product_tflops * 1e-3 ? time_copy(bytes) : 0);
}

static void ceilings(void) {
    const struct op copy = {"copy", NULL, call_copy, 0, 0}, product = {"product", NULL, call_linear, 0, 0};
    const struct size z = {"", 8192, 8192, 64, 0, 0, 8192, 8192};
    int64_t half = (int64_t)(card.bytes < (size_t)4 << 30 ? card.bytes / 2 : (size_t)2 << 30) / 256 * 256;
    double t = sys_seconds(), ms;
    calls[0].unpack.to = card.arena, calls[0].unpack.ld = half;
    ms = time_calls(&copy, 1, 0.05);
    line("copy", "device to device, read and written", ms, 0, 2 * (double)half, 0);
    copy_gbs = 2 * (double)half / ms * 1e-6;
    begin(&card, NULL);
    calls[0].rows = rows_of(&z), lay_linear(&z, &calls[0], 4);
    if (card.full) return (void)fprintf(stderr, "no room for an 8192^3 product: shares are of the copy alone\n");
    double flops = 2 * 8192. * 8192. * 8192.;
    line("product", "8192^3 bf16, cold", time_calls(&product, 1, 0.02), flops, 0, 0);
    for (t = sys_seconds(); sys_seconds() - t < 2;) time_calls(&product, 1, 0.02);
    ms = time_calls(&product, 1, 0.1);
    line("product", "8192^3 bf16, sustained: the ceiling", ms, flops, 0, 0);
    product_tflops = flops / ms * 1e-9;
}

/* The arena, the random patterns, the workspace for `z`. */
static int open_machine(struct machine *m, struct backend *b, size_t bytes) {
    struct backend_info info;
    b->info(b->self, &info);
    state = 1; /* the same patterns on both */
    *m = (struct machine){.b = b, .activation = info.activation, .bytes = bytes};
    m->arena = b->alloc(b->self, AT_DEVICE, bytes), m->pattern = b->alloc(b->self, AT_DEVICE, 2 * PATTERN_BYTES);
    uint16_t *host = malloc(2 * PATTERN_BYTES);
    if (!m->arena || !m->pattern || !host) return err_set(&e, ERR_RUN, "no memory for %zu bytes of operands", bytes);
    for (int64_t i = 0; i < PATTERN_BYTES; i++) host[i] = i < PATTERN_BYTES / 2 ? f32_to_bf16(uniform()) : (uint16_t)(random_word() >> 16);
    b->put(b->self, m->pattern, host, 2 * PATTERN_BYTES, Q_COMPUTE);
    int failed = b->sync(b->self, &e);
    free(host);
    return failed;
}
static int reserve(struct backend *b, const struct size *z) {
    return b->reserve(b->self, &(struct backend_limits){.rows = z->N, .sequence = z->S, .D = z->D, .F = z->F, .H = z->H,
                                                        .K = z->D / z->H, .V = z->V, .R = z->R}, &e);
}

int main(int argc, char **argv) {
    int first = 1, failed = 0;
    json = stdout;
    if (argc > 1 && !strcmp(argv[1], "--json")) {
        first = 3;
        if (argc < 3 || !(json = fopen(argv[2], "w"))) return fprintf(stderr, "cuda_ops: --json needs a file that can be written\n"), 2;
    }
    for (int i = first; i < argc; i++) {
        int known = 0;
        for (int k = 0; k < OPS_COUNT; k++) known |= !strcmp(argv[i], OPS[k].name);
        if (!known) return fprintf(stderr, "usage: cuda_ops [--json FILE] [OP..]; no op \"%s\"\n", argv[i]), 2;
    }
    const char *plugin = getenv("QLORA_PLUGIN");
    struct backend *b = backend_open(plugin ? plugin : "cuda", &e), *reference = backend_cpu(NULL);
    if (!b) return fprintf(stderr, "cuda_ops: skipped: %s\n", e.text), 0;
    nf4_init();
    struct backend_info info;
    b->info(b->self, &info);
    size_t room = (size_t)info.free_bytes / 2 < (size_t)24 << 30 ? (size_t)info.free_bytes / 2 : (size_t)24 << 30;
    if (!reference || open_machine(&cpu, reference, (size_t)64 << 20) || open_machine(&card, b, room)) return err_print(&e);
    double *host_sums = b->alloc(b->self, AT_HOST, LIST_MAX * sizeof *host_sums);
    if (!host_sums) return fprintf(stderr, "cuda_ops: no host memory\n"), 1;
    fprintf(json, "{\"device\":\"%s\",\"free_bytes\":%lld}\n", info.detail, (long long)info.free_bytes);
    void *address, *symbol = NULL;
    Dl_info where;
    memcpy(&address, &b->linear, sizeof address); /* the plugin that the table points into */
    if (dladdr(address, &where)) {
        void *library = dlopen(where.dli_fname, RTLD_NOW | RTLD_NOLOAD);
        if (library) symbol = dlsym(library, "cuda_unpack_to");
    }
    memcpy(&unpack_to, &symbol, sizeof unpack_to);
    static const struct size large = {"", 8192, 8192, 64, 512, 64, 8192, 8192};
    if (reserve(b, &large)) return err_print(&e);
    ceilings();
    for (int i = -1; i < SIZES_COUNT && !failed; i++) { /* -1: against the CPU */
        if (reserve(b, i < 0 ? &SMALL : &SIZES[i]) || reserve(reference, &SMALL)) {
            fprintf(stderr, "%s N %d: %s\n", SIZES[i < 0 ? 0 : i].name, i < 0 ? 0 : (int)SIZES[i].N, e.text);
            continue;
        }
        for (int k = 0; k < OPS_COUNT; k++) {
            int wanted = first == argc;
            for (int j = first; j < argc; j++) wanted |= !strcmp(argv[j], OPS[k].name);
            if (!wanted || (OPS[k].run == call_unpack && !unpack_to)) continue;
            if (i > 0 && OPS[k].once && SIZES[i].D == SIZES[i - 1].D) continue;
            if (i == 2 && OPS[k].run != call_attend && OPS[k].run != call_attend_bwd) continue; /* long sequences matter there only */
            for (int v = 0; v < OPS[k].variants; v++) {
                sums = host_sums;
                if (i < 0)
                    failed += OPS[k].run == call_join || OPS[k].run == call_unpack ? validate_bits(&OPS[k], v)
                                                                                   : validate(&OPS[k], v, host_sums);
                else measure(&OPS[k], &SIZES[i], v);
            }
        }
    }
    if (b->sync(b->self, &e)) failed = 1, err_print(&e);
    backend_close(b), backend_close(reference);
    return failed ? fprintf(stderr, "cuda_ops: %d results are wrong\n", failed), 1 : fclose(json) != 0;
}
