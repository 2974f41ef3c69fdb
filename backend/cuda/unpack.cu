/* backend/cuda/unpack.cu - frozen weights and adapters become bf16 operands of the matrix units.
 *
 *     w[i] = bf16(level(code i) * scale(i / block)),  scale = map[q] * nested + offset when double quantised
 *
 * Same bits as nf4/ on the CPU (q4_decode, int8_decode): products and sums of nf4.h round to nearest, nothing is fused.
 * The destination has a row stride, so that operands may be laid side by side in one wider matrix; what lies between its
 * rows stays as it was. Pinned by tests/ops (unpacked bits) and by nf4's goldens. */
#include "backend/cuda/cuda_internal.h"

enum { THREADS = 256, ROWS = 4, PIECE = 8 };
enum { DOUBLE_Q4 = W_Q4 + 1 }; /* beside the formats of backend.h: W_Q4 with its scales in 8 bits */

/* A weight cut into pieces of eight neighbours of one row; 32 bits count them. */
struct source {
    const void *data;
    const float *scale;       /* Q4: of each block; DOUBLE_Q4: of 256 blocks; INT8: of each row */
    const uint8_t *scale_q;   /* DOUBLE_Q4 */
    const float *map, *levels;
    float offset, factor;     /* factor multiplies F32 */
    unsigned rows, pieces;    /* pieces in a row */
    int block_bits;           /* a block has 2^block_bits pieces */
};

/* Eight weights as they are stored. Codes and values are read once: first out of the cache. Nothing here waits for a load, so
 * that those of several pieces are under way together. */
struct piece { uint4 a, b; float scale; };
template <int FORMAT> __device__ static inline struct piece fetch(const struct source &s, unsigned row, unsigned col) {
    struct piece p;
    unsigned at = row * s.pieces + col, block = at >> s.block_bits;
    if (FORMAT == W_F32) p.a = __ldcs((const uint4 *)s.data + 2 * (size_t)at), p.b = __ldcs((const uint4 *)s.data + 2 * (size_t)at + 1);
    if (FORMAT == W_BF16) p.a = __ldcs((const uint4 *)s.data + at);
    if (FORMAT == W_INT8) {
        uint2 q = __ldcs((const uint2 *)s.data + at);
        p.a.x = q.x, p.a.y = q.y, p.scale = s.scale[row];
    }
    if (FORMAT == W_Q4 || FORMAT == DOUBLE_Q4) p.a.x = __ldcs((const unsigned *)s.data + at);
    if (FORMAT == W_Q4) p.scale = s.scale[block];
    if (FORMAT == DOUBLE_Q4) p.a.y = s.scale_q[block], p.scale = s.scale[block >> 8];
    return p;
}
/* The same eight in bf16. */
template <int FORMAT> __device__ static inline uint4 decode(const struct source &s, const struct piece &p, const float *levels) {
    if (FORMAT == W_BF16) return p.a;
    float scale = FORMAT == DOUBLE_Q4 ? __fadd_rn(__fmul_rn(s.map[p.a.y], p.scale), s.offset) : FORMAT == W_INT8 ? int8_unit(p.scale) : FORMAT == W_Q4 ? p.scale : s.factor;
    const uint32_t word[8] = {p.a.x, p.a.y, p.a.z, p.a.w, p.b.x, p.b.y, p.b.z, p.b.w};
    float v[PIECE];
#pragma unroll
    for (int i = 0; i < PIECE; i++) /* byte b of Q4 holds elements 2b (high nibble) and 2b+1 */
        v[i] = __fmul_rn(scale, FORMAT == W_F32    ? __uint_as_float(word[i])
                                : FORMAT == W_INT8 ? (float)(int8_t)(word[i / 4] >> 8 * (i % 4))
                                                   : levels[word[0] >> (8 * (i / 2) + (i % 2 ? 0 : 4)) & 15]);
    uint4 out;
    __nv_bfloat162 *half = (__nv_bfloat162 *)&out;
#pragma unroll
    for (int i = 0; i < 4; i++) half[i] = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
    return out;
}

/* dst[r][j] = bf16(w[r][j]).  lanes = 2^lane_bits neighbouring threads walk along a row, 8 weights each, so a warp writes
 * whole lines; a block has THREADS / lanes rows at a time and ROWS times as many in all, every load ahead of the first store.
 * The 16 levels lie in 16 banks of shared memory: no conflicts. NF4: 0.5 + 1/64 bytes in and 2 out a weight, bound by memory.
 * cols % 8 == 0, ld % 8 == 0, pointers at multiples of 16 bytes. */
template <int FORMAT> __global__ __launch_bounds__(THREADS) static void unpack(const struct source s, bf16 *dst, int64_t ld, unsigned tiles, int lane_bits) {
    __shared__ float levels[16];
    unsigned band = blockIdx.x / tiles, tile = blockIdx.x % tiles, rows = THREADS >> lane_bits;
    unsigned row = band * (rows * ROWS) + (threadIdx.x >> lane_bits), col = (tile << lane_bits) + (threadIdx.x & ((1u << lane_bits) - 1));
    struct piece p[ROWS];
#pragma unroll
    for (unsigned k = 0; k < ROWS; k++) p[k] = fetch<FORMAT>(s, min(row + k * rows, s.rows - 1), min(col, s.pieces - 1));
    if (FORMAT == W_Q4 || FORMAT == DOUBLE_Q4) {
        if (threadIdx.x < 16) levels[threadIdx.x] = s.levels[threadIdx.x];
        __syncthreads();
    }
    bf16 *to = dst + row * ld + (int64_t)col * PIECE;
#pragma unroll
    for (unsigned k = 0; k < ROWS; k++) {
        uint4 v = decode<FORMAT>(s, p[k], levels);
        if (col < s.pieces && row + k * rows < s.rows) *(uint4 *)(to + k * rows * ld) = v;
    }
}

/* Any width, stride and address: a thread makes one weight at a time. */
__global__ static void unpack_any(const struct weight w, float factor, bf16 *dst, int64_t ld) {
    int64_t n = w.rows * w.cols;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS) {
        int64_t row = i / w.cols;
        float v = 0;
        switch (w.format) {
        case W_F32: v = __fmul_rn(((const float *)w.data)[i], factor); break;
        case W_BF16: v = __bfloat162float(((const bf16 *)w.data)[i]); break;
        case W_INT8: v = __fmul_rn((float)((const int8_t *)w.data)[i], int8_unit(w.scale[row])); break;
        case W_Q4: v = q4_value(&w.q4, i); break;
        }
        dst[row * ld + i % w.cols] = __float2bfloat16_rn(v);
    }
}

static int log2_up(int64_t n) {
    int k = 0;
    while (1ll << k < n) k++;
    return k;
}

template <int FORMAT> static void launch(struct cuda *c, const struct source *s, bf16 *dst, int64_t ld) {
    int lane_bits = s->pieces < THREADS ? log2_up(s->pieces) : log2_up(THREADS);
    int64_t tiles = ceil_div(s->pieces, 1 << lane_bits), bands = ceil_div(s->rows, (THREADS >> lane_bits) * ROWS);
    unpack<FORMAT><<<(unsigned)(tiles * bands), THREADS, 0, cuda_stream(c)>>>(*s, dst, ld, (unsigned)tiles, lane_bits);
}

static void unpack_scaled(struct cuda *c, const struct weight *w, float factor, bf16 *dst, int64_t ld) {
    const struct q4_view *v = &w->q4;
    int64_t n = w->rows * w->cols, rows = w->rows, cols = w->cols, blocks = ceil_div(n, THREADS);
    if (!n) return;
    const void *from = w->format == W_Q4 ? (const void *)v->codes : w->data;
    int flat = ld == cols && n % PIECE == 0 && w->format != W_INT8; /* no stride: rows of one piece */
    if ((!flat && (cols % PIECE || ld % PIECE)) || (uintptr_t)from % 16 || (uintptr_t)dst % 16 || n / PIECE > UINT32_MAX / 2) {
        unpack_any<<<(unsigned)(blocks < 16 * c->sms ? blocks : 16 * c->sms), THREADS, 0, cuda_stream(c)>>>(*w, factor, dst, ld);
        CUDA_LAUNCHED(c);
        return;
    }
    if (flat) rows = n / PIECE, cols = ld = PIECE;
    struct source s = {};
    s.data = from, s.scale = w->scale, s.factor = factor, s.rows = (unsigned)rows, s.pieces = (unsigned)(cols / PIECE);
    switch (w->format) {
    case W_F32: launch<W_F32>(c, &s, dst, ld); break;
    case W_BF16: launch<W_BF16>(c, &s, dst, ld); break;
    case W_INT8: launch<W_INT8>(c, &s, dst, ld); break;
    case W_Q4:
        s.scale = v->absmax ? v->absmax : v->nested_absmax, s.scale_q = v->absmax_q, s.map = v->nested_map, s.levels = v->levels, s.offset = v->nested_offset;
        s.block_bits = log2_up(v->block / PIECE);
        if (v->absmax) launch<W_Q4>(c, &s, dst, ld);
        else launch<DOUBLE_Q4>(c, &s, dst, ld);
        break;
    }
    CUDA_LAUNCHED(c);
}
void cuda_unpack_to(struct cuda *c, const struct weight *w, bf16 *dst, int64_t ld) { unpack_scaled(c, w, 1, dst, ld); }

void cuda_adapter_to(struct cuda *c, const float *src, int64_t rows, int64_t cols, float scale, bf16 *dst, int64_t ld) {
    struct weight w = {};
    w.format = W_F32, w.rows = rows, w.cols = cols, w.data = src;
    unpack_scaled(c, &w, scale, dst, ld);
}

void cuda_to_bf16(struct cuda *c, bf16 *dst, const float *src, int64_t n) { cuda_adapter_to(c, src, 1, n, 1, dst, n); }

const bf16 *cuda_unpack(struct cuda *c, const struct weight *w, bf16 *dst) {
    if (w->format == W_BF16) return (const bf16 *)w->data;
    cuda_unpack_to(c, w, dst, w->cols);
    return dst;
}
