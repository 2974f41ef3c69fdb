/* Golden rows of the Yuan 2.0 tokenizer: ids and texts that the sentencepiece library gave, row by row,
 * and the tables of invalid UTF-8 and of decoding that go with them. */
#include "base/file.h"
#include "base/sys.h"
#include "tests/test.h"
#include "tokenizer/tokenizer.h"

static struct tok *yuan(void) {
    static struct tok *t;
    char path[1200];
    struct err e = {0};
    if (t || !shared_dir()) return t;
    snprintf(path, sizeof path, "%s/data/yuan2-tokenizer", shared_dir());
    if (!(t = tok_open(path, &e))) fprintf(stderr, "%s\n", e.text);
    return t;
}

/* A reader of the rows: they hold \u0000, which base/json refuses. Keys are looked for in the one line of
 * the row. */
static const char *value_of(const char *row, const char *key) {
    char quoted[40];
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *p = strstr(row, quoted);
    return p ? p + strlen(quoted) : NULL;
}

static unsigned hex4(const char *p) {
    char digits[5] = {p[0], p[1], p[2], p[3], 0};
    return (unsigned)strtoul(digits, NULL, 16);
}

static int read_text(const char *row, const char *key, struct str *out) {
    const char *p = value_of(row, key);
    str_clear(out);
    if (!p) return 0;
    for (p++; *p != '"'; p++) {
        static const char from[] = "nrtbf", to[] = "\n\r\t\b\f";
        const char *at;
        if (*p != '\\') {
            str_putc(out, *p);
        } else if (*++p != 'u') {
            str_putc(out, (at = strchr(from, *p)) ? to[at - from] : *p);
        } else {
            unsigned c = hex4(p + 1);
            p += 4;
            if (c >= 0xD800 && c < 0xDC00)
                c = 0x10000 + ((c - 0xD800) << 10) + (hex4(p + 3) - 0xDC00), p += 6;
            str_utf8(out, c);
        }
    }
    return 1;
}

static int read_ids(const char *row, const char *key, struct ids *out) {
    const char *p = value_of(row, key);
    out->n = 0;
    if (!p) return 0;
    for (char *end; *p != ']' && p[1] != ']'; p = end) ids_push(out, (int32_t)strtol(p + 1, &end, 10), NULL);
    return 1;
}

static void check_ids(const char *what, const struct ids *got, const int32_t *want, size_t n) {
    size_t i = 0;
    while (i < n && i < got->n && got->p[i] == want[i]) i++;
    CHECK(i == n && got->n == n, "%s: %zu ids for %zu, first difference at %zu: %d for %d", what, got->n, n,
          i, i < got->n ? got->p[i] : -1, i < n ? want[i] : -1);
}

static void check_row(const struct tok *t, const char *row, const char *ids_key, const char *decoded_key,
                      int special) {
    struct str text = {0}, want_text = {0}, got_text = {0};
    struct ids want = {0}, got = {0};
    struct err e = {0};
    char what[60];
    snprintf(what, sizeof what, "row %.50s", row);
    CHECK(read_text(row, "text", &text), "%s", what);
    if (read_ids(row, ids_key, &want) && read_text(row, decoded_key, &want_text)) {
        CHECK(!tok_encode(t, text.p, text.n, special ? TOK_SPECIAL : 0, &got, &e), "%s", e.text);
        check_ids(what, &got, want.p, want.n);
        tok_decode(t, want.p, want.n, special ? 0 : TOK_BARE, &got_text);
        CHECK(got_text.n == want_text.n && (!got_text.n || !memcmp(got_text.p, want_text.p, got_text.n)),
              "%s: \"%s\"", what, got_text.p);
    }
    str_free(&text), str_free(&want_text), str_free(&got_text);
    ids_free(&want), ids_free(&got);
}

TEST(golden_rows) {
    const struct tok *t = yuan();
    if (!t) SKIP("no golden files");
    char path[1200], *text = NULL;
    struct err e = {0};
    size_t n;
    int rows = 0, special = 0;
    snprintf(path, sizeof path, "%s/goldens/tokenizer.jsonl", shared_dir());
    REQUIRE(!file_read_all(path, 1 << 24, &text, &n, &e), "%s", e.text);
    for (char *row = strtok(text, "\n"); row; row = strtok(NULL, "\n"), rows++) {
        check_row(t, row, "ids", "decoded", 0);
        special += value_of(row, "ids_special") != NULL;
        check_row(t, row, "ids_special", "decoded_special", 1);
    }
    CHECK(rows == 150 && special == 8, "%d rows, %d with special strings", rows, special);
    sys_free(text);
}

TEST(special_ids) {
    static const struct {
        const char *name;
        int32_t id;
    } table[] = {{"<unk>", 0},
                 {"<s>", 1},
                 {"<eod>", 77185},
                 {"<sep>", 77187},
                 {"<pad>", 77188},
                 {"<mask>", 134953},
                 {"<predict>", 134954},
                 {"<FIM_SUFFIX>", 134955},
                 {"<FIM_PREFIX>", 134956},
                 {"<FIM_MIDDLE>", 134957},
                 {"<commit_before>", 96635},
                 {"<commit_msg>", 96636},
                 {"<commit_after>", 96637},
                 {"<jupyter_start>", 96630},
                 {"<jupyter_text>", 96631},
                 {"<jupyter_code>", 96632},
                 {"<jupyter_output>", 96633},
                 {"<empty_output>", 96634}};
    const struct tok *t = yuan();
    if (!t) SKIP("no golden files");
    CHECK(tok_count(t) == 134958 && tok_pieces(t) == 134953, "%d, %d", tok_count(t), tok_pieces(t));
    CHECK(tok_eod(t) == 77185 && tok_sep(t) == 77187, "%d, %d", tok_eod(t), tok_sep(t));
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct ids got = {0};
        struct str back = {0}, skipped = {0};
        CHECK(tok_id(t, table[i].name) == table[i].id && tok_is_special(t, table[i].id), "%s is %d",
              table[i].name, tok_id(t, table[i].name));
        tok_encode(t, table[i].name, strlen(table[i].name), TOK_SPECIAL, &got, NULL);
        check_ids(table[i].name, &got, &table[i].id, 1);
        tok_decode(t, got.p, got.n, 0, &back);
        tok_decode(t, got.p, got.n, TOK_SKIP_SPECIAL, &skipped);
        CHECK(back.n == strlen(table[i].name) && !strcmp(back.p, table[i].name) && skipped.n == 0, "%s",
              back.p);
        ids_free(&got), str_free(&back), str_free(&skipped);
    }
    CHECK(tok_id(t, "\xE2\x96\x81the") == tok_id(t, " the") && tok_id(t, " the") == 278, "%d",
          tok_id(t, " the"));
    CHECK(tok_id(t, "no such piece") == -1 && !tok_is_special(t, 2) && !tok_is_special(t, -1),
          "unknown text");
}

#define IDS(...) {__VA_ARGS__}, sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t)

TEST(encodes_table) {
    static const struct {
        const char *text;
        int special;
        int32_t ids[16];
        size_t n;
    } table[] = {
        {"\xFF\xFE"
         "abc",
         0, IDS(29871, 26308, 10736)},
        {"ab\x80"
         "c",
         0, IDS(633, 30140, 29883)},
        {"\xE4\xBD", 0, IDS(29871, 26308)},
        {"\xE4\xBD\xA0\xE5", 0, IDS(29871, 30919, 30140)},
        {"\xC0\x80x", 0, IDS(29871, 26308, 29916)},
        {"\xED\xA0\x80", 0, IDS(29871, 26308, 30140)},
        {"\xF4\x90\x80\x80", 0, IDS(29871, 26308, 26308)},
        {"\xFF", 0, IDS(29871, 30140)},
        {"你好", 0, IDS(29871, 38190)},
        {"\n", 0, IDS(29871, 13)},
        {"你好<sep>世界", 1, IDS(29871, 38190, 77187, 29871, 32138)},
        {"问题一<n>回答一<n>问题二<sep>", 1,
         IDS(29871, 32047, 30287, 29966, 29876, 29958, 32927, 30287, 29966, 29876, 29958, 32047, 30685,
             77187)},
    };
    const struct tok *t = yuan();
    if (!t) SKIP("no golden files");
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct ids got = {0};
        tok_encode(t, table[i].text, strlen(table[i].text), table[i].special ? TOK_SPECIAL : 0, &got, NULL);
        check_ids(table[i].text, &got, table[i].ids, table[i].n);
        ids_free(&got);
    }
}

TEST(decodes_table) {
    static const struct {
        const char *text;
        int32_t ids[4];
        size_t n;
    } table[] = {
        {"\xEF\xBF\xBD", IDS(231)},       {"\xEF\xBF\xBD\xEF\xBF\xBD", IDS(231, 192)},
        {"你", IDS(231, 192, 163)},       {"", IDS(29871)},
        {" 你好", IDS(259, 38190)},       {" \xE2\x81\x87 ", IDS(0)},
        {"\n  a", IDS(13, 29871, 263)},   {"你好", IDS(1, 29871, 38190)},
        {"", IDS(2, -1, 134953, 134958)},
    };
    const struct tok *t = yuan();
    if (!t) SKIP("no golden files");
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct str got = {0};
        tok_decode(t, table[i].ids, table[i].n, TOK_BARE, &got);
        CHECK(got.n == strlen(table[i].text) && (!got.n || !strcmp(got.p, table[i].text)), "%zu: \"%s\"", i,
              got.p);
        str_free(&got);
    }
}

TEST(template_example) {
    static const struct {
        const char *user, *answer;
    } turns[] = {{"你好", "你好！"}, {"你是谁？", "我是源大模型。"}};
    static const int32_t want_new[] = {29871, 38190, 77187, 29871, 38190, 30584, 77185, 29871,
                                       13,    29871, 50467, 30882, 77187, 29871, 32919, 31193,
                                       30257, 35536, 30267, 77185, 29871, 13};
    static const int32_t want_old[] = {29871, 38190, 77187, 29871, 38190, 30584, 77185, 29871, 13,    29871,
                                       50467, 30882, 77187, 29871, 32919, 31193, 30257, 35536, 30267, 77185};
    const struct tok *t = yuan();
    if (!t) SKIP("no golden files");
    for (int k = 0; k < 2; k++) {
        struct ids got = {0};
        for (int turn = 0; turn < 2; turn++) {
            const char *u = turns[turn].user, *a = turns[turn].answer;
            template_source(t, (enum tok_template)k, turn, NULL, 0, u, strlen(u), &got, NULL);
            template_target(t, (enum tok_template)k, a, strlen(a), &got, NULL);
        }
        if (k == TEMPLATE_YUAN_NEW)
            check_ids("new", &got, want_new, sizeof want_new / sizeof *want_new);
        else
            check_ids("old", &got, want_old, sizeof want_old / sizeof *want_old);
        ids_free(&got);
    }
}

TEST_MAIN
