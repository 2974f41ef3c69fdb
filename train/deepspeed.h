/* train/deepspeed.h - the DeepSpeed JSON of a command line (--deepspeed FILE), as far as it means something on one card.
 *
 * ZeRO stages, buckets and communication settings have no effect with one process and are accepted. What does change a
 * run is taken over: no "gradient_clipping" means no clipping, an offloaded optimizer keeps its state in host memory, the
 * profiler prints the table of operations. Values that contradict the flags are an error, as in transformers. */
#ifndef QLORA_TRAIN_DEEPSPEED_H
#define QLORA_TRAIN_DEEPSPEED_H
#include "base/err.h"
#include "train/train.h"
#include <stddef.h>

/* Checks the file against o and changes o. What has no effect is said once on the log. */
int deepspeed_apply(const char *path, struct train_options *o, struct err *e);
int deepspeed_parse(const char *text, size_t n, const char *where, struct train_options *o, struct err *e);
#endif
