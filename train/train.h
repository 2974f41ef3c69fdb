/* train/train.h - a training run from options to adapter. train/step.c is the step of the design on one screen. */
#ifndef QLORA_TRAIN_H
#define QLORA_TRAIN_H
#include "base/err.h"
#include "datasets/datasets.h"
#include "lora/lora.h"
#include <stdint.h>

enum finetuning { FT_LORA, FT_FULL, FT_FREEZE };
enum optimizer { OPT_ADAMW, OPT_ADAMW_8BIT };
enum schedule { LR_LINEAR, LR_COSINE, LR_CONSTANT, LR_CONSTANT_WARMUP, LR_RESTARTS, LR_POLYNOMIAL, LR_INVERSE_SQRT, LR_COSINE_MIN, LR_STABLE_DECAY, LR_PLATEAU };
enum interval { EVERY_NO, EVERY_STEPS, EVERY_EPOCH, EVERY_BEST /* new best evaluation: saving only */ };

struct train_options { /* one field per flag; defaults are in the flag table (cli/flags.c) */
    /* model */
    const char *model_name_or_path, *adapter_name_or_path;
    const char *merged_adapters; /* comma list: become part of the weights before training begins */
    enum finetuning finetuning;
    int quantization_bit;       /* 0, 4, 8: quantise on load */
    int filter_4bit;            /* the localized filter in 4 bits */
    enum q4_type quantization_type;
    int double_quantization;
    int pure_bf16;              /* trained values are kept in bf16, without fp32 masters */
    int64_t freeze_layers;      /* freeze: so many layers from the end are trained, negative: from the beginning */
    const char *freeze_modules, *freeze_extra; /* comma lists: modules of these layers, others of the model or NULL */
    struct lora_config lora;
    /* data */
    struct data_config data;
    int streaming;              /* data are read while the run goes on */
    int disable_shuffling;
    /* run */
    const char *output_dir;
    int overwrite_output_dir, do_train, do_eval, do_predict, dry_run;
    int64_t batch, eval_batch, accumulate;
    double neftune_alpha;       /* noise on embeddings; 0 = none */
    double loraplus_lr_ratio;   /* learning rate of B over that of A; 0 = 1 */
    double learning_rate, weight_decay, beta1, beta2, epsilon, max_grad_norm;
    double epochs;
    int64_t max_steps;
    enum schedule schedule;
    double warmup_ratio, warmup_steps;
    const char *schedule_args;  /* lr_scheduler_kwargs: a JSON object, or NULL */
    enum optimizer optimizer;
    int paged;                  /* optimizer state may live in host memory */
    double label_smoothing;     /* of the target of the loss; 0 = none */
    int loss_per_token;         /* --loss_norm token: sum over all tokens / count, instead of the mean of means */
    double logging_steps;       /* < 1: a fraction of all steps */
    int logging_first_step;
    enum interval log_strategy, save_strategy, eval_strategy;
    double save_steps, eval_steps; /* eval_steps 0 = logging_steps */
    double eval_delay;          /* no evaluation before so many steps, or epochs */
    int eval_on_start;
    int compute_accuracy;
    int load_best;              /* end with the state of the best evaluation */
    const char *best_metric;    /* loss, accuracy or perplexity, with or without eval_; NULL = loss */
    int greater_is_better;
    int64_t early_stopping;     /* end after so many evaluations without a better one; 0 = never */
    int64_t save_total_limit;   /* 0 = keep all */
    int save_only_model;
    int group_by_length, drop_last;
    uint64_t seed, data_seed;
    const char *resume_from_checkpoint; /* path, "true", or NULL */
    int bf16, fp16;
    int gradient_checkpointing; /* 1: the plan may recompute (default); 0: keep everything or refuse */
    int plot_loss;
    int no_events;              /* report_to none: no files for TensorBoard */
    int include_tokens_seen;    /* throughput and total_tokens in trainer_log.jsonl */
    int nan_skip;               /* --nan skip */
    /* machine */
    const char *backend;        /* NULL, "cpu", "cuda", path */
    int64_t vram_bytes;         /* 0 = what is free */
    int64_t host_memory;        /* bytes of host memory for pages; 0 = what is free */
    const char *page_dir;       /* for pages that fit in neither; NULL = output_dir */
    int64_t chunk_tokens;       /* most tokens of a chunk; 0 = the plan decides */
    int profile;
    const char *command;        /* the command line, for the model card */
};

/* Exit code: 0, 1, 2, 70, 128+signal. e is filled when it is 1, 2 or 70. */
int train_run(const struct train_options *o, struct err *e);
#endif
