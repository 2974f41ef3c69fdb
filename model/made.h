/* model/made.h - random weights, for tests, for trying a size, and for training from nothing.
 *
 * Matrices are normal with the configuration's initializer_range, norms 1, biases 0. Every number is a function of seed,
 * tensor name and index, so the same seed gives the same bytes, whatever the number of threads. */
#ifndef QLORA_MODEL_MADE_H
#define QLORA_MODEL_MADE_H
#include "base/err.h"
#include "base/dtype.h"
#include "model/tensors.h"

struct made {
    enum dtype type; /* of the numbers: the configuration's */
    uint64_t seed;
    void *level;
};
int made_open(struct made *m, const struct model_config *c, uint64_t seed, struct err *e);
void made_close(struct made *m);
/* Elements first .. first+n of a tensor; first is a multiple of 8. */
void made_fill(const struct made *m, const struct model_tensor *t, int64_t first, int64_t n, void *to);
#endif
