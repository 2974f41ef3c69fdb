/* model/tensors.h - every tensor of a checkpoint, with name and shape, in the order in which files are written. */
#ifndef QLORA_MODEL_TENSORS_H
#define QLORA_MODEL_TENSORS_H
#include "model/config.h"

enum tensor_kind { TENSOR_PROJ, TENSOR_MATRIX, TENSOR_NORM, TENSOR_BIAS }; /* PROJ: one of the seven that are quantised */
struct model_tensor {
    char name[128];
    enum tensor_kind kind;
    int rank;
    int64_t shape[4], count;
};
int64_t model_tensor_count(const struct model_config *c); /* lm_head only when it is not tied */
void model_tensor_at(const struct model_config *c, int64_t i, struct model_tensor *t);
int64_t model_parameters(const struct model_config *c);
#endif
