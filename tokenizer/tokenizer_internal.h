/* tokenizer/tokenizer_internal.h - the tables behind a struct tok.
 *
 * Alphabet. Inside this folder a blank stands for U+2581: pieces are kept with U+2581 turned into a blank (a
 * piece that holds a real blank is refused), and a U+2581 in a text counts as a blank. Characters are code
 * points in that alphabet.
 *
 * Symbols. What merging works on is a `sym`: the id of a NORMAL piece, or SYM_CHAR | code point for a
 * character that is no piece.
 *
 * Rules. The tokenizer merges the neighbours l, r with the best score for which l+r is a NORMAL piece
 * (leftmost first). A piece p either comes out of its own text by these rules or it never occurs at all: as
 * long as no merge has crossed the ends of a stretch of text, the merges inside it are those, in the same
 * order, that would happen with nothing around it (others neither make nor remove a pair inside). So p is
 * made in exactly one way, by the last merge of its own encoding, and one rule (l, r) -> p for each reachable
 * piece replaces the look-up of strings. By the same argument
 *   - characters that stand side by side in no reachable piece never end up in one symbol, so the text may be
 *     cut between them and the parts encoded alone (`joins`: a filter, a false "may join" costs time only);
 *   - a part that is a reachable piece is encoded as that piece (`words`).
 *
 * Hash tables hold four bytes a slot, a piece's number and some bits of the hash; what they point to lies in
 * the order of the ids, which is about that of frequency. So what a text uses stays in the cache. */
#ifndef QLORA_TOKENIZER_INTERNAL_H
#define QLORA_TOKENIZER_INTERNAL_H
#include "tokenizer/tokenizer.h"
#include <string.h>

enum { PIECE_NORMAL = 1, PIECE_UNKNOWN, PIECE_CONTROL, PIECE_USER, PIECE_UNUSED, PIECE_BYTE, PIECE_ADDED };
enum {
    PIECE_MAX_BYTES = 1024,
    MODEL_MAX_BYTES = 16 << 20, /* Yuan's file has 2 MiB, the largest known ones 4 */
    MODEL_MAX_PIECES = 1 << 20,
    SPECIALS = 18,
    JOIN_BITS = 1 << 20 /* 128 KiB: with Yuan's 36,000 neighbours 3 % of the others are taken for one */
};
#define SYM_CHAR  (1u << 24)
#define SYM_NONE  UINT32_MAX
#define RANK_NONE UINT32_MAX

struct piece {
    uint32_t at, rank;    /* text at blob + at; rank: the smaller merges first, never RANK_NONE */
    uint32_t left, right; /* its rule; left = SYM_NONE: the piece is the one character `right` */
    uint16_t bytes;
    uint8_t type, byte, special; /* byte: value of a BYTE piece */
};

/* Open addressing, at most 5/8 full (1 MiB for Yuan's pieces). A slot is 0 or check << 21 | id + 1; the
 * place is the top bits of the hash. */
struct table {
    uint32_t *slot;
    int bits;
};
enum { SLOT_ID = (1 << 21) - 1 };
static inline uint32_t slot_check(uint64_t hash) {
    return (uint32_t)(hash >> 20) & ~(uint32_t)SLOT_ID;
}
static inline uint32_t slot_place(const struct table *s, uint64_t hash) {
    return (uint32_t)(hash >> (64 - s->bits));
}

struct tok {
    struct piece *pieces; /* [count] */
    char *blob;
    int32_t model_pieces, count, eod, sep;
    int32_t byte_id[256];
    int32_t special[SPECIALS];
    uint32_t sym_of[0x10000];  /* symbol of a character up to U+FFFF */
    uint32_t ascii[128 * 128]; /* rules of two ASCII characters: the piece, or SYM_NONE */
    struct table rules, words;
    uint64_t joins[JOIN_BITS / 64]; /* set: these two characters may end up in one symbol */
};

/* The piece that the symbols merge into, or SYM_NONE. */
static inline uint64_t rule_hash(uint32_t left, uint32_t right) {
    return ((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15u;
}
static inline uint32_t rule_find(const struct tok *t, uint32_t left, uint32_t right) {
    uint64_t hash = rule_hash(left, right);
    uint32_t mask = (1u << t->rules.bits) - 1, check = slot_check(hash), slot;
    for (uint32_t i = slot_place(&t->rules, hash); (slot = t->rules.slot[i]); i = (i + 1) & mask) {
        uint32_t id = (slot & SLOT_ID) - 1;
        if (check == (slot & ~(uint32_t)SLOT_ID) && t->pieces[id].left == left &&
            t->pieces[id].right == right)
            return id;
    }
    return SYM_NONE;
}

static inline uint32_t sym_char(const struct tok *t, uint32_t c) {
    if (c < 0x10000) return t->sym_of[c];
    uint32_t id = rule_find(t, SYM_NONE, c);
    return id != SYM_NONE ? id : SYM_CHAR | c;
}

static inline uint32_t join_bit(uint32_t a, uint32_t b) {
    return (a | b) < 128 ? a << 7 | b : (a * 0x9E3779B1u + b * 0x85EBCA6Bu) >> 12;
}
static inline int may_join(const struct tok *t, uint32_t a, uint32_t b) {
    uint32_t i = join_bit(a, b);
    return (int)(t->joins[i >> 6] >> (i & 63) & 1);
}

/* Hash of a run of characters, one step for each. */
#define WORD_START 0xCBF29CE484222325u
enum { WORD_PROBES = 16 }; /* a word that finds no slot in so many is left out: merging gives the same */
static inline uint64_t word_step(uint64_t h, uint32_t c) {
    return (h ^ c) * 0x9E3779B97F4A7C15u;
}

/* One character of the alphabet above at p[0..n), n > 0; *bytes is how far it reaches. Invalid bytes are
 * U+FFFD, one each. */
static inline uint32_t char_get(const unsigned char *p, size_t n, int *bytes) {
    *bytes = 1;
    if (p[0] < 0x80) return p[0];
    uint32_t c = 0xFFFD;
    if (p[0] > 0xE0 && p[0] < 0xED && n >= 3 && (p[1] & 0xC0) == 0x80 && (p[2] & 0xC0) == 0x80) {
        *bytes = 3; /* Chinese, without a call */
        c = (p[0] & 15u) << 12 | (p[1] & 63u) << 6 | (p[2] & 63u);
    } else {
        int k = utf8_get(p, n, &c);
        if (k > 0)
            *bytes = k;
        else
            c = 0xFFFD;
    }
    return c == 0x2581 ? ' ' : c;
}

/* Memory for merging; zero-initialise, tok_merge_free. Grows to the longest part met. */
struct tok_merge {
    uint32_t *sym, *rank, *next, *prev;
    uint64_t *heap;
    size_t cap;
};
enum { MERGE_SHORT = 32 }; /* up to here scanning all ranks beats the heap */
int tok_merge_reserve(struct tok_merge *m, size_t n, struct err *e);
void tok_merge_free(struct tok_merge *m);
/* Turns the characters sym[0..n) into symbols and merges them until no rule applies; those left are
 * sym[0..result). m is not used for n <= MERGE_SHORT; else sym is m->sym, after tok_merge_reserve(m, n). */
size_t tok_merge_run(const struct tok *t, struct tok_merge *m, uint32_t *sym, size_t n);

/* model.c: pieces of a ModelProto and their texts; SPECIALS more pieces fit in both. Freed with
 * tok_model_free, also after an error. */
struct tok_model {
    struct piece *pieces;
    char *blob;
    int32_t count;
};
int tok_model_read(struct tok_model *m, const unsigned char *p, size_t n, const char *where, struct err *e);
void tok_model_free(struct tok_model *m);
#endif
