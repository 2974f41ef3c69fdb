/* tests/tokenizer_small.h - a small BPE model, and the rules of encoding as they are written
 * (docs/TOKENIZER.md), for the unit test and the fuzz targets of the tokenizer. */
#ifndef QLORA_TESTS_TOKENIZER_SMALL_H
#define QLORA_TESTS_TOKENIZER_SMALL_H
#include "tokenizer/tokenizer.h"
#include <string.h>

#define BLANK "\xE2\x96\x81"

/* Pieces with halves that are no pieces ("xyz"), equal scores, runs, and one that merging cannot reach
 * ("q!q"). */
static const struct tok_piece small[] = {
    {BLANK, -20}, {"a", -20},   {"b", -20},   {"x", -20},        {"é", -20},
    {"你", -20},  {"好", -20},  {"😀", -20},   {BLANK BLANK, -1}, {BLANK BLANK BLANK BLANK, -2},
    {"aa", -3},   {"aaaa", -4}, {"ab", -3},   {"ba", -3},        {BLANK "a", -3},
    {"xy", -5},   {"xyz", -5},  {"你好", -6}, {"q!q", 0},        {"<sep>", 0},
    {"<pad>", 0}};
enum { SMALL = sizeof small / sizeof *small };

/* Opens a model of these pieces, with more bytes of protobuf behind it. */
static inline struct tok *parse(const struct tok_piece *pieces, int n, const char *extra, size_t extra_n,
                                struct err *e) {
    struct str model = {0};
    tok_model_write(pieces, n, &model, e);
    str_add(&model, extra, extra_n);
    struct tok *t = tok_parse(model.p, model.n, "test.model", e);
    str_free(&model);
    return t;
}
static inline struct tok *open_small(void) {
    return parse(small, SMALL, "", 0, NULL);
}

/* The text that decoding gives back: invalid bytes are U+FFFD, each U+2581 a blank. */
static inline void plain_text(const char *text, size_t n, struct str *out) {
    for (size_t at = 0, k; at < n; at += k) {
        uint32_t c;
        int bytes = utf8_get((const unsigned char *)text + at, n - at, &c);
        k = bytes > 0 ? (size_t)bytes : 1;
        str_utf8(out, bytes <= 0 ? 0xFFFD : c == 0x2581 ? ' ' : c);
    }
}

static inline int find_piece(const struct tok_piece *pieces, int n, const char *p, size_t bytes) {
    for (int i = 0; i < n; i++)
        if (*pieces[i].text == *p && strlen(pieces[i].text) == bytes && !memcmp(pieces[i].text, p, bytes)) return i;
    return -1;
}

/* Blank in front, blanks as U+2581, then: merge the best pair, the leftmost among equals, until none is a
 * piece. */
enum { NAIVE_CHARS = 1000 };
static inline void naive_encode(const struct tok_piece *pieces, int count, const char *text, size_t text_n,
                                struct ids *out) {
    struct {
        const char *p;
        size_t n;
    } sym[NAIVE_CHARS + 1];
    struct str plain = {0}, s = {0};
    size_t n = 0;
    uint32_t c;
    out->n = 0;
    if (!text_n) return;
    plain_text(text, text_n, &plain);
    str_puts(&s, BLANK);
    for (size_t i = 0; i < plain.n; i++) plain.p[i] == ' ' ? str_puts(&s, BLANK) : str_putc(&s, plain.p[i]);
    for (size_t at = 0; at < s.n && n <= NAIVE_CHARS; at += sym[n++].n) {
        sym[n].p = s.p + at;
        sym[n].n = (size_t)utf8_get((unsigned char *)s.p + at, s.n - at, &c);
    }
    for (;;) {
        size_t best = n;
        float score = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            int id = find_piece(pieces, count, sym[i].p, sym[i].n + sym[i + 1].n);
            if (id >= 0 && (best == n || pieces[id].score > score)) best = i, score = pieces[id].score;
        }
        if (best == n) break;
        sym[best].n += sym[best + 1].n;
        memmove(&sym[best + 1], &sym[best + 2], (n - best - 2) * sizeof *sym);
        n--;
    }
    for (size_t i = 0; i < n; i++) {
        int id = find_piece(pieces, count, sym[i].p, sym[i].n);
        if (id >= 0) ids_push(out, TOK_FIXED_PIECES + id, NULL);
        for (size_t k = 0; id < 0 && k < sym[i].n; k++) ids_push(out, 3 + (unsigned char)sym[i].p[k], NULL);
    }
    str_free(&plain), str_free(&s);
}
#endif
