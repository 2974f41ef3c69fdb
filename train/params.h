/* train/params.h - what a run trains: its tensors, gradients and optimizer state, in pages of one layer each.
 *
 * Group g is layer g; with full fine-tuning group L holds embedding, head and last norm. value, grad and state pages of
 * a group use the same offsets: value and grad are fp32 arrays of the same layout, state holds what the optimizer needs.
 */
#ifndef QLORA_TRAIN_PARAMS_H
#define QLORA_TRAIN_PARAMS_H
#include "lora/lora.h"
#include "model/engine.h"
#include "model/model.h"
#include "pager/pager.h"

struct param {
    char name[128];             /* as files call it */
    int64_t group, offset, n;   /* offset in floats inside the group's value and grad pages */
    int decay;                  /* weight decay applies */
    double lr_ratio;            /* of its learning rate to the run's */
    int small_state;            /* 8-bit state; otherwise fp32 */
    size_t m, v, m_absmax, v_absmax; /* byte offsets in the group's state page */
};
struct params {
    struct backend *be;
    struct model *m;
    struct lora *lora;          /* adapters, or NULL: every weight of the model */
    int64_t count, groups, total; /* tensors, groups, trainable numbers */
    struct param *p;
    int64_t *first;             /* [groups + 1] into p */
    size_t *value_bytes, *state_bytes; /* [groups] */
    struct pages *value;        /* adapters: own pages. Full: NULL, values are the model's pages */
    struct pages *grad, *state;
    double *norms;              /* AT_HOST [count] squared gradient norms */
    struct adam_settings { int64_t t; double beta1, beta2, eps, lr, weight_decay, grad_scale; } due; /* of the update under way */
    int64_t done;               /* groups it has reached; == groups: nothing is due */
};
/* Shapes only; no pages yet. bits8: blockwise 8-bit state for tensors of 4096 elements and more. */
int params_describe(struct params *q, struct model *m, struct lora *lora, int bits8, struct err *e);
/* The B matrices of adapters learn `ratio` times as fast as A.                            Hayou et al. 2024 (LoRA+) */
void params_loraplus(struct params *q, double ratio);
void params_pages(const struct params *q, int values_on_host, int state_on_host, struct pages_config *value, struct pages_config *grad, struct pages_config *state);
/* Allocates and clears; adapters' values are copied in from lora->data. */
int params_open(struct params *q, int values_on_host, int state_on_host, struct err *e);
void params_close(struct params *q);

float *params_value_get(struct params *q, int64_t group, enum page_mode mode);
void params_value_put(struct params *q, int64_t group, int dirty);
void params_want(struct params *q, int64_t group, int state);

/* Queues the squared norms of a group's gradients into q->norms. */
void params_norms(struct params *q, int64_t group, const float *grad);
/* An update is noted and carried out group by group when the next forward pass comes by (params_reach), so that the optimizer
 * state travels behind that pass's compute. Reading values or state carries out what is left. */
void params_update(struct params *q, const struct adam_settings *s);
/* Before layer l (-1: the embedding) is read: its group is brought up to date. */
void params_reach(struct params *q, int64_t l);
void params_settle(struct params *q);
/* Gradient views of a layer page in full fine-tuning. */
void params_layer_grads(const struct params *q, float *grad, struct layer_grads *g);

/* Optimizer state and, in full fine-tuning, values as they are between two steps: saving from a copy needs nothing else of the run,
 * so that it may go on meanwhile. */
struct params_copy { char *block; size_t *state, *value; }; /* [groups] offsets in the block; value NULL with adapters */
int64_t params_copy_bytes(const struct params *q);
int params_copy_take(struct params *q, struct params_copy *c, struct err *e);
void params_copy_free(struct params_copy *c);

/* Adapter values back to lora->data; optimizer state (and full values) to and from a file of a training checkpoint. `from`: a copy,
 * or NULL: what the pages hold now. */
int params_fetch(struct params *q, struct err *e);
int params_save_state(struct params *q, const struct params_copy *from, const char *dir, int64_t step, struct err *e);
int params_load_state(struct params *q, const char *dir, struct err *e);
/* Exact fp32 values of full fine-tuning, for resuming (master weights). */
int params_save_values(struct params *q, const struct params_copy *from, const char *dir, struct err *e);
int params_load_values(struct params *q, const char *dir, struct err *e);
#endif
