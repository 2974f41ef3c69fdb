/* bench/cpu_ops.c - speed of the CPU backend's ops at the shapes of a small model in training.
 *
 *     cpu_ops [THREADS [TOKENS]]      default: all threads, 256 tokens
 *
 * One JSON line an op: shape, best time of several runs (one thread: CPU time, so that a busy machine may be measured too),
 * GFLOP/s and GB/s by the wrappers' counts, and the share of what the threads' multiply-add units give, measured first with
 * sums that never leave the registers. Built with a CBLAS, the plain products are timed through it too ("openblas_gflops"; it
 * is used nowhere else). */
#include "backend/backend.h"
#include "backend/cpu/cpu_internal.h"
#include "base/half.h"
#include "base/sys.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef QLORA_CBLAS
#include <cblas.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { D = 512, F = 2048, H = 8, K = 64, V = 8192, R = 8 };
static const double SECONDS_EACH = 0.25;

static int threads;

static double now(void) {
    struct timespec t;
    clock_gettime(threads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- the ceiling ---- */

#if defined(__x86_64__)
#define CHAIN(name, isa, type, set, fma, lanes)                                                                        \
    __attribute__((target(isa))) static double name(int64_t n) { /* FLOPs */                                           \
        type s[10], x = set(0.999f), y = set(0.001f);                                                                  \
        for (int i = 0; i < 10; i++) s[i] = set((float)i);                                                             \
        for (int64_t k = 0; k < n; k++)                                                                                \
            _Pragma("GCC unroll 10") for (int i = 0; i < 10; i++) s[i] = fma(s[i], x, y);                              \
        for (int i = 0; i < 10; i++) __asm__ volatile("" ::"x"(s[i]));                                                 \
        return (double)n * 10 * (lanes) * 2;                                                                           \
    }
CHAIN(chain_avx2, "avx2,fma", __m256, _mm256_set1_ps, _mm256_fmadd_ps, 8)
CHAIN(chain_avx512, "avx512f", __m512, _mm512_set1_ps, _mm512_fmadd_ps, 16)
#endif

static double ceiling_gflops(const char *isa) {
    double best = 0;
    for (int round = 0; round < 5; round++) {
        double flops = 0, start = now();
#pragma omp parallel num_threads(threads) reduction(+ : flops)
        {
#if defined(__x86_64__)
            if (!strcmp(isa, "avx512")) flops += chain_avx512(4000000);
            else if (!strcmp(isa, "avx2")) flops += chain_avx2(4000000);
#endif
        }
        double rate = flops / (now() - start) * 1e-9;
        if (rate > best) best = rate;
    }
    (void)isa;
    return best;
}

/* ---- one op ---- */

static struct backend *b;
static double ceiling;

static float *filled(int64_t n) {
    float *p = b->alloc(b->self, AT_DEVICE, (size_t)n * 4);
    if (!p) fprintf(stderr, "out of memory\n"), exit(1);
    for (int64_t i = 0; i < n; i++) p[i] = (float)(i * 2654435761u % 1000) * 1e-3f - 0.5f;
    return p;
}
static struct mat matrix(int64_t rows, int64_t cols) { return (struct mat){filled(rows * cols), rows, cols, cols, DT_F32}; }

/* Best time of run(arg); returns the GFLOP/s and prints the line up to `extra`. */
static void report(const char *name, const char *shape, void (*run)(void *), void *arg, const char *extra) {
    double best = 1e9, start = now(), flops = 0, bytes = 0;
    for (int i = 0; i < 3 || now() - start < SECONDS_EACH; i++) {
        op_counts_reset();
        double t = now();
        run(arg);
        t = now() - t;
        if (t < best) best = t;
        int n;
        const struct op_count *count = op_counts(&n);
        flops = bytes = 0;
        for (int j = 0; j < n; j++) flops += count[j].flops, bytes += count[j].bytes;
    }
    printf("{\"op\":\"%s\",\"shape\":\"%s\",\"ms\":%.3f,\"gflops\":%.1f,\"gbs\":%.1f,\"share\":%.3f%s}\n", name, shape, best * 1e3,
           flops / best * 1e-9, bytes / best * 1e-9, ceiling > 0 ? flops / best * 1e-9 / ceiling : 0, extra);
    fflush(stdout);
}

#define RUN(name, op)                                                                                            \
    static void name(void *arg) { op(b, arg); }
RUN(run_embed, op_embed)
RUN(run_norm, op_norm)
RUN(run_norm_bwd, op_norm_bwd)
RUN(run_linear, op_linear)
RUN(run_linear_bwd, op_linear_bwd)
RUN(run_filter, op_filter)
RUN(run_filter_bwd, op_filter_bwd)
RUN(run_rope, op_rope)
RUN(run_attend, op_attend)
RUN(run_attend_bwd, op_attend_bwd)
RUN(run_gate, op_gate)
RUN(run_gate_bwd, op_gate_bwd)
RUN(run_loss, op_loss)
RUN(run_adam, op_adam)
RUN(run_sqsum, op_sqsum)

/* The same product by OpenBLAS, as a member of the line. */
static const char *blas(int form, int64_t M, int64_t N, int64_t k) {
    static char text[64];
    text[0] = 0;
#ifdef QLORA_CBLAS
    openblas_set_num_threads(threads);
    float *x = filled(M * k), *y = filled(N * k), *c = filled(M * N);
    double best = 1e9, start = now();
    for (int i = 0; i < 3 || now() - start < SECONDS_EACH; i++) {
        double t = now();
        cblas_sgemm(CblasRowMajor, form == 2 ? CblasTrans : CblasNoTrans, form == 0 ? CblasTrans : CblasNoTrans, (int)M, (int)N,
                    (int)k, 1, x, (int)(form == 2 ? M : k), y, (int)(form == 0 ? k : N), form == 2, c, (int)N);
        t = now() - t;
        if (t < best) best = t;
    }
    b->release(b->self, AT_DEVICE, x), b->release(b->self, AT_DEVICE, y), b->release(b->self, AT_DEVICE, c);
    snprintf(text, sizeof text, ",\"openblas_gflops\":%.1f", 2 * (double)M * (double)N * (double)k / best * 1e-9);
#else
    (void)form, (void)M, (void)N, (void)k;
#endif
    return text;
}

static struct weight weight_of(enum weight_format format, int64_t rows, int64_t cols) {
    struct weight w = {.format = format, .rows = rows, .cols = cols};
    float *x = filled(rows * cols);
    int64_t n = rows * cols, blocks = q4_blocks(n, 64);
    w.data = x;
    if (format == W_BF16) {
        uint16_t *half = (uint16_t *)(void *)x;
        for (int64_t i = 0; i < n; i++) half[i] = f32_to_bf16(x[i]);
    } else if (format == W_INT8) {
        float *scale = filled(rows);
        int8_t *codes = (int8_t *)filled(n / 4 + 1);
        int8_encode(x, DT_F32, rows, cols, codes, scale);
        w.data = codes, w.scale = scale;
    } else if (format == W_Q4) {
        uint8_t *codes = (uint8_t *)filled(n / 8 + 1), *q = (uint8_t *)filled(blocks / 4 + 1);
        float *scale = filled(blocks), *nested = filled(q4_nested(blocks));
        w.q4 = (struct q4_view){.codes = codes, .absmax_q = q, .nested_absmax = nested, .nested_map = bw8_signed,
                                .levels = nf4_levels, .block = 64};
        q4_encode(Q4_NF4, 64, x, DT_F32, n, codes, scale);
        q4_double(scale, blocks, q, nested, &w.q4.nested_offset);
    }
    return w;
}

int main(int argc, char **argv) {
    threads = argc > 1 ? atoi(argv[1]) : sys_threads();
    int32_t N = argc > 2 ? atoi(argv[2]) : 256;
    struct err e = {0};
    if (threads < 1 || N < 1) return fprintf(stderr, "usage: cpu_ops [THREADS [TOKENS]]\n"), 2;
    b = backend_cpu_with(cpu_kernels_best(), threads, &e);
    struct backend_limits limits = {.rows = N, .sequence = N, .D = D, .F = F, .H = H, .K = K, .V = V, .R = R, .trains_weights = 1};
    if (!b || b->reserve(b->self, &limits, &e)) return err_print(&e);
    nf4_init();
    const char *isa = cpu_kernels_best()->name;
    ceiling = ceiling_gflops(isa);
    printf("{\"threads\":%d,\"kernels\":\"%s\",\"ceiling_gflops\":%.1f,\"tokens\":%d}\n", threads, isa, ceiling, N);

    int32_t start[] = {0, N}, *index = (int32_t *)filled(4 * N), *ids = index + 3 * N;
    for (int32_t t = 0; t < N; t++) index[t] = index[2 * N + t] = t, index[N + t] = 0, ids[t] = t * 31 % V;
    struct rows rows = {.N = N, .n_seqs = 1, .seq_start = start, .position = index, .first = index + N, .offset = index + 2 * N};
    struct rows one = rows;
    int32_t one_start[] = {0, 1};
    one.N = 1, one.seq_start = one_start;
    struct mat x = matrix(N, D), y = matrix(N, 2 * D), u = matrix(N, F), g = matrix(N, F), m = matrix(N, F), E = matrix(V, D);
    struct mat xa = matrix(N, R), none = {0};
    char shape[100];

    static const struct { int64_t in, out; enum weight_format format; int lora, grad; } lines[] = {
        {D, D, W_F32, 0, 0}, {D, F, W_F32, 0, 0}, {F, D, W_F32, 0, 0}, {D, D, W_F32, 1, 0}, {D, F, W_F32, 1, 0}, {F, D, W_F32, 1, 0},
        {D, F, W_BF16, 0, 0}, {D, F, W_INT8, 0, 0}, {D, F, W_Q4, 0, 0}, {D, D, W_F32, 0, 1}, {D, F, W_F32, 0, 1}};
    static const char *const formats[] = {"f32", "bf16", "int8", "nf4"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        int64_t in = lines[i].in, out = lines[i].out;
        struct weight w = weight_of(lines[i].format, out, in);
        struct mat from = in == D ? x : u, to = {m.data, N, out, out, DT_F32}, dx = {g.data, N, in, in, DT_F32};
        struct linear_args a = {.rows = &rows, .x = from, .n = 1, .dx = lines[i].grad ? none : dx, .out = {{.w = w, .y = to, .dy = to}}};
        if (lines[i].lora) {
            a.out[0].lora = (struct adapter){.A = matrix(R, in), .B = matrix(out, R), .dA = matrix(R, in),
                                             .dB = matrix(out, R), .scale = 2};
            a.out[0].xa = xa;
        }
        if (lines[i].grad) a.out[0].dW = matrix(out, in);
        int plain = w.format == W_F32 && !lines[i].lora;
        snprintf(shape, sizeof shape, "%d x %d x %d %s%s%s", N, (int)in, (int)out, formats[w.format],
                 lines[i].lora ? " lora" : "", lines[i].grad ? " dW" : "");
        if (!lines[i].grad) report("linear", shape, run_linear, &a, plain ? blas(0, N, out, in) : "");
        report("linear_bwd", shape, run_linear_bwd, &a, !plain ? "" : lines[i].grad ? blas(2, out, in, N) : blas(1, N, in, out));
        if (lines[i].lora || lines[i].grad) continue;
        a.rows = &one, a.x.rows = a.out[0].y.rows = 1;
        snprintf(shape, sizeof shape, "1 x %d x %d %s", (int)in, (int)out, formats[w.format]);
        report("linear", shape, run_linear, &a, "");
    }

    snprintf(shape, sizeof shape, "%d x %d", N, D);
    struct mat left = {y.data, N, D, 2 * D, DT_F32}, right = {(float *)y.data + D, N, D, 2 * D, DT_F32};
    report("embed", shape, run_embed, &(struct embed_args){.rows = &rows, .ids = ids, .E = E, .y = left}, "");
    struct norm_args norm = {
        .rows = &rows, .x = x, .y = left, .g = E.data, .g_type = DT_F32, .r = xa.data, .eps = 1e-6f, .dy = right, .dx = left};
    report("norm", shape, run_norm, &norm, "");
    report("norm_bwd", shape, run_norm_bwd, &norm, "");
    struct mat half = {y.data, N, D / 2, D / 2, DT_F32};
    struct filter_args filter = {.rows = &rows,
                                 .x = x,
                                 .y = half,
                                 .w0 = weight_of(W_F32, D / 2, D),
                                 .w1 = weight_of(W_F32, D / 2, D),
                                 .b = E.data,
                                 .b_type = DT_F32,
                                 .dy = half,
                                 .dx = {g.data, N, D, D, DT_F32}};
    snprintf(shape, sizeof shape, "%d x %d x %d", N, D, D / 2);
    report("filter", shape, run_filter, &filter, "");
    report("filter_bwd", shape, run_filter_bwd, &filter, "");
    snprintf(shape, sizeof shape, "%d x %d heads of %d", N, H, K);
    report("rope", shape, run_rope, &(struct rope_args){.rows = &rows, .x = y, .K = K, .sign = 1}, "");
    struct mat qk = matrix(N, 2 * D), dqk = matrix(N, 2 * D), k2 = {(float *)qk.data + K, N, 2 * D - K, 2 * D, DT_F32};
    struct mat dk2 = {(float *)dqk.data + K, N, 2 * D - K, 2 * D, DT_F32};
    struct attend_args attend = {.rows = &rows,
                                 .H = H,
                                 .K = K,
                                 .q = qk,
                                 .k = k2,
                                 .v = x,
                                 .o = left,
                                 .q_step = 2 * K,
                                 .k_step = 2 * K,
                                 .v_step = K,
                                 .lse = filled(N * H),
                                 .d_o = right,
                                 .dq = dqk,
                                 .dk = dk2,
                                 .dv = {g.data, N, D, D, DT_F32},
                                 .delta = filled(N * H)};
    report("attend", shape, run_attend, &attend, "");
    report("attend_bwd", shape, run_attend_bwd, &attend, "");
    snprintf(shape, sizeof shape, "%d x %d", N, F);
    struct gate_args gate = {.g = g, .u = u, .y = m, .dy = matrix(N, F), .dg = matrix(N, F), .du = matrix(N, F)};
    report("gate", shape, run_gate, &gate, "");
    report("gate_bwd", shape, run_gate_bwd, &gate, "");
    float *weight = filled(2 * N);
    struct loss_args loss = {.rows = &rows,
                             .y = x,
                             .E = {.rows = V, .cols = D, .data = E.data},
                             .n = N,
                             .row = index,
                             .label = ids,
                             .weight = weight,
                             .nll = weight + N};
    snprintf(shape, sizeof shape, "%d x %d x %d", N, D, V);
    report("loss", shape, run_loss, &loss, "");
    loss.dy = left;
    report("loss", strcat(shape, " dy"), run_loss, &loss, "");
    loss.dE = matrix(V, D);
    report("loss", strcat(shape, " dE"), run_loss, &loss, "");
    enum { P = 1 << 20 };
    struct adam_tensor t = {.p = filled(P), .g = filled(P), .m = filled(P), .v = filled(P), .n = P, .lr = 1e-3};
    memset(t.v, 0, P * 4);
    struct adam_args adam = {.tensors = &t, .count = 1, .t = 1, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .grad_scale = 1};
    report("adam", "1M", run_adam, &adam, "");
    struct adam_tensor t8 = t;
    t8.m = t8.v = NULL, t8.m8 = (uint8_t *)filled(P / 4), t8.v8 = (uint8_t *)filled(P / 4), t8.m_absmax = filled(P / 256),
    t8.v_absmax = filled(P / 256);
    memset(t8.m_absmax, 0, P / 64), memset(t8.v_absmax, 0, P / 64);
    adam.tensors = &t8;
    report("adam", "1M 8-bit state", run_adam, &adam, "");
    double sum;
    report("sqsum", "1M", run_sqsum, &(struct sqsum_args){.x = (const float *[]){t.g}, .n = (int64_t[]){P}, .count = 1, .out = &sum}, "");
    backend_close(b);
    return 0;
}
