/* train/similarity.c - see similarity.h.
 *
 * BLEU-4 over characters (code points, blanks too), Papineni et al. 2002: with h, l the lengths of answer and label and
 * p_n = (n-grams of the answer found in the label, each at most as often as there) / (n-grams of the answer, at least 1),
 *
 *     BLEU = min(1, exp(1 - l/h)) (p_1 p_2 p_3 p_4)^(1/4)
 *
 * where the k-th p_n without a match is 1 / (2^k its denominator) (Chen & Cherry 2014, smoothing 3), and 0 without any
 * common character.
 * ROUGE over words, Lin 2004: F = 2PR / (P + R + 1e-8); ROUGE-n: P, R the shares of distinct n-grams that both have;
 * ROUGE-L: of the longest common subsequence. Words are runs of ASCII letters and digits; any other visible character
 * is one. No word on either side: 0. */
#include "train/similarity.h"
#include "base/str.h"
#include "base/sys.h"
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tokens { uint32_t *p; int64_t n; };

/* ---- text to numbers: equal tokens, equal numbers ---- */

static uint32_t next_char(const unsigned char *p, size_t n, size_t *len) {
    uint32_t cp = 0xfffd; /* bytes that are not UTF-8 */
    int k = utf8_get(p, n, &cp);
    *len = k ? (size_t)k : 1;
    return k ? cp : 0xfffd;
}

static int characters(const char *text, size_t n, struct tokens *out, struct err *e) {
    if (!(out->p = sys_alloc_array(n, sizeof *out->p, "characters", e))) return -1;
    for (size_t i = 0, len; i < n; i += len) out->p[out->n++] = next_char((const unsigned char *)text + i, n - i, &len);
    return 0;
}

static int is_word_char(uint32_t c) { return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z'); }
static int is_blank(uint32_t c) { /* what Python's str.split() splits at */
    return c <= ' ' || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

struct word { const uint32_t *p; int64_t n, at; }; /* at: its place in both texts together */

static int by_text(const void *a, const void *b) {
    const struct word *x = a, *y = b;
    int64_t n = x->n < y->n ? x->n : y->n;
    for (int64_t i = 0; i < n; i++)
        if (x->p[i] != y->p[i]) return x->p[i] < y->p[i] ? -1 : 1;
    return (x->n > y->n) - (x->n < y->n);
}

/* Appends the words of a text to w. */
static int64_t split(const struct tokens *t, struct word *w, int64_t at) {
    int64_t n = 0;
    for (int64_t i = 0, k; i < t->n; i = k) {
        for (k = i + 1; is_word_char(t->p[i]) && k < t->n && is_word_char(t->p[k]);) k++;
        if (!is_blank(t->p[i])) w[n] = (struct word){t->p + i, k - i, at + n}, n++;
    }
    return n;
}

/* The words of both texts, numbered. */
static int words(const struct tokens *a, const struct tokens *b, struct tokens out[2], struct err *e) {
    struct word *w = sys_alloc_array((size_t)(a->n + b->n), sizeof *w, "words", e);
    out[0].p = sys_alloc_array((size_t)(a->n + b->n), sizeof *out[0].p, "words", e);
    if (!w || !out[0].p) return sys_free(w), -1;
    out[0].n = split(a, w, 0), out[1].n = split(b, w + out[0].n, out[0].n);
    int64_t n = out[0].n + out[1].n;
    uint32_t id = 0;
    qsort(w, (size_t)n, sizeof *w, by_text);
    for (int64_t i = 0; i < n; i++) out[0].p[w[i].at] = id += i && by_text(&w[i - 1], &w[i]);
    out[1].p = out[0].p + out[0].n; /* one block: freed with out[0] */
    sys_free(w);
    return 0;
}

/* ---- n-grams ---- */

enum { ORDER_MAX = 4 };
struct gram { uint32_t t[ORDER_MAX]; }; /* shorter ones are filled up with zeros */

static int by_gram(const void *a, const void *b) {
    const struct gram *x = a, *y = b;
    for (int i = 0; i < ORDER_MAX; i++)
        if (x->t[i] != y->t[i]) return x->t[i] < y->t[i] ? -1 : 1;
    return 0;
}

static int64_t grams(const struct tokens *t, int order, struct gram *g) {
    int64_t n = t->n - order + 1;
    if (n <= 0) return 0;
    memset(g, 0, (size_t)n * sizeof *g);
    for (int64_t i = 0; i < n; i++) memcpy(g[i].t, t->p + i, (size_t)order * sizeof *t->p);
    qsort(g, (size_t)n, sizeof *g, by_gram);
    return n;
}

struct match { int64_t common, a, b; }; /* of the lists a and b */

/* Walks two sorted lists together. distinct: each n-gram counts once. */
static struct match compare(const struct tokens *x, const struct tokens *y, int order, int distinct, struct gram *room) {
    struct gram *a = room, *b = room + x->n;
    int64_t n = grams(x, order, a), m = grams(y, order, b), i = 0, j = 0;
    struct match r = {0};
    while (i < n || j < m) {
        int c = i == n ? 1 : j == m ? -1 : by_gram(&a[i], &b[j]);
        int64_t p = i, q = j;
        while (c <= 0 && p < n && !by_gram(&a[p], &a[i])) p++;
        while (c >= 0 && q < m && !by_gram(&b[q], &b[j])) q++;
        int64_t here = p - i, there = q - j, both = here < there ? here : there;
        r.a += distinct ? here > 0 : here, r.b += distinct ? there > 0 : there, r.common += distinct ? both > 0 : both;
        i = p, j = q;
    }
    return r;
}

/* ---- scores ---- */

static double bleu4(const struct tokens *answer, const struct tokens *label, struct gram *room) {
    double logs = 0, smooth = 1;
    for (int order = 1; order <= ORDER_MAX; order++) {
        struct match m = compare(answer, label, order, 0, room);
        double all = m.a > 1 ? (double)m.a : 1;
        if (order == 1 && !m.common) return 0;
        logs += log(m.common ? (double)m.common / all : 1 / ((smooth *= 2) * all)) / ORDER_MAX;
    }
    double penalty = answer->n > label->n ? 1 : exp(1 - (double)label->n / (double)answer->n);
    return penalty * exp(logs);
}

static double f_score(int64_t common, int64_t a, int64_t b) {
    double p = a ? (double)common / (double)a : 0, r = b ? (double)common / (double)b : 0;
    return 2 * p * r / (p + r + 1e-8);
}

static double rouge_n(const struct tokens w[2], int order, struct gram *room) {
    struct match m = compare(&w[0], &w[1], order, 1, room);
    return f_score(m.common, m.a, m.b);
}

/* Length of the longest common subsequence, a row of the table at a time. */
static int64_t common_subsequence(const struct tokens *a, const struct tokens *b, int32_t *row) {
    memset(row, 0, (size_t)(b->n + 1) * sizeof *row);
    for (int64_t i = 0; i < a->n; i++) {
        int32_t corner = 0;
        for (int64_t j = 0; j < b->n; j++) {
            int32_t above = row[j + 1];
            if (a->p[i] == b->p[j]) row[j + 1] = corner + 1;
            else if (row[j] > above) row[j + 1] = row[j];
            corner = above;
        }
    }
    return row[b->n];
}

/* round(100 x, 4) as Python does it: by the exact decimal value. */
static double percent(double x) {
    char text[64];
    snprintf(text, sizeof text, "%.4f", 100 * x);
    return strtod(text, NULL);
}

int similarity_of(const char *answer, size_t answer_n, const char *label, size_t label_n, struct similarity *out, struct err *e) {
    struct tokens a = {0}, b = {0}, w[2] = {{0}, {0}};
    struct gram *room = NULL;
    int32_t *row = NULL;
    int rc = -1;
    *out = (struct similarity){0};
    if (characters(answer, answer_n, &a, e) || characters(label, label_n, &b, e) || words(&a, &b, w, e)) goto out;
    room = sys_alloc_array((size_t)(a.n + b.n), sizeof *room, "n-grams", e);
    row = sys_alloc_array((size_t)w[1].n + 1, sizeof *row, "a row of words", e);
    if (!room || !row) goto out;
    out->bleu4 = a.n ? percent(bleu4(&a, &b, room)) : 0;
    if (w[0].n && w[1].n) {
        out->rouge1 = percent(rouge_n(w, 1, room)), out->rouge2 = percent(rouge_n(w, 2, room));
        out->rougel = percent(f_score(common_subsequence(&w[0], &w[1], row), w[0].n, w[1].n));
    }
    rc = 0;
out:
    sys_free(a.p), sys_free(b.p), sys_free(w[0].p), sys_free(room), sys_free(row);
    return rc;
}
