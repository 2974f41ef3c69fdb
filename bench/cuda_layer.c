/* bench/cuda_layer.c - one layer of Yuan 2.0 forward, recomputed and backward on the card, as a training step visits it: NF4
 * weights made operands, rank-64 adapters on all seven projections, whole sequences of 1024 tokens.
 *
 *     cuda_layer [2b|51b] [TOKENS] [CHUNK]          51b 16384 16384
 *
 * Weights are random codes and inputs random: speed does not depend on them. The gradient must come out finite, and the same on
 * two visits, before anything is timed. The ceiling is an 8192^3 bf16 product after two seconds of load in the same process.
 * FLOPs are those of the mathematics: every product with a weight three times, half of attention's square, adapters. */
#include "base/half.h"
#include "base/sys.h"
#include "model/engine.h"
#include "model/model.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { S = 1024, RANK = 64, ALL = (1 << PROJ_COUNT) - 1, VISITS = 8 };
static struct err e;
static struct backend *be;

static void *device(size_t bytes, int random) { /* random: small bf16 numbers */
    void *p = be->alloc(be->self, AT_DEVICE, bytes);
    if (!p) fprintf(stderr, "cuda_layer: no memory for %zu bytes\n", bytes), exit(1);
    uint16_t *host = malloc(1 << 20);
    uint32_t state = 1;
    for (int i = 0; i < 1 << 19; i++)
        state = state * 1664525u + 1013904223u, host[i] = f32_to_bf16(random ? (float)(int32_t)state * 0x1p-31f : 0);
    for (size_t at = 0; at < bytes; at += 1 << 20)
        be->put(be->self, (char *)p + at, host, bytes - at < 1 << 20 ? bytes - at : 1 << 20, Q_COMPUTE), be->sync(be->self, &e);
    free(host);
    return p;
}

/* Codes of any bytes, scales of 0.02, norms of 1. */
static void fill_page(const struct layout *l, char *page) {
    char *host = malloc(l->bytes);
    uint32_t state = 7;
    for (size_t i = 0; i < l->bytes; i += 4) state = state * 1664525u + 1013904223u, memcpy(host + i, &state, 4);
    for (int p = 0; p < PROJ_COUNT; p++) {
        float *nested = (float *)(host + l->t[p].offset + l->nested[p]), *tables = (float *)(host + l->t[p].offset + l->tables[p]);
        for (int64_t i = 0; i < q4_nested(q4_blocks(l->t[p].rows * l->t[p].cols, l->q_block)); i++) nested[i] = 1e-3f;
        memcpy(tables, nf4_levels, 64), memcpy(tables + 16, bw8_signed, 1024);
    }
    for (int t = LT_CONV1_0; t < LT_COUNT; t++)
        for (int64_t i = 0; i < l->t[t].rows * l->t[t].cols; i++) {
            if (t < LT_CONV1_B) ((uint16_t *)(void *)(host + l->t[t].offset))[i] = f32_to_bf16(0.01f * (float)((i * 37) % 11 - 5));
            else ((float *)(void *)(host + l->t[t].offset))[i] = t < LT_NORM1 ? 0.f : 1.f;
        }
    be->put(be->self, page, host, l->bytes, Q_COMPUTE), be->sync(be->self, &e);
    free(host);
}

static double ceiling(void) { /* FLOP/s */
    const int64_t n = 8192;
    struct backend_limits l = {.rows = n, .sequence = n, .D = n, .F = n, .H = 1, .K = 64, .V = 64, .R = 8};
    if (be->reserve(be->self, &l, &e)) exit(err_print(&e));
    void *x = device((size_t)(n * n) * 2, 1), *w = device((size_t)(n * n) * 2, 1), *y = device((size_t)(n * n) * 2, 0);
    int32_t starts[2] = {0, (int32_t)n};
    struct rows r = {.N = n, .n_seqs = 1, .seq_start = starts};
    struct linear_args a = {.rows = &r,
                            .x = {x, n, n, n, DT_BF16},
                            .n = 1,
                            .out = {{.w = {.format = W_BF16, .rows = n, .cols = n, .data = w}, .y = {y, n, n, n, DT_BF16}}}};
    double start = sys_seconds(), t, rate = 0;
    while (sys_seconds() - start < 2.5) {
        t = sys_seconds();
        for (int i = 0; i < 50; i++) op_linear(be, &a);
        be->sync(be->self, &e);
        rate = 50 * 2. * (double)(n * n * n) / (sys_seconds() - t);
    }
    be->release(be->self, AT_DEVICE, x), be->release(be->self, AT_DEVICE, w), be->release(be->self, AT_DEVICE, y);
    return rate;
}

int main(int argc, char **argv) {
    const char *plugin = getenv("QLORA_PLUGIN"), *size = argc > 1 ? argv[1] : "51b";
    int64_t tokens = argc > 2 ? atoll(argv[2]) : 16384, N = argc > 3 ? atoll(argv[3]) : tokens;
    int big = !strcmp(size, "51b");
    if ((!big && strcmp(size, "2b")) || tokens < N || N < S || N % S || tokens % N)
        return fprintf(stderr, "usage: cuda_layer [2b|51b] [TOKENS] [CHUNK]; multiples of %d\n", S), 2;
    if (!(be = backend_open(plugin ? plugin : "cuda", &e))) return fprintf(stderr, "cuda_layer: skipped: %s\n", e.text), 0;
    nf4_init();
    double peak = ceiling();
    struct model_config c = {.D = big ? 8192 : 2048, .L = 1, .H = big ? 64 : 32, .F = big ? 32768 : 8192, .V = 64, .eps = 1e-6f};
    c.K = c.D / c.H;
    struct model m = {.config = c, .be = be};
    be->info(be->self, &m.info);
    float offsets[1][MATRICES];
    for (int p = 0; p < MATRICES; p++) offsets[0][p] = 0.02f;
    m.q_offset = offsets;
    layout_layer(&c, W_Q4, W_BF16, 64, 1, &m.lay);
    char *page = device(m.lay.bytes, 0);
    fill_page(&m.lay, page);
    struct layer w;
    model_layer(&m, 0, page, &w);

    struct lora lora;
    struct lora_config lc = {.rank = RANK, .alpha = 16, .targets = ALL};
    if (lora_shapes(&lora, &lc, &c, &e)) return err_print(&e);
    float *value = device((size_t)lora.layer_floats * 4, 1), *grad = device((size_t)lora.layer_floats * 4, 0);
    struct engine g = {.c = {.lora = &lora}, .m = &m};
    struct adapter adapters[PROJ_COUNT];
    engine_adapters(&g, 0, value, grad, adapters);

    struct saved s;
    struct scratch t;
    struct capacity n = {N, N};
    saved_view(&c, DT_BF16, ALL, RANK, n, device(saved_bytes(&c, DT_BF16, ALL, RANK, n), 0), &s);
    scratch_view(&c, DT_BF16, ALL, RANK, n, 1, device(scratch_bytes(&c, DT_BF16, ALL, RANK, n, 1), 0), &t);
    struct joints j;
    void *joints = device(joints_bytes(&c, DT_BF16, ALL, RANK), 0);
    int64_t ld = gradient_columns(&c, ALL, RANK);
    struct mat x = {device((size_t)(N * c.D) * 2, 1), N, c.D, c.D, DT_BF16},
               y = {device((size_t)(N * c.D) * 2, 0), N, c.D, c.D, DT_BF16},
               dx = {device((size_t)(N * ld) * 2, 1), N, c.D, ld, DT_BF16};
    int32_t *host = malloc((size_t)N * 12), *starts = malloc((size_t)(N / S + 1) * 4), *dev = device((size_t)N * 12, 0);
    for (int32_t i = 0; i < N; i++) host[i] = host[2 * N + i] = i % S, host[N + i] = i - i % S;
    for (int32_t i = 0; i <= N / S; i++) starts[i] = i * S;
    be->put(be->self, dev, host, (size_t)N * 12, Q_COMPUTE);
    struct rows rows = {.N = N, .n_seqs = (int)(N / S), .seq_start = starts, .position = dev, .first = dev + N, .offset = dev + 2 * N};
    struct backend_limits l = {.rows = N, .sequence = S, .D = c.D, .F = c.F, .H = c.H, .K = c.K, .V = c.V, .R = RANK, .joined = 1};
    if (be->reserve(be->self, &l, &e) || be->sync(be->self, &e)) return err_print(&e);

    struct block b = {.be = be, .config = &c, .rows = &rows, .w = &w, .lora = adapters, .joints = &j, .s = &s, .t = &t};
    float *got[2] = {malloc((size_t)lora.layer_floats * 4), malloc((size_t)lora.layer_floats * 4)};
    uint16_t *above = malloc((size_t)(N * ld) * 2);
    for (int64_t i = 0; i < N * ld; i++) above[i] = f32_to_bf16(0.001f * (float)(i % 17 - 8));
    double best = 1e30;
    for (int visit = 0; visit < 2 + VISITS; visit++) {
        be->zero(be->self, grad, (size_t)lora.layer_floats * 4, Q_COMPUTE);
        be->put(be->self, dx.data, above, (size_t)(N * ld) * 2, Q_COMPUTE); /* a visit overwrites it */
        be->sync(be->self, &e);
        double start = sys_seconds();
        joints_make(be, DT_BF16, &w, adapters, joints, &j);
        for (int64_t at = 0; at < tokens; at += N) block_forward(&b, x, y);
        joints_make(be, DT_BF16, &w, adapters, joints, &j);
        for (int64_t at = 0; at < tokens; at += N) {
            block_backward(&b, x, dx, 0, 1);
        }
        if (be->sync(be->self, &e)) return err_print(&e);
        double ms = (sys_seconds() - start) * 1e3;
        if (visit >= 2 && ms < best) best = ms;
        if (visit < 2) be->get(be->self, got[visit], grad, (size_t)lora.layer_floats * 4, Q_COMPUTE), be->sync(be->self, &e);
    }
    double norm = 0;
    for (int64_t i = 0; i < lora.layer_floats; i++) norm += (double)got[1][i] * (double)got[1][i];
    int same = !memcmp(got[0], got[1], (size_t)lora.layer_floats * 4);
    if (!isfinite(norm) || norm == 0 || !same)
        return fprintf(stderr, "cuda_layer: gradients are wrong: norm^2 %g, same bits %d\n", norm, same), 1;
    double D = (double)c.D, F = (double)c.F, T = (double)tokens;
    double flops = T * (3 * 2 * (6 * D * D + 3 * D * F) - 2 * D * F /* down is not recomputed */ + 9 * D * (S + 1) +
                        8. * RANK * (8 * D + 3 * (D + F)));
    struct backend_info info;
    be->info(be->self, &info);
    fprintf(stderr, "%s layer, %lld tokens in chunks of %lld: %.2f ms, %.1f TFLOP/s, %.1f %% of the sustained product (%.1f)\n",
            size, (long long)tokens, (long long)N, best, flops / best * 1e-9, 100 * flops / best * 1e3 / peak, peak * 1e-12);
    printf("{\"what\": \"one %s layer: forward, recomputation, backward, NF4, rank %d\", \"device\": \"%s\", \"tokens\": %lld, "
           "\"chunk\": %lld, \"ms\": %.3f, \"tflops\": %.1f, \"product_tflops\": %.1f, \"share\": %.4f}\n",
           size, RANK, info.detail, (long long)tokens, (long long)N, best, flops / best * 1e-9, peak * 1e-12,
           flops / best * 1e3 / peak);
    free(host), free(starts), free(above), free(got[0]), free(got[1]);
    backend_close(be);
    return 0;
}
