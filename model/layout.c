/* model/layout.c - where each tensor lies inside a layer page, and views into it. */
#include "model/model.h"
#include <stdio.h>
#include <string.h>

const char *const outer_names[OT_COUNT] = {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"};

void model_tensor_name(char buf[128], int64_t layer, enum layer_tensor t) {
    static const char *const names[LT_COUNT] = {
        "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight", "self_attn.o_proj.weight",
        "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight",
        "self_attn.lf_gate.conv1.weight", "self_attn.lf_gate.conv1.weight",
        "self_attn.lf_gate.conv2.weight", "self_attn.lf_gate.conv2.weight",
        "self_attn.lf_gate.conv1.bias", "self_attn.lf_gate.conv2.bias",
        "input_layernorm.weight", "self_attn.lf_gate.output_layernorm.weight", "post_attention_layernorm.weight"};
    snprintf(buf, 128, "model.layers.%lld.%s", (long long)layer, names[t]);
}

void model_tap_name(char buf[128], int64_t layer, enum layer_tensor t) {
    const int second = t >= LT_CONV2_0;
    snprintf(buf, 128, "model.layers.%lld.self_attn.lf_gate.conv%d.%d.weight", (long long)layer, 1 + second,
             (int)t - (second ? LT_CONV2_0 : LT_CONV1_0));
}

static size_t align256(size_t n) { return (n + 255) / 256 * 256; }

void layout_layer(const struct model_config *c, enum weight_format proj, enum weight_format conv, int q_block,
                  int q_nested, struct layout *l) {
    *l = (struct layout){.proj = proj, .conv = conv, .q_block = q_block, .q_nested = q_nested};
    size_t at = 0;
    for (int i = 0; i < LT_COUNT; i++) {
        struct tensor_place *t = &l->t[i];
        if (i < PROJ_COUNT) proj_shape(c, (enum proj)i, &t->rows, &t->cols);
        else if (i == LT_CONV1_0 || i == LT_CONV1_1) t->rows = c->D / 2, t->cols = c->D;
        else if (i == LT_CONV2_0 || i == LT_CONV2_1) t->rows = c->D, t->cols = c->D / 2;
        else t->rows = 1, t->cols = i == LT_CONV1_B ? c->D / 2 : c->D;
        int64_t n = t->rows * t->cols;
        enum weight_format f = i < PROJ_COUNT ? proj : i < MATRICES ? conv : W_F32;
        t->offset = at;
        size_t size = 0;
        switch (f) {
        case W_F32: size = (size_t)n * 4; break;
        case W_BF16: size = (size_t)n * 2; break;
        case W_INT8:
            l->scale[i] = align256((size_t)n);
            size = l->scale[i] + (size_t)t->rows * 4;
            break;
        case W_Q4: {
            int64_t nb = q4_blocks(n, q_block);
            l->scale[i] = align256((size_t)q4_code_bytes(n));
            l->nested[i] = l->scale[i] + align256((size_t)nb * (q_nested ? 1 : 4));
            l->tables[i] = l->nested[i] + (q_nested ? align256((size_t)q4_nested(nb) * 4) : 0);
            size = l->tables[i] + (16 + 256) * 4;
            break;
        }
        }
        t->bytes = size;
        at += align256(size);
    }
    l->bytes = at;
}

static struct weight view(const struct model *m, int64_t layer, enum layer_tensor i, unsigned char *page) {
    const struct layout *l = &m->lay;
    const struct tensor_place *t = &l->t[i];
    unsigned char *p = page + t->offset;
    struct weight w = {.format = i < (enum layer_tensor)PROJ_COUNT ? l->proj : l->conv, .rows = t->rows, .cols = t->cols, .data = p};
    if (w.format == W_INT8) w.scale = (const float *)(p + l->scale[i]);
    if (w.format == W_Q4) {
        w.q4 = (struct q4_view){.codes = p, .levels = (const float *)(p + l->tables[i]), .block = l->q_block};
        if (l->q_nested) {
            w.q4.absmax_q = p + l->scale[i];
            w.q4.nested_absmax = (const float *)(p + l->nested[i]);
            w.q4.nested_map = w.q4.levels + 16;
            w.q4.nested_offset = m->q_offset[layer][i];
        } else w.q4.absmax = (const float *)(p + l->scale[i]);
    }
    return w;
}

void model_layer(const struct model *m, int64_t layer, void *page, struct layer *out) {
    unsigned char *p = page;
    for (int i = 0; i < PROJ_COUNT; i++) out->proj[i] = view(m, layer, (enum layer_tensor)i, p);
    for (int i = 0; i < 2; i++) {
        out->conv1[i] = view(m, layer, (enum layer_tensor)(LT_CONV1_0 + i), p);
        out->conv2[i] = view(m, layer, (enum layer_tensor)(LT_CONV2_0 + i), p);
    }
    const float **vectors[] = {&out->conv1_b, &out->conv2_b, &out->norm1, &out->norm_f, &out->norm2};
    for (int i = 0; i < 5; i++) *vectors[i] = (const float *)(p + m->lay.t[LT_CONV1_B + i].offset);
}

static struct weight outer_view(const struct model *m, void *outer, enum outer_tensor t) {
    const struct tensor_place *p = &m->outer[t];
    return (struct weight){.format = m->outer_format, .rows = p->rows, .cols = p->cols,
                           .data = (unsigned char *)outer + p->offset};
}
struct weight model_embed(const struct model *m, void *outer) { return outer_view(m, outer, OT_EMBED); }
struct weight model_head(const struct model *m, void *outer) {
    return outer_view(m, outer, m->config.tied ? OT_EMBED : OT_HEAD);
}
const float *model_norm(const struct model *m, void *outer) {
    return (const float *)((unsigned char *)outer + m->outer[OT_NORM].offset);
}

void model_head_place(const struct model *m, size_t *offset, size_t *bytes) {
    const struct tensor_place *norm = &m->outer[OT_NORM];
    *offset = m->config.tied ? 0 : m->outer[OT_HEAD].offset;
    *bytes = norm->offset + norm->bytes - *offset;
}

/* Layers of the file in host memory: one on its way to the card, one that is read, one behind it. */
enum { RING = 3 };

void model_pages(const struct model *m, const struct model_how *how, struct pages_config *layers,
                 struct pages_config *outer) {
    const int64_t L = m->config.L, resident = how->resident_layers < 0 || how->resident_layers > L ? L : how->resident_layers;
    *layers = (struct pages_config){.name = "layer weights", .count = L, .page_bytes = m->lay.bytes, .resident = resident,
                                    .spread = !m->trainable_weights, .files = how->disk_layers,
                                    .dir = how->page_dir, .ring = how->disk_layers < RING ? 2 : RING, .slots = resident < L ? 2 : 0};
    const struct tensor_place *last = &m->outer[OT_NORM];
    *outer = (struct pages_config){.name = "embedding and head", .count = 1, .page_bytes = last->offset + last->bytes,
                                   .resident = !how->outer_on_host};
}
