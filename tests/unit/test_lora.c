/* Adapters: shapes, start values to the bit, target lists, PEFT folders written and read, and the wrong ones refused. */
#include "base/file.h"
#include "base/half.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "lora/lora.h"
#include "tests/test.h"
#include <math.h>
#include <unistd.h>

static char folder[] = "/tmp/qlora-lora-XXXXXX";
static const unsigned all_targets = (1u << PROJ_COUNT) - 1;

static const char *in_folder(const char *name) {
    static char path[300];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}
static int fresh(void) {
    struct err e = {0};
    if (strstr(folder, "XXXXXX")) return mkdtemp(folder) ? 0 : -1;
    return dir_remove(folder, &e) || dir_make(folder, &e) ? -1 : 0;
}

/* 12 layers, so that layers 10 and 11 sort before 2 in names. */
static struct model_config model(void) {
    return (struct model_config){.D = 16, .L = 12, .H = 2, .K = 8, .F = 24, .V = 32};
}
static struct lora_config config(void) {
    return (struct lora_config){
        .rank = 3, .alpha = 6, .dropout = 0.05, .targets = 1u << PROJ_Q | 1u << PROJ_UP | 1u << PROJ_DOWN};
}

TEST(published_parameter_counts) {
    static const struct {
        int64_t D, F, L, rank, parameters;
    } known[] = {{2048, 8192, 24, 8, 9043968},
                 {2048, 8192, 24, 16, 18087936},
                 {8192, 32768, 42, 8, 63307776},
                 {8192, 32768, 42, 16, 126615552},
                 {8192, 32768, 84, 16, 253231104}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        struct model_config m = {.D = known[i].D, .F = known[i].F, .L = known[i].L};
        struct lora_config c = {.rank = known[i].rank, .alpha = 1, .targets = all_targets};
        struct lora l;
        struct err e = {0};
        REQUIRE(!lora_shapes(&l, &c, &m, &e), "%s", e.text);
        CHECK(!l.data && l.layer_floats * m.L == known[i].parameters, "%lld",
              (long long)(l.layer_floats * m.L));
    }
}

TEST(offsets_follow_the_order_of_projections) {
    struct model_config m = model();
    struct lora_config c = config();
    struct lora l;
    struct err e = {0};
    REQUIRE(!lora_shapes(&l, &c, &m, &e), "%s", e.text);
    CHECK(lora_offset_a(&l, PROJ_Q) == 0 && lora_offset_b(&l, PROJ_Q) == 3 * 16, "q");
    CHECK(lora_offset_a(&l, PROJ_K) == -1 && lora_offset_b(&l, PROJ_K) == -1, "k is no target");
    CHECK(lora_offset_a(&l, PROJ_UP) == 96 && lora_offset_b(&l, PROJ_UP) == 96 + 48,
          "up: A (3,16), B (24,3)");
    CHECK(lora_offset_a(&l, PROJ_DOWN) == 216 && lora_offset_b(&l, PROJ_DOWN) == 216 + 72,
          "down: A (3,24), B (16,3)");
    CHECK(l.layer_floats == 336, "%lld", (long long)l.layer_floats);
    CHECK(lora_scale(&c) == 2.0f, "alpha / rank");
    c.rslora = 1;
    CHECK(lora_scale(&c) == (float)(6 / sqrt(3.0)), "alpha / sqrt(rank)");
}

TEST(impossible_configurations) {
    struct model_config m = model();
    struct lora l;
    struct lora_config good = config(), c;
#define REFUSED(change)                                                                                      \
    do {                                                                                                     \
        struct err e = {0};                                                                                  \
        c = good;                                                                                            \
        change;                                                                                              \
        CHECK(lora_init(&l, &c, &m, &e) && e.code == ERR_INPUT, #change ": %s", e.text);                     \
    } while (0)
    REFUSED(c.rank = 0);
    REFUSED(c.rank = 1 << 20);
    REFUSED(c.dropout = 1);
    REFUSED(c.dropout = -0.1);
    REFUSED(c.dropout = NAN);
    REFUSED(c.alpha = INFINITY);
    REFUSED(c.alpha = -1);
    REFUSED(c.alpha = NAN);
}

/* Values of an independent Philox4x32-10 in Python: the same seed gives the same bytes on every machine, for ever. */
TEST(start_values_are_pinned) {
    struct model_config m = {.D = 64, .L = 2, .H = 4, .K = 16, .F = 128, .V = 32};
    struct lora_config c = {.rank = 4, .alpha = 8, .targets = all_targets};
    struct lora l;
    struct err e = {0};
    REQUIRE(!lora_init(&l, &c, &m, &e), "%s", e.text);
    lora_start(&l, 42);
    const float *second = l.data + l.layer_floats;
    CHECK(l.data[0] == 0x1.26d068p-6f && l.data[1] == 0x1.c834f4p-5f, "%a %a", (double)l.data[0],
          (double)l.data[1]);
    CHECK(second[lora_offset_a(&l, PROJ_DOWN) + 511] == 0x1.20561p-6f, "last of A of down_proj");
    CHECK(second[lora_offset_a(&l, PROJ_O) + 100] == 0x1.d37d1ep-4f, "o_proj");
    double sum = 0, square = 0, most = 0;
    int64_t n = 0, zeros = 0;
    for (int64_t layer = 0; layer < m.L; layer++)
        for (int p = 0; p < PROJ_COUNT; p++) {
            int64_t rows, cols;
            proj_shape(&m, (enum proj)p, &rows, &cols);
            const float *a = l.data + layer * l.layer_floats + lora_offset_a(&l, (enum proj)p);
            const float *b = l.data + layer * l.layer_floats + lora_offset_b(&l, (enum proj)p);
            for (int64_t i = 0; i < 4 * cols; i++, n++) {
                const double x = (double)a[i] * sqrt((double)cols); /* in (-1, 1) */
                sum += x, square += x * x, most = fmax(most, fabs(x));
            }
            for (int64_t i = 0; i < 4 * rows; i++) zeros += b[i] == 0;
        }
    /* n = 4096 uniform numbers: standard deviation of the mean 0.009, of the mean square 0.0047; four of them allowed */
    CHECK(n == 4096 && fabs(sum / (double)n) < 0.036 && fabs(square / (double)n - 1.0 / 3) < 0.019,
          "mean %g, square %g", sum / (double)n, square / (double)n);
    CHECK(most < 1 && most > 0.999, "bound %g", most);
    CHECK(zeros == 2 * 4 * (4 * 64 + 2 * 128 + 64), "B is zero: %lld", (long long)zeros);
    lora_start(&l, 1ull << 40 | 42);
    CHECK(second[lora_offset_a(&l, PROJ_DOWN) + 511] == -0x1.eff5e6p-5f, "the upper half of the seed counts");
    lora_free(&l);
}

TEST(target_lists) {
    static const struct {
        const char *text;
        unsigned targets;
    } good[] = {{"all", (1u << PROJ_COUNT) - 1},
                {"q_proj,v_proj", 1u << PROJ_Q | 1u << PROJ_V},
                {" \"q_proj\",  'k_proj' \t", 1u << PROJ_Q | 1u << PROJ_K},
                {"down_proj", 1u << PROJ_DOWN},
                {"q_proj,q_proj", 1u << PROJ_Q}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        unsigned t = 0;
        struct err e = {0};
        CHECK(!lora_parse_targets(good[i].text, &t, &e) && t == good[i].targets, "%s: %#x, %s", good[i].text,
              t, e.text);
    }
    static const char *const bad[] = {"",
                                      "q_proj,",
                                      ",q_proj",
                                      "q_proj,,v_proj",
                                      "q_porj",
                                      "q_proj v_proj",
                                      "lm_head",
                                      "W_pack,q_proj",
                                      "q_proj_with_a_name_that_is_longer_than_any_buffer_for_names_in_here"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        unsigned t = 77;
        struct err e = {0};
        CHECK(lora_parse_targets(bad[i], &t, &e) && e.code == ERR_INPUT && t == 77, "%s was taken", bad[i]);
        if (!strcmp(bad[i], "q_porj")) CHECK(strstr(e.text, "did you mean q_proj?"), "%s", e.text);
    }
}

/* ---- adapter_config.json ---- */

static int parse(const char *text, struct lora_config *c, struct err *e) {
    *e = (struct err){0};
    return lora_parse_config(text, strlen(text), "adapter_config.json", c, e);
}

TEST(configurations_read) {
    struct lora_config c;
    struct err e;
    CHECK(
        !parse(
            "{\"peft_type\": \"LORA\", \"r\": 16, \"lora_alpha\": 32, \"lora_dropout\": 0.1, "
            "\"target_modules\": [\"v_proj\","
            " \"mlp.up_proj\"], \"bias\": \"none\", \"modules_to_save\": [], \"rank_pattern\": {}, "
            "\"use_dora\": false,"
            " \"loftq_config\": {\"x\": 1}, \"megatron_core\": \"megatron.core\", \"peft_version\": \"0.99\","
            " \"layer_replication\": null, \"init_lora_weights\": \"gaussian\", \"task_type\": null}",
            &c, &e),
        "%s", e.text);
    CHECK(c.rank == 16 && c.alpha == 32 && c.dropout == 0.1 && !c.rslora &&
              c.targets == (1u << PROJ_V | 1u << PROJ_UP),
          "values");
    CHECK(!parse("{\"target_modules\": \"all-linear\", \"use_rslora\": true}", &c, &e), "%s", e.text);
    CHECK(c.rank == 8 && c.alpha == 8 && c.dropout == 0 && c.rslora && c.targets == all_targets,
          "PEFT's defaults");
}

TEST(configurations_refused) {
    static const struct {
        const char *text, *says;
    } bad[] = {{"[]", "object"},
               {"{\"r\": 8", ""},
               {"{}", "target_modules"},
               {"{\"target_modules\": []}", "target_modules"},
               {"{\"target_modules\": [\"lm_head\"]}", "lm_head"},
               {"{\"target_modules\": [1]}", "names"},
               {"{\"target_modules\": \".*_proj\"}", "pattern"},
               {"{\"target_modules\": [\"q_proj\"], \"r\": 0}", "r"},
               {"{\"target_modules\": [\"q_proj\"], \"r\": \"8\"}", "r"},
               {"{\"target_modules\": [\"q_proj\"], \"lora_dropout\": 1.5}", "lora_dropout"},
               {"{\"target_modules\": [\"q_proj\"], \"use_dora\": 1}", "use_dora"},
               {"{\"target_modules\": [\"q_proj\"], \"bias\": \"all\"}", "bias"},
               {"{\"target_modules\": [\"q_proj\"], \"modules_to_save\": [\"score\"]}", "not \"score\""},
               {"{\"target_modules\": [\"q_proj\"], \"modules_to_save\": \"lm_head\"}", "not a list"},
               {"{\"target_modules\": [\"q_proj\"], \"rank_pattern\": {\"q_proj\": 0}}", "out of range"},
               {"{\"target_modules\": [\"q_proj\"], \"rank_pattern\": {\"q_proj\": 4.5}}", "out of range"},
               {"{\"target_modules\": [\"q_proj\"], \"rank_pattern\": [4]}", "not an object"},
               {"{\"target_modules\": [\"q_proj\"], \"alpha_pattern\": {\"[0-3].q_proj\": 4}}", "is a pattern"},
               {"{\"target_modules\": [\"q_proj\"], \"alpha_pattern\": {\"q_proj\": \"x\"}}", "out of range"},
               {"{\"target_modules\": [\"q_proj\"], \"layers_to_transform\": [1]}", "layers_to_transform"},
               {"{\"target_modules\": [\"q_proj\"], \"lora_bias\": true}", "lora_bias"},
               {"{\"target_modules\": [\"q_proj\"], \"something_new\": 1}", "something_new"},
               {"{\"target_modules\": [\"q_proj\"], \"init_lora_weights\": \"pissa_niter_16\"}", "pissa"},
               {"{\"target_modules\": [\"q_proj\"], \"peft_type\": \"IA3\"}", "IA3"},
               {"{\"target_modules\": [\"q_proj\"], \"task_type\": \"SEQ_CLS\"}", "SEQ_CLS"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct lora_config c;
        struct err e;
        CHECK(parse(bad[i].text, &c, &e) && e.code == ERR_INPUT && strstr(e.text, bad[i].says), "%s: %s",
              bad[i].text, e.text);
    }
}

/* ---- folders ---- */

/* A saved adapter of random values in A and B. */
static int save_random(struct lora *l, struct err *e) {
    struct model_config m = model();
    struct lora_config c = config();
    if (lora_init(l, &c, &m, e)) return -1;
    for (int64_t i = 0; i < l->layer_floats * m.L; i++) l->data[i] = sinf((float)i) / 3;
    return lora_save(l, folder, "../models/\"Yuan\"", e);
}

TEST(save_and_load) {
    struct lora l, back;
    struct model_config m = model();
    struct err e = {0};
    REQUIRE(!fresh() && !save_random(&l, &e), "%s", e.text);
    REQUIRE(!lora_load(folder, &m, &back, &e), "%s", e.text);
    CHECK(back.config.rank == 3 && back.config.alpha == 6 && back.config.dropout == 0.05 &&
              !back.config.rslora && back.config.targets == config().targets,
          "configuration");
    CHECK(back.layer_floats == l.layer_floats &&
              !memcmp(back.data, l.data, (size_t)(l.layer_floats * m.L) * sizeof(float)),
          "values");
    lora_free(&back);

    char *text;
    size_t n;
    REQUIRE(!file_read_all(in_folder("adapter_config.json"), 1 << 20, &text, &n, &e), "%s", e.text);
    static const char want[] =
        "{\n  \"alpha_pattern\": {},\n  \"auto_mapping\": null,\n"
        "  \"base_model_name_or_path\": \"../models/\\\"Yuan\\\"\",\n  \"bias\": \"none\",\n  "
        "\"fan_in_fan_out\": false,\n"
        "  \"inference_mode\": true,\n  \"init_lora_weights\": true,\n  \"layers_pattern\": null,\n"
        "  \"layers_to_transform\": null,\n  \"loftq_config\": {},\n  \"lora_alpha\": 6,\n  "
        "\"lora_dropout\": 0.05,\n"
        "  \"megatron_config\": null,\n  \"megatron_core\": \"megatron.core\",\n  \"modules_to_save\": "
        "null,\n"
        "  \"peft_type\": \"LORA\",\n  \"r\": 3,\n  \"rank_pattern\": {},\n  \"revision\": null,\n  "
        "\"target_modules\": [\n"
        "    \"q_proj\",\n    \"up_proj\",\n    \"down_proj\"\n  ],\n  \"task_type\": \"CAUSAL_LM\",\n  "
        "\"use_dora\": false,\n"
        "  \"use_rslora\": false\n}";
    CHECK(!strcmp(text, want), "got\n%s", text);
    sys_free(text);

    /* names in sorted order, so the payload lies as PEFT's file would have it */
    struct ckpt *c = ckpt_open_adapter(folder, &e);
    REQUIRE(c, "%s", e.text);
    CHECK(ckpt_count(c) == 12 * 6, "%lld tensors", (long long)ckpt_count(c));
    for (int64_t i = 1; i < ckpt_count(c); i++)
        CHECK(ckpt_at(c, i)->offset > ckpt_at(c, i - 1)->offset, "%s lies before its forerunner",
              ckpt_at(c, i)->name);
    const struct ckpt_tensor *t =
        ckpt_find(c, "base_model.model.model.layers.11.mlp.down_proj.lora_B.weight");
    float b[48];
    REQUIRE(t && t->rank == 2 && t->shape[0] == 16 && t->shape[1] == 3 && !ckpt_read_all(c, t, DT_F32, b, &e),
            "%s", e.text);
    CHECK(!memcmp(b, l.data + 11 * l.layer_floats + lora_offset_b(&l, PROJ_DOWN), sizeof b),
          "values of down_proj");
    ckpt_close(c);
    lora_free(&l);
}

/* With magnitudes: one more tensor of each matrix, under any of the names and shapes that versions of PEFT have given it. */
TEST(magnitudes) {
    struct lora l, back;
    struct model_config m = model();
    struct lora_config c = config();
    struct err e = {0};
    const int64_t plain = 3 * (16 + 16 + 16 + 24 + 24 + 16);
    c.dora = 1;
    REQUIRE(!fresh() && !lora_init(&l, &c, &m, &e), "%s", e.text);
    CHECK(l.layer_floats == plain + 16 + 24 + 16 && lora_rows(&l, PROJ_COUNT) == 16 + 24 + 16, "%lld floats", (long long)l.layer_floats);
    CHECK(lora_offset_m(&l, PROJ_Q) == 3 * 32 && lora_offset_m(&l, PROJ_K) < 0 && lora_offset_a(&l, PROJ_UP) == 3 * 32 + 16 && lora_rows(&l, PROJ_DOWN) == 40, "offsets");
    for (int64_t i = 0; i < l.layer_floats * m.L; i++) l.data[i] = sinf((float)i) / 3;
    REQUIRE(!lora_save(&l, folder, NULL, &e) && !lora_load(folder, &m, &back, &e), "%s", e.text);
    CHECK(back.config.dora && !memcmp(back.data, l.data, (size_t)(l.layer_floats * m.L) * sizeof(float)), "values");
    struct lora more = {0};
    CHECK(lora_append(&l, &back, &e) && strstr(e.text, "use_dora"), "appended: %s", e.text);
    lora_free(&back), lora_free(&more);
    e = (struct err){0};

    struct ckpt *from = ckpt_open_adapter(folder, &e);
    REQUIRE(from && ckpt_count(from) == 12 * 9, "%s", e.text);
    float values[16 * 24];
    for (int form = 0; form < 4; form++) { /* ".weight" behind the name, (1,out), both, one left out */
        char other[320], name[160];
        snprintf(other, sizeof other, "%s-%d", folder, form);
        struct ckpt_writer *w = dir_make(other, &e) ? NULL : ckpt_create(other, "adapter_model", 0, &e);
        REQUIRE(w, "%s", e.text);
        for (int pass = 0; pass < 2; pass++)
            for (int64_t i = 0; i < ckpt_count(from); i++) {
                const struct ckpt_tensor *t = ckpt_at(from, i);
                const int magnitude = t->rank == 1;
                int64_t shape[2] = {t->shape[0], magnitude ? 1 : t->shape[1]};
                if (form == 3 && i == 2) continue;
                if (magnitude && form > 0) shape[1] = shape[0], shape[0] = 1;
                snprintf(name, sizeof name, "%s%s", t->name, magnitude && form != 1 ? ".weight" : "");
                REQUIRE(!ckpt_read_all(from, t, DT_F32, values, &e) && !(pass ? ckpt_write(w, values, t->count * 4, &e) : ckpt_declare(w, name, DT_F32, magnitude && !form ? 1 : 2, shape, &e)), "%s", e.text);
            }
        char *text, path[400];
        size_t n;
        snprintf(path, sizeof path, "%s/adapter_config.json", other);
        REQUIRE(!ckpt_commit(w, &e) && !file_read_all(in_folder("adapter_config.json"), 1 << 20, &text, &n, &e) && !file_write_all(path, text, n, &e), "%s", e.text);
        sys_free(text);
        const int failed = lora_load(other, &m, &back, &e);
        if (form == 3) CHECK(failed && strstr(e.text, "lacks the tensor base_model.model.model.layers.0.mlp.down_proj.lora_magnitude_vector"), "%s", e.text);
        else CHECK(!failed && !memcmp(back.data, l.data, (size_t)(l.layer_floats * m.L) * sizeof(float)), "form %d: %s", form, e.text);
        lora_free(&back);
    }
    ckpt_close(from), lora_free(&l);
}

/* Writes an adapter file with one tensor changed in name or shape or type, or left out. */
enum change { RENAMED, RESHAPED, LEFT_OUT, EXTRA, HALVES, NOT_FINITE };
static int write_changed(enum change change, enum dtype type, struct err *e) {
    struct ckpt_writer *w = ckpt_create(folder, "adapter_model", 0, e);
    if (!w) return -1;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < 12 * 6 + (change == EXTRA); i++) {
            static const char *const module[] = {"self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"};
            const int p = i / 2 % 3, is_b = i & 1, layer = i / 6, odd = i == 40;
            int64_t shape[2] = {is_b ? (p == 1 ? 24 : 16) : 3, is_b ? 3 : p == 2 ? 24 : 16};
            char name[128];
            if (change == LEFT_OUT && odd) continue;
            if (change == RESHAPED && odd) shape[0]++;
            snprintf(name, sizeof name, "base_model.model.model.layers.%s%d.%s.lora_%c.weight",
                     change == RENAMED && odd ? "0" : "", layer, module[p], is_b ? 'B' : 'A');
            float x[16 * 24] = {0};
            uint16_t h[16 * 24] = {0};
            for (int k = 0; k < 16 * 24; k++) {
                x[k] = change == NOT_FINITE && odd && k == 5 ? INFINITY : (float)(i + k) / 64;
                h[k] = type == DT_BF16 ? f32_to_bf16(x[k]) : f32_to_f16(x[k]);
            }
            const int64_t bytes = shape[0] * shape[1] * (int64_t)dtype_bytes(type);
            if (pass == 0 ? ckpt_declare(w, name, type, 2, shape, e)
                          : ckpt_write(w, type == DT_F32 ? (void *)x : (void *)h, bytes, e)) {
                ckpt_abort(w);
                return -1;
            }
        }
    return ckpt_commit(w, e);
}

TEST(two_become_one_that_adds_both) {
    struct model_config m = model();
    struct lora_config c = config(), d = {.rank = 2, .alpha = 1, .rslora = 1, .targets = 1u << PROJ_Q | 1u << PROJ_V};
    struct lora a, b;
    struct err e = {0};
    REQUIRE(!lora_init(&a, &c, &m, &e) && !lora_init(&b, &d, &m, &e), "%s", e.text);
    for (int64_t i = 0; i < m.L * a.layer_floats; i++) a.data[i] = (float)(i % 101);
    for (int64_t i = 0; i < m.L * b.layer_floats; i++) b.data[i] = (float)(i % 97);
    /* what both do to the matrix q of layer 7, and to v, which only the second has */
    float want_q[16 * 16] = {0}, want_v[16 * 16] = {0}, got_q[16 * 16] = {0}, got_v[16 * 16] = {0};
    const float *la = a.data + 7 * a.layer_floats, *lb = b.data + 7 * b.layer_floats;
    lora_merge(&c, 16, la + lora_offset_a(&a, PROJ_Q), la + lora_offset_b(&a, PROJ_Q), 0, 16 * 16, want_q);
    lora_merge(&d, 16, lb + lora_offset_a(&b, PROJ_Q), lb + lora_offset_b(&b, PROJ_Q), 0, 16 * 16, want_q);
    lora_merge(&d, 16, lb + lora_offset_a(&b, PROJ_V), lb + lora_offset_b(&b, PROJ_V), 0, 16 * 16, want_v);
    REQUIRE(!lora_append(&a, &b, &e), "%s", e.text);
    CHECK(a.config.rank == 5 && a.config.targets == (c.targets | d.targets) && fabsf(lora_scale(&a.config) - 1) < 1e-6f, "rank %lld", (long long)a.config.rank);
    la = a.data + 7 * a.layer_floats;
    lora_merge(&a.config, 16, la + lora_offset_a(&a, PROJ_Q), la + lora_offset_b(&a, PROJ_Q), 0, 16 * 16, got_q);
    lora_merge(&a.config, 16, la + lora_offset_a(&a, PROJ_V), la + lora_offset_b(&a, PROJ_V), 0, 16 * 16, got_v);
    for (int i = 0; i < 16 * 16; i++)
        CHECK(fabsf(got_q[i] - want_q[i]) <= 1e-5f * fabsf(want_q[i]) && fabsf(got_v[i] - want_v[i]) <= 1e-5f * fabsf(want_v[i]), "element %d: %g for %g, %g for %g", i,
              (double)got_q[i], (double)want_q[i], (double)got_v[i], (double)want_v[i]);
    lora_free(&a), lora_free(&b);
}

TEST(wrong_tensors_are_named) {
    static const struct {
        enum change change;
        const char *says;
    } bad[] = {
        {RENAMED, "base_model.model.model.layers.06.mlp.down_proj.lora_A.weight has no place"},
        {RESHAPED,
         "layers.6.mlp.down_proj.lora_A.weight has shape [4, 24], but rank 3 on this model needs [3, 24]"},
        {LEFT_OUT, "lacks the tensor base_model.model.model.layers.6.mlp.down_proj.lora_A.weight"},
        {EXTRA, "base_model.model.model.layers.12.self_attn.q_proj.lora_A.weight has no place in this model "
                "(12 layers)"},
        {NOT_FINITE, "element 5 of tensor base_model.model.model.layers.6.mlp.down_proj.lora_A.weight"}};
    struct lora l;
    struct model_config m = model();
    struct err e = {0};
    REQUIRE(!fresh() && !save_random(&l, &e), "%s", e.text);
    lora_free(&l);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        e = (struct err){0};
        REQUIRE(!write_changed(bad[i].change, DT_F32, &e), "%s", e.text);
        CHECK(lora_load(folder, &m, &l, &e) && e.code == ERR_INPUT && strstr(e.text, bad[i].says), "%zu: %s",
              i, e.text);
        CHECK(!l.data, "nothing is left allocated");
    }
    e = (struct err){0};
    m.D = 32, m.K = 16;
    REQUIRE(!write_changed(HALVES, DT_F32, &e), "%s", e.text);
    CHECK(lora_load(folder, &m, &l, &e) && strstr(e.text, "has shape"), "another model: %s", e.text);
}

TEST(half_types_are_read) {
    static const enum dtype types[] = {DT_F32, DT_BF16, DT_F16};
    struct lora l;
    struct model_config m = model();
    struct err e = {0};
    REQUIRE(!fresh() && !save_random(&l, &e), "%s", e.text);
    lora_free(&l);
    for (int i = 0; i < 3; i++) {
        REQUIRE(!write_changed(HALVES, types[i], &e) && !lora_load(folder, &m, &l, &e), "%s", e.text);
        /* tensor 41 is B of layer 6's down_proj: 41/64, 42/64, .. are exact in all three types */
        const float *b = l.data + 6 * l.layer_floats + lora_offset_b(&l, PROJ_DOWN);
        CHECK(b[0] == 41.0f / 64 && b[1] == 42.0f / 64 && b[47] == 88.0f / 64, "%s", dtype_name(types[i]));
        lora_free(&l);
    }
}

/* Each allocation, open, read, write, sync and rename fails once: an error, no leak, and the folder holds whole files. */
TEST(every_failure_is_survived) {
    struct lora l, back;
    struct model_config m = model();
    struct err e = {0};
    REQUIRE(!fresh() && !save_random(&l, &e), "%s", e.text);
    int64_t at = 1;
    for (int fired = 1; fired && at < 3000; at++) {
        struct err now = {0}, then = {0};
        sys_fault = (struct sys_fault){.kinds = "aorwsn", .at = at, .error = 28 /* ENOSPC */};
        int bad = lora_save(&l, folder, NULL, &now);
        if (!bad && !(bad = lora_load(folder, &m, &back, &now))) lora_free(&back);
        fired = sys_fault.calls >= at;
        sys_fault = (struct sys_fault){0};
        CHECK(!bad == !now.code && (bad || !fired), "call %lld: %d, %s", (long long)at, bad, now.text);
        REQUIRE(!lora_load(folder, &m, &back, &then), "call %lld: %s", (long long)at, then.text);
        lora_free(&back);
    }
    CHECK(at < 3000, "the end was reached");
    lora_free(&l);
}

__attribute__((destructor)) static void clean(void) {
    struct err e = {0};
    if (!strstr(folder, "XXXXXX")) dir_remove(folder, &e);
}
TEST_MAIN
