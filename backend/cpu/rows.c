/* backend/cpu/rows.c - the ops that treat token rows one by one: embedding, norm, rotation, gate. */
#include "backend/cpu/cpu_internal.h"
#include <math.h>
#include <string.h>

const float *cpu_vector(const struct cpu *c, const void *x, enum dtype type, int64_t n) {
    if (type == DT_F32) return x;
    WITHIN(n, c->widest);
    c->k->from_bf16(x, n, c->vector);
    return c->vector;
}

void cpu_sum_rows(const struct cpu *c, const struct rows *r, const float *scale, struct mat x, struct mat y, float *sum) {
    enum { COLUMNS = 64 };
#pragma omp parallel for num_threads(cpu_threads(c, x.rows * x.cols))
    for (int64_t j = 0; j < x.cols; j += COLUMNS) {
        int64_t n = x.cols - j < COLUMNS ? x.cols - j : COLUMNS;
        for (int s = 0; s < r->n_seqs; s++) {
            double part[COLUMNS] = {0};
            for (int64_t t = r->seq_start[s]; t < r->seq_start[s + 1]; t++)
                c->k->add_double(scale ? scale[t] : 1, mat_f32(&x) + t * x.ld + j,
                                 y.data ? mat_f32(&y) + t * y.ld + j : NULL, part, n);
            for (int64_t i = 0; i < n; i++) sum[j + i] += (float)part[i];
        }
    }
}

void cpu_embed(void *self, const struct embed_args *a) {
    const struct cpu *c = self;
    int64_t D = a->y.cols;
#pragma omp parallel for num_threads(cpu_threads(c, a->y.rows * D))
    for (int64_t t = 0; t < a->y.rows; t++) {
        float *y = mat_f32(&a->y) + t * a->y.ld;
        int64_t at = a->ids[t] * a->E.ld;
        if (a->E.type == DT_F32) memcpy(y, (const float *)a->E.data + at, (size_t)D * sizeof *y);
        else c->k->from_bf16((const uint16_t *)a->E.data + at, D, y);
    }
}

void cpu_embed_bwd(void *self, const struct embed_args *a) {
    const struct cpu *c = self;
    enum { COLUMNS = 64 }; /* tasks own columns, so each row of dE is summed in token order */
#pragma omp parallel for num_threads(cpu_threads(c, a->dy.rows * a->dy.cols))
    for (int64_t j = 0; j < a->dy.cols; j += COLUMNS)
        for (int64_t t = 0; t < a->dy.rows; t++)
            if (a->ids[t] != a->skip)
                c->k->add(mat_f32(&a->dy) + t * a->dy.ld + j, mat_f32(&a->dE) + a->ids[t] * a->dE.ld + j,
                          a->dy.cols - j < COLUMNS ? a->dy.cols - j : COLUMNS);
}

void cpu_norm(void *self, const struct norm_args *a) {
    const struct cpu *c = self;
    int64_t D = a->x.cols;
    const float *g = cpu_vector(c, a->g, a->g_type, D);
#pragma omp parallel for num_threads(cpu_threads(c, a->x.rows * D))
    for (int64_t t = 0; t < a->x.rows; t++) {
        const float *x = mat_f32(&a->x) + t * a->x.ld;
        float r = (float)(1 / sqrt(c->k->dot(x, x, D) / (double)D + (double)a->eps));
        if (a->r) a->r[t] = r;
        c->k->norm(x, g, r, mat_f32(&a->y) + t * a->y.ld, D);
    }
}

/* y = g x r:  dx = r (dy g) - x r³ mean(dy g x),  dg = Σ_t dy x r */
void cpu_norm_bwd(void *self, const struct norm_args *a) {
    const struct cpu *c = self;
    int64_t D = a->x.cols;
    const float *g = cpu_vector(c, a->g, a->g_type, D);
    if (a->dg) cpu_sum_rows(c, a->rows, a->r, a->dy, a->x, a->dg);
#pragma omp parallel for num_threads(cpu_threads(c, a->x.rows * D))
    for (int64_t t = 0; t < a->x.rows; t++) {
        const float *x = mat_f32(&a->x) + t * a->x.ld, *dy = mat_f32(&a->dy) + t * a->dy.ld;
        double r = (double)a->r[t], mean = c->k->dot3(dy, g, x, D) / (double)D;
        c->k->norm_bwd(x, g, dy, a->r[t], (float)(r * r * r * mean), mat_f32(&a->dx) + t * a->dx.ld, !a->overwrite, D);
    }
}

void cpu_rope(void *self, const struct rope_args *a) {
    const struct cpu *c = self;
    int64_t half = a->K / 2;
    WITHIN(a->K, HEAD_MAX); /* its sines fit the scratch */
#pragma omp parallel num_threads(cpu_threads(c, a->x.rows * a->x.cols))
    {
        float *theta = (float *)(void *)cpu_scratch(c), *cosine = theta + half, *sine = cosine + half;
        for (int64_t i = 0; i < half; i++) theta[i] = 1 / powf(10000, (float)(2 * i) / (float)a->K);
#pragma omp for
        for (int64_t t = 0; t < a->x.rows; t++) {
            float *x = mat_f32(&a->x) + t * a->x.ld, position = (float)a->rows->position[t];
            for (int64_t i = 0; i < half; i++) {
                float angle = position * theta[i];
                cosine[i] = cosf(angle), sine[i] = (float)a->sign * sinf(angle);
            }
            for (int64_t j = 0; j < a->x.cols; j += a->K) c->k->rotate(x + j, cosine, sine, half);
        }
    }
}

void cpu_gate(void *self, const struct gate_args *a) {
    const struct cpu *c = self;
#pragma omp parallel for num_threads(cpu_threads(c, a->g.rows * a->g.cols))
    for (int64_t t = 0; t < a->g.rows; t++)
        c->k->gate(mat_f32(&a->g) + t * a->g.ld, mat_f32(&a->u) + t * a->u.ld, mat_f32(&a->y) + t * a->y.ld, a->g.cols);
}

void cpu_gate_bwd(void *self, const struct gate_args *a) {
    const struct cpu *c = self;
#pragma omp parallel for num_threads(cpu_threads(c, a->g.rows * a->g.cols))
    for (int64_t t = 0; t < a->g.rows; t++)
        c->k->gate_bwd(mat_f32(&a->g) + t * a->g.ld, mat_f32(&a->u) + t * a->u.ld, mat_f32(&a->dy) + t * a->dy.ld,
                       a->dg.data ? mat_f32(&a->dg) + t * a->dg.ld : NULL, mat_f32(&a->du) + t * a->du.ld,
                       a->y.data ? mat_f32(&a->y) + t * a->y.ld : NULL, a->g.cols);
}
