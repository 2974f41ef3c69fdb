/* examples/demo/make_tokenizer.c - trains a small tokenizer on text files, in the form of Yuan's.
 *
 *     make_tokenizer OUT VOCAB TEXT...       writes OUT/tokenizer.model with at most VOCAB pieces
 *
 * Byte pair encoding (Sennrich et al. 2016): the characters first, then again and again the most frequent
 * pair of neighbours becomes a piece. Pieces stay within words: a blank begins one, a line feed ends one,
 * and letters, digits, signs and Chinese stand apart. Equal counts: the pair met first wins, so the same
 * texts give the same file. '<' and '>' join nothing: the special strings, which are pieces, never come
 * out of merging.
 *
 * Each different word lies once in an array of places. A pair knows its count and its places, a list
 * threaded through that array, and merging it touches only these and their neighbours. A heap holds the
 * pairs by count; counts of old pairs only fall, so an entry is corrected when it comes up. */
#include "base/file.h"
#include "base/sys.h"
#include "tokenizer/tokenizer.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const specials[] = {"<eod>",           "<n>",
                                       "<sep>",           "<pad>",
                                       "<mask>",          "<predict>",
                                       "<FIM_SUFFIX>",    "<FIM_PREFIX>",
                                       "<FIM_MIDDLE>",    "<commit_before>",
                                       "<commit_msg>",    "<commit_after>",
                                       "<jupyter_start>", "<jupyter_text>",
                                       "<jupyter_code>",  "<jupyter_output>",
                                       "<empty_output>"};
enum { SPECIALS = sizeof specials / sizeof *specials, CODE_POINTS = 0x110000, BLANK = 0x2581, NONE = -1 };
enum { PIECE_BYTES = 48, TEXT_BYTES = 1 << 26 };

struct word {
    const char *p;
    int32_t bytes, count;
};
struct place {
    int32_t symbol, prev, next, count, pair, pair_prev, pair_next;
}; /* prev and next: in the word */
struct pair {
    int32_t left, right, first;
    int64_t count;
};

struct trainer {
    char (*text)[PIECE_BYTES + 1]; /* [symbol_max] */
    int32_t symbol_count, symbol_max;
    struct place *places;
    struct pair *pairs;
    int32_t place_count, pair_count, pair_max, slot_mask;
    int32_t *slots; /* open addressing: left, right -> pair */
    uint64_t *heap; /* smallest first: (INT32_MAX - count) << 32 | pair; [pair_max] */
    int32_t heap_count;
};

/* ---- words ---- */

/* All texts as one, each line with a blank in front as encoding puts it, without control characters. */
static int read_texts(char **paths, struct str *all, struct err *e) {
    for (; *paths; paths++) {
        char *text;
        size_t n;
        if (file_read_all(*paths, TEXT_BYTES, &text, &n, e)) return -1;
        str_puts(all, "\n ");
        for (size_t at = 0, k; at < n; at += k) {
            uint32_t c;
            int bytes = utf8_get((unsigned char *)text + at, n - at, &c);
            k = bytes > 0 ? (size_t)bytes : 1;
            if (bytes > 0 && c == '\n')
                str_puts(all, "\n ");
            else if (bytes > 0 && c >= ' ' && c != 0x7F)
                str_add(all, text + at, k);
        }
        sys_free(text);
    }
    return all->oom || all->n > TEXT_BYTES ? err_set(e, ERR_RUN, "the texts are too large to learn from") : 0;
}

enum { K_BLANK, K_LINE, K_DIGIT, K_LETTER, K_SIGN, K_IDEOGRAPH };
static int kind_of(uint32_t c) {
    if (c == ' ' || c == BLANK) return K_BLANK;
    if (c == '\n') return K_LINE;
    if (c >= '0' && c <= '9') return K_DIGIT;
    if ((c | 32) >= 'a' && (c | 32) <= 'z') return K_LETTER;
    if (c < 0xC0 || (c >= 0x2000 && c < 0x3040) || (c >= 0xFF00 && c < 0xFFF0)) return K_SIGN;
    return c < 0x2000 ? K_LETTER : K_IDEOGRAPH;
}

static int by_bytes(const void *a, const void *b) {
    const struct word *x = a, *y = b;
    int r = memcmp(x->p, y->p, (size_t)(x->bytes < y->bytes ? x->bytes : y->bytes));
    return r ? r : x->bytes - y->bytes;
}

/* The different words with their counts, sorted. */
static struct word *split_words(const struct str *all, int32_t *count, struct err *e) {
    struct word *words = sys_alloc_array(all->n + 1, sizeof *words, "words", e);
    int32_t n = 0;
    int last = K_LINE;
    if (!words) return NULL;
    for (size_t at = 0; at < all->n;) {
        uint32_t c;
        int k = utf8_get((unsigned char *)all->p + at, all->n - at, &c), kind = kind_of(c);
        if (last == K_LINE || (kind != last && last != K_BLANK))
            words[n++] = (struct word){all->p + at, 0, 1};
        words[n - 1].bytes += k;
        at += (size_t)k;
        last = kind;
    }
    qsort(words, (size_t)n, sizeof *words, by_bytes);
    *count = 0;
    for (int32_t i = 0; i < n; i++) {
        if (words[i].p[0] == '\n') continue;
        if (*count && !by_bytes(&words[*count - 1], &words[i]))
            words[*count - 1].count++;
        else
            words[(*count)++] = words[i];
    }
    return words;
}

/* ---- characters ---- */

struct character {
    uint32_t c;
    int64_t count;
};
static int by_count(const void *a, const void *b) {
    const struct character *x = a, *y = b;
    return x->count != y->count ? (x->count < y->count ? 1 : -1) : x->c < y->c ? -1 : 1;
}

static uint32_t char_at(const struct word *w, int32_t at, int *bytes) {
    uint32_t c;
    *bytes = utf8_get((const unsigned char *)w->p + at, (size_t)(w->bytes - at), &c);
    return c == ' ' ? BLANK : c;
}

/* The most frequent characters become the first symbols: 99.95 % of the text, or half of what there is
 * room for; the others stay bytes. symbol_of[c] is NONE for those. */
static int choose_characters(struct trainer *t, const struct word *words, int32_t word_count,
                             int32_t *symbol_of, struct err *e) {
    struct character *chars = sys_alloc_array(CODE_POINTS, sizeof *chars, "characters", e);
    int64_t total = 0, covered = 0;
    struct str utf8 = {0};
    if (!chars) return -1;
    for (uint32_t c = 0; c < CODE_POINTS; c++) chars[c].c = c, symbol_of[c] = NONE;
    for (int32_t i = 0; i < word_count; i++)
        for (int32_t at = 0, k; at < words[i].bytes; at += k, total += words[i].count)
            chars[char_at(&words[i], at, &k)].count += words[i].count;
    chars[BLANK].count += total + 1; /* always, and first */
    covered -= total + 1;
    qsort(chars, CODE_POINTS, sizeof *chars, by_count);
    for (int32_t i = 0; chars[i].count && i < t->symbol_max / 2 && (double)covered < 0.9995 * (double)total;
         i++) {
        str_clear(&utf8);
        str_utf8(&utf8, chars[i].c);
        if (utf8.oom) break;
        memcpy(t->text[i], utf8.p, utf8.n);
        symbol_of[chars[i].c] = t->symbol_count++;
        covered += chars[i].count;
    }
    int r = utf8.oom ? err_set(e, ERR_RUN, "out of memory") : 0;
    str_free(&utf8);
    sys_free(chars);
    return r;
}

/* ---- pairs ---- */

static void heap_push(struct trainer *t, int32_t pair) {
    uint64_t x = (uint64_t)(INT32_MAX - t->pairs[pair].count) << 32 | (uint32_t)pair;
    int32_t i = t->heap_count++;
    for (; i > 0 && x < t->heap[(i - 1) / 2]; i = (i - 1) / 2) t->heap[i] = t->heap[(i - 1) / 2];
    t->heap[i] = x;
}

/* The pair with the highest count, or NONE. */
static int32_t heap_pop(struct trainer *t) {
    while (t->heap_count) {
        uint64_t top = t->heap[0], x = t->heap[--t->heap_count];
        int32_t i = 0;
        for (int32_t k; (k = 2 * i + 1) < t->heap_count; i = k) {
            if (k + 1 < t->heap_count && t->heap[k + 1] < t->heap[k]) k++;
            if (x <= t->heap[k]) break;
            t->heap[i] = t->heap[k];
        }
        t->heap[i] = x;
        int32_t pair = (int32_t)(uint32_t)top;
        if (t->pairs[pair].count == INT32_MAX - (int64_t)(top >> 32)) return pair;
        heap_push(t, pair); /* its count has fallen since */
    }
    return NONE;
}

static int32_t find_pair(struct trainer *t, int32_t left, int32_t right) {
    uint32_t i = (uint32_t)((((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u) >> 32);
    for (;; i++) {
        int32_t *slot = &t->slots[i & (uint32_t)t->slot_mask];
        if (*slot == NONE) {
            *slot = t->pair_count;
            t->pairs[t->pair_count] = (struct pair){left, right, NONE, 0};
            return t->pair_count++;
        }
        if (t->pairs[*slot].left == left && t->pairs[*slot].right == right) return *slot;
    }
}

/* Enters the pair that begins at a place, if there is one that may merge. */
static void enter(struct trainer *t, int32_t at) {
    struct place *a = &t->places[at];
    int32_t left = a->symbol, right = a->next == NONE ? NONE : t->places[a->next].symbol;
    a->pair = NONE;
    if (left == NONE || right == NONE || strchr("<>", t->text[left][0]) || strchr("<>", t->text[right][0]))
        return;
    a->pair = find_pair(t, left, right);
    struct pair *p = &t->pairs[a->pair];
    a->pair_prev = NONE;
    a->pair_next = p->first;
    if (p->first != NONE) t->places[p->first].pair_prev = at;
    p->first = at;
    p->count += a->count;
}

static void leave(struct trainer *t, int32_t at) {
    struct place *a = &t->places[at];
    if (a->pair == NONE) return;
    struct pair *p = &t->pairs[a->pair];
    if (a->pair_prev == NONE)
        p->first = a->pair_next;
    else
        t->places[a->pair_prev].pair_next = a->pair_next;
    if (a->pair_next != NONE) t->places[a->pair_next].pair_prev = a->pair_prev;
    p->count -= a->count;
}

static void merge_places(struct trainer *t, int32_t pair, int32_t symbol) {
    for (int32_t i; (i = t->pairs[pair].first) != NONE;) {
        struct place *a = &t->places[i];
        int32_t gone = a->next;
        if (a->prev != NONE) leave(t, a->prev);
        leave(t, i);
        leave(t, gone);
        a->symbol = symbol;
        a->next = t->places[gone].next;
        if (a->next != NONE) t->places[a->next].prev = i;
        enter(t, i);
        if (a->prev != NONE) enter(t, a->prev);
    }
}

/* Each word once, as the symbols of its characters; its pairs entered from the end, so that lists begin at
 * the left. */
static int lay_out(struct trainer *t, const struct word *words, int32_t word_count, const int32_t *symbol_of,
                   struct err *e) {
    size_t chars = 0;
    for (int32_t i = 0; i < word_count; i++)
        for (int32_t at = 0, k; at < words[i].bytes; at += k, chars++) char_at(&words[i], at, &k);
    /* A merge at a place enters two pairs and takes one place away: three new pairs for each place at most. */
    t->pair_max = (int32_t)(3 * chars + 1);
    for (t->slot_mask = 1; t->slot_mask < t->pair_max;) t->slot_mask = 2 * t->slot_mask + 1;
    t->slot_mask = 2 * t->slot_mask + 1;
    t->places = sys_alloc_array(chars, sizeof *t->places, "the text", e);
    t->pairs = sys_alloc_array((size_t)t->pair_max, sizeof *t->pairs, "pairs", e);
    t->heap = sys_alloc_array((size_t)t->pair_max, sizeof *t->heap, "pairs", e);
    t->slots = sys_alloc_array((size_t)t->slot_mask + 1, sizeof *t->slots, "pairs", e);
    if (!t->places || !t->pairs || !t->heap || !t->slots) return -1;
    memset(t->slots, 0xFF, ((size_t)t->slot_mask + 1) * sizeof *t->slots);
    for (int32_t i = 0; i < word_count; i++)
        for (int32_t at = 0, k; at < words[i].bytes; at += k) {
            int32_t n = t->place_count++, symbol = symbol_of[char_at(&words[i], at, &k)];
            t->places[n] = (struct place){.symbol = symbol,
                                          .prev = at ? n - 1 : NONE,
                                          .count = words[i].count,
                                          .next = at + k < words[i].bytes ? n + 1 : NONE};
        }
    for (int32_t n = t->place_count; n-- > 0;) enter(t, n);
    for (int32_t i = 0; i < t->pair_count; i++) heap_push(t, i);
    return 0;
}

static int is_known(const struct trainer *t, const char *text) {
    for (int32_t i = 0; i < t->symbol_count; i++)
        if (!strcmp(t->text[i], text)) return 1;
    return 0;
}

static void learn(struct trainer *t) {
    int32_t best;
    while (t->symbol_count < t->symbol_max && (best = heap_pop(t)) != NONE && t->pairs[best].count > 1) {
        char text[2 * PIECE_BYTES + 1];
        snprintf(text, sizeof text, "%s%s", t->text[t->pairs[best].left], t->text[t->pairs[best].right]);
        if (strlen(text) > PIECE_BYTES || is_known(t, text)) continue; /* this pair stays as it is */
        int32_t before = t->pair_count;
        memcpy(t->text[t->symbol_count], text, strlen(text) + 1);
        merge_places(t, best, t->symbol_count++);
        for (int32_t i = before; i < t->pair_count; i++) heap_push(t, i);
    }
}

/* Merged pieces in the order of learning, then characters, then the special strings with the highest
 * score, as Yuan has them. */
static int write_model(const struct trainer *t, int32_t characters, const char *folder, struct err *e) {
    struct tok_piece *pieces =
        sys_alloc_array((size_t)t->symbol_count + SPECIALS, sizeof *pieces, "pieces", e);
    struct str model = {0};
    char path[4096];
    int n = 0, r = -1;
    if (!pieces) return -1;
    for (int32_t k = 0; k < t->symbol_count; k++, n++) {
        int32_t from = k + characters < t->symbol_count ? k + characters : k + characters - t->symbol_count;
        pieces[n] = (struct tok_piece){t->text[from], (float)-(k + 1)};
    }
    for (int k = 0; k < SPECIALS; k++) pieces[n++] = (struct tok_piece){specials[k], 0};
    if (tok_model_write(pieces, n, &model, e)) goto out;
    struct tok *check = tok_parse(model.p, model.n, "the new tokenizer", e);
    if (!check) goto out;
    tok_close(check);
    if (dir_make(folder, e) || path_join(path, sizeof path, folder, "tokenizer.model", e)) goto out;
    if (!(r = file_write_all(path, model.p, model.n, e)))
        printf("%s: %d pieces\n", path, TOK_FIXED_PIECES + n);
out:
    str_free(&model);
    sys_free(pieces);
    return r;
}

static int train(struct trainer *t, const char *folder, char **texts, struct err *e) {
    struct str all = {0};
    struct word *words = NULL;
    int32_t word_count, r = -1, *symbol_of = sys_alloc_array(CODE_POINTS, sizeof *symbol_of, "characters", e);
    t->text = sys_alloc_array((size_t)t->symbol_max, sizeof *t->text, "pieces", e);
    if (!symbol_of || !t->text || read_texts(texts, &all, e) || !(words = split_words(&all, &word_count, e)))
        goto out;
    if (choose_characters(t, words, word_count, symbol_of, e) || lay_out(t, words, word_count, symbol_of, e))
        goto out;
    int32_t characters = t->symbol_count;
    learn(t);
    r = write_model(t, characters, folder, e);
out:
    str_free(&all);
    sys_free(words), sys_free(symbol_of), sys_free(t->text);
    sys_free(t->places), sys_free(t->pairs), sys_free(t->heap), sys_free(t->slots);
    return r;
}

int main(int argc, char **argv) {
    struct err e = {0};
    char *end = "x";
    long vocab = argc > 3 ? strtol(argv[2], &end, 10) : 0;
    if (*end || vocab < 300 || vocab > 65536) {
        fprintf(stderr, "usage: make_tokenizer OUT VOCAB TEXT...   (300 to 65536 pieces)\n");
        return ERR_INPUT;
    }
    struct trainer t = {.symbol_max = (int32_t)vocab - TOK_FIXED_PIECES - SPECIALS};
    return train(&t, argv[1], argv + 3, &e) ? err_print(&e) : 0;
}
