/* cli/estimate.c - qlora estimate: memory and speed of a run before it is started; the hardware table of the guide. */
#include "base/print.h"
#include "base/str.h"
#include "cli/cli_internal.h"
#include "cli/guide.h"
#include "train/estimate.h"
#include <stdio.h>
#include <string.h>

/* ---- one run ---- */

static void json_item(struct str *s, const char *name, const char *place, int64_t bytes, int *n) {
    if (bytes) str_printf(s, "%s{\"name\":\"%s\",\"place\":\"%s\",\"bytes\":%lld}", (*n)++ ? "," : "", name, place, (long long)bytes);
}

static void as_json(const struct estimate *x, struct str *s) {
    const struct plan_request *r = &x->request;
    const int64_t saved = x->result_bytes + x->checkpoints * x->checkpoint_bytes, disk = x->plan.disk + saved;
    int n = 0;
    str_printf(s, "{\"device_bytes\":%lld,\"host_bytes\":%lld,\"tokens_per_second\":%.5g,\"items\":[", (long long)x->plan.device,
               (long long)x->plan.host, x->tokens_per_second);
    for (int i = 0; i < x->plan.items; i++) {
        json_item(s, x->plan.item[i].name, "device", x->plan.item[i].device, &n);
        json_item(s, x->plan.item[i].name, "host", x->plan.item[i].host, &n);
        json_item(s, x->plan.item[i].name, "disk", x->plan.item[i].disk, &n);
    }
    json_item(s, "result", "disk", x->result_bytes, &n);
    json_item(s, "checkpoints", "disk", saved - x->result_bytes, &n);
    str_printf(s, "],\"disk_bytes\":%lld,\"step_seconds\":%.4g,\"step_tokens\":%lld,\"chunk_tokens\":%lld,", (long long)disk,
               x->plan.seconds, (long long)r->step_rows, (long long)x->plan.choice.rows);
    if (x->steps)
        str_printf(s, "\"steps\":%lld,\"tokens\":%.0f,\"seconds\":%.4g,", (long long)x->steps, x->tokens,
                   x->tokens / x->tokens_per_second);
    str_printf(s, "\"product_flops\":%.4g,\"memory_bytes_per_second\":%.4g,\"link_bytes_per_second\":%.4g,", r->flops,
               r->bandwidth, r->link);
    if (x->plan.disk) str_printf(s, "\"disk_bytes_per_second\":%.4g,", r->disk);
    str_puts(s, "\"machine\":");
    str_json(s, x->machine, strlen(x->machine));
    str_puts(s, "}\n");
}

/* The command to go on with: the flags that were given, behind what a run needs besides. */
static void next_command(const struct options *o, struct str *s) {
    const char *model = o->train.model_name_or_path;
    str_printf(s, "next: qlora train --model_name_or_path %s", model ? model : "DIR");
    if (!o->train.data.dataset) str_puts(s, " --dataset NAME");
    if (!options_given(o, "output_dir")) str_puts(s, " --output_dir OUT");
    for (int i = 0; i < flag_count; i++)
        if (o->given[i].name && flags[i].commands >> CMD_TRAIN & 1 && flags[i].status == USED &&
            strcmp(flags[i].name, "model_name_or_path"))
            str_printf(s, " --%s %s", flags[i].name, o->given[i].value);
    str_puts(s, " --dry_run\n");
}

static void as_text(const struct options *o, const struct estimate *x, struct str *s) {
    str_printf(s, "%s\n", x->machine);
    estimate_print(x, s);
    next_command(o, s);
}

static int one(const struct options *o, struct str *s, struct err *e) {
    struct estimate x;
    struct model_config c = {0};
    if (o->config && model_config_find(o->config, &c, e)) return -1;
    const int r = train_estimate(&(struct estimate_options){.train = &o->train, .config = o->config ? &c : NULL,
                                                            .card = o->card, .memory = (enum estimate_memory)o->memory}, &x, e);
    model_config_free(&c);
    if (r) return -1;
    if (o->json) as_json(&x, s);
    else as_text(o, &x, s);
    return 0;
}

/* ---- the guide's table ---- */

static const double GB = 1e9;
/* Ours: three plans of the same run. */
enum column { RESIDENT, DEFAULT, SMALLEST, COLUMNS };
static const char *const column_names[COLUMNS] = {"resident", "default", "smallest"};
static const enum estimate_memory column_memory[COLUMNS] = {ESTIMATE_RESIDENT, ESTIMATE_CARD, ESTIMATE_LEAST};

/* *fits 0: too large for the card or the host, which is an answer, too. */
static int cell(const struct options *o, const struct guide_row *g, enum column column, struct estimate *x, int *fits, struct err *e) {
    struct train_options t = o->train;
    struct model_config c;
    struct err why = {0};
    if (model_config_find(g->config, &c, e)) return -1;
    guide_apply(g, &t);
    if (column != DEFAULT) t.host_memory = 0; /* what it needs is the question */
    if (column == RESIDENT) t.vram_bytes = 0;
    *fits = !train_estimate(&(struct estimate_options){.train = &t, .config = &c, .card = o->card ? o->card : "l40s",
                                                       .memory = column_memory[column]}, x, &why);
    model_config_free(&c);
    if (*fits || (column == DEFAULT && why.code == ERR_RUN)) return 0;
    *e = why;
    return -1;
}

static double hours(const struct estimate *x) { return GUIDE_TOKENS / x->tokens_per_second / 3600; }

static void json_row(struct str *s, const struct guide_row *g, const struct estimate x[COLUMNS], const int fits[COLUMNS]) {
    str_printf(s, "{\"model\":\"%s\",\"method\":\"%s\",\"guide_gb\":%g", g->model, g->method, g->gb);
    if (g->hours > 0) str_printf(s, ",\"guide_hours\":%g", g->hours);
    for (int i = 0; i < COLUMNS; i++)
        if (fits[i])
            str_printf(s, ",\"%s\":{\"device_gb\":%.2f,\"host_gb\":%.2f,\"tokens_per_second\":%.5g,\"hours\":%.3g}",
                       column_names[i], (double)x[i].plan.device / GB, (double)x[i].plan.host / GB, x[i].tokens_per_second,
                       hours(&x[i]));
        else str_printf(s, ",\"%s\":null", column_names[i]);
    str_puts(s, ",\"estimated\":true}\n");
}

static void text_row(struct str *s, const struct guide_row *g, const struct estimate x[COLUMNS], const int fits[COLUMNS]) {
    char text[80], speed[32];
    snprintf(text, sizeof text, g->hours > 0 ? "%g GB, %g h" : "%g GB", g->gb, g->hours);
    str_printf(s, "| %-4s | %-5s | %-11s |", g->model, g->method, text);
    for (int i = 0; i < COLUMNS; i++) {
        if (fits[i]) {
            int n = snprintf(text, sizeof text, "%.1f", (double)x[i].plan.device / GB);
            if (x[i].plan.host > 50000000) n += snprintf(text + n, sizeof text - (size_t)n, " + %.0f", (double)x[i].plan.host / GB);
            snprintf(text + n, sizeof text - (size_t)n, " GB, %s/s, %.*f h",
                     text_thousands(speed, (int64_t)x[i].tokens_per_second), hours(&x[i]) < 1 ? 2 : 1, hours(&x[i]));
        } else snprintf(text, sizeof text, "does not fit");
        str_printf(s, " %-31s |", text);
    }
    str_puts(s, "\n");
}

static int table(const struct options *o, struct str *s, struct err *e) {
    static const char line[] = "---------------------------------";
    struct estimate x[COLUMNS];
    char rows[32];
    int fits[COLUMNS];
    for (const struct guide_row *g = guide; g < guide + GUIDE_ROWS; g++) {
        for (int i = 0; i < COLUMNS; i++)
            if (cell(o, g, (enum column)i, &x[i], &fits[i], e)) return -1;
        if (g == guide && !o->json)
            str_printf(s,
                       "Estimated for %s: memory of the card + of the host, tokens a second, hours for 10.02 million tokens;\n"
                       "%s tokens a step, rank %lld. The guide's hours: one L40S. Resident: weights, adapters and optimizer "
                       "state on the card;\n"
                       "default: what a run takes; smallest: the least that does.\n\n"
                       "| %-4s | %-5s | %-11s | %-31s | %-31s | %-31s |\n|%.6s|%.7s|%.13s|%s|%s|%s|\n",
                       x[0].machine, text_thousands(rows, x[0].request.step_rows), (long long)o->train.lora.rank, "", "",
                       "the guide", column_names[0], column_names[1], column_names[2], line, line, line, line, line, line);
        (o->json ? json_row : text_row)(s, g, x, fits);
    }
    return 0;
}

int cmd_estimate(struct options *o, struct err *e) {
    struct str s = {0};
    int r = o->table ? table(o, &s, e) : one(o, &s, e);
    if (!r && s.oom) r = err_set(e, ERR_RUN, "out of memory: the estimate");
    if (!r) print_bytes(s.p, s.n);
    str_free(&s);
    return r ? e->code : 0;
}
