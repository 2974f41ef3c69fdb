/* AdamW with both kinds of state, and the sum of squares. */
#include "tests/ops/ops.h"

TEST(adam_follows_its_formula) { /* Loshchilov & Hutter 2019, in double, over several steps and odd sizes */
    static const int64_t sizes[] = {1, 7, 64, 515, 40001};
    FOR_KERNELS(k) {
        struct backend *b = backend_for(*k, 2, 1, 64);
        for (int s = 0; s < 5; s++) {
            int64_t n = sizes[s];
            struct mat p = mat_random(1, n, 0, 1), g = mat_new(1, n, 0), m = mat_new(1, n, 0), v = mat_new(1, n, 0);
            double *P = doubles_of(p), *M = calloc((size_t)n, 8), *V = calloc((size_t)n, 8), *size = calloc((size_t)n, 8);
            uint16_t *copy = calloc((size_t)n + 1, 2);
            memset(m.data, 0, (size_t)n * 4), memset(v.data, 0, (size_t)n * 4);
            copy[n] = 0x1234;
            for (int t = 1; t <= 3; t++) {
                floats_random(g.data, n, 2);
                struct adam_tensor x = {.p = p.data, .g = g.data, .m = m.data, .v = v.data, .copy = copy, .n = n, .lr = 1e-2, .weight_decay = 0.1};
                op_adam(b, &(struct adam_args){.tensors = &x, .count = 1, .t = t, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .grad_scale = 0.5});
                for (int64_t i = 0; i < n; i++) {
                    double G = 0.5 * (double)*at(&g, 0, i);
                    P[i] *= 1 - 1e-2 * 0.1;
                    size[i] = 0.9 * size[i] + 0.1 * fabs(G); /* of what is added up: terms of m may cancel */
                    M[i] = 0.9 * M[i] + 0.1 * G, V[i] = 0.95 * V[i] + 0.05 * G * G;
                    P[i] -= 1e-2 * (M[i] / (1 - pow(0.9, t))) / (sqrt(V[i] / (1 - pow(0.95, t))) + 1e-8);
                }
            }
            NEAR(p, P, 5e-7);
            for (int64_t i = 0; i < n; i++) /* three steps of two products and a sum, with constants that are rounded */
                CHECK(fabs((double)*at(&m, 0, i) - M[i]) <= 5e-7 * size[i], "m[%lld] = %.9g, not %.9g", (long long)i, (double)*at(&m, 0, i), M[i]);
            NEAR(v, V, 5e-7);
            for (int64_t i = 0; i < n; i++) CHECK(copy[i] == f32_to_bf16(*at(&p, 0, i)), "copy %lld", (long long)i);
            CHECK(copy[n] == 0x1234, "written behind the copy");
            free(P), free(M), free(V), free(size), free(copy);
            mat_free(&p), mat_free(&g), mat_free(&m), mat_free(&v);
        }
        backend_close(b);
    }
}

TEST(adam_takes_many_tensors_and_any_threads) {
    enum { COUNT = 9 };
    int64_t sizes[COUNT] = {3, 20000, 1, 4096, 16384, 16385, 700, 40000, 5000};
    float *out[2][COUNT];
    for (int run = 0; run < 2; run++) {
        struct backend *b = backend_for(cpu_kernels_best(), run ? 3 : 1, 1, 64);
        struct adam_tensor x[COUNT];
        struct mat g[COUNT], m[COUNT], v[COUNT];
        uint8_t *q[COUNT];
        seed_now = 3;
        for (int i = 0; i < COUNT; i++) {
            int64_t n = sizes[i], blocks = (n + 255) / 256;
            out[run][i] = malloc((size_t)n * 4), floats_random(out[run][i], n, 1);
            g[i] = mat_random(1, n, 0, 1), m[i] = mat_new(1, n, 0), v[i] = mat_new(1, n, 0), q[i] = calloc((size_t)n, 2);
            memset(m[i].data, 0, (size_t)n * 4), memset(v[i].data, 0, (size_t)n * 4);
            x[i] = (struct adam_tensor){.p = out[run][i], .g = g[i].data, .n = n, .lr = 1e-3, .weight_decay = i % 2 ? 0.1 : 0};
            if (i % 3) x[i].m = m[i].data, x[i].v = v[i].data;
            else x[i].m8 = q[i], x[i].v8 = q[i] + n, x[i].m_absmax = m[i].data, x[i].v_absmax = v[i].data, (void)blocks;
        }
        for (int t = 1; t <= 2; t++)
            op_adam(b, &(struct adam_args){.tensors = x, .count = COUNT, .t = t, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .grad_scale = 1});
        for (int i = 0; i < COUNT; i++) mat_free(&g[i]), mat_free(&m[i]), mat_free(&v[i]), free(q[i]);
        backend_close(b);
    }
    for (int i = 0; i < COUNT; i++) {
        CHECK(!memcmp(out[0][i], out[1][i], (size_t)sizes[i] * 4), "tensor %d", i);
        free(out[0][i]), free(out[1][i]);
    }
}

/* Values kept in bf16: each step is the one of fp32 from these values, rounded. */
TEST(adam_of_values_in_bf16) {
    enum { N = 40001 };
    for (int bits8 = 0; bits8 < 2; bits8++) {
        struct backend *b = backend_for(cpu_kernels_best(), 2, 1, 64);
        struct mat wide = mat_random(1, N, 0, 1), rounds = mat_new(1, N, 0), g = mat_new(1, N, 0), m[3], v[3], am[3], av[3];
        uint16_t *half = malloc(N * 2), *copy = malloc(N * 2);
        for (int k = 0; k < 3; k++) {
            struct mat *const all[] = {&m[k], &v[k], &am[k], &av[k]};
            for (int i = 0; i < 4; i++) *all[i] = mat_new(1, N, 0), memset(all[i]->data, 0, N * 4);
        }
        for (int64_t i = 0; i < N; i++) half[i] = f32_to_bf16(*at(&wide, 0, i)), *at(&wide, 0, i) = *at(&rounds, 0, i) = bf16_to_f32(half[i]);
        for (int t = 1; t <= 3; t++) {
            struct adam_tensor x[3] = {{.p = wide.data, .copy = copy}, {.copy = half}, {.p = rounds.data, .round = 1}};
            floats_random(g.data, N, 2);
            for (int k = 0; k < 3; k++) {
                x[k].g = g.data, x[k].n = N, x[k].lr = 1e-2, x[k].weight_decay = 0.1;
                if (bits8) x[k].m8 = m[k].data, x[k].v8 = v[k].data, x[k].m_absmax = am[k].data, x[k].v_absmax = av[k].data;
                else x[k].m = m[k].data, x[k].v = v[k].data;
            }
            op_adam(b, &(struct adam_args){.tensors = x, .count = 3, .t = t, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .grad_scale = 0.5});
            for (int64_t i = 0; i < N; i++) *at(&wide, 0, i) = bf16_to_f32(f32_to_bf16(*at(&wide, 0, i)));
            for (int64_t i = 0; i < N; i++) CHECK(half[i] == copy[i] && *at(&rounds, 0, i) == *at(&wide, 0, i), "%d bits, step %d, %lld: %04x, not %04x", bits8 ? 8 : 32, t, (long long)i, half[i], copy[i]);
        }
        for (int k = 0; k < 3; k++) mat_free(&m[k]), mat_free(&v[k]), mat_free(&am[k]), mat_free(&av[k]);
        mat_free(&wide), mat_free(&rounds), mat_free(&g), free(half), free(copy);
        backend_close(b);
    }
}

/* A gradient rounded to bf16 is a gradient. */
TEST(adam_takes_gradients_in_bf16) {
    enum { N = 20001 };
    FOR_KERNELS(k)
    for (int bits8 = 0; bits8 < 2; bits8++) {
        struct backend *b = backend_for(*k, 2, 1, 64);
        struct mat p[2] = {mat_random(1, N, 0, 1), mat_new(1, N, 0)}, g = mat_new(1, N, 0), m[2], v[2], am[2], av[2];
        uint16_t *half = malloc(N * 2);
        memcpy(p[1].data, p[0].data, N * 4);
        for (int i = 0; i < 2; i++) {
            struct mat *const all[] = {&m[i], &v[i], &am[i], &av[i]};
            for (int j = 0; j < 4; j++) *all[j] = mat_new(1, N, 0), memset(all[j]->data, 0, N * 4);
        }
        for (int t = 1; t <= 3; t++) {
            struct adam_tensor x[2] = {{.g = g.data}, {.g16 = half}};
            floats_random(g.data, N, 2);
            for (int64_t i = 0; i < N; i++) half[i] = f32_to_bf16(*at(&g, 0, i)), *at(&g, 0, i) = bf16_to_f32(half[i]);
            for (int i = 0; i < 2; i++) {
                x[i].p = p[i].data, x[i].n = N, x[i].lr = 1e-2, x[i].weight_decay = 0.1;
                if (bits8) x[i].m8 = m[i].data, x[i].v8 = v[i].data, x[i].m_absmax = am[i].data, x[i].v_absmax = av[i].data;
                else x[i].m = m[i].data, x[i].v = v[i].data;
            }
            op_adam(b, &(struct adam_args){.tensors = x, .count = 2, .t = t, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .grad_scale = 0.5});
        }
        CHECK(!memcmp(p[0].data, p[1].data, N * 4) && !memcmp(v[0].data, v[1].data, N * 4), "%d bits", bits8 ? 8 : 32);
        for (int i = 0; i < 2; i++) mat_free(&p[i]), mat_free(&m[i]), mat_free(&v[i]), mat_free(&am[i]), mat_free(&av[i]);
        mat_free(&g), free(half);
        backend_close(b);
    }
}

TEST(squares_are_summed_in_a_fixed_order) {
    enum { COUNT = 6 };
    int64_t n[COUNT] = {1, 0, 16384, 16385, 50001, 3};
    const float *x[COUNT];
    float *data = malloc(100000 * 4);
    int64_t used = 0;
    floats_random(data, 100000, 1);
    for (int i = 0; i < COUNT; i++) x[i] = data + used, used += n[i];
    FOR_KERNELS(k) {
        double one[COUNT], three[COUNT], rounding[COUNT];
        uint16_t *half = calloc(100000, 2), *halves[COUNT];
        for (int i = 0; i < COUNT; i++) halves[i] = half + (x[i] - data);
        struct backend *b = backend_for(*k, 1, 1, 64), *b3 = backend_for(*k, 3, 1, 64);
        op_sqsum(b, &(struct sqsum_args){.x = x, .n = n, .count = COUNT, .out = one});
        op_sqsum(b3, &(struct sqsum_args){.x = x, .n = n, .count = COUNT, .out = three});
        op_sqsum(b3, &(struct sqsum_args){.x = x, .half = halves, .n = n, .count = COUNT, .out = rounding});
        for (int64_t i = 0; i < 100000; i++) CHECK(half[i] == (i < used ? f32_to_bf16(data[i]) : 0), "rounded copy %lld: %04x", (long long)i, half[i]);
        for (int i = 0; i < COUNT; i++) {
            double s = 0;
            for (int64_t j = 0; j < n[i]; j++) s += (double)x[i][j] * (double)x[i][j];
            CHECK(fabs(one[i] - s) <= 1e-12 * s && one[i] == three[i] && one[i] == rounding[i], "tensor %d: %g, %g, expected %g", i, one[i], three[i], s);
        }
        free(half);
        backend_close(b), backend_close(b3);
    }
    n[0] = 0, n[5] = 0; /* the last tensors may be empty */
    struct backend *b = backend_for(cpu_kernels_best(), 1, 1, 64);
    double out[COUNT];
    op_sqsum(b, &(struct sqsum_args){.x = x, .n = n, .count = COUNT, .out = out});
    CHECK(out[0] == 0 && out[5] == 0 && out[4] > 0, "%g %g %g", out[0], out[5], out[4]);
    backend_close(b);
    free(data);
}

TEST(squares_of_many_small_tensors) { /* more of them than are summed at once */
    enum { COUNT = 2500 };
    static const float *x[COUNT];
    static int64_t n[COUNT];
    static double out[COUNT];
    static const float data[3] = {1, 2, 3};
    for (int i = 0; i < COUNT; i++) x[i] = data, n[i] = 1 + i % 3;
    struct backend *b = backend_for(cpu_kernels_best(), 2, 1, 64);
    op_sqsum(b, &(struct sqsum_args){.x = x, .n = n, .count = COUNT, .out = out});
    for (int i = 0; i < COUNT; i++) {
        const double sum = i % 3 == 0 ? 1 : i % 3 == 1 ? 5 : 14;
        CHECK(fabs(out[i] - sum) < 1e-9, "tensor %d: %g", i, out[i]);
    }
    backend_close(b);
}

TEST_MAIN
