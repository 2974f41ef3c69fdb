/* backend/cuda/cuda_internal.h - what the files of this folder share: the device, its queues, its workspace.
 *
 * Activations are bf16, products accumulate in fp32, norms, softmax, losses and optimizer are fp32. All work of ops goes to
 * stream[Q_COMPUTE] in order. No op allocates or synchronises; sums have fixed orders and no float atomics are used, so two
 * runs give the same bits. C with kernels: templates only for types and tile sizes.
 */
#ifndef QLORA_CUDA_INTERNAL_H
#define QLORA_CUDA_INTERNAL_H
extern "C" {
#include "backend/backend.h"
#include "backend/card.h"
}
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

typedef __nv_bfloat16 bf16;

enum { TICKETS = 1024, GEMM_CACHE = 256, SQSUM_PIECES = 32768, PINNED_MOST = 64 };

struct gemm_key { /* one product: c(m,n) = alpha op(a) op(b) + beta c, all row-major */
    int64_t m, n, k, lda, ldb, ldc, ld_add, batch, stride_a, stride_b, stride_c; /* ld_add 0: nothing is added */
    int64_t ta, tb, c_f32, bias, aligned; /* bytes that every operand begins at a multiple of, 16 at most */
};
struct gemm_plan {
    struct gemm_key key;
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t a, b, add, c;
    cublasLtMatmulAlgo_t algo;
};

struct pinned { void *p, *raw; size_t all; }; /* a block that was mapped from raw on */

struct cuda {
    struct backend table;
    int device, sms, clock_khz, ptx; /* ptx: __CUDA_ARCH__ / 10 of the code that runs */
    double bandwidth;    /* bytes/s of its memory */
    struct cudaDeviceProp props;
    cudaStream_t stream[3];
    cudaEvent_t event[TICKETS];
    int64_t tickets;
    cublasLtHandle_t lt;
    struct gemm_plan plan[GEMM_CACHE];
    int plans;
    /* workspace of reserve(), cut once */
    void *work;
    size_t work_bytes;
    struct backend_limits limits;
    void *lt_work;
    size_t lt_work_bytes;
    bf16 *w16;           /* joint operand of a call that brings none */
    size_t w16_elements;
    bf16 *rank;          /* (rows, LINEAR_MAX R) s dy B of calls that bring no room for it */
    bf16 *dropped;       /* (rows, widest) drop(x) */
    float *partial;      /* sums by sequence before they are added in order */
    size_t partial_elements;
    uint32_t *turns;     /* [TALL_TILES + 1] whose turn it is to add to a tile, and how many blocks have started; 0 between launches */
    bf16 *taps, *bias;   /* (2, D/2, D) and [D] of the filter, when they are fp32 */
    double *pieces;      /* [SQSUM_PIECES] */
    void *maps;          /* of 8-bit AdamW, see adam.cu; own memory */
    bf16 *loss_e;        /* (V, D) when E is fp32 */
    float *slices;       /* attention of a few rows, by slices of the keys */
    size_t slice_floats;
    struct pinned pinned[PINNED_MOST];
    int pinned_blocks;
    struct err failure;  /* the first, for sync; then no call reaches the card any more */
    long long calls, fault_at; /* so far, and the one that QLORA_FAULT makes fail; 0 = none */
    int fault_trap, fault_count, poison;
};

/* Before every call to the card: an error when it must not be made, since the card failed or a test says that it fails now. */
cudaError_t cuda_fault(struct cuda *c);
/* Keeps the first failure. */
void cuda_failed(struct cuda *c, cudaError_t code, const char *what, const char *file, int line);
#define CUDA_CALL(c, call, what)                                                                                       \
    do {                                                                                                               \
        cudaError_t code_ = cuda_fault(c);                                                                             \
        if (code_ == cudaSuccess) code_ = (call);                                                                      \
        if (code_ != cudaSuccess) cuda_failed(c, code_, what, __FILE__, __LINE__);                                     \
    } while (0)
#define CUDA_TRY(c, call) CUDA_CALL(c, call, #call)
/* Behind every launch. */
#define CUDA_LAUNCHED(c) CUDA_CALL(c, cudaGetLastError(), "a kernel")

static inline cudaStream_t cuda_stream(struct cuda *c) { return c->stream[Q_COMPUTE]; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Row-major product on Q_COMPUTE: c(m,n) = alpha op(a) op(b) (+ c when add), op = transpose when ta/tb. a, b bf16; c bf16 or
 * fp32. ld in elements. cublasLt, choice cached per shape. */
struct gemm {
    const bf16 *a, *b;
    void *c;
    const void *add;  /* NULL; c itself; or another matrix of c's type and ld_add */
    int64_t m, n, k, lda, ldb, ldc, ld_add;
    int ta, tb, c_f32;
    float alpha;
    const bf16 *bias;        /* [n] added to every row, or NULL */
    int64_t batch, stride_a, stride_b, stride_c; /* batch 0 or 1: one product */
};
void cuda_gemm(struct cuda *c, const struct gemm *g);
/* w in bf16, rows*cols contiguous: w.data itself when it is bf16, else unpacked into dst. */
const bf16 *cuda_unpack(struct cuda *c, const struct weight *w, bf16 *dst);
/* w in bf16 at dst + row * ld, whatever its format; columns beyond w.cols stay. C and shown by the plugin, so that tests see
 * strides that no op shows alone. */
extern "C" __attribute__((visibility("default"))) void cuda_unpack_to(struct cuda *c, const struct weight *w, bf16 *dst, int64_t ld);
/* x[r][j] = bf16(c[r] x[r][j]) for rows x cols; ld % 8 == 0. */
void cuda_scale_rows(struct cuda *c, bf16 *x, int64_t ld, int64_t rows, int64_t cols, const float *by_row);
void cuda_to_bf16(struct cuda *c, bf16 *dst, const float *src, int64_t n);

/* Starts of a launch's sequences, in its parameters: sequence i is rows at[i] .. at[i+1]-1. */
enum { SEQ_LIST = 256 };
struct seq_list { int n; int32_t at[SEQ_LIST + 1]; };
static inline struct seq_list seq_list_of(const struct rows *r, int first) {
    struct seq_list s = {};
    s.n = r->n_seqs - first < SEQ_LIST ? r->n_seqs - first : (int)SEQ_LIST;
    for (int i = 0; i <= s.n; i++) s.at[i] = r->seq_start[first + i];
    return s;
}

/* to[i] += Σ_t dy[t][i] (x[t][i] r[t]), sequence by sequence; x and r may be NULL. */
void cuda_column_sums(struct cuda *c, const struct rows *rows, const struct mat *dy, const struct mat *x, const float *r, float *to);

/* out(rows,R) += Σ_t left[t] (scale right[t])ᵀ, rows by_row times, or transposed out(R,rows). left (N,rows), right (N,R); all
 * operands must fit. */
enum { TALL_JOBS = 4, TALL_TILES = (1 << 16) - 1 };
struct tall_job { const bf16 *left, *right; int64_t ld_left, ld_right; float *out; int64_t ld_out; int rows, R, transposed; float scale; const float *by_row; }; /* by_row: [rows] factors, or NULL */
int cuda_tall_fits(const bf16 *p, int64_t ld, int64_t cols); /* 16-byte rows */
void cuda_tall(struct cuda *c, const struct rows *r, const struct tall_job *job, int n);

/* Workspace each file needs: bytes for limits; `at` NULL: count only, else cut the parts from there. */
size_t cuda_linear_workspace(struct cuda *c, const struct backend_limits *l, char *at);
size_t cuda_loss_workspace(struct cuda *c, const struct backend_limits *l, char *at);
size_t cuda_adam_workspace(struct cuda *c, const struct backend_limits *l, char *at);
size_t cuda_decode_workspace(struct cuda *c, const struct backend_limits *l, char *at);
cudaError_t cuda_adam_start(struct cuda *c);

/* Host memory that the card reaches (pinned.cu). */
cudaError_t cuda_host_alloc(struct cuda *c, void **p, size_t bytes);
cudaError_t cuda_host_free(struct cuda *c, void *p);

/* Ops of at most eight rows (decode.cu): 1, or 0 when the call is not for them and nothing was done. */
int cuda_decode_linear(struct cuda *c, const struct linear_args *a);
int cuda_decode_filter(struct cuda *c, const struct filter_args *a);
int cuda_decode_attend(struct cuda *c, const struct attend_args *a);

/* The ops. */
void cuda_embed(void *self, const struct embed_args *a);
void cuda_embed_bwd(void *self, const struct embed_args *a);
void cuda_norm(void *self, const struct norm_args *a);
void cuda_norm_bwd(void *self, const struct norm_args *a);
void cuda_linear(void *self, const struct linear_args *a);
void cuda_linear_bwd(void *self, const struct linear_args *a);
void cuda_join(void *self, const struct join_args *a);
void cuda_dora(void *self, const struct dora_args *a);
void cuda_dora_bwd(void *self, const struct dora_args *a);
void cuda_filter(void *self, const struct filter_args *a);
void cuda_filter_bwd(void *self, const struct filter_args *a);
void cuda_rope(void *self, const struct rope_args *a);
void cuda_attend(void *self, const struct attend_args *a);
void cuda_attend_bwd(void *self, const struct attend_args *a);
void cuda_gate(void *self, const struct gate_args *a);
void cuda_gate_bwd(void *self, const struct gate_args *a);
void cuda_loss(void *self, const struct loss_args *a);
void cuda_adam(void *self, const struct adam_args *a);
void cuda_sqsum(void *self, const struct sqsum_args *a);
void cuda_noise(void *self, const struct noise_args *a);
#endif
