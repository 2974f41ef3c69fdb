/* backend/cpu/adam.c - AdamW and the sum of squares: everything that walks parameters instead of tokens. */
#include "backend/cpu/cpu_internal.h"
#include <math.h>

enum { PIECE = 16384 }; /* elements of a task */

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
                c->k->adam(x->p + j, x->g + j, x->m + j, x->v + j, &step, n);
                if (x->copy) c->k->to_bf16(x->p + j, n, (uint16_t *)x->copy + j);
            }
        }
    }
    for (int64_t i = 0; i < a->count; i++) { /* 8-bit state: nf4 has its own threads */
        const struct adam_tensor *x = &a->tensors[i];
        if (x->m) continue;
        struct bw8_adam step = bw8_adam_step(a->t, (float)x->lr, (float)a->beta1, (float)a->beta2, (float)a->eps,
                                             (float)x->weight_decay, (float)a->grad_scale);
        bw8_adamw(&step, x->n, x->p, x->g, x->m8, x->m_absmax, x->v8, x->v_absmax);
        if (!x->copy) continue;
#pragma omp parallel for num_threads(cpu_threads(c, x->n))
        for (int64_t j = 0; j < x->n; j += PIECE)
            c->k->to_bf16(x->p + j, x->n - j < PIECE ? x->n - j : PIECE, (uint16_t *)x->copy + j);
    }
}

enum { BATCH = 1024 };
struct batch { /* pieces whose sums are made together */
    int count;
    struct { const float *x; int64_t n, tensor; } piece[BATCH];
};

static void add_batch(const struct cpu *c, struct batch *b, double *out) {
    double sum[BATCH];
#pragma omp parallel for num_threads(cpu_threads(c, (int64_t)b->count * 1000))
    for (int i = 0; i < b->count; i++) sum[i] = c->k->dot(b->piece[i].x, b->piece[i].x, b->piece[i].n);
    for (int i = 0; i < b->count; i++) out[b->piece[i].tensor] += sum[i]; /* in order, whoever made them */
    b->count = 0;
}

void cpu_sqsum(void *self, const struct sqsum_args *a) {
    struct batch b;
    b.count = 0;
    for (int64_t i = 0; i < a->count; i++) {
        a->out[i] = 0;
        for (int64_t j = 0; j < a->n[i]; j += PIECE) {
            b.piece[b.count].x = a->x[i] + j;
            b.piece[b.count].n = a->n[i] - j < PIECE ? a->n[i] - j : PIECE;
            b.piece[b.count].tensor = i;
            if (++b.count == BATCH) add_batch(self, &b, a->out);
        }
    }
    add_batch(self, &b, a->out);
}
