/* backend/cuda/adam.cu - AdamW over lists of tensors, and sums of squares in a fixed order. */
#include "backend/cuda/cuda_internal.h"
extern "C" {
#include "base/sys.h"
}
#include <math.h>

enum { THREADS = 256, LIST = 32, PIECE = 65536 };

struct list { /* by value in the kernel's parameters: no table to copy */
    struct { float *p; const float *g; float *m, *v; bf16 *copy; int64_t n; float decay, rate; } t[LIST];
    float beta1, beta2, rest1, rest2, eps, grad_scale, v_scale;
};

/* p *= decay; m, v moments of g' = g grad_scale; p -= rate m / (sqrt(v) v_scale + eps).
 * grid: y = tensor, x strides over it. 16 bytes read and 12 (14) written an element: bound by memory. */
__global__ static void adam32(const struct list l) {
    auto &t = l.t[blockIdx.y];
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < t.n; i += (int64_t)gridDim.x * THREADS) {
        float g = t.g[i] * l.grad_scale, m = l.beta1 * t.m[i] + l.rest1 * g, v = l.beta2 * t.v[i] + l.rest2 * g * g;
        float p = t.p[i] * t.decay - t.rate * m / (sqrtf(v) * l.v_scale + l.eps);
        t.m[i] = m, t.v[i] = v, t.p[i] = p;
        if (t.copy) t.copy[i] = __float2bfloat16_rn(p);
    }
}

struct maps { float s[256], u[256]; };

/* The 8-bit form, one block of 256 elements a thread block: decode, step, find both maxima, encode. 14 bytes an element and
 * 16 a block. The maps lie in shared memory. */
__global__ static void adam8(struct bw8_adam s, const struct maps *maps, int64_t n, float *p, const float *g, uint8_t *m8, float *m_absmax, uint8_t *v8, float *v_absmax, bf16 *copy) {
    __shared__ float map_s[256], map_u[256], top[2][8];
    int k = threadIdx.x;
    map_s[k] = maps->s[k], map_u[k] = maps->u[k];
    __syncthreads();
    int64_t b = blockIdx.x, i = b * 256 + k;
    int in = i < n;
    float m = in ? __fmul_rn(map_s[m8[i]], m_absmax[b]) : 0, v = in ? __fmul_rn(map_u[v8[i]], v_absmax[b]) : 0, w = in ? p[i] : 0;
    if (in) bw8_adam_element(&s, g[i], &w, &m, &v);
    float a = fabsf(m), c = v;
    for (int x = 16; x; x >>= 1) a = fmaxf(a, __shfl_xor_sync(~0u, a, x)), c = fmaxf(c, __shfl_xor_sync(~0u, c, x));
    if (k % 32 == 0) top[0][k / 32] = a, top[1][k / 32] = c;
    __syncthreads();
    a = c = 0;
    for (int x = 0; x < 8; x++) a = fmaxf(a, top[0][x]), c = fmaxf(c, top[1][x]);
    if (k == 0) m_absmax[b] = a, v_absmax[b] = c;
    if (!in) return;
    p[i] = w;
    if (copy) copy[i] = __float2bfloat16_rn(w);
    m8[i] = (uint8_t)(a > 0 ? bw8_keep_sign(bw8_nearest(map_s, __fdiv_rn(m, a)), m) : BW8_ZERO);
    v8[i] = (uint8_t)(c > 0 ? bw8_nearest(map_u, __fdiv_rn(v, c)) : 0);
}

void cuda_adam(void *self, const struct adam_args *a) {
    struct cuda *c = (struct cuda *)self;
    double c1 = 1 - pow(a->beta1, (double)a->t), c2 = 1 - pow(a->beta2, (double)a->t);
    struct list l = {};
    l.beta1 = (float)a->beta1, l.beta2 = (float)a->beta2, l.rest1 = (float)(1 - a->beta1), l.rest2 = (float)(1 - a->beta2);
    l.eps = (float)a->eps, l.grad_scale = (float)a->grad_scale, l.v_scale = (float)(1 / sqrt(c2));
    unsigned count = 0;
    int64_t most = 0;
    for (int64_t i = 0; i < a->count; i++) {
        const struct adam_tensor *x = &a->tensors[i];
        if (!x->m) {
            struct bw8_adam s = bw8_adam_step(a->t, (float)x->lr, (float)a->beta1, (float)a->beta2, (float)a->eps, (float)x->weight_decay, (float)a->grad_scale);
            adam8<<<(unsigned)ceil_div(x->n, 256), 256, 0, cuda_stream(c)>>>(s, (const struct maps *)c->maps, x->n, x->p, x->g, x->m8, x->m_absmax, x->v8, x->v_absmax, (bf16 *)x->copy);
            CUDA_LAUNCHED(c);
            continue;
        }
        auto &t = l.t[count++];
        t.p = x->p, t.g = x->g, t.m = x->m, t.v = x->v, t.copy = (bf16 *)x->copy, t.n = x->n;
        t.decay = (float)(1 - x->lr * x->weight_decay), t.rate = (float)(x->lr / c1);
        if (x->n > most) most = x->n;
        if (count == LIST || i + 1 == a->count) {
            int64_t blocks = ceil_div(most, THREADS * 4);
            adam32<<<dim3((unsigned)(blocks < 4 * c->sms ? blocks : 4 * c->sms), count), THREADS, 0, cuda_stream(c)>>>(l);
            CUDA_LAUNCHED(c);
            count = 0, most = 0;
        }
    }
    if (count) {
        int64_t blocks = ceil_div(most, THREADS * 4);
        adam32<<<dim3((unsigned)(blocks < 4 * c->sms ? blocks : 4 * c->sms), count), THREADS, 0, cuda_stream(c)>>>(l);
        CUDA_LAUNCHED(c);
    }
}

/* part[piece] = Σ x² over PIECE elements, in double, by a fixed tree. */
__global__ static void square_pieces(const float *x, int64_t n, double *part) {
    __shared__ double sum[THREADS];
    int64_t first = (int64_t)blockIdx.x * PIECE, end = first + PIECE < n ? first + PIECE : n;
    double s = 0;
    for (int64_t i = first + threadIdx.x; i < end; i += THREADS) s += (double)x[i] * (double)x[i];
    sum[threadIdx.x] = s;
    for (int k = THREADS / 2; k; k >>= 1) {
        __syncthreads();
        if ((int)threadIdx.x < k) sum[threadIdx.x] += sum[threadIdx.x + k];
    }
    if (threadIdx.x == 0) part[blockIdx.x] = sum[0];
}
/* out = Σ part in order. out is pinned host memory, which the card writes directly. */
__global__ static void add_pieces(const double *part, int64_t n, double *out) {
    double s = 0;
    for (int64_t i = 0; i < n; i++) s += part[i];
    *out = s;
}
void cuda_sqsum(void *self, const struct sqsum_args *a) {
    struct cuda *c = (struct cuda *)self;
    for (int64_t i = 0; i < a->count; i++) {
        int64_t pieces = ceil_div(a->n[i], PIECE);
        ASSERT(pieces <= SQSUM_PIECES, "%lld numbers in one tensor", (long long)a->n[i]);
        if (pieces) square_pieces<<<(unsigned)pieces, THREADS, 0, cuda_stream(c)>>>(a->x[i], a->n[i], c->pieces);
        add_pieces<<<1, 1, 0, cuda_stream(c)>>>(c->pieces, pieces, a->out + i);
        CUDA_LAUNCHED(c);
    }
}

size_t cuda_adam_workspace(struct cuda *c, const struct backend_limits *, char *at) {
    c->pieces = (double *)at;
    return SQSUM_PIECES * sizeof(double);
}

/* Both maps on the card, for the life of the backend. */
cudaError_t cuda_adam_start(struct cuda *c) {
    nf4_init();
    cudaError_t code = cudaMalloc(&c->maps, sizeof(struct maps));
    if (code == cudaSuccess) code = cudaMemcpy(c->maps, bw8_signed, 1024, cudaMemcpyHostToDevice);
    return code == cudaSuccess ? cudaMemcpy((char *)c->maps + 1024, bw8_unsigned, 1024, cudaMemcpyHostToDevice) : code;
}
