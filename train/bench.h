/* train/bench.h - a run of random weights and random tokens, timed: the plan, the engine and the step of training, no files.
 *
 * The weights are made in the form they are held in (model/random.c), so that 51B needs no 100 GB on disk; every step is full of
 * sequences of cutoff_len, as packing makes them. Speed depends on neither.
 */
#ifndef QLORA_TRAIN_BENCH_H
#define QLORA_TRAIN_BENCH_H
#include "train/estimate.h"

struct bench_result {
    struct estimate predicted;     /* the plan that was run, and what it promises */
    int64_t steps;                 /* timed ones */
    double step_seconds;           /* the median of them */
    double tokens_per_second;
    double flops;                  /* FLOP/s of all ops: what is recomputed counts, too */
    int64_t device_bytes;          /* taken from the card, by its own count; 0: no card */
    int64_t host_bytes;            /* resident set of the process */
    double load_seconds;           /* to make the weights */
    double loss;                   /* of the last step */
};
/* options: as for train_estimate; max_steps: timed ones; 0: as many as take a few seconds.
 * ERR_RUN: this machine cannot, and where the plan fits, r->predicted is filled. */
int train_bench(const struct estimate_options *o, struct bench_result *r, struct err *e);
/* FLOP/s of products of 8192 x 8192 x 8192 (CPU: 1024) in the backend's activation type, kept up for `seconds`. */
int bench_ceiling(const char *backend, double seconds, double *flops, struct err *e);
#endif
