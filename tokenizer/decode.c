/* tokenizer/decode.c - ids to text, one by one: what is complete UTF-8 appears at once, an unfinished
 * character waits. */
#include "tokenizer/tokenizer_internal.h"

/* Gives out the byte pieces held back, invalid ones as U+FFFD. Unless `all`, a tail that may yet become a
 * character stays. */
static void flush(struct tok_stream *s, int all, struct str *out) {
    int at = 0;
    if (!s->tail_n) return; /* most ids are no bytes */
    while (at < s->tail_n) {
        const unsigned char *p = s->tail + at;
        size_t n = (size_t)(s->tail_n - at);
        uint32_t c;
        int k = utf8_get(p, n, &c);
        if (k <= 0 && !all) { /* the beginning of a character? The lowest or highest bytes behind it tell. */
            unsigned char low[8] = {0x80, 0x80, 0x80, 0x80}, high[8] = {0xBF, 0xBF, 0xBF, 0xBF};
            memcpy(low, p, n), memcpy(high, p, n);
            if (utf8_get(low, 4, &c) > (int)n || utf8_get(high, 4, &c) > (int)n) break;
        }
        if (k > 0)
            str_add(out, p, (size_t)k);
        else
            str_utf8(out, 0xFFFD);
        s->started = 1;
        at += k > 0 ? k : 1;
    }
    s->tail_n -= at;
    memmove(s->tail, s->tail + at, (size_t)s->tail_n);
}

void tok_stream_id(const struct tok *t, struct tok_stream *s, int32_t id, struct str *out) {
    int bare = s->flags & TOK_BARE;
    if (id < 0 || id >= (bare ? t->model_pieces : t->count)) return;
    const struct piece *p = &t->pieces[id];
    const char *text = t->blob + p->at;
    size_t n = p->bytes;
    if (p->type == PIECE_BYTE) {
        s->tail[s->tail_n++] = p->byte;
        flush(s, 0, out);
        return;
    }
    flush(s, 1, out);
    if (p->special && !bare) {
        if (!(s->flags & TOK_SKIP_SPECIAL)) str_add(out, text, n);
        s->started = 0;
    } else if (p->type == PIECE_UNKNOWN) {
        str_puts(out, " \xE2\x81\x87 ");
        s->started = 1;
    } else if (p->type == PIECE_NORMAL) {
        int drop = !s->started && text[0] == ' '; /* the blank that encoding put in front */
        str_add(out, text + drop, n - (size_t)drop);
        s->started = 1;
    }
}

void tok_stream_end(const struct tok *t, struct tok_stream *s, struct str *out) {
    (void)t;
    flush(s, 1, out);
    *s = (struct tok_stream){.flags = s->flags};
}

void tok_decode(const struct tok *t, const int32_t *ids, size_t n, int flags, struct str *out) {
    struct tok_stream s = {.flags = flags};
    for (size_t i = 0; i < n; i++) tok_stream_id(t, &s, ids[i], out);
    tok_stream_end(t, &s, out);
}
