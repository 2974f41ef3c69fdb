/* Every op of the CUDA backend against the CPU's, at sizes 1, odd, around tiles, and real; twice for the same bits. Outputs differ by
 * bf16 rounding of results and of what lies between (xa, probabilities, logits): the tolerance of each is a small multiple of
 * 2^-8 relative to the output's norm. */
#include "tests/ops/pairs.h"

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

/* The adapter as columns behind x and dy, as the model lays them out; with and without a joint operand made before. */
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

static void loss_at(int s, int from, int to) {
    for (int v = from; v < to; v++) {
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
        size_t work_bytes = (size_t)((V + D) * 2 * (v == 7 ? 42 : v % 3 == 1 ? 7 : 100)) + 1024; /* several slices, or one */
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
    for (int s = 0; s < 3; s++) loss_at(s, 0, 9);
}
TEST(loss_of_several_sequences) {
    NEED_CARD();
    loss_at(3, 0, 9), loss_at(4, 0, 9);
}
TEST(loss_of_many_rows_and_words) {
    NEED_CARD();
    loss_at(5, 0, 3);
}
TEST(loss_of_many_rows_and_few_words) {
    NEED_CARD();
    loss_at(5, 3, 6);
}
TEST(loss_of_many_rows_and_more_words) {
    NEED_CARD();
    loss_at(5, 6, 9);
}

/* ---- strides ---- */

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

TEST(no_failure_was_left) {
    NEED_CARD();
    CHECK(!gpu->sync(gpu->self, &e), "%s", e.text);
    backend_close(gpu), backend_close(cpu);
}
TEST_MAIN
