/* nf4/bw8_body.h - whole blocks of bw8_adamw, included once per instruction set by bw8_avx*.c; the bits of bw8.c, checked by
 * tests/unit/test_nf4.c. No fused multiply-add anywhere. Rates: bench/quantize.c.
 *
 * The includer defines
 *   STEP             name of the function        LANES   floats in a vector
 *   VSQRT(x)         square roots
 *   VMAX(x,y)        x > y ? x : y in each lane: y where x is NaN
 *   VTOP(x)          the largest lane, where none is NaN
 *   VLOOK(table,i)   table[i], of 32 bits, as integers
 *   VWIDEN(from)     LANES bytes as integers; VNARROW(to,x): the way back
 */
#include "nf4/nf4_internal.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* A block takes longer than memory to answer, and leaves it idle where nothing was asked for beforehand. */
enum { VECTORS = BW8_BLOCK / LANES, AHEAD = 4 * BW8_BLOCK };
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float vec_any __attribute__((vector_size(4 * LANES), aligned(4))); /* unaligned */
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t uints __attribute__((vector_size(4 * LANES)));

ALWAYS_INLINE ints find(const struct bw8_index *ix, vec x) { /* bw8_find */
    ints bits = (ints)x, lower = (bits ^ bits >> 31) & 0xffff;
    return (VLOOK(ix->cell, (uints)bits >> 16) + lower) >> 16;
}
ALWAYS_INLINE ints keep_sign(ints nearest, vec m) { /* bw8_keep_sign; true is -1 */
    return nearest + ((nearest == BW8_ZERO) & (m < 0));
}

int64_t STEP(const struct bw8_adam *s, int64_t n, float *p, const float *g, uint8_t *m8, float *m_absmax, uint8_t *v8,
             float *v_absmax) {
    const struct bw8_index *m_index = bw8_index(bw8_signed), *v_index = bw8_index(bw8_unsigned);
    const int64_t blocks = n / BW8_BLOCK;
    for (int64_t b = 0; b < blocks; b++, p += BW8_BLOCK, g += BW8_BLOCK, m8 += BW8_BLOCK, v8 += BW8_BLOCK) {
        vec m[VECTORS], v[VECTORS], m_top = {0}, v_top = {0};
        for (int k = 0; k < VECTORS; k++) { /* decoding and bw8_adam_element */
            vec_any *value = (vec_any *)(void *)(p + k * LANES);
            vec grad = *(const vec_any *)(const void *)(g + k * LANES) * s->grad_scale;
            __builtin_prefetch(p + AHEAD + k * LANES, 1), __builtin_prefetch(g + AHEAD + k * LANES);
            v[k] = (vec)VLOOK(bw8_unsigned, VWIDEN(v8 + k * LANES)) * v_absmax[b] * s->beta2 + s->g2 * grad * grad;
            m[k] = (vec)VLOOK(bw8_signed, VWIDEN(m8 + k * LANES)) * m_absmax[b] * s->beta1 + s->g1 * grad;
            *value = (*value + s->step * (m[k] / (VSQRT(v[k]) + s->eps))) * s->decay;
            m_top = VMAX((vec)((ints)m[k] & 0x7fffffff), m_top);
            v_top = VMAX(v[k], v_top);
        }
        const float m_max = m_absmax[b] = VTOP(m_top), v_max = v_absmax[b] = VTOP(v_top);
        if (m_max > 0) {
            for (int k = 0; k < VECTORS; k++) VNARROW(m8 + k * LANES, keep_sign(find(m_index, m[k] / m_max), m[k]));
        } else {
            memset(m8, BW8_ZERO, BW8_BLOCK);
        }
        for (int k = 0; k < VECTORS; k++) VNARROW(v8 + k * LANES, find(v_index, v[k] / v_max)); /* 0/0: the code of NaN is 0 */
    }
    return blocks * BW8_BLOCK;
}
