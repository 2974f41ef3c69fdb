/* model/config.c - see config.h. Invariant: a struct model_config that was filled here has been checked as a whole, so
 * that sizes made of its numbers neither overflow 64 bits nor disagree with each other.
 * Source of fields and defaults: the published configuration of Yuan 2.0 and its configuration class. */
#include "model/config.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/str.h"
#include "base/sys.h"
#include <string.h>

enum { CONFIG_BYTES_MAX = 1 << 20, EOD_DEFAULT = 77185 };

/* Keys that an override may name beside those that stand in the text. */
static const char *const known_keys[] = {"vocab_size",
                                         "hidden_size",
                                         "intermediate_size",
                                         "num_hidden_layers",
                                         "num_attention_heads",
                                         "hidden_act",
                                         "model_max_length",
                                         "max_position_embeddings",
                                         "initializer_range",
                                         "rms_norm_eps",
                                         "tie_word_embeddings",
                                         "torch_dtype",
                                         "use_cache",
                                         "causal_mask",
                                         "use_flash_attention",
                                         "reset_attention_mask",
                                         "reset_position_ids",
                                         "use_loss_mask",
                                         "dropout",
                                         "eod_token",
                                         "sep_token",
                                         "pad_token_id",
                                         "bos_token_id",
                                         "eos_token_id",
                                         "sep_token_id",
                                         "mask_token_id",
                                         NULL};

/* ---- reading ---- */

static int read_quantization(const struct cJSON *q, struct model_config *c, const char *where,
                             struct err *e) {
    int four = 0, eight = 0;
    const char *method = NULL, *type = "fp4"; /* the loader's own defaults for keys that are missing */
    if (!cJSON_IsObject(q))
        return err_set(e, ERR_INPUT, "%s: \"quantization_config\" must be an object", where);
    if (json_str(q, "quant_method", &method, where, e) < 0 ||
        json_bool(q, "load_in_4bit", &four, where, e) < 0 ||
        json_bool(q, "load_in_8bit", &eight, where, e) < 0 ||
        json_bool(q, "bnb_4bit_use_double_quant", &c->q_double, where, e) < 0 ||
        json_str(q, "bnb_4bit_quant_type", &type, where, e) < 0)
        return -1;
    if (method && strcmp(method, "bitsandbytes"))
        return err_set(e, ERR_INPUT, "%s: quant_method \"%s\" cannot be read; bitsandbytes can", where,
                       method);
    if (four == eight)
        return err_set(e, ERR_INPUT,
                       "%s: quantization_config must set exactly one of load_in_4bit and load_in_8bit",
                       where);
    if (eight) return c->q_bits = 8, c->q_double = 0, 0;
    if (strcmp(type, "nf4") && strcmp(type, "fp4"))
        return err_set(e, ERR_INPUT, "%s: bnb_4bit_quant_type \"%s\" is neither nf4 nor fp4", where, type);
    c->q_bits = 4;
    c->q_type = strcmp(type, "nf4") ? Q4_FP4 : Q4_NF4;
    return 0;
}

static int read_type(const struct cJSON *j, struct model_config *c, const char *where, struct err *e) {
    const char *name = "bfloat16";
    if (json_str(j, "dtype", &name, where, e) < 0 || json_str(j, "torch_dtype", &name, where, e) < 0)
        return -1;
    const char *bare = text_starts(name, "torch.") ? name + 6 : name;
    if (!strcmp(bare, "bfloat16"))
        c->stored = DT_BF16;
    else if (!strcmp(bare, "float16"))
        c->stored = DT_F16;
    else if (!strcmp(bare, "float32"))
        c->stored = DT_F32;
    else
        return err_set(e, ERR_INPUT, "%s: torch_dtype \"%s\" must be bfloat16, float16 or float32", where,
                       name);
    return 0;
}

/* A kind of model that differs from Yuan 2.0 in what it computes. */
static int refuse_strangers(const struct cJSON *j, const struct model_config *c, const char *where,
                            struct err *e) {
    const char *type = NULL, *act = "silu";
    int causal = 1, shared_qk = 0, loss_mask = 0;
    int64_t kv_heads = c->H;
    if (json_str(j, "model_type", &type, where, e) < 0 || json_str(j, "hidden_act", &act, where, e) < 0 ||
        json_bool(j, "causal_mask", &causal, where, e) < 0 ||
        json_bool(j, "use_shareqk", &shared_qk, where, e) < 0 ||
        json_bool(j, "use_loss_mask", &loss_mask, where, e) < 0 ||
        json_int(j, "num_key_value_heads", 1, 1 << 20, &kv_heads, where, e) < 0)
        return -1;
    if (!type) return err_set(e, ERR_INPUT, "%s: \"model_type\" is missing; \"yuan\" is supported", where);
    if (strcmp(type, "yuan"))
        return err_set(e, ERR_INPUT, "%s: model_type \"%s\" is not supported; \"yuan\" is", where, type);
    if (strcmp(act, "silu"))
        return err_set(e, ERR_INPUT, "%s: hidden_act \"%s\" is not supported; silu is", where, act);
    if (!causal) return err_set(e, ERR_INPUT, "%s: causal_mask false is not supported", where);
    if (shared_qk) return err_set(e, ERR_INPUT, "%s: use_shareqk true is not supported", where);
    if (kv_heads != c->H)
        return err_set(e, ERR_INPUT,
                       "%s: num_key_value_heads %lld differs from num_attention_heads %lld: not supported",
                       where, (long long)kv_heads, (long long)c->H);
    if (loss_mask) log_warn("%s: use_loss_mask is ignored; labels decide what counts", where);
    return 0;
}

static int read_tokens(const struct cJSON *j, struct model_config *c, const char *where, struct err *e) {
    const struct cJSON *pad = json_get(j, "pad_token_id");
    c->eod = EOD_DEFAULT;
    c->pad = pad && cJSON_IsNull(pad) ? -1 : EOD_DEFAULT;
    if (json_int(j, "eos_token_id", 0, INT32_MAX, &c->eod, where, e) < 0 ||
        json_int(j, "eod_token", 0, INT32_MAX, &c->eod, where, e) < 0 ||
        json_int(j, "pad_token_id", -1, INT32_MAX, &c->pad, where, e) < 0)
        return -1;
    if (c->eod >= c->V)
        return err_set(e, ERR_INPUT, "%s: eod_token %lld is outside the vocabulary (vocab_size %lld)", where,
                       (long long)c->eod, (long long)c->V);
    if (c->pad >= c->V && pad)
        return err_set(e, ERR_INPUT, "%s: pad_token_id %lld is outside the vocabulary (vocab_size %lld)",
                       where, (long long)c->pad, (long long)c->V);
    if (c->pad >= c->V) c->pad = -1;
    return 0;
}

static int read_numbers(const struct cJSON *j, struct model_config *c, const char *where, struct err *e) {
    double eps = 1e-6;
    int64_t head = 0;
    c->D = 2048, c->L = 24, c->H = 32, c->F = 8192, c->V = 135040;
    c->max_positions = 8192;
    c->init_range = 0.02;
    if (json_int(j, "hidden_size", 2, 65536, &c->D, where, e) < 0 ||
        json_int(j, "num_hidden_layers", 1, 1024, &c->L, where, e) < 0 ||
        json_int(j, "num_attention_heads", 1, 1024, &c->H, where, e) < 0 ||
        json_int(j, "intermediate_size", 1, 1 << 20, &c->F, where, e) < 0 ||
        json_int(j, "vocab_size", 1, 1 << 22, &c->V, where, e) < 0 ||
        json_int(j, "model_max_length", 1, INT32_MAX, &c->max_positions, where, e) < 0 ||
        json_int(j, "max_position_embeddings", 1, INT32_MAX, &c->max_positions, where, e) < 0 ||
        json_int(j, "head_dim", 1, 65536, &head, where, e) < 0 ||
        json_num(j, "rms_norm_eps", &eps, where, e) < 0 ||
        json_num(j, "initializer_range", &c->init_range, where, e) < 0)
        return -1;
    if (c->D % c->H || (c->K = c->D / c->H) % 2)
        return err_set(e, ERR_INPUT,
                       "%s: hidden_size %lld over num_attention_heads %lld must be an even whole number",
                       where, (long long)c->D, (long long)c->H);
    if (head && head != c->K)
        return err_set(e, ERR_INPUT,
                       "%s: head_dim %lld differs from hidden_size / num_attention_heads = %lld", where,
                       (long long)head, (long long)c->K);
    if (!(eps > 0 && eps < 1))
        return err_set(e, ERR_INPUT, "%s: rms_norm_eps %g must lie between 0 and 1", where, eps);
    if (!(c->init_range >= 0 && c->init_range <= 10))
        return err_set(e, ERR_INPUT, "%s: initializer_range %g must lie from 0 to 10", where, c->init_range);
    c->eps = (float)eps;
    return 0;
}

int model_config_parse(const char *text, size_t n, const char *where, struct model_config *c, struct err *e) {
    *c = (struct model_config){.tied = 1};
    int rc = -1, flash = 0, reset_mask = 0;
    struct cJSON *j = json_parse(text, n, where, e);
    if (!j) return -1;
    if (!cJSON_IsObject(j)) {
        err_set(e, ERR_INPUT, "%s: a JSON object is expected", where);
        goto out;
    }
    const struct cJSON *q = json_get(j, "quantization_config");
    if (read_numbers(j, c, where, e) || refuse_strangers(j, c, where, e) || read_tokens(j, c, where, e) ||
        read_type(j, c, where, e) || json_bool(j, "tie_word_embeddings", &c->tied, where, e) < 0 ||
        json_bool(j, "use_flash_attention", &flash, where, e) < 0 ||
        json_bool(j, "reset_attention_mask", &reset_mask, where, e) < 0 ||
        (q && !cJSON_IsNull(q) && read_quantization(q, c, where, e)))
        goto out;
    c->document_mask = !flash && reset_mask;
    c->text = text_copy(text, n);
    rc = c->text ? 0 : err_set(e, ERR_RUN, "%s: out of memory", where);
out:
    json_free(j);
    return rc;
}

int model_config_read(const char *dir, struct model_config *c, struct err *e) {
    char path[4096], *text = NULL;
    size_t n = 0;
    *c = (struct model_config){0};
    const int is_dir = path_is_dir(dir);
    if (!text_ends(dir, ".json") && !is_dir)
        return err_set(e, ERR_INPUT,
                       "there is no folder %s; give the folder of a model with its config.json (names of a "
                       "model hub are "
                       "not downloaded)",
                       dir);
    if (is_dir ? path_join(path, sizeof path, dir, "config.json", e) : path_join(path, sizeof path, "", dir, e))
        return -1;
    if (is_dir && !path_exists(path))
        return err_set(e, ERR_INPUT, "%s holds no config.json; give the folder of a model in the Hugging Face layout", dir);
    if (file_read_all(path, CONFIG_BYTES_MAX, &text, &n, e)) return -1;
    int rc = model_config_parse(text, n, path, c, e);
    sys_free(text);
    return rc;
}

void model_config_free(struct model_config *c) {
    sys_free(c->text);
    *c = (struct model_config){0};
}

/* ---- published configurations ---- */

/* Fields as published for the 2B model; sizes of the others as in their public training scripts. */
#define YUAN2(hidden, ffn, layers, heads, positions)                                                         \
    "{\n  \"architectures\": [\"YuanForCausalLM\"],\n"                                                       \
    "  \"auto_map\": {\"AutoConfig\": \"configuration_yuan.YuanConfig\", "                                   \
    "\"AutoModelForCausalLM\": \"yuan_hf_model.YuanForCausalLM\"},\n"                                        \
    "  \"tokenizer_class\": \"YuanTokenizer\", \"model_type\": \"yuan\", \"hidden_act\": \"silu\",\n"        \
    "  \"hidden_size\": " #hidden ", \"intermediate_size\": " #ffn ", \"num_hidden_layers\": " #layers ",\n" \
    "  \"num_attention_heads\": " #heads ", \"max_position_embeddings\": " #positions                        \
    ", \"vocab_size\": 135040,\n"                                                                            \
    "  \"initializer_range\": 0.02, \"rms_norm_eps\": 1e-06, \"dropout\": 0.1, \"tie_word_embeddings\": "    \
    "true,\n"                                                                                                \
    "  \"torch_dtype\": \"bfloat16\", \"transformers_version\": \"4.30.0.dev0\", \"use_cache\": true,\n"     \
    "  \"causal_mask\": true, \"use_flash_attention\": true, \"reset_attention_mask\": true,\n"              \
    "  \"reset_position_ids\": true, \"use_loss_mask\": false, \"eod_token\": 77185, \"sep_token\": "        \
    "77187,\n"                                                                                               \
    "  \"eod_token_id\": 77185, \"sep_token_id\": 77185, \"pad_token_id\": 77185, \"bos_token_id\": "        \
    "77185,\n"                                                                                               \
    "  \"eos_token_id\": 77185, \"mask_token_id\": 77185\n}"

const char *const model_config_names[] = {"yuan2-2b", "yuan2-51b", "yuan2-102b", "yuan2-tiny", NULL};
static const char *const named_text[] = {
    YUAN2(2048, 8192, 24, 32, 8192), YUAN2(8192, 32768, 42, 64, 4096), YUAN2(8192, 32768, 84, 64, 4096),
    YUAN2(64, 128, 2, 4, 8192), /* no published model: small enough for tests, with the real vocabulary */
};

const char *model_config_named(const char *name) {
    for (int i = 0; model_config_names[i]; i++)
        if (!strcmp(name, model_config_names[i])) return named_text[i];
    return NULL;
}

/* ---- writing ---- */

/* JSON with two blanks a level, as Python's json.dump(indent=2) prints it. */
static void print_value(struct str *s, const struct cJSON *v, int depth) {
    static const char ends[2][2] = {{'[', ']'}, {'{', '}'}};
    if (cJSON_IsString(v))
        str_json(s, v->valuestring, strlen(v->valuestring));
    else if (cJSON_IsNumber(v))
        str_json_num(s, v->valuedouble);
    else if (cJSON_IsRaw(v))
        str_puts(s, v->valuestring);
    else if (cJSON_IsNull(v))
        str_puts(s, "null");
    else if (cJSON_IsBool(v))
        str_puts(s, cJSON_IsTrue(v) ? "true" : "false");
    else {
        const char *end = ends[cJSON_IsObject(v) != 0];
        const struct cJSON *m;
        str_putc(s, end[0]);
        cJSON_ArrayForEach(m, v) {
            str_printf(s, "%s\n%*s", m == v->child ? "" : ",", 2 * depth + 2, "");
            if (m->string) str_json(s, m->string, strlen(m->string)), str_puts(s, ": ");
            print_value(s, m, depth + 1);
        }
        if (v->child) str_printf(s, "\n%*s", 2 * depth, "");
        str_putc(s, end[1]);
    }
}

/* Puts `value` at `key`, in place of a member of that name. Takes `value` in any case. */
static int set_member(struct cJSON *object, const char *key, struct cJSON *value) {
    if (value && json_get(object, key)) {
        if (cJSON_ReplaceItemInObjectCaseSensitive(object, key, value))
            return value->string ? 0 : -1; /* cJSON 1.7.15 does not look whether there was memory for the key */
    } else if (value && cJSON_AddItemToObject(object, key, value)) {
        return 0;
    }
    json_free(value);
    return -1;
}

static int override_key_known(const struct cJSON *j, const char *key, struct err *e) {
    const char *names[256];
    int n = 0;
    for (const char *const *k = known_keys; *k; k++) names[n++] = *k;
    for (const struct cJSON *m = j->child; m && n < 255; m = m->next) names[n++] = m->string;
    names[n] = NULL;
    for (int i = 0; i < n; i++)
        if (!strcmp(names[i], key)) return 0;
    const char *near = nearest_word(key, names);
    return near
               ? err_set(e, ERR_INPUT, "override: config.json has no \"%s\", did you mean \"%s\"?", key, near)
               : err_set(e, ERR_INPUT, "override: config.json has no \"%s\"", key);
}

static int apply_override(struct cJSON *j, const char *text, struct err *e) {
    const char *eq = strchr(text, '=');
    if (!eq || eq == text || eq - text > 200)
        return err_set(e, ERR_INPUT, "override \"%.200s\" must have the form key=value", text);
    char key[208];
    memcpy(key, text, (size_t)(eq - text));
    key[eq - text] = 0;
    if (override_key_known(j, key, e)) return -1;
    size_t n = strlen(++eq);
    struct cJSON *value = NULL;
    if (json_check(eq, n, NULL, NULL))
        value = cJSON_CreateString(eq); /* a bare word */
    else
        value = json_parse(eq, n, "override", e);
    return set_member(j, key, value) ? err_set(e, ERR_RUN, "override: out of memory") : 0;
}

static struct cJSON *quantization_json(const struct model_config *q) {
    struct str s = {0};
    str_printf(&s,
               "{\"_load_in_4bit\": %s, \"_load_in_8bit\": %s, \"bnb_4bit_compute_dtype\": \"bfloat16\", "
               "\"bnb_4bit_quant_storage\": \"uint8\", \"bnb_4bit_quant_type\": \"%s\", "
               "\"bnb_4bit_use_double_quant\": %s, \"llm_int8_enable_fp32_cpu_offload\": false, "
               "\"llm_int8_has_fp16_weight\": false, \"llm_int8_skip_modules\": [\"lm_head\"], "
               "\"llm_int8_threshold\": 6.0, \"load_in_4bit\": %s, \"load_in_8bit\": %s, "
               "\"quant_method\": \"bitsandbytes\"}",
               q->q_bits == 4 ? "true" : "false", q->q_bits == 8 ? "true" : "false",
               q->q_type == Q4_NF4 ? "nf4" : "fp4", q->q_double ? "true" : "false",
               q->q_bits == 4 ? "true" : "false", q->q_bits == 8 ? "true" : "false");
    struct cJSON *j = s.oom ? NULL : json_parse(s.p, s.n, "quantization_config", NULL);
    str_free(&s);
    if (!j || !set_member(j, "llm_int8_threshold", cJSON_CreateRaw("6.0")))
        return j; /* readers ask for a float */
    json_free(j);
    return NULL;
}

char *model_config_text(const struct model_config *c, const char *const *overrides, int n_overrides,
                        const struct model_config *quantised, struct err *e) {
    struct str s = {0};
    char *result = NULL;
    struct cJSON *j = json_parse(c->text, strlen(c->text), "config.json", e);
    if (!j) return NULL;
    for (int i = 0; i < n_overrides; i++)
        if (apply_override(j, overrides[i], e)) goto out;
    if (quantised && quantised->q_bits) {
        if (set_member(j, "quantization_config", quantization_json(quantised))) {
            err_set(e, ERR_RUN, "config.json: out of memory");
            goto out;
        }
    } else {
        cJSON_DeleteItemFromObjectCaseSensitive(j, "quantization_config");
    }
    print_value(&s, j, 0);
    str_putc(&s, '\n');
    if (s.oom)
        err_set(e, ERR_RUN, "config.json: out of memory");
    else
        result = s.p, s = (struct str){0}; /* struct str's memory is freed by sys_free */
out:
    str_free(&s);
    json_free(j);
    return result;
}

int model_config_find(const char *name, struct model_config *c, struct err *e) {
    const char *text = model_config_named(name);
    if (text) return model_config_parse(text, strlen(text), name, c, e);
    if (path_exists(name)) return model_config_read(name, c, e);
    const char *near = nearest_word(name, model_config_names);
    return err_set(e, ERR_INPUT, "config %s is neither a file nor a folder nor a known name%s%s%s", name,
                   near ? ", did you mean " : " (yuan2-2b, yuan2-51b, yuan2-102b, yuan2-tiny)",
                   near ? near : "", near ? "?" : "");
}
