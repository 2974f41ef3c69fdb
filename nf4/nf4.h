/* nf4/nf4.h - number formats for frozen weights and optimizer state, exact to the bit (docs/FORMATS.md).
 *
 *   q4     4 bits a weight: NF4 (Dettmers et al. 2023, QLoRA, appendix E) or FP4, one fp32 scale per block of 64,
 *          optionally with the scales themselves in 8 bits ("double quantisation", section 3 of the paper)
 *   int8   rows of int8 with one fp32 scale a row (LLM.int8 weight format, used weight-only)
 *   bw8    blocks of 256 in 8 bits by a dynamic map (Dettmers et al. 2022, 8-bit optimizers): nested scales, Adam state
 *
 * Layouts are those of bitsandbytes; a decoded value is fp32(level * scale), rounded once to the target type.
 * The scalar definitions live here, are inline, and are also what the CUDA kernels call (NF4_FN). Every array function
 * is multi-threaded (OpenMP) with results independent of the number of threads. Compiled without fast-math.
 */
#ifndef QLORA_NF4_NF4_H
#define QLORA_NF4_NF4_H
#include "base/dtype.h"
#include "base/err.h"
#include <stdint.h>

#ifdef __CUDACC__
#define NF4_FN static inline __host__ __device__
#else
#define NF4_FN static inline
#endif

enum q4_type { Q4_NF4, Q4_FP4 };

/* A 4-bit matrix, row-major, blocks run through row ends. Pointers are borrowed; on a backend they are its memory. */
struct q4_view {
    const uint8_t *codes;       /* [(n+1)/2] two codes a byte, first element in the HIGH nibble */
    const float *absmax;        /* [nb] scales; NULL when double quantised */
    const uint8_t *absmax_q;    /* [nb] 8-bit scales, when double quantised */
    const float *nested_absmax; /* [ceil(nb/256)] */
    const float *nested_map;    /* [256] map stored with the matrix */
    const float *levels;        /* [16] levels stored with the matrix, in code order */
    float nested_offset;
    int32_t block;              /* elements a scale: 32..4096, a power of two */
};

NF4_FN int64_t q4_code_bytes(int64_t n) { return (n + 1) / 2; }
NF4_FN int64_t q4_blocks(int64_t n, int64_t block) { return (n + block - 1) / block; }
NF4_FN int64_t q4_nested(int64_t blocks) { return (blocks + 255) / 256; }

extern const float nf4_levels[16], fp4_levels[16]; /* in code order */
const float *q4_levels(enum q4_type t);
extern float bw8_signed[256], bw8_unsigned[256]; /* sorted maps; filled by nf4_init */
void nf4_init(void);                             /* idempotent, thread-safe; every function below calls it */

/* Encodes n elements of `from` (DT_F32, DT_BF16, DT_F16). codes: q4_code_bytes(n), absmax: fp32 [q4_blocks]. Returns -1,
 * or the index of the first NaN or infinity (nothing useful is written then). Zero and subnormal blocks: see FORMATS.md. */
int64_t q4_encode(enum q4_type t, int block, const void *src, enum dtype from, int64_t n, uint8_t *codes, float *absmax);
/* Scales to 8 bits: q[nb], nested[q4_nested(nb)], *offset = mean. */
void q4_double(const float *absmax, int64_t nb, uint8_t *q, float *nested, float *offset);
/* Scale of one block, restored when double quantised: two roundings, no fused multiply-add. */
NF4_FN float q4_scale(const struct q4_view *v, int64_t b);
/* out[0..count) = elements first .. first+count of v; to is DT_F32, DT_BF16 or DT_F16. Single-threaded (callers split). */
void q4_decode(const struct q4_view *v, int64_t first, int64_t count, void *out, enum dtype to);

/* Rows: s[r] = max|w|, q = rint(w * 127/s) on the fp16-rounded weight. Returns -1 or the index of a NaN or infinity. */
int64_t int8_encode(const void *src, enum dtype from, int64_t rows, int64_t cols, int8_t *q, float *s);
/* out (rows first..first+count) = q * fp32(s/127). Single-threaded. */
void int8_decode(const int8_t *q, const float *s, int64_t cols, int64_t first, int64_t count, void *out, enum dtype to);

/* 8-bit blocks of 256 by a sorted map: a = max|x| per block, code = nearest entry of x/a, ties to the even index. */
void bw8_encode(const float *map, const float *x, int64_t n, uint8_t *codes, float *absmax);
void bw8_decode(const float *map, const uint8_t *codes, const float *absmax, int64_t n, float *x);
uint8_t bw8_nearest(const float *map, float x); /* one value, already scaled to [-1,1] */

#ifdef __CUDACC__
#define NF4_MUL(a, b) __fmul_rn(a, b)
#define NF4_ADD(a, b) __fadd_rn(a, b)
#else /* the build forbids contraction: -ffp-contract=off */
#define NF4_MUL(a, b) ((a) * (b))
#define NF4_ADD(a, b) ((a) + (b))
#endif
NF4_FN float q4_scale(const struct q4_view *v, int64_t b) {
    if (v->absmax) return v->absmax[b];
    float product = NF4_MUL(v->nested_map[v->absmax_q[b]], v->nested_absmax[b >> 8]);
    return NF4_ADD(product, v->nested_offset);
}
#endif
