/* model/random.c - a model of random weights, made in the form they are held in: for benchmarks, whose speed does not depend on
 * values. One layer is made, and all pages are copies of it, by several threads. Weights are about 0.02 in size, norms 1, biases 0. */
#include "base/half.h"
#include "base/jobs.h"
#include "base/stop.h"
#include "base/sys.h"
#include "model/model.h"
#include <string.h>

static uint64_t next(uint64_t *s) { /* xorshift64, Marsaglia 2003 */
    *s ^= *s << 13, *s ^= *s >> 7, *s ^= *s << 17;
    return *s;
}
static void random_bytes(uint64_t *s, unsigned char *to, size_t n) {
    for (size_t i = 0; i + 8 <= n; i += 8) {
        uint64_t x = next(s);
        memcpy(to + i, &x, 8);
    }
}
static void random_floats(uint64_t *s, unsigned char *to, size_t n, enum weight_format f) {
    for (size_t i = 0; i < n; i++) {
        float x = (float)(int32_t)next(s) * 0x1p-31f * 0.035f;
        uint16_t half = f32_to_bf16(x);
        if (f == W_F32) memcpy(to + 4 * i, &x, 4);
        else memcpy(to + 2 * i, &half, 2);
    }
}
static void fill(unsigned char *to, size_t n, float x) {
    for (size_t i = 0; i < n; i++) memcpy(to + 4 * i, &x, 4);
}

static void random_matrix(const struct layout *l, int i, enum weight_format f, uint64_t *s, unsigned char *page) {
    const struct tensor_place *t = &l->t[i];
    unsigned char *at = page + t->offset;
    size_t n = (size_t)(t->rows * t->cols);
    if (f == W_F32 || f == W_BF16) {
        random_floats(s, at, n, f);
        return;
    }
    random_bytes(s, at, f == W_INT8 ? n : n / 2);
    if (f == W_INT8) {
        fill(at + l->scale[i], (size_t)t->rows, 0.035f);
        return;
    }
    size_t blocks = (size_t)q4_blocks((int64_t)n, l->q_block);
    nf4_init();
    memcpy(at + l->tables[i], q4_levels(Q4_NF4), 16 * sizeof(float));
    memcpy(at + l->tables[i] + 16 * sizeof(float), bw8_signed, sizeof bw8_signed);
    if (!l->q_nested) {
        fill(at + l->scale[i], blocks, 0.035f);
        return;
    }
    random_bytes(s, at + l->scale[i], blocks);
    fill(at + l->nested[i], (size_t)q4_nested((int64_t)blocks), 0.01f); /* beside an offset of 0.035 */
}

/* The one layer, or the outer page, into pages. */
struct copies {
    struct model *m;
    struct filler *filler;
    const unsigned char *page;
    size_t bytes;
    int64_t pieces; /* of a page */
    struct pages *to;
};
static int copy(void *context, int64_t i, int thread, struct err *e) {
    struct copies *c = context;
    const size_t at = (size_t)(i % c->pieces) * FILL_PIECE, left = c->bytes - at;
    (void)thread;
    if (stop_requested()) return err_set(e, 128 + stop_requested(), "stopped while making random weights");
    return filler_copy(c->filler, c->to, i / c->pieces, at, c->page + at, left < FILL_PIECE ? left : FILL_PIECE, e);
}
static int copy_pages(struct copies *c, struct pages *to, int64_t pages, size_t bytes, struct err *e) {
    c->to = to, c->bytes = bytes, c->pieces = (int64_t)((bytes + FILL_PIECE - 1) / FILL_PIECE);
    return jobs_run(pages * c->pieces, jobs_threads(), copy, c, e);
}

static void random_layer(const struct model *m, uint64_t seed, unsigned char *page) {
    const struct layout *l = &m->lay;
#pragma omp parallel for schedule(dynamic, 1)
    for (int i = 0; i < LT_COUNT; i++) {
        uint64_t s = (seed * LT_COUNT + (uint64_t)i) * 2 + 1;
        if (i < MATRICES) random_matrix(l, i, i < PROJ_COUNT ? l->proj : l->conv, &s, page);
        else fill(page + l->t[i].offset, (size_t)l->t[i].cols, i == LT_CONV1_B || i == LT_CONV2_B ? 0 : 1);
    }
}
static void random_outer(const struct model *m, uint64_t seed, unsigned char *page) {
    const size_t size = m->outer_format == W_F32 ? 4 : 2, piece = 1 << 20;
    for (int i = 0; i < OT_NORM; i++) {
#pragma omp parallel for schedule(static)
        for (size_t at = 0; at < m->outer[i].bytes; at += piece * size) {
            uint64_t s = (seed + at) * 2 + 1;
            const size_t left = (m->outer[i].bytes - at) / size;
            random_floats(&s, page + m->outer[i].offset + at, left < piece ? left : piece, m->outer_format);
        }
    }
    fill(page + m->outer[OT_NORM].offset, (size_t)m->config.D, 1);
}

int model_random(struct model *m, const struct model_how *how, uint64_t seed, struct err *e) {
    struct pages_config layers, outer;
    int r = -1;
    model_pages(m, how, &layers, &outer);
    unsigned char *page = sys_alloc(layers.page_bytes > outer.page_bytes ? layers.page_bytes : outer.page_bytes, "random weights", e);
    struct copies c = {.m = m, .page = page};
    m->q_offset = sys_alloc_array((size_t)m->config.L, sizeof *m->q_offset, "scale offsets", e);
    if (!page || !m->q_offset || !(m->layers = pages_open(m->be, &layers, e)) || !(m->outer_page = pages_open(m->be, &outer, e))) goto out;
    if (!(c.filler = filler_open(m->be, jobs_threads(), e))) goto out;
    for (int64_t k = 0; k < m->config.L; k++)
        for (int p = 0; p < MATRICES; p++) m->q_offset[k][p] = 0.035f;
    random_layer(m, seed, page);
    if (copy_pages(&c, m->layers, m->config.L, layers.page_bytes, e)) goto out;
    random_outer(m, seed, page);
    r = copy_pages(&c, m->outer_page, 1, outer.page_bytes, e);
out:
    if (filler_close(c.filler, e)) r = -1;
    sys_free(page);
    return r;
}
