/* base/log.c - see log.h. Every line leaves in one write. Control characters are shown as '?': messages quote files of
 * strangers, and a terminal obeys escape sequences. */
#define _GNU_SOURCE
#include "base/log.h"
#include "base/str.h"
#include "base/sys.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

int log_quiet;
static int progress_shown; /* a progress line without its line feed stands on the terminal */
static double said_at; /* when a line was last written */

int log_is_terminal(void) {
    static int known = -1;
    if (known < 0) {
        const char *term = getenv("TERM"), *no_color = getenv("NO_COLOR");
        known = isatty(2) && !(no_color && *no_color) && !(term && !strcmp(term, "dumb"));
    }
    return known;
}

/* Where to cut the text so that it fills at most `columns` columns (wide characters of East Asia count two). */
static size_t fitting(const char *text, size_t n, int columns) {
    size_t i = 0;
    for (int used = 0; i < n;) {
        uint32_t cp = 0;
        int len = utf8_get((const unsigned char *)text + i, n - i, &cp);
        used += cp >= 0x1100 ? 2 : 1;
        if (used > columns) break;
        i += len ? (size_t)len : 1;
    }
    return i;
}

enum kind { MESSAGE, PROGRESS, PROGRESS_DONE };

static void emit(enum kind kind, const char *label, const char *fmt, va_list ap) {
    char line[4096] = "\r\033[K";
    const size_t clear = 4, room = sizeof line - 2; /* a line feed and the NUL fit behind */
    size_t n = clear + (size_t)snprintf(line + clear, room - clear, "%s", label);
    int k = vsnprintf(line + n, room - n, fmt, ap);
    n = k < 0 ? n : n + (size_t)k < room ? n + (size_t)k : room - 1;
    for (size_t i = clear; i < n; i++)
        if (((unsigned char)line[i] < 32 && line[i] != '\n' && line[i] != '\t') || line[i] == 127) line[i] = '?';
    int open_line = kind == PROGRESS && log_is_terminal();
    if (open_line) {
        struct winsize w = {0};
        int columns = ioctl(2, TIOCGWINSZ, &w) == 0 && w.ws_col > 1 ? w.ws_col - 1 : 79;
        n = clear + fitting(line + clear, n - clear, columns);
    } else {
        line[n++] = '\n';
    }
    flockfile(stderr);
    size_t from = open_line || progress_shown ? 0 : clear;
    fwrite(line + from, 1, n - from, stderr);
    fflush(stderr);
    progress_shown = open_line, said_at = sys_seconds();
    funlockfile(stderr);
}

void log_info(const char *fmt, ...) {
    if (log_quiet) return;
    va_list ap;
    va_start(ap, fmt);
    emit(MESSAGE, "", fmt, ap);
    va_end(ap);
}

void log_warn(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    emit(MESSAGE, "warning: ", fmt, ap);
    va_end(ap);
}

/* Work that is over at once needs no progress: what was last said still holds. */
void log_progress(int done, const char *fmt, ...) {
    if (!(said_at > 0)) said_at = sys_seconds();
    if (log_quiet || (!done && sys_seconds() - said_at < (log_is_terminal() ? 0.1 : 1.0))) return;
    va_list ap;
    va_start(ap, fmt);
    emit(done ? PROGRESS_DONE : PROGRESS, "", fmt, ap);
    va_end(ap);
}
