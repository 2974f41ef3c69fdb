/* train/state.c - checkpoint-N folders: found, verified, loaded. train/save.c writes them.
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

static int by_step(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}
int state_list(const char *dir, int64_t **steps, int *n, struct err *e) {
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
    const struct {
        const char *key;
        int64_t *to;
    } counts[] = {{"step", &p->step},           {"tokens", &p->tokens},
                  {"updates", &p->updates},     {"window_steps", &p->window_steps},
                  {"nonfinite", &p->nonfinite}, {"nonfinite_run", &p->nonfinite_run}};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        if (json_int(j, counts[i].key, 0, (int64_t)1 << 52, counts[i].to, dir, e) != 1) {
            err_set(e, ERR_INPUT, "%s: its MANIFEST has no fact \"%s\"", dir, counts[i].key);
            json_free(j);
            return -1;
        }
    p->evaluated = -1, p->best = json_get(j, "best") ? exact(j, "best") : NAN,
    p->best_step = p->worse = 0; /* absent in older checkpoints */
    json_int(j, "evaluated", -1, (int64_t)1 << 52, &p->evaluated, dir, NULL);
    json_int(j, "best_step", 0, (int64_t)1 << 52, &p->best_step, dir, NULL),
        json_int(j, "worse", 0, (int64_t)1 << 52, &p->worse, dir, NULL);
    p->plateau = (struct plateau){.best = exact(j, "plateau_best"), .factor = exact(j, "plateau_factor")}; /* absent with other schedules */
    json_int(j, "plateau_seen", 0, (int64_t)1 << 52, &p->plateau.seen, dir, NULL),
        json_int(j, "plateau_bad", 0, (int64_t)1 << 52, &p->plateau.bad, dir, NULL);
    json_int(j, "plateau_cooling", 0, (int64_t)1 << 52, &p->plateau.cooling, dir, NULL);
    p->loss_sum = exact(j, "loss_sum"), p->window_sum = exact(j, "window_sum"), p->window_norm = exact(j, "window_norm"),
    p->seconds = exact(j, "seconds");
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
    if (run_of(o->output_dir, own, e) || state_list(o->output_dir, &steps, &n, e)) return -1;
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
    if (!r && !dir[0] && machine.code)
        r = err_set(e, machine.code,
                    "no checkpoint can be resumed, and one could not be read: %s; mend that, or start anew in another output_dir",
                    machine.text);
    if (r) return -1;
    if (dir[0] && !want) log_info("Resuming training from %s. Change output_dir or use overwrite_output_dir to avoid.", dir);
    if (!dir[0] && want)
        log_info("no checkpoint to resume from in %s%s; starting from the first step", o->output_dir,
                 others ? " that belongs to this run" : "");
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
    if (strcmp(data, t->data_hash))
        log_warn("the training sequences are not those of the run that wrote %s: the data set, template or cutoff changed", dir);
    if (batch != t->o->batch || accumulate != t->o->accumulate)
        log_warn("%s was written with per_device_train_batch_size %lld and gradient_accumulation_steps %lld: the order of the "
                 "data changes",
                 dir, (long long)batch, (long long)accumulate);
    if (total != t->total_steps)
        log_warn("%s was written by a run of %lld steps, this one has %lld: the learning rate changes", dir, (long long)total,
                 (long long)t->total_steps);
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
    if (saved.layer_floats != t->lora.layer_floats || saved.config.targets != t->lora.config.targets ||
        saved.config.rank != t->lora.config.rank || saved.config.dora != t->lora.config.dora ||
        saved.config.wholes != t->lora.config.wholes)
        r = err_set(e, ERR_INPUT,
                    "%s holds an adapter of rank %lld, this run has rank %lld, other targets or another kind; resume with the "
                    "flags of that run",
                    dir, (long long)saved.config.rank, (long long)t->lora.config.rank);
    for (int64_t g = 0; !r && g < t->params.layers; g++)
        r = pages_write(t->params.value, g, 0, saved.data + g * saved.layer_floats, (size_t)saved.layer_floats * 4, e);
    if (!r && saved.config.wholes) r = model_wholes(&t->model, dir, e);
    lora_free(&saved);
    return r;
}
