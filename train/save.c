/* train/save.c - a checkpoint is written behind the run that it belongs to, whole or not at all; older ones are rotated by step.
 *
 * Between two steps the run gives what changes: facts, the report's text, adapters (into lora->data, which only saves and loads touch), a
 * copy of the optimizer state and, in full fine-tuning, of the values. Threads then write from these, several files at a time,
 * commit the folder and rotate, while training goes on. One save is under way at most; the next waits for it, and so do the end of
 * the run and everything that reads checkpoints. Its failure is that of the step boundary at which it is noticed.
 *
 * Without memory for the copy, and while faults are injected (their calls are counted in order), the same is done on the spot.
 */
#include "base/file.h"
#include "base/log.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "train/train_internal.h"
#include <pthread.h>
#include <stdio.h>
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

/* Facts of a checkpoint. Doubles are hexadecimal strings: they read back exactly. */
static void write_facts(const struct trainer *t, struct str *s) {
    const struct progress *p = &t->at;
    const struct train_options *o = t->o;
    str_printf(s,
               "{\"step\": %lld, \"run\": \"%s\", \"tokens\": %lld, \"updates\": %lld, \"window_steps\": %lld, \"nonfinite\": "
               "%lld, \"nonfinite_run\": %lld, ",
               (long long)p->step, t->run_id, (long long)p->tokens, (long long)p->updates, (long long)p->window_steps,
               (long long)p->nonfinite, (long long)p->nonfinite_run);
    str_printf(s, "\"loss_sum\": \"%a\", \"window_sum\": \"%a\", \"window_norm\": \"%a\", \"seconds\": \"%a\", ", p->loss_sum,
               p->window_sum, p->window_norm, p->seconds);
    str_printf(s, "\"evaluated\": %lld, \"best\": \"%a\", \"best_step\": %lld, \"worse\": %lld, ", (long long)p->evaluated,
               p->best, (long long)p->best_step, (long long)p->worse);
    if (p->plateau.seen)
        str_printf(s,
                   "\"plateau_best\": \"%a\", \"plateau_factor\": \"%a\", \"plateau_seen\": %lld, \"plateau_bad\": %lld, "
                   "\"plateau_cooling\": %lld, ",
                   p->plateau.best, p->plateau.factor, (long long)p->plateau.seen, (long long)p->plateau.bad,
                   (long long)p->plateau.cooling);
    str_printf(s,
               "\"data\": \"%s\", \"batch\": %lld, \"accumulate\": %lld, \"total_steps\": %lld, \"seed\": %llu, "
               "\"learning_rate\": \"%a\"}",
               t->data_hash, (long long)o->batch, (long long)o->accumulate, (long long)t->total_steps,
               (unsigned long long)o->seed, o->learning_rate);
}

/* ---- what a save works on ---- */

struct saving {
    struct trainer *t;         /* of it only what no step changes: options, shapes, lora->data */
    char name[40], dir[1200];  /* checkpoint-N; the folder it grows in */
    struct str facts, report;  /* report: trainer_state.json */
    struct params_copy copy;
    int copied;                /* else state and values are read from the pages */
    int64_t step, best_step;
    pthread_t thread;
    int threaded, done;        /* done: set by the thread, atomically, as its last act */
    double held, waited, seconds; /* that the run stood still to give what is saved, and to wait for the end; that writing took */
    int64_t bytes;             /* written */
    int failed;
    struct err e;
};

/* The adapter, or the model itself where the weights are all that is asked for; a checkpoint to resume from holds exact values instead. */
static int write_weights(struct trainer *t, const char *dir, int final, struct err *e) {
    if (setup_is_lora(t)) {
        if (lora_save(&t->lora, dir, t->o->model_name_or_path, e)) return -1;
    } else if (final || t->o->save_only_model) {
        struct ckpt *frozen = ckpt_open(t->o->model_name_or_path, e); /* what a card holds of it in bf16 is less than it was, perhaps */
        struct params_reading from = {.q = &t->params, .frozen = frozen};
        int r = frozen ? model_save(&t->model, params_read, &from, dir, (int64_t)5000000000, e) : -1;
        ckpt_close(frozen);
        if (r) return -1;
    }
    return copy_tokenizer(t->o->model_name_or_path, dir, e);
}

int state_write_weights(struct trainer *t, const char *dir, struct err *e) {
    params_settle(&t->params);
    return (setup_is_lora(t) && params_fetch(&t->params, e)) || write_weights(t, dir, 1, e) ? -1 : 0;
}

/* ---- writing ---- */

/* Weights and values, the part that may go beside the optimizer state: of full fine-tuning only if there is a copy, for the device
 * is spoken to from one thread at a time. */
struct share { struct saving *s; struct err e; int r; };

static void *write_values(void *of) {
    struct share *w = of;
    struct saving *s = w->s;
    struct trainer *t = s->t;
    char path[1300];
    w->r = write_weights(t, s->dir, 0, &w->e) || path_join(path, sizeof path, s->dir, "trainer_state.json", &w->e) ||
                   file_write_all(path, s->report.p, s->report.n, &w->e)
               ? -1
               : 0;
    if (!w->r && !t->o->save_only_model && !setup_is_lora(t))
        w->r = params_save_values(&t->params, s->copied ? &s->copy : NULL, s->dir, &w->e);
    return NULL;
}

static int write_files(struct saving *s, struct err *e) {
    struct trainer *t = s->t;
    struct share values = {.s = s};
    pthread_t thread;
    const int beside = !sys_fault.at && (s->copied || setup_is_lora(t)) && !pthread_create(&thread, NULL, write_values, &values);
    if (!beside) write_values(&values);
    int r = (beside || !values.r) && !t->o->save_only_model
                ? params_save_state(&t->params, s->copied ? &s->copy : NULL, s->dir, s->step, e)
                : 0;
    if (beside) pthread_join(thread, NULL);
    if (!values.r) return r;
    if (!r) *e = values.e;
    return -1;
}

static int64_t folder_bytes(const char *dir) {
    char **names, path[1500];
    int n;
    int64_t sum = 0;
    if (dir_list(dir, &names, &n, NULL)) return 0;
    for (int i = 0; i < n; i++)
        if (!path_join(path, sizeof path, dir, names[i], NULL)) sum += path_bytes(path);
    dir_list_free(names, n);
    return sum;
}

/* Keeps the newest save_total_limit checkpoints, and never removes the last two valid ones or the best one. */
static int rotate(const struct saving *s, struct err *e) {
    const struct train_options *o = s->t->o;
    int64_t limit = o->save_total_limit, *steps;
    int n;
    if (!limit) return 0;
    if (limit < 2) limit = 2;
    if (state_list(o->output_dir, &steps, &n, e)) return -1;
    int r = 0, valid = 0;
    for (int i = n - 1; !r && i >= 0; i--) {
        char path[1200];
        struct err why = {0};
        snprintf(path, sizeof path, "%s/checkpoint-%lld", o->output_dir, (long long)steps[i]);
        if (n - i <= limit || valid < 2) {
            valid += manifest_check(path, &why) == 1;
            continue;
        }
        if (best_wanted(o) && steps[i] == s->best_step) continue;
        log_info("Deleting older checkpoint [%s] due to args.save_total_limit", path);
        r = dir_remove(path, e);
    }
    sys_free(steps);
    return r;
}

static void *write_all(void *of) {
    struct saving *s = of;
    const double start = sys_seconds();
    s->failed = write_files(s, &s->e) != 0;
    s->bytes = s->failed ? 0 : folder_bytes(s->dir);
    s->failed = s->failed || manifest_commit(s->t->o->output_dir, s->name, s->dir, s->facts.p, &s->e);
    if (s->failed) manifest_abort(s->dir);
    else s->failed = rotate(s, &s->e) != 0;
    s->seconds = sys_seconds() - start;
    __atomic_store_n(&s->done, 1, __ATOMIC_RELEASE);
    return NULL;
}

/* ---- the run's side ---- */

static void saving_free(struct saving *s) {
    params_copy_free(&s->copy), str_free(&s->facts), str_free(&s->report), sys_free(s);
}

/* A weight or moment in memory is not finite: says what there is to go back to. */
static int name_good(const struct trainer *t, int64_t step, struct err *e) {
    if (e->code != ERR_NONFINITE) return -1;
    if (!t->good_step) return err_where(e, "after step %lld", (long long)step);
    return err_where(e, "after step %lld (the last good state is %s/checkpoint-%lld)", (long long)step, t->o->output_dir,
                     (long long)t->good_step);
}

/* The save that is under way has ended: what became of it. */
static int conclude(struct trainer *t, struct err *e) {
    struct saving *s = t->saving;
    char size[24], waited[60] = "";
    t->saving = NULL;
    const int r = s->failed ? -1 : 0;
    if (s->waited >= 0.01) snprintf(waited, sizeof waited, ", and waited %.2f s for the end of it", s->waited);
    if (!r) t->good_step = s->step;
    if (r) *e = s->e, name_good(t, s->step, e);
    else if (s->threaded)
        log_info("%s is on the disk: %s in %.1f s beside the run, which stood still for %.2f s%s", s->name,
                 text_bytes(size, s->bytes), s->seconds, s->held, waited);
    else log_info("%s is on the disk: %s in %.2f s", s->name, text_bytes(size, s->bytes), s->held + s->seconds);
    saving_free(s);
    return r;
}

int state_saved(struct trainer *t, int wait, struct err *e) {
    struct saving *s = t->saving;
    if (!s || (!wait && !__atomic_load_n(&s->done, __ATOMIC_ACQUIRE))) return 0;
    const double start = sys_seconds();
    pthread_join(s->thread, NULL);
    s->waited = sys_seconds() - start;
    return conclude(t, e);
}

/* Memory for a copy, with a twentieth of it and a little more left to others. */
static int take_copy(struct saving *s) {
    struct params *p = &s->t->params;
    struct err none = {0};
    char need[24], have[24];
    const int64_t bytes = params_copy_bytes(p), room = sys_free_memory();
    if (sys_fault.at || (s->t->o->save_only_model && !setup_is_lora(s->t))) return 0; /* counted calls; a model that is read from
                                                                                       * its pages */
    if (s->t->o->save_only_model) return 1;
    if (room < bytes + bytes / 20 + ((int64_t)64 << 20)) {
        log_info("saving holds up the run: a copy of %s does not fit into the %s of memory that are free",
                 text_bytes(need, bytes), text_bytes(have, room));
        return 0;
    }
    return s->copied = !params_copy_take(p, &s->copy, &none);
}

/* What the run must give before it goes on. */
static int gather(struct saving *s, double epoch, struct err *e) {
    struct trainer *t = s->t;
    write_facts(t, &s->facts);
    if (s->facts.oom) return err_set(e, ERR_RUN, "out of memory: checkpoint facts");
    if (setup_is_lora(t) && params_fetch(&t->params, e)) return -1;
    best_report(t, t->at.step);
    report_state_text(t->report, t->at.step, epoch, &s->report);
    return s->report.oom ? err_set(e, ERR_RUN, "out of memory: trainer_state.json") : 0;
}

int state_save(struct trainer *t, double epoch, struct err *e) {
    if (state_saved(t, 1, e)) return -1;
    params_settle(&t->params); /* the last update, which the next step would carry out: no cost of saving */
    if (t->be->sync(t->be->self, e)) return -1;
    const double start = sys_seconds();
    struct saving *s = sys_alloc(sizeof *s, "a checkpoint", e);
    if (!s) return -1;
    s->t = t, s->step = t->at.step, s->best_step = t->at.best_step;
    snprintf(s->name, sizeof s->name, "checkpoint-%lld", (long long)s->step);
    log_info("Saving model checkpoint to %s/%s", t->o->output_dir, s->name);
    if (manifest_begin(t->o->output_dir, s->name, s->dir, sizeof s->dir, e)) return saving_free(s), -1;
    if (gather(s, epoch, e)) {
        manifest_abort(s->dir);
        name_good(t, s->step, e);
        return saving_free(s), -1;
    }
    t->saving = s;
    s->threaded = take_copy(s) && !pthread_create(&s->thread, NULL, write_all, s);
    s->held = sys_seconds() - start;
    if (s->threaded) return 0;
    write_all(s);
    return conclude(t, e);
}
