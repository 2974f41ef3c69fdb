/* train/train_internal.h - one run's objects, shared by the files of train/. Owned by train_run (train/run.c). */
#ifndef QLORA_TRAIN_INTERNAL_H
#define QLORA_TRAIN_INTERNAL_H
#include "datasets/datasets.h"
#include "model/engine.h"
#include "pager/plan.h"
#include "tokenizer/tokenizer.h"
#include "train/eval.h"
#include "train/params.h"
#include "train/report.h"
#include "train/schedule.h"
#include "train/train.h"

struct progress { /* what a resumed run must know beside weights and moments; stored as facts of a checkpoint */
    int64_t step;             /* finished updates, applied or skipped */
    int64_t tokens;           /* rows trained on so far */
    int64_t updates;          /* applied ones: Adam's t */
    double loss_sum;          /* of all steps */
    double window_sum;        /* of the steps since the last log line */
    int64_t window_steps;
    double window_norm;       /* gradient norm of the last step */
    double seconds;           /* of training so far */
    int64_t nonfinite, nonfinite_run; /* skipped steps in all, and in a row */
    int64_t evaluated;        /* step of the last evaluation, -1: none */
    double best;              /* metric of the best evaluation, NaN: none */
    int64_t best_step, worse; /* its step; evaluations since then */
    struct plateau plateau;
};

struct row_counts {
    int32_t *rows;      /* of each sequence of a data set */
    int32_t *documents; /* that each is packed of; NULL: one */
};

struct trainer {
    const struct train_options *o;
    struct backend *be;
    struct tok *tok;
    struct dataset *train, *eval; /* streaming: train holds the first sequences alone, to look at */
    struct data_stream *stream;   /* or NULL */
    int64_t streamed;             /* steps that were taken from it */
    struct sampler *sampler;
    int64_t total_steps, log_every, save_every, eval_every; /* 0 = never */
    struct schedule_curve curve; /* of the learning rate */
    struct model model;
    struct model_how how;
    int stored_bits;          /* 0, 4, 8: the checkpoint's projections */
    int copies;               /* weights that are trained are bf16 copies of masters where activations are fp32, too: for tests */
    struct lora lora;
    struct params params;
    struct engine engine;
    struct batch batch;
    struct batch_sequence *sequences; /* [max_seqs] of the step */
    int64_t max_seqs, max_rows, longest; /* of any step: sequences (documents), rows; longest sequence in rows */
    struct row_counts counts, eval_counts;
    double all_rows;          /* of all steps */
    struct data_sample sample; /* dry run: the part of the data that stands for all */
    double reach, labelled;   /* length of a row's sequence on average; share of tokens that are labelled */
    int64_t slice;             /* batch.h's, of whole weights' gradients; 0 for adapters and on a CPU */
    int64_t chunks_at, chunks; /* most chunks of any step when a chunk holds chunks_at rows */
    struct plan_request request;
    struct plan plan;
    char advice[200];         /* of the request */
    int64_t host_bytes;       /* host memory that there is; 0: not looked at */
    int64_t free_before;      /* device bytes free when the backend was opened */
    struct report *report;
    int64_t good_step;        /* of the last checkpoint that is on the disk whole, 0: none */
    struct progress at;
    struct saving *saving;    /* a checkpoint that is being written, or NULL */
    char data_hash[41], run_id[33];
    struct eval_result result; /* of the last evaluation; loss NaN: none yet */
};

/* The step of the design (train/step.c). */
struct step_result { double loss, grad_norm, epoch; int64_t rows; int finite; };
int train_step(struct trainer *t, int64_t step, struct step_result *r, struct err *e);
/* The part of it behind the data: t->sequences[0 .. n) are the batch. *r begins as 0. */
int train_update(struct trainer *t, int64_t step, int64_t n, struct step_result *r, struct err *e);

/* Evaluation through the run's own engine and memory (train/eval.c). */
int train_evaluate(struct trainer *t, struct eval_result *r, struct err *e);

/* train/best.c: the best evaluation. */
int best_wanted(const struct train_options *o);
double best_metric(const struct trainer *t);  /* of t->result */
int best_note(struct trainer *t);             /* judges t->result; 1: the best so far */
void best_report(const struct trainer *t, int64_t saving); /* to trainer_state.json; `saving`: the step whose checkpoint is being written */
int best_given_up(const struct trainer *t);   /* early stopping */
int best_restore(struct trainer *t, struct err *e); /* load_best_model_at_end */

/* train/save.c: writing checkpoint-N folders. Begins one, and may return before it is on the disk. */
int state_save(struct trainer *t, double epoch, struct err *e);
/* The save under way has ended, or with `wait` will have: its error, if it failed. At every step boundary; waiting before checkpoints
 * are read and before the run ends. */
int state_saved(struct trainer *t, int wait, struct err *e);
/* What the run leaves at its end: adapter or model, and tokenizer files, into `dir`. */
int state_write_weights(struct trainer *t, const char *dir, struct err *e);

/* train/state.c: finding and loading them. */
/* Steps of the checkpoint-N folders in dir, ascending; sys_free. */
int state_list(const char *dir, int64_t **steps, int *n, struct err *e);
/* Finds what to resume from: *dir empty = start anew. Verifies, names what it skipped. */
int state_find(struct trainer *t, char *dir, size_t size, struct err *e);
int state_load(struct trainer *t, const char *dir, struct err *e);
/* The trained weights of a checkpoint alone. */
int state_load_weights(struct trainer *t, const char *dir, struct err *e);

/* The learning rate of an update. */
static inline double rate_of(const struct trainer *t, int64_t step) {
    const double plateau = t->curve.kind == LR_PLATEAU && t->at.plateau.factor > 0 ? t->at.plateau.factor : 1;
    return t->o->learning_rate * schedule_factor(&t->curve, step) * plateau;
}

/* Epochs that are done after a step as it is logged; of a stream, whose end nobody knows, the share of all steps. */
static inline double epoch_after(const struct trainer *t, int64_t step, const struct sampler_step *s) {
    return t->stream ? (double)(step + 1) / (double)t->total_steps : s->epoch;
}

/* train/setup.c: everything up to the first step. */
int setup_data(struct trainer *t, struct err *e);
void setup_shape(struct trainer *t);                 /* in place of data: every step is full of sequences of cutoff_len */
/* Headers, adapter shapes, what the plan is asked; reads no weights, allocates nothing on the device. config: in place of the
 * headers, or NULL. */
int setup_model(struct trainer *t, const struct model_config *config, struct err *e);
void setup_host(struct trainer *t, int here);        /* the host memory that a plan may use; here: on this machine */
int setup_plan(struct trainer *t, struct err *e);
int setup_memory(struct trainer *t, struct err *e);  /* allocates what the plan says, loads weights */
int setup_run(struct trainer *t, model_reader *read, void *context, struct err *e); /* the part of it behind the weights; masters
                                                                                     * are read so */
void setup_close(struct trainer *t);
/* train/rates.c */
double rates_known_update(int threads);              /* bytes/s of AdamW on so many; 0: on a machine that is not here */
/* Measures what the plan knew of link, processor and disk, plans anew where that is far off, and predicts by what it measured. */
int rates_measure(struct trainer *t, struct err *e);
/* Bytes of a checkpoint to resume from, and of what the run leaves at its end. */
int64_t setup_checkpoint_bytes(const struct trainer *t, int64_t *result);
void setup_show_example(const struct trainer *t);
int setup_is_lora(const struct trainer *t);
#endif
