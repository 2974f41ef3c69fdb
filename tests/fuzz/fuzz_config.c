/* config.json from a stranger: any bytes parse or are refused; what parses can be written and parsed again. */
#include "base/log.h"
#include "base/sys.h"
#include "model/config.h"
#include <stdlib.h>
#include <string.h>

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
