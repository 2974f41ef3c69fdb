/* tests/fuzz/fuzz_tokenizer.c - tokenizer/model: a model file from anywhere is refused, or opens a
 * tokenizer that gives every text back. */
#include "tests/fuzz/mutate.h"
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

/* ---- mutations: fields of the protobuf, with the lengths around them set right ---- */

MUTATORS_BEGIN
struct span { size_t at, n, body; }; /* a field; its contents begin behind `body` bytes, where it has a length in front */

static size_t get_varint(const uint8_t *p, size_t n, uint64_t *v) {
    *v = 0;
    for (size_t i = 0; i < n && i < 10; i++) {
        *v |= (uint64_t)(p[i] & 127) << (7 * i);
        if (p[i] < 128) return i + 1;
    }
    return 0;
}
static size_t put_varint(uint8_t *p, uint64_t v) {
    size_t n = 0;
    for (; v > 127; v >>= 7) p[n++] = (uint8_t)(v | 128);
    return p[n] = (uint8_t)v, n + 1;
}

static size_t fields(const uint8_t *p, size_t n, struct span *out, size_t most) {
    size_t count = 0;
    for (size_t i = 0, k; i < n && count < most; i += k) {
        uint64_t key, v;
        struct span *s = &out[count];
        if (!(k = get_varint(p + i, n - i, &key))) break;
        *s = (struct span){.at = i};
        size_t more = 0;
        if ((key & 7) == 0) more = get_varint(p + i + k, n - i - k, &v);
        else if ((key & 7) == 5) more = 4;
        else if ((key & 7) == 1) more = 8;
        else if ((key & 7) == 2 && (more = get_varint(p + i + k, n - i - k, &v))) s->body = k + more, more = v > n ? 0 : more + (size_t)v;
        k += more;
        if (!more || k > n - i) break;
        s->n = k, count++;
    }
    return count;
}

/* Changes one field of p[0..n), or what is in it. */
static size_t mutate_fields(struct mutator *m, uint8_t *p, size_t n, size_t max, int depth) {
    static struct span all[2][4096];
    struct span *f = all[depth];
    size_t count = fields(p, n, f, 4096);
    if (!count) return LLVMFuzzerMutate(p, n, max);
    struct span a = f[mutate_pick(m, count)], b = f[mutate_pick(m, count)];
    uint8_t inner[2048], head[20];
    uint64_t key;
    switch (mutate_pick(m, 6)) {
    case 0: return mutate_splice(p, n, max, a.at, a.n, "", 0);
    case 1: return mutate_splice(p, n, max, a.at, 0, p + a.at, a.n);
    case 2: return mutate_splice(p, n, max, b.at, b.n, p + a.at, a.n);
    case 3: return mutate_splice(p, n, max, mutate_pick(m, 2) ? b.at : n, 0, p + a.at, a.n);
    default:
        if (!a.body || a.n - a.body > sizeof inner / 2) { /* a number */
            size_t k = get_varint(p + a.at, a.n, &key);
            if (a.body) return n;
            for (size_t i = a.at + k; i < a.at + a.n; i++) p[i] = (uint8_t)((p[i] & 128) | mutate_pick(m, 128));
            return n;
        }
        size_t size = a.n - a.body, k = get_varint(p + a.at, a.n, &key);
        memcpy(inner, p + a.at + a.body, size);
        size = depth || !mutate_pick(m, 4) ? LLVMFuzzerMutate(inner, size ? size : 1, sizeof inner) : mutate_fields(m, inner, size, sizeof inner, 1);
        memcpy(head, p + a.at, k);
        k += put_varint(head + k, size);
        size_t now = mutate_splice(p, n, max, a.at, a.n, head, k);
        return now == n && k != a.n ? n : mutate_splice(p, now, max, a.at + k, 0, inner, size);
    }
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned seed) {
    struct mutator m = mutate_begin(seed);
    return mutate_plain(&m) ? LLVMFuzzerMutate(data, n, max) : mutate_fields(&m, data, n, max, 0);
}
MUTATORS_END
