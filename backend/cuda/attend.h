/* backend/cuda/attend.h - what the kernels of attention share: the problem in device memory and the sequences of a launch.
 *
 * attend.cu holds the kernels for every card and chooses; attend_sm90.cu those on Hopper's warpgroup products. */
#ifndef QLORA_CUDA_ATTEND_H
#define QLORA_CUDA_ATTEND_H
#include "backend/cuda/cuda_internal.h"
#include "backend/cuda/mma.h"

static const float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

enum { SEQS = 256 /* sequences of a launch */ };
/* They travel in its parameters: seq i is rows start[i] .. start[i+1]-1 and tiles tile[i] .. tile[i+1]-1. */
struct seqs { int n; int32_t start[SEQS + 1], tile[SEQS + 1]; };
DEV int find_seq(const struct seqs &s, int tile) {
    int lo = 0, hi = s.n;
    while (hi - lo > 1) {
        int mid = (lo + hi) / 2;
        if (s.tile[mid] <= tile) lo = mid;
        else hi = mid;
    }
    return lo;
}
/* The next at most SEQS sequences from *seq on, in tiles of `rows`. */
static inline struct seqs some(const struct rows *r, int *seq, int rows) {
    struct seqs s = {};
    for (s.n = 0; s.n < SEQS && *seq < r->n_seqs; s.n++, ++*seq) {
        s.start[s.n] = r->seq_start[*seq], s.start[s.n + 1] = r->seq_start[*seq + 1];
        s.tile[s.n + 1] = s.tile[s.n] + (int32_t)ceil_div(s.start[s.n + 1] - s.start[s.n], rows);
    }
    return s;
}

/* Operands in global memory: head h of row t at p + t * ld + h * step. */
struct operand { bf16 *p; int64_t ld, step; };
struct problem {
    struct operand q, k, v, o, d_o, dq, dk, dv;
    const int32_t *first;
    float *lse, *delta;
    int H, past;
    float scale;
};

/* Head sizes 64 and 128 on sm_90: 1 = done, 0 = not for this card or build. */
int cuda_attend_sm90(struct cuda *c, const struct attend_args *a, const struct problem *p);
int cuda_attend_bwd_sm90(struct cuda *c, const struct attend_args *a, const struct problem *p);
#endif
