/* Golden checkpoints: the same weights in every layout, and bitsandbytes files read, written and read again.
 * */
#include "base/half.h"
#include "base/file.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "tests/test.h"
#include <stdio.h>
#include <unistd.h>

static struct ckpt *open_golden(const char *name) {
    char path[1200];
    struct err e = {0};
    snprintf(path, sizeof path, "%s/goldens/%s", shared_dir(), name);
    struct ckpt *c = ckpt_open(path, &e);
    CHECK(c, "%s", e.text);
    return c;
}

static void *read_all(const struct ckpt *c, const struct ckpt_tensor *t, enum dtype to) {
    struct err e = {0};
    void *p = sys_alloc((size_t)t->count * dtype_bytes(to), "test", &e);
    CHECK(p && !ckpt_read_all(c, t, to, p, &e), "%s", e.text);
    return p;
}

/* Every tensor of b, as bf16, has the bits of a rounded to bf16; shapes agree. */
static void same_in_bf16(const struct ckpt *a, const struct ckpt *b) {
    for (int64_t i = 0; i < ckpt_count(b); i++) {
        const struct ckpt_tensor *y = ckpt_at(b, i), *x = ckpt_find(a, y->name);
        REQUIRE(x, "%s is missing in %s", y->name, ckpt_file(a, ckpt_at(a, 0)));
        REQUIRE(x->rank == y->rank && !memcmp(x->shape, y->shape, sizeof x->shape), "%s: shapes differ",
                y->name);
        float *fx = read_all(a, x, DT_F32), *fy = read_all(b, y, DT_F32);
        uint16_t *hx = read_all(a, x, DT_BF16), *hy = read_all(b, y, DT_BF16);
        int64_t wrong = 0;
        for (int64_t k = 0; k < x->count; k++)
            wrong += hx[k] != f32_to_bf16(fx[k]) || hy[k] != hx[k] ||
                     f32_bits(fy[k]) != f32_bits(bf16_to_f32(hx[k]));
        CHECK(!wrong, "%s in %s: %lld elements differ", y->name, ckpt_file(b, y), (long long)wrong);
        sys_free(fx), sys_free(fy), sys_free(hx), sys_free(hy);
    }
}

TEST(every_layout_holds_the_same_weights) {
    if (!shared_dir()) SKIP("no shared folder");
    static const struct {
        const char *path;
        int64_t tensors;
    } layouts[] = {
        {"yuan2-tiny-a/bf16", 30}, {"yuan2-tiny-a/bf16-sharded", 31}, {"yuan2-tiny-a/bf16-safetensors", 30}};
    struct ckpt *fp32 = open_golden("yuan2-tiny-a/fp32");
    REQUIRE(fp32, "no fp32 checkpoint");
    CHECK(ckpt_count(fp32) == 33, "%lld tensors", (long long)ckpt_count(fp32)); /* and the head, 2 inv_freq */
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        struct ckpt *c = open_golden(layouts[i].path);
        REQUIRE(c, "%s", layouts[i].path);
        CHECK(ckpt_count(c) == layouts[i].tensors, "%s: %lld tensors", layouts[i].path,
              (long long)ckpt_count(c));
        same_in_bf16(fp32, c);
        ckpt_close(c);
    }
    ckpt_close(fp32);
}

TEST(views_of_one_storage_and_transposed_views) {
    if (!shared_dir()) SKIP("no shared folder");
    struct ckpt *c = open_golden("yuan2-tiny-a/fp32");
    REQUIRE(c, "no fp32 checkpoint");
    const struct ckpt_tensor *q = ckpt_find(c, "model.layers.0.self_attn.q_proj.weight");
    const struct ckpt_tensor *k = ckpt_find(c, "model.layers.0.self_attn.k_proj.weight");
    const struct ckpt_tensor *o = ckpt_find(c, "model.layers.0.self_attn.o_proj.weight");
    const struct ckpt_tensor *head = ckpt_find(c, "lm_head.weight"),
                             *in = ckpt_find(c, "model.embed_tokens.weight");
    REQUIRE(q && k && o && head && in, "tensors are missing");
    CHECK(k->offset - q->offset == 64 * 64 * 4, "k_proj lies %lld bytes behind q_proj",
          (long long)(k->offset - q->offset));
    CHECK(head->offset == in->offset, "the head has a storage of its own");
    CHECK(o->stride[0] == 1 && o->stride[1] == 64, "strides %lld %lld", (long long)o->stride[0],
          (long long)o->stride[1]);
    float *whole = read_all(c, o, DT_F32), part[100];
    struct err e = {0};
    for (int64_t first = 0; first < o->count; first += 37) { /* ranges that begin and end inside rows */
        int64_t n = o->count - first < 100 ? o->count - first : 100;
        REQUIRE(!ckpt_read_range(c, o, first, n, DT_F32, part, &e), "%s", e.text);
        CHECK(!memcmp(part, whole + first, (size_t)n * 4), "elements from %lld", (long long)first);
    }
    sys_free(whole);
    ckpt_close(c);
}

TEST(adapter) {
    char path[1200];
    struct err e = {0};
    if (!shared_dir()) SKIP("no shared folder");
    snprintf(path, sizeof path, "%s/goldens/yuan2-tiny-a/lora-adapter", shared_dir());
    struct ckpt *c = ckpt_open_adapter(path, &e);
    REQUIRE(c, "%s", e.text);
    CHECK(ckpt_count(c) == 28, "%lld tensors", (long long)ckpt_count(c));
    CHECK(!ckpt_open(path, &e) && strstr(e.text, "holds no model"), "%s", e.text);
    ckpt_close(c);
}

/* Copies every tensor of a to DIR/model.safetensors, writing the quant_state texts anew. */
static void copy(const struct ckpt *a, const char *dir) {
    struct err e = {0};
    int64_t n = ckpt_count(a);
    const struct ckpt_tensor *order[64];
    REQUIRE(n <= 64, "%lld tensors", (long long)n);
    for (int64_t i = 0; i < n; i++) order[i] = ckpt_at(a, i);
    for (int64_t i = 1; i < n;
         i++) /* in the order of the file, so that the payloads must agree byte by byte */
        for (int64_t k = i; k && order[k - 1]->offset > order[k]->offset; k--) {
            const struct ckpt_tensor *swap = order[k];
            order[k] = order[k - 1], order[k - 1] = swap;
        }
    struct ckpt_writer *w = ckpt_create(dir, "model", 0, &e);
    REQUIRE(w, "%s", e.text);
    for (int64_t i = 0; i < n; i++)
        REQUIRE(!ckpt_declare(w, order[i]->name, order[i]->type, order[i]->rank, order[i]->shape, &e), "%s",
                e.text);
    for (int64_t i = 0; i < n; i++) {
        const char *state = strstr(order[i]->name, ".quant_state.");
        void *p = read_all(a, order[i], order[i]->type);
        char name[200];
        struct ckpt_quant q;
        if (state) {
            snprintf(name, sizeof name, "%.*s", (int)(state - order[i]->name), order[i]->name);
            sys_free(p);
            REQUIRE(!ckpt_quant(a, name, &q, &e), "%s", e.text);
            p = ckpt_quant_state(&q, &e);
            REQUIRE(p && strlen(p) == (size_t)order[i]->count, "%s: '%s'", name, p ? (char *)p : e.text);
        }
        REQUIRE(!ckpt_write(w, p, order[i]->count * (int64_t)dtype_bytes(order[i]->type), &e), "%s", e.text);
        sys_free(p);
    }
    REQUIRE(!ckpt_commit(w, &e), "%s", e.text);
}

TEST(bitsandbytes_files_come_back_bit_for_bit) {
    static const struct {
        const char *file;
        enum q4_type type;
        int nested;
    } cases[] = {{"nf4/ckpt_nf4_double.safetensors", Q4_NF4, 1},
                 {"nf4/ckpt_nf4_single.safetensors", Q4_NF4, 0},
                 {"nf4/ckpt_fp4_double.safetensors", Q4_FP4, 1}};
    if (!shared_dir()) SKIP("no shared folder");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        struct ckpt_quant q;
        char dir[] = "/tmp/qlora-test-XXXXXX";
        struct ckpt *a = open_golden(cases[i].file);
        REQUIRE(a && mkdtemp(dir), "cannot begin");
        REQUIRE(!ckpt_quant(a, "model.layers.0.mlp.down_proj.weight", &q, &e), "%s", e.text);
        CHECK(q.bits == 4 && q.type == cases[i].type && q.nested == cases[i].nested,
              "bits %d type %d nested %d", q.bits, q.type, q.nested);
        CHECK(q.rows == 128 && q.cols == 320 && q.block == 64 && q.source == DT_BF16, "%lld x %lld",
              (long long)q.rows, (long long)q.cols);
        CHECK(!memcmp(q.levels, q4_levels(q.type), sizeof q.levels), "levels of %s", cases[i].file);
        REQUIRE(!ckpt_quant(a, "model.embed_tokens.weight", &q, &e) && !q.bits, "%s", e.text);
        copy(a, dir);
        struct ckpt *b = ckpt_open(dir, &e);
        REQUIRE(b, "%s", e.text);
        CHECK(ckpt_count(a) == ckpt_count(b), "%lld tensors", (long long)ckpt_count(b));
        for (int64_t k = 0; k < ckpt_count(a); k++) {
            const struct ckpt_tensor *x = ckpt_at(a, k), *y = ckpt_at(b, k);
            REQUIRE(!strcmp(x->name, y->name) && x->type == y->type && x->rank == y->rank &&
                        !memcmp(x->shape, y->shape, sizeof x->shape),
                    "%s, %s", x->name, y->name);
            void *p = read_all(a, x, x->type), *r = read_all(b, y, y->type);
            CHECK(!memcmp(p, r, (size_t)x->count * dtype_bytes(x->type)), "%s", x->name);
            sys_free(p), sys_free(r);
        }
        ckpt_close(a), ckpt_close(b);
        dir_remove(dir, &e);
    }
}

TEST(int8_rows) {
    if (!shared_dir()) SKIP("no shared folder");
    struct err e = {0};
    struct ckpt_quant q;
    struct ckpt *c = open_golden("nf4/int8_rows_48x80_bf16.safetensors");
    REQUIRE(c && !ckpt_quant(c, "weight", &q, &e), "%s", e.text);
    CHECK(q.bits == 8 && q.rows == 48 && q.cols == 80 && q.row_scale && q.row_scale->count == 48, "bits %d",
          q.bits);
    ckpt_close(c);
}

TEST_MAIN
