/* model/block.h - one Yuan 2.0 layer, forward and backward, written once against the door (backend/backend.h).
 *
 *     a = norm(x; g1)              v = a Wvᵀ
 *     s = a + conv2(conv1(a))      b = norm(s; gf)          localized filter, causal over three rows
 *     q|k = rope(b [Wq;Wk]ᵀ)       x1 = x + attend(q, k, v) Woᵀ
 *     c = norm(x1; g2)             y = x1 + ((c Wgᵀ) * silu(c Wuᵀ)) Wdᵀ
 *
 * q and k keep their projections' columns: in q|k, head j's query is columns 2Kj.., its key 2Kj+K.. (the head
 * interleave of Yuan), so attention reads them with a head step of 2K and nothing is moved.
 *
 * Attention sees a chunk whole; everything else goes through it window by window (batch.h). Where a chunk has several, what
 * belongs to one is made again when backward comes to it.
 */
#ifndef QLORA_MODEL_BLOCK_H
#define QLORA_MODEL_BLOCK_H
#include "model/batch.h"
#include "model/model.h"

/* Rows that buffers are made for: of a chunk, and of a window. Equal, or less memory is taken and more is made again. */
struct capacity { int64_t chunk, window; };

/* What backward needs of a block's forward, beside x. Either kept, or made again just before. qk, v, o and lse hold a chunk, all
 * else holds a window. Where the rank is a multiple of 8, each xa lies behind the columns of its input, in the same rows
 * (backend.h, linear). */
struct saved {
    struct mat a, u, s, b, qk, v, o, x1, c; /* D, D/2, D, D, 2D, D, D, D, D; activation type */
    struct mat seam_a, seam_u;              /* (seams, D), (.., D/2): the last rows of a and u before a window that goes on */
    struct mat gu;                          /* gate | up, 2F; in backward their gradients, with room for dxa behind */
    struct mat xa[PROJ_COUNT];              /* (rows, R) drop(x) Aᵀ; that of down is in scratch, behind m */
    float *lse;                             /* [rows*H] */
    float *r1, *rf, *r2;                    /* norms */
};
/* Buffers one block visit needs beside that. Two regions, whose parts follow each other as backward goes up:
 *     m (F), then dD | ds | du (D, D, D/2)          dm (F), then d_o | dqk | dv (D, 2D, D)
 * d_o, dqk, dv and delta hold a chunk, all else a window; d_o lies apart if that is more. */
struct scratch {
    struct mat m, xa_down;
    struct mat dD, ds, du;
    struct mat dm, d_o, dqk, dv, dxa[PROJ_COUNT]; /* absent without backward; dxa of q, k, v behind dqk and dv */
    struct mat after_s, after_u;                  /* (1,D), (1,D/2): the first rows of ds and du in the window behind */
    float *delta;                                 /* [rows*H] */
};
/* Bytes and views. R = 0: no adapters (xa absent). */
size_t saved_bytes(const struct model_config *c, enum dtype act, unsigned targets, int64_t R, struct capacity n);
void saved_view(const struct model_config *c, enum dtype act, unsigned targets, int64_t R, struct capacity n, void *p, struct saved *s);
size_t scratch_bytes(const struct model_config *c, enum dtype act, unsigned targets, int64_t R, struct capacity n, int backward);
void scratch_view(const struct model_config *c, enum dtype act, unsigned targets, int64_t R, struct capacity n, int backward,
                  void *p, struct scratch *t);
/* Columns that a matrix of layer gradients needs: D, and room for dxa of o and down behind. */
int64_t gradient_columns(const struct model_config *c, unsigned targets, int64_t R);

/* A layer's weights and adapters as joint operands (backend.h, join), made once for a visit of all chunks. */
struct joints { struct mat v, qk, o, gu, down; };
size_t joints_bytes(const struct model_config *c, enum dtype act, unsigned targets, int64_t R);
void joints_make(struct backend *be, enum dtype act, const struct layer *w, const struct adapter *lora, void *p, struct joints *j);

/* The scales of a layer's magnitudes (backend.h, dora), for a visit of all chunks: lora[p].c = of all that have any. */
void scales_make(struct backend *be, const struct layer *w, const struct adapter *lora);

struct layer_grads { /* full fine-tuning: all fp32 += */
    struct mat proj[PROJ_COUNT], conv1[2], conv2[2];
    float *conv1_b, *conv2_b, *norm1, *norm_f, *norm2;
};
struct layer_cache { /* generation, one sequence: rotated q|k and v of all rows so far, the filter's last inputs */
    struct mat qk, v;  /* (rows so far and to come, 2D), (.., D) */
    struct mat a, u;   /* (1,D), (1,D/2) */
    int64_t past;
};
struct block {
    struct backend *be;
    const struct model_config *config;
    const struct rows *rows;
    int n_windows;                  /* of the rows; 0: they are one */
    const struct window *window;
    const struct layer *w;
    const struct adapter *lora;     /* [PROJ_COUNT], or NULL */
    const struct joints *joints;    /* or NULL */
    const struct layer_grads *grads; /* or NULL: weights are frozen */
    struct dropout drop;            /* site is filled in per projection */
    struct layer_cache *cache;      /* or NULL */
    struct saved *s;
    struct scratch *t;
};
/* y = block(x). Fills s. y may not be x. */
void block_forward(const struct block *b, struct mat x, struct mat y);
/* dx holds dL/dy on entry, dL/dx on return. kept: s is what block_forward of this chunk, of one window, left; else it is made again.
 * Without need_dx nothing below the lowest adapter of this layer is computed and dx is left undefined. */
void block_backward(const struct block *b, struct mat x, struct mat dx, int kept, int need_dx);

/* The first n rows of a matrix; n columns from `first`. */
static inline struct mat mat_rows(struct mat m, int64_t first, int64_t n) {
    if (m.data) m.data = (char *)m.data + (size_t)(first * m.ld) * dtype_bytes(m.type);
    m.rows = n;
    return m;
}
static inline struct mat mat_cols(struct mat m, int64_t first, int64_t n) {
    if (m.data) m.data = (char *)m.data + (size_t)first * dtype_bytes(m.type);
    m.cols = n;
    return m;
}
#endif
