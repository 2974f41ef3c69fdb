/* backend/cpu/kernels.h - the inner loops of the CPU backend, one table per instruction set.
 *
 * Each kernels_*.c compiles kernels_body.h for its instruction set; cpu_kernels_best picks the widest that the machine has.
 * The loops work on plain fp32 rows and know nothing of tensors. Results depend on the instruction set only, never on
 * where a row lies in memory, how work was cut into tiles, or the number of threads.
 */
#ifndef QLORA_CPU_KERNELS_H
#define QLORA_CPU_KERNELS_H
#include "backend/backend.h"

enum { MR_MAX = 12, NR_MAX = 32 };

struct adam_step { /* constants of one tensor's step */
    float grad_scale, beta1, beta2, eps;
    float rest1, rest2; /* 1 - beta */
    float decay;     /* 1 - lr wd */
    float rate;      /* lr / (1 - beta1^t) */
    float v_scale;   /* 1 / sqrt(1 - beta2^t) */
};

struct cpu_kernels {
    const char *name;
    int mr, nr; /* rows in a packed panel of the left operand, columns in one of the right */

    /* Product of packed panels: c[i,j] (=|+=) Σ_k a(i,k) b(k,j), one chain of multiply-adds in order of k, so that the bits
     * of a result do not depend on its place in the tile. a: [ceil(m/mr)][kc][mr], b: [ceil(n/nr)][kc][nr], 64-byte aligned. */
    void (*tile)(int64_t kc, const float *a, const float *b, float *c, int64_t ldc, int64_t m, int64_t n, int add);
    /* One panel of rows: out[k*width + i] = row[i][k], k < kc, for `width` (mr or nr) row pointers. */
    void (*pack_across)(const float *const *row, int width, int64_t kc, float *out);
    /* One k of all panels: out[p*stride + j] = row[p*width + j], zeros behind row[n-1]. */
    void (*pack_along)(const float *row, int64_t n, int width, int64_t stride, float *out);

    void (*from_bf16)(const uint16_t *x, int64_t n, float *out);
    void (*to_bf16)(const float *x, int64_t n, uint16_t *out);

    double (*dot)(const float *x, const float *y, int64_t n); /* in double */
    double (*dot3)(const float *x, const float *y, const float *z, int64_t n); /* Σ x y z */
    void (*add)(const float *x, float *y, int64_t n);   /* y += x */
    void (*scale)(float a, float *x, int64_t n);        /* x *= a */
    void (*add_double)(float a, const float *x, const float *y, double *sum, int64_t n); /* sum += a x y; y NULL: a x */
    void (*norm)(const float *x, const float *g, float r, float *y, int64_t n);          /* y = g (x r) */
    /* dx (=|+=) r dy g - x c */
    void (*norm_bwd)(const float *x, const float *g, const float *dy, float r, float c, float *dx, int add, int64_t n);
    void (*gate)(const float *g, const float *u, float *y, int64_t n); /* y = g silu(u) */
    void (*gate_bwd)(const float *g, const float *u, const float *dy, float *dg, float *du, float *y, int64_t n);
    void (*rotate)(float *x, const float *cosine, const float *sine, int64_t half); /* rope of one vector of 2 half */
    float (*max)(const float *x, int64_t n);
    double (*exp_sum)(float *x, float m, int64_t n); /* x = exp(x - m); Σ x */
    /* Attention: p = exp(p - lse), ds = p (ds - delta) scale. */
    void (*score_bwd)(float *p, float *ds, float lse, float delta, float scale, int64_t n);
    /* out (=|+=) x / (1-p) where the mask keeps the element, else 0; features first .. first+n-1 of a token. */
    void (*drop)(const struct dropout *d, uint32_t token, int64_t first, const float *x, float *out, int add, int64_t n);
    void (*adam)(float *p, const float *g, float *m, float *v, const struct adam_step *s, int64_t n);
};

const struct cpu_kernels *cpu_kernels_best(void);
/* The tables this machine can run, widest first, NULL at the end: tests go through all of them. */
const struct cpu_kernels *const *cpu_kernels_all(void);

extern const struct cpu_kernels cpu_kernels_base;
#if defined(__x86_64__)
extern const struct cpu_kernels cpu_kernels_avx2, cpu_kernels_avx512;
#endif
#endif
