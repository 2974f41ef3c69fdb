/* train/schedule.h - the learning rate's factor as a function of finished updates, as transformers computes it.
 *
 *     struct schedule_curve c;
 *     if (schedule_make(&c, options, total, e)) ...;      lr_scheduler_type, lr_scheduler_kwargs, warmup
 *     lr = learning_rate * schedule_factor(&c, step);
 *
 * `step` counts finished updates: 0 for the first one, whose rate is therefore 0 in a warmed-up run. Logs carry the rate
 * of the next update, factor(step + 1).
 */
#ifndef QLORA_TRAIN_SCHEDULE_H
#define QLORA_TRAIN_SCHEDULE_H
#include "train/train.h"

/* What lr_scheduler_kwargs may hold. Which type takes which: schedule.c. */
struct schedule_curve {
    enum schedule kind;
    int64_t warmup, total;
    double cycles;           /* num_cycles: of the cosine's full waves; of restarts */
    double power, end;       /* polynomial: exponent, last factor (lr_end / learning_rate) */
    double timescale;        /* inverse_sqrt */
    double floor;            /* min_lr / learning_rate, min_lr_rate, min_lr_ratio */
    int64_t stable, decay;   /* warmup_stable_decay: updates at the top, updates from there to the floor */
    int warm_form, decay_form; /* its warmup_type, decay_type: 0 linear, 1 cosine, 2 1-sqrt */
    /* reduce_lr_on_plateau: what a reduction multiplies by, the least reduction that is made (eps / learning_rate), the least
     * gain that counts and whether it is absolute, whether more is better, evaluations without one that are borne, evaluations
     * after a reduction that are not counted */
    double cut, eps, threshold;
    int absolute, more;
    int64_t patience, cooldown;
};

/* What reduce_lr_on_plateau has seen: evaluations decide, in place of steps. All zero at the start. */
struct plateau {
    double best, factor;     /* best metric so far; of the learning rate, 0 = 1: never reduced */
    int64_t seen, bad, cooling; /* evaluations; those without a gain in a row; those still to be passed over */
};

/* Warmup updates of a run of `total`: steps >= 1 is a count, 0 < steps < 1 a share of the run, and with steps = 0 the
 * ratio is that share. Shares round up. */
int64_t schedule_warmup(double steps, double ratio, int64_t total);
/* The curve of a run of `total` updates. -1 when lr_scheduler_kwargs does not suit the type. */
int schedule_make(struct schedule_curve *c, const struct train_options *o, int64_t total, struct err *e);
/* An evaluation of reduce_lr_on_plateau (PyTorch's ReduceLROnPlateau.step). 1: the rate was reduced. */
int schedule_judge(const struct schedule_curve *c, struct plateau *p, double metric);
double schedule_factor(const struct schedule_curve *c, int64_t step);
#endif
