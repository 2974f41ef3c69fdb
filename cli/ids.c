/* cli/ids.c - lists of token ids in command lines and JSON lines. */
#include "cli/cli_internal.h"
#include <stdlib.h>
#include <string.h>

void cli_add_ids(struct str *s, const char *open, const int32_t *x, int64_t n) {
    char buf[13];
    str_puts(s, open);
    for (int64_t i = 0; i < n; i++) {
        char *p = buf + sizeof buf;
        uint32_t u = x[i] < 0 ? 0u - (uint32_t)x[i] : (uint32_t)x[i];
        do *--p = (char)('0' + u % 10);
        while (u /= 10);
        if (x[i] < 0) *--p = '-';
        if (i) *--p = ',';
        str_add(s, p, (size_t)(buf + sizeof buf - p));
    }
    str_putc(s, ']');
}

int cli_push_id(int64_t limit, double x, struct ids *ids, struct err *e) {
    if (!(x >= 0 && x < (double)limit) || x != (double)(int32_t)x)
        return err_set(e, ERR_INPUT, "%.17g is not a token id (0 to %lld)", x, (long long)limit - 1);
    return ids_push(ids, (int32_t)x, e);
}

int cli_read_ids(const char *text, int64_t limit, struct ids *ids, struct err *e) {
    static const char between[] = " ,[]\t\n";
    while (*(text += strspn(text, between))) {
        size_t n = strcspn(text, between);
        if (n > 10 || strspn(text, "0123456789") != n)
            return err_set(e, ERR_INPUT, "ids: \"%.*s\" is not a token id", (int)(n < 40 ? n : 40), text);
        if (cli_push_id(limit, strtod(text, NULL), ids, e)) return err_where(e, "ids");
        text += n;
    }
    return 0;
}
