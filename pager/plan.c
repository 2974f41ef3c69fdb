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
static void most_that_fits(plan_cost *cost, void *context, struct plan *p, int64_t *field, int64_t most, int64_t budget) {
    int64_t low = 0, high = most;
    while (low < high) {
        *field = (low + high + 1) / 2;
        if (price(cost, context, p) <= budget) low = *field;
        else high = *field - 1;
    }
    *field = low;
    price(cost, context, p);
}

/* A chunk's launches and the tails of its products take about as long as this many tokens' work. */
enum { CHUNK_OVERHEAD = 128, LEAST_WINDOW = 256 };
/* Of a layer's forward pass, what comes before attention but for its products: made a second time where windows are cut. */
static const double AGAIN = 1.0 / 9;

static double seconds(const struct plan_request *r, const struct plan *p) {
    const struct plan_choice *c = &p->choice;
    double in = 0, out = 0, recomputed = r->training ? 1 - (double)c->keep_layers / (double)r->layers + (c->rows < r->longest ? AGAIN : 0) : 0;
    for (int i = 0; i < p->items; i++) in += p->item[i].in, out += p->item[i].out;
    double work = (r->forward * (1 + recomputed) + r->backward) / r->flops * (1 + CHUNK_OVERHEAD / (double)c->rows) * (c->join || !r->joins ? 1 : 1.05);
    double link = (in > out ? in : out) / r->link;
    return (work > link ? work : link) + 0.05 * link; /* copies never hide completely */
}

/* Where everything lives at one chunk size, from all on the device to little: keeps the fastest that fits in *best. */
static int placements(const struct plan_request *r, plan_cost *cost, void *context, int64_t rows, struct plan *best, struct plan *smallest) {
    int found = 0, whole = rows >= r->longest;
    if (r->keep_all && !whole) return 0;
    for (int bits = 0; bits < 1 << 5; bits++) {
        int acts = bits & 1, state = bits >> 1 & 1, values = bits >> 2 & 1, stream = bits >> 3 & 1, apart = bits >> 4 & 1;
        if ((state && !r->may_page_state) || ((acts || state || values) && !r->training) || (apart && !r->joins)) continue;
        struct plan p = {.choice = {.rows = rows, .keep_layers = r->keep_all ? r->layers : 0, .resident_layers = stream ? 0 : r->layers, .acts_on_host = acts,
                                    .state_on_host = state, .values_on_host = values, .join = !apart}};
        int64_t base = price(cost, context, &p);
        if (!smallest->items || base < smallest->device) *smallest = p;
        if (base > r->budget) continue;
        int keeps = r->training && !r->keep_all && whole;
        for (int order = 0; order < 1 + (stream && keeps); order++) { /* what the rest of the budget is for: weights first, or activations */
            struct plan q = p;
            int64_t most = base + r->keep_budget < r->budget ? base + r->keep_budget : r->budget;
            if (stream && order == 0) most_that_fits(cost, context, &q, &q.choice.resident_layers, r->layers, r->budget);
            if (keeps) most_that_fits(cost, context, &q, &q.choice.keep_layers, r->layers, most);
            if (stream && order == 1) most_that_fits(cost, context, &q, &q.choice.resident_layers, r->layers, r->budget);
            q.seconds = seconds(r, &q);
            if (best->items && q.seconds >= best->seconds) continue;
            *best = q;
            found = 1;
        }
    }
    return found;
}

static int larger(const void *a, const void *b) {
    const struct plan_item *x = a, *y = b;
    return (x->device < y->device) - (x->device > y->device);
}

int plan_make(const struct plan_request *r, plan_cost *cost, void *context, struct plan *p, struct err *e) {
    int64_t rows = r->step_rows < r->prefer_rows ? r->step_rows : r->prefer_rows, least = r->longest < LEAST_WINDOW ? r->longest : LEAST_WINDOW;
    struct plan best = {0};
    if (rows < r->longest) rows = r->longest;
    if (r->most_rows && rows > r->most_rows && !r->keep_all) rows = r->most_rows;
    *p = (struct plan){0};
    for (int64_t n = rows; n > 0;) {
        placements(r, cost, context, n, &best, p);
        n = n <= least ? 0 : n > r->longest && n / 2 < r->longest ? r->longest : n / 2 > least ? n / 2 : least;
    }
    if (best.items) {
        *p = best;
        price(cost, context, p); /* the caller's context follows the choice */
        return 0;
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
    if (c->rows < r->longest) str_printf(out, "plan: sequences of up to %lld tokens in windows of %lld", (long long)r->longest, (long long)c->rows);
    else str_printf(out, "plan: chunks of %lld tokens", (long long)c->rows);
    if (r->training) {
        if (c->keep_layers >= r->layers) str_puts(out, "; activations kept, nothing recomputed");
        else if (c->keep_layers) str_printf(out, "; activations of %lld layers kept, %lld recomputed", (long long)c->keep_layers, (long long)(r->layers - c->keep_layers));
        else str_puts(out, "; activations recomputed in backward");
    }
    if (r->joins && !c->join) str_puts(out, "; weights unpacked for every chunk");
    if (c->resident_layers < r->layers) str_printf(out, "; %lld of %lld layers streamed", (long long)(r->layers - c->resident_layers), (long long)r->layers);
    str_printf(out, "\n  %-28s %12s %12s\n", "", "device", "host");
    for (int i = 0; i < p->items; i++)
        if (p->item[i].device || p->item[i].host)
            str_printf(out, "  %-28s %12s %12s\n", p->item[i].name, p->item[i].device ? text_bytes(a, p->item[i].device) : "-", p->item[i].host ? text_bytes(b, p->item[i].host) : "-");
    str_printf(out, "  %-28s %12s %12s   of %s\n", "total", text_bytes(a, p->device), text_bytes(b, p->host), text_bytes(d, r->budget));
}
