/* model/load.c - a checkpoint into pages. Weights stream from the file in pieces; the largest temporary buffer is one
 * matrix, and only when it has to be quantised or its taps pulled apart. */
#include "base/log.h"
#include "base/stop.h"
#include "base/str.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "model/model.h"
#include <stdio.h>
#include <string.h>

enum { PIECE_BYTES = 16 << 20 };

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
static int stored_tap(const struct model *m, const struct ckpt *c, int64_t l, enum layer_tensor i, const struct ckpt_quant *like, struct err *e) {
    const int64_t half = m->config.D / 2, rows = i <= LT_CONV1_1 ? half : 2 * half;
    struct ckpt_quant q;
    char name[128];
    model_tap_name(name, l, i);
    const struct ckpt_tensor *t = ckpt_find(c, name);
    if (!t) return 0;
    if (ckpt_quant(c, name, &q, e)) return -1;
    if (q.bits != 4 || like->bits != 4 || q.block != like->block || q.nested != like->nested)
        return err_set(e, ERR_INPUT, "%s: %s is not stored as the projections are; mixed quantisation is not supported", ckpt_file(c, t), name);
    if (q.rows == rows && q.cols == 2 * half * half / rows) return 1;
    return err_set(e, ERR_INPUT, "%s: tensor %s holds a [%lld, %lld] matrix, config.json asks for [%lld, %lld]", ckpt_file(c, t), name, (long long)q.rows, (long long)q.cols, (long long)rows,
                   (long long)(2 * half * half / rows));
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
        return err_set(e, ERR_INPUT, "%s: %lld of %lld taps of the localized filter are stored in 4 bits; mixed quantisation is not supported", dir, (long long)taps, (long long)(4 * g->L));
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
                        (t < PROJ_COUNT && !strncmp(own, name, n - 6) && (!strcmp(name + n - 6, "SCB") || !strcmp(name + n - 6, "weight_format")));
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
    describe(m, how, &(struct ckpt_quant){.bits = c->q_bits, .block = 64, .nested = c->q_double}, c->stored == DT_BF16 ? W_BF16 : W_F32, c->stored);
}

/* A float tensor, as fp32 or bf16, into a page in pieces. */
static int load_plain(struct pages *p, int64_t page, size_t offset, const struct ckpt *c, const struct ckpt_tensor *t,
                      enum dtype to, struct err *e) {
    size_t size = dtype_bytes(to);
    int64_t piece = PIECE_BYTES / (int64_t)size;
    void *buf = sys_alloc((size_t)(t->count < piece ? t->count : piece) * size, "load buffer", e);
    int r = buf ? 0 : -1;
    for (int64_t i = 0; !r && i < t->count; i += piece) {
        int64_t n = t->count - i < piece ? t->count - i : piece;
        r = ckpt_read_range(c, t, i, n, to, buf, e) ||
            pages_write(p, page, offset + (size_t)i * size, buf, (size_t)n * size, e) ? -1 : 0;
    }
    sys_free(buf);
    return r;
}

static enum dtype of_format(enum weight_format f) { return f == W_F32 ? DT_F32 : DT_BF16; }

static int copy_raw(struct model *m, int64_t l, size_t offset, const struct ckpt *c, const struct ckpt_tensor *t, int64_t bytes,
                    struct err *e) {
    void *buf = sys_alloc((size_t)bytes, "load buffer", e);
    int r = buf && !ckpt_read_all(c, t, t->type, buf, e) ? pages_write(m->layers, l, offset, buf, (size_t)bytes, e) : -1;
    sys_free(buf);
    return r;
}

static int write_tables(struct model *m, int64_t l, int p, const float levels[16], const float map[256], struct err *e) {
    size_t at = m->lay.t[p].offset + m->lay.tables[p];
    return pages_write(m->layers, l, at, levels, 64, e) || pages_write(m->layers, l, at + 64, map, 1024, e) ? -1 : 0;
}

static int load_stored_quant(struct model *m, const struct ckpt *c, int64_t l, int p, const struct ckpt_quant *q, struct err *e) {
    const struct layout *lay = &m->lay;
    size_t at = lay->t[p].offset;
    int64_t n = q->rows * q->cols;
    if (q->bits == 8)
        return copy_raw(m, l, at, c, q->weight, n, e) || copy_raw(m, l, at + lay->scale[p], c, q->row_scale, q->rows * 4, e) ? -1 : 0;
    int64_t nb = q4_blocks(n, q->block);
    if (copy_raw(m, l, at, c, q->weight, q4_code_bytes(n), e) ||
        copy_raw(m, l, at + lay->scale[p], c, q->absmax, q->nested ? nb : nb * 4, e))
        return -1;
    if (q->nested && copy_raw(m, l, at + lay->nested[p], c, q->nested_absmax, q4_nested(nb) * 4, e)) return -1;
    m->q_offset[l][p] = q->nested_offset;
    return write_tables(m, l, p, q->levels, q->nested_map, e);
}

/* The matrix src of type `from` in the page's format, 4 or 8 bits; t is where it comes from. */
static int quantise(struct model *m, enum q4_type type, int64_t l, int p, const void *src, enum dtype from, const struct ckpt *c,
                    const struct ckpt_tensor *t, struct err *e) {
    const struct layout *lay = &m->lay;
    size_t at = lay->t[p].offset;
    int64_t rows = lay->t[p].rows, n = rows * lay->t[p].cols, bad, nb = q4_blocks(n, lay->q_block);
    int r = -1, four = (p < PROJ_COUNT ? lay->proj : lay->conv) == W_Q4;
    uint8_t *codes = sys_alloc((size_t)(four ? q4_code_bytes(n) : n), "4-bit or 8-bit codes", e);
    float *scale = sys_alloc((size_t)(four ? nb : rows) * 4, "scales", e);
    uint8_t *small = sys_alloc((size_t)nb, "8-bit scales", e);
    float *nested = sys_alloc((size_t)q4_nested(nb) * 4, "nested scales", e);
    if (!codes || !scale || !small || !nested) goto out;
    bad = four ? q4_encode(type, lay->q_block, src, from, n, codes, scale) : int8_encode(src, from, rows, n / rows, (int8_t *)codes, scale);
    if (bad >= 0) {
        err_set(e, ERR_INPUT, "%s: tensor %s has a NaN or infinity at element %lld; it cannot be quantised", ckpt_file(c, t),
                t->name, (long long)bad);
        goto out;
    }
    if (pages_write(m->layers, l, at, codes, (size_t)(four ? q4_code_bytes(n) : n), e)) goto out;
    if (!four) r = pages_write(m->layers, l, at + lay->scale[p], scale, (size_t)rows * 4, e);
    else if (!lay->q_nested)
        r = pages_write(m->layers, l, at + lay->scale[p], scale, (size_t)nb * 4, e);
    else {
        q4_double(scale, nb, small, nested, &m->q_offset[l][p]);
        r = pages_write(m->layers, l, at + lay->scale[p], small, (size_t)nb, e) ||
            pages_write(m->layers, l, at + lay->nested[p], nested, (size_t)q4_nested(nb) * 4, e) ? -1 : 0;
    }
    if (!r && four) nf4_init(), r = write_tables(m, l, p, q4_levels(type), bw8_signed, e);
out:
    sys_free(codes), sys_free(scale), sys_free(small), sys_free(nested);
    return r;
}

/* The type in which values of t are read to be quantised. */
static enum dtype exact(const struct ckpt_tensor *t) { return t->type == DT_BF16 || t->type == DT_F16 ? t->type : DT_F32; }

static int load_quantised(struct model *m, const struct model_how *how, const struct ckpt *c, int64_t l, int p, const struct ckpt_tensor *t, struct err *e) {
    void *src = sys_alloc((size_t)t->count * dtype_bytes(exact(t)), "matrix to quantise", e);
    int r = src && !ckpt_read_all(c, t, exact(t), src, e) ? quantise(m, how->q_type, l, p, src, exact(t), c, t, e) : -1;
    sys_free(src);
    return r;
}

/* conv weight [out, in, 2, 1]: the two taps lie side by side in the file and apart in the page. */
static int load_conv(struct model *m, const struct model_how *how, const struct ckpt *c, int64_t l, enum layer_tensor first, const struct ckpt_tensor *t, struct err *e) {
    const int four = m->lay.conv == W_Q4;
    const enum dtype to = four ? exact(t) : of_format(m->lay.conv);
    const size_t size = dtype_bytes(to), n = (size_t)t->count / 2;
    unsigned char *both = sys_alloc((size_t)t->count * size, "load buffer", e), *tap = both ? sys_alloc(n * size, "load buffer", e) : NULL;
    int r = tap ? ckpt_read_all(c, t, to, both, e) : -1;
    for (int k = 0; !r && k < 2; k++) {
        const int i = (int)first + k;
        for (size_t j = 0; j < n; j++) memcpy(tap + j * size, both + (2 * j + (size_t)k) * size, size);
        r = four ? quantise(m, how->q_type, l, i, tap, to, c, t, e) : pages_write(m->layers, l, m->lay.t[i].offset, tap, n * size, e);
    }
    sys_free(both), sys_free(tap);
    return r;
}

static int load_layer(struct model *m, const struct model_how *how, const struct ckpt *c, int64_t l, struct err *e) {
    char name[128];
    for (int i = 0; i < LT_COUNT; i++) {
        model_tensor_name(name, l, (enum layer_tensor)i);
        const struct ckpt_tensor *t = ckpt_find(c, name);
        if (i < PROJ_COUNT) {
            struct ckpt_quant q;
            if (ckpt_quant(c, name, &q, e)) return -1;
            int r = q.bits ? load_stored_quant(m, c, l, i, &q, e)
                    : m->lay.proj == W_Q4 || m->lay.proj == W_INT8 ? load_quantised(m, how, c, l, i, t, e)
                    : load_plain(m->layers, l, m->lay.t[i].offset, c, t, of_format(m->lay.proj), e);
            if (r) return -1;
        } else if (i < MATRICES) {
            struct ckpt_quant q;
            model_tap_name(name, l, (enum layer_tensor)i);
            if (ckpt_find(c, name) && (ckpt_quant(c, name, &q, e) || load_stored_quant(m, c, l, i, &q, e))) return -1;
            if (!t) continue;
            if ((i == LT_CONV1_0 || i == LT_CONV2_0) && load_conv(m, how, c, l, (enum layer_tensor)i, t, e)) return -1;
        } else if (load_plain(m->layers, l, m->lay.t[i].offset, c, t, DT_F32, e)) return -1;
    }
    return 0;
}

/* A stored lm_head beside a tied embedding must be the same matrix; if not, the embedding wins, with a warning. */
static int check_tied_head(const struct ckpt *c, struct err *e) {
    const struct ckpt_tensor *h = ckpt_find(c, outer_names[OT_HEAD]), *x = ckpt_find(c, outer_names[OT_EMBED]);
    if (!h) return 0;
    if (h->count != x->count) return log_warn("%s: lm_head.weight has another shape than the tied embedding; the embedding is used", ckpt_file(c, h)), 0;
    if (h->file == x->file && h->offset == x->offset) return 0;
    enum { N = 1 << 20 };
    float *a = sys_alloc(2 * N * sizeof *a, "load buffer", e);
    if (!a) return -1;
    int r = 0, differs = 0;
    for (int64_t i = 0; !r && !differs && i < h->count; i += N) {
        int64_t n = h->count - i < N ? h->count - i : N;
        r = ckpt_read_range(c, h, i, n, DT_F32, a, e) || ckpt_read_range(c, x, i, n, DT_F32, a + N, e) ? -1 : 0;
        differs = !r && memcmp(a, a + N, (size_t)n * sizeof *a) != 0;
    }
    if (differs) log_warn("%s: lm_head.weight differs from the embedding although tie_word_embeddings is true; the embedding is used", ckpt_file(c, h));
    sys_free(a);
    return r;
}

int model_load(struct model *m, const struct model_how *how, const struct ckpt *c, struct err *e) {
    struct pages_config layers, outer;
    model_pages(m, how, &layers, &outer);
    m->q_offset = sys_alloc_array((size_t)m->config.L, sizeof *m->q_offset, "scale offsets", e);
    if (!m->q_offset || !(m->layers = pages_open(m->be, &layers, e)) || !(m->outer_page = pages_open(m->be, &outer, e))) return -1;
    double start = sys_seconds();
    for (int64_t l = 0; l < m->config.L; l++) {
        if (load_layer(m, how, c, l, e)) return -1;
        log_progress(l + 1 == m->config.L, "loading layer %lld of %lld", (long long)l + 1, (long long)m->config.L);
        if (stop_requested()) return err_set(e, 128 + stop_requested(), "stopped while loading the model; nothing was written");
    }
    enum dtype to = of_format(m->outer_format);
    if (m->config.tied && check_tied_head(c, e)) return -1;
    for (int i = 0; i < OT_COUNT; i++) {
        if (!m->outer[i].bytes) continue;
        const char *name = outer_names[i == OT_HEAD && m->untied ? (int)OT_EMBED : i];
        if (load_plain(m->outer_page, 0, m->outer[i].offset, c, ckpt_find(c, name), i == OT_NORM ? DT_F32 : to, e)) return -1;
    }
    char size[24];
    log_info("loaded %lld layers, %s, in %.1f s", (long long)m->config.L,
             text_bytes(size, (int64_t)(layers.page_bytes * (size_t)layers.count + outer.page_bytes)), sys_seconds() - start);
    return 0;
}

void model_free(struct model *m) {
    pages_close(m->layers), pages_close(m->outer_page);
    sys_free(m->q_offset);
    model_config_free(&m->config);
    memset(m, 0, sizeof *m);
}
