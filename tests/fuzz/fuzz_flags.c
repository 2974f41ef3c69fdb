/* Command lines and files of flags from anywhere. The first byte chooses: a command whose arguments are the lines that follow,
 * a YAML file, a JSON file, or a DeepSpeed file. Whatever is accepted must hold what its kinds promise. */
#include "base/log.h"
#include "base/sys.h"
#include "cli/cli_internal.h"
#include "train/deepspeed.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "tests/fuzz/mutate.h"

enum { ARGUMENTS_MAX = 64 };

static void fuzz_arguments(enum command_id cmd, char *text) {
    char *argv[ARGUMENTS_MAX];
    int argc = 0;
    struct options o;
    struct err e = {0};
    for (char *p = strtok(text, "\n"); p && argc < ARGUMENTS_MAX; p = strtok(NULL, "\n"))
        if (p[0] == '-' || (p[0] != '/' && !strstr(p, ".."))) argv[argc++] = p; /* no files of this machine */
    int rc = options_parse(cmd, argc, argv, &o, &e);
    if (rc && !e.code) abort();
    if (!rc && !o.help && cmd == CMD_TRAIN) {
        const struct train_options *t = &o.train;
        if (!t->model_name_or_path || !t->output_dir || t->batch < 1 || t->data.cutoff_len < 1) abort();
        if (!isfinite(t->learning_rate) ||
            (t->finetuning == FT_LORA && (!t->lora.targets || t->lora.rank < 1)))
            abort();
    }
    options_free(&o);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    struct pairs pairs = {0};
    struct train_options t = {.batch = 1, .accumulate = 1};
    struct err e = {0};
    log_quiet = 1;
    if (!n) return 0;
    char *text = sys_alloc(n, "text", NULL); /* zeroed: ends in NUL */
    memcpy(text, data + 1, n - 1);
    int kind = data[0] & 15, rc = 0;
    if (kind <= CMD_DOCTOR)
        fuzz_arguments((enum command_id)kind, text);
    else if (kind < 11)
        rc = yaml_parse(text, n - 1, "fuzz", &pairs, &e);
    else if (kind < 13)
        rc = json_pairs(text, n - 1, "fuzz", &pairs, &e);
    else
        rc = deepspeed_parse(text, n - 1, "fuzz", &t, &e);
    if (rc && !e.code) abort();
    pairs_free(&pairs);
    sys_free(text);
    return 0;
}

static const char *const words[] = {"--do_train", "--model_name_or_path=m", "--output_dir=o", "--dataset=d", "--template=yuan", "--stage=sft", "--lora_rank=8", "--lora_target=all", "--quantization_bit=4", "--finetuning_type=lora",
    "--learning_rate=1e-4", "--num_train_epochs=3", "--max_steps", "--cutoff_len", "--vram=8GiB", "--bf16", "--no_plot_loss", "--override=hidden_size=64", "--ids=[1,2]", "--save_strategy", "--", "-h", "true", "false", "null",
    "none", "auto", "8GiB", "1e-4", "lora_rank: 8", "model_name_or_path: m", "output_dir: \"o\"", "### model", "lora_target: [q_proj, v_proj]", "- q_proj", "key: |", "key: >", "&a", "*a", "zero_optimization", "stage",
    "offload_optimizer", "gradient_accumulation_steps", "train_micro_batch_size_per_gpu", "bf16", "enabled"};
MUTATORS_BEGIN
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned seed) {
    struct mutator m = mutate_begin(seed);
    if (n < 2 || mutate_plain(&m)) return LLVMFuzzerMutate(data, n, max);
    return 1 + ((data[0] & 15) < 11 ? mutate_lines : mutate_json)(&m, data + 1, n - 1, max - 1, words, sizeof words / sizeof *words);
}
MUTATORS_END
