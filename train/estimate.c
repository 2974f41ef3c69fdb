/* train/estimate.c - see estimate.h */
#include "train/estimate.h"
#include "backend/card.h"
#include "base/file.h"
#include "base/log.h"
#include "base/str.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "train/train_internal.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

static struct backend *machine(const struct estimate_options *o, struct err *e) {
    const struct card *c = o->card ? card_named(o->card) : NULL;
    if (c || !o->card) return c ? backend_card(c, e) : backend_open(o->train->backend, e);
    struct str names = {0};
    for (int i = 0; cards[i].name; i++) str_printf(&names, "%s%s", i ? ", " : "", cards[i].name);
    err_set(e, ERR_INPUT,
            "card %s is not in the table (%s); for another one give the card of the table that is nearest to it, and its memory "
            "by --vram",
            o->card, names.p ? names.p : "");
    str_free(&names);
    return NULL;
}

/* Sequences: the data set's, or full ones. */
static int sequences(struct trainer *t, const struct estimate_options *o, struct err *e) {
    struct err why = {0};
    if (o->train->data.dataset && !o->config) {
        if (!setup_data(t, &why)) return 0;
        if (why.code != ERR_INPUT) return *e = why, -1;
        log_warn("the data set is left out of the estimate: %s", why.text);
        struct backend *be = t->be;
        t->be = NULL;
        setup_close(t);
        *t = (struct trainer){.o = o->train, .be = be, .host_bytes = t->host_bytes};
    }
    setup_shape(t);
    return 0;
}

/* Headers of weights where there are some, else config.json alone. */
static int model(struct trainer *t, const struct estimate_options *o, struct err *e) {
    struct model_config c;
    if (o->config) return setup_model(t, o->config, e);
    if (ckpt_present(o->train->model_name_or_path)) return setup_model(t, NULL, e);
    if (model_config_read(o->train->model_name_or_path, &c, e)) return -1;
    log_info("%s holds no weights: the estimate follows config.json", o->train->model_name_or_path);
    int r = setup_model(t, &c, e);
    model_config_free(&c);
    return r;
}

int estimate_plan(struct trainer *t, enum estimate_memory memory, int any_card, struct err *e) {
    struct plan_request *r = &t->request;
    struct err none = {0};
    const int64_t budget = r->budget;
    if (memory == ESTIMATE_RESIDENT) {
        r->keep_budget = 0, r->may &= PLAN_ACTS | PLAN_APART | PLAN_VALUES | PLAN_STATE, r->must = PLAN_ACTS & r->may;
        if (any_card && !t->o->vram_bytes) r->budget = INT64_MAX;
    }
    if (memory == ESTIMATE_LEAST) {
        r->budget = 0;
        (void)setup_plan(t, &none); /* fails, and says what would not */
        r->budget = any_card || t->plan.device < budget ? t->plan.device : budget;
    }
    return setup_plan(t, e);
}

int train_estimate(const struct estimate_options *o, struct estimate *x, struct err *e) {
    struct trainer t = {.o = o->train};
    int r = -1;
    if (!(t.be = machine(o, e))) return -1;
    setup_host(&t, !o->card && !o->any_host);
    if (!sequences(&t, o, e) && !model(&t, o, e) && !estimate_plan(&t, o->memory, 1, e)) r = 0, estimate_of(&t, x);
    setup_close(&t);
    return r;
}

/* Checkpoints that lie in the output folder at most: one more than are kept while it is written. */
static int64_t most_checkpoints(const struct trainer *t) {
    const struct train_options *o = t->o;
    const int64_t every = t->save_every, limit = o->save_total_limit < 2 ? 2 : o->save_total_limit;
    if (!t->total_steps) return o->save_strategy != EVERY_NO;
    if (!every) return o->save_strategy == EVERY_BEST;
    const int64_t n = t->total_steps / every + (o->data.compat_new && t->total_steps % every);
    return o->save_total_limit && n > limit + 1 ? limit + 1 : n;
}

void estimate_of(const struct trainer *t, struct estimate *x) {
    const struct train_options *o = t->o;
    *x = (struct estimate){.about = t->sample.records > 0,
                           .request = t->request,
                           .plan = t->plan,
                           .tokens_per_second = (double)t->max_rows / t->plan.seconds,
                           .steps = t->total_steps,
                           .sequences =
                               t->train ? (int64_t)((double)data_count(t->train) * (t->sample.records ? t->sample.scale : 1)) : 0,
                           .tokens = t->all_rows,
                           .checkpoints = most_checkpoints(t),
                           .disk_free = -1};
    x->request.advice = NULL; /* the trainer's */
    x->checkpoint_bytes = setup_checkpoint_bytes(t, &x->result_bytes);
    if (o->output_dir) x->disk_free = dir_free_bytes(path_is_dir(o->output_dir) ? o->output_dir : ".");
    snprintf(x->machine, sizeof x->machine, "%s", t->model.info.detail);
}

void estimate_print(const struct estimate *x, struct str *out) {
    const struct plan_request *r = &x->request;
    const int64_t disk = x->result_bytes + x->checkpoints * x->checkpoint_bytes;
    const char *about = x->about ? "about " : "";
    char a[40], b[32], c[32];
    const int from_file = x->plan.disk > 0;
    plan_print(&x->plan, r, out);
    str_printf(out, "speed: about %s tokens/s, %.3g s for a step of %s tokens\n",
               text_thousands(a, (int64_t)x->tokens_per_second), x->plan.seconds, text_thousands(b, r->step_rows));
    str_printf(out, "  for products at %.3g TFLOP/s, memory at %.4g GB/s, copies at %.3g GB/s each way", r->flops * 1e-12,
               r->bandwidth * 1e-9, r->link * 1e-9);
    if (from_file) str_printf(out, ",\n  the page file at %.3g GB/s", r->disk * 1e-9);
    str_puts(out, "\n");
    if (x->sequences) str_printf(out, "data: %s%s sequences\n", about, text_thousands(a, x->sequences));
    if (x->steps)
        str_printf(out,
                   "steps: %s%s, %s%s tokens in all\ntime: about %s of training; loading, saving and evaluations come on top\n",
                   about, text_thousands(b, x->steps), about, text_thousands(c, (int64_t)x->tokens),
                   text_seconds(a, ceil(x->tokens / x->tokens_per_second)));
    str_printf(out, "disk: %s for the result", text_bytes(a, x->result_bytes));
    if (x->checkpoints)
        str_printf(out, " and %s for %lld checkpoint%s", text_bytes(a, x->checkpoints * x->checkpoint_bytes),
                   (long long)x->checkpoints, x->checkpoints > 1 ? "s" : "");
    if (from_file) str_printf(out, "; %s for layer weights while it runs", text_bytes(a, x->plan.disk));
    if (x->disk_free >= 0)
        str_printf(out, "; %s are free%s", text_bytes(a, x->disk_free),
                   x->disk_free < disk ? ", which is not enough: see --save_total_limit" : "");
    str_puts(out, "\n");
}
