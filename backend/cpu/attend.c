/* backend/cpu/attend.c - causal attention over tiles of queries and keys (Dao 2023, FlashAttention-2).
 *
 * Tiles are counted from the first row of a sequence, so what is added to what does not depend on the chunk. Forward: a task is
 * one head of one tile of queries; it walks the key tiles in order with a running maximum m, sum l and output o.
 * Backward: a task is one head of one sequence; scores are made again from lse; sums run over query tiles (dk, dv) and
 * key tiles (dq) in order. Tiles that no query may see are skipped.
 */
#include "backend/cpu/cpu_internal.h"
#include <math.h>
#include <string.h>

enum { TQ = 96, TK = 128 }; /* multiples of every mr, and of every nr */

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* Scratch of a task, in floats. Panels of K columns are padded to whole right panels. */
struct tiles {
    float *q, *d_o;         /* (TQ,K) left panels */
    float *k, *v, *k_along; /* (TK,K) right panels; k_along (TK,K') */
    float *s, *ds;          /* (TQ,TK) scores, or probabilities; their gradients */
    float *left;            /* (TQ,TK) s or ds as a left operand, either way round */
    float *right;           /* (max(TQ,TK),K') rows as a right operand */
    float *o;               /* (TQ,K) */
};

static size_t lay_tiles(const struct cpu_kernels *k, int64_t K, char *p, struct tiles *t) {
    size_t at = 0, padded = (size_t)((K + k->nr - 1) / k->nr * k->nr), row = (size_t)K;
    const struct { float **part; size_t floats; } part[] = {
        {&t->q, TQ * row}, {&t->d_o, TQ * row}, {&t->k, TK * row}, {&t->v, TK * row}, {&t->k_along, TK * padded},
        {&t->s, TQ * TK}, {&t->ds, TQ * TK}, {&t->left, TQ * (TK + MR_MAX)}, {&t->right, TK * padded}, {&t->o, TQ * row}};
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        *part[i].part = p ? (float *)(void *)(p + at) : NULL;
        at += (part[i].floats * sizeof(float) + 63) / 64 * 64;
    }
    return at;
}

size_t attend_scratch_bytes(const struct cpu_kernels *k, int64_t K) {
    struct tiles t;
    return lay_tiles(k, K, NULL, &t);
}

/* Keys u0 .. u0+n-1 that query row t sees: *from <= i < *to of the tile; none if *from >= *to. */
static void visible(const struct attend_args *a, int64_t t, int64_t u0, int64_t n, int64_t *from, int64_t *to) {
    *from = max64(a->rows->first[t] - u0, 0);
    *to = min64(t + a->past + 1 - u0, n);
}

static int64_t first_seen(const struct attend_args *a, int64_t q0, int64_t nq) {
    int64_t first = a->rows->first[q0];
    for (int64_t t = q0 + 1; t < q0 + nq; t++) first = min64(first, a->rows->first[t]);
    return first;
}

/* One head of the queries q0 .. q0+nq-1, whose sequence's keys start at row `base`. */
static void attend_tile(const struct cpu_kernels *k, const struct attend_args *a, const struct tiles *t, int64_t h,
                        int64_t q0, int64_t nq, int64_t base) {
    int64_t K = a->K, low = first_seen(a, q0, nq), high = q0 + nq + a->past;
    struct view q = view_of(&a->q), key = view_of(&a->k), value = view_of(&a->v);
    double l[TQ] = {0};
    float m[TQ];
    for (int i = 0; i < TQ; i++) m[i] = -INFINITY;
    memset(t->o, 0, (size_t)(nq * K) * sizeof *t->o);
    q.p += h * a->q_step, key.p += h * a->k_step, value.p += h * a->v_step;
    pack_left(k, &q, 0, q0, nq, 0, K, 1 / sqrtf((float)K), t->q, NULL);
    for (int64_t u0 = base + (low - base) / TK * TK; u0 < high; u0 += TK) {
        int64_t n = min64(TK, high - u0);
        pack_right(k, &key, 0, u0, n, 0, K, t->k, NULL);
        k->tile(K, t->q, t->k, t->s, TK, nq, n, 0);
        for (int64_t i = 0; i < nq; i++) {
            float *s = t->s + i * TK;
            int64_t from, to;
            visible(a, q0 + i, u0, n, &from, &to);
            if (from >= to) {
                memset(s, 0, (size_t)n * sizeof *s);
                continue;
            }
            float top = k->max(s + from, to - from);
            if (top > m[i]) {
                float shrink = expf(m[i] - top); /* 0 at first */
                k->scale(shrink, t->o + i * K, K);
                l[i] *= (double)shrink;
                m[i] = top;
            }
            memset(s, 0, (size_t)from * sizeof *s);
            l[i] += k->exp_sum(s + from, m[i], to - from);
            memset(s + to, 0, (size_t)(n - to) * sizeof *s);
        }
        struct view p = {.p = t->s, .ld = TK};
        pack_left(k, &p, 0, 0, nq, 0, n, 1, t->left, NULL);
        pack_right(k, &value, 1, 0, K, u0, n, t->right, NULL);
        k->tile(n, t->left, t->right, t->o, K, nq, K, 1);
    }
    for (int64_t i = 0; i < nq; i++) {
        float *o = mat_f32(&a->o) + (q0 + i) * a->o.ld + h * K;
        memcpy(o, t->o + i * K, (size_t)K * sizeof *o);
        k->scale((float)(1 / l[i]), o, K);
        a->lse[(q0 + i) * a->H + h] = (float)((double)m[i] + log(l[i]));
    }
}

void cpu_attend(void *self, const struct attend_args *a) {
    const struct cpu *c = self;
    const int32_t *offset = a->rows->offset;
    int64_t N = a->q.rows, spans = (N + TQ - 1) / TQ;
    WITHIN(a->K, c->limits.K);
    int threads = cpu_threads(c, N * (a->past + N) * a->H * a->K / 16);
#pragma omp parallel num_threads(threads)
    {
        struct tiles t;
        lay_tiles(c->k, a->K, cpu_scratch(c), &t);
        /* A task: the tiles that begin within some TQ rows of the chunk; the long ones, at the end, first. */
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < spans * a->H; i++) {
            int64_t r0 = (spans - 1 - i / a->H) * TQ, r1 = min64(r0 + TQ, N);
            for (int64_t q0 = r0; q0 < r1; q0++) {
                int64_t place = a->past ? q0 : offset[q0], nq = 1;
                if (place % TQ) continue;
                while (nq < TQ && q0 + nq < N && (a->past || offset[q0 + nq] == place + nq)) nq++;
                attend_tile(c->k, a, &t, i % a->H, q0, nq, a->past ? 0 : q0 - place);
            }
        }
    }
}

/* P and dS of a pair of tiles from scores and dP; 0 where the mask is. */
static void score_gradients(const struct cpu_kernels *k, const struct attend_args *a, const struct tiles *t, int64_t h,
                            int64_t q0, int64_t nq, int64_t u0, int64_t n) {
    float scale = 1 / sqrtf((float)a->K);
    for (int64_t i = 0; i < nq; i++) {
        float *s = t->s + i * TK, *ds = t->ds + i * TK;
        int64_t from, to, at = (q0 + i) * a->H + h;
        visible(a, q0 + i, u0, n, &from, &to);
        if (from >= to) from = to = 0;
        k->score_bwd(s + from, ds + from, a->lse[at], a->delta[at], scale, to - from);
        memset(s, 0, (size_t)from * sizeof *s), memset(ds, 0, (size_t)from * sizeof *ds);
        memset(s + to, 0, (size_t)(n - to) * sizeof *s), memset(ds + to, 0, (size_t)(n - to) * sizeof *ds);
    }
}

/* Head h of the sequence in rows r0 .. r1-1:  dv = Pᵀ do,  dP = do vᵀ,  dS = P (dP - Σ do o) / sqrt(K),  dk = dSᵀ q,
 * dq = dS k. */
static void attend_bwd_head(const struct cpu_kernels *k, const struct attend_args *a, const struct tiles *t, int64_t h,
                            int64_t r0, int64_t r1) {
    int64_t K = a->K;
    struct view q = view_of(&a->q), key = view_of(&a->k), value = view_of(&a->v), d_o = view_of(&a->d_o);
    struct view p = {.p = t->s, .ld = TK}, ds = {.p = t->ds, .ld = TK};
    float *dq = mat_f32(&a->dq) + h * a->q_step, *dk = mat_f32(&a->dk) + h * a->k_step, *dv = mat_f32(&a->dv) + h * a->v_step;
    const float *o = mat_f32(&a->o) + h * K;
    q.p += h * a->q_step, key.p += h * a->k_step, value.p += h * a->v_step, d_o.p += h * K;
    for (int64_t r = r0; r < r1; r++) {
        a->delta[r * a->H + h] = (float)k->dot(d_o.p + r * d_o.ld, o + r * a->o.ld, K);
        memset(dq + r * a->dq.ld, 0, (size_t)K * sizeof *dq);
        memset(dk + r * a->dk.ld, 0, (size_t)K * sizeof *dk);
        memset(dv + r * a->dv.ld, 0, (size_t)K * sizeof *dv);
    }
    for (int64_t u0 = r0; u0 < r1; u0 += TK) {
        int64_t n = min64(TK, r1 - u0);
        pack_right(k, &key, 0, u0, n, 0, K, t->k, NULL);
        pack_right(k, &value, 0, u0, n, 0, K, t->v, NULL);
        pack_right(k, &key, 1, 0, K, u0, n, t->k_along, NULL);
        for (int64_t q0 = r0 + (u0 - r0) / TQ * TQ; q0 < r1; q0 += TQ) {
            int64_t nq = min64(TQ, r1 - q0);
            if (first_seen(a, q0, nq) >= u0 + n) continue;
            pack_left(k, &q, 0, q0, nq, 0, K, 1 / sqrtf((float)K), t->q, NULL);
            pack_left(k, &d_o, 0, q0, nq, 0, K, 1, t->d_o, NULL);
            k->tile(K, t->q, t->k, t->s, TK, nq, n, 0);
            k->tile(K, t->d_o, t->v, t->ds, TK, nq, n, 0);
            score_gradients(k, a, t, h, q0, nq, u0, n);
            pack_left(k, &p, 1, 0, n, 0, nq, 1, t->left, NULL);
            pack_right(k, &d_o, 1, 0, K, q0, nq, t->right, NULL);
            k->tile(nq, t->left, t->right, dv + u0 * a->dv.ld, a->dv.ld, n, K, 1);
            pack_left(k, &ds, 1, 0, n, 0, nq, 1, t->left, NULL);
            pack_right(k, &q, 1, 0, K, q0, nq, t->right, NULL);
            k->tile(nq, t->left, t->right, dk + u0 * a->dk.ld, a->dk.ld, n, K, 1);
            pack_left(k, &ds, 0, 0, nq, 0, n, 1, t->left, NULL);
            k->tile(n, t->left, t->k_along, dq + q0 * a->dq.ld, a->dq.ld, nq, K, 1);
        }
    }
}

void cpu_attend_bwd(void *self, const struct attend_args *a) {
    const struct cpu *c = self;
    const struct rows *r = a->rows;
    WITHIN(a->K, c->limits.K);
#pragma omp parallel num_threads(cpu_threads(c, r->N * a->H * a->K))
    {
        struct tiles t;
        lay_tiles(c->k, a->K, cpu_scratch(c), &t);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < r->n_seqs * a->H; i++)
            attend_bwd_head(c->k, a, &t, i % a->H, r->seq_start[i / a->H], r->seq_start[i / a->H + 1]);
    }
}
