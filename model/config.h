/* model/config.h - what config.json says, checked. Architecture is data: the block reads these fields. */
#ifndef QLORA_MODEL_CONFIG_H
#define QLORA_MODEL_CONFIG_H
#include "base/dtype.h"
#include "base/err.h"
#include "nf4/nf4.h"
#include <stdint.h>

struct model_config {
    int64_t D, L, H, K, F, V;    /* hidden, layers, heads, head size D/H, ffn, vocabulary */
    float eps;                   /* rms_norm_eps */
    int tied;                    /* the head is the embedding matrix */
    int64_t max_positions;
    int document_mask;           /* attention is cut after <eod>: !use_flash_attention && reset_attention_mask */
    int64_t eod, pad;            /* token ids; pad < 0: none */
    double init_range;           /* standard deviation of fresh weights */
    enum dtype stored;           /* torch_dtype: type that merged or trained weights are saved in */
    /* quantization_config of a bitsandbytes checkpoint; bits = 0: plain */
    int q_bits;
    enum q4_type q_type;
    int q_double;
    char *text;                  /* the JSON text as read, for writing it back; sys_free by model_config_free */
};

/* DIR/config.json, or the path of a .json file. Every number is bounded and checked against the others here. */
int model_config_read(const char *dir, struct model_config *c, struct err *e);
int model_config_parse(const char *text, size_t n, const char *where, struct model_config *c, struct err *e);
void model_config_free(struct model_config *c);
/* The text of a published configuration ("yuan2-2b", "yuan2-51b", "yuan2-102b", "yuan2-tiny"), NULL if unknown;
 * names: NULL-terminated list. */
const char *model_config_named(const char *name);
extern const char *const model_config_names[];
/* Either: a published configuration, a config.json, or a folder with one. */
int model_config_find(const char *name, struct model_config *c, struct err *e);
/* c->text with members replaced ("hidden_size=512"; values are JSON, or bare words taken as strings) and, with q_bits set
 * in `quantised`, quantization_config added (removed when quantised is NULL). sys_free. */
char *model_config_text(const struct model_config *c, const char *const *overrides, int n_overrides,
                        const struct model_config *quantised, struct err *e);
#endif
