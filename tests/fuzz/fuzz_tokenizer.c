/* tests/fuzz/fuzz_tokenizer.c - tokenizer/model: a model file from anywhere is refused, or opens a
 * tokenizer that gives every text back. */
#include "tests/tokenizer_small.h"
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void need(int ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "%s\n", what);
    abort();
}

static void there_and_back(const struct tok *t, const char *text, size_t n) {
    struct ids ids = {0};
    struct str want = {0}, got = {0};
    need(!tok_encode(t, text, n, TOK_SPECIAL, &ids, NULL), "encoding failed");
    for (size_t i = 0; i < ids.n; i++)
        need(ids.p[i] >= 0 && ids.p[i] < tok_count(t), "an id outside the vocabulary");
    plain_text(text, n, &want);
    tok_decode(t, ids.p, ids.n, 0, &got);
    need(got.n == want.n && (!got.n || !memcmp(got.p, want.p, got.n)), "the text does not come back");
    ids_free(&ids), str_free(&want), str_free(&got);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err e = {0};
    struct tok *t = tok_parse(data, size, "fuzz", &e);
    need(t ? !e.code : e.code == ERR_INPUT, "verdict and error disagree");
    if (t) {
        need(tok_pieces(t) >= 257 && tok_count(t) >= tok_pieces(t) && tok_count(t) <= tok_pieces(t) + 18,
             "the counts are wrong");
        need(tok_is_special(t, tok_eod(t)) && tok_is_special(t, tok_sep(t)),
             "<eod> or <sep> is no special token");
        there_and_back(t, (const char *)data, size); /* holds all pieces, whatever they are */
        there_and_back(t, "ab  aaaa<eod>你好\n", 19);
    }
    tok_close(t);
    return 0;
}
