/* backend/cuda/decode.cu - linear maps, filter and attention of one to eight rows, as generation calls them.
 *
 * With so few rows all time goes into reading, so each byte is read once: weights as they are stored, for all rows and all
 * outputs of a call in one launch; keys and values by slices of 256 keys, so that one row of a long context keeps the whole card
 * busy. The rows are the columns of an mma.sync m16n8k16 whose other operand is 16 weight rows: eight rows cost what one costs,
 * and products of bf16 accumulate in fp32. Weights have the values that cuda_unpack gives. Sums have fixed orders.
 *
 * A call that does not fit (more rows, dropout, a cache beyond the workspace) is left to linear.cu and attend.cu: return 0. */
#include "backend/cuda/cuda_internal.h"
#include "backend/cuda/mma.h"
#include <float.h>
#include <math.h>

enum {
    ROWS = 8,
    TILE = 16 /* weight rows of a block */,
    WARPS_MAX = 16,
    RESIDENT = 24 /* warps a multiprocessor has registers for */,
    DEPTH = 2 /* pieces on their way */,
    TERMS = 2
};

/* What a lane reads at once, a piece: 16 bytes of W_F32, W_BF16, W_INT8, W_Q4; ANY takes four weights of any format one by one,
 * for odd widths and addresses. */
enum { ANY = 4 };
/* Weights of a piece. */
__host__ __device__ static constexpr int span(int format) { return format == W_Q4 ? 32 : format == W_INT8 ? 16 : format == W_BF16 ? 8 : 4; }

struct term { struct weight w; int shift; const bf16 *x[ROWS]; }; /* shift: log2 of the block. x[n] NULL: a row of zeros */
struct output {
    struct term term[TERMS];
    bf16 *y;
    const bf16 *add, *bias16, *xa;
    const float *bias32, *B, *by_row; /* B NULL: no adapter; by_row NULL: no magnitudes */
    int64_t ldy, ld_add, ld_xa, ldb;
    int rows, R;
    float scale;
};
struct product { struct output out[LINEAR_MAX]; int tiles0, N, terms, cols; }; /* tiles0: blocks of out[0] */

/* ---- weights ---- */

DEV float value(const struct term &t, int64_t row, int64_t i) {
    const struct weight &w = t.w;
    switch (w.format) {
    case W_F32: return ((const float *)w.data)[i];
    case W_BF16: return __bfloat162float(((const bf16 *)w.data)[i]);
    case W_INT8: return __fmul_rn((float)((const int8_t *)w.data)[i], int8_unit(w.scale[row]));
    default:
        return __fmul_rn(w.q4.levels[w.q4.codes[i / 2] >> (i % 2 ? 0 : 4) & 15],
                         q4_scale(&w.q4, i >> t.shift)); /* q4_value without its division */
    }
}

struct piece { uint4 raw; float scale; uint8_t q; }; /* weights and scale as stored: nothing here waits for a load */

/* Weights k, k+1, .. of a row. Behind the row's end: zeros, or codes that meet zeros of x. */
template <int F> DEV void fetch(struct piece *p, const struct term &t, int row, int k, int cols) {
    const struct weight &w = t.w;
    p->raw = make_uint4(0, 0, 0, 0), p->scale = 0, p->q = 0;
    if (k >= cols) return;
    if constexpr (F == ANY) {
        float v[4];
        for (int j = 0; j < 4; j++) v[j] = k + j < cols ? value(t, row, (int64_t)row * cols + k + j) : 0.f;
        p->raw.x = pack(v[0], v[1]), p->raw.y = pack(v[2], v[3]);
        return;
    }
    uint32_t i = (uint32_t)row * (uint32_t)cols + (uint32_t)k, b = i >> t.shift; /* a span divides every block size: one scale */
    p->raw = __ldcs((const uint4 *)(F == W_Q4 ? (const void *)w.q4.codes : w.data) + i / span(F));
    if constexpr (F == W_INT8) p->scale = w.scale[row];
    if constexpr (F == W_Q4) {
        if (w.q4.absmax) p->scale = w.q4.absmax[b];
        else p->q = w.q4.absmax_q[b], p->scale = w.q4.nested_absmax[b >> 8];
    }
}

/* q4_scale of a block whose stored scale is already here. */
DEV float scale_of(const struct q4_view &v, const struct piece &p) {
    if (v.absmax) return p.scale;
    struct q4_view one = {};
    one.absmax_q = &p.q, one.nested_absmax = &p.scale, one.nested_map = v.nested_map, one.nested_offset = v.nested_offset;
    return q4_scale(&one, 0);
}

/* What the numbers of a piece are multiplied by. */
template <int F> DEV float factor(const struct piece &p, const struct weight &w) {
    if constexpr (F == W_Q4) return scale_of(w.q4, p);
    else if constexpr (F == W_INT8) return int8_unit(p.scale);
    else return 1;
}
/* Weights 2i and 2i+1 of a piece in bf16, rounded once from fp32. A level is looked up across lanes: lane l holds level l % 16, and
 * a shuffle of width 16 takes the low four bits of its index. All lanes must be here. */
template <int F> DEV uint32_t pair(const struct piece &p, int i, float scale, float level) {
    const uint32_t word[4] = {p.raw.x, p.raw.y, p.raw.z, p.raw.w};
    if constexpr (F == W_Q4) { /* a byte: first element in the high nibble */
        uint32_t byte = word[i / 4] >> (i % 4 * 8);
        float first = __shfl_sync(~0u, level, (int)(byte >> 4), 16), second = __shfl_sync(~0u, level, (int)byte, 16);
        return pack(__fmul_rn(first, scale), __fmul_rn(second, scale));
    } else if constexpr (F == W_INT8) {
        uint32_t two = word[i / 2] >> (i % 2 * 16);
        return pack(__fmul_rn((float)(int8_t)two, scale), __fmul_rn((float)(int8_t)(two >> 8), scale));
    } else if constexpr (F == W_F32) return pack(__uint_as_float(word[2 * i]), __uint_as_float(word[2 * i + 1]));
    else return word[i];
}

/* Elements k, k+1, .. of a row of x as pairs; it stays in the first cache. */
template <int F> DEV void inputs(uint32_t out[span(F) / 2], const bf16 *x, int k, int cols) {
    constexpr int E = span(F);
    if (!x || k >= cols) {
#pragma unroll
        for (int i = 0; i < E / 2; i++) out[i] = 0;
    } else if constexpr (F == ANY) {
        float v[4];
        for (int j = 0; j < 4; j++) v[j] = k + j < cols ? __bfloat162float(x[k + j]) : 0.f;
        out[0] = pack(v[0], v[1]), out[1] = pack(v[2], v[3]);
    } else if constexpr (E == 4) {
        uint2 u = *(const uint2 *)(x + k);
        out[0] = u.x, out[1] = u.y;
    } else {
#pragma unroll
        for (int i = 0; i < E / 8; i++) {
            uint4 u = ((const uint4 *)(x + k))[i];
            out[4 * i] = u.x, out[4 * i + 1] = u.y, out[4 * i + 2] = u.z, out[4 * i + 3] = u.w;
        }
    }
}

/* ---- y = Σ_terms x W'ᵀ + s xa Bᵀ (+ bias) (+ add) ---- */

/* block: 16 rows of W for all N rows of x. A step is 4 span columns: lane 4g+q reads piece q of rows g and g+8, and piece q of row
 * g of x, so that both operands of an mma hold the same columns in the same order. Steps of all terms go round the warps, whose
 * sums are added in order at the end; the adapter's product is made by all threads while the first pieces are on their way.
 * Reads the weights once, x and xa from cache; writes 2 N bytes a weight row. 2 N FLOPs a weight of 16 that the mma makes.
 * A Q4 weight takes a shift, a shuffle, a product and half a conversion: 32 shuffled lanes a clock and multiprocessor
 * are 7.4e12 weights a second at 1.75 GHz on 132 of them, 3.8 TB/s of NF4. */
template <int F> __global__ static void __launch_bounds__(32 * RESIDENT) few_rows(const __grid_constant__ struct product j) {
    constexpr int E = span(F);
    __shared__ float part[WARPS_MAX][TILE * ROWS], low[TILE * ROWS];
    int which = (int)blockIdx.x >= j.tiles0, lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32,
        g = lane / 4, q = lane % 4;
    const struct output &o = j.out[which];
    int row0 = ((int)blockIdx.x - (which ? j.tiles0 : 0)) * TILE, last = o.rows - 1, upper = min(row0 + g, last),
        lower = min(row0 + g + 8, last);
    int steps = (j.cols + 4 * E - 1) / (4 * E), total = steps * j.terms;
    struct piece ring[DEPTH][2];
    auto start = [&](struct piece to[2], int step) {
        if (step >= total) return;
        int t = step >= steps, k = ((step - t * steps) * 4 + q) * E;
        fetch<F>(&to[0], o.term[t], upper, k, j.cols), fetch<F>(&to[1], o.term[t], lower, k, j.cols);
    };
#pragma unroll
    for (int d = 0; d < DEPTH; d++) start(ring[d], warp + d * warps);
    if (o.B) { /* 2 warps threads a row */
        int each = blockDim.x / TILE, r = threadIdx.x / each, first = threadIdx.x % each;
        const float *b = o.B + (int64_t)min(row0 + r, last) * o.ldb;
        for (int n = 0; n < j.N; n++) {
            float s = 0;
            for (int i = first; i < o.R; i += each) s += b[i] * __bfloat162float(o.xa[n * o.ld_xa + i]);
            for (int m = each / 2; m; m >>= 1) s += __shfl_xor_sync(~0u, s, m);
            if (first == 0) low[r * ROWS + n] = s;
        }
    }
    float acc[2][4] = {};
    for (int s = warp; s < total; s += DEPTH * warps)
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            int step = s + d * warps, t = step >= steps;
            if (step >= total) break;
            uint32_t x[E / 2];
            inputs<F>(x, o.term[t].x[g], ((step - t * steps) * 4 + q) * E, j.cols);
            const struct weight &w = o.term[t].w;
            const struct piece &a = ring[d][0], &b = ring[d][1];
            float level = F == W_Q4 ? w.q4.levels[lane % 16] : 0.f, fa = factor<F>(a, w), fb = factor<F>(b, w);
#pragma unroll
            for (int i = 0; i < E / 2; i += 2) {
                const uint32_t pairs[4] = {pair<F>(a, i, fa, level), pair<F>(b, i, fb, level), pair<F>(a, i + 1, fa, level),
                                           pair<F>(b, i + 1, fb, level)};
                mma(acc[i / 2 & 1], pairs, x[i], x[i + 1]);
            }
            start(ring[d], step + DEPTH * warps);
        }
#pragma unroll
    for (int i = 0; i < 4; i++) part[warp][(g + i / 2 * 8) * ROWS + 2 * q + i % 2] = acc[0][i] + acc[1][i];
    __syncthreads();
    int r = threadIdx.x / ROWS, n = threadIdx.x % ROWS, row = row0 + r;
    if (r >= TILE || n >= j.N || row > last) return;
    float y = 0;
    for (int w = 0; w < warps; w++) y += part[w][threadIdx.x];
    if (o.B) y += o.scale * low[threadIdx.x];
    if (o.by_row) y *= o.by_row[row];
    if (o.bias32) y += o.bias32[row];
    if (o.bias16) y += __bfloat162float(o.bias16[row]);
    if (o.add) y += __bfloat162float(o.add[n * o.ld_add + row]);
    o.y[n * o.ldy + row] = __float2bfloat16_rn(y);
}

/* The way to read a weight and x: its own format when rows of both begin at 16 bytes and 32 bits count the weights. */
static int reader(const struct weight *w, const struct mat *x) {
    const void *p = w->format == W_Q4 ? w->q4.codes : w->data;
    int odd = x->cols % span(w->format) || x->ld % 8 || (uintptr_t)x->data % 16 || (uintptr_t)p % 16;
    return odd || w->rows > UINT32_MAX / w->cols ? (int)ANY : (int)w->format;
}
static void set_weight(struct term *t, const struct weight *w) {
    t->w = *w;
    if (w->format == W_Q4)
        while (1 << t->shift < w->q4.block) t->shift++;
}
/* Warps of a block: 12 to 24 a multiprocessor in all have 64 bytes a lane on their way, some 32 KiB each, which is
 * what 3 TB/s at a microsecond of latency need; no more than there are steps. */
static void launch(struct cuda *c, const struct product &j, int outputs, int f) {
    int64_t tiles = j.tiles0 + (outputs > 1 ? ceil_div(j.out[1].rows, TILE) : 0), steps = j.terms * ceil_div(j.cols, 4 * span(f)),
            warps = 4;
    while (warps < WARPS_MAX && 2 * warps <= steps && tiles * warps < 12 * c->sms) warps *= 2;
    unsigned blocks = (unsigned)tiles, threads = (unsigned)(32 * warps);
    cudaStream_t q = cuda_stream(c);
    if (f == W_Q4) few_rows<W_Q4><<<blocks, threads, 0, q>>>(j);
    else if (f == W_INT8) few_rows<W_INT8><<<blocks, threads, 0, q>>>(j);
    else if (f == W_BF16) few_rows<W_BF16><<<blocks, threads, 0, q>>>(j);
    else if (f == W_F32) few_rows<W_F32><<<blocks, threads, 0, q>>>(j);
    else few_rows<ANY><<<blocks, threads, 0, q>>>(j);
    CUDA_LAUNCHED(c);
}

/* ---- xa = x Aᵀ ---- */

enum { LOW_THREADS = 256 };
struct low_out { const float *A; bf16 *xa; int64_t lda, ld_xa; int R; };
struct low { struct low_out out[LINEAR_MAX]; const bf16 *x; int64_t ldx; int N, cols; };

/* xa[n][r] = bf16(Σ_k x[n][k] A[r][k]), A fp32. block: one row of the A of all outputs, VEC columns a thread and turn.
 * 4 bytes an element of A, read once; x from cache. NR: 1 or 8 sums a thread. */
template <int NR, int VEC> __global__ static void __launch_bounds__(LOW_THREADS) low_rank(const __grid_constant__ struct low l) {
    __shared__ float part[LOW_THREADS / 32][NR];
    int which = (int)blockIdx.x >= l.out[0].R, r = (int)blockIdx.x - (which ? l.out[0].R : 0), lane = threadIdx.x % 32,
        warp = threadIdx.x / 32;
    const struct low_out &o = l.out[which];
    const float *a = o.A + r * o.lda;
    float sum[NR] = {};
#pragma unroll 4
    for (int k = threadIdx.x * VEC; k < l.cols; k += LOW_THREADS * VEC) {
        float v[VEC];
        if constexpr (VEC == 4) {
            float4 f = *(const float4 *)(a + k);
            v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
        } else v[0] = a[k];
#pragma unroll
        for (int n = 0; n < NR; n++) {
            if (n >= l.N) break;
            const bf16 *x = l.x + n * l.ldx + k;
            if constexpr (VEC == 4) {
                uint2 u = *(const uint2 *)x;
                float2 p = __bfloat1622float2(*(__nv_bfloat162 *)&u.x), s = __bfloat1622float2(*(__nv_bfloat162 *)&u.y);
                sum[n] += v[0] * p.x + v[1] * p.y + v[2] * s.x + v[3] * s.y;
            } else sum[n] += v[0] * __bfloat162float(*x);
        }
    }
#pragma unroll
    for (int n = 0; n < NR; n++) {
        for (int m = 16; m; m >>= 1) sum[n] += __shfl_xor_sync(~0u, sum[n], m);
        if (lane == 0) part[warp][n] = sum[n];
    }
    __syncthreads();
    int n = threadIdx.x;
    if (n >= NR || n >= l.N) return;
    float s = 0;
    for (int w = 0; w < LOW_THREADS / 32; w++) s += part[w][n];
    o.xa[n * o.ld_xa + r] = __float2bfloat16_rn(s);
}

static void adapters(struct cuda *c, const struct linear_args *a) {
    struct low l = {};
    int vec = a->x.cols % 4 == 0 && a->x.ld % 4 == 0 && (uintptr_t)a->x.data % 8 == 0, R = 0;
    for (int i = 0; i < a->n; i++) {
        const struct mat *A = &a->out[i].lora.A, *xa = &a->out[i].xa;
        if (!A->data) continue;
        l.out[i] = {(const float *)A->data, (bf16 *)xa->data, A->ld, xa->ld, (int)A->rows};
        R += (int)A->rows, vec = vec && A->ld % 4 == 0 && (uintptr_t)A->data % 16 == 0;
    }
    if (!R) return;
    l.x = (const bf16 *)a->x.data, l.ldx = a->x.ld, l.N = (int)a->x.rows, l.cols = (int)a->x.cols;
    cudaStream_t q = cuda_stream(c);
    if (l.N == 1 && vec) low_rank<1, 4><<<R, LOW_THREADS, 0, q>>>(l);
    else if (l.N == 1) low_rank<1, 1><<<R, LOW_THREADS, 0, q>>>(l);
    else if (vec) low_rank<ROWS, 4><<<R, LOW_THREADS, 0, q>>>(l);
    else low_rank<ROWS, 1><<<R, LOW_THREADS, 0, q>>>(l);
    CUDA_LAUNCHED(c);
}

int cuda_decode_linear(struct cuda *c, const struct linear_args *a) {
    if (a->x.rows > ROWS) return 0;
    for (int i = 0; i < a->n; i++)
        if (!a->out[i].y.data || a->out[i].dy.data || (a->out[i].lora.A.data && a->out[i].drop.p > 0)) return 0;
    adapters(c, a);
    struct product j = {};
    j.N = (int)a->x.rows, j.cols = (int)a->x.cols, j.terms = 1, j.tiles0 = (int)ceil_div(a->out[0].w.rows, TILE);
    int f = reader(&a->out[0].w, &a->x);
    for (int i = 0; i < a->n; i++) {
        const struct linear_out *from = &a->out[i];
        struct output *o = &j.out[i];
        if (reader(&from->w, &a->x) != f) f = ANY;
        set_weight(&o->term[0], &from->w), o->rows = (int)from->w.rows;
        for (int n = 0; n < j.N; n++) o->term[0].x[n] = (const bf16 *)a->x.data + n * a->x.ld;
        o->y = (bf16 *)from->y.data, o->ldy = from->y.ld, o->add = (const bf16 *)from->add.data, o->ld_add = from->add.ld;
        if (!from->lora.A.data) continue;
        o->B = (const float *)from->lora.B.data, o->ldb = from->lora.B.ld, o->R = (int)from->lora.B.cols, o->scale = from->lora.scale;
        o->by_row = from->lora.m ? from->lora.c : NULL;
        o->xa = (const bf16 *)from->xa.data, o->ld_xa = from->xa.ld;
    }
    launch(c, j, a->n, f);
    return 1;
}

/* Both taps are terms of one product: row n takes x[n-1], or `before`, or nothing at a sequence's start. */
int cuda_decode_filter(struct cuda *c, const struct filter_args *a) {
    if (a->x.rows > ROWS) return 0;
    struct product j = {};
    struct output *o = &j.out[0];
    const bf16 *x = (const bf16 *)a->x.data;
    j.N = (int)a->x.rows, j.cols = (int)a->x.cols, j.terms = 2, j.tiles0 = (int)ceil_div(a->w1.rows, TILE);
    set_weight(&o->term[0], &a->w0), set_weight(&o->term[1], &a->w1), o->rows = (int)a->w1.rows;
    for (int n = 0; n < j.N; n++)
        o->term[0].x[n] = n ? x + (n - 1) * a->x.ld : (const bf16 *)a->before.data, o->term[1].x[n] = x + n * a->x.ld;
    for (int s = 1; s < a->rows->n_seqs; s++) o->term[0].x[a->rows->seq_start[s]] = NULL;
    o->y = (bf16 *)a->y.data, o->ldy = a->y.ld, o->add = (const bf16 *)a->add.data, o->ld_add = a->add.ld;
    if (a->b_type == DT_F32) o->bias32 = (const float *)a->b;
    else o->bias16 = (const bf16 *)a->b;
    int f = reader(&a->w0, &a->x);
    if (reader(&a->w1, &a->x) != f || (uintptr_t)a->before.data % 16) f = ANY;
    launch(c, j, 1, f);
    return 1;
}

/* ---- attention over a cache ---- */

enum { SLICE = 256 /* keys */, HEAD_MAX = 256, THREADS = 256, WARPS = THREADS / 32, SLICES_MAX = 1024 };

struct heads { const bf16 *p; int64_t ld, step; };
struct attention {
    struct heads q, k, v;
    bf16 *o;
    int64_t ldo;
    const int32_t *first;
    float *lse, *part; /* part: (N, H, slices, K + 2): Σ e v, then top and Σ e, e = exp(score - top) */
    int H, K, N, past, slices, lanes, wide; /* lanes: of a key, 8 features each; wide: rows can be read 16 bytes at a time */
    float scale;
};

/* Features c .. c+7 of a row, zeros from K on. */
DEV uint4 features(const bf16 *row, int c, int K, int wide) {
    uint4 u = make_uint4(0, 0, 0, 0);
    if (wide && c < K) u = *(const uint4 *)(row + c);
    else
        for (int i = 0; i < 8; i++)
            if (c + i < K) ((bf16 *)&u)[i] = row[c + i];
    return u;
}
DEV void unpack8(float f[8], const uint4 &u) {
    const __nv_bfloat162 *h = (const __nv_bfloat162 *)&u;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 p = __bfloat1622float2(h[i]);
        f[2 * i] = p.x, f[2 * i + 1] = p.y;
    }
}

/* One slice of the keys of one head for all N rows: scores q k scale, their maximum and exponentials, Σ e v.
 * block: (slice, head). A key takes `lanes` lanes; 32 / lanes keys a warp and load, BATCH loads on their way. Keys and values are read
 * once, 4 K bytes a key. With one slice o and lse are finished here. */
template <int NR> __global__ static void __launch_bounds__(THREADS) attend_slice(const __grid_constant__ struct attention a) {
    constexpr int BATCH = NR == 1 ? 4 : 2; /* as registers allow */
    __shared__ __align__(16) float q[NR][HEAD_MAX], p[NR][SLICE], sums[WARPS][HEAD_MAX], top[NR], sum[NR];
    int slice = blockIdx.x, h = blockIdx.y, K = a.K, base = slice * SLICE, keys = min((int)SLICE, a.N + a.past - base),
        lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int each = 32 / a.lanes, own = warp * each + lane / a.lanes, turn = WARPS * each, c = lane % a.lanes * 8;
    for (int r = 0; r < a.N; r++)
        q[r][threadIdx.x] =
            (int)threadIdx.x < K ? __bfloat162float(a.q.p[r * a.q.ld + h * a.q.step + threadIdx.x]) * a.scale : 0.f;
    __syncthreads();
    const bf16 *k = a.k.p + (int64_t)base * a.k.ld + h * a.k.step, *v = a.v.p + (int64_t)base * a.v.ld + h * a.v.step;
    for (int u0 = 0; u0 < keys; u0 += BATCH * turn) {
        uint4 raw[BATCH];
#pragma unroll
        for (int b = 0; b < BATCH; b++) raw[b] = features(k + (int64_t)min(u0 + b * turn + own, keys - 1) * a.k.ld, c, K, a.wide);
        for (int r = 0; r < a.N; r++)
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                int u = u0 + b * turn + own;
                float f[8], s = 0;
                unpack8(f, raw[b]);
#pragma unroll
                for (int i = 0; i < 8; i++) s += f[i] * q[r][c + i];
                for (int m = a.lanes / 2; m; m >>= 1) s += __shfl_xor_sync(~0u, s, m);
                if (c == 0 && u < keys) p[r][u] = base + u >= a.first[r] && base + u <= r + a.past ? s : -FLT_MAX;
            }
    }
    __syncthreads();
    if (warp < a.N) {
        float *s = p[warp], most = -FLT_MAX, all = 0;
        for (int u = lane; u < keys; u += 32) most = fmaxf(most, s[u]);
        for (int m = 16; m; m >>= 1) most = fmaxf(most, __shfl_xor_sync(~0u, most, m));
        for (int u = lane; u < keys; u += 32) all += s[u] = s[u] > -FLT_MAX ? expf(s[u] - most) : 0.f;
        for (int m = 16; m; m >>= 1) all += __shfl_xor_sync(~0u, all, m);
        if (lane == 0) top[warp] = most, sum[warp] = all;
    }
    __syncthreads();
    float acc[NR][8] = {};
    for (int u0 = 0; u0 < keys; u0 += BATCH * turn) {
        uint4 raw[BATCH];
#pragma unroll
        for (int b = 0; b < BATCH; b++) raw[b] = features(v + (int64_t)min(u0 + b * turn + own, keys - 1) * a.v.ld, c, K, a.wide);
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            int u = u0 + b * turn + own;
            float f[8];
            unpack8(f, raw[b]);
#pragma unroll
            for (int r = 0; r < NR; r++) {
                float e = r < a.N && u < keys ? p[r][u] : 0.f;
#pragma unroll
                for (int i = 0; i < 8; i++) acc[r][i] += e * f[i];
            }
        }
    }
#pragma unroll
    for (int r = 0; r < NR; r++) {
        if (r >= a.N) break;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            for (int m = a.lanes; m < 32; m <<= 1) acc[r][i] += __shfl_xor_sync(~0u, acc[r][i], m);
            if (lane < a.lanes) sums[warp][c + i] = acc[r][i];
        }
        __syncthreads();
        float o = 0;
        for (int w = 0; w < WARPS; w++) o += sums[w][threadIdx.x];
        float *part = a.part + (((int64_t)r * a.H + h) * a.slices + slice) * (K + 2);
        if (a.slices == 1 && (int)threadIdx.x < K) a.o[r * a.ldo + h * K + threadIdx.x] = __float2bfloat16_rn(o / sum[r]);
        if (a.slices == 1 && threadIdx.x == 0) a.lse[r * a.H + h] = top[r] + logf(sum[r]);
        if (a.slices > 1 && (int)threadIdx.x < K) part[threadIdx.x] = o;
        if (a.slices > 1 && threadIdx.x == 0) part[K] = top[r], part[K + 1] = sum[r];
        __syncthreads();
    }
}

/* o = Σ_slices exp(top_s - top) o_s / Σ_slices exp(top_s - top) sum_s, in order.  block: one head of one row. */
__global__ static void __launch_bounds__(THREADS) attend_join(const __grid_constant__ struct attention a) {
    __shared__ float factor[SLICES_MAX];
    int h = blockIdx.x, r = blockIdx.y, lane = threadIdx.x % 32, each = a.K + 2;
    const float *part = a.part + ((int64_t)r * a.H + h) * a.slices * each;
    float top = -FLT_MAX, sum = 0;
    for (int s = lane; s < a.slices; s += 32) top = fmaxf(top, part[(int64_t)s * each + a.K]);
    for (int m = 16; m; m >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, m));
    for (int s = lane; s < a.slices; s += 32) {
        float f = expf(part[(int64_t)s * each + a.K] - top);
        sum += f * part[(int64_t)s * each + a.K + 1];
        if (threadIdx.x < 32) factor[s] = f;
    }
    for (int m = 16; m; m >>= 1) sum += __shfl_xor_sync(~0u, sum, m);
    __syncthreads();
    float o = 0;
    if ((int)threadIdx.x < a.K) {
#pragma unroll 8
        for (int s = 0; s < a.slices; s++) o += factor[s] * part[(int64_t)s * each + threadIdx.x];
        a.o[r * a.ldo + h * a.K + threadIdx.x] = __float2bfloat16_rn(o / sum);
    }
    if (threadIdx.x == 0) a.lse[r * a.H + h] = top + logf(sum);
}

static struct heads heads(const struct mat *m, int64_t step, int *wide) {
    struct heads h = {(const bf16 *)m->data, m->ld, step};
    if (m->ld % 8 || step % 8 || (uintptr_t)m->data % 16) *wide = 0;
    return h;
}

int cuda_decode_attend(struct cuda *c, const struct attend_args *a) {
    int64_t N = a->rows->N, slices = ceil_div(N + a->past, SLICE);
    if (N > ROWS || a->K > HEAD_MAX || slices > SLICES_MAX) return 0;
    if (slices > 1 && N * a->H * slices * (a->K + 2) > (int64_t)c->slice_floats) return 0;
    struct attention p = {};
    p.wide = a->K % 8 == 0;
    p.q = heads(&a->q, a->q_step, &p.wide), p.k = heads(&a->k, a->k_step, &p.wide), p.v = heads(&a->v, a->v_step, &p.wide);
    p.o = (bf16 *)a->o.data, p.ldo = a->o.ld, p.first = a->rows->first, p.lse = a->lse, p.part = c->slices;
    p.H = (int)a->H, p.K = (int)a->K, p.N = (int)N, p.past = (int)a->past, p.slices = (int)slices,
    p.scale = (float)(1 / sqrt((double)a->K));
    for (p.lanes = 1; p.lanes * 8 < p.K; p.lanes *= 2) {}
    dim3 grid((unsigned)slices, (unsigned)a->H), rows((unsigned)a->H, (unsigned)N);
    if (N == 1) attend_slice<1><<<grid, THREADS, 0, cuda_stream(c)>>>(p);
    else attend_slice<ROWS><<<grid, THREADS, 0, cuda_stream(c)>>>(p);
    if (slices > 1) attend_join<<<rows, THREADS, 0, cuda_stream(c)>>>(p);
    CUDA_LAUNCHED(c);
    return 1;
}

size_t cuda_decode_workspace(struct cuda *c, const struct backend_limits *l, char *at) {
    size_t slices = (size_t)ceil_div(l->sequence, SLICE), rows = (size_t)(l->rows < ROWS ? l->rows : (int64_t)ROWS);
    c->slices = (float *)at, c->slice_floats = slices > 1 ? rows * (size_t)l->H * slices * (size_t)(l->K + 2) : 0;
    return (c->slice_floats * 4 + 255) / 256 * 256;
}
