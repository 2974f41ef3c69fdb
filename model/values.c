/* model/values.c - tensors of a model as fp32, part by part: from its pages, or from the checkpoint that it came from. */
#include "base/half.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "model/model.h"
#include <string.h>

const struct tensor_place *model_place(const struct model *m, int64_t layer, int which, size_t *number_bytes) {
    const int outer = layer < 0, vector = outer ? which == OT_NORM : which >= MATRICES;
    const enum weight_format f = vector ? W_F32 : outer ? m->outer_format : which < PROJ_COUNT ? m->lay.proj : m->lay.conv;
    ASSERT(f == W_F32 || f == W_BF16, "format %d", (int)f);
    *number_bytes = f == W_F32 ? 4 : 2;
    return outer ? &m->outer[which] : &m->lay.t[which];
}

int model_read_pages(void *context, int64_t layer, int which, int64_t first, int64_t n, float *to, struct err *e) {
    const struct model *m = context;
    size_t size;
    const struct tensor_place *t = model_place(m, layer, which, &size);
    if (pages_read(layer < 0 ? m->outer_page : m->layers, layer < 0 ? 0 : layer, t->offset + (size_t)first * size, to,
                   (size_t)n * size, e))
        return -1;
    for (int64_t i = n - 1; size == 2 && i >= 0; i--) { /* from the end: every number becomes wider in place */
        uint16_t half;
        memcpy(&half, (const char *)to + 2 * i, 2);
        to[i] = bf16_to_f32(half);
    }
    return 0;
}

int model_read_file(void *context, int64_t layer, int which, int64_t first, int64_t n, float *to, struct err *e) {
    enum { PIECE = 1 << 18 };
    const struct model_file *f = context;
    char name[128];
    if (layer < 0) strcpy(name, outer_names[which]);
    else model_tensor_name(name, layer, (enum layer_tensor)which);
    const struct ckpt_tensor *t = ckpt_find(f->c, name);
    ASSERT(t, "%s was there when the model was opened", name);
    if (layer < 0 || which < LT_CONV1_0 || which > LT_CONV2_1) return ckpt_read_range(f->c, t, first, n, DT_F32, to, e);
    const int tap = which == LT_CONV1_1 || which == LT_CONV2_1; /* the two lie side by side */
    float *both = sys_alloc(2 * PIECE * sizeof *both, "load buffer", e);
    int r = both ? 0 : -1;
    for (int64_t i = 0; !r && i < n; i += PIECE) {
        const int64_t k = n - i < PIECE ? n - i : PIECE;
        r = ckpt_read_range(f->c, t, 2 * (first + i), 2 * k, DT_F32, both, e);
        for (int64_t j = 0; !r && j < k; j++) to[i + j] = both[2 * j + tap];
    }
    sys_free(both);
    return r;
}
