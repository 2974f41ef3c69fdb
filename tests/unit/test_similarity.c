/* BLEU-4 and ROUGE: values by hand, values that NLTK and rouge_chinese give for the same words, and a plain implementation of
 * the rules over random texts. */
#include "base/sys.h"
#include "tests/test.h"
#include "train/similarity.h"
#include <errno.h>
#include <math.h>

static struct similarity of(const char *answer, const char *label) {
    struct similarity s;
    struct err e = {0};
    if (similarity_of(answer, strlen(answer), label, strlen(label), &s, &e)) abort();
    return s;
}

static void expect(const char *answer, const char *label, double bleu, double r1, double r2, double rl) {
    struct similarity s = of(answer, label);
    /* all numbers have four digits */
    CHECK(fabs(s.bleu4 - bleu) < 1e-9 && fabs(s.rouge1 - r1) < 1e-9 && fabs(s.rouge2 - r2) < 1e-9 && fabs(s.rougel - rl) < 1e-9,
          "\"%s\" for \"%s\": %.4f %.4f %.4f %.4f, not %.4f %.4f %.4f %.4f", answer, label, s.bleu4, s.rouge1, s.rouge2, s.rougel, bleu, r1, r2, rl);
}

TEST(by_hand) {
    /* 4 equal characters: every precision 1 */
    expect("abcd", "abcd", 100, 100, 0, 100);
    /* one word, one character: p = 1, 1/2, 1/4, 1/8 with denominators of 1 -> (1/64)^(1/4) */
    expect("a", "a", 35.3553, 100, 0, 100);
    /* shorter than the label: p = 1, 1, 1, (1/2)/1; times exp(1 - 4/3): 0.5^(1/4) e^(-1/3) */
    expect("abc", "abcd", 60.2529, 0, 0, 0);
    /* 红色。/蓝色。: characters p = 2/3, 1/2, (1/2)/1, (1/4)/1; words P = R = 2/3, pairs 1/2, subsequence 2 of 3 */
    expect("红色。", "蓝色。", 45.1801, 66.6667, 50, 66.6667);
    /* distinct words: {the} against {the}; subsequence: 1 of 1, 1 of 3 */
    expect("the", "the the the", 5.8428, 100, 0, 50);
    expect("", "x", 0, 0, 0, 0);
    expect("x", "", 0, 0, 0, 0);
    expect(" \n", "x", 0, 0, 0, 0);
    expect("xyz", "abc", 0, 0, 0, 0);
}

TEST(as_the_libraries) {
    expect("the cat sat on the mat", "the cat is on the mat", 78.3920, 80, 60, 83.3333);
    expect("我喜欢吃鱼", "我爱吃鱼。", 23.6435, 60, 25, 60);
}

TEST(words_and_bytes) {
    /* letters and digits run together, signs and Chinese stand alone, blanks part */
    CHECK(of("GPT4,很好", "GPT4 , 很 好").rougel == 100, "words");
    CHECK(of("GPT4", "GPT 4").rougel == 0, "a blank parts");
    CHECK(of("a\u3000b", "a b").rouge2 == 100, "the wide blank is one");
    CHECK(of("\xff\xfe", "\xfe\xff").rouge1 == 100, "bytes that are no UTF-8 are all alike");
}

/* ---- the rules, as plainly as they can be written: texts of one-byte characters; words are characters ---- */

static int same(const char *a, const char *b, int n) { return !memcmp(a, b, (size_t)n); }
static int times(const char *text, const char *gram, int n) {
    int k = 0;
    for (int i = 0; i + n <= (int)strlen(text); i++) k += same(text + i, gram, n);
    return k;
}
static int first_time(const char *text, int at, int n) {
    for (int i = 0; i < at; i++)
        if (same(text + i, text + at, n)) return 0;
    return 1;
}
static double plain_bleu(const char *h, const char *l) {
    double product = 1;
    int k = 0, nh = (int)strlen(h), nl = (int)strlen(l);
    for (int n = 1; n <= 4; n++) {
        int match = 0, all = nh - n + 1 > 1 ? nh - n + 1 : 1;
        for (int i = 0; i + n <= nh; i++)
            if (first_time(h, i, n)) match += times(h, h + i, n) < times(l, h + i, n) ? times(h, h + i, n) : times(l, h + i, n);
        if (n == 1 && !match) return 0;
        product *= match ? (double)match / all : 1 / (pow(2, ++k) * all);
    }
    return (nh > nl ? 1 : exp(1 - (double)nl / nh)) * pow(product, 0.25);
}
static double plain_f(double common, double h, double l) {
    double p = h > 0 ? common / h : 0, r = l > 0 ? common / l : 0;
    return 2 * p * r / (p + r + 1e-8);
}
static double plain_rouge(const char *h, const char *l, int n) {
    int nh = 0, nl = 0, common = 0;
    for (int i = 0; i + n <= (int)strlen(h); i++)
        if (first_time(h, i, n)) nh++, common += times(l, h + i, n) > 0;
    for (int i = 0; i + n <= (int)strlen(l); i++) nl += first_time(l, i, n);
    return plain_f(common, nh, nl);
}
static int plain_subsequence(const char *h, const char *l) { /* by its own definition */
    if (!*h || !*l) return 0;
    if (*h == *l) return 1 + plain_subsequence(h + 1, l + 1);
    int a = plain_subsequence(h + 1, l), b = plain_subsequence(h, l + 1);
    return a > b ? a : b;
}

TEST(random_texts) {
    uint32_t seed = 7;
    for (int run = 0; run < 300; run++) {
        char text[2][12] = {"", ""};
        for (int k = 0; k < 2; k++) {
            seed = seed * 1664525 + 1013904223;
            int n = (int)(seed >> 16) % 11;
            for (int i = 0; i < n; i++) seed = seed * 1664525 + 1013904223, text[k][i] = ",;!?"[seed >> 30]; /* words of one character */
        }
        const char *h = text[0], *l = text[1];
        struct similarity s = of(h, l);
        int any = *h && *l;
        /* 4 digits of a per cent */
        CHECK(fabs(s.bleu4 - (any ? 100 * plain_bleu(h, l) : 0)) <= 5.001e-5, "\"%s\" \"%s\": bleu %g", h, l, s.bleu4);
        CHECK(fabs(s.rouge1 - 100 * plain_rouge(h, l, 1)) <= 5.001e-5, "\"%s\" \"%s\": rouge-1 %g", h, l, s.rouge1);
        CHECK(fabs(s.rouge2 - 100 * plain_rouge(h, l, 2)) <= 5.001e-5, "\"%s\" \"%s\": rouge-2 %g", h, l, s.rouge2);
        CHECK(fabs(s.rougel - (any ? 100 * plain_f(plain_subsequence(h, l), (double)strlen(h), (double)strlen(l)) : 0)) <= 5.001e-5, "\"%s\" \"%s\": rouge-l %g", h, l, s.rougel);
    }
}

TEST(no_memory) {
    for (int64_t at = 1; at <= 10; at++) {
        struct similarity s;
        struct err e = {0};
        sys_fault = (struct sys_fault){.kinds = "a", .at = at, .error = ENOMEM};
        int r = similarity_of("红色 a", 8, "红 b", 5, &s, &e);
        int reached = sys_fault.calls >= at;
        sys_fault = (struct sys_fault){0};
        CHECK(reached ? r == -1 && e.code == ERR_RUN : !r, "allocation %d: %d %s", (int)at, r, e.text);
    }
}
TEST_MAIN
