/* tests/ops/shapes.h - what test_shapes.c needs besides ops.h: the backends that it runs on, their memory with guards, shapes
 * drawn from a fixed seed, and errors in units of what was added up.
 *
 * Numbers are bf16 values, so that backends of fp32 and of bf16 activations see the same ones. A reference is a loop in double
 * that keeps for each result its terms' size, the root of the sum of their squares: rounding errors of a sum are of that
 * size, however much of it cancels. An error is |result - reference| / max(|reference|, size), the worst of all elements.
 */
#ifndef QLORA_TEST_SHAPES_H
#define QLORA_TEST_SHAPES_H
#include "tests/ops/ops.h"
#include "base/rng.h"

/* ---- backends ---- */

struct side { struct backend *b; const char *name; enum dtype type; int joins, unified; };
enum { SIDES = 8 };
static struct side sides[SIDES];
static int n_sides;
static const struct side *on; /* where the memory below is taken */
#define EACH_SIDE for (on = sides; on < sides + n_sides; side_done(), on++)

static const struct backend_limits most = {.rows = 512, .sequence = 512, .D = 2048, .F = 2048, .H = 8, .K = 128, .V = 5003, .R = 64,
                                           .loss_slice = 50, .trains_weights = 1, .head_f32 = 1, .drops = 1};
static inline void side_add(struct backend *b, const char *name) {
    struct backend_info i;
    struct err e = {0};
    if (!b || b->reserve(b->self, &most, &e)) fprintf(stderr, "%s: %s\n", name, e.text), abort();
    b->info(b->self, &i);
    sides[n_sides++] = (struct side){b, name, i.activation, i.joins, i.unified};
}
/* All instruction sets of this CPU; the card when QLORA_PLUGIN names a backend that opens, or QLORA_BACKEND is cuda. */
static inline void sides_open(void) {
    const char *plugin = getenv("QLORA_PLUGIN"), *name = getenv("QLORA_BACKEND");
    struct err e = {0};
    if (n_sides) return;
    FOR_KERNELS(k) side_add(backend_cpu_with(*k, 1, &e), (*k)->name);
    if (!plugin && (!name || strcmp(name, "cuda"))) return;
    struct backend *card = backend_open(plugin ? plugin : "cuda", &e);
    if (card) side_add(card, "card");
    else printf("  no card: %s\n", e.text);
}

/* ---- memory: of the host until shape_done, of the side until side_done ---- */

enum { KEPT = 128 };
static void *kept[KEPT];
static int n_kept;
static inline void *room(size_t bytes) {
    if (n_kept == KEPT || !(kept[n_kept] = calloc(1, bytes + 1))) abort();
    return kept[n_kept++];
}
static inline void shape_done(void) {
    while (n_kept) free(kept[--n_kept]);
}

static struct held { char *base; size_t bytes; struct mat m; } held[KEPT]; /* m: what lies between guards, or no data */
static int n_held;
static int64_t gap, skew; /* of the shape: columns behind the rows of activations; elements between an even address and the first */

static inline void element_set(void *image, enum dtype type, int64_t i, double x) {
    if (type == DT_BF16) ((uint16_t *)image)[i] = f32_to_bf16((float)x);
    else ((float *)image)[i] = (float)x;
}
static inline double element(const void *image, enum dtype type, int64_t i) {
    return (double)(type == DT_BF16 ? bf16_to_f32(((const uint16_t *)image)[i]) : ((const float *)image)[i]);
}
static inline int guarded(const void *image, enum dtype type, int64_t i) {
    return type == DT_BF16 ? ((const uint16_t *)image)[i] == f32_to_bf16(GUARD_VALUE) : ((const float *)image)[i] == GUARD_VALUE;
}

/* A copy of any bytes. */
static inline void *bytes_on(const void *x, size_t bytes) {
    struct held *h = &held[n_held++];
    struct err e = {0};
    if (n_held > KEPT) abort();
    *h = (struct held){.bytes = bytes};
    if (!(h->base = on->b->alloc(on->b->self, AT_DEVICE, bytes + 1))) fprintf(stderr, "%s: out of memory\n", on->name), abort();
    on->b->put(on->b->self, h->base, x, bytes, Q_COMPUTE);
    if (on->b->sync(on->b->self, &e)) fprintf(stderr, "%s: %s\n", on->name, e.text), abort();
    return h->base;
}
static inline int32_t *ints_on(const int32_t *x, int64_t n) { return bytes_on(x, (size_t)n * 4); }

/* x (rows, cols), or NaN; `pad` columns behind each row, `off` elements before the first, guards around and between. */
static inline struct mat put(const double *x, int64_t rows, int64_t cols, enum dtype type, int64_t pad, int64_t off) {
    const int64_t ld = cols + pad, before = GUARD + off, n = before + rows * ld + GUARD;
    const size_t size = dtype_bytes(type);
    void *image = malloc((size_t)n * size);
    if (!image) abort();
    for (int64_t i = 0; i < n; i++) {
        const int64_t k = i - before, inside = k >= 0 && k < rows * ld && k % ld < cols;
        element_set(image, type, i, !inside ? (double)GUARD_VALUE : x ? x[k / ld * cols + k % ld] : NAN);
    }
    char *base = bytes_on(image, (size_t)n * size);
    free(image);
    return held[n_held - 1].m = (struct mat){base + (size_t)before * size, rows, cols, ld, type};
}
static inline struct mat activation(const double *x, int64_t rows, int64_t cols) { return put(x, rows, cols, on->type, gap, skew); }
static inline struct mat plain(const double *x, int64_t rows, int64_t cols, enum dtype type) {
    return put(x, rows, cols, type, 0, 0);
}
static inline float *floats_on(const double *x, int64_t n) { return plain(x, 1, n, DT_F32).data; }
static inline struct mat columns_of(struct mat m, int64_t from, int64_t cols) {
    m.data = (char *)m.data + (size_t)from * dtype_bytes(m.type), m.cols = cols;
    return m;
}
static inline struct mat row_of_floats(const float *p, int64_t n) { return (struct mat){(void *)(uintptr_t)p, 1, n, n, DT_F32}; }

/* What m holds, contiguous; free(). */
static inline double *fetch(const struct mat *m) {
    const size_t size = dtype_bytes(m->type), bytes = (size_t)((m->rows - 1) * m->ld + m->cols) * size;
    void *image = malloc(bytes + 1);
    double *x = malloc((size_t)(m->rows * m->cols + 1) * sizeof *x);
    if (!image || !x) abort();
    on->b->get(on->b->self, image, m->data, bytes, Q_COMPUTE);
    on->b->sync(on->b->self, NULL);
    for (int64_t i = 0; i < m->rows * m->cols; i++) x[i] = element(image, m->type, i / m->cols * m->ld + i % m->cols);
    free(image);
    return x;
}

static char where[160]; /* the shape, for messages */

/* Nothing was written between and around the rows; a failure of the side is the test's. */
static inline void side_done(void) {
    struct err e = {0};
    CHECK(!on->b->sync(on->b->self, &e), "%s, %s: %s", on->name, where, e.text);
    for (; n_held; n_held--) {
        struct held *h = &held[n_held - 1];
        const enum dtype type = h->m.type;
        if (h->m.data) {
            const size_t size = dtype_bytes(type);
            const int64_t n = (int64_t)(h->bytes / size), before = ((char *)h->m.data - h->base) / (int64_t)size;
            void *image = malloc(h->bytes);
            if (!image) abort();
            on->b->get(on->b->self, image, h->base, h->bytes, Q_COMPUTE);
            on->b->sync(on->b->self, NULL);
            for (int64_t i = 0; i < n; i++) {
                const int64_t k = i - before, inside = k >= 0 && k < h->m.rows * h->m.ld && k % h->m.ld < h->m.cols;
                CHECK(inside || guarded(image, type, i), "%s, %s: element %lld outside of (%lld,%lld) ld %lld", on->name, where,
                      (long long)k, (long long)h->m.rows, (long long)h->m.cols, (long long)h->m.ld);
            }
            free(image);
        }
        on->b->release(on->b->self, AT_DEVICE, h->base);
        *h = (struct held){0};
    }
}

/* ---- numbers ---- */

static inline int64_t below(int64_t n) { return (int64_t)(((double)uniform() + 1) / 2 * (double)n); }
static inline double bf16_value(double x) { return (double)bf16_to_f32(f32_to_bf16((float)x)); }
static inline double *draw(int64_t n, double size) {
    double *x = room((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = bf16_value(size * (double)uniform());
    return x;
}
static inline double *draw32(int64_t n, double size) { /* for what is fp32 everywhere */
    double *x = room((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = (double)((float)size * uniform());
    return x;
}

struct value { double v, square; }; /* a result and the squares of its terms */
static inline struct value *values(int64_t n, const double *start) { /* what += adds to, or 0 */
    struct value *x = room((size_t)n * sizeof *x);
    for (int64_t i = 0; start && i < n; i++) x[i] = (struct value){start[i], start[i] * start[i]};
    return x;
}
static inline void add(struct value *s, double term) { s->v += term, s->square += term * term; }
static inline double size_of(struct value a) { return fmax(fabs(a.v), sqrt(a.square)); }
static inline void add_times(struct value *s, struct value a, double factor) { /* a term that is itself a sum */
    s->v += a.v * factor, s->square += size_of(a) * factor * (size_of(a) * factor);
}
static inline struct value one_term(double v) { return (struct value){v, v * v}; }
static inline struct value times(struct value a, struct value b) {
    return (struct value){a.v * b.v, size_of(a) * size_of(a) * size_of(b) * size_of(b)};
}
static inline double error_of(double x, struct value want) {
    const double d = fabs(x - want.v), size = size_of(want);
    return d > 0 ? d / size : d; /* where all is 0, so must the result be; NaN stays */
}

/* ---- shapes ---- */

enum { SHAPES = 72, EDGES = 13 };
static const int edges[EDGES] = {1, 2, 7, 31, 32, 33, 63, 64, 65, 127, 128, 129, 3}; /* around tiles of 32, 64 and 128 */

struct shape {
    int i;             /* of SHAPES */
    struct chunk_of c; /* its token rows */
    int64_t N, a, b;   /* rows and two widths */
};
/* A width: each edge in turn where `turn` says so, else any up to 300, small ones more often. */
static inline int64_t width(int turn, int i) {
    if (i / EDGES == turn) return edges[i % EDGES];
    int64_t most_of = below(3) ? 80 : 300;
    return below(2) ? edges[below(9)] : 1 + below(most_of);
}
static inline struct shape shape_of(int i) {
    int length[8] = {0}, n = 1, document = 0;
    struct shape s = {.i = i};
    seed_now = 1000 + (uint64_t)i;
    for (int k = 0; k < 20; k++) uniform(); /* seeds so near begin alike */
    if (i < EDGES) length[0] = edges[i];
    else {
        n = 2 + (int)below(5);
        for (int k = 0; k < n; k++) length[k] = 1 + (int)below(below(3) ? 20 : 70);
        if (i % 5 == 0) n = 1, length[0] += 60, length[1] = 0;
        if (i % 3 == 0) document = 1 + (int)below(40);
    }
    s.a = width(1, i), s.b = width(2, i);
    if (i >= SHAPES - 3)
        s.a = (int64_t[]){2048, 1024, 1032}[i - SHAPES + 3], length[1] = 0, length[0] = 5 + i % 7; /* as models have */
    s.c = chunk_new(length, document);
    s.N = s.c.rows.N;
    gap = i % 2 ? (int64_t[]){1, 8, 3, 64}[i / 2 % 4] : 0, skew = i % 4 == 3 ? 1 + below(7) : 0;
    snprintf(where, sizeof where, "shape %d: %lld rows in %d sequences, %lld and %lld wide, gap %lld, skew %lld", i, (long long)s.N,
             s.c.rows.n_seqs, (long long)s.a, (long long)s.b, (long long)gap, (long long)skew);
    return s;
}
static inline struct rows rows_on(const struct shape *s) {
    struct rows r = s->c.rows;
    r.position = ints_on(r.position, s->N), r.first = ints_on(r.first, s->N), r.offset = ints_on(r.offset, s->N);
    return r;
}
static inline int last_of_sequence(const struct shape *s, int64_t t) { return t + 1 == s->N || s->c.rows.offset[t + 1] == 0; }

static inline void each_shape(void (*test)(const struct shape *s)) {
    sides_open();
    for (int i = 0; i < SHAPES; i++) {
        struct shape s = shape_of(i);
        test(&s);
        chunk_free(&s.c), shape_done();
    }
}
#endif
