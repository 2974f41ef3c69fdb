/* model/save.c - trained weights as a checkpoint: safetensors shards in the type that config.json names. */
#include "base/file.h"
#include "base/half.h"
#include "base/log.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "model/files.h"
#include "model/model.h"
#include <string.h>

/* n fp32 numbers to the file's type, in place of their own memory. */
static size_t narrow(float *x, int64_t n, enum dtype to) {
    if (to == DT_F32) return (size_t)n * 4;
    uint16_t *h = (uint16_t *)x;
    for (int64_t i = 0; i < n; i++) {
        float v = x[i]; /* read before the 2-byte store, which lies at or before it */
        uint16_t b = f32_to_bf16(v);
        memcpy(h + i, &b, 2);
    }
    return (size_t)n * 2;
}

struct save { const struct model *m; model_reader *read; void *context; struct ckpt_writer *w; enum dtype to; };

/* One tensor in pieces; `taps` > 1 interleaves that many neighbouring tensors (a convolution's taps). */
static int write_tensor(const struct save *s, int64_t layer, int which, int taps, struct err *e) {
    enum { PIECE = 1 << 20 };
    size_t size;
    const struct tensor_place *t = model_place(s->m, layer, which, &size);
    int64_t n = t->rows * t->cols;
    float *in = sys_alloc(PIECE * 4, "save buffer", e), *out = in ? sys_alloc((size_t)taps * PIECE * 4, "save buffer", e) : NULL;
    int r = out ? 0 : -1;
    for (int64_t i = 0; !r && i < n; i += PIECE) {
        int64_t k = n - i < PIECE ? n - i : PIECE;
        for (int tap = 0; !r && tap < taps; tap++) {
            r = s->read(s->context, layer, which + tap, i, k, in, e);
            for (int64_t j = 0; !r && j < k; j++) out[j * taps + tap] = in[j];
        }
        if (!r) r = ckpt_write(s->w, out, (int64_t)narrow(out, k * taps, s->to), e);
    }
    sys_free(in), sys_free(out);
    return r;
}

/* Every tensor of the model in file order; with declare only its name and shape. */
static int all_tensors(const struct save *s, int declare, struct err *e) {
    const struct model *m = s->m;
    const struct model_config *c = &m->config;
    char name[128];
    for (int i = 0; i < OT_COUNT; i++) {
        if (!m->outer[i].bytes) continue;
        int64_t shape[2] = {c->V, c->D};
        if (i == OT_NORM) shape[0] = c->D;
        if (declare ? ckpt_declare(s->w, outer_names[i], s->to, i == OT_NORM ? 1 : 2, shape, e) : write_tensor(s, -1, i, 1, e)) return -1;
    }
    for (int64_t l = 0; l < c->L; l++) {
        for (int i = 0; i < LT_COUNT; i++) {
            if (i == LT_CONV1_1 || i == LT_CONV2_1) continue; /* written with the first tap */
            const struct tensor_place *t = &m->lay.t[i];
            int conv = i == LT_CONV1_0 || i == LT_CONV2_0, vector = i >= LT_CONV1_B;
            int64_t shape[4] = {vector ? t->cols : t->rows, t->cols, 2, 1};
            model_tensor_name(name, l, (enum layer_tensor)i);
            if (declare ? ckpt_declare(s->w, name, s->to,
                                       conv     ? 4
                                       : vector ? 1
                                                : 2,
                                       shape, e)
                        : write_tensor(s, l, i, conv ? 2 : 1, e))
                return -1;
        }
        if (!declare) log_progress(l + 1 == c->L, "saving layer %lld of %lld", (long long)l + 1, (long long)c->L);
    }
    return 0;
}

int model_save(const struct model *m, model_reader *read, void *context, const char *dir, int64_t shard_bytes, struct err *e) {
    ASSERT(m->trainable_weights, "only trained weights are saved, format %d", (int)m->lay.proj);
    struct save s = {.m = m,
                     .read = read,
                     .context = context,
                     .w = ckpt_create(dir, "model", shard_bytes, e),
                     .to = m->config.stored == DT_F32 ? DT_F32 : DT_BF16};
    if (!s.w || all_tensors(&s, 1, e) || all_tensors(&s, 0, e)) {
        ckpt_abort(s.w);
        return -1;
    }
    if (ckpt_commit(s.w, e)) return -1;
    char path[1200];
    char *text = model_config_text(&m->config, NULL, 0, NULL, e);
    int r = text && !path_join(path, sizeof path, dir, "config.json", e) ? file_write_all(path, text, strlen(text), e) : -1;
    sys_free(text);
    return r || model_write_generation(&m->config, dir, e) ? -1 : 0;
}
