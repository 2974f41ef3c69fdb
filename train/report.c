/* train/report.c - the log files of a run, in the names and number formats of LLaMA-Factory and transformers (Python's
 * json.dumps and repr). See report.h. */
#include "train/report.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/print.h"
#include "base/sys.h"
#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LOG_MAX_BYTES = 1 << 30, PARTS_MAX = 16 };

struct report {
    struct report_config c;
    char dir[4096], log_path[4200];
    struct report_event *events; /* [n], the whole run's, also of the parts before a resume */
    int64_t n, cap;
    struct tfevents *tf;
    struct report_results results;
    int finished; /* results are valid */
    double best;  /* NaN: none */
    char best_checkpoint[4200]; /* "" = none */
};

/* What is known of an evaluation beside its loss, as trainer_state.json has it. */
static const struct eval_field { const char *key, *tag; size_t at; int digits; } eval_fields[] = {
    {"eval_accuracy", "eval/accuracy", offsetof(struct report_event, eval_accuracy), 4},
    {"eval_runtime", "eval/runtime", offsetof(struct report_event, eval_runtime), 4},
    {"eval_samples_per_second", "eval/samples_per_second", offsetof(struct report_event, eval_samples_per_second), 3},
    {"eval_steps_per_second", "eval/steps_per_second", offsetof(struct report_event, eval_steps_per_second), 3},
};
enum { EVAL_FIELDS = sizeof eval_fields / sizeof *eval_fields };

/* NaN when the event has no such field. */
static double eval_value(const struct report_event *ev, int i) {
    double x;
    memcpy(&x, (const char *)ev + eval_fields[i].at, sizeof x);
    return isnan(ev->eval_loss) || (i && !(ev->eval_runtime > 0)) ? NAN : x;
}

/* ---- numbers and objects as Python writes them ---- */

/* round(x, digits): printf rounds the exact binary value, ties to even, as Python does. */
static double rounded(double x, int digits) {
    char text[400];
    if (!isfinite(x)) return x;
    snprintf(text, sizeof text, "%.*f", digits, x);
    return strtod(text, NULL);
}

/* repr of a float: whole numbers end in ".0". Not finite: null, which every JSON reader knows. */
static void put_float(struct str *s, double x) {
    size_t at = s->n;
    str_json_num(s, x);
    if (isfinite(x) && !s->oom && !strpbrk(s->p + at, ".e")) str_puts(s, ".0");
}

/* Objects are written member by member: put_key adds the separator and the key. */
static void put_key(struct str *s, const char *between, const char *key) {
    const int first = !s->oom && s->p[s->n - 1] == '{';
    if (!first) str_putc(s, ',');
    if (!first || *between == '\n') str_puts(s, between);
    str_json(s, key, strlen(key)); /* all_results.json may bring any */
    str_puts(s, ": ");
}

static void put_member(struct str *s, const char *between, const char *key, double x) {
    put_key(s, between, key);
    put_float(s, x);
}

/* A number on the terminal, in a Python dictionary. */
static void put_item(struct str *s, const char *key, double x) {
    str_printf(s, "%s'%s': ", s->n ? ", " : "{", key);
    if (isfinite(x))
        put_float(s, x);
    else
        str_puts(s, isnan(x) ? "nan" : x > 0 ? "inf" : "-inf");
}

static int write_text(const char *dir, const char *name, struct str *s, struct err *e) {
    char path[4200];
    int r = path_join(path, sizeof path, dir, name, e);
    if (!r && s->oom) r = err_set(e, ERR_RUN, "out of memory: %s", path);
    if (!r) r = file_write_all(path, s->p, s->n, e);
    str_free(s);
    return r;
}

/* Prints a dictionary begun with put_item. */
static int print_line(struct str *s, struct err *e) {
    int r = s->oom ? err_set(e, ERR_RUN, "out of memory: a log line") : 0;
    if (!r) print_bytes(s->p, s->n), print_text("}\n"), print_flush();
    str_free(s);
    return r;
}

/* ---- history ---- */

static int remember(struct report *r, const struct report_event *ev, struct err *e) {
    if (r->n == r->cap) {
        int64_t cap = r->cap ? 2 * r->cap : 64;
        struct report_event *p = sys_grow(r->events, (size_t)cap * sizeof *p, "history of the run", e);
        if (!p) return -1;
        r->events = p, r->cap = cap;
    }
    struct report_part *part = ev->parts ? sys_alloc_array((size_t)ev->parts, sizeof *part, "history of the run", e) : NULL;
    if (ev->parts && !part) return -1;
    if (part) memcpy(part, ev->part, (size_t)ev->parts * sizeof *part);
    r->events[r->n] = *ev;
    r->events[r->n++].part = part; /* owned here */
    return 0;
}

static void forget(struct report *r) {
    for (int64_t i = 0; i < r->n; i++) sys_free((void *)r->events[i].part);
    sys_free(r->events);
    r->events = NULL, r->n = r->cap = 0;
}

/* Calls put for each number of the parts of an event, by its key. */
static void each_part(const struct report_event *ev, void put(void *context, const char *key, double x), void *context) {
    char key[REPORT_NAME_MAX + 20];
    for (int i = 0; i < ev->parts; i++)
        for (int k = 0; k < 2; k++) {
            const double x = k ? ev->part[i].accuracy : ev->part[i].loss;
            snprintf(key, sizeof key, "eval_%s_%s", ev->part[i].name, k ? "accuracy" : "loss");
            if (!isnan(x)) put(context, key, x);
        }
}
static void part_item(void *s, const char *key, double x) { put_item(s, key, rounded(x, 4)); }
static void part_line(void *s, const char *key, double x) { put_member(s, " ", key, x); }
static void part_state(void *s, const char *key, double x) { put_member(s, "\n      ", key, x); }
static void part_metric(void *t, const char *key, double x) { report_set(t, key, x); }

/* The parts among the members of a history entry: numbers eval_NAME_loss, with eval_NAME_accuracy beside them. Returns their number. */
static int read_parts(const struct cJSON *entry, struct report_part part[], int most) {
    int n = 0;
    for (const struct cJSON *v = entry->child; v && n < most; v = v->next) {
        char key[REPORT_NAME_MAX + 20];
        const size_t length = strlen(v->string);
        if (!text_starts(v->string, "eval_") || !text_ends(v->string, "_loss") || length < 11 || length - 10 >= REPORT_NAME_MAX ||
            !cJSON_IsNumber(v))
            continue;
        snprintf(part[n].name, REPORT_NAME_MAX, "%.*s", (int)(length - 10), v->string + 5);
        snprintf(key, sizeof key, "eval_%s_accuracy", part[n].name);
        const struct cJSON *accuracy = json_get(entry, key);
        part[n].loss = v->valuedouble, part[n++].accuracy = cJSON_IsNumber(accuracy) ? accuracy->valuedouble : NAN;
    }
    return n;
}

/* Takes the history up to from_step out of the checkpoint's trainer_state.json. */
static int read_history(struct report *r, struct err *e) {
    char path[4300], checkpoint[4200];
    struct cJSON *j = NULL;
    int result = -1;
    snprintf(checkpoint, sizeof checkpoint, "%s/checkpoint-%lld", r->dir, (long long)r->c.from_step);
    if (path_join(path, sizeof path, r->c.state_dir ? r->c.state_dir : checkpoint, "trainer_state.json", e))
        return -1;
    if (!path_exists(path)) return 0;
    if (!(j = json_parse_file(path, LOG_MAX_BYTES, e))) return -1;
    const struct cJSON *list = json_get(j, "log_history");
    for (const struct cJSON *v = list ? list->child : NULL; v; v = v->next) {
        struct report_event ev = {
            .loss = NAN, .eval_loss = NAN, .eval_accuracy = NAN, .learning_rate = NAN, .grad_norm = NAN, .tokens_seen = -1};
        if (!cJSON_IsObject(v)) continue;
        const struct cJSON *loss = json_get(v, "loss");
        if (json_int(v, "step", 0, INT64_MAX, &ev.step, path, e) < 0 ||
            json_num(v, "epoch", &ev.epoch, path, e) < 0 || json_num(v, "loss", &ev.loss, path, e) < 0 ||
            json_num(v, "eval_loss", &ev.eval_loss, path, e) < 0 ||
            json_num(v, "grad_norm", &ev.grad_norm, path, e) < 0 ||
            json_num(v, "learning_rate", &ev.learning_rate, path, e) < 0)
            goto out;
        for (int i = 0; i < EVAL_FIELDS; i++) {
            double x = NAN;
            if (json_num(v, eval_fields[i].key, &x, path, e) < 0) goto out;
            if (!isnan(x)) memcpy((char *)&ev + eval_fields[i].at, &x, sizeof x);
        }
        if (loss && cJSON_IsNull(loss)) ev.loss = INFINITY;
        struct report_part part[PARTS_MAX];
        ev.part = part, ev.parts = isnan(ev.eval_loss) ? 0 : read_parts(v, part, PARTS_MAX);
        if (ev.step > r->c.from_step || (isnan(ev.loss) && isnan(ev.eval_loss))) continue;
        if (remember(r, &ev, e)) goto out;
    }
    result = 0;
out:
    json_free(j);
    return result;
}

/* Drops lines after from_step, and a torn last one, from trainer_log.jsonl; the file is replaced whole. */
static int cut_log(struct report *r, struct err *e) {
    char *text;
    size_t n, kept = 0;
    int result = -1;
    if (!path_exists(r->log_path)) return 0;
    if (file_read_all(r->log_path, LOG_MAX_BYTES, &text, &n, e)) return -1;
    for (size_t at = 0; at < n;) {
        const char *end = memchr(text + at, '\n', n - at);
        if (!end) break;
        size_t line = (size_t)(end - text) + 1 - at;
        int64_t step;
        struct err why = {0};
        struct cJSON *j = json_parse(text + at, line, r->log_path, &why);
        if (why.code == ERR_RUN) { /* no memory: not the line's fault */
            *e = why;
            goto out;
        }
        if (j && json_int(j, "current_steps", 0, r->c.from_step, &step, r->log_path, NULL) == 1) {
            memmove(text + kept, text + at, line);
            kept += line;
        }
        json_free(j);
        at += line;
    }
    result = kept == n ? 0 : file_write_all(r->log_path, text, kept, e);
out:
    sys_free(text);
    return result;
}

struct report *report_open(const struct report_config *c, struct err *e) {
    struct report *r = sys_alloc(sizeof *r, "log of the run", e);
    if (!r) return NULL;
    r->c = *c;
    r->best = NAN;
    if (path_join(r->log_path, sizeof r->log_path, c->dir, "trainer_log.jsonl", e)) goto fail;
    snprintf(r->dir, sizeof r->dir, "%s", c->dir);
    if (c->append) {
        if (read_history(r, e) || cut_log(r, e)) goto fail;
    } else if (sys_unlink(r->log_path) && errno != ENOENT) {
        err_errno(e, ERR_RUN, "cannot remove %s", r->log_path);
        goto fail;
    }
    if (!c->no_events && !(r->tf = tfevents_open(r->dir, c->append ? c->from_step : -1, e))) goto fail;
    return r;
fail:
    report_close(r);
    return NULL;
}

void report_close(struct report *r) {
    if (!r) return;
    tfevents_close(r->tf);
    forget(r);
    sys_free(r);
}

/* ---- one event ---- */

static double shown_epoch(const struct report *r, double epoch) {
    return r->c.compat_old ? rounded(epoch, 2) : epoch;
}

/* Absent values: no key (NEW) or null (OLD). */
static void log_number(const struct report *r, struct str *s, const char *key, double x) {
    if (!isnan(x))
        put_member(s, " ", key, x);
    else if (r->c.compat_old)
        put_key(s, " ", key), str_puts(s, "null");
}

static void log_time(struct str *s, const char *key, double seconds) {
    char text[40];
    put_key(s, " ", key);
    str_printf(s, "\"%s\"", text_seconds(text, seconds > 0 ? seconds : 0));
}

static int append_log(struct report *r, const struct report_event *ev, struct err *e) {
    struct str s = {0};
    const double share = ev->total_steps > 0 ? (double)ev->step / (double)ev->total_steps * 100 : 100;
    str_printf(&s, "{\"current_steps\": %lld, \"total_steps\": %lld", (long long)ev->step,
               (long long)ev->total_steps);
    log_number(r, &s, "loss", rounded(ev->loss, 4));
    log_number(r, &s, "eval_loss", ev->eval_loss);
    each_part(ev, part_line, &s);
    log_number(r, &s, "predict_loss", NAN);
    log_number(r, &s, "reward", NAN);
    log_number(r, &s, r->c.compat_old ? "learning_rate" : "lr", ev->learning_rate);
    log_number(r, &s, "epoch", shown_epoch(r, ev->epoch));
    put_member(&s, " ", "percentage", rounded(share, 2));
    log_time(&s, "elapsed_time", ev->elapsed_seconds);
    log_time(&s, "remaining_time", ev->remaining_seconds);
    if (r->c.with_throughput && ev->tokens_seen >= 0) {
        put_member(&s, " ", "throughput", rounded(ev->tokens_per_second, 2));
        put_key(&s, " ", "total_tokens");
        str_printf(&s, "%lld", (long long)ev->tokens_seen);
    }
    str_putc(&s, '}');
    int result =
        s.oom ? err_set(e, ERR_RUN, "out of memory: %s", r->log_path) : file_append_line(r->log_path, s.p, e);
    str_free(&s);
    return result;
}

static int add_scalars(struct report *r, const struct report_event *ev, struct err *e) {
    const struct {
        const char *tag;
        double value;
    } scalars[] = {{"train/loss", ev->loss},
                   {"train/learning_rate", ev->learning_rate},
                   {"train/grad_norm", ev->grad_norm},
                   {"train/epoch", ev->epoch},
                   {"eval/loss", ev->eval_loss}};
    if (!r->tf) return 0;
    for (size_t i = 0; i < sizeof scalars / sizeof *scalars; i++)
        if (!isnan(scalars[i].value) && tfevents_scalar(r->tf, scalars[i].tag, ev->step, scalars[i].value, e))
            return -1;
    for (int i = 0; i < EVAL_FIELDS; i++) {
        double x = eval_value(ev, i);
        if (!isnan(x) && tfevents_scalar(r->tf, eval_fields[i].tag, ev->step, x, e)) return -1;
    }
    for (int i = 0; i < 2 * ev->parts; i++) {
        const struct report_part *p = &ev->part[i / 2];
        char tag[REPORT_NAME_MAX + 20];
        snprintf(tag, sizeof tag, "eval/%s_%s", p->name, i % 2 ? "accuracy" : "loss");
        double x = i % 2 ? p->accuracy : p->loss;
        if (!isnan(x) && tfevents_scalar(r->tf, tag, ev->step, x, e)) return -1;
    }
    return 0;
}

int report_add(struct report *r, const struct report_event *ev, struct err *e) {
    struct str s = {0};
    if (!isnan(ev->loss)) put_item(&s, "loss", rounded(ev->loss, 4));
    if (!isnan(ev->eval_loss)) put_item(&s, "eval_loss", rounded(ev->eval_loss, 4));
    for (int i = 0; i < EVAL_FIELDS; i++) {
        double x = eval_value(ev, i);
        if (!isnan(x)) put_item(&s, eval_fields[i].key, rounded(x, eval_fields[i].digits));
    }
    each_part(ev, part_item, &s);
    if (!isnan(ev->grad_norm) && !r->c.compat_old) put_item(&s, "grad_norm", rounded(ev->grad_norm, 4));
    if (!isnan(ev->learning_rate)) put_item(&s, "learning_rate", ev->learning_rate);
    put_item(&s, "epoch", rounded(ev->epoch, 2));
    return print_line(&s, e) || remember(r, ev, e) || append_log(r, ev, e) || add_scalars(r, ev, e) ? -1 : 0;
}

void report_progress(const struct report_event *ev, int done) {
    enum { WIDTH = 10 };
    static double shown = -1e9; /* on a terminal the log itself would show ten a second */
    const double now = sys_seconds();
    if (log_is_terminal() && !done && now - shown < 1) return;
    shown = now;
    char left[40], speed[32], bar[WIDTH + 1], bytes[24], until[64] = "", tail[80] = "";
    const int64_t total = ev->total_steps > 0 ? ev->total_steps : 1;
    const int full = (int)(ev->step >= total ? WIDTH : ev->step * WIDTH / total);
    memset(bar, '#', WIDTH);
    memset(bar + full, '-', (size_t)(WIDTH - full));
    bar[WIDTH] = 0;
    text_thousands(speed, isfinite(ev->tokens_per_second) ? (int64_t)ev->tokens_per_second : 0);
    if (!done) snprintf(until, sizeof until, "  %s left", text_seconds(left, ev->remaining_seconds > 0 ? ev->remaining_seconds : 0));
    if (ev->share > 0) snprintf(tail, sizeof tail, "  %4.1f %% of peak", 100 * ev->share);
    if (ev->device_bytes > 0) snprintf(tail + strlen(tail), sizeof tail - strlen(tail), "  %s", text_bytes(bytes, ev->device_bytes));
    log_progress(done, "%s %*lld/%lld  loss %.4f %7s tokens/s%s  lr %.2e  norm %-6.3g%s", bar,
                 snprintf(NULL, 0, "%lld", (long long)ev->total_steps), (long long)ev->step, (long long)ev->total_steps, ev->loss,
                 speed, until, ev->learning_rate, ev->grad_norm, tail);
}

/* ---- trainer_state.json ---- */

static void state_results(const struct report *r, struct str *s, const char *between) {
    const struct report_results *t = &r->results;
    put_member(s, between, "epoch", shown_epoch(r, t->epoch));
    put_key(s, between, "step");
    str_printf(s, "%lld", (long long)(r->n ? r->events[r->n - 1].step : t->steps));
    put_member(s, between, "total_flos", t->total_flos);
    put_member(s, between, "train_loss", t->train_loss);
    put_member(s, between, "train_runtime", rounded(t->train_runtime, 4));
    put_member(s, between, "train_samples_per_second", rounded((double)t->samples / t->train_runtime, 3));
    put_member(s, between, "train_steps_per_second", rounded((double)t->steps / t->train_runtime, 3));
}

static void state_event(const struct report *r, struct str *s, const char *between,
                        const struct report_event *ev) {
    put_member(s, between, "epoch", shown_epoch(r, ev->epoch));
    for (int i = 0; i < EVAL_FIELDS; i++) { /* keys in the order of the alphabet */
        double x = eval_value(ev, i);
        if (i == 1 && !isnan(ev->eval_loss)) put_member(s, between, "eval_loss", ev->eval_loss);
        if (!isnan(x)) put_member(s, between, eval_fields[i].key, i ? rounded(x, eval_fields[i].digits) : x);
    }
    each_part(ev, part_state, s);
    if (!isnan(ev->grad_norm)) put_member(s, between, "grad_norm", ev->grad_norm);
    if (!isnan(ev->learning_rate)) put_member(s, between, "learning_rate", ev->learning_rate);
    if (!isnan(ev->loss)) put_member(s, between, "loss", rounded(ev->loss, 4));
    put_key(s, between, "step");
    str_printf(s, "%lld", (long long)ev->step);
}

void report_best(struct report *r, double metric, const char *checkpoint) {
    r->best = metric;
    snprintf(r->best_checkpoint, sizeof r->best_checkpoint, "%s", checkpoint ? checkpoint : "");
}

void report_state_text(const struct report *r, int64_t step, double epoch, struct str *s) {
    static const char between[] = "\n      ";
    const struct report_config *c = &r->c;
    str_puts(s, "{\n  \"best_metric\": ");
    put_float(s, r->best);
    str_puts(s, ",\n  \"best_model_checkpoint\": ");
    if (r->best_checkpoint[0]) str_json(s, r->best_checkpoint, strlen(r->best_checkpoint));
    else str_puts(s, "null");
    str_puts(s, ",\n  \"epoch\": ");
    put_float(s, epoch);
    str_printf(s,
               ",\n  \"eval_steps\": %lld,\n  \"global_step\": %lld,\n  \"is_hyper_param_search\": false,\n"
               "  \"is_local_process_zero\": true,\n  \"is_world_process_zero\": true,\n  \"log_history\": [",
               (long long)c->eval_steps, (long long)step);
    const int64_t entries = r->n + r->finished;
    int64_t tokens = 0;
    for (int64_t i = 0; i < entries; i++) {
        str_puts(s, i ? ",\n    {" : "\n    {");
        if (i < r->n)
            state_event(r, s, between, &r->events[i]);
        else
            state_results(r, s, between);
        str_puts(s, "\n    }");
        if (i < r->n && r->events[i].tokens_seen > tokens) tokens = r->events[i].tokens_seen;
    }
    str_printf(
        s, "%s],\n  \"logging_steps\": %lld,\n  \"max_steps\": %lld,\n  \"num_input_tokens_seen\": %lld,\n",
        entries ? "\n  " : "", (long long)c->logging_steps, (long long)c->max_steps, (long long)tokens);
    str_printf(s, "  \"num_train_epochs\": %lld,\n  \"save_steps\": %lld,\n  \"total_flos\": ",
               (long long)ceil(c->epochs), (long long)c->save_steps);
    put_float(s, r->finished ? r->results.total_flos : 0);
    str_printf(s, ",\n  \"train_batch_size\": %lld,\n  \"trial_name\": null,\n  \"trial_params\": null\n}\n",
               (long long)c->train_batch_size);
}

int report_state(const struct report *r, const char *dir, int64_t step, double epoch, struct err *e) {
    struct str s = {0};
    report_state_text(r, step, epoch, &s);
    return write_text(dir, "trainer_state.json", &s, e);
}

/* ---- results at the end ---- */

void report_set(struct report_metrics *t, const char *key, double value) {
    int i = 0;
    if (isnan(value)) return;
    while (i < t->n && strcmp(t->m[i].key, key) < 0) i++;
    if (i == t->n || strcmp(t->m[i].key, key)) {
        if (t->n == REPORT_METRICS_MAX || strlen(key) >= sizeof t->m->key)
            return; /* a stranger's all_results.json only */
        memmove(&t->m[i + 1], &t->m[i], (size_t)(t->n - i) * sizeof *t->m);
        strcpy(t->m[i].key, key);
        t->n++;
    }
    t->m[i].value = value;
}

static int write_metrics(const struct report_metrics *t, const char *dir, const char *name, struct err *e) {
    struct str s = {0};
    str_putc(&s, '{');
    for (int i = 0; i < t->n; i++) put_member(&s, "\n    ", t->m[i].key, t->m[i].value);
    str_puts(&s, "\n}");
    return write_text(dir, name, &s, e);
}

/* all_results.json keeps the numbers of earlier runs of other kinds. */
static int merge_metrics(const struct report_metrics *t, const char *dir, struct err *e) {
    char path[4200];
    struct report_metrics all = {0};
    if (path_join(path, sizeof path, dir, "all_results.json", e)) return -1;
    struct err why = {0};
    struct cJSON *old = path_exists(path) ? json_parse_file(path, 1 << 20, &why) : NULL;
    if (why.code == ERR_RUN) return *e = why, -1;
    for (const struct cJSON *v = old && cJSON_IsObject(old) ? old->child : NULL; v; v = v->next)
        if (cJSON_IsNumber(v)) report_set(&all, v->string, v->valuedouble);
    json_free(old);
    for (int i = 0; i < t->n; i++) report_set(&all, t->m[i].key, t->m[i].value);
    return write_metrics(&all, dir, "all_results.json", e);
}

static void put_metric(struct str *s, const struct report_metric *m) {
    char time[40];
    if (text_ends(m->key, "_runtime"))
        str_printf(s, "%s.%02d", text_seconds(time, floor(m->value)),
                   (int)((m->value - floor(m->value)) * 100));
    else if (!strcmp(m->key, "total_flos"))
        str_printf(s, "%.0fGF", floor(m->value / 0x1p30));
    else
        put_float(s, rounded(m->value, 4));
}

/* "***** train metrics *****" and a table with aligned keys and values. */
static int print_metrics(const char *split, const struct report_metrics *t, struct err *e) {
    struct str text = {0}, table = {0};
    size_t key_width = 0, value_width = 0;
    int lost = 0;
    for (int pass = 0; pass < 2; pass++) /* measure, then write */
        for (int i = 0; i < t->n; i++) {
            const size_t key = strlen(t->m[i].key);
            str_clear(&text);
            put_metric(&text, &t->m[i]);
            lost |= text.oom;
            if (key > key_width) key_width = key;
            if (text.n > value_width) value_width = text.n;
            if (pass && !lost)
                str_printf(&table, "  %-*s = %*s\n", (int)key_width, t->m[i].key, (int)value_width, text.p);
        }
    int r = lost || table.oom ? err_set(e, ERR_RUN, "out of memory: the %s metrics", split) : 0;
    if (!r) print_text("***** "), print_text(split), print_text(" metrics *****\n"), print_bytes(table.p, table.n), print_flush();
    str_free(&text);
    str_free(&table);
    return r;
}

int report_write(const struct report_metrics *t, const char *dir, const char *split, struct err *e) {
    char name[64];
    snprintf(name, sizeof name, "%s_results.json", split);
    return print_metrics(split, t, e) || write_metrics(t, dir, name, e) || merge_metrics(t, dir, e) ? -1 : 0;
}

void report_set_speed(struct report_metrics *t, const char *prefix, double seconds, int64_t samples, int64_t steps) {
    char key[64];
    if (!(seconds > 1e-3)) seconds = 1e-3; /* no division by zero in files */
    snprintf(key, sizeof key, "%s_runtime", prefix);
    report_set(t, key, rounded(seconds, 4));
    snprintf(key, sizeof key, "%s_samples_per_second", prefix);
    report_set(t, key, rounded((double)samples / seconds, 3));
    snprintf(key, sizeof key, "%s_steps_per_second", prefix);
    report_set(t, key, rounded((double)steps / seconds, 3));
}

static int write_plot(const struct report *r, const char *key, size_t field, struct err *e) {
    char path[4200], name[64];
    struct str title = {0};
    int64_t n = 0;
    int result = -1;
    double *xy = sys_alloc_array((size_t)r->n, 2 * sizeof *xy, "points of the plot", e);
    if (!xy) return -1;
    for (int64_t i = 0; i < r->n; i++) {
        double y; /* absent (NaN) and lost (infinite) values leave a gap */
        if (strstr(key, "eval_") && isnan(r->events[i].eval_loss)) continue;
        memcpy(&y, (const char *)&r->events[i] + field, sizeof y);
        if (fabs(y) < 1e30) xy[n] = (double)r->events[i].step, xy[r->n + n++] = y;
    }
    if (!n) {
        log_info("No metric %s to plot.", key);
        result = 0;
        goto out;
    }
    snprintf(name, sizeof name, "training_%s.png", key);
    str_printf(&title, "training %s of %s", key, r->dir);
    if (title.oom) {
        err_set(e, ERR_RUN, "out of memory: %s", name);
        goto out;
    }
    if (path_join(path, sizeof path, r->dir, name, e) ||
        plot_png(path, title.p, "step", key, xy, xy + r->n, n, e))
        goto out;
    print_text("Figure saved at: "), print_text(path), print_text("\n"), print_flush();
    result = 0;
out:
    str_free(&title);
    sys_free(xy);
    return result;
}

int report_finish(struct report *r, const struct report_results *res, struct err *e) {
    struct report_metrics train = {0}, eval = {0};
    struct str s = {0};
    r->results = *res;
    /* a run that resumed at its end took no time: avoid 0/0 in files */
    if (!(r->results.train_runtime > 1e-3)) r->results.train_runtime = 1e-3;
    r->finished = 1;
    res = &r->results;

    const double runtime = rounded(res->train_runtime, 4);
    const double samples_rate = rounded((double)res->samples / res->train_runtime, 3);
    const double steps_rate = rounded((double)res->steps / res->train_runtime, 3);
    put_item(&s, "train_runtime", runtime);
    put_item(&s, "train_samples_per_second", samples_rate);
    put_item(&s, "train_steps_per_second", steps_rate);
    put_item(&s, "train_loss", res->train_loss);
    put_item(&s, "epoch", rounded(res->epoch, 2));
    if (print_line(&s, e)) return -1;

    struct report_event last =
        r->n ? r->events[r->n - 1] : (struct report_event){.step = res->steps, .total_steps = res->steps};
    last.loss = last.eval_loss = last.learning_rate = NAN, last.parts = 0;
    last.epoch = res->epoch, last.elapsed_seconds = res->train_runtime, last.remaining_seconds = 0;
    if (append_log(r, &last, e)) return -1;

    report_set(&train, "epoch", shown_epoch(r, res->epoch));
    report_set(&train, "total_flos", res->total_flos);
    report_set(&train, "train_loss", res->train_loss);
    report_set(&train, "train_runtime", runtime);
    report_set(&train, "train_samples_per_second", samples_rate);
    report_set(&train, "train_steps_per_second", steps_rate);
    if (report_write(&train, r->dir, "train", e)) return -1;
    if (!isnan(res->eval_loss)) {
        report_set(&eval, "epoch", shown_epoch(r, res->epoch));
        report_set(&eval, "eval_loss", res->eval_loss);
        report_set(&eval, "eval_accuracy", res->eval_accuracy);
        report_set(&eval, r->c.compat_old ? "perplexity" : "eval_perplexity", exp(res->eval_loss));
        for (int64_t i = r->n - 1; i >= 0; i--)
            if (!isnan(r->events[i].eval_loss)) {
                each_part(&r->events[i], part_metric, &eval);
                break;
            }
        report_set_speed(&eval, "eval", res->eval_runtime, res->eval_samples, res->eval_steps);
        if (report_write(&eval, r->dir, "eval", e)) return -1;
    }
    if (r->c.plot_loss && (write_plot(r, "loss", offsetof(struct report_event, loss), e) ||
                           write_plot(r, "eval_loss", offsetof(struct report_event, eval_loss), e) ||
                           (!isnan(res->eval_accuracy) && write_plot(r, "eval_accuracy", offsetof(struct report_event, eval_accuracy), e))))
        return -1;
    return 0;
}
