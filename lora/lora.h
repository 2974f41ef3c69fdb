/* lora/lora.h - low-rank adapters: which matrices, their shapes and start values, PEFT files, merging.   Hu et al. 2021 */
#ifndef QLORA_LORA_H
#define QLORA_LORA_H
#include "base/err.h"
#include "model/config.h"
#include <stddef.h>
#include <stdint.h>

enum proj { PROJ_Q, PROJ_K, PROJ_V, PROJ_O, PROJ_GATE, PROJ_UP, PROJ_DOWN, PROJ_COUNT };
extern const char *const proj_name[PROJ_COUNT];   /* "q_proj", .. */
extern const char *const proj_module[PROJ_COUNT]; /* "self_attn.q_proj", .., "mlp.down_proj" */
/* Shape of a projection: rows = out, cols = in. */
void proj_shape(const struct model_config *c, enum proj p, int64_t *rows, int64_t *cols);

/* Weights of the model that an adapter may hold whole, trained in full beside it (PEFT: modules_to_save). */
enum whole { WHOLE_EMBED, WHOLE_HEAD, WHOLE_NORM, WHOLES }; /* = enum outer_tensor of the model */

struct lora_config {
    int64_t rank;
    double alpha;      /* scale = alpha / rank, or alpha / sqrt(rank) with rslora */
    double dropout;
    int rslora;
    int dora;          /* a magnitude for every row (Liu et al. 2024): W' = m (W + scale B A) / |W + scale B A|, row by row */
    unsigned targets;  /* bit p = projection p */
    unsigned wholes;   /* bit w = enum whole */
};
float lora_scale(const struct lora_config *c);
int lora_check(const struct lora_config *c, struct err *e); /* every number in its range */
/* "q_proj,v_proj" or "all"; spaces and quotes around items are dropped. Unknown names: error listing the known ones. */
int lora_parse_targets(const char *text, unsigned *targets, struct err *e);
/* Likewise "embed_tokens,lm_head,norm". */
int lora_parse_wholes(const char *text, unsigned *wholes, struct err *e);

/* Adapter weights of a whole model in host memory: for each layer, for each target in the order of enum proj, A (R,in)
 * then B (out,R) then with dora m (out), fp32. */
struct lora {
    struct lora_config config;
    struct model_config model; /* shapes only; text is not owned */
    int64_t layer_floats;      /* floats of one layer */
    float *data;               /* [L * layer_floats]; may be NULL when only shapes are wanted */
    float *whole[WHOLES];      /* (V,D), (V,D), [D]: those of config.wholes, for lora_save; NULL before lora_hold */
};
/* Offsets (floats) of A, B and m of a projection inside a layer; -1 when it is not a target, or has no m. */
int64_t lora_offset_a(const struct lora *l, enum proj p);
int64_t lora_offset_b(const struct lora *l, enum proj p);
int64_t lora_offset_m(const struct lora *l, enum proj p);
/* Rows of a layer's targets before p, PROJ_COUNT: of all. With dora, where the scales of p lie in an array of all of them. */
int64_t lora_rows(const struct lora *l, enum proj p);
int lora_shapes(struct lora *l, const struct lora_config *c, const struct model_config *m, struct err *e); /* data NULL */
int lora_init(struct lora *l, const struct lora_config *c, const struct model_config *m, struct err *e); /* shapes + memory, zeroed */
void lora_start(struct lora *l, uint64_t seed); /* A uniform(+-1/sqrt(in)), B zero, m zero: the norms of W are filled in where W is */
int lora_hold(struct lora *l, struct err *e); /* memory for its whole weights */
int64_t lora_whole_count(const struct lora *l, enum whole w); /* numbers of one */
void lora_free(struct lora *l);

/* PEFT folder: adapter_config.json + adapter_model.safetensors (or .bin when reading; any float type). Extra information
 * in the config is checked, not ignored (bias is refused). Ranks and scales of their own that rank_pattern and
 * alpha_pattern give to some matrices are read as one rank, the largest, with zeros behind the smaller ones and the
 * scales inside B: the same function. Weights saved whole are named in l->config.wholes by loading, and stay in the file: they
 * belong into the model (model_wholes). Saving writes fp32, the tensors sorted by name, each file whole or not at all, weights
 * first. */
int lora_parse_config(const char *text, size_t n, const char *where, struct lora_config *c, struct err *e);
int lora_load(const char *dir, const struct model_config *m, struct lora *l, struct err *e);
int lora_save(const struct lora *l, const char *dir, const char *base_model, struct err *e);
/* The whole weights that the adapters of a comma list of folders hold. */
int lora_wholes(const char *dirs, unsigned *wholes, struct err *e);

/* A PEFT folder read matrix by matrix: what merging needs, without the whole adapter in memory. Opening checks every
 * name and shape against the model. */
struct cJSON;
struct ckpt;
struct ckpt_tensor;
struct lora_file {
    struct lora shape;        /* as it is read; data NULL */
    struct lora_config own;   /* as it is written: patterns aside */
    struct cJSON *json;       /* adapter_config.json */
    struct ckpt *c;
    int patterned;            /* some matrices have a rank or scale of their own */
};
int lora_file_open(const char *dir, const struct model_config *m, struct lora_file *f, struct err *e);
void lora_file_close(struct lora_file *f);
/* a (R,in), b (out,R), with dora m (out; else not looked at) of a target; a NaN or infinity is refused. */
int lora_file_read(const struct lora_file *f, int64_t layer, enum proj p, float *a, float *b, float *m, struct err *e);
/* The tensor in f->c that takes the place of the model's tensor of this name, or of w, or NULL. */
const struct ckpt_tensor *lora_file_saved(const struct lora_file *f, const char *name);
const struct ckpt_tensor *lora_file_whole(const struct lora_file *f, enum whole w);
/* -1 with e if some weights come whole: for those who only add. */
int lora_file_adds(const struct lora_file *f, const char *dir, struct err *e);

/* Merging (lora/merge.c): w[0..count) = elements first .. first+count of the row-major matrix W (out,in);
 * W += scale * B A, in fp32, every element summed over the rank in order: the bits do not depend on the pieces. */
void lora_merge(const struct lora_config *c, int64_t cols, const float *a, const float *b, int64_t first,
                int64_t count, float *w);
/* With dora a matrix is gone through twice. First, in order, what lora_merge left is added to squares[out], 0 at the start. Then
 * squares and m make the scales of rows, and what lora_merge leaves (the same) is multiplied by them. */
void lora_squares(int64_t cols, int64_t first, int64_t count, const float *w, double *squares);
void lora_scales(int64_t rows, const float *m, const double *squares, float *scales);
void lora_rescale(int64_t cols, const float *scales, int64_t first, int64_t count, float *w);
/* Steps through a comma list of adapter folders: the next one into dir, 0 at the end. */
int lora_next(const char **list, char *dir, size_t size);
/* l becomes one adapter that adds what l and more added: their ranks side by side, their scales inside B; whole weights are those
 * of either, `more` having the last word. One with dora does not only add: refused. */
int lora_append(struct lora *l, const struct lora *more, struct err *e);
#endif
