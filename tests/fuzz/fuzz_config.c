/* config.json from a stranger: any bytes parse or are refused; what parses can be written and parsed again. */
#include "base/log.h"
#include "base/sys.h"
#include "model/config.h"
#include <stdlib.h>
#include <string.h>
#include "tests/fuzz/mutate.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    struct model_config c, again;
    log_quiet = 1;
    if (model_config_parse((const char *)data, n, "fuzz", &c, NULL)) return 0;
    struct model_config q = {.q_bits = 4, .q_double = 1};
    const char *override = "hidden_act=silu";
    char *text = model_config_text(&c, &override, 1, &q, NULL);
    if (!text || model_config_parse(text, strlen(text), "fuzz", &again, NULL)) abort();
    if (again.D != c.D || again.L != c.L || again.V != c.V || again.eod != c.eod || again.q_bits != 4)
        abort();
    model_config_free(&again);
    sys_free(text);
    model_config_free(&c);
    return 0;
}

static const char *const words[] = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings", "model_max_length",
    "use_flash_attention", "reset_attention_mask", "reset_position_ids", "eod_token", "eod_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "initializer_range", "torch_dtype", "bfloat16", "float32", "hidden_act",
    "silu", "model_type", "yuan", "architectures", "YuanForCausalLM", "quantization_config", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "nf4", "fp4", "bnb_4bit_use_double_quant", "quant_method", "bitsandbytes",
    "use_loss_mask", "dropout", "causal_mask", "rope_scaling"};
MUTATE_WITH(mutate_json, words)
