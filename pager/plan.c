/* pager/plan.c - see plan.h */
#include "pager/plan.h"
#include <stdlib.h>

static int64_t price(plan_cost *cost, void *context, struct plan *p) {
    p->items = cost(context, &p->choice, p->item);
    p->device = p->host = 0;
    for (int i = 0; i < p->items; i++) p->device += p->item[i].device, p->host += p->item[i].host;
    return p->device;
}

/* Largest value of *field in [0, most] that still fits, assuming cost grows with it; leaves p priced. */
static void most_that_fits(const struct plan_request *r, plan_cost *cost, void *context, struct plan *p, int64_t *field, int64_t most, int64_t budget) {
    int64_t low = 0, high = most;
    while (low < high) {
        *field = (low + high + 1) / 2;
        if (price(cost, context, p) <= budget) low = *field;
        else high = *field - 1;
    }
    *field = low;
    price(cost, context, p);
    (void)r;
}

/* Rungs 1 to 4 at one chunk size. 1 when one fits. */
static int rungs(const struct plan_request *r, plan_cost *cost, void *context, struct plan *p, int64_t rows, int stream) {
    int last = r->training ? 4 : 1;
    for (int rung = stream ? last : 1; rung <= last; rung++) {
        p->choice = (struct plan_choice){.rows = rows, .join = 1, .resident_layers = stream ? 0 : r->layers,
                                         .keep_layers = r->keep_all ? r->layers : 0,
                                         .state_on_host = rung >= 2 && r->may_page_state,
                                         .acts_on_host = rung >= 3, .values_on_host = rung >= 4};
        int64_t base = price(cost, context, p);
        if (base > r->budget) continue;
        if (stream) most_that_fits(r, cost, context, p, &p->choice.resident_layers, r->layers, r->budget);
        else if (r->training && !r->keep_all) {
            int64_t most = base + r->keep_budget < r->budget ? base + r->keep_budget : r->budget;
            most_that_fits(r, cost, context, p, &p->choice.keep_layers, r->layers, most);
        }
        return 1;
    }
    return 0;
}

static int larger(const void *a, const void *b) {
    const struct plan_item *x = a, *y = b;
    return (x->device < y->device) - (x->device > y->device);
}

int plan_make(const struct plan_request *r, plan_cost *cost, void *context, struct plan *p, struct err *e) {
    int64_t rows = r->step_rows < r->prefer_rows ? r->step_rows : r->prefer_rows;
    if (rows < r->longest) rows = r->longest;
    for (int stream = 0; stream < 2; stream++)
        for (int64_t n = rows;; n = n / 2 > r->longest ? n / 2 : r->longest) {
            if (rungs(r, cost, context, p, n, stream)) return 0;
            if (n == r->longest) break;
        }
    struct plan_item item[PLAN_ITEMS];
    for (int i = 0; i < p->items; i++) item[i] = p->item[i];
    qsort(item, (size_t)p->items, sizeof *item, larger);
    char need[24], have[24], size[3][24];
    for (int i = 0; i < 3; i++) text_bytes(size[i], i < p->items ? item[i].device : 0);
    return err_set(e, ERR_RUN, "this run needs at least %s on the device and has %s: %s %s, %s %s, %s %s. A lower --cutoff_len%s%s would fit more",
                   text_bytes(need, p->device), text_bytes(have, r->budget), item[0].name, size[0],
                   p->items > 1 ? item[1].name : "", p->items > 1 ? size[1] : "", p->items > 2 ? item[2].name : "", p->items > 2 ? size[2] : "",
                   r->training && !r->may_page_state ? ", --optim paged_adamw_32bit" : "", r->keep_all ? ", or leaving gradient checkpointing on," : "");
}

void plan_print(const struct plan *p, const struct plan_request *r, struct str *out) {
    const struct plan_choice *c = &p->choice;
    char a[24], b[24], d[24];
    str_printf(out, "plan: chunks of %lld tokens", (long long)c->rows);
    if (r->training) {
        if (c->keep_layers >= r->layers) str_puts(out, "; activations kept, nothing recomputed");
        else if (c->keep_layers) str_printf(out, "; activations of %lld layers kept, %lld recomputed", (long long)c->keep_layers, (long long)(r->layers - c->keep_layers));
        else str_puts(out, "; activations recomputed in backward");
    }
    if (c->resident_layers < r->layers) str_printf(out, "; %lld of %lld layers streamed", (long long)(r->layers - c->resident_layers), (long long)r->layers);
    str_printf(out, "\n  %-28s %12s %12s\n", "", "device", "host");
    for (int i = 0; i < p->items; i++)
        if (p->item[i].device || p->item[i].host)
            str_printf(out, "  %-28s %12s %12s\n", p->item[i].name, p->item[i].device ? text_bytes(a, p->item[i].device) : "-", p->item[i].host ? text_bytes(b, p->item[i].host) : "-");
    str_printf(out, "  %-28s %12s %12s   of %s\n", "total", text_bytes(a, p->device), text_bytes(b, p->host), text_bytes(d, r->budget));
}
