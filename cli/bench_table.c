/* cli/bench_table.c - results of qlora bench as Markdown and as JSON.
 *
 * Memory of the card is what was taken behind its context, which is told apart; of the host, what the plan takes, and beside it what
 * the kernel counts: pinned memory need not stand in a resident set. Estimated rows are marked, and say why. */
#include "cli/bench_rows.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

static const double GB = 1e9;

double bench_row_speed(const struct bench_row *x) { return x->measured ? x->r.tokens_per_second : x->r.predicted.tokens_per_second; }
double bench_row_hours(const struct bench_row *x) { return GUIDE_TOKENS / bench_row_speed(x) / 3600; }
int64_t bench_row_bytes(const struct bench_row *x) {
    return x->measured && x->r.device_bytes ? x->r.device_bytes : x->r.predicted.plan.device;
}

/* ---- Markdown ---- */

static void heading(const struct bench_machine *m, struct str *s) {
    char a[24];
    str_printf(s,
               "%s\nceiling: %.3g TFLOP/s, products of one size in the same run; share: FLOPs of all ops, recomputed ones too, "
               "of that\n",
               m->name, m->ceiling * 1e-12);
    if (m->context > 0) str_printf(s, "context of the card: %s, not in its memory below\n", text_bytes(a, m->context));
    if (m->context < 0) str_puts(s, "context of the card: not in its memory below; how much it is, the driver does not tell here\n");
}

/* "12,345", or "12.3" of a slow one. */
static const char *rate(char text[32], double v) {
    if (v >= 100) return text_thousands(text, llround(v));
    snprintf(text, 32, "%.3g", v);
    return text;
}

/* "12,345" or "estimated 12,345". */
static const char *speed(const struct bench_row *x, char text[48]) {
    char number[32];
    snprintf(text, 48, "%s%s", x->measured ? "" : "estimated ", rate(number, bench_row_speed(x)));
    return text;
}

void bench_text(const struct bench_row *x, int n, const struct bench_machine *m, struct str *s) {
    heading(m, s);
    str_puts(s, "\n| model | method | sequence, batch | budget | card, planned | taken | host, planned | resident set | tokens/s "
                "| slowest to fastest step | share | predicted | 10.02 M tokens |\n"
                "|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
    for (int i = 0; i < n; i++, x++) {
        const struct bench_result *r = &x->r;
        char a[24], b[24], c[24], d[24], f[24], text[48], low[32], high[32], said[32];
        str_printf(s, "| %s | %s | %lld, %lld/%lld | %s | %s | %s | %s | %s | %s |", x->model, x->method, (long long)x->sequence,
                   (long long)x->micro, (long long)x->global, x->vram ? text_bytes(a, x->vram) : "free",
                   text_bytes(b, r->predicted.plan.device), x->measured && r->device_bytes ? text_bytes(c, r->device_bytes) : "",
                   text_bytes(d, r->predicted.plan.host), x->measured ? text_bytes(f, r->host.resident) : "", speed(x, text));
        if (x->measured)
            str_printf(s, " %s to %s | %.0f %% | %s |", rate(low, r->slowest), rate(high, r->fastest), 100 * r->flops / m->ceiling,
                       rate(said, r->predicted.tokens_per_second));
        else str_puts(s, " | | |");
        str_printf(s, " %.2f h |\n", bench_row_hours(x));
    }
}

static void setting(const struct bench_row *x, struct str *s) {
    str_printf(s, "| %s | %s | %lld | %d | %lld/%lld |", x->guide->model, x->method, (long long)x->sequence, GUIDE_CARDS,
               (long long)x->micro, (long long)x->global);
}

void bench_text_guide(const struct bench_row *x, int n, const struct bench_machine *m, struct str *s) {
    int estimated = 0;
    for (int i = 0; i < n; i++) estimated += !x[i].measured;
    char budget[24];
    heading(m, s);
    if (x->vram) str_printf(s, "budget: %s of the card for each row\n", text_bytes(budget, x->vram));
    else str_puts(s, "budget: all that is free of the card; --vram 12GiB, or --memory smallest, shows what less gives\n");
    if (estimated)
        str_printf(s,
                   "estimated: %d of %d rows, which this machine cannot run or not soon enough; their figures are the plan's\n",
                   estimated, n);
    str_puts(s, "\nMemory of the card, and of the host, as planned, beside it.\n\n"
                "| model | method | sequence | GPUs | micro/global | guide | ours | ratio | host | tokens/s | 10.02 M tokens |\n|---|---|---|---|---|---|---|---|---|---|---|\n");
    for (int i = 0; i < n; i++) {
        const double gb = (double)bench_row_bytes(&x[i]) / GB;
        char text[48];
        setting(&x[i], s);
        str_printf(s, " %g GB | %s%.2f GB | %.3g | %.1f GB | %s | %.2f h |\n", x[i].guide->gb, x[i].measured ? "" : "estimated ",
                   gb, x[i].guide->gb / gb, (double)x[i].r.predicted.plan.host / GB, speed(&x[i], text), bench_row_hours(&x[i]));
    }
    str_printf(s, "\nTime for 10.02 million tokens; the guide's on one %s.\n\n"
                  "| model | method | sequence | GPUs | micro/global | memory, guide | ours | ratio | time, guide | ours | ratio |\n|---|---|---|---|---|---|---|---|---|---|---|\n", GUIDE_CARD);
    for (int i = 0; i < n; i++) {
        if (!(x[i].guide->hours > 0)) continue;
        const double gb = (double)bench_row_bytes(&x[i]) / GB;
        const char *mark = x[i].measured ? "" : "estimated ";
        setting(&x[i], s);
        str_printf(s, " %g GB | %s%.2f GB | %.3g | %g h | %s%.2f h | %.3g |\n", x[i].guide->timed_gb, mark, gb,
                   x[i].guide->timed_gb / gb, x[i].guide->hours, mark, bench_row_hours(&x[i]),
                   x[i].guide->hours / bench_row_hours(&x[i]));
    }
}

/* ---- JSON ---- */

static void number_or_null(struct str *s, const char *name, int64_t v) {
    if (v < 0) str_printf(s, "\"%s\":null,", name);
    else str_printf(s, "\"%s\":%lld,", name, (long long)v);
}

static void json_measured(const struct bench_row *x, struct str *s) {
    const struct bench_result *r = &x->r;
    str_printf(s,
               "\"tokens_per_second\":%.5g,\"slowest\":%.5g,\"fastest\":%.5g,\"warm_steps\":%lld,\"steps\":%lld,\"step_seconds\":"
               "%.5g,\"flops\":%.4g,\"load_seconds\":%.3g,\"loss\":%.6g,",
               r->tokens_per_second, r->slowest, r->fastest, (long long)r->warm_steps, (long long)r->steps, r->step_seconds,
               r->flops, r->load_seconds, r->loss);
    const struct plan_choice *c = &r->predicted.plan.choice;
    if (c->by_host)
        str_printf(s, "\"processor\":{\"layers\":%lld,\"seconds\":%.4g,\"waited\":%.4g,\"rate\":%.4g},", (long long)c->by_host, r->updating,
                   r->waiting, r->predicted.request.host_bandwidth);
    str_printf(s, "\"device_bytes_taken\":%lld,", (long long)r->device_bytes);
    if (r->device_bytes) str_printf(s, "\"taken_minus_planned\":%lld,", (long long)(r->device_bytes - r->predicted.plan.device));
    number_or_null(s, "resident_set", r->host.resident), number_or_null(s, "resident_set_peak", r->host.most_resident);
    number_or_null(s, "locked_bytes", r->host.locked), number_or_null(s, "pinned_bytes", r->host.pinned),
        number_or_null(s, "cgroup_bytes", r->host.cgroup);
}

/* guide_gb, guide_hours: of one of the guide's tables; 0: not of it. */
static void json_row(const struct bench_row *x, const char *table, double guide_gb, double guide_hours,
                     const struct bench_machine *m, struct str *s) {
    const struct plan *p = &x->r.predicted.plan;
    str_printf(s,
               "{\"model\":\"%s\",\"method\":\"%s\",\"gpus\":1,\"sequence\":%lld,\"micro_batch\":%lld,\"global_batch\":%lld,"
               "\"vram\":%lld,\"measured\":%s,",
               x->model, x->method, (long long)x->sequence, (long long)x->micro, (long long)x->global, (long long)x->vram,
               x->measured ? "true" : "false");
    str_printf(s, "\"device_bytes\":%lld,\"host_bytes\":%lld,\"predicted_tokens_per_second\":%.5g,\"chunk_tokens\":%lld,",
               (long long)p->device, (long long)p->host, x->r.predicted.tokens_per_second, (long long)p->choice.rows);
    number_or_null(s, "context_bytes", m->context);
    if (x->measured) json_measured(x, s);
    else {
        str_puts(s, "\"why\":");
        str_json(s, x->why, strlen(x->why));
        str_puts(s, ",");
    }
    if (table)
        str_printf(s, "\"table\":\"%s\",\"guide_gb\":%g,\"memory_ratio\":%.4g,", table, guide_gb,
                   guide_gb * GB / (double)bench_row_bytes(x));
    if (guide_hours > 0)
        str_printf(s, "\"guide_hours\":%g,\"guide_card\":\"%s\",\"time_ratio\":%.4g,", guide_hours, GUIDE_CARD,
                   guide_hours / bench_row_hours(x));
    str_printf(s, "\"hours\":%.4g,\"ceiling\":%.4g,\"machine\":", bench_row_hours(x), m->ceiling);
    str_json(s, m->name, strlen(m->name));
    str_puts(s, "}\n");
}

void bench_json(const struct bench_row *x, int n, const struct bench_machine *m, struct str *s) {
    for (int i = 0; i < n; i++) json_row(&x[i], x[i].guide ? "memory" : NULL, x[i].guide ? x[i].guide->gb : 0, 0, m, s);
    for (int i = 0; i < n; i++)
        if (x[i].guide && x[i].guide->hours > 0) json_row(&x[i], "time", x[i].guide->timed_gb, x[i].guide->hours, m, s);
}
