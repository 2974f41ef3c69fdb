/* nf4/nf4_internal.h - between the files of nf4/: element access, the map index, the vector paths. */
#ifndef QLORA_NF4_INTERNAL_H
#define QLORA_NF4_INTERNAL_H
#include "base/err.h"
#include "base/half.h"
#include "nf4/nf4.h"

#ifdef __clang__ /* `omp simd` is a wish: without optimisation there is nothing to warn of */
#pragma clang diagnostic ignored "-Wpass-failed"
#endif

enum { CHUNK = 1 << 16 }; /* elements a thread takes at a time: whole blocks of any size, whole bytes */

extern int nf4_portable; /* 1: never take a vector path (for tests) */

/* x[0..n) = src[first..first+n) in fp32, and back, rounded once. */
void nf4_load(const void *src, enum dtype from, int64_t first, int64_t n, float *x);
void nf4_store(const float *x, int64_t n, void *out, enum dtype to, int64_t first);

/* Bits of the largest magnitude: they order like the values, NaN above infinity above numbers. */
uint32_t nf4_largest(const float *x, int64_t n);

/* The nearest entry of a map by one look-up in its index, for any x (NaN: 0). */
static inline int bw8_find(const struct bw8_index *ix, float x) {
    uint32_t bits = f32_bits(x), lower = (bits >> 31 ? ~bits : bits) & 0xffff;
    return (ix->cell[bits >> 16] + (int32_t)lower) >> 16;
}
void bw8_encode_block(const struct bw8_index *ix, const float *x, int64_t n, uint8_t *codes, float *absmax);

/* Each handles a leading run of whole blocks exactly as the portable code would, and returns how many (0:
 * no such unit): encoding stops before a block with a NaN or infinity, decoding starts at a block. */
int64_t nf4_encode_avx2(int block, const void *src, enum dtype from, int64_t blocks, uint8_t *codes,
                        float *absmax);
int64_t q4_decode_avx2(const struct q4_view *v, int64_t first_block, int64_t blocks, void *out,
                       enum dtype to);

/* bw8_adamw of the leading whole blocks, exactly as the portable code would; returns how many elements. bw8_steps: those that
 * this machine can run, widest first, NULL at the end; filled by nf4_init. */
typedef int64_t bw8_step(const struct bw8_adam *s, int64_t n, float *p, const float *g, uint8_t *m8, float *m_absmax,
                         uint8_t *v8, float *v_absmax);
extern bw8_step *bw8_steps[3];
#if defined(__x86_64__)
bw8_step bw8_adamw_avx2, bw8_adamw_avx512;
#endif
#endif
