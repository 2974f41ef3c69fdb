/* model/generate.c - see generate.h */
#include "model/generate.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/stop.h"
#include "base/sys.h"
#include "model/engine.h"
#include <math.h>
#include <string.h>

enum { PREFILL_ROWS = 256 };

static size_t align256(size_t n) { return (n + 255) / 256 * 256; }

int generator_open(struct generator *g, struct model *m, const struct lora *lora, struct pages *adapters, int64_t capacity, struct err *e) {
    const struct model_config *c = &m->config;
    struct backend *be = m->be;
    struct backend_info info;
    be->info(be->self, &info);
    enum dtype act = info.activation;
    size_t size = dtype_bytes(act);
    *g = (struct generator){.m = m, .be = be, .lora = lora, .adapters = adapters, .capacity = capacity,
                            .rows = capacity < PREFILL_ROWS ? capacity : PREFILL_ROWS};
    unsigned targets = lora ? lora->config.targets : 0;
    int64_t R = lora ? lora->config.rank : 0;
    struct capacity n = {g->rows, g->rows};
    size_t qk = align256((size_t)(capacity * 2 * c->D) * size), v = align256((size_t)(capacity * c->D) * size),
           row = align256((size_t)c->D * size);
    size_t layer = qk + v + 2 * row, x = align256((size_t)(g->rows * c->D) * size), saved = saved_bytes(c, act, targets, R, n);
    size_t scratch = scratch_bytes(c, act, targets, R, n, 0),
           total = layer * (size_t)c->L + saved + scratch + 2 * x + align256((size_t)c->V * size);
    const size_t scales = lora && lora->config.dora ? align256((size_t)(c->L * lora_rows(lora, PROJ_COUNT)) * 4) : 0;
    total += scales;
    g->layer = sys_alloc_array((size_t)c->L, sizeof *g->layer, "layer caches", e);
    g->logits = sys_alloc_array((size_t)c->V, sizeof *g->logits, "logits", e);
    g->raw = be->alloc(be->self, AT_HOST, (size_t)c->V * size);
    g->host = be->alloc(be->self, AT_HOST, (size_t)g->rows * 16);
    g->dev = be->alloc(be->self, AT_DEVICE, (size_t)g->rows * 16);
    g->memory = be->alloc(be->self, AT_DEVICE, total);
    if (!g->layer || !g->logits || !g->raw || !g->host || !g->dev || !g->memory) {
        char text[24];
        err_set(e, ERR_RUN, "out of memory: a context of %lld tokens needs %s; ask for fewer with --max_new_tokens",
                (long long)capacity, text_bytes(text, (int64_t)total));
        generator_close(g);
        return -1;
    }
    char *p = g->memory;
    for (int64_t l = 0; l < c->L; l++, p += layer)
        g->layer[l] = (struct layer_cache){.qk = {p, capacity, 2 * c->D, 2 * c->D, act}, .v = {p + qk, capacity, c->D, c->D, act},
                                           .a = {p + qk + v, 1, c->D, c->D, act}, .u = {p + qk + v + row, 1, c->D / 2, c->D / 2, act}};
    saved_view(c, act, targets, R, n, p, &g->saved);
    scratch_view(c, act, targets, R, n, 0, p + saved, &g->scratch);
    p += saved + scratch;
    g->x = (struct mat){p, g->rows, c->D, c->D, act}, g->y = (struct mat){p + x, g->rows, c->D, c->D, act};
    g->out = (struct mat){p + 2 * x, 1, c->V, c->V, act};
    g->scales = scales ? (float *)(void *)((char *)g->memory + total - scales) : NULL;
    struct backend_limits lim = {
        .rows = g->rows, .sequence = capacity, .D = c->D, .F = c->F, .H = c->H, .K = c->K, .V = c->V, .R = R, .generates = 1};
    if (!be->reserve(be->self, &lim, e)) return 0;
    generator_close(g);
    return -1;
}

void generator_close(struct generator *g) {
    if (!g->be) return;
    if (g->raw) g->be->release(g->be->self, AT_HOST, g->raw);
    if (g->host) g->be->release(g->be->self, AT_HOST, g->host);
    if (g->dev) g->be->release(g->be->self, AT_DEVICE, g->dev);
    if (g->memory) g->be->release(g->be->self, AT_DEVICE, g->memory);
    sys_free(g->layer), sys_free(g->logits);
    *g = (struct generator){0};
}

void generator_reset(struct generator *g) { g->past = g->document = 0; }

/* One piece of at most g->rows tokens through all layers. The last hidden rows are left in g->x. */
static void piece(struct generator *g, const int32_t *ids, int64_t n) {
    struct model *m = g->m;
    const struct model_config *c = &m->config;
    int32_t starts[2] = {0, (int32_t)n};
    for (int64_t t = 0; t < n; t++) {
        g->host[t] = ids[t];
        g->host[n + t] = (int32_t)(g->past + t);
        g->host[2 * n + t] = (int32_t)g->document;
        g->host[3 * n + t] = (int32_t)(g->past + t);
        if (c->document_mask && ids[t] == c->eod) g->document = g->past + t + 1;
    }
    g->be->put(g->be->self, g->dev, g->host, (size_t)n * 16, Q_COMPUTE);
    struct rows rows = {
        .N = n, .n_seqs = 1, .seq_start = starts, .position = g->dev + n, .first = g->dev + 2 * n, .offset = g->dev + 3 * n};
    void *outer = pages_get(m->outer_page, 0, PAGE_READ);
    struct weight E = model_embed(m, outer);
    struct mat x = mat_rows(g->x, 0, n), y = mat_rows(g->y, 0, n);
    op_embed(g->be, &(struct embed_args){.rows = &rows, .ids = g->dev, .y = x, .skip = -1,
                                         .E = {(void *)(uintptr_t)E.data, E.rows, E.cols, E.cols, E.format == W_F32 ? DT_F32 : DT_BF16}});
    pages_put(m->outer_page, 0, 0);
    struct engine_config ec = {.lora = g->lora};
    struct engine view = {.c = ec, .m = m, .scales = g->scales};
    for (int64_t l = 0; l < c->L && !stop_requested(); l++) { /* generator_feed then says so */
        struct layer w;
        struct adapter lora[PROJ_COUNT];
        model_layer(m, l, pages_get(m->layers, l, PAGE_READ), &w);
        float *value = g->adapters ? pages_get(g->adapters, l, PAGE_READ) : NULL;
        pages_want(m->layers, l + 1);
        engine_adapters(&view, l, value, NULL, lora);
        if (value && !g->scaled) scales_make(g->be, &w, lora);
        g->layer[l].past = g->past;
        block_forward(&(struct block){.be = g->be, .config = c, .rows = &rows, .w = &w, .lora = value ? lora : NULL,
                                      .cache = &g->layer[l], .s = &g->saved, .t = &g->scratch}, x, y);
        struct mat swap = x;
        x = y, y = swap;
        if (value) pages_put(g->adapters, l, 0);
        pages_put(m->layers, l, 0);
    }
    g->past += n, g->scaled |= !stop_requested();
    if (x.data != g->x.data) g->y.data = g->x.data, g->x.data = x.data;
}

int generator_feed(struct generator *g, const int32_t *ids, int64_t n, struct err *e) {
    const struct model_config *c = &g->m->config;
    ASSERT(n > 0 && g->past + n <= g->capacity, "%lld + %lld tokens of %lld", (long long)g->past, (long long)n, (long long)g->capacity);
    int64_t last = 0;
    for (int64_t i = 0; i < n; i += last) {
        last = n - i < g->rows ? n - i : g->rows;
        piece(g, ids + i, last);
        if (stop_check("while the prompt was read", e)) return -1;
        if (i + last < n && g->be->sync(g->be->self, e)) return -1; /* host arrays are reused */
    }
    int32_t one[2] = {0, 1};
    struct rows rows = {.N = 1, .n_seqs = 1, .seq_start = one, .position = g->dev, .first = g->dev, .offset = g->dev};
    void *outer = pages_get(g->m->outer_page, 0, PAGE_READ);
    struct mat x = mat_rows(g->x, last - 1, 1), y = mat_rows(g->y, 0, 1);
    op_norm(g->be, &(struct norm_args){.rows = &rows, .x = x, .y = y, .g = model_norm(g->m, outer), .g_type = DT_F32, .eps = c->eps});
    op_linear(g->be, &(struct linear_args){.rows = &rows, .x = y, .n = 1, .out = {{.w = model_head(g->m, outer), .y = g->out}}});
    pages_put(g->m->outer_page, 0, 0);
    g->be->get(g->be->self, g->raw, g->out.data, (size_t)c->V * dtype_bytes(g->out.type), Q_COMPUTE);
    if (g->be->sync(g->be->self, e)) return -1;
    for (int64_t i = 0; i < c->V; i++) g->logits[i] = g->out.type == DT_F32 ? ((float *)g->raw)[i] : bf16_to_f32(((uint16_t *)g->raw)[i]);
    return 0;
}

/* The candidates of a draw, a heap with the best at its root; those taken lie behind the heap, the best last. So the few that are
 * needed come in order without sorting a vocabulary. */
struct candidate { float logit; int32_t id; };
struct choice { struct candidate *c; int64_t n, taken; double top, temperature; };
static int better(struct candidate a, struct candidate b) { return a.logit > b.logit || (a.logit == b.logit && a.id < b.id); }
/* Puts c[i] in its place below. sign 1: a heap with the best at its root, -1: the worst. */
static void sink(struct candidate *c, int64_t n, int64_t i, int sign) {
    struct candidate x = c[i];
    for (int64_t k; (k = 2 * i + 1) < n; i = k) {
        if (k + 1 < n && better(c[k + 1], c[k]) == (sign > 0)) k++;
        if (better(c[k], x) != (sign > 0)) break;
        c[i] = c[k];
    }
    c[i] = x;
}
/* The i-th best, from 0. */
static struct candidate best_at(struct choice *o, int64_t i) {
    for (; o->taken <= i; o->taken++) {
        int64_t last = o->n - 1 - o->taken;
        struct candidate x = o->c[0];
        o->c[0] = o->c[last], o->c[last] = x;
        sink(o->c, last, 0, 1);
    }
    return o->c[o->n - 1 - i];
}
static void heap(struct choice *o, int sign) {
    for (int64_t i = o->n / 2; i-- > 0;) sink(o->c, o->n, i, sign);
}
static double mass(const struct choice *o, struct candidate x) { return exp(((double)x.logit - o->top) / o->temperature); }

int32_t sample_next(struct sampling *s, float *logits, int64_t valid, const int32_t *history, int64_t n_history, struct err *e) {
    /* A penalty applies once to each id that occurred: the sign says whether it is divided or multiplied. */
    if (s->repetition_penalty > 0 && s->repetition_penalty != 1) {
        unsigned char *seen = sys_alloc((size_t)valid, "seen tokens", e);
        if (!seen) return -1;
        for (int64_t i = 0; i < n_history; i++) {
            int32_t id = history[i];
            if (id < 0 || id >= valid || seen[id]++) continue;
            logits[id] = logits[id] > 0 ? logits[id] / (float)s->repetition_penalty : logits[id] * (float)s->repetition_penalty;
        }
        sys_free(seen);
    }
    int32_t best = -1;
    for (int64_t i = 0; i < valid; i++)
        if (isfinite(logits[i]) && (best < 0 || logits[i] > logits[best])) best = (int32_t)i;
    if (best < 0) return err_set(e, ERR_NONFINITE, "the model gave no finite logit: its weights or the adapter are damaged");
    if (s->greedy || s->temperature <= 0) return best;
    int64_t most = s->top_k > 0 && s->top_k < valid ? s->top_k : valid, kept = 0;
    struct choice o = {
        .c = sys_alloc_array((size_t)most, sizeof *o.c, "candidates", e), .top = logits[best], .temperature = s->temperature};
    if (!o.c) return -1;
    for (int64_t i = 0; i < valid; i++) {
        struct candidate x = {logits[i], (int32_t)i};
        if (!isfinite(x.logit)) continue;
        if (o.n < most) {
            o.c[o.n++] = x;
            if (o.n == most && most < valid) heap(&o, -1);
        } else if (better(x, o.c[0])) o.c[0] = x, sink(o.c, o.n, 0, -1); /* the worst of the top_k so far gives way */
    }
    heap(&o, 1);
    double sum = 0, run = 0;
    for (int64_t i = 0; i < o.n; i++) sum += mass(&o, o.c[i]);
    if (s->top_p >= 1) kept = o.n, run = sum;
    else do run += mass(&o, best_at(&o, kept++)); /* the smallest set of the best that holds top_p of the mass */
        while (kept < o.n && run < s->top_p * sum);
    uint64_t draw = s->draws++;
    uint32_t counter[4] = {(uint32_t)draw, (uint32_t)(draw >> 32), 0, 0}, key[2] = {(uint32_t)s->seed, (uint32_t)(s->seed >> 32)}, word[4];
    philox4x32(counter, key, word);
    double at = ((double)word[0] * 0x1p32 + (double)word[1]) * 0x1p-64 * run;
    int64_t i = 0;
    for (double below = mass(&o, best_at(&o, 0)); i + 1 < kept && at >= below; below += mass(&o, best_at(&o, ++i))) {}
    int32_t id = best_at(&o, i).id;
    sys_free(o.c);
    return id;
}
