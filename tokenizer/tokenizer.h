/* tokenizer/tokenizer.h - text <-> token ids with a sentencepiece BPE model, and the yuan chat template.
 *
 * The rules are those of the official Yuan 2.0 tokenizer: identity normaliser, one U+2581 in front of every
 * stretch, pairs merged by score with the leftmost first on ties, byte fallback (docs/TOKENIZER.md).
 * O(n log n); a struct tok is read-only after tok_open and may be used by any number of threads at once.
 *
 *     struct tok *t = tok_open(dir, e);          DIR/tokenizer.model, or the file itself
 *     struct ids ids = {0};
 *     tok_encode(t, text, strlen(text), TOK_SPECIAL, &ids, e);  ...  ids_free(&ids);  tok_close(t);
 */
#ifndef QLORA_TOKENIZER_H
#define QLORA_TOKENIZER_H
#include "base/err.h"
#include "base/str.h"
#include <stddef.h>
#include <stdint.h>

struct ids { int32_t *p; size_t n, cap; };
int ids_add(struct ids *v, const int32_t *p, size_t n, struct err *e); /* appends */
int ids_push(struct ids *v, int32_t id, struct err *e);
void ids_free(struct ids *v);

struct tok;
struct tok *tok_open(const char *dir, struct err *e);
struct tok *tok_parse(const void *model, size_t bytes, const char *where, struct err *e); /* ModelProto in memory */
void tok_close(struct tok *t);
/* Appends a model file with Yuan's flags: pieces 0..258 <unk>, <s>, </s>, <0x00> to <0xFF>, then the n
 * given ones as normal pieces (U+2581 for blanks, at most 1 KiB each). For demonstrations and tests. */
enum { TOK_FIXED_PIECES = 259 };
struct tok_piece { const char *text; float score; };
int tok_model_write(const struct tok_piece *pieces, int n, struct str *out, struct err *e);
int32_t tok_count(const struct tok *t);  /* ids 0..count-1 are valid: pieces and added special tokens */
int32_t tok_pieces(const struct tok *t); /* pieces of the model file alone */
int32_t tok_eod(const struct tok *t);    /* id of "<eod>" */
int32_t tok_sep(const struct tok *t);    /* id of "<sep>" */
/* id of a special token ("<mask>") or of a piece (its blanks as U+2581 or as spaces), -1 if there is none */
int32_t tok_id(const struct tok *t, const char *text);
/* SHA-1 over pieces, their kinds and order of merging: two tokenizers of one hash give the same ids. */
void tok_hash(const struct tok *t, char hex[41]);
int tok_is_special(const struct tok *t, int32_t id);

enum { TOK_SPECIAL = 1 /* recognise special strings in the text */ };
/* Appends the ids of text[0..n) to out. Empty text appends nothing. */
int tok_encode(const struct tok *t, const char *text, size_t n, int flags, struct ids *out, struct err *e);

enum { TOK_SKIP_SPECIAL = 1, TOK_BARE = 2 /* as the bare sentencepiece library: no special tokens known */ };
/* Appends the text of ids[0..n) to out. Ids outside the vocabulary give nothing. */
void tok_decode(const struct tok *t, const int32_t *ids, size_t n, int flags, struct str *out);

/* Streaming decode: text appears as soon as it is complete UTF-8; feed ids one by one, then finish.
 * Zero-initialise. */
struct tok_stream { int flags, started; unsigned char tail[8]; int tail_n; };
void tok_stream_id(const struct tok *t, struct tok_stream *s, int32_t id, struct str *out);
void tok_stream_end(const struct tok *t, struct tok_stream *s, struct str *out);

/* The template `yuan` of LLaMA-Factory, before (OLD, v0.5.0) and after (NEW) its change. Pieces are
 * encoded apart. */
enum tok_template { TEMPLATE_YUAN_OLD, TEMPLATE_YUAN_NEW };
/* Appends the source ids of turn number `turn` (0, 1, ..): system (turn 0 only, may be NULL) and user
 * text. */
int template_source(const struct tok *t, enum tok_template k, int turn, const char *system, size_t system_n,
                    const char *user, size_t user_n, struct ids *out, struct err *e);
/* Appends the target ids of an answer. */
int template_target(const struct tok *t, enum tok_template k, const char *answer, size_t answer_n, struct ids *out,
                    struct err *e);
#endif
