/* cli/bench.c - qlora bench: runs of random weights, timed: one, a curve over budgets, or the rows of the guide's table. */
#include "base/file.h"
#include "base/log.h"
#include "base/print.h"
#include "base/str.h"
#include "base/sys.h"
#include "cli/cli_internal.h"
#include "cli/guide.h"
#include "train/bench.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct row {
    char model[40], method[40];
    const struct guide_row *guide; /* or NULL */
    int64_t vram;                  /* 0: what is free */
    int64_t sequence, micro, global;
    int measured;                  /* else the plan's figures, because of `why` */
    char why[300];
    struct bench_result r;
};

static double tokens_per_second(const struct row *x) { return x->measured ? x->r.tokens_per_second : x->r.predicted.tokens_per_second; }
static double hours(const struct row *x) { return GUIDE_TOKENS / tokens_per_second(x) / 3600; }

static void describe(const struct options *o, struct row *x) {
    const struct train_options *t = &o->train;
    const int full = t->finetuning == FT_FULL, bits = t->quantization_bit;
    if (full) snprintf(x->method, sizeof x->method, "full");
    else if (bits) snprintf(x->method, sizeof x->method, "QLoRA %d bit, rank %lld", bits, (long long)t->lora.rank);
    else snprintf(x->method, sizeof x->method, "LoRA, rank %lld", (long long)t->lora.rank);
    x->sequence = t->data.cutoff_len, x->micro = t->batch, x->global = t->batch * t->accumulate;
}

/* The plan of the same card in a machine with as much host memory as it takes; of a larger card, if that is not enough. */
static int elsewhere(const struct options *o, const struct model_config *c, struct estimate *x, struct err *e) {
    struct estimate_options want = {.train = &o->train, .config = c, .any_host = 1};
    struct err why = {0};
    if (!train_estimate(&want, x, &why)) return 0;
    want.memory = ESTIMATE_LEAST;
    return train_estimate(&want, x, e);
}

/* Runs it, or says why not and leaves the plan's word. Only what is wrong with the command line is an error. */
static int measure(const struct options *o, const struct model_config *c, struct row *x, struct err *e) {
    struct err why = {0};
    describe(o, x);
    x->vram = o->train.vram_bytes;
    log_info("%s, %s%s", x->model, x->method, x->vram ? "" : ", all that is free");
    if (!train_bench(&(struct estimate_options){.train = &o->train, .config = c}, &x->r, &why)) return x->measured = 1, 0;
    if (why.code != ERR_RUN) return *e = why, -1;
    snprintf(x->why, sizeof x->why, "%.299s", why.text);
    log_warn("not measured: %s", why.text);
    return x->r.predicted.tokens_per_second > 0 ? 0 : elsewhere(o, c, &x->r.predicted, e);
}

/* ---- as text and as JSON ---- */

static void text_rows(const struct row *x, int n, const char *machine, double ceiling, struct str *s) {
    str_printf(s, "%s\nceiling: %.3g TFLOP/s, products of one size in the same run; share: FLOPs of all ops, recomputed ones too, of that\n\n", machine, ceiling * 1e-12);
    str_puts(s, "| model | method | sequence, batch | budget | card | host | tokens/s | share | predicted | 10.02 M tokens |\n|---|---|---|---|---|---|---|---|---|---|\n");
    for (int i = 0; i < n; i++, x++) {
        const struct bench_result *r = &x->r;
        char a[24], b[24], d[24], speed[32], said[32];
        str_printf(s, "| %s | %s | %lld, %lld/%lld | %s | %s | %s | %s%s |", x->model, x->method, (long long)x->sequence, (long long)x->micro, (long long)x->global,
                   x->vram ? text_bytes(a, x->vram) : "free", text_bytes(b, r->device_bytes ? r->device_bytes : r->predicted.plan.device), text_bytes(d, r->predicted.plan.host),
                   x->measured ? "" : "estimated ", text_thousands(speed, llround(tokens_per_second(x))));
        if (x->measured) str_printf(s, " %.0f %% | %s |", 100 * r->flops / ceiling, text_thousands(said, llround(r->predicted.tokens_per_second)));
        else str_puts(s, " | |");
        str_printf(s, " %.2f h", hours(x));
        if (x->guide) {
            str_printf(s, " (guide: %g GB", x->guide->gb);
            if (x->guide->hours > 0) str_printf(s, ", %g h: %.2g times as fast", x->guide->hours, x->guide->hours / hours(x));
            str_puts(s, ")");
        }
        str_puts(s, " |\n");
    }
}

static void json_rows(const struct row *x, int n, const char *machine, double ceiling, struct str *s) {
    for (int i = 0; i < n; i++, x++) {
        const struct bench_result *r = &x->r;
        const struct plan *p = &r->predicted.plan;
        str_printf(s, "{\"model\":\"%s\",\"method\":\"%s\",\"sequence\":%lld,\"micro_batch\":%lld,\"global_batch\":%lld,\"vram\":%lld,\"measured\":%s,", x->model, x->method,
                   (long long)x->sequence, (long long)x->micro, (long long)x->global, (long long)x->vram, x->measured ? "true" : "false");
        str_printf(s, "\"device_bytes\":%lld,\"host_bytes\":%lld,\"predicted_tokens_per_second\":%.5g,\"chunk_tokens\":%lld,", (long long)p->device, (long long)p->host,
                   r->predicted.tokens_per_second, (long long)p->choice.rows);
        if (x->measured)
            str_printf(s, "\"tokens_per_second\":%.5g,\"device_bytes_taken\":%lld,\"resident_set\":%lld,\"step_seconds\":%.5g,\"steps\":%lld,\"flops\":%.4g,\"load_seconds\":%.3g,\"loss\":%.6g,",
                       r->tokens_per_second, (long long)r->device_bytes, (long long)r->host_bytes, r->step_seconds, (long long)r->steps, r->flops, r->load_seconds, r->loss);
        else {
            str_puts(s, "\"why\":");
            str_json(s, x->why, strlen(x->why));
            str_puts(s, ",");
        }
        if (x->guide) str_printf(s, "\"guide_gb\":%g,\"guide_hours\":%g,", x->guide->gb, x->guide->hours);
        str_printf(s, "\"hours\":%.4g,\"ceiling\":%.4g,\"machine\":", hours(x), ceiling);
        str_json(s, machine, strlen(machine));
        str_puts(s, "}\n");
    }
}

/* ---- the curve ---- */

/* Speed over memory as SVG: a dot for each run, the axes from 0. */
static void curve(const struct row *x, int n, const char *machine, struct str *s) {
    enum { W = 640, H = 400, LEFT = 80, RIGHT = 24, TOP = 56, BOTTOM = 56 };
    double most_bytes = 1, most_speed = 1;
    for (int i = 0; i < n; i++) {
        most_bytes = fmax(most_bytes, (double)(x[i].r.device_bytes ? x[i].r.device_bytes : x[i].r.predicted.plan.device));
        most_speed = fmax(most_speed, tokens_per_second(&x[i]));
    }
    const char *name = most_bytes < 0x1p30 ? "MiB" : "GiB";
    const double unit = most_bytes < 0x1p30 ? 0x1p20 : 0x1p30, step_x = exp2(ceil(log2(most_bytes / unit / 8))), step_y = pow(10, floor(log10(most_speed)));
    const double right = ceil(most_bytes / unit / step_x) * step_x, top = ceil(most_speed / step_y) * step_y;
    str_printf(s, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"%d\" height=\"%d\" fill=\"white\"/>\n", W, H, W, H);
    str_printf(s, "<text x=\"%d\" y=\"22\" font-size=\"14\">%s, %s</text>\n<text x=\"%d\" y=\"40\" fill=\"#666\">", LEFT, x->model, x->method, LEFT);
    for (const char *c = machine; *c; c++) {
        if (*c == '<') str_puts(s, "&lt;");
        else if (*c == '&') str_puts(s, "&amp;");
        else str_printf(s, "%c", *c);
    }
    str_puts(s, "</text>\n");
    for (double v = 0; v <= right * 1.001; v += step_x) {
        double at = LEFT + v / right * (W - LEFT - RIGHT);
        str_printf(s, "<path d=\"M%.1f %d V%d\" stroke=\"#ddd\"/><text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g</text>\n", at, TOP, H - BOTTOM, at, H - BOTTOM + 18, v);
    }
    for (double v = 0; v <= top * 1.001; v += step_y) {
        double at = H - BOTTOM - v / top * (H - TOP - BOTTOM);
        str_printf(s, "<path d=\"M%d %.1f H%d\" stroke=\"#ddd\"/><text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.0f</text>\n", LEFT, at, W - RIGHT, LEFT - 8, at + 4, v);
    }
    str_printf(s, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">memory of the card, %s</text>\n<text transform=\"translate(18 %d) rotate(-90)\" text-anchor=\"middle\">tokens a second</text>\n<path d=\"",
               (LEFT + W - RIGHT) / 2, H - 14, name, (TOP + H - BOTTOM) / 2);
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < n; i++) {
            double bytes = (double)(x[i].r.device_bytes ? x[i].r.device_bytes : x[i].r.predicted.plan.device);
            double at = LEFT + bytes / unit / right * (W - LEFT - RIGHT), up = H - BOTTOM - tokens_per_second(&x[i]) / top * (H - TOP - BOTTOM);
            if (!pass) str_printf(s, "%c%.1f %.1f ", i ? 'L' : 'M', at, up);
            else str_printf(s, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\" stroke=\"#1f6feb\"><title>%.2f %s: %.0f tokens/s%s</title></circle>\n", at, up,
                            x[i].measured ? "#1f6feb" : "white", bytes / unit, name, tokens_per_second(&x[i]), x[i].measured ? "" : " (estimated)");
        }
        if (!pass) str_puts(s, "\" fill=\"none\" stroke=\"#1f6feb\" stroke-width=\"1.5\"/>\n");
    }
    str_puts(s, "</svg>\n");
}

/* ---- what to run ---- */

enum { ROWS_MAX = 32 };

/* A budget of the list: "12" is 12 GiB, "1500MB" what it says. */
static int64_t budget_of(const char *word, size_t n, struct err *e) {
    char text[32];
    int64_t bytes;
    if (n >= sizeof text - 3 || !n) return err_set(e, ERR_INPUT, "vram: \"%.*s\" is no size; a list such as 6,8,12 (GiB) is", (int)n, word);
    snprintf(text, sizeof text, "%.*s%s", (int)n, word, strspn(word, "0123456789.") >= n ? "GiB" : "");
    return cli_read_bytes(text, &bytes) || bytes <= 0 ? err_set(e, ERR_INPUT, "vram: \"%.*s\" is no size; a list such as 6,8,12 (GiB) is", (int)n, word) : bytes;
}

static int curve_rows(struct options *o, const struct model_config *c, const char *name, struct row *x, int *n, struct err *e) {
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

static int guide_rows(struct options *o, struct row *x, int *n, struct err *e) {
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
    struct row *x = sys_alloc_array(ROWS_MAX, sizeof *x, "the rows of a table", e);
    struct str s = {0}, svg = {0};
    struct model_config c = {0};
    double ceiling = 0;
    int n = 0, r = -1;
    if (!x) return e->code;
    if (bench_ceiling(o->train.backend, 2, &ceiling, e)) goto out;
    log_info("ceiling: %.3g TFLOP/s", ceiling * 1e-12);
    if (o->bench_table) {
        if (guide_rows(o, x, &n, e)) goto out;
    } else {
        const char *from = o->config ? o->config : o->train.model_name_or_path, *name = strrchr(from, '/');
        if ((o->config ? model_config_find(o->config, &c, e) : model_config_read(from, &c, e)) || curve_rows(o, &c, name ? name + 1 : from, x, &n, e)) goto out;
    }
    const char *machine = x->r.predicted.machine;
    (o->json ? json_rows : text_rows)(x, n, machine, ceiling, &s);
    if (s.oom) { err_set(e, ERR_RUN, "out of memory: the table"); goto out; }
    print_bytes(s.p, s.n);
    if (o->plot) {
        curve(x, n, machine, &svg);
        if (svg.oom) { err_set(e, ERR_RUN, "out of memory: the curve"); goto out; }
        if (file_write_all(o->plot, svg.p, svg.n, e)) goto out;
        log_info("the curve is in %s", o->plot);
    }
    r = 0;
out:
    model_config_free(&c), str_free(&s), str_free(&svg), sys_free(x);
    return r ? e->code : 0;
}
