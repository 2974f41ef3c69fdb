/* backend/cpu/dora.c - the magnitudes of DoRA: row norms of W + s B A, and the gradient by them.      Liu et al. 2024 */
#include "backend/cpu/cpu_internal.h"
#include <math.h>

/* Σ_j (W_oj + delta_j)², in double. */
static double square_sum(const struct cpu *c, const struct weight *w, int64_t o, const float *delta) {
    float tmp[BLOCK_K];
    double sum = 0;
    for (int64_t j = 0; j < w->cols; j += BLOCK_K) {
        int64_t n = w->cols - j < BLOCK_K ? w->cols - j : BLOCK_K;
        const float *x = weight_decode(c->k, w, o * w->cols + j, n, tmp);
        for (int64_t i = 0; i < n; i++) {
            const double v = (double)x[i] + (double)delta[j + i];
            sum += v * v;
        }
    }
    return sum;
}

void cpu_dora(void *self, const struct dora_args *a) {
    const struct cpu *c = self;
    const struct adapter *l = &a->lora;
    const int64_t out = a->w.rows, in = a->w.cols;
    WITHIN(in, c->widest);
    for (int64_t o = 0; o < out; o += DROP_ROWS) { /* s B A of some rows at a time */
        const int64_t n = out - o < DROP_ROWS ? out - o : DROP_ROWS;
        const struct view B = {.p = mat_f32(&l->B) + o * l->B.ld, .ld = l->B.ld};
        product_run(c, &(struct product){.M = n, .N = in, .c = c->slice, .ldc = in, .n_terms = 1,
                                         .term = {{.a = B, .b = view_of(&l->A), .b_by_k = 1, .K = l->A.rows, .alpha = l->scale}}});
#pragma omp parallel for num_threads(cpu_threads(c, n * in))
        for (int64_t i = 0; i < n; i++) {
            const float norm = (float)sqrt(square_sum(c, &a->w, o + i, c->slice + i * in)); /* in fp32, so that m at its start makes c 1 */
            if (a->norm) a->norm[o + i] = norm;
            if (l->m) l->c[o + i] = norm > 0 ? l->m[o + i] / norm : 0;
        }
    }
}

/* Each sequence in blocks of BLOCK_K rows, as the gradients of matrices are summed. */
void cpu_dora_bwd(void *self, const struct dora_args *a) {
    const struct cpu *c = self;
    enum { COLUMNS = 64 };
    const int64_t out = a->y.cols;
#pragma omp parallel for num_threads(cpu_threads(c, a->y.rows * out))
    for (int64_t j = 0; j < out; j += COLUMNS) {
        const int64_t n = out - j < COLUMNS ? out - j : COLUMNS;
        for (int s = 0; s < a->rows->n_seqs; s++)
            for (int64_t t = a->rows->seq_start[s], end = t, stop = a->rows->seq_start[s + 1]; t < stop; t = end) {
                double part[COLUMNS] = {0};
                end = stop - t < BLOCK_K ? stop : t + BLOCK_K;
                for (int64_t i = t; i < end; i++)
                    c->k->add_double(1, mat_f32(&a->dy) + i * a->dy.ld + j, mat_f32(&a->y) + i * a->y.ld + j, part, n);
                for (int64_t i = 0; i < n; i++)
                    if (a->lora.m[j + i] != 0) a->lora.dm[j + i] += (float)(part[i] / (double)a->lora.m[j + i]);
            }
    }
}
