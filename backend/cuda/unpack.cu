/* backend/cuda/unpack.cu - frozen weights and adapters become bf16 operands of the matrix units.
 *
 *     w[i] = bf16(level(code i) * scale(i / block)),  scale = map[q] * nested + offset when double quantised
 *
 * Same bits as nf4/ on the CPU (q4_decode, int8_decode): products and sums of nf4.h round to nearest, nothing is fused.
 * The destination has a row stride, so that operands may be laid side by side in one wider matrix; what lies between its
 * rows stays as it was. Pinned by tests/ops (unpacked bits) and by nf4's goldens. */
#include "backend/cuda/cuda_internal.h"

enum { THREADS = 256, ROWS = 2, PIECE = 8 };
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
    float scale = FORMAT == DOUBLE_Q4 ? __fadd_rn(__fmul_rn(s.map[p.a.y], p.scale), s.offset)
                  : FORMAT == W_INT8  ? int8_unit(p.scale)
                  : FORMAT == W_Q4    ? p.scale
                                      : s.factor;
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

/* What one launch writes: parts of operands, each its own matrix. */
enum { ZERO = 8, PARTS = 9 /* both weights, A and B of a joint operand, and the zeros between */ };
struct part {
    struct source s;
    bf16 *dst;
    int64_t ld;
    unsigned tiles, first; /* blocks across; this part's first block */
    int lane_bits, format; /* the weights' format, W_F32 or ZERO */
};
struct parts { struct part part[PARTS]; int n; unsigned blocks; };

/* dst[r][j] = bf16(w[r][j]).  lanes = 2^lane_bits neighbouring threads walk along a row, 8 weights each, so a warp writes
 * whole lines; a block has THREADS / lanes rows at a time and ROWS times as many in all, every load ahead of the first store. */
template <int FORMAT> __device__ static inline void unpack_block(const struct part &t, const float *levels, unsigned block) {
    const struct source &s = t.s;
    unsigned band = block / t.tiles, tile = block % t.tiles, rows = THREADS >> t.lane_bits;
    unsigned row = band * (rows * ROWS) + (threadIdx.x >> t.lane_bits),
             col = (tile << t.lane_bits) + (threadIdx.x & ((1u << t.lane_bits) - 1));
    struct piece p[ROWS];
#pragma unroll
    for (unsigned k = 0; FORMAT != ZERO && k < ROWS; k++) p[k] = fetch<FORMAT>(s, min(row + k * rows, s.rows - 1), min(col, s.pieces - 1));
    if (FORMAT == W_Q4 || FORMAT == DOUBLE_Q4) __syncthreads(); /* levels are there */
    bf16 *to = t.dst + row * t.ld + (int64_t)col * PIECE;
#pragma unroll
    for (unsigned k = 0; k < ROWS; k++) {
        uint4 v = {0, 0, 0, 0};
        if (FORMAT != ZERO) v = decode<FORMAT>(s, p[k], levels);
        if (col < s.pieces && row + k * rows < s.rows) *(uint4 *)(to + k * rows * t.ld) = v;
    }
}

/* The 16 levels lie in 16 banks of shared memory: no conflicts. NF4: 0.5 + 1/64 bytes in and 2 out a weight, bound by memory.
 * cols % 8 == 0, ld % 8 == 0, pointers at multiples of 16 bytes. */
template <int FORMAT> __global__ __launch_bounds__(THREADS) static void unpack(const __grid_constant__ struct parts a) {
    __shared__ float levels[16];
    int k = 0;
    while (k + 1 < a.n && blockIdx.x >= a.part[k + 1].first) k++;
    const struct part &t = a.part[k];
    unsigned block = blockIdx.x - t.first;
    if (t.format == ZERO) unpack_block<ZERO>(t, levels, block);
    else if (FORMAT != W_F32 && t.format == W_F32) unpack_block<W_F32>(t, levels, block);
    else {
        if ((FORMAT == W_Q4 || FORMAT == DOUBLE_Q4) && threadIdx.x < 16) levels[threadIdx.x] = t.s.levels[threadIdx.x];
        unpack_block<FORMAT>(t, levels, block);
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

static void launch(struct cuda *c, struct parts *a) {
    int format = W_F32; /* of the weights; adapters alone are fp32 */
    for (int i = 0; i < a->n; i++)
        if (a->part[i].format != ZERO && a->part[i].format != W_F32) format = a->part[i].format;
    if (!a->n) return;
    switch (format) {
    case W_F32: unpack<W_F32><<<a->blocks, THREADS, 0, cuda_stream(c)>>>(*a); break;
    case W_BF16: unpack<W_BF16><<<a->blocks, THREADS, 0, cuda_stream(c)>>>(*a); break;
    case W_INT8: unpack<W_INT8><<<a->blocks, THREADS, 0, cuda_stream(c)>>>(*a); break;
    case W_Q4: unpack<W_Q4><<<a->blocks, THREADS, 0, cuda_stream(c)>>>(*a); break;
    case DOUBLE_Q4: unpack<DOUBLE_Q4><<<a->blocks, THREADS, 0, cuda_stream(c)>>>(*a); break;
    }
    CUDA_LAUNCHED(c);
    a->n = 0, a->blocks = 0;
}

/* Adds w (NULL: zeros of rows x cols) to the launch, or writes it at once where pieces of eight do not fit. */
static void add(struct cuda *c, struct parts *a, const struct weight *w, float factor, int64_t rows, int64_t cols, bf16 *dst, int64_t ld) {
    int64_t n = rows * cols;
    if (!n) return;
    const struct q4_view *v = w ? &w->q4 : NULL;
    const void *from = !w ? dst : w->format == W_Q4 ? (const void *)v->codes : w->data;
    int flat = ld == cols && n % PIECE == 0 && w && w->format != W_INT8; /* no stride: rows of one piece */
    if ((!flat && (cols % PIECE || ld % PIECE)) || (uintptr_t)from % 16 || (uintptr_t)dst % 16 || n / PIECE > UINT32_MAX / 2) {
        int64_t blocks = ceil_div(n, THREADS);
        if (!w) CUDA_TRY(c, cudaMemset2DAsync(dst, (size_t)ld * 2, 0, (size_t)cols * 2, (size_t)rows, cuda_stream(c)));
        else unpack_any<<<(unsigned)(blocks < 16 * c->sms ? blocks : 16 * c->sms), THREADS, 0, cuda_stream(c)>>>(*w, factor, dst, ld);
        CUDA_LAUNCHED(c);
        return;
    }
    if (flat) rows = n / PIECE, cols = ld = PIECE;
    struct part t = {};
    t.s.data = from, t.s.factor = factor, t.s.rows = (unsigned)rows, t.s.pieces = (unsigned)(cols / PIECE);
    t.dst = dst, t.ld = ld, t.format = w ? (int)w->format : (int)ZERO;
    if (t.format == W_INT8) t.s.scale = w->scale;
    if (t.format == W_Q4) {
        t.s.scale = v->absmax ? v->absmax : v->nested_absmax, t.s.scale_q = v->absmax_q, t.s.map = v->nested_map,
        t.s.levels = v->levels, t.s.offset = v->nested_offset;
        t.s.block_bits = log2_up(v->block / PIECE);
        if (!v->absmax) t.format = DOUBLE_Q4;
    }
    for (int i = 0; i < a->n; i++) /* one format of weights a launch */
        if (t.format != ZERO && t.format != W_F32 && a->part[i].format != ZERO && a->part[i].format != W_F32 &&
            a->part[i].format != t.format)
            launch(c, a);
    t.lane_bits = t.s.pieces < THREADS ? log2_up(t.s.pieces) : log2_up(THREADS);
    t.tiles = (unsigned)ceil_div(t.s.pieces, 1 << t.lane_bits);
    t.first = a->blocks;
    a->blocks += t.tiles * (unsigned)ceil_div(t.s.rows, (THREADS >> t.lane_bits) * ROWS);
    a->part[a->n++] = t;
    if (a->n == PARTS) launch(c, a);
}

static void unpack_scaled(struct cuda *c, const struct weight *w, float factor, bf16 *dst, int64_t ld) {
    struct parts a = {};
    add(c, &a, w, factor, w->rows, w->cols, dst, ld);
    launch(c, &a);
}
void cuda_unpack_to(struct cuda *c, const struct weight *w, bf16 *dst, int64_t ld) { unpack_scaled(c, w, 1, dst, ld); }

void cuda_to_bf16(struct cuda *c, bf16 *dst, const float *src, int64_t n) {
    struct weight w = {};
    w.format = W_F32, w.rows = 1, w.cols = n, w.data = src;
    unpack_scaled(c, &w, 1, dst, n);
}

const bf16 *cuda_unpack(struct cuda *c, const struct weight *w, bf16 *dst) {
    if (w->format == W_BF16) return (const bf16 *)w->data;
    cuda_unpack_to(c, w, dst, w->cols);
    return dst;
}

/* An adapter's matrix, as a weight. */
static struct weight fp32(const struct mat *m) {
    struct weight w = {};
    w.format = W_F32, w.rows = m->rows, w.cols = m->cols, w.data = m->data;
    return w;
}

/* [W_0 s_0B_0 0; W_1 0 s_1B_1; A_0 0 0; A_1 0 0] in one launch; magnitudes scale their rows in one more. */
void cuda_join(void *self, const struct join_args *a) {
    struct cuda *c = (struct cuda *)self;
    struct parts parts = {};
    int64_t height, width, in = a->part[0].w.cols, ld = a->to.ld, row = 0, rank = 0;
    bf16 *to = (bf16 *)a->to.data;
    join_shape(a, &height, &width);
    for (int i = 0; i < a->n; i++) {
        const struct adapter *l = &a->part[i].lora;
        int64_t out = a->part[i].w.rows, R = l->A.data ? l->A.rows : 0;
        add(c, &parts, &a->part[i].w, 1, out, in, to + row * ld, ld);
        add(c, &parts, NULL, 0, out, rank, to + row * ld + in, ld);
        if (R) {
            struct weight B = fp32(&l->B);
            add(c, &parts, &B, l->scale, out, R, to + row * ld + in + rank, ld);
        }
        add(c, &parts, NULL, 0, out, width - in - rank - R, to + row * ld + in + rank + R, ld);
        row += out, rank += R;
    }
    add(c, &parts, NULL, 0, rank, rank, to + row * ld + in, ld);
    for (int i = 0; i < a->n; i++)
        if (a->part[i].lora.A.data) {
            struct weight A = fp32(&a->part[i].lora.A);
            add(c, &parts, &A, 1, A.rows, in, to + row * ld, ld), row += A.rows;
        }
    launch(c, &parts);
    row = 0;
    for (int i = 0; i < a->n; row += a->part[i++].w.rows)
        if (a->part[i].lora.m) cuda_scale_rows(c, to + row * ld, ld, a->part[i].w.rows, width, a->part[i].lora.c);
}
