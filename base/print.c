/* base/print.c - see print.h */
#include "base/print.h"
#include "base/log.h"
#include "base/sys.h"
#include <errno.h>
#include <string.h>
#include <unistd.h>

static struct {
    char p[1 << 16];
    size_t n;
    int error; /* errno of the first failure */
} out;

static int put(const char *p, size_t n) {
    if (n) log_make_way();
    while (n && !out.error) {
        ssize_t r = sys_write_out(p, n);
        if (r <= 0) out.error = r < 0 ? errno : ENOSPC;
        else p += r, n -= (size_t)r;
    }
    return out.error ? -1 : 0;
}

int print_flush(void) {
    size_t n = out.n;
    out.n = 0;
    return put(out.p, n);
}

int print_bytes(const void *p, size_t n) {
    if (n > sizeof out.p - out.n && print_flush()) return -1;
    if (n > sizeof out.p) return put(p, n);
    if (n) memcpy(out.p + out.n, p, n);
    out.n += n;
    return isatty(STDOUT_FILENO) ? print_flush() : out.error ? -1 : 0;
}

int print_text(const char *text) { return print_bytes(text, strlen(text)); }

int print_end(struct err *e) {
    print_flush();
    errno = out.error;
    return out.error ? err_errno(e, ERR_RUN, "standard output cannot be written") : 0;
}
