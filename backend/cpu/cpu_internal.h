/* backend/cpu/cpu_internal.h - what the files of the CPU backend share: the state, the workspace, the matrix product. */
#ifndef QLORA_CPU_INTERNAL_H
#define QLORA_CPU_INTERNAL_H
#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_thread_num(void) { return 0; }
#endif

enum {
    BLOCK_K = 256,      /* products summed before they are added to a result: a right panel is half of a 32 KiB L1 */
    TILE_M = 96,        /* rows that pass over the right panels together: 96 KiB of L2 */
    TILE_N = 64,        /* columns of a task: right panels of 64 KiB */
    STEP_M = 2040,      /* the left operand is packed for all threads in steps of STEP_M x STEP_K (16 MiB), so that a */
    STEP_K = 2048,      /* weight is decoded once for 2040 tokens. STEP_M: a multiple of every mr */
    STEP_BLOCKS = 64,
    DROP_ROWS = 256,    /* rows of a dropped branch's gradient made at a time */
    LOSS_BLOCK = 64,    /* rows of one sequence summed before they are added to dE */
    HEAD_MAX = BLOCK_K  /* largest head size */
};

/* A matrix of fp32 rows, seen through its storage. */
struct view {
    const float *p; /* plain rows, ld apart, or */
    int64_t ld;
    const struct weight *w;     /* a weight, its rows decoded on the way */
    const struct dropout *drop; /* rows are x / (1-p) where the mask keeps them, else 0 */
    int shift;                  /* -1, +1: row i is row i + shift of its sequence; outside it `edge`, or zeros if NULL */
    const float *edge;
    const struct rows *rows; /* needed with drop and shift */
    const float *by_row, *by_col; /* rows times by_row[i], columns times by_col[j], or NULL */
};

/* c (M,N) = [add] + [bias] + [c if accumulate] + Σ_terms alpha a bᵀ, each term summed over its own K.
 * Rows of a are the M, or with a_by_k the K; likewise b. Every element is a sum of blocks of up to BLOCK_K products, in
 * order; with `cuts` (n_cuts + 1 row numbers from 0 to K, K being tokens) no block crosses a cut. So its bits depend neither
 * on M and N, nor on threads, nor, with cuts where sequences start, on what else is in the chunk. */
struct term {
    struct view a, b;
    int a_by_k, b_by_k;
    int64_t K;
    float alpha;
};
struct product {
    int64_t M, N;
    float *c;
    int64_t ldc;
    int accumulate;
    const float *add; /* (M,N), rows ld_add apart, or NULL; may be c */
    int64_t ld_add;
    const float *bias; /* [N] or NULL */
    const int32_t *cuts;
    int n_terms;
    struct term term[2 * LINEAR_MAX];
};

struct cpu {
    struct backend table; /* first: table.self is the struct cpu */
    const struct cpu_kernels *k;
    int threads;
    struct backend_limits limits;
    char *work; /* one allocation, cut into what follows */
    float *left;                  /* packed left operand, shared by the threads */
    char *scratch;                /* `threads` pieces of scratch_bytes */
    size_t scratch_bytes;
    float *rank;                  /* (rows, LINEAR_MAX, R): dy B of linear_bwd */
    int64_t widest;               /* of D and F */
    float *vector;                /* [widest]: a bias or norm weight in fp32 */
    float *slice;                 /* (DROP_ROWS, widest), or the three of the loss: */
    float *logits, *loss_y, *loss_dy; /* (loss_slice, V), (loss_slice, D) twice */
    int32_t *cuts;                /* [loss_slice + 1] */
};

struct backend *backend_cpu_with(const struct cpu_kernels *k, int threads, struct err *e); /* tests choose */

static inline char *cpu_scratch(const struct cpu *c) { /* of the calling thread of a parallel region */
    return c->scratch + (size_t)omp_get_thread_num() * c->scratch_bytes;
}
/* Threads for an op of so many elements (at about one a nanosecond): waking others takes some microseconds. */
static inline int cpu_threads(const struct cpu *c, int64_t elements) { return elements < 20000 ? 1 : c->threads; }
/* The workspace was cut for `limit` of them. */
#define WITHIN(n, limit)                                                                                               \
    ASSERT((n) <= (limit), "%s: %lld, reserved for %lld", __func__, (long long)(n), (long long)(limit))
static inline float *mat_f32(const struct mat *m) {
    ASSERT(m->type == DT_F32, "%s matrix on the CPU", dtype_name(m->type));
    return m->data;
}
static inline struct view view_of(const struct mat *m) {
    return (struct view){.p = mat_f32(m), .ld = m->ld};
}
/* A vector of fp32 or bf16 as fp32: itself, or cpu->vector. */
const float *cpu_vector(const struct cpu *c, const void *x, enum dtype type, int64_t n);
/* sum[j] += Σ_t scale[t] x[t,j] y[t,j] (scale NULL: 1; y.data NULL: 1), in double within a sequence, sequence by sequence. */
void cpu_sum_rows(const struct cpu *c, const struct rows *r, const float *scale, struct mat x, struct mat y, float *sum);

/* gemm.c */
/* Elements first .. first+n-1 (n <= BLOCK_K) of a weight in fp32, as products see them: rounded to bf16 if it is quantised. In
 * place, or made in tmp[n]. */
const float *weight_decode(const struct cpu_kernels *k, const struct weight *w, int64_t first, int64_t n, float *tmp);
size_t product_scratch_bytes(void); /* of each thread, beside the shared `left` */
void product_run(const struct cpu *c, const struct product *p);
/* Packs rows r0 .. r0+n-1, columns k0 .. k0+kc-1 of v (by_k: columns r0.., rows k0..) into panels of the left or right
 * operand: kc times n rounded up to mr or nr floats. tmp: mr or nr rows of BLOCK_K (by_k: n floats), unless v is plain. */
void pack_left(const struct cpu_kernels *k, const struct view *v, int by_k, int64_t r0, int64_t n, int64_t k0, int64_t kc,
               float alpha, float *out, float *tmp);
void pack_right(const struct cpu_kernels *k, const struct view *v, int by_k, int64_t r0, int64_t n, int64_t k0, int64_t kc,
                float *out, float *tmp);

size_t attend_scratch_bytes(const struct cpu_kernels *k, int64_t K);

/* The ops, by file. */
void cpu_linear(void *self, const struct linear_args *a);
void cpu_linear_bwd(void *self, const struct linear_args *a);
void cpu_dora(void *self, const struct dora_args *a);
void cpu_dora_bwd(void *self, const struct dora_args *a);
void cpu_filter(void *self, const struct filter_args *a);
void cpu_filter_bwd(void *self, const struct filter_args *a);
void cpu_embed(void *self, const struct embed_args *a);
void cpu_embed_bwd(void *self, const struct embed_args *a);
void cpu_norm(void *self, const struct norm_args *a);
void cpu_norm_bwd(void *self, const struct norm_args *a);
void cpu_rope(void *self, const struct rope_args *a);
void cpu_gate(void *self, const struct gate_args *a);
void cpu_gate_bwd(void *self, const struct gate_args *a);
void cpu_attend(void *self, const struct attend_args *a);
void cpu_attend_bwd(void *self, const struct attend_args *a);
void cpu_loss(void *self, const struct loss_args *a);
void cpu_adam(void *self, const struct adam_args *a);
void cpu_sqsum(void *self, const struct sqsum_args *a);
void cpu_noise(void *self, const struct noise_args *a);
#endif
