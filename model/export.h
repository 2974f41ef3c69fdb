/* model/export.h - a checkpoint written anew: adapters merged, another type, other shards, or 4-bit or 8-bit projections in
 * the layout of bitsandbytes (docs/FORMATS.md).
 *
 * Tensor by tensor and piece by piece, so memory does not grow with the model: about 40 MB, 16 of which wait for the thread
 * that writes, the scales of one matrix (1/16 of its elements, in fp32) and A and B of one matrix for each adapter. The
 * system reads ahead, all cores encode, and a thread writes, at the same time. A projection is
 *
 *     round(W + Σ scale_i B_i A_i)      sums in fp32, rounded once to the type written
 *
 * and codes are made from the rounded values, so that exporting to 4 bits gives the bytes of exporting first and
 * quantising then. Weights that are stored quantised are decoded first. Only the seven projections of a layer are
 * quantised, and the localized filter if that is asked for; a tied head is not stored.
 *
 *     struct export_how how = {.type = -1, .adapters = "out,out2", .shard_bytes = 5000000000};
 *     model_export("Yuan2-2B", "merged", &how, e);
 */
#ifndef QLORA_MODEL_EXPORT_H
#define QLORA_MODEL_EXPORT_H
#include "base/err.h"
#include "model/config.h"
#include "nf4/nf4.h"

struct export_how {
    int type;                /* enum dtype: F32, BF16 or F16; -1 = the configuration's */
    int bits;                /* 4, 8: of the projections; 0 = as all others */
    enum q4_type q_type;
    int nested;              /* double quantisation */
    int filter_4bit;         /* with bits 4: the taps of the localized filter, too, each as a matrix of its own (docs/FORMATS.md) */
    const char *adapters;    /* comma list of PEFT folders, merged in this order; NULL: none */
    int64_t shard_bytes;     /* a tensor that is larger has a file of its own; 0 = 5 GB */
    int original;            /* refuse a source that is quantised already */
    int overwrite;           /* into a folder that holds something */
};
/* Everything is written to a folder DIR/.tmp-export.PID and moved up when it is complete, config.json last. Returns 0, or -1
 * with e; after a signal e->code is 128 + its number. A failure leaves DIR as it was. */
int model_export(const char *from, const char *to, const struct export_how *how, struct err *e);
/* A checkpoint with random weights (model/made.h) and its config.json, in dir, which exists and is the caller's to remove after a
 * failure. Of `how` bits, q_type, nested and filter_4bit count; NULL: plain. The bytes are those of a plain one, quantised. */
int model_new(const struct model_config *c, const char *dir, uint64_t seed, const struct export_how *how, struct err *e);
#endif
