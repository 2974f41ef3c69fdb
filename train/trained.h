/* train/trained.h - which weights of the model a run trains: all (full), or layers and modules of them (freeze). */
#ifndef QLORA_TRAIN_TRAINED_H
#define QLORA_TRAIN_TRAINED_H
#include "train/params.h"
#include "train/train.h"

/* freeze_trainable_layers counts from the end, if negative from the beginning; modules are those under a layer, or all; extra
 * ones are embed_tokens, norm and (where it is not tied) lm_head. The fields of `how` that describe this; -1 with e for a
 * name that the model has not, or when nothing is left to train. */
int trained_weights(const struct train_options *o, const struct model_config *c, struct params_how *how, struct err *e);
#endif
