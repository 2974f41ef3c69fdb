/* cli/quantize.c - qlora quantize */
#include "model/quantize.h"
#include "base/log.h"
#include "cli/cli.h"

int cmd_quantize(struct options *o, struct err *e) {
    const struct train_options *t = &o->train;
    struct quantize_how how = {.bits = t->quantization_bit,
                               .type = t->quantization_type,
                               .nested = t->double_quantization,
                               .overwrite = t->overwrite_output_dir};
    if (model_quantize(t->model_name_or_path, t->output_dir, &how, e)) return e->code;
    log_info("next: qlora train --model_name_or_path %s .. trains on it as it is", t->output_dir);
    return 0;
}
