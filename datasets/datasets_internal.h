/* datasets/datasets_internal.h - the stages behind data_load, each in its file:
 *
 *   catalog.c  --dataset names -> sources: files, format, columns, tags          (dataset_info.json)
 *   records.c  a file -> records, one at a time, as JSON text
 *   convert.c  a record -> a conversation, or the reason why it is dropped
 *   tools.c    function calls and tool lists -> text
 *   encode.c   a conversation -> ids and labels: template, masking, cutoff
 *   store.c    rows of ids and labels: memory first, then a mapped file
 *   mix.c      which rows, in which order: repeats, interleaving, validation split
 *   pack.c     rows -> blocks
 *   sample.c   how many records there are, from the first ones
 *   load.c     runs them in this order and reports
 *   parts.c    several data sets that stay apart
 *   saved.c    sequences on disk, in place of all of these
 *   feed.c     records of all data sets, one after the other or interleaved
 *   streaming.c  runs them on groups of records while training goes on
 *
 * Every record of a file is encoded once, into a row; everything after encode.c moves only positions of rows.
 */
#ifndef QLORA_DATASETS_INTERNAL_H
#define QLORA_DATASETS_INTERNAL_H
#include "base/json.h"
#include "base/rng.h"
#include "base/str.h"
#include "datasets/datasets.h"

enum { RECORD_MAX_BYTES = 16 << 20, CUTOFF_MAX = 1 << 24 };

/* ---- records.c ---- */
enum shape { SHAPE_UNKNOWN, SHAPE_ARRAY, SHAPE_LINES, SHAPE_CSV, SHAPE_TEXT, SHAPE_ROWS /* CSV without a header */ };

struct record { /* text is valid until the next record is read */
    const char *path, *text;
    size_t n;
    int64_t number, line, column; /* from 1; where the record begins, column in characters */
    int verbatim; /* text stands in the file as it is (JSON), so that positions inside it mean something */
};
struct reader;
/* The shape from the name's ending; SHAPE_UNKNOWN (with e) for a file that cannot be read. */
enum shape reader_shape(const char *path, struct err *e);
struct reader *reader_open(const char *path, enum shape shape, struct err *e);
void reader_close(struct reader *r);
int reader_next(struct reader *r, struct record *out, struct err *e); /* 1, 0 at the end, -1 */
double reader_done(const struct reader *r);                           /* share of the file read, 0..1 */
/* Fills e with "PATH:LINE:COLUMN: record N: ...", the position being `at` bytes into the record. Returns -1.
 * */
int record_error(const struct record *r, size_t at, struct err *e, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
struct cJSON *record_parse(const struct record *r, struct err *e);
/* "instruction", "input", "output" into buf, shortened when there are many. */
const char *key_list(char *buf, size_t size, const struct cJSON *object);

/* ---- catalog.c ---- */
enum format { FORMAT_ALPACA, FORMAT_SHAREGPT, FORMAT_IDS };
enum column {
    COL_PROMPT,
    COL_QUERY,
    COL_RESPONSE,
    COL_HISTORY,
    COL_MESSAGES,
    COL_SYSTEM,
    COL_TOOLS,
    COL_COUNT
};
enum tag {
    TAG_ROLE,
    TAG_CONTENT,
    TAG_USER,
    TAG_ASSISTANT,
    TAG_OBSERVATION,
    TAG_FUNCTION,
    TAG_SYSTEM,
    TAG_COUNT
};
extern const char *const column_names[COL_COUNT + 1]; /* as in dataset_info.json, NULL at the end */

struct source {   /* one data set. Strings are owned by the catalog's JSON or literal, unless said */
    char *name;   /* owned */
    char **files; /* owned, in order */
    int file_count;
    enum format format;
    const char *column[COL_COUNT]; /* key in the records, NULL = none */
    const char *tag[TAG_COUNT];    /* NULL = none */
    const char *sha1;              /* or NULL */
    int64_t samples;               /* num_samples, 0 = all */
    int openai;                    /* formatting openai: messages of the role tool in a row are one */
    int guessed;                   /* the format comes from the first record */
};
struct catalog {
    struct cJSON *info;
    struct source *source;
    int count;
};
int catalog_open(struct catalog *k, const struct data_config *c, const char *names, struct err *e);
void catalog_close(struct catalog *k);

/* ---- convert.c ---- */
enum drop { /* why a record gives no sequence */
            DROP_NONE,
            DROP_ROLE,     /* "Invalid role tag", perhaps with DROP_COUNT's complaint too */
            DROP_COUNT,    /* "Invalid message count" */
            DROP_ANSWER,   /* no answer, or not exactly one */
            DROP_CALL,     /* a function call or tool list that is not what it should be */
            DROP_NULL,     /* null where text is needed */
            DROP_EMPTY,    /* no messages, or no ids */
            DROP_VANISHED, /* OLD: an empty conversation, gone before records are counted */
            DROP_COUNT_OF
};
struct message {
    const char *text;
    char *owned; /* text, when it was put together here */
};
struct conversation { /* user, assistant, user, assistant, ...; pt: the text alone */
    struct message *message;
    int count, cap;
    const char *system;
    char *owned_system;
    int odd_count; /* the complaint about the number of messages applies (see DROP_ROLE) */
    unsigned seen; /* bit k: column k is present in this record */
    enum drop drop;
    char why[160]; /* of the drop */
};
/* 0, also for a dropped record; -1 for one that cannot be meant (wrong type, missing key of a message). */
int convert_record(const struct data_config *c, const struct source *s, const struct cJSON *json,
                   const struct record *r, struct conversation *out, struct err *e);
void conversation_free(struct conversation *v);

/* ---- tools.c ---- each 0, or -1 when the text is not what it should be (never an error of the machine:
 * *oom) */
int tools_call_text(const char *content, int compat_new, struct str *out);
/* "tool_calls" of a message as OpenAI has them: [{"function": {"name": .., "arguments": text or object}}, ..]. */
int tools_calls_text(const struct cJSON *calls, struct str *out);
int tools_list_text(const struct cJSON *tools, int compat_new, struct str *out);
/* Appends the JSON value at *p, valid JSON, as Python's json.dumps(ensure_ascii=False) writes it; *p moves
 * behind it. */
void tools_dump(const char **p, struct str *out);

/* ---- store.c ---- */
enum { ROW_BAD_ROLE = 1, ROW_BAD_COUNT = 2, ROW_PACKED = 4 /* positions and documents follow the labels */ };
struct row {             /* in front of the row's ids; int32_t only, so that it lives among them */
    int32_t n, labelled; /* ids; labels that count */
    int32_t drop, flags; /* enum drop: such a row has n = 0 */
    int32_t turns, cut_source, cut_target, cut_both, skipped_turns, double_eod, cut_record;
};
struct store;
struct store *store_open(const struct data_config *c, struct err *e);
void store_unref(struct store *s);
struct store *store_ref(struct store *s);
/* Appends a row; *at is its position. Positions and documents are needed with ROW_PACKED. */
int store_add(struct store *s, const struct row *row, const int32_t *ids, const int32_t *labels,
              const int32_t *positions, const int32_t *documents, int64_t *at, struct err *e);
int store_seal(struct store *s, struct err *e); /* after the last store_add, before the first store_row */
const struct row *store_row(const struct store *s, int64_t at);
static inline const int32_t *row_ids(const struct row *r) {
    return (const int32_t *)(r + 1);
}
static inline const int32_t *row_labels(const struct row *r) {
    return row_ids(r) + r->n;
}
/* A row is about to be read: of the mapped file only what was read last stays resident, 16 MiB. Cheap, for rows in any order;
 * one thread at a time. */
void store_walked(struct store *s, const struct row *r);

/* ---- encode.c ---- */
struct encoder {
    const struct data_config *c;
    const struct tok *tok;
    enum tok_template template;
    int64_t cutoff; /* of a record: cutoff_len, one less for bins, none for chunks */
};
struct encoded {
    struct row row;
    struct ids ids, labels;
    unsigned seen;
    char why[160];
    struct err e;
};
void encoder_init(struct encoder *k, const struct data_config *c, const struct tok *t);
/* Thread-safe. Errors go to out->e. */
void encode_record(const struct encoder *k, const struct source *s, const struct record *r,
                   struct encoded *out);
void encoded_free(struct encoded *x);
/* Tokens kept of a source of S and a target of T tokens when C are left. */
void cut_turn(int compat_new, int64_t S, int64_t T, int64_t C, int64_t *s, int64_t *t);

/* ---- mix.c ---- */
struct list { /* positions of rows */
    int64_t *p;
    int64_t n, cap;
};
int list_add(struct list *v, int64_t x, struct err *e);
void list_free(struct list *v);
/* num_samples: a random permutation, then random repeats, as numpy's global generator draws them. */
int mix_samples(struct mt19937 *g, struct list *v, int64_t samples, struct err *e);
/* Joins the lists of several sources by c->mix into out, which is empty. A single list may be taken over as it is. */
int mix_lists(const struct data_config *c, struct list *part, const struct source *source, int count,
              struct list *out, struct err *e);
/* interleave_probs as running sums that end at 1. */
int mix_probabilities(const char *text, int count, double *sum, struct err *e);
/* val_size: part of `all` becomes `test`, the rest stays, both in permuted order. */
int mix_split(const struct data_config *c, struct list *all, struct list *test, struct err *e);

/* ---- feed.c: records of all sets of a catalog, by c->mix; both stay the caller's ---- */
struct feed;
struct feed *feed_open(const struct data_config *c, const struct catalog *k, struct err *e);
void feed_close(struct feed *f);
void feed_begin(struct feed *f); /* the next record is the first one again */
/* 1, 0 at the end of a pass, -1. The record's text lives until the next call, its path as long as the catalog. */
int feed_next(struct feed *f, struct record *r, const struct source **source, struct err *e);

/* ---- load.c ---- */
struct part { char *name; int64_t first; }; /* the first of its rows */
struct dataset {
    struct store *store;
    struct list rows;
    int64_t tokens, labelled, longest;
    struct part *part; /* [parts], or NULL */
    int parts;
};
void parts_free(struct dataset *d); /* parts.c */
void dataset_count(struct dataset *d); /* tokens, labelled, longest, from its rows */
enum { BATCH_RECORDS = 1000, BATCH_BYTES = 8 << 20 };
struct batched {
    struct record record;        /* its text is set by loader_encode */
    const struct source *source; /* of which it is */
    size_t at;                   /* of its text */
    struct encoded out;
};
struct batch { /* records that are encoded together: none is added beyond so many, or so many bytes */
    int n, cap;
    struct str text; /* of all records, one after the other */
    struct batched *one;
};
void batch_clear(struct batch *b);
/* Appends a record and its text: BATCH_RECORDS at most. Without memory it sets b->text.oom. */
void batch_add(struct batch *b, const struct source *s, const struct record *r);
struct loader {
    const struct data_config *c;
    const struct tok *tok;
    struct encoder encoder;
    struct store *store; /* of all encoded records */
    struct batch batch;
    struct mt19937 samples; /* seeded by data_load */
    int64_t records, dropped[DROP_COUNT_OF];
    char first[DROP_COUNT_OF][400]; /* place and reason of the first drop of a kind */
};
/* Checks c, which stays the caller's as t does. */
struct loader *loader_open(const struct data_config *c, const struct tok *t, struct err *e);
void loader_close(struct loader *l);
/* Encodes the batch with all threads and stores it in order; positions are appended to rows, columns that were there to *seen. */
int loader_encode(struct loader *l, struct list *rows, unsigned *seen, struct err *e);
/* Packs or filters the rows `in` (of the sealed store) into *out; the list is used up. Nothing left is an error that names `what`. */
int loader_make(const struct loader *l, struct list *in, const char *what, struct dataset **out,
                struct data_report *r, struct err *e);
void loader_log_drops(const struct loader *l);
/* Adds what became of a record to the report. */
void report_row(const struct data_config *c, const struct row *x, struct data_report *r);

/* ---- saved.c ---- */
/* A file of rows; each id below `vocabulary`. */
int rows_read(const char *path, const struct data_config *c, int32_t vocabulary, struct dataset **out, struct err *e);
/* data_load of a tokenized_path that is saved. */
int data_load_saved(const struct data_config *c, const struct tok *t, struct dataset **train, struct dataset **eval,
                    struct data_report *r, struct err *e);

/* ---- pack.c ---- */
enum packing { PACK_NONE, PACK_CHUNKS, PACK_BINS };
enum packing pack_kind(const struct data_config *c);
int64_t pack_block(const struct data_config *c); /* length of a block */
/* Rows `in` of `from` become blocks in `to`, their positions are appended to `out`. r gets what
 * became of the records, dropped_lengthy and remainder_tokens. */
int pack_rows(const struct data_config *c, const struct tok *t, struct store *from,
              const struct list *in, struct store *to, struct list *out, struct data_report *r,
              struct err *e);
#endif
