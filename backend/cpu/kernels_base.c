/* backend/cpu/kernels_base.c - the loops for any machine, and the choice among the tables. */
#include <string.h>
#define KERNELS       cpu_kernels_base
#define KERNELS_NAME  "base"
#define LANES         4
#define VSET(x)       ((vec){(x), (x), (x), (x)})
#define VSQRT(x)      ((vec){sqrtf((x)[0]), sqrtf((x)[1]), sqrtf((x)[2]), sqrtf((x)[3])})
#if defined(__aarch64__) /* 32 registers and fused multiply-add */
#include <arm_neon.h>
#define MR            8
#define FMA(a, b, c)  __builtin_fmaf(a, b, c)
#define VFMA(a, b, c) (vec) vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b))
#else
#define MR            4
#define FMA(a, b, c)  ((a) * (b) + (c))
#define VFMA(a, b, c) ((a) * (b) + (c))
#endif
#include "backend/cpu/kernels_body.h"

const struct cpu_kernels *const *cpu_kernels_all(void) {
    static const struct cpu_kernels *list[4];
    int n = 0;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        list[n++] = &cpu_kernels_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) list[n++] = &cpu_kernels_avx2;
#endif
    list[n] = &cpu_kernels_base;
    return list;
}

const struct cpu_kernels *cpu_kernels_best(void) { return cpu_kernels_all()[0]; }
