/* backend/cuda/dora.cu - the magnitudes of DoRA: row norms of W + s B A, scaled rows of an operand, the gradient by magnitudes.
 *
 * Norms are wanted once a layer and step, whatever the batch, so they are made from the stored weight in fp32 beside whatever
 * operand a call uses. Every sum has a fixed order. */
#include "backend/cuda/cuda_internal.h"

enum { THREADS = 256, WARPS = THREADS / 32, ROWS = 16, RANKS = 64 };

__device__ static inline float stored(const struct weight &w, int64_t row, int64_t col) { /* as products see it */
    const int64_t i = row * w.cols + col;
    float v = 0;
    switch (w.format) {
    case W_F32: v = ((const float *)w.data)[i]; break;
    case W_BF16: return __bfloat162float(((const bf16 *)w.data)[i]);
    case W_INT8: v = __fmul_rn((float)((const int8_t *)w.data)[i], int8_unit(w.scale[row])); break;
    case W_Q4: v = q4_value(&w.q4, i); break;
    }
    return __bfloat162float(__float2bfloat16_rn(v));
}

/* norm[o] = |W_o + s B_o A|, c[o] = m[o] / norm[o].  block: 16 rows of W; a thread goes along two columns of A at a time, whose R
 * elements it reads once for the 16 rows, s B being in shared memory. 2 R FLOPs a weight, bound by them: 8.6 GFLOP for a layer
 * of 2B at rank 64. */
__global__ static void __launch_bounds__(THREADS)
    row_norms(const struct weight w, const float *A, int64_t lda, const float *B, int64_t ldb, int R, float scale, const float *m,
              float *norm, float *c) {
    __shared__ __align__(16) float b[RANKS][ROWS];
    __shared__ float part[WARPS][ROWS];
    const int64_t row0 = (int64_t)blockIdx.x * ROWS;
    const int rows = w.rows - row0 < ROWS ? (int)(w.rows - row0) : ROWS, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float square[ROWS] = {};
    for (int64_t first = 0; first < w.cols; first += 2 * THREADS) {
        const int64_t i0 = first + threadIdx.x, i1 = i0 + THREADS;
        float sum[ROWS][2] = {};
        for (int r0 = 0; r0 < R; r0 += RANKS) {
            const int n = R - r0 < RANKS ? R - r0 : (int)RANKS;
            if (first == 0 || R > RANKS) { /* else it is there already */
                __syncthreads();
                for (int k = threadIdx.x; k < RANKS * ROWS; k += THREADS) {
                    const int r = k / ROWS, o = k % ROWS;
                    b[r][o] = r < n && o < rows ? scale * B[(row0 + o) * ldb + r0 + r] : 0.f;
                }
                __syncthreads();
            }
            for (int r = 0; r < n; r++) {
                const float a0 = i0 < w.cols ? A[(r0 + r) * lda + i0] : 0.f, a1 = i1 < w.cols ? A[(r0 + r) * lda + i1] : 0.f;
#pragma unroll
                for (int o = 0; o < ROWS; o += 4) {
                    const float4 v = *(const float4 *)&b[r][o];
                    sum[o][0] += v.x * a0, sum[o + 1][0] += v.y * a0, sum[o + 2][0] += v.z * a0, sum[o + 3][0] += v.w * a0;
                    sum[o][1] += v.x * a1, sum[o + 1][1] += v.y * a1, sum[o + 2][1] += v.z * a1, sum[o + 3][1] += v.w * a1;
                }
            }
        }
#pragma unroll
        for (int o = 0; o < ROWS; o++) {
            if (o >= rows) break;
            const float v0 = i0 < w.cols ? stored(w, row0 + o, i0) + sum[o][0] : 0.f,
                        v1 = i1 < w.cols ? stored(w, row0 + o, i1) + sum[o][1] : 0.f;
            square[o] += v0 * v0 + v1 * v1;
        }
    }
#pragma unroll
    for (int o = 0; o < ROWS; o++) {
        for (int k = 16; k; k >>= 1) square[o] += __shfl_xor_sync(~0u, square[o], k);
        if (lane == 0) part[warp][o] = square[o];
    }
    __syncthreads();
    const int o = threadIdx.x;
    if (o >= rows) return;
    float all = 0;
    for (int k = 0; k < WARPS; k++) all += part[k][o];
    all = sqrtf(all);
    if (norm) norm[row0 + o] = all;
    if (m) c[row0 + o] = all > 0.f ? m[row0 + o] / all : 0.f;
}

void cuda_dora(void *self, const struct dora_args *a) {
    struct cuda *c = (struct cuda *)self;
    const struct adapter *l = &a->lora;
    row_norms<<<(unsigned)ceil_div(a->w.rows, ROWS), THREADS, 0, cuda_stream(c)>>>(a->w, (const float *)l->A.data, l->A.ld,
                                                                                   (const float *)l->B.data, l->B.ld,
                                                                                   (int)l->A.rows, l->scale, l->m, a->norm, l->c);
    CUDA_LAUNCHED(c);
}

/* thread: eight columns of a row; 4 bytes an element, bound by memory. */
__global__ static void scale_rows(bf16 *x, int64_t ld, int64_t cols, const float *by_row) {
    const int64_t i = ((int64_t)blockIdx.y * THREADS + threadIdx.x) * 8;
    const float by = by_row[blockIdx.x];
    bf16 *p = x + (int64_t)blockIdx.x * ld + i;
    if (i + 8 <= cols && (uintptr_t)p % 16 == 0) {
        uint4 u = *(const uint4 *)p;
        __nv_bfloat162 *half = (__nv_bfloat162 *)&u;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float2 f = __bfloat1622float2(half[k]);
            half[k] = __floats2bfloat162_rn(by * f.x, by * f.y);
        }
        *(uint4 *)p = u;
        return;
    }
    for (int k = 0; k < 8 && i + k < cols; k++) p[k] = __float2bfloat16_rn(by * __bfloat162float(p[k]));
}
void cuda_scale_rows(struct cuda *c, bf16 *x, int64_t ld, int64_t rows, int64_t cols, const float *by_row) {
    scale_rows<<<dim3((unsigned)rows, (unsigned)ceil_div(cols, THREADS * 8)), THREADS, 0, cuda_stream(c)>>>(x, ld, cols, by_row);
    CUDA_LAUNCHED(c);
}

/* part[s][i] = Σ_t dy[t][i] y[t][i] over sequence s: eight warps take its rows in turn, their sums are added in order. block: 32
 * columns of one sequence; 4 bytes an element, bound by memory. */
__global__ static void column_products(const bf16 *dy, int64_t ld_dy, const bf16 *y, int64_t ld_y, int64_t cols,
                                       const __grid_constant__ struct seq_list s, float *part) {
    __shared__ float sum[WARPS][32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t i = (int64_t)blockIdx.x * 32 + lane;
    float x = 0;
#pragma unroll 8
    for (int t = s.at[blockIdx.y] + warp; t < s.at[blockIdx.y + 1]; t += WARPS)
        x += i < cols ? __bfloat162float(dy[t * ld_dy + i]) * __bfloat162float(y[t * ld_y + i]) : 0.f;
    sum[warp][lane] = x;
    __syncthreads();
    if (warp || i >= cols) return;
    for (int w = 1; w < WARPS; w++) x += sum[w][lane];
    part[blockIdx.y * cols + i] = x;
}
/* dm[i] += part[s][i] / m[i], sequence by sequence */
__global__ static void add_shares(float *dm, const float *m, int64_t n, const float *part, int parts) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n || m[i] == 0.f) return;
    float sum = dm[i];
    for (int k = 0; k < parts; k++) sum += part[k * n + i] / m[i];
    dm[i] = sum;
}

void cuda_dora_bwd(void *self, const struct dora_args *a) {
    struct cuda *c = (struct cuda *)self;
    const int64_t cols = a->y.cols, fit = (int64_t)c->partial_elements / cols;
    ASSERT(fit, "%lld columns of %zu", (long long)cols, c->partial_elements);
    for (int first = 0; first < a->rows->n_seqs;) {
        struct seq_list s = seq_list_of(a->rows, first);
        if (s.n > fit) s.n = (int)fit;
        column_products<<<dim3((unsigned)ceil_div(cols, 32), (unsigned)s.n), THREADS, 0, cuda_stream(c)>>>(
            (const bf16 *)a->dy.data, a->dy.ld, (const bf16 *)a->y.data, a->y.ld, cols, s, c->partial);
        add_shares<<<(unsigned)ceil_div(cols, THREADS), THREADS, 0, cuda_stream(c)>>>(a->lora.dm, a->lora.m, cols, c->partial, s.n);
        CUDA_LAUNCHED(c);
        first += s.n;
    }
}
