/* backend/cpu/kernels_avx2.c - the loops for AVX2 with FMA: 6x16 sums fill 12 of the 16 registers. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define KERNELS       cpu_kernels_avx2
#define KERNELS_NAME  "avx2"
#define MR            6
#define LANES         8
#define TRANSPOSE8    1
#define FMA(a, b, c)  __builtin_fmaf(a, b, c)
#define VFMA(a, b, c) (vec) _mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c))
#define VSET(x)       (vec) _mm256_set1_ps(x)
#define VSQRT(x)      (vec) _mm256_sqrt_ps((__m256)(x))
#include "backend/cpu/kernels_body.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#else
typedef int kernels_avx2_are_for_x86; /* an empty file is not C */
#endif
