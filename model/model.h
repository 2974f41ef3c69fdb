/* model/model.h - a model in backend memory: layer pages, embedding, head; loading; the block; generation.
 *
 * One layer is one page (pager/pager.h): its tensors lie in one block in the order of enum layer_tensor, so that a layer
 * moves in one copy. Formats are the same in all layers.
 *
 *     struct model m;  model_load(&m, be, dir, &how, e);
 *     void *w = pages_get(m.layers, l, PAGE_READ);
 *     struct layer L;  model_layer(&m, l, w, &L);           views into the page
 */
#ifndef QLORA_MODEL_H
#define QLORA_MODEL_H
#include "backend/backend.h"
#include "lora/lora.h"
#include "model/config.h"
#include "pager/pager.h"

enum layer_tensor {
    LT_Q, LT_K, LT_V, LT_O, LT_GATE, LT_UP, LT_DOWN,   /* = enum proj */
    LT_CONV1_0, LT_CONV1_1, LT_CONV2_0, LT_CONV2_1,    /* W0 (previous row), W1 (this row) of the two convolutions */
    LT_CONV1_B, LT_CONV2_B,
    LT_NORM1, LT_NORM_F, LT_NORM2,                     /* input_layernorm, lf_gate.output_layernorm, post_attention_layernorm */
    LT_COUNT
};
enum { MATRICES = LT_CONV2_1 + 1 }; /* may be held in few bits; what follows them is fp32 */
enum outer_tensor { OT_EMBED, OT_HEAD, OT_NORM, OT_COUNT }; /* OT_HEAD has no bytes when tied */

struct tensor_place { size_t offset, bytes; int64_t rows, cols; };
struct layout { /* offsets inside a page; vectors are (1, n) */
    enum weight_format proj, conv;  /* conv also covers biases' type rule: norms and biases are always fp32 */
    int q_block, q_nested;          /* of W_Q4 */
    struct tensor_place t[LT_COUNT];
    /* parts of a quantised matrix, relative to t[p].offset: W_INT8 scale; W_Q4 absmax (or its codes), nested, tables */
    size_t scale[MATRICES], nested[MATRICES], tables[MATRICES];
    size_t bytes;
};
void layout_layer(const struct model_config *c, enum weight_format proj, enum weight_format conv, int q_block,
                  int q_nested, struct layout *l);

struct layer { /* views into one layer page */
    struct weight proj[PROJ_COUNT], conv1[2], conv2[2];
    const float *conv1_b, *conv2_b, *norm1, *norm_f, *norm2;
};

struct model {
    struct model_config config;
    struct backend *be;
    struct backend_info info;        /* of be, as asked when the model was opened */
    struct layout lay;
    struct pages *layers;            /* L pages */
    float (*q_offset)[MATRICES];   /* [L] nested offsets of double-quantised scales */
    struct tensor_place outer[OT_COUNT];
    enum weight_format outer_format; /* of embedding and head; the norm is fp32 */
    struct pages *outer_page;        /* one page */
    int untied;                      /* the configuration ties the head to the embedding, an adapter has them apart */
    int trainable_weights;           /* they are trained themselves, or copies of what is */
};

struct model_how { /* how a checkpoint is to be held */
    int quantization_bit;            /* 0 = as stored; 4, 8 = quantise on load unless stored so already */
    enum q4_type q_type;
    int q_double;
    int filter_4bit;                 /* the localized filter's convolutions in 4 bits, too, if they are not stored so already;
                                      * bitsandbytes leaves them as they are */
    int fp32;                        /* all weights in fp32, to be trained in place (full fine-tuning on the CPU) */
    int half;                        /* all matrices in bf16, to be trained in place (pure_bf16) or as copies of fp32 masters (on cards) */
    int64_t resident_layers;         /* pages on the device, the rest is streamed; < 0 = all */
    int64_t disk_layers;             /* of the others so many live in a file in page_dir */
    const char *page_dir;
    unsigned wholes;                 /* an adapter holds these whole (enum whole): embedding and head are apart then, whatever
                                      * the configuration says, and fp32 */
    int outer_on_host;               /* embedding, head and norm stay in host memory: the engine fetches what it needs */
};
/* Reads config.json and decides the formats without reading weights: enough for a plan. *c is the opened checkpoint. */
struct ckpt;
int model_open(struct model *m, struct backend *be, const char *dir, const struct model_how *how, struct ckpt **c,
               struct err *e);
/* The same from a configuration alone, for estimates. c stays the caller's; its text is not taken over. */
void model_sketch(struct model *m, struct backend *be, const struct model_config *c, const struct model_how *how);
/* Random weights in the form they are held in, made in no time: for benchmarks. Allocates as model_load does. */
int model_random(struct model *m, const struct model_how *how, uint64_t seed, struct err *e);
/* Allocates the pages and streams the weights in. */
int model_load(struct model *m, const struct model_how *how, const struct ckpt *c, struct err *e);
/* Adds adapters (a comma list of PEFT folders) to the loaded weights: in fp32, rounded once to the pages' type. Quantised
 * projections are refused. */
int model_merge(struct model *m, const char *adapters, struct err *e);
/* The whole weights of an adapter (a PEFT folder) in the place of the model's own, which was opened for them. */
int model_wholes(struct model *m, const char *adapter, struct err *e);
void model_free(struct model *m);
void model_layer(const struct model *m, int64_t l, void *page, struct layer *out);
struct weight model_embed(const struct model *m, void *outer);
struct weight model_head(const struct model *m, void *outer);
const float *model_norm(const struct model *m, void *outer);
/* The part of the outer page that the head reads: offset and bytes. */
void model_head_place(const struct model *m, size_t *offset, size_t *bytes);
/* Page families of the model as the plan counts them. */
void model_pages(const struct model *m, const struct model_how *how, struct pages_config *layers, struct pages_config *outer);
/* The checkpoint's name of a layer tensor's parts ("model.layers.3.self_attn.q_proj.weight"; both taps of a convolution
 * share a name). */
void model_tensor_name(char buf[128], int64_t layer, enum layer_tensor t);
/* The name of one tap (LT_CONV1_0 .. LT_CONV2_1) in checkpoints whose filter is stored in 4 bits: a matrix of its own,
 * "model.layers.3.self_attn.lf_gate.conv1.0.weight". Only this program knows it. */
void model_tap_name(char buf[128], int64_t layer, enum layer_tensor t);
extern const char *const outer_names[OT_COUNT];
/* Part of a tensor as fp32: elements first .. first+n of tensor `which` (enum layer_tensor) of a layer, or (enum outer_tensor)
 * of layer -1. From the pages, or from a checkpoint; context is the model, or a struct model_file. */
typedef int model_reader(void *context, int64_t layer, int which, int64_t first, int64_t n, float *to, struct err *e);
model_reader model_read_pages, model_read_file;
struct model_file { const struct model *m; const struct ckpt *c; };
/* Where a tensor lies in its layer's page, or in the outer page, and the bytes of its numbers: 4, or 2 of bf16. */
const struct tensor_place *model_place(const struct model *m, int64_t layer, int which, size_t *number_bytes);
/* Writes the weights as a checkpoint (safetensors, config's type), the values being those of a reader. */
int model_save(const struct model *m, model_reader *read, void *context, const char *dir, int64_t shard_bytes, struct err *e);
#endif
