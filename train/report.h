/* train/report.h - what a run prints and leaves for people and tools: trainer_log.jsonl, trainer_state.json,
 * train_results.json, all_results.json, training_loss.png, TensorBoard events, README.md, and the progress line.
 *
 * Every file a stranger's tool opens has the names and fields of LLaMA-Factory and transformers.
 */
#ifndef QLORA_TRAIN_REPORT_H
#define QLORA_TRAIN_REPORT_H
#include "base/err.h"
#include "base/str.h"
#include <stdint.h>

/* Of an evaluation of several data sets, one of them: eval_NAME_loss, eval_NAME_accuracy. NaN: not measured. */
enum { REPORT_NAME_MAX = 48 };
struct report_part { char name[REPORT_NAME_MAX]; double loss, accuracy; };

/* One logging event. Fields that are absent are NaN (numbers) or -1 (counts); a loss or norm that was not finite is given
 * as INFINITY, and is shown as inf on the terminal and as null in files. */
struct report_event {
    int64_t step, total_steps;
    double loss, eval_loss, learning_rate, grad_norm, epoch;
    double elapsed_seconds, remaining_seconds;
    double tokens_per_second;
    int64_t tokens_seen;
    double share;               /* of the progress line: the model's FLOPs of a second over the backend's rate; 0: not known */
    int64_t device_bytes;       /* likewise: memory taken on the device; 0: not known */
    /* of an evaluation: share of right tokens (NaN: not measured), seconds (0: nothing is said of speed), rates */
    double eval_accuracy, eval_runtime, eval_samples_per_second, eval_steps_per_second;
    const struct report_part *part; /* [parts], read by report_add, which keeps a copy */
    int parts;
};

struct report; /* the run's history and open log files */
struct report_config {
    const char *dir;            /* output_dir */
    int compat_old;             /* OLD trainer_log keys (learning_rate, nulls) instead of NEW (lr, absent) */
    int with_throughput;        /* throughput, total_tokens keys */
    int plot_loss;
    int no_events;              /* nothing for TensorBoard */
    int append;                 /* resumed run: history up to `from_step` is kept, later lines are cut */
    int64_t from_step;
    const char *state_dir;      /* resumed run: the checkpoint whose trainer_state.json holds the history; NULL =
                                 * DIR/checkpoint-FROM_STEP. Without such a file the history starts anew */
    /* for trainer_state.json */
    int64_t logging_steps, save_steps, eval_steps, train_batch_size, max_steps;
    double epochs;
};
struct report *report_open(const struct report_config *c, struct err *e);
/* Appends to trainer_log.jsonl and the events file, remembers it for the state and the plot, and prints the dictionary
 * line of transformers ({'loss': 1.2345, 'grad_norm': .., 'learning_rate': .., 'epoch': ..}) on standard output. */
int report_add(struct report *r, const struct report_event *ev, struct err *e);
/* The progress line on standard error, once a second: step, loss, learning rate, gradient norm, tokens/s, time left, share of the
 * card's rate, memory on the card. A narrow terminal cuts it behind the time left. `done`: the last one, always shown. */
void report_progress(const struct report_event *ev, int done);
/* The best evaluation so far, for trainer_state.json; checkpoint: the folder of its state, NULL if there is none. */
void report_best(struct report *r, double metric, const char *checkpoint);
/* trainer_state.json into any folder (output_dir, checkpoint-N). After report_finish it holds the results, too. */
int report_state(const struct report *r, const char *dir, int64_t step, double epoch, struct err *e);
/* The text of it, for who writes the file later. */
void report_state_text(const struct report *r, int64_t step, double epoch, struct str *s);
struct report_results {
    double epoch, train_loss, train_runtime, total_flos;
    int64_t samples, steps;         /* of training: seen in this run, over which runtime was measured */
    double eval_loss, eval_accuracy, eval_runtime; /* NaN: no evaluation; not measured */
    int64_t eval_samples, eval_steps;
};
/* train_results.json (and eval_results.json when eval_loss is not NaN), merged into all_results.json; prints the metric
 * tables; with plot_loss writes training_loss.png (and training_eval_loss.png, training_eval_accuracy.png). */
int report_finish(struct report *r, const struct report_results *res, struct err *e);
void report_close(struct report *r);

/* The named numbers of a results file, sorted by name. */
enum { REPORT_METRICS_MAX = 64 };
struct report_metrics {
    struct report_metric { char key[64]; double value; } m[REPORT_METRICS_MAX];
    int n;
};
void report_set(struct report_metrics *t, const char *key, double value); /* NaN: left out */
/* PREFIX_runtime and its rates. */
void report_set_speed(struct report_metrics *t, const char *prefix, double seconds, int64_t samples, int64_t steps);
/* SPLIT_results.json, merged into all_results.json, both in dir; prints the table "***** SPLIT metrics *****". */
int report_write(const struct report_metrics *t, const char *dir, const char *split, struct err *e);

/* A line chart as PNG (zlib + own rasteriser and font): raw curve in grey-blue, smoothed on top. */
int plot_png(const char *path, const char *title, const char *x_label, const char *y_label, const double *x,
             const double *y, int64_t n, struct err *e);
/* Dots joined by a line, in the order of x, over axes that begin at 0; hollow where hollow[i]. */
int plot_dots_png(const char *path, const char *title, const char *x_label, const char *y_label, const double *x, const double *y,
                  const int *hollow, int64_t n, struct err *e);
/* LLaMA-Factory's smoothing: exponential moving average, weight 1.8 * (sigmoid(0.05 n) - 0.5). */
void plot_smooth(const double *y, int64_t n, double *out);

/* TensorBoard: events.out.tfevents.* in dir (TFRecord of Event protobufs, masked CRC32C). Points after from_step in older
 * files of the folder are declared void, so that a resumed run shows one curve. */
struct tfevents;
struct tfevents *tfevents_open(const char *dir, int64_t from_step, struct err *e);
int tfevents_scalar(struct tfevents *t, const char *tag, int64_t step, double value, struct err *e);
void tfevents_close(struct tfevents *t);

/* README.md of the output folder (model card with the hyperparameters given as "name: value" lines). */
int report_card(const char *dir, const char *base_model, const char *method, const char *dataset,
                const char *hyperparameters, struct err *e);
#endif
