/* backend/cuda/rows.cu - ops that treat token rows one by one: embedding, RMSNorm, rotation, silu-gate, and their backward.
 *
 * All are bound by memory: each element is read once and written once, 16 bytes a load where the row allows it. */
#include "backend/cuda/cuda_internal.h"

enum { THREADS = 256 };

/* Eight neighbouring bf16 as fp32. VEC = 8: one 16-byte access; VEC = 1: any address and any width. */
template <int VEC> __device__ static inline void load(const bf16 *p, float v[VEC]) {
    if (VEC == 8) {
        uint4 u = *(const uint4 *)p;
        const __nv_bfloat162 *h = (const __nv_bfloat162 *)&u;
        for (int i = 0; i < 4; i++) {
            float2 f = __bfloat1622float2(h[i]);
            v[2 * i] = f.x, v[2 * i + 1] = f.y;
        }
    } else v[0] = __bfloat162float(p[0]);
}
template <int VEC> __device__ static inline void store(bf16 *p, const float v[VEC]) {
    if (VEC == 8) {
        uint4 u;
        __nv_bfloat162 *h = (__nv_bfloat162 *)&u;
        for (int i = 0; i < 4; i++) h[i] = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
        *(uint4 *)p = u;
    } else p[0] = __float2bfloat16_rn(v[0]);
}
static int wide(const struct mat *m) { return m->cols % 8 == 0 && m->ld % 8 == 0 && (uintptr_t)m->data % 16 == 0; }

/* Sum over a block of THREADS; every thread gets it. A fixed tree: same bits each run. */
__device__ static inline float block_sum(float x) {
    __shared__ float part[THREADS / 32];
    for (int s = 16; s; s >>= 1) x += __shfl_xor_sync(~0u, x, s);
    __syncthreads(); /* part may still be read from the call before */
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
    for (int i = 0; i < THREADS / 32; i++) x += part[i];
    return x;
}

/* ---- embedding ---- */

/* y[t] = E[ids[t]]. block: one row. 2 D bytes in (4 D from fp32), 2 D out. */
template <typename T> __global__ static void embed(const int32_t *ids, const T *E, int64_t lde, bf16 *y, int64_t ldy, int64_t D) {
    const T *e = E + (int64_t)ids[blockIdx.x] * lde;
    for (int64_t i = threadIdx.x; i < D; i += THREADS) y[blockIdx.x * ldy + i] = (bf16)(float)e[i];
}
void cuda_embed(void *self, const struct embed_args *a) {
    struct cuda *c = (struct cuda *)self;
    bf16 *y = (bf16 *)a->y.data;
    unsigned n = (unsigned)a->y.rows;
    if (a->E.type == DT_F32) embed<<<n, THREADS, 0, cuda_stream(c)>>>(a->ids, (const float *)a->E.data, a->E.ld, y, a->y.ld, a->y.cols);
    else embed<<<n, THREADS, 0, cuda_stream(c)>>>(a->ids, (const bf16 *)a->E.data, a->E.ld, y, a->y.ld, a->y.cols);
    CUDA_LAUNCHED(c);
}

/* dE[ids[t]] += dy[t] in token order. A thread owns a column and walks all tokens, so no two write the same number.
 * 2 N D bytes in, 8 N D through cache: only full fine-tuning comes here. */
__global__ static void embed_bwd(const int32_t *ids, const bf16 *dy, int64_t ldy, float *dE, int64_t lde, int64_t N, int64_t D, int32_t skip) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= D) return;
    for (int64_t t = 0; t < N; t++) {
        int32_t id = ids[t];
        if (id != skip) dE[id * lde + i] += __bfloat162float(dy[t * ldy + i]);
    }
}
void cuda_embed_bwd(void *self, const struct embed_args *a) {
    struct cuda *c = (struct cuda *)self;
    embed_bwd<<<(unsigned)ceil_div(a->dy.cols, 32), 32, 0, cuda_stream(c)>>>(a->ids, (const bf16 *)a->dy.data, a->dy.ld, (float *)a->dE.data, a->dE.ld, a->dy.rows, a->dy.cols, a->skip);
    CUDA_LAUNCHED(c);
}

/* ---- RMSNorm ---- */

/* y = bf16(g * bf16(x r)), r = 1/sqrt(mean x² + eps). block: one row, kept in registers between the two passes when it has at
 * most THREADS * VEC * 4 columns (8192), read again from cache beyond. 4 D bytes a row. */
template <int VEC> __global__ static void norm(const bf16 *x, int64_t ldx, const float *g32, const bf16 *g16, bf16 *y, int64_t ldy, float *r_out, int64_t D, float eps) {
    const bf16 *row = x + blockIdx.x * ldx;
    float v[4][VEC], sum = 0;
    for (int64_t i = threadIdx.x * VEC, k = 0; i < D; i += THREADS * VEC, k++) {
        float w[VEC];
        load<VEC>(row + i, w);
#pragma unroll
        for (int j = 0; j < VEC; j++) sum += w[j] * w[j];
#pragma unroll
        for (int n = 0; n < 4; n++)
            if (n == k)
                for (int j = 0; j < VEC; j++) v[n][j] = w[j];
    }
    float r = rsqrtf(block_sum(sum) / (float)D + eps);
    if (r_out && threadIdx.x == 0) r_out[blockIdx.x] = r;
    for (int64_t i = threadIdx.x * VEC, k = 0; i < D; i += THREADS * VEC, k++) {
        float w[VEC];
        if (k >= 4) load<VEC>(row + i, w);
#pragma unroll
        for (int n = 0; n < 4; n++)
            if (n == k)
                for (int j = 0; j < VEC; j++) w[j] = v[n][j];
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            float n = __bfloat162float(__float2bfloat16_rn(w[j] * r));
            w[j] = n * (g32 ? g32[i + j] : __bfloat162float(g16[i + j]));
        }
        store<VEC>(y + blockIdx.x * ldy + i, w);
    }
}
void cuda_norm(void *self, const struct norm_args *a) {
    struct cuda *c = (struct cuda *)self;
    const float *g32 = a->g_type == DT_F32 ? (const float *)a->g : NULL;
    const bf16 *g16 = g32 ? NULL : (const bf16 *)a->g, *x = (const bf16 *)a->x.data;
    bf16 *y = (bf16 *)a->y.data;
    unsigned n = (unsigned)a->x.rows;
    if (wide(&a->x) && wide(&a->y)) norm<8><<<n, THREADS, 0, cuda_stream(c)>>>(x, a->x.ld, g32, g16, y, a->y.ld, a->r, a->x.cols, a->eps);
    else norm<1><<<n, THREADS, 0, cuda_stream(c)>>>(x, a->x.ld, g32, g16, y, a->y.ld, a->r, a->x.cols, a->eps);
    CUDA_LAUNCHED(c);
}

/* dx (=|+=) r (dy g) - x r³ mean(dy g x). block: one row; the second pass reads x and dy from cache. 6 or 8 D bytes a row. */
template <int VEC> __global__ static void norm_bwd(const bf16 *x, int64_t ldx, const bf16 *dy, int64_t ldy, const float *g32, const bf16 *g16, const float *r_in,
                                                   bf16 *dx, int64_t lddx, int64_t D, int add) {
    const bf16 *xr = x + blockIdx.x * ldx, *dr = dy + blockIdx.x * ldy;
    bf16 *out = dx + blockIdx.x * lddx;
    float sum = 0, r = r_in[blockIdx.x];
    for (int64_t i = threadIdx.x * VEC; i < D; i += THREADS * VEC) {
        float v[VEC], d[VEC];
        load<VEC>(xr + i, v), load<VEC>(dr + i, d);
#pragma unroll
        for (int j = 0; j < VEC; j++) sum += v[j] * d[j] * (g32 ? g32[i + j] : __bfloat162float(g16[i + j]));
    }
    float mean = block_sum(sum) / (float)D * r * r * r;
    for (int64_t i = threadIdx.x * VEC; i < D; i += THREADS * VEC) {
        float v[VEC], d[VEC], o[VEC] = {0};
        load<VEC>(xr + i, v), load<VEC>(dr + i, d);
        if (add) load<VEC>(out + i, o);
#pragma unroll
        for (int j = 0; j < VEC; j++) o[j] += r * d[j] * (g32 ? g32[i + j] : __bfloat162float(g16[i + j])) - v[j] * mean;
        store<VEC>(out + i, o);
    }
}

/* dg[i] += Σ_t dy[t][i] x[t][i] r[t] over one sequence: rows in order, so chunks do not matter. A thread owns a column. */
__global__ static void norm_dg(const bf16 *x, int64_t ldx, const bf16 *dy, int64_t ldy, const float *r, float *dg, int64_t rows, int64_t D) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= D) return;
    float sum = 0;
    for (int64_t t = 0; t < rows; t++) sum += __bfloat162float(dy[t * ldy + i]) * __bfloat162float(x[t * ldx + i]) * r[t];
    dg[i] += sum;
}
void cuda_norm_bwd(void *self, const struct norm_args *a) {
    struct cuda *c = (struct cuda *)self;
    const float *g32 = a->g_type == DT_F32 ? (const float *)a->g : NULL;
    const bf16 *g16 = g32 ? NULL : (const bf16 *)a->g, *x = (const bf16 *)a->x.data, *dy = (const bf16 *)a->dy.data;
    for (int s = 0; a->dg && s < a->rows->n_seqs; s++) { /* before dx: it may be dy */
        int64_t first = a->rows->seq_start[s], n = a->rows->seq_start[s + 1] - first;
        norm_dg<<<(unsigned)ceil_div(a->x.cols, 32), 32, 0, cuda_stream(c)>>>(x + first * a->x.ld, a->x.ld, dy + first * a->dy.ld, a->dy.ld, a->r + first, a->dg, n, a->x.cols);
        CUDA_LAUNCHED(c);
    }
    unsigned n = (unsigned)a->x.rows;
    bf16 *dx = (bf16 *)a->dx.data;
    if (wide(&a->x) && wide(&a->dy) && wide(&a->dx)) norm_bwd<8><<<n, THREADS, 0, cuda_stream(c)>>>(x, a->x.ld, dy, a->dy.ld, g32, g16, a->r, dx, a->dx.ld, a->x.cols, !a->overwrite);
    else norm_bwd<1><<<n, THREADS, 0, cuda_stream(c)>>>(x, a->x.ld, dy, a->dy.ld, g32, g16, a->r, dx, a->dx.ld, a->x.cols, !a->overwrite);
    CUDA_LAUNCHED(c);
}

/* ---- rotation ---- */

/* In place: pairs (i, i+K/2) of every K columns turn by position * 10000^(-2i/K). block: one row; its K/2 sines are made once
 * and serve all heads. 4 bytes an element. */
template <int VEC> __global__ static void rope(bf16 *x, int64_t ld, int64_t cols, int K, const int32_t *position, float sign) {
    extern __shared__ float table[]; /* cos[K/2], sin[K/2] */
    int half = K / 2;
    float p = (float)position[blockIdx.x];
    for (int i = threadIdx.x; i < half; i += THREADS) {
        float theta = 1.0f / powf(10000.0f, (float)(2 * i) / (float)K), s, co;
        sincosf(p * theta, &s, &co);
        table[i] = co, table[half + i] = sign * s;
    }
    __syncthreads();
    bf16 *row = x + blockIdx.x * ld;
    for (int64_t k = threadIdx.x * VEC; k < cols / 2; k += THREADS * VEC) {
        int64_t head = k / half, i = k % half;
        float a[VEC], b[VEC];
        load<VEC>(row + head * K + i, a), load<VEC>(row + head * K + half + i, b);
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            float u = a[j], w = b[j], co = table[i + j], s = table[half + i + j];
            a[j] = u * co - w * s, b[j] = w * co + u * s;
        }
        store<VEC>(row + head * K + i, a), store<VEC>(row + head * K + half + i, b);
    }
}
void cuda_rope(void *self, const struct rope_args *a) {
    struct cuda *c = (struct cuda *)self;
    unsigned n = (unsigned)a->x.rows;
    size_t shared = (size_t)a->K * 4;
    if (wide(&a->x) && a->K % 16 == 0) rope<8><<<n, THREADS, shared, cuda_stream(c)>>>((bf16 *)a->x.data, a->x.ld, a->x.cols, (int)a->K, a->rows->position, (float)a->sign);
    else rope<1><<<n, THREADS, shared, cuda_stream(c)>>>((bf16 *)a->x.data, a->x.ld, a->x.cols, (int)a->K, a->rows->position, (float)a->sign);
    CUDA_LAUNCHED(c);
}

/* ---- silu-gate ---- */

__device__ static inline float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }

/* y = g silu(u). thread: VEC elements. 6 bytes an element. */
template <int VEC> __global__ static void gate(const bf16 *g, int64_t ldg, const bf16 *u, int64_t ldu, bf16 *y, int64_t ldy, int64_t F) {
    int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * VEC, t = blockIdx.y;
    if (i >= F) return;
    float a[VEC], b[VEC];
    load<VEC>(g + t * ldg + i, a), load<VEC>(u + t * ldu + i, b);
#pragma unroll
    for (int j = 0; j < VEC; j++) a[j] *= b[j] * sigmoid(b[j]);
    store<VEC>(y + t * ldy + i, a);
}
/* dg = dy silu(u), du = dy g σ(u)(1 + u(1 - σ(u))), y again if asked. 10 or 12 bytes an element; dg may be g, du may be u. */
template <int VEC> __global__ static void gate_bwd(const bf16 *g, int64_t ldg, const bf16 *u, int64_t ldu, const bf16 *dy, int64_t lddy, bf16 *dg, int64_t lddg, bf16 *du, int64_t lddu,
                                                   bf16 *y, int64_t ldy, int64_t F) {
    int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * VEC, t = blockIdx.y;
    if (i >= F) return;
    float a[VEC], b[VEC], d[VEC], m[VEC];
    load<VEC>(g + t * ldg + i, a), load<VEC>(u + t * ldu + i, b), load<VEC>(dy + t * lddy + i, d);
#pragma unroll
    for (int j = 0; j < VEC; j++) {
        float s = sigmoid(b[j]), silu = b[j] * s;
        m[j] = a[j] * silu;
        b[j] = d[j] * a[j] * s * (1 + b[j] * (1 - s));
        a[j] = d[j] * silu;
    }
    store<VEC>(dg + t * lddg + i, a), store<VEC>(du + t * lddu + i, b);
    if (y) store<VEC>(y + t * ldy + i, m);
}

enum { GRID_Y = 65535 };
void cuda_gate(void *self, const struct gate_args *a) {
    struct cuda *c = (struct cuda *)self;
    int v = wide(&a->g) && wide(&a->u) && wide(&a->y) ? 8 : 1;
    const bf16 *g = (const bf16 *)a->g.data, *u = (const bf16 *)a->u.data;
    bf16 *y = (bf16 *)a->y.data;
    for (int64_t t = 0; t < a->g.rows; t += GRID_Y) {
        dim3 grid((unsigned)ceil_div(a->g.cols, THREADS * v), (unsigned)(a->g.rows - t < GRID_Y ? a->g.rows - t : (int64_t)GRID_Y));
        if (v == 8) gate<8><<<grid, THREADS, 0, cuda_stream(c)>>>(g + t * a->g.ld, a->g.ld, u + t * a->u.ld, a->u.ld, y + t * a->y.ld, a->y.ld, a->g.cols);
        else gate<1><<<grid, THREADS, 0, cuda_stream(c)>>>(g + t * a->g.ld, a->g.ld, u + t * a->u.ld, a->u.ld, y + t * a->y.ld, a->y.ld, a->g.cols);
        CUDA_LAUNCHED(c);
    }
}
void cuda_gate_bwd(void *self, const struct gate_args *a) {
    struct cuda *c = (struct cuda *)self;
    int v = wide(&a->g) && wide(&a->u) && wide(&a->dy) && wide(&a->dg) && wide(&a->du) && (!a->y.data || wide(&a->y)) ? 8 : 1;
    const bf16 *g = (const bf16 *)a->g.data, *u = (const bf16 *)a->u.data, *dy = (const bf16 *)a->dy.data;
    bf16 *dg = (bf16 *)a->dg.data, *du = (bf16 *)a->du.data, *y = (bf16 *)a->y.data;
    for (int64_t t = 0; t < a->g.rows; t += GRID_Y) {
        dim3 grid((unsigned)ceil_div(a->g.cols, THREADS * v), (unsigned)(a->g.rows - t < GRID_Y ? a->g.rows - t : (int64_t)GRID_Y));
        bf16 *yt = y ? y + t * a->y.ld : NULL;
        if (v == 8) gate_bwd<8><<<grid, THREADS, 0, cuda_stream(c)>>>(g + t * a->g.ld, a->g.ld, u + t * a->u.ld, a->u.ld, dy + t * a->dy.ld, a->dy.ld, dg + t * a->dg.ld, a->dg.ld, du + t * a->du.ld, a->du.ld, yt, a->y.ld, a->g.cols);
        else gate_bwd<1><<<grid, THREADS, 0, cuda_stream(c)>>>(g + t * a->g.ld, a->g.ld, u + t * a->u.ld, a->u.ld, dy + t * a->dy.ld, a->dy.ld, dg + t * a->dg.ld, a->dg.ld, du + t * a->du.ld, a->du.ld, yt, a->y.ld, a->g.cols);
        CUDA_LAUNCHED(c);
    }
}
