/* lora/merge.c - adapters become part of something else: of the weights (W += scale * B A), or of one larger adapter.
 *
 * Several adapters on one model add up, y = x Wᵀ + Σ s_i (x A_iᵀ) B_iᵀ, so they are also one adapter of rank Σ R_i
 * with A = [A_1; A_2; ..] and B = [s_1 B_1, s_2 B_2, ..]. */
#include "lora/lora.h"
#include "base/sys.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { TILE = 256 }; /* columns summed at a time: 1 KiB of sums stays in registers and L1 */

/* w[0..n) += scale * Σ_k b[k] a[k*cols ..]: a stretch of one row. */
static void merge_stretch(float scale, int64_t R, int64_t cols, const float *a, const float *b, int64_t n,
                          float *w) {
    float sum[TILE] = {0};
    for (int64_t k = 0; k < R; k++) {
        const float *row = a + k * cols, x = b[k];
#pragma omp simd
        for (int64_t i = 0; i < n; i++) sum[i] += x * row[i];
    }
    for (int64_t i = 0; i < n; i++) w[i] += scale * sum[i];
}

/* The part of row `row` among elements first .. first+count. */
static void stretch(int64_t row, int64_t cols, int64_t first, int64_t count, int64_t *from, int64_t *to) {
    const int64_t end = first + count;
    *from = row * cols > first ? row * cols : first, *to = (row + 1) * cols < end ? (row + 1) * cols : end;
}

void lora_merge(const struct lora_config *c, int64_t cols, const float *a, const float *b, int64_t first,
                int64_t count, float *w) {
    const float scale = lora_scale(c);
    const int64_t R = c->rank, rows = (first + count + cols - 1) / cols;
#pragma omp parallel for schedule(static)
    for (int64_t row = first / cols; row < rows; row++) {
        int64_t from, to;
        stretch(row, cols, first, count, &from, &to);
        for (int64_t i = from; i < to; i += TILE)
            merge_stretch(scale, R, cols, a + (i - row * cols), b + row * R, to - i < TILE ? to - i : TILE,
                          w + (i - first));
    }
}

void lora_squares(int64_t cols, int64_t first, int64_t count, const float *w, double *squares) {
    const int64_t rows = (first + count + cols - 1) / cols;
#pragma omp parallel for schedule(static)
    for (int64_t row = first / cols; row < rows; row++) {
        int64_t from, to;
        stretch(row, cols, first, count, &from, &to);
        for (int64_t i = from; i < to; i++) squares[row] += (double)w[i - first] * (double)w[i - first];
    }
}

void lora_scales(int64_t rows, const float *m, const double *squares, float *scales) {
    for (int64_t i = 0; i < rows; i++) scales[i] = squares[i] > 0 ? m[i] / (float)sqrt(squares[i]) : 0;
}

void lora_rescale(int64_t cols, const float *scales, int64_t first, int64_t count, float *w) {
    const int64_t rows = (first + count + cols - 1) / cols;
#pragma omp parallel for schedule(static)
    for (int64_t row = first / cols; row < rows; row++) {
        int64_t from, to;
        stretch(row, cols, first, count, &from, &to);
        for (int64_t i = from; i < to; i++) w[i - first] *= scales[row];
    }
}

int lora_next(const char **list, char *dir, size_t size) {
    if (!*list || !**list) return 0;
    size_t n = strcspn(*list, ",");
    snprintf(dir, size, "%.*s", (int)n, *list);
    *list += n + ((*list)[n] == ',');
    return 1;
}

/* Copies one adapter of a projection into columns r0 .. of the larger one. */
static void place(struct lora *to, const struct lora *from, int64_t layer, enum proj p, int64_t r0) {
    int64_t rows, cols, R = from->config.rank;
    proj_shape(&from->model, p, &rows, &cols);
    float *data = to->data + layer * to->layer_floats, *a = data + lora_offset_a(to, p),
          *b = data + lora_offset_b(to, p);
    const float *source = from->data + layer * from->layer_floats, *sb = source + lora_offset_b(from, p),
                scale = lora_scale(&from->config);
    memcpy(a + r0 * cols, source + lora_offset_a(from, p), (size_t)(R * cols) * sizeof *a);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < R; k++) b[i * to->config.rank + r0 + k] = scale * sb[i * R + k];
}

int lora_append(struct lora *l, const struct lora *more, struct err *e) {
    struct lora sum;
    if (l->config.dora || more->config.dora)
        return err_set(e, ERR_INPUT, "an adapter with use_dora scales what is there, so it cannot be added to others; merge them one "
                                     "after the other first: qlora export --adapter_name_or_path A,B .. --export_dir NEW");
    struct lora_config c = {.rank = l->config.rank + more->config.rank,
                            .targets = l->config.targets | more->config.targets, .wholes = l->config.wholes | more->config.wholes};
    c.alpha = (double)c.rank; /* scale 1 */
    if (lora_init(&sum, &c, &l->model, e)) return -1;
    for (int64_t layer = 0; layer < l->model.L; layer++)
        for (int p = 0; p < PROJ_COUNT; p++) {
            if (l->config.targets >> p & 1) place(&sum, l, layer, (enum proj)p, 0);
            if (more->config.targets >> p & 1) place(&sum, more, layer, (enum proj)p, l->config.rank);
        }
    lora_free(l);
    *l = sum;
    return 0;
}
