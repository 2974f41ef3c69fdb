/* cli/export.c - qlora export */
#include "model/export.h"
#include "base/log.h"
#include "cli/cli.h"

int cmd_export(struct options *o, struct err *e) {
    static const enum dtype types[] = {DT_BF16, DT_F16, DT_F32};
    const struct train_options *t = &o->train;
    struct export_how how = {.type = o->export_dtype ? (int)types[(o->export_dtype - 1) % 3] : -1,
                             .bits = (int)o->quantization_bit,
                             .q_type = t->quantization_type,
                             .nested = t->double_quantization,
                             .filter_4bit = t->filter_4bit,
                             .adapters = t->adapter_name_or_path,
                             .shard_bytes = (int64_t)(o->export_size * 1e9),
                             .overwrite = t->overwrite_output_dir};
    if (model_export(t->model_name_or_path, o->export_dir, &how, e)) return e->code;
    log_info("next: qlora chat --model_name_or_path %s", o->export_dir);
    return 0;
}
