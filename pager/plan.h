/* pager/plan.h - decides, before anything is allocated, where every page lives and how large a chunk is.
 *
 * Pure arithmetic. The caller's cost function says what a choice takes, item by item: memory, and bytes copied in a step. The
 * plan is the choice that fits the budget with the shortest step by a model of time (plan.c). What is free (streaming weights
 * behind long steps) is so used before what is not (small chunks, recomputation). The run allocates exactly what the items say.
 */
#ifndef QLORA_PAGER_PLAN_H
#define QLORA_PAGER_PLAN_H
#include "base/err.h"
#include "base/str.h"
#include <stdint.h>

struct plan_choice {
    int64_t rows;            /* tokens that go through a product at once: a chunk, or a window of a longer sequence */
    int64_t keep_layers;
    int64_t resident_layers;
    int64_t disk_layers;     /* of the others so many live in a file */
    int64_t resident_state;  /* groups whose optimizer state stays on the device where the others' is on the host */
    int64_t by_host;         /* layers that the processor updates */
    int acts_on_host, state_on_host, values_on_host, outer_on_host;
    int join;                /* a layer's operands are made once per visit */
};
struct plan_item {
    const char *name;
    int64_t device, host, disk; /* bytes */
    double in, out;          /* bytes copied to and from the device in a step */
    double alone;            /* of which nothing is computed meanwhile */
    double read;             /* bytes read from the file in a step */
    double update_in, update_out; /* of in and out, what the forward pass waits for: the update goes before it, layer by layer */
    double by_host;          /* bytes that the processor moves in its own memory for its part of the update */
};
enum { PLAN_ITEMS = 20 };
/* Fills items (at most PLAN_ITEMS) for a choice; returns their number. */
typedef int plan_cost(void *context, const struct plan_choice *c, struct plan_item *items);

/* What a step computes: FLOPs of matrix products and of attention, bytes that all else moves through the device's memory. */
struct plan_work { double products, attention, bytes; };

/* Ways to need less of the device: layer inputs, optimizer state, adapters with their gradients, weights, embedding and head at home
 * on the host; operands of products made for each call instead of once per visit. */
enum plan_way { PLAN_ACTS = 1, PLAN_STATE = 2, PLAN_VALUES = 4, PLAN_WEIGHTS = 8, PLAN_APART = 16, PLAN_OUTER = 32, PLAN_WAYS = 64 };

struct plan_request {
    int64_t budget;          /* device bytes */
    int64_t host_budget;     /* host bytes; 0: not looked at */
    int files;               /* weights that the host has no room for may live in a file */
    int64_t keep_budget;     /* device bytes that kept activations may use at most */
    unsigned may, must;      /* ways that are open, and those that are to be taken */
    int64_t layers;
    int64_t visited;         /* layers that backward goes through; 0: all */
    int64_t state_groups;    /* groups that optimizer state may stay on the device by; 0: all or nothing */
    int64_t host_layers;     /* layers that the processor may update */
    int64_t longest;         /* longest sequence in rows; with fewer rows it goes through in windows, some work being done twice */
    int64_t prefer_rows;     /* chunk size beyond which nothing is gained */
    int64_t most_rows;       /* chunk size asked for, 0: any */
    int64_t least_rows;      /* none is to be smaller */
    int64_t step_rows;       /* largest batch */
    int training, keep_all;  /* keep_all: recomputation is not allowed */
    int joins;               /* the backend gains from joint operands */
    struct plan_work forward, again, backward, rest; /* of a step: all layers forward; what backward recomputes; backward; head
                                                      * and update */
    double unpacked;         /* bytes of all layers' weights as operands of products; 0: nothing is to unpack */
    double tail;             /* rows whose time the last, partly filled waves of a chunk's products cost */
    double visit;            /* seconds the host takes to queue a layer's ops for one chunk and pass */
    double flops, bandwidth, link; /* rates: FLOP/s of products, bytes/s of the device's memory and of copies each way */
    double disk;             /* bytes/s that the file is read at */
    double host_bandwidth;   /* bytes/s that the processor's update moves */
    const char *advice;      /* flags that would fit more, for the message: "A lower --cutoff_len" */
};
struct plan {
    struct plan_choice choice;
    struct plan_item item[PLAN_ITEMS];
    int items;
    int64_t device, host, disk;
    double seconds;          /* of a step, by the model */
};
/* -1 when nothing fits: p then holds the plan that needs least. */
int plan_make(const struct plan_request *r, plan_cost *cost, void *context, struct plan *p, struct err *e);
/* Seconds of a step under a choice whose items are filled. */
double plan_seconds(const struct plan_request *r, const struct plan *p);
/* The plan as lines of text: the choice in words and a table of items. */
void plan_print(const struct plan *p, const struct plan_request *r, struct str *out);
#endif
