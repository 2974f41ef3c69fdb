/* backend/cpu/loss.c - the loss head: logits of some rows at a time, softmax, cross-entropy and both gradients.
 *
 * Label smoothing (Szegedy et al. 2016, section 7) as LabelSmoother of transformers has it: the spread part of the target is
 * the mean over all ids, the label's own among them.
 *
 * A slice takes whole blocks: up to LOSS_BLOCK listed rows of one sequence, counted from the sequence's first. dE is summed
 * block by block, so its bits depend neither on the slices nor on the chunks.
 */
#include "backend/cpu/cpu_internal.h"
#include <math.h>
#include <string.h>

/* Rows of the next slice, from listed row i; block boundaries into cpu->cuts. *seq: sequence of listed row i, moved on. */
static int64_t next_slice(const struct cpu *c, const struct loss_args *a, int64_t i, int *seq) {
    const int32_t *start = a->rows->seq_start;
    int64_t n = 0;
    for (int blocks = 0; i + n < a->n; c->cuts[++blocks] = (int32_t)n) {
        c->cuts[blocks] = (int32_t)n;
        while (a->row[i + n] >= start[*seq + 1]) ++*seq;
        int64_t m = 1;
        while (m < LOSS_BLOCK && i + n + m < a->n && a->row[i + n + m] < start[*seq + 1]) m++;
        if (n + m > c->limits.loss_slice) break;
        n += m;
    }
    return n;
}

static int32_t first_of(const float *x, float value, int64_t n) {
    for (int64_t v = 0; v < n; v++)
        if (x[v] == value) return (int32_t)v;
    return -1;
}

static double sum_of(const float *x, int64_t n) {
    double sum = 0;
    for (int64_t v = 0; v < n; v++) sum += (double)x[v];
    return sum;
}

/* What the target has at the label and spreads over all ids, of weight w. */
static void take_target(float *x, int64_t V, int32_t label, float w, float smoothing) {
    x[label] -= w * (1 - smoothing);
    if (!(smoothing > 0)) return;
    const float spread = w * smoothing / (float)V;
    for (int64_t v = 0; v < V; v++) x[v] -= spread;
}

void cpu_loss(void *self, const struct loss_args *a) {
    const struct cpu *c = self;
    const struct cpu_kernels *k = c->k;
    int64_t D = a->y.cols, V = a->E.rows;
    WITHIN(D, c->limits.D);
    WITHIN(V, c->limits.V);
    int backward = a->dy.data || a->dE.data, seq = 0;
    if (a->dy.data) {
#pragma omp parallel for num_threads(cpu_threads(c, a->dy.rows * D))
        for (int64_t t = 0; t < a->dy.rows; t++) memset(mat_f32(&a->dy) + t * a->dy.ld, 0, (size_t)D * sizeof(float));
    }
    for (int64_t i = 0, n; i < a->n; i += n) {
        n = next_slice(c, a, i, &seq);
        struct view y = {.p = c->loss_y, .ld = D}, logits = {.p = c->logits, .ld = V};
        for (int64_t j = 0; j < n; j++)
            memcpy(c->loss_y + j * D, mat_f32(&a->y) + a->row[i + j] * a->y.ld, (size_t)D * sizeof(float));
        product_run(c, &(struct product){.M = n, .N = V, .c = c->logits, .ldc = V, .n_terms = 1,
                                         .term = {{.a = y, .b = {.w = &a->E}, .K = D, .alpha = 1}}});
#pragma omp parallel for num_threads(cpu_threads(c, n * V))
        for (int64_t j = 0; j < n; j++) {
            float *x = c->logits + j * V, top = k->max(x, V), at_label = x[a->label[i + j]];
            if (a->best) a->best[i + j] = first_of(x, top, V);
            double at_target = (double)at_label, s = (double)a->smoothing;
            if (s > 0) at_target = (1 - s) * at_target + s * sum_of(x, V) / (double)V;
            double sum = k->exp_sum(x, top, V); /* x becomes exp(x - top) */
            a->nll[i + j] = (float)((double)top + log(sum) - at_target);
            if (!backward) continue;
            k->scale((float)((double)a->weight[i + j] / sum), x, V);
            take_target(x, V, a->label[i + j], a->weight[i + j], a->smoothing);
        }
        if (a->dE.data)
            product_run(c, &(struct product){
                .M = V, .N = D, .c = mat_f32(&a->dE), .ldc = a->dE.ld, .accumulate = 1, .cuts = c->cuts, .n_terms = 1,
                .term = {{.a = logits, .a_by_k = 1, .b = y, .b_by_k = 1, .K = n, .alpha = 1}}});
        if (!a->dy.data) continue;
        product_run(c, &(struct product){.M = n, .N = D, .c = c->loss_dy, .ldc = D, .n_terms = 1,
                                         .term = {{.a = logits, .b = {.w = &a->E}, .b_by_k = 1, .K = V, .alpha = 1}}});
        for (int64_t j = 0; j < n; j++)
            memcpy(mat_f32(&a->dy) + a->row[i + j] * a->dy.ld, c->loss_dy + j * D, (size_t)D * sizeof(float));
    }
}
