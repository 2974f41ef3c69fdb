/* train/schedule.h - the learning rate's factor as a function of finished updates, as transformers computes it.
 *
 *     lr = learning_rate * schedule_factor(LR_COSINE, step, schedule_warmup(0, 0.03, total), total);
 *
 * `step` counts finished updates: 0 for the first one, whose rate is therefore 0 in a warmed-up run. Logs carry the rate
 * of the next update, factor(step + 1).
 */
#ifndef QLORA_TRAIN_SCHEDULE_H
#define QLORA_TRAIN_SCHEDULE_H
#include "train/train.h"

/* Warmup updates of a run of `total`: steps >= 1 is a count, 0 < steps < 1 a share of the run, and with steps = 0 the
 * ratio is that share. Shares round up. */
int64_t schedule_warmup(double steps, double ratio, int64_t total);
double schedule_factor(enum schedule kind, int64_t step, int64_t warmup, int64_t total);
#endif
