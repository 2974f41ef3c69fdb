/* nf4/int8.c - rows of int8 with one scale each: the weight format of LLM.int8 (Dettmers et al. 2022),
 * used weight-only.
 *
 *   s = max|w| over the row, q = rint(w * fp32(127/s)), with w rounded to fp16 first
 *   value = fp32(q * fp32(s * fp32(1/127)))
 *
 * Bytes: docs/FORMATS.md, pinned by tests/golden/test_nf4_golden.c.
 */
#include "nf4/nf4_internal.h"

enum { TILE = 256 };

/* x[i] = x[i] rounded to fp16. Magnitudes beyond fp16 come out as 65536 or more; NaN stays NaN. */
static void round_to_f16(float *x, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        uint32_t u = f32_bits(x[i]) & 0x7fffffff, sign = f32_bits(x[i]) ^ u;
        uint32_t normal = (u + 0xfff + (u >> 13 & 1)) & ~0x1fffu;
        uint32_t subnormal =
            f32_bits((f32_from_bits(u) + 0.5f) - 0.5f); /* 0.5 has the unit of fp16's subnormals, 2^-24 */
        x[i] = f32_from_bits(sign | (u < 0x38800000 ? subnormal : normal));
    }
}

/* One row of n from element `first`; returns -1 or the index of a weight that is not finite in fp16. */
static int64_t encode_row(const void *src, enum dtype from, int64_t first, int64_t n, int8_t *q, float *s) {
    float x[TILE];
    uint32_t top = 0;
    for (int64_t at = 0; at < n; at += TILE) {
        int64_t count = n - at < TILE ? n - at : TILE;
        nf4_load(src, from, first + at, count, x);
        round_to_f16(x, count);
        uint32_t tile_top = nf4_largest(x, count);
        if (tile_top >= 0x47800000)
            for (int64_t i = 0;; i++)
                if (!(fabsf(x[i]) < 65536.0f)) return first + at + i;
        if (tile_top > top) top = tile_top;
    }
    *s = f32_from_bits(top);
    float scale = top ? 127.0f / *s : 0;
    for (int64_t at = 0; at < n; at += TILE) {
        int64_t count = n - at < TILE ? n - at : TILE;
        nf4_load(src, from, first + at, count, x);
        round_to_f16(x, count);
#pragma omp simd
        for (int64_t i = 0; i < count; i++) /* adding 1.5 * 2^23 rounds to an integer, ties to even */
            q[at + i] = (int8_t)(int)((x[i] * scale + 0x1.8p23f) - 0x1.8p23f);
    }
    return -1;
}

int64_t int8_encode(const void *src, enum dtype from, int64_t rows, int64_t cols, int8_t *q, float *s) {
    ASSERT(from == DT_F32 || from == DT_BF16 || from == DT_F16, "type %s", dtype_name(from));
    int64_t bad = INT64_MAX;
#pragma omp parallel for schedule(static) reduction(min : bad) if (rows * cols > CHUNK)
    for (int64_t r = 0; r < rows; r++) {
        int64_t found = encode_row(src, from, r * cols, cols, q + r * cols, s + r);
        if (found >= 0 && found < bad) bad = found;
    }
    return bad == INT64_MAX ? -1 : bad;
}

void int8_decode(const int8_t *q, const float *s, int64_t cols, int64_t first, int64_t count, void *out,
                 enum dtype to) {
    ASSERT(to == DT_F32 || to == DT_BF16 || to == DT_F16, "type %s", dtype_name(to));
    float x[TILE];
    for (int64_t r = first; r < first + count; r++) {
        float unit = int8_unit(s[r]);
        for (int64_t at = 0; at < cols; at += TILE) {
            int64_t n = cols - at < TILE ? cols - at : TILE;
#pragma omp simd
            for (int64_t i = 0; i < n; i++) x[i] = (float)q[r * cols + at + i] * unit;
            nf4_store(x, n, out, to, (r - first) * cols + at);
        }
    }
}
