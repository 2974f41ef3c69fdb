/* tests/ops/ops.h - what the tests of the ops share: guarded matrices, chunks of sequences, finite differences, and the loop
 * over instruction sets and thread counts.
 *
 * An output starts as NaN between guard bands, so that an element left out, read too early or written outside is found.
 * References are plain loops in double; gradients are central differences of those loops, never of the op itself.
 */
#ifndef QLORA_TEST_OPS_H
#define QLORA_TEST_OPS_H
#include "tests/test.h"
#include "backend/backend.h"
#include "backend/cpu/cpu_internal.h"
#include "base/half.h"
#include "base/sys.h"
#include <math.h>

enum { GUARD = 64 };
static const float GUARD_VALUE = -12345.5f;

static uint64_t seed_now = 1;
static inline float uniform(void) { /* (-1,1), exact in fp32 */
    seed_now = seed_now * 6364136223846793005ull + 1442695040888963407ull;
    return (float)((int64_t)(seed_now >> 40) - (1 << 23)) * 0x1p-23f;
}

static inline float *floats_new(int64_t n) { /* n floats of NaN between guards */
    float *p = malloc((size_t)(n + 2 * GUARD) * sizeof *p);
    if (!p) abort();
    for (int64_t i = 0; i < n + 2 * GUARD; i++) p[i] = i < GUARD || i >= n + GUARD ? GUARD_VALUE : NAN;
    return p + GUARD;
}
static inline void floats_free(float *p, int64_t n) { /* checks the guards */
    if (!p) return;
    for (int i = 0; i < GUARD; i++)
        CHECK(p[i - GUARD] == GUARD_VALUE && p[n + i] == GUARD_VALUE, "guard %d of %lld floats", i, (long long)n);
    free(p - GUARD);
}
static inline void floats_random(float *p, int64_t n, float size) {
    for (int64_t i = 0; i < n; i++) p[i] = size * uniform();
}

/* (rows, cols), rows `pad` apart beyond cols; the padding holds the guard value. */
static inline struct mat mat_new(int64_t rows, int64_t cols, int64_t pad) {
    struct mat m = {floats_new(rows * (cols + pad)), rows, cols, cols + pad, DT_F32};
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = cols; j < m.ld; j++) ((float *)m.data)[i * m.ld + j] = GUARD_VALUE;
    return m;
}
static inline float *at(const struct mat *m, int64_t i, int64_t j) { return (float *)m->data + i * m->ld + j; }
static inline struct mat mat_random(int64_t rows, int64_t cols, int64_t pad, float size) {
    struct mat m = mat_new(rows, cols, pad);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) *at(&m, i, j) = size * uniform();
    return m;
}
static inline void mat_free(struct mat *m) {
    if (!m->data) return;
    for (int64_t i = 0; i < m->rows; i++)
        for (int64_t j = m->cols; j < m->ld; j++) CHECK(*at(m, i, j) == GUARD_VALUE, "padding of row %lld", (long long)i);
    floats_free(m->data, m->rows * m->ld);
    m->data = NULL;
}
static inline struct mat mat_copy(struct mat m) {
    struct mat c = mat_new(m.rows, m.cols, m.ld - m.cols);
    for (int64_t i = 0; i < m.rows; i++) memcpy(at(&c, i, 0), at(&m, i, 0), (size_t)m.cols * 4);
    return c;
}
static inline struct mat mat_part(struct mat m, int64_t row, int64_t rows) {
    if (m.data) m.data = at(&m, row, 0), m.rows = rows;
    return m;
}
static inline double *doubles_of(struct mat m) { /* contiguous; free() */
    double *d = malloc((size_t)(m.rows * m.cols + 1) * sizeof *d);
    if (!d) abort();
    for (int64_t i = 0; i < m.rows; i++)
        for (int64_t j = 0; j < m.cols; j++) d[i * m.cols + j] = (double)*at(&m, i, j);
    return d;
}

/* 1 if equal to the bit, NaN included. */
static inline int mat_same(struct mat a, struct mat b) {
    for (int64_t i = 0; i < a.rows; i++)
        if (memcmp(at(&a, i, 0), at(&b, i, 0), (size_t)a.cols * 4)) return 0;
    return 1;
}
/* Largest |a - b| over the largest |b|: NaN in a gives NaN. */
static inline double mat_error(struct mat a, const double *b) {
    double worst = 0, top = 1e-30;
    for (int64_t i = 0; i < a.rows; i++)
        for (int64_t j = 0; j < a.cols; j++) {
            double d = fabs((double)*at(&a, i, j) - b[i * a.cols + j]);
            if (!(d <= worst)) worst = d;
            if (fabs(b[i * a.cols + j]) > top) top = fabs(b[i * a.cols + j]);
            if (isnan(worst)) return worst;
        }
    return worst / top;
}
#define NEAR(a, b, bound)                                                                                              \
    do {                                                                                                               \
        double error_ = mat_error(a, b);                                                                               \
        CHECK(error_ <= (bound), "%s: relative error %.2e, bound %.1e", #a, error_, (double)(bound));                  \
    } while (0)

/* Gradient `g` of the objective by its parameters x[n], against central differences of the objective in double. */
static inline double gradient_error(double (*objective)(void *), void *arg, double *x, struct mat g) {
    int64_t n = g.rows * g.cols;
    double *d = malloc((size_t)n * sizeof *d);
    if (!d) abort();
    for (int64_t i = 0; i < n; i++) {
        const double h = 1e-5, old = x[i]; /* third derivatives ~1: error 1e-10, rounding 1e-16 * f / h ~ 1e-10 */
        x[i] = old + h;
        double up = objective(arg);
        x[i] = old - h;
        d[i] = (up - objective(arg)) / (2 * h);
        x[i] = old;
    }
    double error = mat_error(g, d);
    free(d);
    return error;
}
#define GRADIENT(objective, arg, x, g, bound)                                                                          \
    do {                                                                                                               \
        double error_ = gradient_error(objective, arg, x, g);                                                          \
        CHECK(error_ <= (bound), "gradient %s: relative error %.2e, bound %.1e", #g, error_, (double)(bound));         \
    } while (0)

/* ---- chunks ---- */

struct chunk_of { struct rows rows; int32_t *data; };

/* Sequences of the given lengths (0 ends the list), one document each; every `document`-th row starts a new one if > 0. */
static inline struct chunk_of chunk_new(const int *length, int document) {
    struct chunk_of c = {{.token0 = 1000}, NULL};
    int n = 0;
    for (; length[n]; n++) c.rows.N += length[n];
    int64_t N = c.rows.N;
    int32_t *p = c.data = malloc((size_t)(3 * N + n + 1) * sizeof *p);
    if (!p) abort();
    c.rows.n_seqs = n;
    c.rows.position = p, c.rows.first = p + N, c.rows.offset = p + 2 * N, c.rows.seq_start = p + 3 * N;
    int32_t t = 0, first = 0;
    for (int s = 0; s < n; s++) {
        p[3 * N + s] = t;
        for (int i = 0; i < length[s]; i++, t++) {
            if (!i || (document && i % document == 0)) first = t;
            p[t] = i, p[N + t] = first, p[2 * N + t] = i;
        }
    }
    p[3 * N + n] = t;
    return c;
}
/* Sequence s of c alone, as a chunk of its own. */
static inline struct chunk_of chunk_part(const struct chunk_of *c, int s) {
    int length[] = {c->rows.seq_start[s + 1] - c->rows.seq_start[s], 0}, t0 = c->rows.seq_start[s];
    struct chunk_of part = chunk_new(length, 0);
    part.rows.token0 = c->rows.token0 + t0;
    for (int i = 0; i < length[0]; i++) {
        part.data[i] = c->rows.position[t0 + i];
        part.data[length[0] + i] = c->rows.first[t0 + i] - t0;
    }
    return part;
}
static inline void chunk_free(struct chunk_of *c) { free(c->data); }

/* ---- backends ---- */

static inline struct backend *backend_for(const struct cpu_kernels *k, int threads, int64_t rows, int64_t width) {
    struct err e = {0};
    struct backend *b = backend_cpu_with(k, threads, &e);
    struct backend_limits l = {.rows = rows, .sequence = rows, .D = width, .F = width, .H = 8, .K = 128, .V = width, .R = 64,
                               .loss_slice = 96, .trains_weights = 1};
    if (!b || b->reserve(b->self, &l, &e)) fprintf(stderr, "%s\n", e.text), abort();
    return b;
}
/* for every instruction set of this machine: */
#define FOR_KERNELS(k) for (const struct cpu_kernels *const *k = cpu_kernels_all(); *k; k++)
#endif
