/* train/schedule.c - see schedule.h. The order of operations is that of Python's, so that factors agree to the last bit
 * (linear) or to the library's cosine. warmup_stable_decay divides the run as LLaMA-Factory does. */
#include "train/schedule.h"
#include "base/json.h"
#include "base/str.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

int64_t schedule_warmup(double steps, double ratio, int64_t total) {
    if (steps >= 1) return (int64_t)fmin(steps, 0x1p62);
    return (int64_t)ceil((double)total * (steps > 0 ? steps : ratio));
}

/* ---- lr_scheduler_kwargs ---- */

static const char WHERE[] = "lr_scheduler_kwargs";
static const char *const names[] = {"linear", "cosine", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt", "cosine_with_min_lr", "warmup_stable_decay", "reduce_lr_on_plateau"};
static const char *const forms[] = {"linear", "cosine", "1-sqrt", NULL};

/* The keys of each type. */
enum { KEYS = 9 };
static const char *const keys[][KEYS] = {
    [LR_LINEAR] = {NULL},
    [LR_COSINE] = {"num_cycles", NULL},
    [LR_CONSTANT] = {NULL},
    [LR_CONSTANT_WARMUP] = {NULL},
    [LR_RESTARTS] = {"num_cycles", NULL},
    [LR_POLYNOMIAL] = {"lr_end", "power", NULL},
    [LR_INVERSE_SQRT] = {"timescale", NULL},
    [LR_COSINE_MIN] = {"num_cycles", "min_lr", "min_lr_rate", NULL},
    [LR_STABLE_DECAY] = {"num_stable_steps", "num_decay_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles", NULL},
    [LR_PLATEAU] = {"mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps", NULL},
};

/* A number from `least` on. 1: given. */
static int number(const struct cJSON *j, const char *key, double least, double most, double *out, struct err *e) {
    int r = json_num(j, key, out, WHERE, e);
    if (r == 1 && !(*out >= least && *out <= most))
        return err_set(e, ERR_INPUT, "%s: \"%s\" is %g; it must be from %g to %g", WHERE, key, *out, least, most);
    return r;
}

static int form(const struct cJSON *j, const char *key, int *out, struct err *e) {
    const char *word = NULL;
    int r = json_str(j, key, &word, WHERE, e);
    for (int i = 0; r == 1 && forms[i]; i++)
        if (!strcmp(word, forms[i])) return *out = i, 1;
    return r == 1 ? err_set(e, ERR_INPUT, "%s: \"%s\" is \"%.40s\"; choose from linear, cosine, 1-sqrt", WHERE, key, word) : r;
}

/* One of two words: *out 1 for the second. */
static int either(const struct cJSON *j, const char *key, const char *no, const char *yes, int *out, struct err *e) {
    const char *word = no;
    if (json_str(j, key, &word, WHERE, e) < 0) return -1;
    *out = !strcmp(word, yes);
    return *out || !strcmp(word, no) ? 0 : err_set(e, ERR_INPUT, "%s: \"%s\" is \"%.40s\"; choose from %s, %s", WHERE, key, word, no, yes);
}

/* Names and defaults of torch.optim.lr_scheduler.ReduceLROnPlateau. */
static int read_plateau(struct schedule_curve *c, const struct cJSON *j, double rate, struct err *e) {
    double least = 0, eps = 1e-8;
    c->cut = 0.1, c->threshold = 1e-4, c->patience = 10;
    if (either(j, "mode", "min", "max", &c->more, e) || either(j, "threshold_mode", "rel", "abs", &c->absolute, e) ||
        number(j, "factor", 1e-6, 0.999999, &c->cut, e) < 0 ||
        json_int(j, "patience", 0, (int64_t)1 << 40, &c->patience, WHERE, e) < 0 ||
        json_int(j, "cooldown", 0, (int64_t)1 << 40, &c->cooldown, WHERE, e) < 0 ||
        number(j, "threshold", 0, 1e9, &c->threshold, e) < 0 || number(j, "min_lr", 0, rate, &least, e) < 0 ||
        number(j, "eps", 0, 1e3, &eps, e) < 0)
        return -1;
    c->floor = rate > 0 ? least / rate : 0, c->eps = rate > 0 ? eps / rate : 0;
    return 0;
}

static int check_keys(const struct cJSON *j, enum schedule kind, struct err *e) {
    struct str list = {0};
    if (!keys[kind][0] && j && j->child)
        return err_set(e, ERR_INPUT,
                       "%s: lr_scheduler_type %s has no parameters, so \"%.60s\" would change nothing; leave it out", WHERE,
                       names[kind], j->child->string);
    if (!j || !json_known_keys(j, keys[kind], WHERE, e)) return 0;
    for (int i = 0; keys[kind][i]; i++) str_printf(&list, "%s%s", i ? ", " : "", keys[kind][i]);
    err_where(e, "%s, which takes %s", names[kind], list.oom ? "other keys" : list.p);
    str_free(&list);
    return -1;
}

static int read_keys(struct schedule_curve *c, const struct cJSON *j, double rate, struct err *e) {
    double stable = (double)((c->total > c->warmup ? c->total - c->warmup : 0) / 3),
           decay = (double)(c->total > c->warmup ? c->total - c->warmup : 0) - stable;
    double end = 1e-7, least = NAN, share = NAN, rest = NAN;
    if (check_keys(j, c->kind, e)) return -1;
    if (c->kind == LR_PLATEAU) return read_plateau(c, j, rate, e);
    if (number(j, "num_cycles", 1e-6, 1e6, &c->cycles, e) < 0 || number(j, "power", 1e-3, 1e3, &c->power, e) < 0 ||
        number(j, "lr_end", 0, 1e3, &end, e) < 0 || number(j, "timescale", 1, 1e15, &c->timescale, e) < 0 ||
        number(j, "min_lr", 0, rate, &least, e) < 0 || number(j, "min_lr_rate", 0, 1, &share, e) < 0 ||
        number(j, "min_lr_ratio", 0, 1, &rest, e) < 0 || number(j, "num_stable_steps", 0, 1e15, &stable, e) < 0 ||
        number(j, "num_decay_steps", 0, 1e15, &decay, e) < 0 || form(j, "warmup_type", &c->warm_form, e) < 0 ||
        form(j, "decay_type", &c->decay_form, e) < 0)
        return -1;
    c->stable = (int64_t)stable, c->decay = (int64_t)decay;
    if (c->kind == LR_POLYNOMIAL && !(end < rate))
        return err_set(e, ERR_INPUT, "lr_end (%g) must be smaller than initial lr (%g)", end, rate);
    if (c->kind == LR_COSINE_MIN && isnan(least) == isnan(share))
        return err_set(
            e, ERR_INPUT,
            isnan(least)
                ? "One of min_lr or min_lr_rate should be set through the `lr_scheduler_kwargs`: '{\"min_lr_rate\": 0.1}'"
                : "Only one of min_lr or min_lr_rate should be set in lr_scheduler_kwargs");
    c->end = rate > 0 ? end / rate : 0;
    c->floor = !isnan(least) ? (rate > 0 ? least / rate : 0) : !isnan(share) ? share : !isnan(rest) ? rest : 0;
    return 0;
}

int schedule_make(struct schedule_curve *c, const struct train_options *o, int64_t total, struct err *e) {
    *c = (struct schedule_curve){.kind = o->schedule, .warmup = schedule_warmup(o->warmup_steps, o->warmup_ratio, total), .total = total,
                                 .cycles = o->schedule == LR_RESTARTS ? 1 : 0.5, .power = 1, .decay_form = 1};
    c->timescale = c->warmup ? (double)c->warmup : 10000;
    struct cJSON *j = NULL;
    if (o->schedule_args && !(j = json_parse(o->schedule_args, strlen(o->schedule_args), WHERE, e)))
        return err_where(e, "a JSON object such as '{\"num_cycles\": 2}' is expected");
    int r = j && !cJSON_IsObject(j) ? err_set(e, ERR_INPUT, "%s: a JSON object such as '{\"num_cycles\": 2}' is expected", WHERE)
                                    : read_keys(c, j, o->learning_rate, e);
    json_free(j);
    return r;
}

/* ---- the curves ---- */

static double wave(double cycles, double p) { return 0.5 * (1 + cos(M_PI * cycles * 2 * p)); }

/* warmup_stable_decay: both slopes have a form, and end at the floor. */
static double stable_decay(const struct schedule_curve *c, int64_t step) {
    double f;
    if (step < c->warmup) {
        const double p = (double)step / (double)c->warmup;
        f = c->warm_form == 1 ? 0.5 * (1 - cos(M_PI * p)) : c->warm_form == 2 ? 1 - sqrt(1 - p) : p;
    } else if (step - c->warmup < c->stable) {
        return 1;
    } else if (step - c->warmup - c->stable < c->decay) {
        const double p = (double)(step - c->warmup - c->stable) / (double)c->decay;
        f = c->decay_form == 1 ? wave(c->cycles, p) : c->decay_form == 2 ? 1 - sqrt(p) : 1 - p;
    } else {
        return c->floor;
    }
    return fmax(0, f * (1 - c->floor) + c->floor);
}

double schedule_factor(const struct schedule_curve *c, int64_t step) {
    if (c->kind == LR_CONSTANT || c->kind == LR_PLATEAU) return 1;
    if (c->kind == LR_STABLE_DECAY) return stable_decay(c, step);
    if (step < c->warmup) return (double)step / (double)c->warmup;
    if (c->kind == LR_CONSTANT_WARMUP) return 1;
    if (c->kind == LR_INVERSE_SQRT) return 1 / sqrt(((double)step + c->timescale - (double)c->warmup) / c->timescale);
    const double decay = c->total > c->warmup ? (double)(c->total - c->warmup) : 1, p = (double)(step - c->warmup) / decay;
    switch (c->kind) {
    case LR_RESTARTS: return p >= 1 ? 0 : fmax(0, 0.5 * (1 + cos(M_PI * fmod(c->cycles * p, 1))));
    case LR_POLYNOMIAL: return step > c->total ? c->end : (1 - c->end) * pow(1 - p, c->power) + c->end;
    case LR_COSINE: return fmax(0, wave(c->cycles, p));
    case LR_COSINE_MIN: return fmax(0, wave(c->cycles, p) * (1 - c->floor) + c->floor);
    default: return fmax(0, (double)(c->total - step) / decay);
    }
}

/* ---- reduce_lr_on_plateau ---- */

static int gains(const struct schedule_curve *c, double best, double x) {
    const double least = c->absolute ? c->threshold : best * c->threshold; /* of a negative best negative, as in PyTorch */
    return c->more ? x > best + least : x < best - least;
}

int schedule_judge(const struct schedule_curve *c, struct plateau *p, double metric) {
    const int first = !p->seen++, gained = !isnan(metric) && (first || isnan(p->best) || gains(c, p->best, metric));
    if (gained || first) p->best = metric;
    p->bad = gained ? 0 : p->bad + 1;
    if (p->cooling > 0) p->cooling--, p->bad = 0;
    if (p->bad <= c->patience) return 0;
    p->cooling = c->cooldown, p->bad = 0;
    const double now = p->factor > 0 ? p->factor : 1, next = fmax(now * c->cut, c->floor);
    if (!(now - next > c->eps)) return 0;
    p->factor = next;
    return 1;
}
