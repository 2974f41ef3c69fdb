/* cli/bench.c - qlora bench: runs of random weights, timed: one, a curve over budgets, or the rows of the guide's table. */
#include "base/log.h"
#include "base/print.h"
#include "base/str.h"
#include "base/sys.h"
#include "cli/bench_rows.h"
#include "cli/cli_internal.h"
#include <stdio.h>
#include <string.h>

static void describe(const struct options *o, struct bench_row *x) {
    const struct train_options *t = &o->train;
    const int full = t->finetuning == FT_FULL, bits = t->quantization_bit;
    if (full) snprintf(x->method, sizeof x->method, "full");
    else if (bits) snprintf(x->method, sizeof x->method, "QLoRA %d bit, rank %lld", bits, (long long)t->lora.rank);
    else snprintf(x->method, sizeof x->method, "LoRA, rank %lld", (long long)t->lora.rank);
    x->sequence = t->data.cutoff_len, x->micro = t->batch, x->global = t->batch * t->accumulate;
}

/* The plan of the same card in a machine with as much host memory as it takes; of a larger card, if that is not enough. */
static int elsewhere(const struct options *o, const struct model_config *c, struct estimate *x, struct err *e) {
    struct train_options train = o->train;
    struct estimate_options want = {.train = &train, .config = c, .any_host = 1, .memory = (enum estimate_memory)o->memory};
    struct err why = {0};
    train.host_memory = 0;
    if (!train_estimate(&want, x, &why)) return 0;
    want.memory = ESTIMATE_LEAST;
    return train_estimate(&want, x, e);
}

/* What the plan said against what the card gave, and what it was allowed. */
static void memory_taken(const struct bench_row *x) {
    const int64_t planned = x->r.predicted.plan.device, taken = x->r.device_bytes;
    char a[24], b[24], c[24];
    if (!taken) return;
    log_info("device memory: %s planned, %s taken (%+.1f %%), %s allowed", text_bytes(a, planned), text_bytes(b, taken),
             100 * ((double)taken / (double)planned - 1), x->vram ? text_bytes(c, x->vram) : "all that is free");
    if (x->vram && taken > x->vram) log_warn("the run took %s, more than the %s that it was allowed", b, c);
}

/* Runs it, or says why not and leaves the plan's word. Only what is wrong with the command line is an error. */
static int measure(const struct options *o, const struct model_config *c, struct bench_row *x, struct err *e) {
    struct err why = {0};
    describe(o, x);
    x->vram = o->train.vram_bytes;
    log_info("%s, %s%s", x->model, x->method, x->vram ? "" : ", all that is free");
    if (!train_bench(&(struct estimate_options){.train = &o->train, .config = c, .memory = (enum estimate_memory)o->memory}, &x->r, &why)) {
        memory_taken(x);
        return x->measured = 1, 0;
    }
    if (why.code != ERR_RUN) return *e = why, -1;
    snprintf(x->why, sizeof x->why, "%.299s", why.text);
    log_warn("not measured: %s", why.text);
    return x->r.predicted.tokens_per_second > 0 ? 0 : elsewhere(o, c, &x->r.predicted, e);
}

/* ---- what to run ---- */

enum { ROWS_MAX = 32 };

/* A budget of the list: "12" is 12 GiB, "1500MB" what it says. */
static int64_t budget_of(const char *word, size_t n, struct err *e) {
    char text[32];
    int64_t bytes;
    if (n >= sizeof text - 3 || !n) return err_set(e, ERR_INPUT, "vram: \"%.*s\" is no size; a list such as 6,8,12 (GiB) is", (int)n, word);
    snprintf(text, sizeof text, "%.*s%s", (int)n, word, strspn(word, "0123456789.") >= n ? "GiB" : "");
    return cli_read_bytes(text, &bytes) || bytes <= 0
               ? err_set(e, ERR_INPUT, "vram: \"%.*s\" is no size; a list such as 6,8,12 (GiB) is", (int)n, word)
               : bytes;
}

static int curve_rows(struct options *o, const struct model_config *c, const char *name, struct bench_row *x, int *n, struct err *e) {
    const char *list = o->vram_list ? o->vram_list : "";
    do {
        const size_t length = strcspn(list, ",");
        if (*n == ROWS_MAX) return err_set(e, ERR_INPUT, "vram: more than %d budgets", ROWS_MAX);
        if (length && (o->train.vram_bytes = budget_of(list, length, e)) < 0) return -1;
        snprintf(x[*n].model, sizeof x->model, "%s", name);
        if (measure(o, c, &x[(*n)++], e)) return -1;
        list += length + (list[length] == ',');
    } while (*list);
    return 0;
}

static int guide_rows(struct options *o, struct bench_row *x, int *n, struct err *e) {
    const char *budget = o->vram_list;
    if (budget && (o->train.vram_bytes = budget_of(budget, strlen(budget), e)) < 0) return -1;
    for (const struct guide_row *g = guide; g < guide + GUIDE_ROWS; g++) {
        struct model_config c = {0};
        if (model_config_find(g->config, &c, e)) return -1;
        guide_apply(g, &o->train);
        snprintf(x[*n].model, sizeof x->model, "%s", g->config), x[*n].guide = g;
        int r = measure(o, &c, &x[(*n)++], e);
        model_config_free(&c);
        if (r) return -1;
    }
    return 0;
}

int cmd_bench(struct options *o, struct err *e) {
    struct bench_row *x = sys_alloc_array(ROWS_MAX, sizeof *x, "the rows of a table", e);
    struct bench_machine m = {0};
    struct str s = {0};
    struct model_config c = {0};
    int n = 0, r = -1;
    if (!x) return e->code;
    if (bench_context(o->train.backend, &m.context, e) || bench_ceiling(o->train.backend, 2, &m.ceiling, e)) goto out;
    log_info("ceiling: %.3g TFLOP/s", m.ceiling * 1e-12);
    if (o->bench_table) {
        if (guide_rows(o, x, &n, e)) goto out;
    } else {
        const char *from = o->config ? o->config : o->train.model_name_or_path, *name = strrchr(from, '/');
        if ((o->config ? model_config_find(o->config, &c, e) : model_config_read(from, &c, e)) ||
            curve_rows(o, &c, name ? name + 1 : from, x, &n, e))
            goto out;
    }
    m.name = x->r.predicted.machine;
    (o->json ? bench_json : o->bench_table ? bench_text_guide : bench_text)(x, n, &m, &s);
    if (s.oom) { err_set(e, ERR_RUN, "out of memory: the table"); goto out; }
    print_bytes(s.p, s.n);
    if (o->plot) {
        if (bench_curve(o->plot, x, n, &m, e)) goto out;
        log_info("the curve is in %s", o->plot);
    }
    r = 0;
out:
    model_config_free(&c), str_free(&s), sys_free(x);
    return r ? e->code : 0;
}
