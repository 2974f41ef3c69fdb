/* base/half.h - 16-bit floats as bit patterns. Round to nearest even; NaN stays NaN. */
#ifndef QLORA_BASE_HALF_H
#define QLORA_BASE_HALF_H
#include <stdint.h>
#include <string.h>

static inline uint32_t f32_bits(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
static inline float f32_from_bits(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }

static inline float bf16_to_f32(uint16_t h) { return f32_from_bits((uint32_t)h << 16); }
static inline uint16_t f32_to_bf16(float x) {
    uint32_t u = f32_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40); /* quiet NaN */
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

static inline float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = (h >> 10) & 31, man = h & 0x3ff;
    if (exp == 31) return f32_from_bits(sign | 0x7f800000u | (man << 13));
    if (exp) return f32_from_bits(sign | ((exp + 112) << 23) | (man << 13));
    float v = (float)man * 0x1p-24f; /* zero and subnormal: exact */
    return sign ? -v : v;
}
static inline uint16_t f32_to_f16(float x) {
    uint32_t u = f32_bits(x), sign = (u >> 16) & 0x8000, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00);
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00); /* rounds to infinity */
    if (a < 0x38800000u) {                                  /* subnormal result: multiples of 2^-24 */
        float m = f32_from_bits(a) * 0x1p24f;
        uint32_t r = (uint32_t)m;
        float rest = m - (float)r;
        if (rest > 0.5f || (rest == 0.5f && (r & 1))) r++;
        return (uint16_t)(sign | r);
    }
    uint32_t r = a - 0x38000000u;
    r += 0xfffu + ((r >> 13) & 1);
    return (uint16_t)(sign | (r >> 13));
}
#endif
