/* backend/cuda/adam.cu - AdamW over lists of tensors, and sums of squares in a fixed order.
 *
 * A list of up to LIST tensors goes to the card by value, in the parameters of one launch. Its tensors are cut into pieces that
 * are counted through: first[i] is the number of the first piece of tensor i. So a list of small tensors fills the card as well
 * as a large one, and what a piece does never depends on its neighbours. */
#include "backend/cuda/cuda_internal.h"
extern "C" {
#include "base/sys.h"
}
#include <math.h>
#include <string.h>

enum { THREADS = 256, LIST = 32, WARPS = THREADS / 32 };

/* The tensor that piece b belongs to. */
__device__ static inline int tensor_of(const int32_t *first, int count, int64_t b) {
    int i = 0;
    for (int step = LIST / 2; step; step /= 2)
        if (i + step < count && first[i + step] <= b) i += step;
    return i;
}

/* ---- AdamW, 32-bit state ---- */

enum { CHUNK = 2 * 4 * THREADS }; /* elements a block: two of 16 bytes of each array a thread */
struct list {
    struct tensor {
        float *p;
        const float *g;
        const bf16 *g16;
        float *m, *v;
        bf16 *copy;
        int64_t n;
        float decay, rate;
        int wide, round;
    } t[LIST];
    int32_t first[LIST + 1], count;
    float beta1, beta2, rest1, rest2, eps, grad_scale, v_scale;
};

__device__ static inline float as_bf16(float x) { return __bfloat162float(__float2bfloat16_rn(x)); }

/* p *= decay; m, v moments of g' = g grad_scale; p -= rate m / (sqrt(v) v_scale + eps). Every operation is rounded on its own
 * (a fused multiply-add would not be), so that the bits are the CPU's. */
__device__ static inline void step(const struct list &l, const struct list::tensor &t, float g, float *p, float *m, float *v) {
    g = __fmul_rn(g, l.grad_scale);
    *m = __fadd_rn(__fmul_rn(l.beta1, *m), __fmul_rn(l.rest1, g));
    *v = __fadd_rn(__fmul_rn(l.beta2, *v), __fmul_rn(__fmul_rn(l.rest2, g), g));
    *p = __fsub_rn(__fmul_rn(*p, t.decay), __fdiv_rn(__fmul_rn(t.rate, *m), __fadd_rn(__fmul_rn(__fsqrt_rn(*v), l.v_scale), l.eps)));
    if (t.round) *p = as_bf16(*p);
}
__device__ static inline float4 four_bf16(const bf16 *x) {
    uint2 u = *(const uint2 *)x;
    return make_float4(__uint_as_float(u.x << 16), __uint_as_float(u.x & 0xffff0000u), __uint_as_float(u.y << 16),
                       __uint_as_float(u.y & 0xffff0000u));
}
__device__ static inline uint2 as_four_bf16(float4 v) {
    __nv_bfloat162 half[2] = {__floats2bfloat162_rn(v.x, v.y), __floats2bfloat162_rn(v.z, v.w)};
    return *(const uint2 *)half;
}
/* block: CHUNK elements of one tensor, all loads ahead. 16 bytes read (14: bf16 gradient) and 12 written (14: copy) an element:
 * bound by memory. Nothing is read again soon: streamed past the cache. */
__global__ __launch_bounds__(THREADS) static void adam32(const __grid_constant__ struct list l) {
    int i = tensor_of(l.first, l.count, blockIdx.x);
    const struct list::tensor &t = l.t[i];
    int64_t from = (int64_t)(blockIdx.x - l.first[i]) * CHUNK;
    if (!t.wide || from + CHUNK > t.n) {
        for (int64_t k = from + threadIdx.x; k < from + CHUNK && k < t.n; k += THREADS) {
            float p = t.p ? t.p[k] : __bfloat162float(t.copy[k]);
            step(l, t, t.g ? t.g[k] : __bfloat162float(t.g16[k]), &p, &t.m[k], &t.v[k]);
            if (t.p) t.p[k] = p;
            if (t.copy) t.copy[k] = __float2bfloat16_rn(p);
        }
        return;
    }
    float4 p[2], g[2], m[2], v[2];
#pragma unroll
    for (int k = 0; k < 2; k++) {
        int64_t at = from / 4 + k * THREADS + threadIdx.x;
        p[k] = t.p ? __ldcs((const float4 *)t.p + at) : four_bf16(t.copy + 4 * at);
        g[k] = t.g ? __ldcs((const float4 *)t.g + at) : four_bf16(t.g16 + 4 * at);
        m[k] = __ldcs((const float4 *)t.m + at), v[k] = __ldcs((const float4 *)t.v + at);
    }
    __syncwarp(); /* keeps the loads ahead of the arithmetic */
#pragma unroll
    for (int k = 0; k < 2; k++) {
        int64_t at = from / 4 + k * THREADS + threadIdx.x;
        step(l, t, g[k].x, &p[k].x, &m[k].x, &v[k].x), step(l, t, g[k].y, &p[k].y, &m[k].y, &v[k].y);
        step(l, t, g[k].z, &p[k].z, &m[k].z, &v[k].z), step(l, t, g[k].w, &p[k].w, &m[k].w, &v[k].w);
        if (t.p) __stcs((float4 *)t.p + at, p[k]);
        __stcs((float4 *)t.m + at, m[k]), __stcs((float4 *)t.v + at, v[k]);
        if (t.copy) ((uint2 *)t.copy)[at] = as_four_bf16(p[k]);
    }
}

static void run_list(struct cuda *c, struct list *l) {
    if (l->count && l->first[l->count]) adam32<<<(unsigned)l->first[l->count], THREADS, 0, cuda_stream(c)>>>(*l);
    CUDA_LAUNCHED(c);
    l->count = 0;
}

/* ---- AdamW, 8-bit state ---- */

/* The maps, and how the entry nearest to x in [0, 1] is found: near[] by the upper half of the bits of x has it or the one below,
 * up[] is the least x that belongs to the next (nf4's bw8_find packs both into one cell; from 2^-23 on, all below are nearest to 0). */
enum { NEAR_FROM = (127 - 23) << 7, NEAR = 23 * 128 + 4 };
struct maps { float s[256], u[256], up_s[256], up_u[256]; uint8_t near_s[NEAR], near_u[NEAR]; };
struct list8 {
    struct tensor {
        float *p;
        const float *g;
        const bf16 *g16;
        uint8_t *m, *v;
        float *m_absmax, *v_absmax;
        bf16 *copy;
        int64_t n;
        struct bw8_adam step;
        int wide, round;
    } t[LIST];
    int32_t first[LIST + 1], count;
};

__device__ static inline int nearest(const uint8_t *near, const float *up, float x) {
    int i = near[min(max((int)(__float_as_uint(x) >> 16) - NEAR_FROM, 0), NEAR - 1)];
    return i + (x >= up[i]);
}
/* The signed map is its own mirror image but for its end: there is no -1. */
__device__ static inline int nearest_signed(const uint8_t *near, const float *up, float x) {
    int i = nearest(near, up, fabsf(x));
    return x < 0 ? max(254 - i, 0) : i;
}
/* x / top with r = 1 / top rounded to nearest: the same bits while nothing underflows (Markstein 1990). The product may be off by
 * 1.5 units of the last place; the first correction leaves less than one, from where the second rounds as a division does. */
__device__ static inline float quotient(float x, float top, float r) {
    float q = __fmul_rn(x, r);
    q = __fmaf_rn(__fmaf_rn(-q, top, x), r, q);
    return __fmaf_rn(__fmaf_rn(-q, top, x), r, q);
}
__device__ static inline bool plain(float top) { return top > 0x1p-60f && top < 0x1p60f; }

/* warp: blocks of 256 elements, one after the other: decode, step, find both maxima, encode. A lane has two runs of four
 * neighbours. The maps lie in shared memory. 16 bytes an element (14: bf16 gradient) and 16 a block. */
__global__ __launch_bounds__(THREADS) static void adam8(const __grid_constant__ struct list8 l, const struct maps *maps) {
    __shared__ struct maps own;
    int lane = threadIdx.x % 32;
    for (int i = threadIdx.x; i < (int)sizeof own / 4; i += THREADS) ((unsigned *)&own)[i] = ((const unsigned *)maps)[i];
    __syncthreads();
    for (int64_t block = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32; block < l.first[l.count]; block += (int64_t)gridDim.x * WARPS) {
        int which = tensor_of(l.first, l.count, block);
        const struct list8::tensor &t = l.t[which];
        int64_t b = block - l.first[which];
        float4 p[2] = {}, g[2] = {};
        uchar4 m8[2] = {}, v8[2] = {};
        float m[8], v[8], m_top = 0, v_top = 0, m_scale = t.m_absmax[b], v_scale = t.v_absmax[b];
#pragma unroll
        for (int k = 0; k < 2; k++) {
            int64_t i = b * 256 + k * 128 + lane * 4;
            if (t.wide && i + 4 <= t.n)
                p[k] = t.p ? *(const float4 *)(t.p + i) : four_bf16(t.copy + i),
                g[k] = t.g ? *(const float4 *)(t.g + i) : four_bf16(t.g16 + i),
                m8[k] = *(const uchar4 *)(t.m + i), v8[k] = *(const uchar4 *)(t.v + i);
            else
                for (int j = 0; j < 4 && i + j < t.n; j++)
                    (&p[k].x)[j] = t.p ? t.p[i + j] : __bfloat162float(t.copy[i + j]),
                    (&g[k].x)[j] = t.g ? t.g[i + j] : __bfloat162float(t.g16[i + j]),
                    (&m8[k].x)[j] = t.m[i + j], (&v8[k].x)[j] = t.v[i + j];
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            int64_t i = b * 256 + j / 4 * 128 + lane * 4 + j % 4;
            m[j] = v[j] = 0;
            if (i >= t.n) continue;
            m[j] = __fmul_rn(own.s[(&m8[j / 4].x)[j % 4]], m_scale), v[j] = __fmul_rn(own.u[(&v8[j / 4].x)[j % 4]], v_scale);
            bw8_adam_element(&t.step, (&g[j / 4].x)[j % 4], &(&p[j / 4].x)[j % 4], &m[j], &v[j]);
            if (t.round) (&p[j / 4].x)[j % 4] = as_bf16((&p[j / 4].x)[j % 4]);
            m_top = fmaxf(m_top, fabsf(m[j])), v_top = fmaxf(v_top, v[j]);
        }
        for (int x = 16; x; x >>= 1)
            m_top = fmaxf(m_top, __shfl_xor_sync(~0u, m_top, x)), v_top = fmaxf(v_top, __shfl_xor_sync(~0u, v_top, x));
        if (lane == 0) t.m_absmax[b] = m_top, t.v_absmax[b] = v_top;
        const bool quick = plain(m_top) && plain(v_top);
        const float m_part = __frcp_rn(m_top), v_part = __frcp_rn(v_top);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float x = quick ? quotient(m[j], m_top, m_part) : __fdiv_rn(m[j], m_top),
                  y = quick ? quotient(v[j], v_top, v_part) : __fdiv_rn(v[j], v_top);
            (&m8[j / 4].x)[j % 4] = (uint8_t)(m_top > 0 ? bw8_keep_sign(nearest_signed(own.near_s, own.up_s, x), m[j]) : BW8_ZERO);
            (&v8[j / 4].x)[j % 4] = (uint8_t)(v_top > 0 ? nearest(own.near_u, own.up_u, y) : 0);
        }
#pragma unroll
        for (int k = 0; k < 2; k++) {
            int64_t i = b * 256 + k * 128 + lane * 4;
            if (t.wide && i + 4 <= t.n) *(uchar4 *)(t.m + i) = m8[k], *(uchar4 *)(t.v + i) = v8[k];
            else
                for (int j = 0; j < 4 && i + j < t.n; j++) t.m[i + j] = (&m8[k].x)[j], t.v[i + j] = (&v8[k].x)[j];
            if (t.p && t.wide && i + 4 <= t.n) __stcs((float4 *)(t.p + i), p[k]);
            else
                for (int j = 0; t.p && j < 4 && i + j < t.n; j++) t.p[i + j] = (&p[k].x)[j];
            if (t.copy && t.wide && i + 4 <= t.n) *(uint2 *)(t.copy + i) = as_four_bf16(p[k]);
            else
                for (int j = 0; t.copy && j < 4 && i + j < t.n; j++) t.copy[i + j] = __float2bfloat16_rn((&p[k].x)[j]);
        }
    }
}

static void run_list8(struct cuda *c, struct list8 *l) {
    int64_t blocks = l->count ? ceil_div(l->first[l->count], WARPS) : 0;
    if (blocks)
        adam8<<<(unsigned)(blocks < 8 * c->sms ? blocks : 8 * c->sms), THREADS, 0, cuda_stream(c)>>>(
            *l, (const struct maps *)c->maps);
    CUDA_LAUNCHED(c);
    l->count = 0;
}

static int aligned(const void *p, size_t bytes) { return (uintptr_t)p % bytes == 0; }

void cuda_adam(void *self, const struct adam_args *a) {
    struct cuda *c = (struct cuda *)self;
    double c1 = 1 - pow(a->beta1, (double)a->t), c2 = 1 - pow(a->beta2, (double)a->t);
    struct list l = {};
    struct list8 l8 = {};
    l.beta1 = (float)a->beta1, l.beta2 = (float)a->beta2, l.rest1 = (float)(1 - a->beta1), l.rest2 = (float)(1 - a->beta2);
    l.eps = (float)a->eps, l.grad_scale = (float)a->grad_scale, l.v_scale = (float)(1 / sqrt(c2));
    for (int64_t i = 0; i < a->count; i++) {
        const struct adam_tensor *x = &a->tensors[i];
        int wide = aligned(x->p, 16) && aligned(x->g, 16) && aligned(x->g16, 8) && (x->p || aligned(x->copy, 8));
        if (x->m) {
            auto &t = l.t[l.count];
            t.p = x->p, t.g = x->g, t.g16 = (const bf16 *)x->g16, t.m = x->m, t.v = x->v, t.copy = (bf16 *)x->copy, t.n = x->n;
            t.decay = (float)(1 - x->lr * x->weight_decay), t.rate = (float)(x->lr / c1);
            t.wide = wide && aligned(x->m, 16) && aligned(x->v, 16) && aligned(x->copy, 8), t.round = x->round;
            l.first[l.count + 1] = l.first[l.count] + (int32_t)ceil_div(x->n, CHUNK), l.count++;
        } else {
            auto &t = l8.t[l8.count];
            t.p = x->p, t.g = x->g, t.g16 = (const bf16 *)x->g16, t.m = x->m8, t.v = x->v8;
            t.m_absmax = x->m_absmax, t.v_absmax = x->v_absmax,
            t.copy = (bf16 *)x->copy, t.n = x->n;
            t.step = bw8_adam_step(a->t, (float)x->lr, (float)a->beta1, (float)a->beta2, (float)a->eps, (float)x->weight_decay,
                                   (float)a->grad_scale);
            t.wide = wide && aligned(x->m8, 4) && aligned(x->v8, 4), t.round = x->round;
            l8.first[l8.count + 1] = l8.first[l8.count] + (int32_t)ceil_div(x->n, 256), l8.count++;
        }
        if (l.count == LIST) run_list(c, &l);
        if (l8.count == LIST) run_list8(c, &l8);
    }
    run_list(c, &l), run_list8(c, &l8);
}

/* ---- sums of squares ---- */

enum { PIECE = 8192, PIECES_MAX = SQSUM_PIECES / LIST };
struct squares { /* tensor i is cut into pieces of PIECE << bits[i] elements, PIECES_MAX at most: by its size alone */
    const float *x[LIST];
    bf16 *half[LIST]; /* or NULL */
    int64_t n[LIST];
    int32_t first[LIST + 1], bits[LIST], count;
};

/* Sum over a block in double by a fixed tree; thread 0 gets it. */
__device__ static inline double block_sum(double x) {
    __shared__ double part[WARPS];
    for (int s = 16; s; s >>= 1) x += __shfl_xor_sync(~0u, x, s);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    for (int i = 1; threadIdx.x == 0 && i < WARPS; i++) x += part[i];
    return x;
}

/* part[piece] = Σ x² of a piece, in double. A thread has four neighbours of every 4 * THREADS, whatever the address: same bits.
 * block: one piece. 4 bytes an element, 6 with its rounded copy. */
__global__ __launch_bounds__(THREADS) static void square_pieces(const __grid_constant__ struct squares s, double *part) {
    enum { AHEAD = PIECE / (4 * THREADS) };
    int t = tensor_of(s.first, s.count, blockIdx.x);
    const float *x = s.x[t];
    bf16 *half = s.half[t];
    int64_t at = (int64_t)(blockIdx.x - s.first[t]) << s.bits[t], end = at + (1ll << s.bits[t]);
    bool wide = (uintptr_t)x % 16 == 0 && (uintptr_t)half % 8 == 0;
    double sum = 0;
    for (; at < end && at * PIECE < s.n[t]; at++) {
        float4 v[AHEAD] = {};
        int64_t i = at * PIECE + threadIdx.x * 4;
        if (wide && (at + 1) * PIECE <= s.n[t]) {
#pragma unroll
            for (int k = 0; k < AHEAD; k++) v[k] = __ldcs((const float4 *)(x + i + k * 4 * THREADS));
#pragma unroll
            for (int k = 0; half && k < AHEAD; k++) *(uint2 *)(half + i + k * 4 * THREADS) = as_four_bf16(v[k]);
        } else {
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    if (int64_t e = i + k * 4 * THREADS + j; e < s.n[t]) {
                        (&v[k].x)[j] = x[e];
                        if (half) half[e] = __float2bfloat16_rn(x[e]);
                    }
        }
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            sum += ((double)v[k].x * v[k].x + (double)v[k].y * v[k].y) + ((double)v[k].z * v[k].z + (double)v[k].w * v[k].w);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}
/* out[tensor] = Σ its pieces in a fixed order; block: one tensor. out is pinned host memory, which the card writes directly. */
__global__ __launch_bounds__(THREADS) static void add_pieces(const __grid_constant__ struct squares s, const double *part, double *out) {
    double sum = 0;
    for (int i = s.first[blockIdx.x] + (int)threadIdx.x; i < s.first[blockIdx.x + 1]; i += THREADS) sum += part[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}
void cuda_sqsum(void *self, const struct sqsum_args *a) {
    struct cuda *c = (struct cuda *)self;
    for (int64_t i = 0; i < a->count; i += LIST) {
        struct squares s = {};
        for (; s.count < LIST && i + s.count < a->count; s.count++) {
            int k = s.count;
            s.x[k] = a->x[i + k], s.n[k] = a->n[i + k], s.half[k] = a->half ? (bf16 *)a->half[i + k] : NULL;
            while (ceil_div(s.n[k], (int64_t)PIECE << s.bits[k]) > PIECES_MAX) s.bits[k]++;
            s.first[k + 1] = s.first[k] + (int32_t)ceil_div(s.n[k], (int64_t)PIECE << s.bits[k]);
        }
        if (s.first[s.count]) square_pieces<<<(unsigned)s.first[s.count], THREADS, 0, cuda_stream(c)>>>(s, c->pieces);
        add_pieces<<<(unsigned)s.count, THREADS, 0, cuda_stream(c)>>>(s, c->pieces, a->out + i);
        CUDA_LAUNCHED(c);
    }
}

size_t cuda_adam_workspace(struct cuda *c, const struct backend_limits *, char *at) {
    c->pieces = (double *)at;
    return SQSUM_PIECES * sizeof(double);
}

static void fill(const float *map, float *values, float *up, uint8_t *near) {
    for (int i = 0; i < 256; i++) values[i] = map[i], up[i] = INFINITY;
    for (int i = 0; i < 255; i++) { /* on a tie the even index */
        float middle = (map[i] + map[i + 1]) * 0.5f;
        up[i] = i % 2 ? middle : nextafterf(middle, INFINITY);
    }
    for (uint32_t k = 0; k < NEAR; k++) {
        uint32_t bits = (k + NEAR_FROM) << 16;
        float x;
        memcpy(&x, &bits, sizeof x);
        near[k] = (uint8_t)bw8_nearest(map, k ? x : 0);
    }
}
/* The maps on the card, for the life of the backend. */
cudaError_t cuda_adam_start(struct cuda *c) {
    nf4_init();
    struct maps maps;
    fill(bw8_signed, maps.s, maps.up_s, maps.near_s), fill(bw8_unsigned, maps.u, maps.up_u, maps.near_u);
    cudaError_t code = cudaMalloc(&c->maps, sizeof maps);
    return code == cudaSuccess ? cudaMemcpy(c->maps, &maps, sizeof maps, cudaMemcpyHostToDevice) : code;
}
