/* backend/cuda/tall.cu - gradients of adapters: sums over all tokens of a chunk into matrices with one short side.
 *
 *     dB(out,R) += Σ_t dy[t] (s xa[t])ᵀ        dA(R,in) += Σ_t g[t] x[t]ᵀ, g = s dy B
 *
 * All of one linear in one launch. A block sums one tile over one sequence, then adds it to the gradient when the block of the
 * sequence before it has: a counter per tile hands the turn on. So the order of additions is that of the sequences, whatever chunk
 * they are in, and no partial sum is written. Both operands lie token by token, so both are read transposed (ldmatrix.trans). */
#include "backend/cuda/cuda_internal.h"
#include "backend/cuda/mma.h"

enum { WARPS = 4, THREADS = 32 * WARPS, LONG = 128 /* columns of the long matrix a block owns */, STEP = 32 /* tokens */, STAGES = 4 };

struct jobs { int n, tiles; struct tall_job job[TALL_JOBS]; int first[TALL_JOBS + 1]; };

/* 16-byte pieces of a row are swapped by row % 8: ldmatrix meets no bank twice. */
template <int COLS> DEV int place(int row, int piece) { return row * COLS + ((piece ^ (row & (COLS >= 64 ? 7 : COLS / 8 - 1))) << 3); }

/* STEP tokens from t on of `cols` columns from `first` on; what lies beyond a matrix or the sequence's end is zero. */
template <int COLS> DEV void fetch(bf16 *to, const bf16 *from, int64_t ld, int first, int cols, int t, int end) {
    for (int i = threadIdx.x; i < STEP * (COLS / 8); i += THREADS) {
        int row = i / (COLS / 8), piece = i % (COLS / 8), there = t + row < end && first + piece * 8 < cols;
        const bf16 *p = there ? from + (int64_t)(t + row) * ld + first + piece * 8 : from;
        copy16(to + place<COLS>(row, piece), p, there);
    }
}

/* block: 128 columns of the long matrix by SHORT of the other, over one sequence: a warp 32 by SHORT. Per token 2 (128 + SHORT)
 * bytes and 256 SHORT FLOPs: bound by the long matrices' bytes. A block takes its number when it starts, tiles first, then
 * sequences: the one that it will wait for has started before it, in whatever order the card starts blocks. */
template <int SHORT>
__global__ static void __launch_bounds__(THREADS)
    tall(const __grid_constant__ struct jobs jobs, const __grid_constant__ struct seq_list s, uint32_t *turn) {
    extern __shared__ __align__(128) bf16 tiles[];
    __shared__ uint32_t started;
    if (threadIdx.x == 0) {
        started = atomicAdd(turn + TALL_TILES, 1);
        if (started + 1 == gridDim.x * gridDim.y) turn[TALL_TILES] = 0; /* for the next launch */
    }
    __syncthreads();
    const uint32_t place_in_all = started % gridDim.x, sequence = started / gridDim.x;
    int k = 0, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    while (k + 1 < jobs.n && (int)place_in_all >= jobs.first[k + 1]) k++;
    const struct tall_job &j = jobs.job[k];
    int tile = place_in_all - jobs.first[k], across = (j.R + SHORT - 1) / SHORT, l0 = tile / across * LONG, r0 = tile % across * SHORT;
    int begin = s.at[sequence], end = s.at[sequence + 1], steps = (end - begin + STEP - 1) / STEP;
    float acc[2][SHORT / 8][4] = {};
    auto next = [&](int step) {
        bf16 *to = tiles + step % STAGES * STEP * (LONG + SHORT);
        if (step < steps) {
            fetch<LONG>(to, j.left, j.ld_left, l0, j.rows, begin + step * STEP, end);
            fetch<SHORT>(to + STEP * LONG, j.right, j.ld_right, r0, j.R, begin + step * STEP, end);
        }
        copies_end();
    };
    for (int i = 0; i < STAGES - 1; i++) next(i);
    __nv_bfloat162 scale = __float2bfloat162_rn(j.scale);
    for (int step = 0; step < steps; step++) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        next(step + STAGES - 1);
        const bf16 *left = tiles + step % STAGES * STEP * (LONG + SHORT), *right = left + STEP * LONG;
#pragma unroll
        for (int h = 0; h < STEP / 16; h++) {
            uint32_t a[2][4];
#pragma unroll
            for (int m = 0; m < 2; m++)
                ld4t(a[m], left + place<LONG>(16 * h + lane / 16 * 8 + lane % 8, (32 * warp + 16 * m) / 8 + lane / 8 % 2));
#pragma unroll
            for (int n = 0; n < SHORT / 8; n += 2) {
                uint32_t b[4];
                if (SHORT > 8) ld4t(b, right + place<SHORT>(16 * h + lane % 16, n + lane / 16));
                else ld2t(b, right + place<SHORT>(16 * h + lane % 16, n));
#pragma unroll
                for (int i = 0; i < (SHORT > 8 ? 4 : 2); i++) {
                    __nv_bfloat162 v = __hmul2(*(__nv_bfloat162 *)&b[i], scale);
                    b[i] = *(uint32_t *)&v;
                }
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    mma(acc[m][n], a[m], b[0], b[1]);
                    if (SHORT > 8) mma(acc[m][(n + 1) % (SHORT / 8)], a[m], b[2], b[3]);
                }
            }
        }
    }
    if (threadIdx.x == 0)
        while (*(volatile uint32_t *)(turn + place_in_all) != sequence) __nanosleep(64);
    __syncthreads();
    __threadfence(); /* what the block before wrote is seen */
    /* element i of acc[m][n]: row l0 + 32 warp + 16 m + lane/4 + 8 (i/2), column r0 + 8 n + 2 (lane%4) + i%2. Half of
     * them are read before the first is written: two round trips, for which the next block waits. */
    int64_t step_l = j.transposed ? 1 : j.ld_out, step_r = j.transposed ? j.ld_out : 1;
    int l = l0 + 32 * warp + lane / 4, r = r0 + 2 * (lane % 4);
    float *out = j.out + l * step_l + r * step_r;
#pragma unroll
    for (int m = 0; m < 2; m++, l += 16, out += 16 * step_l) {
#define INSIDE (l + 8 * (i / 2) < j.rows && r + 8 * n + i % 2 < j.R)
#define PLACE (out + 8 * (i / 2) * step_l + (8 * n + i % 2) * step_r)
        float before[SHORT / 8][4], by[2] = {1.f, 1.f};
        if (j.by_row)
#pragma unroll
            for (int h = 0; h < 2; h++) by[h] = l + 8 * h < j.rows ? j.by_row[l + 8 * h] : 0.f;
#pragma unroll
        for (int n = 0; n < SHORT / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) before[n][i] = INSIDE ? __ldcg(PLACE) : 0.f;
#pragma unroll
        for (int n = 0; n < SHORT / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (INSIDE) __stcg(PLACE, before[n][i] + by[i / 2] * acc[m][n][i]);
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        *(volatile uint32_t *)(turn + place_in_all) = sequence + 1 == gridDim.y ? 0 : sequence + 1; /* zero for the next launch */
}

int cuda_tall_fits(const bf16 *p, int64_t ld, int64_t cols) { return (uintptr_t)p % 16 == 0 && ld % 8 == 0 && cols % 8 == 0; }

template <int SHORT> static void launch(struct cuda *c, const struct jobs &jobs, const struct seq_list &s) {
    size_t bytes = (size_t)STAGES * STEP * (LONG + SHORT) * sizeof(bf16);
    CUDA_TRY(c, cudaFuncSetAttribute(tall<SHORT>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
    tall<SHORT><<<dim3((unsigned)jobs.tiles, (unsigned)s.n), THREADS, bytes, cuda_stream(c)>>>(jobs, s, c->turns);
    CUDA_LAUNCHED(c);
}

void cuda_tall(struct cuda *c, const struct rows *r, const struct tall_job *job, int n) {
    struct jobs jobs = {};
    int64_t most = 0;
    for (int i = 0; i < n; i++) most = job[i].R > most ? job[i].R : most;
    int width = most > 32 ? 64 : most > 16 ? 32 : most > 8 ? 16 : 8;
    jobs.n = n;
    for (int i = 0; i < n; i++) {
        jobs.job[i] = job[i];
        jobs.first[i + 1] = jobs.tiles = jobs.first[i] + (int)(ceil_div(job[i].rows, LONG) * ceil_div(job[i].R, width));
    }
    ASSERT(jobs.tiles <= TALL_TILES, "%d tiles", jobs.tiles);
    for (int first = 0; n && first < r->n_seqs; first += SEQ_LIST) {
        struct seq_list s = seq_list_of(r, first);
        if (width == 64) launch<64>(c, jobs, s);
        else if (width == 32) launch<32>(c, jobs, s);
        else if (width == 16) launch<16>(c, jobs, s);
        else launch<8>(c, jobs, s);
    }
}
