/* qlora.c - the program: a table of commands. No maths. */
#include "base/log.h"
#include "base/print.h"
#include "base/record.h"
#include "base/stop.h"
#include "base/str.h"
#include "base/sys.h"
#include "cli/cli.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const struct command commands[] = {
    {"train", CMD_TRAIN, cmd_train, "fine-tune a model with QLoRA, LoRA, or in full",
     "qlora train --do_train --model_name_or_path Yuan2-2B --dataset alpaca_en --dataset_dir data --template yuan \\\n"
     "      --quantization_bit 4 --lora_target all --lora_rank 16 --cutoff_len 1024 --sft_packing \\\n"
     "      --per_device_train_batch_size 1 --gradient_accumulation_steps 16 --learning_rate 5e-5 --bf16 \\\n"
     "      --output_dir out"},
    {"preview", CMD_PREVIEW, cmd_preview, "print the training sequences that a data set becomes",
     "qlora preview --model_name_or_path Yuan2-2B --dataset alpaca_en --cutoff_len 1024 --limit 3 --text"},
    {"score", CMD_SCORE, cmd_score, "print each token's log-probability and the loss",
     "qlora score --model_name_or_path Yuan2-2B --adapter_name_or_path out --text \"你好<sep>你好！<eod>\""},
    {"chat", CMD_CHAT, cmd_chat, "talk to a model, with or without an adapter",
     "qlora chat --model_name_or_path Yuan2-2B --adapter_name_or_path out --prompt \"你是谁？\""},
    {"tokenize", CMD_TOKENIZE, cmd_tokenize, "turn text lines into token ids and back",
     "qlora tokenize --model_name_or_path Yuan2-2B --text \"你好<sep>\""},
    {"eval", CMD_EVAL, cmd_eval, "ask multiple-choice questions in the form of C-Eval, MMLU or CMMLU",
     "qlora eval --model_name_or_path Yuan2-2B --adapter_name_or_path out --task ceval_validation --task_dir evaluation \\\n"
     "      --lang zh --n_shot 5 --save_dir results"},
    {"quantize", CMD_QUANTIZE, cmd_quantize, "write a checkpoint with 4-bit or 8-bit weights",
     "qlora quantize --model_name_or_path Yuan2-2B --output_dir Yuan2-2B-nf4 --quantization_bit 4"},
    {"export", CMD_EXPORT, cmd_export, "merge adapters into a checkpoint; convert, reshard or quantise it",
     "qlora export --model_name_or_path Yuan2-2B --adapter_name_or_path out --template yuan --export_dir merged"},
    {"new", CMD_NEW, cmd_new, "make a model with random weights",
     "qlora new --config yuan2-tiny --tokenizer Yuan2-2B --output_dir tiny"},
    {"estimate", CMD_ESTIMATE, cmd_estimate, "memory and speed of a run on a card, before running it",
     "qlora estimate --config yuan2-51b --quantization_bit 4 --lora_rank 64 --cutoff_len 1024 --card l40s --vram 12GiB"},
    {"bench", CMD_BENCH, cmd_bench, "measured speed and memory; the guide's table; speed over memory",
     "qlora bench --config yuan2-2b --quantization_bit 4 --lora_rank 64 --vram 2,4,8,16 --plot curve.svg"},
    {"doctor", CMD_DOCTOR, cmd_doctor, "say what was found on this machine and what is wrong", "qlora doctor"},
};
/* clang-format on */
enum { COMMANDS = sizeof commands / sizeof *commands };

/* A command by its name, or by that of the script that did its job in LLaMA-Factory. */
static const struct command *find(const char *name) {
    static const char *const scripts[] = {[CMD_TRAIN] = "src/train_bash.py",
                                          [CMD_EXPORT] = "src/export_model.py",
                                          [CMD_CHAT] = "src/cli_demo.py",
                                          [CMD_EVAL] = "src/evaluate.py"};
    for (int i = 0; i < COMMANDS; i++) {
        const char *script = commands[i].id < sizeof scripts / sizeof *scripts ? scripts[commands[i].id] : NULL;
        if (!strcmp(commands[i].name, name) || (script && text_ends(name, script + strlen("src/")))) return &commands[i];
    }
    return NULL;
}

static int unknown(const char *name, struct err *e) {
    const char *names[COMMANDS + 3] = {"help", "version"};
    for (int i = 0; i < COMMANDS; i++) names[2 + i] = commands[i].name;
    const char *near = nearest_word(name, names);
    err_set(e, ERR_INPUT, "unknown command \"%.100s\"%s%s%s (qlora help lists all)", name,
            near ? ", did you mean " : "", near ? near : "", near ? "?" : "");
    return err_print(e);
}

static int help(const char *topic) {
    static const struct {
        const char *topic;
        void (*show)(const struct command *, int);
    } lists[] = {{"markdown", help_markdown}, {"man", help_man}, {"bash", help_bash}, {"zsh", help_zsh}};
    const struct command *c = topic ? find(topic) : NULL;
    struct err e = {0};
    if (c) return help_command(c), 0;
    if (!topic) return help_program(commands, COMMANDS), 0;
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        if (!strcmp(topic, lists[i].topic)) return lists[i].show(commands, COMMANDS), 0;
    return unknown(topic, &e);
}

/* Results that could not be written are a failed run. */
static int close_output(int code) {
    struct err e = {0};
    return print_end(&e) ? err_print(&e) : code;
}

/* OpenMP threads that wait spin for milliseconds by default, which on a machine with other work to do slows everybody down
 * many times. gcc's runtime reads its settings when it is loaded, long before main; a program's preinit array comes before that.
 * So one place of the environment that no library looks at is lent to GOMP_SPINCOUNT, and main puts back what stood there.
 * (Nothing of the C library may be called that early.) clang's runtime has a function. */
static char **lent_place, *lent_text, spin_count[] = "GOMP_SPINCOUNT=20000";

__attribute__((no_sanitize("address", "undefined"))) static int begins(const char *s, const char *with) {
    while (*with && *s == *with) s++, with++;
    return !*with;
}

__attribute__((no_sanitize("address", "undefined"))) static void spin_briefly(int argc, char **argv, char **env) {
    static const char *const unread[] = {"_=", "OLDPWD=", "SHLVL=", "PWD=", "TERM=", "HOME=", "PATH="};
    (void)argc, (void)argv;
    for (char **p = env; *p; p++)
        if (begins(*p, "GOMP_SPINCOUNT=") || begins(*p, "OMP_WAIT_POLICY=")) return;
    for (size_t i = 0; i < sizeof unread / sizeof *unread && !lent_place; i++)
        for (char **p = env; *p && !lent_place; p++)
            if (begins(*p, unread[i])) lent_place = p;
    if (lent_place) lent_text = *lent_place, *lent_place = spin_count;
}
typedef void preinit(int, char **, char **);
__attribute__((section(".preinit_array"), used)) static preinit *const before_libraries = spin_briefly;

void kmp_set_blocktime(int ms) __attribute__((weak));

static void settle_threads(void) {
    if (lent_place) *lent_place = lent_text;
    if (kmp_set_blocktime && !getenv("KMP_BLOCKTIME") && !getenv("OMP_WAIT_POLICY")) kmp_set_blocktime(0);
}

int main(int argc, char **argv) {
    struct err e = {0};
    settle_threads();
    struct options o;
    const char *name = argc > 1 ? argv[1] : "help";
    sys_fault_env();
    record_env();
    if (!strcmp(name, "help") || !strcmp(name, "--help") || !strcmp(name, "-h"))
        return close_output(help(argc > 2 ? argv[2] : NULL));
    if (!strcmp(name, "version") || !strcmp(name, "--version"))
        return print_text("qlora " QLORA_VERSION "\n"), close_output(0);
    const struct command *c = find(name);
    if (!c) return unknown(name, &e);
    int skip = c->id == CMD_TRAIN && strcmp(c->name, name) ? 1 : 2; /* that of train is the parser's to see */
    int code = options_parse(c->id, argc - skip, argv + skip, &o, &e) ? e.code : 0;
    if (!code && o.help) {
        help_command(c);
    } else if (!code) {
        struct confined confined;
        stop_install();
        cli_confine(c->id, &o, &confined);
        code = c->run(&o, &e);
        cli_release(&confined);
    }
    options_free(&o);
    code = e.code ? print_flush(), err_print(&e) : close_output(code);
    sys_fault_report();
    return code;
}
