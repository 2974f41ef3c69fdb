/* tests/data_make.h - what the tests of datasets/ share: a scratch folder, a small tokenizer, a data_load
 * whose log is caught. The tokenizer knows the letters a to z alone, so that n letters are n + 1 ids (the
 * word-start mark first) and every other byte is one id. */
#ifndef QLORA_DATA_MAKE_H
#define QLORA_DATA_MAKE_H
#include "base/file.h"
#include "base/log.h"
#include "base/sys.h"
#include "datasets/datasets_internal.h"
#include "tests/test.h"
#include <fcntl.h>
#include <stdarg.h>
#include <unistd.h>

static char scratch[200];

static void remove_scratch(void) {
    dir_remove(scratch, NULL);
}

static const char *scratch_dir(void) {
    const char *tmp = getenv("TMPDIR");
    if (*scratch) return scratch;
    snprintf(scratch, sizeof scratch, "%s/qlora-test-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (!mkdtemp(scratch)) abort();
    atexit(remove_scratch);
    return scratch;
}

/* Writes a file of the scratch folder; its path, in one of 8 buffers. */
static const char *put_bytes(const char *name, const char *text, size_t n) {
    static char path[8][400];
    static int k;
    char *p = path[k = (k + 1) % 8];
    struct err e = {0};
    snprintf(p, sizeof path[0], "%s/%s", scratch_dir(), name);
    if (file_write_all(p, text, n, &e)) fprintf(stderr, "%s\n", e.text), abort();
    return p;
}
static inline const char *put(const char *name, const char *text) {
    return put_bytes(name, text, strlen(text));
}

static inline struct tok *small_tok(void) {
    static struct tok *t;
    static const char letters[] =
        "a\0b\0c\0d\0e\0f\0g\0h\0i\0j\0k\0l\0m\0n\0o\0p\0q\0r\0s\0t\0u\0v\0w\0x\0y\0z";
    struct tok_piece piece[30] = {{"\xe2\x96\x81", -1}, {"<eod>", 0}, {"<sep>", 0}};
    struct str model = {0};
    struct err e = {0};
    if (t) return t;
    for (int i = 0; i < 26; i++) piece[3 + i] = (struct tok_piece){letters + 2 * i, (float)-i - 2};
    if (tok_model_write(piece, 29, &model, &e) || !(t = tok_parse(model.p, model.n, "test", &e)))
        fprintf(stderr, "%s\n", e.text), abort();
    str_free(&model);
    return t;
}

/* The settings of a test: all zero but these. */
static inline struct data_config settings(const char *dataset) {
    return (struct data_config){.dataset = dataset,
                                .dataset_dir = scratch_dir(),
                                .cutoff_len = 1000,
                                .packing = -1,
                                .compat_new = 1,
                                .seed = 42};
}

struct loaded {
    struct dataset *train, *eval;
    struct data_report r;
    struct err e;
    char log[8000]; /* standard error meanwhile */
    int rc;
};

static inline void load(const struct data_config *c, struct loaded *out) {
    char path[300];
    snprintf(path, sizeof path, "%s/log", scratch_dir());
    int saved = dup(2), fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    *out = (struct loaded){0};
    fflush(stderr);
    dup2(fd, 2);
    out->rc = data_load(c, small_tok(), &out->train, &out->eval, &out->r, &out->e);
    fflush(stderr);
    dup2(saved, 2);
    ssize_t n = pread(fd, out->log, sizeof out->log - 1, 0);
    out->log[n > 0 ? n : 0] = 0;
    close(fd);
    close(saved);
}

static inline void unload(struct loaded *x) {
    data_free(x->train);
    data_free(x->eval);
}

/* Loading must fail with all these pieces in the message. */
static inline void load_fails(const struct data_config *c, const char *name, int count, ...) {
    struct loaded x;
    va_list ap;
    load(c, &x);
    CHECK(x.rc == -1 && x.e.code == ERR_INPUT && !x.train && !x.eval, "%s: rc %d, code %d", name, x.rc,
          x.e.code);
    va_start(ap, count);
    for (int i = 0; i < count; i++) {
        const char *piece = va_arg(ap, const char *);
        CHECK(strstr(x.e.text, piece), "%s: no \"%s\" in: %s", name, piece, x.e.text);
    }
    va_end(ap);
    unload(&x);
}

/* A sequence as text: letters as they are, other bytes as <0x..>'s byte, '_' the word-start mark, '|' <sep>,
 * '.' <eod>; masked ones in (parentheses). */
static inline const char *shown(const struct dataset *d, int64_t i) {
    static char out[4][2000];
    static int k;
    struct sequence s;
    char *p = out[k = (k + 1) % 4], *end = p + sizeof out[0] - 8;
    const struct tok *t = small_tok();
    int open = 0;
    data_get(d, i, &s, NULL);
    for (int64_t j = 0; j < s.n && p < end; j++) {
        int32_t id = s.ids[j];
        if (!open && s.labels[j] == IGNORE_LABEL) *p++ = '(', open = 1;
        if (open && s.labels[j] != IGNORE_LABEL) *p++ = ')', open = 0;
        *p++ = id == tok_eod(t)                   ? '.'
               : id == tok_sep(t)                 ? '|'
               : id == TOK_FIXED_PIECES           ? '_'
               : id >= 3 && id < TOK_FIXED_PIECES ? (char)(id - 3)
                                                  : (char)('a' + id - TOK_FIXED_PIECES - 3);
    }
    if (open) *p++ = ')';
    *p = 0;
    return p = out[k];
}

static inline void shows(const struct loaded *x, int64_t i, const char *want) {
    CHECK(x->train && i < data_count(x->train), "%lld: there is no such sequence (%s)", (long long)i,
          x->e.text);
    if (!x->train || i >= data_count(x->train)) return;
    const char *have = shown(x->train, i);
    CHECK(!strcmp(have, want), "sequence %lld: %s, must be %s", (long long)i, have, want);
}
#endif
