/* train/estimate.h - what a run takes before it is started: memory, time, disk space. From the plan that the run itself makes;
 * headers are read at most, and nothing is loaded or allocated.
 *
 *     struct estimate x;
 *     train_estimate(&(struct estimate_options){.train = &options, .config = &config, .card = "l40s"}, &x, e);
 *     estimate_print(&x, &text);
 */
#ifndef QLORA_TRAIN_ESTIMATE_H
#define QLORA_TRAIN_ESTIMATE_H
#include "model/config.h"
#include "pager/plan.h"
#include "train/train.h"

enum estimate_memory {
    ESTIMATE_CARD,           /* what the card has, or --vram */
    ESTIMATE_RESIDENT,       /* all weights on the card, adapters and optimizer state if there is room, layer inputs in host
                              * memory, nothing kept */
    ESTIMATE_LEAST           /* the least that does */
};
struct estimate_options {
    const struct train_options *train;
    const struct model_config *config; /* NULL: that of train->model_name_or_path */
    const char *card;        /* a name of backend/card.h; NULL: the backend that the run would open */
    enum estimate_memory memory;
    int any_host;            /* host memory is not looked at */
};
struct estimate {
    int about;                 /* steps, tokens and time follow from a part of the data */
    struct plan_request request;
    struct plan plan;
    char machine[160];
    double tokens_per_second;
    int64_t steps, sequences; /* of the run; 0 where they follow from data that was not read */
    double tokens;
    int64_t result_bytes, checkpoint_bytes, checkpoints, disk_free; /* disk_free < 0: not known */
};
/* With the run's data set if that can be read, else with steps that are full of sequences of cutoff_len, as packing makes them. */
int train_estimate(const struct estimate_options *o, struct estimate *x, struct err *e);

/* The same of a run that is set up. */
struct trainer;
/* The plan of a choice of memory. any_card: larger than the card that is there, or smaller than it must be; else one that does not fit
 * is an error, as any other. */
int estimate_plan(struct trainer *t, enum estimate_memory memory, int any_card, struct err *e);
void estimate_of(const struct trainer *t, struct estimate *x);
void estimate_print(const struct estimate *x, struct str *out);
#endif
