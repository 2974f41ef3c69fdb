/* backend/cpu/linear.c - linear maps and the localized filter: every product with a weight, as terms of product_run.
 *
 * The low-rank branch is a second term of the same product, x (the kept drop(x) Aᵀ) times Bᵀ: y is written once. The magnitudes of
 * DoRA scale rows of W and B on their way into the product.
 */
#include "backend/cpu/cpu_internal.h"

static int has_lora(const struct linear_out *o) { return o->lora.A.data != NULL; }
/* W and B of an output, their rows scaled by the magnitudes if it has any. */
static const float *scales(const struct linear_out *o) { return has_lora(o) && o->lora.m ? o->lora.c : NULL; }
static struct view weight_of(const struct linear_out *o) { return (struct view){.w = &o->w, .by_row = scales(o)}; }
static struct view up_of(const struct linear_out *o) {
    struct view B = view_of(&o->lora.B);
    B.by_row = scales(o);
    return B;
}
static const struct dropout *dropout_of(const struct linear_out *o) { return o->drop.p > 0 ? &o->drop : NULL; }

void cpu_linear(void *self, const struct linear_args *a) {
    const struct cpu *cpu = self;
    int64_t N = a->x.rows;
    for (int i = 0; i < a->n; i++) {
        const struct linear_out *o = &a->out[i];
        struct view x = view_of(&a->x);
        if (has_lora(o)) {
            struct view dropped = x;
            dropped.drop = dropout_of(o), dropped.rows = a->rows;
            product_run(cpu, &(struct product){
                .M = N, .N = o->lora.A.rows, .c = mat_f32(&o->xa), .ldc = o->xa.ld, .n_terms = 1,
                .term = {{.a = dropped, .b = view_of(&o->lora.A), .K = a->x.cols, .alpha = 1}}});
        }
        if (!o->y.data) continue;
        struct product p = {.M = N, .N = o->w.rows, .c = mat_f32(&o->y), .ldc = o->y.ld, .n_terms = 1,
                            .add = o->add.data ? mat_f32(&o->add) : NULL, .ld_add = o->add.ld,
                            .term = {{.a = x, .b = weight_of(o), .K = a->x.cols, .alpha = 1}}};
        if (has_lora(o))
            p.term[p.n_terms++] = (struct term){.a = view_of(&o->xa), .b = up_of(o),
                                                .K = o->lora.B.cols, .alpha = o->lora.scale};
        product_run(cpu, &p);
    }
}

/* dW (+=) alpha Σ_t dy[t] x[t]ᵀ, sequence by sequence. */
static void weight_gradient(const struct cpu *cpu, const struct rows *rows, struct view dy, struct view x, float alpha,
                            const struct mat *dW) {
    product_run(cpu, &(struct product){
        .M = dW->rows, .N = dW->cols, .c = mat_f32(dW), .ldc = dW->ld, .accumulate = 1, .cuts = rows->seq_start,
        .n_terms = 1, .term = {{.a = dy, .a_by_k = 1, .b = x, .b_by_k = 1, .K = rows->N, .alpha = alpha}}});
}

/* dx += drop'(scale dyB A), some rows at a time. */
static void dropped_gradient(const struct cpu *cpu, const struct linear_args *a, const struct linear_out *o,
                             struct view dyB) {
    int64_t in = a->dx.cols;
    WITHIN(in, cpu->widest);
    for (int64_t t = 0; t < a->dx.rows; t += DROP_ROWS) {
        int64_t rows = a->dx.rows - t < DROP_ROWS ? a->dx.rows - t : DROP_ROWS;
        struct view part = {.p = dyB.p + t * dyB.ld, .ld = dyB.ld};
        product_run(cpu, &(struct product){.M = rows, .N = in, .c = cpu->slice, .ldc = in, .n_terms = 1,
                                           .term = {{.a = part, .b = view_of(&o->lora.A), .b_by_k = 1,
                                                     .K = o->lora.A.rows, .alpha = o->lora.scale}}});
#pragma omp parallel for num_threads(cpu->threads)
        for (int64_t i = t; i < t + rows; i++)
            cpu->k->drop(&o->drop, (uint32_t)(a->rows->token0 + i), 0, cpu->slice + (i - t) * in,
                         mat_f32(&a->dx) + i * a->dx.ld, 1, in);
    }
}

void cpu_linear_bwd(void *self, const struct linear_args *a) {
    const struct cpu *cpu = self;
    struct product dx = {.M = a->dx.rows, .N = a->dx.cols, .c = a->dx.data, .ldc = a->dx.ld, .accumulate = a->accumulate};
    struct view dyB[LINEAR_MAX];
    int64_t ld_rank = cpu->limits.R * LINEAR_MAX;
    for (int i = 0; i < a->n; i++) {
        const struct linear_out *o = &a->out[i];
        struct view dy = view_of(&o->dy), x = view_of(&a->x);
        dx.term[dx.n_terms++] = (struct term){.a = dy, .b = weight_of(o), .b_by_k = 1, .K = o->w.rows, .alpha = 1};
        if (o->dW.data) weight_gradient(cpu, a->rows, dy, x, 1, &o->dW);
        if (!has_lora(o) || (!a->dx.data && !o->lora.dA.data && !o->lora.dB.data)) continue;
        const struct adapter *l = &o->lora;
        WITHIN(a->x.rows, cpu->limits.rows);
        WITHIN(l->B.cols, cpu->limits.R);
        dyB[i] = (struct view){.p = cpu->rank + i * cpu->limits.R, .ld = ld_rank};
        product_run(cpu, &(struct product){
            .M = o->dy.rows, .N = l->B.cols, .c = cpu->rank + i * cpu->limits.R, .ldc = ld_rank, .n_terms = 1,
            .term = {{.a = dy, .b = up_of(o), .b_by_k = 1, .K = l->B.rows, .alpha = 1}}});
        dy.by_col = scales(o);
        if (l->dB.data) weight_gradient(cpu, a->rows, dy, view_of(&o->xa), l->scale, &l->dB);
        x.drop = dropout_of(o), x.rows = a->rows;
        if (l->dA.data) weight_gradient(cpu, a->rows, dyB[i], x, l->scale, &l->dA);
        if (!dropout_of(o))
            dx.term[dx.n_terms++] = (struct term){.a = dyB[i], .b = view_of(&l->A), .b_by_k = 1, .K = l->A.rows,
                                                  .alpha = l->scale};
    }
    if (!a->dx.data) return;
    product_run(cpu, &dx);
    for (int i = 0; i < a->n; i++)
        if (has_lora(&a->out[i]) && dropout_of(&a->out[i])) dropped_gradient(cpu, a, &a->out[i], dyB[i]);
}

/* x seen from the next (+1) or the last (-1) row. */
static struct view shifted(struct view v, const struct rows *rows, int by) {
    v.shift = by, v.rows = rows;
    return v;
}

void cpu_filter(void *self, const struct filter_args *a) {
    const struct cpu *cpu = self;
    struct view x = view_of(&a->x), last = shifted(x, a->rows, -1);
    if (a->before.data) last.edge = mat_f32(&a->before);
    product_run(cpu, &(struct product){
        .M = a->x.rows, .N = a->w1.rows, .c = mat_f32(&a->y), .ldc = a->y.ld, .bias = cpu_vector(cpu, a->b, a->b_type, a->w1.rows),
        .add = a->add.data ? mat_f32(&a->add) : NULL, .ld_add = a->add.ld, .n_terms = 2,
        .term = {{.a = last, .b = {.w = &a->w0}, .K = a->x.cols, .alpha = 1},
                 {.a = x, .b = {.w = &a->w1}, .K = a->x.cols, .alpha = 1}}});
}

void cpu_filter_bwd(void *self, const struct filter_args *a) {
    const struct cpu *cpu = self;
    struct view dy = view_of(&a->dy), x = view_of(&a->x), last = shifted(x, a->rows, -1), next = shifted(dy, a->rows, +1);
    if (a->before.data) last.edge = mat_f32(&a->before);
    if (a->after.data) next.edge = mat_f32(&a->after);
    if (a->dw0.data) weight_gradient(cpu, a->rows, dy, last, 1, &a->dw0);
    if (a->dw1.data) weight_gradient(cpu, a->rows, dy, x, 1, &a->dw1);
    if (a->db) cpu_sum_rows(cpu, a->rows, NULL, a->dy, (struct mat){0}, a->db);
    if (!a->dx.data) return;
    int64_t out = a->w1.rows;
    product_run(cpu, &(struct product){.M = a->dx.rows,
                                       .N = a->dx.cols,
                                       .c = mat_f32(&a->dx),
                                       .ldc = a->dx.ld,
                                       .add = a->dx_add.data ? mat_f32(&a->dx_add) : NULL,
                                       .ld_add = a->dx_add.ld,
                                       .n_terms = 2,
                                       .term = {{.a = dy, .b = {.w = &a->w1}, .b_by_k = 1, .K = out, .alpha = 1},
                                                {.a = next, .b = {.w = &a->w0}, .b_by_k = 1, .K = out, .alpha = 1}}});
}
