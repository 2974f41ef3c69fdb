/* backend/cuda/rows.cu - ops that treat token rows one by one: embedding, RMSNorm, rotation, silu-gate, and their backward.
 *
 * All are bound by memory: each element is read once and written once. What counts is bytes under way: every thread issues
 * several 16-byte loads before it uses the first. Inputs that nothing reads again soon leave the cache first (__ldcs); results
 * stay, for the product that reads them next. Beside each fast kernel stands one for any width, stride and address. */
#include "backend/cuda/cuda_internal.h"
extern "C" {
#include "base/sys.h"
}
#include <math.h>

enum { THREADS = 256, WIDE = 8 }; /* WIDE bf16 are 16 bytes */

/* In assembly, because the compiler cuts a 16-byte store into four where special functions stand before it. */
__device__ static inline uint4 load16(const bf16 *p) {
    uint4 u;
    asm volatile("ld.global.cs.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(u.x), "=r"(u.y), "=r"(u.z), "=r"(u.w) : "l"(p) : "memory");
    return u;
}
__device__ static inline void store16(bf16 *p, uint4 u) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(u.x), "r"(u.y), "r"(u.z), "r"(u.w) : "memory");
}

/* VEC neighbouring elements, as stored and as fp32. VEC = WIDE: 16-byte accesses; VEC = 1: any address and any width. */
template <int VEC> __device__ static inline uint4 fetch(const bf16 *p) {
    return VEC == WIDE ? load16(p) : make_uint4(*(const unsigned short *)p, 0, 0, 0);
}
template <int VEC> __device__ static inline void floats(uint4 u, float v[VEC]) {
    const unsigned word[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
    for (int i = 0; i < VEC; i++) v[i] = __uint_as_float(i % 2 ? word[i / 2] & 0xffff0000u : word[i / 2] << 16);
}
template <int VEC> __device__ static inline void load(const bf16 *p, float v[VEC]) { floats<VEC>(fetch<VEC>(p), v); }
template <int VEC> __device__ static inline void load(const float *p, float v[VEC]) {
    if (VEC == WIDE) {
        float4 a = *(const float4 *)p, b = *(const float4 *)(p + 4);
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    } else v[0] = p[0];
}
template <int VEC> __device__ static inline void store(bf16 *p, const float v[VEC]) {
    if (VEC == WIDE) {
        uint4 u;
        __nv_bfloat162 *h = (__nv_bfloat162 *)&u;
#pragma unroll
        for (int i = 0; i < WIDE / 2; i++) h[i] = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
        store16(p, u);
    } else p[0] = __float2bfloat16_rn(v[0]);
}
static int wide(const struct mat *m) { return m->cols % WIDE == 0 && m->ld % WIDE == 0 && (uintptr_t)m->data % 16 == 0; }

/* ---- embedding ---- */

/* y[t] = E[ids[t]]. block: one row. 2 D bytes in (4 D from fp32), 2 D out. */
template <int VEC, typename T> __global__ static void embed(const int32_t *ids, const T *E, int64_t lde, bf16 *y, int64_t ldy, int64_t D) {
    const T *e = E + (int64_t)ids[blockIdx.x] * lde;
    for (int64_t i = threadIdx.x * VEC; i < D; i += THREADS * VEC) {
        float v[VEC];
        load<VEC>(e + i, v), store<VEC>(y + blockIdx.x * ldy + i, v);
    }
}
template <typename T> static void embed_rows(struct cuda *c, const struct embed_args *a) {
    bf16 *y = (bf16 *)a->y.data;
    unsigned n = (unsigned)a->y.rows;
    if (wide(&a->E) && wide(&a->y))
        embed<WIDE><<<n, THREADS, 0, cuda_stream(c)>>>(a->ids, (const T *)a->E.data, a->E.ld, y, a->y.ld, a->y.cols);
    else embed<1><<<n, THREADS, 0, cuda_stream(c)>>>(a->ids, (const T *)a->E.data, a->E.ld, y, a->y.ld, a->y.cols);
    CUDA_LAUNCHED(c);
}
void cuda_embed(void *self, const struct embed_args *a) {
    if (a->E.type == DT_F32) embed_rows<float>((struct cuda *)self, a);
    else embed_rows<bf16>((struct cuda *)self, a);
}

/* dE[ids[t]] += dy[t] in token order. A warp owns the ids of one residue and 128 columns, walks all tokens and adds those of its
 * ids: no two write the same number, and the order is the tokens'. grid: columns, residues. 2 N D bytes in, 8 N D through cache,
 * and every id read by every warp: only full fine-tuning comes here. */
enum { EMBED_COLUMNS = 4 /* a lane */, EMBED_BLOCKS = 16 };
__global__ static void embed_bwd(const int32_t *ids, const bf16 *dy, int64_t ldy, float *dE, int64_t lde, int64_t N, int64_t D,
                                 int32_t skip) {
    int lane = threadIdx.x % 32, residue = blockIdx.y * (THREADS / 32) + threadIdx.x / 32, residues = gridDim.y * (THREADS / 32);
    int64_t first = (int64_t)blockIdx.x * 32 * EMBED_COLUMNS + lane;
    for (int64_t base = 0; base < N; base += 32) {
        int32_t id = base + lane < N ? ids[base + lane] : skip;
        for (unsigned mine = __ballot_sync(~0u, id != skip && id % residues == residue); mine; mine &= mine - 1) {
            int k = __ffs((int)mine) - 1;
            const bf16 *from = dy + (base + k) * ldy;
            float *to = dE + __shfl_sync(~0u, id, k) * lde, x[EMBED_COLUMNS];
#pragma unroll
            for (int j = 0; j < EMBED_COLUMNS; j++)
                if (first + 32 * j < D) x[j] = to[first + 32 * j] + __bfloat162float(from[first + 32 * j]);
#pragma unroll
            for (int j = 0; j < EMBED_COLUMNS; j++)
                if (first + 32 * j < D) to[first + 32 * j] = x[j];
        }
    }
}
void cuda_embed_bwd(void *self, const struct embed_args *a) {
    struct cuda *c = (struct cuda *)self;
    embed_bwd<<<dim3((unsigned)ceil_div(a->dy.cols, 32 * EMBED_COLUMNS), EMBED_BLOCKS), THREADS, 0, cuda_stream(c)>>>(
        a->ids, (const bf16 *)a->dy.data, a->dy.ld, (float *)a->dE.data, a->dE.ld, a->dy.rows, a->dy.cols, a->skip);
    CUDA_LAUNCHED(c);
}

/* ---- RMSNorm ---- */

/* Eight gains from column i on. They are the same for all rows, so they stay in the first cache. */
__device__ static inline void gains(const float *g32, const bf16 *g16, int64_t i, float g[WIDE]) {
    if (g32) load<WIDE>(g32 + i, g);
    else floats<WIDE>(*(const uint4 *)(g16 + i), g);
}

/* Sum over WARPS warps of a block of THREADS; every thread gets its own group's. A fixed tree: same bits each run. Once a
 * kernel: nothing guards `part` against a second sum. */
template <int WARPS> __device__ static inline float group_sum(float x) {
    __shared__ float part[THREADS / 32];
    for (int s = 16; s; s >>= 1) x += __shfl_xor_sync(~0u, x, s);
    if (WARPS == 1) return x;
    int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) part[warp] = x;
    __syncthreads();
    x = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) x += part[warp / WARPS * WARPS + i];
    return x;
}

/* y = bf16(g * bf16(x r)), r = 1/sqrt(mean x² + eps). WARPS warps a row, PIECES 16-byte pieces a thread, held in registers
 * between the two passes: D <= 256 WARPS PIECES. 4 D bytes a row. */
template <int WARPS, int PIECES>
__global__ __launch_bounds__(THREADS) static void norm(const bf16 *x, int64_t ldx, const float *g32, const bf16 *g16, bf16 *y,
                                                       int64_t ldy, float *r_out, int64_t N, int D, float eps) {
    const int lanes = 32 * WARPS, at = threadIdx.x % lanes * WIDE;
    int64_t t = (int64_t)blockIdx.x * (THREADS / lanes) + threadIdx.x / lanes;
    uint4 raw[PIECES] = {};
    float sum = 0;
#pragma unroll
    for (int k = 0; k < PIECES; k++)
        if (t < N && at + k * lanes * WIDE < D) raw[k] = load16(x + t * ldx + at + k * lanes * WIDE);
#pragma unroll
    for (int k = 0; k < PIECES; k++) {
        float v[WIDE];
        floats<WIDE>(raw[k], v);
#pragma unroll
        for (int j = 0; j < WIDE; j++) sum += v[j] * v[j];
    }
    float r = rsqrtf(group_sum<WARPS>(sum) / (float)D + eps);
    if (t >= N) return;
    if (r_out && at == 0) r_out[t] = r;
#pragma unroll
    for (int k = 0; k < PIECES; k++) {
        int i = at + k * lanes * WIDE;
        float v[WIDE], g[WIDE];
        if (i >= D) break;
        floats<WIDE>(raw[k], v), gains(g32, g16, i, g);
#pragma unroll
        for (int j = 0; j < WIDE; j++) v[j] = g[j] * __bfloat162float(__float2bfloat16_rn(v[j] * r));
        store<WIDE>(y + t * ldy + i, v);
    }
}
/* Any row: block: one row, read twice. */
__global__ static void norm_any(const bf16 *x, int64_t ldx, const float *g32, const bf16 *g16, bf16 *y, int64_t ldy, float *r_out,
                                int64_t D, float eps) {
    const bf16 *row = x + blockIdx.x * ldx;
    float sum = 0;
    for (int64_t i = threadIdx.x; i < D; i += THREADS) sum += __bfloat162float(row[i]) * __bfloat162float(row[i]);
    float r = rsqrtf(group_sum<THREADS / 32>(sum) / (float)D + eps);
    if (r_out && threadIdx.x == 0) r_out[blockIdx.x] = r;
    for (int64_t i = threadIdx.x; i < D; i += THREADS) {
        float v = __bfloat162float(__float2bfloat16_rn(__bfloat162float(row[i]) * r));
        y[blockIdx.x * ldy + i] = __float2bfloat16_rn(v * (g32 ? g32[i] : __bfloat162float(g16[i])));
    }
}

/* dx (=|+=) r (dy g) - x r³ mean(dy g x). As norm: x, dy and dx are read once, all before the sum. 6 or 8 D bytes a row. */
template <int WARPS, int PIECES>
__global__ __launch_bounds__(THREADS) static void norm_bwd(const bf16 *x, int64_t ldx, const bf16 *dy, int64_t ldy,
                                                           const float *g32, const bf16 *g16, const float *r_in, bf16 *dx,
                                                           int64_t lddx, int64_t N, int D, int add) {
    const int lanes = 32 * WARPS, at = threadIdx.x % lanes * WIDE;
    int64_t t = (int64_t)blockIdx.x * (THREADS / lanes) + threadIdx.x / lanes;
    uint4 x16[PIECES] = {}, dy16[PIECES] = {}, dx16[PIECES] = {};
    float sum = 0, r = t < N ? r_in[t] : 0;
#pragma unroll
    for (int k = 0; k < PIECES; k++) {
        int i = at + k * lanes * WIDE;
        if (t >= N || i >= D) break;
        x16[k] = load16(x + t * ldx + i), dy16[k] = load16(dy + t * ldy + i);
        if (add) dx16[k] = load16(dx + t * lddx + i);
    }
#pragma unroll
    for (int k = 0; k < PIECES; k++) {
        int i = at + k * lanes * WIDE;
        float v[WIDE], d[WIDE], g[WIDE];
        if (i >= D) break;
        floats<WIDE>(x16[k], v), floats<WIDE>(dy16[k], d), gains(g32, g16, i, g);
#pragma unroll
        for (int j = 0; j < WIDE; j++) sum += v[j] * (d[j] * g[j]);
    }
    float mean = group_sum<WARPS>(sum) / (float)D * r * r * r;
    if (t >= N) return;
#pragma unroll
    for (int k = 0; k < PIECES; k++) {
        int i = at + k * lanes * WIDE;
        float v[WIDE], d[WIDE], g[WIDE], o[WIDE];
        if (i >= D) break;
        floats<WIDE>(x16[k], v), floats<WIDE>(dy16[k], d), floats<WIDE>(dx16[k], o), gains(g32, g16, i, g);
#pragma unroll
        for (int j = 0; j < WIDE; j++) o[j] += r * (d[j] * g[j]) - v[j] * mean;
        store<WIDE>(dx + t * lddx + i, o);
    }
}
/* Any row: block: one row, read twice. */
__global__ static void norm_bwd_any(const bf16 *x, int64_t ldx, const bf16 *dy, int64_t ldy, const float *g32, const bf16 *g16,
                                    const float *r_in, bf16 *dx, int64_t lddx, int64_t D, int add) {
    const bf16 *xr = x + blockIdx.x * ldx, *dr = dy + blockIdx.x * ldy;
    float sum = 0, r = r_in[blockIdx.x];
    for (int64_t i = threadIdx.x; i < D; i += THREADS)
        sum += __bfloat162float(xr[i]) * (__bfloat162float(dr[i]) * (g32 ? g32[i] : __bfloat162float(g16[i])));
    float mean = group_sum<THREADS / 32>(sum) / (float)D * r * r * r;
    for (int64_t i = threadIdx.x; i < D; i += THREADS) {
        bf16 *out = dx + blockIdx.x * lddx + i;
        float d = __bfloat162float(dr[i]) * (g32 ? g32[i] : __bfloat162float(g16[i]));
        *out = __float2bfloat16_rn((add ? __bfloat162float(*out) : 0) + r * d - __bfloat162float(xr[i]) * mean);
    }
}

/* kernel<WARPS, PIECES> over N rows of D columns, or 0 when they are too wide. Few pieces a thread: a chunk of 4,096 rows of 2,048
 * columns lasts ten microseconds, and more threads have its loads under way sooner. */
#define NORM_OF(kernel, warps, pieces, c, N, ...)                                                                      \
    (kernel<warps, pieces><<<(unsigned)ceil_div(N, THREADS / 32 / (warps)), THREADS, 0, cuda_stream(c)>>>(__VA_ARGS__), 1)
#define NORM_BY_WIDTH(kernel, c, N, D, ...)                                                                            \
    ((D) <= 512    ? NORM_OF(kernel, 1, 2, c, N, __VA_ARGS__)                                                          \
     : (D) <= 1024 ? NORM_OF(kernel, 2, 2, c, N, __VA_ARGS__)                                                          \
     : (D) <= 2048 ? NORM_OF(kernel, 4, 2, c, N, __VA_ARGS__)                                                          \
     : (D) <= 4096 ? NORM_OF(kernel, 8, 2, c, N, __VA_ARGS__)                                                          \
     : (D) <= 8192 ? NORM_OF(kernel, 8, 4, c, N, __VA_ARGS__)                                                          \
                   : 0)

void cuda_norm(void *self, const struct norm_args *a) {
    struct cuda *c = (struct cuda *)self;
    const float *g32 = a->g_type == DT_F32 ? (const float *)a->g : NULL;
    const bf16 *g16 = g32 ? NULL : (const bf16 *)a->g, *x = (const bf16 *)a->x.data;
    bf16 *y = (bf16 *)a->y.data;
    int64_t N = a->x.rows, D = a->x.cols;
    int fast = wide(&a->x) && wide(&a->y) && (uintptr_t)a->g % 16 == 0;
    if (!fast || !NORM_BY_WIDTH(norm, c, N, D, x, a->x.ld, g32, g16, y, a->y.ld, a->r, N, (int)D, a->eps))
        norm_any<<<(unsigned)N, THREADS, 0, cuda_stream(c)>>>(x, a->x.ld, g32, g16, y, a->y.ld, a->r, D, a->eps);
    CUDA_LAUNCHED(c);
}

void cuda_norm_bwd(void *self, const struct norm_args *a) {
    struct cuda *c = (struct cuda *)self;
    const float *g32 = a->g_type == DT_F32 ? (const float *)a->g : NULL;
    const bf16 *g16 = g32 ? NULL : (const bf16 *)a->g, *x = (const bf16 *)a->x.data, *dy = (const bf16 *)a->dy.data;
    bf16 *dx = (bf16 *)a->dx.data;
    int64_t N = a->x.rows, D = a->x.cols;
    if (a->dg) cuda_column_sums(c, a->rows, &a->dy, &a->x, a->r, a->dg); /* before dx: it may be dy */
    int fast = wide(&a->x) && wide(&a->dy) && wide(&a->dx) && (uintptr_t)a->g % 16 == 0;
    if (!fast || !NORM_BY_WIDTH(norm_bwd, c, N, D, x, a->x.ld, dy, a->dy.ld, g32, g16, a->r, dx, a->dx.ld, N, (int)D, !a->overwrite))
        norm_bwd_any<<<(unsigned)N, THREADS, 0, cuda_stream(c)>>>(x, a->x.ld, dy, a->dy.ld, g32, g16, a->r, dx, a->dx.ld, D, !a->overwrite);
    CUDA_LAUNCHED(c);
}

/* ---- rotation ---- */

enum { ROPE_K_MAX = 256, HEADS_A_THREAD = 4 };
struct angles { float theta[ROPE_K_MAX / 2]; }; /* 10000^(-2i/K), by value in the kernel's parameters */

/* sin and cos of an angle below 2^18 to 1.5 units of the last place: a = k pi/2 + r with pi/2 in three parts (the first product
 * is exact), then the polynomials of Cephes (Moshier) on |r| <= pi/4. No table, no branch. */
__device__ static inline void sine_cosine(float a, float *sine, float *cosine) {
    float k = rintf(a * 0x1.45f306p-1f), r = fmaf(k, -0x1.921fb6p+0f, a);
    r = fmaf(k, 0x1.777a5cp-25f, r);
    r = fmaf(k, 0x1.ee59dap-50f, r);
    float z = r * r;
    float s = fmaf(fmaf(fmaf(-1.95152959e-4f, z, 8.33216087e-3f), z, -1.66666546e-1f) * z, r, r);
    float c = fmaf(fmaf(fmaf(fmaf(2.44331571e-5f, z, -1.38873162e-3f), z, 4.16666456e-2f), z, -0.5f), z, 1.f);
    int quarter = (int)k;
    float u = quarter & 1 ? c : s, v = quarter & 1 ? s : c;
    *sine = quarter & 2 ? -u : u, *cosine = (quarter + 1) & 2 ? -v : v;
}

/* In place: pairs (i, i+K/2) of every K columns turn by position * theta[i]. thread: VEC neighbouring i of HEADS_A_THREAD
 * heads, which share their sines: 20 instructions each instead of the hundreds of powf and sincosf; groups of heads lie `groups`
 * apart, so that neighbouring threads are neighbours in memory.
 * 4 bytes an element. */
template <int VEC>
__global__ __launch_bounds__(THREADS) static void rope(bf16 *x, int64_t ld, int64_t N, unsigned heads, unsigned K,
                                                       const int32_t *position, float sign, const struct angles f) {
    unsigned half = K / 2, parts = half / VEC, groups = (heads + HEADS_A_THREAD - 1) / HEADS_A_THREAD;
    int64_t t = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    unsigned at = blockIdx.y * blockDim.x + threadIdx.x, head = at / parts, i = at % parts * VEC;
    bool inside = t < N && head < groups;
    t = t < N ? t : N - 1; /* threads and heads beyond the end read what the last one reads, and write nothing */
    bf16 *row = x + t * ld + i;
    uint4 a16[HEADS_A_THREAD], b16[HEADS_A_THREAD];
    float s[VEC], c[VEC];
#pragma unroll
    for (unsigned h = 0; h < HEADS_A_THREAD; h++) {
        unsigned k = min(head + h * groups, heads - 1);
        a16[h] = fetch<VEC>(row + k * K), b16[h] = fetch<VEC>(row + k * K + half);
    }
    __syncwarp(); /* keeps the loads ahead of the arithmetic (gate says why) */
    float p = (float)position[t];
#pragma unroll
    for (int j = 0; j < VEC; j++) {
        sine_cosine(p * f.theta[i + j], &s[j], &c[j]);
        s[j] *= sign;
    }
#pragma unroll
    for (unsigned h = 0; h < HEADS_A_THREAD; h++) {
        unsigned k = head + h * groups;
        float a[VEC], b[VEC], u[VEC], v[VEC];
        floats<VEC>(a16[h], a), floats<VEC>(b16[h], b);
#pragma unroll
        for (int j = 0; j < VEC; j++) u[j] = a[j] * c[j] - b[j] * s[j], v[j] = b[j] * c[j] + a[j] * s[j];
        if (inside && k < heads) store<VEC>(row + k * K, u), store<VEC>(row + k * K + half, v);
    }
}
void cuda_rope(void *self, const struct rope_args *a) {
    struct cuda *c = (struct cuda *)self;
    int vec = wide(&a->x) && a->K % (2 * WIDE) == 0 ? WIDE : 1;
    struct angles f = {};
    ASSERT(a->K <= ROPE_K_MAX, "head size %lld", (long long)a->K);
    for (int64_t i = 0; i < a->K / 2; i++) f.theta[i] = 1 / powf(10000, (float)(2 * i) / (float)a->K); /* as backend/cpu: same bits */
    int64_t heads = a->x.cols / a->K, across = a->K / 2 / vec * ceil_div(heads, HEADS_A_THREAD), lanes = 32;
    while (lanes < across && lanes < THREADS) lanes *= 2;
    dim3 block((unsigned)lanes, (unsigned)(THREADS / lanes)),
        grid((unsigned)ceil_div(a->x.rows, block.y), (unsigned)ceil_div(across, lanes));
    if (vec == WIDE)
        rope<WIDE><<<grid, block, 0, cuda_stream(c)>>>((bf16 *)a->x.data, a->x.ld, a->x.rows, (unsigned)heads, (unsigned)a->K,
                                                       a->rows->position, (float)a->sign, f);
    else
        rope<1><<<grid, block, 0, cuda_stream(c)>>>((bf16 *)a->x.data, a->x.ld, a->x.rows, (unsigned)heads, (unsigned)a->K,
                                                    a->rows->position, (float)a->sign, f);
    CUDA_LAUNCHED(c);
}

/* ---- silu-gate ---- */

/* 1 / (1 + e^-x) by the special unit: within 2^-20, far below bf16. e^-x beyond the largest float gives 0. */
__device__ static inline float sigmoid(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }

/* Where a thread of the gate works: VEC columns from i on of GATE_ROWS rows from t on; `tiles` blocks cover a row. All its loads
 * stand before a barrier of the warp, for else the compiler moves some behind the arithmetic of others to save registers: two
 * latencies instead of one. Threads beyond the end read what the last one reads, and write nothing. */
enum { GATE_ROWS = 2 };
#define GATE_PLACE                                                                                                     \
    int64_t t = (int64_t)(blockIdx.x / tiles) * GATE_ROWS, i = ((int64_t)(blockIdx.x % tiles) * THREADS + threadIdx.x) * VEC; \
    bool inside = i < F;                                                                                               \
    i = inside ? i : F - VEC

/* y = g silu(u). 6 bytes an element. */
template <int VEC>
__global__ __launch_bounds__(THREADS) static void gate(const bf16 *g, int64_t ldg, const bf16 *u, int64_t ldu, bf16 *y,
                                                       int64_t ldy, int64_t N, int64_t F, unsigned tiles) {
    GATE_PLACE;
    uint4 g16[GATE_ROWS], u16[GATE_ROWS];
#pragma unroll
    for (int k = 0; k < GATE_ROWS; k++) {
        int64_t row = t + k < N ? t + k : N - 1;
        g16[k] = fetch<VEC>(g + row * ldg + i), u16[k] = fetch<VEC>(u + row * ldu + i);
    }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < GATE_ROWS; k++) {
        float a[VEC], b[VEC];
        floats<VEC>(g16[k], a), floats<VEC>(u16[k], b);
#pragma unroll
        for (int j = 0; j < VEC; j++) a[j] *= b[j] * sigmoid(b[j]);
        if (inside && t + k < N) store<VEC>(y + (t + k) * ldy + i, a);
    }
}
/* dg = dy silu(u), du = dy g σ(u)(1 + u(1 - σ(u))), dg and y if asked. 8 to 12 bytes an element; dg may be g, du may be u. */
template <int VEC>
__global__ __launch_bounds__(THREADS) static void gate_bwd(const bf16 *g, int64_t ldg, const bf16 *u, int64_t ldu, const bf16 *dy,
                                                           int64_t lddy, bf16 *dg, int64_t lddg, bf16 *du, int64_t lddu, bf16 *y,
                                                           int64_t ldy, int64_t N, int64_t F, unsigned tiles) {
    GATE_PLACE;
    uint4 g16[GATE_ROWS], u16[GATE_ROWS], dy16[GATE_ROWS];
#pragma unroll
    for (int k = 0; k < GATE_ROWS; k++) {
        int64_t row = t + k < N ? t + k : N - 1;
        g16[k] = fetch<VEC>(g + row * ldg + i), u16[k] = fetch<VEC>(u + row * ldu + i), dy16[k] = fetch<VEC>(dy + row * lddy + i);
    }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < GATE_ROWS; k++) {
        float a[VEC], b[VEC], d[VEC], m[VEC];
        floats<VEC>(g16[k], a), floats<VEC>(u16[k], b), floats<VEC>(dy16[k], d);
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            float s = sigmoid(b[j]), silu = b[j] * s;
            m[j] = a[j] * silu;
            b[j] = d[j] * a[j] * s * (1 + b[j] * (1 - s));
            a[j] = d[j] * silu;
        }
        if (!inside || t + k >= N) continue;
        store<VEC>(du + (t + k) * lddu + i, b);
        if (dg) store<VEC>(dg + (t + k) * lddg + i, a);
        if (y) store<VEC>(y + (t + k) * ldy + i, m);
    }
}

void cuda_gate(void *self, const struct gate_args *a) {
    struct cuda *c = (struct cuda *)self;
    int v = wide(&a->g) && wide(&a->u) && wide(&a->y) ? WIDE : 1;
    int64_t N = a->g.rows, F = a->g.cols, tiles = ceil_div(F, THREADS * v);
    unsigned blocks = (unsigned)(tiles * ceil_div(N, GATE_ROWS));
    const bf16 *g = (const bf16 *)a->g.data, *u = (const bf16 *)a->u.data;
    bf16 *y = (bf16 *)a->y.data;
    if (v == WIDE) gate<WIDE><<<blocks, THREADS, 0, cuda_stream(c)>>>(g, a->g.ld, u, a->u.ld, y, a->y.ld, N, F, (unsigned)tiles);
    else gate<1><<<blocks, THREADS, 0, cuda_stream(c)>>>(g, a->g.ld, u, a->u.ld, y, a->y.ld, N, F, (unsigned)tiles);
    CUDA_LAUNCHED(c);
}
void cuda_gate_bwd(void *self, const struct gate_args *a) {
    struct cuda *c = (struct cuda *)self;
    int v =
        wide(&a->g) && wide(&a->u) && wide(&a->dy) && (!a->dg.data || wide(&a->dg)) && wide(&a->du) && (!a->y.data || wide(&a->y))
            ? WIDE
            : 1;
    int64_t N = a->g.rows, F = a->g.cols, tiles = ceil_div(F, THREADS * v);
    unsigned blocks = (unsigned)(tiles * ceil_div(N, GATE_ROWS));
    const bf16 *g = (const bf16 *)a->g.data, *u = (const bf16 *)a->u.data, *dy = (const bf16 *)a->dy.data;
    bf16 *dg = (bf16 *)a->dg.data, *du = (bf16 *)a->du.data, *y = (bf16 *)a->y.data;
    if (v == WIDE)
        gate_bwd<WIDE><<<blocks, THREADS, 0, cuda_stream(c)>>>(g, a->g.ld, u, a->u.ld, dy, a->dy.ld, dg, a->dg.ld, du, a->du.ld,
                                                               y, a->y.ld, N, F, (unsigned)tiles);
    else
        gate_bwd<1><<<blocks, THREADS, 0, cuda_stream(c)>>>(g, a->g.ld, u, a->u.ld, dy, a->dy.ld, dg, a->dg.ld, du, a->du.ld, y,
                                                            a->y.ld, N, F, (unsigned)tiles);
    CUDA_LAUNCHED(c);
}
