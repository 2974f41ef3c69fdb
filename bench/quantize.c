/* bench/quantize.c - rates of the number formats on this machine, as one JSON line on standard output.
 *
 *     build/bench/quantize            16 Mi weights, larger than the caches; best of 5
 *
 * MB/s are megabytes of bf16 read (scales included in the work); Gw/s are 10^9 weights written. The
 * double-quantised encoding is q4_encode followed by q4_double; every decode reads double-quantised NF4.
 * adam8 counts parameters.
 */
#include "base/half.h"
#include "base/rng.h"
#include "base/sys.h"
#include "nf4/nf4.h"
#include <stdio.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_max_threads()  1
#define omp_get_thread_num()   0
#define omp_set_num_threads(n) (void)(n)
#endif

enum { N = 1 << 24, BLOCK = 64, COLS = 4096, SLICE = 1 << 16, REPEATS = 5 };

static uint16_t *w;                         /* [N] bf16 */
static uint8_t *codes, *absmax_q, *m8, *v8; /* packed weights, their scales; Adam codes [N/8] */
static float *absmax, *nested, offset, *out, *am, *av;
static struct q4_view view;

static void encode_nf4(void) {
    q4_encode(Q4_NF4, BLOCK, w, DT_BF16, N, codes, absmax);
}
static void encode_fp4(void) {
    q4_encode(Q4_FP4, BLOCK, w, DT_BF16, N, codes, absmax);
}
static void encode_double(void) {
    encode_nf4();
    q4_double(absmax, N / BLOCK, absmax_q, nested, &offset);
}
/* Decoding goes into a slice that stays in its thread's cache, as matrix products want it. */
static float *slice(void) {
    return out + omp_get_thread_num() % (N / SLICE) * SLICE;
}
static void decode(enum dtype to) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < N; i += SLICE) q4_decode(&view, i, SLICE, slice(), to);
}
static void decode_f32(void) {
    decode(DT_F32);
}
static void decode_bf16(void) {
    decode(DT_BF16);
}
static void encode_int8(void) {
    int8_encode(w, DT_BF16, N / COLS, COLS, (int8_t *)codes, absmax);
}
static void decode_int8(void) {
    enum { ROWS = SLICE / COLS };
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < N / COLS; r += ROWS)
        int8_decode((const int8_t *)codes, absmax, COLS, r, ROWS, slice(), DT_BF16);
}
static void adam8(void) {
    struct bw8_adam s = bw8_adam_step(3, 1e-4f, 0.9f, 0.999f, 1e-8f, 0.01f, 1.0f);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < N / 8; i += SLICE)
        bw8_adamw(&s, SLICE, out + i, out + N / 8 + i, m8 + i, am + i / BW8_BLOCK, v8 + i, av + i / BW8_BLOCK);
}

/* 10^9 weights a second, the best of several runs. */
static double rate(void (*work)(void), int64_t n) {
    double best = 1e9;
    for (int k = 0; k < REPEATS; k++) {
        double t = sys_seconds();
        work();
        t = sys_seconds() - t;
        if (t < best) best = t;
    }
    return (double)n / best * 1e-9;
}

static void print_rates(const char *name, int threads) {
    omp_set_num_threads(threads);
    printf(", \"%s\": {\"threads\": %d", name, threads);
    printf(", \"nf4_encode_MBps\": %.0f", 2e3 * rate(encode_nf4, N));
    printf(", \"nf4_double_encode_MBps\": %.0f", 2e3 * rate(encode_double, N));
    printf(", \"nf4_decode_f32_Gwps\": %.2f", rate(decode_f32, N));
    printf(", \"nf4_decode_bf16_Gwps\": %.2f", rate(decode_bf16, N));
    printf(", \"fp4_encode_MBps\": %.0f", 2e3 * rate(encode_fp4, N));
    printf(", \"int8_encode_MBps\": %.0f", 2e3 * rate(encode_int8, N));
    printf(", \"int8_decode_bf16_Gwps\": %.2f", rate(decode_int8, N));
    memset(out, 0, N * sizeof *out);
    for (int64_t i = 0; i < N / 8; i++) out[N / 8 + i] = bf16_to_f32(w[i]);
    printf(", \"adam8_Gwps\": %.3f}", rate(adam8, N / 8));
}

/* The machine as /proc/cpuinfo names it. */
static void cpu_name(char name[128]) {
    char line[256];
    strcpy(name, "unknown");
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "model name : %127[^\n\"\\]", name) == 1) break;
    if (f) fclose(f);
}

int main(void) {
    struct err e = {0};
    w = sys_alloc(N * sizeof *w, "weights", &e), codes = sys_alloc(N, "codes", &e);
    absmax = sys_alloc(N / BLOCK * sizeof *absmax, "scales", &e),
    absmax_q = sys_alloc(N / BLOCK, "scales", &e);
    nested = sys_alloc(N / BLOCK / 256 * sizeof *nested, "nested scales", &e),
    out = sys_alloc(N * sizeof *out, "output", &e);
    m8 = sys_alloc(N / 8, "state", &e), v8 = sys_alloc(N / 8, "state", &e);
    am = sys_alloc(N / 8 / 256 * sizeof *am, "state", &e),
    av = sys_alloc(N / 8 / 256 * sizeof *av, "state", &e);
    if (e.code) return err_print(&e);
    struct pcg64 g;
    pcg_seed(&g, 1);
    for (int64_t i = 0; i < N; i++) { /* nearly normal, sd 0.02 */
        double x = pcg_double(&g) + pcg_double(&g) + pcg_double(&g) + pcg_double(&g) - 2;
        w[i] = f32_to_bf16((float)(x * 0.035));
    }
    nf4_init();
    view = (struct q4_view){.codes = codes,
                            .absmax_q = absmax_q,
                            .nested_absmax = nested,
                            .nested_map = bw8_signed,
                            .levels = nf4_levels,
                            .block = BLOCK};
    encode_double();
    view.nested_offset = offset;
    char cpu[128];
    cpu_name(cpu);
    int all = omp_get_max_threads();
    printf("{\"bench\": \"quantize\", \"cpu\": \"%s\", \"weights\": %d, \"block\": %d", cpu, N, BLOCK);
    print_rates("one_core", 1);
    print_rates("all_cores", all);
    printf("}\n");
    return 0;
}
