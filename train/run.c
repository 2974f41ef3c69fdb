/* train/run.c - a run from options to adapter: set up, resume, the loop of steps, saving, reports. */
#include "base/file.h"
#include "base/log.h"
#include "base/stop.h"
#include "base/sys.h"
#include "train/estimate.h"
#include "train/train_internal.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { NONFINITE_IN_A_ROW = 3 };

/* The rules for an output directory that is not empty. */
static int check_output_dir(const struct trainer *t, struct err *e) {
    const struct train_options *o = t->o;
    char **names;
    int n, weights = 0, checkpoints = 0;
    if (!path_is_dir(o->output_dir) || o->overwrite_output_dir || o->resume_from_checkpoint) return 0;
    if (dir_list(o->output_dir, &names, &n, e)) return -1;
    for (int i = 0; i < n; i++) {
        checkpoints += text_starts(names[i], "checkpoint-");
        weights += text_starts(names[i], "adapter_model") || (text_starts(names[i], "model") && text_ends(names[i], ".safetensors"));
    }
    int occupied = o->data.compat_new ? weights : n;
    dir_list_free(names, n);
    return checkpoints || !occupied ? 0
                                    : err_set(e, ERR_INPUT,
                                              "Output directory (%s) already exists and is not empty. Please set "
                                              "overwrite_output_dir, or choose another output_dir",
                                              o->output_dir);
}

/* run.json names the run that owns the folder, and keeps the command line for people. */
static int claim_output_dir(struct trainer *t, struct err *e) {
    struct str s = {0};
    char path[1200];
    snprintf(t->run_id, sizeof t->run_id, "%016" PRIx64 "%08x", (uint64_t)time(NULL), (unsigned)getpid());
    if (path_join(path, sizeof path, t->o->output_dir, "run.json", e)) return -1;
    str_printf(&s, "{\"run\": \"%s\", \"command\": ", t->run_id);
    const char *command = t->o->command ? t->o->command : "";
    str_json(&s, command, strlen(command));
    str_puts(&s, "}\n");
    int r = s.oom ? err_set(e, ERR_RUN, "out of memory: run.json") : file_write_all(path, s.p, s.n, e);
    str_free(&s);
    return r;
}

static int open_report(struct trainer *t, const char *resumed, struct err *e) {
    const struct train_options *o = t->o;
    t->report = report_open(&(struct report_config){.dir = o->output_dir, .compat_old = !o->data.compat_new,
                                                    .with_throughput = o->include_tokens_seen, .plot_loss = o->plot_loss,
                                                    .no_events = o->no_events,
                                                    .append = resumed[0] != 0, .from_step = t->at.step,
                                                    .state_dir = resumed[0] ? resumed : NULL, .logging_steps = t->log_every,
                                                    .save_steps = t->save_every, .eval_steps = t->eval_every,
                                                    .train_batch_size = o->batch, .max_steps = t->total_steps,
                                                    .epochs = o->epochs}, e);
    return t->report ? 0 : -1;
}

/* FLOPs that a token takes in products and attention, forward and backward; nothing that is recomputed. */
static double model_flops(const struct plan_request *q) {
    return (q->forward.products + q->forward.attention + q->backward.products + q->backward.attention + q->rest.products) /
           (double)q->step_rows;
}

static void announce(const struct trainer *t) {
    const struct train_options *o = t->o;
    char a[32], b[32], c[32];
    log_info(
        "***** Running training *****\n  Num examples = %s\n  Num Epochs = %lld\n  Instantaneous batch size per device = %lld\n"
        "  Total train batch size (w. parallel, distributed & accumulation) = %lld\n  Gradient Accumulation steps = %lld\n"
        "  Total optimization steps = %s\n  Number of trainable parameters = %s",
        text_thousands(a, t->stream ? t->total_steps * o->batch * o->accumulate : data_count(t->train)),
        t->stream ? 1LL : (long long)ceil((double)t->total_steps / (double)sampler_steps_per_epoch(t->sampler)),
        (long long)o->batch, (long long)(o->batch * o->accumulate), (long long)o->accumulate, text_thousands(b, t->total_steps),
        text_thousands(c, t->params.total));
    const struct plan_request *q = &t->request;
    if (q->flops > 0)
        log_info("  Peak = about %.3g TFLOP/s of products; its share below counts %.3g GFLOP a token, nothing that is recomputed",
                 q->flops * 1e-12, model_flops(q) * 1e-9);
    if (!t->at.step) return;
    if (t->stream) {
        log_info("  Continuing training from global step %s: the stream is read again up to there", text_thousands(a, t->at.step));
        return;
    }
    int64_t per_epoch = sampler_steps_per_epoch(t->sampler);
    log_info("  Continuing training from checkpoint, will skip to saved global_step\n  Continuing training from epoch %lld\n  "
             "Continuing training from global step %lld\n"
             "  Will skip the first %lld epochs then the first %lld batches in the first epoch.",
             (long long)(t->at.step / per_epoch), (long long)t->at.step, (long long)(t->at.step / per_epoch),
             (long long)(t->at.step % per_epoch * o->accumulate));
}

/* The lines by which LLaMA-Factory says what is trained, and how. */
static void say_method(const struct trainer *t) {
    static const char *const names[] = {[FT_LORA] = "LoRA", [FT_FULL] = "Full", [FT_FREEZE] = "Freeze"};
    const struct train_options *o = t->o;
    const int packed = t->model.lay.proj == W_Q4 || t->model.lay.proj == W_INT8;
    if (packed && o->quantization_bit && !t->stored_bits) log_info("Quantizing model to %d bit.", o->quantization_bit);
    if (t->plan.choice.keep_layers < t->model.config.L) log_info("Gradient checkpointing enabled.");
    log_info("Fine-tuning method: %s", o->lora.dora && setup_is_lora(t) ? "DoRA" : names[o->finetuning]);
}

static struct report_event event(const struct trainer *t, const struct step_result *r, double start) {
    const struct progress *p = &t->at;
    const struct plan_request *q = &t->request;
    double seconds = p->seconds + (sys_seconds() - start), speed = seconds > 0 ? (double)p->tokens / seconds : 0,
           left = (double)(t->total_steps - p->step) * seconds / (double)(p->step ? p->step : 1);
    return (struct report_event){.step = p->step, .total_steps = t->total_steps, .loss = NAN, .eval_loss = NAN,
                                 .grad_norm = r->grad_norm, .epoch = r->epoch,
                                 .learning_rate = rate_of(t, p->step),
                                 .elapsed_seconds = seconds, .remaining_seconds = left, .tokens_per_second = speed,
                                 .tokens_seen = p->tokens,
                                 .share = q->flops > 0 ? speed * model_flops(q) / q->flops : 0, .device_bytes = t->plan.device};
}

/* Epochs that are done after a step; a checkpoint may be of a longer run, then of the last step. */
static int epoch_of(struct trainer *t, int64_t step, double *epoch, struct err *e) {
    struct sampler_step s;
    if (step > t->total_steps) step = t->total_steps;
    if (sampler_get(t->sampler, step - 1, &s, e)) return -1;
    *epoch = epoch_after(t, step - 1, &s);
    return 0;
}

static int due(int64_t every, int64_t step) { return every > 0 && step % every == 0; }

/* Bookkeeping of a step: sums, log line, progress line. */
static int note_step(struct trainer *t, const struct step_result *r, double start, struct err *e) {
    struct progress *p = &t->at;
    p->step++, p->tokens += r->rows;
    if (r->finite) p->updates++, p->nonfinite_run = 0, p->loss_sum += r->loss;
    else p->nonfinite++, p->nonfinite_run++;
    p->window_sum += r->loss, p->window_steps++;
    struct report_event ev = event(t, r, start);
    ev.loss = isfinite(r->loss) ? r->loss : INFINITY;
    if (!isfinite(ev.grad_norm)) ev.grad_norm = INFINITY;
    report_progress(&ev, p->step >= t->total_steps);
    const int end = t->o->log_strategy == EVERY_EPOCH && p->step == t->total_steps; /* of an epoch that is not whole */
    if (!due(t->log_every, p->step) && !end && !(t->o->logging_first_step && p->step == 1)) return 0;
    double mean = p->window_sum / (double)p->window_steps;
    ev.loss = isfinite(mean) ? mean : INFINITY;
    p->window_sum = 0, p->window_steps = 0;
    return report_add(t->report, &ev, e);
}

static int evaluation_due(const struct trainer *t, double epoch) {
    const struct progress *p = &t->at;
    if (p->evaluated >= p->step) return 0; /* done before the checkpoint that was resumed */
    if (!p->step) return t->eval && t->o->eval_on_start;
    if ((t->o->eval_strategy == EVERY_EPOCH ? epoch : (double)p->step) < t->o->eval_delay) return 0;
    return due(t->eval_every, p->step) || (t->eval_every && p->step >= t->total_steps);
}

/* *better: the best evaluation so far. One that a signal cut short leaves no trace. */
static int evaluate(struct trainer *t, const struct step_result *r, double start, int *better, struct err *e) {
    if (train_evaluate(t, &t->result, e)) return -1;
    const struct eval_result *v = &t->result;
    if (v->stopped) return 0;
    t->at.evaluated = t->at.step;
    *better = best_note(t);
    struct report_event ev = event(t, r, start);
    ev.eval_loss = v->loss, ev.eval_accuracy = v->accuracy, ev.eval_runtime = v->seconds, ev.grad_norm = NAN, ev.learning_rate = NAN;
    struct report_part part[EVAL_PARTS_MAX];
    for (int k = 0; k < v->parts; k++) {
        part[k].loss = v->part[k].loss, part[k].accuracy = v->part[k].accuracy;
        snprintf(part[k].name, sizeof part[k].name, "%s", v->part[k].name);
    }
    ev.part = part, ev.parts = v->parts;
    ev.eval_samples_per_second = (double)v->sequences / v->seconds, ev.eval_steps_per_second = (double)v->batches / v->seconds;
    return report_add(t->report, &ev, e);
}

/* Too many steps that could not be applied: three in a row, or one in a thousand. */
static int hopeless(const struct trainer *t) {
    const struct progress *p = &t->at;
    return !t->o->nan_skip &&
           (p->nonfinite_run >= NONFINITE_IN_A_ROW || (p->nonfinite > NONFINITE_IN_A_ROW && p->nonfinite * 1000 > p->step));
}

static int save(struct trainer *t, double epoch, double *start, struct err *e) {
    double now = sys_seconds();
    t->at.seconds += now - *start, *start = now;
    return state_save(t, epoch, e);
}

/* reduce_lr_on_plateau: an evaluation before the first step does not count, as in transformers. */
static void judge_plateau(struct trainer *t) {
    if (t->curve.kind == LR_PLATEAU && t->at.step && schedule_judge(&t->curve, &t->at.plateau, best_metric(t)))
        log_info("step %lld: no better evaluation for a while; the learning rate is now %g", (long long)t->at.step, rate_of(t, t->at.step));
}

/* What is due between steps: an evaluation, a checkpoint. 0: go on, 1: the run ends here, -1: e. */
static int between_steps(struct trainer *t, const struct step_result *r, int stepped, double *start, int64_t *saved, struct err *e) {
    if (state_saved(t, 0, e)) return -1;
    int last = t->at.step >= t->total_steps, signal = stop_requested(), bad = stepped && hopeless(t), better = 0;
    const int evaluated = evaluation_due(t, r->epoch) && !signal;
    if (evaluated && evaluate(t, r, *start, &better, e)) return -1;
    if (evaluated && t->at.evaluated == t->at.step) judge_plateau(t);
    int keep = better && t->at.step && (t->o->load_best || t->o->save_strategy == EVERY_BEST), given_up = best_given_up(t);
    int periodic = due(t->save_every, t->at.step) || (last && t->save_every && t->o->data.compat_new);
    if (keep || (*saved != t->at.step && (periodic || stop_requested() || bad || stop_save_requested()))) {
        if (save(t, r->epoch, start, e)) return -1;
        *saved = t->at.step;
    }
    if (bad && state_saved(t, 1, e)) return -1;
    if (bad)
        return err_set(e, ERR_NONFINITE,
                       "loss or gradient was not finite in %lld of %lld steps; none of them was applied, the last good state is "
                       "%s/checkpoint-%lld. "
                       "Lower the learning rate, or go on regardless with --nan skip",
                       (long long)t->at.nonfinite, (long long)t->at.step, t->o->output_dir, (long long)*saved);
    if (given_up)
        log_info("early stopping after step %lld: %lld evaluations without a better one than that of step %lld",
                 (long long)t->at.step, (long long)t->at.worse, (long long)t->at.best_step);
    return last || given_up || stop_requested();
}

/* What the plan said against what the card gave, context aside: kernels that are loaded at first use take a little too. */
static void memory_taken(const struct trainer *t) {
    struct backend_info info;
    char a[24], b[24];
    t->be->info(t->be->self, &info);
    if (info.unified) return;
    double taken = (double)(t->free_before - info.free_bytes);
    log_info("device memory: %s planned, %s taken (%+.1f %%)", text_bytes(a, t->plan.device), text_bytes(b, (int64_t)taken),
             100 * (taken / (double)t->plan.device - 1));
}

/* The loop. Returns 0, -1, or the number of the signal that ended it. */
static int loop(struct trainer *t, double *epoch, struct err *e) {
    double start = sys_seconds();
    int64_t saved = t->good_step = t->at.step;
    struct step_result r = {.grad_norm = NAN, .epoch = *epoch};
    int done = between_steps(t, &r, 0, &start, &saved, e);
    while (!done) {
        if (train_step(t, t->at.step, &r, e) || note_step(t, &r, start, e)) return -1;
        *epoch = r.epoch;
        done = between_steps(t, &r, 1, &start, &saved, e);
    }
    if (done < 0 || state_saved(t, 1, e)) return -1;
    t->at.seconds += sys_seconds() - start;
    if (!stop_requested() || ((t->at.step >= t->total_steps || best_given_up(t)) && !evaluation_due(t, *epoch))) return 0;
    log_info("stopped by signal %d after step %lld; continue with --resume_from_checkpoint true", stop_requested(), (long long)t->at.step);
    return stop_requested();
}

/* The state that the run ends with, and its evaluation. */
static int conclude(struct trainer *t, double epoch, struct err *e) {
    struct step_result r = {.grad_norm = NAN, .epoch = epoch};
    int64_t at = t->at.step;
    int better;
    if (best_restore(t, e)) return -1;
    if (!t->o->do_eval || !t->eval ||
        (t->at.evaluated == at && !isnan(t->result.loss) && !(t->o->load_best && t->at.best_step != at)))
        return 0;
    return evaluate(t, &r, sys_seconds(), &better, e);
}

static int finish(struct trainer *t, double epoch, int64_t first, struct err *e) {
    const struct train_options *o = t->o;
    const struct model_config *c = &t->model.config;
    const struct eval_result *v = &t->result;
    if (conclude(t, epoch, e) || state_write_weights(t, o->output_dir, e)) return -1;
    /* Arithmetic of the run: forward and backward of every weight, the head's products, no recomputation counted. */
    double weights = (double)c->L * (double)(6 * c->D * c->D + 3 * c->D * c->F) + (double)(c->V * c->D);
    struct report_results res = {.epoch = epoch,
                                 .train_loss = t->at.updates ? t->at.loss_sum / (double)t->at.updates : 0,
                                 .train_runtime = t->at.seconds,
                                 .total_flos = (setup_is_lora(t) ? 4.0 : 6.0) * weights * (double)t->at.tokens,
                                 .steps = t->at.step - first,
                                 .samples = (t->at.step - first) * o->batch * o->accumulate,
                                 .eval_loss = v->stopped ? NAN : v->loss,
                                 .eval_accuracy = v->accuracy,
                                 .eval_runtime = v->seconds,
                                 .eval_samples = v->sequences,
                                 .eval_steps = v->batches};
    best_report(t, 0);
    if (report_finish(t->report, &res, e) || report_state(t->report, o->output_dir, t->at.step, epoch, e)) return -1;
    struct str h = {0};
    if (o->merged_adapters) str_printf(&h, "merged_adapters: %s\n", o->merged_adapters);
    str_printf(
        &h,
        "learning_rate: %g\ntrain_batch_size: %lld\ngradient_accumulation_steps: %lld\nseed: %llu\nnum_epochs: %g\nsteps: %lld\n",
        o->learning_rate, (long long)o->batch, (long long)o->accumulate, (unsigned long long)o->seed, o->epochs,
        (long long)t->total_steps);
    int r = h.oom ? err_set(e, ERR_RUN, "out of memory: README.md")
                  : report_card(o->output_dir, o->model_name_or_path,
                                setup_is_lora(t)             ? o->quantization_bit ? "qlora" : "lora"
                                : o->finetuning == FT_FREEZE ? "freeze"
                                                             : "full",
                                o->data.dataset, h.p, e);
    str_free(&h);
    if (r) return -1;
    const char *merged = o->merged_adapters ? o->merged_adapters : ""; /* the new adapter stands on these */
    log_info("Training completed. The %s is in %s. Talk to it:\n  qlora chat --model_name_or_path %s%s%s%s%s --template yuan",
             setup_is_lora(t) ? "adapter" : "model", o->output_dir, setup_is_lora(t) ? o->model_name_or_path : o->output_dir,
             setup_is_lora(t) ? " --adapter_name_or_path " : "", merged, *merged ? "," : "",
             setup_is_lora(t) ? o->output_dir : "");
    return 0;
}

/* "12.3 TFLOP/s": a rate with the unit that suits its size, "-" for none. */
static const char *rate(char text[24], double amount, double seconds, const char *of) {
    static const char units[] = "kMGTP";
    double v = seconds > 0 ? amount / seconds / 1e3 : 0;
    int u = 0;
    for (; v >= 1000 && units[u + 1]; u++) v /= 1000;
    snprintf(text, 24, v > 0 ? "%.1f %c%s/s" : "-", v, units[u], of);
    return text;
}

static int slower_first(const void *a, const void *b) {
    const struct op_count *x = a, *y = b;
    return (x->seconds < y->seconds) - (x->seconds > y->seconds);
}

/* --profile: what the ops of these steps took, the longest first. */
static void print_profile(int64_t steps, double wall) {
    int n;
    const struct op_count *counted = op_counts(&n);
    struct op_count c[64];
    double sum = 0;
    char work[24], moved[24];
    ASSERT(n <= 64, "%d ops", n);
    memcpy(c, counted, sizeof *c * (size_t)n);
    qsort(c, (size_t)n, sizeof *c, slower_first);
    log_info("profile (each op waits for the device before and after it, so the run is slower than without --profile):\n"
             "%-12s %9s %11s %14s %12s %7s", "op", "calls", "ms", "arithmetic", "memory", "share");
    for (int i = 0; i < n; i++) {
        if (!c[i].calls) continue;
        sum += c[i].seconds;
        log_info("%-12s %9lld %11.1f %14s %12s %6.1f%%", c[i].name, (long long)c[i].calls, c[i].seconds * 1e3,
                 rate(work, c[i].flops, c[i].seconds, "FLOP"), rate(moved, c[i].bytes, c[i].seconds, "B"),
                 100 * c[i].seconds / wall);
    }
    log_info("%-12s %9s %11.1f %14s %12s %6.1f%%   of %.1f ms for %lld steps, with what lies between ops: copies, data, "
             "evaluations, saves",
             "all ops", "", sum * 1e3, "", "", 100 * sum / wall, wall * 1e3, (long long)steps);
}

/* A card or a page file that failed explains all that went wrong after it. */
static void blame_card(struct trainer *t, struct err *e) {
    struct err card = {0};
    if (!backend_failed(t->be, &card) && !pages_failed(t->model.layers, &card)) return;
    *e = (struct err){0};
    if (!t->at.step) err_set(e, card.code, "%s", card.text);
    else
        err_set(e, card.code,
                "after step %lld: %s. What was saved in %.400s is whole: the same command with --resume_from_checkpoint true "
                "goes on from there",
                (long long)t->at.step, card.text, t->o->output_dir);
}

/* What the run takes: memory, time, disk space. */
static void show_estimate(const struct trainer *t) {
    struct estimate x;
    struct str text = {0};
    estimate_of(t, &x);
    estimate_print(&x, &text);
    if (!text.oom) log_info("%.*s", (int)text.n - 1, text.p); /* the log ends its lines itself */
    str_free(&text);
}

int train_run(const struct train_options *o, struct err *e) {
    struct trainer t = {.o = o, .at = {.evaluated = -1, .best = NAN}, .result = {.loss = NAN, .accuracy = NAN}};
    char resumed[1200] = "";
    double epoch = 0;
    int r = -1;
    if (check_output_dir(&t, e) || !(t.be = backend_open(o->backend, e))) goto out;
    struct backend_info info;
    t.be->info(t.be->self, &info);
    t.free_before = info.free_bytes;
    setup_host(&t, 1);
    if (setup_data(&t, e) || setup_model(&t, NULL, e) || setup_plan(&t, e) || (!o->dry_run && rates_measure(&t, e))) goto out;
    show_estimate(&t);
    if (o->dry_run) {
        log_info("dry run: nothing was loaded or written");
        r = 0;
        goto out;
    }
    say_method(&t);
    if (dir_make(o->output_dir, e) || state_find(&t, resumed, sizeof resumed, e) || setup_memory(&t, e)) goto out;
    if (resumed[0] ? state_load(&t, resumed, e) : claim_output_dir(&t, e)) goto out;
    if (open_report(&t, resumed, e)) goto out;
    if (!resumed[0]) setup_show_example(&t);
    int64_t first = t.at.step;
    announce(&t);
    op_timing = o->profile;
    op_counts_reset();
    double began = sys_seconds();
    r = first && epoch_of(&t, first, &epoch, e) ? -1 : loop(&t, &epoch, e);
    if (!r) memory_taken(&t);
    if (o->profile && r >= 0) print_profile(t.at.step - first, sys_seconds() - began);
    if (r > 0) r = 128 + r;
    else if (!r) r = finish(&t, epoch, first, e);
    if (!r && t.result.stopped) log_warn("the last evaluation was cut short and is not reported"), r = 128 + stop_requested();
out:
    if (r < 0) blame_card(&t, e);
    setup_close(&t);
    return r < 0 ? (e->code ? e->code : ERR_RUN) : r;
}
