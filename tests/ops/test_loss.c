/* The loss head: losses against loops in double, gradients against central differences, slices and blocks, chunks, threads. */
#include "tests/ops/ops.h"

struct loss_case { double smoothing; int64_t n, N, V, D; const int32_t *row, *label; const float *weight; double *y, *E; };

static double loss_reference(const struct loss_case *c, double *nll) { /* returns Σ weight nll */
    double total = 0, *x = malloc((size_t)c->V * 8);
    for (int64_t i = 0; i < c->n; i++) {
        double top = -1e300, sum = 0;
        for (int64_t v = 0; v < c->V; v++) {
            x[v] = 0;
            for (int64_t j = 0; j < c->D; j++) x[v] += c->y[c->row[i] * c->D + j] * c->E[v * c->D + j];
            if (x[v] > top) top = x[v];
        }
        for (int64_t v = 0; v < c->V; v++) sum += exp(x[v] - top);
        double loss = (1 - c->smoothing) * (top + log(sum) - x[c->label[i]]); /* as LabelSmoother: two means of -log softmax */
        for (int64_t v = 0; c->smoothing > 0 && v < c->V; v++) loss += c->smoothing / (double)c->V * (top + log(sum) - x[v]);
        if (nll) nll[i] = loss;
        total += (double)c->weight[i] * loss;
    }
    free(x);
    return total;
}
static double loss_objective(void *arg) { return loss_reference(arg, NULL); }

/* Counts every row but each `skip`-th; E in fp32 or bf16. */
static void loss_at(const int *lengths, int64_t V, int64_t D, int skip, int half, int64_t slice, double smoothing, int finite) {
    struct chunk_of ch = chunk_new(lengths, 0);
    int64_t N = ch.rows.N, n = 0;
    seed_now = (uint64_t)(V + D);
    struct mat y = mat_random(N, D, 2, 1), E = mat_random(V, D, 0, 1);
    uint16_t *E16 = malloc((size_t)(V * D) * 2);
    for (int64_t i = 0; half && i < V * D; i++) E16[i] = f32_to_bf16(((float *)E.data)[i]), ((float *)E.data)[i] = bf16_to_f32(E16[i]);
    int32_t *row = malloc((size_t)N * 4), *label = malloc((size_t)N * 4);
    float *weight = malloc((size_t)N * 4);
    for (int64_t t = 0; t < N; t++)
        if ((t + 1) % skip) row[n] = (int32_t)t, label[n] = (int32_t)((t * 13 + 5) % V), weight[n++] = 0.5f + 0.5f * uniform();
    struct loss_case c = {smoothing, n, N, V, D, row, label, weight, doubles_of(y), doubles_of(E)};
    double *nll = malloc((size_t)(n + 1) * 8);
    loss_reference(&c, nll);
    FOR_KERNELS(k) {
        struct mat out[4][3]; /* 0: once. 1: three threads. 2: other slices. 3: sequence by sequence */
        for (int run = 0; run < 4; run++) {
            struct mat *o = out[run];
            o[0] = mat_new(1, n, 0), o[1] = mat_new(N, D, 3), o[2] = mat_new(V, D, 1);
            for (int64_t i = 0; i < V * D; i++) *at(&o[2], i / D, i % D) = 0.25f;
            struct err e = {0};
            struct backend *b = backend_cpu_with(*k, run == 1 ? 3 : 1, &e);
            struct backend_limits l = {.rows = N, .D = D, .F = D, .K = 2, .V = V, .R = 1, .loss_slice = run == 2 ? 200 : slice};
            REQUIRE(b && !b->reserve(b->self, &l, &e), "%s", e.text);
            int64_t done = 0;
            for (int s = 0; s < (run == 3 ? ch.rows.n_seqs : 1); s++) {
                struct chunk_of part = run == 3 ? chunk_part(&ch, s) : chunk_new(lengths, 0);
                int32_t t = run == 3 ? ch.rows.seq_start[s] : 0, *listed = malloc((size_t)n * 4 + 4);
                int64_t m = 0;
                while (done + m < n && row[done + m] < t + part.rows.N) listed[m] = row[done + m] - t, m++;
                op_loss(b, &(struct loss_args){.rows = &part.rows, .y = mat_part(y, t, part.rows.N), .n = m, .row = listed, .label = label + done,
                                               .E = {.format = half ? W_BF16 : W_F32, .rows = V, .cols = D, .data = half ? (void *)E16 : E.data},
                                               .weight = weight + done, .smoothing = (float)smoothing, .nll = at(&o[0], 0, done), .dy = mat_part(o[1], t, part.rows.N), .dE = o[2]});
                done += m;
                free(listed), chunk_free(&part);
            }
            backend_close(b);
            if (run) for (int i = 0; i < 3; i++) CHECK(mat_same(out[0][i], o[i]), "%s: run %d, part %d has other bits", (*k)->name, run, i);
        }
        NEAR(out[0][0], nll, 1e-6);
        for (int64_t t = 0, i = 0; t < N; t++) {
            if (i < n && row[i] == t) i++;
            else for (int64_t j = 0; j < D; j++) CHECK(*at(&out[0][1], t, j) == 0, "row %d is not counted", (int)t);
        }
        for (int64_t i = 0; i < V * D; i++) *at(&out[0][2], i / D, i % D) -= 0.25f;
        if (finite) {
            GRADIENT(loss_objective, &c, c.y, out[0][1], 3e-6);
            GRADIENT(loss_objective, &c, c.E, out[0][2], 3e-6);
        }
        for (int i = 0; i < 12; i++) mat_free(&out[i / 3][i % 3]);
    }
    free(c.y), free(c.E), free(nll), free(row), free(label), free(weight), free(E16);
    mat_free(&y), mat_free(&E), chunk_free(&ch);
}

TEST(gradients_by_differences) {
    loss_at((int[]){4, 1, 6, 0}, 13, 5, 3, 0, 0, 0, 1);
    loss_at((int[]){9, 0}, 40, 7, 100, 1, 0, 0, 1);
}
TEST(smoothed_labels) { /* values that fp32 holds, so that the reference has the same target */
    loss_at((int[]){4, 1, 6, 0}, 13, 5, 3, 0, 0, 0.125, 1);
    loss_at((int[]){9, 0}, 40, 7, 100, 1, 0, 0.5, 1);
    loss_at((int[]){3, 5, 0}, 9, 4, 100, 0, 0, 1, 1);
    loss_at((int[]){63, 64, 65, 130, 1, 1, 1, 0}, 70, 33, 1000, 0, 64, 0.125, 0);
}
TEST(slices_take_whole_blocks) { /* blocks of 64 rows of a sequence, slices of 64, 100, 200 rows */
    loss_at((int[]){63, 64, 65, 130, 1, 1, 1, 0}, 70, 33, 1000, 0, 64, 0, 0);
    loss_at((int[]){300, 2, 40, 0}, 17, 9, 5, 1, 100, 0, 0);
}
TEST(nothing_counted) {
    struct chunk_of ch = chunk_new((int[]){3, 0}, 0);
    struct mat y = mat_random(3, 4, 0, 1), E = mat_random(6, 4, 0, 1), dy = mat_new(3, 4, 0);
    struct backend *b = backend_for(cpu_kernels_best(), 1, 3, 8);
    op_loss(b, &(struct loss_args){.rows = &ch.rows, .y = y, .E = {.rows = 6, .cols = 4, .data = E.data}, .n = 0, .dy = dy});
    for (int i = 0; i < 12; i++) CHECK(((float *)dy.data)[i] == 0, "element %d", i);
    backend_close(b), chunk_free(&ch), mat_free(&y), mat_free(&E), mat_free(&dy);
}
/* The largest logit's id against a loop, the lowest of equals; rows listed several times, as for the letters of a choice. */
TEST(best_ids) {
    struct chunk_of ch = chunk_new((int[]){2, 3, 0}, 0);
    int64_t V = 41, D = 5, n = 8;
    int32_t row[] = {0, 0, 1, 2, 2, 2, 2, 4}, label[] = {3, 40, 7, 0, 1, 2, 3, 9}, best[8];
    struct mat y = mat_random(5, D, 0, 1), E = mat_random(V, D, 0, 1), nll = mat_new(1, n, 0);
    float same[8];
    for (int64_t t = 0; t < 5; t++) *at(&y, t, 0) = 1; /* rows 11 and 29 of E win everywhere, and are equal */
    for (int64_t j = 0; j < D; j++) *at(&E, 11, j) = *at(&E, 29, j) = j ? 0 : 50;
    FOR_KERNELS(k) {
        struct backend *b = backend_for(*k, 1, D, V);
        struct loss_args a = {.rows = &ch.rows, .y = y, .E = {.rows = V, .cols = D, .data = E.data}, .n = n, .row = row, .label = label, .nll = nll.data, .best = best};
        op_loss(b, &a);
        for (int i = 0; i < n; i++) CHECK(best[i] == 11, "%s: the best of row %d is %d", (*k)->name, row[i], best[i]);
        memcpy(same, nll.data, sizeof same);
        for (int64_t j = 0; j < D; j++) *at(&E, 11, j) = *at(&E, 29, j) = 0; /* now any other */
        op_loss(b, &a);
        for (int i = 0; i < n; i++) {
            int32_t want = 0;
            double top = -1e300;
            for (int32_t v = 0; v < V; v++) {
                double x = 0;
                for (int64_t j = 0; j < D; j++) x += (double)*at(&y, row[i], j) * (double)*at(&E, v, j);
                if (x > top) top = x, want = v;
            }
            CHECK(best[i] == want, "%s: the best of row %d is %d, not %d", (*k)->name, row[i], best[i], want);
        }
        a.best = NULL;
        struct mat again = mat_new(1, n, 0);
        a.nll = again.data;
        op_loss(b, &a);
        CHECK(!memcmp(again.data, nll.data, sizeof same), "%s: asking for the best changes the loss", (*k)->name);
        for (int64_t j = 0; j < D; j++) *at(&E, 11, j) = *at(&E, 29, j) = j ? 0 : 50;
        mat_free(&again), backend_close(b);
    }
    *at(&y, 4, 1) = NAN;
    struct backend *b = backend_for(cpu_kernels_best(), 1, D, V);
    op_loss(b, &(struct loss_args){.rows = &ch.rows, .y = y, .E = {.rows = V, .cols = D, .data = E.data}, .n = n, .row = row, .label = label, .nll = nll.data, .best = best});
    CHECK(best[6] == 11 && best[7] == -1, "a row of NaN has no best: %d", best[7]);
    backend_close(b), chunk_free(&ch), mat_free(&y), mat_free(&E), mat_free(&nll);
}
TEST(a_nan_is_seen) { /* robustness: a loss that is not a number must not come out as one */
    struct chunk_of ch = chunk_new((int[]){1, 0}, 0);
    struct mat y = mat_random(1, 4, 0, 1), E = mat_random(40, 4, 0, 1);
    *at(&E, 37, 2) = NAN;
    FOR_KERNELS(k) {
        struct backend *b = backend_for(*k, 1, 3, 40);
        float nll = 0;
        op_loss(b, &(struct loss_args){.rows = &ch.rows, .y = y, .E = {.rows = 40, .cols = 4, .data = E.data}, .n = 1, .row = (int32_t[]){0},
                                       .label = (int32_t[]){1}, .nll = &nll});
        CHECK(isnan(nll), "%s: %g", (*k)->name, (double)nll);
        backend_close(b);
    }
    chunk_free(&ch), mat_free(&y), mat_free(&E);
}
TEST_MAIN
