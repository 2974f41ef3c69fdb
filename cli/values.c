/* cli/values.c - the text of a value to what its flag's kind says. Numbers and booleans by Python's rules; characters that
 * only look like ASCII, as they come along when a command is pasted from a page, are named in the message. */
#define _GNU_SOURCE
#include "base/str.h"
#include "base/sys.h"
#include "cli/cli_internal.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- what comes along when a command is pasted from a page ---- */

struct lookalike {
    uint32_t first, last;
    const char *name, *ascii;
};
static const struct lookalike lookalikes[] = {
    {0x2010, 0x2015, "dash", "-"},
    {0x2212, 0x2212, "minus sign", "-"},
    {0xfe58, 0xfe58, "small dash", "-"},
    {0xfe63, 0xfe63, "small hyphen", "-"},
    {0xff0d, 0xff0d, "full-width hyphen", "-"},
    {0x2018, 0x201b, "curly quote", "'"},
    {0x201c, 0x201f, "curly double quote", "\""},
    {0xff02, 0xff02, "full-width quote", "\""},
    {0xff07, 0xff07, "full-width quote", "'"},
    {0xff0c, 0xff0c, "full-width comma", ","},
    {0x3001, 0x3001, "ideographic comma", ","},
    {0xff1d, 0xff1d, "full-width equals sign", "="},
    {0xff0e, 0xff0e, "full-width full stop", "."},
    {0xff10, 0xff19, "full-width digit", "digit"},
    {0xff21, 0xff5a, "full-width letter", "letter"},
    {0x3000, 0x3000, "ideographic space", "space"},
    {0x00a0, 0x00a0, "no-break space", "space"},
    {0x2000, 0x200b, "wide or empty space", "space"},
    {0xff3f, 0xff3f, "full-width underscore", "_"},
    {0xfeff, 0xfeff, "byte order mark", "nothing"},
};

static const struct lookalike *lookalike(uint32_t cp) {
    for (size_t i = 0; i < sizeof lookalikes / sizeof *lookalikes; i++)
        if (cp >= lookalikes[i].first && cp <= lookalikes[i].last) return &lookalikes[i];
    return NULL;
}

/* The first character of s that only looks like ASCII, or NULL. *cp is its code point. */
static const struct lookalike *find_lookalike(const char *s, uint32_t *cp) {
    const struct lookalike *found = NULL;
    for (size_t n = strlen(s), len; n && !found; s += len, n -= len) {
        len = (size_t)utf8_get((const unsigned char *)s, n, cp);
        found = len ? lookalike(*cp) : NULL;
        len += !len;
    }
    return found;
}

int cli_refuse_lookalike(const char *where, const char *text, struct err *e) {
    uint32_t cp;
    const struct lookalike *l = find_lookalike(text, &cp);
    if (!l) return 0;
    return err_set(e, ERR_INPUT, "%s: \"%s\" holds a %s (U+%04X); type the plain keyboard %s", where, text,
                   l->name, (unsigned)cp, l->ascii);
}

int cli_is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

int cli_is_dash_lookalike(const char *s) {
    uint32_t cp;
    const struct lookalike *l =
        *s && utf8_get((const unsigned char *)s, strlen(s), &cp) ? lookalike(cp) : NULL;
    return l && *l->ascii == '-';
}

/* ---- values ---- */

static int keep(struct options *o, char *text, struct err *e) {
    enum { MORE = 32 }; /* places at a time */
    char **p = !text ? NULL : o->n_owned % MORE ? o->owned : sys_grow(o->owned, ((size_t)o->n_owned + MORE) * sizeof *p, "flags", e);
    if (!p) return sys_free(text), err_set(e, ERR_RUN, "out of memory for the flags");
    o->owned = p;
    o->owned[o->n_owned++] = text;
    return 0;
}

const char *options_keep(struct options *o, const char *text, size_t n, struct err *e) {
    return keep(o, text_copy(text, n), e) ? NULL : o->owned[o->n_owned - 1];
}

/* Text without white space at its ends, and without one pair of quotes round it. */
static const char *keep_trimmed(struct options *o, const char *s, size_t n, struct err *e) {
    while (n && cli_is_space(s[0])) s++, n--;
    while (n && cli_is_space(s[n - 1])) n--;
    if (n >= 2 && (s[0] == '"' || s[0] == '\'') && s[n - 1] == s[0]) s++, n -= 2;
    return options_keep(o, s, n, e);
}

/* Python's int() and float() take _ between digits; its int() takes no fraction. Copies the digits to buf. */
static int python_number(const char *s, char buf[64], int is_int) {
    size_t n = 0;
    for (size_t i = 0; s[i]; i++) {
        int digit = s[i] >= '0' && s[i] <= '9', before = i && s[i - 1] >= '0' && s[i - 1] <= '9';
        if (s[i] == '_' && before && s[i + 1] >= '0' && s[i + 1] <= '9') continue;
        if (!digit && !((s[i] == '-' || s[i] == '+') && !(i && is_int)) && (is_int || !strchr(".eE", s[i])))
            return -1;
        if (n == 63) return -1;
        buf[n++] = s[i];
    }
    buf[n] = 0;
    return n && strpbrk(buf, "0123456789") ? 0 : -1;
}

static int in_range(const char *range, double x) {
    const char *dots = range ? strstr(range, "..") : NULL;
    if (!dots) return 1;
    return !(dots > range && x < strtod(range, NULL)) && !(dots[2] && x > strtod(dots + 2, NULL));
}

/* The choice of "a|b|c" nearest to s, in buf; NULL when none is near. */
static const char *nearest_choice(const char *choices, const char *s, char buf[200]) {
    const char *words[40];
    size_t n = 0;
    snprintf(buf, 200, "%s", choices);
    for (char *next, *p = strtok_r(buf, "|", &next); p && n < 39; p = strtok_r(NULL, "|", &next)) words[n++] = p;
    words[n] = NULL;
    return nearest_word(s, words);
}

static int bad_value(const struct flag *f, const char *where, const char *value, struct err *e) {
    static const char *const wanted[] = {
        [FLAG_INT] = "a whole number",
        [FLAG_SEED] = "a whole number",
        [FLAG_NUM] = "a number",
        [FLAG_BYTES] = "a size such as 8GiB",
    };
    if (cli_refuse_lookalike(where, value, e)) return -1;
    if (f->kind == FLAG_BOOL)
        return err_set(
            e, ERR_INPUT,
            "%s: Truthy value expected: got %s but expected one of yes/no, true/false, t/f, y/n, 1/0 (case "
            "insensitive).",
            where, value);
    if (f->kind == FLAG_CHOICE) {
        char words[200];
        const char *near = nearest_choice(f->range, value, words);
        return err_set(e, ERR_INPUT, "%s: \"%s\" is not supported%s%s%s; choose from %s", where, value,
                       near ? ", did you mean " : "", near ? near : "", near ? "?" : "", f->range);
    }
    return err_set(e, ERR_INPUT, "%s: \"%s\" is not %s%s%s", where, value, wanted[f->kind],
                   f->range ? " in the range " : "", f->range ? f->range : "");
}

static int read_bool(const char *s) {
    static const char *const yes[] = {"yes", "true", "t", "y", "1"}, *const no[] = {"no", "false", "f", "n",
                                                                                    "0"};
    for (int i = 0; i < 5; i++) {
        if (!strcasecmp(s, yes[i])) return 1;
        if (!strcasecmp(s, no[i])) return 0;
    }
    return -1;
}

int cli_read_bytes(const char *s, int64_t *out) {
    static const struct {
        const char *name;
        double factor;
    } units[] = {
        {"", 1},         {"B", 1},      {"K", 0x1p10},   {"KB", 1e3},     {"KiB", 0x1p10},
        {"M", 0x1p20},   {"MB", 1e6},   {"MiB", 0x1p20}, {"G", 0x1p30},   {"GB", 1e9},
        {"GiB", 0x1p30}, {"T", 0x1p40}, {"TB", 1e12},    {"TiB", 0x1p40},
    };
    size_t digits = strspn(s, "0123456789."), u = 0;
    if (!digits || digits > 30) return -1;
    char *end;
    double x = strtod(s, &end);
    if (end != s + digits) return -1;
    for (s = end; cli_is_space(*s);) s++;
    for (; u < sizeof units / sizeof *units && strcasecmp(s, units[u].name);) u++;
    if (u == sizeof units / sizeof *units || !(x * units[u].factor >= 1 && x * units[u].factor < 0x1p62))
        return -1;
    *out = (int64_t)(x * units[u].factor);
    return 0;
}

/* Index of s in "a|b|c", or -1. */
static int read_choice(const char *choices, const char *s) {
    size_t n = strlen(s);
    for (int i = 0;; i++) {
        size_t k = strcspn(choices, "|");
        if (k == n && !strncasecmp(choices, s, n)) return i;
        if (!choices[k]) return -1;
        choices += k + 1;
    }
}

/* "  a, 'b' ,c" -> "a,b,c" */
static const char *read_list(struct options *o, const char *s, const char *where, struct err *e) {
    struct str out = {0};
    if (cli_refuse_lookalike(where, s, e)) return NULL;
    for (;; s++) {
        size_t n = strcspn(s, ",");
        const char *item = keep_trimmed(o, s, n, e);
        if (!item) return str_free(&out), NULL;
        if (*item) str_printf(&out, "%s%s", out.n ? "," : "", item);
        s += n;
        if (!*s) break;
    }
    const char *text = out.oom ? NULL : options_keep(o, out.p ? out.p : "", out.n, e);
    str_free(&out);
    if (!text) err_set(e, ERR_RUN, "out of memory for the flags");
    return text;
}

static int is_none(const char *s) {
    return !*s || !strcasecmp(s, "none") || !strcasecmp(s, "null");
}

int flag_store(struct options *o, const struct flag *f, const char *value, const char *where, struct err *e) {
    union {
        int k;
        int64_t i;
        double x;
        const char *text;
    } checked_only;
    char number[64];
    void *at = f->at == NOWHERE ? (void *)&checked_only : (char *)o + f->at;
    if (f->kind == FLAG_TEXT || f->kind == FLAG_REPEAT) {
        const char *text = options_keep(o, value, strlen(value), e);
        if (!text) return -1;
        if (f->kind == FLAG_TEXT)
            *(const char **)at = text;
        else if (o->n_overrides == OVERRIDES_MAX)
            return err_set(e, ERR_INPUT, "%s: more than %d", where, OVERRIDES_MAX);
        else
            o->overrides[o->n_overrides++] = text;
        return 0;
    }
    const char *v =
        f->kind == FLAG_LIST ? read_list(o, value, where, e) : keep_trimmed(o, value, strlen(value), e);
    if (!v) return -1;
    int64_t bytes;
    int k;
    switch (f->kind) {
    case FLAG_BOOL:
        if ((k = read_bool(v)) < 0) return bad_value(f, where, v, e);
        *(int *)at = k;
        return 0;
    case FLAG_INT:
    case FLAG_SEED: {
        char *end;
        if (python_number(v, number, 1) || strlen(number) > 20) return bad_value(f, where, v, e);
        long long x = strtoll(number, &end, 10);
        if (*end || x == INT64_MAX || x == INT64_MIN || !in_range(f->range, (double)x))
            return bad_value(f, where, v, e);
        memcpy(at, &x, sizeof(int64_t));
        return 0;
    }
    case FLAG_NUM: {
        char *end;
        if (python_number(v, number, 0)) return bad_value(f, where, v, e);
        double x = strtod(number, &end);
        if (*end || !isfinite(x) || !in_range(f->range, x)) return bad_value(f, where, v, e);
        *(double *)at = x;
        return 0;
    }
    case FLAG_CHOICE:
        if ((k = read_choice(f->range, v)) < 0) return bad_value(f, where, v, e);
        *(int *)at = k; /* an enum of the same size: KIND checks */
        return 0;
    case FLAG_BYTES:
        if (cli_read_bytes(v, &bytes)) return bad_value(f, where, v, e);
        *(int64_t *)at = bytes;
        return 0;
    default: { /* FLAG_WORD, FLAG_LIST */
        uint32_t cp;
        /* names may hold any letters, but no curly quotes round them */
        const struct lookalike *l = find_lookalike(v, &cp);
        if (l && (*l->ascii == '"' || *l->ascii == '\'') && cli_refuse_lookalike(where, v, e)) return -1;
        *(const char **)at = is_none(v) ? NULL : v;
        return 0;
    }
    }
}

int flag_set(struct options *o, int row, const char *name, const char *value, const char *where,
             struct err *e) {
    const struct flag *f = &flags[row];
    if (!value && f->kind != FLAG_BOOL) return err_set(e, ERR_INPUT, "%s: a value is missing", where);
    if (!value) value = "true";
    const char *kept = f->kind == FLAG_TEXT || f->kind == FLAG_REPEAT
                           ? options_keep(o, value, strlen(value), e)
                           : keep_trimmed(o, value, strlen(value), e);
    const char *kept_name = kept ? options_keep(o, name, strlen(name), e) : NULL;
    if (!kept_name || flag_store(o, f, value, where, e)) return -1;
    o->given[row] = (struct given){kept_name, kept};
    return 0;
}

void flag_print(const struct options *o, const struct flag *f, struct str *out) {
    if (f->at == NOWHERE) return;
    const void *at = (const char *)o + f->at;
    union {
        int k;
        int64_t i;
        double x;
        const char *text;
    } v = {0};
    memcpy(&v, at, f->kind == FLAG_BOOL || f->kind == FLAG_CHOICE ? sizeof v.k : sizeof v.i);
    if (f->kind >= FLAG_WORD && o->given[f - flags].value) v.text = o->given[f - flags].value; /* as it was before checks took it apart */
    if (f->kind == FLAG_BOOL  ? v.k < 0
        : f->kind == FLAG_NUM ? !f->fallback && v.x == 0
                              : f->kind != FLAG_CHOICE && !f->fallback && !v.i)
        return; /* not given */
    str_printf(out, "%s: ", f->name);
    switch (f->kind) {
    case FLAG_BOOL: str_puts(out, v.k > 0 ? "true" : "false"); break;
    case FLAG_NUM: str_json_num(out, v.x); break;
    case FLAG_CHOICE: {
        const char *word = f->range;
        for (int i = 0; i < v.k; i++) word += strcspn(word, "|") + 1;
        str_printf(out, "%.*s", (int)strcspn(word, "|"), word);
        break;
    }
    case FLAG_INT: case FLAG_SEED: case FLAG_BYTES: str_printf(out, "%lld", (long long)v.i); break;
    default: str_json(out, v.text, strlen(v.text));
    }
    str_puts(out, "\n");
}
