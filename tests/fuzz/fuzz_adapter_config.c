/* adapter_config.json from a stranger: any bytes give a configuration that an adapter can be built from, or an error. */
#include "base/log.h"
#include "lora/lora.h"
#include <stdlib.h>

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
