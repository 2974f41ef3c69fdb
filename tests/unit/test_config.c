/* config.json: every published field, every default, every refusal; overrides and quantization_config. */
#include "model/config.h"
#include "base/json.h"
#include "base/sys.h"
#include "tests/test.h"

static int parse(const char *text, struct model_config *c, struct err *e) {
    *e = (struct err){0};
    return model_config_parse(text, strlen(text), "config.json", c, e);
}

/* The tiny named configuration with "key": value put in (JSON text), parsed. */
static int parse_with(const char *key, const char *value, struct model_config *c, struct err *e) {
    struct model_config base;
    char override[300];
    const char *list[] = {override};
    if (parse(model_config_named("yuan2-tiny"), &base, e)) return -1;
    snprintf(override, sizeof override, "%s=%s", key, value);
    char *text = model_config_text(&base, list, 1, NULL, e);
    int rc = text ? parse(text, c, e) : -1;
    sys_free(text);
    model_config_free(&base);
    return rc;
}

TEST(named_configurations_have_the_published_sizes) {
    static const struct {
        const char *name;
        int64_t D, F, L, H, params;
    } known[] = {
        {"yuan2-2b", 2048, 8192, 24, 32, 2088724480},
        {"yuan2-51b", 8192, 32768, 42, 64, 51842105344},
        {"yuan2-102b", 8192, 32768, 84, 64, 102577954816},
        {"yuan2-tiny", 64, 128, 2, 4, 0},
    };
    for (int i = 0; i < 4; i++) {
        struct model_config c;
        struct err e;
        REQUIRE(parse(model_config_named(known[i].name), &c, &e) == 0, "%s", e.text);
        CHECK(c.D == known[i].D && c.F == known[i].F && c.L == known[i].L && c.H == known[i].H, "%s",
              known[i].name);
        CHECK(c.tied && c.stored == DT_BF16 && !c.document_mask && c.eod == 77185 && c.pad == 77185, "%s",
              known[i].name);
        int64_t layer = 6 * c.D * c.D + 3 * c.D / 2 + 3 * c.D + 3 * c.D * c.F,
                all = c.L * layer + c.V * c.D + c.D;
        CHECK(!known[i].params || all == known[i].params, "%s has %lld parameters", known[i].name,
              (long long)all);
        model_config_free(&c);
    }
    CHECK(!model_config_named("yuan2-3b"), "an unknown name is found");
}

TEST(missing_fields_get_the_defaults_of_the_class) {
    struct model_config c;
    struct err e;
    REQUIRE(parse("{\"model_type\": \"yuan\"}", &c, &e) == 0, "%s", e.text);
    CHECK(c.D == 2048 && c.L == 24 && c.H == 32 && c.K == 64 && c.F == 8192 && c.V == 135040, "sizes");
    CHECK(c.tied == 1 && c.eps == 1e-6f && c.init_range == 0.02 && c.max_positions == 8192, "numbers");
    CHECK(c.eod == 77185 && c.pad == 77185 && c.q_bits == 0 && c.document_mask == 0, "tokens");
    model_config_free(&c);
}

TEST(null_or_negative_pad_means_none) {
    struct model_config c;
    struct err e;
    REQUIRE(parse_with("pad_token_id", "null", &c, &e) == 0, "%s", e.text);
    CHECK(c.pad == -1, "pad %lld", (long long)c.pad);
    model_config_free(&c);
    REQUIRE(parse_with("pad_token_id", "-1", &c, &e) == 0, "%s", e.text);
    CHECK(c.pad == -1, "pad %lld", (long long)c.pad);
    model_config_free(&c);
}

TEST(document_mask_needs_flash_off_and_reset_on) {
    static const struct {
        const char *flash, *reset;
        int mask;
    } rows[] = {{"true", "true", 0}, {"true", "false", 0}, {"false", "true", 1}, {"false", "false", 0}};
    for (int i = 0; i < 4; i++) {
        char text[200];
        struct model_config c;
        struct err e;
        snprintf(text, sizeof text,
                 "{\"model_type\":\"yuan\",\"use_flash_attention\":%s,\"reset_attention_mask\":%s}",
                 rows[i].flash, rows[i].reset);
        REQUIRE(parse(text, &c, &e) == 0, "%s", e.text);
        CHECK(c.document_mask == rows[i].mask, "flash %s, reset %s", rows[i].flash, rows[i].reset);
        model_config_free(&c);
    }
}

TEST(refusals_name_the_field) {
    static const char *const rows[][3] = {
        /* key, value, what the message must hold */
        {"model_type", "llama", "model_type \"llama\""},
        {"model_type", "null", "\"model_type\" is missing"},
        {"hidden_act", "gelu", "hidden_act"},
        {"causal_mask", "false", "causal_mask"},
        {"hidden_size", "65", "even whole number"},
        {"hidden_size", "12", "even whole number"},
        {"hidden_size", "0", "from 2 to"},
        {"hidden_size", "1e9", "from 2 to"},
        {"hidden_size", "64.5", "whole number"},
        {"hidden_size", "abc", "whole number"},
        {"num_hidden_layers", "0", "num_hidden_layers"},
        {"num_hidden_layers", "100000", "num_hidden_layers"},
        {"num_attention_heads", "-4", "num_attention_heads"},
        {"intermediate_size", "9007199254740993", "intermediate_size"},
        {"vocab_size", "5000000000", "vocab_size"},
        {"vocab_size", "512", "eod_token 77185 is outside"},
        {"rms_norm_eps", "0", "rms_norm_eps"},
        {"rms_norm_eps", "-1", "rms_norm_eps"},
        {"initializer_range", "-0.1", "initializer_range"},
        {"pad_token_id", "135040", "pad_token_id"},
        {"eod_token", "135040", "eod_token"},
        {"torch_dtype", "int8", "torch_dtype"},
        {"tie_word_embeddings", "1", "true or false"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct model_config c;
        struct err e;
        int rc = parse_with(rows[i][0], rows[i][1], &c, &e);
        CHECK(rc == -1 && e.code == ERR_INPUT && strstr(e.text, rows[i][2]), "%s=%s: %d \"%s\"", rows[i][0],
              rows[i][1], rc, e.text);
    }
    struct model_config c;
    struct err e;
    CHECK(parse("[]", &c, &e) == -1 && strstr(e.text, "object"), "%s", e.text);
    CHECK(parse("{\"model_type\":\"yuan\",\"use_shareqk\":true}", &c, &e) == -1, "use_shareqk is accepted");
    CHECK(parse("{\"model_type\":\"yuan\",\"num_key_value_heads\":8}", &c, &e) == -1,
          "grouped heads are accepted");
    CHECK(parse("{\"model_type\":\"yuan\",\"head_dim\":32}", &c, &e) == -1, "another head size is accepted");
    CHECK(parse("{\"model_type\":\"yuan\"", &c, &e) == -1 && strstr(e.text, "config.json:1:"), "%s", e.text);
}

TEST(types_are_read_in_all_spellings) {
    static const struct {
        const char *text;
        enum dtype type;
    } rows[] = {
        {"\"torch_dtype\":\"float16\"", DT_F16}, {"\"torch_dtype\":\"torch.float32\"", DT_F32},
        {"\"dtype\":\"bfloat16\"", DT_BF16},     {"\"dtype\":\"float32\"", DT_F32},
        {"\"torch_dtype\":null", DT_BF16},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[100];
        struct model_config c;
        struct err e;
        snprintf(text, sizeof text, "{\"model_type\":\"yuan\",%s}", rows[i].text);
        REQUIRE(parse(text, &c, &e) == 0, "%s", e.text);
        CHECK(c.stored == rows[i].type, "%s", rows[i].text);
        model_config_free(&c);
    }
}

TEST(quantization_config_is_written_and_read_back) {
    for (int bits = 4; bits <= 8; bits += 4)
        for (int variant = 0; variant < 4; variant++) {
            struct model_config c,
                q = {.q_bits = bits, .q_type = variant & 1 ? Q4_FP4 : Q4_NF4, .q_double = variant >> 1};
            struct err e;
            REQUIRE(parse(model_config_named("yuan2-tiny"), &c, &e) == 0, "%s", e.text);
            char *text = model_config_text(&c, NULL, 0, &q, &e);
            REQUIRE(text, "%s", e.text);
            CHECK(strstr(text, "\"llm_int8_threshold\": 6.0"), "the threshold must be written as a float: %s",
                  text);
            CHECK(strstr(text, "\"rms_norm_eps\": 1e-06"), "%s", text);
            struct model_config back;
            REQUIRE(parse(text, &back, &e) == 0, "%s", e.text);
            CHECK(back.q_bits == bits, "bits %d", back.q_bits);
            CHECK(bits == 8 || (back.q_type == q.q_type && back.q_double == q.q_double), "variant %d",
                  variant);
            char *plain = model_config_text(&back, NULL, 0, NULL, &e);
            REQUIRE(plain, "%s", e.text);
            CHECK(!strstr(plain, "quantization_config"), "%s", plain);
            sys_free(plain);
            sys_free(text);
            model_config_free(&back);
            model_config_free(&c);
        }
}

TEST(foreign_quantisation_is_refused) {
    static const char *const rows[] = {
        "{\"quant_method\":\"gptq\",\"bits\":4}",
        "{\"quant_method\":\"bitsandbytes\"}",
        "{\"load_in_4bit\":true,\"load_in_8bit\":true}",
        "{\"load_in_4bit\":true,\"bnb_4bit_quant_type\":\"int4\"}",
        "[]",
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[200];
        struct model_config c;
        struct err e;
        snprintf(text, sizeof text, "{\"model_type\":\"yuan\",\"quantization_config\":%s}", rows[i]);
        CHECK(parse(text, &c, &e) == -1 && e.code == ERR_INPUT, "%s is accepted", rows[i]);
    }
    struct model_config c;
    struct err e;
    REQUIRE(parse("{\"model_type\":\"yuan\",\"quantization_config\":{\"load_in_4bit\":true}}", &c, &e) == 0,
            "%s", e.text);
    CHECK(c.q_bits == 4 && c.q_type == Q4_FP4 && !c.q_double, "defaults of the loader");
    model_config_free(&c);
}

TEST(overrides_replace_and_suggest) {
    struct model_config c, d;
    struct err e;
    REQUIRE(parse_with("num_hidden_layers", "3", &c, &e) == 0, "%s", e.text);
    CHECK(c.L == 3, "%lld layers", (long long)c.L);
    REQUIRE(parse_with("torch_dtype", "float32", &d, &e) == 0, "%s", e.text);
    CHECK(d.stored == DT_F32, "a bare word is a string");
    model_config_free(&d);
    CHECK(parse_with("hidden_sise", "64", &d, &e) == -1 && strstr(e.text, "hidden_size"), "%s", e.text);
    const char *no_value[] = {"hidden_size"};
    e = (struct err){0};
    CHECK(!model_config_text(&c, no_value, 1, NULL, &e) && strstr(e.text, "key=value"), "%s", e.text);
    model_config_free(&c);
}

TEST(reads_the_golden_folders) {
    const char *shared = shared_dir();
    if (!shared) SKIP("no shared folder");
    char dir[1200];
    struct model_config c;
    struct err e = {0};
    snprintf(dir, sizeof dir, "%s/goldens/yuan2-tiny-a/bf16", shared);
    REQUIRE(model_config_read(dir, &c, &e) == 0, "%s", e.text);
    CHECK(c.D == 64 && c.L == 2 && c.H == 4 && c.K == 16 && c.F == 128 && c.V == 512 && c.eod == 510 &&
              c.pad == 510,
          "sizes");
    model_config_free(&c);
    snprintf(dir, sizeof dir, "%s/goldens/yuan2-tiny-a/nowhere", shared);
    CHECK(model_config_read(dir, &c, &e) == -1 && strstr(e.text, "there is no folder"), "%s", e.text);
}

TEST_MAIN
