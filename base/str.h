/* base/str.h - a growing string, JSON text output, and small text helpers.
 *
 *     struct str s = {0};
 *     str_printf(&s, "%d tokens", n);  ...  if (s.oom) ...;  str_free(&s);
 */
#ifndef QLORA_BASE_STR_H
#define QLORA_BASE_STR_H
#include <stddef.h>
#include <stdint.h>

struct str { /* p is NUL-terminated once anything was added; n excludes the NUL; may hold NULs inside */
    char *p;
    size_t n, cap;
    int oom; /* sticky: an addition was lost for lack of memory */
};
void str_add(struct str *s, const void *bytes, size_t n);
void str_puts(struct str *s, const char *text);
void str_putc(struct str *s, char c);
void str_printf(struct str *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* A JSON string literal with quotes. Non-ASCII is kept as UTF-8; invalid UTF-8 bytes become U+FFFD. */
void str_json(struct str *s, const char *bytes, size_t n);
/* A JSON number that reads back as the same double; shortest of %.15g/%.16g/%.17g; NaN, inf become null. */
void str_json_num(struct str *s, double x);
void str_utf8(struct str *s, uint32_t code_point);
void str_clear(struct str *s); /* keeps the memory, and oom: what was lost may have been taken over already */
void str_free(struct str *s);

/* Reads one code point at p[0..n), n > 0. Returns its length 1..4; 0 when the bytes are not valid UTF-8 (overlong,
 * surrogate, > U+10FFFF, cut). */
int utf8_get(const unsigned char *p, size_t n, uint32_t *cp);

/* The word of the NULL-terminated list nearest to `word` by edit distance (case ignored), or NULL if none is near. */
const char *nearest_word(const char *word, const char *const *list);
/* strdup through sys_grow; NULL when there is no memory. */
char *text_copy(const char *text, size_t n);
int text_starts(const char *text, const char *prefix);
int text_ends(const char *text, const char *suffix);
/* "1.23 GiB", "512 MiB", "17 bytes" into buf (>= 24 bytes); returns buf. */
const char *text_bytes(char buf[24], int64_t bytes);
/* "0:12:05" or "1 day, 2:03:04", as Python prints a timedelta of whole seconds. */
const char *text_seconds(char buf[40], double seconds);
/* "52,002" */
const char *text_thousands(char buf[32], int64_t n);
#endif
