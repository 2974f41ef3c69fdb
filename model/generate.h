/* model/generate.h - one token after another: a cache of keys, values and filter rows, and sampling.
 *
 *     struct generator g;  generator_open(&g, m, lora, adapters, 4096, e);
 *     generator_feed(&g, prompt, n, e);                      logits of the last token are in g.logits (host, fp32)
 *     int32_t id = sample_next(&s, g.logits, valid, history, n);
 *     generator_feed(&g, &id, 1, e);  ...
 */
#ifndef QLORA_MODEL_GENERATE_H
#define QLORA_MODEL_GENERATE_H
#include "base/err.h"
#include "model/block.h"

struct generator {
    struct model *m;
    struct backend *be;
    const struct lora *lora;
    struct pages *adapters;
    int64_t capacity, past, rows; /* tokens the cache holds, has, and takes in one go */
    int64_t document;             /* first key that new rows may see */
    struct layer_cache *layer;    /* [L] */
    void *memory;
    float *scales;                /* with DoRA: [L * lora_rows], made by the first piece */
    int scaled;
    struct saved saved;
    struct scratch scratch;
    struct mat x, y, out;         /* (rows, D), (rows, D), (1, V) */
    int32_t *host, *dev;          /* ids, position, first, start of a piece */
    float *logits;                /* [V] */
    void *raw;                    /* logits as the backend stores them */
};
/* adapters: pages of lora->layer_floats per layer, or NULL. */
int generator_open(struct generator *g, struct model *m, const struct lora *lora, struct pages *adapters, int64_t capacity, struct err *e);
void generator_close(struct generator *g);
void generator_reset(struct generator *g);
/* Runs n tokens behind those already in the cache. past + n must not exceed capacity. */
int generator_feed(struct generator *g, const int32_t *ids, int64_t n, struct err *e);

struct sampling {
    int greedy;
    double temperature, top_p, repetition_penalty;
    int64_t top_k;                /* 0 = all */
    uint64_t seed, draws;         /* draws counts calls */
};
/* Next id among 0 .. valid-1. logits is changed (penalty). Greedy ties: the lowest id. -1 if no logit is finite. */
int32_t sample_next(struct sampling *s, float *logits, int64_t valid, const int32_t *history, int64_t n_history, struct err *e);
#endif
