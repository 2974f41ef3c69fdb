/* Values of the command line with a grammar of their own: --interleave_probs ('p' first), --ids ('i'), and --override, one a
 * line, on a model's configuration. */
#include "base/log.h"
#include "cli/cli_internal.h"
#include "datasets/mix.c"
#include "model/config.h"
#include "tests/fuzz/mutate.h"

static void probabilities(const char *text, int count) {
    double sum[64];
    struct err e = {0};
    int rc = mix_probabilities(text, count, sum, &e);
    if (rc != (e.code ? -1 : 0)) abort();
    for (int k = 0; !rc && k < count; k++)
        if (!(sum[k] > (k ? sum[k - 1] : 0)) || !(sum[k] < 1 + 1e-9)) abort();
}

static void list_of_ids(const char *text) {
    struct ids ids = {0};
    struct err e = {0};
    int rc = cli_read_ids(text, 1000, &ids, &e);
    if (rc != (e.code ? -1 : 0)) abort();
    for (size_t i = 0; i < ids.n; i++)
        if (ids.p[i] < 0 || ids.p[i] > 999) abort();
    ids_free(&ids);
}

/* A number, a word, a key that only this file has, a list, a member that is taken out, and little else: each input parses, prints
 * and checks all of it. */
static const char base[] = "{\"model_type\": \"yuan\", \"hidden_size\": 64, \"intermediate_size\": 128, \"num_hidden_layers\": 2, \"num_attention_heads\": 4,"
                           " \"architectures\": [\"YuanForCausalLM\"], \"dropout\": 0.1, \"quantization_config\": null}";

static void overrides(char *text) {
    const char *line[16];
    static struct model_config c; /* the same for each input */
    struct model_config again;
    struct err e = {0};
    int n = 0;
    for (char *p = strtok(text, "\n"); p && n < 16; p = strtok(NULL, "\n")) line[n++] = p;
    if (!c.D && model_config_parse(base, sizeof base - 1, "fuzz", &c, &e)) abort();
    char *made = model_config_text(&c, line, n, NULL, &e);
    if (!made != (e.code != 0)) abort();
    if (made && json_check(made, strlen(made), NULL, NULL)) abort();
    if (made && !model_config_parse(made, strlen(made), "fuzz", &again, &e)) model_config_free(&again);
    sys_free(made);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!size) return 0;
    char *text = sys_alloc(size, "text", NULL); /* ends in NUL */
    log_quiet = 1;
    memcpy(text, data + 1, size - 1);
    if (*data == 'p') probabilities(text, 1 + (int)(size % 5));
    else if (*data == 'i') list_of_ids(text);
    else overrides(text);
    sys_free(text);
    return 0;
}

static const char *const words[] = {"0.5,0.5", "0.2, 0.3,0.5", "1", ",", "nan", "1e-9", "1e-320", "0x1p-1", "[1, 2, 3]", "999", "1000", "00", "hidden_size=64", "num_hidden_layers=3", "vocab_size=1000", "torch_dtype=float16", "a={\"b\":1}", "a=null",
    "a.b=1", "=", "x=\"y\"", "eod_token=5", "tie_word_embeddings=false"};
MUTATORS_BEGIN
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned seed) {
    struct mutator m = mutate_begin(seed);
    if (n < 2 || mutate_plain(&m)) return LLVMFuzzerMutate(data, n, max);
    return 1 + mutate_lines(&m, data + 1, n - 1, max - 1, words, sizeof words / sizeof *words);
}
MUTATORS_END
