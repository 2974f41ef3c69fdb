/* pager/plan.c - see plan.h */
#include "pager/plan.h"
#include <math.h>
#include <stdlib.h>

static int64_t price(plan_cost *cost, void *context, struct plan *p) {
    p->items = cost(context, &p->choice, p->item);
    p->device = p->host = p->disk = 0;
    for (int i = 0; i < p->items; i++) p->device += p->item[i].device, p->host += p->item[i].host, p->disk += p->item[i].disk;
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

/* ---- the model of time ----
 *
 *     device = Σ products / flops (1 + tail / rows) + attention / (ATTENTION flops) + bytes / (BANDWIDTH bandwidth)
 *     step   = max(device + update, visits visit, link, disk) + EXPOSED link + what is copied alone
 *     update = what copies and the processor take for it beyond the forward pass that it goes before, layer by layer
 *
 * The sum runs over forward, the recomputed share of `again`, backward, the rest, and the unpacking of weights. The host queues
 * ops ahead of the device; where chunks are so small that it cannot, it sets the pace. Copies run beside both. The constants
 * are fitted to the runs of bench/results/h100.jsonl; docs/MEMORY.md sets prediction and measurement side by side. */
static const double ATTENTION = 0.38; /* of the rate of products, the causal half counted, up to SHORT rows; beyond, the fifth root
                                       * of the length more: 0.57 at 32,768 */
static const double SHORT = 4096;
static const double BANDWIDTH = 0.65; /* of the memory's own */
static const double EXPOSED = 0.05;   /* share of the copies that nothing hides */
static const double WINDOWS = 1.0 / 9; /* of a forward pass: what comes before attention but for its products, made a second time */
enum { LEAST_WINDOW = 256 };

static double work(const struct plan_request *r, const struct plan_work *w, double tail) {
    const double times = (double)r->longest / SHORT, attention = ATTENTION * (times > 1 ? pow(times < 8 ? times : 8, 0.2) : 1);
    return w->products / r->flops * tail + w->attention / (attention * r->flops) + w->bytes / (BANDWIDTH * r->bandwidth);
}

static double larger_of(double a, double b) { return a > b ? a : b; }

static int64_t visited(const struct plan_request *r) { return r->visited ? r->visited : r->layers; }

double plan_seconds(const struct plan_request *r, const struct plan *p) {
    const struct plan_choice *c = &p->choice;
    double in = 0, out = 0, alone = 0, read = 0, again = r->training ? 1 - (double)c->keep_layers / (double)visited(r) : 0,
           before_in = 0, before_out = 0, by_host = 0;
    for (int i = 0; i < p->items; i++) in += p->item[i].in, out += p->item[i].out, alone += p->item[i].alone, read += p->item[i].read;
    for (int i = 0; i < p->items; i++)
        before_in += p->item[i].update_in, before_out += p->item[i].update_out, by_host += p->item[i].by_host;
    double tail = 1 + r->tail / (double)c->rows, chunks = (double)((r->step_rows + c->rows - 1) / c->rows),
           passes = r->training ? 2 + again : 1;
    /* Joint operands are made once for a visit of all chunks, recomputation and backward being one; else for every call. */
    double makes = c->join && r->joins ? (r->training ? 2 : 1) : passes * chunks;
    double device = work(r, &r->forward, tail) + again * work(r, &r->again, tail) + work(r, &r->backward, tail) +
                    work(r, &r->rest, 1) + makes * r->unpacked / (BANDWIDTH * r->bandwidth);
    double update = larger_of(larger_of(before_in, before_out) / r->link, by_host > 0 ? by_host / r->host_bandwidth : 0) -
                    work(r, &r->forward, tail);
    if (update > 0) device += update;
    if (c->rows < r->longest && r->training) device += WINDOWS * work(r, &r->forward, tail);
    double link = larger_of(in, out) / r->link, host = r->visit * chunks * passes * (double)r->layers;
    if (read > 0) device = larger_of(device, read / r->disk);
    return larger_of(larger_of(device, host), link) + EXPOSED * link + alone / r->link;
}

/* Layers for which the host has no room go to the file: as few as do, or all. */
static void to_disk(const struct plan_request *r, plan_cost *cost, void *context, struct plan *p) {
    int64_t low = 1, high = r->layers - p->choice.resident_layers;
    if (!r->files || !r->host_budget || p->host <= r->host_budget || high < 1) return;
    while (low < high) {
        p->choice.disk_layers = (low + high) / 2;
        price(cost, context, p);
        if (p->host <= r->host_budget) high = p->choice.disk_layers;
        else low = p->choice.disk_layers + 1;
    }
    p->choice.disk_layers = low;
    price(cost, context, p);
}

static double seconds_of_share(const struct plan_request *r, plan_cost *cost, void *context, struct plan *p, int64_t layers) {
    p->choice.by_host = layers;
    price(cost, context, p);
    return plan_seconds(r, p);
}

/* How many layers the processor updates: time falls with their number while copies set the pace, and rises when it does itself. */
static void share_update(const struct plan_request *r, plan_cost *cost, void *context, struct plan *p, unsigned ways) {
    const unsigned needed = PLAN_STATE | PLAN_VALUES | PLAN_WEIGHTS; /* of what it updates nothing is on the device */
    int64_t low = 0, high = r->host_layers;
    if (!high || (ways & needed) != needed) return;
    while (low < high) {
        const int64_t k = (low + high) / 2;
        if (seconds_of_share(r, cost, context, p, k + 1) < seconds_of_share(r, cost, context, p, k)) low = k + 1;
        else high = k;
    }
    seconds_of_share(r, cost, context, p, low);
}

/* Where everything lives at one chunk size: every way that is open, each filled up. Keeps the fastest that fits in *best, and in
 * *least what comes nearest to fitting. */
static void placements(const struct plan_request *r, plan_cost *cost, void *context, int64_t rows, struct plan *best, struct plan *least) {
    const int whole = rows >= r->longest, keeps = r->training && !r->keep_all && whole;
    if (r->keep_all && !whole) return;
    for (unsigned ways = 0; ways < PLAN_WAYS; ways++) {
        if (ways & ~r->may || r->must & ~ways) continue;
        const int streams = (ways & PLAN_WEIGHTS) != 0;
        struct plan p = {.choice = {.rows = rows,
                                    .keep_layers = r->keep_all ? visited(r) : 0,
                                    .resident_layers = streams ? 0 : r->layers,
                                    .acts_on_host = (ways & PLAN_ACTS) != 0,
                                    .state_on_host = (ways & PLAN_STATE) != 0,
                                    .values_on_host = (ways & PLAN_VALUES) != 0,
                                    .outer_on_host = (ways & PLAN_OUTER) != 0,
                                    .join = !(ways & PLAN_APART)}};
        const int64_t base = price(cost, context, &p);
        if (base > r->budget) {
            if (!least->items || base < least->device) *least = p;
            continue;
        }
        const int64_t most = r->keep_budget < r->budget - base ? base + r->keep_budget : r->budget;
        const int states = r->state_groups && ways & (PLAN_STATE | PLAN_VALUES), orders = states && streams && r->host_layers ? 4
                                                                                          : keeps && (streams || states)      ? 2
                                                                                                                              : 1;
        for (int order = 0; order < orders; order++) {
            static const char *const fill[] = {"swk", "ksw", "sk", "k"}; /* what the rest of the budget is for, in turn: state,
                                                                          * weights, activations. The processor updates what
                                                                          * streams */
            struct plan q = p;
            for (const char *x = fill[order]; *x; x++) {
                if (*x == 's' && states) most_that_fits(cost, context, &q, &q.choice.resident_state, r->state_groups, r->budget);
                if (*x == 'w' && streams) most_that_fits(cost, context, &q, &q.choice.resident_layers, r->layers, r->budget);
                if (*x == 'k' && keeps) most_that_fits(cost, context, &q, &q.choice.keep_layers, visited(r), most);
            }
            share_update(r, cost, context, &q, ways);
            to_disk(r, cost, context, &q);
            q.seconds = plan_seconds(r, &q);
            if (r->host_budget && q.host > r->host_budget) {
                if (!least->items || least->device > r->budget || q.host < least->host) *least = q;
            } else if (!best->items || q.seconds < best->seconds) *best = q;
        }
    }
}

static int larger(const void *a, const void *b) {
    const struct plan_item *x = a, *y = b;
    return (x->device < y->device) - (x->device > y->device);
}

/* p needs more than there is, of the device or of the host: says of what, how much, and what for. */
static int too_small(const struct plan_request *r, const struct plan *p, struct err *e) {
    const int of_host = p->device <= r->budget;
    struct plan_item item[PLAN_ITEMS];
    struct str largest = {0};
    char need[24], have[24], size[24];
    for (int i = 0; i < p->items; i++) {
        item[i] = p->item[i];
        if (of_host) item[i].device = item[i].host;
    }
    qsort(item, (size_t)p->items, sizeof *item, larger);
    for (int i = 0; i < p->items && i < 3 && item[i].device; i++)
        str_printf(&largest, "%s%s %s", i ? ", " : "", item[i].name, text_bytes(size, item[i].device));
    err_set(e, ERR_RUN, "this run needs at least %s %s and has %s: %s. %s would fit more",
            text_bytes(need, of_host ? p->host : p->device), of_host ? "of host memory" : "on the device",
            text_bytes(have, of_host ? r->host_budget : r->budget), largest.p ? largest.p : "", r->advice);
    str_free(&largest);
    return -1;
}

int plan_make(const struct plan_request *r, plan_cost *cost, void *context, struct plan *p, struct err *e) {
    const int64_t window = r->longest < LEAST_WINDOW ? r->longest : LEAST_WINDOW;
    int64_t rows = r->step_rows < r->prefer_rows ? r->step_rows : r->prefer_rows;
    struct plan best = {0}, least = {0};
    if (rows < r->longest) rows = r->longest;
    if (r->most_rows && rows > r->most_rows && !r->keep_all) rows = r->most_rows;
    while (rows > 0) {
        placements(r, cost, context, rows, &best, &least);
        rows = rows <= window ? 0 : rows > r->longest && rows / 2 < r->longest ? r->longest : rows / 2 > window ? rows / 2 : window;
        if (rows < r->least_rows) break;
    }
    *p = best.items ? best : least;
    price(cost, context, p); /* the caller's context follows the choice */
    return best.items ? 0 : too_small(r, p, e);
}

void plan_print(const struct plan *p, const struct plan_request *r, struct str *out) {
    const struct plan_choice *c = &p->choice;
    char a[32], b[32], d[24];
    if (c->rows < r->longest)
        str_printf(out, "plan: sequences of up to %s tokens in windows of %s", text_thousands(a, r->longest),
                   text_thousands(b, c->rows));
    else str_printf(out, "plan: chunks of %s tokens", text_thousands(a, c->rows));
    if (r->training) {
        if (c->keep_layers >= visited(r)) str_puts(out, "; activations kept, nothing recomputed");
        else if (c->keep_layers)
            str_printf(out, "; activations of %lld layers kept, %lld recomputed", (long long)c->keep_layers,
                       (long long)(visited(r) - c->keep_layers));
        else str_puts(out, "; activations recomputed in backward");
    }
    if (r->joins && !c->join) str_puts(out, "; weights unpacked for every chunk");
    if (c->outer_on_host) str_puts(out, "; embedding and head fetched when needed");
    if (c->resident_layers < r->layers)
        str_printf(out, "; %lld of %lld layers streamed", (long long)(r->layers - c->resident_layers), (long long)r->layers);
    if (c->disk_layers) str_printf(out, ", %lld of them from a file of %s", (long long)c->disk_layers, text_bytes(a, p->disk));
    if (c->by_host) str_printf(out, "; %lld layers updated by the processor", (long long)c->by_host);
    str_printf(out, "\n  %-28s %12s %12s\n", "", "device", "host");
    for (int i = 0; i < p->items; i++)
        if (p->item[i].device || p->item[i].host)
            str_printf(out, "  %-28s %12s %12s\n", p->item[i].name, p->item[i].device ? text_bytes(a, p->item[i].device) : "-",
                       p->item[i].host ? text_bytes(b, p->item[i].host) : "-");
    str_printf(out, "  %-28s %12s %12s", "total", text_bytes(a, p->device), text_bytes(b, p->host));
    if (r->budget < INT64_MAX) str_printf(out, "   of %s", text_bytes(d, r->budget));
    str_puts(out, "\n");
}
