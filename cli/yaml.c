/* cli/yaml.c - flat files of flags. YAML as LLaMA-Factory's examples use it: "key: scalar", lists of scalars as [a, b] or
 * as lines "- a", comments, quotes. Nested maps, anchors, tags, block texts and several documents are refused with a
 * sentence. JSON: one object of scalars and lists of scalars. Values stay text: the flag table knows their types. */
#include "base/json.h"
#include "base/str.h"
#include "base/sys.h"
#include "cli/cli_internal.h"
#include <string.h>

enum { PAIRS_MAX = 1000 };

struct yaml {
    const char *p, *end; /* the rest of the line, without its end */
    const char *where;
    int line;
    struct err *e;
};

static int bad(const struct yaml *y, const char *what) {
    return err_set(y->e, ERR_INPUT, "%s:%d: %s", y->where, y->line, what);
}

static int add_pair(struct pairs *out, char *key, char *value, int line, const char *where, struct err *e) {
    struct pair *p = NULL;
    for (int i = 0; key && i < out->n; i++)
        if (!strcmp(out->p[i].key, key)) {
            err_set(e, ERR_INPUT, "%s:%d: %.80s stands twice, first on line %d", where, line, key,
                    out->p[i].line);
            goto fail;
        }
    if (out->n == PAIRS_MAX)
        err_set(e, ERR_INPUT, "%s: more than %d keys", where, PAIRS_MAX);
    else if (key)
        p = sys_grow(out->p, ((size_t)out->n + 1) * sizeof *p, "flags", e);
    if (p) {
        out->p = p;
        out->p[out->n++] = (struct pair){key, value, line};
        return 0;
    }
fail:
    sys_free(key);
    sys_free(value);
    return err_set(e, ERR_RUN, "%s: out of memory", where);
}

void pairs_free(struct pairs *p) {
    for (int i = 0; i < p->n; i++) {
        sys_free(p->p[i].key);
        sys_free(p->p[i].value);
    }
    sys_free(p->p);
    *p = (struct pairs){0};
}

/* ---- scalars ---- */

static void skip_blanks(struct yaml *y) {
    while (y->p < y->end && (*y->p == ' ' || *y->p == '\t')) y->p++;
}

/* 1 if only blanks and a comment are left; a comment begins behind a blank. */
static int at_end(struct yaml *y) {
    skip_blanks(y);
    return y->p == y->end || (*y->p == '#' && (y->p[-1] == ' ' || y->p[-1] == '\t'));
}

static int hex(struct yaml *y, int digits, uint32_t *cp) {
    for (*cp = 0; digits--; y->p++) {
        char c = y->p < y->end ? *y->p : 0, low = (char)(c | 32);
        if (!(c >= '0' && c <= '9') && !(low >= 'a' && low <= 'f'))
            return bad(y, "hex digits are missing in an escape");
        *cp = *cp << 4 | (uint32_t)(c <= '9' ? c - '0' : low - 'a' + 10);
    }
    return *cp && *cp <= 0x10ffff ? 0 : bad(y, "an escape is out of range");
}

static int read_escape(struct yaml *y, struct str *out) {
    static const char from[] = "nrt\"\\/ ", to[] = "\n\r\t\"\\/ ";
    char c = y->p < y->end ? *y->p++ : 0;
    const char *at = c ? strchr(from, c) : NULL;
    uint32_t cp;
    if (at) return str_putc(out, to[at - from]), 0;
    int digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (!digits) return bad(y, "unknown escape in a quoted text");
    if (hex(y, digits, &cp)) return -1;
    str_utf8(out, cp);
    return 0;
}

static int read_quoted(struct yaml *y, struct str *out) {
    char quote = *y->p++;
    while (y->p < y->end) {
        char c = *y->p++;
        if (c == quote) {
            if (quote == '"' || y->p == y->end || *y->p != '\'') return 0;
            y->p++; /* '' stands for ' */
        }
        if (c == '\\' && quote == '"') {
            if (read_escape(y, out)) return -1;
        } else {
            str_putc(out, c);
        }
    }
    return bad(y, "a quoted text must end on its line");
}

static int read_plain(struct yaml *y, int in_list, struct str *out) {
    const char *from = y->p, *to = y->p;
    for (; y->p < y->end; y->p++) {
        char c = *y->p, next = y->p + 1 < y->end ? y->p[1] : ' ';
        if (c == '#' && y->p > from && (y->p[-1] == ' ' || y->p[-1] == '\t')) break;
        if (in_list && (c == ',' || c == ']')) break;
        if (in_list && (c == '[' || c == '{' || c == '}')) return bad(y, "a list may hold only plain values");
        if (c == ':' && (next == ' ' || next == '\t'))
            return bad(y, "nested maps are not read; quote a text that holds \": \"");
        if (c != ' ' && c != '\t') to = y->p + 1;
    }
    str_add(out, from, (size_t)(to - from));
    return 0;
}

static int is_null(const struct str *s) {
    return !s->n || !strcmp(s->p, "~") || !strcmp(s->p, "null") || !strcmp(s->p, "Null") ||
           !strcmp(s->p, "NULL");
}

/* A JSON object that ends on its line, as it stands (lr_scheduler_kwargs). 0: it is none. */
static int read_object(struct yaml *y, struct str *out) {
    const char *end = y->end;
    while (end > y->p && end[-1] != '}') end--;
    if (end == y->p || json_check(y->p, (size_t)(end - y->p), NULL, NULL)) return 0;
    str_add(out, y->p, (size_t)(end - y->p));
    y->p = end;
    return 1;
}

/* One scalar; *null when it is a bare null. */
static int read_scalar(struct yaml *y, int in_list, struct str *out, int *null) {
    static const char *const refused[][2] = {
        {"&", "anchors are not read"},
        {"*", "aliases are not read"},
        {"!", "tags are not read"},
        {"|", "block texts are not read; write the text in quotes on one line"},
        {">", "block texts are not read; write the text in quotes on one line"},
        {"{", "nested maps are not read; write key: value lines, and an object that a flag takes as JSON on one line"},
        {"%", "a value that begins with % must be quoted"},
        {"@", "a value that begins with @ must be quoted"},
        {"`", "a value that begins with ` must be quoted"},
    };
    str_clear(out);
    *null = 0;
    if (!in_list && y->p < y->end && *y->p == '{' && read_object(y, out)) return 0;
    for (size_t i = 0; y->p < y->end && i < sizeof refused / sizeof *refused; i++)
        if (*y->p == *refused[i][0]) return bad(y, refused[i][1]);
    if (y->p < y->end && (*y->p == '"' || *y->p == '\'')) return read_quoted(y, out);
    if (read_plain(y, in_list, out)) return -1;
    *null = is_null(out);
    return 0;
}

static int add_item(struct yaml *y, const struct str *item, int null, int *count, struct str *list) {
    if (null) return bad(y, "a list may not hold null");
    if ((*count)++) str_putc(list, ',');
    str_add(list, item->p ? item->p : "", item->n);
    return 0;
}

/* "[a, b]" -> "a,b" */
static int read_flow_list(struct yaml *y, struct str *list) {
    struct str item = {0};
    int null, count = 0, rc = -1;
    y->p++;
    for (;;) {
        skip_blanks(y);
        if (y->p < y->end && *y->p == ']') break;
        if (y->p == y->end || *y->p == '#') {
            bad(y, "a list in brackets must end on its line");
            goto out;
        }
        if (*y->p == '[') {
            bad(y, "a list may hold only plain values");
            goto out;
        }
        if (read_scalar(y, 1, &item, &null) || add_item(y, &item, null, &count, list)) goto out;
        skip_blanks(y);
        if (y->p < y->end && *y->p == ',')
            y->p++;
        else if (y->p < y->end && *y->p != ']') {
            bad(y, "',' or ']' is expected in a list");
            goto out;
        }
    }
    y->p++;
    rc = 0;
out:
    str_free(&item);
    return rc;
}

/* ---- lines ---- */

/* The key of "key: ..", and y->p behind its colon. */
static char *read_key(struct yaml *y) {
    const char *from = y->p;
    while (y->p < y->end && (strchr("_-.", *y->p) || (*y->p >= '0' && *y->p <= '9') ||
                             ((*y->p | 32) >= 'a' && (*y->p | 32) <= 'z')))
        y->p++;
    size_t n = (size_t)(y->p - from);
    skip_blanks(y);
    if (!n || y->p == y->end || *y->p != ':' || (y->p + 1 < y->end && y->p[1] != ' ' && y->p[1] != '\t')) {
        bad(y, "a line \"key: value\" is expected here");
        return NULL;
    }
    y->p++;
    char *key = text_copy(from, n);
    if (!key) err_set(y->e, ERR_RUN, "%s: out of memory", y->where);
    return key;
}

static int read_pair(struct yaml *y, struct pairs *out, int *open_list) {
    struct str value = {0};
    int null = 1, rc = -1, line = y->line;
    char *key = read_key(y), *text = NULL;
    if (!key) return -1;
    *open_list = at_end(y);
    if (!*open_list) {
        if (*y->p == '[') {
            null = 0;
            if (read_flow_list(y, &value)) goto out;
        } else if (read_scalar(y, 0, &value, &null)) {
            goto out;
        }
        if (!at_end(y)) {
            bad(y, "there is more text behind the value");
            goto out;
        }
    }
    if (value.oom || (!null && !(text = text_copy(value.p ? value.p : "", value.n)))) goto out;
    rc = add_pair(out, key, text, line, y->where, y->e);
    key = NULL; /* add_pair took both */
out:
    sys_free(key);
    str_free(&value);
    return rc ? err_set(y->e, ERR_RUN, "%s: out of memory", y->where) : 0;
}

/* "- value" under a key without value: joins the items of that key. */
static int read_item(struct yaml *y, struct pair *last) {
    struct str item = {0}, list = {0};
    int null, count = last->value != NULL, rc = -1;
    y->p++;
    skip_blanks(y);
    if (last->value) str_puts(&list, last->value);
    if (y->p < y->end && (*y->p == '-' || *y->p == '[') &&
        (y->p + 1 == y->end || y->p[1] == ' ' || *y->p == '[')) {
        bad(y, "a list may hold only plain values");
        goto out;
    }
    if (read_scalar(y, 0, &item, &null) || add_item(y, &item, null, &count, &list)) goto out;
    if (!at_end(y)) {
        bad(y, "there is more text behind the value");
        goto out;
    }
    char *text = list.oom ? NULL : text_copy(list.p ? list.p : "", list.n);
    if (!text) goto out;
    sys_free(last->value);
    last->value = text;
    rc = 0;
out:
    str_free(&item);
    str_free(&list);
    return rc ? err_set(y->e, ERR_RUN, "%s: out of memory", y->where) : 0;
}

static int read_line(struct yaml *y, struct pairs *out, int *open_list, int *started) {
    const char *begin = y->p;
    while (y->p < y->end && *y->p == ' ') y->p++;
    size_t indent = (size_t)(y->p - begin), left = (size_t)(y->end - y->p);
    if (left && *y->p == '\t') {
        skip_blanks(y);
        return y->p == y->end || *y->p == '#' ? 0 : bad(y, "a tab in front of a line; use blanks");
    }
    if (!left || *y->p == '#') return 0;
    if (!indent && left >= 3 && (!strncmp(y->p, "---", 3) || !strncmp(y->p, "...", 3))) {
        int end = *y->p == '.';
        y->p += 3;
        if (!at_end(y)) return bad(y, "nothing may stand behind --- or ...");
        if (!end && *started) return bad(y, "a second document begins here; only one is read");
        *started = end ? 2 : 1;
        return 0;
    }
    if (*started == 2) return bad(y, "there is text behind the end of the document");
    *started = 1;
    if (*y->p == '%' && !indent) return bad(y, "directives are not read");
    if (*y->p == '?' && (left == 1 || y->p[1] == ' ')) return bad(y, "keys must be plain words");
    if (*y->p == '-' && (left == 1 || y->p[1] == ' '))
        return *open_list ? read_item(y, &out->p[out->n - 1]) : bad(y, "a list item without a key above it");
    if (indent)
        return bad(
            y, "nested maps and continued lines are not read; write every key: value in the first column");
    return read_pair(y, out, open_list);
}

int yaml_parse(const char *text, size_t n, const char *where, struct pairs *out, struct err *e) {
    struct yaml y = {.where = where, .e = e};
    const char *p = text, *end = text + n;
    int open_list = 0, started = 0;
    if (n >= 3 && !memcmp(p, "\xef\xbb\xbf", 3)) p += 3;
    while (p < end) {
        const char *lf = memchr(p, '\n', (size_t)(end - p));
        uint32_t cp;
        y.line++;
        y.p = p;
        y.end = lf ? lf : end;
        p = lf ? lf + 1 : end;
        if (y.end > y.p && y.end[-1] == '\r') y.end--;
        for (const char *q = y.p; q < y.end;) {
            int len = utf8_get((const unsigned char *)q, (size_t)(y.end - q), &cp);
            if (!len || (cp < 32 && cp != '\t') || cp == 127) return bad(&y, "the text is not plain UTF-8");
            q += len;
        }
        if (read_line(&y, out, &open_list, &started)) return -1;
    }
    return 0;
}

/* ---- JSON ---- */

static int print_scalar(struct str *s, const struct cJSON *v) {
    if (cJSON_IsString(v))
        str_puts(s, v->valuestring);
    else if (cJSON_IsNumber(v))
        str_json_num(s, v->valuedouble);
    else if (cJSON_IsBool(v))
        str_puts(s, cJSON_IsTrue(v) ? "true" : "false");
    else
        return -1;
    return 0;
}

/* An object of plain values as JSON again (lr_scheduler_kwargs). */
static int print_object(struct str *s, const struct cJSON *object) {
    const struct cJSON *v;
    int simple = 1;
    str_putc(s, '{');
    cJSON_ArrayForEach(v, object) {
        if (v != object->child) str_putc(s, ',');
        str_json(s, v->string, strlen(v->string));
        str_putc(s, ':');
        if (cJSON_IsString(v)) str_json(s, v->valuestring, strlen(v->valuestring));
        else simple &= !print_scalar(s, v);
    }
    str_putc(s, '}');
    return simple ? 0 : -1;
}

int json_pairs(const char *text, size_t n, const char *where, struct pairs *out, struct err *e) {
    struct str s = {0};
    int rc = -1;
    const struct cJSON *v, *item;
    struct cJSON *j = json_parse(text, n, where, e);
    if (!j) return -1;
    if (!cJSON_IsObject(j)) {
        err_set(e, ERR_INPUT, "%s: one JSON object with flags as keys is expected", where);
        goto out;
    }
    cJSON_ArrayForEach(v, j) {
        int simple = 1;
        str_clear(&s);
        if (cJSON_IsArray(v)) {
            cJSON_ArrayForEach(item, v) {
                if (item != v->child) str_putc(&s, ',');
                simple &= !print_scalar(&s, item);
            }
        } else if (!cJSON_IsNull(v)) {
            simple = !(cJSON_IsObject(v) ? print_object(&s, v) : print_scalar(&s, v));
        }
        if (!simple) {
            err_set(e, ERR_INPUT,
                    "%s: \"%.80s\" must be a text, a number, true, false, null, or a list of these", where,
                    v->string);
            goto out;
        }
        char *value = cJSON_IsNull(v) ? NULL : text_copy(s.p ? s.p : "", s.n);
        if ((!value && !cJSON_IsNull(v)) || s.oom) {
            sys_free(value);
            err_set(e, ERR_RUN, "%s: out of memory", where);
            goto out;
        }
        if (add_pair(out, text_copy(v->string, strlen(v->string)), value, 0, where, e)) goto out;
    }
    rc = 0;
out:
    str_free(&s);
    json_free(j);
    return rc;
}
