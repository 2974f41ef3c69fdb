/* cli/tokenize.c - qlora tokenize: {"text": ..} lines to {"ids": [..]} lines, and back.
 *
 * Streams: a few MB of whole lines are read, tokenised by all threads, and written in order. Memory does not grow with
 * the file; one line may have up to 16 MB. Blank lines are skipped. */
#define _GNU_SOURCE
#include "base/json.h"
#include "base/print.h"
#include "base/stop.h"
#include "base/str.h"
#include "base/sys.h"
#include "cli/cli_internal.h"
#include "tokenizer/tokenizer.h"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

enum {
    LINE_MAX_BYTES = 16 << 20,
    BLOCK_BYTES = 4 << 20, /* read at once: enough for all threads, little memory */
    TASK_BYTES = 32 << 10  /* of lines a thread takes at once */
};

struct task { /* consecutive whole lines, and what becomes of them */
    const char *p;
    size_t n;
    int64_t line; /* number of the first */
    struct str out;
    struct err err;
};

struct stream {
    const struct tok *tok;
    const char *file;
    int fd, decode, at_end;
    char *buf;
    size_t have, cap;
    int64_t line;
    struct task *tasks;
    int n_tasks, cap_tasks;
};

static void add_ids(struct str *s, const struct ids *v) {
    cli_add_ids(s, "{\"ids\":[", v->p, (int64_t)v->n);
    str_puts(s, "}\n");
}

static int add_text(struct str *s, const struct tok *t, const struct ids *v, struct str *text) {
    str_clear(text);
    tok_decode(t, v->p, v->n, 0, text);
    str_puts(s, "{\"text\":");
    str_json(s, text->p ? text->p : "", text->n);
    str_puts(s, "}\n");
    return text->oom;
}

static int read_ids(const struct cJSON *j, const struct tok *t, struct ids *ids, struct err *e) {
    const struct cJSON *list = json_get(j, "ids"), *v;
    if (!cJSON_IsArray(list))
        return err_set(e, ERR_INPUT, "the key \"ids\" with a list of numbers is missing");
    cJSON_ArrayForEach(v, list) {
        if (!cJSON_IsNumber(v)) return err_set(e, ERR_INPUT, "\"ids\" holds something that is not a number");
        if (cli_push_id(tok_count(t), v->valuedouble, ids, e)) return -1;
    }
    return 0;
}

static int convert_line(const struct stream *s, const char *p, size_t n, struct ids *ids, struct str *scratch,
                        struct str *out, struct err *e) {
    struct cJSON *j = json_parse(p, n, "JSON", e);
    int rc = -1;
    ids->n = 0;
    if (!j) return -1;
    if (s->decode) {
        rc = read_ids(j, s->tok, ids, e) ||
             (add_text(out, s->tok, ids, scratch) && err_set(e, ERR_RUN, "out of memory"));
    } else {
        const char *text = NULL;
        rc = json_str(j, "text", &text, "JSON", e) < 0;
        if (!rc && !text) rc = err_set(e, ERR_INPUT, "the key \"text\" with a text is missing");
        rc = rc || tok_encode(s->tok, text, strlen(text), TOK_SPECIAL, ids, e);
        if (!rc) add_ids(out, ids);
    }
    json_free(j);
    return rc ? -1 : 0;
}

static void run_task(const struct stream *s, struct task *t) {
    struct ids ids = {0};
    struct str scratch = {0};
    const char *p = t->p, *end = t->p + t->n;
    for (int64_t line = t->line; p < end && !t->err.code; line++) {
        const char *lf = memchr(p, '\n', (size_t)(end - p)), *stop = lf ? lf : end;
        size_t n = (size_t)(stop - p);
        while (n && (p[n - 1] == '\r' || p[n - 1] == ' ' || p[n - 1] == '\t')) n--;
        if (n && convert_line(s, p, n, &ids, &scratch, &t->out, &t->err))
            err_where(&t->err, "%s:%lld", s->file, (long long)line);
        p = lf ? lf + 1 : end;
    }
    if (t->out.oom) err_set(&t->err, ERR_RUN, "out of memory for the output");
    str_free(&scratch);
    ids_free(&ids);
}

/* Cuts n bytes of whole lines into tasks. */
static int make_tasks(struct stream *s, size_t n, struct err *e) {
    s->n_tasks = 0;
    for (size_t at = 0; at < n;) {
        size_t size = n - at < TASK_BYTES ? n - at : TASK_BYTES;
        const char *lf = size < n - at ? memchr(s->buf + at + size, '\n', n - at - size) : NULL;
        size = lf ? (size_t)(lf + 1 - (s->buf + at)) : n - at;
        if (s->n_tasks == s->cap_tasks) {
            int cap = s->cap_tasks ? 2 * s->cap_tasks : 64;
            struct task *t = sys_grow(s->tasks, (size_t)cap * sizeof *t, "list of tasks", e);
            if (!t) return -1;
            memset(t + s->cap_tasks, 0, (size_t)(cap - s->cap_tasks) * sizeof *t);
            s->tasks = t, s->cap_tasks = cap;
        }
        struct task *t = &s->tasks[s->n_tasks++];
        str_clear(&t->out); /* keeps its memory from block to block */
        *t = (struct task){.p = s->buf + at, .n = size, .line = s->line, .out = t->out};
        for (const char *q = t->p; (q = memchr(q, '\n', (size_t)(t->p + size - q))); q++) s->line++;
        at += size;
    }
    return 0;
}

/* Fills the buffer until it holds a whole line and BLOCK_BYTES, or the file ends. Returns the bytes of whole lines, -1. */
static int64_t fill(struct stream *s, struct err *e) {
    for (;;) {
        const char *lf = s->have ? memrchr(s->buf, '\n', s->have) : NULL;
        if (s->at_end) return (int64_t)s->have;
        if (lf && s->have >= BLOCK_BYTES) return lf + 1 - s->buf;
        if (!lf && s->have > LINE_MAX_BYTES)
            return err_set(e, ERR_INPUT, "%s:%lld: a line has more than %d MB", s->file, (long long)s->line,
                           LINE_MAX_BYTES >> 20);
        if (s->have + (BLOCK_BYTES >> 2) > s->cap) {
            size_t cap = s->cap ? 2 * s->cap : 2 * BLOCK_BYTES;
            char *p = sys_grow(s->buf, cap, "lines", e);
            if (!p) return -1;
            s->buf = p, s->cap = cap;
        }
        if (stop_wait_input(s->fd)) return stop_check("while it waited for input", e);
        ssize_t got = sys_read(s->fd, s->buf + s->have, s->cap - s->have);
        if (got < 0) return err_errno(e, ERR_RUN, "%s cannot be read", s->file);
        s->at_end = got == 0;
        s->have += (size_t)got;
    }
}

static int run_stream(struct stream *s, struct err *e) {
    for (int64_t n; (n = fill(s, e)) != 0;) {
        if (n < 0 || make_tasks(s, (size_t)n, e)) return -1;
#pragma omp parallel for schedule(dynamic)
        for (int i = 0; i < s->n_tasks; i++)
            if (!stop_requested()) run_task(s, &s->tasks[i]);
        if (stop_requested()) return 128 + stop_requested();
        for (int i = 0; i < s->n_tasks; i++) {
            struct task *t = &s->tasks[i];
            if (print_bytes(t->out.p, t->out.n)) return print_end(e);
            if (t->err.code) return err_set(e, t->err.code, "%s", t->err.text);
        }
        s->have -= (size_t)n;
        memmove(s->buf, s->buf + n, s->have);
        if (s->at_end) break;
    }
    return 0;
}

static int run_file(const struct tok *t, const char *file, int decode, struct err *e) {
    int from_stdin = !strcmp(file, "-"), rc = -1;
    struct stream s = {.tok = t, .file = from_stdin ? "standard input" : file, .decode = decode, .line = 1};
    s.fd = from_stdin ? 0 : sys_open(file, O_RDONLY, 0);
    if (s.fd < 0) return err_errno(e, ERR_INPUT, "%s cannot be opened", file);
    rc = run_stream(&s, e);
    for (int i = 0; i < s.cap_tasks; i++) str_free(&s.tasks[i].out);
    sys_free(s.tasks);
    sys_free(s.buf);
    if (!from_stdin) sys_close(s.fd);
    return rc;
}

/* --text or --ids: one line of output. */
static int run_argument(const struct tok *t, const struct options *o, struct err *e) {
    struct ids ids = {0};
    struct str out = {0}, scratch = {0};
    int rc = 0;
    if (o->ids) {
        rc = cli_read_ids(o->ids, tok_count(t), &ids, e) ||
             (add_text(&out, t, &ids, &scratch) && err_set(e, ERR_RUN, "out of memory"));
    } else {
        rc = tok_encode(t, o->text, strlen(o->text), TOK_SPECIAL, &ids, e);
        if (!rc) add_ids(&out, &ids);
    }
    if (!rc && out.oom) rc = err_set(e, ERR_RUN, "out of memory");
    if (!rc) print_bytes(out.p, out.n);
    str_free(&out);
    str_free(&scratch);
    ids_free(&ids);
    return rc;
}

int cmd_tokenize(struct options *o, struct err *e) {
    struct tok *t = tok_open(o->train.model_name_or_path, e);
    if (!t) return e->code;
    int rc = o->file ? run_file(t, o->file, o->decode, e) : run_argument(t, o, e);
    tok_close(t);
    return rc < 0 ? e->code : rc;
}
