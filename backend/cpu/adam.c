/* backend/cpu/adam.c - AdamW and the sum of squares: everything that walks parameters instead of tokens. */
#include "backend/cpu/cpu_internal.h"
#include <math.h>

enum { PIECE = 512 }; /* elements of a task, whole blocks of 8-bit state: what is made of them stays in the nearest cache */

/* Values that are kept in bf16 are stepped in fp32, some at a time, and rounded: those of `copy`, or p itself. */
static float *widened(const struct cpu *c, const struct adam_tensor *x, int64_t j, int64_t n, float *buffer) {
    if (x->p) return x->p + j;
    c->k->from_bf16((const uint16_t *)x->copy + j, n, buffer);
    return buffer;
}
static void narrowed(const struct cpu *c, const struct adam_tensor *x, int64_t j, int64_t n, float *p) {
    uint16_t half[PIECE];
    if (x->round) c->k->to_bf16(p, n, half), c->k->from_bf16(half, n, p);
    if (x->copy) c->k->to_bf16(p, n, (uint16_t *)x->copy + j);
}

static const float *gradient(const struct cpu *c, const struct adam_tensor *x, int64_t j, int64_t n, float *buffer) {
    if (x->g) return x->g + j;
    c->k->from_bf16(x->g16 + j, n, buffer);
    return buffer;
}

void cpu_adam(void *self, const struct adam_args *a) {
    const struct cpu *c = self;
    double c1 = 1 - pow(a->beta1, (double)a->t), c2 = 1 - pow(a->beta2, (double)a->t);
#pragma omp parallel num_threads(c->threads)
    for (int64_t i = 0; i < a->count; i++) {
        const struct adam_tensor *x = &a->tensors[i];
        const struct adam_step step = {
            .grad_scale = (float)a->grad_scale, .beta1 = (float)a->beta1, .beta2 = (float)a->beta2,
            .rest1 = (float)(1 - a->beta1), .rest2 = (float)(1 - a->beta2), .eps = (float)a->eps,
            .decay = (float)(1 - x->lr * x->weight_decay), .rate = (float)(x->lr / c1), .v_scale = (float)(1 / sqrt(c2))};
        if (x->m) {
#pragma omp for schedule(static) nowait
            for (int64_t j = 0; j < x->n; j += PIECE) {
                int64_t n = x->n - j < PIECE ? x->n - j : PIECE;
                float buffer[PIECE], g[PIECE], *p = widened(c, x, j, n, buffer);
                c->k->adam(p, gradient(c, x, j, n, g), x->m + j, x->v + j, &step, n);
                narrowed(c, x, j, n, p);
            }
        }
    }
    for (int64_t i = 0; i < a->count; i++) { /* 8-bit state */
        const struct adam_tensor *x = &a->tensors[i];
        if (x->m) continue;
        struct bw8_adam step = bw8_adam_step(a->t, (float)x->lr, (float)a->beta1, (float)a->beta2, (float)a->eps,
                                             (float)x->weight_decay, (float)a->grad_scale);
#pragma omp parallel for num_threads(cpu_threads(c, x->n))
        for (int64_t j = 0; j < x->n; j += PIECE) { /* whole blocks of 256 */
            int64_t n = x->n - j < PIECE ? x->n - j : PIECE;
            float buffer[PIECE], g[PIECE], *p = widened(c, x, j, n, buffer);
            bw8_adamw(&step, n, p, gradient(c, x, j, n, g), x->m8 + j, x->m_absmax + j / BW8_BLOCK, x->v8 + j, x->v_absmax + j / BW8_BLOCK);
            narrowed(c, x, j, n, p);
        }
    }
}

enum { BATCH = 1024, SUM = 16384 }; /* pieces; elements of one */
struct batch { /* pieces whose sums are made together */
    int count;
    struct { const float *x; uint16_t *half; int64_t n, tensor; } piece[BATCH];
};

static void add_batch(const struct cpu *c, struct batch *b, double *out) {
    double sum[BATCH];
#pragma omp parallel for num_threads(cpu_threads(c, (int64_t)b->count * 1000))
    for (int i = 0; i < b->count; i++) {
        sum[i] = c->k->dot(b->piece[i].x, b->piece[i].x, b->piece[i].n);
        if (b->piece[i].half) c->k->to_bf16(b->piece[i].x, b->piece[i].n, b->piece[i].half);
    }
    for (int i = 0; i < b->count; i++) out[b->piece[i].tensor] += sum[i]; /* in order, whoever made them */
    b->count = 0;
}

void cpu_sqsum(void *self, const struct sqsum_args *a) {
    struct batch b;
    b.count = 0;
    for (int64_t i = 0; i < a->count; i++) {
        a->out[i] = 0;
        for (int64_t j = 0; j < a->n[i]; j += SUM) {
            b.piece[b.count].x = a->x[i] + j, b.piece[b.count].half = a->half ? a->half[i] + j : NULL;
            b.piece[b.count].n = a->n[i] - j < SUM ? a->n[i] - j : SUM;
            b.piece[b.count].tensor = i;
            if (++b.count == BATCH) add_batch(self, &b, a->out);
        }
    }
    add_batch(self, &b, a->out);
}
