/* cli/cli.h - commands and their flags.
 *
 * Every flag of every command is one row of one table (cli/flags.c): its names, type, default, commands, meaning, and
 * where its value goes in struct options. Parsing, --help, docs/FLAGS.md and the tests are made from that table.
 * Names and rules are those of LLaMA-Factory and the Hugging Face argument parser: --a_b, --a-b, --a=b, unambiguous
 * prefixes, booleans with an optional value, --no_x for what is on by default, and for every command a flat YAML or JSON
 * file in front, followed by key=value overrides.
 *
 *     struct options o;
 *     if (options_parse(CMD_TRAIN, argc, argv, &o, &e)) ...;       argv without program and command
 *     train_run(&o.train, &e);  options_free(&o);
 */
#ifndef QLORA_CLI_H
#define QLORA_CLI_H
#include "base/err.h"
#include "train/train.h"
#include <stddef.h>
#include <stdint.h>

#define QLORA_VERSION "0.1.0"

enum command_id { CMD_TRAIN, CMD_PREVIEW, CMD_SCORE, CMD_CHAT, CMD_TOKENIZE, CMD_QUANTIZE, CMD_EXPORT, CMD_NEW, CMD_DOCTOR, CMD_EVAL, CMD_ESTIMATE, CMD_BENCH };

enum { FLAGS_MAX = 384, OVERRIDES_MAX = 64 };
struct given { const char *name, *value; }; /* a flag as typed, last one wins; name NULL = not given */

struct options {
    struct train_options train;   /* also the model, data and machine flags of the other commands */
    /* flags that become something else in `train` (cli/check.c) */
    int64_t quantization_bit, lora_alpha, reserved_label_len;
    const char *lora_target, *additional_target, *optim, *template, *deepspeed, *report_to;
    int sampling;                 /* 0: random, 1: in order, 2: by length */
    int gradient_checkpointing, disable_gradient_checkpointing, create_new_adapter, no_card, quiet, predict_with_generate;
    /* preview, score, chat, tokenize, new */
    const char *text, *ids, *file, *prompt, *system, *config, *tokenizer, *card, *vram_list, *plot;
    const char *overrides[OVERRIDES_MAX]; /* --override, in order of appearance */
    int n_overrides;
    int as_text, decode, json, do_sample, skip_special, table;
    int bench_table;              /* 0: none, 1: the guide's */
    int memory;                   /* enum estimate_memory (train/estimate.h) */
    int64_t limit, max_new_tokens, top_k, n_shot;
    const char *task, *split, *task_dir, *save_dir;
    int sandbox_off;
    int lang;                     /* of eval: 0 en, 1 zh */
    double temperature, top_p, repetition_penalty;
    int dtype;                    /* 0: the configuration's, 1: bf16, 2: fp32 */
    const char *export_dir;
    double export_size;           /* GB */
    int export_dtype;             /* 0: the model's; then bf16, fp16, fp32, and once more by their other names */
    /* how the command line looked */
    int train_script;             /* a leading src/train_bash.py */
    int help;                     /* --help was there: nothing is checked */
    struct given given[FLAGS_MAX]; /* by row of the table */
    char **owned;                 /* texts made while parsing */
    int n_owned;
};

/* Fills o from the defaults, a file, and argv, then checks it as a whole. Frees nothing on failure: call options_free. */
int options_parse(enum command_id cmd, int argc, char **argv, struct options *o, struct err *e);
void options_free(struct options *o);
/* The text typed for a flag, NULL if it was not given. */
const char *options_given(const struct options *o, const char *flag);

/* What the process may write from now on (cli/confine.c); release removes output folders that were made for it and stayed empty. */
enum { CONFINED_MAX = 4 };
struct confined {
    const char *made[CONFINED_MAX];
    int n, active;
};
void cli_confine(enum command_id cmd, const struct options *o, struct confined *c);
void cli_release(const struct confined *c);

struct command {
    const char *name;
    enum command_id id;
    int (*run)(struct options *o, struct err *e); /* exit code; e is filled when it is not 0 and no signal */
    const char *job;     /* half a sentence */
    const char *example; /* a command line that works */
};
/* `qlora help`, `qlora COMMAND --help`, and docs/FLAGS.md, on standard output. */
void help_program(const struct command *commands, int n);
void help_command(const struct command *c);
void help_markdown(const struct command *commands, int n);
/* The manual page and the completions of two shells, likewise. */
void help_man(const struct command *commands, int n);
void help_bash(const struct command *commands, int n);
void help_zsh(const struct command *commands, int n);

int cmd_train(struct options *o, struct err *e);
int cmd_preview(struct options *o, struct err *e);
int cmd_score(struct options *o, struct err *e);
int cmd_chat(struct options *o, struct err *e);
int cmd_tokenize(struct options *o, struct err *e);
int cmd_quantize(struct options *o, struct err *e);
int cmd_export(struct options *o, struct err *e);
int cmd_new(struct options *o, struct err *e);
int cmd_doctor(struct options *o, struct err *e);
int cmd_eval(struct options *o, struct err *e);
int cmd_estimate(struct options *o, struct err *e);
int cmd_bench(struct options *o, struct err *e);
#endif
