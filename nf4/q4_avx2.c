/* nf4/q4_avx2.c - the vector paths of q4 for x86 with AVX2; same bits as q4.c, checked by
 * tests/unit/test_nf4.c. No fused multiply-add anywhere. Rates: bench/quantize.c.
 */
#include "nf4/nf4_internal.h"

#ifndef __x86_64__
int64_t nf4_encode_avx2(int block, const void *src, enum dtype from, int64_t blocks, uint8_t *codes,
                        float *absmax) {
    (void)block, (void)src, (void)from, (void)blocks, (void)codes, (void)absmax;
    return 0;
}
int64_t q4_decode_avx2(const struct q4_view *v, int64_t first_block, int64_t blocks, void *out,
                       enum dtype to) {
    (void)v, (void)first_block, (void)blocks, (void)out, (void)to;
    return 0;
}
#else
#include <immintrin.h>
#define AVX2   __attribute__((target("avx2")))
#define INLINE static inline __attribute__((always_inline, target("avx2")))

static int available(void) {
    return !nf4_portable && __builtin_cpu_supports("avx2");
}

/* ---- encode ---- */

/* 16 elements: 0-3 and 8-11 in lo, 4-7 and 12-15 in hi, as packs_epi32 wants them. */
struct pair {
    __m256 lo, hi;
};

INLINE struct pair load16(const void *src, enum dtype from, int64_t i) {
    const __m256i zero = _mm256_setzero_si256();
    if (from == DT_F32) {
        const float *x = (const float *)src + i;
        return (struct pair){
            _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(x)), _mm_loadu_ps(x + 8), 1),
            _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(x + 4)), _mm_loadu_ps(x + 12), 1)};
    }
    __m256i h = _mm256_loadu_si256((const void *)((const uint16_t *)src + i));
    if (from == DT_BF16)
        return (struct pair){_mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, h)),
                             _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, h))};
    /* fp16: sign, and the rest 13 bits up, an fp32 with an exponent 112 too low. Infinity, NaN become >=
     * 65536. */
    __m256i sign = _mm256_and_si256(h, _mm256_set1_epi16(-0x8000)), rest = _mm256_xor_si256(h, sign);
    __m256 up = _mm256_set1_ps(0x1p112f);
    __m256 lo = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_unpacklo_epi16(rest, zero), 13));
    __m256 hi = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_unpackhi_epi16(rest, zero), 13));
    return (struct pair){
        _mm256_or_ps(_mm256_mul_ps(lo, up), _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, sign))),
        _mm256_or_ps(_mm256_mul_ps(hi, up), _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, sign)))};
}

/* Largest magnitude, as fp32 bits: they order like the values, NaN above infinity above numbers. */
INLINE uint32_t largest(const void *src, enum dtype from, int64_t first, int n) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i m = _mm256_setzero_si256();
    for (int i = 0; i < n; i += 16) {
        struct pair x = load16(src, from, first + i);
        m = _mm256_max_epi32(m, _mm256_and_si256(_mm256_castps_si256(x.lo), magnitude));
        m = _mm256_max_epi32(m, _mm256_and_si256(_mm256_castps_si256(x.hi), magnitude));
    }
    __m128i h = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0x4e));
    h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(h);
}

#define ITEM(cut) cut,
static const float cut[15] = {NF4_CUTS(ITEM)};

/* Minus the codes of 8 values: a search down the tree of cuts; -s, the path so far, picks each lane's next
 * cut. */
INLINE __m256i minus_codes(__m256 x) {
    const __m256 tree4 = _mm256_setr_ps(cut[1], cut[13], cut[9], cut[5], cut[1], cut[13], cut[9], cut[5]);
    const __m256 tree8 = _mm256_setr_ps(cut[0], cut[14], cut[12], cut[10], cut[8], cut[6], cut[4], cut[2]);
    __m256 c = _mm256_cmp_ps(x, _mm256_set1_ps(cut[7]), _CMP_GT_OQ);
    __m256i s = _mm256_castps_si256(c);
    c = _mm256_cmp_ps(x, _mm256_blendv_ps(_mm256_set1_ps(cut[3]), _mm256_set1_ps(cut[11]), c), _CMP_GT_OQ);
    s = _mm256_add_epi32(_mm256_add_epi32(s, s), _mm256_castps_si256(c));
    c = _mm256_cmp_ps(x, _mm256_permutevar_ps(tree4, s), _CMP_GT_OQ);
    s = _mm256_add_epi32(_mm256_add_epi32(s, s), _mm256_castps_si256(c));
    c = _mm256_cmp_ps(x, _mm256_permutevar8x32_ps(tree8, s), _CMP_GT_OQ);
    return _mm256_add_epi32(_mm256_add_epi32(s, s), _mm256_castps_si256(c));
}

INLINE int64_t encode(int block, const void *src, enum dtype from, int64_t blocks, uint8_t *codes,
                      float *absmax) {
    const uint32_t beyond = from == DT_F16 ? 0x47800000u : 0x7f800000u; /* 65536, infinity: see load16 */
    for (int64_t b = 0; b < blocks; b++) {
        uint32_t top = largest(src, from, b * block, block);
        if (top >= beyond) return b;
        float a = f32_from_bits(top);
        __m256 r = _mm256_set1_ps(nf4_inverse(&a));
        absmax[b] = a;
        for (int64_t i = b * block; i < (b + 1) * block; i += 32) {
            struct pair x = load16(src, from, i), y = load16(src, from, i + 16);
            __m256i first =
                _mm256_packs_epi32(minus_codes(_mm256_mul_ps(x.lo, r)), minus_codes(_mm256_mul_ps(x.hi, r)));
            __m256i last =
                _mm256_packs_epi32(minus_codes(_mm256_mul_ps(y.lo, r)), minus_codes(_mm256_mul_ps(y.hi, r)));
            __m256i s = _mm256_packs_epi16(first, last);            /* of elements 0-7, 16-23 | 8-15, 24-31 */
            s = _mm256_maddubs_epi16(_mm256_set1_epi16(0x0110), s); /* -(16 first + second) */
            s = _mm256_sub_epi16(_mm256_setzero_si256(), s);
            __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
            _mm_storeu_si128((void *)(codes + i / 2), _mm_shuffle_epi32(bytes, 0xd8));
        }
    }
    return blocks;
}

AVX2 int64_t nf4_encode_avx2(int block, const void *src, enum dtype from, int64_t blocks, uint8_t *codes,
                             float *absmax) {
    if (!available()) return 0;
    if (from == DT_BF16) return encode(block, src, DT_BF16, blocks, codes, absmax);
    if (from == DT_F16) return encode(block, src, DT_F16, blocks, codes, absmax);
    return encode(block, src, DT_F32, blocks, codes, absmax);
}

/* ---- decode: the 16 values of a block are made first, the codes then only select ---- */

/* 8 codes index two registers of 8 values; bit 3 of the code, moved to the sign, chooses between them. */
INLINE void decode_f32(const uint8_t *codes, int n, __m256 low, __m256 high, float *out) {
    const __m256i nibble = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
    for (int i = 0; i < n; i += 8) {
        uint32_t word;
        memcpy(&word, codes + i / 2, 4);
        __m256i k = _mm256_srlv_epi32(_mm256_set1_epi32((int)word), nibble);
        __m256 is_high = _mm256_castsi256_ps(_mm256_slli_epi32(k, 28));
        _mm256_storeu_ps(out + i, _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, k),
                                                   _mm256_permutevar8x32_ps(high, k), is_high));
    }
}

/* As f32_to_bf16, in 32-bit lanes, of products: a NaN among them is quiet already. */
INLINE __m256i bf16_bits(__m256 x) {
    __m256i u = _mm256_castps_si256(x), top = _mm256_srli_epi32(u, 16);
    __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), top, nan);
}

/* 32 codes look up the low and the high bytes of 16-bit values. */
INLINE void decode_bf16(const uint8_t *codes, int n, __m256 low, __m256 high, uint16_t *out) {
    __m256i v = _mm256_permute4x64_epi64(_mm256_packus_epi32(bf16_bits(low), bf16_bits(high)), 0xd8);
    __m256i planes =
        _mm256_packus_epi16(_mm256_and_si256(v, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(v, 8));
    __m256i low_bytes = _mm256_permute4x64_epi64(planes, 0x88),
            high_bytes = _mm256_permute4x64_epi64(planes, 0xdd);
    for (int i = 0; i < n; i += 32) {
        __m128i bytes = _mm_shuffle_epi32(_mm_loadu_si128((const void *)(codes + i / 2)), 0xd8);
        __m256i w = _mm256_cvtepu8_epi16(bytes); /* elements 0-7, 16-23 | 8-15, 24-31, two in 16 bits */
        __m256i k = _mm256_or_si256(_mm256_srli_epi16(w, 4), _mm256_slli_epi16(w, 8));
        k = _mm256_and_si256(k, _mm256_set1_epi8(15));
        __m256i l = _mm256_shuffle_epi8(low_bytes, k), h = _mm256_shuffle_epi8(high_bytes, k);
        _mm256_storeu_si256((void *)(out + i), _mm256_unpacklo_epi8(l, h));
        _mm256_storeu_si256((void *)(out + i + 16), _mm256_unpackhi_epi8(l, h));
    }
}

AVX2 int64_t q4_decode_avx2(const struct q4_view *v, int64_t first_block, int64_t blocks, void *out,
                            enum dtype to) {
    if (to == DT_F16 || !available()) return 0;
    __m256 low = _mm256_loadu_ps(v->levels), high = _mm256_loadu_ps(v->levels + 8);
    for (int64_t b = 0; b < blocks; b++) {
        const uint8_t *codes = v->codes + (first_block + b) * v->block / 2;
        __m256 a = _mm256_set1_ps(q4_scale(v, first_block + b));
        __m256 low_values = _mm256_mul_ps(low, a), high_values = _mm256_mul_ps(high, a);
        if (to == DT_F32)
            decode_f32(codes, v->block, low_values, high_values, (float *)out + b * v->block);
        else
            decode_bf16(codes, v->block, low_values, high_values, (uint16_t *)out + b * v->block);
    }
    return blocks;
}
#endif
