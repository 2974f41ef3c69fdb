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

/* Pieces of all tensors in a row, BATCH at a time: their sums are made in parallel and added in order. */
void cpu_sqsum(void *self, const struct sqsum_args *a) {
    const struct cpu *c = self;
    enum { BATCH = 1024 };
    double part[BATCH];
    struct piece { int64_t tensor, first, n; } piece[BATCH];
    int count = 0;
    for (int64_t i = 0; i < a->count; i++) {
        a->out[i] = 0;
        for (int64_t j = 0; j < a->n[i]; j += PIECE) {
            piece[count++] = (struct piece){i, j, a->n[i] - j < PIECE ? a->n[i] - j : PIECE};
            int last = i + 1 == a->count && j + PIECE >= a->n[i];
            if (count < BATCH && !last) continue;
#pragma omp parallel for num_threads(cpu_threads(c, (int64_t)count * 1000))
            for (int b = 0; b < count; b++) {
                const float *x = a->x[piece[b].tensor] + piece[b].first;
                part[b] = c->k->dot(x, x, piece[b].n);
            }
            for (int b = 0; b < count; b++) a->out[piece[b].tensor] += part[b];
            count = 0;
        }
    }
}
