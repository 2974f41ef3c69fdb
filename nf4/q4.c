/* nf4/q4.c - 4-bit blocks and their double quantisation: tables, portable encoder and decoder.
 *
 *   a = max|x| over the block, code = code(fp32(x * fp32(1/a))), value = fp32(level[code] * a)
 *
 * Bytes: docs/FORMATS.md, pinned by tests/golden/test_nf4_golden.c. The vector paths are in q4_avx2.c.
 */
#include "nf4/nf4_internal.h"
#include <string.h>

int nf4_portable;

const float nf4_levels[16] = {-0x1p0f,         -0x1.647362p-1f, -0x1.0cd66p-1f,  -0x1.94654p-2f,
                              -0x1.23449ap-2f, -0x1.7a6a7ep-3f, -0x1.74f0e2p-4f, 0x0p0f,
                              0x1.45f5fep-4f,  0x1.4995c6p-3f,  0x1.f809bap-3f,  0x1.5a0674p-2f,
                              0x1.c3497p-2f,   0x1.200f56p-1f,  0x1.722766p-1f,  0x1p0f};
const float fp4_levels[16] = {
    0x0p0f,  0x1.555556p-8f,  0x1.555556p-1f,  0x1p0f,  0x1.555556p-2f,  0x1p-1f,  0x1.555556p-3f,  0x1p-2f,
    -0x0p0f, -0x1.555556p-8f, -0x1.555556p-1f, -0x1p0f, -0x1.555556p-2f, -0x1p-1f, -0x1.555556p-3f, -0x1p-2f};

const float *q4_levels(enum q4_type t) {
    return t == Q4_NF4 ? nf4_levels : fp4_levels;
}

void nf4_load(const void *src, enum dtype from, int64_t first, int64_t n, float *x) {
    if (from == DT_F32) {
        memcpy(x, (const float *)src + first, (size_t)n * sizeof *x);
    } else if (from == DT_BF16) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) x[i] = bf16_to_f32(((const uint16_t *)src)[first + i]);
    } else {
        for (int64_t i = 0; i < n; i++) x[i] = f16_to_f32(((const uint16_t *)src)[first + i]);
    }
}

void nf4_store(const float *x, int64_t n, void *out, enum dtype to, int64_t first) {
    if (to == DT_F32) {
        memcpy((float *)out + first, x, (size_t)n * sizeof *x);
    } else if (to == DT_BF16) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) ((uint16_t *)out)[first + i] = f32_to_bf16(x[i]);
    } else {
        for (int64_t i = 0; i < n; i++) ((uint16_t *)out)[first + i] = f32_to_f16(x[i]);
    }
}

uint32_t nf4_largest(const float *x, int64_t n) {
    uint32_t top = 0;
#pragma omp simd reduction(max : top)
    for (int64_t i = 0; i < n; i++)
        top = (f32_bits(x[i]) & 0x7fffffff) > top ? f32_bits(x[i]) & 0x7fffffff : top;
    return top;
}

/* Encodes one block of n <= 4096 elements; returns -1 or the index of a NaN or infinity. */
static int64_t encode_block(enum q4_type t, const void *src, enum dtype from, int64_t first, int64_t n,
                            uint8_t *codes, float *absmax) {
    float x[4096 + 1];
    uint8_t code[4096 + 1];
    nf4_load(src, from, first, n, x);
    uint32_t top = nf4_largest(x, n);
    if (top >= 0x7f800000)
        for (int64_t i = 0;; i++)
            if (!isfinite(x[i])) return first + i;
    float a = f32_from_bits(top), r = nf4_inverse(&a);
    *absmax = a;
    if (n & 1) x[n++] = 0; /* the unused nibble */
    if (t == Q4_NF4) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) code[i] = (uint8_t)nf4_code(x[i] * r);
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) code[i] = (uint8_t)fp4_code(x[i] * r);
    }
    for (int64_t i = 0; i < n; i += 2) codes[i / 2] = (uint8_t)(code[i] << 4 | code[i + 1]);
    return -1;
}

int64_t q4_encode(enum q4_type t, int block, const void *src, enum dtype from, int64_t n, uint8_t *codes,
                  float *absmax) {
    ASSERT(block >= 32 && block <= 4096 && !(block & (block - 1)), "block %d", block);
    ASSERT(from == DT_F32 || from == DT_BF16 || from == DT_F16, "type %s", dtype_name(from));
    int64_t bad = INT64_MAX;
#pragma omp parallel for schedule(static) reduction(min : bad) if (n > CHUNK)
    for (int64_t first = 0; first < n; first += CHUNK) {
        int64_t end = n < first + CHUNK ? n : first + CHUNK, i = first, found = -1;
        if (t == Q4_NF4) {
            const char *from_here = (const char *)src + (size_t)first * dtype_bytes(from);
            i += block * nf4_encode_avx2(block, from_here, from, (end - first) / block, codes + first / 2,
                                         absmax + first / block);
        }
        for (; i < end && found < 0; i += block)
            found = encode_block(t, src, from, i, end - i < block ? end - i : block, codes + i / 2,
                                 absmax + i / block);
        if (found >= 0 && found < bad) bad = found;
    }
    return bad == INT64_MAX ? -1 : bad;
}

void q4_double(const float *absmax, int64_t nb, uint8_t *q, float *nested, float *offset) {
    const struct bw8_index *ix = bw8_index(bw8_signed);
    double sum = 0;
    for (int64_t b = 0; b < nb; b++) sum += (double)absmax[b];
    float mean = nb ? (float)(sum / (double)nb) : 0;
    *offset = mean;
#pragma omp parallel for schedule(static) if (nb > CHUNK)
    for (int64_t first = 0; first < nb; first += BW8_BLOCK) {
        float d[BW8_BLOCK];
        int64_t n = nb - first < BW8_BLOCK ? nb - first : BW8_BLOCK;
        for (int64_t i = 0; i < n; i++) d[i] = absmax[first + i] - mean;
        bw8_encode_block(ix, d, n, q + first, nested + first / BW8_BLOCK);
    }
}

/* out[0..end-i) = the values that codes i..end select. */
static void select32(const uint8_t *codes, int64_t i, int64_t end, const float value[16], float *out) {
    for (; i < end; i++) *out++ = value[codes[i >> 1] >> (i & 1 ? 0 : 4) & 15];
}
static void select16(const uint8_t *codes, int64_t i, int64_t end, const uint16_t value[16], uint16_t *out) {
    for (; i < end; i++) *out++ = value[codes[i >> 1] >> (i & 1 ? 0 : 4) & 15];
}

void q4_decode(const struct q4_view *v, int64_t first, int64_t count, void *out, enum dtype to) {
    ASSERT(v->block >= 32 && v->block <= 4096 && !(v->block & (v->block - 1)), "block %d", v->block);
    ASSERT(to == DT_F32 || to == DT_BF16 || to == DT_F16, "type %s", dtype_name(to));
    for (int64_t i = first, end = first + count, b, next; i < end; i = next) {
        char *at = (char *)out + (size_t)(i - first) * dtype_bytes(to);
        b = i / v->block, next = (b + 1) * v->block;
        if (i % v->block == 0 && next <= end) {
            int64_t whole = q4_decode_avx2(v, b, (end - i) / v->block, at, to);
            if (whole) {
                next = i + whole * v->block;
                continue;
            }
        }
        if (next > end) next = end;
        float a = q4_scale(v, b), value[16]; /* the only values of this block */
        for (int k = 0; k < 16; k++) value[k] = v->levels[k] * a;
        if (to == DT_F32) {
            select32(v->codes, i, next, value, (float *)at);
            continue;
        }
        uint16_t rounded[16];
        nf4_store(value, 16, rounded, to, 0);
        select16(v->codes, i, next, rounded, (uint16_t *)at);
    }
}
