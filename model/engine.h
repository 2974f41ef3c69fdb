/* model/engine.h - the layer-at-a-time engine: a whole batch through layer l before anything goes through layer l+1.
 *
 *     forward   for layer l:        weights(l) in  ->  for chunk c: x[l][c] -> block -> x[l+1][c]
 *     head      for chunk c:        norm + lm_head + softmax + cross-entropy (+ gradient), in slices of tokens
 *     backward  for layer l, down:  weights(l) in  ->  for chunk c: recompute block(x[l][c]); dx[c] = block'(dx[c]); dA, dB +=
 *
 * A layer's weights are needed twice per step, whatever the batch, so unpacking them is nearly free and they may live
 * anywhere. A chunk is as large as fits; a sequence that is larger goes through a block in windows. Scoring and evaluation use
 * forward and head alone; train/step.c adds the update.
 */
#ifndef QLORA_MODEL_ENGINE_H
#define QLORA_MODEL_ENGINE_H
#include "model/batch.h"
#include "model/block.h"
#include "pager/plan.h"

struct engine_config {
    int64_t rows, chunks;      /* capacity: rows of a chunk, chunks of a batch */
    int64_t window;            /* rows of a window (model/batch.h); 0: a chunk is one */
    int64_t longest;           /* longest sequence */
    int training;              /* x of every layer is kept, gradients flow */
    int64_t lowest;            /* backward goes down to this layer */
    int64_t keep_layers;       /* the last so many layers keep what backward needs instead of recomputing it */
    int64_t resident_acts;     /* of the pages of x that live on the device; < 0 = all */
    int outer_on_host;         /* embedding and head are at home there (model_how) */
    int join;                  /* a layer's operands are made once per visit (backend.h, join) */
    int drops;                 /* dropout will be asked for */
    double smoothing;          /* label smoothing of the losses; 0 = none */
    const struct lora *lora;   /* shapes of the adapter, or NULL */
    struct pages *adapters;    /* [L] fp32 pages of lora->layer_floats, or NULL */
};
struct engine {
    struct engine_config c;
    struct model *m;
    struct backend *be;
    struct pages *x;           /* training: [(L+1) * chunks], else [2 * chunks]; page l*chunks + c */
    struct pages *dx;          /* training: [chunks] */
    char *memory;              /* saved, r, scratch, joints: one block; in the head's time saved, r, and what it needs */
    struct saved saved;
    struct scratch scratch;
    float *r;                  /* [rows] of the head's norm */
    char *shared;              /* behind r: scratch and joints, or what the head needs */
    void *joints;              /* or NULL */
    /* outer_on_host: embeddings of a chunk gathered in pinned memory, the ticket of their last use, and 0 1 2 .. on the device */
    char *stage;
    int64_t staged;
    int32_t *counting;
    enum dtype type;           /* of activations */
    void (*reach)(void *context, int64_t l); /* or NULL: told before the forward pass reads layer l (-1: the embedding) */
    int (*brings)(void *context, int64_t l); /* or NULL: whether reach will bring the page of layer l itself */
    void *context;
    float *scales;             /* with DoRA: [L * lora_rows], made when forward visits a layer, read again by backward */
    char *kept;                /* [keep_layers * chunks] saved sets */
    size_t kept_bytes;
};
/* Weights in bf16 without adapters, q|k and gate|up side by side: a card's products take them as they lie. */
int engine_stacked(const struct model *m, const struct lora *lora);
/* Where the pages of x and dx live, and what engine_open takes, item by item: the plan's arithmetic. */
void engine_pages(const struct model *m, const struct engine_config *c, struct pages_config *x, struct pages_config *dx);
int engine_items(const struct model *m, const struct engine_config *c, struct plan_item *items); /* returns their number */
int engine_open(struct engine *g, struct model *m, const struct engine_config *c, struct err *e);
void engine_close(struct engine *g);

/* Adapters of layer l from its page; grad: page of gradients in the same layout, or NULL. */
void engine_adapters(const struct engine *g, int64_t l, float *value, float *grad, struct adapter out[PROJ_COUNT]);

/* drop: p, seed, step; NULL = no dropout (evaluation). */
void engine_forward(struct engine *g, const struct batch *b, const struct dropout *drop);
struct head_grads { float *embed, *head, *norm; }; /* full fine-tuning: fp32 += ; head == embed when tied */
/* Losses into the batch; with `backward` also the gradient of the last layer's output into dx. */
void engine_head(struct engine *g, const struct batch *b, int backward, const struct head_grads *hg);
/* One layer's backward over all chunks; value/grad pages as engine_adapters, grads for full fine-tuning or NULL. */
void engine_backward_layer(struct engine *g, const struct batch *b, const struct dropout *drop, int64_t l, void *weights,
                           float *value, float *grad, const struct layer_grads *lg, int need_dx);
/* Full fine-tuning: gradient of the embedding look-up. */
void engine_embed_backward(struct engine *g, const struct batch *b, const struct head_grads *hg);
/* Forward and head over a batch without gradients; losses on the host afterwards. */
int engine_losses(struct engine *g, struct batch *b, struct err *e);
#endif
