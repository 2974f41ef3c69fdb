/* qlora new and qlora quantize as functions: random weights that repeat, and quantised checkpoints that decode to what the
 * formats define. Models are tiny but have every tensor. */
#include "base/file.h"
#include "base/log.h"
#include "base/str.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "model/files.h"
#include "model/export.h"
#include "model/model.h"
#include "model/tensors.h"
#include "tests/test.h"
#include <math.h>
#include <omp.h>
#include <unistd.h>

static char root[64];

static const char *folder(const char *name) {
    static char path[4][128];
    static int turn;
    char *p = path[turn++ & 3];
    snprintf(p, sizeof path[0], "%s/%s", root, name);
    return p;
}

/* Makes a model of the tiny configuration with two more overrides. */
static int make(const char *name, const char *a, const char *b, uint64_t seed, struct err *e) {
    struct model_config base = {0}, c = {0};
    const char *text = model_config_named("yuan2-tiny"),
               *overrides[] = {
                   "vocab_size=512", "eod_token=510", "eos_token_id=510", "pad_token_id=510", a, b};
    char *changed = NULL;
    log_quiet = 1;
    *e = (struct err){0};
    int rc = model_config_parse(text, strlen(text), "tiny", &base, e) ||
             !(changed = model_config_text(&base, overrides,
                                           b   ? 6
                                           : a ? 5
                                               : 4,
                                           NULL, e)) ||
             model_config_parse(changed, strlen(changed), "tiny", &c, e) || dir_make(folder(name), e) ||
             model_new(&c, folder(name), seed, NULL, e);
    sys_free(changed);
    model_config_free(&base);
    model_config_free(&c);
    return rc ? -1 : 0;
}

static int same_file(const char *a, const char *b, const char *file) {
    char x[300], y[300], *p = NULL, *q = NULL;
    size_t n = 0, m = 0;
    snprintf(x, sizeof x, "%s/%s", a, file);
    snprintf(y, sizeof y, "%s/%s", b, file);
    int rc = !file_read_all(x, 1 << 26, &p, &n, NULL) && !file_read_all(y, 1 << 26, &q, &m, NULL) && n == m &&
             !memcmp(p, q, n);
    sys_free(p);
    sys_free(q);
    return rc;
}

static float *read_tensor(const struct ckpt *c, const char *name, int64_t *n) {
    const struct ckpt_tensor *t = ckpt_find(c, name);
    if (!t) return NULL;
    float *x = sys_alloc((size_t)t->count * 4, "test", NULL);
    *n = t->count;
    return x && !ckpt_read_all(c, t, DT_F32, x, NULL) ? x : NULL;
}

/* ---- new ---- */

TEST(same_seed_same_bytes_whatever_the_threads) {
    struct err e;
    int threads = omp_get_max_threads();
    REQUIRE(!make("a", NULL, NULL, 1, &e), "%s", e.text);
    omp_set_num_threads(3);
    REQUIRE(!make("b", NULL, NULL, 1, &e), "%s", e.text);
    omp_set_num_threads(threads);
    REQUIRE(!make("c", NULL, NULL, 2, &e), "%s", e.text);
    CHECK(same_file(folder("a"), folder("b"), "model.safetensors"), "the same seed gives other bytes");
    CHECK(same_file(folder("a"), folder("b"), "config.json"), "config.json differs");
    CHECK(!same_file(folder("a"), folder("c"), "model.safetensors"), "another seed gives the same bytes");
}

TEST(quantised_as_it_is_made_or_afterwards) {
    static const struct export_how how[] = {{.type = -1, .bits = 4, .nested = 1}, {.type = -1, .bits = 4, .filter_4bit = 1}, {.type = -1, .bits = 8}};
    static const char *const stem[] = {"nested", "taps", "int8"};
    struct err e;
    for (size_t i = 0; i < sizeof how / sizeof *how; i++) {
        char plain[40], made[40], later[40];
        struct model_config c = {0};
        snprintf(plain, sizeof plain, "%s-plain", stem[i]), snprintf(made, sizeof made, "%s-made", stem[i]), snprintf(later, sizeof later, "%s-later", stem[i]);
        REQUIRE(!make(plain, NULL, NULL, 1, &e) && !model_config_read(folder(plain), &c, &e) && !dir_make(folder(made), &e), "%s", e.text);
        REQUIRE(!model_new(&c, folder(made), 1, &how[i], &e), "%s", e.text);
        REQUIRE(!model_export(folder(plain), folder(later), &how[i], &e), "%s", e.text);
        CHECK(same_file(folder(made), folder(later), "model.safetensors"), "%s: other weights", stem[i]);
        CHECK(same_file(folder(made), folder(later), "config.json"), "%s: another configuration", stem[i]);
        model_config_free(&c);
    }
}

TEST(weights_are_normal_norms_one_biases_zero) {
    struct err e;
    struct model_config c;
    REQUIRE(!make("n", "torch_dtype=float32", "hidden_size=256", 5, &e), "%s", e.text);
    struct ckpt *k = ckpt_open(folder("n"), &e);
    REQUIRE(k && !model_config_read(folder("n"), &c, &e), "%s", e.text);
    CHECK(ckpt_count(k) == model_tensor_count(&c), "%lld tensors", (long long)ckpt_count(k));
    int64_t all = 0;
    for (int64_t i = 0; i < model_tensor_count(&c); i++) {
        struct model_tensor t;
        int64_t n = 0, inside = 0, beyond2 = 0;
        double sum = 0, squares = 0;
        model_tensor_at(&c, i, &t);
        float *x = read_tensor(k, t.name, &n);
        REQUIRE(x && n == t.count, "%s: %lld elements, %lld expected", t.name, (long long)n,
                (long long)t.count);
        all += n;
        for (int64_t j = 0; j < n; j++) {
            sum += x[j], squares += x[j] * x[j];
            inside += fabsf(x[j])<0.02f, beyond2 += fabsf(x[j])> 0.04f;
        }
        double mean = sum / (double)n, sd = sqrt(squares / (double)n), root_n = sqrt((double)n);
        if (t.kind == TENSOR_NORM || t.kind == TENSOR_BIAS) {
            CHECK(mean == (t.kind == TENSOR_NORM) && sd == mean, "%s: mean %g", t.name, mean);
        } else { /* six standard errors of each estimate */
            CHECK(fabs(mean) < 6 * 0.02 / root_n, "%s: mean %g", t.name, mean);
            CHECK(fabs(sd / 0.02 - 1) < 6 / sqrt(2) / root_n, "%s: sd %g", t.name, sd);
            CHECK(fabs((double)inside / (double)n - 0.6827) < 6 * 0.466 / root_n, "%s: %lld within one sd",
                  t.name, (long long)inside);
            CHECK(fabs((double)beyond2 / (double)n - 0.0455) < 6 * 0.209 / root_n, "%s: %lld beyond two",
                  t.name, (long long)beyond2);
        }
        sys_free(x);
    }
    CHECK(all == model_parameters(&c), "%lld parameters, %lld counted", (long long)all,
          (long long)model_parameters(&c));
    ckpt_close(k);
    model_config_free(&c);
}

TEST(parameters_of_the_published_models) {
    static const int64_t known[] = {2088724480, 51842105344, 102577954816};
    for (int i = 0; i < 3; i++) {
        struct model_config c;
        struct err e = {0};
        const char *text = model_config_named(model_config_names[i]);
        REQUIRE(!model_config_parse(text, strlen(text), "x", &c, &e), "%s", e.text);
        CHECK(model_parameters(&c) == known[i], "%s: %lld", model_config_names[i],
              (long long)model_parameters(&c));
        model_config_free(&c);
    }
}

/* ---- quantize ---- */

static int quantize(const char *from, const char *to, int bits, enum q4_type type, int nested,
                    struct err *e) {
    struct export_how how = {.type = -1, .bits = bits, .q_type = type, .nested = nested, .original = 1};
    *e = (struct err){0};
    return model_export(from, to, &how, e);
}

static int same_bytes(const struct ckpt *c, const char *name, const char *tail, const void *want,
                      size_t bytes) {
    char full[200], *have = sys_alloc(bytes, "test", NULL);
    snprintf(full, sizeof full, "%s%s", name, tail);
    const struct ckpt_tensor *t = ckpt_find(c, full);
    int same = t && (size_t)t->count * dtype_bytes(t->type) == bytes &&
               !ckpt_read_all(c, t, t->type, have, NULL) && !memcmp(have, want, bytes);
    sys_free(have);
    return same;
}

/* The parts of one matrix in the file against one call of the codec over the whole matrix. */
static void check_q4(const struct ckpt *out, const struct model_tensor *t, const void *w, enum dtype type,
                     enum q4_type q4, int nested) {
    int64_t n = t->count, nb = q4_blocks(n, 64), ng = q4_nested(nb);
    struct ckpt_quant q;
    struct err e = {0};
    uint8_t *codes = sys_alloc((size_t)n, "test", NULL), *small = sys_alloc((size_t)nb, "test", NULL);
    float *absmax = sys_alloc((size_t)nb * 4, "test", NULL),
          *groups = sys_alloc((size_t)ng * 4, "test", NULL), offset = 0;
    CHECK(q4_encode(q4, 64, w, type, n, codes, absmax) == -1, "not finite");
    q4_double(absmax, nb, small, groups, &offset);
    CHECK(!ckpt_quant(out, t->name, &q, &e), "%s", e.text);
    CHECK(q.bits == 4 && q.type == q4 && q.block == 64 && q.nested == nested && q.source == type &&
              q.rows == t->shape[0] && q.cols == t->shape[1],
          "%s: state", t->name);
    CHECK(same_bytes(out, t->name, "", codes, (size_t)q4_code_bytes(n)), "%s: codes", t->name);
    CHECK(same_bytes(out, t->name, ".quant_map", q4_levels(q4), 64), "%s: levels", t->name);
    if (nested) {
        CHECK(q.nested_offset == offset, "%s: offset %.9g, %.9g expected", t->name, q.nested_offset, offset);
        CHECK(same_bytes(out, t->name, ".absmax", small, (size_t)nb), "%s: scales", t->name);
        CHECK(same_bytes(out, t->name, ".nested_absmax", groups, (size_t)ng * 4), "%s: nested scales",
              t->name);
        CHECK(same_bytes(out, t->name, ".nested_quant_map", bw8_signed, 1024), "%s: map", t->name);
    } else {
        CHECK(same_bytes(out, t->name, ".absmax", absmax, (size_t)nb * 4), "%s: scales", t->name);
    }
    sys_free(codes);
    sys_free(small);
    sys_free(absmax);
    sys_free(groups);
}

static void check_int8(const struct ckpt *out, const struct model_tensor *t, const void *w, enum dtype type) {
    struct ckpt_quant q;
    struct err e = {0};
    char base[128];
    const uint8_t zero = 0;
    int8_t *codes = sys_alloc((size_t)t->count, "test", NULL);
    float *scale = sys_alloc((size_t)t->shape[0] * 4, "test", NULL);
    CHECK(int8_encode(w, type, t->shape[0], t->shape[1], codes, scale) == -1, "not finite");
    CHECK(!ckpt_quant(out, t->name, &q, &e) && q.bits == 8 && q.rows == t->shape[0] && q.cols == t->shape[1],
          "%s", e.text);
    snprintf(base, sizeof base, "%.*s", (int)strlen(t->name) - 7, t->name); /* without ".weight" */
    CHECK(same_bytes(out, t->name, "", codes, (size_t)t->count), "%s: codes", t->name);
    CHECK(same_bytes(out, base, ".SCB", scale, (size_t)t->shape[0] * 4), "%s: scales", t->name);
    CHECK(same_bytes(out, base, ".weight_format", &zero, 1), "%s: format", t->name);
    sys_free(codes);
    sys_free(scale);
}

/* Every tensor of `to` against `from` encoded whole. */
static void check_model(const char *from, const char *to, int bits, enum q4_type q4, int nested) {
    struct model_config c, d;
    struct err e = {0};
    REQUIRE(!model_config_read(from, &c, &e) && !model_config_read(to, &d, &e), "%s", e.text);
    CHECK(d.q_bits == bits && d.D == c.D && d.stored == c.stored, "config");
    CHECK(bits == 8 || (d.q_type == q4 && d.q_double == nested), "config of 4 bits");
    struct ckpt *in = ckpt_open(from, &e), *out = ckpt_open(to, &e);
    REQUIRE(in && out, "%s", e.text);
    for (int64_t i = 0; i < model_tensor_count(&c); i++) {
        struct model_tensor t;
        model_tensor_at(&c, i, &t);
        const struct ckpt_tensor *k = ckpt_find(in, t.name);
        REQUIRE(k, "%s", t.name);
        void *w = sys_alloc((size_t)t.count * 4, "test", NULL);
        REQUIRE(!ckpt_read_all(in, k, k->type, w, &e), "%s", e.text);
        if (t.kind != TENSOR_PROJ)
            CHECK(same_bytes(out, t.name, "", w, (size_t)t.count * dtype_bytes(k->type)), "%s", t.name);
        else if (bits == 8)
            check_int8(out, &t, w, k->type);
        else
            check_q4(out, &t, w, k->type, q4, nested);
        sys_free(w);
    }
    CHECK(!ckpt_find(out, "lm_head.weight"), "a tied head is stored");
    ckpt_close(in);
    ckpt_close(out);
    model_config_free(&c);
    model_config_free(&d);
}

TEST(parts_are_those_of_the_codec_over_the_whole_matrix) {
    static const struct {
        const char *to;
        int bits;
        enum q4_type type;
        int nested;
    } rows[] = {
        {"nf4d", 4, Q4_NF4, 1}, {"nf4", 4, Q4_NF4, 0}, {"fp4d", 4, Q4_FP4, 1}, {"int8", 8, Q4_NF4, 1}};
    struct err e;
    /* one layer whose MLP matrices have more elements than a piece of the quantiser, and an odd end */
    REQUIRE(!make("big", "num_hidden_layers=1", "intermediate_size=32801", 3, &e), "%s", e.text);
    for (int i = 0; i < 4; i++) {
        REQUIRE(!quantize(folder("big"), folder(rows[i].to), rows[i].bits, rows[i].type, rows[i].nested, &e),
                "%s", e.text);
        check_model(folder("big"), folder(rows[i].to), rows[i].bits, rows[i].type, rows[i].nested);
    }
}

TEST(sources_in_fp32_and_fp16) {
    struct err e;
    REQUIRE(!make("f32", "torch_dtype=float32", NULL, 4, &e) &&
                !make("f16", "torch_dtype=float16", NULL, 4, &e),
            "%s", e.text);
    REQUIRE(!quantize(folder("f32"), folder("f32q"), 4, Q4_NF4, 1, &e), "%s", e.text);
    check_model(folder("f32"), folder("f32q"), 4, Q4_NF4, 1);
    REQUIRE(!quantize(folder("f16"), folder("f16q"), 8, Q4_NF4, 1, &e), "%s", e.text);
    check_model(folder("f16"), folder("f16q"), 8, Q4_NF4, 1);
}

TEST(all_layouts_of_the_golden_checkpoint_give_one_file) {
    static const char *const layouts[] = {"bf16", "bf16-safetensors", "bf16-sharded"};
    const char *shared = shared_dir();
    char from[1200];
    struct err e;
    if (!shared) SKIP("no shared folder");
    log_quiet = 1;
    for (int i = 0; i < 3; i++) {
        snprintf(from, sizeof from, "%s/goldens/yuan2-tiny-a/%s", shared, layouts[i]);
        REQUIRE(!quantize(from, folder(layouts[i]), 4, Q4_NF4, 1, &e), "%s", e.text);
        CHECK(same_file(folder(layouts[0]), folder(layouts[i]), "model.safetensors"), "%s differs",
              layouts[i]);
    }
}

TEST(wrong_input_is_refused) {
    struct err e;
    REQUIRE(!make("ok", NULL, NULL, 1, &e) && !quantize(folder("ok"), folder("okq"), 4, Q4_NF4, 1, &e), "%s",
            e.text);
    CHECK(quantize(folder("okq"), folder("x"), 4, Q4_NF4, 1, &e) == -1 &&
              strstr(e.text, "quantised already (4 bits)"),
          "%s", e.text);
    CHECK(quantize(folder("ok"), folder("ok"), 4, Q4_NF4, 1, &e) == -1 &&
              strstr(e.text, "folder of the input"),
          "%s", e.text);
    CHECK(quantize(folder("ok"), folder("okq"), 4, Q4_NF4, 1, &e) == -1 && strstr(e.text, "already holds"),
          "%s", e.text);
    struct export_how again = {.type = -1, .bits = 8, .overwrite = 1};
    e = (struct err){0};
    CHECK(!model_export(folder("ok"), folder("okq"), &again, &e), "%s", e.text);
    CHECK(quantize(folder("nowhere"), folder("x"), 4, Q4_NF4, 1, &e) == -1 && e.code == ERR_INPUT, "%s",
          e.text);
    /* a tensor that does not fit the configuration, one that is missing, one that is not finite */
    char path[200], *text = NULL, *at;
    size_t n;
    snprintf(path, sizeof path, "%s/config.json", folder("ok"));
    REQUIRE(!file_read_all(path, 1 << 20, &text, &n, &e) && (at = strstr(text, "\"intermediate_size\": 128")),
            "%s", text);
    memcpy(at, "\"intermediate_size\": 136", 24);
    REQUIRE(!file_write_all(path, text, n, &e), "%s", e.text);
    CHECK(quantize(folder("ok"), folder("y"), 4, Q4_NF4, 1, &e) == -1 &&
              strstr(e.text, "gate_proj.weight has not the shape"),
          "%s", e.text);
    memcpy(at, "\"intermediate_size\": 128", 24);
    at = strstr(text, "\"num_hidden_layers\": 2");
    REQUIRE(at, "%s", text);
    at[21] = '3';
    REQUIRE(!file_write_all(path, text, n, &e), "%s", e.text);
    CHECK(quantize(folder("ok"), folder("y"), 4, Q4_NF4, 1, &e) == -1 &&
              strstr(e.text, "model.layers.2.self_attn.q_proj.weight is missing"),
          "%s", e.text);
    at[21] = '2';
    REQUIRE(!file_write_all(path, text, n, &e), "%s", e.text);
    sys_free(text);
    snprintf(path, sizeof path, "%s/model.safetensors", folder("ok"));
    REQUIRE(!file_read_all(path, 1 << 26, &text, &n, &e), "%s", e.text);
    memset(text + n - 1000, 0xff, 2); /* bf16 NaN in the last layer's last matrix or norms */
    for (size_t k = 500000 < n ? 500000 : n / 2; k < n - 2000; k += 4096) memset(text + k / 2 * 2, 0xff, 2);
    REQUIRE(!file_write_all(path, text, n, &e), "%s", e.text);
    sys_free(text);
    CHECK(quantize(folder("ok"), folder("y"), 4, Q4_NF4, 1, &e) == -1 && strstr(e.text, "is NaN"), "%s",
          e.text);
    snprintf(path, sizeof path, "%s/model.safetensors", folder("y"));
    CHECK(!path_exists(path), "a refused input leaves a file");
}

/* ---- the filter in 4 bits, in files ---- */

static int store(const char *from, const char *to, enum q4_type type, int nested, struct err *e) {
    struct export_how how = {.type = -1, .bits = 4, .q_type = type, .nested = nested, .filter_4bit = 1};
    return model_export(from, to, &how, e);
}

/* Loading what was stored so gives the pages that quantising on load gives, bit for bit. */
TEST(a_filter_stored_in_4_bits_is_the_one_made_on_load) {
    struct err e = {0};
    char name[20];
    REQUIRE(!make("whole", NULL, NULL, 5, &e), "%s", e.text);
    struct backend *be = backend_open("cpu", &e);
    REQUIRE(be, "%s", e.text);
    for (int i = 0; i < 4; i++) {
        const enum q4_type type = i & 1 ? Q4_FP4 : Q4_NF4;
        struct model a, b;
        struct ckpt *c = NULL;
        const struct model_how made = {.quantization_bit = 4, .q_type = type, .q_double = i / 2, .filter_4bit = 1, .resident_layers = -1}, plain = {.resident_layers = -1};
        snprintf(name, sizeof name, "taps-%d", i);
        REQUIRE(!store(folder("whole"), folder(name), type, i / 2, &e), "%s", e.text);
        REQUIRE(!model_open(&a, be, folder("whole"), &made, &c, &e) && !model_load(&a, &made, c, &e), "%s", e.text);
        ckpt_close(c);
        REQUIRE(!model_open(&b, be, folder(name), &plain, &c, &e) && !model_load(&b, &plain, c, &e), "%s", e.text);
        ckpt_close(c);
        CHECK(a.lay.bytes == b.lay.bytes && b.lay.conv == W_Q4, "layout of %s", name);
        for (int64_t l = 0; l < a.config.L; l++) {
            const char *x = pages_get(a.layers, l, PAGE_READ), *y = pages_get(b.layers, l, PAGE_READ);
            for (int t = 0; t < LT_COUNT; t++) { /* of single scales the map of scales, which nobody reads, is left out */
                const size_t at = a.lay.t[t].offset, n = t < MATRICES && i / 2 == 0 ? a.lay.tables[t] + 64 : a.lay.t[t].bytes;
                CHECK(!memcmp(x + at, y + at, n), "%s: layer %lld, tensor %d", name, (long long)l, t);
            }
            pages_put(a.layers, l, 0), pages_put(b.layers, l, 0);
        }
        CHECK(!memcmp(a.q_offset, b.q_offset, (size_t)a.config.L * sizeof *a.q_offset), "%s: offsets", name);
        model_free(&a), model_free(&b);
    }
    e = (struct err){0};
    CHECK(store(folder("taps-0"), folder("again"), Q4_NF4, 0, &e) == -1 && strstr(e.text, "stored in 4 bits, from which no other checkpoint"), "%s", e.text);
    backend_close(be);
}

/* One tap renamed: neither stored whole nor in taps. */
TEST(a_filter_that_is_stored_half_is_refused) {
    static const char has[] = "layers.1.self_attn.lf_gate.conv2.1.weight", gets[] = "layers.1.self_attn.lf_gate.conv2.7.weight";
    struct err e = {0};
    char path[200], *text;
    size_t n;
    REQUIRE(!make("half", NULL, NULL, 5, &e) && !store(folder("half"), folder("half-taps"), Q4_NF4, 1, &e), "%s", e.text);
    snprintf(path, sizeof path, "%s/model.safetensors", folder("half-taps"));
    REQUIRE(!file_read_all(path, 1 << 26, &text, &n, &e), "%s", e.text);
    int changed = 0;
    for (size_t i = 0; i + sizeof has < n && i < 200000; i++)
        if (!memcmp(text + i, has, sizeof has - 1)) memcpy(text + i, gets, sizeof gets - 1), changed++;
    REQUIRE(changed > 3 && !file_write_all(path, text, n, &e), "%d names changed", changed);
    sys_free(text);
    struct backend *be = backend_open("cpu", &e);
    struct model m;
    struct ckpt *c = NULL;
    const struct model_how how = {.resident_layers = -1};
    REQUIRE(be, "%s", e.text);
    CHECK(model_open(&m, be, folder("half-taps"), &how, &c, &e) == -1 && strstr(e.text, "conv2.weight is missing"), "%s", e.text);
    backend_close(be);
}

/* ---- quantised on load ---- */

TEST(a_filter_in_4_bits_is_its_taps_by_the_format) {
    struct err e = {0};
    REQUIRE(!make("taps", NULL, NULL, 5, &e), "%s", e.text);
    struct backend *be = backend_open("cpu", &e);
    struct ckpt *c = NULL;
    REQUIRE(be, "%s", e.text);
    for (int twice = 0; twice < 2; twice++) {
        struct model m;
        const struct model_how how = {.quantization_bit = 4, .q_type = Q4_NF4, .q_double = twice, .filter_4bit = 1, .resident_layers = -1};
        REQUIRE(!model_open(&m, be, folder("taps"), &how, &c, &e) && !model_load(&m, &how, c, &e), "%s", e.text);
        for (int64_t l = 0; l < m.config.L; l++) {
            struct layer w;
            void *page = pages_get(m.layers, l, PAGE_READ);
            model_layer(&m, l, page, &w);
            for (int conv = 0; conv < 2; conv++)
                for (int k = 0; k < 2; k++) {
                    const struct weight *got = conv ? &w.conv2[k] : &w.conv1[k];
                    char name[128];
                    int64_t both, n = got->rows * got->cols;
                    model_tensor_name(name, l, conv ? LT_CONV2_0 : LT_CONV1_0);
                    float *x = read_tensor(c, name, &both), *tap = sys_alloc((size_t)n * 4, "test", NULL), *y = sys_alloc((size_t)n * 4, "test", NULL), *scale = sys_alloc((size_t)q4_blocks(n, 64) * 4, "test", NULL);
                    uint8_t *codes = sys_alloc((size_t)q4_code_bytes(n), "test", NULL);
                    REQUIRE(x && tap && y && scale && codes && both == 2 * n && got->format == W_Q4, "%s", name);
                    for (int64_t i = 0; i < n; i++) tap[i] = x[2 * i + k];
                    REQUIRE(q4_encode(Q4_NF4, 64, tap, DT_F32, n, codes, scale) < 0, "%s", name);
                    CHECK(!memcmp(codes, got->q4.codes, (size_t)q4_code_bytes(n)), "%s, tap %d: other codes", name, k);
                    /* A scale in 8 bits is off by at most 1/255 of the largest of 256; a level is at most 0.15 from the next. */
                    q4_decode(&got->q4, 0, n, y, DT_F32);
                    double worst = 0, most = 0;
                    for (int64_t i = 0; i < n; i++) worst = fmax(worst, fabs((double)y[i] - (double)tap[i])), most = fmax(most, fabs((double)tap[i]));
                    CHECK(worst < 0.17 * most, "%s, tap %d: off by %g, values to %g", name, k, worst, most);
                    if (!twice) CHECK(!memcmp(scale, got->q4.absmax, (size_t)q4_blocks(n, 64) * 4), "%s, tap %d: other scales", name, k);
                    sys_free(x), sys_free(tap), sys_free(y), sys_free(scale), sys_free(codes);
                }
            pages_put(m.layers, l, 0);
        }
        ckpt_close(c);
        model_free(&m);
    }
    backend_close(be);
}

TEST(every_failing_call_leaves_no_model_behind) {
    static const char *const kinds[] = {"a", "o", "r", "w", "s", "n"};
    struct err e;
    REQUIRE(!make("src", "num_hidden_layers=1", NULL, 1, &e), "%s", e.text);
    for (int k = 0; k < 6; k++)
        for (int64_t at = 1;; at += at < 20 ? 1 : 37) {
            char path[200];
            dir_remove(folder("dst"), NULL);
            sys_fault = (struct sys_fault){.at = at, .error = 5};
            snprintf(sys_fault.kinds, sizeof sys_fault.kinds, "%s", kinds[k]);
            int rc = quantize(folder("src"), folder("dst"), 4, Q4_NF4, 1, &e);
            int64_t calls = sys_fault.calls;
            sys_fault = (struct sys_fault){0};
            CHECK(!rc || e.code, "%s %lld: no message", kinds[k], (long long)at);
            snprintf(path, sizeof path, "%s/config.json", folder("dst"));
            if (rc && path_exists(path)) { /* only the last sync can have failed: everything is there */
                struct ckpt *c = ckpt_open(folder("dst"), NULL);
                CHECK(c && ckpt_find(c, "model.norm.weight"), "%s %lld: config.json without weights",
                      kinds[k], (long long)at);
                ckpt_close(c);
            }
            if (calls < at) {
                CHECK(!rc, "%s", e.text);
                break;
            }
        }
}

__attribute__((constructor)) static void make_root(void) {
    snprintf(root, sizeof root, "/tmp/qlora-quantize-%d", (int)getpid());
    dir_make(root, NULL);
}
__attribute__((destructor)) static void remove_root(void) {
    dir_remove(root, NULL);
}

TEST_MAIN
