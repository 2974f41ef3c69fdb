/* backend/cuda/attend.cu - causal attention with document starts, forward and backward, on the matrix units.
 *
 * Tiling, online softmax and recomputation in backward: Dao 2023 (FlashAttention-2). mma.sync m16n8k16 in bf16 with fp32 sums,
 * so one source serves every card; sm_90 has kernels of its own in attend_sm90.cu. Head sizes 64 and 128; others take plain
 * kernels, a few rows of generation decode.cu.
 *
 * Backward is two kernels, one over key tiles (dK, dV) and one over query tiles (dQ): two products more than one kernel with
 * atomic adds, and the same bits on every run.
 *
 * Tiles start at a sequence's first row, so a row's bits do not depend on what else is in the chunk. Shared memory holds
 * tiles of TILE rows of K bf16; 16-byte pieces of a row are swapped by row % 8 so that ldmatrix meets no bank twice. */
#include "backend/cuda/attend.h"
#include <float.h>
#include <math.h>

enum { WARPS = 4, THREADS = 32 * WARPS, TILE = 64 /* rows of a block's own tile: 16 a warp */ };

/* ---- pieces ---- */

template <int K> DEV int at(int row, int piece) { return row * K + ((piece ^ (row & 7)) << 3); } /* in elements */

/* rows first .. first+ROWS-1 of a head into shared memory; rows beyond `last` repeat it: they are finite and masked. */
template <int K, int ROWS> DEV void fetch(bf16 *to, const struct operand &m, int head, int first, int last) {
    const bf16 *base = m.p + head * m.step;
    for (int i = threadIdx.x; i < ROWS * (K / 8); i += THREADS) {
        int row = i / (K / 8), piece = i % (K / 8), from = first + row < last ? first + row : last;
        copy16(to + at<K>(row, piece), base + (int64_t)from * m.ld + piece * 8);
    }
}

/* A operand (16 rows from `row`, columns 16 k ..) of a tile; lanes 0-15 give rows, 16-31 the right half. */
template <int K> DEV void frag_a(uint32_t r[4], const bf16 *tile, int row, int k) {
    int lane = threadIdx.x % 32;
    ld4(r, tile + at<K>(row + lane % 16, 2 * k + lane / 16));
}
/* B operands of two neighbouring n-tiles (16 columns n of B = rows of the tile), k-step k: r[0], r[1] and r[2], r[3]. */
template <int K> DEV void frag_b(uint32_t r[4], const bf16 *tile, int n, int k) {
    int lane = threadIdx.x % 32;
    ld4(r, tile + at<K>(n + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
}
/* B operands when the tile's rows are the k dimension: rows 16 k .., columns 8 n .. 8 n + 15. */
template <int K> DEV void frag_bt(uint32_t r[4], const bf16 *tile, int k, int n) {
    int lane = threadIdx.x % 32;
    ld4t(r, tile + at<K>(16 * k + lane % 16, n + lane / 16));
}

/* acc(16, 8 NT) += A(16 rows at `row` of a) times rows of b: A Bᵀ over K. */
template <int K, int NT> DEV void times_rows(float acc[NT][4], const bf16 *a, int row, const bf16 *b) {
#pragma unroll
    for (int k = 0; k < K / 16; k++) {
        uint32_t fa[4], fb[4];
        frag_a<K>(fa, a, row, k);
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            frag_b<K>(fb, b, 8 * n, k);
            mma(acc[n], fa, fb[0], fb[1]), mma(acc[n + 1], fa, fb[2], fb[3]);
        }
    }
}
/* acc(16, K) += P(16, 8 NT, as accumulators of times_rows) times tile(8 NT rows, K). */
template <int K, int NT> DEV void times_tile(float acc[K / 8][4], const float p[NT][4], const bf16 *tile) {
#pragma unroll
    for (int k = 0; k < NT / 2; k++) {
        uint32_t fa[4] = {pack(p[2 * k][0], p[2 * k][1]), pack(p[2 * k][2], p[2 * k][3]), pack(p[2 * k + 1][0], p[2 * k + 1][1]),
                          pack(p[2 * k + 1][2], p[2 * k + 1][3])},
                 fb[4];
#pragma unroll
        for (int n = 0; n < K / 8; n += 2) {
            frag_bt<K>(fb, tile, k, n);
            mma(acc[n], fa, fb[0], fb[1]), mma(acc[n + 1], fa, fb[2], fb[3]);
        }
    }
}
/* Two rows (lane/4 and +8) of an accumulator to global memory, times factors; rows that are not there are left out. */
template <int K> DEV void put_rows(const struct operand &m, int head, int row, int end, const float acc[K / 8][4], float f0, float f1) {
    int lane = threadIdx.x % 32, r0 = row + lane / 4, r1 = r0 + 8;
    bf16 *base = m.p + head * m.step + 2 * (lane % 4);
#pragma unroll
    for (int n = 0; n < K / 8; n++) {
        if (r0 < end) *(uint32_t *)(base + (int64_t)r0 * m.ld + 8 * n) = pack(acc[n][0] * f0, acc[n][1] * f0);
        if (r1 < end) *(uint32_t *)(base + (int64_t)r1 * m.ld + 8 * n) = pack(acc[n][2] * f1, acc[n][3] * f1);
    }
}

/* ---- forward ---- */

/* o = softmax(q kᵀ scale + mask) v, lse.  block: 64 query rows of one head, 16 a warp; key tiles of 64 in turn, the next one on
 * its way while this one is used. 4 T K FLOPs a row and head, half of them masked away by skipping. */
template <int K>
__global__ static void __launch_bounds__(THREADS)
    attend_fwd(const __grid_constant__ struct problem a, const __grid_constant__ struct seqs s) {
    extern __shared__ __align__(128) bf16 tiles[];
    bf16 *sq = tiles, *sk = sq + TILE * K, *sv = sk + 2 * TILE * K;
    int tile = gridDim.x - 1 - blockIdx.x, head = blockIdx.y, seq = find_seq(s, tile), warp = threadIdx.x / 32,
        lane = threadIdx.x % 32; /* long rows first */
    int begin = s.start[seq], end = s.start[seq + 1], q0 = begin + (tile - s.tile[seq]) * TILE, qlast = min(q0 + TILE, end) - 1;
    int k0 = begin + (a.first[q0] - begin) / TILE * TILE, kend = qlast + a.past + 1, steps = (kend - k0 + TILE - 1) / TILE;
    int row[2] = {q0 + warp * 16 + lane / 4, q0 + warp * 16 + lane / 4 + 8}, lo[2], hi[2];
    for (int i = 0; i < 2; i++) lo[i] = a.first[min(row[i], qlast)], hi[i] = min(row[i], qlast) + a.past;
    fetch<K, TILE>(sq, a.q, head, q0, qlast);
    fetch<K, TILE>(sk, a.k, head, k0, kend - 1), fetch<K, TILE>(sv, a.v, head, k0, kend - 1);
    copies_end();
    float o[K / 8][4] = {}, top[2] = {-FLT_MAX, -FLT_MAX}, sum[2] = {0, 0}, scale2 = a.scale * LOG2E;
    for (int j = 0; j < steps; j++) {
        bf16 *tk = sk + (j & 1) * TILE * K, *tv = sv + (j & 1) * TILE * K;
        int base = k0 + j * TILE;
        if (j + 1 < steps) {
            bf16 *nk = sk + (~j & 1) * TILE * K, *nv = sv + (~j & 1) * TILE * K;
            fetch<K, TILE>(nk, a.k, head, base + TILE, kend - 1), fetch<K, TILE>(nv, a.v, head, base + TILE, kend - 1);
        }
        copies_end();
        copies_wait<1>();
        __syncthreads();
        float p[TILE / 8][4] = {};
        times_rows<K, TILE / 8>(p, sq, warp * 16, tk);
        int free = base >= lo[0] && base >= lo[1] && base + TILE - 1 <= hi[0] &&
                   base + TILE - 1 <= hi[1]; /* nothing masked for this lane */
        float most[2] = {top[0], top[1]};
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int key = base + 8 * n + 2 * (lane % 4) + (i & 1);
                p[n][i] = free || (key >= lo[i / 2] && key <= hi[i / 2]) ? p[n][i] * scale2 : -FLT_MAX;
                most[i / 2] = fmaxf(most[i / 2], p[n][i]);
            }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            most[i] = fmaxf(most[i], __shfl_xor_sync(~0u, most[i], 1));
            most[i] = fmaxf(most[i], __shfl_xor_sync(~0u, most[i], 2));
            float shrink = exp2f(top[i] - most[i]);
            top[i] = most[i], sum[i] *= shrink;
#pragma unroll
            for (int n = 0; n < K / 8; n++) o[n][2 * i] *= shrink, o[n][2 * i + 1] *= shrink;
        }
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                p[n][i] = p[n][i] > -FLT_MAX ? exp2f(p[n][i] - top[i / 2]) : 0.f;
                sum[i / 2] += p[n][i];
            }
        times_tile<K, TILE / 8>(o, p, tv);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        sum[i] += __shfl_xor_sync(~0u, sum[i], 1);
        sum[i] += __shfl_xor_sync(~0u, sum[i], 2);
        if (lane % 4 == 0 && row[i] < end) a.lse[(int64_t)row[i] * a.H + head] = (top[i] + log2f(sum[i])) * LN2;
    }
    put_rows<K>(a.o, head, q0 + warp * 16, end, o, 1 / sum[0], 1 / sum[1]);
}

/* ---- backward ---- */

/* delta[t][h] = Σ do o.  warp: one row of one head. */
__global__ static void attend_delta(const __grid_constant__ struct problem a, int K, int64_t rows) {
    int64_t w = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    int lane = threadIdx.x % 32;
    if (w >= rows * a.H) return;
    int64_t t = w / a.H, h = w % a.H;
    const bf16 *x = a.o.p + t * a.o.ld + h * a.o.step, *y = a.d_o.p + t * a.d_o.ld + h * a.d_o.step;
    float s = 0;
    for (int i = lane; i < K; i += 32) s += __bfloat162float(x[i]) * __bfloat162float(y[i]);
    for (int k = 16; k; k >>= 1) s += __shfl_xor_sync(~0u, s, k);
    if (lane == 0) a.delta[w] = s;
}

/* dv = Pᵀ do, dk = scale dSᵀ q with P = exp(q kᵀ scale - lse), dS = P (do vᵀ - delta).  block: 64 keys of one head, 16 a warp, so
 * all is transposed: rows are keys, columns queries. Query tiles of BQ rows in turn, from the tile of the first key on. */
template <int K, int BQ>
__global__ static void __launch_bounds__(THREADS)
    attend_dkv(const __grid_constant__ struct problem a, const __grid_constant__ struct seqs s) {
    extern __shared__ __align__(128) bf16 tiles[];
    __shared__ float lse[2][BQ], delta[2][BQ];
    __shared__ int32_t low[2][BQ];
    bf16 *sk = tiles, *sv = sk + TILE * K, *sq = sv + TILE * K, *sd = sq + 2 * BQ * K;
    int tile = blockIdx.x, head = blockIdx.y, seq = find_seq(s, tile), warp = threadIdx.x / 32,
        lane = threadIdx.x % 32; /* early keys are seen by most */
    int begin = s.start[seq], end = s.start[seq + 1], k0 = begin + (tile - s.tile[seq]) * TILE, klast = min(k0 + TILE, end) - 1;
    int q0 = begin + (k0 - begin) / BQ * BQ, steps = (end - q0 + BQ - 1) / BQ;
    int key[2] = {k0 + warp * 16 + lane / 4, k0 + warp * 16 + lane / 4 + 8};
    fetch<K, TILE>(sk, a.k, head, k0, klast), fetch<K, TILE>(sv, a.v, head, k0, klast);
    fetch<K, BQ>(sq, a.q, head, q0, end - 1), fetch<K, BQ>(sd, a.d_o, head, q0, end - 1);
    copies_end();
    float dk[K / 8][4] = {}, dv[K / 8][4] = {}, scale2 = a.scale * LOG2E;
    for (int j = 0; j < steps; j++) {
        int buf = j & 1, base = q0 + j * BQ;
        bf16 *tq = sq + buf * BQ * K, *td = sd + buf * BQ * K;
        if (j + 1 < steps) {
            fetch<K, BQ>(sq + (buf ^ 1) * BQ * K, a.q, head, base + BQ, end - 1);
            fetch<K, BQ>(sd + (buf ^ 1) * BQ * K, a.d_o, head, base + BQ, end - 1);
        }
        copies_end();
        for (int i = threadIdx.x; i < BQ; i += THREADS) {
            int64_t t = min(base + i, end - 1);
            lse[buf][i] = a.lse[t * a.H + head] * LOG2E, delta[buf][i] = a.delta[t * a.H + head];
            low[buf][i] = base + i < end ? a.first[t] : INT32_MAX; /* rows that are not there see no key */
        }
        copies_wait<1>();
        __syncthreads();
        if (low[buf][0] > klast) break; /* documents that begin later see none of these keys */
        float p[BQ / 8][4] = {}, d[BQ / 8][4] = {};
        times_rows<K, BQ / 8>(p, sk, warp * 16, tq);
        times_rows<K, BQ / 8>(d, sv, warp * 16, td);
#pragma unroll
        for (int n = 0; n < BQ / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int col = 8 * n + 2 * (lane % 4) + (i & 1), u = key[i / 2];
                p[n][i] = u >= low[buf][col] && u <= base + col ? exp2f(p[n][i] * scale2 - lse[buf][col]) : 0.f;
                d[n][i] = p[n][i] * (d[n][i] - delta[buf][col]);
            }
        times_tile<K, BQ / 8>(dv, p, td);
        times_tile<K, BQ / 8>(dk, d, tq);
        __syncthreads();
    }
    copies_wait<0>();
    put_rows<K>(a.dk, head, k0 + warp * 16, end, dk, a.scale, a.scale);
    put_rows<K>(a.dv, head, k0 + warp * 16, end, dv, 1, 1);
}

/* dq = scale dS k.  block: 64 queries of one head; key tiles of BK rows in turn. */
template <int K, int BK>
__global__ static void __launch_bounds__(THREADS)
    attend_dq(const __grid_constant__ struct problem a, const __grid_constant__ struct seqs s) {
    extern __shared__ __align__(128) bf16 tiles[];
    bf16 *sq = tiles, *sd = sq + TILE * K, *sk = sd + TILE * K, *sv = sk + 2 * BK * K;
    int tile = gridDim.x - 1 - blockIdx.x, head = blockIdx.y, seq = find_seq(s, tile), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int begin = s.start[seq], end = s.start[seq + 1], q0 = begin + (tile - s.tile[seq]) * TILE, qlast = min(q0 + TILE, end) - 1;
    int k0 = begin + (a.first[q0] - begin) / BK * BK, steps = (qlast + 1 - k0 + BK - 1) / BK;
    int lo[2], hi[2];
    float lse[2], delta[2];
    for (int i = 0; i < 2; i++) {
        int t = min(q0 + warp * 16 + lane / 4 + 8 * i, qlast);
        lo[i] = a.first[t], hi[i] = t, lse[i] = a.lse[(int64_t)t * a.H + head] * LOG2E, delta[i] = a.delta[(int64_t)t * a.H + head];
    }
    fetch<K, TILE>(sq, a.q, head, q0, qlast), fetch<K, TILE>(sd, a.d_o, head, q0, qlast);
    fetch<K, BK>(sk, a.k, head, k0, qlast), fetch<K, BK>(sv, a.v, head, k0, qlast);
    copies_end();
    float dq[K / 8][4] = {}, scale2 = a.scale * LOG2E;
    for (int j = 0; j < steps; j++) {
        int buf = j & 1, base = k0 + j * BK;
        bf16 *tk = sk + buf * BK * K, *tv = sv + buf * BK * K;
        if (j + 1 < steps) {
            fetch<K, BK>(sk + (buf ^ 1) * BK * K, a.k, head, base + BK, qlast);
            fetch<K, BK>(sv + (buf ^ 1) * BK * K, a.v, head, base + BK, qlast);
        }
        copies_end();
        copies_wait<1>();
        __syncthreads();
        float p[BK / 8][4] = {}, d[BK / 8][4] = {};
        times_rows<K, BK / 8>(p, sq, warp * 16, tk);
        times_rows<K, BK / 8>(d, sd, warp * 16, tv);
#pragma unroll
        for (int n = 0; n < BK / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int key = base + 8 * n + 2 * (lane % 4) + (i & 1);
                float e = key >= lo[i / 2] && key <= hi[i / 2] ? exp2f(p[n][i] * scale2 - lse[i / 2]) : 0.f;
                d[n][i] = e * (d[n][i] - delta[i / 2]);
            }
        times_tile<K, BK / 8>(dq, d, tk);
        __syncthreads();
    }
    put_rows<K>(a.dq, head, q0 + warp * 16, end, dq, a.scale, a.scale);
}

/* ---- any head size up to 256: one warp a row, correct before fast ---- */

enum { LANES = 8 }; /* features a lane holds: head size <= 256 */
struct vec { float x[LANES]; };
DEV struct vec row_of(const struct operand &m, int64_t t, int h, int K) {
    struct vec v;
    const bf16 *p = m.p + t * m.ld + h * m.step;
#pragma unroll
    for (int i = 0; i < LANES; i++) {
        int c = threadIdx.x % 32 + 32 * i;
        v.x[i] = c < K ? __bfloat162float(p[c]) : 0.f;
    }
    return v;
}
DEV float dot(const struct vec &a, const struct vec &b) {
    float s = 0;
#pragma unroll
    for (int i = 0; i < LANES; i++) s += a.x[i] * b.x[i];
    for (int k = 16; k; k >>= 1) s += __shfl_xor_sync(~0u, s, k);
    return s;
}
DEV void put_row(const struct operand &m, int64_t t, int h, int K, const struct vec &v, float f) {
    bf16 *p = m.p + t * m.ld + h * m.step;
#pragma unroll
    for (int i = 0; i < LANES; i++) {
        int c = threadIdx.x % 32 + 32 * i;
        if (c < K) p[c] = __float2bfloat16_rn(v.x[i] * f);
    }
}
__global__ static void any_fwd(const __grid_constant__ struct problem a, int K, int64_t rows) {
    int64_t w = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32, t = w / a.H;
    int h = (int)(w % a.H);
    if (t >= rows) return;
    struct vec q = row_of(a.q, t, h, K), o = {};
    float top = -FLT_MAX, sum = 0;
    for (int64_t u = a.first[t]; u <= t + a.past; u++) {
        struct vec k = row_of(a.k, u, h, K), v = row_of(a.v, u, h, K);
        float x = dot(q, k) * a.scale, most = fmaxf(top, x), shrink = expf(top - most), e = expf(x - most);
        sum = sum * shrink + e, top = most;
#pragma unroll
        for (int i = 0; i < LANES; i++) o.x[i] = o.x[i] * shrink + e * v.x[i];
    }
    put_row(a.o, t, h, K, o, 1 / sum);
    if (threadIdx.x % 32 == 0) a.lse[w] = top + logf(sum);
}
__global__ static void any_dq(const __grid_constant__ struct problem a, int K, int64_t rows) {
    int64_t w = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32, t = w / a.H;
    int h = (int)(w % a.H);
    if (t >= rows) return;
    struct vec q = row_of(a.q, t, h, K), d = row_of(a.d_o, t, h, K), dq = {};
    for (int64_t u = a.first[t]; u <= t; u++) {
        struct vec k = row_of(a.k, u, h, K), v = row_of(a.v, u, h, K);
        float p = expf(dot(q, k) * a.scale - a.lse[w]), ds = p * (dot(d, v) - a.delta[w]);
#pragma unroll
        for (int i = 0; i < LANES; i++) dq.x[i] += ds * k.x[i];
    }
    put_row(a.dq, t, h, K, dq, a.scale);
}
__global__ static void any_dkv(const __grid_constant__ struct problem a, const __grid_constant__ struct seqs s, int K) {
    int64_t w = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32, u = s.start[0] + w / a.H;
    int h = (int)(w % a.H), seq = 0;
    if (u >= s.start[s.n]) return;
    while (u >= s.start[seq + 1]) seq++;
    struct vec k = row_of(a.k, u, h, K), v = row_of(a.v, u, h, K), dk = {}, dv = {};
    for (int64_t t = u; t < s.start[seq + 1]; t++) {
        if (a.first[t] > u) continue;
        struct vec q = row_of(a.q, t, h, K), d = row_of(a.d_o, t, h, K);
        float p = expf(dot(q, k) * a.scale - a.lse[t * a.H + h]), ds = p * (dot(d, v) - a.delta[t * a.H + h]);
#pragma unroll
        for (int i = 0; i < LANES; i++) dv.x[i] += p * d.x[i], dk.x[i] += ds * q.x[i];
    }
    put_row(a.dk, u, h, K, dk, a.scale), put_row(a.dv, u, h, K, dv, 1);
}

/* ---- launches ---- */

static struct operand operand(const struct mat *m, int64_t step) {
    struct operand o = {(bf16 *)m->data, m->ld, step};
    return o;
}
static struct problem problem_of(const struct attend_args *a) {
    struct problem p = {};
    p.q = operand(&a->q, a->q_step), p.k = operand(&a->k, a->k_step), p.v = operand(&a->v, a->v_step), p.o = operand(&a->o, a->K);
    p.d_o = operand(&a->d_o, a->K), p.dq = operand(&a->dq, a->q_step), p.dk = operand(&a->dk, a->k_step), p.dv = operand(&a->dv, a->v_step);
    p.first = a->rows->first, p.lse = a->lse, p.delta = a->delta, p.H = (int)a->H, p.past = (int)a->past,
    p.scale = (float)(1 / sqrt((double)a->K));
    return p;
}
static int tiled(const struct attend_args *a) {
    const struct mat *m[] = {&a->q, &a->k, &a->v, &a->o, &a->d_o, &a->dq, &a->dk, &a->dv}; /* the last four absent in forward */
    for (int i = 0; i < 8; i++)
        if ((uintptr_t)m[i]->data % 16 || m[i]->ld % 8) return 0;
    return (a->K == 64 || a->K == 128) && a->q_step % 8 == 0 && a->k_step % 8 == 0 && a->v_step % 8 == 0;
}
/* Tiles in shared memory: `own` of TILE rows and `other` of n rows. More than 48 KiB must be asked for. */
template <typename F>
static void launch(struct cuda *c, F *kernel, int64_t K, int own, int other, int n, const struct problem &p,
                   const struct seqs &s) {
    size_t bytes = (size_t)K * 2 * (size_t)(own * TILE + other * n);
    CUDA_TRY(c, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
    kernel<<<dim3((unsigned)s.tile[s.n], (unsigned)p.H), THREADS, bytes, cuda_stream(c)>>>(p, s);
    CUDA_LAUNCHED(c);
}
static unsigned warps(int64_t n) { return (unsigned)ceil_div(n * 32, THREADS); }

void cuda_attend(void *self, const struct attend_args *a) {
    struct cuda *c = (struct cuda *)self;
    if (c->limits.generates && cuda_decode_attend(c, a)) return;
    struct problem p = problem_of(a);
    if (!tiled(a)) {
        ASSERT(a->K <= 32 * LANES, "head size %lld", (long long)a->K);
        any_fwd<<<warps(a->rows->N * a->H), THREADS, 0, cuda_stream(c)>>>(p, (int)a->K, a->rows->N);
        CUDA_LAUNCHED(c);
        return;
    }
    if (cuda_attend_sm90(c, a, &p)) return;
    for (int seq = 0; seq < a->rows->n_seqs;) {
        struct seqs s = some(a->rows, &seq, TILE);
        if (a->K == 64) launch(c, attend_fwd<64>, 64, 5, 0, 0, p, s);
        else launch(c, attend_fwd<128>, 128, 5, 0, 0, p, s);
    }
}

void cuda_attend_bwd(void *self, const struct attend_args *a) {
    struct cuda *c = (struct cuda *)self;
    struct problem p = problem_of(a);
    int64_t N = a->rows->N;
    if (tiled(a) && cuda_attend_bwd_sm90(c, a, &p)) return;
    attend_delta<<<warps(N * a->H), THREADS, 0, cuda_stream(c)>>>(p, (int)a->K, N);
    CUDA_LAUNCHED(c);
    if (!tiled(a)) {
        any_dq<<<warps(N * a->H), THREADS, 0, cuda_stream(c)>>>(p, (int)a->K, N);
        for (int seq = 0; seq < a->rows->n_seqs;) {
            struct seqs s = some(a->rows, &seq, TILE);
            any_dkv<<<warps((int64_t)(s.start[s.n] - s.start[0]) * a->H), THREADS, 0, cuda_stream(c)>>>(p, s, (int)a->K);
        }
        CUDA_LAUNCHED(c);
        return;
    }
    for (int seq = 0; seq < a->rows->n_seqs;) {
        struct seqs s = some(a->rows, &seq, TILE);
        if (a->K == 64) launch(c, attend_dkv<64, 64>, 64, 2, 4, 64, p, s), launch(c, attend_dq<64, 64>, 64, 2, 4, 64, p, s);
        else launch(c, attend_dkv<128, 32>, 128, 2, 4, 32, p, s), launch(c, attend_dq<128, 32>, 128, 2, 4, 32, p, s);
    }
}
