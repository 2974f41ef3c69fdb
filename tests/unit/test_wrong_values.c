/* tests/unit/test_wrong_values.c - the JSON files of strangers, each of their values in turn replaced by one of another kind or
 * out of its range, and each allocation failing while they are read: a file is taken or refused with one sentence that names it. */
#include "base/file.h"
#include "base/log.h"
#include "base/sys.h"
#include "datasets/datasets_internal.h"
#include "datasets/questions.h"
#include "lora/lora.h"
#include "tests/fuzz/mutate.h"
#include "tests/test.h"
#include "train/deepspeed.h"
#include <errno.h>
#include <unistd.h>

size_t LLVMFuzzerMutate(uint8_t *data, size_t n, size_t max) { return (void)data, (void)max, n; }

static const char *const wrong[] = {"null", "true", "false", "0", "-1", "0.5", "1e300", "9007199254740993", "\"\"", "\"x\"", "\"auto\"", "\"nf4\"", "[]", "[1]", "[\"x\", 2]", "{}", "{\"x\": 1}", "\"${HOME}\"", "\"../x\""};
static char dir[] = "/tmp/qlora-test-XXXXXX", path[100];

/* ---- the readers ---- */

static int config(const char *text, size_t n, struct err *e) {
    struct model_config c;
    if (model_config_parse(text, n, path, &c, e)) return -1;
    const char *overrides[] = {"hidden_act=silu", "initializer_range=0.01"};
    char *again = model_config_text(&c, overrides, 2, &(struct model_config){.q_bits = 4, .q_double = 1}, e);
    sys_free(again);
    model_config_free(&c);
    return again ? 0 : -1;
}
static int deepspeed(const char *text, size_t n, struct err *e) {
    struct train_options o = {.batch = 2, .accumulate = 4, .learning_rate = 1e-4, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .max_grad_norm = 1, .bf16 = 1};
    return deepspeed_parse(text, n, path, &o, e);
}
static int adapter(const char *text, size_t n, struct err *e) {
    struct lora_config c;
    return lora_parse_config(text, n, path, &c, e);
}
static int data_info(const char *text, size_t n, struct err *e) {
    struct catalog k;
    struct data_config c = {.dataset_dir = dir, .dataset = "d,s", .compat_new = 1};
    if (file_write_all(path, text, n, NULL)) return err_set(e, ERR_RUN, "%s", path);
    int rc = catalog_open(&k, &c, "d,s", e);
    catalog_close(&k);
    return rc;
}
static int mapping(const char *text, size_t n, struct err *e) {
    struct subjects all;
    if (file_write_all(path, text, n, NULL)) return err_set(e, ERR_RUN, "%s", path);
    int rc = subjects_read(path, &all, e);
    subjects_free(&all);
    return rc;
}

static const struct file_kind {
    const char *name;
    int (*read)(const char *text, size_t n, struct err *e);
    const char *text;
} kinds[] = {
    {"config.json", config,
     "{\"architectures\": [\"YuanForCausalLM\"], \"model_type\": \"yuan\", \"hidden_act\": \"silu\", \"hidden_size\": 64, \"intermediate_size\": 96, \"num_hidden_layers\": 1, \"num_attention_heads\": 2, \"vocab_size\": 300,"
     "\"model_max_length\": 64, \"max_position_embeddings\": 64, \"head_dim\": 32, \"rms_norm_eps\": 1e-6, \"eod_token\": 3, \"eos_token_id\": 3, \"pad_token_id\": 4, \"tie_word_embeddings\": true, \"torch_dtype\": \"bfloat16\","
     "\"dtype\": \"bfloat16\", \"initializer_range\": 0.02, \"use_flash_attention\": false, \"reset_attention_mask\": true, \"reset_position_ids\": false, \"causal_mask\": true, \"use_loss_mask\": false, \"dropout\": 0.0,"
     "\"attention_dropout\": 0, \"use_shareqk\": false, \"rope_theta\": 10000.0, \"rope_scaling\": null, \"quantization_config\": {\"quant_method\": \"bitsandbytes\", \"load_in_4bit\": true, \"load_in_8bit\": false,"
     "\"bnb_4bit_quant_type\": \"nf4\", \"bnb_4bit_use_double_quant\": true, \"bnb_4bit_compute_dtype\": \"bfloat16\", \"llm_int8_threshold\": 6.0}}"},
    {"ds.json", deepspeed,
     "{\"train_micro_batch_size_per_gpu\": 2, \"gradient_accumulation_steps\": 4, \"train_batch_size\": 8, \"gradient_clipping\": 1.0, \"bf16\": {\"enabled\": true}, \"fp16\": {\"enabled\": false, \"loss_scale\": 0},"
     "\"optimizer\": {\"type\": \"AdamW\", \"params\": {\"lr\": 1e-4, \"betas\": [0.9, 0.999], \"eps\": 1e-8, \"weight_decay\": 0.0}},"
     "\"zero_optimization\": {\"stage\": 3, \"cpu_offload\": false, \"offload_optimizer\": {\"device\": \"cpu\"}, \"offload_param\": {\"device\": \"nvme\"}, \"overlap_comm\": true}, \"flops_profiler\": {\"enabled\": false},"
     "\"wall_clock_breakdown\": false, \"steps_per_print\": 10}"},
    {"adapter_config.json", adapter,
     "{\"peft_type\": \"LORA\", \"task_type\": \"CAUSAL_LM\", \"r\": 8, \"lora_alpha\": 16, \"lora_dropout\": 0.1, \"use_rslora\": false, \"target_modules\": [\"q_proj\", \"self_attn.v_proj\"], \"init_lora_weights\": true,"
     "\"rank_pattern\": {\"q_proj\": 4}, \"alpha_pattern\": {\"^model.layers.0.self_attn.v_proj\": 2}, \"modules_to_save\": [\"norm\"], \"bias\": \"none\", \"fan_in_fan_out\": false, \"layers_to_transform\": null, \"use_dora\": false}"},
    {"dataset_info.json", data_info,
     "{\"d\": {\"file_name\": \"a.json\", \"formatting\": \"alpaca\", \"columns\": {\"prompt\": \"instruction\", \"query\": \"input\", \"response\": \"output\", \"history\": \"h\", \"system\": \"s\"}, \"num_samples\": 5},"
     "\"s\": {\"file_name\": \"a.json\", \"formatting\": \"sharegpt\", \"ranking\": false, \"columns\": {\"messages\": \"conversations\", \"tools\": \"tools\"}, \"tags\": {\"role_tag\": \"from\", \"content_tag\": \"value\", \"user_tag\": \"human\","
     "\"assistant_tag\": \"gpt\", \"observation_tag\": \"o\", \"function_tag\": \"f\", \"system_tag\": \"s\"}}}"},
    {"mapping.json", mapping, "{\"law\": {\"name\": \"Law\", \"category\": \"Humanities\"}, \"math\": {}}"}};

static void prepare(const struct file_kind *k) {
    char data[100];
    struct err e = {0};
    static int made;
    log_quiet = 1;
    if (!made++ && !mkdtemp(dir)) perror(dir);
    snprintf(path, sizeof path, "%s/%s", dir, k->name), snprintf(data, sizeof data, "%s/a.json", dir);
    CHECK(!file_write_all(data, "[]", 2, &e), "%s", e.text);
}

static void judge(const struct file_kind *k, const char *text, size_t n, const char *what, int *taken) {
    struct err e = {0};
    int rc = k->read(text, n, &e);
    CHECK(rc == (e.code ? -1 : 0) && (!rc || (e.code == ERR_INPUT && strlen(e.text) > 20 && (strstr(e.text, k->name) || strstr(e.text, dir)))), "%s, %s: %d '%s'", k->name, what, rc, e.text);
    *taken += !rc;
}

/* Every value, those inside others too, becomes each of the wrong ones; and every member goes. */
TEST(values_of_another_kind) {
    static struct json_token t[JSON_TOKENS];
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const struct file_kind *k = &kinds[i];
        const size_t n = strlen(k->text), max = n + 200, count = json_tokens((const uint8_t *)k->text, n, t);
        uint8_t *text = calloc(max + 1, 1);
        int taken = 0, all = 0;
        prepare(k);
        struct err e = {0};
        CHECK(!k->read(k->text, n, &e), "%s: %s", k->name, e.text);
        for (size_t at = 0; at < count; at++) {
            if (!strchr("\"0w{[", t[at].kind) || (at + 1 < count && t[at + 1].kind == ':')) continue; /* no value, or a key */
            const size_t last = json_behind(t, count, at), end = t[last - 1].at + t[last - 1].n;
            for (size_t w = 0; w < sizeof wrong / sizeof *wrong; w++, all++) {
                memcpy(text, k->text, n + 1);
                size_t now = mutate_splice(text, n, max, t[at].at, end - t[at].at, wrong[w], strlen(wrong[w]));
                judge(k, (const char *)text, now, wrong[w], &taken);
            }
            if (at < 2 || t[at - 1].kind != ':') continue;
            size_t from = t[at - 2].at, to = end; /* the member, with a comma */
            if (last < count && t[last].kind == ',') to = t[last].at + 1;
            else if (at > 2 && t[at - 3].kind == ',') from = t[at - 3].at;
            memcpy(text, k->text, n + 1);
            judge(k, (const char *)text, mutate_splice(text, n, max, from, to - from, "", 0), "a member gone", &taken);
        }
        CHECK(taken > 0 && taken < all, "%s: %d of %d are taken", k->name, taken, all);
        free(text);
    }
}

TEST(no_memory) {
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const struct file_kind *k = &kinds[i];
        prepare(k);
        for (int64_t n = 1, done = 0; !done; n++) {
            struct err e = {0};
            REQUIRE(n < 10000, "no end");
            sys_fault = (struct sys_fault){.kinds = "a", .at = n, .error = ENOMEM};
            int rc = k->read(k->text, strlen(k->text), &e);
            done = sys_fault.calls < n;
            sys_fault.at = 0;
            CHECK(done ? !rc : rc == -1 && e.code == ERR_RUN && e.text[0], "%s, allocation %lld: %d, code %d '%s'", k->name, (long long)n, rc, e.code, e.text);
        }
    }
    struct err e = {0};
    CHECK(!dir_remove(dir, &e), "%s", e.text);
}

TEST_MAIN
