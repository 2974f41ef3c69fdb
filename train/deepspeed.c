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

/* ---- what each key of each section is here ---- */

enum here { READ, SENT, PLACED, SCALED, SUMMED, FILES, LOGGED, TABLED, OTHER, HERE };
static const char *const because[HERE] = {
    [SENT] = "one card: nothing is sent",
    [PLACED] = "the plan decides what lies where and how much of it moves at a time: see vram",
    [SCALED] = "a card computes in bf16, the processor in fp32, which need no loss scale",
    [SUMMED] = "gradients are always summed in fp32, and one AdamW serves on the card and on the host",
    [FILES] = "models are always saved whole, and files read and written by this program's own ways",
    [LOGGED] = "the log has its own form",
    [TABLED] = "the table covers the whole run",
};
/* Blank-separated keys; OTHER would change the result, and is an error when on. Sections within a section have a row of their own. */
static const struct section { const char *path, *keys[HERE];
} sections[] = {
    {"",
     {[READ] = "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps gradient_clipping bf16 bfloat16 fp16 "
               "zero_optimization optimizer "
               "scheduler flops_profiler activation_checkpointing data_types",
      [SENT] =
          "prescale_gradients gradient_predivide_factor sparse_gradients communication_data_type "
          "seq_parallel_communication_data_type disable_allgather "
          "comms_logger elasticity pipeline use_data_before_expert_parallelism graph_harvesting tensor_parallel hybrid_engine",
      [SUMMED] = "zero_allow_untested_optimizer zero_force_ds_cpu_optimizer",
      [FILES] = "aio checkpoint nebula autotuning",
      [LOGGED] = "steps_per_print wall_clock_breakdown dump_state memory_breakdown tensorboard wandb comet csv_monitor timers",
      [OTHER] = "amp sparse_attention progressive_layer_drop curriculum_learning data_efficiency compression_training "
                "quantize_training eigenvalue"}},
    {"bf16",
     {[READ] = "enabled",
      [SCALED] = "auto_cast loss_scale initial_scale_power loss_scale_window hysteresis consecutive_hysteresis min_loss_scale "
                 "check_grad_overflow immediate_grad_update",
      [OTHER] = "bf16_master_weights_and_grads bf16_optimizer_states"}},
    {"bfloat16",
     {[READ] = "enabled",
      [SCALED] = "loss_scale initial_scale_power loss_scale_window hysteresis min_loss_scale immediate_grad_update"}},
    {"fp16",
     {[READ] = "enabled",
      [SCALED] =
          "auto_cast loss_scale initial_scale_power loss_scale_window hysteresis consecutive_hysteresis min_loss_scale opt_level",
      [OTHER] = "fp16_master_weights_and_grads"}},
    {"zero_optimization",
     {[READ] = "stage offload_optimizer offload_param cpu_offload cpu_offload_params",
      [SENT] = "allgather_partitions allgather_bucket_size overlap_comm reduce_scatter reduce_bucket_size contiguous_gradients "
               "round_robin_gradients "
               "use_multi_rank_bucket_allreduce use_all_reduce_for_fetch_params legacy_stage1 zero_hpz_partition_size "
               "zero_quantized_weights zero_quantized_gradients "
               "zero_quantized_nontrainable_weights mics_shard_size mics_hierarchical_params_gather ignore_unused_parameters",
      [PLACED] = "sub_group_size prefetch_bucket_size param_persistence_threshold model_persistence_threshold "
                 "max_live_parameters max_reuse_distance "
                 "module_granularity_threshold stage3_prefetch_bucket_size stage3_param_persistence_threshold "
                 "stage3_model_persistence_threshold "
                 "stage3_max_live_parameters stage3_max_reuse_distance stage3_module_granularity_threshold "
                 "stage3_use_all_reduce_for_fetch_params "
                 "memory_efficient_linear cpu_offload_use_pin_memory pipeline_loading_checkpoint override_module_apply "
                 "log_trace_cache_warnings",
      [FILES] = "gather_16bit_weights_on_model_save stage3_gather_16bit_weights_on_model_save "
                "stage3_gather_fp16_weights_on_model_save load_from_fp32_weights elastic_checkpoint"}},
    {"zero_optimization.offload_optimizer",
     {[READ] = "device", [PLACED] = "pin_memory nvme_path buffer_count pipeline_read pipeline_write pipeline fast_init ratio"}},
    {"zero_optimization.offload_param",
     {[READ] = "device", [PLACED] = "pin_memory nvme_path buffer_count buffer_size max_in_cpu"}},
    {"activation_checkpointing",
     {[PLACED] = "partition_activations cpu_checkpointing contiguous_memory_optimization number_checkpoints "
                 "synchronize_checkpoint_boundary",
      [LOGGED] = "profile"}},
    {"data_types", {[SUMMED] = "grad_accum_dtype"}},
    {"optimizer", {[READ] = "type params", [SUMMED] = "legacy_fusion"}},
    {"optimizer.params",
     {[READ] = "lr betas eps weight_decay adam_w_mode", [SUMMED] = "torch_adam fp32_optimizer_states bias_correction"}},
    {"flops_profiler",
     {[READ] = "enabled", [TABLED] = "profile_step module_depth top_modules detailed output_file recompute_fwd_factor"}},
};

static const struct section *section_of(const char *path) {
    for (size_t i = 0; i < sizeof sections / sizeof *sections; i++)
        if (!strcmp(sections[i].path, path)) return &sections[i];
    return NULL;
}

/* Whether words holds key, blank-separated. */
static int holds(const char *words, const char *key) {
    const size_t n = strlen(key);
    for (const char *p = words; p && *p; p += strcspn(p, " "), p += *p == ' ')
        if (strcspn(p, " ") == n && !strncmp(p, key, n)) return 1;
    return 0;
}

/* The key of a section nearest to a word, in buf; NULL if none is near. */
static const char *nearest_key(const struct section *s, const char *word, char buf[1800]) {
    const char *words[120];
    size_t n = 0, at = 0;
    char *next;
    for (int h = 0; h < HERE; h++) at += (size_t)snprintf(buf + at, 1800 - at, "%s ", s->keys[h] ? s->keys[h] : "");
    ASSERT(at < 1800, "%zu bytes of keys in %s", at, s->path);
    for (char *p = strtok_r(buf, " ", &next); p && n < 119; p = strtok_r(NULL, " ", &next)) words[n++] = p;
    words[n] = NULL;
    return nearest_word(word, words);
}

/* Whether a setting that is not offered is on: true, an object that is not switched off, any other value that is not off. */
static int is_on(const struct cJSON *v) {
    if (cJSON_IsObject(v)) return v->child && !cJSON_IsFalse(json_get(v, "enabled"));
    return !(cJSON_IsFalse(v) || cJSON_IsNull(v) || (cJSON_IsNumber(v) && v->valuedouble == 0));
}

/* Looks at every key of a section and of those within; names of what is not needed are collected by their reason. */
static int walk(const struct cJSON *object, const char *path, struct str said[HERE], const char *where, struct err *e) {
    const struct section *s = section_of(path);
    const struct cJSON *v;
    char inner[200], buf[1800];
    cJSON_ArrayForEach(v, object) {
        int h = 0;
        snprintf(inner, sizeof inner, "%s%s%.80s", path, *path ? "." : "", v->string);
        while (h < HERE && !holds(s->keys[h], v->string)) h++;
        if (h == HERE) {
            const char *near = nearest_key(s, v->string, buf);
            log_warn("%s: unknown key \"%s\"%s%s%s", where, inner, near ? " is ignored, did you mean \"" : " is ignored",
                     near ? near : "", near ? "\"?" : "");
        } else if (h == OTHER && is_on(v)) {
            return err_set(e, ERR_INPUT, "%s: \"%s\" would change the result and is not supported; leave it out", where, inner);
        } else if (section_of(inner)) {
            if (!cJSON_IsObject(v) && !cJSON_IsNull(v)) return err_set(e, ERR_INPUT, "%s: \"%s\" must be an object {..}", where, inner);
            if (cJSON_IsObject(v) && walk(v, inner, said, where, e)) return -1;
        } else if (because[h]) {
            str_printf(&said[h], "%s%s", said[h].n ? ", " : "", inner);
        }
    }
    return 0;
}

/* One line for all that is not needed. */
static int name_all(const struct cJSON *root, const char *where, struct err *e) {
    struct str said[HERE] = {{0}}, line = {0};
    int r = walk(root, "", said, where, e);
    for (int h = 0; h < HERE; h++) {
        line.oom |= said[h].oom;
        if (said[h].n && !line.oom) str_printf(&line, "%s%s (%s)", line.n ? "; " : "", said[h].p, because[h]);
        str_free(&said[h]);
    }
    if (!r && line.oom) r = err_set(e, ERR_RUN, "%s: out of memory", where);
    if (!r && line.n) log_info("%s: not needed: %s", where, line.p);
    str_free(&line);
    return r;
}

/* ---- what is read ---- */

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
    int decoupled = 1; /* DeepSpeed's "Adam" is AdamW unless it is told otherwise */
    if (json_str(section, "type", &type, where, e) < 0 || json_bool(params, "adam_w_mode", &decoupled, where, e) < 0) return -1;
    if ((strcmp(type, "AdamW") && strcmp(type, "Adam")) || (!strcmp(type, "Adam") && !decoupled))
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

/* Whether an offload section names a device; there is one place beside the card. */
static int offload(const struct cJSON *zero, const char *section, int *on, const char *where, struct err *e) {
    const char *device = "none";
    if (json_str(json_get(zero, section), "device", &device, where, e) < 0) return -1;
    if (strcmp(device, "none") && strcmp(device, "cpu") && strcmp(device, "nvme"))
        return err_set(e, ERR_INPUT, "%s: %s.device \"%.40s\" is unknown; choose from none, cpu, nvme", where, section, device);
    if (!strcmp(device, "nvme")) log_info("%s: %s: host memory takes the place of nvme", where, section);
    *on |= strcmp(device, "none") != 0;
    return 0;
}

static int apply_zero(const struct cJSON *root, struct train_options *o, const char *where, struct err *e) {
    const struct cJSON *zero = json_get(root, "zero_optimization");
    int64_t stage = 0;
    int state = 0, weights = 0;
    if (!zero) return 0;
    if (json_int(zero, "stage", 0, 3, &stage, where, e) < 0 || json_bool(zero, "cpu_offload", &state, where, e) < 0 ||
        json_bool(zero, "cpu_offload_params", &weights, where, e) < 0 || offload(zero, "offload_optimizer", &state, where, e) ||
        offload(zero, "offload_param", &weights, where, e))
        return -1;
    if (stage)
        log_info("%s: ZeRO stage %d has no effect on one card%s", where, (int)stage,
                 stage == 3 && o->quantization_bit ? "; nor does it keep weights from being quantised" : "");
    if (state)
        o->paged = 1, log_info("%s: offload_optimizer: optimizer state may live in host memory; it does where the card has no "
                               "room for it (see vram)",
                               where);
    if (weights)
        log_info("%s: offload_param: layers whose weights the card has no room for stream from host memory, as without the key "
                 "(see vram)",
                 where);
    return 0;
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
        match_switch(root, "bf16", o->bf16, m, where, e) || match_switch(root, "bfloat16", o->bf16, m, where, e) ||
        match_switch(root, "fp16", o->fp16, m, where, e) || match_optimizer(root, o, m, where, e) ||
        json_str(scheduler, "type", &type, where, e) < 0 ||
        json_bool(json_get(root, "flops_profiler"), "enabled", &profile, where, e) < 0 ||
        apply_zero(root, o, where, e))
        return -1;
    if (scheduler)
        return err_set(e, ERR_INPUT, "%s: scheduler \"%s\": leave the section out and use lr_scheduler_type",
                       where, type);
    if (m->oom) return err_set(e, ERR_RUN, "%s: out of memory", where);
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
        rc = name_all(root, where, e) || apply(root, o, &m, where, e) ? -1 : 0;
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
