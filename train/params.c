/* train/params.c - see params.h */
#include "train/params_internal.h"
#include "base/half.h"
#include "base/stop.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { SMALL_STATE_FROM = 4096, STATE_BLOCK = 256, SUMS = 32, PIECE_STEP = 4096 /* whole blocks, wide loads */ };

static size_t align256(size_t n) { return (n + 255) / 256 * 256; }

/* ---- what is trained ---- */

static size_t take(size_t *at, size_t bytes) {
    size_t here = *at;
    *at += align256(bytes);
    return here;
}

/* A piece of a tensor of `whole` elements into a group: its place in the gradients and in the state page. */
static struct param *add(struct params *q, int64_t group, const char *name, int64_t offset, int64_t n, int64_t whole,
                         int has_master, int decay, int bits8) {
    struct param *p = &q->p[q->count++];
    *p = (struct param){.group = group, .offset = offset, .n = n, .whole = whole, .layer = -1, .decay = decay, .lr_ratio = 1,
                        .small_state = bits8 && whole >= SMALL_STATE_FROM,
                        .has_master = has_master, .place = (size_t)offset * 4};
    snprintf(p->name, sizeof p->name, "%s", name);
    size_t *at = &q->state_bytes[group], blocks = (size_t)((n + STATE_BLOCK - 1) / STATE_BLOCK) * 4,
           size = (size_t)n * (p->small_state ? 1 : 4);
    if (has_master) p->master = take(at, (size_t)n * 4);
    p->m = take(at, size), p->v = take(at, size);
    if (p->small_state) p->m_absmax = take(at, blocks), p->v_absmax = take(at, blocks);
    q->total += n;
    return p;
}

static void describe_adapters(struct params *q) {
    for (int64_t g = 0; g < q->layers; g++) {
        q->first[g] = q->count;
        q->value_bytes[g] = (size_t)q->lora->layer_floats * 4;
        for (int p = 0; p < PROJ_COUNT; p++) {
            if (!(q->lora->config.targets >> p & 1)) continue;
            int64_t rows, cols, R = q->lora->config.rank;
            proj_shape(&q->m->config, (enum proj)p, &rows, &cols);
            char name[128];
            snprintf(name, sizeof name, "layers.%lld.%s.lora_A", (long long)g, proj_module[p]);
            add(q, g, name, lora_offset_a(q->lora, (enum proj)p), R * cols, R * cols, 0, 1, q->how.bits8);
            snprintf(name, sizeof name, "layers.%lld.%s.lora_B", (long long)g, proj_module[p]);
            add(q, g, name, lora_offset_b(q->lora, (enum proj)p), rows * R, rows * R, 0, 1, q->how.bits8)->fast = 1;
            if (!q->lora->config.dora) continue;
            snprintf(name, sizeof name, "layers.%lld.%s.lora_magnitude_vector", (long long)g, proj_module[p]);
            add(q, g, name, lora_offset_m(q->lora, (enum proj)p), rows, rows, 0, 1, q->how.bits8)->fast = 1;
        }
    }
}

int params_masters(const struct params *q) { return !q->lora && !q->how.pure && q->m->outer_format == W_BF16; }

static void add_weight(struct params *q, int64_t group, const char *name, int64_t layer, int which, int64_t offset, int64_t at,
                       int64_t n, int64_t whole, int decay, int bits8) {
    size_t size;
    const struct tensor_place *t = model_place(q->m, layer, which, &size);
    struct param *p = add(q, group, name, offset, n, whole, params_masters(q), decay, bits8);
    p->layer = layer, p->which = which, p->at = at, p->half = size == 2, p->place = t->offset + (size_t)at * size;
}

static void describe_layers(struct params *q) {
    const struct layout *lay = &q->m->lay;
    char name[128];
    for (int64_t g = 0; g < q->layers; g++) {
        const int64_t layer = q->how.first_layer + g;
        q->first[g] = q->count;
        for (int i = 0; i < LT_COUNT; i++) {
            if (!(q->how.tensors >> i & 1)) continue;
            const int64_t n = lay->t[i].rows * lay->t[i].cols;
            model_tensor_name(name, layer, (enum layer_tensor)i);
            if (i >= LT_CONV1_0 && i <= LT_CONV2_1) strcat(name, i == LT_CONV1_0 || i == LT_CONV2_0 ? ".0" : ".1");
            add_weight(q, g, name, layer, i, (int64_t)take(&q->value_bytes[g], (size_t)n * 4) / 4, 0, n, n, i < LT_CONV1_B, q->how.bits8);
        }
    }
}

static int64_t numbers(const struct tensor_place *t) { return t->rows * t->cols; }

/* Elements of a piece of an outer tensor: equal parts, none larger than a layer. */
static int64_t piece_of(const struct model *m, const struct tensor_place *t) {
    int64_t layer = 0, n = numbers(t);
    for (int i = 0; i < LT_COUNT; i++) layer += numbers(&m->lay.t[i]);
    int64_t pieces = (n + layer - 1) / layer, piece = (n + pieces - 1) / pieces;
    return (piece + PIECE_STEP - 1) / PIECE_STEP * PIECE_STEP;
}

/* Groups of embedding, head and norm; with q the parts go into them, without they are counted. */
static int64_t outer_groups(struct params *q, const struct model *m, unsigned outer) {
    int64_t groups = 0;
    for (int i = 0; i < OT_COUNT; i++) {
        const struct tensor_place *t = &m->outer[i];
        const int64_t n = numbers(t), piece = piece_of(m, t);
        if (!(outer >> i & 1) || !t->bytes) continue;
        const int64_t offset = q ? (int64_t)take(&q->outer_bytes, (size_t)n * 4) / 4 : 0;
        for (int64_t at = 0; at < n; at += piece) {
            const int fresh = i != OT_NORM || !groups; /* the norm joins the group before it */
            groups += fresh;
            if (!q) continue;
            const int64_t g = q->layers + groups - 1, k = n - at < piece ? n - at : piece;
            if (fresh) q->first[g] = q->count;
            add_weight(q, g, outer_names[i], -1, i, offset + at, at, k, n, i != OT_NORM, q->how.bits8 && i != OT_EMBED);
            q->p[q->count - 1].fast = i == OT_NORM;
        }
    }
    return groups;
}

struct params_how params_all(const struct model *m, int bits8) {
    return (struct params_how){.bits8 = bits8, .layers = m->config.L, .tensors = (1u << LT_COUNT) - 1, .outer = (1u << OT_COUNT) - 1};
}

int params_describe(struct params *q, struct model *m, struct lora *lora, const struct params_how *how, struct err *e) {
    *q = (struct params){.be = m->be, .m = m, .lora = lora, .how = *how};
    if (lora) q->how.first_layer = 0, q->how.layers = m->config.L, q->how.outer = lora->config.wholes;
    q->layers = lora || how->tensors ? q->how.layers : 0;
    q->groups = q->layers + outer_groups(NULL, m, q->how.outer);
    size_t most = (size_t)(q->groups * (lora ? 3 * PROJ_COUNT : LT_COUNT) + OT_COUNT), groups = (size_t)q->groups + 1;
    q->p = sys_alloc_array(most, sizeof *q->p, "parameter table", e);
    q->first = sys_alloc_array(groups, sizeof *q->first, "parameter table", e);
    q->value_bytes = sys_alloc_array(groups, sizeof(size_t), "parameter table", e);
    q->grad_bytes = sys_alloc_array(groups, sizeof(size_t), "parameter table", e);
    q->state_bytes = sys_alloc_array(groups, sizeof(size_t), "parameter table", e);
    if (!q->p || !q->first || !q->value_bytes || !q->grad_bytes || !q->state_bytes) return params_close(q), -1;
    q->half_grads = !lora && m->outer_format == W_BF16;
    if (lora) describe_adapters(q);
    else describe_layers(q);
    outer_groups(q, m, q->how.outer);
    q->first[q->groups] = q->count;
    for (int64_t g = 0; g < q->groups; g++) q->grad_bytes[g] = q->value_bytes[g] / (q->half_grads ? 2 : 1);
    return 0;
}

void params_loraplus(struct params *q, double ratio) {
    ASSERT(q->lora, "ratio %g without adapters", ratio);
    for (int64_t i = 0; i < q->count; i++)
        if (q->p[i].fast) q->p[i].lr_ratio = ratio;
}

int64_t params_group(const struct params *q, int64_t layer) {
    const int64_t g = layer - q->how.first_layer;
    return g >= 0 && g < q->layers ? g : -1;
}

int64_t params_lowest(const struct params *q, int *below) {
    const unsigned behind = (1u << LT_O | 1u << LT_GATE | 1u << LT_UP | 1u << LT_DOWN | 1u << LT_NORM2 | 1u << LT_Q | 1u << LT_K |
                             1u << LT_V); /* block_backward without dx reaches these */
    *below = 0;
    if (q->lora) return *below = q->how.outer >> OT_EMBED & 1, 0;
    if (q->how.outer >> OT_EMBED & 1) return *below = 1, 0;
    if (!q->layers) return q->m->config.L;
    *below = (q->how.tensors & ~behind) != 0;
    return q->how.first_layer;
}

/* ---- where it lives ---- */

void params_pages(const struct params *q, const struct params_place *w, struct params_pages *p) {
    const int slots = q->lora ? 3 : 2; /* a layer of weights takes longer to copy than to compute with: a third slot would not help */
    const int64_t values = w->values < q->layers ? w->values : q->layers, state = w->state < q->groups ? w->state : q->groups;
    p->value = p->grad = (struct pages_config){.name = "adapters", .count = q->layers, .bytes = q->value_bytes,
                                               .resident = values, .slots = values < q->layers ? slots : 0};
    if (!q->lora) p->value.count = 0;
    p->grad.name = "gradients", p->grad.bytes = q->grad_bytes, p->sums = 0;
    for (int64_t g = 0; q->half_grads && g < q->layers; g++)
        if (q->value_bytes[g] > p->sums) p->sums = q->value_bytes[g];
    p->outer_grad = (struct pages_config){.name = "gradients of the embedding", .count = q->outer_bytes != 0,
                                          .page_bytes = q->outer_bytes, .resident = 1};
    p->state = (struct pages_config){.name = params_masters(q) ? "master weights and moments" : "optimizer state",
                                     .count = q->groups, .bytes = q->state_bytes, .resident = state,
                                     .slots = state < q->groups ? slots : 0};
}

/* The layers that the processor may update are those behind all that is at home on the device. */
int params_by_host(const struct params *q, const struct params_place *w, int64_t group) {
    const int64_t layers = w->layers - q->how.first_layer;
    int64_t from = w->values > w->state ? w->values : w->state;
    if (layers > from) from = layers;
    const int64_t n = q->layers - from, i = group - from, k = w->by_host < n ? w->by_host : n;
    return group < q->layers && i >= 0 && k > 0 && (i + 1) * k / n > i * k / n;
}

int params_replaces(const struct params *q) { return params_masters(q) && q->how.tensors == (1u << LT_COUNT) - 1; }

void params_moves(const struct params *q, const struct params_place *w, struct params_moves *v) {
    *v = (struct params_moves){0};
    for (int64_t g = 0; g < q->groups; g++) {
        const int by_host = params_by_host(q, w, g), layer = g < q->layers,
                  streamed = layer && !q->lora && q->how.first_layer + g >= w->layers;
        const double grad = layer && g >= w->values ? (double)q->grad_bytes[g] : 0,
                     state = g >= w->state ? (double)q->state_bytes[g] : 0, page = streamed ? (double)q->m->lay.bytes : 0;
        v->grad_out += grad;
        if (by_host) v->by_host += grad + 2 * state + (params_masters(q) ? page : 2 * page); /* from a master weights are only written */
        else v->update_grad_in += grad, v->update_state_in += state, v->update_state_out += state;
        if (by_host || !params_replaces(q)) v->update_weights_in += page;
        if (!by_host) v->update_weights_out += page;
    }
}

/* A fresh optimizer: moments zero. 8-bit codes of zero are those of the maps' zero, the scales are 0. */
static int clear_state(struct params *q, struct err *e) {
    for (int64_t g = 0; g < q->groups; g++)
        if (pages_zero(q->state, g, e)) return -1;
    return 0;
}

int params_open(struct params *q, const struct params_place *w, struct err *e) {
    struct params_pages p;
    q->where = *w;
    params_pages(q, w, &p);
    if (p.value.count && !(q->value = pages_open(q->be, &p.value, e))) return -1;
    if (p.grad.count && !(q->grad = pages_open(q->be, &p.grad, e))) return -1;
    if (p.sums && !(q->sums = backend_alloc(q->be, AT_DEVICE, p.sums, "a layer's gradients", e))) return -1;
    if (p.outer_grad.count && !(q->outer_grad = pages_open(q->be, &p.outer_grad, e))) return -1;
    if (!(q->state = pages_open(q->be, &p.state, e))) return -1;
    q->done = q->groups;
    for (int64_t g = 0; !q->host && g < q->groups; g++)
        if (params_by_host(q, w, g) && !(q->host = backend_cpu(e))) return -1;
    if (!(q->norms = backend_alloc(q->be, AT_HOST, (size_t)q->count * sizeof *q->norms, "gradient norms", e))) return -1;
    for (int64_t i = 0; i < q->count; i++) q->norms[i] = 0;
    for (int64_t i = 0; q->lora && q->how.pure && i < q->layers * q->lora->layer_floats; i++)
        q->lora->data[i] = bf16_to_f32(f32_to_bf16(q->lora->data[i]));
    for (int64_t g = 0; q->lora && g < q->layers; g++)
        if (pages_write(q->value, g, 0, q->lora->data + g * q->lora->layer_floats, (size_t)q->lora->layer_floats * 4, e)) return -1;
    return clear_state(q, e) || (q->host && update_open(q, e)) ? -1 : 0;
}

void params_magnitudes(struct params *q) {
    struct engine view = {.c = {.lora = q->lora}, .m = q->m};
    for (int64_t l = 0; l < q->m->config.L; l++) {
        struct layer w;
        struct adapter lora[PROJ_COUNT];
        float *value = pages_get(q->value, l, PAGE_READ_WRITE);
        model_layer(q->m, l, pages_get(q->m->layers, l, PAGE_READ), &w);
        pages_want(q->m->layers, l + 1);
        engine_adapters(&view, l, value, NULL, lora);
        for (int p = 0; p < PROJ_COUNT; p++)
            if (lora[p].A.data) op_dora(q->be, &(struct dora_args){.w = w.proj[p], .lora = lora[p],
                                                                   .norm = value + lora_offset_m(q->lora, (enum proj)p)});
        pages_put(q->m->layers, l, 0), pages_put(q->value, l, 1);
    }
}

void params_close(struct params *q) {
    update_close(q); /* its thread works on pages */
    pages_close(q->value), pages_close(q->grad), pages_close(q->outer_grad), pages_close(q->state);
    if (q->norms) q->be->release(q->be->self, AT_HOST, q->norms);
    if (q->sums) q->be->release(q->be->self, AT_DEVICE, q->sums);
    backend_close(q->host);
    sys_free(q->p), sys_free(q->first), sys_free(q->value_bytes), sys_free(q->grad_bytes), sys_free(q->state_bytes);
    *q = (struct params){0};
}

/* ---- gradients ---- */

struct pages *params_home(const struct params *q, int64_t group, int64_t *page) {
    *page = group;
    if (q->lora && group < q->layers) return q->value;
    *page = q->how.first_layer + group;
    if (group < q->layers) return q->m->layers;
    *page = 0;
    return q->m->outer_page;
}

static void norms(struct params *q, int64_t first, int64_t end, const float *grad, uint16_t *page) {
    const float *x[SUMS];
    uint16_t *half[SUMS];
    int64_t n[SUMS], k = 0, from = first;
    for (int64_t i = first; i <= end; i++) {
        const int cut = k == SUMS || i == end || q->p[i].at; /* pieces: the tensor's sum stands with the first */
        const struct sqsum_args sums = {.x = x, .half = page ? half : NULL, .n = n, .count = k, .out = q->norms + from};
        if (cut && k) op_sqsum(q->be, &sums), k = 0;
        if (i == end || q->p[i].at) continue;
        if (!k) from = i;
        if (page) half[k] = page + q->p[i].offset;
        x[k] = grad + q->p[i].offset, n[k++] = q->p[i].whole;
    }
}
float *params_sums(struct params *q, int64_t group, void *page) {
    float *sums = q->sums ? q->sums : page;
    q->be->zero(q->be->self, sums, q->value_bytes[group], Q_COMPUTE);
    return sums;
}
void params_norms(struct params *q, int64_t group, const float *sums, void *page) {
    norms(q, q->first[group], q->first[group + 1], sums, q->half_grads ? page : NULL);
}
void params_outer_norms(struct params *q) {
    if (q->outer_grad) norms(q, q->first[q->layers], q->count, pages_get(q->outer_grad, 0, PAGE_READ), NULL);
}

int params_outer_grads(struct params *q, struct head_grads *g) {
    *g = (struct head_grads){0};
    if (!q->outer_grad) return 0;
    float *x = pages_get(q->outer_grad, 0, PAGE_WRITE), **to[OT_COUNT] = {&g->embed, &g->head, &g->norm};
    q->be->zero(q->be->self, x, q->outer_bytes, Q_COMPUTE);
    for (int64_t i = q->first[q->layers]; i < q->count; i++)
        if (!q->p[i].at) *to[q->p[i].which] = x + q->p[i].offset;
    if (q->m->config.tied) g->head = g->embed;
    return 1;
}

void params_layer_grads(const struct params *q, int64_t group, float *sums, struct layer_grads *g) {
    struct mat *const m[] = {&g->proj[0], &g->proj[1], &g->proj[2], &g->proj[3], &g->proj[4], &g->proj[5], &g->proj[6],
                             &g->conv1[0], &g->conv1[1], &g->conv2[0], &g->conv2[1]};
    float **const v[] = {&g->conv1_b, &g->conv2_b, &g->norm1, &g->norm_f, &g->norm2};
    *g = (struct layer_grads){0};
    for (int64_t i = q->first[group]; i < q->first[group + 1]; i++) {
        const struct param *p = &q->p[i];
        const struct tensor_place *t = &q->m->lay.t[p->which];
        if (p->which < MATRICES) *m[p->which] = (struct mat){sums + p->offset, t->rows, t->cols, t->cols, DT_F32};
        else *v[p->which - MATRICES] = sums + p->offset;
    }
}

/* ---- files ---- */

/* What is not a number must not be kept: -1 with e if one of n values is not finite. */
static int check_finite(const void *x, enum dtype type, int64_t n, const char *name, struct err *e) {
    const float *f = x;
    const uint16_t *h = x;
    for (int64_t i = 0; (type == DT_F32 || type == DT_BF16) && i < n; i++)
        if (!isfinite(type == DT_F32 ? f[i] : bf16_to_f32(h[i])))
            return err_set(e, ERR_NONFINITE, "%s holds a value that is not finite; nothing is saved", name);
    return 0;
}

int params_fetch(struct params *q, struct err *e) {
    params_settle(q);
    for (int64_t g = 0; q->lora && g < q->layers; g++)
        if (pages_read(q->value, g, 0, q->lora->data + g * q->lora->layer_floats, (size_t)q->lora->layer_floats * 4, e)) return -1;
    for (int w = 0; q->lora && w < WHOLES; w++)
        if (q->lora->config.wholes >> w & 1 &&
            (model_read_pages(q->m, -1, w, 0, lora_whole_count(q->lora, (enum whole)w), q->lora->whole[w], e) ||
             check_finite(q->lora->whole[w], DT_F32, lora_whole_count(q->lora, (enum whole)w), "a weight of additional_target",
                          e)))
            return -1;
    for (int64_t i = 0; q->lora && i < q->first[q->layers]; i++) {
        const struct param *p = &q->p[i];
        if (check_finite(q->lora->data + p->group * q->lora->layer_floats + p->place / 4, DT_F32, p->n, p->name, e)) return -1;
    }
    return 0;
}

/* The parts of a piece's state as they stand in files: "NAME.m", "NAME.v" and, in 8 bits, "NAME.m_absmax", "NAME.v_absmax".
 * first, n: elements of the tensor's part that the piece has, of `whole`. */
struct part { const char *suffix; size_t at; enum dtype type; int64_t first, n, whole; };
static int parts(const struct param *p, struct part out[4]) {
    const int64_t blocks = (p->n + STATE_BLOCK - 1) / STATE_BLOCK, all = (p->whole + STATE_BLOCK - 1) / STATE_BLOCK;
    enum dtype t = p->small_state ? DT_U8 : DT_F32;
    out[0] = (struct part){".m", p->m, t, p->at, p->n, p->whole}, out[1] = (struct part){".v", p->v, t, p->at, p->n, p->whole};
    if (!p->small_state) return 2;
    out[2] = (struct part){".m_absmax", p->m_absmax, DT_F32, p->at / STATE_BLOCK, blocks, all},
    out[3] = (struct part){".v_absmax", p->v_absmax, DT_F32, p->at / STATE_BLOCK, blocks, all};
    return 4;
}

/* The page with a piece's exact value, and where it lies in it. */
static struct pages *exact(const struct params *q, const struct param *p, int64_t *page, size_t *at) {
    struct pages *values = params_home(q, p->group, page);
    *at = p->has_master ? p->master : p->place;
    if (p->has_master) *page = p->group;
    return p->has_master ? q->state : values;
}
static enum dtype exact_type(const struct param *p) { return p->half && !p->has_master ? DT_BF16 : DT_F32; }

/* Bytes of a piece's weights that no master stands for. */
static size_t bare_bytes(const struct params *q, const struct param *p) {
    return q->lora || p->has_master ? 0 : (size_t)p->n * dtype_bytes(exact_type(p));
}

int64_t params_copy_bytes(const struct params *q) {
    size_t n = 0;
    for (int64_t g = 0; g < q->groups; g++) n += q->state_bytes[g];
    for (int64_t i = 0; i < q->count; i++) n += bare_bytes(q, &q->p[i]);
    return (int64_t)n;
}

int params_copy_take(struct params *q, struct params_copy *c, struct err *e) {
    params_settle(q);
    *c = (struct params_copy){.state = sys_alloc_array((size_t)q->groups, sizeof(size_t), "copy of the optimizer state", e)};
    if (!c->state || (!q->lora && !(c->value = sys_alloc_array((size_t)q->count, sizeof(size_t), "copy of the weights", e)))) goto fail;
    if (!(c->block = sys_grow(NULL, (size_t)params_copy_bytes(q), "copy of what is saved", e))) goto fail;
    sys_large_pages(c->block, (size_t)params_copy_bytes(q));
    size_t at = 0, here;
    for (int64_t g = 0; g < q->groups; g++) {
        c->state[g] = at, at += q->state_bytes[g];
        if (pages_read(q->state, g, 0, c->block + c->state[g], q->state_bytes[g], e)) goto fail;
    }
    for (int64_t i = 0, page; !q->lora && i < q->count; i++) {
        const size_t bytes = bare_bytes(q, &q->p[i]);
        struct pages *p = exact(q, &q->p[i], &page, &here);
        c->value[i] = at, at += bytes;
        if (bytes && pages_read(p, page, here, c->block + c->value[i], bytes, e)) goto fail;
    }
    return 0;
fail:
    params_copy_free(c);
    return -1;
}

void params_copy_free(struct params_copy *c) {
    sys_free(c->block), sys_free(c->state), sys_free(c->value);
    *c = (struct params_copy){0};
}

enum { PIECE = 4 << 20 };

/* Finite values of this type, of a tensor of this name, in memory, to a writer: in pieces whose checksum finds them still in the
 * processor's cache. */
static int stream_copy(struct ckpt_writer *w, const char *from, size_t bytes, enum dtype type, const char *name, struct err *e) {
    for (size_t i = 0, n; i < bytes; i += n) {
        n = bytes - i < PIECE ? bytes - i : PIECE;
        if (check_finite(from + i, type, (int64_t)(n / dtype_bytes(type)), name, e) || ckpt_write(w, from + i, (int64_t)n, e)) return -1;
    }
    return 0;
}

/* The same of part of a page. */
static int stream_out(struct ckpt_writer *w, struct pages *pages, int64_t page, size_t at, size_t bytes, enum dtype type,
                      const char *name, struct err *e) {
    size_t piece = bytes < PIECE ? bytes : PIECE;
    char *buf = sys_alloc(piece, "save buffer", e);
    int r = buf ? 0 : -1;
    for (size_t i = 0; !r && i < bytes; i += piece) {
        size_t n = bytes - i < piece ? bytes - i : piece;
        r = pages_read(pages, page, at + i, buf, n, e) || check_finite(buf, type, (int64_t)(n / dtype_bytes(type)), name, e) ||
                    ckpt_write(w, buf, (int64_t)n, e)
                ? -1
                : 0;
    }
    sys_free(buf);
    return r;
}

/* Elements first .. first+n of a tensor, which must be finite. */
static int read_finite(const struct ckpt *c, const struct ckpt_tensor *t, int64_t first, int64_t n, enum dtype to, void *x, struct err *e) {
    if (stop_check("while a checkpoint was loaded", e) || ckpt_read_range(c, t, first, n, to, x, e)) return -1;
    return check_finite(x, to, n, t->name, NULL)
               ? err_set(e, ERR_INPUT, "%s: %s holds a value that is not finite; go on from an older checkpoint", ckpt_file(c, t),
                         t->name)
               : 0;
}

/* Elements first .. first+n of a tensor into part of a page, as they are stored. */
static int stream_in(const struct ckpt *c, const struct ckpt_tensor *t, int64_t first, int64_t n, struct pages *pages,
                     int64_t page, size_t at, struct err *e) {
    size_t size = dtype_bytes(t->type);
    int64_t piece = PIECE / (int64_t)size;
    if (n < piece) piece = n;
    char *buf = sys_alloc((size_t)piece * size, "load buffer", e);
    int r = buf ? 0 : -1;
    for (int64_t i = 0; !r && i < n; i += piece) {
        int64_t k = n - i < piece ? n - i : piece;
        r = read_finite(c, t, first + i, k, t->type, buf, e) ||
                    pages_write(pages, page, at + (size_t)i * size, buf, (size_t)k * size, e)
                ? -1
                : 0;
    }
    sys_free(buf);
    return r;
}

static int find(const struct ckpt *c, const char *name, enum dtype type, int64_t n, const char *dir, const struct ckpt_tensor **t,
                struct err *e) {
    *t = ckpt_find(c, name);
    if (*t && (*t)->type == type && (*t)->count == n) return 0;
    return err_set(e, ERR_INPUT,
                   "%s: %s is %s; the run was started with another model, adapter or optimizer: go on with those, or begin anew "
                   "in another output_dir",
                   dir, name,
                   !*t                ? "missing"
                   : (*t)->count != n ? "of another size"
                                      : "of another type");
}

/* Pieces of the tensor that begins with piece i. */
static int64_t pieces(const struct params *q, int64_t i) {
    int64_t n = 1;
    while (i + n < q->count && q->p[i + n].at) n++;
    return n;
}

int params_save_state(struct params *q, const struct params_copy *from, const char *dir, int64_t step, struct err *e) {
    if (!from) params_settle(q);
    struct ckpt_writer *w = ckpt_create(dir, "optimizer", 0, e);
    struct part part[4];
    char name[160];
    if (!w || ckpt_declare(w, "step", DT_I64, 0, NULL, e)) goto fail;
    for (int64_t i = 0; i < q->count; i += pieces(q, i))
        for (int k = 0, n = parts(&q->p[i], part); k < n; k++) {
            snprintf(name, sizeof name, "%s%s", q->p[i].name, part[k].suffix);
            if (ckpt_declare(w, name, part[k].type, 1, &part[k].whole, e)) goto fail;
        }
    if (ckpt_write(w, &step, sizeof step, e)) goto fail;
    for (int64_t i = 0, n; i < q->count; i += n) {
        n = pieces(q, i);
        for (int k = 0; k < parts(&q->p[i], part); k++)
            for (int64_t j = i; j < i + n; j++) {
                parts(&q->p[j], part);
                const size_t bytes = (size_t)part[k].n * dtype_bytes(part[k].type), at = part[k].at;
                snprintf(name, sizeof name, "%s%s", q->p[j].name, part[k].suffix);
                if (from ? stream_copy(w, from->block + from->state[q->p[j].group] + at, bytes, part[k].type, name, e)
                         : stream_out(w, q->state, q->p[j].group, at, bytes, part[k].type, name, e))
                    goto fail;
            }
    }
    return ckpt_commit(w, e);
fail:
    ckpt_abort(w);
    return -1;
}

int params_load_state(struct params *q, const char *dir, struct err *e) {
    char path[1200], name[160];
    snprintf(path, sizeof path, "%s/optimizer.safetensors", dir);
    struct ckpt *c = ckpt_open(path, e);
    struct part part[4];
    const struct ckpt_tensor *t;
    int r = c ? 0 : -1;
    for (int64_t i = 0; !r && i < q->count; i++)
        for (int k = 0, n = parts(&q->p[i], part); !r && k < n; k++) {
            snprintf(name, sizeof name, "%s%s", q->p[i].name, part[k].suffix);
            r = find(c, name, part[k].type, part[k].whole, path, &t, e) ||
                        stream_in(c, t, part[k].first, part[k].n, q->state, q->p[i].group, part[k].at, e)
                    ? -1
                    : 0;
        }
    ckpt_close(c);
    return r;
}

int params_save_values(struct params *q, const struct params_copy *from, const char *dir, struct err *e) {
    if (!from) params_settle(q);
    struct ckpt_writer *w = ckpt_create(dir, "master", 0, e);
    if (!w) return -1;
    for (int64_t i = 0; i < q->count; i += pieces(q, i))
        if (ckpt_declare(w, q->p[i].name, exact_type(&q->p[i]), 1, &q->p[i].whole, e)) goto fail;
    for (int64_t i = 0; i < q->count; i++) {
        int64_t page;
        size_t at;
        struct pages *p = exact(q, &q->p[i], &page, &at);
        const enum dtype type = exact_type(&q->p[i]);
        const size_t bytes = (size_t)q->p[i].n * dtype_bytes(type), copied = !from ? 0
                                                                             : q->p[i].has_master
                                                                                 ? from->state[q->p[i].group] + at
                                                                                 : from->value[i];
        if (from ? stream_copy(w, from->block + copied, bytes, type, q->p[i].name, e)
                 : stream_out(w, p, page, at, bytes, type, q->p[i].name, e))
            goto fail;
    }
    return ckpt_commit(w, e);
fail:
    ckpt_abort(w);
    return -1;
}

/* n masters from element `first` of a piece on, and, if asked, the copies in the model's pages. */
static int put_masters(struct params *q, const struct param *p, int64_t first, int64_t n, const float *x, uint16_t *half, struct err *e) {
    int64_t page;
    struct pages *values = params_home(q, p->group, &page);
    if (pages_write(q->state, p->group, p->master + (size_t)first * 4, x, (size_t)n * 4, e)) return -1;
    if (!half) return 0;
    for (int64_t i = 0; p->half && i < n; i++) half[i] = f32_to_bf16(x[i]);
    if (p->half) return pages_write(values, page, p->place + (size_t)first * 2, half, (size_t)n * 2, e);
    return pages_write(values, page, p->place + (size_t)first * 4, x, (size_t)n * 4, e);
}

enum { VALUES = 1 << 20 }; /* at once */

/* Masters from a file of a training checkpoint, with the model's copies. */
static int load_masters(struct params *q, const struct param *p, const struct ckpt *c, const struct ckpt_tensor *t, struct err *e) {
    float *x = sys_alloc(VALUES * sizeof *x, "load buffer", e);
    uint16_t *half = x ? sys_alloc(VALUES * sizeof *half, "load buffer", e) : NULL;
    int r = half ? 0 : -1;
    for (int64_t i = 0; !r && i < p->n; i += VALUES) {
        const int64_t n = p->n - i < VALUES ? p->n - i : VALUES;
        r = read_finite(c, t, p->at + i, n, DT_F32, x, e) || put_masters(q, p, i, n, x, half, e) ? -1 : 0;
    }
    sys_free(x), sys_free(half);
    return r;
}

int params_load_values(struct params *q, const char *dir, struct err *e) {
    char path[1200];
    snprintf(path, sizeof path, "%s/master.safetensors", dir);
    struct ckpt *c = ckpt_open(path, e);
    const struct ckpt_tensor *t;
    int r = c ? 0 : -1;
    for (int64_t i = 0; !r && i < q->count; i++) {
        const struct param *p = &q->p[i];
        int64_t page;
        size_t at;
        struct pages *pages = exact(q, p, &page, &at);
        if (!(r = find(c, p->name, exact_type(p), p->whole, path, &t, e)))
            r = p->has_master ? load_masters(q, p, c, t, e) : stream_in(c, t, p->at, p->n, pages, page, at, e);
    }
    ckpt_close(c);
    return r;
}

int params_start(struct params *q, model_reader *read, void *context, struct err *e) {
    if (!params_masters(q)) return 0;
    float *x = sys_alloc(VALUES * sizeof *x, "load buffer", e);
    int r = x ? 0 : -1;
    for (int64_t k = 0; k < q->count; k++) {
        const struct param *p = &q->p[k];
        for (int64_t i = 0; !r && i < p->n; i += VALUES) {
            const int64_t n = p->n - i < VALUES ? p->n - i : VALUES;
            r = (*read)(context, p->layer, p->which, p->at + i, n, x, e) || put_masters(q, p, i, n, x, NULL, e) ? -1 : 0;
        }
    }
    sys_free(x);
    return r;
}

/* The part of a tensor that lies in one piece, if it is trained with a master. */
static const struct param *piece_at(const struct params *q, int64_t layer, int which, int64_t element) {
    for (int64_t i = 0; i < q->count; i++) {
        const struct param *p = &q->p[i];
        if (p->layer == layer && p->which == which && p->at <= element && element < p->at + p->n) return p;
    }
    return NULL;
}

int params_read(void *context, int64_t layer, int which, int64_t first, int64_t n, float *to, struct err *e) {
    const struct params_reading *r = context;
    size_t size;
    for (int64_t done = 0; done < n;) {
        const struct param *p = piece_at(r->q, layer, which, first + done);
        if (!p || !p->has_master) {
            model_place(r->q->m, layer, which, &size);
            if (!p && size == 2 && r->frozen)
                return model_read_file(&(struct model_file){r->q->m, r->frozen}, layer, which, first, n, to, e);
            return model_read_pages(r->q->m, layer, which, first, n, to, e) || (p && check_finite(to, DT_F32, n, p->name, e)) ? -1 : 0;
        }
        const int64_t from = first + done - p->at, k = p->n - from < n - done ? p->n - from : n - done;
        if (pages_read(r->q->state, p->group, p->master + (size_t)from * 4, to + done, (size_t)k * 4, e) ||
            check_finite(to + done, DT_F32, k, p->name, e))
            return -1;
        done += k;
    }
    return 0;
}
