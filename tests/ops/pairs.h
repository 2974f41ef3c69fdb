/* tests/ops/pairs.h - matrices, rows and weights in both memories, and the results of one beside those of the other. Inputs are bf16
 * values, so both see the same numbers. */
#ifndef QLORA_TESTS_PAIRS_H
#define QLORA_TESTS_PAIRS_H
#include "tests/ops/card.h"
#include "base/half.h"
#include <math.h>

static inline float rounded(float x) { return bf16_to_f32(f32_to_bf16(x)); }

/* A matrix in both memories. On the card activations are bf16. */
struct pair { struct mat c, g; int64_t n; };
static inline void upload(struct pair *p) {
    size_t bytes = (size_t)p->n * dtype_bytes(p->g.type);
    if (p->g.type != DT_BF16) gpu->put(gpu->self, p->g.data, p->c.data, bytes, Q_COMPUTE);
    else {
        uint16_t *h = malloc(bytes);
        for (int64_t i = 0; i < p->n; i++) h[i] = f32_to_bf16(((float *)p->c.data)[i]);
        gpu->put(gpu->self, p->g.data, h, bytes, Q_COMPUTE);
        gpu->sync(gpu->self, &e);
        free(h);
    }
    gpu->sync(gpu->self, &e);
}
static inline struct pair make(int64_t rows, int64_t cols, enum dtype gpu_type, float scale) { /* scale 0: poisoned */
    struct pair p = {.n = rows * cols};
    p.c = (struct mat){malloc((size_t)p.n * 4), rows, cols, cols, DT_F32};
    p.g = (struct mat){gpu->alloc(gpu->self, AT_DEVICE, (size_t)p.n * 4), rows, cols, cols, gpu_type};
    for (int64_t i = 0; i < p.n; i++) ((float *)p.c.data)[i] = scale != 0 ? rounded(uniform() * scale) : NAN;
    upload(&p);
    return p;
}
static inline void clear(struct pair *p) {
    memset(p->c.data, 0, (size_t)p->n * 4);
    upload(p);
}
static inline float *download(const struct pair *p) {
    float *x = malloc((size_t)p->n * 4);
    uint16_t *h = malloc((size_t)p->n * 4);
    gpu->get(gpu->self, p->g.type == DT_BF16 ? (void *)h : x, p->g.data, (size_t)p->n * dtype_bytes(p->g.type), Q_COMPUTE);
    gpu->sync(gpu->self, &e);
    if (p->g.type == DT_BF16)
        for (int64_t i = 0; i < p->n; i++) x[i] = bf16_to_f32(h[i]);
    free(h);
    return x;
}
static inline void drop(struct pair *p) {
    if (!p->n) return;
    free(p->c.data), gpu->release(gpu->self, AT_DEVICE, p->g.data);
    p->n = 0;
}
static inline void compare(const char *what, const char *where, const struct pair *p, double tolerance) {
    float *x = download(p), *y = p->c.data;
    double diff = 0, norm = 0, worst = 0;
    int64_t at = 0;
    for (int64_t i = 0; i < p->n; i++) {
        double d = fabs((double)x[i] - (double)y[i]);
        if (!(d <= 1e30)) d = 1e30;
        diff += d * d, norm += (double)y[i] * (double)y[i];
        if (d > worst) worst = d, at = i;
    }
    /* what is exactly 0 on one side (the gradient of a row alone) may be the rounding of a sum of K terms on the other: 1e-7 */
    double error = sqrt(diff) / (sqrt(norm) + 1e-5 * sqrt((double)p->n));
    if (getenv("V")) printf("  %-28s %-12s %.5f\n", where, what, error);
    CHECK(error <= tolerance, "%s %s: %g; worst at row %lld col %lld: %g, want %g", where, what, error, (long long)(at / p->c.cols), (long long)(at % p->c.cols), (double)x[at], (double)y[at]);
    free(x);
}

/* Token rows in both memories. lengths end with 0. documents: a boundary every so many rows. */
struct both_rows { struct rows c, g; int32_t starts[64]; struct pair position, first, offset; };
static inline void rows_of(struct both_rows *b, const int *lengths, int documents) {
    memset(b, 0, sizeof *b);
    int64_t n = 0;
    int k = 0;
    for (; lengths[k]; k++) b->starts[k + 1] = (int32_t)(n += lengths[k]);
    struct pair *p[] = {&b->position, &b->first, &b->offset};
    for (int i = 0; i < 3; i++) *p[i] = make(n, 1, DT_I32, 1);
    int32_t *pos = b->position.c.data, *first = b->first.c.data, *offset = b->offset.c.data;
    for (int s = 0; s < k; s++)
        for (int32_t t = b->starts[s], low = t; t < b->starts[s + 1]; t++) {
            pos[t] = offset[t] = t - b->starts[s], first[t] = low;
            if (documents && (t - b->starts[s]) % documents == documents - 1) low = t + 1;
        }
    for (int i = 0; i < 3; i++) upload(p[i]);
    b->c = (struct rows){.N = n, .token0 = 5, .n_seqs = k, .seq_start = b->starts, .position = pos, .first = first, .offset = offset};
    b->g = b->c;
    b->g.position = b->position.g.data, b->g.first = b->first.g.data, b->g.offset = b->offset.g.data;
}
static inline void rows_drop(struct both_rows *b) { drop(&b->position), drop(&b->first), drop(&b->offset); }

static inline void limits(int64_t rows, int64_t D, int64_t F, int64_t H, int64_t K, int64_t V, int64_t R) {
    struct backend_limits l = {.rows = rows, .sequence = rows, .D = D, .F = F, .H = H, .K = K, .V = V, .R = R, .trains_weights = 1, .head_f32 = 1, .drops = 1};
    CHECK(!cpu->reserve(cpu->self, &l, &e) && !gpu->reserve(gpu->self, &l, &e), "%s", e.text);
}
static inline struct mat side(const struct pair *p, int g) { return g ? p->g : p->c; }

/* A weight of a format in both memories. */
struct both_weight { struct weight c, g; struct pair parts[6]; };
static inline void weight_of(struct both_weight *w, enum weight_format f, int64_t rows, int64_t cols, int nested) {
    memset(w, 0, sizeof *w);
    int64_t n = rows * cols, nb = q4_blocks(n, 64);
    struct pair dense = make(rows, cols, DT_BF16, 0.1f);
    w->c = w->g = (struct weight){.format = f, .rows = rows, .cols = cols};
    uint16_t *h = malloc((size_t)n * 2);
    for (int64_t i = 0; i < n; i++) h[i] = f32_to_bf16(((float *)dense.c.data)[i]);
    size_t bytes[6] = {(size_t)n * 4};
    void *host[6] = {dense.c.data};
    if (f == W_BF16) host[0] = h, bytes[0] = (size_t)n * 2;
    if (f == W_INT8) {
        host[0] = malloc((size_t)n), bytes[0] = (size_t)n, host[1] = malloc((size_t)rows * 4), bytes[1] = (size_t)rows * 4;
        int8_encode(h, DT_BF16, rows, cols, host[0], host[1]);
    }
    if (f == W_Q4) {
        host[0] = malloc((size_t)q4_code_bytes(n)), bytes[0] = (size_t)q4_code_bytes(n), host[1] = malloc((size_t)nb * 4), bytes[1] = (size_t)nb * 4;
        host[2] = malloc((size_t)nb), bytes[2] = (size_t)nb, host[3] = malloc((size_t)q4_nested(nb) * 4), bytes[3] = (size_t)q4_nested(nb) * 4;
        host[4] = (void *)(uintptr_t)nf4_levels, bytes[4] = 64, host[5] = bw8_signed, bytes[5] = 1024;
        q4_encode(Q4_NF4, 64, h, DT_BF16, n, host[0], host[1]);
        if (nested) q4_double(host[1], nb, host[2], host[3], &w->c.q4.nested_offset), w->g.q4.nested_offset = w->c.q4.nested_offset;
    }
    void *dev[6] = {0};
    for (int i = 0; i < 6; i++)
        if (bytes[i]) {
            struct pair *p = &w->parts[i];
            p->n = 1, p->c.data = malloc(bytes[i]), p->g.data = dev[i] = gpu->alloc(gpu->self, AT_DEVICE, bytes[i]);
            memcpy(p->c.data, host[i], bytes[i]);
            gpu->put(gpu->self, dev[i], p->c.data, bytes[i], Q_COMPUTE);
            gpu->sync(gpu->self, &e);
        }
    for (int k = 0; k < 2; k++) {
        struct weight *x = k ? &w->g : &w->c;
#define PART(i) (w->parts[i].n ? (k ? w->parts[i].g.data : w->parts[i].c.data) : NULL)
        x->data = PART(0);
        if (f == W_INT8) x->scale = PART(1);
        if (f != W_Q4) continue;
        struct q4_view *v = &x->q4;
        v->codes = PART(0), v->levels = PART(4), v->block = 64;
        if (nested) v->absmax_q = PART(2), v->nested_absmax = PART(3), v->nested_map = PART(5);
        else v->absmax = PART(1);
    }
    free(h);
    drop(&dense);
}
static inline void weight_drop(struct both_weight *w) { for (int i = 0; i < 6; i++) drop(&w->parts[i]); }
#endif
