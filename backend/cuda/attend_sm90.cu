/* backend/cuda/attend_sm90.cu - causal attention on Hopper: wgmma products of warpgroups, tiles brought by the copy engine.
 *
 * Tiling, online softmax, recomputation: Dao 2023 (FlashAttention-2); asynchronous products and a producer warp: Shah et al.
 * 2024 (FlashAttention-3). One block a multiprocessor takes items (a head's tile of own rows, longest first) from a counter.
 * Its last warpgroup only fetches: own rows of the next items while this one runs, a ring of other rows, and (warps beside the
 * fetching one) lse and delta. The others own 64 rows each and run apart, so that the exponentials of one hide under the
 * products of the rest.
 *
 *   pass  own rows        other rows      products of 64 x N x K a warpgroup and tile    FLOPs a pair
 *   FWD   queries: q      keys: k, v      S = q kᵀ, o += P v                             4 K
 *   DQ    queries: q, do  keys: k, v      S, dP = do vᵀ, dq += dS k; makes delta first   6 K
 *   DKV   keys: k, v      queries: q, do  Sᵀ, dPᵀ, dv += Pᵀ do, dk += dSᵀ q              8 K
 *
 * TFLOP/s on an H100 (16384 tokens, bench/results/h100-attention.jsonl), of 4 K and 10 K counted FLOPs a causal pair: K = 64 and
 * sequences of 1024: 346 forward, 263 backward; K = 128 and 8192: 599 and 422, that is 591 executed.
 *
 * No atomics touch a sum: the same bits on every run. Tiles that are summed over start at a sequence's first row, so a row's
 * bits do not depend on its chunk. A tile may reach beyond its sequence: those rows are finite (other sequences, or 0 beyond
 * the matrix) and weigh exactly 0.
 *
 * Shared memory holds tiles as panels of 64 columns: a row of a panel is 128 bytes, its 16-byte pieces swapped by row % 8,
 * which is what both the copy engine and wgmma call the 128-byte swizzle. */
#include "backend/cuda/attend.h"
#if defined(QLORA_SM90A) && CUDART_VERSION >= 12050 /* the build has code for sm_90a, the toolkit the way to the encoder */
#include <cudaTypedefs.h>
#include <math.h>

enum pass { FWD, DQ, DKV };
template <int K, int P> struct plan {
    enum {
        GROUPS = K == 64 ? 3 : 2,                 /* consumers, 64 own rows each */
        OWN = 64 * GROUPS, OWNS = P == FWD ? 1 : 2, BUFS = K == 64 && P == DQ ? 3 : 2, /* own tiles of so many items */
        N = P == FWD ? 128 : 64,                  /* rows of another tile */
        STAGES = K == 64 ? 4 : P == DKV ? 3 : 2,
        THREADS = 128 * (GROUPS + 1), HELPERS = P == DQ ? 3 : P == DKV ? N / 32 : 0, /* warps beside the fetching one */
        REGS = K == 128 ? P == DQ ? 224 : 232 : P == DQ ? 152 : 160, FETCH_REGS = P == DQ ? 56 : K == 128 ? 40 : 32, /* GROUPS * REGS + FETCH_REGS <= 512 */
        OWN_BYTES = OWN * K * 2, TILE_BYTES = N * K * 2,
        RING = BUFS * OWNS * OWN_BYTES,           /* where in shared memory: own tiles lie at 0 */
        BESIDE = P == DKV,                        /* numbers come with the ring's first tiles, too */
        QUERIES = P == DKV ? STAGES * N : BUFS * OWN,
        LSE = RING + 2 * STAGES * TILE_BYTES,     /* of the queries in the room: lse in units of log2, delta, first */
        DELTA = LSE + (P == FWD ? 0 : QUERIES * 4),
        LOW = DELTA + (P == FWD ? 0 : QUERIES * 4),
        ITEM = LOW + QUERIES * 4,
        BARS = ITEM + BUFS * 32, BYTES = BARS + 8 * (3 * BUFS + 4 * STAGES)
    };
    static_assert((int)BYTES <= 227 * 1024, "shared memory of a block");
};

/* ---- pieces ---- */

DEV void bar_init(uint32_t bar, int count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory"); }
DEV void bar_expect(uint32_t bar, int bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
DEV void bar_arrive(uint32_t bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory"); }
DEV void bar_wait(uint32_t bar, uint32_t parity) {
    uint32_t done;
    do
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                     : "=r"(done)
                     : "r"(bar), "r"(parity)
                     : "memory");
    while (!done);
}
/* 64 rows from `row`, 64 columns of panel `panel`, of a head: 8 KiB. Rows beyond the matrix become 0. */
DEV void fetch_box(uint32_t to, const CUtensorMap *m, int row, int panel, int head, uint32_t bar) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];"
                 ::"r"(to), "l"(m), "r"(bar), "r"(0), "r"(row), "r"(panel), "r"(head) : "memory");
}
template <int K, int ROWS> DEV void fetch(uint32_t to, const CUtensorMap *m, int row, int head, uint32_t bar) {
#pragma unroll
    for (int p = 0; p < K / 64; p++)
#pragma unroll
        for (int r = 0; r < ROWS; r += 64) fetch_box(to + p * ROWS * 128 + r * 128, m, row + r, p, head, bar);
}

DEV void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT> DEV void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }
template <int N> DEV void settled(float (&c)[N]) { /* behind a wait: the sums are read only from here on */
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(c[i])::"memory");
}
/* A tile in shared memory as wgmma sees it: low word of its descriptor in units of 16 bytes, with `panel` bytes from one panel
 * to the next for operands whose rows are the inner dimension; groups of 8 rows are 1024 bytes apart. */
DEV uint32_t view(uint32_t at, int panel) { return at >> 4 | (uint32_t)panel >> 4 << 16; }
enum { SWIZZLE_128 = 1 << 30 | 1024 >> 4 }; /* the high word */

#define F8(f, c, i) f(c[i]), f(c[i + 1]), f(c[i + 2]), f(c[i + 3]), f(c[i + 4]), f(c[i + 5]), f(c[i + 6]), f(c[i + 7])
#define F32(f, c, i) F8(f, c, i), F8(f, c, i + 8), F8(f, c, i + 16), F8(f, c, i + 24)
#define S32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define S64 S32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define DESC2(a, b, high) "{.reg .b64 x, y; mov.b64 x, {" a ", " high "}; mov.b64 y, {" b ", " high "}; "
#define DESC1(b, high) "{.reg .b64 y; mov.b64 y, {" b ", " high "}; "
#define MMA "wgmma.mma_async.sync.aligned"
#define TYPES "f32.bf16.bf16"
/* c (64, N) = (first) or += a bᵀ over 16 columns, rows of both in shared memory */
template <int N> DEV void mma_rows(float (&c)[N / 2], uint32_t a, uint32_t b, int first) {
    if constexpr (N == 64) {
        if (first)
            asm volatile(DESC2("%32", "%33", "%34") MMA ".m64n64k16." TYPES " {" S32 "}, x, y, 0, 1, 1, 0, 0;}"
                         : F32("=f", c, 0)
                         : "r"(a), "r"(b), "r"((int)SWIZZLE_128));
        else
            asm volatile(DESC2("%32", "%33", "%34") MMA ".m64n64k16." TYPES " {" S32 "}, x, y, 1, 1, 1, 0, 0;}"
                         : F32("+f", c, 0)
                         : "r"(a), "r"(b), "r"((int)SWIZZLE_128));
    } else {
        if (first)
            asm volatile(DESC2("%64", "%65", "%66") MMA ".m64n128k16." TYPES " {" S64 "}, x, y, 0, 1, 1, 0, 0;}"
                         : F32("=f", c, 0), F32("=f", c, 32)
                         : "r"(a), "r"(b), "r"((int)SWIZZLE_128));
        else
            asm volatile(DESC2("%64", "%65", "%66") MMA ".m64n128k16." TYPES " {" S64 "}, x, y, 1, 1, 1, 0, 0;}"
                         : F32("+f", c, 0), F32("+f", c, 32)
                         : "r"(a), "r"(b), "r"((int)SWIZZLE_128));
    }
}
/* c (64, N) += a b, a (64, 16) in registers, b 16 rows of a tile of N columns */
template <int N> DEV void mma_tile(float (&c)[N / 2], const uint32_t *a, uint32_t b) {
    if constexpr (N == 64)
        asm volatile(DESC1("%36", "%37") MMA ".m64n64k16." TYPES " {" S32 "}, {%32,%33,%34,%35}, y, 1, 1, 1, 1;}"
                     : F32("+f", c, 0)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"((int)SWIZZLE_128));
    else
        asm volatile(DESC1("%68", "%69") MMA ".m64n128k16." TYPES " {" S64 "}, {%64,%65,%66,%67}, y, 1, 1, 1, 1;}"
                     : F32("+f", c, 0), F32("+f", c, 32)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"((int)SWIZZLE_128));
}
/* s (64, N) = a bᵀ: 64 rows of a tile of A_ROWS, all N of another */
template <int K, int N, int A_ROWS> DEV void times_rows(float (&s)[N / 2], uint32_t a, uint32_t b) {
    a = view(a, 0), b = view(b, 0);
    products_begin();
#pragma unroll
    for (int k = 0; k < K / 16; k++) mma_rows<N>(s, a + k / 4 * A_ROWS * 8 + k % 4 * 2, b + k / 4 * N * 8 + k % 4 * 2, k == 0);
    products_end();
}
/* acc (64, K) += p (64, N) tile */
template <int K, int N> DEV void times_tile(float (&acc)[K / 2], const uint32_t (&p)[N / 4], uint32_t tile) {
    tile = view(tile, N * 128);
    products_begin();
#pragma unroll
    for (int k = 0; k < N / 16; k++) mma_tile<K>(acc, p + 4 * k, tile + k * 128);
    products_end();
}
/* An accumulator as the left operand of the next product. */
template <int N> DEV void pack_all(uint32_t (&p)[N / 4], const float (&s)[N / 2]) {
#pragma unroll
    for (int i = 0; i < N / 4; i++) p[i] = pack(s[2 * i], s[2 * i + 1]);
}

DEV float exp2_of(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/* A warp's 16 rows of an accumulator to global memory, times factors of rows r and r + 8; rows from `end` on are left out. On
 * the way they lie in `room`, the same rows of a tile of ROWS, so that stores are whole rows. */
template <int K, int ROWS>
DEV void put_rows(const struct operand &m, int head, int row, int end, const float (&acc)[K / 2], float f0, float f1,
                  uint32_t room) {
    int lane = threadIdx.x % 32, r = lane % 16;
#pragma unroll
    for (int k = 0; k < K / 16; k++)
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(
                         room + k / 4 * ROWS * 128 + r * 128 + ((2 * (k % 4) + lane / 16) ^ r % 8) * 16),
                     "r"(pack(acc[8 * k] * f0, acc[8 * k + 1] * f0)), "r"(pack(acc[8 * k + 2] * f1, acc[8 * k + 3] * f1)),
                     "r"(pack(acc[8 * k + 4] * f0, acc[8 * k + 5] * f0)), "r"(pack(acc[8 * k + 6] * f1, acc[8 * k + 7] * f1))
                     : "memory");
    __syncwarp();
    bf16 *to = m.p + (int64_t)row * m.ld + head * m.step + lane % 8 * 8;
#pragma unroll
    for (int i = 0; i < K / 16; i++) {
        uint4 x;
        r = i % 4 * 4 + lane / 8;
        asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                     : "r"(room + i / 4 * ROWS * 128 + r * 128 + (lane % 8 ^ r % 8) * 16)
                     : "memory");
        if (row + r < end) *(uint4 *)(to + r * m.ld + i / 4 * 64) = x;
    }
}

/* ---- items and the ring ---- */

/* Own rows own .. own+OWN-1 of a head, of a sequence begin .. end-1, against `steps` tiles from row `other` on. */
struct item { int head, begin, end, own, other, steps; };
template <int K, int P> DEV struct item item_of(const struct problem &a, const struct seqs &s, int i) {
    using L = plan<K, P>;
    int seq = find_seq(s, i / a.H), n = s.tile[seq + 1] - s.tile[seq], tile;
    struct item it;
    i -= s.tile[seq] * a.H;
    it.head = i / n, tile = i % n, it.begin = s.start[seq], it.end = s.start[seq + 1];
    /* Late queries see most, early keys are seen by most. The incomplete tile is that with the least to do: the last of keys, the
     * first of queries, which starts before its sequence; parts outside of it are idle. */
    if (P == DKV) it.own = it.begin + tile * L::OWN;
    else it.own = it.begin + ((it.end - it.begin + 63) / 64 - (tile + 1) * L::GROUPS) * 64;
    int from = P == DKV ? it.own : a.first[max(it.own, it.begin)], last = P == DKV ? it.end - 1 : min(it.own + L::OWN, it.end) - 1 + a.past;
    it.other = it.begin + (from - it.begin) / L::N * L::N;
    it.steps = (last - it.other) / L::N + 1;
    return it;
}
/* 0 between kernels: whoever draws the last blank puts it back. One for a device, whose kernels run on one stream in order. */
__device__ int next_item;

struct ring { int stage; uint32_t parity; };
template <int STAGES> DEV void advance(struct ring &r) {
    if (++r.stage == STAGES) r.stage = 0, r.parity ^= 1;
}
/* Barriers of a ring of tiles and of the own tiles: full = the bytes are there, empty = every consumer is through. Who wrote or read
 * shared memory by itself arrives itself; of tiles, which copies fill and products read, one lane speaks for its warp. */
template <class L> struct bars {
    uint32_t at;
    DEV uint32_t own_full(int buf) { return at + 8 * buf; }
    DEV uint32_t own_empty(int buf) { return at + 8 * (L::BUFS + buf); }
    DEV uint32_t info(int buf) { return at + 8 * (2 * L::BUFS + buf); }
    DEV uint32_t full(int which, int stage) { return at + 8 * (3 * L::BUFS + which * L::STAGES + stage); }
    DEV uint32_t empty(int which, int stage) { return at + 8 * (3 * L::BUFS + (2 + which) * L::STAGES + stage); }
};

struct maps { CUtensorMap own[2], other[2]; };

/* The next item and its own tiles. */
template <int K, int P>
DEV void fetch_own(const struct problem &a, const struct seqs &s, const struct maps &m, char *room, struct bars<plan<K, P>> bars,
                   int items, struct ring own, int &drawn) {
    using L = plan<K, P>;
    int lane = threadIdx.x % 32, i = __shfl_sync(~0u, drawn, 0), buf = own.stage;
    struct item it = {-1, 0, 0, 0, 0, 0};
    if (i < items) it = item_of<K, P>(a, s, i);
    bar_wait(bars.own_empty(buf), own.parity);
    if (P != DKV && i < items)
        for (int r = lane; r < L::OWN; r += 32)
            ((int *)(room + L::LOW))[buf * L::OWN + r] = a.first[max(it.begin, min(it.own + r, it.end - 1))];
    if (lane == 0) *(struct item *)(room + L::ITEM + 32 * buf) = it;
    __syncwarp();
    if (lane == 0) {
        uint32_t full = bars.own_full(buf), to = shared_at(room) + buf * L::OWNS * L::OWN_BYTES;
        if (i < items) {
            drawn = atomicAdd(&next_item, 1);
            bar_expect(full, L::OWNS * L::OWN_BYTES);
#pragma unroll 1
            for (int o = 0; o < L::OWNS; o++) fetch<K, L::OWN>(to + o * L::OWN_BYTES, &m.own[o], it.own, it.head, full);
        } else if (i == items + (int)gridDim.x - 1) next_item = 0;
    }
    bar_arrive(bars.own_full(buf)); /* every lane: each has written of the room */
}
/* The fetching warp: items from the counter until it runs dry; own tiles BUFS - 1 items ahead, other tiles in order. */
template <int K, int P>
DEV void fetch_items(const struct problem &a, const struct seqs &s, const struct maps &m, char *room,
                     struct bars<plan<K, P>> bars, int items) {
    using L = plan<K, P>;
    int lane = threadIdx.x % 32, drawn = lane ? 0 : atomicAdd(&next_item, 1);
    uint32_t base = shared_at(room);
    struct ring at = {0, 1}, own = {0, 1}, now = {};
    struct item it = {}; /* the first BUFS - 1 turns only fetch own tiles */
    for (int early = L::BUFS - 2;; early--) {
        for (int j = 0;; j++, advance<L::STAGES>(at)) {
            if (j == min((int)L::STAGES, it.steps)) {
                fetch_own<K, P>(a, s, m, room, bars, items, own, drawn);
                advance<L::BUFS>(own);
            }
            if (j == it.steps) break;
#pragma unroll 1
            for (int which = 0; which < 2; which++) {
                bar_wait(bars.empty(which, at.stage), at.parity);
                if (lane == 0) {
                    uint32_t full = bars.full(which, at.stage);
                    bar_expect(full, L::TILE_BYTES);
                    fetch<K, L::N>(base + L::RING + (2 * at.stage + which) * L::TILE_BYTES, &m.other[which], it.other + j * L::N,
                                   it.head, full);
                    bar_arrive(full);
                }
            }
        }
        if (L::BUFS > 2 && early > 0) continue;
        it = *(const struct item *)(room + L::ITEM + 32 * now.stage);
        advance<L::BUFS>(now);
        if (it.head < 0) return;
    }
}

/* Beside it in DKV, a warp for 32 rows of a tile: lse, delta, first of the queries, which count as part of the first tile. */
template <int K> DEV void fetch_rows(const struct problem &a, char *room, struct bars<plan<K, DKV>> bars, int64_t rows) {
    using L = plan<K, DKV>;
    int r = threadIdx.x % 128 - 32;
    struct ring at = {0, 1};
    for (struct ring own = {};; advance<L::BUFS>(own)) {
        bar_wait(bars.own_full(own.stage), own.parity);
        struct item it = *(const struct item *)(room + L::ITEM + 32 * own.stage);
        if (it.head < 0) return;
        for (int row = it.other + r, left = it.steps; left; left--, row += L::N, advance<L::STAGES>(at)) {
            int t = min(row, it.end - 1), to = at.stage * L::N + r,
                low = row < it.end ? a.first[t] : INT32_MAX; /* rows that are not there see no key */
            float lse = a.lse[(int64_t)t * a.H + it.head], delta = a.delta[it.head * rows + t];
            bar_wait(bars.empty(0, at.stage), at.parity);
            ((float *)(room + L::LSE))[to] = lse * LOG2E, ((float *)(room + L::DELTA))[to] = delta, ((int *)(room + L::LOW))[to] = low;
            bar_arrive(bars.full(0, at.stage));
        }
        bar_arrive(bars.own_empty(own.stage));
    }
}

/* Beside it in DQ, three warps: lse and delta = Σ do o of own rows, an item ahead of the consumers; delta is left for DKV, head
 * by head. K / 8 lanes a row. */
template <int K> DEV void make_delta(const struct problem &a, char *room, struct bars<plan<K, DQ>> bars, int64_t rows) {
    using L = plan<K, DQ>;
    const int LANES = K / 8, AT_ONCE = 32 / LANES;
    int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32 - 1;
    for (struct ring own = {};; advance<L::BUFS>(own)) {
        bar_wait(bars.own_full(own.stage), own.parity);
        struct item it = *(const struct item *)(room + L::ITEM + 32 * own.stage);
        if (it.head < 0) return;
        float *lse = (float *)(room + L::LSE) + own.stage * L::OWN, *delta = (float *)(room + L::DELTA) + own.stage * L::OWN;
        const char *d_o = room + (2 * own.stage + 1) * L::OWN_BYTES;
        for (int r = 32 * warp + lane; r < L::OWN; r += 32 * L::HELPERS)
            lse[r] = a.lse[(int64_t)max(it.begin, min(it.own + r, it.end - 1)) * a.H + it.head] * LOG2E;
#pragma unroll 4
        for (int r = warp * AT_ONCE + lane / LANES; r < L::OWN; r += L::HELPERS * AT_ONCE) {
            int t = max(it.begin, min(it.own + r, it.end - 1)), piece = lane % LANES;
            uint4 x = *(const uint4 *)(a.o.p + t * a.o.ld + it.head * a.o.step + piece * 8),
                  y = *(const uint4 *)(d_o + piece / 8 * L::OWN * 128 + r * 128 + (piece % 8 ^ r % 8) * 16);
            const __nv_bfloat162 *xs = (const __nv_bfloat162 *)&x, *ys = (const __nv_bfloat162 *)&y;
            float sum = 0;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float2 f = __bfloat1622float2(xs[i]), g = __bfloat1622float2(ys[i]);
                sum = fmaf(f.x, g.x, fmaf(f.y, g.y, sum));
            }
#pragma unroll
            for (int i = LANES / 2; i; i >>= 1) sum += __shfl_xor_sync(~0u, sum, i);
            if (piece == 0) delta[r] = sum;
            if (piece == 0 && it.own + r == t) a.delta[it.head * rows + t] = sum;
        }
        bar_arrive(bars.info(own.stage)), bar_arrive(bars.own_empty(own.stage));
    }
}

/* ---- the passes, by a consumer warpgroup ---- */

/* What a consumer knows: the block's room and barriers, where it stands in the ring, its warpgroup and its item. */
template <class L> struct consumer {
    char *room;
    struct bars<L> bars;
    struct ring at[2];
    int group, part, row, col; /* part: which 64 own rows are its own; row: the thread's in them, a second one 8 below */
    struct item it;
    DEV uint32_t tile(int which) { return shared_at(room) + L::RING + (2 * at[which].stage + which) * L::TILE_BYTES; }
    DEV void wait(int which) { bar_wait(bars.full(which, at[which].stage), at[which].parity); }
    DEV void release(int which, int stage) {
        const int each = L::BESIDE && which == 0; /* has read numbers of its own; tiles are read by products alone */
        if (!each) __syncwarp();
        if (each || threadIdx.x % 32 == 0) bar_arrive(bars.empty(which, stage));
    }
    DEV void release(int which) {
        release(which, at[which].stage);
        advance<L::STAGES>(at[which]);
    }
    DEV void done_with_own() { /* all warps of the group: its own rows may be written over */
        asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
    }
    DEV void release_own(int buf) {
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        bar_arrive(bars.own_empty(buf));
    }
    DEV void skip() { /* a tile that this warpgroup does not need */
        wait(0), release(0), wait(1), release(1);
    }
};

/* Columns of s below lo or above hi are masked: one bound for each of a thread's two rows, from the thread's first column. */
template <int N> DEV void mask_below(float *s, int lo0, int lo1) {
#pragma unroll
    for (int i = 0; i < N / 2; i++) s[i] = i / 4 * 8 + i % 2 >= (i / 2 % 2 ? lo1 : lo0) ? s[i] : -INFINITY;
}
template <int N> DEV void mask_above(float *s, int hi0, int hi1) {
#pragma unroll
    for (int i = 0; i < N / 2; i++) s[i] = i / 4 * 8 + i % 2 <= (i / 2 % 2 ? hi1 : hi0) ? s[i] : -INFINITY;
}

/* Online softmax over N more keys, of two rows a thread: s becomes exp(scale (s - top)), top near the maximum. */
struct softmax { float top[2], sum[2], shrink[2], scale2; };
template <int N> DEV void soften(struct softmax &m, float (&s)[N / 2]) {
    float most[2] = {m.top[0], m.top[1]};
#pragma unroll
    for (int i = 0; i < N / 2; i++) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], s[i]);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        most[i] = fmaxf(most[i], __shfl_xor_sync(~0u, most[i], 1));
        most[i] = fmaxf(most[i], __shfl_xor_sync(~0u, most[i], 2));
        most[i] = (most[i] - m.top[i]) * m.scale2 > 8 ? most[i] : m.top[i]; /* weights up to 2^8 are as good: sums rarely shrink */
        m.shrink[i] = most[i] == m.top[i] ? 1.f : exp2_of((m.top[i] - most[i]) * m.scale2);
        m.top[i] = most[i], m.sum[i] *= m.shrink[i];
        most[i] = m.top[i] == -INFINITY ? 0.f : m.top[i] * m.scale2; /* a row that has seen no key yet */
    }
#pragma unroll
    for (int i = 0; i < N / 2; i++) m.sum[i / 2 % 2] += s[i] = exp2_of(fmaf(s[i], m.scale2, -most[i / 2 % 2]));
}

/* o = softmax(q kᵀ scale + mask) v, lse. The scores of a tile are made while the values of the one before are added up. */
template <int K> DEV void pass_fwd(const struct problem &a, struct consumer<plan<K, FWD>> &c, int buf) {
    using L = plan<K, FWD>;
    const int N = L::N;
    const int *low = (const int *)(c.room + L::LOW) + buf * L::OWN + c.part * 64;
    int q0 = c.it.own + 64 * c.part, qlast = min(q0 + 63, c.it.end - 1), latest = low[63];
    int idle = q0 < c.it.begin || q0 >= c.it.end, end = idle ? INT32_MIN : c.it.end,
        from = idle ? c.it.steps : (low[0] - c.it.other) / N, to = idle ? c.it.steps : (qlast + a.past - c.it.other) / N + 1;
    uint32_t own = shared_at(c.room) + buf * L::OWN_BYTES + c.part * 64 * 128;
    float s[N / 2], o[K / 2] = {};
    struct softmax m = {{-INFINITY, -INFINITY}, {}, {}, a.scale * LOG2E};
    uint32_t p[N / 4];
    for (int j = 0; j < from; j++) c.skip();
    if (from < to) {
        int base = c.it.other + from * N;
        c.wait(0);
        times_rows<K, N, L::OWN>(s, own, c.tile(0));
        products_wait<0>();
        settled(s);
        c.release(0);
        for (int j = from;; j++) {
            int col = base + c.col, row = q0 + c.row + a.past;
            if (base < latest) mask_below<N>(s, low[c.row] - col, low[c.row + 8] - col);
            if (base + N - 1 > q0 + a.past) mask_above<N>(s, row - col, row + 8 - col);
            soften<N>(m, s);
            if (j > from) {
                products_wait<0>();
                settled(o);
                c.release(1);
                if (__any_sync(~0u, m.shrink[0] != 1 || m.shrink[1] != 1))
#pragma unroll
                    for (int i = 0; i < K / 2; i++) o[i] *= m.shrink[i / 2 % 2];
            }
            pack_all<N>(p, s);
            if (j + 1 == to) break;
            base += N;
            c.wait(0);
            times_rows<K, N, L::OWN>(s, own, c.tile(0));
            c.wait(1);
            times_tile<K, N>(o, p, c.tile(1));
            products_wait<1>();
            settled(s);
            c.release(0);
        }
        c.wait(1);
        times_tile<K, N>(o, p, c.tile(1));
        products_wait<0>();
        settled(o);
        c.release(1);
    }
    for (int j = to; j < c.it.steps; j++) c.skip();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        m.sum[i] += __shfl_xor_sync(~0u, m.sum[i], 1);
        m.sum[i] += __shfl_xor_sync(~0u, m.sum[i], 2);
        int t = q0 + c.row + 8 * i;
        if (threadIdx.x % 4 == 0 && t < end) a.lse[(int64_t)t * a.H + c.it.head] = (m.top[i] * m.scale2 + log2f(m.sum[i])) * LN2;
    }
    c.done_with_own();
    put_rows<K, L::OWN>(a.o, c.it.head, q0 + c.row / 16 * 16, end, o, 1 / m.sum[0], 1 / m.sum[1], own + c.row / 16 * 2048);
    c.release_own(buf);
}

/* dq = scale dS k with P = exp(q kᵀ scale - lse), dS = P (do vᵀ - delta). */
template <int K> DEV void pass_dq(const struct problem &a, struct consumer<plan<K, DQ>> &c, struct ring own_at) {
    using L = plan<K, DQ>;
    const int N = L::N, buf = own_at.stage;
    const int *low = (const int *)(c.room + L::LOW) + buf * L::OWN + c.part * 64;
    int q0 = c.it.own + 64 * c.part, qlast = min(q0 + 63, c.it.end - 1);
    int idle = q0 < c.it.begin || q0 >= c.it.end, end = idle ? INT32_MIN : c.it.end,
        from = idle ? c.it.steps : (low[0] - c.it.other) / N, to = idle ? c.it.steps : (qlast - c.it.other) / N + 1;
    int latest = low[63];
    uint32_t own = shared_at(c.room) + 2 * buf * L::OWN_BYTES + c.part * 64 * 128;
    float s[N / 2], d[N / 2], dq[K / 2] = {}, lse[2], delta[2], scale2 = a.scale * LOG2E;
    uint32_t ds[N / 4];
    int held = 0; /* the stage whose last product is under way */
    bar_wait(c.bars.info(own_at.stage), own_at.parity);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int r = buf * L::OWN + 64 * c.part + c.row + 8 * i;
        lse[i] = ((const float *)(c.room + L::LSE))[r], delta[i] = ((const float *)(c.room + L::DELTA))[r];
    }
    for (int j = 0; j < from; j++) c.skip();
    for (int j = from; j < to; j++) {
        int base = c.it.other + j * N;
        c.wait(0);
        times_rows<K, N, L::OWN>(s, own, c.tile(0));
        c.wait(1);
        times_rows<K, N, L::OWN>(d, own + L::OWN_BYTES, c.tile(1));
        products_wait<1>();
        settled(s);
        if (j > from) c.release(0, held);
        int col = base + c.col, row = q0 + c.row;
        if (base < latest) mask_below<N>(s, low[c.row] - col, low[c.row + 8] - col);
        if (base + N - 1 > q0) mask_above<N>(s, row - col, row + 8 - col);
#pragma unroll
        for (int i = 0; i < N / 2; i++) s[i] = exp2_of(fmaf(s[i], scale2, -lse[i / 2 % 2]));
        products_wait<0>();
        settled(d);
        c.release(1);
#pragma unroll
        for (int i = 0; i < N / 2; i++) s[i] *= d[i] - delta[i / 2 % 2];
        pack_all<N>(ds, s);
        times_tile<K, N>(dq, ds, c.tile(0));
        held = c.at[0].stage;
        advance<L::STAGES>(c.at[0]);
    }
    products_wait<0>();
    if (from < to) c.release(0, held);
    settled(dq);
    for (int j = to; j < c.it.steps; j++) c.skip();
    c.done_with_own();
    put_rows<K, L::OWN>(a.dq, c.it.head, q0 + c.row / 16 * 16, end, dq, a.scale, a.scale, own + c.row / 16 * 2048);
    c.release_own(buf);
}

/* dv = Pᵀ do, dk = scale dSᵀ q: rows are keys, columns queries. */
template <int K> DEV void pass_dkv(const struct problem &a, struct consumer<plan<K, DKV>> &c, int buf) {
    using L = plan<K, DKV>;
    const int N = L::N;
    int k0 = c.it.own + 64 * c.part, klast = min(k0 + 63, c.it.end - 1), key[2] = {k0 + c.row, k0 + c.row + 8};
    int from = k0 < c.it.end ? (k0 - c.it.other) / N : c.it.steps;
    uint32_t own = shared_at(c.room) + 2 * buf * L::OWN_BYTES + c.part * 64 * 128;
    float s[N / 2], d[N / 2], dk[K / 2] = {}, dv[K / 2] = {}, scale2 = a.scale * LOG2E;
    uint32_t p[N / 4], ds[N / 4];
    int j = 0;
    for (; j < from; j++) c.skip();
    for (; j < c.it.steps; j++) {
        int base = c.it.other + j * N;
        const float2 *lse = (const float2 *)(c.room + L::LSE) + (c.at[0].stage * N + c.col) / 2,
                     *delta = lse + L::QUERIES / 2; /* of two queries */
        const int *low = (const int *)(c.room + L::LOW) + c.at[0].stage * N;
        c.wait(0);
        int latest = low[N - 1];
        if (low[0] > klast) break; /* later documents */
        times_rows<K, N, L::OWN>(s, own, c.tile(0));
        c.wait(1);
        times_rows<K, N, L::OWN>(d, own + L::OWN_BYTES, c.tile(1));
        products_wait<1>();
        settled(s);
        if (base < klast) mask_below<N>(s, key[0] - base - c.col, key[1] - base - c.col);
        if (latest > k0) /* documents, or the sequence ends */
#pragma unroll
            for (int i = 0; i < N / 2; i++) s[i] = key[i / 2 % 2] >= low[c.col + i / 4 * 8 + i % 2] ? s[i] : -INFINITY;
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
            float2 l = lse[4 * n];
#pragma unroll
            for (int i = 0; i < 4; i++) s[4 * n + i] = exp2_of(fmaf(s[4 * n + i], scale2, i % 2 ? -l.y : -l.x));
        }
        pack_all<N>(p, s);
        times_tile<K, N>(dv, p, c.tile(1));
        products_wait<1>();
        settled(d);
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
            float2 f = delta[4 * n];
#pragma unroll
            for (int i = 0; i < 4; i++) s[4 * n + i] *= d[4 * n + i] - (i % 2 ? f.y : f.x);
        }
        pack_all<N>(ds, s);
        times_tile<K, N>(dk, ds, c.tile(0));
        products_wait<1>();
        c.release(1);
        products_wait<0>();
        c.release(0);
    }
    settled(dk), settled(dv);
    for (; j < c.it.steps; j++) c.skip();
    c.done_with_own();
    put_rows<K, L::OWN>(a.dk, c.it.head, k0 + c.row / 16 * 16, c.it.end, dk, a.scale, a.scale, own + c.row / 16 * 2048);
    put_rows<K, L::OWN>(a.dv, c.it.head, k0 + c.row / 16 * 16, c.it.end, dv, 1, 1, own + L::OWN_BYTES + c.row / 16 * 2048);
    c.release_own(buf);
}

/* ---- the kernel ---- */

/* A pass over all items of `s`. Of q, k, v, do only tiles are read, through the maps. */
template <int K, int P>
__global__ static void __launch_bounds__(plan<K, P>::THREADS, 1)
    attend_sm90(const __grid_constant__ struct problem a, const __grid_constant__ struct seqs s,
                const __grid_constant__ struct maps m, int64_t rows) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    using L = plan<K, P>;
    extern __shared__ __align__(1024) char room[];
    struct bars<L> bars = {shared_at(room) + L::BARS};
    if (threadIdx.x == 0) {
        for (int i = 0; i < L::BUFS; i++)
            bar_init(bars.own_full(i), 32), bar_init(bars.own_empty(i), 32 * (4 * L::GROUPS + L::HELPERS)),
                bar_init(bars.info(i), P == DQ ? 32 * L::HELPERS : 1);
        for (int i = 0; i < L::STAGES; i++)
            for (int w = 0; w < 2; w++)
                bar_init(bars.full(w, i), L::BESIDE && w == 0 ? 1 + 32 * L::HELPERS : 1),
                    bar_init(bars.empty(w, i), (L::BESIDE && w == 0 ? 128 : 4) * L::GROUPS);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    int group = __shfl_sync(~0u, (int)threadIdx.x / 128, 0);
    if (group == L::GROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"((int)L::FETCH_REGS));
        int warp = threadIdx.x % 128 / 32;
        if (warp == 0) fetch_items<K, P>(a, s, m, room, bars, s.tile[s.n] * a.H);
        else if (warp <= L::HELPERS) {
            if constexpr (P == DQ) make_delta<K>(a, room, bars, rows);
            if constexpr (P == DKV) fetch_rows<K>(a, room, bars, rows);
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"((int)L::REGS));
        struct consumer<L> c = {
            room, bars, {}, group, 0, (int)(threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4), (int)(2 * (threadIdx.x % 4)), {}
        };
        struct ring own = {};
        for (int part = group;;
             advance<L::BUFS>(own), part = part + 1 == L::GROUPS ? 0 : part + 1) { /* parts differ in length: take turns */
            bar_wait(bars.own_full(own.stage), own.parity);
            c.it = *(const struct item *)(room + L::ITEM + 32 * own.stage);
            if (c.it.head < 0) return;
            c.part = part;
            if constexpr (P == FWD) pass_fwd<K>(a, c, own.stage);
            if constexpr (P == DQ) pass_dq<K>(a, c, own);
            if constexpr (P == DKV) pass_dkv<K>(a, c, own.stage);
        }
    }
#endif
}

/* ---- launches ---- */

/* The driver's encoder of tensor maps, found once. */
static PFN_cuTensorMapEncodeTiled_v12000 encoder(struct cuda *c) {
    static void *found;
    enum cudaDriverEntryPointQueryResult how;
    if (!found) CUDA_TRY(c, cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &how));
    return (PFN_cuTensorMapEncodeTiled_v12000)found;
}
/* Boxes of 64 rows and 64 columns of an operand: dimensions column, row, panel, head. */
static CUtensorMap map_of(struct cuda *c, const struct operand &m, int64_t K, int64_t rows, int H) {
    CUtensorMap map = {};
    cuuint64_t sizes[] = {64, (cuuint64_t)rows, (cuuint64_t)K / 64, (cuuint64_t)H},
               steps[] = {(cuuint64_t)m.ld * 2, 128, (cuuint64_t)m.step * 2};
    cuuint32_t box[] = {64, 64, 1, 1}, every[] = {1, 1, 1, 1};
    PFN_cuTensorMapEncodeTiled_v12000 encode = encoder(c);
    if (!encode || encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, m.p, sizes, steps, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE,
                          CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE))
        cuda_failed(c, cudaErrorInvalidValue, "cuTensorMapEncodeTiled", __FILE__, __LINE__);
    return map;
}
template <int K, int P> static void launch(struct cuda *c, const struct problem &p, const struct rows *r, const struct maps &m) {
    using L = plan<K, P>;
    CUDA_TRY(c, cudaFuncSetAttribute(attend_sm90<K, P>, cudaFuncAttributeMaxDynamicSharedMemorySize, L::BYTES));
    for (int seq = 0; seq < r->n_seqs;) {
        struct seqs s = some(r, &seq, L::OWN);
        int64_t items = (int64_t)s.tile[s.n] * p.H;
        if (items) attend_sm90<K, P><<<(unsigned)(items < c->sms ? items : c->sms), L::THREADS, L::BYTES, cuda_stream(c)>>>(p, s, m, r->N);
        CUDA_LAUNCHED(c);
    }
}

int cuda_attend_sm90(struct cuda *c, const struct attend_args *a, const struct problem *p) {
    if (c->props.major != 9) return 0;
    int64_t N = a->rows->N, keys = N + a->past;
    struct maps m = {};
    m.own[0] = map_of(c, p->q, a->K, N, p->H), m.other[0] = map_of(c, p->k, a->K, keys, p->H),
    m.other[1] = map_of(c, p->v, a->K, keys, p->H);
    if (a->K == 64) launch<64, FWD>(c, *p, a->rows, m);
    else launch<128, FWD>(c, *p, a->rows, m);
    return 1;
}
int cuda_attend_bwd_sm90(struct cuda *c, const struct attend_args *a, const struct problem *p) {
    if (c->props.major != 9) return 0;
    int64_t N = a->rows->N;
    struct maps dq = {}, dkv;
    dq.own[0] = map_of(c, p->q, a->K, N, p->H), dq.own[1] = map_of(c, p->d_o, a->K, N, p->H);
    dq.other[0] = map_of(c, p->k, a->K, N, p->H), dq.other[1] = map_of(c, p->v, a->K, N, p->H);
    dkv = {{dq.other[0], dq.other[1]}, {dq.own[0], dq.own[1]}};
    if (a->K == 64) launch<64, DQ>(c, *p, a->rows, dq), launch<64, DKV>(c, *p, a->rows, dkv);
    else launch<128, DQ>(c, *p, a->rows, dq), launch<128, DKV>(c, *p, a->rows, dkv);
    return 1;
}
#else
int cuda_attend_sm90(struct cuda *, const struct attend_args *, const struct problem *) { return 0; }
int cuda_attend_bwd_sm90(struct cuda *, const struct attend_args *, const struct problem *) { return 0; }
#endif
