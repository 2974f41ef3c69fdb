/* model/batch.h - sequences to token rows in chunks, with everything the ops want to know per row, on the device.
 *
 * Rows behind the last one that predicts a counted label have no effect and are left out; so are sequences without any.
 * Row t predicts labels[t+1]. A batch is refilled for every step; its memory is taken once.
 *
 * A sequence that says which documents it is packed of falls apart into them: each becomes a sequence for the ops, so that
 * attention, the filter and the loss of one see nothing of another, and its losses are, to the bit, those it has alone.
 */
#ifndef QLORA_MODEL_BATCH_H
#define QLORA_MODEL_BATCH_H
#include "backend/backend.h"
#include "model/config.h"

struct batch_sequence {
    const int32_t *ids, *labels, *positions; /* [n]; labels NULL = every token counts; positions NULL = 0..n-1 */
    const int32_t *documents; /* [n] or NULL: equal numbers in a row are a document, 0 is padding */
    int64_t n;
    float weight; /* of each counted token in the gradient */
    float noise;  /* size of the noise on its embeddings */
    const int32_t *choices; /* [n_choices] or NULL: in place of labels, each is scored as what may follow the last token */
    int n_choices;
};
/* Rows that go through the pointwise ops and the products at once: whole sequences of a chunk, or a part of one. */
struct window {
    struct rows rows;               /* those of the chunk, if it has but one window */
    int64_t at;                     /* first row in the chunk */
    int seam;                       /* its sequence began in the window before: which such window of the chunk this is; else -1 */
    int goes_on;                    /* its sequence goes on in the next window */
};
struct chunk {
    struct rows rows;
    int n_windows;
    struct window *window;          /* [n_windows] */
    const int32_t *ids, *host_ids;  /* dev [N], and the same on the host */
    const float *noise;             /* dev [N], NULL when no sequence has any */
    int64_t n_loss, loss0;          /* counted rows, and where they start in the batch's nll */
    const int32_t *row, *label;     /* dev [n_loss] */
    const float *weight;            /* dev [n_loss] */
    float *nll;                     /* dev [n_loss] */
    int32_t *best;                  /* dev [n_loss], NULL unless asked for */
};
struct batch {
    int n_chunks;
    struct chunk *chunk;
    int64_t N, n_loss;
    int with_best;                  /* set before batch_fill: `best` is wanted */
    int64_t slice;                  /* likewise: struct rows' slice; a chunk then holds whole slices of the step, so that what is summed
                                     * together does not depend on the chunk's size. 0, or at least the longest sequence */
    float *nll;                     /* host [n_loss], after batch_losses */
    int32_t *best;                  /* host [n_loss], likewise: the likeliest id in each label's place */
    int64_t *loss_of;               /* host [n_seqs + 1]: sequence i's losses are nll[loss_of[i] .. loss_of[i+1]) */
    /* private */
    struct backend *be;
    int64_t max_rows, window_rows, max_seqs, max_tokens;
    int32_t *host, *dev;
    int32_t *starts;                /* of the chunks' sequences */
    struct window *window;          /* of all chunks */
    int32_t *window_starts;
    float *dev_nll;
    int32_t *dev_best;
};
/* max_rows per chunk, window_rows per window, in all max_tokens rows of max_seqs sequences (documents, where there are). */
int batch_open(struct batch *b, struct backend *be, int64_t max_rows, int64_t window_rows, int64_t max_tokens, int64_t max_seqs,
               struct err *e);
int64_t batch_cost(int64_t max_tokens); /* device bytes batch_open takes */
void batch_close(struct batch *b);
/* How sequences fall into chunks, one after the other: greedily by rows, or in whole slices. */
struct chunking {
    int64_t capacity, slice;            /* rows of a chunk; of a slice, or 0 */
    int64_t rows, slices, in_slice;     /* of the chunk at hand */
};
/* Takes a sequence of so many rows; returns whether it begins a chunk. */
int chunk_begins(struct chunking *c, int64_t rows);
/* Fills the batch and sends it to the device. */
void batch_fill(struct batch *b, const struct model_config *c, const struct batch_sequence *s, int64_t n);
/* Rows that a sequence takes: 0 if nothing is counted; and its documents that take any. */
int64_t batch_rows(const struct batch_sequence *s, int64_t *documents);
/* Whether labels[t] counts, t >= 1: a row of its own document predicts it. */
static inline int batch_counts(const struct batch_sequence *s, int64_t t) {
    return s->labels[t] >= 0 && (!s->documents || s->documents[t] == s->documents[t - 1]);
}
/* Brings nll, and best, to the host (waits). */
int batch_losses(struct batch *b, struct err *e);
#endif
