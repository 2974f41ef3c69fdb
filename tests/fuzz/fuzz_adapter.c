/* An adapter's folder: adapter_config.json up to the first NUL, behind it the header of adapter_model.safetensors, whose payload
 * is as long as the header asks for, and zero. What is accepted has every matrix that it promises. */
#include "base/log.h"
#include "lora/lora.h"
#include "tests/fuzz/fuzz_file.h"
#include "tests/fuzz/mutate_safetensors.h"
#include <math.h>

enum { PAYLOAD_MAX = 1 << 20 };
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const struct model_config m = {.D = 8, .F = 12, .L = 2, .H = 2, .K = 4, .V = 16};
    struct lora_file f;
    struct lora l;
    struct err e = {0};
    const uint8_t *cut = memchr(data, 0, size);
    size_t n = cut ? (size_t)(cut - data) : size, rest = size - n - (cut != NULL), end = 0;
    uint8_t *bytes = malloc(rest + 8);
    const uint64_t length = rest;
    if (!bytes) abort();
    log_quiet = 1;
    memcpy(bytes, &length, 8);
    if (rest) memcpy(bytes + 8, cut + 1, rest);
    for (size_t i = 8; i < rest + 8; i++) {
        size_t v = 0, from = i;
        while (i < rest + 8 && bytes[i] >= '0' && bytes[i] <= '9' && i - from < 8) v = 10 * v + bytes[i++] - '0';
        if (v > end && v <= PAYLOAD_MAX) end = v;
    }
    fuzz_file_zeros("adapter_model.safetensors", bytes, rest + 8, end);
    free(bytes);
    fuzz_file("adapter_config.json", data, n);
    if (lora_file_open(fuzz_dir, &m, &f, &e)) {
        if (!e.code) abort();
        return 0;
    }
    for (int64_t layer = 0; layer < m.L; layer++)
        for (int p = 0; p < PROJ_COUNT; p++) {
            if (!(f.own.targets >> p & 1)) continue;
            int64_t rows, cols, R = f.shape.config.rank;
            proj_shape(&m, (enum proj)p, &rows, &cols);
            float *a = malloc((size_t)(R * cols) * 4), *b = malloc((size_t)(R * rows) * 4), *magnitude = malloc((size_t)rows * 4);
            if (!a || !b || !magnitude) abort();
            if (lora_file_read(&f, layer, (enum proj)p, a, b, magnitude, &e) && !e.code) abort();
            free(a), free(b), free(magnitude);
        }
    lora_file_close(&f);
    struct err again = {0};
    if (lora_load(fuzz_dir, &m, &l, &again) != (again.code ? -1 : 0) || (!e.code && again.code)) abort();
    if (!again.code) lora_free(&l);
    return 0;
}

static const char *const words[] = {"peft_type", "LORA", "task_type", "CAUSAL_LM", "r", "lora_alpha", "use_rslora", "target_modules", "q_proj", "v_proj", "down_proj", "all-linear", "rank_pattern", "alpha_pattern", "modules_to_save", "lm_head",
    "embed_tokens", "norm", "init_lora_weights"};
MUTATORS_BEGIN
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned seed) {
    struct mutator m = mutate_begin(seed);
    const uint8_t *cut = n ? memchr(data, 0, n) : NULL;
    if (!cut || mutate_plain(&m)) return LLVMFuzzerMutate(data, n, max);
    size_t at = (size_t)(cut - data) + 1, rest = n - at;
    uint64_t end;
    uint8_t *text = calloc(max + 1, 1);
    if (!text) return n;
    if (mutate_pick(&m, 3)) {
        memcpy(text, data + at, rest);
        rest = mutate_header(&m, text, rest, max - at, &end);
        memcpy(data + at, text, rest);
        n = at + rest;
    } else {
        memcpy(text, data, at - 1);
        size_t now = mutate_json(&m, text, at - 1, max - rest - 1, words, sizeof words / sizeof *words);
        memmove(data + now + 1, data + at, rest);
        memcpy(data, text, now), data[now] = 0;
        n = now + 1 + rest;
    }
    free(text);
    return n;
}
MUTATORS_END
