/* cli/check.c - what a command line means as a whole: flags that contradict each other, flags that follow from others,
 * old or new behaviour. The sentences that LLaMA-Factory and transformers print in these cases are kept word for word:
 * people search for them. */
#include "base/file.h"
#include "base/log.h"
#include "base/str.h"
#include "cli/cli_internal.h"
#include "train/deepspeed.h"
#include "train/eval.h"
#include "train/schedule.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static int wrong(struct err *e, const char *sentence) {
    return err_set(e, ERR_INPUT, "%s", sentence);
}

/* ---- flags that are not used ---- */

/* A REFUSED flag is harmless while it is off or has its default. */
static int is_off(const struct flag *f, const char *value) {
    static const char *const off[] = {"", "false", "no", "f", "n", "0", "off", "none", "null"};
    for (size_t i = 0; i < sizeof off / sizeof *off; i++)
        if ((f->kind != FLAG_BOOL || !f->fallback || strcmp(f->fallback, "true")) &&
            !strcasecmp(value, off[i]))
            return 1;
    if (!f->fallback) return 0;
    if (f->kind == FLAG_INT || f->kind == FLAG_NUM) return strtod(value, NULL) == strtod(f->fallback, NULL);
    if (f->kind == FLAG_BOOL) return !strchr("fnFN0", *value) && !strcmp(f->fallback, "true");
    return !strcasecmp(value, f->fallback);
}

/* report_to: TensorBoard's files or none. Other programs are not spoken to; transformers refuses names that it does not know. */
static int check_report(struct options *o, struct err *e) {
    static const char *const known[] = {"tensorboard", "all",      "wandb",   "mlflow", "comet_ml", "swanlab", "azure_ml", "clearml",
                                        "codecarbon",  "dagshub", "dvclive", "flyte",  "neptune",  "trackio", NULL};
    const char *given = options_given(o, "report_to");
    o->train.no_events = given && !o->report_to;
    for (const char *p = o->report_to; p && *p; p += *p == ',') {
        char name[40];
        size_t n = strcspn(p, ","), k = 0;
        snprintf(name, sizeof name, "%.*s", (int)(n < 39 ? n : 39), p);
        while (known[k] && strcmp(known[k], name)) k++;
        const char *near = known[k] ? NULL : nearest_word(name, known);
        if (!known[k])
            return err_set(e, ERR_INPUT, "report_to %s is not supported%s%s%s; choose from none, tensorboard, all", name,
                           near ? ", did you mean " : "", near ? near : "", near ? "?" : "");
        if (k > 1)
            log_info("report_to %s: not here; output_dir gets events.out.tfevents files, which TensorBoard and many other "
                     "programs read",
                     name);
        p += n;
    }
    return 0;
}

static int check_unused(enum command_id cmd, const struct options *o, struct err *e) {
    struct str line = {0};
    for (int i = 0; i < flag_count; i++) {
        const struct flag *f = &flags[i];
        if (!o->given[i].name || !(f->commands >> cmd & 1)) continue;
        if (f->status == REFUSED && !is_off(f, o->given[i].value)) {
            str_free(&line);
            return err_set(e, ERR_INPUT, "%s %s is not supported: %s", f->name, o->given[i].value, f->help);
        }
        if (f->status == INERT) str_printf(&line, "%s%s (%s)", line.n ? ", " : "", f->name, f->help);
    }
    if (line.n && !line.oom) log_info("ignored: %s", line.p);
    str_free(&line);
    return 0;
}

/* ---- old or new ---- */

static const char *const old_names[] = {"evaluation_strategy",
                                        "reserved_label_len",
                                        "checkpoint_dir",
                                        "neft_alpha",
                                        "cache_path",
                                        "lora_bf16_mode",
                                        "num_layer_trainable",
                                        "name_module_trainable",
                                        "dpo_beta",
                                        "dpo_loss",
                                        "dpo_ftx",
                                        "max_source_length",
                                        "max_target_length",
                                        NULL};
static const char *const new_names[] = {"eval_strategy",
                                        "preprocessing_batch_size",
                                        "mask_history",
                                        "eval_dataset",
                                        "trust_remote_code",
                                        "enable_thinking",
                                        "quantization_method",
                                        "pure_bf16",
                                        "data_shared_file_system",
                                        "pref_beta",
                                        "pref_loss",
                                        "pref_ftx",
                                        NULL};

static const char *first_typed(const struct options *o, const char *const *names) {
    for (int i = 0; i < flag_count; i++)
        for (const char *const *n = names; o->given[i].name && *n; n++)
            if (!strcmp(o->given[i].name, *n)) return *n;
    return NULL;
}

static int decide_compat(struct options *o, struct err *e) {
    struct data_config *d = &o->train.data;
    const char *why = NULL;
    const int bins = d->packing || d->neat_packing;
    if (!options_given(o, "packing")) d->packing = -1; /* the default depends on the stage */
    if (d->sft_packing && bins)
        return wrong(e, "sft_packing cuts records into blocks, packing and neat_packing fit whole ones; give "
                        "one of them");
    if (options_given(o, "compat")) return 0;
    if (d->sft_packing)
        why = "sft_packing";
    else if (bins)
        d->compat_new = 1, why = d->neat_packing ? "neat_packing" : "packing";
    else if (o->train_script)
        why = "src/train_bash.py";
    else if ((why = first_typed(o, old_names)))
        d->compat_new = 0;
    else
        d->compat_new = 1, why = first_typed(o, new_names);
    log_info("compat %s%s%s: template, truncation and defaults of %s (--compat %s for the other)",
             d->compat_new ? "new" : "old", why ? ", because of " : "", why ? why : "",
             d->compat_new ? "today's LLaMA-Factory" : "LLaMA-Factory v0.5.0", d->compat_new ? "old" : "new");
    return 0;
}

/* ---- groups of flags ---- */

static int check_model(enum command_id cmd, const struct options *o, struct err *e) {
    const char *dir = o->train.model_name_or_path;
    if (!dir) return wrong(e, "Please provide model_name_or_path.");
    if (path_is_dir(dir)) return 0;
    return err_set(
        e, ERR_INPUT,
        "there is no folder %s; model_name_or_path must be a folder with %s (names of a model hub are not "
        "downloaded)",
        dir, cmd == CMD_PREVIEW || cmd == CMD_TOKENIZE ? "tokenizer.model" : "config.json and the weights");
}

static int check_template(const struct options *o, struct err *e) {
    static const char *const names[] = {"yuan", NULL};
    if (!o->template || !strcmp(o->template, names[0])) return 0;
    if (nearest_word(o->template, names))
        return err_set(e, ERR_INPUT, "Template %s does not exist, did you mean %s?", o->template, names[0]);
    return err_set(e, ERR_INPUT, "Template %s does not exist. The template of Yuan 2.0 is yuan", o->template);
}

static int check_quantization(struct options *o, struct err *e) {
    int64_t bits = o->quantization_bit;
    if (bits && bits != 4 && bits != 8) return wrong(e, "We only accept 4-bit or 8-bit quantization.");
    if (options_given(o, "quantization_bit") && !bits)
        return wrong(e, "We only accept 4-bit or 8-bit quantization.");
    if (bits && o->train.finetuning != FT_LORA)
        return wrong(e, o->train.data.compat_new
                            ? "Quantization is only compatible with the LoRA or OFT method."
                            : "Quantization is only compatible with the LoRA method.");
    if (o->train.filter_4bit && o->train.finetuning != FT_LORA)
        return wrong(e, "lfa_bits 4 is only compatible with the LoRA method: weights that are trained cannot be held in 4 bits.");
    o->train.quantization_bit = (int)bits;
    return 0;
}

/* Files hold the filter in 4 bits only beside projections in 4 bits. */
static int check_stored_filter(const struct options *o, struct err *e) {
    if (!o->train.filter_4bit || o->quantization_bit == 4) return 0;
    return wrong(e, "lfa_bits 4 stores the localized filter like projections in 4 bits: give quantization_bit 4 (of an export: "
                    "export_quantization_bit), too.");
}

static int check_adapter(const struct options *o, struct err *e) {
    if (!o->train.adapter_name_or_path || o->train.finetuning == FT_LORA) return 0;
    return wrong(e, "Adapter is only valid for the LoRA method.");
}

/* Training merges all adapters but the last, which it goes on with; a new adapter stands on all of them. */
static int split_adapters(struct options *o, struct err *e) {
    struct train_options *t = &o->train;
    const char *list = t->adapter_name_or_path, *comma = list ? strrchr(list, ',') : NULL;
    if (check_adapter(o, e)) return -1;
    if (!list || (!comma && !o->create_new_adapter)) return 0;
    if (o->quantization_bit)
        return wrong(e, o->create_new_adapter
                            ? "Cannot create new adapter upon a quantized model."
                            : "Quantized model only accepts a single adapter. Merge them first.");
    t->merged_adapters = o->create_new_adapter ? list : options_keep(o, list, (size_t)(comma - list), e);
    t->adapter_name_or_path = o->create_new_adapter ? NULL : comma + 1;
    return t->merged_adapters ? 0 : -1;
}

static int check_export(struct options *o, struct err *e) {
    int64_t bits = o->quantization_bit;
    if (check_model(CMD_EXPORT, o, e) || check_template(o, e) || check_adapter(o, e)) return -1;
    if (!o->export_dir) return wrong(e, "Please specify export_dir to save model.");
    if (bits && bits != 4 && bits != 8)
        return wrong(e, "export_quantization_bit: We only accept 4-bit or 8-bit quantization.");
    return check_stored_filter(o, e);
}

/* A stream has no end that is known beforehand, and no lengths. */
static int check_streaming(struct options *o, struct err *e) {
    struct train_options *t = &o->train;
    struct data_config *d = &t->data;
    if (!t->streaming) return 0;
    if (d->tokenized_path)
        return wrong(e, "Turn off `streaming` when saving dataset to disk. (tokenized_path is read without it, too: sequences "
                        "beyond data_memory wait in a file)");
    if (t->do_train && t->max_steps <= 0) return wrong(e, "Please specify `max_steps` in streaming mode.");
    if (d->max_samples) return wrong(e, "`max_samples` is incompatible with `streaming`.");
    if (d->val_size > 0 && d->val_size < 1) return wrong(e, "Streaming mode should have an integer val size.");
    if (t->group_by_length) return wrong(e, "group_by_length needs to know all lengths, which streaming does not; leave out one");
    if (t->save_strategy == EVERY_EPOCH || t->eval_strategy == EVERY_EPOCH)
        return wrong(e, "streaming knows no epochs: set eval_strategy and save_strategy to steps");
    if (t->disable_shuffling) d->buffer_size = 0;
    return 0;
}

static int check_sampling(struct options *o, struct err *e) {
    struct train_options *t = &o->train;
    if (o->sampling == 1 && t->group_by_length)
        return wrong(e, "train_sampling_strategy sequential contradicts group_by_length; give one of them");
    t->disable_shuffling |= o->sampling == 1, t->group_by_length |= o->sampling == 2;
    return check_streaming(o, e);
}

static int check_data(struct options *o, struct err *e) {
    struct data_config *d = &o->train.data;
    const int sft = d->stage == STAGE_SFT;
    if (decide_compat(o, e) || check_template(o, e)) return -1;
    if (!d->cutoff_len) d->cutoff_len = d->compat_new ? 2048 : 1024;
    if (o->reserved_label_len >= d->cutoff_len)
        return wrong(e, "`reserved_label_len` must be smaller than `cutoff_len`.");
    if (d->neat_packing && !sft) return wrong(e, "`neat_packing` is only valid for stage sft.");
    if (d->train_on_prompt && !sft) return wrong(e, "`train_on_prompt` is only valid for stage sft.");
    if (d->mask_history && !sft) return wrong(e, "`mask_history` is only valid for stage sft.");
    if (d->mask_history && d->train_on_prompt)
        return wrong(e, "`mask_history` is incompatible with `train_on_prompt`.");
    if (d->interleave_probs && d->mix == MIX_CONCAT)
        return wrong(e, "`interleave_probs` is only valid for interleaved mixing.");
    if (d->val_size > 0 && d->eval_dataset)
        return wrong(e, "Cannot specify `val_size` if `eval_dataset` is not None.");
    if (d->eval_on_each && !d->eval_dataset) return wrong(e, "eval_on_each_dataset evaluates the data sets of eval_dataset: give those");
    int sets = 1;
    for (const char *p = d->eval_on_each ? d->eval_dataset : ""; *p; p++) sets += *p == ',';
    if (sets > EVAL_PARTS_MAX)
        return err_set(e, ERR_INPUT, "eval_on_each_dataset takes %d data sets at most, there are %d", EVAL_PARTS_MAX, sets);
    if (d->eval_on_each && d->tokenized_path)
        return wrong(e, "eval_on_each_dataset needs the data sets by name, which tokenized_path does not keep: leave out one");
    if (d->val_size == 1 || (d->val_size > 1 && d->val_size != floor(d->val_size)))
        return wrong(e, "val_size must be a share below 1 or a whole number above 1");
    if (d->val_size > 0 && !d->dataset) return wrong(e, "Cannot specify `val_size` if `dataset` is None.");
    d->seed = o->train.seed;
    if (!options_given(o, "data_seed")) o->train.data_seed = o->train.seed;
    return check_sampling(o, e);
}

static int set_optimizer(struct options *o, struct err *e) {
    static const struct {
        const char *name;
        enum optimizer kind;
        int paged;
    } known[] = {
        {"adamw_torch", OPT_ADAMW, 0},
        {"adamw_torch_fused", OPT_ADAMW, 0},
        {"adamw_hf", OPT_ADAMW, 0},
        {"adamw_apex_fused", OPT_ADAMW, 0},
        {"paged_adamw_32bit", OPT_ADAMW, 1},
        {"paged_adamw", OPT_ADAMW, 1},
        {"adamw_8bit", OPT_ADAMW_8BIT, 0},
        {"adamw_bnb_8bit", OPT_ADAMW_8BIT, 0},
        {"paged_adamw_8bit", OPT_ADAMW_8BIT, 1},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (!o->optim || strcmp(o->optim, known[i].name)) continue;
        o->train.optimizer = known[i].kind;
        o->train.paged = known[i].paged;
        if (!strcmp(o->optim, "adamw_hf"))
            log_info("optim adamw_hf: computed as adamw_torch (epsilon behind the bias correction)");
        return 0;
    }
    const char *names[sizeof known / sizeof *known + 1] = {NULL}, *near;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) names[i] = known[i].name;
    near = o->optim ? nearest_word(o->optim, names) : NULL;
    return err_set(e, ERR_INPUT,
                   "optim %s is not supported%s%s%s; choose from adamw_torch, adamw_torch_fused, paged_adamw_32bit, "
                   "adamw_8bit, paged_adamw_8bit",
                   o->optim ? o->optim : "none", near ? ", did you mean " : "", near ? near : "", near ? "?" : "");
}

static int set_lora(struct options *o, struct err *e) {
    struct lora_config *l = &o->train.lora;
    const char *target = o->lora_target;
    if (!target && o->train.do_train && !o->train.data.compat_new)
        return wrong(e, "Please specify lora_target in LoRA training.");
    l->alpha = o->lora_alpha ? (double)o->lora_alpha : 2.0 * (double)l->rank;
    if (o->additional_target && lora_parse_wholes(o->additional_target, &l->wholes, e)) return -1;
    if (lora_parse_targets(target ? target : "all", &l->targets, e)) return -1;
    struct str names = {0};
    for (int p = 0; p < PROJ_COUNT; p++) str_printf(&names, "%s%s", p ? "," : "", proj_name[p]);
    if (!names.oom && (!target || !strcmp(target, "all"))) log_info("Found linear modules: %s", names.p);
    str_free(&names);
    return 0;
}

static void set_freeze(struct options *o) {
    struct train_options *t = &o->train;
    static const char *const own[] = {"freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules"};
    for (int i = 0; t->finetuning != FT_FREEZE && i < 3; i++)
        if (options_given(o, own[i])) log_info("ignored: %s (only finetuning_type freeze looks at it)", own[i]);
    if (!options_given(o, own[0])) t->freeze_layers = t->data.compat_new ? 2 : 3;
    if (!t->freeze_modules) t->freeze_modules = t->data.compat_new ? "all" : "mlp";
}

/* What is rounded to bf16 at every step has 8 significant bits. */
static int check_pure(const struct train_options *t, struct err *e) {
    if (!t->pure_bf16) return 0;
    if (t->fp16) return wrong(e, "pure_bf16 keeps weights in bf16, fp16 asks for another type: give one of them");
    log_warn("pure_bf16: what is trained is kept in bf16, without a copy in fp32; an update below about 1/512 of a weight is "
             "lost in rounding");
    return 0;
}

/* The metric by which evaluations are compared. */
static int check_best(struct options *o, struct err *e) {
    struct train_options *t = &o->train;
    const char *m = t->best_metric ? t->best_metric : "loss";
    if (text_starts(m, "eval_")) m += 5;
    if (strcmp(m, "loss") && strcmp(m, "accuracy") && strcmp(m, "perplexity"))
        return err_set(e, ERR_INPUT,
                       "metric_for_best_model %s is not measured by evaluations; choose from loss, accuracy, perplexity",
                       t->best_metric);
    if (!strcmp(m, "accuracy") && !t->compute_accuracy)
        return wrong(e, "metric_for_best_model accuracy needs compute_accuracy");
    if (!options_given(o, "greater_is_better")) t->greater_is_better = !strcmp(m, "accuracy");
    return 0;
}

/* eval_strategy and save_strategy as words. */
static const char *strategy(enum interval i) {
    static const char *const names[] = {"no", "steps", "epoch", "best"};
    return names[i];
}

/* transformers looks for the best state among the saved ones, hence its rules. */
static int check_best_strategy(const struct train_options *t, struct err *e) {
    if (t->schedule == LR_PLATEAU && t->eval_strategy == EVERY_NO)
        return wrong(e, "lr_scheduler_type reduce_lr_on_plateau requires an eval strategy");
    if (t->early_stopping && t->eval_strategy == EVERY_NO)
        return wrong(e, "early_stopping_steps counts evaluations: set eval_strategy to steps or epoch");
    if (t->save_strategy == EVERY_BEST && !t->best_metric)
        return wrong(e, "`metric_for_best_model` must be provided when using 'best' save_strategy");
    if (t->save_strategy == EVERY_BEST && t->eval_strategy == EVERY_NO)
        return wrong(e, "save_strategy best needs evaluations: set eval_strategy to steps or epoch");
    if (!t->load_best || t->save_strategy == EVERY_BEST) return 0;
    if (t->eval_strategy != t->save_strategy)
        return err_set(e, ERR_INPUT,
                       "--load_best_model_at_end requires the save and eval strategy to match, but found evaluation strategy %s, "
                       "save strategy %s",
                       strategy(t->eval_strategy), strategy(t->save_strategy));
    double every = t->eval_steps > 0 ? t->eval_steps : t->logging_steps, ratio = t->save_steps / every;
    if (t->eval_strategy == EVERY_STEPS && fabs(ratio - nearbyint(ratio)) > 1e-9 * ratio)
        return err_set(e, ERR_INPUT,
                       "--load_best_model_at_end requires the saving steps to be a round multiple of the evaluation steps, but "
                       "found %g, which is not a round multiple of %g",
                       t->save_steps, every);
    return 0;
}

static int check_evaluation(struct options *o, struct err *e) {
    struct train_options *t = &o->train;
    if (t->eval_strategy != EVERY_NO) t->do_eval = 1;
    /* v0.5.0 evaluates the data set itself when it does not train */
    int own = !t->do_train && !t->data.compat_new && t->data.dataset;
    if ((t->do_eval || t->do_predict || t->eval_on_start) && !t->data.eval_dataset && !(t->data.val_size > 1e-6) && !own)
        return wrong(e, "Please make sure eval_dataset be provided or val_size >1e-6");
    if (o->predict_with_generate && t->data.stage != STAGE_SFT) return wrong(e, "`predict_with_generate` is only valid for stage sft.");
    if (o->predict_with_generate && t->do_train && !t->data.compat_new)
        return wrong(e, "`predict_with_generate` cannot be set as True while training (compat old; --compat new allows it)");
    return check_best(o, e) || check_best_strategy(t, e) ? -1 : 0;
}

static int check_resume(struct options *o, struct err *e) {
    struct train_options *t = &o->train;
    const char *r = t->resume_from_checkpoint;
    if (r && !strcasecmp(r, "false")) r = NULL;
    if (r && !strcasecmp(r, "true")) r = "true";
    t->resume_from_checkpoint = r;
    if (r && t->adapter_name_or_path && !t->merged_adapters) /* others must be merged for either */
        return wrong(e, "adapter_name_or_path starts a run from weights, resume_from_checkpoint goes on with "
                        "a run; give one");
    return 0;
}

/* Estimates and benchmarks need neither data, nor weights, nor a place for results. */
static int check_estimate(enum command_id cmd, struct options *o, struct err *e) {
    struct train_options *t = &o->train;
    if (o->card && t->backend) return wrong(e, "card plans for a card that need not be here, backend for what is here: give one");
    const int table = o->table || o->bench_table;
    if (table && (o->config || t->model_name_or_path))
        return wrong(e, "table has models of its own: leave out config and model_name_or_path");
    if (table && (options_given(o, "finetuning_type") || options_given(o, "quantization_bit")))
        return wrong(e, "table has methods of its own: leave out finetuning_type and quantization_bit");
    if (o->bench_table && o->vram_list && strchr(o->vram_list, ','))
        return err_set(e, ERR_INPUT, "vram: %s are several budgets; table takes one", o->vram_list);
    if (o->plot && !text_ends(o->plot, ".svg") && !text_ends(o->plot, ".png"))
        return wrong(e, "plot: the name of the file must end in .svg or .png");
    if (o->table && options_given(o, "memory")) return wrong(e, "table shows the plans of all three: leave out memory");
    if (o->config && t->model_name_or_path) return wrong(e, "give model_name_or_path or config, not both");
    if (table) t->finetuning = FT_LORA; /* and in full, in turn */
    if (table || cmd == CMD_BENCH) {     /* the guide's setting, where the command line has no other */
        if (!options_given(o, "per_device_train_batch_size")) t->batch = 1;
        if (!options_given(o, "gradient_accumulation_steps")) t->accumulate = 16;
        if (!options_given(o, "cutoff_len")) t->data.cutoff_len = 1024;
        if (!options_given(o, "optim")) o->optim = "paged_adamw_32bit";
    }
    if (!o->lora_target) o->lora_target = "all";
    if (!t->output_dir) t->output_dir = ".";
    if (!table && !o->config && !t->model_name_or_path)
        return err_set(e, ERR_INPUT, "Please provide config (yuan2-2b, yuan2-51b, ..), model_name_or_path, or --table%s.",
                       cmd == CMD_BENCH ? " guide" : "");
    return o->config || table || cmd == CMD_BENCH ? 0 : check_model(cmd, o, e);
}

static int check_train(enum command_id cmd, struct options *o, struct err *e) {
    struct train_options *t = &o->train;
    struct schedule_curve curve;
    if (cmd == CMD_ESTIMATE || cmd == CMD_BENCH ? check_estimate(cmd, o, e) : check_model(cmd, o, e)) return -1;
    if (!options_given(o, "do_train") && !t->do_eval && !t->do_predict) t->do_train = 1;
    if (cmd == CMD_TRAIN && (t->do_train || !t->data.eval_dataset) && !t->data.dataset)
        return wrong(e, "Please specify dataset for training.");
    if (check_data(o, e) || check_quantization(o, e) || split_adapters(o, e) ||
        set_optimizer(o, e) || check_evaluation(o, e) || check_resume(o, e) || check_report(o, e) || schedule_make(&curve, t, 0, e))
        return -1;
    if (t->finetuning == FT_LORA && set_lora(o, e)) return -1;
    set_freeze(o);
    if (check_pure(t, e)) return -1;
    if (t->finetuning != FT_LORA && t->loraplus_lr_ratio > 0)
        return wrong(e, "loraplus_lr_ratio is only valid for the LoRA method.");
    if (t->bf16 && t->fp16) return wrong(e, "At most one of fp16 and bf16 can be True, but not both");
    if (t->bf16)
        log_info("bf16: a card computes in bf16, the processor in fp32, with or without the flag; trained weights and moments "
                 "are fp32");
    if (t->fp16)
        log_warn("fp16: a card computes in bf16 instead, the processor in fp32; bf16 is as small as fp16 and has the range of "
                 "fp32, so no loss is scaled and no step lost to overflow");
    if (!t->output_dir) return wrong(e, "Please provide output_dir.");
    t->gradient_checkpointing = !o->disable_gradient_checkpointing;
    if (!o->gradient_checkpointing && t->gradient_checkpointing)
        log_info("gradient_checkpointing false: stays on, as in LLaMA-Factory; "
                 "--disable_gradient_checkpointing switches it off");
    return o->deepspeed ? deepspeed_apply(o->deepspeed, t, e) : 0;
}

/* --task ceval --split validation, as the first versions of LLaMA-Factory wanted it. */
static int join_task(struct options *o, struct err *e) {
    char name[300];
    if (!o->task || !o->split || text_ends(o->task, o->split)) return 0;
    if (text_ends(o->task, "_test") || text_ends(o->task, "_validation"))
        return err_set(e, ERR_INPUT, "task %s names its part already; leave out split %s", o->task, o->split);
    int n = snprintf(name, sizeof name, "%.140s_%.140s", o->task, o->split);
    return (o->task = options_keep(o, name, (size_t)n, e)) ? 0 : -1;
}

static int check_machine(struct options *o, struct err *e) {
    if (!o->no_card) return 0;
    if (o->train.backend && strcmp(o->train.backend, "cpu"))
        return err_set(e, ERR_INPUT, "use_cpu contradicts --backend %s", o->train.backend);
    o->train.backend = "cpu";
    return 0;
}

static int need(const char *value, const char *flag, struct err *e) {
    return value ? 0 : err_set(e, ERR_INPUT, "Please provide %s.", flag);
}

int options_check(enum command_id cmd, struct options *o, struct err *e) {
    if (o->quiet) log_quiet = 1;
    if (check_machine(o, e) || check_unused(cmd == CMD_ESTIMATE || cmd == CMD_BENCH ? CMD_TRAIN : cmd, o, e)) return -1;
    switch (cmd) {
    case CMD_TRAIN:
    case CMD_ESTIMATE:
    case CMD_BENCH:
        return check_train(cmd, o, e);
    case CMD_PREVIEW:
        if (check_model(cmd, o, e) || need(o->train.data.dataset, "dataset", e)) return -1;
        return check_data(o, e);
    case CMD_SCORE:
    case CMD_CHAT:
        if (check_model(cmd, o, e) || check_template(o, e) || check_quantization(o, e)) return -1;
        if (o->system && o->ids) return wrong(e, "system goes before a prompt; ids are the whole text");
        return check_adapter(o, e);
    case CMD_TOKENIZE:
        if (check_model(cmd, o, e)) return -1;
        if (!o->file && !o->text && !o->ids) return wrong(e, "Please provide file, text or ids.");
        if ((o->file != NULL) + (o->text != NULL) + (o->ids != NULL) > 1) return wrong(e, "tokenize takes one of file, text and ids");
        return o->decode && o->text ? wrong(e, "decode makes text of ids: give ids or file in place of text") : 0;
    case CMD_QUANTIZE:
        if (check_model(cmd, o, e) || need(o->train.output_dir, "output_dir", e)) return -1;
        return need(options_given(o, "quantization_bit"), "quantization_bit (4 or 8)", e) || check_quantization(o, e) ||
               check_stored_filter(o, e);
    case CMD_EXPORT:
        return check_export(o, e);
    case CMD_NEW:
        return need(o->config, "config", e) || need(o->train.output_dir, "output_dir", e) || check_quantization(o, e) ||
               check_stored_filter(o, e);
    case CMD_DOCTOR:
        return 0;
    case CMD_EVAL:
        if (check_model(cmd, o, e) || check_template(o, e) || check_quantization(o, e) || check_adapter(o, e)) return -1;
        return join_task(o, e) || need(o->task, "task (ceval_validation, mmlu_test, ..)", e);
    }
    return 0;
}
