/* DeepSpeed files: every key of every level is read, named as not needed with a reason, refused, or unknown. */
#include "base/json.h"
#include "base/log.h"
#include "base/sys.h"
#include "tests/test.h"
#include "train/deepspeed.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Reads json against the flags of the guide; what is said on standard error is kept. */
static char said[8000];
static int deepspeed(const char *json, struct train_options *o, struct err *e) {
    *o = (struct train_options){.batch = 4,
                                .accumulate = 4,
                                .max_grad_norm = 1,
                                .bf16 = 1,
                                .learning_rate = 5e-5,
                                .beta1 = 0.9,
                                .beta2 = 0.999,
                                .epsilon = 1e-8};
    *e = (struct err){0};
    fflush(stderr);
    int old = dup(2), log = fileno(tmpfile());
    dup2(log, 2);
    int rc = deepspeed_parse(json, strlen(json), "ds.json", o, e);
    fflush(stderr);
    dup2(old, 2);
    close(old);
    ssize_t n = pread(log, said, sizeof said - 1, 0);
    said[n > 0 ? n : 0] = 0;
    return rc;
}

TEST(deepspeed_files_agree_with_the_flags) {
    static const char *const good[] = {
        "{\"gradient_clipping\": \"auto\"}",
        "{\"gradient_clipping\": 1.0, \"train_batch_size\": 16, \"train_micro_batch_size_per_gpu\": 4}",
        "{\"gradient_clipping\": 1, \"bf16\": {\"enabled\": true}, \"fp16\": {\"enabled\": false, "
        "\"loss_scale\": 0}}",
        "{\"gradient_clipping\": 1, \"zero_optimization\": {\"stage\": 3, "
        "\"reduce_bucket_size\": 5e8}}",
        "{\"gradient_clipping\": 1, \"optimizer\": {\"type\": \"AdamW\", \"params\": {\"lr\": \"auto\", "
        "\"betas\": [0.9, 0.999], "
        "\"weight_decay\": 0}}}",
    };
    static const char *const bad[][2] = {
        {"{\"train_micro_batch_size_per_gpu\": 8}",
         "ds train_micro_batch_size_per_gpu=8 vs hf per_device_train_batch_size=4"},
        {"{\"train_batch_size\": 128}", "ds train_batch_size=128 vs hf train_batch_size (calculated)=16"},
        {"{\"gradient_accumulation_steps\": 1}",
         "Please correct the following DeepSpeed config values that mismatch "
         "TrainingArguments values"},
        {"{\"gradient_clipping\": 0.5}", "ds gradient_clipping=0.5 vs hf max_grad_norm=1"},
        {"{\"bf16\": {\"enabled\": false}}", "ds bf16.enabled=False vs hf bf16=True"},
        {"{\"fp16\": {\"enabled\": true}}", "ds fp16.enabled=True vs hf fp16=False"},
        {"{\"optimizer\": {\"type\": \"Lamb\"}}", "optimizer \"Lamb\" is not supported"},
        {"{\"optimizer\": {\"type\": \"AdamW\", \"params\": {\"betas\": [0.8, 0.99]}}}", "betas"},
        {"{\"optimizer\": {\"type\": \"AdamW\", \"params\": {\"betas\": [0.8]}}}", "two numbers"},
        {"{\"optimizer\": {\"type\": \"Adam\", \"params\": {\"adam_w_mode\": false}}}", "optimizer \"Adam\" is not supported"},
        {"{\"zero_optimization\": {\"offload_param\": {\"device\": \"disk\"}}}", "choose from none, cpu, nvme"},
        {"{\"zero_optimization\": 2}", "\"zero_optimization\" must be an object"},
        {"{\"amp\": {\"enabled\": true}}", "\"amp\" would change the result"},
        {"{\"fp16\": {\"fp16_master_weights_and_grads\": true}}", "\"fp16.fp16_master_weights_and_grads\" would change the result"},
        {"{\"sparse_attention\": {\"mode\": \"fixed\"}}", "would change the result"},
        {"{\"scheduler\": {\"type\": \"WarmupLR\"}}", "lr_scheduler_type"},
        {"{\"zero_optimization\": {\"stage\": 4}}", "from 0 to 3"},
        {"{\"train_batch_size\": \"many\"}", "must be a number"},
        {"[]", "object"},
        {"{", "ds.json:1:"},
    };
    struct train_options o;
    struct err e;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        CHECK(!deepspeed(good[i], &o, &e), "%s: %s", good[i], e.text);
        CHECK(o.max_grad_norm == 1 && !o.paged && !o.profile, "%s", good[i]);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(deepspeed(bad[i][0], &o, &e) == -1 && e.code == ERR_INPUT && strstr(e.text, bad[i][1]),
              "%s: \"%s\"", bad[i][0], e.text);
    REQUIRE(!deepspeed("{}", &o, &e), "%s", e.text);
    CHECK(o.max_grad_norm == 0, "without gradient_clipping nothing is clipped");
    REQUIRE(
        !deepspeed("{\"zero_optimization\": {\"stage\": 2, \"offload_optimizer\": {\"device\": \"cpu\"}}, "
                   "\"flops_profiler\": {\"enabled\": true}}",
                   &o, &e),
        "%s", e.text);
    CHECK(o.paged && o.profile, "offload and profiler");
}

/* The keys below have an effect or are checked against flags, so no line need name them. */
static int is_read(const char *key) {
    static const char *const keys[] = {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping", "enabled", "stage", "device",
                                       "type", "lr", "betas", "eps", "weight_decay"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!strcmp(keys[i], key)) return 1;
    return 0;
}
static int check_named(const struct cJSON *object, const char *path, const char *json) {
    const struct cJSON *v;
    char name[300];
    int leaves = 0;
    cJSON_ArrayForEach(v, object) {
        snprintf(name, sizeof name, "%s%s%s", path, *path ? "." : "", v->string);
        if (cJSON_IsObject(v)) {
            leaves += check_named(v, name, json);
            continue;
        }
        CHECK(is_read(v->string) || strstr(said, name), "%s of %s is passed over", name, json);
        leaves++;
    }
    return leaves;
}

#define AUTO "\"train_batch_size\": \"auto\", \"train_micro_batch_size_per_gpu\": \"auto\", \"gradient_accumulation_steps\": \"auto\", \"gradient_clipping\": \"auto\", "
#define FP16 "\"fp16\": {\"enabled\": \"auto\", \"loss_scale\": 0, \"loss_scale_window\": 1000, \"initial_scale_power\": 16, \"hysteresis\": 2, \"min_loss_scale\": 1}, "
#define STAGE(n) "\"stage\": " n ", \"allgather_partitions\": true, \"allgather_bucket_size\": 5e8, \"overlap_comm\": true, \"reduce_scatter\": true, \"reduce_bucket_size\": 5e8, \"contiguous_gradients\": true, \"round_robin_gradients\": true"
#define STAGE3 "\"stage\": 3, \"overlap_comm\": true, \"contiguous_gradients\": true, \"sub_group_size\": 1e9, \"reduce_bucket_size\": \"auto\", \"stage3_prefetch_bucket_size\": \"auto\", \"stage3_param_persistence_threshold\": \"auto\", \"stage3_max_live_parameters\": 1e9, \"stage3_max_reuse_distance\": 1e9, \"stage3_gather_16bit_weights_on_model_save\": true"
#define CPU(what) "\"offload_" what "\": {\"device\": \"cpu\", \"pin_memory\": true}"

/* The guide's two files, and those that come with LLaMA-Factory. */
TEST(no_key_passes_in_silence) {
    static const struct { const char *json; int leaves, paged; } files[] = {
        {"{" AUTO "\"bf16\": {\"enabled\": \"auto\"}, \"zero_optimization\": {" STAGE("2") "}}", 13, 0},
        {"{\"train_batch_size\": \"auto\", \"train_micro_batch_size_per_gpu\": \"auto\", \"gradient_accumulation_steps\": \"auto\", \"gradient_clipping\": \"auto\", "
         "\"zero_allow_untested_optimizer\": true, \"bf16\": {\"enabled\": \"auto\", \"loss_scale\": 0, \"initial_scale_power\": 16, \"loss_scale_window\": 1000, \"hysteresis\": 2, "
         "\"min_loss_scale\": 1}, \"zero_optimization\": {\"stage\": 2, \"allgather_partitions\": true, \"allgather_bucket_size\": 1e9, \"reduce_scatter\": true, "
         "\"reduce_bucket_size\": 1e9, \"overlap_comm\": true, \"contiguous_gradients\": true}, \"flops_profiler\": {\"enabled\": false, \"profile_step\": 1, \"module_depth\": -1, "
         "\"top_modules\": 1, \"detailed\": true, \"output_file\": null}}", 24, 0},
        {"{" AUTO "\"zero_allow_untested_optimizer\": true, " FP16 "\"bf16\": {\"enabled\": \"auto\"}, \"zero_optimization\": {" STAGE("0") "}}", 20, 0},
        {"{" AUTO "\"zero_allow_untested_optimizer\": true, " FP16 "\"bf16\": {\"enabled\": \"auto\"}, \"zero_optimization\": {" CPU("optimizer") ", " STAGE("2") "}}", 22, 1},
        {"{" AUTO "\"zero_allow_untested_optimizer\": true, " FP16 "\"bf16\": {\"enabled\": \"auto\"}, \"zero_optimization\": {" STAGE3 "}}", 22, 0},
        {"{" AUTO "\"zero_allow_untested_optimizer\": true, " FP16 "\"bf16\": {\"enabled\": \"auto\"}, \"zero_optimization\": {" CPU("optimizer") ", " CPU("param") ", " STAGE3 "}}", 26, 1},
        {"{" AUTO "\"steps_per_print\": 10, \"wall_clock_breakdown\": false, \"activation_checkpointing\": {\"partition_activations\": true, \"profile\": false}, \"communication_data_type\": \"fp32\", "
         "\"data_types\": {\"grad_accum_dtype\": \"fp32\"}, \"optimizer\": {\"type\": \"Adam\", \"params\": {\"lr\": \"auto\", \"betas\": \"auto\", \"eps\": \"auto\", \"weight_decay\": \"auto\", "
         "\"torch_adam\": true}}, \"aio\": {\"block_size\": 1048576}, \"amp\": {\"enabled\": false}}", 18, 0},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        struct train_options o;
        struct err e;
        struct cJSON *j = json_parse(files[i].json, strlen(files[i].json), "test", &e);
        CHECK(!deepspeed(files[i].json, &o, &e), "%s", e.text);
        CHECK(!strstr(said, "unknown") && !strstr(said, "warning"), "%s", said);
        CHECK(o.paged == files[i].paged && o.max_grad_norm == 1, "%zu: paged %d, clipping %g", i, o.paged, o.max_grad_norm);
        if (i == 6) strcat(said, "aio.block_size"); /* named by its section */
        CHECK(check_named(j, "", files[i].json) == files[i].leaves, "%zu: %d values", i, check_named(j, "", files[i].json));
        json_free(j);
    }
}

TEST(what_is_said) {
    struct train_options o;
    struct err e;
    REQUIRE(!deepspeed("{\"gradient_clipping\": 1, \"zero_optimisation\": {\"stage\": 2}, \"zero_optimization\": {\"reduce_buket_size\": 5, \"stage\": 3, "
                       "\"offload_param\": {\"device\": \"nvme\", \"pin_memry\": true}}, \"bf16\": {\"los_scale\": 0}, \"whatever\": 1}", &o, &e), "%s", e.text);
    static const char *const lines[] = {"unknown key \"zero_optimisation\" is ignored, did you mean \"zero_optimization\"?",
                                        "unknown key \"zero_optimization.reduce_buket_size\" is ignored, did you mean \"reduce_bucket_size\"?",
                                        "unknown key \"zero_optimization.offload_param.pin_memry\" is ignored, did you mean \"pin_memory\"?",
                                        "unknown key \"bf16.los_scale\" is ignored, did you mean \"loss_scale\"?",
                                        "unknown key \"whatever\" is ignored",
                                        "ZeRO stage 3 has no effect on one card\n",
                                        "offload_param: host memory takes the place of nvme",
                                        "offload_param: layers whose weights the card has no room for stream from host memory"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) CHECK(strstr(said, lines[i]), "\"%s\" in %s", lines[i], said);
    REQUIRE(!deepspeed("{\"gradient_clipping\": 1, \"zero_optimization\": {\"stage\": 2, \"overlap_comm\": true}, \"steps_per_print\": 1}", &o, &e), "%s", e.text);
    CHECK(strstr(said, "not needed: zero_optimization.overlap_comm (one card: nothing is sent); steps_per_print (the log has its own form)\n"), "%s", said);
}

TEST(survives_every_failing_allocation) {
    for (int64_t at = 1;; at++) {
        struct train_options o;
        struct err e;
        sys_fault = (struct sys_fault){.kinds = "a", .at = at, .error = 12};
        (void)deepspeed("{\"gradient_clipping\": 2, \"zero_optimization\": {" CPU("optimizer") ", " STAGE3 "}, \"x\": 1}", &o, &e);
        int64_t calls = sys_fault.calls;
        sys_fault = (struct sys_fault){0};
        CHECK(e.code, "call %lld", (long long)at); /* the clipping differs from the flag's */
        if (calls < at) break;
        REQUIRE(at < 5000, "no end");
    }
}

TEST_MAIN
