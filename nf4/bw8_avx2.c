/* nf4/bw8_avx2.c - 8-bit AdamW for AVX2. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif
static inline float top(__m256 x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}
static inline void narrow(uint8_t *to, __m256i x) {
    __m128i y = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64((void *)to, _mm_packus_epi16(y, y));
}
#define STEP           bw8_adamw_avx2
#define LANES          8
#define VSQRT(x)       (vec) _mm256_sqrt_ps((__m256)(x))
#define VMAX(x, y)     (vec) _mm256_max_ps((__m256)(x), (__m256)(y))
#define VTOP(x)        top((__m256)(x))
#define VLOOK(t, i)    (ints) _mm256_i32gather_epi32((const void *)(t), (__m256i)(i), 4)
#define VWIDEN(from)   (ints) _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(from)))
#define VNARROW(to, x) narrow(to, (__m256i)(x))
#include "nf4/bw8_body.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#else
typedef int bw8_avx2_is_for_x86; /* an empty file is not C */
#endif
