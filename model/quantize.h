/* model/quantize.h - a checkpoint with 4-bit or 8-bit projections in the layout of bitsandbytes (docs/FORMATS.md).
 *
 * Tensor by tensor and piece by piece: memory does not grow with the model. Only the seven projections of a layer are
 * quantised; everything else is stored in the configuration's type, a tied head not at all. */
#ifndef QLORA_MODEL_QUANTIZE_H
#define QLORA_MODEL_QUANTIZE_H
#include "base/err.h"
#include "nf4/nf4.h"

struct quantize_how { int bits; enum q4_type type; int nested; /* double quantisation */ int overwrite; };
/* Returns 0, or -1 with e; after a signal e->code is 128 + its number and nothing is left behind. */
int model_quantize(const char *from, const char *to, const struct quantize_how *how, struct err *e);
#endif
