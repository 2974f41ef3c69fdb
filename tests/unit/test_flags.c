/* The flag table and its parser: every flag with good and bad values, the rules of argparse, old and new behaviour, cross
 * checks with their sentences. */
#include "tests/unit/flag_lines.h"

/* ---- the table ---- */

TEST(rows_are_consistent) {
    for (int i = 0; i < flag_count; i++) {
        const struct flag *f = &flags[i];
        CHECK(f->help && *f->help && f->commands, "%s has no help or no command", f->name);
        CHECK((f->status == USED) == (f->at != NOWHERE) || f->kind == FLAG_REPEAT, "%s: status and field",
              f->name);
        CHECK(f->status != INERT || !f->fallback, "%s: a default that nothing reads", f->name);
        CHECK((f->kind == FLAG_CHOICE) == (f->range && strchr(f->range, '|') != NULL), "%s: choices",
              f->name);
        for (int k = i + 1; k < flag_count; k++)
            CHECK(strcmp(f->name, flags[k].name) || !(f->commands & flags[k].commands), "%s stands twice",
                  f->name);
    }
}

TEST(every_name_and_alias_finds_its_row) {
    for (int i = 0; i < flag_count; i++)
        for (int c = 0; c < COMMANDS; c++) {
            if (!(flags[i].commands >> c & 1)) continue;
            char names[400], hyphens[100];
            int no;
            struct err e = {0};
            snprintf(names, sizeof names, "%s %s", flags[i].name, flags[i].aliases ? flags[i].aliases : "");
            for (char *p = strtok(names, " "); p; p = strtok(NULL, " ")) {
                CHECK(flag_find((enum command_id)c, p, &no, &e) == i && !no, "%s: %s", p, e.text);
                snprintf(hyphens, sizeof hyphens, "%s", p);
                for (char *q = hyphens; *q; q++)
                    if (*q == '_') *q = '-';
                CHECK(flag_find((enum command_id)c, hyphens, &no, &e) == i, "%s: %s", hyphens, e.text);
            }
        }
}

/* A value of the flag's kind, and one that is not. NULL: any text is good. */
static const char *good_value(const struct flag *f) {
    static char buf[64];
    switch (f->kind) {
    case FLAG_BOOL:
        return "True";
    case FLAG_INT:
    case FLAG_SEED:
        return f->range && *f->range == '-' ? "-1" : "1";
    case FLAG_NUM:
        return "0.5";
    case FLAG_BYTES:
        return "8GiB";
    case FLAG_CHOICE:
        snprintf(buf, sizeof buf, "%.*s", (int)strcspn(f->range, "|"), f->range);
        return buf;
    default:
        return "some,text";
    }
}

static const char *bad_value(const struct flag *f) {
    switch (f->kind) {
    case FLAG_BOOL:
        return "maybe";
    case FLAG_INT:
    case FLAG_SEED:
        return "3.0";
    case FLAG_NUM:
        return "fast";
    case FLAG_BYTES:
        return "8 parsecs";
    case FLAG_CHOICE:
        return "sideways";
    default:
        return NULL;
    }
}

TEST(every_flag_takes_a_good_value_and_refuses_a_bad_one) {
    for (int i = 0; i < flag_count; i++) {
        struct options o = {0};
        struct err e = {0};
        const char *bad = bad_value(&flags[i]);
        CHECK(!flag_set(&o, i, flags[i].name, good_value(&flags[i]), "x", &e), "%s: %s", flags[i].name,
              e.text);
        CHECK(o.given[i].name && !strcmp(o.given[i].name, flags[i].name), "%s is not remembered",
              flags[i].name);
        CHECK(!bad || (flag_set(&o, i, flags[i].name, bad, "x", &e) == -1 && e.code == ERR_INPUT),
              "%s takes %s", flags[i].name, bad);
        e = (struct err){0};
        int missing = flag_set(&o, i, flags[i].name, NULL, "x", &e);
        CHECK((missing == 0) == (flags[i].kind == FLAG_BOOL), "%s without a value: %d", flags[i].name,
              missing);
        options_free(&o);
    }
}

TEST(ranges_hold_at_their_ends) {
    for (int i = 0; i < flag_count; i++) {
        const struct flag *f = &flags[i];
        const char *dots = f->range ? strstr(f->range, "..") : NULL;
        if (!dots) continue;
        char value[64];
        for (int end = 0; end < 2; end++) {
            struct options o = {0};
            struct err e = {0};
            const char *bound = end ? dots + 2 : f->range;
            if (!*bound || bound == dots) continue;
            snprintf(value, sizeof value, "%.*s", (int)(end ? strlen(bound) : (size_t)(dots - bound)), bound);
            CHECK(!flag_set(&o, i, f->name, value, "x", &e), "%s refuses %s: %s", f->name, value, e.text);
            double x = strtod(value, NULL), beyond = end ? x + 1 : x - 1;
            snprintf(value, sizeof value, f->kind == FLAG_NUM ? "%.17g" : "%.0f", beyond);
            CHECK(flag_set(&o, i, f->name, value, "x", &e) == -1 && strstr(e.text, "in the range"),
                  "%s takes %s", f->name, value);
            options_free(&o);
        }
    }
}

/* ---- the guide's command lines ---- */

TEST(guide_qlora_line) {
    struct options o;
    struct err e;
    int rc = parse_line(
        CMD_TRAIN,
        "src/train_bash.py --stage sft --model_name_or_path . --do_train --dataset alpaca_zh "
        "--dataset_dir data --finetuning_type lora --output_dir out --overwrite_cache "
        "--per_device_train_batch_size 1 --per_device_eval_batch_size 1 --gradient_accumulation_steps 16 "
        "--preprocessing_num_workers 16 --lr_scheduler_type cosine --logging_steps 10 --save_steps 10000 "
        "--learning_rate 5e-5 --max_grad_norm 0.5 --num_train_epochs 3 --evaluation_strategy no --bf16 "
        "--template yuan --overwrite_output_dir --cutoff_len 1024 --quantization_bit 4 --sft_packing "
        "--gradient_checkpointing True --plot_loss --lora_rank 32 --lora_alpha 16 --lora_dropout 0.1 "
        "--lora_target \"q_proj\",~~\"k_proj\",'v_proj',o_proj,gate_proj,up_proj,down_proj",
        &o, &e);
    REQUIRE(!rc, "%s", e.text);
    const struct train_options *t = &o.train;
    CHECK(!strcmp(t->model_name_or_path, ".") && !strcmp(t->data.dataset, "alpaca_zh"), "names");
    CHECK(!strcmp(t->data.dataset_dir, "data") && !strcmp(t->output_dir, "out") && t->overwrite_output_dir,
          "folders");
    CHECK(t->finetuning == FT_LORA && t->quantization_bit == 4 && t->quantization_type == Q4_NF4 &&
              t->double_quantization,
          "method");
    CHECK(t->lora.rank == 32 && t->lora.alpha == 16 && t->lora.dropout == 0.1 && t->lora.targets == 0x7f,
          "lora");
    CHECK(t->batch == 1 && t->eval_batch == 1 && t->accumulate == 16 && t->epochs == 3 && t->max_steps == -1,
          "batch");
    CHECK(t->learning_rate == 5e-5 && t->max_grad_norm == 0.5 && t->schedule == LR_COSINE &&
              t->optimizer == OPT_ADAMW,
          "optimizer");
    CHECK(t->logging_steps == 10 && t->save_steps == 10000 && t->save_strategy == EVERY_STEPS &&
              t->eval_strategy == EVERY_NO && !t->do_eval && t->plot_loss,
          "logs");
    CHECK(t->data.sft_packing && t->data.cutoff_len == 1024 && t->data.num_workers == 16 &&
              !t->data.compat_new,
          "data");
    CHECK(t->do_train && t->bf16 && !t->fp16 && t->gradient_checkpointing && t->seed == 42 &&
              t->data_seed == 42,
          "run");
    CHECK(strstr(t->command, "qlora train src/train_bash.py --stage sft"), "%s", t->command);
    options_free(&o);
}

TEST(guide_full_line_with_deepspeed) {
    char file[] = "/tmp/qlora-ds-XXXXXX", line[2000];
    int fd = mkstemp(file);
    REQUIRE(fd >= 0, "no temporary file");
    const char *json =
        "{\"train_batch_size\": \"auto\", \"train_micro_batch_size_per_gpu\": \"auto\", "
        "\"gradient_accumulation_steps\": \"auto\", \"gradient_clipping\": \"auto\", "
        "\"zero_allow_untested_optimizer\": true, \"bf16\": {\"enabled\": \"auto\", \"loss_scale\": 0}, "
        "\"zero_optimization\": {\"stage\": 2, \"allgather_bucket_size\": 5e8, \"overlap_comm\": true}}";
    REQUIRE(write(fd, json, strlen(json)) == (ssize_t)strlen(json), "cannot write");
    close(fd);
    struct options o;
    struct err e;
    snprintf(
        line, sizeof line,
        "--deepspeed %s --stage sft --model_name_or_path . --do_train True --dataset identity --dataset_dir "
        "data "
        "--finetuning_type full --output_dir out --overwrite_cache --per_device_train_batch_size 4 "
        "--gradient_accumulation_steps 4 --preprocessing_num_workers 16 --lr_scheduler_type cosine "
        "--logging_steps 1 --save_steps 1000 --learning_rate 5e-5 --max_grad_norm 1 --num_train_epochs 0.5 "
        "--evaluation_strategy no --bf16 True --template yuan --overwrite_output_dir --cutoff_len 2048 "
        "--gradient_checkpointing True --plot_loss True",
        file);
    int rc = parse_line(CMD_TRAIN, line, &o, &e);
    unlink(file);
    REQUIRE(!rc, "%s", e.text);
    CHECK(o.train.finetuning == FT_FULL && o.train.epochs == 0.5 && o.train.max_grad_norm == 1 &&
              !o.train.paged,
          "run");
    CHECK(!o.train.data.compat_new && o.train.data.cutoff_len == 2048 && !o.train.data.sft_packing, "data");
    options_free(&o);
}

TEST(defaults_are_those_of_the_libraries) {
    struct options o;
    struct err e;
    REQUIRE(!parse_line(CMD_TRAIN, NEW_BASE, &o, &e), "%s", e.text);
    const struct train_options *t = &o.train;
    CHECK(t->batch == 8 && t->eval_batch == 8 && t->accumulate == 1 && t->epochs == 3 && t->max_steps == -1,
          "batch");
    CHECK(t->learning_rate == 5e-5 && t->weight_decay == 0 && t->beta1 == 0.9 && t->beta2 == 0.999 &&
              t->epsilon == 1e-8 && t->max_grad_norm == 1 && t->schedule == LR_LINEAR &&
              t->warmup_ratio == 0 && t->warmup_steps == 0,
          "optimizer");
    CHECK(t->logging_steps == 500 && t->save_steps == 500 && t->eval_steps == 0 && t->save_total_limit == 0,
          "intervals");
    CHECK(t->lora.rank == 8 && t->lora.alpha == 16 && t->lora.dropout == 0 && t->lora.targets == 0x7f,
          "lora");
    CHECK(t->data.cutoff_len == 2048 && t->data.packing == -1 && t->data.group_size == 1000 &&
              t->data.mix == MIX_CONCAT && !strcmp(t->data.dataset_dir, "data") && t->data.seed == 42,
          "data");
    CHECK(t->do_train && !t->do_eval && !t->bf16 && t->gradient_checkpointing && !t->nan_skip &&
              !t->loss_per_token,
          "run");
    options_free(&o);
}

/* ---- argparse ---- */

TEST(which_evaluation_is_best) {
    static const struct { const char *line; int greater; } good[] = {
        {"--load_best_model_at_end --eval_strategy steps --eval_steps 50 --save_steps 150", 0},
        {"--load_best_model_at_end --eval_strategy steps --eval_steps 0.1 --save_steps 0.3", 0},
        {"--load_best_model_at_end --eval_strategy epoch --save_strategy epoch --metric_for_best_model eval_loss", 0},
        {"--load_best_model_at_end --eval_strategy steps --save_strategy best --compute_accuracy --metric_for_best_model accuracy", 1},
        {"--compute_accuracy --metric_for_best_model eval_accuracy --greater_is_better false --eval_strategy steps", 0},
        {"--early_stopping_steps 2 --eval_strategy steps", 0},
        {"--metric_for_best_model perplexity --greater_is_better", 1},
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        struct options o;
        struct err e;
        char line[400];
        snprintf(line, sizeof line, EVAL "%s", good[i].line);
        int rc = parse_line(CMD_TRAIN, line, &o, &e);
        CHECK(!rc && o.train.greater_is_better == good[i].greater, "%s: %s", good[i].line, e.text);
        options_free(&o);
    }
}

TEST(without_training) {
    struct options o;
    struct err e;
    REQUIRE(!parse_line(CMD_TRAIN, EVAL "--do_predict --predict_with_generate --max_new_tokens 7", &o, &e), "%s", e.text);
    CHECK(!o.train.do_train && o.train.do_predict && o.predict_with_generate && o.max_new_tokens == 7 && o.do_sample, "predict");
    options_free(&o);
    REQUIRE(!parse_line(CMD_TRAIN, "--model_name_or_path . --eval_dataset d --output_dir o --do_eval", &o, &e), "%s", e.text);
    CHECK(!o.train.do_train && o.train.do_eval && o.train.data.compat_new, "an evaluation needs no training data");
    options_free(&o);
    REQUIRE(!parse_line(CMD_TRAIN, BASE "--compat old --do_predict --predict_with_generate", &o, &e), "%s", e.text);
    CHECK(!o.train.do_train && o.train.data.val_size == 0, "v0.5.0 predicts the data set itself");
    options_free(&o);
}

TEST(spellings_of_a_flag) {
    static const char *const lines[] = {
        "--cutoff_len 77",     "--cutoff-len 77",     "--cutoff_len=77",
        "--cutoff-len=77",     "--cutoff 77",         "--cuto=77",
        "--cutoff_len ~77~",   "--cutoff_len 7_7",    "--cutoff_len 5 --cutoff_len 77",
        "~ --cutoff_len 77 ~", "--cutoff_len \"77\"", "--cutoff_len +77",
        "~--cutoff_len 77"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        char line[300];
        struct options o;
        struct err e;
        snprintf(line, sizeof line, NEW_BASE "%s", lines[i]);
        int rc = parse_line(CMD_TRAIN, line, &o, &e);
        CHECK(!rc && o.train.data.cutoff_len == 77, "%s: %s", lines[i], e.text);
        options_free(&o);
    }
}

TEST(booleans) {
    static const struct {
        const char *line;
        int value;
    } rows[] = {
        {"--plot_loss", 1},        {"--plot_loss True", 1},
        {"--plot_loss yes", 1},    {"--plot_loss T", 1},
        {"--plot_loss Y", 1},      {"--plot_loss 1", 1},
        {"--plot_loss=true", 1},   {"--plot_loss FALSE", 0},
        {"--plot_loss no", 0},     {"--plot_loss f", 0},
        {"--plot_loss n", 0},      {"--plot_loss 0", 0},
        {"--plot_loss --bf16", 1}, {"", 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char line[300];
        struct options o;
        struct err e;
        snprintf(line, sizeof line, NEW_BASE "%s", rows[i].line);
        int rc = parse_line(CMD_TRAIN, line, &o, &e);
        CHECK(!rc && o.train.plot_loss == rows[i].value, "%s: %s", rows[i].line, e.text);
        options_free(&o);
    }
    static const char *const off[] = {"--no_double_quantization", "--no-double-quantization", "--no_double",
                                      "--double_quantization false"};
    for (size_t i = 0; i < sizeof off / sizeof *off; i++) {
        char line[300];
        struct options o;
        struct err e;
        snprintf(line, sizeof line, NEW_BASE "%s", off[i]);
        int rc = parse_line(CMD_TRAIN, line, &o, &e);
        CHECK(!rc && !o.train.double_quantization, "%s: %s", off[i], e.text);
        options_free(&o);
    }
    struct options o;
    struct err e;
    CHECK(!parse_line(CMD_TRAIN, NEW_BASE "--no_ignore_pad_token_for_loss", &o, &e), "%s", e.text);
    options_free(&o);
}

TEST(sizes) {
    static const struct {
        const char *text;
        int64_t bytes;
    } rows[] = {
        {"8GiB", (int64_t)8 << 30},
        {"8G", (int64_t)8 << 30},
        {"8GB", 8000000000},
        {"0.5GiB", 1 << 29},
        {"512MB", 512000000},
        {"16~gib", (int64_t)16 << 30},
        {"4096", 4096},
        {"1T", (int64_t)1 << 40},
        {"100b", 100},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char line[300];
        struct options o;
        struct err e;
        snprintf(line, sizeof line, NEW_BASE "--vram %s", rows[i].text);
        int rc = parse_line(CMD_TRAIN, line, &o, &e);
        CHECK(!rc && o.train.vram_bytes == rows[i].bytes, "%s: %lld %s", rows[i].text,
              (long long)o.train.vram_bytes, e.text);
        options_free(&o);
    }
    static const char *const bad[] = {"0", "-1GiB", "GiB", "1.2.3GiB", "8XiB", "1e3", "9999999999999999TiB"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char line[300];
        struct options o;
        struct err e;
        snprintf(line, sizeof line, NEW_BASE "--vram=%s", bad[i]);
        CHECK(parse_line(CMD_TRAIN, line, &o, &e) == -1 && strstr(e.text, "8GiB"), "%s is accepted", bad[i]);
        options_free(&o);
    }
}

/* ---- sentences ---- */

static const struct {
    enum command_id cmd;
    const char *line, *sentence;
} refused[] = {
    /* the line itself */
    {CMD_TRAIN, NEW_BASE "--lerning_rate 1", "unknown flag --lerning_rate, did you mean --learning_rate?"},
    {CMD_TRAIN, NEW_BASE "--xyzzy 1", "unknown flag --xyzzy"},
    {CMD_TRAIN, NEW_BASE "--limit 3", "--limit is a flag of qlora preview"},
    {CMD_TRAIN, NEW_BASE "--lora 1",
     "--lora may mean --lora_rank, --lora_alpha, --lora_dropout, --lora_target"},
    {CMD_TRAIN, NEW_BASE "--cutoff_len", "--cutoff_len: a value is missing"},
    {CMD_TRAIN, NEW_BASE "--cutoff_len --bf16", "--cutoff_len: a value is missing"},
    {CMD_TRAIN, NEW_BASE "--cutoff_len 3.0", "--cutoff_len: \"3.0\" is not a whole number in the range 1.."},
    {CMD_TRAIN, NEW_BASE "--cutoff_len 1__0", "not a whole number"},
    {CMD_TRAIN, NEW_BASE "--cutoff_len 99999999999999999999", "not a whole number"},
    {CMD_TRAIN, NEW_BASE "--learning_rate 1e", "--learning_rate: \"1e\" is not a number"},
    {CMD_TRAIN, NEW_BASE "--learning_rate nan", "not a number"},
    {CMD_TRAIN, NEW_BASE "--learning_rate 1e999", "not a number"},
    {CMD_TRAIN, NEW_BASE "--learning_rate 0x10", "not a number"},
    {CMD_TRAIN, NEW_BASE "--bf16 maybe",
     "Truthy value expected: got maybe but expected one of yes/no, true/false, t/f, y/n, 1/0 (case "
     "insensitive)."},
    {CMD_TRAIN, NEW_BASE "--no_bf16", "unknown flag --no_bf16"},
    {CMD_TRAIN, NEW_BASE "--no_double_quantization=1", "takes no value"},
    {CMD_TRAIN, NEW_BASE "stray", "\"stray\" is not understood"},
    {CMD_TRAIN, NEW_BASE "-bf16", "two hyphens"},
    {CMD_TRAIN, NEW_BASE "seed=3", "is not understood"},
    {CMD_TRAIN,
     NEW_BASE "\xe2\x80\x93"
              "bf16",
     "U+2013"},
    {CMD_TRAIN,
     NEW_BASE "--bf16 \xe2\x80\x94"
              "fp16",
     "U+2014"},
    {CMD_TRAIN,
     NEW_BASE "--cutoff\xef\xbc\x8d"
              "len 3",
     "full-width hyphen (U+FF0D)"},
    {CMD_TRAIN, NEW_BASE "--cutoff_len \xef\xbc\x91\xef\xbc\x92", "full-width digit (U+FF11)"},
    {CMD_TRAIN, NEW_BASE "--lora_target q_proj\xef\xbc\x8cv_proj", "full-width comma (U+FF0C)"},
    {CMD_TRAIN, NEW_BASE "--lora_target \xe2\x80\x9cq_proj\xe2\x80\x9d", "curly double quote (U+201C)"},
    {CMD_TRAIN, NEW_BASE "--output_dir \xe2\x80\x9co\xe2\x80\x9d", "curly double quote (U+201C)"},
    {CMD_TRAIN,
     NEW_BASE "--learning_rate \xe2\x88\x92"
              "1",
     "minus sign (U+2212)"},
    {CMD_TRAIN, "nowhere.yaml", "nowhere.yaml"},
    {CMD_TRAIN, "nowhere.json a=1", "nowhere.json"},
    /* model and method */
    {CMD_TRAIN, "--dataset d --output_dir o", "Please provide model_name_or_path."},
    {CMD_TRAIN, "--model_name_or_path IEITYuan/Yuan2-2B --dataset d --output_dir o",
     "there is no folder IEITYuan/Yuan2-2B"},
    {CMD_TRAIN, "--model_name_or_path . --output_dir o", "Please specify dataset for training."},
    {CMD_TRAIN, "--model_name_or_path . --dataset d --compat new", "Please provide output_dir."},
    {CMD_TRAIN, NEW_BASE "--quantization_bit 3", "We only accept 4-bit or 8-bit quantization."},
    {CMD_TRAIN, NEW_BASE "--quantization_bit 0", "We only accept 4-bit or 8-bit quantization."},
    {CMD_TRAIN, BASE "--compat old --finetuning_type full --quantization_bit 4",
     "Quantization is only compatible with the LoRA method."},
    {CMD_TRAIN, NEW_BASE "--finetuning_type full --quantization_bit 4",
     "Quantization is only compatible with the LoRA or OFT method."},
    {CMD_TRAIN, NEW_BASE "--finetuning_type oft", "choose from lora|full|freeze"},
    {CMD_TRAIN, NEW_BASE "--finetuning_type freeze --quantization_bit 4", "Quantization is only compatible with the LoRA or OFT method."},
    {CMD_TRAIN, NEW_BASE "--pure_bf16 --fp16", "pure_bf16 keeps weights in bf16"},
    {CMD_TRAIN, NEW_BASE "--finetuning_type full --adapter_name_or_path a",
     "Adapter is only valid for the LoRA method."},
    {CMD_TRAIN, NEW_BASE "--quantization_bit 4 --adapter_name_or_path a,b",
     "Quantized model only accepts a single adapter. Merge them first."},
    {CMD_TRAIN, BASE "--compat old", "Please specify lora_target in LoRA training."},
    {CMD_TRAIN, NEW_BASE "--lora_target q_porj", "q_porj"},
    {CMD_TRAIN, NEW_BASE "--stage dpo", "choose from sft|pt"},
    {CMD_TRAIN, NEW_BASE "--template yaun", "Template yaun does not exist, did you mean yuan?"},
    {CMD_TRAIN, NEW_BASE "--template llama2", "Template llama2 does not exist."},
    {CMD_TRAIN, NEW_BASE "--bf16 --fp16", "At most one of fp16 and bf16 can be True, but not both"},
    {CMD_TRAIN, NEW_BASE "--optim lion_32bit", "optim lion_32bit is not supported"},
    {CMD_TRAIN, NEW_BASE "--lr_scheduler_type reduce_lr_on_plateau", "lr_scheduler_type reduce_lr_on_plateau requires an eval strategy"},
    {CMD_TRAIN, EVAL "--eval_strategy steps --lr_scheduler_type reduce_lr_on_plateau --lr_scheduler_kwargs {\"mode\":\"up\"}", "choose from min, max"},
    {CMD_TRAIN, NEW_BASE "--label_smoothing_factor 1.5", "in the range 0..1"},
    {CMD_TRAIN, EVAL "--eval_on_each_dataset True", "evaluates the data sets of eval_dataset"},
    {CMD_TRAIN, NEW_BASE "--eval_dataset a,b --eval_on_each_dataset True --tokenized_path x", "tokenized_path does not keep"},
    {CMD_TRAIN, NEW_BASE "--streaming --max_steps 3 --cache_path x", "Turn off `streaming` when saving dataset to disk."},
    {CMD_TRAIN, NEW_BASE "--lr_scheduler_type exponential",
     "choose from linear|cosine|constant|constant_with_warmup"},
    {CMD_TRAIN, NEW_BASE "--lr_scheduler_kwargs {\"power\":2}", "lr_scheduler_type linear has no parameters"},
    {CMD_TRAIN, NEW_BASE "--lr_scheduler_type cosine_with_min_lr", "One of min_lr or min_lr_rate should be set"},
    {CMD_TRAIN, NEW_BASE "--pissa_init", "pissa_init true is not supported: adapters start as in the LoRA paper"},
    {CMD_TRAIN, NEW_BASE "--report_to tensorbord", "report_to tensorbord is not supported, did you mean tensorboard?"},
    {CMD_TRAIN, NEW_BASE "--save_safetensors false", "save_safetensors false is not supported"},
    {CMD_TRAIN, NEW_BASE "--no_save_safetensors", "save_safetensors false is not supported"},
    {CMD_TRAIN, NEW_BASE "--neft_alpha -1", "in the range"},
    {CMD_TRAIN, NEW_BASE "--do_predict", "Please make sure eval_dataset be provided or val_size >1e-6"},
    {CMD_TRAIN, NEW_BASE "--eval_on_start", "Please make sure eval_dataset be provided or val_size >1e-6"},
    {CMD_TRAIN, EVAL "--compat old --do_train --do_predict --predict_with_generate", "cannot be set as True while training"},
    {CMD_TRAIN, EVAL "--do_predict --num_beams 4", "one answer is followed at a time"},
    {CMD_TRAIN, EVAL "--early_stopping_steps 3", "set eval_strategy to steps or epoch"},
    {CMD_TRAIN, EVAL "--early_stopping_steps 0", "in the range"},
    {CMD_TRAIN, EVAL "--save_strategy best", "`metric_for_best_model` must be provided when using 'best' save_strategy"},
    {CMD_TRAIN, EVAL "--save_strategy best --metric_for_best_model loss", "save_strategy best needs evaluations"},
    {CMD_TRAIN, EVAL "--load_best_model_at_end", "evaluation strategy no, save strategy steps"},
    {CMD_TRAIN, EVAL "--load_best_model_at_end --eval_strategy epoch", "evaluation strategy epoch, save strategy steps"},
    {CMD_TRAIN, EVAL "--load_best_model_at_end --eval_strategy steps --eval_steps 40 --save_steps 100",
     "but found 100, which is not a round multiple of 40"},
    {CMD_TRAIN, EVAL "--metric_for_best_model rouge-l", "choose from loss, accuracy, perplexity"},
    {CMD_TRAIN, EVAL "--metric_for_best_model eval_accuracy", "needs compute_accuracy"},
    {CMD_TRAIN, NEW_BASE "--use_cpu --backend cuda", "contradicts"},
    /* data */
    {CMD_TRAIN, NEW_BASE "--sft_packing --packing True", "give one of them"},
    {CMD_TRAIN, NEW_BASE "--train_on_prompt --mask_history",
     "`mask_history` is incompatible with `train_on_prompt`."},
    {CMD_TRAIN, NEW_BASE "--val_size 0.1 --eval_dataset d",
     "Cannot specify `val_size` if `eval_dataset` is not None."},
    {CMD_TRAIN, NEW_BASE "--val_size 1", "val_size must be"},
    {CMD_TRAIN, NEW_BASE "--val_size 10.5", "val_size must be"},
    {CMD_TRAIN, NEW_BASE "--eval_strategy steps",
     "Please make sure eval_dataset be provided or val_size >1e-6"},
    {CMD_TRAIN, NEW_BASE "--do_eval", "Please make sure eval_dataset be provided or val_size >1e-6"},
    {CMD_TRAIN, NEW_BASE "--interleave_probs 0.5,0.5",
     "`interleave_probs` is only valid for interleaved mixing."},
    {CMD_TRAIN, NEW_BASE "--reserved_label_len 2048",
     "`reserved_label_len` must be smaller than `cutoff_len`."},
    {CMD_TRAIN, NEW_BASE "--streaming", "Please specify `max_steps` in streaming mode."},
    {CMD_TRAIN, NEW_BASE "--streaming --max_steps 3 --max_samples 9", "`max_samples` is incompatible with `streaming`."},
    {CMD_TRAIN, NEW_BASE "--streaming --max_steps 3 --val_size 0.1", "Streaming mode should have an integer val size."},
    {CMD_TRAIN, NEW_BASE "--streaming --max_steps 3 --group_by_length", "group_by_length needs to know all lengths"},
    {CMD_TRAIN, NEW_BASE "--streaming --max_steps 3 --save_strategy epoch", "streaming knows no epochs"},
    {CMD_TRAIN, NEW_BASE "--train_sampling_strategy sequential --group_by_length", "contradicts group_by_length"},
    {CMD_TRAIN, NEW_BASE "--quantization_bit 4 --adapter_name_or_path a --create_new_adapter",
     "Cannot create new adapter upon a quantized model."},
    {CMD_TRAIN, NEW_BASE "--finetuning_type full --loraplus_lr_ratio 16", "only valid for the LoRA method."},
    {CMD_TRAIN, NEW_BASE "--additional_target embed_token", "additional_target: \"embed_token\" is no module (did you mean embed_tokens?)"},
    {CMD_TRAIN, NEW_BASE "--additional_target lm_head,input_layernorm", "give some of embed_tokens,lm_head,norm (the last norm)"},
    {CMD_TRAIN, NEW_BASE "--resume_from_checkpoint x --adapter_name_or_path a", "give one"},
    {CMD_EXPORT, "--model_name_or_path .", "Please specify export_dir to save model."},
    {CMD_EXPORT, "--export_dir x", "Please provide model_name_or_path."},
    {CMD_EXPORT, EXPORT "--export_quantization_bit 3", "We only accept 4-bit or 8-bit quantization."},
    {CMD_EXPORT, EXPORT "--quantization_bit 4", "export_quantization_bit stores the result"},
    {CMD_EXPORT, EXPORT "--export_legacy_format true", "torch .bin files are read but not written"},
    {CMD_EXPORT, EXPORT "--export_dtype int4", "choose from auto|bf16"},
    {CMD_EXPORT, EXPORT "--export_size 0", "in the range"},
    {CMD_EXPORT, EXPORT "--template llama2", "Template llama2 does not exist."},
    {CMD_EXPORT, EXPORT "--finetuning_type full --adapter_name_or_path a", "Adapter is only valid for the LoRA method."},
    {CMD_EXPORT, EXPORT "--export_sise 1", "did you mean --export_size?"},
    {CMD_PREVIEW, "--model_name_or_path . --compat new", "Please provide dataset."},
    {CMD_PREVIEW, "--dataset d", "Please provide model_name_or_path."},
    {CMD_PREVIEW, "--model_name_or_path . --dataset d --stage pt --neat_packing",
     "`neat_packing` is only valid for stage sft."},
    {CMD_PREVIEW, "--model_name_or_path . --dataset d --stage pt --mask_history",
     "`mask_history` is only valid for stage sft."},
    /* the others */
    {CMD_TOKENIZE, "--model_name_or_path .", "Please provide file, text or ids."},
    {CMD_QUANTIZE, "--model_name_or_path . --output_dir o", "Please provide quantization_bit"},
    {CMD_QUANTIZE, "--model_name_or_path . --quantization_bit 4", "Please provide output_dir."},
    {CMD_QUANTIZE, "--model_name_or_path . --output_dir o --quantization_bit 16",
     "We only accept 4-bit or 8-bit"},
    {CMD_NEW, "--output_dir o", "Please provide config."},
    {CMD_NEW, "--config yuan2-2b", "Please provide output_dir."},
    {CMD_NEW, "--config yuan2-2b --output_dir o --quantization_bit 3", "We only accept 4-bit or 8-bit quantization."},
    {CMD_NEW, "--config yuan2-2b --output_dir o --lfa_bits 4", "give quantization_bit 4"},
    {CMD_NEW, "--config yuan2-2b --output_dir o --dtype int8", "choose from config|bf16|fp32"},
    {CMD_CHAT, "--prompt hi", "Please provide model_name_or_path."},
    {CMD_CHAT, "--model_name_or_path . --num_beams 4", "num_beams 4 is not supported"},
    {CMD_SCORE, "--model_name_or_path . --template qwen", "Template qwen does not exist."},
    {CMD_DOCTOR, "--dataset x", "--dataset is a flag of qlora train"},
};

TEST(wrong_lines_are_refused_with_their_sentence) {
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        struct options o;
        struct err e;
        int rc = parse_line(refused[i].cmd, refused[i].line, &o, &e);
        CHECK(rc == -1 && e.code == ERR_INPUT && strstr(e.text, refused[i].sentence), "%s: %d \"%s\"",
              refused[i].line, rc, e.text);
        CHECK(!strchr(e.text, '\n'), "more than one line: %s", e.text);
        options_free(&o);
    }
}

TEST(harmless_lines_are_accepted) {
    static const char *const lines[] = {
        "--flash_attn auto --flash_attn False --upcast_layernorm True --overwrite_cache --ddp_timeout "
        "180000000",
        "--trust_remote_code True --cache_dir c --report_to none --run_name r --dataloader_num_workers 4",
        "--report_to wandb,tensorboard,all --push_to_hub False --use_dora False --fsdp none --nnodes 1 --split "
        "train",
        "--use_unsloth true --use_galore false --streaming False --save_safetensors True --num_gpus 8 "
        "--local_rank 0",
        "--label_smoothing_factor 0.0 --adafactor no --lr_scheduler_kwargs None",
        "--eval_strategy epoch --val_size 0.1 --optim paged_adamw_8bit --resume_from_checkpoint False",
        "--eval_strategy no --evaluation_strategy no --save_strategy epoch "
        "--include_effective_tokens_per_second",
        "--mix_strategy interleave_under --interleave_probs 0.5,0.5 --max_samples 10 --warmup_steps 0.1",
        "--pref_beta 0.1 --reward_model r --freeze_trainable_layers 2 --generation_num_beams 1 "
        "--logging_strategy steps",
        "--max_steps -1 --quantization_method bitsandbytes --do_train --quantization_bit 8 --lora_alpha 0",
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        char line[500];
        struct options o;
        struct err e;
        snprintf(line, sizeof line, NEW_BASE "%s", lines[i]);
        CHECK(!parse_line(CMD_TRAIN, line, &o, &e), "%s: %s", lines[i], e.text);
        options_free(&o);
    }
}

TEST(what_flags_turn_into) {
    struct options o;
    struct err e;
    REQUIRE(!parse_line(CMD_TRAIN,
                        NEW_BASE "--optim paged_adamw_8bit --val_size 0.1 --eval_strategy epoch "
                                 "--resume_from_checkpoint TRUE --use_cpu --disable_gradient_checkpointing "
                                 "--seed 7 --lora_rank 4 --lora_target v_proj --nan skip --loss_norm token",
                        &o, &e),
            "%s", e.text);
    CHECK(o.train.optimizer == OPT_ADAMW_8BIT && o.train.paged, "optimizer");
    CHECK(o.train.do_eval && o.train.eval_strategy == EVERY_EPOCH, "evaluation");
    CHECK(!strcmp(o.train.resume_from_checkpoint, "true") && !strcmp(o.train.backend, "cpu"),
          "resume, backend");
    CHECK(!o.train.gradient_checkpointing && o.train.nan_skip && o.train.loss_per_token, "switches");
    CHECK(o.train.data.seed == 7 && o.train.data_seed == 7 && o.train.lora.alpha == 8, "followers");
    CHECK(o.train.lora.targets == 1u << PROJ_V, "targets %x", o.train.lora.targets);
    options_free(&o);
    REQUIRE(!parse_line(CMD_TRAIN, NEW_BASE "--do_train false", &o, &e), "%s", e.text);
    CHECK(!o.train.do_train, "do_train false");
    options_free(&o);
    REQUIRE(!parse_line(CMD_NEW, "--config c --output_dir o --override a=1 --override b=x~y --dtype fp32", &o,
                        &e),
            "%s", e.text);
    CHECK(o.n_overrides == 2 && !strcmp(o.overrides[1], "b=x y") && o.dtype == 2, "overrides");
    options_free(&o);
    REQUIRE(!parse_line(CMD_PREVIEW,
                        "--model_name_or_path . --dataset d --text --limit 3 --learning_rate 1 --use_dora",
                        &o, &e),
            "a line of train is not taken by preview: %s", e.text);
    CHECK(o.as_text && o.limit == 3, "preview");
    options_free(&o);
    REQUIRE(!parse_line(CMD_TOKENIZE, "--model_name_or_path . --text ~keep~~this~", &o, &e), "%s", e.text);
    CHECK(!strcmp(o.text, " keep  this "), "\"%s\"", o.text);
    options_free(&o);
}

TEST(old_or_new) {
    static const struct {
        const char *line;
        int compat_new;
        int64_t cutoff;
    } rows[] = {
        {"", 1, 2048},
        {"--sft_packing", 0, 1024},
        {"--sft_packing false", 1, 2048},
        {"--packing True", 1, 2048},
        {"--packing False", 1, 2048},
        {"--neat_packing", 1, 2048},
        {"--evaluation_strategy no", 0, 1024},
        {"--eval_strategy no", 1, 2048},
        {"--evaluation_strategy no --packing True", 1, 2048},
        {"--reserved_label_len 1", 0, 1024},
        {"--compat old", 0, 1024},
        {"--compat new --sft_packing", 1, 2048},
        {"--compat old --packing True", 0, 1024},
        {"--sft_packing --cutoff_len 512", 0, 512},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char line[300];
        struct options o;
        struct err e;
        snprintf(line, sizeof line, BASE "--lora_target all %s", rows[i].line);
        int rc = parse_line(CMD_TRAIN, line, &o, &e);
        CHECK(!rc && o.train.data.compat_new == rows[i].compat_new &&
                  o.train.data.cutoff_len == rows[i].cutoff,
              "%s: compat %d, cutoff %lld %s", rows[i].line, o.train.data.compat_new,
              (long long)o.train.data.cutoff_len, e.text);
        options_free(&o);
    }
    struct options o;
    struct err e;
    REQUIRE(!parse_line(CMD_TRAIN, "src/train_bash.py " BASE "--lora_target all", &o, &e), "%s", e.text);
    CHECK(!o.train.data.compat_new, "the old script means old");
    options_free(&o);
    REQUIRE(!parse_line(CMD_TRAIN, "train " BASE "--packing True", &o, &e), "%s", e.text);
    CHECK(o.train.data.packing == 1, "packing %d", o.train.data.packing);
    options_free(&o);
}

TEST(parts_of_tasks) {
    struct options o;
    struct err e;
    REQUIRE(!parse_line(CMD_EVAL, "--model_name_or_path . --task ceval --split validation --n_shot 5 --batch_size 4", &o, &e), "%s", e.text);
    CHECK(!strcmp(o.task, "ceval_validation"), "%s", o.task);
    options_free(&o);
    REQUIRE(!parse_line(CMD_EVAL, "--model_name_or_path . --task mmlu_test --split test", &o, &e), "%s", e.text);
    CHECK(!strcmp(o.task, "mmlu_test"), "%s", o.task);
    options_free(&o);
    CHECK(parse_line(CMD_EVAL, "--model_name_or_path . --task mmlu_test --split validation", &o, &e) == -1 && strstr(e.text, "names its part already"), "%s", e.text);
    options_free(&o);
}

TEST(several_adapters) {
    struct options o;
    struct err e;
    REQUIRE(!parse_line(CMD_TRAIN, NEW_BASE "--adapter_name_or_path a,b,~c", &o, &e), "%s", e.text);
    CHECK(!strcmp(o.train.merged_adapters, "a,b") && !strcmp(o.train.adapter_name_or_path, "c"), "the last goes on");
    options_free(&o);
    REQUIRE(!parse_line(CMD_TRAIN, NEW_BASE "--adapter_name_or_path a,b --create_new_adapter", &o, &e), "%s", e.text);
    CHECK(!strcmp(o.train.merged_adapters, "a,b") && !o.train.adapter_name_or_path, "a new one on all");
    options_free(&o);
    REQUIRE(!parse_line(CMD_TRAIN, NEW_BASE "--checkpoint_dir a --quantization_bit 4", &o, &e), "%s", e.text);
    CHECK(!o.train.merged_adapters && !strcmp(o.train.adapter_name_or_path, "a"), "one");
    options_free(&o);
    REQUIRE(!parse_line(CMD_TRAIN, NEW_BASE "--adapter_name_or_path a,b --resume_from_checkpoint true", &o, &e), "%s", e.text);
    options_free(&o);
    REQUIRE(!parse_line(CMD_CHAT, "--model_name_or_path . --adapter_name_or_path a,b --quantization_bit 4", &o, &e), "%s", e.text);
    CHECK(!o.train.merged_adapters && !strcmp(o.train.adapter_name_or_path, "a,b"), "applied together");
    options_free(&o);
    REQUIRE(!parse_line(CMD_EXPORT, EXPORT "--checkpoint_dir a --export_size 2 --export_device auto --trust_remote_code True --export_legacy_format false", &o, &e), "%s", e.text);
    CHECK(o.export_size == 2 && o.export_dtype == 0 && !o.quantization_bit && o.train.double_quantization, "export");
    options_free(&o);
    REQUIRE(!parse_line(CMD_EXPORT, "--model_name_or_path . --output_dir old --infer_dtype float16 --export_quantization_bit 8", &o, &e), "%s", e.text);
    CHECK(!strcmp(o.export_dir, "old") && o.export_dtype == 5 && o.quantization_bit == 8, "old names");
    options_free(&o);
}

TEST(survives_every_failing_allocation) {
    for (int64_t at = 1;; at++) {
        struct options o;
        struct err e;
        sys_fault = (struct sys_fault){.kinds = "a", .at = at, .error = 12};
        int rc = parse_line(
            CMD_TRAIN, NEW_BASE "--lora_target q_proj,v_proj --learning_rate 1e-4 --report_to wandb --lora 3",
            &o, &e);
        int64_t calls = sys_fault.calls;
        sys_fault = (struct sys_fault){0};
        CHECK(rc == -1 && e.code, "call %lld", (long long)at);
        options_free(&o);
        if (calls < at) break;
        REQUIRE(at < 5000, "no end");
    }
}

TEST_MAIN
