/* train/bench.h - a run of random weights and random tokens, timed: the plan, the engine and the step of training, no files.
 *
 * The weights are made in the form they are held in (model/random.c), so that 51B needs no 100 GB on disk; every step is full of
 * sequences of cutoff_len, as packing makes them. Speed depends on neither.
 */
#ifndef QLORA_TRAIN_BENCH_H
#define QLORA_TRAIN_BENCH_H
#include "base/sys.h"
#include "train/estimate.h"

struct bench_result {
    struct estimate predicted;     /* the plan that was run, and what it promises */
    int64_t warm_steps, steps;     /* not timed, because first uses are slow; timed */
    double step_seconds;           /* the median of the timed ones */
    double tokens_per_second, slowest, fastest; /* of that step, and of the extremes */
    double flops;                  /* FLOP/s of all ops: what is recomputed counts, too */
    double updating, waiting;      /* seconds of a step in which the processor updated its layers, and the card's pass waited for that */
    int64_t device_bytes;          /* taken from the card behind its context, by the card's own count; 0: no card */
    struct sys_memory host;        /* as the kernel counts the process behind the last step */
    double load_seconds;           /* to make the weights */
    double loss;                   /* of the last step */
};
/* options: as for train_estimate; max_steps: timed ones; 0: as many as take a few seconds. memory: the plan that is run, within the
 * card and --vram. ERR_RUN: this machine cannot, and where the plan fits, r->predicted is filled. */
int train_bench(const struct estimate_options *o, struct bench_result *r, struct err *e);
/* Bytes that the process takes from the card before any plan: context and code. To be asked before anything else touches it, for
 * it stays. 0: no card; -1: nobody says. */
int bench_context(const char *backend, int64_t *bytes, struct err *e);
/* FLOP/s of products of 8192 x 8192 x 8192 (CPU: 1024) in the backend's activation type, kept up for `seconds`. */
int bench_ceiling(const char *backend, double seconds, double *flops, struct err *e);
#endif
