/* tests/fuzz/mutate.h - mutations that keep to a grammar, for targets whose inputs plain bytes do not get deep into.
 *
 *     size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned seed) {
 *         struct mutator m = mutate_begin(seed);
 *         return mutate_plain(&m) ? LLVMFuzzerMutate(data, n, max) : mutate_json(&m, data, n, max, words, WORDS);
 *     }
 *
 * All work in place on data[0..n) of at most max bytes and return the new size; what does not fit is left as it was. A third
 * of the mutations stay plain, so that whatever a grammar cannot say is tried too. */
#ifndef QLORA_TESTS_FUZZ_MUTATE_H
#define QLORA_TESTS_FUZZ_MUTATE_H
#include "tests/fuzz/steady.h"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Mutators are not what is searched: under libFuzzer nothing watches them. The tests' builds, which replay, check them. */
#define MUTATORS_BEGIN
#define MUTATORS_END
#ifdef __has_feature
#if __has_feature(coverage_sanitizer)
#undef MUTATORS_BEGIN
#undef MUTATORS_END
#define MUTATORS_BEGIN _Pragma("clang attribute push(__attribute__((no_sanitize(\"coverage\", \"address\", \"undefined\"))), apply_to = function)")
#define MUTATORS_END _Pragma("clang attribute pop")
#endif
#endif
MUTATORS_BEGIN

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned seed);

struct mutator { uint64_t state; };
static inline struct mutator mutate_begin(unsigned seed) { return (struct mutator){seed * 0x9e3779b97f4a7c15u + 1}; }
/* 0 .. below-1 (splitmix64) */
static inline size_t mutate_pick(struct mutator *m, size_t below) {
    uint64_t z = m->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u, z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return below ? (size_t)((z ^ z >> 31) % below) : 0;
}
static inline int mutate_plain(struct mutator *m) { return mutate_pick(m, 3) == 0; }

/* data[at .. at+gone) becomes text[0..k); text may lie in data. */
static inline size_t mutate_splice(uint8_t *data, size_t n, size_t max, size_t at, size_t gone, const void *text, size_t k) {
    if (n - gone + k > max) return n;
    uint8_t *copy = malloc(k + 1);
    if (!copy) return n;
    memcpy(copy, text, k);
    memmove(data + at + k, data + at + gone, n - at - gone);
    memcpy(data + at, copy, k);
    free(copy);
    return n - gone + k;
}

/* Two spans change places; the first ends before the second begins. */
static inline size_t mutate_swap(uint8_t *data, size_t n, size_t a, size_t an, size_t b, size_t bn) {
    uint8_t *copy = malloc(b + bn - a + 1), *p = copy;
    if (!copy) return n;
    memcpy(p, data + b, bn), p += bn;
    memcpy(p, data + a + an, b - a - an), p += b - a - an;
    memcpy(p, data + a, an);
    memcpy(data + a, copy, b + bn - a);
    free(copy);
    return n;
}

static const char *const mutate_numbers[] = {"0", "1", "-1", "2", "8", "255", "256", "65535", "65536", "2147483647", "2147483648", "4294967295", "4294967296", "9007199254740993",
    "9223372036854775807", "9223372036854775808", "18446744073709551616", "-0", "0.5", "1e308", "1e999", "-1e-400", "01", "1.", "NaN"};
enum { MUTATE_NUMBERS = sizeof mutate_numbers / sizeof *mutate_numbers };

/* ---- lines: command lines, flat YAML, CSV ---- */

/* Deletes, doubles, swaps and indents lines; puts words in place of values or lines. */
static inline size_t mutate_lines(struct mutator *m, uint8_t *data, size_t n, size_t max, const char *const *words, size_t n_words) {
    enum { LINES = 256 };
    size_t at[LINES + 1], lines = 0;
    for (size_t i = 0; i < n && lines < LINES; at[++lines] = i) {
        at[lines] = i;
        while (i < n && data[i++] != '\n') {}
    }
    const char *word = words[mutate_pick(m, n_words)], *number = mutate_numbers[mutate_pick(m, MUTATE_NUMBERS)];
    if (!lines) return mutate_splice(data, n, max, 0, 0, word, strlen(word));
    size_t k = mutate_pick(m, lines), from = at[k], size = at[k + 1] - from, other = mutate_pick(m, lines);
    size_t value = from;
    while (value < from + size && !strchr(":= \t", data[value])) value++;
    while (value < from + size && strchr(":= \t", data[value])) value++;
    size_t end = from + size - (size && data[from + size - 1] == '\n');
    if (value > end) value = end;
    switch (mutate_pick(m, 9)) {
    case 0: return mutate_splice(data, n, max, from, size, "", 0);
    case 1: return mutate_splice(data, n, max, from, 0, data + from, size);
    case 2: return k == other ? n : k < other ? mutate_swap(data, n, from, size, at[other], at[other + 1] - at[other]) : mutate_swap(data, n, at[other], at[other + 1] - at[other], from, size);
    case 3: return mutate_splice(data, n, max, value, end - value, number, strlen(number));
    case 4: return mutate_splice(data, n, max, value, end - value, word, strlen(word));
    case 5: return mutate_splice(data, n, max, mutate_pick(m, 2) ? from : end, 0, "  ", 1 + mutate_pick(m, 2));
    case 6: {
        char line[200];
        int w = snprintf(line, sizeof line, "%.190s\n", word);
        return mutate_splice(data, n, max, from, 0, line, (size_t)w);
    }
    case 7: return mutate_splice(data, n, max, from, size, data + at[other], at[other + 1] - at[other]);
    default: return mutate_splice(data, n, max, from + mutate_pick(m, size + 1), 0, &"\"'#[]{}|>&*,:-\n\t"[mutate_pick(m, 16)], 1);
    }
}

/* ---- JSON ---- */

struct json_token { size_t at, n; uint8_t kind; /* '"' string, '0' number, 'w' word, or the punctuation mark */ };
enum { JSON_TOKENS = 2048 };
/* 1: blank, 2: punctuation, 3: quote; 0 goes into words and numbers. */
static const uint8_t json_class[256] = {[0] = 2, [' '] = 1, ['\t'] = 1, ['\n'] = 1, ['\r'] = 1, ['{'] = 2, ['}'] = 2, ['['] = 2, [']'] = 2, [':'] = 2, [','] = 2, ['"'] = 3};

static inline size_t json_tokens(const uint8_t *p, size_t n, struct json_token *t) {
    size_t count = 0;
    for (size_t i = 0; i < n && count < JSON_TOKENS;) {
        size_t from = i++;
        uint8_t c = p[from];
        if (json_class[c] == 1) continue;
        if (c == '"') {
            while (i < n && p[i] != '"') i += p[i] == '\\' && i + 1 < n ? 2 : 1;
            if (i < n) i++;
        } else if (!json_class[c]) {
            while (i < n && !json_class[p[i]]) i++;
            c = c == '-' || (c >= '0' && c <= '9') ? '0' : 'w';
        }
        t[count++] = (struct json_token){from, i - from, c};
    }
    return count;
}

/* The token behind the value that begins with token k. */
static inline size_t json_behind(const struct json_token *t, size_t count, size_t k) {
    int depth = 0;
    for (; k < count; k++) {
        depth += (t[k].kind == '{' || t[k].kind == '[') - (t[k].kind == '}' || t[k].kind == ']');
        if (depth <= 0) return k + 1;
    }
    return count;
}

/* Token of some value or key; *end: the byte behind it. A member's key takes its value along. */
static inline size_t json_some(struct mutator *m, const struct json_token *t, size_t count, size_t *end) {
    for (int tries = 0; tries < 20; tries++) {
        size_t k = mutate_pick(m, count), last;
        if (!strchr("\"0w{[", t[k].kind)) continue;
        last = k + 2 < count && t[k + 1].kind == ':' ? json_behind(t, count, k + 2) : json_behind(t, count, k);
        *end = t[last - 1].at + t[last - 1].n;
        return k;
    }
    *end = count ? t[0].at + t[0].n : 0;
    return 0;
}

/* The number at p[0..n) and up to two more or less. */
static inline const char *near_number(struct mutator *m, const uint8_t *p, size_t n, char text[300]) {
    char old[21] = "";
    memcpy(old, p, n < 20 ? n : 20);
    snprintf(text, 300, "%lld", (long long)((unsigned long long)strtoll(old, NULL, 10) + mutate_pick(m, 5) - 2));
    return text;
}

/* words: strings without quotes that mean something to the target. */
static inline size_t mutate_json(struct mutator *m, uint8_t *data, size_t n, size_t max, const char *const *words, size_t n_words) {
    static struct json_token t[JSON_TOKENS];
    size_t count = json_tokens(data, n, t), end, other_end;
    if (!count) return mutate_splice(data, n, max, 0, n, "{}", 2);
    size_t k = json_some(m, t, count, &end), o = json_some(m, t, count, &other_end);
    size_t at = t[k].at, from = t[o].at;
    char word[300];
    const int len = snprintf(word, sizeof word, "\"%.250s\"", n_words ? words[mutate_pick(m, n_words)] : "a");
    switch (mutate_pick(m, 10)) {
    case 0: /* away with it and a comma beside it */
        for (size_t i = 0; i < count; i++) {
            if (t[i].kind == ',' && t[i].at >= end) { if (i && t[i - 1].at + t[i - 1].n == end) end = t[i].at + 1; break; }
            if (t[i].kind == ',' && i + 1 < count && t[i + 1].at == at) { at = t[i].at; break; }
        }
        return mutate_splice(data, n, max, at, end - at, "", 0);
    case 1: { /* once more */
        size_t grown = mutate_splice(data, n, max, end, 0, data + at, end - at);
        return grown == n ? n : mutate_splice(data, grown, max, end, 0, ",", 1);
    }
    case 2: return mutate_splice(data, n, max, at, end - at, data + from, other_end - from);
    case 3:
        if (end <= from) return mutate_swap(data, n, at, end - at, from, other_end - from);
        if (other_end <= at) return mutate_swap(data, n, from, other_end - from, at, end - at);
        return n;
    case 4: { /* a number */
        const char *number = mutate_numbers[mutate_pick(m, MUTATE_NUMBERS)];
        for (size_t tries = 0; tries < 40 && t[k].kind != '0'; tries++) k = mutate_pick(m, count);
        if (t[k].kind != '0') return n;
        if (mutate_pick(m, 2)) number = near_number(m, data + t[k].at, t[k].n, word);
        return mutate_splice(data, n, max, t[k].at, t[k].n, number, strlen(number));
    }
    case 5: /* a word for a string or key */
        for (size_t tries = 0; tries < 40 && t[k].kind != '"'; tries++) k = mutate_pick(m, count);
        return mutate_splice(data, n, max, t[k].at, t[k].n, word, (size_t)len);
    case 6: { /* deeper */
        size_t grown = mutate_splice(data, n, max, end, 0, "]", 1);
        return grown == n ? n : mutate_splice(data, grown, max, at, 0, "[", 1);
    }
    case 7: { /* another kind of value */
        static const char *const others[] = {"null", "true", "false", "[]", "{}", "\"\"", "0", "[null]", "{\"\":0}", "\"\\u0000\"", "\"\\ud800\""};
        const char *v = others[mutate_pick(m, sizeof others / sizeof *others)];
        size_t last = json_behind(t, count, k);
        return mutate_splice(data, n, max, at, t[last - 1].at + t[last - 1].n - at, v, strlen(v));
    }
    case 8: { /* inside a string */
        for (size_t tries = 0; tries < 40 && (t[k].kind != '"' || t[k].n < 2); tries++) k = mutate_pick(m, count);
        if (t[k].kind != '"' || t[k].n < 2) return n;
        uint8_t inside[512] = "a";
        size_t size = t[k].n - 2 < sizeof inside ? t[k].n - 2 : sizeof inside;
        memcpy(inside, data + t[k].at + 1, size);
        size_t now = LLVMFuzzerMutate(inside, size ? size : 1, sizeof inside);
        return mutate_splice(data, n, max, t[k].at + 1, t[k].n - 2, inside, now);
    }
    default: return mutate_splice(data, n, max, t[k].at, 0, &" \t\n,"[mutate_pick(m, 4)], 1);
    }
}

MUTATORS_END

/* A target whose inputs are JSON, or lines, from the first byte on; `words` is its array. */
#define MUTATE_WITH(grammar, words)                                                                      \
    MUTATORS_BEGIN                                                                                       \
    size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned seed) {                 \
        struct mutator m = mutate_begin(seed);                                                           \
        return mutate_plain(&m) ? LLVMFuzzerMutate(data, n, max) : grammar(&m, data, n, max, words, sizeof words / sizeof *words); \
    }                                                                                                    \
    MUTATORS_END
#endif
