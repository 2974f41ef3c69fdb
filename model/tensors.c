/* model/tensors.c - see tensors.h. Names come from model/layout.c. */
#include "model/tensors.h"
#include "model/model.h"
#include <stdio.h>

/* The two taps of a convolution are one tensor in files. */
static const enum layer_tensor in_file[] = {LT_Q,       LT_K,     LT_V,       LT_O,       LT_GATE,
                                            LT_UP,      LT_DOWN,  LT_CONV1_0, LT_CONV1_B, LT_CONV2_0,
                                            LT_CONV2_B, LT_NORM1, LT_NORM_F,  LT_NORM2};
enum { PER_LAYER = sizeof in_file / sizeof *in_file };

int64_t model_tensor_count(const struct model_config *c) {
    return c->L * PER_LAYER + (c->tied ? 2 : 3);
}

static void set_shape(struct model_tensor *t, enum tensor_kind kind, int rank, int64_t a, int64_t b) {
    t->kind = kind;
    t->rank = rank;
    t->shape[0] = a, t->shape[1] = b, t->shape[2] = 2,
    t->shape[3] = 1; /* a convolution has two taps over time */
    t->count = a * (rank > 1 ? b : 1) * (rank > 2 ? 2 : 1);
}

static void set_outer(const struct model_config *c, enum outer_tensor o, struct model_tensor *t) {
    snprintf(t->name, sizeof t->name, "%s", outer_names[o]);
    set_shape(t, o == OT_NORM ? TENSOR_NORM : TENSOR_MATRIX, o == OT_NORM ? 1 : 2, o == OT_NORM ? c->D : c->V,
              c->D);
}

void model_tensor_at(const struct model_config *c, int64_t i, struct model_tensor *t) {
    int64_t layer = (i - 1) / PER_LAYER, rows, cols;
    if (i == 0) return set_outer(c, OT_EMBED, t);
    if (layer >= c->L) return set_outer(c, i == 1 + c->L * PER_LAYER ? OT_NORM : OT_HEAD, t);
    enum layer_tensor k = in_file[(i - 1) % PER_LAYER];
    model_tensor_name(t->name, layer, k);
    if (k <= LT_DOWN) {
        proj_shape(c, (enum proj)k, &rows, &cols);
        set_shape(t, TENSOR_PROJ, 2, rows, cols);
    } else if (k == LT_CONV1_0)
        set_shape(t, TENSOR_MATRIX, 4, c->D / 2, c->D);
    else if (k == LT_CONV2_0)
        set_shape(t, TENSOR_MATRIX, 4, c->D, c->D / 2);
    else if (k == LT_CONV1_B)
        set_shape(t, TENSOR_BIAS, 1, c->D / 2, 0);
    else if (k == LT_CONV2_B)
        set_shape(t, TENSOR_BIAS, 1, c->D, 0);
    else
        set_shape(t, TENSOR_NORM, 1, c->D, 0);
}

int64_t model_parameters(const struct model_config *c) {
    int64_t n = 0, layers = 0;
    struct model_tensor t;
    for (int64_t i = 1; i <= PER_LAYER; i++) {
        model_tensor_at(c, i, &t);
        layers += t.count;
    }
    for (int64_t i = c->L * PER_LAYER; ++i < model_tensor_count(c); n += t.count) model_tensor_at(c, i, &t);
    model_tensor_at(c, 0, &t);
    return n + t.count + layers * c->L;
}
