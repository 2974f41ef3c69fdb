/* Every op of the CUDA backend against the CPU's, at sizes 1, odd, around tiles, and real; twice for the same bits.
 * Inputs are bf16 values, so both see the same numbers; outputs differ by bf16 rounding of results and of what lies between
 * (xa, probabilities, logits): the tolerance of each is a small multiple of 2^-8 relative to the output's norm. */
#define _GNU_SOURCE /* dladdr */
#include "tests/test.h"
#include "backend/backend.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/sys.h"
#include <dlfcn.h>
#include <math.h>

static struct backend *cpu, *gpu;
static struct err e;
static uint32_t counter;

static float uniform(void) {
    uint32_t c[4] = {counter++, 7, 0, 0}, k[2] = {11, 13}, w[4];
    philox4x32(c, k, w);
    return (float)w[0] * 0x1p-31f - 1;
}
static float rounded(float x) { return bf16_to_f32(f32_to_bf16(x)); }

/* A matrix in both memories. On the card activations are bf16. */
struct pair { struct mat c, g; int64_t n; };
static void upload(struct pair *p) {
    size_t bytes = (size_t)p->n * dtype_bytes(p->g.type);
    if (p->g.type != DT_BF16) gpu->put(gpu->self, p->g.data, p->c.data, bytes, Q_COMPUTE);
    else {
        uint16_t *h = malloc(bytes);
        for (int64_t i = 0; i < p->n; i++) h[i] = f32_to_bf16(((float *)p->c.data)[i]);
        gpu->put(gpu->self, p->g.data, h, bytes, Q_COMPUTE);
        gpu->sync(gpu->self, &e);
        free(h);
    }
    gpu->sync(gpu->self, &e);
}
static struct pair make(int64_t rows, int64_t cols, enum dtype gpu_type, float scale) { /* scale 0: poisoned */
    struct pair p = {.n = rows * cols};
    p.c = (struct mat){malloc((size_t)p.n * 4), rows, cols, cols, DT_F32};
    p.g = (struct mat){gpu->alloc(gpu->self, AT_DEVICE, (size_t)p.n * 4), rows, cols, cols, gpu_type};
    for (int64_t i = 0; i < p.n; i++) ((float *)p.c.data)[i] = scale != 0 ? rounded(uniform() * scale) : NAN;
    upload(&p);
    return p;
}
static void clear(struct pair *p) {
    memset(p->c.data, 0, (size_t)p->n * 4);
    upload(p);
}
static float *download(const struct pair *p) {
    float *x = malloc((size_t)p->n * 4);
    uint16_t *h = malloc((size_t)p->n * 4);
    gpu->get(gpu->self, p->g.type == DT_BF16 ? (void *)h : x, p->g.data, (size_t)p->n * dtype_bytes(p->g.type), Q_COMPUTE);
    gpu->sync(gpu->self, &e);
    if (p->g.type == DT_BF16)
        for (int64_t i = 0; i < p->n; i++) x[i] = bf16_to_f32(h[i]);
    free(h);
    return x;
}
static void drop(struct pair *p) {
    if (!p->n) return;
    free(p->c.data), gpu->release(gpu->self, AT_DEVICE, p->g.data);
    p->n = 0;
}
static void compare(const char *what, const char *where, const struct pair *p, double tolerance) {
    float *x = download(p), *y = p->c.data;
    double diff = 0, norm = 0, worst = 0;
    int64_t at = 0;
    for (int64_t i = 0; i < p->n; i++) {
        double d = fabs((double)x[i] - (double)y[i]);
        if (!(d <= 1e30)) d = 1e30;
        diff += d * d, norm += (double)y[i] * (double)y[i];
        if (d > worst) worst = d, at = i;
    }
    /* what is exactly 0 on one side (the gradient of a row alone) may be the rounding of a sum of K terms on the other: 1e-7 */
    double error = sqrt(diff) / (sqrt(norm) + 1e-5 * sqrt((double)p->n));
    if (getenv("V")) printf("  %-28s %-12s %.5f\n", where, what, error);
    CHECK(error <= tolerance, "%s %s: %g; worst at row %lld col %lld: %g, want %g", where, what, error, (long long)(at / p->c.cols), (long long)(at % p->c.cols), (double)x[at], (double)y[at]);
    free(x);
}

/* Token rows in both memories. lengths end with 0. documents: a boundary every so many rows. */
struct both_rows { struct rows c, g; int32_t starts[64]; struct pair position, first, offset; };
static void rows_of(struct both_rows *b, const int *lengths, int documents) {
    memset(b, 0, sizeof *b);
    int64_t n = 0;
    int k = 0;
    for (; lengths[k]; k++) b->starts[k + 1] = (int32_t)(n += lengths[k]);
    struct pair *p[] = {&b->position, &b->first, &b->offset};
    for (int i = 0; i < 3; i++) *p[i] = make(n, 1, DT_I32, 1);
    int32_t *pos = b->position.c.data, *first = b->first.c.data, *offset = b->offset.c.data;
    for (int s = 0; s < k; s++)
        for (int32_t t = b->starts[s], low = t; t < b->starts[s + 1]; t++) {
            pos[t] = offset[t] = t - b->starts[s], first[t] = low;
            if (documents && (t - b->starts[s]) % documents == documents - 1) low = t + 1;
        }
    for (int i = 0; i < 3; i++) upload(p[i]);
    b->c = (struct rows){.N = n, .token0 = 5, .n_seqs = k, .seq_start = b->starts, .position = pos, .first = first, .offset = offset};
    b->g = b->c;
    b->g.position = b->position.g.data, b->g.first = b->first.g.data, b->g.offset = b->offset.g.data;
}
static void rows_drop(struct both_rows *b) { drop(&b->position), drop(&b->first), drop(&b->offset); }

static void limits(int64_t rows, int64_t D, int64_t F, int64_t H, int64_t K, int64_t V, int64_t R) {
    struct backend_limits l = {.rows = rows, .sequence = rows, .D = D, .F = F, .H = H, .K = K, .V = V, .R = R, .trains_weights = 1, .head_f32 = 1, .drops = 1};
    CHECK(!cpu->reserve(cpu->self, &l, &e) && !gpu->reserve(gpu->self, &l, &e), "%s", e.text);
}
static int start(void) {
    if (cpu) return 1;
    const char *plugin = getenv("QLORA_PLUGIN"); /* libqlora-cuda.so, when it does not lie beside the program */
    gpu = backend_open(plugin ? plugin : "cuda", &e);
    if (!gpu) return printf("  no card: %s\n", e.text), 0;
    cpu = backend_open("cpu", &e);
    return 1;
}
#define NEED_CARD() do { if (!start()) SKIP("no card"); } while (0)
/* The same op on both: .rows and mats of args are filled by `fill(args, side)`. */
static struct mat side(const struct pair *p, int g) { return g ? p->g : p->c; }

static const int one[] = {1, 0}, odd[] = {7, 0}, tile[] = {64, 0}, several[] = {63, 1, 129, 65, 7, 0}, equal[] = {128, 128, 128, 0}, longer[] = {513, 200, 0};
static const int *const shapes[] = {one, odd, tile, several, equal, longer};

TEST(row_ops) {
    NEED_CARD();
    for (int s = 0; s < 6; s++)
        for (int d = 0; d < 9; d++) {
            struct both_rows r;
            int64_t D = (int64_t[]){64, 72, 513, 2048, 1, 8, 96, 1000, 4104}[d], V = 100;
            char where[60];
            rows_of(&r, shapes[s], 0);
            snprintf(where, sizeof where, "rows %lld D %lld", (long long)r.c.N, (long long)D);
            limits(r.c.N, D, D, 1, 64, V, 4);
            struct pair x = make(r.c.N, D, DT_BF16, 1), y = make(r.c.N, D, DT_BF16, 0), dy = make(r.c.N, D, DT_BF16, 1), dx = make(r.c.N, D, DT_BF16, 1), over = make(r.c.N, D, DT_BF16, 0);
            struct pair g = make(1, D, DT_F32, 1), dg = make(1, D, DT_F32, 1), rr = make(r.c.N, 1, DT_F32, 0), E = make(V, D, DT_BF16, 1), dE = make(V, D, DT_F32, 1);
            struct pair ids = make(r.c.N, 1, DT_I32, 1), u = make(r.c.N, D, DT_BF16, 3), m = make(r.c.N, D, DT_BF16, 0), again = make(r.c.N, D, DT_BF16, 0);
            for (int64_t i = 0; i < r.c.N; i++) ((int32_t *)ids.c.data)[i] = (int32_t)(i * 37 % V);
            upload(&ids);
            for (int k = 0; k < 2; k++) {
                struct backend *b = k ? gpu : cpu;
                const struct rows *rows = k ? &r.g : &r.c;
                op_embed(b, &(struct embed_args){.rows = rows, .ids = side(&ids, k).data, .E = k ? E.g : (struct mat){E.c.data, V, D, D, DT_F32}, .y = side(&y, k), .skip = -1});
                op_embed_bwd(b, &(struct embed_args){.rows = rows, .ids = side(&ids, k).data, .dy = side(&dy, k), .dE = side(&dE, k), .skip = 37});
                struct norm_args n = {.rows = rows, .x = side(&x, k), .y = side(&again, k), .g = side(&g, k).data, .g_type = DT_F32, .r = side(&rr, k).data, .eps = 1e-6f, .dy = side(&dy, k), .dx = side(&dx, k), .dg = side(&dg, k).data};
                op_norm(b, &n), op_norm_bwd(b, &n);
                n.dx = side(&over, k), n.overwrite = 1, n.dg = NULL;
                op_norm_bwd(b, &n);
                op_gate(b, &(struct gate_args){.rows = rows, .g = side(&x, k), .u = side(&u, k), .y = side(&m, k)});
            }
            compare("embed", where, &y, 0), compare("embed_bwd", where, &dE, 1e-6), compare("norm", where, &again, 6e-3), compare("r", where, &rr, 1e-5);
            compare("norm_bwd +=", where, &dx, 6e-3), compare("norm_bwd =", where, &over, 6e-3), compare("dg", where, &dg, 1e-4), compare("gate", where, &m, 6e-3);
            for (int k = 0; k < 2; k++) op_gate_bwd(k ? gpu : cpu, &(struct gate_args){.rows = k ? &r.g : &r.c, .g = side(&x, k), .u = side(&u, k), .dy = side(&dy, k), .dg = side(&x, k), .du = side(&u, k), .y = side(&m, k)});
            compare("gate_bwd dg", where, &x, 6e-3), compare("gate_bwd du", where, &u, 6e-3), compare("gate_bwd y", where, &m, 6e-3);
            if (D % 64 == 0 || D == 72)
                for (int sign = 1; sign >= -1; sign -= 2) {
                    int64_t K = D == 72 ? 8 : 64;
                    for (int k = 0; k < 2; k++) op_rope(k ? gpu : cpu, &(struct rope_args){.rows = k ? &r.g : &r.c, .x = side(&dy, k), .K = K, .sign = sign});
                    compare("rope", where, &dy, 8e-3);
                }
            struct pair *all[] = {&x, &y, &dy, &dx, &over, &g, &dg, &rr, &E, &dE, &ids, &u, &m, &again};
            for (int i = 0; i < 14; i++) drop(all[i]);
            rows_drop(&r);
        }
}

/* A weight of a format in both memories. */
struct both_weight { struct weight c, g; struct pair parts[6]; };
static void weight_of(struct both_weight *w, enum weight_format f, int64_t rows, int64_t cols, int nested) {
    memset(w, 0, sizeof *w);
    int64_t n = rows * cols, nb = q4_blocks(n, 64);
    struct pair dense = make(rows, cols, DT_BF16, 0.1f);
    w->c = w->g = (struct weight){.format = f, .rows = rows, .cols = cols};
    uint16_t *h = malloc((size_t)n * 2);
    for (int64_t i = 0; i < n; i++) h[i] = f32_to_bf16(((float *)dense.c.data)[i]);
    size_t bytes[6] = {(size_t)n * 4};
    void *host[6] = {dense.c.data};
    if (f == W_BF16) host[0] = h, bytes[0] = (size_t)n * 2;
    if (f == W_INT8) {
        host[0] = malloc((size_t)n), bytes[0] = (size_t)n, host[1] = malloc((size_t)rows * 4), bytes[1] = (size_t)rows * 4;
        int8_encode(h, DT_BF16, rows, cols, host[0], host[1]);
    }
    if (f == W_Q4) {
        host[0] = malloc((size_t)q4_code_bytes(n)), bytes[0] = (size_t)q4_code_bytes(n), host[1] = malloc((size_t)nb * 4), bytes[1] = (size_t)nb * 4;
        host[2] = malloc((size_t)nb), bytes[2] = (size_t)nb, host[3] = malloc((size_t)q4_nested(nb) * 4), bytes[3] = (size_t)q4_nested(nb) * 4;
        host[4] = (void *)(uintptr_t)nf4_levels, bytes[4] = 64, host[5] = bw8_signed, bytes[5] = 1024;
        q4_encode(Q4_NF4, 64, h, DT_BF16, n, host[0], host[1]);
        if (nested) q4_double(host[1], nb, host[2], host[3], &w->c.q4.nested_offset), w->g.q4.nested_offset = w->c.q4.nested_offset;
    }
    void *dev[6] = {0};
    for (int i = 0; i < 6; i++)
        if (bytes[i]) {
            struct pair *p = &w->parts[i];
            p->n = 1, p->c.data = malloc(bytes[i]), p->g.data = dev[i] = gpu->alloc(gpu->self, AT_DEVICE, bytes[i]);
            memcpy(p->c.data, host[i], bytes[i]);
            gpu->put(gpu->self, dev[i], p->c.data, bytes[i], Q_COMPUTE);
            gpu->sync(gpu->self, &e);
        }
    for (int k = 0; k < 2; k++) {
        struct weight *x = k ? &w->g : &w->c;
#define PART(i) (w->parts[i].n ? (k ? w->parts[i].g.data : w->parts[i].c.data) : NULL)
        x->data = PART(0);
        if (f == W_INT8) x->scale = PART(1);
        if (f != W_Q4) continue;
        struct q4_view *v = &x->q4;
        v->codes = PART(0), v->levels = PART(4), v->block = 64;
        if (nested) v->absmax_q = PART(2), v->nested_absmax = PART(3), v->nested_map = PART(5);
        else v->absmax = PART(1);
    }
    free(h);
    drop(&dense);
}
static void weight_drop(struct both_weight *w) { for (int i = 0; i < 6; i++) drop(&w->parts[i]); }

TEST(linear_and_filter) {
    NEED_CARD();
    const struct { enum weight_format f; int nested; } formats[] = {{W_BF16, 0}, {W_Q4, 1}, {W_Q4, 0}, {W_INT8, 0}, {W_F32, 0}};
    for (int s = 0; s < 6; s++)
        for (int f = 0; f < 5; f++)
            for (int variant = 0; variant < 3; variant++) { /* one output; two side by side; dropout */
                struct both_rows r;
                int64_t in = variant == 1 ? 136 : 64, out = 72, R = 8, N;
                char where[60];
                rows_of(&r, shapes[s], 0);
                N = r.c.N;
                snprintf(where, sizeof where, "rows %lld format %d.%d variant %d", (long long)N, formats[f].f, formats[f].nested, variant);
                limits(N, 136, 136, 1, 64, 64, R);
                int n = variant == 1 ? 2 : 1;
                struct both_weight w[2];
                struct pair x = make(N, in, DT_BF16, 1), y = make(N, n * out, DT_BF16, 0), add = make(N, out, DT_BF16, 1), dy = make(N, n * out, DT_BF16, 1), dx = make(N, in, DT_BF16, 1);
                struct pair A[2], B[2], dA[2], dB[2], xa[2], dW[2];
                for (int i = 0; i < 2; i++) {
                    weight_of(&w[i], formats[f].f, out, in, formats[f].nested);
                    A[i] = make(R, in, DT_F32, 0.5f), B[i] = make(out, R, DT_F32, 0.5f), dA[i] = make(R, in, DT_F32, 1), dB[i] = make(out, R, DT_F32, 1);
                    xa[i] = make(N, R, DT_BF16, 0), dW[i] = make(out, in, DT_F32, 1);
                }
                for (int k = 0; k < 2; k++) {
                    struct linear_args a = {.rows = k ? &r.g : &r.c, .x = side(&x, k), .n = n, .dx = side(&dx, k), .accumulate = variant != 2};
                    for (int i = 0; i < n; i++) {
                        struct linear_out *o = &a.out[i];
                        o->w = k ? w[i].g : w[i].c;
                        o->y = side(&y, k), o->dy = side(&dy, k);
                        o->y.cols = o->dy.cols = out;
                        size_t skip = (size_t)(i * out) * dtype_bytes(o->y.type);
                        o->y.data = (char *)o->y.data + skip, o->dy.data = (char *)o->dy.data + skip;
                        if (variant == 0) o->add = side(&add, k);
                        o->lora = (struct adapter){.A = side(&A[i], k), .B = side(&B[i], k), .dA = side(&dA[i], k), .dB = side(&dB[i], k), .scale = 0.75f};
                        o->xa = side(&xa[i], k), o->dW = side(&dW[i], k);
                        if (variant == 2) o->drop = (struct dropout){.p = 0.3f, .seed = 99, .step = 3, .layer = 2, .site = 1};
                    }
                    op_linear(k ? gpu : cpu, &a);
                    op_linear_bwd(k ? gpu : cpu, &a);
                }
                compare("linear", where, &y, 8e-3), compare("dx", where, &dx, 1e-2);
                for (int i = 0; i < n; i++) compare("xa", where, &xa[i], 6e-3), compare("dA", where, &dA[i], 8e-3), compare("dB", where, &dB[i], 8e-3), compare("dW", where, &dW[i], 1e-4);
                for (int i = 0; i < 2; i++) drop(&A[i]), drop(&B[i]), drop(&dA[i]), drop(&dB[i]), drop(&xa[i]), drop(&dW[i]), weight_drop(&w[i]);
                drop(&x), drop(&y), drop(&add), drop(&dy), drop(&dx), rows_drop(&r);
            }
    for (int s = 0; s < 6; s++)
        for (int variant = 0; variant < 9; variant++) { /* plain; with add and dx_add; a part of one sequence. Three widths */
            struct both_rows r;
            char where[60];
            rows_of(&r, shapes[s], 0);
            if (variant % 3 == 2 && r.c.n_seqs > 1) { rows_drop(&r); continue; }
            int64_t in = (int64_t[]){72, 64, 256}[variant / 3], out = (int64_t[]){64, 136, 128}[variant / 3], N = r.c.N;
            snprintf(where, sizeof where, "filter rows %lld variant %d", (long long)N, variant);
            limits(N, 256, 256, 1, 64, 64, 4);
            struct both_weight w0, w1;
            weight_of(&w0, W_BF16, out, in, 0), weight_of(&w1, W_BF16, out, in, 0);
            struct pair x = make(N, in, DT_BF16, 1), y = make(N, out, DT_BF16, 0), add = make(N, out, DT_BF16, 1), b = make(1, out, DT_F32, 1), before = make(1, in, DT_BF16, 1), dy = make(N, out, DT_BF16, 1), dx = make(N, in, DT_BF16, 0), dx_add = make(N, in, DT_BF16, 1), after = make(1, out, DT_BF16, 1);
            struct pair d0 = make(out, in, DT_F32, 1), d1 = make(out, in, DT_F32, 1), db = make(1, out, DT_F32, 1);
            for (int k = 0; k < 2; k++) {
                struct filter_args a = {.rows = k ? &r.g : &r.c, .x = side(&x, k), .y = side(&y, k), .w0 = k ? w0.g : w0.c, .w1 = k ? w1.g : w1.c, .b = side(&b, k).data, .b_type = DT_F32,
                                        .dy = side(&dy, k), .dx = side(&dx, k), .dw0 = side(&d0, k), .dw1 = side(&d1, k), .db = side(&db, k).data};
                if (variant % 3 == 1) a.add = side(&add, k), a.dx_add = side(&dx_add, k);
                if (variant % 3 == 2) a.before = side(&before, k), a.after = side(&after, k);
                op_filter(k ? gpu : cpu, &a);
                op_filter_bwd(k ? gpu : cpu, &a);
            }
            compare("y", where, &y, 8e-3);
            compare("dx", where, &dx, 1e-2), compare("dw0", where, &d0, 1e-4), compare("dw1", where, &d1, 1e-4), compare("db", where, &db, 1e-4);
            struct pair *all[] = {&x, &y, &add, &b, &before, &dy, &dx, &dx_add, &after, &d0, &d1, &db};
            for (int i = 0; i < 12; i++) drop(all[i]);
            weight_drop(&w0), weight_drop(&w1), rows_drop(&r);
        }
}

/* The adapter as columns behind x and dy, as the model lays them out; with and without a joint operand made before. */
/* dW of sequences in slices of 200 rows: 63 + 1 + 129, 65 + 7. As the CPU's, and the same bits when each slice is a chunk. */
TEST(weight_gradients_by_slices) {
    NEED_CARD();
    static const int first[] = {63, 1, 129, 0}, second[] = {65, 7, 0};
    const int64_t in = 136, out = 72, N = 265;
    struct pair x = make(N, in, DT_BF16, 1), dy = make(N, out, DT_BF16, 1), together = make(out, in, DT_F32, 1), apart = make(out, in, DT_F32, 1);
    memcpy(apart.c.data, together.c.data, (size_t)apart.n * 4), upload(&apart);
    struct both_weight w;
    weight_of(&w, W_BF16, out, in, 0);
    const struct { const int *lengths; int64_t at; struct pair *dW; } runs[] = {{several, 0, &together}, {first, 0, &apart}, {second, 193, &apart}};
    for (int i = 0; i < 3; i++) {
        struct both_rows r;
        rows_of(&r, runs[i].lengths, 0);
        limits(N, 136, 136, 1, 64, 64, 8);
        for (int k = 0; k < 2; k++) {
            struct rows rows = k ? r.g : r.c;
            struct linear_args a = {.rows = &rows, .x = side(&x, k), .n = 1};
            rows.slice = 200;
            a.out[0].w = k ? w.g : w.c;
            a.out[0].dy = side(&dy, k), a.out[0].dW = side(runs[i].dW, k);
            a.x.rows = a.out[0].dy.rows = rows.N;
            a.x.data = (char *)a.x.data + (size_t)(runs[i].at * in) * dtype_bytes(a.x.type);
            a.out[0].dy.data = (char *)a.out[0].dy.data + (size_t)(runs[i].at * out) * dtype_bytes(a.x.type);
            op_linear_bwd(k ? gpu : cpu, &a);
        }
        rows_drop(&r);
    }
    compare("dW", "slices", &together, 1e-4), compare("dW", "slices apart", &apart, 1e-4);
    float *a = download(&together), *b = download(&apart);
    CHECK(!memcmp(a, b, (size_t)apart.n * 4), "other bits in chunks of one slice");
    free(a), free(b);
    drop(&x), drop(&dy), drop(&together), drop(&apart), weight_drop(&w);
}

TEST(linear_with_the_adapter_as_columns) {
    NEED_CARD();
    for (int s = 0; s < 6; s++)
        for (int variant = 0; variant < 6; variant++) {
            struct both_rows r;
            int64_t in = 72, out = 64, R = 16, N, n = 1 + variant % 2, joined = variant / 2 == 1;
            float p = variant / 2 == 2 ? 0.25f : 0;
            char where[60];
            rows_of(&r, shapes[s], 0);
            N = r.c.N;
            snprintf(where, sizeof where, "rows %lld, %lld outputs, variant %d", (long long)N, (long long)n, variant / 2);
            limits(N, 136, 136, 1, 64, 64, R);
            struct both_weight w[2];
            struct pair x = make(N, in + n * R, DT_BF16, 1), y = make(N, n * out, DT_BF16, 0), dy = make(N, n * (out + R), DT_BF16, 1), dx = make(N, in, DT_BF16, 1), joint = make(n * (out + R), in + n * R, DT_BF16, 0);
            struct pair A[2], B[2], dA[2], dB[2];
            for (int i = 0; i < 2; i++) weight_of(&w[i], W_Q4, out, in, 1), A[i] = make(R, in, DT_F32, 0.5f), B[i] = make(out, R, DT_F32, 0.5f), dA[i] = make(R, in, DT_F32, 1), dB[i] = make(out, R, DT_F32, 1);
            for (int k = 0; k < 2; k++) {
                struct linear_args a = {.rows = k ? &r.g : &r.c, .x = side(&x, k), .n = (int)n, .dx = side(&dx, k)};
                struct join_args j = {.n = (int)n, .to = side(&joint, k)};
                a.x.cols = in;
                for (int i = 0; i < n; i++) {
                    struct linear_out *o = &a.out[i];
                    size_t size = dtype_bytes(a.x.type);
                    o->w = k ? w[i].g : w[i].c;
                    o->xa = side(&x, k), o->xa.cols = R, o->xa.data = (char *)o->xa.data + (size_t)(in + i * R) * size;
                    o->y = side(&y, k), o->y.cols = out, o->y.data = (char *)o->y.data + (size_t)(i * out) * size;
                    o->dy = side(&dy, k), o->dy.cols = out, o->dy.data = (char *)o->dy.data + (size_t)(i * out) * size;
                    o->dxa = side(&dy, k), o->dxa.cols = R, o->dxa.data = (char *)o->dxa.data + (size_t)(n * out + i * R) * size;
                    o->lora = (struct adapter){.A = side(&A[i], k), .B = side(&B[i], k), .dA = side(&dA[i], k), .dB = side(&dB[i], k), .scale = 0.75f};
                    o->drop = (struct dropout){.p = p, .seed = 99, .step = 3, .layer = 2, .site = (uint32_t)i};
                    j.part[i].w = o->w, j.part[i].lora = o->lora;
                }
                if (k && joined) op_join(gpu, &j), a.joint = j.to;
                op_linear(k ? gpu : cpu, &a);
                op_linear_bwd(k ? gpu : cpu, &a);
            }
            compare("y", where, &y, 8e-3), compare("dx", where, &dx, 1e-2), compare("x|xa", where, &x, 6e-3);
            for (int i = 0; i < n; i++) compare("dA", where, &dA[i], 8e-3), compare("dB", where, &dB[i], 8e-3);
            for (int i = 0; i < 2; i++) drop(&A[i]), drop(&B[i]), drop(&dA[i]), drop(&dB[i]), weight_drop(&w[i]);
            drop(&x), drop(&y), drop(&dy), drop(&dx), drop(&joint), rows_drop(&r);
        }
}

/* DoRA: the norms, products with scaled rows and the gradient by magnitudes; adapters apart, of an odd rank, dropped, as columns with a
 * joint operand, and as generation multiplies them. */
enum { APART, ODD_RANK, DROPPED, COLUMNS, FEW_ROWS, MAGNITUDE_WAYS };
static void magnitudes(const int *lengths, int way, enum weight_format f) {
    struct both_rows r;
    rows_of(&r, lengths, 0);
    const int64_t in = 136, out = 72, R = way == ODD_RANK ? 5 : way == COLUMNS ? 16 : 72, N = r.c.N, behind = way == COLUMNS ? R : 0; /* 72: more than the norms take at a time */
    char where[60];
    snprintf(where, sizeof where, "DoRA rows %lld way %d format %d", (long long)N, way, f);
    struct backend_limits l = {.rows = N, .sequence = N, .D = 136, .F = 136, .H = 1, .K = 64, .V = 64, .R = R, .drops = 1, .generates = way == FEW_ROWS};
    CHECK(!cpu->reserve(cpu->self, &l, &e) && !gpu->reserve(gpu->self, &l, &e), "%s", e.text);
    struct both_weight w;
    weight_of(&w, f, out, in, 1);
    struct pair x = make(N, in + behind, DT_BF16, 1), y = make(N, out, DT_BF16, 0), dy = make(N, out + behind, DT_BF16, 1), dx = make(N, in, DT_BF16, 0), joint = make(out + R, in + R, DT_BF16, 0), xa = make(N, R, DT_BF16, 0);
    struct pair A = make(R, in, DT_F32, 0.2f), B = make(out, R, DT_F32, 0.2f), m = make(1, out, DT_F32, 3), norm = make(1, out, DT_F32, 0), c = make(1, out, DT_F32, 0);
    struct pair dA = make(R, in, DT_F32, 1), dB = make(out, R, DT_F32, 1), dm = make(1, out, DT_F32, 1);
    for (int k = 0; k < 2; k++) {
        struct backend *b = k ? gpu : cpu;
        struct linear_args a = {.rows = k ? &r.g : &r.c, .x = side(&x, k), .n = 1, .dx = side(&dx, k)};
        struct linear_out *o = &a.out[0];
        const size_t size = dtype_bytes(a.x.type);
        o->w = k ? w.g : w.c;
        o->lora = (struct adapter){.A = side(&A, k), .B = side(&B, k), .dA = side(&dA, k), .dB = side(&dB, k), .scale = 0.75f,
                                   .m = side(&m, k).data, .c = side(&c, k).data, .dm = side(&dm, k).data};
        if (way == DROPPED) o->drop = (struct dropout){.p = 0.3f, .seed = 99, .step = 3, .layer = 2, .site = 1};
        o->y = side(&y, k), o->dy = side(&dy, k), o->xa = side(&xa, k), a.x.cols = in, o->dy.cols = out;
        if (behind) {
            o->xa = o->dxa = side(&x, k), o->xa.cols = o->dxa.cols = R, o->xa.data = (char *)o->xa.data + (size_t)in * size;
            o->dxa.data = (char *)side(&dy, k).data + (size_t)out * size, o->dxa.ld = o->dy.ld;
        }
        op_dora(b, &(struct dora_args){.w = o->w, .lora = o->lora, .norm = side(&norm, k).data});
        if (k && behind) {
            struct join_args j = {.n = 1, .to = side(&joint, k)};
            j.part[0].w = o->w, j.part[0].lora = o->lora;
            op_join(gpu, &j), a.joint = j.to;
        }
        if (way == FEW_ROWS) o->dy = (struct mat){0};
        op_linear(b, &a);
        if (way == FEW_ROWS) continue;
        op_linear_bwd(b, &a);
        op_dora_bwd(b, &(struct dora_args){.w = o->w, .lora = o->lora, .rows = a.rows, .y = o->y, .dy = o->dy});
    }
    compare("norm", where, &norm, 1e-5), compare("c", where, &c, 1e-5), compare("y", where, &y, 8e-3);
    if (way != FEW_ROWS) compare("dx", where, &dx, 1e-2), compare("dA", where, &dA, 8e-3), compare("dB", where, &dB, 8e-3), compare("dm", where, &dm, 8e-3);
    struct pair *all[] = {&x, &y, &dy, &dx, &joint, &xa, &A, &B, &m, &norm, &c, &dA, &dB, &dm};
    for (int i = 0; i < 14; i++) drop(all[i]);
    weight_drop(&w), rows_drop(&r);
}
TEST(magnitudes_of_dora) {
    NEED_CARD();
    const enum weight_format formats[] = {W_BF16, W_Q4, W_INT8, W_F32};
    for (int s = 0; s < 6; s++)
        for (int way = 0; way < FEW_ROWS; way++)
            for (int f = 0; f < (s == 3 ? 4 : 1); f++) magnitudes(shapes[s], way, formats[f]);
    for (int f = 0; f < 4; f++) magnitudes(one, FEW_ROWS, formats[f]), magnitudes(odd, FEW_ROWS, formats[f]);
}

/* What attention reads and writes: q and k interleaved head by head, `pad` unused columns behind every row. */
struct attention { struct both_rows r; struct pair qk, v, o, d_o, dqk, dv, lse, delta; int64_t H, K; };
static void attention_of(struct attention *t, const int *lengths, int documents, int64_t H, int64_t K, int pad) {
    t->H = H, t->K = K;
    rows_of(&t->r, lengths, documents);
    int64_t N = t->r.c.N, D = H * K;
    limits(N, D, D, H, K, 64, 4);
    t->qk = make(N, 2 * D + pad, DT_BF16, 2), t->v = make(N, D + pad, DT_BF16, 1), t->d_o = make(N, D + pad, DT_BF16, 1);
    /* the columns behind the rows stay as they are; without them outputs start poisoned */
    t->o = make(N, D + pad, DT_BF16, pad ? 1 : 0), t->dqk = make(N, 2 * D + pad, DT_BF16, pad ? 1 : 0), t->dv = make(N, D + pad, DT_BF16, pad ? 1 : 0);
    t->lse = make(N, H, DT_F32, 0), t->delta = make(N, H, DT_F32, 0);
}
static void attention_drop(struct attention *t) {
    struct pair *all[] = {&t->qk, &t->v, &t->o, &t->d_o, &t->dqk, &t->dv, &t->lse, &t->delta};
    for (int i = 0; i < 8; i++) drop(all[i]);
    rows_drop(&t->r);
}
static struct mat columns(const struct pair *p, int k, int64_t from, int64_t cols) {
    struct mat m = side(p, k);
    m.data = (char *)m.data + (size_t)from * dtype_bytes(m.type), m.cols = cols;
    return m;
}
static void attend_both_ways(const struct attention *t, int k) {
    int64_t K = t->K, D = t->H * K;
    struct attend_args a = {.rows = k ? &t->r.g : &t->r.c, .H = t->H, .K = K, .q_step = 2 * K, .k_step = 2 * K, .v_step = K, .lse = side(&t->lse, k).data, .delta = side(&t->delta, k).data,
                            .q = columns(&t->qk, k, 0, 2 * D), .k = columns(&t->qk, k, K, 2 * D - K), .v = columns(&t->v, k, 0, D), .o = columns(&t->o, k, 0, D), .d_o = columns(&t->d_o, k, 0, D),
                            .dq = columns(&t->dqk, k, 0, 2 * D), .dk = columns(&t->dqk, k, K, 2 * D - K), .dv = columns(&t->dv, k, 0, D)};
    op_attend(k ? gpu : cpu, &a), op_attend_bwd(k ? gpu : cpu, &a);
}

TEST(attention) {
    NEED_CARD();
    static const int around[] = {127, 191, 1, 193, 257, 64, 0}, *const more[] = {one, odd, tile, several, equal, longer, around};
    for (int s = 0; s < 7; s++)
        for (int h = 0; h < 3; h++)
            for (int doc = 0; doc < 3; doc++) {
                int64_t K = (int64_t[]){16, 64, 128}[h];
                struct attention t;
                attention_of(&t, more[s], (int[]){0, 50, 131}[doc], 3, K, doc == 1 ? 8 : 0);
                char where[60];
                snprintf(where, sizeof where, "rows %lld K %lld docs %d", (long long)t.r.c.N, (long long)K, doc);
                for (int k = 0; k < 2; k++) attend_both_ways(&t, k);
                compare("o", where, &t.o, 8e-3), compare("lse", where, &t.lse, 1e-4), compare("dqk", where, &t.dqk, 1.5e-2), compare("dv", where, &t.dv, 1e-2);
                attention_drop(&t);
            }
    for (int h = 0; h < 3; h++)
        for (int n = 0; n < 3; n++) { /* generation: a cache before the rows */
            int64_t K = (int64_t[]){16, 64, 128}[h], H = 2, D = H * K, N = (int64_t[]){1, 5, 70}[n], past = 130;
            struct both_rows r;
            char where[60];
            rows_of(&r, (int[]){(int)N, 0}, 0);
            snprintf(where, sizeof where, "past %lld rows %lld K %lld", (long long)past, (long long)N, (long long)K);
            limits(N, D, D, H, K, 64, 4);
            struct pair q = make(N, D, DT_BF16, 2), key = make(past + N, D, DT_BF16, 2), v = make(past + N, D, DT_BF16, 1), o = make(N, D, DT_BF16, 0), lse = make(N, H, DT_F32, 0);
            for (int64_t i = 0; i < N; i++) ((int32_t *)r.first.c.data)[i] = 3;
            upload(&r.first);
            for (int k = 0; k < 2; k++)
                op_attend(k ? gpu : cpu, &(struct attend_args){.rows = k ? &r.g : &r.c, .H = H, .K = K, .past = past, .q = side(&q, k), .k = side(&key, k), .v = side(&v, k), .o = side(&o, k), .q_step = K, .k_step = K, .v_step = K, .lse = side(&lse, k).data});
            compare("o", where, &o, 8e-3), compare("lse", where, &lse, 1e-4);
            drop(&q), drop(&key), drop(&v), drop(&o), drop(&lse), rows_drop(&r);
        }
}

/* A sequence gives the same bits alone as among others, and every time. */
TEST(attention_alone) {
    NEED_CARD();
    for (int h = 0; h < 3; h++) {
        enum { H = 40, BEFORE = 263, ROWS = 517 }; /* items for every multiprocessor */
        int64_t K = (int64_t[]){16, 64, 128}[h];
        struct attention all, own;
        attention_of(&all, (int[]){200, 63, ROWS, 90, 0}, 150, H, K, 0);
        for (int round = 0; round < 2; round++) {
            attention_of(&own, (int[]){ROWS, 0}, 150, H, K, 0);
            struct pair *from[] = {&all.qk, &all.v, &all.d_o, &all.o, &all.lse, &all.dqk, &all.dv}, *to[] = {&own.qk, &own.v, &own.d_o, &own.o, &own.lse, &own.dqk, &own.dv};
            for (int i = 0; i < 3; i++) memcpy(to[i]->c.data, (float *)from[i]->c.data + BEFORE * from[i]->c.cols, (size_t)to[i]->n * 4), upload(to[i]);
            attend_both_ways(&all, 1), attend_both_ways(&own, 1);
            for (int i = 3; i < 7; i++) {
                float *x = download(from[i]), *y = download(to[i]);
                CHECK(!memcmp(x + BEFORE * from[i]->c.cols, y, (size_t)to[i]->n * 4), "K %lld, output %d, round %d", (long long)K, i - 3, round);
                free(x), free(y);
            }
            attention_drop(&own);
        }
        attention_drop(&all);
    }
}

static void loss_at(int s) {
    for (int v = 0; v < 9; v++) {
        struct both_rows r;
        int64_t D = v % 2 ? 136 : 64, V = (int64_t[]){96, 517, 4096, 2, 8, 33, 257, 1024, 5003}[v], N, n = 0;
        char where[80];
        rows_of(&r, shapes[s], 0);
        N = r.c.N;
        const float smoothing = (s + v) % 2 ? 0 : 0.125f;
        snprintf(where, sizeof where, "loss rows %lld V %lld smoothing %g", (long long)N, (long long)V, (double)smoothing);
        limits(N, D, D, 1, 64, V, 4);
        struct pair y = make(N, D, DT_BF16, 1), dy = make(N, D, DT_BF16, 0), row = make(N, 1, DT_I32, 1), label = make(N, 1, DT_I32, 1), weight = make(N, 1, DT_F32, 1), nll = make(N, 1, DT_F32, 0), dE = make(V, D, DT_F32, 1);
        struct both_weight E;
        weight_of(&E, W_BF16, V, D, 0);
        for (int64_t t = 0; t < N; t++)
            if (t % 5 != 3) ((int32_t *)row.c.data)[n] = (int32_t)t, ((int32_t *)label.c.data)[n++] = (int32_t)(t * 31 % V);
        upload(&row), upload(&label);
        nll.n = n;
        size_t work_bytes = (size_t)(V + D) * 2 * (v % 3 == 1 ? 7 : 100) + 1024; /* several slices, or one */
        void *work = gpu->alloc(gpu->self, AT_DEVICE, work_bytes);
        for (int k = 0; k < 2; k++)
            op_loss(k ? gpu : cpu, &(struct loss_args){.rows = k ? &r.g : &r.c, .y = side(&y, k), .E = k ? E.g : E.c, .n = n, .row = side(&row, k).data, .label = side(&label, k).data, .weight = side(&weight, k).data, .smoothing = smoothing,
                                                       .nll = side(&nll, k).data, .dy = side(&dy, k), .dE = side(&dE, k), .work = work, .work_bytes = work_bytes});
        compare("nll", where, &nll, 4e-3), compare("dy", where, &dy, 1.5e-2), compare("dE", where, &dE, 1e-2);
        nll.n = N;
        gpu->release(gpu->self, AT_DEVICE, work);
        struct pair *all[] = {&y, &dy, &row, &label, &weight, &nll, &dE};
        for (int i = 0; i < 7; i++) drop(all[i]);
        weight_drop(&E), rows_drop(&r);
    }
}
/* Apart, since racecheck keeps something of every launch until a program ends. */
TEST(loss_of_few_rows) {
    NEED_CARD();
    for (int s = 0; s < 3; s++) loss_at(s);
}
TEST(loss_of_several_sequences) {
    NEED_CARD();
    loss_at(3), loss_at(4);
}
TEST(loss_of_many_rows) {
    NEED_CARD();
    loss_at(5);
}

TEST(optimizer) {
    NEED_CARD();
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

/* ---- strides and lists ---- */

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

/* The first `cols` columns of p; compare sees the rest too, which no op may touch. */
static struct mat part(const struct pair *p, int g, int64_t cols) {
    struct mat m = side(p, g);
    m.cols = cols;
    return m;
}
TEST(rows_with_stride) {
    NEED_CARD();
    const struct { int64_t D, ld; } sizes[] = {{1024, 1032}, {2048, 2112}, {2056, 2064}, {5120, 5120}, {8192, 8256}, {8200, 8200}, {640, 648}, {640, 643}};
    for (int s = 0; s < 8; s++)
        for (int bf = 0; bf < 2; bf++) {
            struct both_rows r;
            char where[60];
            rows_of(&r, several, 0);
            int64_t N = r.c.N, D = sizes[s].D, ld = sizes[s].ld, K = 128;
            snprintf(where, sizeof where, "D %lld ld %lld", (long long)D, (long long)ld);
            for (int64_t i = 0; i < N; i++) ((int32_t *)r.position.c.data)[i] += 8000; /* large angles */
            upload(&r.position);
            limits(N, ld, ld, 1, 128, 64, 4);
            struct pair x = make(N, ld, DT_BF16, 1), y = make(N, ld, DT_BF16, 1), dy = make(N, ld, DT_BF16, 1), dx = make(N, ld, DT_BF16, 1), over = make(N, ld, DT_BF16, 1);
            struct pair g = make(1, D, bf ? DT_BF16 : DT_F32, 1), rr = make(N, 1, DT_F32, 0), dg = make(1, D, DT_F32, 1);
            for (int k = 0; k < 2; k++) {
                struct backend *b = k ? gpu : cpu;
                struct norm_args n = {.rows = k ? &r.g : &r.c, .x = part(&x, k, D), .y = part(&y, k, D), .g = side(&g, k).data, .g_type = side(&g, k).type, .r = side(&rr, k).data, .eps = 1e-6f, .dy = part(&dy, k, D), .dx = part(&dx, k, D), .dg = side(&dg, k).data};
                op_norm(b, &n), op_norm_bwd(b, &n);
                n.dx = part(&over, k, D), n.overwrite = 1, n.dg = NULL;
                op_norm_bwd(b, &n);
            }
            compare("norm", where, &y, 6e-3), compare("norm_bwd +=", where, &dx, 6e-3), compare("norm_bwd =", where, &over, 6e-3), compare("dg", where, &dg, 1e-4);
            if (D % K == 0 && !bf) {
                for (int k = 0; k < 2; k++) {
                    const struct rows *rows = k ? &r.g : &r.c;
                    op_rope(k ? gpu : cpu, &(struct rope_args){.rows = rows, .x = part(&dy, k, D), .K = K, .sign = 1});
                    op_gate(k ? gpu : cpu, &(struct gate_args){.rows = rows, .g = part(&x, k, D), .u = part(&dx, k, D), .y = part(&y, k, D)});
                    op_gate_bwd(k ? gpu : cpu, &(struct gate_args){.rows = rows, .g = part(&x, k, D), .u = part(&dx, k, D), .dy = part(&over, k, D), .dg = part(&x, k, D), .du = part(&dx, k, D)});
                }
                compare("rope", where, &dy, 6e-3), compare("gate", where, &y, 8e-3), compare("gate_bwd dg", where, &x, 1e-2), compare("gate_bwd du", where, &dx, 1e-2);
            }
            struct pair *all[] = {&x, &y, &dy, &dx, &over, &g, &rr, &dg};
            for (int i = 0; i < 8; i++) drop(all[i]);
            rows_drop(&r);
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

TEST(lists_of_tensors) { /* many, odd, empty, at odd addresses, both kinds of state: as the CPU, and the same bits again */
    NEED_CARD();
    enum { TENSORS = 75 };
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
