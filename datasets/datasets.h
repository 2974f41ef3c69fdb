/* datasets/datasets.h - data files to training sequences, and the order in which a run sees them.
 *
 * dataset_info.json -> records (streamed) -> messages -> template, masking, cutoff -> packing -> sequences.
 * Behaviour follows LLaMA-Factory v0.5.0 (OLD) or its present form (NEW), token for token; docs/DATA.md lists the places
 * where we do better. Sequences are kept in memory up to a limit, then in an unlinked temporary file, so a data
 * set need not fit in memory.
 *
 *     struct dataset *train = NULL, *eval = NULL;
 *     if (data_load(&cfg, tok, &train, &eval, &report, e)) ...
 *     struct sequence s;  data_get(train, i, &s, e);
 */
#ifndef QLORA_DATASETS_H
#define QLORA_DATASETS_H
#include "base/err.h"
#include "tokenizer/tokenizer.h"
#include <stdint.h>

enum { IGNORE_LABEL = -100 };
enum data_stage { STAGE_SFT, STAGE_PT }; /* more with the other stages */
enum data_mix { MIX_CONCAT, MIX_UNDER, MIX_OVER, MIX_ONCE };

struct data_config {
    const char *dataset;      /* comma list of names in dataset_info.json, or file paths (.json .jsonl .csv .txt, each perhaps with .gz) */
    const char *dataset_dir;  /* default "data" */
    const char *eval_dataset; /* or NULL */
    int eval_on_each;         /* its data sets stay apart: data_parts */
    enum data_stage stage;
    int compat_new;           /* 0: OLD template and truncation, 1: NEW */
    int64_t cutoff_len;
    int sft_packing;          /* OLD: concatenate and cut */
    int packing;              /* NEW: bin packing; neat_packing implies it. 1 asked for, 0 refused, -1 not given: stage sft
                                 does without, stage pt packs (into blocks one token longer than when asked for) */
    int neat_packing;
    int train_on_prompt, mask_history;
    int prompts;              /* for generation: all before the last answer is one masked prompt, nothing is packed */
    int64_t max_samples;      /* 0 = all */
    int glance;               /* 1: files are not compared with file_sha1; 2: and nothing is said of them */
    double val_size;          /* 0, (0,1) a fraction, > 1 a count */
    enum data_mix mix;
    const char *interleave_probs; /* comma list or NULL */
    int64_t num_workers;      /* preprocessing_num_workers: changes packing groups only; 0 = 1 */
    int64_t group_size;       /* preprocessing_batch_size, 0 = 1000 */
    uint64_t seed;
    const char *default_system; /* or NULL */
    int allow_outside;        /* file_name may leave dataset_dir */
    int64_t buffer_size;      /* of a stream: records that are shuffled among each other; 0 = the order of the files */
    int64_t memory_limit;     /* bytes of sequences kept in memory before a temporary file is used; 0 = default */
    const char *temp_dir;     /* for that file; NULL = TMPDIR or /tmp */
    const char *tokenized_path; /* folder of a tokenised data set; NULL: none */
};

struct sequence {            /* pointers live until the dataset is freed */
    const int32_t *ids, *labels; /* [n]; labels aligned with ids (the model shifts), IGNORE_LABEL = not counted */
    const int32_t *positions;    /* [n] with packing, else NULL = 0..n-1 */
    const int32_t *documents;    /* [n] with packing: the attention_mask column (neat: k for the k-th record, 0 pads; else 1) */
    int64_t n;
};

struct data_report { /* what happened to the training part, for the log and the tests; of whole val_size data in OLD, which
                        splits sequences and not records. cut_* and double_eod count turns */
    int64_t records, sequences, tokens, labelled_tokens, longest;
    int64_t invalid_role, invalid_count, dropped_invalid, dropped_empty, dropped_lengthy;
    int64_t cut_source, cut_target, cut_both, skipped_turns, over_cutoff, remainder_tokens;
    int64_t double_eod; /* answers that already hold an <eod> */
    int64_t cut_record; /* texts of stage pt and records of ids cut at cutoff_len */
    int64_t multi_turn; /* records of several turns */
    int64_t vanished;   /* OLD: conversations without messages, gone before records are counted */
    int64_t eval_sequences;
};

struct dataset;
/* *eval stays NULL when there is neither eval_dataset nor val_size. Where tokenized_path is saved already, it is read in place of
 * the data sets. Messages (checksums, first example) go to the log. */
int data_load(const struct data_config *c, const struct tok *t, struct dataset **train, struct dataset **eval,
              struct data_report *r, struct err *e);
/* Tokenised data sets (datasets/saved.c, docs/FORMATS.md). data_save writes what data_load made, and the records it was made of, to
 * c->tokenized_path, whole or not at all; it must be new or empty. */
int data_is_saved(const char *folder);
int data_save(const struct data_config *c, const struct tok *t, const struct dataset *train, const struct dataset *eval, int64_t records,
              struct err *e);
/* The data sets of a list, each loaded by itself; data_part tells the name of each and where it lies. data_parts is 0 of a data
 * set that was not loaded so. */
int data_load_parts(const struct data_config *c, const struct tok *t, const char *names, struct dataset **out,
                    struct data_report *r, struct err *e);
int data_parts(const struct dataset *d);
const char *data_part(const struct dataset *d, int k, int64_t *first, int64_t *n);
int64_t data_count(const struct dataset *d);
/* One thread at a time. Of sequences that wait in a file only those asked for last stay in memory. */
int data_get(const struct dataset *d, int64_t i, struct sequence *s, struct err *e);
int64_t data_tokens(const struct dataset *d);
int64_t data_longest(const struct dataset *d);
/* SHA-1 over all sequences in file order: identifies the data in a training checkpoint. */
int data_hash(const struct dataset *d, char hex[41], struct err *e);
void data_free(struct dataset *d);

/* Sequences as they come (datasets/streaming.c): files of any size, read while the run goes on, again and again, shuffled
 * through a buffer. Uses c->buffer_size; val_size is a count of records at the beginning. *first are the sequences of the
 * first records, to look at; r is about them. *eval as with data_load. The caller frees both. */
struct data_stream;
struct data_stream *data_stream_open(const struct data_config *c, const struct tok *t, struct dataset **first,
                                     struct dataset **eval, struct data_report *r, struct err *e);
/* The next n sequences, none longer than cutoff_len; *out lives until the next call and is the stream's. */
int data_stream_take(struct data_stream *s, int64_t n, const struct dataset **out, struct err *e);
/* Passes n sequences over: reads and encodes them, as there is no other way to know where they end. */
int data_stream_skip(struct data_stream *s, int64_t n, struct err *e);
int64_t data_stream_pass(const struct data_stream *s); /* over the files, that the last sequence taken belongs to; from 0 */
/* SHA-1 over files, their sizes and the settings: identifies the data in a training checkpoint. */
int data_stream_hash(const struct data_stream *s, char hex[41], struct err *e);
void data_stream_close(struct data_stream *s);

/* How many records the training data hold, without reading them: from the first `records` or `bytes` of each set. */
struct data_sample {
    int64_t records; /* max_samples of a data_load that reads the first ones alone; 0: the sets are small, and were counted */
    double scale;    /* records in all over those */
    double all;      /* records in all */
};
int data_sample(const struct data_config *c, int64_t records, int64_t bytes, struct data_sample *out, struct err *e);

/* Order and grouping. A step is one optimizer update: up to G micro-batches of up to B sequences. Everything is a
 * function of the configuration and the step number, so a run resumes anywhere. */
struct sampler_config {
    int64_t count;          /* sequences */
    int64_t batch, accumulate; /* B, G */
    double epochs;          /* num_train_epochs, used when max_steps <= 0 */
    int64_t max_steps;
    uint64_t seed;
    int shuffle, drop_last;
    int group_by_length;    /* needs lengths */
    const int32_t *lengths; /* [count] or NULL; copied */
    int compat_new;         /* 1: a short last update closes each epoch; 0: left-over micro-batches join the next epoch's */
};
struct sampler;
struct sampler *sampler_open(const struct sampler_config *c, struct err *e);
void sampler_close(struct sampler *s);
int64_t sampler_total_steps(const struct sampler *s);
int64_t sampler_steps_per_epoch(const struct sampler *s);
struct sampler_step {
    int64_t sequences;       /* in this step */
    const int64_t *index;    /* [sequences] in order; lives until the next call */
    int64_t micro_batches;
    const int64_t *start;    /* [micro_batches + 1] into index */
    double epoch;            /* epochs done after this step, as logged */
};
/* step = 0 .. total-1 */
int sampler_get(struct sampler *s, int64_t step, struct sampler_step *out, struct err *e);
#endif
