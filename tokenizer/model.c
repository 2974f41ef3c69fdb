/* tokenizer/model.c - sentencepiece model files: a reader of ModelProto that takes BPE models as Yuan's,
 * and a writer.
 *
 *     ModelProto       1 pieces (repeated), 2 trainer_spec, 3 normalizer_spec
 *     SentencePiece    1 piece (string), 2 score (float), 3 type (enum, NORMAL if absent)
 *     TrainerSpec      3 model_type (2 = BPE), 24 treat_whitespace_as_suffix, 35 byte_fallback
 *     NormalizerSpec   2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces, 5 escape_whitespaces
 *
 * Other fields do not change what text becomes and are passed over. A field that would change it is
 * refused by name: nothing is tokenized in another way than its makers meant. */
#include "base/sys.h"
#include "tokenizer/tokenizer_internal.h"
#include <math.h>
#include <stdio.h>

struct proto {
    const unsigned char *p, *end;
};
struct field {
    uint32_t number;
    int wire;
    uint64_t value;
    struct proto body;
}; /* value: wire 0 and 5; body: wire 2 */

static int varint(struct proto *s, uint64_t *v) {
    *v = 0;
    for (int shift = 0; shift < 70 && s->p < s->end; shift += 7) {
        unsigned char b = *s->p++;
        *v |= (uint64_t)(b & 127) << shift;
        if (b < 128) return 0;
    }
    return -1;
}

/* 1 and *f: a field. 0: the end. -1: broken. */
static int next_field(struct proto *s, struct field *f) {
    uint64_t key, n;
    if (s->p == s->end) return 0;
    if (varint(s, &key) || key >> 3 == 0 || key >> 32) return -1;
    *f = (struct field){.number = (uint32_t)(key >> 3), .wire = (int)(key & 7)};
    switch (f->wire) {
    case 0:
        return varint(s, &f->value) ? -1 : 1;
    case 2:
        if (varint(s, &n) || n > (uint64_t)(s->end - s->p)) return -1;
        f->body = (struct proto){s->p, s->p + n};
        break;
    case 1:
    case 5:
        n = f->wire == 1 ? 8 : 4;
        if (n > (uint64_t)(s->end - s->p)) return -1;
        for (uint64_t i = 0; i < n; i++) f->value |= (uint64_t)s->p[i] << (8 * i);
        break;
    default:
        return -1; /* groups, which sentencepiece never wrote */
    }
    s->p += n;
    return 1;
}

/* The flags that matter, at the values an absent field has. */
struct spec {
    uint64_t model_type, suffix, byte_fallback, dummy_prefix, remove_blanks, escape_blanks;
    int charsmap;
};

static int read_trainer(struct proto s, struct spec *spec) {
    struct field f;
    int r;
    while ((r = next_field(&s, &f)) > 0) {
        uint64_t *to = f.number == 3    ? &spec->model_type
                       : f.number == 24 ? &spec->suffix
                       : f.number == 35 ? &spec->byte_fallback
                                        : NULL;
        if (!to) continue;
        if (f.wire != 0) return -1;
        *to = f.value;
    }
    return r;
}

static int read_normalizer(struct proto s, struct spec *spec) {
    struct field f;
    int r;
    while ((r = next_field(&s, &f)) > 0) {
        uint64_t *to = f.number == 3   ? &spec->dummy_prefix
                       : f.number == 4 ? &spec->remove_blanks
                       : f.number == 5 ? &spec->escape_blanks
                                       : NULL;
        if (f.number == 2) {
            if (f.wire != 2) return -1;
            spec->charsmap = f.body.p < f.body.end;
        }
        if (!to) continue;
        if (f.wire != 0) return -1;
        *to = f.value;
    }
    return r;
}

static int check_spec(const struct spec *s, const char *where, struct err *e) {
    static const char *const kinds[] = {"of no known kind", "a unigram model", "a BPE model", "a word model",
                                        "a character model"};
    const char *why = NULL;
    if (s->model_type != 2)
        why = kinds[s->model_type <= 4 ? s->model_type : 0];
    else if (s->charsmap)
        why = "one that normalises its text (precompiled_charsmap)";
    else if (!s->byte_fallback)
        why = "one without byte_fallback";
    else if (!s->dummy_prefix)
        why = "one with add_dummy_prefix off";
    else if (s->remove_blanks)
        why = "one with remove_extra_whitespaces on";
    else if (!s->escape_blanks)
        why = "one with escape_whitespaces off";
    else if (s->suffix)
        why = "one with treat_whitespace_as_suffix on";
    if (!why) return 0;
    return err_set(
        e, ERR_INPUT,
        "%s: the tokenizer is %s; only sentencepiece BPE models with byte_fallback, an identity normalizer "
        "and a dummy prefix (as Yuan 2.0's) can be used",
        where, why);
}

/* "<0x4F>" -> 0x4F, else -1 */
static int byte_value(const char *s, size_t n) {
    static const char digits[] = "0123456789ABCDEF";
    if (n != 6 || memcmp(s, "<0x", 3) || s[5] != '>' || !s[3] || !s[4]) return -1;
    const char *hi = strchr(digits, s[3]), *lo = strchr(digits, s[4]);
    return hi && lo ? (int)((hi - digits) * 16 + (lo - digits)) : -1;
}

/* Copies the text of a piece, U+2581 as a blank. Returns its new length, or -1 if it is not text that can
 * be met. */
static int copy_text(char *to, const unsigned char *p, size_t n) {
    char *start = to;
    while (n) {
        uint32_t c;
        int k = utf8_get(p, n, &c);
        if (k <= 0 || c == ' ') return -1;
        if (c == 0x2581)
            *to++ = ' ';
        else
            memcpy(to, p, (size_t)k), to += k;
        p += k, n -= (size_t)k;
    }
    return (int)(to - start);
}

static int read_piece(struct tok_model *m, struct proto s, uint32_t *blob_n, const char *where,
                      struct err *e) {
    struct proto text = {0};
    struct field f;
    uint64_t type = PIECE_NORMAL;
    uint32_t bits = 0;
    float score;
    int32_t id = m->count;
    int r;
    while ((r = next_field(&s, &f)) > 0) {
        if (f.number < 1 || f.number > 3) continue;
        if (f.wire != (f.number == 1 ? 2 : f.number == 2 ? 5 : 0)) r = -1;
        if (r < 0) break;
        if (f.number == 1)
            text = f.body;
        else if (f.number == 2)
            bits = (uint32_t)f.value;
        else
            type = f.value;
    }
    if (r < 0) return err_set(e, ERR_INPUT, "%s: piece %d is broken", where, id);
    size_t n = text.p ? (size_t)(text.end - text.p) : 0;
    if (n == 0 || n > PIECE_MAX_BYTES)
        return err_set(e, ERR_INPUT, "%s: piece %d has %zu bytes of text; 1 to %d are possible", where, id, n,
                       PIECE_MAX_BYTES);
    char *at = m->blob + *blob_n;
    int bytes = copy_text(at, text.p, n);
    if (bytes < 0)
        return err_set(e, ERR_INPUT,
                       "%s: piece %d is not UTF-8 or holds a blank that is not written as U+2581", where, id);
    memcpy(&score, &bits, sizeof score);
    if (!isfinite(score))
        return err_set(e, ERR_INPUT, "%s: the score of piece %d is not a number", where, id);
    int byte = type == PIECE_BYTE ? byte_value(at, (size_t)bytes) : 0;
    if (byte < 0) return err_set(e, ERR_INPUT, "%s: byte piece %d is not named <0x00> to <0xFF>", where, id);
    if (type == PIECE_USER || type == PIECE_UNUSED || type < PIECE_NORMAL || type > PIECE_BYTE)
        return err_set(e, ERR_INPUT,
                       "%s: piece %d has type %llu; normal, unknown, control and byte pieces can be used",
                       where, id, (unsigned long long)type);
    /* A higher score is a smaller rank: the bits of a float, negative ones turned over, are in the order of their values.
     * Adding zero makes -0 the same as 0. */
    score += 0.0f;
    memcpy(&bits, &score, sizeof bits);
    uint32_t rank = ~(bits ^ (bits >> 31 ? UINT32_MAX : 1u << 31));
    m->pieces[id] = (struct piece){
        .at = *blob_n, .rank = rank, .bytes = (uint16_t)bytes, .type = (uint8_t)type, .byte = (uint8_t)byte};
    *blob_n += (uint32_t)bytes;
    m->count++;
    return 0;
}

static int check_bytes(const struct tok_model *m, const char *where, struct err *e) {
    int32_t found[256], unknown = -1;
    memset(found, -1, sizeof found);
    for (int32_t id = 0; id < m->count; id++) {
        const struct piece *p = &m->pieces[id];
        int32_t *to = p->type == PIECE_BYTE ? &found[p->byte] : p->type == PIECE_UNKNOWN ? &unknown : NULL;
        if (!to) continue;
        if (*to >= 0) return err_set(e, ERR_INPUT, "%s: pieces %d and %d stand for the same", where, *to, id);
        *to = id;
    }
    if (unknown < 0) return err_set(e, ERR_INPUT, "%s: there is no piece for the unknown", where);
    for (int b = 0; b < 256; b++)
        if (found[b] < 0)
            return err_set(e, ERR_INPUT, "%s: the byte piece <0x%02X> is missing", where, (unsigned)b);
    return 0;
}

void tok_model_free(struct tok_model *m) {
    sys_free(m->pieces);
    sys_free(m->blob);
}

int tok_model_read(struct tok_model *m, const unsigned char *p, size_t n, const char *where, struct err *e) {
    struct spec spec = {.model_type = 1, .dummy_prefix = 1, .remove_blanks = 1, .escape_blanks = 1};
    struct proto s = {p, p + n};
    struct field f;
    size_t count = 0, text = 0;
    int r;
    if (n > MODEL_MAX_BYTES)
        return err_set(e, ERR_INPUT, "%s: %zu bytes are too large for a tokenizer model", where, n);
    while ((r = next_field(&s, &f)) > 0) {
        if (f.number < 1 || f.number > 3) continue;
        if (f.wire != 2)
            r = -1;
        else if (f.number == 1)
            count++, text += (size_t)(f.body.end - f.body.p);
        else
            r = f.number == 2 ? read_trainer(f.body, &spec) : read_normalizer(f.body, &spec);
        if (r < 0) break;
    }
    if (r < 0 || count == 0)
        return err_set(e, ERR_INPUT,
                       "%s: this is not a sentencepiece model, or it is damaged (%s at byte %zu of %zu); "
                       "fetch the file again",
                       where, r < 0 ? "unreadable" : "no pieces", (size_t)(s.p - p), n);
    if (check_spec(&spec, where, e)) return -1;
    if (count > MODEL_MAX_PIECES)
        return err_set(e, ERR_INPUT, "%s: %zu pieces are more than the %d that can be used", where, count,
                       MODEL_MAX_PIECES);
    m->pieces = sys_alloc_array(count + SPECIALS, sizeof *m->pieces, "the pieces of the tokenizer", e);
    m->blob = sys_alloc(text + SPECIALS * 32, "the texts of the tokenizer", e);
    if (!m->pieces || !m->blob) return -1;
    uint32_t blob_n = 0;
    for (s.p = p; next_field(&s, &f) > 0;)
        if (f.number == 1 && read_piece(m, f.body, &blob_n, where, e)) return -1;
    return check_bytes(m, where, e);
}

/* Writing. */

static void put_varint(struct str *s, uint64_t v) {
    for (; v >= 128; v >>= 7) str_putc(s, (char)(v | 128));
    str_putc(s, (char)v);
}

static void put_field(struct str *s, uint32_t number, const char *body, size_t n) {
    put_varint(s, number << 3 | 2);
    put_varint(s, n);
    str_add(s, body, n);
}

static void put_piece(struct str *s, struct str *body, const char *text, float score, int type) {
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits);
    str_clear(body);
    put_field(body, 1, text, strlen(text));
    put_varint(body, 2 << 3 | 5);
    for (int i = 0; i < 4; i++) str_putc(body, (char)(bits >> (8 * i)));
    put_varint(body, 3 << 3);
    put_varint(body, (uint64_t)type);
    put_field(s, 1, body->p, body->n);
}

int tok_model_write(const struct tok_piece *pieces, int n, struct str *out, struct err *e) {
    struct str body = {0};
    put_piece(out, &body, "<unk>", 0, PIECE_UNKNOWN);
    put_piece(out, &body, "<s>", 0, PIECE_CONTROL);
    put_piece(out, &body, "</s>", 0, PIECE_CONTROL);
    for (unsigned b = 0; b < 256; b++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", b);
        put_piece(out, &body, name, 0, PIECE_BYTE);
    }
    for (int i = 0; i < n; i++) put_piece(out, &body, pieces[i].text, pieces[i].score, PIECE_NORMAL);
    str_clear(&body);
    put_varint(&body, 3 << 3), put_varint(&body, 2);                                /* BPE */
    put_varint(&body, 4 << 3), put_varint(&body, (uint64_t)(TOK_FIXED_PIECES + n)); /* vocab_size */
    put_varint(&body, 35 << 3), put_varint(&body, 1);                               /* byte_fallback */
    put_field(out, 2, body.p, body.n);
    str_clear(&body);
    put_field(&body, 1, "identity", 8);
    put_varint(&body, 3 << 3), put_varint(&body, 1); /* add_dummy_prefix */
    put_varint(&body, 4 << 3), put_varint(&body, 0); /* remove_extra_whitespaces */
    put_varint(&body, 5 << 3), put_varint(&body, 1); /* escape_whitespaces */
    put_field(out, 3, body.p, body.n);
    int lost = out->oom || body.oom;
    str_free(&body);
    return lost ? err_set(e, ERR_RUN, "out of memory: writing a tokenizer model of %d pieces", n) : 0;
}
