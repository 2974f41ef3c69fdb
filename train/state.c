/* train/state.c - checkpoint-N folders: written whole or not at all, verified before use, rotated by step.
 *
 * checkpoint-N/ holds the adapter (or model), optimizer.safetensors, master.safetensors (full fine-tuning), trainer_state.json,
 * tokenizer files and a MANIFEST whose facts carry the run's progress. Moments and data position make a resumed run equal
 * the undisturbed one bit for bit. */
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/stop.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "train/train_internal.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const tokenizer_files[] = {"tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"};

static int copy_tokenizer(const char *from, const char *to, struct err *e) {
    char a[1200], b[1200];
    for (size_t i = 0; i < sizeof tokenizer_files / sizeof *tokenizer_files; i++) {
        if (path_join(a, sizeof a, from, tokenizer_files[i], e) || path_join(b, sizeof b, to, tokenizer_files[i], e)) return -1;
        if (path_is_file(a) && file_copy(a, b, e)) return -1;
    }
    return 0;
}

int state_write_weights(struct trainer *t, const char *dir, int final, struct err *e) {
    params_settle(&t->params);
    if (setup_is_lora(t)) {
        if (params_fetch(&t->params, e) || lora_save(&t->lora, dir, t->o->model_name_or_path, e)) return -1;
    } else if (final || t->o->save_only_model) { /* a checkpoint to resume from holds exact master weights instead */
        if (model_save(&t->model, dir, (int64_t)5000000000, e)) return -1;
    }
    return copy_tokenizer(t->o->model_name_or_path, dir, e);
}

/* Facts of a checkpoint. Doubles are hexadecimal strings: they read back exactly. */
static void write_facts(const struct trainer *t, struct str *s) {
    const struct progress *p = &t->at;
    const struct train_options *o = t->o;
    str_printf(s, "{\"step\": %lld, \"run\": \"%s\", \"tokens\": %lld, \"updates\": %lld, \"window_steps\": %lld, \"nonfinite\": %lld, \"nonfinite_run\": %lld, ",
               (long long)p->step, t->run_id, (long long)p->tokens, (long long)p->updates, (long long)p->window_steps, (long long)p->nonfinite, (long long)p->nonfinite_run);
    str_printf(s, "\"loss_sum\": \"%a\", \"window_sum\": \"%a\", \"window_norm\": \"%a\", \"seconds\": \"%a\", ", p->loss_sum, p->window_sum, p->window_norm, p->seconds);
    str_printf(s, "\"evaluated\": %lld, \"best\": \"%a\", \"best_step\": %lld, \"worse\": %lld, ", (long long)p->evaluated, p->best, (long long)p->best_step, (long long)p->worse);
    str_printf(s, "\"data\": \"%s\", \"batch\": %lld, \"accumulate\": %lld, \"total_steps\": %lld, \"seed\": %llu, \"learning_rate\": \"%a\"}", t->data_hash, (long long)o->batch,
               (long long)o->accumulate, (long long)t->total_steps, (unsigned long long)o->seed, o->learning_rate);
}

/* Steps of the checkpoint-N folders in output_dir, ascending. */
static int by_step(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}
static int list(const char *dir, int64_t **steps, int *n, struct err *e) {
    char **names = NULL;
    int count = 0;
    *steps = NULL, *n = 0;
    if (!path_is_dir(dir)) return 0;
    if (dir_list(dir, &names, &count, e)) return -1;
    *steps = sys_alloc_array((size_t)count + 1, sizeof **steps, "checkpoint list", e);
    for (int i = 0; *steps && i < count; i++) {
        char *end;
        if (!text_starts(names[i], "checkpoint-")) continue;
        long long v = strtoll(names[i] + 11, &end, 10);
        if (!*end && v > 0 && names[i][11] >= '0' && names[i][11] <= '9') (*steps)[(*n)++] = v;
    }
    dir_list_free(names, count);
    if (*steps) qsort(*steps, (size_t)*n, sizeof **steps, by_step);
    return *steps ? 0 : -1;
}

/* Keeps the newest save_total_limit checkpoints, and never removes the last two valid ones or the best one. */
static int rotate(struct trainer *t, struct err *e) {
    int64_t limit = t->o->save_total_limit, *steps;
    int n;
    if (!limit) return 0;
    if (limit < 2) limit = 2;
    if (list(t->o->output_dir, &steps, &n, e)) return -1;
    int r = 0, valid = 0;
    for (int i = n - 1; !r && i >= 0; i--) {
        char path[1200];
        struct err why = {0};
        char *facts = NULL;
        snprintf(path, sizeof path, "%s/checkpoint-%lld", t->o->output_dir, (long long)steps[i]);
        if (n - i <= limit || valid < 2) {
            valid += manifest_verify(path, &facts, &why) == 1;
            sys_free(facts);
            continue;
        }
        if (best_wanted(t->o) && steps[i] == t->at.best_step) continue;
        log_info("Deleting older checkpoint [%s] due to args.save_total_limit", path);
        r = dir_remove(path, e);
    }
    sys_free(steps);
    return r;
}

int state_save(struct trainer *t, double epoch, struct err *e) {
    char name[40], tmp[1200];
    struct str facts = {0};
    snprintf(name, sizeof name, "checkpoint-%lld", (long long)t->at.step);
    log_info("Saving model checkpoint to %s/%s", t->o->output_dir, name);
    if (manifest_begin(t->o->output_dir, name, tmp, sizeof tmp, e)) return -1;
    write_facts(t, &facts);
    int r = facts.oom ? err_set(e, ERR_RUN, "out of memory: checkpoint facts") : 0;
    if (!r) r = state_write_weights(t, tmp, 0, e);
    if (!r && !t->o->save_only_model) r = params_save_state(&t->params, tmp, t->at.step, e);
    if (!r && !t->o->save_only_model && !setup_is_lora(t)) r = params_save_values(&t->params, tmp, e);
    best_report(t, t->at.step);
    if (!r) r = report_state(t->report, tmp, t->at.step, epoch, e);
    if (r) manifest_abort(tmp);
    else r = manifest_commit(t->o->output_dir, name, tmp, facts.p, e);
    str_free(&facts);
    return r ? -1 : rotate(t, e);
}

static double exact(const struct cJSON *j, const char *key) {
    const char *s = NULL;
    return json_str(j, key, &s, "", NULL) == 1 ? strtod(s, NULL) : 0;
}

/* Facts of DIR into *p; -1 with e when the checkpoint is damaged or not one of ours. */
static int read_facts(const char *dir, struct progress *p, char run[33], struct cJSON **out, struct err *e) {
    char *text = NULL;
    if (manifest_verify(dir, &text, e) != 1) return -1;
    struct cJSON *j = json_parse(text, strlen(text), dir, e);
    sys_free(text);
    if (!j) return -1;
    const struct { const char *key; int64_t *to; } counts[] = {{"step", &p->step}, {"tokens", &p->tokens}, {"updates", &p->updates}, {"window_steps", &p->window_steps}, {"nonfinite", &p->nonfinite}, {"nonfinite_run", &p->nonfinite_run}};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        if (json_int(j, counts[i].key, 0, (int64_t)1 << 52, counts[i].to, dir, e) != 1) {
            err_set(e, ERR_INPUT, "%s: its MANIFEST has no fact \"%s\"", dir, counts[i].key);
            json_free(j);
            return -1;
        }
    p->evaluated = -1, p->best = json_get(j, "best") ? exact(j, "best") : NAN, p->best_step = p->worse = 0; /* absent in older checkpoints */
    json_int(j, "evaluated", -1, (int64_t)1 << 52, &p->evaluated, dir, NULL);
    json_int(j, "best_step", 0, (int64_t)1 << 52, &p->best_step, dir, NULL), json_int(j, "worse", 0, (int64_t)1 << 52, &p->worse, dir, NULL);
    p->loss_sum = exact(j, "loss_sum"), p->window_sum = exact(j, "window_sum"), p->window_norm = exact(j, "window_norm"), p->seconds = exact(j, "seconds");
    const char *id = "";
    json_str(j, "run", &id, dir, NULL);
    snprintf(run, 33, "%s", id);
    if (out) *out = j;
    else json_free(j);
    return 0;
}

/* The id of the run that output_dir belongs to; empty where no run.json says so. */
static int run_of(const char *output_dir, char run[33], struct err *e) {
    char path[1200], *text = NULL;
    size_t n;
    run[0] = 0;
    snprintf(path, sizeof path, "%s/run.json", output_dir);
    if (!path_is_file(path)) return 0;
    if (file_read_all(path, 1 << 20, &text, &n, e)) return -1;
    struct cJSON *j = json_parse(text, n, path, NULL);
    const char *id;
    if (j && json_str(j, "run", &id, path, NULL) == 1) snprintf(run, 33, "%s", id);
    json_free(j), sys_free(text);
    return 0;
}

int state_find(struct trainer *t, char *dir, size_t size, struct err *e) {
    const struct train_options *o = t->o;
    const char *want = o->resume_from_checkpoint;
    struct progress p;
    char run[33], own[33];
    dir[0] = 0;
    if (want && strcmp(want, "true")) { /* a folder by name: it must be good */
        if (read_facts(want, &p, run, NULL, e)) return err_where(e, "cannot resume from %s", want);
        snprintf(dir, size, "%s", want);
        return 0;
    }
    if (!want && o->overwrite_output_dir) return 0;
    int64_t *steps;
    int n, others = 0, r = 0;
    struct err machine = {0}; /* it may not be the checkpoint's fault */
    if (run_of(o->output_dir, own, e) || list(o->output_dir, &steps, &n, e)) return -1;
    for (int i = n - 1; i >= 0 && !dir[0] && !r; i--) {
        struct err why = {0};
        char path[1200];
        snprintf(path, sizeof path, "%s/checkpoint-%lld", o->output_dir, (long long)steps[i]);
        if (read_facts(path, &p, run, NULL, &why)) {
            if (why.code == ERR_RUN) err_set(&machine, why.code, "%s", why.text);
            if (stop_requested()) r = err_set(e, why.code, "%s", why.text);
            else log_warn("skipping a checkpoint that is not whole: %s", why.text);
        } else if (own[0] && strcmp(own, run)) others++, log_warn("skipping %s: it belongs to an earlier run in this folder", path);
        else snprintf(dir, size, "%s", path);
    }
    sys_free(steps);
    if (!r && !dir[0] && machine.code) r = err_set(e, machine.code, "no checkpoint can be resumed, and one could not be read: %s; mend that, or start anew in another output_dir", machine.text);
    if (r) return -1;
    if (dir[0] && !want) log_info("Resuming training from %s. Change output_dir or use overwrite_output_dir to avoid.", dir);
    if (!dir[0] && want) log_info("no checkpoint to resume from in %s%s; starting from the first step", o->output_dir, others ? " that belongs to this run" : "");
    return 0;
}

int state_load(struct trainer *t, const char *dir, struct err *e) {
    struct cJSON *j = NULL;
    char path[1200];
    if (read_facts(dir, &t->at, t->run_id, &j, e)) return -1;
    const char *data = "";
    int64_t batch = t->o->batch, accumulate = t->o->accumulate, total = t->total_steps;
    json_str(j, "data", &data, dir, NULL);
    json_int(j, "batch", 1, INT32_MAX, &batch, dir, NULL), json_int(j, "accumulate", 1, INT32_MAX, &accumulate, dir, NULL);
    json_int(j, "total_steps", 0, (int64_t)1 << 52, &total, dir, NULL);
    if (strcmp(data, t->data_hash)) log_warn("the training sequences are not those of the run that wrote %s: the data set, template or cutoff changed", dir);
    if (batch != t->o->batch || accumulate != t->o->accumulate)
        log_warn("%s was written with per_device_train_batch_size %lld and gradient_accumulation_steps %lld: the order of the data changes", dir, (long long)batch, (long long)accumulate);
    if (total != t->total_steps) log_warn("%s was written by a run of %lld steps, this one has %lld: the learning rate changes", dir, (long long)total, (long long)t->total_steps);
    json_free(j);
    snprintf(path, sizeof path, "%s/optimizer.safetensors", dir);
    if (!path_is_file(path)) {
        log_warn("%s has no optimizer state (save_only_model): weights are taken, the optimizer starts afresh", dir);
        t->at.updates = 0;
    } else if (params_load_state(&t->params, dir, e)) return -1;
    return state_load_weights(t, dir, e);
}

int state_load_weights(struct trainer *t, const char *dir, struct err *e) {
    if (!setup_is_lora(t)) return params_load_values(&t->params, dir, e);
    struct lora saved = {0};
    if (lora_load(dir, &t->model.config, &saved, e)) return -1;
    int r = 0;
    if (saved.layer_floats != t->lora.layer_floats || saved.config.targets != t->lora.config.targets || saved.config.rank != t->lora.config.rank)
        r = err_set(e, ERR_INPUT, "%s holds an adapter of rank %lld, this run has rank %lld or other targets; resume with the flags of that run", dir,
                    (long long)saved.config.rank, (long long)t->lora.config.rank);
    for (int64_t g = 0; !r && g < t->params.groups; g++)
        r = pages_write(t->params.value, g, 0, saved.data + g * saved.layer_floats, (size_t)saved.layer_floats * 4, e);
    lora_free(&saved);
    return r;
}
