/* What the card must give to the bit: the optimizer's steps, so that an update may run on either side, and unpacked weights. */
#define _GNU_SOURCE /* dladdr */
#include "tests/ops/pairs.h"
#include <dlfcn.h>

TEST(optimizer) {
    NEED_CARD();
    limits(8, 64, 64, 1, 64, 64, 4);
    for (int s = 0; s < 4; s++) {
        int64_t n = (int64_t[]){1, 4097, 70000, 300000}[s], nb = (n + 255) / 256;
        struct pair p = make(n, 1, DT_F32, 1), g = make(n, 1, DT_F32, 1), m = make(n, 1, DT_F32, 1), v = make(n, 1, DT_F32, 1), p8 = make(n, 1, DT_F32, 1), am = make(nb, 1, DT_F32, 1), av = make(nb, 1, DT_F32, 1);
        struct pair m8 = make(n, 1, DT_I32, 1), v8 = make(n, 1, DT_I32, 1); /* room for n codes each */
        clear(&m), clear(&v), clear(&am), clear(&av), clear(&m8), clear(&v8);
        double *sums = gpu->alloc(gpu->self, AT_HOST, 16), want[2];
        for (int t = 1; t <= 3; t++)
            for (int k = 0; k < 2; k++) {
                struct adam_tensor x[2] = {{.p = side(&p, k).data, .g = side(&g, k).data, .m = side(&m, k).data, .v = side(&v, k).data, .n = n, .lr = 1e-2, .weight_decay = 0.1},
                                           {.p = side(&p8, k).data, .g = side(&g, k).data, .m8 = side(&m8, k).data, .v8 = side(&v8, k).data, .m_absmax = side(&am, k).data, .v_absmax = side(&av, k).data, .n = n, .lr = 1e-2, .weight_decay = 0.1}};
                op_adam(k ? gpu : cpu, &(struct adam_args){.tensors = x, .count = 2, .t = t, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .grad_scale = 0.5});
            }
        char where[40];
        snprintf(where, sizeof where, "adam %lld", (long long)n);
        compare("p", where, &p, 0), compare("m", where, &m, 0), compare("v", where, &v, 0), compare("p of 8 bits", where, &p8, 0), compare("m_absmax", where, &am, 0), compare("v_absmax", where, &av, 0);
        const float *cx[] = {p.c.data, g.c.data}, *gx[] = {p.g.data, g.g.data};
        int64_t ns[] = {n, n};
        upload(&p);
        op_sqsum(cpu, &(struct sqsum_args){.x = cx, .n = ns, .count = 2, .out = want});
        op_sqsum(gpu, &(struct sqsum_args){.x = gx, .n = ns, .count = 2, .out = sums});
        gpu->sync(gpu->self, &e);
        for (int i = 0; i < 2; i++) CHECK(fabs(sums[i] - want[i]) <= 1e-12 * want[i], "sqsum %lld: %.17g, %.17g", (long long)n, sums[i], want[i]);
        gpu->release(gpu->self, AT_HOST, sums);
        struct pair *all[] = {&p, &g, &m, &v, &p8, &am, &av, &m8, &v8};
        for (int i = 0; i < 9; i++) drop(all[i]);
    }
}

/* The plugin's cuda_unpack_to: no op shows a stride alone. */
typedef void unpack_to(void *self, const struct weight *w, uint16_t *dst, int64_t ld);
static unpack_to *unpack_of_plugin(void) {
    void *address, *symbol = NULL;
    Dl_info where;
    unpack_to *f;
    memcpy(&address, &gpu->linear, sizeof address);
    if (dladdr(address, &where)) {
        void *plugin = dlopen(where.dli_fname, RTLD_NOW | RTLD_NOLOAD);
        if (plugin) symbol = dlsym(plugin, "cuda_unpack_to"), dlclose(plugin);
    }
    memcpy(&f, &symbol, sizeof f);
    return f;
}
static uint16_t unpacked(const struct weight *w, int64_t i) {
    switch (w->format) {
    case W_F32: return f32_to_bf16(((const float *)w->data)[i]);
    case W_BF16: return ((const uint16_t *)w->data)[i];
    case W_INT8: return f32_to_bf16((float)((const int8_t *)w->data)[i] * int8_unit(w->scale[i / w->cols]));
    case W_Q4: return f32_to_bf16(q4_value(&w->q4, i));
    }
    return 0;
}
TEST(unpacking_to_the_bit) { /* whole rows, rows apart, odd widths, odd addresses: right inside, untouched outside */
    NEED_CARD();
    unpack_to *unpack = unpack_of_plugin();
    REQUIRE(unpack, "the plugin does not show cuda_unpack_to");
    const struct { enum weight_format f; int nested; } formats[] = {{W_BF16, 0}, {W_Q4, 1}, {W_Q4, 0}, {W_INT8, 0}, {W_F32, 0}};
    const int64_t sizes[][2] = {{1, 1}, {7, 37}, {3, 8}, {129, 64}, {5, 96}, {33, 136}, {66, 2056}, {1, 5504}, {300, 40}}, apart[] = {0, 3, 8, 64};
    for (int f = 0; f < 5; f++)
        for (int s = 0; s < 9; s++)
            for (int k = 0; k < 8; k++) {
                int64_t rows = sizes[s][0], cols = sizes[s][1], ld = cols + apart[k / 2], shift = k % 2, n = rows * ld + 8, wrong = 0;
                struct both_weight w;
                weight_of(&w, formats[f].f, rows, cols, formats[f].nested);
                uint16_t *host = malloc((size_t)n * 2), *card = gpu->alloc(gpu->self, AT_DEVICE, (size_t)n * 2);
                for (int64_t i = 0; i < n; i++) host[i] = 0x1234;
                gpu->put(gpu->self, card, host, (size_t)n * 2, Q_COMPUTE);
                unpack(gpu->self, &w.g, card + shift, ld);
                gpu->get(gpu->self, host, card, (size_t)n * 2, Q_COMPUTE);
                gpu->sync(gpu->self, &e);
                for (int64_t i = 0; i < n; i++) {
                    int64_t row = (i - shift) / ld, col = (i - shift) % ld, inside = i >= shift && row < rows && col < cols;
                    wrong += host[i] != (inside ? unpacked(&w.c, row * cols + col) : 0x1234);
                }
                CHECK(!wrong, "format %d.%d (%lld,%lld) ld %lld shift %lld: %lld differ", formats[f].f, formats[f].nested, (long long)rows, (long long)cols, (long long)ld, (long long)shift, (long long)wrong);
                free(host), gpu->release(gpu->self, AT_DEVICE, card), weight_drop(&w);
            }
}

TEST(joint_operand_to_the_bit) { /* [W0 s0B0 0; W1 0 s1B1; A0 0 0; A1 0 0], any of the adapters absent; what pads the rows stays */
    NEED_CARD();
    limits(8, 64, 64, 1, 64, 64, 4);
    const struct { enum weight_format f; int nested; } formats[] = {{W_BF16, 0}, {W_Q4, 1}, {W_Q4, 0}, {W_INT8, 0}, {W_F32, 0}};
    const int64_t sizes[][4] = {{64, 64, 72, 8}, {33, 40, 48, 16}, {7, 5, 13, 3}, {129, 1, 2056, 8}}; /* out, out, in, rank */
    for (int f = 0; f < 5; f++)
        for (int s = 0; s < 4; s++)
            for (int k = 0; k < 6; k++) { /* one output or two; which have an adapter */
                int n = 1 + (k >= 2), with[2] = {k == 1 || k == 3 || k == 5, k >= 4};
                int64_t in = sizes[s][2], R = sizes[s][3], rows, cols, wrong = 0, row = 0, rank = 0;
                struct both_weight w[2];
                struct pair A[2], B[2];
                struct join_args j = {.n = n};
                for (int i = 0; i < 2; i++) {
                    weight_of(&w[i], formats[f].f, sizes[s][i], in, formats[f].nested);
                    A[i] = make(R, in, DT_F32, 0.5f), B[i] = make(sizes[s][i], R, DT_F32, 0.5f);
                    j.part[i].w = w[i].g;
                    if (with[i]) j.part[i].lora = (struct adapter){.A = A[i].g, .B = B[i].g, .scale = 0.3f};
                }
                join_shape(&j, &rows, &cols);
                int64_t ld = (cols + 15) / 8 * 8;
                uint16_t *want = malloc((size_t)(rows * ld) * 2), *have = malloc((size_t)(rows * ld) * 2), *card = gpu->alloc(gpu->self, AT_DEVICE, (size_t)(rows * ld) * 2);
                for (int64_t i = 0; i < rows * ld; i++) have[i] = 0x1234, want[i] = i % ld < cols ? 0 : 0x1234;
                for (int i = 0; i < n; i++) {
                    int64_t out = sizes[s][i];
                    for (int64_t r = 0; r < out; r++) {
                        for (int64_t c = 0; c < in; c++) want[(row + r) * ld + c] = unpacked(&w[i].c, r * in + c);
                        for (int64_t c = 0; with[i] && c < R; c++) want[(row + r) * ld + in + rank + c] = f32_to_bf16(0.3f * ((float *)B[i].c.data)[r * R + c]);
                    }
                    row += out, rank += with[i] ? R : 0;
                }
                for (int i = 0; i < n; i++)
                    for (int64_t r = 0; with[i] && r < R; r++, row++)
                        for (int64_t c = 0; c < in; c++) want[row * ld + c] = f32_to_bf16(((float *)A[i].c.data)[r * in + c]);
                gpu->put(gpu->self, card, have, (size_t)(rows * ld) * 2, Q_COMPUTE);
                j.to = (struct mat){card, rows, cols, ld, DT_BF16};
                op_join(gpu, &j);
                gpu->get(gpu->self, have, card, (size_t)(rows * ld) * 2, Q_COMPUTE);
                gpu->sync(gpu->self, &e);
                for (int64_t i = 0; i < rows * ld; i++) wrong += have[i] != want[i];
                CHECK(!wrong, "format %d.%d (%lld+%lld,%lld) rank %lld case %d: %lld differ", formats[f].f, formats[f].nested, (long long)sizes[s][0], (long long)sizes[s][1], (long long)in, (long long)R, k, (long long)wrong);
                for (int i = 0; i < 2; i++) drop(&A[i]), drop(&B[i]), weight_drop(&w[i]);
                free(want), free(have), gpu->release(gpu->self, AT_DEVICE, card);
            }
}

TEST(values_in_bf16) { /* without a master, or rounded at every step: the CPU's bits, since either may update a layer */
    NEED_CARD();
    limits(8, 64, 64, 1, 64, 64, 4);
    for (int k = 0; k < 5 * 2 * 2; k++) {
        const int64_t n = (int64_t[]){1, 5, 4096, 8193, 70001}[k / 4], nb = (n + 255) / 256;
        const int bits8 = k & 1, rounds = k / 2 & 1;
        struct pair p = make(n, 1, DT_F32, 1), half = make(n, 1, DT_BF16, 1), g = make(n, 1, DT_F32, 1), m = make(n, 1, DT_F32, 1), v = make(n, 1, DT_F32, 1), am = make(nb, 1, DT_F32, 1), av = make(nb, 1, DT_F32, 1);
        uint16_t *own = malloc((size_t)n * 2);
        char where[40];
        for (int64_t i = 0; i < n; i++) own[i] = f32_to_bf16(((float *)half.c.data)[i]);
        clear(&m), clear(&v), clear(&am), clear(&av);
        for (int t = 1; t <= 3; t++)
            for (int side_of = 0; side_of < 2; side_of++) {
                struct adam_tensor x = {.p = rounds ? side(&p, side_of).data : NULL, .round = rounds, .copy = rounds ? NULL : side_of ? half.g.data : own, .g = side(&g, side_of).data, .n = n, .lr = 1e-2, .weight_decay = 0.1};
                if (bits8) x.m8 = side(&m, side_of).data, x.v8 = side(&v, side_of).data, x.m_absmax = side(&am, side_of).data, x.v_absmax = side(&av, side_of).data;
                else x.m = side(&m, side_of).data, x.v = side(&v, side_of).data;
                op_adam(side_of ? gpu : cpu, &(struct adam_args){.tensors = &x, .count = 1, .t = t, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .grad_scale = 0.5});
            }
        for (int64_t i = 0; i < n; i++) ((float *)half.c.data)[i] = bf16_to_f32(own[i]);
        snprintf(where, sizeof where, "%lld%s%s", (long long)n, bits8 ? ", 8 bits" : "", rounds ? ", rounded" : "");
        if (rounds) compare("p", where, &p, 0);
        else compare("values", where, &half, 0);
        free(own);
        struct pair *all[] = {&p, &half, &g, &m, &v, &am, &av};
        for (int i = 0; i < 7; i++) drop(all[i]);
    }
}

/* Sums of squares that round on the way, and steps with what was rounded, at odd sizes and addresses: the CPU's bits. */
TEST(gradients_in_bf16) {
    NEED_CARD();
    limits(8, 64, 64, 1, 64, 64, 4);
    for (int k = 0; k < 6 * 2 * 2; k++) {
        const int64_t n = (int64_t[]){1, 5, 4096, 8193, 70001, 300000}[k / 4], nb = (n + 255) / 256, off = k / 2 & 1;
        const int bits8 = k & 1;
        struct pair p = make(n, 1, DT_F32, 1), g = make(n + 1, 1, DT_F32, 1), half = make(n + 1, 1, DT_BF16, 0), m = make(n, 1, DT_F32, 1), v = make(n, 1, DT_F32, 1), am = make(nb, 1, DT_F32, 1), av = make(nb, 1, DT_F32, 1);
        uint16_t *own = calloc((size_t)n + 1, 2);
        double *sum = gpu->alloc(gpu->self, AT_HOST, 8), want;
        clear(&m), clear(&v), clear(&am), clear(&av), clear(&half);
        for (int t = 1; t <= 2; t++)
            for (int s = 0; s < 2; s++) {
                uint16_t *to = (s ? (uint16_t *)half.g.data : own) + off;
                op_sqsum(s ? gpu : cpu, &(struct sqsum_args){.x = (const float *[]){(float *)side(&g, s).data + off}, .half = (uint16_t *[]){to}, .n = &n, .count = 1, .out = s ? sum : &want});
                struct adam_tensor x = {.p = side(&p, s).data, .g16 = to, .n = n, .lr = 1e-2, .weight_decay = 0.1};
                if (bits8) x.m8 = side(&m, s).data, x.v8 = side(&v, s).data, x.m_absmax = side(&am, s).data, x.v_absmax = side(&av, s).data;
                else x.m = side(&m, s).data, x.v = side(&v, s).data;
                op_adam(s ? gpu : cpu, &(struct adam_args){.tensors = &x, .count = 1, .t = t, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .grad_scale = 0.5});
            }
        gpu->sync(gpu->self, &e);
        char where[40];
        snprintf(where, sizeof where, "%lld%s%s", (long long)n, bits8 ? ", 8 bits" : "", off ? ", odd" : "");
        for (int64_t i = 0; i <= n; i++) ((float *)half.c.data)[i] = bf16_to_f32(own[i]);
        CHECK(fabs(*sum - want) <= 1e-12 * want, "%s: %.17g, %.17g", where, *sum, want);
        compare("rounded", where, &half, 0), compare("p", where, &p, 0);
        if (!bits8) compare("m", where, &m, 0), compare("v", where, &v, 0);
        free(own), gpu->release(gpu->self, AT_HOST, sum);
        struct pair *all[] = {&p, &g, &half, &m, &v, &am, &av};
        for (int i = 0; i < 7; i++) drop(all[i]);
    }
}

/* 8-bit moments of every kind of block: usual, of zeros, with elements that saw no gradient, tiny, huge, with codes that no encoding
 * writes, with one gradient that is a subnormal, of negative zeros; whole and cut off, at odd addresses, in all types: the CPU's bits. */
enum { BLOCK_KINDS = 11 };
static void fill_block(int kind, float *p, float *g, uint8_t *m, uint8_t *v, float *m_top, float *v_top, int64_t n) {
    static const float scale[BLOCK_KINDS] = {1e-4f, 1e-4f, 1e-4f, 1e-30f, 1e12f, 1e-3f, 1e-7f, 1e-19f, 1e-9f, 1e-13f, 1e-5f};
    const float s = scale[kind];
    *m_top = s * (1.5f + uniform()), *v_top = s * s * (1.5f + uniform());
    if (kind == 1) *m_top = *v_top = 0;
    for (int64_t i = 0; i < n; i++) {
        const float z = uniform();
        p[i] = rounded(uniform()), g[i] = rounded(z * z * z * s), m[i] = (uint8_t)(128 + 127 * uniform()), v[i] = (uint8_t)(128 + 127 * uniform());
        if (kind == 1) g[i] = 0, m[i] = BW8_ZERO, v[i] = 0;
        if (kind == 2 && i % 3) g[i] = i % 2 ? 0 : -0.0f, m[i] = (uint8_t)(BW8_ZERO - 1 + i % 4), v[i] = (uint8_t)(i % 2);
        if (kind == 5 && i % 7 == 0) m[i] = (uint8_t)(i % 2 ? 0 : 255), v[i] = 255, g[i] = 0;
        if (kind == 6 && i == 17) g[i] = 0x1p-133f; /* of bf16, too */
        if (kind == 10) *m_top = 0, g[i] = p[i] = -0.0f;
    }
}
TEST(moments_of_every_kind) {
    NEED_CARD();
    limits(8, 64, 64, 1, 64, 64, 4);
    const int64_t sizes[] = {BLOCK_KINDS * 256 * 9, BLOCK_KINDS * 256 + 77, 300, 5 << 18};
    for (int k = 0; k < 3 * 2 * 2 * 2 + 4; k++) { /* size (the last at even addresses); address; master or none; gradient in fp32 or bf16 */
        const int64_t n = sizes[k / 8], off = k / 4 & 1, nb = (n + 255) / 256;
        const int master = k / 2 & 1, wide = k & 1;
        struct pair p = make(n + 1, 1, DT_F32, 1), half = make(n + 1, 1, DT_BF16, 1), g = make(n + 1, 1, DT_F32, 1), g16 = make(n + 1, 1, DT_BF16, 1);
        struct pair am = make(nb, 1, DT_F32, 1), av = make(nb, 1, DT_F32, 1), m = make(n, 1, DT_I32, 1), v = make(n, 1, DT_I32, 1); /* room for n codes */
        uint16_t *values = malloc(((size_t)n + 1) * 2), *grads = malloc(((size_t)n + 1) * 2);
        float *p0 = p.c.data, *g0 = g.c.data;
        clear(&m), clear(&v);
        for (int64_t b = 0; b < nb; b++) {
            const int64_t i = b * 256, count = n - i < 256 ? n - i : 256;
            fill_block((int)(b % BLOCK_KINDS), p0 + off + i, g0 + off + i, (uint8_t *)m.c.data + i, (uint8_t *)v.c.data + i, (float *)am.c.data + b, (float *)av.c.data + b, count);
        }
        for (int64_t i = 0; i <= n; i++) values[i] = f32_to_bf16(p0[i]), grads[i] = f32_to_bf16(g0[i]);
        memcpy(half.c.data, p0, ((size_t)n + 1) * 4), memcpy(g16.c.data, g0, ((size_t)n + 1) * 4);
        struct pair *up[] = {&p, &half, &g, &g16, &am, &av, &m, &v};
        for (int i = 0; i < 8; i++) upload(up[i]);
        for (int t = 7; t < 10; t++)
            for (int s = 0; s < 2; s++) {
                struct adam_tensor x = {.p = master ? (float *)side(&p, s).data + off : NULL, .copy = (s ? (uint16_t *)half.g.data : values) + off, .n = n, .lr = 1e-2, .weight_decay = 0.1,
                                        .g = wide ? (float *)side(&g, s).data + off : NULL, .g16 = wide ? NULL : (s ? (uint16_t *)g16.g.data : grads) + off, .round = master && k / 8 == 1,
                                        .m8 = side(&m, s).data, .v8 = side(&v, s).data, .m_absmax = side(&am, s).data, .v_absmax = side(&av, s).data};
                op_adam(s ? gpu : cpu, &(struct adam_args){.tensors = &x, .count = 1, .t = t, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .grad_scale = 0.5});
            }
        const struct { const char *name; const void *want; const struct pair *have; size_t bytes; } results[] = {
            {"p", p.c.data, &p, (size_t)(n + 1) * 4}, {"values in bf16", values, &half, (size_t)(n + 1) * 2}, {"codes of m", m.c.data, &m, (size_t)n},
            {"codes of v", v.c.data, &v, (size_t)n}, {"scales of m", am.c.data, &am, (size_t)nb * 4}, {"scales of v", av.c.data, &av, (size_t)nb * 4}};
        for (int r = 0; r < 6; r++) {
            uint8_t *have = malloc(results[r].bytes);
            const uint8_t *want = results[r].want;
            int64_t differ = 0, first = -1;
            gpu->get(gpu->self, have, results[r].have->g.data, results[r].bytes, Q_COMPUTE), gpu->sync(gpu->self, &e);
            for (size_t i = 0; i < results[r].bytes; i++)
                if (have[i] != want[i] && !differ++) first = (int64_t)i;
            CHECK(!differ, "%lld, address %lld, %s, %s gradient: %s: %lld bytes differ from byte %lld on", (long long)n, (long long)off, master ? "master" : "no master", wide ? "fp32" : "bf16", results[r].name, (long long)differ, (long long)first);
            free(have);
        }
        free(values), free(grads);
        for (int i = 0; i < 8; i++) drop(up[i]);
    }
}

TEST(lists_of_tensors) { /* many, odd, empty, at odd addresses, both kinds of state: as the CPU, and the same bits again */
    NEED_CARD();
    enum { TENSORS = 275 };
    const int64_t sizes[] = {0, 1, 5, 255, 4096, 8191, 8192, 8193, 2048, 40001};
    int64_t n[TENSORS], at[TENSORS], total = 0;
    for (int i = 0; i < TENSORS; i++) at[i] = total, total += n[i] = sizes[i % 10];
    struct pair p = make(total, 1, DT_F32, 1), g = make(total, 1, DT_F32, 1), m = make(total, 1, DT_F32, 1), v = make(total, 1, DT_F32, 1), copy = make(total, 1, DT_BF16, 0);
    struct pair m8 = make(total, 1, DT_I32, 1), v8 = make(total, 1, DT_I32, 1), am = make(total, 1, DT_F32, 1), av = make(total, 1, DT_F32, 1); /* room enough */
    limits(8, 64, 64, 1, 64, 64, 4);
    clear(&m), clear(&v), clear(&m8), clear(&v8), clear(&am), clear(&av);
    struct adam_tensor t[2][TENSORS];
    const float *x[2][TENSORS];
    double want[TENSORS], *sums = gpu->alloc(gpu->self, AT_HOST, 2 * sizeof want);
    uint16_t *half = malloc((size_t)total * 2);
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < TENSORS; i++) {
            x[k][i] = (float *)side(&g, k).data + at[i];
            t[k][i] = (struct adam_tensor){.p = (float *)side(&p, k).data + at[i], .g = x[k][i], .m = (float *)side(&m, k).data + at[i], .v = (float *)side(&v, k).data + at[i],
                                           .copy = (k ? (uint16_t *)copy.g.data : half) + at[i], .n = n[i], .lr = 1e-2, .weight_decay = 0.1};
            if (i / 10 % 2 == 0) continue; /* ten of each */
            t[k][i].m = t[k][i].v = NULL, t[k][i].m8 = (uint8_t *)side(&m8, k).data + at[i], t[k][i].v8 = (uint8_t *)side(&v8, k).data + at[i];
            t[k][i].m_absmax = (float *)side(&am, k).data + at[i], t[k][i].v_absmax = (float *)side(&av, k).data + at[i];
        }
    for (int step = 1; step <= 2; step++)
        for (int k = 0; k < 2; k++) op_adam(k ? gpu : cpu, &(struct adam_args){.tensors = t[k], .count = TENSORS, .t = step, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .grad_scale = 0.5});
    for (int64_t i = 0; i < total; i++) ((float *)copy.c.data)[i] = bf16_to_f32(half[i]);
    compare("p", "a list", &p, 0), compare("m", "a list", &m, 0), compare("v", "a list", &v, 0), compare("m_absmax", "a list", &am, 0), compare("v_absmax", "a list", &av, 0), compare("copy", "a list", &copy, 0);
    op_sqsum(cpu, &(struct sqsum_args){.x = x[0], .n = n, .count = TENSORS, .out = want});
    for (int k = 0; k < 2; k++) op_sqsum(gpu, &(struct sqsum_args){.x = x[1], .n = n, .count = TENSORS, .out = sums + k * TENSORS});
    gpu->sync(gpu->self, &e);
    for (int i = 0; i < TENSORS; i++) CHECK(fabs(sums[i] - want[i]) <= 1e-12 * want[i] && sums[i] == sums[TENSORS + i], "sum of %lld squares: %.17g, %.17g", (long long)n[i], sums[i], want[i]);
    free(half), gpu->release(gpu->self, AT_HOST, sums);
    struct pair *all[] = {&p, &g, &m, &v, &copy, &m8, &v8, &am, &av};
    for (int i = 0; i < 9; i++) drop(all[i]);
}

TEST(no_failure_was_left) {
    NEED_CARD();
    CHECK(!gpu->sync(gpu->self, &e), "%s", e.text);
    backend_close(gpu), backend_close(cpu);
}
TEST_MAIN
