/* model/engine.c - see engine.h */
#include "model/engine.h"
#include "base/sys.h"
#include <string.h>

static size_t align256(size_t n) { return (n + 255) / 256 * 256; }
static struct capacity capacity(const struct engine_config *c) {
    return (struct capacity){c->rows, c->window && c->window < c->rows ? c->window : c->rows};
}
static unsigned targets(const struct engine_config *c) { return c->lora ? c->lora->config.targets : 0; }
static int64_t rank(const struct engine_config *c) { return c->lora ? c->lora->config.rank : 0; }

int engine_stacked(const struct model *m, const struct lora *lora) {
    const struct tensor_place *t = m->lay.t;
    return !lora && m->lay.proj == W_BF16 && t[LT_K].offset == t[LT_Q].offset + t[LT_Q].bytes &&
           t[LT_UP].offset == t[LT_GATE].offset + t[LT_GATE].bytes;
}

/* What a backend gains from joint operands depends on it: none on the CPU. */
static int joins(const struct model *m, const struct engine_config *c) { return c->join && m->info.joins && !engine_stacked(m, c->lora); }

void engine_pages(const struct model *m, const struct engine_config *c, struct pages_config *x, struct pages_config *dx) {
    size_t element = dtype_bytes(m->info.activation);
    int64_t n = (c->training ? m->config.L + 1 : 2) * c->chunks,
            resident = c->resident_acts < 0 || c->resident_acts > n ? n : c->resident_acts;
    *x = (struct pages_config){.name = "layer inputs", .count = n, .page_bytes = (size_t)(c->rows * m->config.D) * element,
                               .resident = resident, .slots = resident < n ? 4 : 0};
    *dx = (struct pages_config){.name = "layer gradients", .count = c->training ? c->chunks : 0,
                                .page_bytes = (size_t)(c->rows * gradient_columns(&m->config, targets(c), rank(c))) * element,
                                .resident = c->chunks};
}

static struct backend_limits limits(const struct model *m, const struct engine_config *c) {
    const struct model_config *k = &m->config;
    return (struct backend_limits){.rows = capacity(c).window, .sequence = c->longest, .D = k->D, .F = k->F, .H = k->H,
                                   .K = k->K, .V = k->V, .R = rank(c), .trains_weights = c->training && m->trainable_weights,
                                   .head_f32 = m->outer_format == W_F32 && m->info.activation == DT_BF16, .drops = c->drops,
                                   .joined = joins(m, c) || engine_stacked(m, c->lora)};
}

/* Bytes of the scales of all magnitudes. */
static size_t scales_bytes(const struct model *m, const struct lora *l) {
    return l && l->config.dora ? align256((size_t)(m->config.L * lora_rows(l, PROJ_COUNT)) * 4) : 0;
}

/* The engine's own block: saved, r, scratch, joints, scales. The head has it to itself when it runs: slices of logits in saved, and behind
 * r y, dy, and the head's weights where they are fetched. counting: ids 0 1 2 .. for embeddings that were gathered. */
struct parts { size_t saved, r, counting, scratch, joints, row, weights, scales, block, stage; };
static struct parts parts(const struct model *m, const struct engine_config *c) {
    enum dtype act = m->info.activation;
    const struct model_config *k = &m->config;
    struct parts p = {.saved = saved_bytes(k, act, targets(c), rank(c), capacity(c)),
                      .scratch = scratch_bytes(k, act, targets(c), rank(c), capacity(c), c->training),
                      .r = align256((size_t)c->rows * 4),
                      .row = align256((size_t)(c->rows * k->D) * dtype_bytes(act)),
                      .joints = joins(m, c) ? joints_bytes(k, act, targets(c), rank(c)) : 0};
    size_t slice = align256(2 * dtype_bytes(act) * (size_t)(k->V + k->D) + 1024); /* a row of logits at least */
    if (p.saved < slice) p.saved = slice;
    if (c->outer_on_host) {
        size_t offset;
        model_head_place(m, &offset, &p.weights);
        p.weights = align256(p.weights), p.counting = p.r;
        p.stage = (size_t)(c->rows * k->D) * (m->outer_format == W_F32 ? 4 : 2);
    }
    const size_t layers = p.scratch + p.joints, head = (c->training ? 2 : 1) * p.row + p.weights, embedding = align256(p.stage);
    p.block = p.saved + p.r + p.counting + (layers > head ? layers : head);
    if (p.block < p.saved + p.r + p.counting + embedding) p.block = p.saved + p.r + p.counting + embedding;
    p.scales = scales_bytes(m, c->lora), p.block += p.scales;
    return p;
}

int engine_items(const struct model *m, const struct engine_config *c, struct plan_item *items) {
    struct pages_config x, dx;
    struct parts p = parts(m, c);
    struct backend_limits l = limits(m, c);
    engine_pages(m, c, &x, &dx);
    items[0] = (struct plan_item){.name = x.name}, items[1] = (struct plan_item){.name = dx.name};
    pages_cost(&x, &items[0].device, &items[0].host, &items[0].disk), pages_cost(&dx, &items[1].device, &items[1].host, &items[1].disk);
    if (items[0].host)
        items[0].out = (double)items[0].host,
        items[0].in = (c->chunks > 2 ? 2 : 1) * items[0].out; /* few chunks are still in their slots */
    items[2] = (struct plan_item){.name = "kept activations", .device = (int64_t)p.saved * c->keep_layers * c->chunks};
    items[3] = (struct plan_item){.name = "working set of a chunk", .device = (int64_t)(p.block - p.joints),
                                  .host = (int64_t)p.stage, .alone = (double)p.weights + (double)(p.stage * (size_t)c->chunks)};
    items[4] = (struct plan_item){.name = "a layer's operands", .device = (int64_t)p.joints};
    items[5] = (struct plan_item){.name = "workspace of the ops", .device = (int64_t)m->be->workspace(m->be->self, &l)};
    return 6;
}

static int open_stage(struct engine *g, const struct parts *p, struct err *e) {
    const size_t ids = (size_t)g->c.rows * 4;
    if (!(g->stage = backend_alloc(g->be, AT_HOST, p->stage > ids ? p->stage : ids, "gathered embeddings", e))) return -1;
    g->counting = (int32_t *)(g->memory + p->saved + p->r);
    for (int64_t i = 0; i < g->c.rows; i++) ((int32_t *)g->stage)[i] = (int32_t)i;
    g->be->put(g->be->self, g->counting, g->stage, ids, Q_COMPUTE);
    return g->be->sync(g->be->self, e);
}

int engine_open(struct engine *g, struct model *m, const struct engine_config *c, struct err *e) {
    *g = (struct engine){.c = *c, .m = m, .be = m->be, .type = m->info.activation};
    struct pages_config x, dx;
    engine_pages(m, c, &x, &dx);
    if (!(g->x = pages_open(m->be, &x, e)) || (c->training && !(g->dx = pages_open(m->be, &dx, e)))) goto fail;
    const struct model_config *k = &m->config;
    struct parts p = parts(m, c);
    ASSERT(!c->keep_layers || capacity(c).window == c->rows, "windows of %lld rows are kept", (long long)c->window);
    size_t kept = p.saved * (size_t)(c->keep_layers * c->chunks), layers = p.saved + p.r + p.counting;
    g->kept_bytes = p.saved;
    if (!(g->memory = backend_alloc(m->be, AT_DEVICE, p.block, "the working set of a chunk", e)) ||
        (kept && !(g->kept = backend_alloc(m->be, AT_DEVICE, kept, "kept activations", e)))) goto fail;
    saved_view(k, g->type, targets(c), rank(c), capacity(c), g->memory, &g->saved);
    scratch_view(k, g->type, targets(c), rank(c), capacity(c), c->training, g->memory + layers, &g->scratch);
    g->r = (float *)(g->memory + p.saved), g->shared = g->memory + layers;
    g->joints = p.joints ? g->shared + p.scratch : NULL;
    g->scales = p.scales ? (float *)(void *)(g->memory + p.block - p.scales) : NULL;
    if (p.stage && open_stage(g, &p, e)) goto fail;
    struct backend_limits l = limits(m, c);
    if (!m->be->reserve(m->be->self, &l, e)) return 0;
fail:
    engine_close(g);
    return -1;
}

void engine_close(struct engine *g) {
    pages_close(g->x), pages_close(g->dx);
    if (g->memory) g->be->release(g->be->self, AT_DEVICE, g->memory);
    if (g->kept) g->be->release(g->be->self, AT_DEVICE, g->kept);
    if (g->stage) g->be->release(g->be->self, AT_HOST, g->stage);
    *g = (struct engine){0};
}

void engine_adapters(const struct engine *g, int64_t layer, float *value, float *grad, struct adapter out[PROJ_COUNT]) {
    const struct lora *l = g->c.lora;
    float *c = g->scales ? g->scales + layer * lora_rows(l, PROJ_COUNT) : NULL;
    for (int p = 0; p < PROJ_COUNT; p++) {
        out[p] = (struct adapter){0};
        if (!l || !(l->config.targets >> p & 1)) continue;
        int64_t rows, cols, R = l->config.rank, a = lora_offset_a(l, (enum proj)p), b = lora_offset_b(l, (enum proj)p);
        proj_shape(&g->m->config, (enum proj)p, &rows, &cols);
        out[p] = (struct adapter){.A = {value + a, R, cols, cols, DT_F32}, .B = {value + b, rows, R, R, DT_F32},
                                  .scale = lora_scale(&l->config)};
        if (grad) out[p].dA = (struct mat){grad + a, R, cols, cols, DT_F32}, out[p].dB = (struct mat){grad + b, rows, R, R, DT_F32};
        if (!c) continue;
        out[p].m = value + lora_offset_m(l, (enum proj)p), out[p].c = c + lora_rows(l, (enum proj)p);
        if (grad) out[p].dm = grad + lora_offset_m(l, (enum proj)p);
    }
}

/* Page of x for layer l: all layers in training, two in turn otherwise. */
static int64_t page_of(const struct engine *g, int64_t l, int64_t c) { return (g->c.training ? l : l & 1) * g->c.chunks + c; }

static struct mat matrix(const struct engine *g, void *data, int64_t rows) {
    return (struct mat){data, rows, g->m->config.D, g->m->config.D, g->type};
}
static struct mat gradient(const struct engine *g, void *data, int64_t rows) {
    return (struct mat){data, rows, g->m->config.D, gradient_columns(&g->m->config, targets(&g->c), rank(&g->c)), g->type};
}

/* The operands of a layer for all chunks of a visit; NULL where calls make their own. */
static const struct joints *joints_of(struct engine *g, const struct layer *w, const struct adapter *lora, struct joints *j) {
    if (!g->joints) return NULL;
    joints_make(g->be, g->type, w, lora, g->joints, j);
    return j;
}

static struct saved *saved_of(struct engine *g, int64_t l, int64_t c, struct saved *store) {
    int64_t first = g->m->config.L - g->c.keep_layers;
    if (!g->c.training || l < first) return &g->saved;
    saved_view(&g->m->config, g->type, targets(&g->c), rank(&g->c), capacity(&g->c),
               g->kept + g->kept_bytes * (size_t)((l - first) * g->c.chunks + c), store);
    return store;
}

static struct dropout dropout_of(const struct dropout *d, int64_t l) {
    struct dropout k = d ? *d : (struct dropout){0};
    k.layer = (uint32_t)l;
    return k;
}

/* Layer l at work on chunk c. */
static struct block block_of(struct engine *g, const struct batch *b, int64_t c, int64_t l, const struct layer *w,
                             const struct adapter *lora, const struct joints *joints, const struct dropout *drop,
                             struct saved *store) {
    const struct chunk *k = &b->chunk[c];
    return (struct block){.be = g->be, .config = &g->m->config, .rows = &k->rows, .n_windows = k->n_windows, .window = k->window,
                          .w = w, .lora = lora, .joints = joints, .drop = dropout_of(drop, l), .s = saved_of(g, l, c, store),
                          .t = &g->scratch};
}

/* The embedding for a chunk: the page, or a table of the chunk's own rows in the order in which they are asked for. */
static struct weight embedding(struct engine *g, const struct chunk *k, const int32_t **ids) {
    struct model *m = g->m;
    *ids = k->ids;
    if (!g->stage) return model_embed(m, pages_get(m->outer_page, 0, PAGE_READ));
    struct weight E = model_embed(m, (void *)(uintptr_t)pages_home(m->outer_page, 0));
    const size_t row = (size_t)E.cols * (E.format == W_F32 ? 4 : 2);
    if (g->staged) g->be->wait_host(g->be->self, g->staged);
    for (int64_t t = 0; t < k->rows.N; t++) memcpy(g->stage + (size_t)t * row, (const char *)E.data + (size_t)k->host_ids[t] * row, row);
    g->be->put(g->be->self, g->shared, g->stage, (size_t)k->rows.N * row, Q_COMPUTE);
    g->staged = g->be->mark(g->be->self, Q_COMPUTE);
    *ids = g->counting, E.data = g->shared, E.rows = k->rows.N;
    return E;
}

/* The outer page as the head reads it; `to`: where weights go that are fetched. */
static void *outer_of(struct engine *g, char *to) {
    size_t offset, bytes;
    if (!g->stage) return pages_get(g->m->outer_page, 0, PAGE_READ);
    model_head_place(g->m, &offset, &bytes);
    g->be->put(g->be->self, to, (const char *)pages_home(g->m->outer_page, 0) + offset, bytes, Q_COMPUTE);
    return (void *)((uintptr_t)to - offset);
}
static void put_outer(struct engine *g) {
    if (!g->stage) pages_put(g->m->outer_page, 0, 0);
}

void engine_forward(struct engine *g, const struct batch *b, const struct dropout *drop) {
    struct model *m = g->m;
    int64_t L = m->config.L;
    ASSERT(b->n_chunks <= g->c.chunks, "%d chunks of %lld", b->n_chunks, (long long)g->c.chunks);
    if (g->reach) g->reach(g->context, -1);
    for (int c = 0; c < b->n_chunks; c++) {
        int64_t n = b->chunk[c].rows.N;
        const int32_t *ids;
        struct weight E = embedding(g, &b->chunk[c], &ids);
        struct mat y = matrix(g, pages_get(g->x, page_of(g, 0, c), PAGE_WRITE), n);
        op_embed(g->be, &(struct embed_args){
                            .rows = &b->chunk[c].rows,
                            .ids = ids,
                            .y = y,
                            .skip = -1,
                            .E = {(void *)(uintptr_t)E.data, E.rows, E.cols, E.cols, E.format == W_F32 ? DT_F32 : DT_BF16}});
        if (drop && b->chunk[c].noise) op_noise(g->be, &(struct noise_args){.rows = &b->chunk[c].rows, .y = y,
                                                                            .size = b->chunk[c].noise, .seed = drop->seed,
                                                                            .step = drop->step});
        pages_put(g->x, page_of(g, 0, c), 1), put_outer(g);
    }
    pages_want(g->x, page_of(g, 0, 0));
    for (int64_t l = 0; l < L; l++) {
        backend_range(g->be, "layer %lld forward", (long long)l);
        struct layer w;
        struct adapter lora[PROJ_COUNT];
        if (g->reach) g->reach(g->context, l);
        model_layer(m, l, pages_get(m->layers, l, PAGE_READ), &w);
        float *value = g->c.adapters ? pages_get(g->c.adapters, l, PAGE_READ) : NULL;
        const int64_t next = pages_next(m->layers, l + 1);
        const int brought = g->brings && next >= 0 && g->brings(g->context, next);
        if (g->c.adapters) pages_want(g->c.adapters, l + 1);
        engine_adapters(g, l, value, NULL, lora);
        if (value) scales_make(g->be, &w, lora);
        struct joints j;
        const struct joints *joints = joints_of(g, &w, value ? lora : NULL, &j);
        for (int c = 0; c < b->n_chunks; c++) {
            int64_t in = page_of(g, l, c), to = page_of(g, l + 1, c), n = b->chunk[c].rows.N;
            struct mat x = matrix(g, pages_get(g->x, in, PAGE_READ), n), y = matrix(g, pages_get(g->x, to, PAGE_WRITE), n);
            pages_want(g->x, c + 1 < b->n_chunks ? page_of(g, l, c + 1) : page_of(g, l + 1, 0));
            if (!brought) pages_want_part(m->layers, l + 1, c + 1, b->n_chunks);
            struct saved store;
            struct block k = block_of(g, b, c, l, &w, value ? lora : NULL, joints, drop, &store);
            block_forward(&k, x, y);
            pages_put(g->x, in, 0), pages_put(g->x, to, 1);
        }
        if (value) pages_put(g->c.adapters, l, 0);
        pages_put(m->layers, l, 0);
        backend_range_end(g->be);
    }
}

void engine_head(struct engine *g, const struct batch *b, int backward, const struct head_grads *hg) {
    struct model *m = g->m;
    int64_t L = m->config.L, D = m->config.D;
    backend_range(g->be, "head");
    char *at = g->shared, *y_at = at, *dy_at = at + align256((size_t)(g->c.rows * D) * dtype_bytes(g->type));
    void *outer = outer_of(g, dy_at + (g->c.training ? dy_at - y_at : 0));
    const float *norm = model_norm(m, outer);
    for (int c = 0; c < b->n_chunks; c++) {
        const struct chunk *k = &b->chunk[c];
        int64_t page = page_of(g, L, c), n = k->rows.N;
        struct mat x = matrix(g, pages_get(g->x, page, PAGE_READ), n), y = matrix(g, y_at, n), dy = {0};
        pages_want(g->x, c + 1 < b->n_chunks ? page_of(g, L, c + 1) : backward && g->c.lowest < L ? page_of(g, L - 1, 0) : -1);
        struct norm_args na = {
            .rows = &k->rows, .x = x, .y = y, .g = norm, .g_type = DT_F32, .r = g->r, .eps = m->config.eps, .overwrite = 1};
        op_norm(g->be, &na);
        if (backward) dy = matrix(g, dy_at, n);
        op_loss(g->be, &(struct loss_args){.rows = &k->rows, .y = y, .E = model_head(m, outer), .n = k->n_loss, .row = k->row,
                                           .label = k->label, .weight = backward ? k->weight : NULL,
                                           .smoothing = (float)g->c.smoothing, .nll = k->nll, .best = k->best, .dy = dy,
                                           .dE = hg ? (struct mat){hg->head, m->config.V, D, D, DT_F32} : (struct mat){0},
                                           .work = g->memory, .work_bytes = g->kept_bytes});
        if (backward) {
            na.dy = dy, na.dg = hg ? hg->norm : NULL;
            na.dx = gradient(g, pages_get(g->dx, c, PAGE_WRITE), n);
            op_norm_bwd(g->be, &na);
            pages_put(g->dx, c, 1);
        }
        pages_put(g->x, page, 0);
    }
    put_outer(g);
    backend_range_end(g->be);
}

void engine_backward_layer(struct engine *g, const struct batch *b, const struct dropout *drop, int64_t l, void *weights,
                           float *value, float *grad, const struct layer_grads *lg, int need_dx) {
    struct model *m = g->m;
    struct layer w;
    struct adapter lora[PROJ_COUNT];
    backend_range(g->be, "layer %lld backward", (long long)l);
    model_layer(m, l, weights, &w);
    engine_adapters(g, l, value, grad, lora);
    struct joints j;
    const struct joints *joints = joints_of(g, &w, value ? lora : NULL, &j);
    for (int c = 0; c < b->n_chunks; c++) {
        int64_t page = page_of(g, l, c), n = b->chunk[c].rows.N;
        struct mat x = matrix(g, pages_get(g->x, page, PAGE_READ), n), dx = gradient(g, pages_get(g->dx, c, PAGE_READ_WRITE), n);
        pages_want(g->x, c + 1 < b->n_chunks ? page_of(g, l, c + 1) : l > g->c.lowest ? page_of(g, l - 1, 0) : -1);
        if (l > g->c.lowest) pages_want_part(m->layers, l - 1, c + 1, b->n_chunks);
        struct saved store;
        struct block k = block_of(g, b, c, l, &w, value ? lora : NULL, joints, drop, &store);
        k.grads = lg;
        int kept = k.s != &g->saved;
        block_backward(&k, x, dx, kept, need_dx);
        pages_put(g->x, page, 0), pages_put(g->dx, c, 1);
    }
    backend_range_end(g->be);
}

void engine_embed_backward(struct engine *g, const struct batch *b, const struct head_grads *hg) {
    const struct model_config *k = &g->m->config;
    for (int c = 0; hg->embed && c < b->n_chunks; c++) {
        struct mat dy = gradient(g, pages_get(g->dx, c, PAGE_READ), b->chunk[c].rows.N);
        op_embed_bwd(g->be, &(struct embed_args){.rows = &b->chunk[c].rows, .ids = b->chunk[c].ids, .dy = dy,
                                                 .dE = {hg->embed, k->V, k->D, k->D, DT_F32},
                                                 .skip = (int32_t)(k->pad < k->V ? k->pad : -1)});
        pages_put(g->dx, c, 0);
    }
}

int engine_losses(struct engine *g, struct batch *b, struct err *e) {
    engine_forward(g, b, NULL);
    engine_head(g, b, 0, NULL);
    return batch_losses(b, e) || pages_failed(g->m->layers, e) ? -1 : 0;
}
