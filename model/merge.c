/* model/merge.c - adapters become part of loaded weights, before something else is trained on them. Matrix by matrix, in
 * pieces; see lora/merge.c for the arithmetic and model/export.h for the same over files. */
#include "base/half.h"
#include "base/log.h"
#include "base/stop.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "model/model.h"
#include <math.h>
#include <string.h>

enum { PIECE = 1 << 20, ADAPTERS = 16 };

struct merge {
    struct model *m;
    struct lora_file file[ADAPTERS];
    float *a[ADAPTERS], *b[ADAPTERS]; /* of the matrix at work; sized for the largest */
    float *rows[ADAPTERS];              /* magnitudes of those that have any, then scales of its rows */
    double *squares;
    int n;
    float *wide;                      /* [PIECE] */
    uint16_t *narrow;                 /* [PIECE] */
};

static int open_files(struct merge *g, const char *list, struct err *e) {
    const struct model_config *c = &g->m->config;
    const int64_t widest = c->F > c->D ? c->F : c->D;
    char dir[3000];
    for (; lora_next(&list, dir, sizeof dir); g->n++) {
        if (g->n == ADAPTERS) return err_set(e, ERR_INPUT, "more than %d adapters at once; merge some of them first", ADAPTERS);
        if (lora_file_open(dir, c, &g->file[g->n], e)) return -1;
        if (lora_file_adds(&g->file[g->n], dir, e)) return g->n++, -1;
        size_t floats = (size_t)(g->file[g->n].shape.config.rank * widest);
        g->a[g->n] = sys_alloc_array(floats, sizeof(float), "adapter of one matrix", e);
        g->b[g->n] = sys_alloc_array(floats, sizeof(float), "adapter of one matrix", e);
        g->rows[g->n] = sys_alloc_array((size_t)widest, sizeof(float), "magnitudes of one matrix", e);
        if (!g->a[g->n] || !g->b[g->n] || !g->rows[g->n]) return g->n++, -1;
    }
    g->squares = sys_alloc_array((size_t)widest, sizeof(double), "row norms of one matrix", e);
    g->wide = sys_alloc(PIECE * sizeof *g->wide, "merge buffer", e);
    g->narrow = sys_alloc(PIECE * sizeof *g->narrow, "merge buffer", e);
    return g->squares && g->wide && g->narrow ? 0 : -1;
}

static int uses(const struct merge *g, int k, enum proj p) { return g->file[k].shape.config.targets >> p & 1; }
static int scales(const struct merge *g, int k) { return g->file[k].shape.config.dora; }

struct piece { int64_t layer, first, count; enum proj p; };

/* A piece in fp32, with the adapters before `end` applied; the last of them, if `bare`, without its scales. */
static int read_piece(struct merge *g, struct piece x, int end, int bare, struct err *e) {
    const struct model *m = g->m;
    const struct tensor_place *t = &m->lay.t[x.p];
    const int is_f32 = m->lay.proj == W_F32;
    const size_t size = is_f32 ? 4 : 2;
    if (pages_read(m->layers, x.layer, t->offset + (size_t)x.first * size, is_f32 ? (void *)g->wide : (void *)g->narrow,
                   (size_t)x.count * size, e))
        return -1;
    for (int64_t i = 0; !is_f32 && i < x.count; i++) g->wide[i] = bf16_to_f32(g->narrow[i]);
    for (int k = 0; k < end; k++) {
        if (!uses(g, k, x.p)) continue;
        lora_merge(&g->file[k].shape.config, t->cols, g->a[k], g->b[k], x.first, x.count, g->wide);
        if (scales(g, k) && !(bare && k + 1 == end)) lora_rescale(t->cols, g->rows[k], x.first, x.count, g->wide);
    }
    return 0;
}

static int write_piece(struct merge *g, struct piece x, struct err *e) {
    const int is_f32 = g->m->lay.proj == W_F32;
    const size_t size = is_f32 ? 4 : 2;
    for (int64_t i = 0; i < x.count; i++) {
        if (!isfinite(g->wide[i]))
            return err_set(e, ERR_INPUT, "layer %lld, %s: a merged weight is not finite", (long long)x.layer, proj_name[x.p]);
        if (!is_f32) g->narrow[i] = f32_to_bf16(g->wide[i]);
    }
    return pages_write(g->m->layers, x.layer, g->m->lay.t[x.p].offset + (size_t)x.first * size,
                       is_f32 ? (void *)g->wide : (void *)g->narrow, (size_t)x.count * size, e);
}

/* The k-th adapter's magnitudes become scales, for the matrix as the adapters before it leave it. */
static int make_scales(struct merge *g, int64_t layer, enum proj p, int k, struct err *e) {
    const int64_t rows = g->m->lay.t[p].rows, cols = g->m->lay.t[p].cols, n = rows * cols;
    memset(g->squares, 0, (size_t)rows * sizeof *g->squares);
    for (int64_t at = 0; at < n; at += PIECE) {
        const struct piece x = {layer, at, n - at < PIECE ? n - at : PIECE, p};
        if (read_piece(g, x, k + 1, 1, e)) return -1;
        lora_squares(cols, at, x.count, g->wide, g->squares);
    }
    lora_scales(rows, g->rows[k], g->squares, g->rows[k]);
    return 0;
}

static int merge_matrix(struct merge *g, int64_t layer, enum proj p, struct err *e) {
    const int64_t n = g->m->lay.t[p].rows * g->m->lay.t[p].cols;
    int used = 0;
    for (int k = 0; k < g->n; k++) {
        if (!uses(g, k, p)) continue;
        if (lora_file_read(&g->file[k], layer, p, g->a[k], g->b[k], g->rows[k], e) ||
            (scales(g, k) && make_scales(g, layer, p, k, e)))
            return -1;
        used = 1;
    }
    for (int64_t at = 0; used && at < n; at += PIECE) {
        const struct piece x = {layer, at, n - at < PIECE ? n - at : PIECE, p};
        if (read_piece(g, x, g->n, 0, e) || write_piece(g, x, e)) return -1;
    }
    return 0;
}

int model_merge(struct model *m, const char *adapters, struct err *e) {
    struct merge g = {.m = m};
    if (m->lay.proj != W_F32 && m->lay.proj != W_BF16) return err_set(e, ERR_INPUT, "Cannot merge adapters to a quantized model.");
    int r = open_files(&g, adapters, e);
    for (int64_t l = 0; !r && l < m->config.L; l++)
        for (int p = 0; !r && p < PROJ_COUNT; p++)
            r = stop_check("while adapters were merged; nothing was written", e) || merge_matrix(&g, l, (enum proj)p, e) ? -1 : 0;
    if (!r) log_info("Merged %d adapter(s) into the model: %s", g.n, adapters);
    for (int k = 0; k < g.n; k++) lora_file_close(&g.file[k]), sys_free(g.a[k]), sys_free(g.b[k]), sys_free(g.rows[k]);
    sys_free(g.squares), sys_free(g.wide), sys_free(g.narrow);
    return r;
}

int model_wholes(struct model *m, const char *adapter, struct err *e) {
    struct lora_file f;
    if (lora_file_open(adapter, &m->config, &f, e)) return -1;
    float *x = sys_alloc(PIECE * sizeof *x, "load buffer", e);
    int r = x ? 0 : -1;
    for (int w = 0; !r && w < WHOLES; w++) {
        const struct ckpt_tensor *t = lora_file_whole(&f, (enum whole)w);
        if (!t) continue;
        ASSERT(m->outer[w].bytes == (size_t)t->count * 4, "%s has no place of its own in fp32", outer_names[w]);
        for (int64_t at = 0; !r && at < t->count; at += PIECE) {
            const int64_t n = t->count - at < PIECE ? t->count - at : PIECE;
            if ((r = ckpt_read_range(f.c, t, at, n, DT_F32, x, e))) break;
            for (int64_t i = 0; !r && i < n; i++)
                if (!isfinite(x[i]))
                    r = err_set(e, ERR_INPUT, "%s: element %lld of tensor %s is not a finite number", ckpt_file(f.c, t),
                                (long long)(at + i), t->name);
            if (!r) r = pages_write(m->outer_page, 0, m->outer[w].offset + (size_t)at * 4, x, (size_t)n * 4, e);
        }
    }
    sys_free(x), lora_file_close(&f);
    return r;
}
