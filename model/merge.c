/* model/merge.c - adapters become part of loaded weights, before something else is trained on them. Matrix by matrix, in
 * pieces; see lora/merge.c for the arithmetic and model/export.h for the same over files. */
#include "base/half.h"
#include "base/log.h"
#include "base/stop.h"
#include "base/sys.h"
#include "model/model.h"
#include <math.h>

enum { PIECE = 1 << 20, ADAPTERS = 16 };

struct merge {
    struct model *m;
    struct lora_file file[ADAPTERS];
    float *a[ADAPTERS], *b[ADAPTERS]; /* of the matrix at work; sized for the largest */
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
        if (!g->a[g->n] || !g->b[g->n]) return g->n++, -1;
    }
    g->wide = sys_alloc(PIECE * sizeof *g->wide, "merge buffer", e);
    g->narrow = sys_alloc(PIECE * sizeof *g->narrow, "merge buffer", e);
    return g->wide && g->narrow ? 0 : -1;
}

static int merge_piece(struct merge *g, int64_t layer, enum proj p, int64_t first, int64_t count, struct err *e) {
    const struct model *m = g->m;
    const struct tensor_place *t = &m->lay.t[p];
    const int is_f32 = m->lay.proj == W_F32;
    const size_t size = is_f32 ? 4 : 2, at = t->offset + (size_t)first * size;
    void *raw = is_f32 ? (void *)g->wide : (void *)g->narrow;
    if (pages_read(m->layers, layer, at, raw, (size_t)count * size, e)) return -1;
    for (int64_t i = 0; !is_f32 && i < count; i++) g->wide[i] = bf16_to_f32(g->narrow[i]);
    for (int k = 0; k < g->n; k++)
        if (g->file[k].shape.config.targets >> p & 1)
            lora_merge(&g->file[k].shape.config, t->cols, g->a[k], g->b[k], first, count, g->wide);
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(g->wide[i]))
            return err_set(e, ERR_INPUT, "layer %lld, %s: a merged weight is not finite", (long long)layer, proj_name[p]);
        if (!is_f32) g->narrow[i] = f32_to_bf16(g->wide[i]);
    }
    return pages_write(m->layers, layer, at, raw, (size_t)count * size, e);
}

static int merge_matrix(struct merge *g, int64_t layer, enum proj p, struct err *e) {
    const int64_t n = g->m->lay.t[p].rows * g->m->lay.t[p].cols;
    int used = 0;
    for (int k = 0; k < g->n; k++) {
        if (!(g->file[k].shape.config.targets >> p & 1)) continue;
        if (lora_file_read(&g->file[k], layer, p, g->a[k], g->b[k], e)) return -1;
        used = 1;
    }
    for (int64_t at = 0; used && at < n; at += PIECE)
        if (merge_piece(g, layer, p, at, n - at < PIECE ? n - at : PIECE, e)) return -1;
    return 0;
}

int model_merge(struct model *m, const char *adapters, struct err *e) {
    struct merge g = {.m = m};
    if (m->lay.proj != W_F32 && m->lay.proj != W_BF16) return err_set(e, ERR_INPUT, "Cannot merge adapters to a quantized model.");
    int r = open_files(&g, adapters, e);
    for (int64_t l = 0; !r && l < m->config.L; l++)
        for (int p = 0; !r && p < PROJ_COUNT; p++) r = stop_check("while adapters were merged; nothing was written", e) || merge_matrix(&g, l, (enum proj)p, e) ? -1 : 0;
    if (!r) log_info("Merged %d adapter(s) into the model: %s", g.n, adapters);
    for (int k = 0; k < g.n; k++) lora_file_close(&g.file[k]), sys_free(g.a[k]), sys_free(g.b[k]);
    sys_free(g.wide), sys_free(g.narrow);
    return r;
}
