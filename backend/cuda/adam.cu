/* backend/cuda/adam.cu - AdamW over lists of tensors, and sums of squares in a fixed order.
 *
 * A list of up to LIST tensors goes to the card by value, in the parameters of one launch. Its tensors are cut into pieces that
 * are counted through: first[i] is the number of the first piece of tensor i. So a list of small tensors fills the card as well
 * as a large one, and what a piece does never depends on its neighbours. */
#include "backend/cuda/cuda_internal.h"
#include "backend/cuda/mma.h"
extern "C" {
#include "base/sys.h"
}
#include <math.h>
#include <string.h>
#include <type_traits>

enum { THREADS = 256, WARPS = THREADS / 32 };
enum { LIST = CUDART_VERSION >= 12010 ? 128 : 32 }; /* parameters had 4 KB at most before */

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
 * bound by memory, 94 to 97 % of a copy on an H200. Nothing is read again soon: streamed past the cache. */
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

/* What lies in shared memory: the maps, and the codes of new moments by nf4's index (struct bw8_index). Looked up are the bits of
 * quotients of magnitude 2^-23 to 1, below which all are nearest to 0; those of negative ones are inverted, which puts them
 * behind the positive ones. A cell is that of nf4 less its own place, so that one sum with the bits has the code in byte 2. */
enum { LEAST = 0x3400, MOST = 0x3f80, BEHIND = 0x7fff - LEAST };
struct alignas(16) maps { float s[256], u[256]; uint32_t near_s[BEHIND - LEAST + 1], near_u[MOST - LEAST + 1]; };
enum { THREADS8 = 512, WARPS8 = THREADS8 / 32 };
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
        int quick; /* so many blocks are whole and aligned */
        int round;
    } t[LIST];
    int32_t first[LIST + 1], count;
};

/* The code of a quotient, in byte 2. m is never -0 here. */
__device__ static inline uint32_t code_s(const struct maps &own, float x) {
    int y = __float_as_int(x) ^ __float_as_int(x) >> 31;
    y = min(max(y, LEAST << 16), BEHIND << 16 | 0xffff);
    return own.near_s[(y >> 16) - LEAST] + (uint32_t)y;
}
__device__ static inline uint32_t code_u(const struct maps &own, float x) {
    const int y = max(__float_as_int(x), LEAST << 16);
    return own.near_u[(y >> 16) - LEAST] + (uint32_t)y;
}

/* Any block, every operation as the CPU rounds it. The moments are worked out twice: before and behind their maxima. */
__device__ static inline void exact(const struct list8::tensor &t, const struct maps &own, int64_t b, int lane) {
    const int64_t end = min(t.n, (b + 1) * BW8_BLOCK);
    const float m_scale = t.m_absmax[b], v_scale = t.v_absmax[b];
    float m_top = 0, v_top = 0;
#pragma unroll 1
    for (int encode = 0; encode < 2; encode++) {
#pragma unroll 1
        for (int64_t i = b * BW8_BLOCK + lane; i < end; i += 32) {
            float p = t.p ? t.p[i] : __bfloat162float(t.copy[i]);
            float m = __fmul_rn(own.s[t.m[i]], m_scale), v = __fmul_rn(own.u[t.v[i]], v_scale);
            bw8_adam_element(&t.step, t.g ? t.g[i] : __bfloat162float(t.g16[i]), &p, &m, &v);
            if (encode) {
                t.m[i] = (uint8_t)(m_top > 0 && m != 0 ? code_s(own, __fdiv_rn(m, m_top)) >> 16 : BW8_ZERO);
                t.v[i] = (uint8_t)(v_top > 0 ? code_u(own, fminf(__fdiv_rn(v, v_top), 1)) >> 16 : 0); /* no NaN */
                continue;
            }
            if (t.round) p = as_bf16(p);
            if (t.p) t.p[i] = p;
            if (t.copy) t.copy[i] = __float2bfloat16_rn(p);
            m_top = fmaxf(m_top, fabsf(m)), v_top = fmaxf(v_top, v);
        }
        for (int x = 16; !encode && x; x >>= 1)
            m_top = fmaxf(m_top, __shfl_xor_sync(~0u, m_top, x)), v_top = fmaxf(v_top, __shfl_xor_sync(~0u, v_top, x));
    }
    if (lane == 0) t.m_absmax[b] = m_top, t.v_absmax[b] = v_top;
}

/* Roots and quotients rounded to nearest: the instructions that the compiler makes of __fsqrt_rn and __fdiv_rn, less its branches for
 * extreme operands, which would keep it from interleaving elements. With r = reciprocal(d), quotient(x, d, r) is x / d. */
__device__ static inline float reciprocal(float d) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d));
    return __fmaf_rn(r, __fmaf_rn(-d, r, 1), r);
}
__device__ static inline float quotient(float x, float d, float r) {
    const float q = __fmul_rn(x, r);
    return __fmaf_rn(r, __fmaf_rn(-d, q, x), q);
}
/* sqrt(x / 2^64) + y, for x = 0 or from 2^-85 on: any float times 2^64 */
__device__ static inline float root_plus(float x, float y) {
    float r;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(fmaxf(x, 0x1p-100f)));
    const float s = __fmul_rn(x, r);
    return __fmaf_rn(__fmaf_rn(__fmaf_rn(-s, s, x), __fmul_rn(r, 0.5f), s), 0x1p-32f, y);
}
__device__ static inline uint32_t byte_of(uint32_t x, int j) { return __byte_perm(x, 0, 0x4440 + j); }
__device__ static inline uint32_t four_codes(const uint32_t *c) {
    return __byte_perm(__byte_perm(c[0], c[1], 0x62), __byte_perm(c[2], c[3], 0x62), 0x5410);
}

/* A block that a warp has under way: its values and gradients go to shared memory, where each lane finds its own again. */
template <bool P32, bool G32> struct landing {
    alignas(16) typename std::conditional<P32, float, bf16>::type p[BW8_BLOCK];
    alignas(16) typename std::conditional<G32, float, bf16>::type g[BW8_BLOCK];
};
struct block {
    int tensor, number;
    uint32_t m8[2], v8[2];
    float m_scale, v_scale;
};
template <class T> __device__ static inline void copy_four(T *to, const T *from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_at(to)), "l"(from), "n"(4 * sizeof(T)) : "memory");
}
__device__ static inline float4 four(const float *x) { return *(const float4 *)x; }
__device__ static inline float4 four(const bf16 *x) { return four_bf16(x); }

/* A launch may begin while the one before it ends, and fetch what no launch writes; code for less than sm_90 has no such wait and is
 * not launched so (launch8). */
__device__ static inline void next_may_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ static inline void before_is_done() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* Starts for block `at` of the list. */
template <bool P32, bool G32>
__device__ static inline struct block fetch(const struct list8 &l, int at, int lane, struct landing<P32, G32> *to) {
    struct block x = {};
    if (at >= l.first[l.count]) return x;
    x.tensor = tensor_of(l.first, l.count, at), x.number = at - l.first[x.tensor];
    const struct list8::tensor &t = l.t[x.tensor];
    if (x.number >= t.quick) return x;
    const uint32_t i = (uint32_t)x.number * BW8_BLOCK + (uint32_t)lane * 4;
#pragma unroll
    for (int k = 0; k < 2; k++) {
        if constexpr (P32) copy_four(to->p + lane * 4 + k * 128, (const float *)t.p + i + k * 128);
        else copy_four(to->p + lane * 4 + k * 128, (const bf16 *)t.copy + i + k * 128);
        if constexpr (G32) copy_four(to->g + lane * 4 + k * 128, t.g + i + k * 128);
        else copy_four(to->g + lane * 4 + k * 128, t.g16 + i + k * 128);
        x.m8[k] = ((const uint32_t *)(t.m + i))[k * 32], x.v8[k] = ((const uint32_t *)(t.v + i))[k * 32];
    }
    x.m_scale = t.m_absmax[x.number], x.v_scale = t.v_absmax[x.number];
    return x;
}

/* A whole block of a tensor whose arrays are aligned, eight elements a lane, without a branch: the same bits as above. False, and
 * nothing is written, when its numbers are too large or too small for that (m that is not 0: below 2^-100), or an m is -0.
 * Second moments are 2^64 times theirs, so that none is too small. */
template <bool P32, bool G32>
__device__ static inline bool quick(const struct list8::tensor &t, const struct maps &own, const struct block &x, float *p,
                                    const float *g, int lane) {
    const struct bw8_adam s = t.step;
    const uint32_t i = (uint32_t)x.number * BW8_BLOCK + (uint32_t)lane * 4;
    float m[8], v[8];
    uint32_t m_top = 0, v_top = 0, least = ~0u;
#pragma unroll
    for (int j = 0; j < 8; j++) { /* bw8_adam_element */
        const float y = __fmul_rn(g[j], s.grad_scale), m_old = __fmul_rn(own.s[byte_of(x.m8[j / 4], j % 4)], x.m_scale),
                    v_old = __fmul_rn(own.u[byte_of(x.v8[j / 4], j % 4)], x.v_scale);
        m[j] = __fadd_rn(__fmul_rn(m_old, s.beta1), __fmul_rn(s.g1, y));
        v[j] = __fmul_rn(__fadd_rn(__fmul_rn(v_old, s.beta2), __fmul_rn(__fmul_rn(s.g2, y), y)), 0x1p64f);
        const float d = root_plus(v[j], s.eps);
        p[j] = __fmul_rn(__fadd_rn(p[j], __fmul_rn(s.step, quotient(m[j], d, reciprocal(d)))), s.decay);
        const uint32_t bits = __float_as_uint(m[j]), turned = __funnelshift_l(bits, bits, 1); /* 2 |m| and its sign */
        m_top = max(m_top, turned), v_top = max(v_top, __float_as_uint(v[j])), least = min(least, turned - 1); /* of 0 the largest */
    }
    const float m_most = __uint_as_float(__reduce_max_sync(~0u, m_top) >> 1), v_most = __uint_as_float(__reduce_max_sync(~0u, v_top));
    const bool m_plain = m_most == 0 || (m_most > 0x1p-60f && m_most < 0x1p40f),
               v_plain = v_most == 0 || (v_most > 0x1p-60f && v_most < 0x1p100f);
    if (!m_plain || !v_plain || __any_sync(~0u, least < (27u << 24) - 1)) return false;
    const float m_part = m_most > 0 ? reciprocal(m_most) : 0, v_part = v_most > 0 ? reciprocal(v_most) : 0;
    uint32_t m_code[8], v_code[8];
#pragma unroll
    for (int j = 0; j < 8; j++)
        m_code[j] = code_s(own, quotient(m[j], m_most, m_part)), v_code[j] = code_u(own, quotient(v[j], v_most, v_part));
    if (P32 && t.round)
#pragma unroll
        for (int j = 0; j < 8; j++) p[j] = as_bf16(p[j]);
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const float4 value = *(const float4 *)(p + 4 * k);
        if (P32) __stcs((float4 *)(t.p + i) + k * 32, value);
        if (!P32 || t.copy) *(uint2 *)(t.copy + i + k * 128) = as_four_bf16(value);
        ((uint32_t *)(t.m + i))[k * 32] = four_codes(m_code + 4 * k), ((uint32_t *)(t.v + i))[k * 32] = four_codes(v_code + 4 * k);
    }
    if (lane == 0) t.m_absmax[x.number] = m_most, t.v_absmax[x.number] = __fmul_rn(v_most, 0x1p-64f);
    return true;
}

/* warp: every so manieth block of the list, the next one always under way. 16 bytes an element (14: bf16 gradient), 16 a block, and the
 * maps once for THREADS8 threads, while the launch before ends: 81 to 88 % of a copy of as many bytes on an H200. */
template <bool P32, bool G32> struct room8 {
    struct maps maps;
    struct landing<P32, G32> landing[WARPS8];
};
template <bool P32, bool G32>
__global__ __launch_bounds__(THREADS8, 2) static void adam8(const __grid_constant__ struct list8 l, const struct maps *maps) {
    extern __shared__ __align__(16) char shared[];
    struct room8<P32, G32> &room = *(struct room8<P32, G32> *)shared;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, step = (int)gridDim.x * WARPS8;
    struct landing<P32, G32> *own = &room.landing[warp];
    int at = (int)blockIdx.x * WARPS8 + warp;
    next_may_start();
    for (int i = threadIdx.x; i < (int)(sizeof *maps / 16); i += THREADS8)
        copy_four((float *)&room.maps + 4 * i, (const float *)maps + 4 * i);
    before_is_done();
    struct block now = fetch(l, at, lane, own);
    copies_end(), copies_wait<0>();
    __syncthreads();
    for (; at < l.first[l.count]; at += step) {
        alignas(16) float p[8], g[8];
        copies_wait<0>();
#pragma unroll
        for (int k = 0; k < 2; k++)
            *(float4 *)(p + 4 * k) = four(own->p + lane * 4 + k * 128), *(float4 *)(g + 4 * k) = four(own->g + lane * 4 + k * 128);
        __syncwarp(); /* all are out before the next come in */
        const struct block next = fetch(l, at + step, lane, own);
        copies_end();
        const struct list8::tensor &t = l.t[now.tensor];
        if (now.number >= t.quick || !quick<P32, G32>(t, room.maps, now, p, g, lane)) exact(t, room.maps, now.number, lane);
        now = next;
    }
}

template <bool P32, bool G32> static void launch8(struct cuda *c, const struct list8 *l) {
    const int64_t groups = ceil_div(l->first[l->count], WARPS8), most = 2 * c->sms;
    const size_t bytes = sizeof(struct room8<P32, G32>);
    CUDA_TRY(c, cudaFuncSetAttribute(adam8<P32, G32>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization, early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t launch = {};
    launch.gridDim = dim3((unsigned)(groups < most ? groups : most)), launch.blockDim = dim3(THREADS8);
    launch.dynamicSmemBytes = bytes, launch.stream = cuda_stream(c), launch.attrs = &early, launch.numAttrs = c->ptx >= 90;
    CUDA_TRY(c, cudaLaunchKernelEx(&launch, adam8<P32, G32>, *l, (const struct maps *)c->maps));
    CUDA_LAUNCHED(c);
}
/* All tensors of the list have fp32 values or none, fp32 gradients or bf16 ones. */
static void run_list8(struct cuda *c, struct list8 *l) {
    if (l->count && l->first[l->count]) {
        if (l->t[0].p) l->t[0].g ? launch8<true, true>(c, l) : launch8<true, false>(c, l);
        else l->t[0].g ? launch8<false, true>(c, l) : launch8<false, false>(c, l);
    }
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
            if (l8.count && (!x->p != !l8.t[0].p || !x->g != !l8.t[0].g)) run_list8(c, &l8);
            auto &t = l8.t[l8.count];
            t.p = x->p, t.g = x->g, t.g16 = (const bf16 *)x->g16, t.m = x->m8, t.v = x->v8;
            t.m_absmax = x->m_absmax, t.v_absmax = x->v_absmax,
            t.copy = (bf16 *)x->copy, t.n = x->n;
            t.step = bw8_adam_step(a->t, (float)x->lr, (float)a->beta1, (float)a->beta2, (float)a->eps, (float)x->weight_decay,
                                   (float)a->grad_scale);
            const bool quick = wide && aligned(x->m8, 4) && aligned(x->v8, 4) && aligned(x->copy, 8) && t.step.eps > 0x1p-60f &&
                               t.step.eps < 1;
            t.quick = quick ? (int)(x->n / BW8_BLOCK < 1 << 24 ? x->n / BW8_BLOCK : 1 << 24) : 0;
            t.round = x->round;
            l8.first[l8.count + 1] = l8.first[l8.count] + (int32_t)ceil_div(x->n, BW8_BLOCK), l8.count++;
        }
        if (l.count == LIST) run_list(c, &l);
        if (l8.count == LIST) run_list8(c, &l8);
    }
    run_list(c, &l), run_list8(c, &l8);
}

/* ---- sums of squares ---- */

enum { PIECE = 8192, SUMS = 32, PIECES_MAX = SQSUM_PIECES / SUMS };
struct squares { /* tensor i is cut into pieces of PIECE << bits[i] elements, PIECES_MAX at most: by its size alone */
    const float *x[SUMS];
    bf16 *half[SUMS]; /* or NULL */
    int64_t n[SUMS];
    int32_t first[SUMS + 1], bits[SUMS], count;
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
    for (int64_t i = 0; i < a->count; i += SUMS) {
        struct squares s = {};
        for (; s.count < SUMS && i + s.count < a->count; s.count++) {
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

/* Cells from LEAST on. A negative first moment does not get the code of 0 (bw8_keep_sign). */
static void fill(const float *map, uint32_t *near, int count, bool keep_sign) {
    const int32_t *cell = bw8_index(map)->cell;
    for (int k = LEAST; k < LEAST + count; k++) {
        const bool negative = k > 0x3fff;
        uint32_t x = (uint32_t)cell[negative ? k ^ 0xffff : k];
        if (keep_sign && negative && (x + 0xffff) >> 16 == BW8_ZERO) x = (BW8_ZERO - 1) << 16;
        near[k - LEAST] = x - ((uint32_t)k << 16);
    }
}
/* The maps on the card, for the life of the backend. */
cudaError_t cuda_adam_start(struct cuda *c) {
    nf4_init();
    struct maps maps;
    memcpy(maps.s, bw8_signed, sizeof maps.s), memcpy(maps.u, bw8_unsigned, sizeof maps.u);
    fill(bw8_signed, maps.near_s, BEHIND - LEAST + 1, true), fill(bw8_unsigned, maps.near_u, MOST - LEAST + 1, false);
    cudaError_t code = cudaMalloc(&c->maps, sizeof maps);
    return code == cudaSuccess ? cudaMemcpy(c->maps, &maps, sizeof maps, cudaMemcpyHostToDevice) : code;
}
