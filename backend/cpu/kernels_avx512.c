/* backend/cpu/kernels_avx512.c - the loops for AVX-512: 12x32 sums fill 24 of the 32 registers. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#endif
#define KERNELS       cpu_kernels_avx512
#define KERNELS_NAME  "avx512"
#define MR            12
#define LANES         16
#define TRANSPOSE8    1
#define FMA(a, b, c)  __builtin_fmaf(a, b, c)
#define VFMA(a, b, c) (vec) _mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c))
#define VSET(x)       (vec) _mm512_set1_ps(x)
#define VSQRT(x)      (vec) _mm512_sqrt_ps((__m512)(x))
#include "backend/cpu/kernels_body.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#else
typedef int kernels_avx512_are_for_x86;
#endif
