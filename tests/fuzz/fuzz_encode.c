/* tests/fuzz/fuzz_encode.c - tokenizer: any bytes, encoded with a small model, come back; short ones have
 * the ids that the naive merger gives; a stream gives what decoding at once gives. */
#include "tests/tokenizer_small.h"
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void need(int ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "%s\n", what);
    abort();
}
static int same(const struct str *a, const struct str *b) {
    return a->n == b->n && (!a->n || !memcmp(a->p, b->p, a->n));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct tok *t;
    const char *text = (const char *)data;
    if (!t) t = open_small();
    need(t != NULL, "the model was refused");
    struct str plain = {0};
    plain_text(text, size, &plain);
    for (int flags = 0; flags <= TOK_SPECIAL; flags++) {
        struct ids ids = {0};
        struct str whole = {0}, streamed = {0};
        struct tok_stream s = {0};
        need(!tok_encode(t, text, size, flags, &ids, NULL), "encoding failed");
        for (size_t i = 0; i < ids.n; i++) {
            need(ids.p[i] >= 0 && ids.p[i] < tok_count(t), "an id outside the vocabulary");
            need(flags || ids.p[i] < TOK_FIXED_PIECES + SMALL, "a special token that was not asked for");
            tok_stream_id(t, &s, ids.p[i], &streamed);
        }
        tok_stream_end(t, &s, &streamed);
        tok_decode(t, ids.p, ids.n, 0, &whole);
        need(same(&whole, &plain), "the text does not come back");
        need(same(&streamed, &plain), "the stream differs");
        if (!flags && size < 64) {
            struct ids naive = {0};
            naive_encode(small, SMALL, text, size, &naive);
            need(naive.n == ids.n && (!ids.n || !memcmp(naive.p, ids.p, ids.n * sizeof *ids.p)),
                 "other ids than the rules give");
            ids_free(&naive);
        }
        ids_free(&ids), str_free(&whole), str_free(&streamed);
    }
    /* The bytes as ids, two for one: any sequence decodes, in one go as in a stream. */
    struct ids any = {0};
    struct str whole = {0}, streamed = {0};
    struct tok_stream s = {.flags = size ? data[0] & 3 : 0};
    for (size_t i = 0; i + 1 < size; i += 2) ids_push(&any, data[i] | (data[i + 1] & 3) << 8, NULL);
    for (size_t i = 0; i < any.n; i++) tok_stream_id(t, &s, any.p[i], &streamed);
    tok_stream_end(t, &s, &streamed);
    tok_decode(t, any.p, any.n, s.flags, &whole);
    need(same(&whole, &streamed), "stream and whole decode differently");
    str_clear(&plain);
    plain_text(whole.p ? whole.p : "", whole.n, &plain);
    need(same(&whole, &plain), "decoding gave invalid UTF-8");
    ids_free(&any), str_free(&whole), str_free(&streamed), str_free(&plain);
    return 0;
}
