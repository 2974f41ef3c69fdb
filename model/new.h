/* model/new.h - a checkpoint with random weights, for tests and for training from nothing.
 *
 * Matrices are normal with the configuration's initializer_range, norms 1, biases 0. Every number is a function of seed,
 * tensor name and index, so the same seed gives the same bytes, whatever the number of threads. */
#ifndef QLORA_MODEL_NEW_H
#define QLORA_MODEL_NEW_H
#include "base/err.h"
#include "model/config.h"

/* Writes weights (type c->stored, shards of 5 GB) and config.json to dir, which exists. */
int model_new(const struct model_config *c, const char *dir, uint64_t seed, struct err *e);
#endif
