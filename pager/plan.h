/* pager/plan.h - decides, before anything is allocated, where every page lives and how large a chunk is.
 *
 * Pure arithmetic: the caller's cost function says what a choice takes, item by item; the plan is the first choice of a
 * fixed ladder that fits the budget, from fast to small. The run then allocates exactly what the items say.
 *
 *   1. everything on the device; as many layers as fit keep their activations, the others recompute
 *   2. optimizer state in host memory (paged optimizers)     copied once each way per step
 *   3. layer inputs in host memory                           copied out in forward, in again in backward
 *   4. adapters and their gradients in host memory
 *   5. smaller chunks
 *   6. layer weights streamed from host memory, as many as fit staying on the device
 */
#ifndef QLORA_PAGER_PLAN_H
#define QLORA_PAGER_PLAN_H
#include "base/err.h"
#include "base/str.h"
#include <stdint.h>

struct plan_choice {
    int64_t rows;            /* tokens of a chunk */
    int64_t keep_layers;
    int64_t resident_layers;
    int acts_on_host, state_on_host, values_on_host;
    int join;                /* a layer's operands are made once per visit */
};
struct plan_item { const char *name; int64_t device, host; };
enum { PLAN_ITEMS = 12 };
/* Fills items (at most PLAN_ITEMS) for a choice; returns their number. */
typedef int plan_cost(void *context, const struct plan_choice *c, struct plan_item *items);

struct plan_request {
    int64_t budget;          /* device bytes */
    int64_t layers;
    int64_t longest;         /* longest sequence in rows: the smallest chunk */
    int64_t prefer_rows;     /* chunk size beyond which nothing is gained */
    int64_t step_rows;       /* largest batch */
    int may_page_state;      /* paged optimizer: its state may live in host memory */
    int training, keep_all;  /* keep_all: recomputation is not allowed */
    int64_t keep_budget;     /* device bytes that kept activations may use at most */
};
struct plan {
    struct plan_choice choice;
    struct plan_item item[PLAN_ITEMS];
    int items;
    int64_t device, host;
};
int plan_make(const struct plan_request *r, plan_cost *cost, void *context, struct plan *p, struct err *e);
/* The plan as lines of text: the choice in words and a table of items. */
void plan_print(const struct plan *p, const struct plan_request *r, struct str *out);
#endif
