/* model/load.c - what a checkpoint holds, whether it is all there, and the form in which it will be held. model/fill.c reads it. */
#include "base/log.h"
#include "base/stop.h"
#include "base/str.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "model/model.h"
#include <stdio.h>
#include <string.h>

static const struct ckpt_tensor *require(const struct ckpt *c, const char *name, const char *dir, struct err *e) {
    const struct ckpt_tensor *t = ckpt_find(c, name);
    if (!t) err_set(e, ERR_INPUT, "%s: tensor %s is missing; is this a complete Yuan 2.0 checkpoint?", dir, name);
    return t;
}

static int shape_is(const struct ckpt *c, const struct ckpt_tensor *t, int rank, const int64_t *want, struct err *e) {
    int ok = t->rank == rank;
    for (int i = 0; ok && i < rank; i++) ok = t->shape[i] == want[i];
    if (ok) return 0;
    char have[160] = "", need[160] = "";
    for (int i = 0; i < t->rank; i++)
        snprintf(have + strlen(have), sizeof have - strlen(have), "%s%lld", i ? ", " : "", (long long)t->shape[i]);
    for (int i = 0; i < rank; i++)
        snprintf(need + strlen(need), sizeof need - strlen(need), "%s%lld", i ? ", " : "", (long long)want[i]);
    return err_set(e, ERR_INPUT, "%s: tensor %s has shape [%s], config.json asks for [%s]", ckpt_file(c, t), t->name,
                   have, need);
}

static int is_float(enum dtype t) { return t == DT_F32 || t == DT_BF16 || t == DT_F16 || t == DT_F64; }

/* The formats and places of all weights. plain: of what is not quantised; embed: type of the stored embedding. */
static void describe(struct model *m, const struct model_how *how, const struct ckpt_quant *q, enum weight_format plain, enum dtype embed) {
    const struct model_config *g = &m->config;
    /* A card computes in bf16; the CPU keeps what is stored. */
    int card = m->info.activation == DT_BF16, bits = q->bits ? q->bits : how->quantization_bit;
    if (card) plain = W_BF16;
    if (how->fp32) plain = W_F32;
    if (how->half) plain = W_BF16;
    enum weight_format proj = bits == 4 ? W_Q4 : bits == 8 ? W_INT8 : plain;
    layout_layer(g, proj, how->filter_4bit ? W_Q4 : plain, q->bits ? q->block : 64, q->bits ? q->nested : how->q_double, &m->lay);
    const int apart = (how->wholes & (1u << WHOLE_EMBED | 1u << WHOLE_HEAD)) != 0;
    if (g->tied && apart) m->config.tied = 0, m->untied = 1;
    m->outer_format = how->fp32 || apart || (embed != DT_BF16 && !card && !how->half) ? W_F32 : W_BF16;
    size_t size = (size_t)(g->V * g->D) * (m->outer_format == W_F32 ? 4 : 2), at = (size + 255) / 256 * 256;
    m->outer[OT_EMBED] = (struct tensor_place){0, size, g->V, g->D};
    m->outer[OT_HEAD] = (struct tensor_place){at, g->tied ? 0 : size, g->V, g->D};
    m->outer[OT_NORM] = (struct tensor_place){g->tied ? at : 2 * at, (size_t)g->D * 4, 1, g->D};
}

/* A tap that is stored in 4 bits, like the projections. 1: so it is, 0: the convolution is stored whole. */
static int stored_tap(const struct model *m, const struct ckpt *c, int64_t l, enum layer_tensor i, const struct ckpt_quant *like,
                      struct err *e) {
    const int64_t half = m->config.D / 2, rows = i <= LT_CONV1_1 ? half : 2 * half;
    struct ckpt_quant q;
    char name[128];
    model_tap_name(name, l, i);
    const struct ckpt_tensor *t = ckpt_find(c, name);
    if (!t) return 0;
    if (ckpt_quant(c, name, &q, e)) return -1;
    if (q.bits != 4 || like->bits != 4 || q.block != like->block || q.nested != like->nested)
        return err_set(e, ERR_INPUT, "%s: %s is not stored as the projections are; mixed quantisation is not supported",
                       ckpt_file(c, t), name);
    if (q.rows == rows && q.cols == 2 * half * half / rows) return 1;
    return err_set(e, ERR_INPUT, "%s: tensor %s holds a [%lld, %lld] matrix, config.json asks for [%lld, %lld]", ckpt_file(c, t),
                   name, (long long)q.rows, (long long)q.cols, (long long)rows, (long long)(2 * half * half / rows));
}

/* Checks that every tensor is there in its shape, and finds the formats. */
static int inspect(struct model *m, const struct ckpt *c, const char *dir, const struct model_how *how, struct err *e) {
    const struct model_config *g = &m->config;
    struct ckpt_quant q0 = {0};
    struct model_how held = *how;
    int64_t taps = 0;
    enum weight_format plain = W_BF16;
    for (int64_t l = 0; l < g->L; l++)
        for (int i = 0; i < LT_COUNT; i++) {
            char name[128];
            const int tap = i >= PROJ_COUNT && i <= LT_CONV2_1 ? stored_tap(m, c, l, (enum layer_tensor)i, &q0, e) : 0;
            if (tap < 0) return -1;
            taps += tap;
            if (tap) continue;
            model_tensor_name(name, l, (enum layer_tensor)i);
            const struct ckpt_tensor *t = require(c, name, dir, e);
            if (!t) return -1;
            if (i < PROJ_COUNT) {
                struct ckpt_quant q;
                int64_t rows, cols;
                if (ckpt_quant(c, name, &q, e)) return -1;
                proj_shape(g, (enum proj)i, &rows, &cols);
                if (l == 0 && i == 0) q0 = q;
                if (q.bits != q0.bits || (q.bits == 4 && (q.block != q0.block || q.nested != q0.nested)))
                    return err_set(e, ERR_INPUT, "%s: %s is stored in %d bits, other projections in %d; mixed "
                                   "quantisation is not supported", ckpt_file(c, t), name, q.bits, q0.bits);
                if (q.bits) {
                    if (q.rows != rows || q.cols != cols)
                        return err_set(e, ERR_INPUT, "%s: tensor %s holds a [%lld, %lld] matrix, config.json asks for "
                                       "[%lld, %lld]", ckpt_file(c, t), name, (long long)q.rows, (long long)q.cols,
                                       (long long)rows, (long long)cols);
                    continue;
                }
                if (shape_is(c, t, 2, (int64_t[]){rows, cols}, e)) return -1;
            } else if (i <= LT_CONV2_1) {
                int first = i <= LT_CONV1_1;
                int64_t shape[4] = {first ? g->D / 2 : g->D, first ? g->D : g->D / 2, 2, 1};
                if (shape_is(c, t, 4, shape, e)) return -1;
            } else if (shape_is(c, t, 1, (int64_t[]){i == LT_CONV1_B ? g->D / 2 : g->D}, e)) return -1;
            if (!is_float(t->type))
                return err_set(e, ERR_INPUT, "%s: tensor %s has type %s; a float type is needed", ckpt_file(c, t), name,
                               dtype_name(t->type));
            if (i <= LT_CONV2_1 && t->type != DT_BF16) plain = W_F32;
        }
    if (taps && taps != 4 * g->L)
        return err_set(e, ERR_INPUT,
                       "%s: %lld of %lld taps of the localized filter are stored in 4 bits; mixed quantisation is not supported",
                       dir, (long long)taps, (long long)(4 * g->L));
    held.filter_4bit |= taps != 0;
    if ((how->fp32 || how->half) && q0.bits)
        return err_set(e, ERR_INPUT, "%s is quantised to %d bits: its weights cannot be trained; use a plain checkpoint, or "
                       "finetuning_type lora", dir, q0.bits);
    if (q0.bits && how->quantization_bit && how->quantization_bit != q0.bits)
        return err_set(e, ERR_INPUT, "%s is already quantised to %d bits; drop --quantization_bit %d", dir, q0.bits,
                       how->quantization_bit);
    const struct ckpt_tensor *t = require(c, outer_names[OT_EMBED], dir, e);
    if (!t || shape_is(c, t, 2, (int64_t[]){g->V, g->D}, e)) return -1;
    describe(m, &held, &q0, plain, t->type);
    if (!g->tied && !m->untied) {
        const struct ckpt_tensor *h = require(c, outer_names[OT_HEAD], dir, e);
        if (!h || shape_is(c, h, 2, (int64_t[]){g->V, g->D}, e)) return -1;
    }
    t = require(c, outer_names[OT_NORM], dir, e);
    return !t || shape_is(c, t, 1, (int64_t[]){g->D}, e) ? -1 : 0;
}

/* Names that belong to the model or to a quantised matrix of it; others get one warning each. */
static void warn_unknown(const struct model *m, const struct ckpt *c) {
    for (int64_t i = 0; i < ckpt_count(c); i++) {
        const char *name = ckpt_at(c, i)->name;
        long long l;
        int used = 0;
        if (sscanf(name, "model.layers.%lld.%n", &l, &used) == 1 && used && l >= 0 && l < m->config.L) {
            int known = strstr(name, "rotary_emb.inv_freq") != NULL;
            for (int t = 0; t < LT_COUNT && !known; t++) {
                char own[128];
                model_tensor_name(own, l, (enum layer_tensor)t);
                size_t n = strlen(own);
                known = !strcmp(own, name) || (t < PROJ_COUNT && !strncmp(own, name, n) && name[n] == '.') ||
                        (t < PROJ_COUNT && !strncmp(own, name, n - 6) &&
                         (!strcmp(name + n - 6, "SCB") || !strcmp(name + n - 6, "weight_format")));
                if (known || t < PROJ_COUNT || t > LT_CONV2_1) continue;
                model_tap_name(own, l, (enum layer_tensor)t);
                known = !strncmp(own, name, strlen(own));
            }
            if (known) continue;
        } else if (!strcmp(name, outer_names[0]) || !strcmp(name, outer_names[1]) || !strcmp(name, outer_names[2])) continue;
        log_warn("tensor %s is not part of a Yuan 2.0 model and is skipped", name);
    }
}

int model_open(struct model *m, struct backend *be, const char *dir, const struct model_how *how, struct ckpt **c,
               struct err *e) {
    *m = (struct model){.be = be, .trainable_weights = how->fp32 || how->half};
    *c = NULL;
    be->info(be->self, &m->info);
    if (model_config_read(dir, &m->config, e)) return -1;
    if (!(*c = ckpt_open(dir, e)) || inspect(m, *c, dir, how, e)) {
        ckpt_close(*c);
        *c = NULL;
        model_free(m);
        return -1;
    }
    warn_unknown(m, *c);
    return 0;
}

void model_sketch(struct model *m, struct backend *be, const struct model_config *c, const struct model_how *how) {
    *m = (struct model){.be = be, .config = *c, .trainable_weights = how->fp32 || how->half};
    m->config.text = NULL;
    be->info(be->self, &m->info);
    describe(m, how, &(struct ckpt_quant){.bits = c->q_bits, .block = 64,
                                          .nested = c->q_double}, c->stored == DT_BF16 ? W_BF16 : W_F32, c->stored);
}

void model_free(struct model *m) {
    pages_close(m->layers), pages_close(m->outer_page);
    sys_free(m->q_offset);
    model_config_free(&m->config);
    memset(m, 0, sizeof *m);
}
