/* train/deepspeed.c - see deepspeed.h. Field names and meanings: DeepSpeed's configuration reference; the rule that
 * "auto" takes the flag's value and anything else must agree with it: transformers' integration. */
#include "train/deepspeed.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/str.h"
#include "base/sys.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { FILE_BYTES_MAX = 1 << 20 };

static const char *const known[] = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "bf16", "fp16", "zero_optimization", "optimizer", "scheduler", "flops_profiler",
    /* without effect on one card */
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "steps_per_print", "wall_clock_breakdown",
    "prescale_gradients", "gradient_predivide_factor", "sparse_gradients", "communication_data_type",
    "seq_parallel_communication_data_type", "disable_allgather", "dump_state", "memory_breakdown",
    "activation_checkpointing", "aio", "comms_logger", "tensorboard", "wandb", "comet", "csv_monitor",
    "data_types", "checkpoint", "elasticity", "autotuning", "nebula", "pipeline", "timers",
    "graph_harvesting", "use_data_before_expert_parallelism", NULL};

static int is_auto(const struct cJSON *v) {
    return cJSON_IsString(v) && !strcmp(v->valuestring, "auto");
}

/* object.key, if it is there and not "auto", must be the number that the flag has. */
static int match_number(const struct cJSON *object, const char *key, double flag_value, const char *flag,
                        struct str *m, const char *where, struct err *e) {
    const struct cJSON *v = json_get(object, key);
    double x = flag_value;
    if (is_auto(v)) return 0;
    if (json_num(object, key, &x, where, e) < 0) return -1;
    if (fabs(x - flag_value) > 1e-9 * fabs(flag_value)) /* 5e-5 and 0.00005 are one number */
        str_printf(m, "%sds %s=%g vs hf %s=%g", m->n ? ", " : "", key, x, flag, flag_value);
    return 0;
}

static int match_switch(const struct cJSON *root, const char *section, int flag_value, struct str *m,
                        const char *where, struct err *e) {
    const struct cJSON *object = json_get(root, section);
    int x = flag_value;
    if (is_auto(json_get(object, "enabled"))) return 0;
    if (json_bool(object, "enabled", &x, where, e) < 0) return -1;
    if (x != flag_value)
        str_printf(m, "%sds %s.enabled=%s vs hf %s=%s", m->n ? ", " : "", section, x ? "True" : "False",
                   section, flag_value ? "True" : "False");
    return 0;
}

static int match_optimizer(const struct cJSON *root, const struct train_options *o, struct str *m,
                           const char *where, struct err *e) {
    const struct cJSON *section = json_get(root, "optimizer"), *params = json_get(section, "params"),
                       *betas = json_get(params, "betas");
    const char *type = "";
    if (!section) return 0;
    if (json_str(section, "type", &type, where, e) < 0) return -1;
    if (strcmp(type, "AdamW"))
        return err_set(e, ERR_INPUT,
                       "%s: optimizer \"%s\" is not supported; AdamW is, or leave the section out", where,
                       type);
    if (match_number(params, "lr", o->learning_rate, "learning_rate", m, where, e) ||
        match_number(params, "eps", o->epsilon, "adam_epsilon", m, where, e) ||
        match_number(params, "weight_decay", o->weight_decay, "weight_decay", m, where, e))
        return -1;
    if (!betas || is_auto(betas)) return 0;
    const struct cJSON *b1 = cJSON_GetArrayItem(betas, 0), *b2 = cJSON_GetArrayItem(betas, 1);
    if (!cJSON_IsNumber(b1) || !cJSON_IsNumber(b2))
        return err_set(e, ERR_INPUT, "%s: optimizer.params.betas must be two numbers or \"auto\"", where);
    if (fabs(b1->valuedouble - o->beta1) > 1e-9 || fabs(b2->valuedouble - o->beta2) > 1e-9)
        str_printf(m, "%sds betas=[%g, %g] vs hf adam_beta1=%g, adam_beta2=%g", m->n ? ", " : "",
                   b1->valuedouble, b2->valuedouble, o->beta1, o->beta2);
    return 0;
}

/* Reads object.device of an offload section. */
static int offload_device(const struct cJSON *zero, const char *section, const char **device,
                          const char *where, struct err *e) {
    *device = "none";
    return json_str(json_get(zero, section), "device", device, where, e) < 0 ? -1 : 0;
}

static int apply_zero(const struct cJSON *root, struct train_options *o, const char *where, struct err *e) {
    const struct cJSON *zero = json_get(root, "zero_optimization");
    int64_t stage = 0;
    int cpu_offload = 0;
    const char *optimizer, *param;
    if (!zero) return 0;
    if (json_int(zero, "stage", 0, 3, &stage, where, e) < 0 ||
        json_bool(zero, "cpu_offload", &cpu_offload, where, e) < 0 ||
        offload_device(zero, "offload_optimizer", &optimizer, where, e) ||
        offload_device(zero, "offload_param", &param, where, e))
        return -1;
    if (stage) log_info("%s: ZeRO stage %d has no effect on one card", where, (int)stage);
    if (cpu_offload || strcmp(optimizer, "none")) {
        o->paged = 1;
        log_info("%s: optimizer state is kept in host memory%s", where,
                 strcmp(optimizer, "nvme") ? "" : ", not on nvme");
    }
    if (strcmp(param, "none"))
        log_info("%s: offload_param: weights that do not fit are streamed from host memory", where);
    return 0;
}

static void warn_unknown(const struct cJSON *root, const char *where) {
    const struct cJSON *v;
    cJSON_ArrayForEach(v, root) {
        const char *const *k = known;
        while (*k && strcmp(*k, v->string)) k++;
        const char *near = *k ? NULL : nearest_word(v->string, known);
        if (!*k)
            log_warn("%s: unknown key \"%s\"%s%s%s", where, v->string,
                     near ? ", did you mean \"" : " is ignored", near ? near : "", near ? "\"?" : "");
    }
}

static int apply(const struct cJSON *root, struct train_options *o, struct str *m, const char *where,
                 struct err *e) {
    int profile = 0;
    const struct cJSON *scheduler = json_get(root, "scheduler");
    const char *type = "";
    if (match_number(root, "train_micro_batch_size_per_gpu", (double)o->batch, "per_device_train_batch_size",
                     m, where, e) ||
        match_number(root, "gradient_accumulation_steps", (double)o->accumulate,
                     "gradient_accumulation_steps", m, where, e) ||
        match_number(root, "train_batch_size", (double)(o->batch * o->accumulate),
                     "train_batch_size (calculated)", m, where, e) ||
        match_number(root, "gradient_clipping", o->max_grad_norm, "max_grad_norm", m, where, e) ||
        match_switch(root, "bf16", o->bf16, m, where, e) ||
        match_switch(root, "fp16", o->fp16, m, where, e) || match_optimizer(root, o, m, where, e) ||
        json_str(scheduler, "type", &type, where, e) < 0 ||
        json_bool(json_get(root, "flops_profiler"), "enabled", &profile, where, e) < 0 ||
        apply_zero(root, o, where, e))
        return -1;
    if (scheduler)
        return err_set(e, ERR_INPUT, "%s: scheduler \"%s\": leave the section out and use lr_scheduler_type",
                       where, type);
    if (m->n)
        return err_set(e, ERR_INPUT,
                       "%s: Please correct the following DeepSpeed config values that mismatch "
                       "TrainingArguments values: "
                       "%s. The easiest method is to set these DeepSpeed config values to 'auto'.",
                       where, m->p);
    if (!json_get(root, "gradient_clipping") && o->max_grad_norm > 0) {
        o->max_grad_norm = 0;
        log_info("%s: without \"gradient_clipping\" gradients are not clipped, max_grad_norm is not used",
                 where);
    }
    if (profile) o->profile = 1;
    return 0;
}

int deepspeed_parse(const char *text, size_t n, const char *where, struct train_options *o, struct err *e) {
    struct str m = {0}; /* the pairs that disagree, for one sentence */
    struct cJSON *root = json_parse(text, n, where, e);
    if (!root) return -1;
    int rc = cJSON_IsObject(root) ? 0 : err_set(e, ERR_INPUT, "%s: a JSON object is expected", where);
    if (!rc) {
        warn_unknown(root, where);
        rc = apply(root, o, &m, where, e);
    }
    str_free(&m);
    json_free(root);
    return rc;
}

int deepspeed_apply(const char *path, struct train_options *o, struct err *e) {
    char *text;
    size_t n;
    if (strstr(path, "${"))
        return err_set(e, ERR_INPUT, "deepspeed: \"%s\" holds a shell variable that was not set", path);
    if (file_read_all(path, FILE_BYTES_MAX, &text, &n, e)) return -1;
    int rc = deepspeed_parse(text, n, path, o, e);
    sys_free(text);
    return rc;
}
