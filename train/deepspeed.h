/* train/deepspeed.h - the DeepSpeed JSON of a command line (--deepspeed FILE), as far as it means something on one card.
 *
 * No key of any level passes in silence. What changes a run is taken over: no "gradient_clipping" means no clipping, an offloaded
 * optimizer's state may live in host memory, the profiler prints the table of operations. ZeRO stages, buckets and communication
 * settings have no effect with one process: one line names them, with the reasons. An unknown key is a warning with the nearest
 * name. Values that contradict the flags are an error, as in transformers, and so is what would change the result otherwise. */
#ifndef QLORA_TRAIN_DEEPSPEED_H
#define QLORA_TRAIN_DEEPSPEED_H
#include "base/err.h"
#include "train/train.h"
#include <stddef.h>

/* Checks the file against o and changes o. What has no effect is said once on the log. */
int deepspeed_apply(const char *path, struct train_options *o, struct err *e);
int deepspeed_parse(const char *text, size_t n, const char *where, struct train_options *o, struct err *e);
#endif
