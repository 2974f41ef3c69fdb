/* backend/backend.h - the door between the model and the machines.
 *
 * One table of operations, each a line in a description of the model, each with its backward twin. The model calls the
 * wrappers (op_norm, op_linear, ..) which check shapes, count bytes and FLOPs and then call the table; a backend supplies
 * only the work. backend/cpu is the definition of every op; backend/cuda is the speed. docs/BACKEND.md says how to add one.
 *
 * Letters: N token rows of a chunk, D hidden, F ffn, H heads, K head size, V vocabulary, R rank.
 *
 * Contracts that hold for all ops
 *  - Matrices are row-major. Activations have the backend's activation type (info.activation: fp32 on the CPU, bf16 on
 *    cards); adapters, gradients of parameters, scales, lse, losses are fp32. Products accumulate in fp32.
 *  - Row t of an output depends only on rows of its own sequence, and sums over tokens run sequence by sequence in order,
 *    so the bits of a result depend neither on the number of threads nor on how sequences are grouped into chunks (with
 *    rows.slice: into chunks of whole slices).
 *  - "=" overwrites, "+=" accumulates; each field below says which.
 *  - A wrong shape is our bug: ASSERT. A device failure is sticky: no op is called any more, and sync reports it.
 *  - No op allocates: what it needs beside its arguments comes from the workspace given once to `reserve`.
 */
#ifndef QLORA_BACKEND_H
#define QLORA_BACKEND_H
#include "base/dtype.h"
#include "base/err.h"
#include "nf4/nf4.h"
#include <stddef.h>
#include <stdint.h>

enum { BACKEND_VERSION = 7 };
enum queue { Q_COMPUTE, Q_IN, Q_OUT }; /* in order within, concurrent between. Ops run on Q_COMPUTE */
enum place { AT_DEVICE, AT_HOST };     /* AT_HOST: host memory the device copies to and from at full speed (pinned) */

struct mat { /* row-major; data is backend memory: host code must not follow it. data NULL = absent */
    void *data;
    int64_t rows, cols, ld; /* ld >= cols, in elements */
    enum dtype type;
};

enum weight_format { W_F32, W_BF16, W_INT8, W_Q4 };
struct weight { /* a linear map (rows = out, cols = in) in backend memory */
    enum weight_format format;
    int64_t rows, cols;
    const void *data;     /* F32, BF16: values, contiguous. INT8: int8 codes */
    const float *scale;   /* INT8: [rows] max|w| of each row */
    struct q4_view q4;    /* Q4 */
};

struct adapter { /* low-rank branch: y += scale * drop(x) Aᵀ Bᵀ (Hu et al. 2021). A.data NULL = none */
    struct mat A, B;   /* (R,in), (out,R) fp32 */
    struct mat dA, dB; /* gradients, += ; data NULL = frozen adapter */
    float scale;
    /* DoRA (Liu et al. 2024): c_o times base and branch of output o, c_o = m_o / |W_o + scale B_o A|, the norm being a constant */
    const float *m;    /* dev [out] magnitudes, or NULL: none of this */
    float *c;          /* dev [out] made by op_dora, read by all that take the adapter */
    float *dm;         /* dev [out] gradient, += by op_dora_bwd, or NULL */
};

/* Dropout mask: element (token, feature) is kept iff its 16 bits of Philox4x32-10 are >= the limit of p, kept values are divided by
 * the share that is kept. counter = {feature/8, token, site, step}, key = {seed low, seed high ^ layer}; word feature%8 / 2, its lower
 * half for an even feature. token counts from 0 in the global batch of the step, so the mask does not depend on chunks. */
struct dropout { float p; uint64_t seed; uint32_t step, layer, site; };
static inline uint32_t dropout_limit(float p) { return (uint32_t)(p * 0x1p16f + 0.5f); } /* p to 2^-17; p < 1 - 2^-17 */
static inline float dropout_kept(float p) { return 1.f - (float)dropout_limit(p) * 0x1p-16f; }

/* The token rows of a chunk: whole sequences, one behind the other; or, for all ops but attention, a part of one sequence.
 * Arrays marked dev are in backend memory. */
struct rows {
    int64_t N;                /* rows in this chunk */
    int64_t token0;           /* index of row 0 in the global batch */
    int n_seqs;
    const int32_t *seq_start; /* host [n_seqs+1]: sequence i is rows seq_start[i] .. seq_start[i+1]-1 */
    const int32_t *position;  /* dev [N] rotary position of each row */
    const int32_t *first;     /* dev [N] first key row that this row attends to; at least its sequence's start */
    const int32_t *offset;    /* dev [N] place of each row in its sequence, 0 for its first */
    int64_t slice;            /* a whole weight's gradient may sum up sequences of so many rows together: slices, each filled greedily,
                               * the first of the chunk beginning one. 0: each sequence alone */
};

struct embed_args {
    const struct rows *rows;
    const int32_t *ids;  /* dev [N], 0 <= id < V (checked by the caller) */
    struct mat E;        /* (V,D) fp32 or bf16 */
    struct mat y;        /* (N,D) = */
    struct mat dy, dE;   /* backward: (N,D); (V,D) fp32 += , in token order */
    int32_t skip;        /* backward: row that gets no gradient (padding_idx), -1 = none */
};

/* y = g * round(x * r), r = 1/sqrt(mean(x²) + eps)              Zhang & Sennrich 2019 */
struct norm_args {
    const struct rows *rows;
    struct mat x, y;     /* (N,D); y = */
    const void *g;       /* dev [D], type of g_type */
    enum dtype g_type;   /* F32 or BF16 */
    float *r;            /* dev [N] = in forward (may be NULL), read in backward */
    float eps;
    /* backward: dx += the norm's part (dx already holds the residual's gradient) unless `overwrite` */
    struct mat dy, dx;
    int overwrite;
    float *dg;           /* dev [D] += or NULL */
};

/* for each output i < n:  y_i = x W_iᵀ (+ add_i) + s_i (drop(x) A_iᵀ) B_iᵀ.  Outputs share x so that a backend may
 * stack them (q|k, gate|up).
 * backward:  dx (=|+=) Σ_i dy_i W_i + s_i drop'((dy_i B_i) A_i);   dA_i += s_i (dy_i B_i)ᵀ drop(x);   dB_i += s_i dy_iᵀ xa_i;
 *            dW_i += dy_iᵀ x
 * With magnitudes W_i and B_i stand for c_i W_i and c_i B_i, rows scaled; only dB_i is c_i times that. Their own gradient is op_dora_bwd's.
 *
 * The adapter as extra columns: where xa_0, xa_1 lie behind the columns of x in the same rows, and dxa_0, dxa_1 behind those of
 * dy_0, dy_1, a backend may run base and branch as one product over [x | xa] and [dy | dxa], and need not pass over y twice. */
enum { LINEAR_MAX = 2 };
struct linear_out {
    struct weight w;
    struct mat y;              /* (N,out) = ; absent: only xa is made (recomputation) */
    struct mat add;            /* (N,out) or absent; may be y itself */
    struct adapter lora;       /* lora.A.data NULL = none */
    struct mat xa;             /* (N,R) = drop(x) Aᵀ, fp32 on the CPU, activation type on cards; kept for backward */
    struct dropout drop;       /* p = 0: none */
    struct mat dy;             /* backward (N,out) */
    struct mat dxa;            /* backward (N,R) scratch for s dy B, or absent */
    struct mat dW;             /* backward (out,in) fp32 += or absent */
};
struct linear_args {
    const struct rows *rows;
    struct mat x;              /* (N,in) */
    struct mat joint;          /* what join made of these weights and adapters, or absent */
    int n;
    struct linear_out out[LINEAR_MAX];
    struct mat dx;             /* backward (N,in) or absent (not needed below) */
    int accumulate;            /* dx += instead of = */
};

/* A linear's frozen weights and adapters as one operand of the backend's activation type, made once for many calls:
 *     to = [W_0 s_0B_0 0; W_1 0 s_1B_1; A_0 0 0; A_1 0 0]      (Σ out_i + Σ R_i, in + Σ R_i), with magnitudes the rows of W, B times c
 * Offered where info.joins: the caller decides whether there is memory for it. */
struct join_args {
    int n;
    struct { struct weight w; struct adapter lora; } part[LINEAR_MAX];
    struct mat to;             /* = ; ld a multiple of 8 */
};

/* The magnitudes of DoRA. norm_o = |W_o + scale B_o A|, W as products see it; c_o = m_o / norm_o, 0 where the norm is 0. In fp32 or
 * more, for it is read by all tokens; once for a visit of all chunks.
 * backward: dm_o += Σ_t dy[t,o] y[t,o] / m_o, y being the linear's output (without what it was added to): c_o is a common factor of
 * a column of y, so what it scaled need not be kept. Sequence by sequence; nothing where m_o is 0. */
struct dora_args {
    struct weight w;
    struct adapter lora;       /* m may be NULL where only norms are asked for */
    float *norm;               /* dev [out] = or NULL */
    const struct rows *rows;   /* backward, and all that follows */
    struct mat y, dy;          /* (N,out) */
};

/* localized filter, one convolution: y[t] = x[t-1] W0ᵀ + x[t] W1ᵀ + b (+ add[t]), x[-1] = 0 at a sequence's start. Of a part of
 * a sequence (one sequence, then) `before` is the row before the first.                  Wu et al. 2023 (Yuan 2.0), LFA
 * backward: dx[t] = dy[t] W1 + dy[t+1] W0 within the sequence (+ dx_add[t]), `after` being the dy behind the last row of a part;
 * dW1 += dyᵀ x; dW0 += dy[1..]ᵀ x[..], and dy[0]ᵀ before; db += Σ dy */
struct filter_args {
    const struct rows *rows;
    struct mat x, y;           /* (N,in), (N,out); y = */
    struct weight w0, w1;      /* (out,in) */
    const void *b;             /* dev [out] */
    enum dtype b_type;
    struct mat add;            /* (N,out) or absent; not y itself */
    struct mat before;         /* (1,in) or absent */
    struct mat dy, dx;         /* backward; dx = , absent = not needed */
    struct mat after;          /* (1,out) or absent */
    struct mat dx_add;         /* (N,in) or absent; not dx itself */
    struct mat dw0, dw1;       /* fp32 += or absent */
    float *db;                 /* dev [out] += or NULL */
};

/* In place: each group of K columns of x (N, any multiple of K) is a vector rotated by its row's position:
 * out[i] = x[i] cos - x[i+K/2] sin, out[i+K/2] = x[i+K/2] cos + x[i] sin, angle = position * 10000^(-2i/K).
 * sign = -1 is the backward (transpose).                                    Su et al. 2021 (RoFormer), half-split form */
struct rope_args {
    const struct rows *rows;
    struct mat x;
    int64_t K;
    int sign;
};

/* Causal attention. Head h of row t: query q[t, h*q_step ..], keys k[u, h*k_step ..], values v[u, h*v_step ..],
 * u from first[t] to t + past. o[t, h*K ..] = softmax(q·k / sqrt(K)) v, lse[t*H+h] = log Σ exp(q·k / sqrt(K)).
 * With past = 0, k and v have N rows. In generation (one sequence) they are a cache of past + N rows.
 * Backward: dq, dk, dv = (not +=), same layout as q, k, v.   Dao 2023 (FlashAttention-2) for the tiling and recompute. */
struct attend_args {
    const struct rows *rows;
    int64_t H, K, past;
    struct mat q, k, v, o;
    int64_t q_step, k_step, v_step;
    float *lse;                /* dev [N*H] = in forward, read in backward */
    struct mat d_o, dq, dk, dv;
    float *delta;              /* dev [N*H] scratch of backward: Σ do·o */
};

/* y = g * silu(u), silu(u) = u sigmoid(u); backward dg = dy silu(u), du = dy g σ(u)(1 + u(1-σ(u))).  dg may be g, du may
 * be u (in place). dg and y of backward may be absent, or y is recomputed into y = (to save keeping it). */
struct gate_args {
    const struct rows *rows;
    struct mat g, u, y;        /* (N,F) */
    struct mat dy, dg, du;
};

/* Loss head. For the n rows listed in `row` (without dy a row may be listed several times):
 *     logits = y[row] Eᵀ;  nll = -log softmax(logits)[label]
 *     dy present:  dy[row] = weight (softmax - onehot) E; other rows of dy become 0
 *     dE present:  dE += Σ weight (softmax - onehot)ᵀ y
 * With smoothing s the target is (1 - s) onehot + s / V in place of onehot, and nll = -Σ target log softmax(logits).
 * Walks in slices as large as `work` allows; no (N,V) tensor. Ids >= `valid` take part in the softmax like all others. */
struct loss_args {
    const struct rows *rows;
    struct mat y;              /* (N,D) */
    struct weight E;           /* (V,D) F32 or BF16 */
    int64_t n;
    const int32_t *row;        /* dev [n] ascending */
    const int32_t *label;      /* dev [n] */
    const float *weight;       /* dev [n], needed with dy or dE */
    float smoothing;           /* 0..1 */
    float *nll;                /* dev [n] = */
    int32_t *best;             /* dev [n] = id of the largest logit, the lowest among equals, -1 if none is a number; or NULL */
    struct mat dy;             /* (N,D) = or absent */
    struct mat dE;             /* (V,D) fp32 += or absent */
    void *work;                /* dev scratch for slices of logits; needed (at least 2 (V + D) + 512 bytes) unless info.unified */
    size_t work_bytes;
};

/* AdamW over a list of tensors (Loshchilov & Hutter 2019; 8-bit: Dettmers et al. 2022, docs/FORMATS.md). g is multiplied by
 * grad_scale (clipping) first. 32-bit: p *= 1 - lr*wd, then p -= lr * m̂/(sqrt(v̂)+eps). 8-bit: decay after the step. Each
 * operation is rounded to fp32 on its own, so that the bits are the same on every backend: an update may run on either side. */
struct adam_tensor {
    float *p;                  /* values, updated in place, or NULL: the values are `copy` */
    const float *g;            /* gradient, or NULL with */
    const uint16_t *g16;       /* the same in bf16 */
    float *m, *v;              /* 32-bit state, or NULL with */
    uint8_t *m8, *v8;          /* 8-bit state and its scales per 256 */
    float *m_absmax, *v_absmax;
    void *copy;                /* bf16 copy of p to refresh, or NULL; without p the values themselves, rounded at every step */
    int round;                 /* p is rounded to bf16 at every step */
    int64_t n;
    double lr, weight_decay;
};
struct adam_args {
    const struct adam_tensor *tensors; /* host array */
    int64_t count;
    int64_t t;                 /* step number from 1 */
    double beta1, beta2, eps, grad_scale;
};

/* out[i] = Σ x_i² of tensor i in a fixed order (double). out is memory of alloc(AT_HOST), filled when Q_COMPUTE gets
 * there: read it after sync or wait_host. x, half and n are host arrays. */
struct sqsum_args {
    const float *const *x;
    uint16_t *const *half;     /* = x in bf16, or NULL */
    const int64_t *n;
    int64_t count;
    double *out;
};

/* y[t] += size[t] * u, u uniform in (-1,1).                                            Jain et al. 2023 (NEFTune)
 * u of (token, feature) is rng_signed of word feature%4 of Philox4x32-10 with counter = {feature/4, token, NOISE_SITE, step},
 * key = {seed low, seed high}; token counts as it does for dropout, so the noise does not depend on chunks. */
enum { NOISE_SITE = 0x7fffffff }; /* no site of dropout */
struct noise_args {
    const struct rows *rows;
    struct mat y;              /* (N,D) += */
    const float *size;         /* dev [N] */
    uint64_t seed;
    uint32_t step;
};

/* What the largest calls of a run will be; decides the workspace. */
struct backend_limits {
    int64_t rows;              /* largest chunk, tokens */
    int64_t sequence;          /* longest sequence */
    int64_t D, F, H, K, V, R;
    int64_t loss_slice;        /* rows of logits at once where the backend holds them itself (info.unified); 0 = its choice */
    int trains_weights;        /* dW, dE will be asked for */
    int head_f32;              /* loss will get an E of fp32 where activations are bf16 */
    int drops;                 /* dropout will be asked for */
    int joined;                /* every linear call brings its joint operand */
    int generates;             /* calls of a few rows may take ways of their own, whose bits differ from those of many rows */
};

struct backend_info {
    char name[64], detail[160];
    enum dtype activation;
    int unified;               /* AT_DEVICE memory is host memory: pages need no copies */
    int joins;                 /* join is offered, and pays for more than one call */
    double flops, bandwidth, link; /* rough rates for plans: products FLOP/s, own memory bytes/s, copies to and from the host
                                    * bytes/s each way */
    int64_t free_bytes, total_bytes;
    int64_t code_bytes;      /* device bytes that kernels take when they are first used, beside what alloc gives */
};

struct backend {
    int version;
    int failed;    /* set by the backend at its first failure */
    void *self;
    /* machine */
    void (*info)(void *self, struct backend_info *out);
    void *(*alloc)(void *self, enum place, size_t bytes); /* NULL when full; 256-byte aligned; contents undefined */
    void (*release)(void *self, enum place, void *p);
    void (*put)(void *self, void *dst, const void *host, size_t bytes, enum queue);
    void (*get)(void *self, void *host, const void *src, size_t bytes, enum queue);
    void (*copy)(void *self, void *dst, const void *src, size_t bytes, enum queue); /* within backend memory */
    void (*zero)(void *self, void *dst, size_t bytes, enum queue);
    int64_t (*mark)(void *self, enum queue);               /* ticket: all work queued there so far */
    void (*wait)(void *self, enum queue, int64_t ticket);  /* that queue waits for it; the host does not */
    void (*wait_host)(void *self, int64_t ticket);         /* the host waits for it */
    int (*sync)(void *self, struct err *e);                /* host waits for all; -1 with the first failure */
    size_t (*workspace)(void *self, const struct backend_limits *l);
    int (*reserve)(void *self, const struct backend_limits *l, struct err *e);
    void (*close)(void *self);
    void (*range)(void *self, const char *name);           /* opens a profiler's range, NULL closes it. May be absent */
    /* ops; *_bwd are their backward twins */
    void (*embed)(void *self, const struct embed_args *a);
    void (*embed_bwd)(void *self, const struct embed_args *a);
    void (*norm)(void *self, const struct norm_args *a);
    void (*norm_bwd)(void *self, const struct norm_args *a);
    void (*linear)(void *self, const struct linear_args *a);
    void (*linear_bwd)(void *self, const struct linear_args *a);
    void (*join)(void *self, const struct join_args *a); /* NULL: not offered */
    void (*dora)(void *self, const struct dora_args *a);
    void (*dora_bwd)(void *self, const struct dora_args *a);
    void (*filter)(void *self, const struct filter_args *a);
    void (*filter_bwd)(void *self, const struct filter_args *a);
    void (*rope)(void *self, const struct rope_args *a);
    void (*attend)(void *self, const struct attend_args *a);
    void (*attend_bwd)(void *self, const struct attend_args *a);
    void (*gate)(void *self, const struct gate_args *a);
    void (*gate_bwd)(void *self, const struct gate_args *a);
    void (*loss)(void *self, const struct loss_args *a);
    void (*adam)(void *self, const struct adam_args *a);
    void (*sqsum)(void *self, const struct sqsum_args *a);
    void (*noise)(void *self, const struct noise_args *a);
};

/* name: "cpu", "cuda", or the path of a plugin; NULL = cuda when a card and its plugin are found, else cpu. */
struct backend *backend_open(const char *name, struct err *e);
/* The path of the plugin of "cuda": beside the program, or in ../lib/qlora. -1 if there is none. */
int backend_find_plugin(char *path, size_t size);
/* Whether the driver's library is on the machine, without which there is no card. */
int backend_has_driver(void);
void backend_close(struct backend *b);
struct backend *backend_cpu(struct err *e);
/* Memory, or NULL with a sentence that says what it was for, what is free, and what to do. */
void *backend_alloc(struct backend *b, enum place place, size_t bytes, const char *what, struct err *e);
/* -1 when the device failed; its sentence then takes the place of what e holds, for all that came after is an echo. */
int backend_failed(struct backend *b, struct err *e);
/* A range of the timeline that a profiler (nsys) shows; ranges nest. Nothing without one. */
void backend_range(struct backend *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void backend_range_end(struct backend *b);

/* The wrappers: what model code calls. */
void op_embed(struct backend *b, const struct embed_args *a);
void op_embed_bwd(struct backend *b, const struct embed_args *a);
void op_norm(struct backend *b, const struct norm_args *a);
void op_norm_bwd(struct backend *b, const struct norm_args *a);
void op_linear(struct backend *b, const struct linear_args *a);
void op_linear_bwd(struct backend *b, const struct linear_args *a);
void op_join(struct backend *b, const struct join_args *a);
void op_dora(struct backend *b, const struct dora_args *a);
void op_dora_bwd(struct backend *b, const struct dora_args *a);
void op_filter(struct backend *b, const struct filter_args *a);
void op_filter_bwd(struct backend *b, const struct filter_args *a);
void op_rope(struct backend *b, const struct rope_args *a);
void op_attend(struct backend *b, const struct attend_args *a);
void op_attend_bwd(struct backend *b, const struct attend_args *a);
void op_gate(struct backend *b, const struct gate_args *a);
void op_gate_bwd(struct backend *b, const struct gate_args *a);
void op_loss(struct backend *b, const struct loss_args *a);
void op_adam(struct backend *b, const struct adam_args *a);
void op_sqsum(struct backend *b, const struct sqsum_args *a);
void op_noise(struct backend *b, const struct noise_args *a);

/* Rows and columns of a joint operand. */
static inline void join_shape(const struct join_args *a, int64_t *rows, int64_t *cols) {
    *rows = 0, *cols = a->part[0].w.cols;
    for (int i = 0; i < a->n; i++) {
        int64_t R = a->part[i].lora.A.data ? a->part[i].lora.A.rows : 0;
        *rows += a->part[i].w.rows + R, *cols += R;
    }
}

/* Counters of the wrappers, for speed lines and --profile. */
struct op_count { const char *name; int64_t calls; double flops, bytes, seconds; };
extern int op_timing; /* 1: wrappers also measure time (and synchronise): --profile */
const struct op_count *op_counts(int *n);
void op_counts_reset(void);
#endif
