/* Linear, filter and attention of one to eight rows on the card (backend/cuda/decode.cu) against the CPU's: every weight format,
 * odd and real sizes, caches around the slices of 256 keys; twice for the same bits. With V set, the rate of a product with
 * packed weights too. The CPU gets the weights as rounded to bf16, as the card multiplies them. What is left is the rounding of
 * results and, with adapters, of xa. */
#include "tests/ops/card.h"
#include "base/half.h"
#include "base/sys.h"
#include <math.h>

static void *to_card(const void *host, size_t bytes) {
    void *p = gpu->alloc(gpu->self, AT_DEVICE, bytes);
    gpu->put(gpu->self, p, host, bytes, Q_COMPUTE);
    gpu->sync(gpu->self, &e);
    return p;
}
static void from_card(void *host, const void *card, size_t bytes) {
    gpu->get(gpu->self, host, card, bytes, Q_COMPUTE);
    gpu->sync(gpu->self, &e);
}

/* A matrix of bf16 values in both memories, fp32 on the CPU. scale 0: all NaN. */
struct pair { struct mat c, g; };
static struct pair make(int64_t rows, int64_t cols, enum dtype gpu_type, float scale) {
    struct pair p;
    size_t n = (size_t)(rows * cols);
    float *c = malloc(n * 4);
    uint16_t *h = malloc(n * 2);
    for (size_t i = 0; i < n; i++) h[i] = f32_to_bf16(scale != 0 ? uniform() * scale : NAN), c[i] = bf16_to_f32(h[i]);
    p.c = (struct mat){c, rows, cols, cols, DT_F32};
    p.g = (struct mat){to_card(gpu_type == DT_F32 ? (void *)c : h, n * dtype_bytes(gpu_type)), rows, cols, cols, gpu_type};
    free(h);
    return p;
}
static void drop(struct pair *p) {
    if (p->c.data) free(p->c.data), gpu->release(gpu->self, AT_DEVICE, p->g.data);
    *p = (struct pair){0};
}
static struct mat side(const struct pair *p, int g) { return g ? p->g : p->c; }
static struct mat columns(struct mat m, int64_t first, int64_t n) {
    m.data = (char *)m.data + (size_t)first * dtype_bytes(m.type), m.cols = n;
    return m;
}

/* A rounding to bf16 moves a number by 2^-8 of it at most, many by 0.0016 of their norm. */
static void compare(const char *where, const char *what, const struct pair *p, int roundings) {
    int64_t n = p->c.rows * p->c.cols;
    size_t bytes = (size_t)n * dtype_bytes(p->g.type);
    void *x = malloc(bytes);
    double diff = 0, norm = 0;
    from_card(x, p->g.data, bytes);
    for (int64_t i = 0; i < n; i++) {
        double want = ((float *)p->c.data)[i], have = p->g.type == DT_F32 ? ((float *)x)[i] : bf16_to_f32(((uint16_t *)x)[i]);
        diff += (have - want) * (have - want), norm += want * want;
    }
    double error = sqrt(diff / norm), tolerance = 1e-5 + roundings * (n < 1000 ? 0x1p-8 : 0.002);
    if (getenv("V")) printf("  %-52s %-4s %.5f\n", where, what, error);
    CHECK(error <= tolerance, "%s %s: %g", where, what, error);
    free(x);
}
static void same_bits(const char *where, const struct pair *a, const struct pair *b) {
    size_t bytes = (size_t)(a->g.rows * a->g.cols) * dtype_bytes(a->g.type);
    void *x = malloc(bytes), *y = malloc(bytes);
    from_card(x, a->g.data, bytes), from_card(y, b->g.data, bytes);
    CHECK(!memcmp(x, y, bytes), "%s: two runs differ", where);
    free(x), free(y);
}

/* A chunk of whole sequences; `first` is the first key that all rows see. */
struct chunk { struct rows c, g; int32_t starts[9]; struct pair ints; };
static void chunk_of(struct chunk *k, const int *lengths, int32_t first) {
    memset(k, 0, sizeof *k);
    int n = 0, s = 0;
    for (; lengths[s]; s++) k->starts[s + 1] = n += lengths[s];
    k->ints = make(3, n, DT_F32, 1); /* 4 bytes each */
    int32_t *p = k->ints.c.data;
    for (int t = 0, q = 0; t < n; t++) {
        if (t == k->starts[q + 1]) q++;
        p[t] = t - k->starts[q], p[n + t] = first ? first : k->starts[q], p[2 * n + t] = t - k->starts[q];
    }
    gpu->put(gpu->self, k->ints.g.data, p, (size_t)n * 12, Q_COMPUTE), gpu->sync(gpu->self, &e);
    k->c = k->g = (struct rows){.N = n, .n_seqs = s, .seq_start = k->starts};
    k->c.position = p, k->c.first = p + n, k->c.offset = p + 2 * n;
    p = k->ints.g.data;
    k->g.position = p, k->g.first = p + n, k->g.offset = p + 2 * n;
}
static const struct rows *rows_of(const struct chunk *k, int g) { return g ? &k->g : &k->c; }
static void limits(int64_t rows, int64_t sequence, int64_t in, int64_t out, int64_t H, int64_t K, int64_t R) {
    struct backend_limits l = {.rows = rows, .sequence = sequence, .D = in, .F = out > in ? out : in, .H = H, .K = K, .V = 64, .R = R, .generates = 1};
    CHECK(!cpu->reserve(cpu->self, &l, &e) && !gpu->reserve(gpu->self, &l, &e), "%s", e.text);
}

/* A weight as stored on the card, and its values in bf16 on the CPU. */
struct both_weight { struct weight c, g; void *card[6]; double bytes; };
static const struct form { enum weight_format f; int block, nested; const char *name; } forms[] = {
    {W_Q4, 64, 1, "nf4 of 8-bit scales"}, {W_Q4, 64, 0, "nf4"}, {W_Q4, 4096, 1, "nf4 of 4096"}, {W_INT8, 0, 0, "int8"}, {W_BF16, 0, 0, "bf16"}, {W_F32, 0, 0, "fp32"}};
static void weight_of(struct both_weight *w, const struct form *f, int64_t rows, int64_t cols) {
    memset(w, 0, sizeof *w);
    size_t n = (size_t)(rows * cols), nb = (size_t)(f->block ? q4_blocks(rows * cols, f->block) : 1), nn = (size_t)q4_nested((int64_t)nb);
    uint16_t *h = malloc(n * 2);
    for (size_t i = 0; i < n; i++) h[i] = f32_to_bf16(uniform() * 0.1f * (1 + (float)(i / 512 % 7))); /* scales differ */
    w->c = w->g = (struct weight){.format = f->f, .rows = rows, .cols = cols};
    w->c.format = W_BF16, w->c.data = h;
    if (f->f == W_BF16) w->g.data = w->card[0] = to_card(h, n * 2), w->bytes = (double)n * 2;
    if (f->f == W_F32) {
        float *x = malloc(n * 4);
        for (size_t i = 0; i < n; i++) x[i] = bf16_to_f32(h[i]) * 1.001f, h[i] = f32_to_bf16(x[i]);
        w->g.data = w->card[0] = to_card(x, n * 4), w->bytes = (double)n * 4;
        free(x);
    }
    if (f->f == W_INT8) {
        int8_t *q = malloc(n);
        float *s = malloc((size_t)rows * 4);
        int8_encode(h, DT_BF16, rows, cols, q, s), int8_decode(q, s, cols, 0, rows, h, DT_BF16);
        w->g.data = w->card[0] = to_card(q, n), w->g.scale = w->card[1] = to_card(s, (size_t)rows * 4), w->bytes = (double)n;
        free(q), free(s);
    }
    if (f->f == W_Q4) {
        uint8_t *codes = malloc((n + 1) / 2), *q = malloc(nb);
        float *absmax = malloc(nb * 4), *nested = malloc(nn * 4);
        q4_encode(Q4_NF4, f->block, h, DT_BF16, (int64_t)n, codes, absmax);
        struct q4_view v = {.codes = codes, .levels = nf4_levels, .block = f->block}, *g = &w->g.q4;
        *g = v;
        g->codes = w->card[0] = to_card(codes, (n + 1) / 2), g->levels = w->card[1] = to_card(nf4_levels, 64);
        if (f->nested) {
            q4_double(absmax, (int64_t)nb, q, nested, &v.nested_offset);
            v.absmax_q = q, v.nested_absmax = nested, v.nested_map = bw8_signed, g->nested_offset = v.nested_offset;
            g->absmax_q = w->card[2] = to_card(q, nb), g->nested_absmax = w->card[3] = to_card(nested, nn * 4), g->nested_map = w->card[4] = to_card(bw8_signed, 1024);
        } else v.absmax = absmax, g->absmax = w->card[5] = to_card(absmax, nb * 4);
        q4_decode(&v, 0, (int64_t)n, h, DT_BF16);
        w->bytes = (double)n / 2 + (double)nb * (f->nested ? 1 : 4);
        free(codes), free(q), free(absmax), free(nested);
    }
}
static void weight_drop(struct both_weight *w) {
    free((void *)(uintptr_t)w->c.data);
    for (int i = 0; i < 6; i++)
        if (w->card[i]) gpu->release(gpu->self, AT_DEVICE, w->card[i]);
}

/* One output with something added to it, or two side by side; adapters of rank R, or none. */
static void linear(const struct form *f, int N, int64_t in, int64_t out, int n, int64_t R) {
    char where[100];
    struct chunk k;
    struct both_weight w[2];
    struct pair A[2], B[2], xa[2], x = make(N, in, DT_BF16, 1), add = make(N, out, DT_BF16, 1), y = make(N, n * out, DT_BF16, 0), again = make(N, n * out, DT_BF16, 0);
    snprintf(where, sizeof where, "%s, %d rows (%lld,%lld) x %d, rank %lld", f->name, N, (long long)out, (long long)in, n, (long long)R);
    chunk_of(&k, (int[]){N, 0}, 0), limits(N, N, in, out, 1, 64, R);
    for (int i = 0; i < n; i++) {
        weight_of(&w[i], f, out, in);
        if (R) A[i] = make(R, in, DT_F32, 0.2f), B[i] = make(out, R, DT_F32, 0.2f), xa[i] = make(N, R, DT_BF16, 0);
    }
    for (int run = 0; run < 3; run++) {
        int g = run > 0;
        struct linear_args a = {.rows = rows_of(&k, g), .x = side(&x, g), .n = n};
        for (int i = 0; i < n; i++) {
            struct linear_out *o = &a.out[i];
            o->w = g ? w[i].g : w[i].c, o->y = columns(side(run == 2 ? &again : &y, g), i * out, out);
            if (n == 1) o->add = side(&add, g);
            if (R) o->lora = (struct adapter){.A = side(&A[i], g), .B = side(&B[i], g), .scale = 0.75f}, o->xa = side(&xa[i], g);
        }
        op_linear(g ? gpu : cpu, &a);
    }
    compare(where, "y", &y, R ? 2 : 1), same_bits(where, &y, &again);
    for (int i = 0; i < n; i++) {
        if (R) compare(where, "xa", &xa[i], 1), drop(&A[i]), drop(&B[i]), drop(&xa[i]);
        weight_drop(&w[i]);
    }
    drop(&x), drop(&add), drop(&y), drop(&again), drop(&k.ints);
}

TEST(linear_of_few_rows) {
    NEED_CARD();
    /* below, at and above a step of each format; widths that leave the wide path; rows around a tile of 16 */
    static const int64_t shapes[][2] = {{32, 1}, {128, 16}, {160, 33}, {1056, 47}, {33, 40}, {7, 15}, {520, 64}};
    for (int f = 0; f < 6; f++)
        for (int s = 0; s < 7; s++)
            for (int r = 0; r < 3; r++) {
                int64_t in = shapes[s][0], out = shapes[s][1];
                linear(&forms[f], (int[]){1, 3, 8}[r], in, out, 1, 0);
                linear(&forms[f], (int[]){1, 3, 8}[r], in, out, 2, (int64_t[]){8, 5, 64}[(s + r) % 3]);
            }
}
TEST(linear_of_real_size) {
    NEED_CARD();
    for (int f = 0; f < 6; f++) {
        linear(&forms[f], 1, 2048, 8192, 2, 64);
        linear(&forms[f], 8, 2048, 2048, 2, 0);
        linear(&forms[f], f & 1 ? 3 : 1, 8192, 2048, 1, 16);
    }
}

TEST(filter_of_few_rows) {
    NEED_CARD();
    static const int chunks[][4] = {{1}, {3}, {8}, {1, 1}, {2, 3, 1}};
    static const int64_t shapes[][2] = {{72, 64}, {8, 33}, {13, 5}, {2048, 1024}, {1024, 2048}};
    for (int c = 0; c < 5; c++)
        for (int s = 0; s < 5; s++)
            for (int variant = 0; variant < 4; variant++) { /* bit 0: a row before; bit 1: added rows; fp32 weights now and then */
                struct chunk k;
                char where[100];
                int64_t in = shapes[s][0], out = shapes[s][1];
                chunk_of(&k, chunks[c], 0);
                if ((variant & 1 && k.c.n_seqs > 1) || (s > 2 && variant != 3 && variant != 2)) { drop(&k.ints); continue; }
                int N = (int)k.c.N;
                snprintf(where, sizeof where, "filter, %d rows in %d (%lld,%lld) variant %d", N, k.c.n_seqs, (long long)out, (long long)in, variant);
                limits(N, N, in, out, 1, 64, 1);
                struct both_weight w0, w1;
                weight_of(&w0, &forms[4 + (c == 1)], out, in), weight_of(&w1, &forms[4 + (c == 1)], out, in);
                struct pair x = make(N, in, DT_BF16, 1), y = make(N, out, DT_BF16, 0), again = make(N, out, DT_BF16, 0), add = make(N, out, DT_BF16, 1);
                struct pair b = make(1, out, c & 1 ? DT_F32 : DT_BF16, 1), before = make(1, in, DT_BF16, 1);
                for (int run = 0; run < 3; run++) {
                    int g = run > 0;
                    struct filter_args a = {.rows = rows_of(&k, g), .x = side(&x, g), .y = side(run == 2 ? &again : &y, g), .w0 = g ? w0.g : w0.c, .w1 = g ? w1.g : w1.c,
                                            .b = side(&b, g).data, .b_type = side(&b, g).type};
                    if (variant & 1) a.before = side(&before, g);
                    if (variant & 2) a.add = side(&add, g);
                    op_filter(g ? gpu : cpu, &a);
                }
                compare(where, "y", &y, 1), same_bits(where, &y, &again);
                drop(&x), drop(&y), drop(&again), drop(&add), drop(&b), drop(&before), drop(&k.ints), weight_drop(&w0), weight_drop(&w1);
            }
}

static void attend(int N, int keys, int64_t H, int64_t K, int32_t first) {
    char where[100];
    struct chunk k;
    int64_t D = H * K;
    chunk_of(&k, (int[]){N, 0}, first), limits(N, keys, D, D, H, K, 1);
    snprintf(where, sizeof where, "%d rows, %d keys from %d, head size %lld", N, keys, first, (long long)K);
    /* queries and keys interleaved by heads as the model has them: the rows are the last of the cache */
    struct pair qk = make(keys, 2 * D, DT_BF16, 2), v = make(keys, D, DT_BF16, 1), o = make(N, D, DT_BF16, 0), again = make(N, D, DT_BF16, 0), lse = make(N, H, DT_F32, 0), lse2 = make(N, H, DT_F32, 0);
    for (int run = 0; run < 3; run++) {
        int g = run > 0;
        struct mat q = side(&qk, g);
        q.data = (char *)q.data + (size_t)((keys - N) * 2 * D) * dtype_bytes(q.type), q.rows = N;
        op_attend(g ? gpu : cpu, &(struct attend_args){.rows = rows_of(&k, g), .H = H, .K = K, .past = keys - N, .q = q, .k = columns(side(&qk, g), K, 2 * D - K), .v = side(&v, g),
                                                       .o = side(run == 2 ? &again : &o, g), .q_step = 2 * K, .k_step = 2 * K, .v_step = K, .lse = side(run == 2 ? &lse2 : &lse, g).data});
    }
    compare(where, "o", &o, 1), compare(where, "lse", &lse, 0), same_bits(where, &o, &again), same_bits(where, &lse, &lse2);
    drop(&qk), drop(&v), drop(&o), drop(&again), drop(&lse), drop(&lse2), drop(&k.ints);
}
TEST(attention_of_few_rows) {
    NEED_CARD();
    static const int keys[] = {1, 31, 255, 256, 257, 700, 4000};
    for (int h = 0; h < 6; h++)
        for (int n = 0; n < 3; n++)
            for (int u = 0; u < 7; u++) {
                int N = (int[]){1, 3, 8}[n];
                int64_t K = (int64_t[]){64, 128, 16, 20, 96, 256}[h];
                if (keys[u] < N || (h > 1 && keys[u] == 4000)) continue;
                attend(N, keys[u], 3, K, 0);
                if (keys[u] > 600) attend(N, keys[u], 3, K, 600); /* slices of which nothing is seen */
            }
    attend(1, 4000, 32, 64, 0);
}

/* Rate over weights that together exceed the cache, one product behind the other. */
TEST(speed) {
    NEED_CARD();
    if (!getenv("V")) SKIP("set V to be told the rate");
    enum { WEIGHTS = 16, ROUNDS = 20 };
    struct both_weight w[WEIGHTS];
    struct chunk k;
    limits(8, 8, 2048, 8192, 1, 64, 1);
    for (int i = 0; i < WEIGHTS; i++) weight_of(&w[i], &forms[0], 8192, 2048);
    for (int n = 1; n <= 2; n++)
        for (int N = 1; N <= 8; N *= 8) {
            struct pair x = make(N, 2048, DT_BF16, 1), y = make(N, 2 * 8192, DT_BF16, 1);
            chunk_of(&k, (int[]){N, 0}, 0);
            double start_s = 0, bytes = 0;
            for (int r = -2; r < ROUNDS; r++) {
                if (!r) gpu->sync(gpu->self, &e), start_s = sys_seconds();
                for (int i = 0; i < WEIGHTS; i += n) {
                    struct linear_args a = {.rows = &k.g, .x = x.g, .n = n};
                    for (int j = 0; j < n; j++) a.out[j].w = w[i + j].g, a.out[j].y = columns(y.g, j * 8192, 8192), bytes += r < 0 ? 0 : w[i + j].bytes;
                    op_linear(gpu, &a);
                }
            }
            gpu->sync(gpu->self, &e);
            double s = sys_seconds() - start_s;
            printf("  nf4 (8192,2048) x %d, %d rows: %.0f GB/s, %.2f us a call\n", n, N, bytes / s * 1e-9, s * 1e6 * n / (WEIGHTS * ROUNDS));
            drop(&x), drop(&y), drop(&k.ints);
        }
    for (int i = 0; i < WEIGHTS; i++) weight_drop(&w[i]);
}

TEST(no_failure_was_left) {
    NEED_CARD();
    CHECK(!gpu->sync(gpu->self, &e), "%s", e.text);
    backend_close(gpu), backend_close(cpu);
}
TEST_MAIN
