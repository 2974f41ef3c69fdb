/* JSON lines: what score reads ('s' first), what tokenize reads ('t'), and ids that become text ('d'). */
#define _GNU_SOURCE /* as tokenize.c has it */
#include "cli/score.c"
#include "cli/tokenize.c"
#include "base/log.h"
#include "tests/fuzz/fuzz_file.h"
#include "tests/fuzz/mutate.h"
#include "tests/tokenizer_small.h"

enum { IDS = 300 };

static void check_ids(const struct ids *ids, int labels) {
    for (size_t i = 0; i < ids->n; i++)
        if (ids->p[i] >= IDS || ids->p[i] < (labels ? IGNORE_LABEL : 0) || (labels && ids->p[i] < 0 && ids->p[i] != IGNORE_LABEL)) abort();
}

static void score_lines(struct tok *t, const char *path) {
    static struct scorer c;
    struct err e = {0};
    struct lines l;
    struct cJSON *j;
    char where[600];
    int r = lines_open(&l, path, &e);
    c.s.tok = t, c.s.ids = tok_count(t), c.s.model.config.V = IDS;
    while (!r && (r = lines_next(&l, &j, &e)) > 0) {
        snprintf(where, sizeof where, "%.500s line %lld", l.name, (long long)l.line);
        r = read_object(&c, j, where, &e);
        check_ids(&c.in[0].ids, 0), check_ids(&c.in[0].labels, 1);
        if (!r && c.in[0].labels.n && c.in[0].labels.n != c.in[0].ids.n) abort();
        ids_free(&c.in[0].ids), ids_free(&c.in[0].labels);
        json_free(j);
    }
    if ((r < 0) != (e.code != 0)) abort();
    lines_close(&l);
}

static void token_lines(struct tok *t, const uint8_t *data, size_t n, int decode) {
    struct stream s = {.tok = t, .file = "fuzz", .decode = decode, .line = 1, .buf = (char *)(uintptr_t)data, .have = n};
    struct err e = {0};
    if (make_tasks(&s, n, &e)) abort();
    for (int i = 0; i < s.n_tasks; i++) {
        struct task *k = &s.tasks[i];
        run_task(&s, k);
        if (k->err.code && (k->err.code != ERR_INPUT || strncmp(k->err.text, "fuzz:", 5))) abort();
        for (const char *p = k->out.p, *end; p && *p; p = end + 1) {
            if (!(end = strchr(p, '\n'))) abort();
            const char *nul = strstr(p, "\\u0000"); /* the one escape that is written and not read */
            if (json_check(p, (size_t)(end - p), NULL, NULL) && (!nul || nul > end)) abort(); /* JSON, line for line */
        }
    }
    for (int i = 0; i < s.cap_tasks; i++) str_free(&s.tasks[i].out);
    sys_free(s.tasks);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct tok *t;
    log_quiet = 1;
    if (!t && !(t = open_small())) abort();
    if (size && *data == 's') score_lines(t, fuzz_file("lines", data + 1, size - 1));
    else if (size) token_lines(t, data + 1, size - 1, *data == 'd');
    return 0;
}

static const char *const words[] = {"text", "ids", "labels", "-100", "299", "<eod>", "<sep>", "a b", "{\"text\":\"a\"}", "{\"ids\":[1,2]}", "{\"ids\":[1,2],\"labels\":[-100,2]}", "\\ud83d\\ude00", "\\u0000", "\xe4\xbd\xa0"};
MUTATORS_BEGIN
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned seed) {
    struct mutator m = mutate_begin(seed);
    if (n < 2 || mutate_plain(&m)) return LLVMFuzzerMutate(data, n, max);
    return 1 + (mutate_pick(&m, 3) ? mutate_json : mutate_lines)(&m, data + 1, n - 1, max - 1, words, sizeof words / sizeof *words);
}
MUTATORS_END
