/* nf4/nf4.h - number formats for frozen weights and optimizer state, exact to the bit (docs/FORMATS.md).
 *
 *   q4     4 bits a weight: NF4 (Dettmers et al. 2023, QLoRA, appendix E) or FP4, one fp32 scale per block of
 *          64, optionally with the scales themselves in 8 bits ("double quantisation", section 3 of the paper)
 *   int8   rows of int8 with one fp32 scale a row (LLM.int8 weight format, used weight-only)
 *   bw8    blocks of 256 in 8 bits by a dynamic map (Dettmers et al. 2022, 8-bit optimizers): nested scales,
 *          Adam state
 *
 * Layouts are those of bitsandbytes; a decoded value is fp32(level * scale), rounded once to the target
 * type. The scalar definitions live here, are inline, and are also what the CUDA kernels call (NF4_FN).
 * Array functions are multi-threaded (OpenMP) unless they say otherwise, with results independent of the
 * number of threads and of the instruction set. Compiled without fast-math.
 *
 *     int64_t bad = q4_encode(Q4_NF4, 64, w, DT_BF16, n, codes, absmax);    bad >= 0: w[bad] is not finite
 *     q4_double(absmax, q4_blocks(n, 64), absmax_q, nested, &offset);
 *     struct q4_view v = {.codes = codes, .absmax_q = absmax_q, .nested_absmax = nested, .nested_offset = offset,
 *                         .nested_map = bw8_signed, .levels = q4_levels(Q4_NF4), .block = 64};
 *     q4_decode(&v, 0, n, out, DT_BF16);
 */
#ifndef QLORA_NF4_NF4_H
#define QLORA_NF4_NF4_H
#include "base/dtype.h"
#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define NF4_FN static inline __host__ __device__
#else
#define NF4_FN static inline
#endif

/* Each rounds on its own: never contracted into a fused multiply-add (the build says -ffp-contract=off),
 * never approximate. */
#ifdef __CUDA_ARCH__
#define NF4_MUL(a, b) __fmul_rn(a, b)
#define NF4_ADD(a, b) __fadd_rn(a, b)
#define NF4_DIV(a, b) __fdiv_rn(a, b)
#define NF4_SQRT(a)   __fsqrt_rn(a)
#else
#define NF4_MUL(a, b) ((a) * (b))
#define NF4_ADD(a, b) ((a) + (b))
#define NF4_DIV(a, b) ((a) / (b))
#define NF4_SQRT(a)   sqrtf(a)
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The reciprocal that scales a block of largest magnitude *a to [-1,1]. Below the normal range 1/a may
 * overflow: such a block counts as zero, *a becomes 0 and so does the reciprocal. */
NF4_FN float nf4_inverse(float *a) {
    if (*a < 0x1p-126f) *a = 0;
    return *a > 0 ? NF4_DIV(1.0f, *a) : 0;
}

/* ---- q4 ---- */

enum q4_type { Q4_NF4, Q4_FP4 };

/* A 4-bit matrix, row-major, blocks run through row ends. Pointers are borrowed (backend memory there). */
struct q4_view {
    const uint8_t *codes;       /* [(n+1)/2] two codes a byte, first element in the HIGH nibble */
    const float *absmax;        /* [nb] scales; NULL when double quantised */
    const uint8_t *absmax_q;    /* [nb] 8-bit scales, when double quantised */
    const float *nested_absmax; /* [ceil(nb/256)] */
    const float *nested_map;    /* [256] map stored with the matrix */
    const float *levels;        /* [16] levels stored with the matrix, in code order */
    float nested_offset;
    int32_t block; /* elements a scale: 32..4096, a power of two */
};

NF4_FN int64_t q4_code_bytes(int64_t n) {
    return (n + 1) / 2;
}
NF4_FN int64_t q4_blocks(int64_t n, int64_t block) {
    return (n + block - 1) / block;
}
NF4_FN int64_t q4_nested(int64_t blocks) {
    return (blocks + 255) / 256;
}

/* The code of x in [-1,1] is the number of cuts strictly below it: on a tie the lower code stays. The cuts
 * are the midpoints between levels as bitsandbytes rounds them; they are ascending. */
/* clang-format off */
#define NF4_CUTS(_)                                                                                          \
    _(-0x1.b239b2p-1f) _(-0x1.38a4e0p-1f) _(-0x1.d70900p-2f) _(-0x1.5bd4ecp-2f) _(-0x1.e079d8p-3f)           \
    _(-0x1.1a7178p-3f) _(-0x1.74f0e2p-5f) _( 0x1.45f5fep-5f) _( 0x1.ec90c6p-4f) _( 0x1.a0cfc0p-3f)           \
    _( 0x1.2b05a8p-2f) _( 0x1.8ea7f2p-2f) _( 0x1.00da06p-1f) _( 0x1.491b5ep-1f) _( 0x1.b913b2p-1f)
#define FP4_CUTS(_)                                                                                          \
    _(0x1.555572p-9f) _(0x1.600000p-4f) _(0x1.aaaaaap-3f) _(0x1.2aaaaap-2f)                                  \
    _(0x1.aaaaacp-2f) _(0x1.2aaaa0p-1f) _(0x1.aaaaaap-1f)
/* clang-format on */
#define Q4_ABOVE(cut) +(x > cut)
NF4_FN int nf4_code(float x) {
    return 0 NF4_CUTS(Q4_ABOVE);
}
/* FP4: sign bit and the rank of |x|; ranks 0..7 are codes 0 1 6 7 4 5 2 3. Both zeros are code 0. */
NF4_FN int fp4_code(float value) {
    float x = value < 0 ? -value : value;
    int rank = 0 FP4_CUTS(Q4_ABOVE);
    return (rank ^ (rank & 2) << 1) | (value < 0) << 3;
}
#undef Q4_ABOVE
NF4_FN int q4_code(enum q4_type t, float x) {
    return t == Q4_NF4 ? nf4_code(x) : fp4_code(x);
}

/* Scale of block b, restored when double quantised. */
NF4_FN float q4_scale(const struct q4_view *v, int64_t b) {
    if (v->absmax) return v->absmax[b];
    float product = NF4_MUL(v->nested_map[v->absmax_q[b]], v->nested_absmax[b >> 8]);
    return NF4_ADD(product, v->nested_offset);
}
/* Element i in fp32. */
NF4_FN float q4_value(const struct q4_view *v, int64_t i) {
    int code = v->codes[i >> 1] >> (i & 1 ? 0 : 4) & 15;
    return NF4_MUL(v->levels[code], q4_scale(v, i / v->block));
}

extern const float nf4_levels[16], fp4_levels[16]; /* in code order */
const float *q4_levels(enum q4_type t);

/* Encodes n elements of `from` (DT_F32, DT_BF16, DT_F16). codes: q4_code_bytes(n), absmax: fp32
 * [q4_blocks]. Returns -1, or the index of the first NaN or infinity (nothing useful is written then). A
 * zero or subnormal block gets absmax 0 and the code of 0 throughout; so does the nibble behind an odd n. */
int64_t q4_encode(enum q4_type t, int block, const void *src, enum dtype from, int64_t n, uint8_t *codes,
                  float *absmax);
/* Scales to 8 bits: q[nb], nested[q4_nested(nb)], *offset = mean. The map is bw8_signed. */
void q4_double(const float *absmax, int64_t nb, uint8_t *q, float *nested, float *offset);
/* out[0..count) = elements first .. first+count of v; to is DT_F32, DT_BF16 or DT_F16. Single-threaded
 * (callers split; whole blocks are fastest). */
void q4_decode(const struct q4_view *v, int64_t first, int64_t count, void *out, enum dtype to);

/* ---- int8 ---- */

/* Rows: s[r] = max|w|, q = rint(w * fp32(127/s)) on the fp16-rounded weight; a zero row is s = 0, q = 0.
 * Returns -1 or the index of the first weight that is not finite in fp16 (NaN, infinity, 65520 or more). */
int64_t int8_encode(const void *src, enum dtype from, int64_t rows, int64_t cols, int8_t *q, float *s);
/* What the codes of a row are multiplied by, in fp32. As bitsandbytes by the reciprocal; s/127 differs. */
NF4_FN float int8_unit(float s) {
    return NF4_MUL(s, 0x1.020408p-7f);
}
/* out (rows first..first+count) = fp32(q * int8_unit(s)), rounded once. Single-threaded. */
void int8_decode(const int8_t *q, const float *s, int64_t cols, int64_t first, int64_t count, void *out,
                 enum dtype to);

/* ---- bw8 ---- */

enum { BW8_BLOCK = 256, BW8_ZERO = 127 };        /* elements a scale; the code of 0 in bw8_signed */
extern float bw8_signed[256], bw8_unsigned[256]; /* sorted maps; filled by nf4_init */
void nf4_init(void);                             /* idempotent, thread-safe; the array functions call it */

/* Index of the entry of a sorted map nearest to x; on a tie the even index. */
NF4_FN int bw8_nearest(const float *map, float x) {
    int i = 0;
    for (int k = 7; k > 0; k--) { /* the lower entry of the pair is odd: a tie goes up */
        const float *m = map + i + (1 << k) - 1;
        i += (x >= NF4_MUL(NF4_ADD(m[0], m[1]), 0.5f)) << k;
    }
    return i + (x > NF4_MUL(NF4_ADD(map[i], map[i + 1]), 0.5f)); /* even: it stays */
}

/* The same by one look-up, for the two maps above. Of the values with the same upper 16 bits some may belong to one entry and the
 * others to the next. Their cell, cell[upper 16 bits], holds 16 bits up the code of the lowest of them, and below it what makes
 * the lower bits, counted up with x (inverted below zero), carry from the least value of the next entry on. */
struct bw8_index {
    int32_t cell[1 << 16];
};
const struct bw8_index *bw8_index(const float *map);

/* Per block a = max|x|, code = nearest entry to x * fp32(1/a). Zero or subnormal block: a = 0, the code of
 * 0. Encoding takes our maps only, decoding any. */
void bw8_encode(const float *map, const float *x, int64_t n, uint8_t *codes, float *absmax);
void bw8_decode(const float *map, const uint8_t *codes, const float *absmax, int64_t n, float *x);

/* AdamW with 8-bit state. As in bitsandbytes and unlike the 32-bit form, weight decay multiplies after the
 * step, and a tiny negative first moment is never stored as 0. */
struct bw8_adam {               /* constants of step t, all fp32 */
    float beta1, beta2, g1, g2; /* g = 1 - beta */
    float step;                 /* -lr * sqrt(1 - beta2^t) / (1 - beta1^t) */
    float eps;                  /* eps * sqrt(1 - beta2^t) */
    float decay;                /* 1 - lr * weight decay */
    float grad_scale;           /* factor on g from gradient clipping */
};
struct bw8_adam bw8_adam_step(int64_t t, float lr, float beta1, float beta2, float eps, float weight_decay,
                              float grad_scale);
/* One element: m, v in: decoded, out: exact new moments, to be encoded. */
NF4_FN void bw8_adam_element(const struct bw8_adam *s, float grad, float *p, float *m, float *v) {
    float g = NF4_MUL(grad, s->grad_scale);
    *v = NF4_ADD(NF4_MUL(*v, s->beta2), NF4_MUL(NF4_MUL(s->g2, g), g));
    *m = NF4_ADD(NF4_MUL(*m, s->beta1), NF4_MUL(s->g1, g));
    float update = NF4_DIV(*m, NF4_ADD(NF4_SQRT(*v), s->eps));
    *p = NF4_MUL(NF4_ADD(*p, NF4_MUL(s->step, update)), s->decay);
}
/* The code of a first moment m, given the nearest entry to m/a of bw8_signed (BW8_ZERO in a block of
 * zeros): a negative one is not stored as 0. The second moment is the nearest entry to v/a of bw8_unsigned
 * (0 in a block of zeros). */
NF4_FN int bw8_keep_sign(int nearest, float m) {
    return nearest - (nearest == BW8_ZERO && m < 0);
}
/* A whole tensor: p += update; m8, v8 [n] and m_absmax, v_absmax [ceil(n/256)] hold the state, scales 0 at
 * the start. Single-threaded (callers split into whole blocks). (Tensors below 4096 elements keep fp32 state: the caller's
 * affair.) */
void bw8_adamw(const struct bw8_adam *s, int64_t n, float *p, const float *g, uint8_t *m8, float *m_absmax,
               uint8_t *v8, float *v_absmax);

#ifdef __cplusplus
}
#endif
#endif
