/* tokenizer/vocab.c - opening a tokenizer: from pieces to the tables of tokenizer_internal.h. */
#include "base/file.h"
#include "base/sha1.h"
#include "base/sys.h"
#include "tokenizer/tokenizer_internal.h"

/* In this order: the three that the official program sets when it opens its tokenizer, then the fifteen it
 * adds. Those that are no piece of the model get the ids behind the pieces. All begin with '<' and none is
 * the beginning of another. */
/* clang-format off */
static const char *const special_names[SPECIALS] = {
    "<unk>", "<s>", "<eod>",
    "<sep>", "<pad>", "<mask>", "<predict>", "<FIM_SUFFIX>", "<FIM_PREFIX>", "<FIM_MIDDLE>", "<commit_before>",
    "<commit_msg>", "<commit_after>", "<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>",
    "<empty_output>"};
/* clang-format on */

static int table_open(struct table *s, size_t n, struct err *e) {
    for (s->bits = 4; (size_t)5 << s->bits < 8 * n;) s->bits++;
    s->slot = sys_alloc_array((size_t)1 << s->bits, sizeof *s->slot, "the hash tables of the tokenizer", e);
    return s->slot ? 0 : -1;
}

/* -1 if there is no free slot among the first `probes`. */
static int table_add(struct table *s, uint64_t hash, int32_t id, int probes) {
    uint32_t mask = (1u << s->bits) - 1;
    for (uint32_t i = slot_place(s, hash); probes-- > 0; i = (i + 1) & mask) {
        if (s->slot[i]) continue;
        s->slot[i] = slot_check(hash) | ((uint32_t)id + 1);
        return 0;
    }
    return -1;
}

/* A million random keys in a table 5/8 full have runs below 200; a file made to collide must not cost
 * minutes. */
enum { RULE_PROBES = 1000 };

static size_t piece_chars(const struct tok *t, int32_t id, uint32_t *chars) {
    const unsigned char *p = (const unsigned char *)t->blob + t->pieces[id].at,
                        *end = p + t->pieces[id].bytes;
    size_t n = 0;
    for (int k; p < end; p += k) chars[n++] = char_get(p, (size_t)(end - p), &k);
    return n;
}

/* The rule, word and joins of one piece, the shorter ones being done. */
static int learn_piece(struct tok *t, int32_t id, struct tok_merge *m, const char *where, struct err *e) {
    uint32_t chars[PIECE_MAX_BYTES];
    size_t n = piece_chars(t, id, chars), left;
    struct piece *p = &t->pieces[id];
    for (size_t i = 0; i < n; i++) m->sym[i] = chars[i];
    left = tok_merge_run(t, m, m->sym, n);
    if (left > 2) return 0; /* never comes out of merging */
    if (left == 1 && m->sym[0] != (SYM_CHAR | chars[0]))
        return err_set(e, ERR_INPUT, "%s: piece %d (\"%.*s\") occurs twice", where, id, p->bytes,
                       t->blob + p->at);
    p->left = n > 1 ? m->sym[0] : SYM_NONE;
    p->right = n > 1 ? m->sym[1] : chars[0];
    if (n == 1 && chars[0] < 0x10000) {
        t->sym_of[chars[0]] = (uint32_t)id;
        return 0;
    }
    if (table_add(&t->rules, rule_hash(p->left, p->right), id, RULE_PROBES))
        return err_set(e, ERR_INPUT, "%s: the pieces look made to slow this program down", where);
    uint64_t hash = word_step(WORD_START, chars[0]);
    for (size_t i = 1; i < n; i++) {
        uint32_t bit = join_bit(chars[i - 1], chars[i]);
        t->joins[bit >> 6] |= (uint64_t)1 << (bit & 63);
        hash = word_step(hash, chars[i]);
    }
    if (n == 2 && (chars[0] | chars[1]) < 128) t->ascii[chars[0] << 7 | chars[1]] = (uint32_t)id;
    table_add(&t->words, hash, id, WORD_PROBES);
    return 0;
}

/* Learns the NORMAL pieces in the order of their length in characters: what a piece is made of is shorter. */
static int learn(struct tok *t, const char *where, struct err *e) {
    uint32_t start[PIECE_MAX_BYTES + 2] = {0}, chars[PIECE_MAX_BYTES];
    struct tok_merge m = {0};
    size_t count = (size_t)t->model_pieces;
    int r = -1;
    uint32_t normal = 0;
    int32_t *order = sys_alloc_array(count, sizeof *order, "opening the tokenizer", e);
    if (!order || table_open(&t->rules, count, e) || table_open(&t->words, count, e)) goto out;
    if (tok_merge_reserve(&m, PIECE_MAX_BYTES, e)) goto out;
    for (uint32_t c = 0; c < 0x10000; c++) t->sym_of[c] = SYM_CHAR | c;
    for (uint32_t i = 0; i < 128 * 128; i++) t->ascii[i] = SYM_NONE;

    for (int32_t id = 0; id < t->model_pieces; id++)
        if (t->pieces[id].type == PIECE_NORMAL) start[piece_chars(t, id, chars) + 1]++, normal++;
    for (int n = 1; n <= PIECE_MAX_BYTES + 1; n++) start[n] += start[n - 1];
    for (int32_t id = 0; id < t->model_pieces; id++)
        if (t->pieces[id].type == PIECE_NORMAL) order[start[piece_chars(t, id, chars)]++] = id;
    for (uint32_t i = 0; i < normal; i++)
        if (learn_piece(t, order[i], &m, where, e)) goto out;
    r = t->sym_of[' '] < SYM_CHAR
            ? 0
            : err_set(e, ERR_INPUT, "%s: there is no piece for the blank (U+2581)", where);
out:
    tok_merge_free(&m);
    sys_free(order);
    return r;
}

static void add_specials(struct tok *t) {
    const struct piece *last = &t->pieces[t->count - 1];
    uint32_t blob_n = last->at + last->bytes;
    for (int k = 0; k < SPECIALS; k++) {
        int32_t id = tok_id(t, special_names[k]);
        if (id < 0) {
            size_t n = strlen(special_names[k]);
            id = t->count++;
            memcpy(t->blob + blob_n, special_names[k], n);
            t->pieces[id] = (struct piece){.at = blob_n, .bytes = (uint16_t)n, .type = PIECE_ADDED};
            blob_n += (uint32_t)n;
        }
        t->special[k] = id;
        t->pieces[id].special = 1;
    }
    t->eod = t->special[2];
    t->sep = t->special[3];
}

struct tok *tok_parse(const void *model, size_t bytes, const char *where, struct err *e) {
    struct tok_model m = {0};
    struct tok *t = NULL;
    if (tok_model_read(&m, model, bytes, where, e) || !(t = sys_alloc(sizeof *t, "the tokenizer", e))) {
        tok_model_free(&m);
        return NULL;
    }
    t->pieces = m.pieces, t->blob = m.blob;
    t->model_pieces = t->count = m.count;
    if (learn(t, where, e)) {
        tok_close(t);
        return NULL;
    }
    for (int32_t id = 0; id < t->count; id++)
        if (t->pieces[id].type == PIECE_BYTE) t->byte_id[t->pieces[id].byte] = id;
    add_specials(t);
    return t;
}

struct tok *tok_open(const char *dir, struct err *e) {
    char path[4096], *text = NULL;
    size_t n;
    const char *file = dir;
    if (path_is_dir(dir)) {
        if (path_join(path, sizeof path, dir, "tokenizer.model", e)) return NULL;
        if (!path_exists(path)) {
            err_set(e, ERR_INPUT, "%s holds no tokenizer.model; give the folder of a Yuan 2.0 model, or copy that file into this one", dir);
            return NULL;
        }
        file = path;
    }
    if (file_read_all(file, MODEL_MAX_BYTES, &text, &n, e)) return NULL;
    struct tok *t = tok_parse(text, n, file, e);
    sys_free(text);
    return t;
}

void tok_close(struct tok *t) {
    if (!t) return;
    tok_model_free(&(struct tok_model){.pieces = t->pieces, .blob = t->blob});
    sys_free(t->rules.slot);
    sys_free(t->words.slot);
    sys_free(t);
}

int32_t tok_count(const struct tok *t) {
    return t->count;
}
int32_t tok_pieces(const struct tok *t) {
    return t->model_pieces;
}
int32_t tok_eod(const struct tok *t) {
    return t->eod;
}
int32_t tok_sep(const struct tok *t) {
    return t->sep;
}
int tok_is_special(const struct tok *t, int32_t id) {
    return id >= 0 && id < t->count && t->pieces[id].special;
}

void tok_hash(const struct tok *t, char hex[41]) {
    struct sha1 h;
    sha1_init(&h);
    for (int32_t id = 0; id < t->count; id++) {
        const struct piece *p = &t->pieces[id];
        const uint32_t facts[] = {p->rank, p->bytes, p->type, p->byte, p->special};
        sha1_add(&h, facts, sizeof facts);
        sha1_add(&h, t->blob + p->at, p->bytes);
    }
    sha1_hex(&h, hex);
}

static int same_text(const char *piece, size_t n, const char *text) {
    for (size_t i = 0; i < n; i++) {
        if (piece[i] == ' ' && !strncmp(text, "\xE2\x96\x81", 3))
            text += 3;
        else if (piece[i] && *text == piece[i])
            text++;
        else
            return 0;
    }
    return !*text;
}

int32_t tok_id(const struct tok *t, const char *text) {
    for (int32_t id = 0; id < t->count; id++)
        if (same_text(t->blob + t->pieces[id].at, t->pieces[id].bytes, text)) return id;
    return -1;
}
