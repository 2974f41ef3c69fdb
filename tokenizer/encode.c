/* tokenizer/encode.c - text to ids.
 *
 * A text is cut at special strings (when asked), each stretch between them gets its own blank in front and
 * is cut into parts that cannot merge with one another (see tokenizer_internal.h). A part that is a piece,
 * nine of ten in Chinese and English, costs one look-up; the others are merged. Characters left over that
 * are no piece become their UTF-8 bytes. */
#include "base/sys.h"
#include "tokenizer/tokenizer_internal.h"

static int reserve(struct ids *v, size_t n, struct err *e) {
    if (n <= v->cap - v->n) return 0;
    size_t cap = v->cap + v->cap / 2 + n + 16;
    if (cap < n || cap > SIZE_MAX / sizeof *v->p)
        return err_set(e, ERR_RUN, "out of memory: %zu more token ids", n);
    int32_t *grown = sys_grow(v->p, cap * sizeof *grown, "token ids", e);
    if (!grown) return -1;
    v->p = grown;
    v->cap = cap;
    return 0;
}

int ids_add(struct ids *v, const int32_t *p, size_t n, struct err *e) {
    if (reserve(v, n, e)) return -1;
    if (n) memcpy(v->p + v->n, p, n * sizeof *p);
    v->n += n;
    return 0;
}
int ids_push(struct ids *v, int32_t id, struct err *e) {
    return ids_add(v, &id, 1, e);
}
void ids_free(struct ids *v) {
    sys_free(v->p);
    *v = (struct ids){0};
}

struct part { /* of a stretch: characters that may merge with one another */
    const unsigned char *p;
    size_t bytes, chars;
    uint64_t hash;
    int lead; /* the blank in front of the stretch belongs to it and is not in p */
};

/* At most four ids; there is room for them. */
static void put_sym(const struct tok *t, uint32_t sym, struct ids *out) {
    int32_t *to = out->p + out->n;
    uint32_t c = sym & ~SYM_CHAR;
    int tail = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3; /* UTF-8 bytes behind the first */
    if (sym < SYM_CHAR) {
        *to++ = (int32_t)sym;
    } else {
        static const uint32_t first[] = {0, 0xC0, 0xE0, 0xF0};
        *to++ = t->byte_id[first[tail] | c >> (6 * tail)];
        while (tail-- > 0) *to++ = t->byte_id[0x80 | (c >> (6 * tail) & 63)];
    }
    out->n = (size_t)(to - out->p);
}

static int merge_part(const struct tok *t, const struct part *a, struct tok_merge *m, struct ids *out,
                      struct err *e) {
    uint32_t few[MERGE_SHORT], *sym = few;
    if (a->chars > MERGE_SHORT) {
        if (tok_merge_reserve(m, a->chars, e)) return -1;
        sym = m->sym;
    }
    size_t n = 0;
    if (a->lead) sym[n++] = ' ';
    const unsigned char *p = a->p, *end = p + a->bytes;
    for (int k; p < end; p += k) sym[n++] = char_get(p, (size_t)(end - p), &k);
    n = tok_merge_run(t, m, sym, n);
    if (reserve(out, 4 * n, e)) return -1;
    for (size_t i = 0; i < n; i++) put_sym(t, sym[i], out);
    return 0;
}

/* The piece that the part is, or SYM_NONE. */
static uint32_t find_word(const struct tok *t, const struct part *a) {
    uint32_t mask = (1u << t->words.bits) - 1, check = slot_check(a->hash),
             i = slot_place(&t->words, a->hash), slot;
    size_t lead = (size_t)a->lead;
    for (int probes = 0; probes < WORD_PROBES && (slot = t->words.slot[i]); probes++, i = (i + 1) & mask) {
        if (check != (slot & ~(uint32_t)SLOT_ID)) continue;
        uint32_t id = (slot & SLOT_ID) - 1;
        const char *text = t->blob + t->pieces[id].at;
        if (t->pieces[id].bytes != a->bytes + lead || (lead && *text != ' ')) continue;
        if (!memcmp(text + lead, a->p, a->bytes)) return id;
    }
    return SYM_NONE;
}

static int put_part(const struct tok *t, const struct part *a, uint32_t last, struct tok_merge *m,
                    struct ids *out, struct err *e) {
    if (reserve(out, 4, e)) return -1;
    uint32_t sym = a->chars == 1 ? sym_char(t, last) : find_word(t, a);
    if (sym == SYM_NONE) return merge_part(t, a, m, out, e);
    put_sym(t, sym, out);
    return 0;
}

static int put_stretch(const struct tok *t, const unsigned char *p, size_t n, struct tok_merge *m,
                       struct ids *out, struct err *e) {
    const unsigned char *end = p + n;
    struct part a = {p, 0, 1, word_step(WORD_START, ' '), 1};
    uint32_t last = ' ';
    for (int k; p < end; p += k) {
        uint32_t c = char_get(p, (size_t)(end - p), &k);
        if (!may_join(t, last, c)) {
            a.bytes = (size_t)(p - a.p);
            if (put_part(t, &a, last, m, out, e)) return -1;
            a = (struct part){p, 0, 0, WORD_START, 0};
        }
        a.hash = word_step(a.hash, c);
        a.chars++;
        last = c;
    }
    a.bytes = (size_t)(end - a.p);
    return put_part(t, &a, last, m, out, e);
}

/* The first special string in p[0..n): its place and number *k, or p + n. */
static const char *find_special(const struct tok *t, const char *p, size_t n, int *k) {
    const char *end = p + n;
    for (; (p = memchr(p, '<', (size_t)(end - p))); p++)
        for (*k = 0; *k < SPECIALS; ++*k) {
            const struct piece *s = &t->pieces[t->special[*k]];
            if (s->bytes <= (size_t)(end - p) && p[1] == t->blob[s->at + 1] &&
                !memcmp(p, t->blob + s->at, s->bytes))
                return p;
        }
    return end;
}

int tok_encode(const struct tok *t, const char *text, size_t n, int flags, struct ids *out, struct err *e) {
    struct tok_merge m = {0};
    int r = -1;
    if (n == 0) return 0; /* text may be NULL */
    if (n >= INT32_MAX)
        return err_set(e, ERR_INPUT, "a text of %zu bytes is too long for the tokenizer (2 GiB)", n);
    const char *end = text + n;
    while (text < end) {
        int k = 0;
        const char *at = flags & TOK_SPECIAL ? find_special(t, text, (size_t)(end - text), &k) : end;
        if (at > text && put_stretch(t, (const unsigned char *)text, (size_t)(at - text), &m, out, e))
            goto out;
        if (at < end && ids_push(out, t->special[k], e)) goto out;
        text = at < end ? at + t->pieces[t->special[k]].bytes : end;
    }
    r = 0;
out:
    tok_merge_free(&m);
    return r;
}
