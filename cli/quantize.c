/* cli/quantize.c - qlora quantize */
#include "base/log.h"
#include "cli/cli.h"
#include "model/export.h"

int cmd_quantize(struct options *o, struct err *e) {
    const struct train_options *t = &o->train;
    struct export_how how = {.type = -1,
                             .bits = t->quantization_bit,
                             .q_type = t->quantization_type,
                             .nested = t->double_quantization,
                             .filter_4bit = t->filter_4bit,
                             .original = 1,
                             .overwrite = t->overwrite_output_dir};
    if (model_export(t->model_name_or_path, t->output_dir, &how, e)) return e->code;
    log_info("next: qlora train --model_name_or_path %s .. trains on it as it is", t->output_dir);
    return 0;
}
