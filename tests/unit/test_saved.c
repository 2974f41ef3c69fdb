/* tests/unit/test_saved.c - tokenised data sets on disk: what is read is what was written, settings that change ids must agree,
 * damage is found, and no failing call leaves half a data set. */
#include "tests/data_make.h"
#include <errno.h>

static char folder[300];

/* Records of chats and short texts, packed or not, saved to `folder`. */
static struct data_config prepare(const char *name, int packed, double val_size) {
    struct str s = {0};
    for (int k = 0; k < 40; k++)
        str_printf(&s, "{\"instruction\":\"%.*s\",\"output\":\"%.*s\"}\n", 1 + k % 9, "abcdefghi", 1 + k % 5, "vwxyz");
    struct data_config c = settings(put_bytes("made.jsonl", s.p, s.n));
    str_free(&s);
    snprintf(folder, sizeof folder, "%s/%s", scratch_dir(), name);
    c.tokenized_path = folder;
    c.cutoff_len = 48, c.val_size = val_size;
    if (packed) c.packing = c.neat_packing = 1;
    return c;
}

static int save(const struct data_config *c, const struct loaded *x, struct err *e) {
    *e = (struct err){0};
    return data_save(c, small_tok(), x->train, x->eval, x->r.records, e);
}

static void same_sets(const struct dataset *a, const struct dataset *b, const char *what) {
    CHECK(a && b && data_count(a) == data_count(b) && data_tokens(a) == data_tokens(b) && data_longest(a) == data_longest(b), "%s: other counts", what);
    for (int64_t i = 0; a && b && i < data_count(a) && i < data_count(b); i++) {
        struct sequence p, q;
        data_get(a, i, &p, NULL), data_get(b, i, &q, NULL);
        const size_t n = (size_t)p.n * sizeof *p.ids;
        CHECK(p.n == q.n && !memcmp(p.ids, q.ids, n) && !memcmp(p.labels, q.labels, n), "%s: sequence %lld", what, (long long)i);
        CHECK(!p.positions == !q.positions && (!p.positions || (!memcmp(p.positions, q.positions, n) && !memcmp(p.documents, q.documents, n))), "%s: sequence %lld", what, (long long)i);
    }
}

TEST(what_is_read_is_what_was_written) {
    for (int k = 0; k < 6; k++) { /* plain and packed, with and without evaluation, in memory and in a file */
        struct loaded x, y;
        struct err e;
        char name[20], a[41], b[41];
        snprintf(name, sizeof name, "round%d", k);
        struct data_config c = prepare(name, k % 2, k / 2 == 1 ? 0.25 : 0);
        if (k / 2 == 2) c.memory_limit = 400;
        CHECK(!data_is_saved(folder), "%s is there already", folder);
        load(&c, &x);
        CHECK(!x.rc && !save(&c, &x, &e), "%s%s", x.e.text, e.text);
        CHECK(data_is_saved(folder), "%s is not there", folder);
        c.dataset = "nowhere"; /* the data sets are not looked at */
        load(&c, &y);
        CHECK(!y.rc && strstr(y.log, "Loading dataset from disk will ignore other data arguments.") && strstr(y.log, "Loaded tokenized dataset from"), "%s%s", y.e.text, y.log);
        CHECK(y.r.records == x.r.records && y.r.labelled_tokens == x.r.labelled_tokens && y.r.sequences == x.r.sequences, "%lld records", (long long)y.r.records);
        same_sets(x.train, y.train, name);
        CHECK(!x.eval == !y.eval, "an evaluation part");
        if (x.eval) same_sets(x.eval, y.eval, name);
        CHECK(!data_hash(x.train, a, &e) && !data_hash(y.train, b, &e) && !strcmp(a, b), "a run could not be resumed: %s, %s", a, b);
        unload(&x), unload(&y);
    }
}

TEST(settings_that_change_ids_must_agree) {
    struct loaded x;
    struct err e;
    struct data_config c = prepare("settings", 0, 0), d = c;
    load(&c, &x);
    CHECK(!save(&c, &x, &e), "%s", e.text);
    unload(&x);
    d.cutoff_len = 64, load_fails(&d, "cutoff", 1, "was tokenised with cutoff_len 48, this run has 64; give --cutoff_len 48"), d = c;
    d.compat_new = 0, load_fails(&d, "compat", 1, "give --compat new"), d = c;
    d.stage = STAGE_PT, load_fails(&d, "stage", 1, "give --stage sft"), d = c;
    d.val_size = 4, load_fails(&d, "evaluation", 1, "has no evaluation part"), d = c;
    struct str model = {0};
    struct tok_piece piece[4] = {{"\xe2\x96\x81", -1}, {"<eod>", 0}, {"<sep>", 0}, {"a", -2}};
    struct dataset *train, *eval;
    struct data_report r;
    CHECK(!tok_model_write(piece, 4, &model, &e), "%s", e.text);
    struct tok *other = tok_parse(model.p, model.n, "test", &e);
    e = (struct err){0};
    CHECK(data_load(&c, other, &train, &eval, &r, &e) == -1 && strstr(e.text, "with another tokenizer"), "%s", e.text);
    tok_close(other), str_free(&model);
}

TEST(tokenizers_differ_in_their_hash) {
    struct err e = {0};
    struct tok_piece piece[2][4] = {{{"\xe2\x96\x81", -1}, {"a", -2}, {"b", -3}, {"ab", -4}}, {{"\xe2\x96\x81", -1}, {"a", -2}, {"b", -3}, {"ba", -4}}};
    char hex[3][41];
    for (int k = 0; k < 3; k++) {
        struct str model = {0};
        CHECK(!tok_model_write(piece[k % 2], 4, &model, &e), "%s", e.text);
        struct tok *t = tok_parse(model.p, model.n, "test", &e);
        CHECK(t != NULL, "%s", e.text);
        if (t) tok_hash(t, hex[k]);
        tok_close(t), str_free(&model);
    }
    CHECK(strcmp(hex[0], hex[1]) && !strcmp(hex[0], hex[2]), "%s %s %s", hex[0], hex[1], hex[2]);
}

TEST(damage_is_found) {
    struct loaded x;
    struct err e;
    char path[400], *text;
    size_t n;
    struct data_config c = prepare("damage", 0, 0);
    load(&c, &x);
    CHECK(!save(&c, &x, &e), "%s", e.text);
    unload(&x);
    snprintf(path, sizeof path, "%s/sequences/train.rows", folder);
    CHECK(!file_read_all(path, 1 << 20, &text, &n, &e), "%s", e.text);
    text[n / 2] ^= 1;
    CHECK(!file_write_all(path, text, n, &e), "%s", e.text);
    load_fails(&c, "a bit", 2, "train.rows", "is damaged");
    CHECK(!file_write_all(path, text, n - 4, &e), "%s", e.text);
    load_fails(&c, "cut", 1, "bytes, ");
    sys_free(text);
}

TEST(others_folders_are_left_alone) {
    struct loaded x;
    struct err e;
    struct data_config c = prepare("arrow", 0, 0);
    char path[400];
    CHECK(!dir_make(folder, &e), "%s", e.text);
    snprintf(path, sizeof path, "%s/.tmp-sequences.999999999", folder); /* of a killed process */
    CHECK(!dir_make(path, &e), "%s", e.text);
    load(&c, &x);
    CHECK(!save(&c, &x, &e), "%s", e.text);
    c = prepare("arrow2", 0, 0);
    CHECK(!dir_make(folder, &e), "%s", e.text);
    snprintf(path, sizeof path, "%s/dataset_dict.json", folder);
    CHECK(!file_write_all(path, "{}", 2, &e) && save(&c, &x, &e) == -1 && strstr(e.text, "holds dataset_dict.json"), "%s", e.text);
    c.tokenized_path = put("plain", "");
    CHECK(save(&c, &x, &e) == -1 && strstr(e.text, "is a file"), "%s", e.text);
    unload(&x);
}

/* A file of rows as it should not be, by int32 from the count on. */
static void rows_fail(const char *what, const int32_t *x, size_t n) {
    struct str s = {0};
    struct err e = {0};
    struct dataset *d = NULL;
    struct data_config c = settings("x");
    str_add(&s, "qlora rows 1\n\0\0\0", 16), str_add(&s, x, n);
    const char *path = put_bytes("bad.rows", s.p, s.n);
    CHECK(rows_read(path, &c, 300, &d, &e) == -1 && e.code == ERR_INPUT && strstr(e.text, "bad.rows") && strstr(e.text, what), "no \"%s\" in: %s", what, e.text);
    str_free(&s);
}
#define ROWS_FAIL(what, ...) rows_fail(what, (const int32_t[]){__VA_ARGS__}, sizeof(const int32_t[]){__VA_ARGS__})

TEST(rows_that_cannot_be) {
    ROWS_FAIL("0 rows cannot be", 0, 0);
    ROWS_FAIL("rows cannot be", -1, -1);
    ROWS_FAIL("rows cannot be", 1000, 0, 1, 2, 5, 5);
    ROWS_FAIL("row 2, in front of byte 40, is missing", 2, 0, 1, 2, 5, 5);
    ROWS_FAIL("is no row", 1, 0, 0, 2, 5, 5);
    ROWS_FAIL("is no row", 1, 0, 1, 3, 5, 5, 5);
    ROWS_FAIL("is no row", 1, 0, -1, 2, 5, 5);
    ROWS_FAIL("is no row", 1, 0, (1 << 24) + 1, 2, 5, 5);
    ROWS_FAIL("is cut off", 1, 0, 1 << 24, 4, 5, 5);
    ROWS_FAIL("an id that is no token", 1, 0, 2, 2, 1, 300, 1, 2);
    ROWS_FAIL("a label that is no token", 1, 0, 2, 2, 1, 2, 1, -1);
    ROWS_FAIL("a position", 1, 0, 2, 4, 1, 2, 1, 2, 0, 2, 1, 1);
    ROWS_FAIL("a number of a record", 1, 0, 2, 4, 1, 2, 1, 2, 0, 1, 1, -1);
    ROWS_FAIL("4 bytes behind the last row", 1, 0, 1, 2, 5, 5, 7);
    struct err e = {0};
    struct dataset *d = NULL;
    struct data_config c = settings("x");
    CHECK(rows_read(put("none.rows", "qlora rows 2\n"), &c, 300, &d, &e) == -1 && strstr(e.text, "is no file of tokenised rows"), "%s", e.text);
}

/* Every allocation and call of the file system fails in turn: an error, and no folder unless it is whole. */
TEST(no_failing_call_leaves_half_a_data_set) {
    static const struct { const char *kinds; int error; } fault[] = {{"a", ENOMEM}, {"orwscnumd", ENOSPC}};
    struct loaded x;
    struct err e;
    struct data_config c = prepare("faults", 1, 0.25);
    load(&c, &x);
    for (size_t k = 0; k < 2; k++)
        for (int64_t n = 1, done = 0; !done && n < 4000; n++) {
            dir_remove(folder, NULL);
            sys_fault = (struct sys_fault){.at = n, .error = fault[k].error};
            snprintf(sys_fault.kinds, sizeof sys_fault.kinds, "%s", fault[k].kinds);
            int rc = save(&c, &x, &e);
            done = sys_fault.calls < n;
            sys_fault = (struct sys_fault){0};
            CHECK(done ? !rc : !rc || e.code, "save, call %lld of kind %s: %s", (long long)n, fault[k].kinds, e.text);
            if (!data_is_saved(folder)) continue;
            struct loaded y;
            load(&c, &y);
            CHECK(!y.rc, "what is there is whole: %s", y.e.text);
            unload(&y);
        }
    for (size_t k = 0; k < 2; k++)
        for (int64_t n = 1, done = 0; !done && n < 4000; n++) {
            struct loaded y = {0};
            sys_fault = (struct sys_fault){.at = n, .error = fault[k].error};
            snprintf(sys_fault.kinds, sizeof sys_fault.kinds, "%s", fault[k].kinds);
            y.rc = data_load(&c, small_tok(), &y.train, &y.eval, &y.r, &y.e);
            done = sys_fault.calls < n;
            sys_fault = (struct sys_fault){0};
            CHECK(y.rc ? y.e.code && !y.train && !y.eval : y.train && y.eval, "load, call %lld of kind %s: %s", (long long)n, fault[k].kinds, y.e.text);
            unload(&y);
        }
    unload(&x);
}
TEST_MAIN
