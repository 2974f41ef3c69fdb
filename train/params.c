/* train/params.c - see params.h */
#include "base/stop.h"
#include "train/params.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { SMALL_STATE_FROM = 4096, STATE_BLOCK = 256, ADAM_MAX = 32 };

static size_t align256(size_t n) { return (n + 255) / 256 * 256; }

static struct param *add(struct params *q, int64_t group, const char *name, int64_t offset, int64_t n, int decay, int bits8) {
    struct param *p = &q->p[q->count++];
    *p = (struct param){.group = group, .offset = offset, .n = n, .decay = decay, .lr_ratio = 1, .small_state = bits8 && n >= SMALL_STATE_FROM};
    snprintf(p->name, sizeof p->name, "%s", name);
    size_t *at = &q->state_bytes[group], blocks = (size_t)((n + STATE_BLOCK - 1) / STATE_BLOCK) * 4, size = (size_t)n * (p->small_state ? 1 : 4);
    p->m = *at, *at += align256(size);
    p->v = *at, *at += align256(size);
    if (p->small_state) {
        p->m_absmax = *at, *at += align256(blocks);
        p->v_absmax = *at, *at += align256(blocks);
    }
    q->total += n;
    return p;
}

static void describe_adapters(struct params *q, int bits8) {
    for (int64_t g = 0; g < q->groups; g++) {
        q->first[g] = q->count;
        q->value_bytes[g] = (size_t)q->lora->layer_floats * 4;
        for (int p = 0; p < PROJ_COUNT; p++) {
            if (!(q->lora->config.targets >> p & 1)) continue;
            int64_t rows, cols, R = q->lora->config.rank;
            proj_shape(&q->m->config, (enum proj)p, &rows, &cols);
            char name[128];
            snprintf(name, sizeof name, "layers.%lld.%s.lora_A", (long long)g, proj_module[p]);
            add(q, g, name, lora_offset_a(q->lora, (enum proj)p), R * cols, 1, bits8);
            snprintf(name, sizeof name, "layers.%lld.%s.lora_B", (long long)g, proj_module[p]);
            add(q, g, name, lora_offset_b(q->lora, (enum proj)p), rows * R, 1, bits8);
        }
    }
}

static void describe_model(struct params *q, int bits8) {
    const struct layout *lay = &q->m->lay;
    char name[128];
    for (int64_t g = 0; g < q->groups - 1; g++) {
        q->first[g] = q->count;
        q->value_bytes[g] = lay->bytes;
        for (int i = 0; i < LT_COUNT; i++) {
            model_tensor_name(name, g, (enum layer_tensor)i);
            if (i >= LT_CONV1_0 && i <= LT_CONV2_1) strcat(name, i == LT_CONV1_0 || i == LT_CONV2_0 ? ".0" : ".1");
            add(q, g, name, (int64_t)lay->t[i].offset / 4, lay->t[i].rows * lay->t[i].cols, i < LT_CONV1_B, bits8);
        }
    }
    int64_t g = q->groups - 1;
    q->first[g] = q->count;
    for (int i = 0; i < OT_COUNT; i++) {
        const struct tensor_place *t = &q->m->outer[i];
        if (!t->bytes) continue;
        add(q, g, outer_names[i], (int64_t)t->offset / 4, t->rows * t->cols, i != OT_NORM, bits8 && i != OT_EMBED);
        q->value_bytes[g] = t->offset + t->bytes;
    }
}

int params_describe(struct params *q, struct model *m, struct lora *lora, int bits8, struct err *e) {
    *q = (struct params){.be = m->be, .m = m, .lora = lora, .groups = m->config.L + !lora};
    size_t most = (size_t)(q->groups * (lora ? 2 * PROJ_COUNT : LT_COUNT) + OT_COUNT);
    q->p = sys_alloc_array(most, sizeof *q->p, "parameter table", e);
    q->first = sys_alloc_array((size_t)q->groups + 1, sizeof *q->first, "parameter table", e);
    q->value_bytes = sys_alloc_array((size_t)q->groups, sizeof(size_t), "parameter table", e);
    q->state_bytes = sys_alloc_array((size_t)q->groups, sizeof(size_t), "parameter table", e);
    if (!q->p || !q->first || !q->value_bytes || !q->state_bytes) return params_close(q), -1;
    if (lora) describe_adapters(q, bits8);
    else describe_model(q, bits8);
    q->first[q->groups] = q->count;
    return 0;
}

void params_loraplus(struct params *q, double ratio) {
    ASSERT(q->lora, "ratio %g without adapters", ratio);
    for (int64_t i = 1; i < q->count; i += 2) q->p[i].lr_ratio = ratio; /* A and B in turn */
}

void params_pages(const struct params *q, int values_on_host, int state_on_host, struct pages_config *value, struct pages_config *grad,
                  struct pages_config *state) {
    struct pages_config v = {.name = "adapters", .count = q->groups, .bytes = q->value_bytes, .resident = values_on_host ? 0 : q->groups, .slots = values_on_host ? 3 : 0};
    *value = *grad = *state = v;
    if (!q->lora) value->count = 0;
    grad->name = "gradients";
    state->name = "optimizer state", state->bytes = q->state_bytes;
    state->resident = state_on_host ? 0 : q->groups, state->slots = state_on_host ? 3 : 0;
}

/* A fresh optimizer: moments zero. 8-bit codes of zero are those of the maps' zero, the scales are 0. */
static int clear_state(struct params *q, struct err *e) {
    for (int64_t g = 0; g < q->groups; g++)
        if (pages_zero(q->state, g, e)) return -1;
    return 0;
}

int params_open(struct params *q, int values_on_host, int state_on_host, struct err *e) {
    struct pages_config value, grad, state;
    params_pages(q, values_on_host, state_on_host, &value, &grad, &state);
    if (value.count && !(q->value = pages_open(q->be, &value, e))) return -1;
    if (!(q->grad = pages_open(q->be, &grad, e)) || !(q->state = pages_open(q->be, &state, e))) return -1;
    q->done = q->groups;
    if (!(q->norms = backend_alloc(q->be, AT_HOST, (size_t)q->count * sizeof *q->norms, "gradient norms", e))) return -1;
    for (int64_t g = 0; q->lora && g < q->groups; g++)
        if (pages_write(q->value, g, 0, q->lora->data + g * q->lora->layer_floats, (size_t)q->lora->layer_floats * 4, e)) return -1;
    return clear_state(q, e);
}

void params_close(struct params *q) {
    pages_close(q->value), pages_close(q->grad), pages_close(q->state);
    if (q->norms) q->be->release(q->be->self, AT_HOST, q->norms);
    sys_free(q->p), sys_free(q->first), sys_free(q->value_bytes), sys_free(q->state_bytes);
    *q = (struct params){0};
}

/* Where a group's values live. */
static struct pages *home(struct params *q, int64_t group, int64_t *page) {
    *page = group;
    if (q->lora) return q->value;
    if (group < q->m->config.L) return q->m->layers;
    *page = 0;
    return q->m->outer_page;
}
float *params_value_get(struct params *q, int64_t group, enum page_mode mode) {
    int64_t i;
    struct pages *p = home(q, group, &i);
    return pages_get(p, i, mode);
}
void params_value_put(struct params *q, int64_t group, int dirty) {
    int64_t i;
    struct pages *p = home(q, group, &i);
    pages_put(p, i, dirty);
}
void params_want(struct params *q, int64_t group, int state) {
    if (group < 0 || group >= q->groups) return;
    int64_t i;
    struct pages *p = home(q, group, &i);
    pages_want(p, i), pages_want(q->grad, group);
    if (state) pages_want(q->state, group);
}

void params_norms(struct params *q, int64_t group, const float *grad) {
    for (int64_t i = q->first[group]; i < q->first[group + 1]; i += ADAM_MAX) {
        const float *x[ADAM_MAX];
        int64_t n[ADAM_MAX], k = 0;
        for (; k < ADAM_MAX && i + k < q->first[group + 1]; k++) x[k] = grad + q->p[i + k].offset, n[k] = q->p[i + k].n;
        op_sqsum(q->be, &(struct sqsum_args){.x = x, .n = n, .count = k, .out = q->norms + i});
    }
}

static void update_group(struct params *q, int64_t g) {
    const struct adam_settings *s = &q->due;
    float *value = params_value_get(q, g, PAGE_READ_WRITE), *grad = pages_get(q->grad, g, PAGE_READ);
    char *state = pages_get(q->state, g, PAGE_READ_WRITE);
    for (int64_t i = q->first[g]; i < q->first[g + 1]; i += ADAM_MAX) {
        struct adam_tensor t[ADAM_MAX];
        int64_t k = 0;
        for (; k < ADAM_MAX && i + k < q->first[g + 1]; k++) {
            const struct param *p = &q->p[i + k];
            t[k] = (struct adam_tensor){.p = value + p->offset, .g = grad + p->offset, .n = p->n, .lr = s->lr * p->lr_ratio,
                                        .weight_decay = p->decay ? s->weight_decay : 0};
            if (p->small_state)
                t[k].m8 = (uint8_t *)state + p->m, t[k].v8 = (uint8_t *)state + p->v, t[k].m_absmax = (float *)(state + p->m_absmax), t[k].v_absmax = (float *)(state + p->v_absmax);
            else t[k].m = (float *)(state + p->m), t[k].v = (float *)(state + p->v);
        }
        op_adam(q->be, &(struct adam_args){.tensors = t, .count = k, .t = s->t, .beta1 = s->beta1, .beta2 = s->beta2,
                                           .eps = s->eps, .grad_scale = s->grad_scale});
    }
    params_value_put(q, g, 1), pages_put(q->grad, g, 0), pages_put(q->state, g, 1);
}

/* The order of an update is that of the next forward pass: the outer group, if there is one, then the layers. */
static int64_t nth(const struct params *q, int64_t i) { return q->lora ? i : (i + q->groups - 1) % q->groups; }

void params_update(struct params *q, const struct adam_settings *s) {
    params_settle(q);
    q->due = *s, q->done = 0;
    params_want(q, nth(q, 0), 1);
}

static void advance(struct params *q, int64_t until) {
    while (q->done < until) {
        int64_t g = nth(q, q->done++);
        if (q->done < q->groups) params_want(q, nth(q, q->done), 1);
        update_group(q, g);
    }
}
void params_reach(struct params *q, int64_t l) { advance(q, l + 1 + !q->lora); }
void params_settle(struct params *q) { advance(q, q->groups); }

void params_layer_grads(const struct params *q, float *grad, struct layer_grads *g) {
    const struct tensor_place *t = q->m->lay.t;
    struct mat *const m[] = {&g->proj[0], &g->proj[1], &g->proj[2], &g->proj[3], &g->proj[4], &g->proj[5], &g->proj[6],
                             &g->conv1[0], &g->conv1[1], &g->conv2[0], &g->conv2[1]};
    for (int i = 0; i < LT_CONV1_B; i++) *m[i] = (struct mat){grad + t[i].offset / 4, t[i].rows, t[i].cols, t[i].cols, DT_F32};
    float **const v[] = {&g->conv1_b, &g->conv2_b, &g->norm1, &g->norm_f, &g->norm2};
    for (int i = 0; i < 5; i++) *v[i] = grad + t[LT_CONV1_B + i].offset / 4;
}

int64_t params_copy_bytes(const struct params *q) {
    size_t n = 0;
    for (int64_t g = 0; g < q->groups; g++) n += q->state_bytes[g] + (q->lora ? 0 : q->value_bytes[g]);
    return (int64_t)n;
}

int params_copy_take(struct params *q, struct params_copy *c, struct err *e) {
    params_settle(q);
    *c = (struct params_copy){.state = sys_alloc_array((size_t)q->groups, sizeof(size_t), "copy of the optimizer state", e)};
    if (!c->state || (!q->lora && !(c->value = sys_alloc_array((size_t)q->groups, sizeof(size_t), "copy of the weights", e)))) goto fail;
    if (!(c->block = sys_grow(NULL, (size_t)params_copy_bytes(q), "copy of what is saved", e))) goto fail;
    sys_large_pages(c->block, (size_t)params_copy_bytes(q));
    size_t at = 0;
    for (int64_t g = 0, page; g < q->groups; g++) {
        c->state[g] = at, at += q->state_bytes[g];
        if (pages_read(q->state, g, 0, c->block + c->state[g], q->state_bytes[g], e)) goto fail;
        if (q->lora) continue;
        c->value[g] = at, at += q->value_bytes[g];
        struct pages *p = home(q, g, &page);
        if (pages_read(p, page, 0, c->block + c->value[g], q->value_bytes[g], e)) goto fail;
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

int params_fetch(struct params *q, struct err *e) {
    params_settle(q);
    for (int64_t g = 0; q->lora && g < q->groups; g++)
        if (pages_read(q->value, g, 0, q->lora->data + g * q->lora->layer_floats, (size_t)q->lora->layer_floats * 4, e)) return -1;
    return 0;
}

/* The parts of a tensor's state as they stand in files: "NAME.m", "NAME.v" and, in 8 bits, "NAME.m_absmax", "NAME.v_absmax". */
struct part { const char *suffix; size_t at; enum dtype type; int64_t n; };
static int parts(const struct param *p, struct part out[4]) {
    int64_t blocks = (p->n + STATE_BLOCK - 1) / STATE_BLOCK;
    enum dtype t = p->small_state ? DT_U8 : DT_F32;
    out[0] = (struct part){".m", p->m, t, p->n}, out[1] = (struct part){".v", p->v, t, p->n};
    if (!p->small_state) return 2;
    out[2] = (struct part){".m_absmax", p->m_absmax, DT_F32, blocks}, out[3] = (struct part){".v_absmax", p->v_absmax, DT_F32, blocks};
    return 4;
}

enum { PIECE = 4 << 20 };

/* Memory to a writer, in pieces whose checksum finds them still in the processor's cache. */
static int stream_copy(struct ckpt_writer *w, const char *from, size_t bytes, struct err *e) {
    for (size_t i = 0; i < bytes; i += PIECE)
        if (ckpt_write(w, from + i, (int64_t)(bytes - i < PIECE ? bytes - i : PIECE), e)) return -1;
    return 0;
}

/* Copies part of a page to a writer, piece by piece. */
static int stream_out(struct ckpt_writer *w, struct pages *pages, int64_t page, size_t at, size_t bytes, struct err *e) {
    size_t piece = bytes < PIECE ? bytes : PIECE;
    char *buf = sys_alloc(piece, "save buffer", e);
    int r = buf ? 0 : -1;
    for (size_t i = 0; !r && i < bytes; i += piece) {
        size_t n = bytes - i < piece ? bytes - i : piece;
        r = pages_read(pages, page, at + i, buf, n, e) || ckpt_write(w, buf, (int64_t)n, e) ? -1 : 0;
    }
    sys_free(buf);
    return r;
}

static int stream_in(const struct ckpt *c, const struct ckpt_tensor *t, struct pages *pages, int64_t page, size_t at, struct err *e) {
    size_t size = dtype_bytes(t->type);
    int64_t piece = (4 << 20) / (int64_t)size;
    if (t->count < piece) piece = t->count;
    char *buf = sys_alloc((size_t)piece * size, "load buffer", e);
    int r = buf ? 0 : -1;
    for (int64_t i = 0; !r && i < t->count; i += piece) {
        int64_t n = t->count - i < piece ? t->count - i : piece;
        r = stop_check("while a checkpoint was loaded", e) || ckpt_read_range(c, t, i, n, t->type, buf, e) || pages_write(pages, page, at + (size_t)i * size, buf, (size_t)n * size, e) ? -1 : 0;
    }
    sys_free(buf);
    return r;
}

static int find(const struct ckpt *c, const char *name, enum dtype type, int64_t n, const char *dir, const struct ckpt_tensor **t, struct err *e) {
    *t = ckpt_find(c, name);
    if (*t && (*t)->type == type && (*t)->count == n) return 0;
    return err_set(e, ERR_INPUT, "%s: %s is %s; the run was started with another model, adapter or optimizer: go on with those, or begin anew in another output_dir", dir, name, *t ? "of another size" : "missing");
}

int params_save_state(struct params *q, const struct params_copy *from, const char *dir, int64_t step, struct err *e) {
    if (!from) params_settle(q);
    struct ckpt_writer *w = ckpt_create(dir, "optimizer", 0, e);
    struct part part[4];
    char name[160];
    if (!w || ckpt_declare(w, "step", DT_I64, 0, NULL, e)) goto fail;
    for (int64_t i = 0; i < q->count; i++)
        for (int k = 0, n = parts(&q->p[i], part); k < n; k++) {
            snprintf(name, sizeof name, "%s%s", q->p[i].name, part[k].suffix);
            if (ckpt_declare(w, name, part[k].type, 1, &part[k].n, e)) goto fail;
        }
    if (ckpt_write(w, &step, sizeof step, e)) goto fail;
    for (int64_t i = 0; i < q->count; i++)
        for (int k = 0, n = parts(&q->p[i], part); k < n; k++) {
            const int64_t g = q->p[i].group;
            const size_t bytes = (size_t)part[k].n * dtype_bytes(part[k].type);
            if (from ? stream_copy(w, from->block + from->state[g] + part[k].at, bytes, e) : stream_out(w, q->state, g, part[k].at, bytes, e)) goto fail;
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
            r = find(c, name, part[k].type, part[k].n, path, &t, e) || stream_in(c, t, q->state, q->p[i].group, part[k].at, e) ? -1 : 0;
        }
    ckpt_close(c);
    return r;
}

int params_save_values(struct params *q, const struct params_copy *from, const char *dir, struct err *e) {
    if (!from) params_settle(q);
    struct ckpt_writer *w = ckpt_create(dir, "master", 0, e);
    if (!w) return -1;
    for (int64_t i = 0; i < q->count; i++)
        if (ckpt_declare(w, q->p[i].name, DT_F32, 1, &q->p[i].n, e)) goto fail;
    for (int64_t i = 0; i < q->count; i++) {
        int64_t page;
        const size_t at = (size_t)q->p[i].offset * 4, bytes = (size_t)q->p[i].n * 4;
        struct pages *p = home(q, q->p[i].group, &page);
        if (from ? stream_copy(w, from->block + from->value[q->p[i].group] + at, bytes, e) : stream_out(w, p, page, at, bytes, e)) goto fail;
    }
    return ckpt_commit(w, e);
fail:
    ckpt_abort(w);
    return -1;
}

int params_load_values(struct params *q, const char *dir, struct err *e) {
    char path[1200];
    snprintf(path, sizeof path, "%s/master.safetensors", dir);
    struct ckpt *c = ckpt_open(path, e);
    const struct ckpt_tensor *t;
    int r = c ? 0 : -1;
    for (int64_t i = 0; !r && i < q->count; i++) {
        int64_t page;
        struct pages *p = home(q, q->p[i].group, &page);
        r = find(c, q->p[i].name, DT_F32, q->p[i].n, path, &t, e) || stream_in(c, t, p, page, (size_t)q->p[i].offset * 4, e) ? -1 : 0;
    }
    ckpt_close(c);
    return r;
}
