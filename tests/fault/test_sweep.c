/* Whole commands whose n-th call of a kind fails, once and for good: they end with one sentence, or as if nothing had been;
 * nothing leaks, older checkpoints stay, and the same command then writes the same bytes.
 *
 * Each fixture is run undisturbed first, which counts its calls. Then call n fails for some n of each kind of failure, for every n
 * with FAULT_EVERY=1 (make faults). */
#include "tests/fault/fault.h"

struct fixture {
    const char *name, *words;
    const char *before; /* folder that becomes `out`; NULL: there is none */
    const char *keep;   /* below out: must stay as it was whatever fails */
    int times;          /* standard output holds times, or what is free, and is not compared */
};
static const struct fixture fixtures[] = {
    {"tokenize", "tokenize --model_name_or_path m --text hello", 0, 0, 0},
    {"tokenize, file", "tokenize --model_name_or_path m --file text.jsonl", 0, 0, 0},
    {"tokenize, decode", "tokenize --model_name_or_path m --file ids.jsonl --decode", 0, 0, 0},
    {"preview, packed", "preview --model_name_or_path m --dataset_dir data --dataset questions --max_samples 40 --cutoff_len 64 --sft_packing --quiet", 0, 0, 0},
    {"preview, bins, spilt", "preview --model_name_or_path m --dataset_dir data --dataset questions,world --max_samples 40 --cutoff_len 64 --packing true --compat new "
                             "--data_memory 1KiB --temp_dir . --quiet", 0, 0, 0},
    {"preview, csv", "preview --model_name_or_path m --dataset_dir . --dataset table.csv --cutoff_len 64 --text --quiet", 0, 0, 0},
    {"preview, plain text", "preview --model_name_or_path m --dataset_dir . --dataset plain.txt --stage pt --cutoff_len 8 --quiet", 0, 0, 0},
    {"score", "score --model_name_or_path m --text hello --quiet", 0, 0, 0},
    {"score, file, adapter", "score --model_name_or_path m --adapter_name_or_path a --file text.jsonl --quiet", 0, 0, 0},
    {"score, 4-bit file", "score --model_name_or_path m4 --text hello --quiet", 0, 0, 0},
    {"score, 8-bit file", "score --model_name_or_path m8 --text hello --quiet", 0, 0, 0},
    {"score, shards, 4 bits", "score --model_name_or_path shards --text hello --quantization_bit 4 --quiet", 0, 0, 0},
    {"score, torch", "score --model_name_or_path torch --text hello --quiet", 0, 0, 0},
    {"chat", "chat --model_name_or_path m --prompt hello --max_new_tokens 4 --quiet", 0, 0, 0},
    {"chat, file", "chat --model_name_or_path m --adapter_name_or_path a --file prompts.jsonl --max_new_tokens 3 --json --quiet", 0, 0, 0},
    {"eval", "eval --model_name_or_path m --template yuan --task_dir exam --task mmlu_test --n_shot 1 --save_dir out --quiet", 0, 0, 0},
    {"estimate", "estimate --model_name_or_path m --quantization_bit 4 --lora_rank 4 --lora_target all --cutoff_len 64 --card a100 --quiet", 0, 0, 1},
    {"doctor", "doctor --backend cpu", 0, 0, 1},
    {"new", "new --config yuan2-tiny --tokenizer tok --output_dir out --override vocab_size=600 --override eod_token=583 --override pad_token_id=583 --quiet", 0, 0, 0},
    {"quantize", "quantize --model_name_or_path m --output_dir out --quantization_bit 4 --quiet", 0, 0, 0},
    {"quantize, torch", "quantize --model_name_or_path torch --output_dir out --quantization_bit 8 --quiet", 0, 0, 0},
    {"export, merged", "export --model_name_or_path m --adapter_name_or_path a --export_dir out --template yuan --quiet", 0, 0, 0},
    {"export, decoded shards", "export --model_name_or_path m4 --export_dir out --export_size 0.0001 --quiet", 0, 0, 0},
    {"predict", "train --do_predict --predict_with_generate --model_name_or_path m --adapter_name_or_path a --dataset_dir data --dataset questions --max_samples 2 "
                "--cutoff_len 64 --max_new_tokens 3 --val_size 0.5 --template yuan --lora_target q_proj --output_dir out --quiet", 0, 0, 1},
    {"train, dry", FAULT_LORA "--dry_run", 0, 0, 1},
    {"train, yaml", "train run.yaml quiet=true", 0, 0, 1},
    {"train, deepspeed, evaluated", FAULT_LORA "--deepspeed zero2.json --bf16 --val_size 0.2 --evaluation_strategy steps --eval_steps 2 --plot_loss", 0, 0, 1},
    {"train, resumed", FAULT_LORA, "resume", "checkpoint-2", 1},
    {"train in full, resumed", FAULT_FULL, "resumef", "checkpoint-2", 1},
};

static const struct { const char *kinds; int error; const char *name; int harmless; } failures[] = {
    {"a", ENOMEM, "ENOMEM", 0}, {"o", EMFILE, "EMFILE", 0}, {"o", EIO, "EIO", 0}, {"r", EIO, "EIO", 0}, {"r", SYS_SHORT, "SHORT", 1},
    {"w", ENOSPC, "ENOSPC", 0}, {"w", EIO, "EIO", 0}, {"w", SYS_SHORT, "SHORT", 1}, {"s", EIO, "EIO", 0}, {"c", EIO, "EIO", 0}, {"n", EIO, "EIO", 0},
    {"u", EIO, "EIO", 0}, {"m", ENOSPC, "ENOSPC", 0}, {"t", EIO, "EIO", 0}, {"d", EIO, "EIO", 0}, {"x", ENOMEM, "ENOMEM", 0},
    {"p", ENOSPC, "ENOSPC", 0}, {"p", SYS_SHORT, "SHORT", 1}, {"orwsnumtp", EINTR, "EINTR", 1}};
enum { FAILURES = sizeof failures / sizeof *failures };

static int64_t tried, ended_well;

static void restore(const struct fixture *f) {
    struct err e = {0};
    REQUIRE(!dir_remove("out", &e), "%s", e.text);
    if (f->before) fault_shell("cp -r %s out", f->before);
}

struct normal { char out[41], printed[41], kept[41]; };

static void keep_hash(const struct fixture *f, char hex[41]) {
    char path[200];
    snprintf(path, sizeof path, "out/%s", f->keep);
    fault_hash(path, hex);
}

/* Call n fails. */
static void one(const struct fixture *f, const struct normal *normal, int k, int64_t n, int sticky) {
    struct outcome x;
    char hex[41], what[200];
    struct sys_fault fault = {.at = n, .error = failures[k].error, .sticky = sticky};
    snprintf(fault.kinds, sizeof fault.kinds, "%s", failures[k].kinds);
    snprintf(what, sizeof what, "%s: call %lld of %s, %s%s", f->name, (long long)n, failures[k].kinds, failures[k].name, sticky ? " for good" : "");
    restore(f);
    fault_run(f->words, &fault, &x);
    tried++;
    CHECK(!x.signal, "%s: signal %d\n%s", what, x.signal, x.said);
    if (x.signal) return;
    CHECK(!x.blocks && !x.files, "%s: %lld blocks, %d descriptors left\n%s", what, (long long)x.blocks, x.files, x.said);
    if (f->keep) {
        keep_hash(f, hex);
        CHECK(!strcmp(hex, normal->kept), "%s: %s is not what it was\n%s", what, f->keep, x.said);
    }
    if (!x.code || failures[k].harmless) {
        fault_hash("out", hex);
        CHECK(!x.code && !x.errors, "%s: exit status %d\n%s", what, x.code, x.said);
        CHECK(!strcmp(hex, normal->out) && (f->times || !strcmp(x.printed, normal->printed)), "%s: other results\n%s", what, x.said);
        ended_well++;
        return;
    }
    CHECK((x.code == ERR_RUN || x.code == ERR_INPUT) && x.errors == 1, "%s: exit status %d, %d sentences\n%s", what, x.code, x.errors, x.said);
    CHECK(sticky || strchr("uoda", *failures[k].kinds) || !fault_leftovers("out"), "%s: %s is left\n%s", what, fault_left, x.said);
    if (path_exists("out/results.json")) restore(f); /* of an exam that came that far: a second one is refused */
    fault_run(f->words, NULL, &x);
    fault_hash("out", hex);
    CHECK(!x.code && !strcmp(hex, normal->out), "%s: then exit status %d%s\n%s", what, x.code, x.code ? "" : ", other bytes", x.said);
}

static void sweep(const struct fixture *f) {
    const char *every = getenv("FAULT_EVERY");
    struct outcome x;
    struct normal normal;
    restore(f);
    if (f->keep) keep_hash(f, normal.kept);
    fault_run(f->words, NULL, &x);
    REQUIRE(!x.code && !x.signal && !x.blocks && !x.files, "%s: exit status %d, signal %d, %lld blocks, %d descriptors\n%s", f->name, x.code, x.signal, (long long)x.blocks, x.files, x.said);
    fault_hash("out", normal.out);
    memcpy(normal.printed, x.printed, sizeof normal.printed);
    for (int k = 0; k < FAILURES && test_failed < 20; k++) {
        struct sys_fault count = {0};
        snprintf(count.kinds, sizeof count.kinds, "%s", failures[k].kinds);
        restore(f);
        fault_run(f->words, &count, &x);
        /* A call of each kind, another one for each fixture, once or for good in turn; all, in both ways, with FAULT_EVERY. */
        const int64_t points = every && atoi(every) > 0 ? x.calls : 1, stride = x.calls / (points ? points : 1) > 0 ? x.calls / points : 1;
        int64_t first = 1 + (int64_t)(strlen(f->name) * 7 + (size_t)k * 3) % stride;
        for (int64_t n = first; n <= x.calls; n += stride)
            for (int sticky = 0; sticky <= (failures[k].error != EINTR); sticky++)
                if (every || sticky == ((k + (int)strlen(f->name)) & (failures[k].error != EINTR))) one(f, &normal, k, n, sticky);
    }
}

TEST(call_n_fails) {
    const char *only = getenv("FAULT_ONLY");
    fault_world();
    for (size_t i = 0; i < sizeof fixtures / sizeof *fixtures; i++)
        if (!only || strstr(fixtures[i].name, only)) sweep(&fixtures[i]);
    printf("  %zu fixtures, %lld failed calls, of which %lld did not matter\n", sizeof fixtures / sizeof *fixtures, (long long)tried, (long long)ended_well);
}
TEST_MAIN
