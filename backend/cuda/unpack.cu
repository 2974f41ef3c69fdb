/* backend/cuda/unpack.cu - frozen weights become bf16 operands of the matrix units.
 *
 *     w[i] = bf16(level(code i) * scale(i / block)),  scale = map[q] * nested + offset when double quantised
 *
 * Same bits as nf4/ on the CPU (q4_decode, int8_decode): products and sums of nf4.h round to nearest, nothing is fused.
 * Pinned by tests/ops (unpacked bits) and by nf4's goldens. */
#include "backend/cuda/cuda_internal.h"

enum { THREADS = 256, PER_THREAD = 32 };

/* thread: 32 weights = 16 bytes of codes in, 64 bytes out; 32 divides every block size, so they share one scale.
 * 0.5 + 1/64 bytes in and 2 out a weight: bound by memory. n % 32 == 0. */
__global__ static void unpack_q4(struct q4_view v, bf16 *out, int64_t groups) {
    __shared__ float levels[16];
    if (threadIdx.x < 16) levels[threadIdx.x] = v.levels[threadIdx.x];
    __syncthreads();
    int64_t g = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (g >= groups) return;
    uint4 codes = __ldcs((const uint4 *)v.codes + g); /* read once: first out of the cache */
    float scale = q4_scale(&v, g * PER_THREAD / v.block);
    const uint32_t word[4] = {codes.x, codes.y, codes.z, codes.w};
    uint4 *to = (uint4 *)(out + g * PER_THREAD);
#pragma unroll
    for (int w = 0; w < 4; w++) {
        uint4 packed;
        uint32_t *half = (uint32_t *)&packed;
#pragma unroll
        for (int b = 0; b < 4; b++) { /* byte b holds elements 2b (high nibble) and 2b+1 */
            uint32_t byte = word[w] >> (8 * b);
            __nv_bfloat162 pair = __floats2bfloat162_rn(__fmul_rn(levels[byte >> 4 & 15], scale), __fmul_rn(levels[byte & 15], scale));
            half[b] = *(uint32_t *)&pair;
        }
        to[w] = packed;
    }
}
/* The rest behind the last whole group, one weight a thread. */
__global__ static void unpack_q4_tail(struct q4_view v, bf16 *out, int64_t first, int64_t n) {
    int64_t i = first + threadIdx.x;
    if (i < n) out[i] = __float2bfloat16_rn(q4_value(&v, i));
}

/* w = q * int8_unit(s[row]). thread: 16 weights of one row, or one at a row's end. */
__global__ static void unpack_int8(const int8_t *q, const float *s, bf16 *out, int64_t cols) {
    const int8_t *row = q + blockIdx.y * cols;
    bf16 *to = out + blockIdx.y * cols;
    float unit = int8_unit(s[blockIdx.y]);
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < cols; i += (int64_t)gridDim.x * THREADS) to[i] = __float2bfloat16_rn(__fmul_rn((float)row[i], unit));
}

__global__ static void to_bf16(bf16 *dst, const float *src, int64_t n) {
    int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * 4;
    for (int k = 0; k < 4; k++)
        if (i + k < n) dst[i + k] = __float2bfloat16_rn(src[i + k]);
}
void cuda_to_bf16(struct cuda *c, bf16 *dst, const float *src, int64_t n) {
    to_bf16<<<(unsigned)ceil_div(n, THREADS * 4), THREADS, 0, cuda_stream(c)>>>(dst, src, n);
    CUDA_LAUNCHED(c);
}

const bf16 *cuda_unpack(struct cuda *c, const struct weight *w, bf16 *dst) {
    int64_t n = w->rows * w->cols, groups = n / PER_THREAD;
    switch (w->format) {
    case W_BF16: return (const bf16 *)w->data;
    case W_F32: cuda_to_bf16(c, dst, (const float *)w->data, n); break;
    case W_INT8: {
        dim3 grid((unsigned)ceil_div(w->cols, THREADS * 8), (unsigned)w->rows);
        for (int64_t r = 0; r < w->rows; r += 65535) {
            grid.y = (unsigned)(w->rows - r < 65535 ? w->rows - r : 65535);
            unpack_int8<<<grid, THREADS, 0, cuda_stream(c)>>>((const int8_t *)w->data + r * w->cols, w->scale + r, dst + r * w->cols, w->cols);
        }
        break;
    }
    case W_Q4:
        if (groups) unpack_q4<<<(unsigned)ceil_div(groups, THREADS), THREADS, 0, cuda_stream(c)>>>(w->q4, dst, groups);
        if (n % PER_THREAD) unpack_q4_tail<<<1, PER_THREAD, 0, cuda_stream(c)>>>(w->q4, dst, groups * PER_THREAD, n);
        break;
    }
    CUDA_LAUNCHED(c);
    return dst;
}

__global__ static void adapter_to(const float *src, int64_t cols, float scale, bf16 *dst, int64_t ld, int64_t n) {
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS) dst[i / cols * ld + i % cols] = __float2bfloat16_rn(scale * src[i]);
}
void cuda_adapter_to(struct cuda *c, const float *src, int64_t rows, int64_t cols, float scale, bf16 *dst, int64_t ld) {
    adapter_to<<<(unsigned)(4 * c->sms), THREADS, 0, cuda_stream(c)>>>(src, cols, scale, dst, ld, rows * cols);
    CUDA_LAUNCHED(c);
}
__global__ static void unpack_any(struct weight w, bf16 *dst, int64_t ld) {
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < w.rows * w.cols; i += (int64_t)gridDim.x * THREADS) {
        int64_t r = i / w.cols;
        float v = w.format == W_BF16 ? __bfloat162float(((const bf16 *)w.data)[i]) : w.format == W_F32 ? ((const float *)w.data)[i] : w.format == W_Q4 ? q4_value(&w.q4, i) : __fmul_rn((float)((const int8_t *)w.data)[i], int8_unit(w.scale[r]));
        dst[r * ld + i % w.cols] = __float2bfloat16_rn(v);
    }
}
void cuda_unpack_to(struct cuda *c, const struct weight *w, bf16 *dst, int64_t ld) {
    unpack_any<<<(unsigned)(8 * c->sms), THREADS, 0, cuda_stream(c)>>>(*w, dst, ld);
    CUDA_LAUNCHED(c);
}
