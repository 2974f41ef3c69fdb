/* backend/cpu/gemm.c - the matrix product of the CPU backend.
 *
 * Goto & van de Geijn 2008: operands are packed into panels that the inner loop (kernels.h: tile) reads in order. The left
 * operand (tokens) is packed once for all threads; each task packs some columns of the right operand (weights, decoded on
 * the way) and multiplies them with all packed rows. An element of the result is the same chain of operations wherever
 * it lies, so tasks may be cut to suit the machine: bits do not depend on them.
 */
#include "backend/cpu/cpu_internal.h"
#include <string.h>

static const float zeros[BLOCK_K];

const float *weight_decode(const struct cpu_kernels *k, const struct weight *w, int64_t first, int64_t n, float *tmp) {
    uint16_t half[BLOCK_K];
    const uint16_t *from = half;
    switch (w->format) {
    case W_F32: return (const float *)w->data + first;
    case W_BF16: from = (const uint16_t *)w->data + first; break;
    case W_INT8: int8_decode((const int8_t *)w->data + first, w->scale + first / w->cols, n, 0, 1, half, DT_BF16); break;
    case W_Q4: q4_decode(&w->q4, first, n, half, DT_BF16); break;
    }
    k->from_bf16(from, n, tmp);
    return tmp;
}

/* Columns c0 .. c0+n-1 of row i of v, unscaled: in place, or made in tmp[n]. */
static const float *stored_row(const struct cpu_kernels *k, const struct view *v, int64_t i, int64_t c0, int64_t n,
                               float *tmp) {
    if (v->w) return weight_decode(k, v->w, i * v->w->cols + c0, n, tmp);
    if (v->shift) {
        const int32_t *offset = v->rows->offset;
        int64_t j = i + v->shift;
        int inside = v->shift < 0 ? i > 0 && offset[i] : j < v->rows->N && offset[j];
        if (!inside) {
            if (v->edge) return v->edge + c0;
            memset(tmp, 0, (size_t)n * sizeof *tmp);
            return tmp;
        }
        i = j;
    }
    const float *x = v->p + i * v->ld + c0;
    if (!v->drop) return x;
    k->drop(v->drop, (uint32_t)(v->rows->token0 + i), c0, x, tmp, 0, n);
    return tmp;
}

static const float *view_row(const struct cpu_kernels *k, const struct view *v, int64_t i, int64_t c0, int64_t n,
                             float *tmp) {
    const float *x = stored_row(k, v, i, c0, n, tmp);
    if (!v->by_row && !v->by_col) return x;
    const float all = v->by_row ? v->by_row[i] : 1;
    for (int64_t j = 0; j < n; j++) tmp[j] = x[j] * (v->by_col ? v->by_col[c0 + j] : all);
    return tmp;
}

static void pack(const struct cpu_kernels *k, const struct view *v, int by_k, int width, int64_t r0, int64_t n,
                 int64_t k0, int64_t kc, float *out, float *tmp) {
    if (by_k) {
        for (int64_t i = 0; i < kc; i++)
            k->pack_along(view_row(k, v, k0 + i, r0, n, tmp), n, width, kc * width, out + i * width);
        return;
    }
    for (int64_t r = 0; r < n; r += width, out += kc * width) {
        const float *row[NR_MAX];
        for (int i = 0; i < width; i++)
            row[i] = r + i < n ? view_row(k, v, r0 + r + i, k0, kc, tmp + i * BLOCK_K) : zeros;
        k->pack_across(row, width, kc, out);
    }
}

void pack_left(const struct cpu_kernels *k, const struct view *v, int by_k, int64_t r0, int64_t n, int64_t k0, int64_t kc,
               float alpha, float *out, float *tmp) {
    pack(k, v, by_k, k->mr, r0, n, k0, kc, out, tmp);
    if (alpha != 1) k->scale(alpha, out, (n + k->mr - 1) / k->mr * k->mr * kc);
}

void pack_right(const struct cpu_kernels *k, const struct view *v, int by_k, int64_t r0, int64_t n, int64_t k0, int64_t kc,
                float *out, float *tmp) {
    pack(k, v, by_k, k->nr, r0, n, k0, kc, out, tmp);
}

struct block { /* some products of one term */
    const struct term *t;
    int64_t k0, kc, before; /* before: products of this step in front of it */
};
struct cursor { int term, cut; int64_t k; };

/* The next blocks, together at most STEP_K products; 0 when all are done. */
static int next_blocks(const struct product *p, struct cursor *at, struct block *b) {
    int n = 0;
    for (int64_t total = 0; n < STEP_BLOCKS && at->term < p->n_terms; n++) {
        const struct term *t = &p->term[at->term];
        int64_t end = t->K;
        if (p->cuts) {
            while (p->cuts[at->cut + 1] <= at->k) at->cut++;
            end = p->cuts[at->cut + 1];
        }
        int64_t kc = end - at->k < BLOCK_K ? end - at->k : BLOCK_K;
        if (total + kc > STEP_K) break;
        b[n] = (struct block){t, at->k, kc, total};
        total += kc;
        at->k += kc;
        if (at->k == t->K) *at = (struct cursor){.term = at->term + 1};
    }
    return n;
}

size_t product_scratch_bytes(void) { return (size_t)BLOCK_K * (TILE_N + NR_MAX) * sizeof(float); }

static void start_tile(const struct cpu_kernels *k, const struct product *p, int64_t m0, int64_t m, int64_t n0, int64_t n) {
    for (int64_t i = m0; i < m0 + m; i++) {
        float *c = p->c + i * p->ldc + n0;
        if (p->add && p->add != p->c) memcpy(c, p->add + i * p->ld_add + n0, (size_t)n * sizeof *c);
        else if (!p->add && !p->accumulate) memset(c, 0, (size_t)n * sizeof *c);
        if (p->bias) k->add(p->bias + n0, c, n);
    }
}

void product_run(const struct cpu *cpu, const struct product *p) {
    const struct cpu_kernels *k = cpu->k;
    int64_t all_k = 0, mr = k->mr;
    ASSERT(cpu->work, "no workspace for a product of %lld rows", (long long)p->M);
    for (int i = 0; i < p->n_terms; i++) {
        ASSERT(p->term[i].K > 0, "term %d has K %lld", i, (long long)p->term[i].K);
        all_k += p->term[i].K;
    }
    int threads = cpu_threads(cpu, p->M * p->N * all_k / 16);
    enum { GROUP = 8 }; /* left panels packed by one task */

#pragma omp parallel num_threads(threads)
    {
        float *right = (float *)(void *)cpu_scratch(cpu), *tmp = right + BLOCK_K * TILE_N;
        for (int64_t m0 = 0; m0 < p->M; m0 += STEP_M) {
            int64_t m = p->M - m0 < STEP_M ? p->M - m0 : STEP_M, panels = (m + mr - 1) / mr;
            int64_t groups = (panels + GROUP - 1) / GROUP, columns = (p->N + TILE_N - 1) / TILE_N;
            /* few columns: rows are divided too, so that there are four tasks a thread */
            int64_t parts = (4 * threads + columns - 1) / columns;
            if (parts > groups || threads == 1) parts = threads == 1 ? 1 : groups;
            int64_t part_rows = (panels + parts - 1) / parts * mr;
            struct cursor at = {0};
            struct block b[STEP_BLOCKS];
            for (int n, first = 1; (n = next_blocks(p, &at, b)) > 0; first = 0) {
#pragma omp for schedule(static)
                for (int64_t i = 0; i < groups * n; i++) {
                    const struct block *bl = &b[i / groups];
                    int64_t r = i % groups * GROUP * mr, rows = m - r < GROUP * mr ? m - r : GROUP * mr;
                    pack_left(k, &bl->t->a, bl->t->a_by_k, m0 + r, rows, bl->k0, bl->kc, bl->t->alpha,
                              cpu->left + bl->before * panels * mr + r * bl->kc, tmp);
                }
#pragma omp for schedule(dynamic)
                for (int64_t i = 0; i < columns * parts; i++) {
                    int64_t n0 = i / parts * TILE_N, nn = p->N - n0 < TILE_N ? p->N - n0 : TILE_N;
                    int64_t r0 = i % parts * part_rows, r1 = r0 + part_rows < m ? r0 + part_rows : m;
                    int add = p->accumulate || p->add || p->bias || !first;
                    if (r0 >= r1) continue;
                    if (first && (p->bias || (p->add && p->add != p->c))) start_tile(k, p, m0 + r0, r1 - r0, n0, nn);
                    for (int j = 0; j < n; j++, add = 1) {
                        const struct block *bl = &b[j];
                        pack_right(k, &bl->t->b, bl->t->b_by_k, n0, nn, bl->k0, bl->kc, right, tmp);
                        const float *left = cpu->left + bl->before * panels * mr;
                        for (int64_t r = r0; r < r1; r += TILE_M)
                            k->tile(bl->kc, left + r * bl->kc, right, p->c + (m0 + r) * p->ldc + n0, p->ldc,
                                    r1 - r < TILE_M ? r1 - r : TILE_M, nn, add);
                    }
                }
            }
        }
    }
}
