/* Flags in YAML and JSON files, with key=value behind them. */
#include "tests/unit/flag_lines.h"

static int parse_file_of(enum command_id cmd, const char *suffix, const char *text, const char *rest, struct options *o,
                         struct err *e) {
    char file[64], line[400];
    snprintf(file, sizeof file, "/tmp/qlora-flags-%d%s", (int)getpid(), suffix);
    FILE *f = fopen(file, "w");
    fputs(text, f);
    fclose(f);
    snprintf(line, sizeof line, "%s %s", file, rest);
    int rc = parse_line(cmd, line, o, e);
    unlink(file);
    return rc;
}
static int parse_file(const char *suffix, const char *text, const char *rest, struct options *o, struct err *e) {
    return parse_file_of(CMD_TRAIN, suffix, text, rest, o, e);
}

TEST(every_command_reads_a_file) {
    static const struct { enum command_id cmd; const char *text, *rest; } lines[] = {
        {CMD_PREVIEW, "model_name_or_path: .\ndataset: d\nlimit: 3\n", "seed=5"},
        {CMD_SCORE, "model_name_or_path: .\nids: 1 2\n", "seed=5"},
        {CMD_CHAT, "model_name_or_path: .\nprompt: hello\n", "seed=5 --quiet"},
        {CMD_TOKENIZE, "model_name_or_path: .\nfile: ids.jsonl\n", "decode=true"},
        {CMD_QUANTIZE, "model_name_or_path: .\noutput_dir: o\n", "quantization_bit=4"},
        {CMD_EXPORT, "model_name_or_path: .\nexport_dir: o\n", "export_size=2"},
        {CMD_NEW, "config: yuan2-tiny\noutput_dir: o\n", "seed=5"},
        {CMD_EVAL, "model_name_or_path: .\ntask: mmlu_test\nn_shot: 0\n", "lang=zh"},
        {CMD_ESTIMATE, "config: yuan2-2b\ncard: l40s\n", "vram=8GiB"},
        {CMD_BENCH, "config: yuan2-2b\nvram: 6,8\n", "max_steps=1"},
        {CMD_DOCTOR, "json: true\n", "backend=cpu"},
    };
    struct options o;
    struct err e;
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        CHECK(!parse_file_of(lines[i].cmd, ".yaml", lines[i].text, lines[i].rest, &o, &e), "%s: %s", lines[i].text, e.text);
        options_free(&o);
        CHECK(parse_file_of(lines[i].cmd, ".yaml", "modle_name: .\n", "", &o, &e) == -1 && strstr(e.text, ".yaml:1: unknown flag --modle_name"), "%s", e.text);
        options_free(&o);
    }
    REQUIRE(!parse_file_of(CMD_NEW, ".json", "{\"config\": \"yuan2-tiny\", \"output_dir\": \"o\", \"seed\": 1}", "seed=7", &o, &e), "%s", e.text);
    CHECK(o.train.seed == 7, "the override wins");
    options_free(&o);
}

TEST(files_of_flags_with_overrides) {
    struct options o;
    struct err e;
    const char *yaml =
        "### model\nmodel_name_or_path: .\ntrust_remote_code: true\n\n### method\nstage: sft\ndo_train: "
        "true\n"
        "finetuning_type: lora\nlora_target: all\nlora_rank: 16\n\n### dataset\ndataset: "
        "identity,alpaca_zh_demo\n"
        "template: yuan\ncutoff_len: 2048\nmax_samples: null\noverwrite_cache: true\n\n### output\n"
        "output_dir: saves/x\nlearning_rate: 1.0e-4\nlr_scheduler_type: cosine\nbf16: true\nddp_timeout: "
        "180000000\n"
        "eval_strategy: no\n";
    REQUIRE(!parse_file(".yaml", yaml, "learning_rate=1e-5 lora-rank=4 --bf16 cutoff_len=99", &o, &e), "%s",
            e.text);
    CHECK(o.train.learning_rate == 1e-5 && o.train.lora.rank == 4 && o.train.data.cutoff_len == 99 &&
              o.train.bf16,
          "overrides");
    CHECK(!strcmp(o.train.data.dataset, "identity,alpaca_zh_demo") && o.train.schedule == LR_COSINE &&
              o.train.data.max_samples == 0 && o.train.data.compat_new,
          "file");
    options_free(&o);
    REQUIRE(!parse_file(".json",
                        "{\"model_name_or_path\": \".\", \"dataset\": [\"a\", \"b\"], \"output_dir\": \"o\", "
                        "\"cutoff_len\": 64, \"learning_rate\": 5e-5, \"bf16\": true, \"max_samples\": null}",
                        "seed=3", &o, &e),
            "%s", e.text);
    CHECK(!strcmp(o.train.data.dataset, "a,b") && o.train.data.cutoff_len == 64 && o.train.seed == 3 &&
              o.train.bf16,
          "json");
    options_free(&o);
    CHECK(parse_file(".yaml", "cutoff_len: x\n", "", &o, &e) == -1 &&
              strstr(e.text, ".yaml:1: cutoff_len: \"x\" is not"),
          "%s", e.text);
    options_free(&o);
    CHECK(parse_file(".yml", "\n\ncutoff_len: 3\nfoo: 1", "", &o, &e) == -1 &&
              strstr(e.text, ".yml:4: unknown flag --foo"),
          "%s", e.text);
    options_free(&o);
    CHECK(parse_file(".json", "{\"foo\": 1}", "", &o, &e) == -1 &&
              strstr(e.text, ".json: unknown flag --foo"),
          "%s", e.text);
    options_free(&o);
    CHECK(parse_file(".yaml", "seed: 1\n", "nonsense=1", &o, &e) == -1 && strstr(e.text, "nonsense"), "%s",
          e.text);
    options_free(&o);
}

TEST_MAIN
