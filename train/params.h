/* train/params.h - what a run trains: its tensors, gradients and optimizer state, in pages.
 *
 * With adapters group g is layer g: pages of values, gradients and state. With weights of the model the first groups are the
 * layers that are trained; embedding, head and last norm follow, cut into groups no larger than a layer (gradients of those
 * stay on the device in one block). Where the model's pages hold bf16 copies, the fp32 masters lie in the state pages, before
 * the moments, and every update refreshes the copies; else the model's pages are the values.
 */
#ifndef QLORA_TRAIN_PARAMS_H
#define QLORA_TRAIN_PARAMS_H
#include "lora/lora.h"
#include "model/engine.h"
#include "model/model.h"
#include "pager/pager.h"

struct param {                  /* a tensor, or a piece of one: pieces follow each other */
    char name[128];             /* as files call it */
    int64_t group, offset, n;   /* offset in floats inside the group's gradients (and values, of adapters) */
    int64_t layer;              /* of the model's tensors: layer, or -1; enum layer_tensor or outer_tensor */
    int which;
    int64_t at, whole;          /* element of the tensor with which the piece begins; elements of the tensor */
    int decay;                  /* weight decay applies */
    int fast;                   /* LoRA+ learns it faster: B, and what has one dimension */
    double lr_ratio;            /* of its learning rate to the run's */
    int small_state;            /* 8-bit state; otherwise fp32 */
    int half, has_master;       /* the value page holds bf16; it is a copy of the master */
    size_t place, master;       /* byte offsets: of the value in its page, of the master in the group's state page */
    size_t m, v, m_absmax, v_absmax; /* byte offsets in the group's state page */
};
struct params_how {
    int bits8;                  /* blockwise 8-bit state for tensors of 4096 elements and more */
    int pure;                   /* values are kept in bf16, without masters */
    int64_t first_layer, layers; /* trained: so many layers from the first; */
    unsigned tensors, outer;    /* of each those of enum layer_tensor, and those of enum outer_tensor: bits */
};
struct params_place {           /* what lives on the device and who updates it */
    int64_t values, state;      /* groups whose gradients (and values, of adapters), and whose state are at home on the device;
                                 * the others' pass through slots */
    int64_t layers;             /* of the model's pages (model_how) */
    int64_t by_host;            /* layers that the processor updates: spread evenly over those of which nothing is at home on the device */
};
struct host_update;
struct params {
    struct backend *be, *host;  /* host: the processor's, or NULL: it updates nothing */
    struct host_update *aside;  /* its thread */
    struct model *m;
    struct lora *lora;          /* adapters, or NULL: weights of the model */
    struct params_how how;
    struct params_place where;
    int64_t count, groups, total; /* tensors and pieces, groups, trainable numbers */
    int64_t layers;             /* the first so many groups are layers, from how.first_layer on */
    struct param *p;
    int64_t *first;             /* [groups + 1] into p */
    size_t *value_bytes, *grad_bytes, *state_bytes; /* [groups]; of values (gradients) in fp32 and of gradients as a page holds
                                                     * them, 0 behind the layers */
    int half_grads;             /* in bf16, where the weights are: summed in fp32 and then rounded */
    float *sums;                /* a layer's, fp32; NULL: in its page */
    size_t outer_bytes;         /* of the gradients of embedding, head and norm */
    struct pages *value;        /* adapters: own pages, else NULL */
    struct pages *grad, *outer_grad, *state;
    double *norms;              /* AT_HOST [count] squared gradient norms; a tensor's stands with its first piece, the others have 0 */
    struct adam_settings { int64_t t; double beta1, beta2, eps, lr, weight_decay, grad_scale; } due; /* of the update under way */
    int64_t done;               /* groups it has reached; == groups: nothing is due */
};
/* Everything that the model has. */
struct params_how params_all(const struct model *m, int bits8);
/* Shapes only; no pages yet. lora: adapters of which all is trained, with the whole weights of its configuration, or NULL. */
int params_describe(struct params *q, struct model *m, struct lora *lora, const struct params_how *how, struct err *e);
/* The B matrices of adapters, and magnitudes, learn `ratio` times as fast as A.           Hayou et al. 2024 (LoRA+) */
void params_loraplus(struct params *q, double ratio);
/* Bytes that a step copies, and what for. update_*: of all those to and from the device, what an update moves, behind the next
 * forward pass; by_host: bytes that the processor reads and writes for its part. */
struct params_moves { double grad_out, update_grad_in, update_state_in, update_state_out, update_weights_in, update_weights_out, by_host; };
struct params_pages { struct pages_config value, grad, outer_grad, state; size_t sums; };
void params_pages(const struct params *q, const struct params_place *w, struct params_pages *p);
void params_moves(const struct params *q, const struct params_place *w, struct params_moves *v);
/* Whether the processor updates a group. */
int params_by_host(const struct params *q, const struct params_place *w, int64_t group);
/* Allocates and clears; adapters' values are copied in from lora->data. Masters begin with params_start. */
int params_open(struct params *q, const struct params_place *w, struct err *e);
/* Masters from a checkpoint or from the pages. Nothing to do where there are none. */
int params_start(struct params *q, model_reader *read, void *context, struct err *e);
void params_close(struct params *q);

/* The group of a layer of the model, -1 if nothing of it is trained. */
int64_t params_group(const struct params *q, int64_t layer);
/* Backward goes down to this layer; == L: to none. below: and through it, to the embedding or to what lies before its attention. */
int64_t params_lowest(const struct params *q, int *below);
/* DoRA at its start: the magnitudes become the norms of the model's rows, as its pages hold them. B is zero. */
void params_magnitudes(struct params *q);

/* Where a layer's gradients are summed, and zeros there: the page itself, or memory of its own. */
float *params_sums(struct params *q, int64_t group, void *page);
/* They are whole: queues their squared norms into q->norms, and what the page holds of them. */
void params_norms(struct params *q, int64_t group, const float *sums, void *page);
/* The squared norms of the gradients of embedding, head and norm. */
void params_outer_norms(struct params *q);
/* The latter gradients, cleared. Returns 0 if none of them is trained. */
int params_outer_grads(struct params *q, struct head_grads *g);
/* An update is noted and carried out group by group when the next forward pass comes by (params_reach), so that the optimizer
 * state travels behind that pass's compute; the processor begins with its groups at once. Reading values or state carries out what
 * is left. (train/update.c) */
void params_update(struct params *q, const struct adam_settings *s);
/* All of the backward pass is queued, and an update will follow: its first pages come meanwhile. */
void params_expect(struct params *q);
/* Before layer l (-1: the embedding) is read: its group is brought up to date. */
void params_reach(struct params *q, int64_t l);
/* That update will bring the layer's page, or change it in host memory: nothing of it is to be fetched before. */
int params_brings(struct params *q, int64_t l);
void params_settle(struct params *q);
/* Since the run began: layers that the processor has updated, seconds that it took, and that the pass waited for it. */
struct update_times { int64_t layers; double worked, waited; };
struct update_times params_times(struct params *q);
/* Views of a group's sums; what is not trained is absent. */
void params_layer_grads(const struct params *q, int64_t group, float *sums, struct layer_grads *g);

/* Optimizer state and trained weights of the model as they are between two steps: saving from a copy needs nothing else of the
 * run, so that it may go on meanwhile. */
struct params_copy { char *block; size_t *state, *value; }; /* offsets in the block: [groups], with masters, and [count] of
                                                             * weights that have none; value NULL with adapters */
int64_t params_copy_bytes(const struct params *q);
int params_copy_take(struct params *q, struct params_copy *c, struct err *e);
void params_copy_free(struct params_copy *c);

/* Adapter values back to lora->data; optimizer state (and weights of the model) to and from a file of a training checkpoint. `from`:
 * a copy, or NULL: what the pages hold now. All of these, and params_read, refuse a trained value or moment that is not finite:
 * ERR_NONFINITE on the way out, ERR_INPUT on the way in. */
int params_fetch(struct params *q, struct err *e);
int params_save_state(struct params *q, const struct params_copy *from, const char *dir, int64_t step, struct err *e);
int params_load_state(struct params *q, const char *dir, struct err *e);
/* The exact values of trained weights, for resuming: fp32, or bf16 where that is what they are. */
int params_save_values(struct params *q, const struct params_copy *from, const char *dir, struct err *e);
int params_load_values(struct params *q, const char *dir, struct err *e);
/* A model_reader: trained tensors as they are, others as the pages hold them, or from `frozen` where that is less. */
struct params_reading { struct params *q; const struct ckpt *frozen; };
model_reader params_read;
#endif
