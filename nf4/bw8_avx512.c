/* nf4/bw8_avx512.c - 8-bit AdamW for AVX-512. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC target("avx512f")
#endif
#define STEP           bw8_adamw_avx512
#define LANES          16
#define VSQRT(x)       (vec) _mm512_sqrt_ps((__m512)(x))
#define VMAX(x, y)     (vec) _mm512_max_ps((__m512)(x), (__m512)(y))
#define VTOP(x)        _mm512_reduce_max_ps((__m512)(x))
#define VLOOK(t, i)    (ints) _mm512_i32gather_epi32((__m512i)(i), (const void *)(t), 4)
#define VWIDEN(from)   (ints) _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(from)))
#define VNARROW(to, x) _mm_storeu_si128((void *)(to), _mm512_cvtepi32_epi8((__m512i)(x)))
#include "nf4/bw8_body.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#else
typedef int bw8_avx512_is_for_x86; /* an empty file is not C */
#endif
