/* model/made.c - see made.h. Normal numbers: halves of Philox4x32-10 words (Salmon et al. 2011) choose among quantiles of the
 * normal distribution, which come from AS 241, PPND7 (Wichura 1988; error 1e-7). */
#include "model/made.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/sys.h"
#include <math.h>

/* Different values that a matrix has: 65,536 quantiles of the normal distribution, up to 4.3 sigma. */
enum { LEVELS = 1 << 16 };

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

void made_fill(const struct made *m, const struct model_tensor *t, int64_t first, int64_t n, void *to) {
    const uint64_t key = hash_name(t->name) ^ m->seed * 0x9e3779b97f4a7c15u;
    if (t->kind == TENSOR_PROJ || t->kind == TENSOR_MATRIX) return fill_random(m->type, m->level, key, first, n, to);
    for (int64_t i = 0; i < n; i++) store(to, m->type, i, t->kind == TENSOR_NORM);
}

int made_open(struct made *m, const struct model_config *c, uint64_t seed, struct err *e) {
    *m = (struct made){.type = c->stored, .seed = seed, .level = sys_alloc(LEVELS * 4, "quantiles", e)};
    if (!m->level) return -1;
    make_levels(c, m->level);
    return 0;
}

void made_close(struct made *m) {
    sys_free(m->level);
    *m = (struct made){0};
}
