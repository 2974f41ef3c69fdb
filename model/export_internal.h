/* model/export_internal.h - one export at work: reading and merging (export_read.c), encoding (export_write.c), and the
 * order of it all (export.c). */
#ifndef QLORA_MODEL_EXPORT_INTERNAL_H
#define QLORA_MODEL_EXPORT_INTERNAL_H
#include "checkpoint/checkpoint.h"
#include "lora/lora.h"
#include "model/export.h"
#include "model/made.h"
#include "model/tensors.h"

enum {
    EXPORT_PIECE = 2 << 20, /* elements read at once: large for a disk, small for memory; a multiple of all block sizes */
    EXPORT_ADAPTERS = 16
};

struct job {
    struct model_config config;
    const struct export_how *how;
    enum dtype type; /* written, and what codes are made from */
    struct ckpt *in;
    const struct made *made; /* in its place: numbers that are made */
    struct lora_file adapter[EXPORT_ADAPTERS];
    int adapters, untied; /* untied: an adapter brings an embedding or a head of its own to a model that tied them */
    struct ckpt_writer *out;
    void *piece;    /* [EXPORT_PIECE] elements of the merged tensor in `type` */
    float *wide;    /* [EXPORT_PIECE] the same in fp32, when they have to be computed */
    uint8_t *codes; /* [EXPORT_PIECE] what a piece becomes, or came from */
    int64_t read_bytes, all_bytes, write_bytes;
    int64_t ahead_tensor, ahead_at, ahead_bytes; /* how far the system was asked to read ahead: element of a tensor, bytes in all */
    double start;
    struct err *e;
};

struct source { /* one tensor on its way in */
    const struct model_tensor *m;
    const struct ckpt *from; /* the model's, or that of an adapter that holds the tensor whole */
    const struct ckpt_tensor *t;
    struct ckpt_quant q; /* bits 0: plain */
    float *scale;        /* [blocks] or [rows] of a quantised matrix, restored to fp32 */
    int64_t cols;
    const struct lora_config *config[EXPORT_ADAPTERS]; /* of the adapters that change it */
    float *a[EXPORT_ADAPTERS], *b[EXPORT_ADAPTERS];
    float *scales[EXPORT_ADAPTERS]; /* [rows] of one with magnitudes, else NULL */
    int adapters;
};
/* Checks that the tensor is there in its shape and adds its bytes to j->all_bytes. */
int source_check(struct job *j, const struct model_tensor *m, const char *from);
int source_open(struct job *j, const struct model_tensor *m, struct source *s);
void source_close(struct source *s);
/* Elements first .. first+count <= EXPORT_PIECE, merged and rounded, into j->piece. Polls for signals. */
int source_read(struct job *j, const struct source *s, int64_t first, int64_t count);
int source_not_finite(struct job *j, const struct source *s, int64_t element);

/* Declares a tensor as it will be written; then writes it, from s. */
int export_declare(struct job *j, const struct model_tensor *m);
int export_tensor(struct job *j, const struct model_tensor *m, const struct source *s);
#endif
