/* backend/cuda/loss.cu - the loss head in slices of rows: no (N,V) tensor ever exists.
 *
 *     logits = y[row] Eᵀ;  nll = log Σ exp(logits) - logits[label];  dlogits = weight (softmax - onehot), in place;
 *     dy[row] = dlogits E;  dE += dlogitsᵀ y[row]
 *
 * With smoothing s the target is (1 - s) onehot + s / V: nll = log Σ exp(logits) - (1 - s) logits[label] - s mean(logits).
 *
 * Logits are bf16 between the products, as the gradient they become; maximum and sum are fp32. */
#include "backend/cuda/cuda_internal.h"

enum { THREADS = 512, SLICE_ROWS = 1024 };

/* to[j] = from[row[j]]; back: to[row[j]] = from[j]. block: one row. */
__global__ static void gather(const bf16 *from, int64_t ld_from, bf16 *to, int64_t ld_to, const int32_t *row, int64_t cols, int back) {
    int64_t j = blockIdx.x, src = back ? j : row[j], dst = back ? row[j] : j;
    for (int64_t i = threadIdx.x; i < cols; i += blockDim.x) to[dst * ld_to + i] = from[src * ld_from + i];
}

struct peak { float top, sum; }; /* Σ exp(x - top) */
__device__ static inline struct peak join(struct peak a, struct peak b) {
    float top = fmaxf(a.top, b.top);
    struct peak r = {top, (a.top > -INFINITY ? a.sum * __expf(a.top - top) : 0.f) +
                              (b.top > -INFINITY ? b.sum * __expf(b.top - top) : 0.f)};
    return r;
}

/* The first i with x_i = top, -1 if there is none (all NaN). block: the row, read once more from cache. The least of all
 * threads' finds does not depend on their order. */
__device__ static void find(const bf16 *x, int64_t V, float top, int32_t *at) {
    __shared__ unsigned least;
    __syncthreads(); /* the loads of the sums beside it are 16 bytes wide and take it along: racecheck sees that */
    if (threadIdx.x == 0) least = ~0u;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < V; i += THREADS)
        if (__bfloat162float(x[i]) == top) {
            atomicMin(&least, (unsigned)i);
            break;
        }
    __syncthreads();
    if (threadIdx.x == 0) *at = (int32_t)least;
}

/* mean[row] = Σ logits / V, for smoothing alone. block: one row, read once from memory (2 V bytes); the tree of sums is fixed. */
__global__ static void means(const bf16 *logits, int64_t V, float *mean) {
    __shared__ float part[THREADS / 32];
    const bf16 *x = logits + blockIdx.x * V;
    float sum = 0;
    for (int64_t i = threadIdx.x; i < V; i += THREADS) sum += __bfloat162float(x[i]);
    for (int s = 16; s; s >>= 1) sum += __shfl_xor_sync(~0u, sum, s);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x) return;
    for (int i = 1; i < THREADS / 32; i++) sum += part[i];
    mean[blockIdx.x] = sum / (float)V;
}

/* One row of logits: nll, the largest logit's id, and with weight the gradient in place. block: one row; logits are read from
 * memory once and, for the gradient, again from cache (2 V bytes in, 2 V out). The tree of joins is fixed. V % 8 == 0 goes 16
 * bytes at a time. With smoothing, nll holds the row's mean at first. */
__global__ static void softmax(bf16 *logits, int64_t V, const int32_t *label, const float *weight, float smoothing, float *nll,
                               int32_t *best) {
    __shared__ struct peak part[THREADS / 32];
    bf16 *x = logits + blockIdx.x * V;
    struct peak p = {-INFINITY, 0};
    int64_t whole = V % 8 ? 0 : V;
    for (int64_t i = (int64_t)threadIdx.x * 8; i < whole; i += THREADS * 8) {
        uint4 u = *(const uint4 *)(x + i);
        const bf16 *h = (const bf16 *)&u;
        float v[8], top = p.top;
#pragma unroll
        for (int k = 0; k < 8; k++) v[k] = __bfloat162float(h[k]), top = fmaxf(top, v[k]);
        float sum = p.top > -INFINITY ? p.sum * __expf(p.top - top) : 0.f;
#pragma unroll
        for (int k = 0; k < 8; k++) sum += __expf(v[k] - top);
        p.top = top, p.sum = sum;
    }
    for (int64_t i = whole + threadIdx.x; i < V; i += THREADS) {
        struct peak q = {__bfloat162float(x[i]), 1};
        p = join(p, q);
    }
    for (int s = 16; s; s >>= 1) {
        struct peak q = {__shfl_xor_sync(~0u, p.top, s), __shfl_xor_sync(~0u, p.sum, s)};
        p = join(p, q);
    }
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = p;
    __syncthreads();
    p = part[0];
    for (int i = 1; i < THREADS / 32; i++) p = join(p, part[i]);
    int32_t own = label[blockIdx.x];
    if (threadIdx.x == 0) {
        float at = __bfloat162float(x[own]);
        if (smoothing > 0) at = (1 - smoothing) * at + smoothing * nll[blockIdx.x];
        nll[blockIdx.x] = p.top + logf(p.sum) - at;
    }
    if (best) find(x, V, p.top, best + blockIdx.x);
    if (!weight) return;
    __syncthreads(); /* x[own] was read */
    float w = weight[blockIdx.x], scale = w / p.sum, spread = w * smoothing / (float)V, at_own = w * (1 - smoothing) + spread;
    for (int64_t i = (int64_t)threadIdx.x * 8; i < whole; i += THREADS * 8) {
        uint4 u = *(const uint4 *)(x + i);
        bf16 *h = (bf16 *)&u;
#pragma unroll
        for (int k = 0; k < 8; k++)
            h[k] = __float2bfloat16_rn(scale * __expf(__bfloat162float(h[k]) - p.top) - (i + k == own ? at_own : spread));
        *(uint4 *)(x + i) = u;
    }
    for (int64_t i = whole + threadIdx.x; i < V; i += THREADS)
        x[i] = __float2bfloat16_rn(scale * __expf(__bfloat162float(x[i]) - p.top) - (i == own ? at_own : spread));
}

static size_t align256(size_t n) { return (n + 255) / 256 * 256; }

void cuda_loss(void *self, const struct loss_args *a) {
    struct cuda *c = (struct cuda *)self;
    int64_t D = a->y.cols, V = a->E.rows, slice = (int64_t)((a->work_bytes - 512) / (size_t)(2 * (V + D)));
    if (slice > SLICE_ROWS) slice = SLICE_ROWS;
    ASSERT(slice >= 1 && a->work_bytes >= 512, "%zu bytes for a row of %lld logits", a->work_bytes, (long long)V);
    bf16 *logits = (bf16 *)a->work, *y = (bf16 *)((char *)a->work + align256((size_t)(slice * V) * 2));
    const bf16 *E = cuda_unpack(c, &a->E, c->loss_e); /* its own memory, or a copy when it is fp32 */
    int backward = a->dy.data || a->dE.data;
    if (a->dy.data) CUDA_TRY(c, cudaMemset2DAsync(a->dy.data, (size_t)a->dy.ld * 2, 0, (size_t)D * 2, (size_t)a->dy.rows, cuda_stream(c)));
    for (int64_t i = 0; i < a->n; i += slice) {
        int64_t n = a->n - i < slice ? a->n - i : slice;
        gather<<<(unsigned)n, 256, 0, cuda_stream(c)>>>((const bf16 *)a->y.data, a->y.ld, y, D, a->row + i, D, 0);
        struct gemm g = {};
        g.a = y, g.lda = D, g.b = E, g.ldb = D, g.tb = 1, g.c = logits, g.ldc = V, g.m = n, g.n = V, g.k = D, g.alpha = 1;
        cuda_gemm(c, &g);
        if (a->smoothing > 0) means<<<(unsigned)n, THREADS, 0, cuda_stream(c)>>>(logits, V, a->nll + i);
        softmax<<<(unsigned)n, THREADS, 0, cuda_stream(c)>>>(logits, V, a->label + i, backward ? a->weight + i : NULL,
                                                             a->smoothing, a->nll + i, a->best ? a->best + i : NULL);
        CUDA_LAUNCHED(c);
        if (a->dE.data) {
            struct gemm d = {};
            d.a = logits, d.lda = V, d.ta = 1, d.b = y, d.ldb = D, d.c = a->dE.data, d.add = a->dE.data, d.ldc = d.ld_add = a->dE.ld;
            d.m = V, d.n = D, d.k = n, d.alpha = 1, d.c_f32 = 1;
            cuda_gemm(c, &d);
        }
        if (!a->dy.data) continue;
        struct gemm d = {};
        d.a = logits, d.lda = V, d.b = E, d.ldb = D, d.c = y, d.ldc = D, d.m = n, d.n = D, d.k = V, d.alpha = 1;
        cuda_gemm(c, &d);
        gather<<<(unsigned)n, 256, 0, cuda_stream(c)>>>(y, D, (bf16 *)a->dy.data, a->dy.ld, a->row + i, D, 1);
        CUDA_LAUNCHED(c);
    }
}

size_t cuda_loss_workspace(struct cuda *c, const struct backend_limits *l, char *at) {
    c->loss_e = (bf16 *)at;
    return l->head_f32 ? align256((size_t)(l->V * l->D) * 2) : 0;
}
