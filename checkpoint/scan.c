/* checkpoint/scan.c - a cursor over JSON text (RFC 8259), one pass, no memory of its own.
 *
 * Numbers are whole and exact up to 2^63-1: a parser that goes through double would corrupt offsets above
 * 2^53. */
#include "checkpoint/checkpoint_internal.h"
#include <string.h>

int ckpt_scan_error(struct scan *s, const char *what) {
    return err_set(s->e, ERR_INPUT, "%s: byte %td of the JSON text: %s", s->path, s->p - s->start, what);
}

static void skip_space(struct scan *s) {
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\n' || *s->p == '\r' || *s->p == '\t')) s->p++;
}

static int at(struct scan *s, char c) {
    skip_space(s);
    return s->p < s->end && *s->p == c;
}

int ckpt_scan_expect(struct scan *s, char c) {
    char what[] = "expected 'x'";
    what[10] = c;
    if (!at(s, c)) return ckpt_scan_error(s, what);
    s->p++;
    return 0;
}

int ckpt_scan_item(struct scan *s, char close, int64_t i) {
    if (at(s, close)) {
        s->p++;
        return 0;
    }
    return i && ckpt_scan_expect(s, ',') ? -1 : 1;
}

int ckpt_scan_end(struct scan *s) {
    skip_space(s);
    return s->p == s->end ? 0 : ckpt_scan_error(s, "text behind the last '}'");
}

static int hex4(const char *p, const char *end, uint32_t *v) {
    if (end - p < 4) return -1;
    *v = 0;
    for (int i = 0; i < 4; i++) {
        char c = p[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0) return -1;
        *v = *v << 4 | (uint32_t)digit;
    }
    return 0;
}

/* The character of the escape at s->p (behind the backslash); moves behind it. */
static int escape(struct scan *s, uint32_t *c) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (s->p == s->end) return ckpt_scan_error(s, "the text ends inside a string");
    const char *known = *s->p ? strchr(from, *s->p) : NULL;
    if (known) {
        *c = (unsigned char)to[known - from];
        s->p++;
        return 0;
    }
    uint32_t low;
    if (*s->p != 'u' || hex4(s->p + 1, s->end, c)) return ckpt_scan_error(s, "unknown escape");
    s->p += 5;
    if (*c == 0) return ckpt_scan_error(s, "a NUL character in a string");
    if (*c < 0xd800 || *c > 0xdfff) return 0;
    if (*c > 0xdbff || s->end - s->p < 6 || s->p[0] != '\\' || s->p[1] != 'u' ||
        hex4(s->p + 2, s->end, &low) || low < 0xdc00 || low > 0xdfff)
        return ckpt_scan_error(s, "half a surrogate pair");
    *c = 0x10000 + ((*c - 0xd800) << 10 | (low - 0xdc00));
    s->p += 6;
    return 0;
}

static char *put_utf8(char *out, uint32_t c) {
    if (c < 0x80) {
        *out++ = (char)c;
    } else if (c < 0x800) {
        *out++ = (char)(0xc0 | c >> 6);
        *out++ = (char)(0x80 | (c & 63));
    } else if (c < 0x10000) {
        *out++ = (char)(0xe0 | c >> 12);
        *out++ = (char)(0x80 | (c >> 6 & 63));
        *out++ = (char)(0x80 | (c & 63));
    } else {
        *out++ = (char)(0xf0 | c >> 18);
        *out++ = (char)(0x80 | (c >> 12 & 63));
        *out++ = (char)(0x80 | (c >> 6 & 63));
        *out++ = (char)(0x80 | (c & 63));
    }
    return out;
}

int ckpt_scan_string(struct scan *s, char **text, size_t *n) {
    uint32_t c;
    if (!at(s, '"')) return ckpt_scan_error(s, "expected a string");
    char *out = ++s->p; /* never ahead of s->p: no escape is shorter than what it means */
    *text = out;
    while (s->p < s->end && *s->p != '"') {
        if ((unsigned char)*s->p < 32) return ckpt_scan_error(s, "a control character in a string");
        if (*s->p == '\\') {
            s->p++;
            if (escape(s, &c)) return -1;
            out = put_utf8(out, c);
            continue;
        }
        int length = utf8_get((const unsigned char *)s->p, (size_t)(s->end - s->p), &c);
        if (!length) return ckpt_scan_error(s, "invalid UTF-8");
        memmove(out, s->p, (size_t)length);
        out += length, s->p += length;
    }
    if (s->p == s->end) return ckpt_scan_error(s, "the text ends inside a string");
    s->p++;
    *out = 0;
    *n = (size_t)(out - *text);
    return 0;
}

int ckpt_scan_int(struct scan *s, int64_t *v) {
    skip_space(s);
    const char *first = s->p;
    *v = 0;
    for (; s->p < s->end && *s->p >= '0' && *s->p <= '9'; s->p++)
        if (__builtin_mul_overflow(*v, 10, v) || __builtin_add_overflow(*v, *s->p - '0', v))
            return ckpt_scan_error(s, "a number above 2^63-1");
    if (s->p == first) return ckpt_scan_error(s, "expected a whole number, 0 or more");
    if (*first == '0' && s->p - first > 1) return ckpt_scan_error(s, "a number with a leading zero");
    return 0;
}

int ckpt_scan_skip(struct scan *s) {
    int depth = 0;
    char *text;
    size_t n;
    do {
        skip_space(s);
        if (s->p == s->end) return ckpt_scan_error(s, "the text ends inside a value");
        if (*s->p == '"') {
            if (ckpt_scan_string(s, &text, &n)) return -1;
        } else if (strchr("{[", *s->p)) {
            depth++, s->p++;
        } else if (strchr("}]", *s->p)) {
            depth--, s->p++;
        } else if (strchr(",:", *s->p)) {
            s->p++;
        } else {
            while (s->p < s->end && !strchr(" \t\r\n,:}]", *s->p)) s->p++; /* number, true, false, null */
        }
    } while (depth > 0);
    return 0;
}
