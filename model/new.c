/* model/new.c - see new.h. Normal numbers: halves of Philox4x32-10 words (Salmon et al. 2011) choose among quantiles of the
 * normal distribution, which come from AS 241, PPND7 (Wichura 1988; error 1e-7). */
#include "model/new.h"
#include "base/file.h"
#include "base/half.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/stop.h"
#include "base/str.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "model/tensors.h"
#include <math.h>
#include <string.h>

enum {
    PIECE = 4 << 20, /* elements made at once; a multiple of 8 */
    LEVELS =
        1
        << 16 /* different values a matrix has: 65,536 quantiles of the normal distribution, up to 4.3 sigma */
};
static const int64_t SHARD_BYTES = 5000000000;

/* The x below which a normal number lies with probability p, 0 < p < 1. */
static double inverse_normal(double p) {
    double q = p - 0.5;
    if (fabs(q) <= 0.425) {
        double r = 0.180625 - q * q;
        return q * (((59.109374720 * r + 159.29113202) * r + 50.434271938) * r + 3.3871327179) /
               (((67.187563600 * r + 78.757757664) * r + 17.895169469) * r + 1.0);
    }
    double r = sqrt(-log(q < 0 ? p : 1 - p)), x;
    if (r <= 5) {
        r -= 1.6;
        x = (((0.17023821103 * r + 1.3067284816) * r + 2.7568153900) * r + 1.4234372777) /
            ((0.12021132975 * r + 0.73700164250) * r + 1.0);
    } else {
        r -= 5;
        x = (((0.017337203997 * r + 0.42868294337) * r + 3.0812263860) * r + 6.6579051150) /
            ((0.012258202635 * r + 0.24197894225) * r + 1.0);
    }
    return q < 0 ? -x : x;
}

/* FNV-1a, 64 bits */
static uint64_t hash_name(const char *name) {
    uint64_t h = 0xcbf29ce484222325u;
    for (; *name; name++) h = (h ^ (unsigned char)*name) * 0x100000001b3u;
    return h;
}

static void store(void *to, enum dtype type, int64_t i, float x) {
    if (type == DT_F32)
        ((float *)to)[i] = x;
    else
        ((uint16_t *)to)[i] = type == DT_BF16 ? f32_to_bf16(x) : f32_to_f16(x);
}

/* The middles of LEVELS equally likely stretches, in the type of the weights. */
static void make_levels(const struct model_config *c, void *level) {
    for (int64_t i = 0; i < LEVELS; i++)
        store(level, c->stored, i, (float)(c->init_range * inverse_normal(((double)i + 0.5) / LEVELS)));
}

/* Elements first..first+n of a matrix; first is a multiple of 8. A Philox block chooses eight levels. */
static void fill_random(enum dtype type, const void *level, uint64_t key, int64_t first, int64_t n,
                        void *to) {
    const uint32_t key32[2] = {(uint32_t)key, (uint32_t)(key >> 32)};
    const uint32_t *level32 = level;
    const uint16_t *level16 = level;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += 8) {
        const uint64_t block = (uint64_t)(first + i) / 8;
        uint32_t word[4];
        philox4x32((uint32_t[4]){(uint32_t)block, (uint32_t)(block >> 32), 0, 0}, key32, word);
        for (int64_t k = 0; k < 8 && i + k < n; k++) {
            uint32_t choice = word[k / 2] >> 16 * (k & 1) & (LEVELS - 1);
            if (type == DT_F32)
                ((uint32_t *)to)[i + k] = level32[choice];
            else
                ((uint16_t *)to)[i + k] = level16[choice];
        }
    }
}

static void fill(const struct model_config *c, const struct model_tensor *t, const void *level, uint64_t seed,
                 int64_t first, int64_t n, void *to) {
    const uint64_t key = hash_name(t->name) ^ seed * 0x9e3779b97f4a7c15u;
    if (t->kind == TENSOR_PROJ || t->kind == TENSOR_MATRIX)
        return fill_random(c->stored, level, key, first, n, to);
    for (int64_t i = 0; i < n; i++) store(to, c->stored, i, t->kind == TENSOR_NORM);
}

static int write_tensors(const struct model_config *c, struct ckpt_writer *w, const void *level,
                         uint64_t seed, void *piece, struct err *e) {
    struct model_tensor t;
    const int64_t size = (int64_t)dtype_bytes(c->stored), all = model_parameters(c) * size;
    int64_t done = 0;
    double start = sys_seconds();
    for (int64_t i = 0; i < model_tensor_count(c); i++) {
        model_tensor_at(c, i, &t);
        for (int64_t at = 0; at < t.count; at += PIECE) {
            int64_t n = t.count - at < PIECE ? t.count - at : PIECE;
            int sig = stop_requested();
            if (sig) return err_set(e, 128 + sig, "stopped by a signal; nothing was written");
            fill(c, &t, level, seed, at, n, piece);
            if (ckpt_write(w, piece, n * size, e)) return -1;
            done += n * size;
            log_progress(0, "writing: %.1f of %.1f GB, %.0f MB/s", (double)done * 1e-9, (double)all * 1e-9,
                         (double)done * 1e-6 / (sys_seconds() - start + 1e-9));
        }
    }
    return 0;
}

int model_new(const struct model_config *c, const char *dir, uint64_t seed, struct err *e) {
    char path[4096], need[24], have[24];
    struct model_tensor t;
    const int64_t bytes = model_parameters(c) * (int64_t)dtype_bytes(c->stored), room = dir_free_bytes(dir);
    if (room >= 0 && room < bytes)
        return err_set(e, ERR_RUN, "%s: the model needs %s, the disk has %s free", dir,
                       text_bytes(need, bytes), text_bytes(have, room));
    int rc = -1;
    void *piece = sys_alloc((size_t)PIECE * 4, "a piece of a tensor", e),
         *level = sys_alloc(LEVELS * 4, "quantiles", e);
    struct ckpt_writer *w = piece && level ? ckpt_create(dir, "model", SHARD_BYTES, e) : NULL;
    if (!w) goto out;
    make_levels(c, level);
    for (int64_t i = 0; i < model_tensor_count(c); i++) {
        model_tensor_at(c, i, &t);
        if (ckpt_declare(w, t.name, c->stored, t.rank, t.shape, e)) goto out;
    }
    if (write_tensors(c, w, level, seed, piece, e)) goto out;
    rc = ckpt_commit(w, e);
    w = NULL;
    rc = rc || path_join(path, sizeof path, dir, "config.json", e) ||
                 file_write_all(path, c->text, strlen(c->text), e)
             ? -1
             : 0;
out:
    if (w) ckpt_abort(w);
    sys_free(level);
    sys_free(piece);
    return rc;
}
