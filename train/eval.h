/* train/eval.h - the loss of a model over a data set, and the share of tokens it would have got right.
 *
 *     struct eval_result r;
 *     eval_alone(&model, &lora, adapters, data, 8, 1, 0, &r, e);  in memory of its own; train_evaluate uses a run's
 */
#ifndef QLORA_TRAIN_EVAL_H
#define QLORA_TRAIN_EVAL_H
#include "datasets/datasets.h"
#include "model/engine.h"

enum { EVAL_PARTS_MAX = 16 };
struct eval_part { const char *name; double loss, accuracy; }; /* one of several data sets; its name is the data set's */
struct eval_result {
    double loss;               /* mean over batches of the mean over a batch's counted tokens, a batch weighing as its sequences */
    double accuracy;           /* mean over sequences of the share of counted tokens that are the likeliest; NaN: not asked for */
    double seconds;
    int64_t sequences, batches;
    int stopped;               /* by a signal: the numbers are of a part */
    int parts;                 /* data sets that are judged by themselves, too (data_parts); then the means are over sequences */
    struct eval_part part[EVAL_PARTS_MAX];
};
struct eval_room { /* what a pass through the layers may hold */
    struct engine *engine;
    struct batch *batch;
    struct batch_sequence *sequences; /* [max_seqs] */
    int64_t max_seqs, max_rows;
};
int eval_run(const struct eval_room *room, const struct dataset *d, int64_t batch, int accuracy, struct eval_result *r, struct err *e);
/* smoothing: of the labels, as in training; a room's engine has its own. */
int eval_alone(struct model *m, const struct lora *lora, struct pages *adapters, const struct dataset *d, int64_t batch, int accuracy,
               double smoothing, struct eval_result *r, struct err *e);
#endif
