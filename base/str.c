/* base/str.c - see str.h. Invariant of struct str: p is NULL, or p[n] is NUL and n < cap. */
#include "base/str.h"
#include "base/sys.h"
#include <ctype.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Makes room for n more bytes and the NUL; 0 and oom set when there is none. */
static int room(struct str *s, size_t n) {
    if (s->oom) return 0;
    if (n >= SIZE_MAX / 2 - s->n) return s->oom = 1, 0;
    size_t need = s->n + n + 1;
    if (need <= s->cap) return 1;
    size_t cap = need < 64 ? 64 : need + need / 2;
    char *p = sys_grow(s->p, cap, "text", NULL);
    if (!p) return s->oom = 1, 0;
    s->p = p, s->cap = cap;
    return 1;
}

void str_add(struct str *s, const void *bytes, size_t n) {
    if (!room(s, n)) return;
    if (n) memcpy(s->p + s->n, bytes, n);
    s->n += n;
    s->p[s->n] = 0;
}

void str_puts(struct str *s, const char *text) { str_add(s, text, strlen(text)); }

void str_putc(struct str *s, char c) { str_add(s, &c, 1); }

void str_printf(struct str *s, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    if (n < 0) s->oom = 1;
    else if (room(s, (size_t)n)) {
        vsnprintf(s->p + s->n, (size_t)n + 1, fmt, again);
        s->n += (size_t)n;
    }
    va_end(again);
    va_end(ap);
}

void str_json(struct str *s, const char *bytes, size_t n) {
    static const char letter[32] = {['\b'] = 'b', ['\f'] = 'f', ['\n'] = 'n', ['\r'] = 'r', ['\t'] = 't'};
    const unsigned char *p = (const unsigned char *)bytes;
    str_putc(s, '"');
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        size_t end = i; /* of what stands for itself */
        while (end < n && p[end] >= 32 && p[end] < 128 && p[end] != '"' && p[end] != '\\') end++;
        if (end > i) str_add(s, p + i, end - i);
        if ((i = end) == n) break;
        int len = utf8_get(p + i, n - i, &cp);
        if (!len) {
            str_puts(s, "\xef\xbf\xbd");
            len = 1;
        } else if (cp == '"' || cp == '\\') {
            str_putc(s, '\\');
            str_putc(s, (char)cp);
        } else if (cp >= 32) {
            str_add(s, p + i, (size_t)len);
        } else if (letter[cp]) {
            str_putc(s, '\\');
            str_putc(s, letter[cp]);
        } else {
            str_printf(s, "\\u%04x", (unsigned)cp);
        }
        i += (size_t)len;
    }
    str_putc(s, '"');
}

void str_json_num(struct str *s, double x) {
    if (!isfinite(x)) {
        str_puts(s, "null");
        return;
    }
    char buf[40];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(buf, sizeof buf, "%.*g", digits, x);
        if (strtod(buf, NULL) == x) break;
    }
    str_puts(s, buf);
}

void str_utf8(struct str *s, uint32_t c) {
    if (c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) c = 0xfffd;
    unsigned char b[4];
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char lead[5] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = n; i-- > 1; c >>= 6) b[i] = (unsigned char)(0x80 | (c & 0x3f));
    b[0] = (unsigned char)(lead[n] | c);
    str_add(s, b, n);
}

void str_clear(struct str *s) {
    s->n = 0;
    if (s->p) s->p[0] = 0;
}

void str_free(struct str *s) {
    sys_free(s->p);
    *s = (struct str){0};
}

int utf8_get(const unsigned char *p, size_t n, uint32_t *cp) {
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000}; /* below it the form is overlong */
    if (p[0] < 0x80) return *cp = p[0], 1;
    int len = p[0] >= 0xf8 ? 0 : p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : p[0] >= 0xc0 ? 2 : 0;
    if (!len || (size_t)len > n) return 0;
    uint32_t c = p[0] & (0x7fu >> len);
    for (int i = 1; i < len; i++) {
        if ((p[i] & 0xc0) != 0x80) return 0;
        c = c << 6 | (p[i] & 0x3fu);
    }
    if (c < least[len] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) return 0;
    *cp = c;
    return len;
}

/* Levenshtein distance, case ignored, of words shorter than 64 bytes; longer ones, and those whose lengths differ by more than
 * `most`, are far from each other. */
static int distance(const char *a, const char *b, int most) {
    size_t na = strlen(a), nb = strlen(b);
    int row[64];
    if (na >= 64 || nb >= 64 || (na > nb ? na - nb : nb - na) > (size_t)most) return INT_MAX;
    for (size_t j = 0; j <= nb; j++) row[j] = (int)j;
    for (size_t i = 1; i <= na; i++) {
        int diagonal = row[0], least = row[0] = (int)i;
        for (size_t j = 1; j <= nb; j++) {
            int best = diagonal + (tolower((unsigned char)a[i - 1]) != tolower((unsigned char)b[j - 1]));
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
            if (best < least) least = best;
        }
        if (least > most) return INT_MAX; /* the rows below have nothing smaller */
    }
    return row[nb];
}

const char *nearest_word(const char *word, const char *const *list) {
    int best = (int)strlen(word) / 3 + 1; /* more changes than a third of the word is another word */
    const char *found = NULL;
    for (; *list; list++) {
        int d = distance(word, *list, best);
        if (d < best || (d == best && !found)) best = d, found = *list;
    }
    return found;
}

char *text_copy(const char *text, size_t n) {
    char *p = n < SIZE_MAX ? sys_grow(NULL, n + 1, "text", NULL) : NULL;
    if (!p) return NULL;
    if (n) memcpy(p, text, n);
    p[n] = 0;
    return p;
}

int text_starts(const char *text, const char *prefix) { return !strncmp(text, prefix, strlen(prefix)); }

int text_ends(const char *text, const char *suffix) {
    size_t n = strlen(text), k = strlen(suffix);
    return n >= k && !strcmp(text + n - k, suffix);
}

const char *text_bytes(char buf[24], int64_t bytes) {
    static const char *const unit[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double v = (double)bytes;
    int u = 0;
    while (fabs(v) >= 1024 && u < 6) v /= 1024, u++;
    int decimals = v == floor(v) || fabs(v) >= 100 ? 0 : fabs(v) >= 10 ? 1 : 2;
    snprintf(buf, 24, "%.*f %s", decimals, v, bytes == 1 ? "byte" : unit[u]);
    return buf;
}

const char *text_seconds(char buf[40], double seconds) {
    long long t = seconds > 0 ? (long long)fmin(seconds, 1e15) : 0; /* NaN is 0 too */
    long long days = t / 86400, s = t % 86400;
    int n = days ? snprintf(buf, 40, "%lld day%s, ", days, days == 1 ? "" : "s") : 0;
    snprintf(buf + n, 40 - (size_t)n, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
    return buf;
}

const char *text_thousands(char buf[32], int64_t n) {
    char digits[24];
    int len = snprintf(digits, sizeof digits, "%lld", (long long)n), start = n < 0;
    char *q = buf;
    for (int i = 0; i < len; i++) {
        if (i > start && (len - i) % 3 == 0) *q++ = ',';
        *q++ = digits[i];
    }
    *q = 0;
    return buf;
}
