/* adapter_config.json from a stranger: any bytes give a configuration that an adapter can be built from, or an error. */
#include "base/log.h"
#include "lora/lora.h"
#include <stdlib.h>
#include "tests/fuzz/mutate.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    const struct model_config m = {.D = 8192, .F = 32768, .L = 84};
    struct lora_config c;
    struct lora l;
    struct err e = {0};
    log_quiet = 1;
    if (lora_parse_config((const char *)data, n, "fuzz", &c, &e)) {
        if (!e.code) abort();
        return 0;
    }
    if (!c.targets || lora_shapes(&l, &c, &m, &e) || l.layer_floats <= 0) abort();
    return 0;
}

static const char *const words[] = {"peft_type", "LORA", "task_type", "CAUSAL_LM", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "bias", "none", "target_modules", "all-linear", "q_proj", "k_proj", "v_proj",
    "o_proj", "gate_proj", "up_proj", "down_proj", "self_attn.q_proj", "rank_pattern", "alpha_pattern", "^model.layers.0.self_attn.q_proj", "modules_to_save", "embed_tokens", "lm_head", "init_lora_weights",
    "gaussian", "pissa", "fan_in_fan_out", "layers_to_transform", "megatron_config", "loftq_config"};
MUTATE_WITH(mutate_json, words)
