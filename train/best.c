/* train/best.c - the best evaluation of a run: which it is, when to give up looking for a better one, and the way back to it.
 * The rules are those of transformers: a metric is better only if it is strictly better, and each evaluation that is not
 * counts against early_stopping_steps. */
#include "base/file.h"
#include "base/log.h"
#include "train/train_internal.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

int best_wanted(const struct train_options *o) {
    return o->load_best || o->save_strategy == EVERY_BEST || o->early_stopping || o->best_metric;
}

static const char *metric(const struct train_options *o) {
    const char *m = o->best_metric ? o->best_metric : "loss";
    return text_starts(m, "eval_") ? m + 5 : m;
}

/* The folder of the best state; NULL when there is none. */
static const char *folder(const struct trainer *t, char path[1200]) {
    if (!t->at.best_step) return NULL;
    snprintf(path, 1200, "%s/checkpoint-%lld", t->o->output_dir, (long long)t->at.best_step);
    return path;
}

double best_metric(const struct trainer *t) {
    const char *m = metric(t->o);
    return !strcmp(m, "accuracy") ? t->result.accuracy : !strcmp(m, "perplexity") ? exp(t->result.loss) : t->result.loss;
}

int best_note(struct trainer *t) {
    struct progress *p = &t->at;
    const double value = best_metric(t);
    if (!best_wanted(t->o)) return 0;
    int better = !isnan(value) && (isnan(p->best) || (t->o->greater_is_better ? value > p->best : value < p->best));
    if (better) p->best = value, p->best_step = p->step;
    p->worse = better ? 0 : p->worse + 1;
    return better;
}

void best_report(const struct trainer *t, int64_t saving) {
    char path[1200];
    const char *dir = folder(t, path);
    if (!isnan(t->at.best)) report_best(t->report, t->at.best, dir && (saving == t->at.best_step || path_is_dir(dir)) ? dir : NULL);
}

int best_given_up(const struct trainer *t) { return t->o->early_stopping && t->at.worse >= t->o->early_stopping; }

int best_restore(struct trainer *t, struct err *e) {
    char path[1200];
    const char *dir = folder(t, path);
    if (!t->o->load_best) return 0;
    if (!dir || !path_is_dir(dir)) {
        log_warn("there is no checkpoint of the best evaluation in %s; the last state is kept", t->o->output_dir);
        return 0;
    }
    log_info("Loading best model from %s (score: %.10g).", dir, t->at.best);
    return t->at.best_step != t->at.step && state_load_weights(t, dir, e) ? -1 : 0;
}
