/* datasets/records.c - a data file as a stream of records, each handed on as the text of one JSON object.
 *
 *     .json .jsonl   an array of objects, or one object per line, in either extension
 *     .csv           a header row; RFC 4180 quoting; an empty cell is null. SHAPE_ROWS: no header, the columns are "0", "1", ..
 *     .txt           one record {"text": line} per line, blank lines too; LF, CR LF and CR end a line
 *
 * Any of them may be packed with gzip, whatever its name (.jsonl.gz is known as .jsonl).
 * Only the record at hand is in memory (<= 16 MiB), so a file may have any size. The scanner finds where a
 * record ends and nothing else: its grammar is checked by json_parse, later and on several threads. A byte
 * order mark is skipped. */
#include "base/stream.h"
#include "base/sys.h"
#include "datasets/datasets_internal.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { FIRST_CHUNK = 1 << 14, CHUNK = 1 << 20, COLUMNS_MAX = 1000 }; /* read at once: the first piece is enough for a small file */

struct reader {
    struct stream *file;
    int at_end; /* of the file: the buffer holds the rest */
    char *buf;
    size_t from, to, cap; /* buf[from..to) is not yet taken */
    int64_t line, column; /* of buf[from] */
    int64_t number;       /* of the last record */
    enum shape shape;
    int ended;              /* the ']' has been seen */
    struct str json, cells; /* CSV, TEXT: the record as JSON; the cells of a row, one after the other */
    size_t *cell_end;       /* [cells] */
    int cell_count, cell_cap;
    char **name; /* CSV header, NULL = nameless */
    int name_count;
};

static int fail_at(const struct reader *r, int64_t line, int64_t column, struct err *e, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
static int fail_at(const struct reader *r, int64_t line, int64_t column, struct err *e, const char *fmt,
                   ...) {
    char text[700];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return err_set(e, ERR_INPUT, "%s:%lld:%lld: %s", stream_path(r->file), (long long)line, (long long)column, text);
}

/* Line and column behind p[0..n), for a start at *line:*column. */
static void walk(const char *p, size_t n, int64_t *line, int64_t *column) {
    for (size_t i = 0; i < n; i++)
        if (p[i] == '\n')
            ++*line, *column = 1;
        else
            *column += ((unsigned char)p[i] & 0xc0) != 0x80; /* characters, not bytes */
}

static void take(struct reader *r, size_t n) {
    walk(r->buf + r->from, n, &r->line, &r->column);
    r->from += n;
}

/* Bytes of the next read: of a small file no more than it has, and one that shows its end. */
static size_t chunk_bytes(const struct reader *r) {
    const int64_t left = stream_left(r->file);
    return r->cap ? CHUNK : left >= 0 && left < FIRST_CHUNK ? (size_t)left + 1 : FIRST_CHUNK;
}

/* 1 if byte i is in the buffer now, 0 if the file ends before it. */
static int more(struct reader *r, size_t i, struct err *e) {
    while (r->to - r->from <= i) {
        if (r->at_end) return 0;
        if (r->from) {
            memmove(r->buf, r->buf + r->from, r->to - r->from);
            r->to -= r->from, r->from = 0;
        }
        const size_t chunk = chunk_bytes(r);
        if (r->cap - r->to < chunk) {
            size_t cap = r->cap + r->cap / 2 + chunk;
            char *p = sys_grow(r->buf, cap, "records", e);
            if (!p) return -1;
            r->buf = p, r->cap = cap;
        }
        int64_t n = stream_read(r->file, r->buf + r->to, chunk, e);
        if (n < 0) return -1;
        r->at_end = n < (int64_t)chunk;
        r->to += (size_t)n;
    }
    return 1;
}

/* Byte i, -1 at the end of the file, -2 with e. */
static int peek(struct reader *r, size_t i, struct err *e) {
    int m = r->to - r->from > i ? 1 : more(r, i, e);
    return m > 0 ? (unsigned char)r->buf[r->from + i] : m - 1;
}

static int too_large(struct reader *r, struct err *e) {
    return fail_at(r, r->line, r->column, e, "record %lld is larger than 16 MiB", (long long)r->number + 1);
}

/* Skips white space; the next byte, -1 or -2 as peek. */
static int skip_space(struct reader *r, struct err *e) {
    int c;
    while ((c = peek(r, 0, e)) == ' ' || c == '\t' || c == '\r' || c == '\n') take(r, 1);
    return c;
}

/* The bytes up to a line end (not in *n); peek(*n) is the line end, or the file ends there. */
static int scan_line(struct reader *r, int lone_cr, size_t *n, struct err *e) {
    for (size_t i = 0;;) {
        int m = more(r, i, e);
        if (m < 0) return -1;
        if (!m) return *n = i, 0;
        const char *p = r->buf + r->from, *end = memchr(p + i, '\n', r->to - r->from - i);
        size_t have = end ? (size_t)(end - p) : r->to - r->from;
        const char *cr = lone_cr ? memchr(p + i, '\r', have - i) : NULL;
        if (cr) have = (size_t)(cr - p);
        if (have > RECORD_MAX_BYTES) return too_large(r, e);
        if (cr || end) return *n = have, 0;
        i = have;
    }
}

/* ---- JSON ---- */

/* The length of the object at hand: to the brace that closes it, strings skipped. */
static int scan_object(struct reader *r, size_t *n, struct err *e) {
    int depth = 0, in_string = 0, escaped = 0, m;
    size_t i = 0;
    while ((m = more(r, i, e)) > 0 && i <= RECORD_MAX_BYTES) {
        const char *p = r->buf + r->from;
        for (const size_t have = r->to - r->from; i < have; i++) {
            char c = p[i];
            if (escaped)
                escaped = 0;
            else if (in_string)
                escaped = c == '\\', in_string = c != '"';
            else if (c == '"')
                in_string = 1;
            else if (c == '{' || c == '[')
                depth++;
            else if ((c == '}' || c == ']') && --depth == 0) {
                if (i >= RECORD_MAX_BYTES) return too_large(r, e);
                return *n = i + 1, 0;
            }
        }
    }
    if (m < 0) return -1;
    /* A missing quote or brace swallows what follows: the grammar knows where it went wrong. */
    struct err why = {0};
    size_t at, have = r->to - r->from;
    int64_t line = r->line, column = r->column;
    json_check(r->buf + r->from, have, &at, &why);
    if (at >= have && m) return too_large(r, e);
    walk(r->buf + r->from, at < have ? at : have, &line, &column);
    if (at < have)
        return fail_at(r, line, column, e, "record %lld, from line %lld: %s", (long long)r->number + 1,
                       (long long)r->line, why.text);
    return fail_at(r, line, column, e,
                   "the file ends inside record %lld, which begins in line %lld; is it cut off?",
                   (long long)r->number + 1, (long long)r->line);
}

static int next_in_array(struct reader *r, size_t *n, struct err *e) {
    int c = skip_space(r, e);
    if (c == ',' && r->number) {
        take(r, 1);
        if ((c = skip_space(r, e)) == ']')
            return fail_at(r, r->line, r->column, e, "a comma stands before ]: remove it");
    } else if (c != ']' && r->number && c != -2) {
        return fail_at(r, r->line, r->column, e,
                       c < 0 ? "the file ends, but the ] of its list is missing; is it cut off?"
                             : "',' or ']' is expected behind record %lld",
                       (long long)r->number);
    }
    if (c == ']') {
        take(r, 1);
        r->ended = 1;
        if ((c = skip_space(r, e)) >= 0)
            return fail_at(r, r->line, r->column, e, "text behind the ] that ends the list");
        return c == -2 ? -1 : 0;
    }
    if (c == -2) return -1;
    if (c != '{')
        return fail_at(r, r->line, r->column, e, "record %lld must be an object {...}",
                       (long long)r->number + 1);
    return scan_object(r, n, e) ? -1 : 1;
}

static int next_json_line(struct reader *r, size_t *n, struct err *e) {
    int c = skip_space(r, e);
    if (c < 0) return c == -2 ? -1 : 0;
    if (c != '{')
        return fail_at(r, r->line, r->column, e, "record %lld must be an object {...}, alone on its line",
                       (long long)r->number + 1);
    if (scan_line(r, 0, n, e)) return -1;
    while (*n && strchr(" \t\r", r->buf[r->from + *n - 1])) --*n;
    return 1;
}

/* ---- text ---- */

static int check_utf8(const struct reader *r, size_t n, struct err *e) {
    const unsigned char *p = (const unsigned char *)r->buf + r->from;
    for (size_t i = 0; i < n;) {
        uint32_t cp = 0;
        int len = utf8_get(p + i, n - i, &cp);
        if (len && cp) {
            i += (size_t)len;
            continue;
        }
        int64_t line = r->line, column = r->column;
        walk((const char *)p, i, &line, &column);
        return len ? fail_at(r, line, column, e, "a NUL byte")
                   : fail_at(r, line, column, e,
                             "byte 0x%02X is not UTF-8; if the file is GBK, convert it: iconv -f GB18030 -t "
                             "UTF-8",
                             p[i]);
    }
    return 0;
}

static int end_of_line(struct reader *r, size_t n, struct err *e) { /* bytes of the line end at n */
    int c = peek(r, n, e), d = c == '\r' ? peek(r, n + 1, e) : 0;
    if (c == -2 || d == -2) return -1;
    return c < 0 ? 0 : d == '\n' ? 2 : 1;
}

static int next_text(struct reader *r, size_t *n, struct err *e) {
    int c = peek(r, 0, e), end;
    if (c < 0) return c == -2 ? -1 : 0;
    if (scan_line(r, 1, n, e) || (end = end_of_line(r, *n, e)) < 0 || check_utf8(r, *n, e)) return -1;
    str_clear(&r->json);
    str_puts(&r->json, "{\"text\":");
    str_json(&r->json, r->buf + r->from, *n);
    str_puts(&r->json, "}");
    *n += (size_t)end;
    return 1;
}

/* ---- CSV ---- */

static int end_cell(struct reader *r, struct err *e) {
    if (r->cell_count == COLUMNS_MAX)
        return fail_at(r, r->line, 1, e, "more than %d cells in a row", COLUMNS_MAX);
    if (r->cell_count == r->cell_cap) {
        int cap = r->cell_cap ? 2 * r->cell_cap : 16;
        size_t *p = sys_grow(r->cell_end, (size_t)cap * sizeof *p, "CSV cells", e);
        if (!p) return -1;
        r->cell_end = p, r->cell_cap = cap;
    }
    r->cell_end[r->cell_count++] = r->cells.n;
    return 0;
}

/* One row into cells; *n is its length with the line end. 1, or 0 at the end of the file. */
static int scan_row(struct reader *r, size_t *n, struct err *e) {
    size_t i = 0;
    int c = peek(r, 0, e);
    str_clear(&r->cells);
    r->cell_count = 0;
    if (c < 0) return c == -2 ? -1 : 0;
    for (;;) {
        if ((c = peek(r, i, e)) == '"') {
            for (i++; (c = peek(r, i, e)) >= 0 && (c != '"' || peek(r, ++i, e) == '"'); i++) {
                str_putc(&r->cells, (char)c);
                if (i > RECORD_MAX_BYTES) return too_large(r, e);
            }
            if (c == -1)
                return fail_at(r, r->line, r->column, e, "a quoted cell of this row is never closed");
            c = peek(r, i, e);
            if (c >= 0 && c != ',' && c != '\n' && c != '\r') {
                int64_t line = r->line, column = r->column;
                walk(r->buf + r->from, i, &line, &column);
                return fail_at(r, line, column, e,
                               "text behind a closing quote; a quote inside a cell is written \"\"");
            }
        } else {
            for (; (c = peek(r, i, e)) >= 0 && c != ',' && c != '\n' && c != '\r'; i++) {
                str_putc(&r->cells, (char)c);
                if (i > RECORD_MAX_BYTES) return too_large(r, e);
            }
        }
        if (c == -2 || end_cell(r, e)) return -1;
        if (c != ',') break;
        i++;
    }
    int end = end_of_line(r, i, e);
    if (end < 0 || check_utf8(r, i, e)) return -1;
    *n = i + (size_t)end;
    return r->cells.oom ? err_set(e, ERR_RUN, "out of memory: CSV cells") : 1;
}

static const char *cell(const struct reader *r, int k, size_t *n) {
    size_t from = k ? r->cell_end[k - 1] : 0;
    *n = r->cell_end[k] - from;
    return *n ? r->cells.p + from : "";
}

static int read_header(struct reader *r, struct err *e) {
    size_t n = 0;
    int found = scan_row(r, &n, e);
    if (found < 0) return -1;
    if (!found) return fail_at(r, 1, 1, e, "the file is empty: a header row is needed");
    r->name = sys_alloc_array((size_t)r->cell_count, sizeof *r->name, "CSV header", e);
    if (!r->name) return -1;
    r->name_count = r->cell_count;
    for (int k = 0; k < r->cell_count; k++) {
        size_t len;
        const char *p = cell(r, k, &len);
        if (!len) continue;
        if (!(r->name[k] = text_copy(p, len))) return err_set(e, ERR_RUN, "out of memory: CSV header");
        for (int j = 0; j < k; j++)
            if (r->name[j] && !strcmp(r->name[j], r->name[k]))
                return fail_at(r, 1, 1, e, "the header names the column \"%.100s\" twice", r->name[k]);
    }
    take(r, n);
    return 0;
}

static int next_row(struct reader *r, size_t *n, struct err *e) {
    int found;
    const int bare = r->shape == SHAPE_ROWS;
    while ((found = scan_row(r, n, e)) > 0 && r->cell_count == 1 && !r->cells.n) take(r, *n); /* blank */
    if (found <= 0) return found;
    if (!bare && r->cell_count > r->name_count)
        return fail_at(r, r->line, 1, e,
                       "record %lld has %d cells, but the header has %d; put cells with commas in quotes",
                       (long long)r->number + 1, r->cell_count, r->name_count);
    str_clear(&r->json);
    str_putc(&r->json, '{');
    for (int k = 0, first = 1; k < (bare ? r->cell_count : r->name_count); k++) {
        size_t len = 0;
        const char *p = k < r->cell_count ? cell(r, k, &len) : "";
        if (!bare && !r->name[k]) continue;
        if (!first) str_putc(&r->json, ',');
        first = 0;
        if (bare)
            str_printf(&r->json, "\"%d\"", k);
        else
            str_json(&r->json, r->name[k], strlen(r->name[k]));
        str_putc(&r->json, ':');
        if (len)
            str_json(&r->json, p, len);
        else
            str_puts(&r->json, "null");
    }
    str_putc(&r->json, '}');
    return 1;
}

/* ---- opening ---- */

/* path ends in `ending`, perhaps with .gz behind it. */
static int is_named(const char *path, const char *ending) {
    char packed[16];
    snprintf(packed, sizeof packed, "%s.gz", ending);
    return text_ends(path, ending) || text_ends(path, packed);
}

enum shape reader_shape(const char *path, struct err *e) {
    if (is_named(path, ".json") || is_named(path, ".jsonl"))
        return SHAPE_LINES; /* or an array: the first byte says */
    if (is_named(path, ".csv")) return SHAPE_CSV;
    if (is_named(path, ".txt")) return SHAPE_TEXT;
    int table = is_named(path, ".parquet") || is_named(path, ".arrow");
    err_set(e, ERR_INPUT, "%s: File extension must be txt, csv, json or jsonl.%s", path,
            table ? " Parquet and arrow files are not read: save the table as JSON lines." : "");
    return SHAPE_UNKNOWN;
}

struct reader *reader_open(const char *path, enum shape shape, struct err *e) {
    struct reader *r = sys_alloc(sizeof *r, "reader", e);
    if (!r || !(r->file = stream_open(path, e))) goto fail;
    r->shape = shape;
    r->line = r->column = 1;
    int a = peek(r, 0, e), b = peek(r, 1, e), c = peek(r, 2, e);
    if (a == -2 || b == -2 || c == -2) goto fail;
    if ((a == 0xff && b == 0xfe) || (a == 0xfe && b == 0xff)) {
        fail_at(r, 1, 1, e, "the file is UTF-16: save it as UTF-8");
        goto fail;
    }
    if (a == 0xef && b == 0xbb && c == 0xbf) r->from += 3;
    if (shape == SHAPE_CSV && read_header(r, e)) goto fail;
    if (shape != SHAPE_LINES) return r;
    int first = skip_space(r, e);
    if (first == -2) goto fail;
    if (first == '[') {
        r->shape = SHAPE_ARRAY;
        take(r, 1);
    } else if (first != '{') {
        fail_at(r, r->line, r->column, e,
                first < 0 ? "the file is empty"
                          : "a data file begins with [ (a list of records) or { (one record per line)");
        goto fail;
    }
    return r;
fail:
    reader_close(r);
    return NULL;
}

void reader_close(struct reader *r) {
    if (!r) return;
    stream_close(r->file);
    for (int k = 0; k < r->name_count; k++) sys_free(r->name[k]);
    sys_free(r->name);
    sys_free(r->cell_end);
    sys_free(r->buf);
    str_free(&r->json);
    str_free(&r->cells);
    sys_free(r);
}

int reader_next(struct reader *r, struct record *out, struct err *e) {
    size_t n = 0;
    int found = r->ended                  ? 0
                : r->shape == SHAPE_ARRAY ? next_in_array(r, &n, e)
                : r->shape == SHAPE_LINES ? next_json_line(r, &n, e)
                : r->shape == SHAPE_TEXT  ? next_text(r, &n, e)
                                          : next_row(r, &n, e);
    if (found <= 0) return found;
    int verbatim = r->shape == SHAPE_ARRAY || r->shape == SHAPE_LINES;
    if (r->json.oom) return err_set(e, ERR_RUN, "%s: out of memory for a record", stream_path(r->file));
    *out = (struct record){.path = stream_path(r->file),
                           .text = verbatim ? r->buf + r->from : r->json.p,
                           .n = verbatim ? n : r->json.n,
                           .number = ++r->number,
                           .line = r->shape == SHAPE_TEXT ? r->number : r->line,
                           .column = r->shape == SHAPE_TEXT ? 1 : r->column,
                           .verbatim = verbatim};
    take(r, n); /* the bytes stay in the buffer until the next call */
    return 1;
}

double reader_done(const struct reader *r) {
    return stream_done(r->file);
}

/* ---- a record ---- */

int record_error(const struct record *r, size_t at, struct err *e, const char *fmt, ...) {
    char text[800];
    int64_t line = r->line, column = r->column;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (r->verbatim) walk(r->text, at < r->n ? at : r->n, &line, &column);
    return err_set(e, ERR_INPUT, "%s:%lld:%lld: record %lld: %s", r->path, (long long)line, (long long)column,
                   (long long)r->number, text);
}

struct cJSON *record_parse(const struct record *r, struct err *e) {
    struct err local = {0};
    struct cJSON *j = json_parse(r->text, r->n, "record", &local);
    if (j || local.code != ERR_INPUT) {
        if (!j) err_set(e, local.code, "%s: %s", r->path, local.text);
        return j;
    }
    struct err why = {0};
    size_t at = 0;
    json_check(r->text, r->n, &at, &why);
    record_error(r, at, e, "%s%s", why.text,
                 r->verbatim && at == r->n
                     ? " (a file that begins with { holds one record per line; a list begins with [)"
                     : "");
    return NULL;
}

const char *key_list(char *buf, size_t size, const struct cJSON *object) {
    size_t n = 0;
    const struct cJSON *v;
    buf[0] = 0;
    cJSON_ArrayForEach(v, object) {
        int k = snprintf(buf + n, size - n, "%s\"%.60s\"", n ? ", " : "", v->string);
        if (k < 0 || (size_t)k >= size - n - 4) {
            snprintf(buf + n, size - n, "...");
            break;
        }
        n += (size_t)k;
    }
    return n ? buf : "no keys";
}
