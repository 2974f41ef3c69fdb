/* base/err.c - see err.h */
#include "base/err.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fill(struct err *e, int code, const char *fmt, va_list ap, const char *tail) {
    if (!e || e->code) return;
    e->code = code;
    int n = vsnprintf(e->text, sizeof e->text, fmt, ap);
    if (tail && n >= 0 && (size_t)n < sizeof e->text) snprintf(e->text + n, sizeof e->text - (size_t)n, ": %s", tail);
    for (char *p = e->text; *p; p++) /* names from files may not steer the terminal or add lines */
        if ((unsigned char)*p < 32 || *p == 127) *p = '?';
}

int err_set(struct err *e, int code, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fill(e, code, fmt, ap, NULL);
    va_end(ap);
    return -1;
}

int err_errno(struct err *e, int code, const char *fmt, ...) {
    char why[200];
    snprintf(why, sizeof why, "%s", strerror(errno));
    va_list ap;
    va_start(ap, fmt);
    fill(e, code, fmt, ap, why);
    va_end(ap);
    return -1;
}

int err_where(struct err *e, const char *fmt, ...) {
    if (!e || !e->code) return -1;
    char old[sizeof e->text + 2] = ": ";
    strcpy(old + 2, e->text);
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= sizeof e->text) return -1;
    size_t room = sizeof e->text - (size_t)n - 1, k = strlen(old) < room ? strlen(old) : room;
    memcpy(e->text + n, old, k);
    e->text[(size_t)n + k] = 0;
    return -1;
}

int err_print(const struct err *e) {
    fprintf(stderr, "error: %s\n", e->text);
    return e->code ? e->code : ERR_RUN;
}

void assert_failed(const char *file, int line, const char *expr, const char *fmt, ...) {
    fprintf(stderr, "qlora: bug at %s:%d: %s: ", file, line, expr);
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\n");
    abort();
}
