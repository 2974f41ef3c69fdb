/* backend/cpu/kernels_body.h - the loops of kernels.h, included once per instruction set by kernels_*.c.
 *
 * The includer defines
 *   KERNELS       name of the table              MR, LANES   panel rows; floats in a vector (a right panel has 2 vectors)
 *   FMA(a,b,c)    a*b + c of floats              VFMA(a,b,c) the same of vectors, VSET(x) all lanes = x
 *   VSQRT(x)      square roots
 * and, where it helps, TRANSPOSE8. Loops marked `omp simd` are vectorised by the compiler.
 */
#ifndef __clang__ /* these change no result: -O2 leaves loops alone, and flags and errno are not read */
#pragma GCC optimize("O3", "no-trapping-math", "no-math-errno")
#endif
#include "backend/cpu/kernels.h"
#include "base/half.h"
#include "base/rng.h"
#include <math.h>

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#pragma clang diagnostic ignored "-Wpass-failed" /* unoptimised builds do not vectorise */
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define SIMD            _Pragma("omp simd")
#define SIMD_SUM(v)     _Pragma(SIMD_TEXT(omp simd reduction(+ : v)))
#define SIMD_TEXT(text) #text
#define ALWAYS_INLINE   static inline __attribute__((always_inline))

enum { NR = 2 * LANES };
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float vec_any __attribute__((vector_size(4 * LANES), aligned(4))); /* unaligned */

/* ---- matrix product ---- */

/* c(m,n) (=|+=) panel a (kc,MR) times panel b (kc,NR). m is constant after inlining: the sums live in registers. */
ALWAYS_INLINE void micro(const int m, int64_t kc, const float *a, const float *b, float *c, int64_t ldc, int64_t n,
                         int add) {
    vec sum[MR][2] = {0};
    UNROLL for (int i = 0; i < m; i++) __builtin_prefetch(c + i * ldc);
    for (int64_t k = 0; k < kc; k++, a += MR, b += NR) {
        vec b0 = *(const vec *)(const void *)b, b1 = *(const vec *)(const void *)(b + LANES);
        UNROLL for (int i = 0; i < m; i++) {
            vec x = VSET(a[i]);
            sum[i][0] = VFMA(x, b0, sum[i][0]);
            sum[i][1] = VFMA(x, b1, sum[i][1]);
        }
    }
    if (n >= NR) {
        UNROLL for (int i = 0; i < m; i++) {
            vec_any *row = (vec_any *)(void *)(c + i * ldc);
            row[0] = add ? row[0] + sum[i][0] : sum[i][0];
            row[1] = add ? row[1] + sum[i][1] : sum[i][1];
        }
        return;
    }
    UNROLL for (int i = 0; i < m; i++) {
        const vec both[2] = {sum[i][0], sum[i][1]};
        const float *row = (const float *)both;
        for (int64_t j = 0; j < n; j++) c[i * ldc + j] = add ? c[i * ldc + j] + row[j] : row[j];
    }
}

/* One function for each number of rows: with m constant the sums live in registers. */
typedef void micro_fn(int64_t kc, const float *a, const float *b, float *c, int64_t ldc, int64_t n, int add);
#define MICRO(m)                                                                                                       \
    static __attribute__((noinline)) void micro_##m(int64_t kc, const float *a, const float *b, float *c, int64_t ldc,  \
                                                    int64_t n, int add) {                                              \
        micro(m, kc, a, b, c, ldc, n, add);                                                                            \
    }
MICRO(1) MICRO(2) MICRO(3) MICRO(4)
#if MR > 4
MICRO(5) MICRO(6)
#endif
#if MR > 6
MICRO(7) MICRO(8)
#endif
#if MR > 8
MICRO(9) MICRO(10) MICRO(11) MICRO(12)
#endif

static micro_fn *const micro_of[MR + 1] = {
    NULL, micro_1, micro_2, micro_3, micro_4,
#if MR > 4
    micro_5, micro_6,
#endif
#if MR > 6
    micro_7, micro_8,
#endif
#if MR > 8
    micro_9, micro_10, micro_11, micro_12,
#endif
};

static void tile(int64_t kc, const float *a, const float *b, float *c, int64_t ldc, int64_t m, int64_t n, int add) {
    for (int64_t j = 0; j < n; j += NR, b += kc * NR)
        for (int64_t i = 0; i < m; i += MR)
            micro_of[m - i < MR ? m - i : MR](kc, a + i * kc, b, c + i * ldc + j, ldc, n - j, add);
}

#ifdef TRANSPOSE8
typedef float vec8 __attribute__((vector_size(32)));
typedef float vec8_any __attribute__((vector_size(32), aligned(4)));
/* out[k*width + i] = row[i][k] for 8 rows and 8 k. */
ALWAYS_INLINE void transpose8(const float *const *row, int64_t k, int width, float *out) {
    vec8 r[8], s[8];
    UNROLL for (int i = 0; i < 8; i++) r[i] = *(const vec8_any *)(const void *)(row[i] + k);
    UNROLL for (int i = 0; i < 8; i += 2) {
        s[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        s[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    UNROLL for (int i = 0; i < 8; i += 4) {
        r[i] = __builtin_shufflevector(s[i], s[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
        r[i + 1] = __builtin_shufflevector(s[i], s[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        r[i + 2] = __builtin_shufflevector(s[i + 1], s[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
        r[i + 3] = __builtin_shufflevector(s[i + 1], s[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        s[i] = __builtin_shufflevector(r[i], r[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        s[i + 4] = __builtin_shufflevector(r[i], r[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
    UNROLL for (int i = 0; i < 8; i++) *(vec8_any *)(void *)(out + i * width) = s[i];
}
#endif

static void pack_across(const float *const *row, int width, int64_t kc, float *out) {
    int64_t k = 0;
#ifdef TRANSPOSE8
    /* Groups of 8 rows, the last one first: where width is no multiple of 8 it repeats a row, and its surplus lanes are
     * overwritten by what belongs there. The last k are left to the loop below: nothing is written behind the panel. */
    for (; k + 8 < kc; k += 8)
        for (int i = (width - 1) / 8 * 8; i >= 0; i -= 8) {
            const float *group[8];
            for (int j = 0; j < 8; j++) group[j] = row[i + j < width ? i + j : width - 1];
            transpose8(group, k, width, out + k * width + i);
        }
#endif
    for (; k < kc; k++)
        for (int i = 0; i < width; i++) out[k * width + i] = row[i][k];
}

ALWAYS_INLINE void along(const float *row, int64_t n, const int width, int64_t stride, float *out) {
    int64_t j = 0;
    for (; j + width <= n; j += width, out += stride) memcpy(out, row + j, (size_t)width * sizeof *out);
    if (j < n)
        for (int i = 0; i < width; i++) out[i] = j + i < n ? row[j + i] : 0;
}

static void pack_along(const float *row, int64_t n, int width, int64_t stride, float *out) {
    if (width == MR) along(row, n, MR, stride, out);
    else along(row, n, NR, stride, out);
}

/* ---- bf16 ---- */

ALWAYS_INLINE float round_bf16(float x) { /* f32_to_bf16 and back, in a form that vectorises */
    uint32_t u = f32_bits(x), rounded = u + 0x7fffu + ((u >> 16) & 1);
    return f32_from_bits(((u & 0x7fffffffu) > 0x7f800000u ? u | 0x400000u : rounded) & 0xffff0000u);
}

static void from_bf16(const uint16_t *x, int64_t n, float *out) {
    SIMD for (int64_t i = 0; i < n; i++) out[i] = f32_from_bits((uint32_t)x[i] << 16);
}

static void to_bf16(const float *x, int64_t n, uint16_t *out) {
    SIMD for (int64_t i = 0; i < n; i++) out[i] = (uint16_t)(f32_bits(round_bf16(x[i])) >> 16);
}

/* ---- rows ---- */

static double dot(const float *x, const float *y, int64_t n) {
    double s = 0;
    SIMD_SUM(s) for (int64_t i = 0; i < n; i++) s += (double)x[i] * (double)y[i];
    return s;
}

static double dot3(const float *x, const float *y, const float *z, int64_t n) {
    double s = 0;
    SIMD_SUM(s) for (int64_t i = 0; i < n; i++) s += (double)(x[i] * y[i]) * (double)z[i];
    return s;
}

static void add_row(const float *x, float *y, int64_t n) {
    SIMD for (int64_t i = 0; i < n; i++) y[i] += x[i];
}

static void scale_row(float a, float *x, int64_t n) {
    SIMD for (int64_t i = 0; i < n; i++) x[i] *= a;
}

static void add_double(float a, const float *x, const float *y, double *sum, int64_t n) {
    if (y) {
        SIMD for (int64_t i = 0; i < n; i++) sum[i] += (double)(a * x[i]) * (double)y[i];
    } else {
        SIMD for (int64_t i = 0; i < n; i++) sum[i] += (double)(a * x[i]);
    }
}

static void norm(const float *x, const float *g, float r, float *y, int64_t n) {
    SIMD for (int64_t i = 0; i < n; i++) y[i] = g[i] * (x[i] * r);
}

static void norm_bwd(const float *x, const float *g, const float *dy, float r, float c, float *dx, int add, int64_t n) {
    if (add) {
        SIMD for (int64_t i = 0; i < n; i++) dx[i] += r * (dy[i] * g[i]) - x[i] * c;
    } else {
        SIMD for (int64_t i = 0; i < n; i++) dx[i] = r * (dy[i] * g[i]) - x[i] * c;
    }
}

/* e^x: x = k ln2 + r, |r| <= ln2 / 2, Taylor to r^7 (the rest is 5e-9), times 2^k. Below 2^-126 the result is 0, above the
 * largest float it is held there, NaN stays NaN. */
ALWAYS_INLINE float exp_fast(float x) {
    const float low = -87.33654f, high = 88.37f, magic = 0x1.8p23f; /* adding magic rounds to an integer */
    float y = x > high ? high : x < low ? low : x;
    float t = FMA(y, 0x1.715476p+0f, magic), k = t - magic;
    float r = FMA(k, -0x1.62e400p-1f, y); /* ln2 in two parts: k times the first is exact */
    r = FMA(k, -0x1.7f7d1cp-20f, r);
    float p = FMA(r, 1 / 5040.f, 1 / 720.f);
    p = FMA(p, r, 1 / 120.f);
    p = FMA(p, r, 1 / 24.f);
    p = FMA(p, r, 1 / 6.f);
    p = FMA(p, r, 0.5f);
    p = FMA(p, r, 1.f);
    p = FMA(p, r, 1.f);
    float power = f32_from_bits((f32_bits(t) - f32_bits(magic) + 127) << 23);
    return x < low ? 0.f : p * power;
}

ALWAYS_INLINE float sigmoid(float u) {
    float e = exp_fast(-fabsf(u)), s = 1.f / (1.f + e); /* no overflow on either side */
    return u >= 0 ? s : e * s;
}

static void gate(const float *g, const float *u, float *y, int64_t n) {
    SIMD for (int64_t i = 0; i < n; i++) y[i] = g[i] * (u[i] * sigmoid(u[i]));
}

static void gate_bwd(const float *g, const float *u, const float *dy, float *dg, float *du, float *y, int64_t n) {
    enum { STEP = 256 }; /* outputs may be the inputs: computed aside, then stored */
    float ty[STEP], tg[STEP], tu[STEP];
    for (int64_t i = 0; i < n; i += STEP) {
        int64_t m = n - i < STEP ? n - i : STEP;
        SIMD for (int64_t j = 0; j < m; j++) {
            float s = sigmoid(u[i + j]), silu = u[i + j] * s;
            ty[j] = g[i + j] * silu;
            tg[j] = dy[i + j] * silu;
            tu[j] = dy[i + j] * g[i + j] * (s * (1.f + u[i + j] * (1.f - s)));
        }
        if (y) memcpy(y + i, ty, (size_t)m * sizeof *y);
        if (dg) memcpy(dg + i, tg, (size_t)m * sizeof *dg);
        memcpy(du + i, tu, (size_t)m * sizeof *du);
    }
}

static void rotate(float *x, const float *cosine, const float *sine, int64_t half) {
    SIMD for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cosine[i] - b * sine[i];
        x[i + half] = b * cosine[i] + a * sine[i];
    }
}

static float max_row(const float *x, int64_t n) { /* a NaN in the row is found by exp_sum */
    float m = -INFINITY;
    _Pragma("omp simd reduction(max : m)") for (int64_t i = 0; i < n; i++) m = x[i] > m ? x[i] : m;
    return m;
}

static double exp_sum(float *x, float m, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i += 256) { /* fp32 lanes within 256, double across */
        int64_t end = n - i < 256 ? n : i + 256;
        float s = 0;
        SIMD_SUM(s) for (int64_t j = i; j < end; j++) {
            x[j] = exp_fast(x[j] - m);
            s += x[j];
        }
        sum += (double)s;
    }
    return sum;
}

static void score_bwd(float *p, float *ds, float lse, float delta, float scale, int64_t n) {
    SIMD for (int64_t i = 0; i < n; i++) {
        p[i] = exp_fast(p[i] - lse);
        ds[i] = p[i] * (ds[i] - delta) * scale;
    }
}

static void drop(const struct dropout *d, uint32_t token, int64_t first, const float *x, float *out, int add, int64_t n) {
    enum { GROUPS = 32, WIDE = 8 * GROUPS }; /* counters at a time, eight features each */
    uint32_t limit = dropout_limit(d->p), key0 = (uint32_t)d->seed;
    uint32_t key1 = (uint32_t)(d->seed >> 32) ^ d->layer;
    float kept = dropout_kept(d->p);
    for (int64_t at = first & ~(int64_t)7; at < first + n; at += WIDE) {
        union { uint32_t word[WIDE / 2]; uint16_t of[WIDE]; } bits; /* little-endian */
        uint32_t base = (uint32_t)(at / 8);
        SIMD for (int c = 0; c < GROUPS; c++) {
            uint32_t counter[4] = {base + (uint32_t)c, token, d->site, d->step}, key[2] = {key0, key1}, w[4];
            philox4x32(counter, key, w);
            bits.word[4 * c] = w[0], bits.word[4 * c + 1] = w[1], bits.word[4 * c + 2] = w[2], bits.word[4 * c + 3] = w[3];
        }
        int64_t begin = first > at ? first - at : 0, end = first + n - at < WIDE ? first + n - at : WIDE;
        const float *from = x + (at - first);
        float *to = out + (at - first);
        if (add) {
            SIMD for (int64_t i = begin; i < end; i++) to[i] += bits.of[i] >= limit ? from[i] / kept : 0.f;
        } else {
            SIMD for (int64_t i = begin; i < end; i++) to[i] = bits.of[i] >= limit ? from[i] / kept : 0.f;
        }
    }
}

/* Asks for the next step's p, m and v while this one is worked on: they come from memory and go there, and hardware does not run ahead
 * far enough in so many streams. */
static void adam_row(float *p, const float *g, float *m, float *v, const struct adam_step *s, int64_t n) {
    enum { STEP = 16 * LANES, LINE = 16 };
    vec root[STEP / LANES];
    float *denominator = (float *)root;
    for (int64_t i = 0; i < n; i += STEP) {
        int64_t count = n - i < STEP ? n - i : STEP;
        for (int64_t j = i + STEP; j < i + 2 * STEP; j += LINE) __builtin_prefetch(p + j), __builtin_prefetch(m + j), __builtin_prefetch(v + j);
        SIMD for (int64_t j = 0; j < count; j++) {
            float grad = g[i + j] * s->grad_scale;
            m[i + j] = s->beta1 * m[i + j] + s->rest1 * grad;
            v[i + j] = denominator[j] = s->beta2 * v[i + j] + s->rest2 * grad * grad;
        }
        for (int64_t j = count; j % LANES; j++) denominator[j] = 0;
        for (int64_t j = 0; j < count; j += LANES) root[j / LANES] = VSQRT(root[j / LANES]);
        SIMD for (int64_t j = 0; j < count; j++)
            p[i + j] = p[i + j] * s->decay - s->rate * m[i + j] / (denominator[j] * s->v_scale + s->eps);
    }
}

const struct cpu_kernels KERNELS = {
    .name = KERNELS_NAME, .mr = MR, .nr = NR,
    .tile = tile, .pack_across = pack_across, .pack_along = pack_along,
    .from_bf16 = from_bf16, .to_bf16 = to_bf16,
    .dot = dot, .dot3 = dot3, .add = add_row, .scale = scale_row, .add_double = add_double,
    .norm = norm, .norm_bwd = norm_bwd, .gate = gate, .gate_bwd = gate_bwd, .rotate = rotate,
    .max = max_row, .exp_sum = exp_sum, .score_bwd = score_bwd, .drop = drop, .adam = adam_row,
};
