/* The tokenizer on small models made here: against a naive merger, at its limits, and with files it must
 * refuse. */
#include "base/file.h"
#include "base/rng.h"
#include "base/sys.h"
#include "tests/test.h"
#include "tests/tokenizer_small.h"
#include "tokenizer/tokenizer.h"
#include <time.h>
#include <pthread.h>
#include <unistd.h>

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

/* "12 5 7" for the ids of a text, in a buffer that the next call reuses. */
static const char *ids_of(const struct tok *t, const char *text, int flags) {
    static char line[4000];
    struct ids ids = {0};
    int n = 0;
    line[0] = 0;
    if (tok_encode(t, text, strlen(text), flags, &ids, NULL)) return "failed";
    for (size_t i = 0; i < ids.n && n < (int)sizeof line - 20; i++)
        n += snprintf(line + n, sizeof line - (size_t)n, i ? " %d" : "%d", ids.p[i]);
    ids_free(&ids);
    return line;
}

/* ---- against the rules as they are written ---- */

static const char *const alphabet[] = {BLANK, "a", "b", "c", "é", "你", "好", "😀", "<", "ab"};

static void random_text(struct mt19937 *g, char *to, uint32_t chars) {
    for (*to = 0; chars--; to += strlen(to)) strcpy(to, alphabet[mt_next(g) % COUNT(alphabet)]);
}

TEST(random_models_agree_with_the_naive_merger) {
    struct mt19937 g;
    mt_seed(&g, 1);
    for (int model = 0; model < 40; model++) {
        static char texts[120][80];
        struct tok_piece pieces[120];
        int n = 1, levels = 1 + (int)(mt_next(&g) % 8); /* few levels: many equal scores */
        pieces[0] = (struct tok_piece){BLANK, -3};
        for (int i = 0; i < 20 + (int)(mt_next(&g) % 100); i++) {
            random_text(&g, texts[n], 1 + mt_next(&g) % (mt_next(&g) % 4 ? 3 : 6));
            if (find_piece(pieces, n, texts[n], strlen(texts[n])) >= 0) continue;
            pieces[n] = (struct tok_piece){texts[n], (float)(mt_next(&g) % (uint32_t)levels) - 3.5f};
            n++;
        }
        struct err e = {0};
        struct tok *t = parse(pieces, n, "", 0, &e);
        REQUIRE(t, "%s", e.text);
        for (int k = 0; k < 40; k++) {
            char text[2000];
            struct ids want = {0}, got = {0};
            random_text(&g, text, mt_next(&g) % (k % 6 ? 40 : 300));
            if (k % 2)
                for (char *p = text; (p = strstr(p, BLANK));)
                    *p = ' ', memmove(p + 1, p + 3, strlen(p + 3) + 1);
            naive_encode(pieces, n, text, strlen(text), &want);
            CHECK(!tok_encode(t, text, strlen(text), 0, &got, &e), "%s", e.text);
            CHECK(got.n == want.n && (!got.n || !memcmp(got.p, want.p, got.n * sizeof *got.p)),
                  "model %d, text \"%s\": %zu ids for %zu", model, text, got.n, want.n);
            ids_free(&want), ids_free(&got);
        }
        tok_close(t);
    }
}

TEST(merging_by_hand) {
    static const struct {
        const char *text, *ids;
    } table[] = {
        {"", ""},
        {"a", "273"},      /* blank + a */
        {"aa", "273 260"}, /* blank + a ties with aa: the leftmost wins */
        {"aaa", "273 269"},
        {"ab", "273 261"},
        {"bab", "259 272 261"}, /* ba before ab */
        {"xyz", "259 275"},     /* y and z are no pieces */
        {"xy", "259 274"},
        {"yz", "259 124 125"},
        {"zx", "259 125 262"},
        {"q!q", "259 116 36 116"}, /* a piece that cannot be reached */
        {"   ", "268"},            /* with the one in front: four */
        {" a", "267 260"},
        {"你好", "259 276"},
        {"好你", "259 265 264"},
        {"😀é", "259 266 263"},
        {"🙂", "259 243 162 156 133"},
        {"\n\t", "259 13 12"},
        {"<sep>", "259 63 118 104 115 65"},
    };
    struct tok *t = open_small();
    REQUIRE(t, "no model");
    for (int i = 0; i < COUNT(table); i++) {
        const char *got = ids_of(t, table[i].text, 0);
        CHECK(!strcmp(got, table[i].ids), "\"%s\": %s, not %s", table[i].text, got, table[i].ids);
    }
    tok_close(t);
}

/* ---- special strings, decoding, template ---- */

TEST(special_strings) {
    static const struct {
        const char *text, *ids;
    } table[] = {
        {"<sep>", "278"},
        {"<sep><pad>", "278 279"},
        {"a<sep>a", "273 278 273"},
        {"<<s>", "259 63 1"},
        {"<sep", "259 63 118 104 115"},
        {"</s>", "259 63 50 118 65"},
        {"<SEP>", "259 63 86 72 83 65"},
        {"<unk>", "0"},
        {"<eod>", "280"},
        {"<mask><predict><empty_output>", "281 282 293"}, /* none of the pieces: appended in their order */
    };
    struct tok *t = open_small();
    REQUIRE(t, "no model");
    for (int i = 0; i < COUNT(table); i++) {
        const char *got = ids_of(t, table[i].text, TOK_SPECIAL);
        CHECK(!strcmp(got, table[i].ids), "\"%s\": %s, not %s", table[i].text, got, table[i].ids);
    }
    CHECK(tok_pieces(t) == 280 && tok_count(t) == 294, "%d, %d", tok_pieces(t), tok_count(t));
    CHECK(tok_sep(t) == 278 && tok_eod(t) == 280, "%d, %d", tok_sep(t), tok_eod(t));
    CHECK(tok_id(t, BLANK "a") == 273 && tok_id(t, " a") == 273 && tok_id(t, "") == -1, "%d",
          tok_id(t, " a"));
    tok_close(t);
}

TEST(decoding) {
    static const struct {
        int flags;
        int32_t ids[6];
        int n;
        const char *text;
    } table[] = {
        {0, {273, 278, 273}, 3, "a<sep>a"}, /* each stretch drops its own blank */
        {TOK_SKIP_SPECIAL, {273, 278, 273}, 3, "aa"},
        {TOK_BARE, {273, 278, 273}, 3, "a<sep> a"}, /* an ordinary piece there */
        {0, {0, 1, 2, 273}, 4, "<unk><s>a"},
        {TOK_BARE, {1, 2, 0, 273}, 4, " \xE2\x81\x87  a"},
        {0, {2, 273, 273}, 3, "a a"}, /* nothing came before the first blank */
        {0, {13, 273}, 2, "\n a"},
        {0, {267, 259}, 2, "  "},
        {0, {231, 192, 163}, 3, "你"},
        {0,
         {231, 192, 261},
         3,
         "\xEF\xBF\xBD\xEF\xBF\xBD"
         "b"},
        {0, {231, 231, 192, 163}, 4, "\xEF\xBF\xBD你"},
        {0, {163, 243, 2, 162}, 4, "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"},
        {0, {240 + 3, 0x80 + 3, 0x80 + 3}, 3, "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"}, /* F0 80: overlong */
        {0, {-1, 273, 294, 1 << 30}, 4, "a"},
        {TOK_BARE, {273, 280, 293}, 3, "a"},
    };
    struct tok *t = open_small();
    REQUIRE(t, "no model");
    for (int i = 0; i < COUNT(table); i++) {
        struct str got = {0};
        tok_decode(t, table[i].ids, (size_t)table[i].n, table[i].flags, &got);
        CHECK(got.n == strlen(table[i].text) && !strcmp(got.p, table[i].text), "%d: \"%s\", not \"%s\"", i,
              got.p, table[i].text);
        str_free(&got);
    }
    tok_close(t);
}

TEST(streaming_gives_whole_characters) {
    static const char text[] = "a 你们好😀🙂é<sep>  end";
    struct tok *t = open_small();
    struct ids ids = {0};
    struct str got = {0};
    struct tok_stream s = {0};
    REQUIRE(t && !tok_encode(t, text, strlen(text), TOK_SPECIAL, &ids, NULL), "no model");
    for (size_t i = 0; i < ids.n; i++) {
        uint32_t c;
        tok_stream_id(t, &s, ids.p[i], &got);
        CHECK(got.n <= strlen(text) && !strncmp(got.p ? got.p : "", text, got.n), "after %zu ids: \"%s\"",
              i + 1, got.p);
        for (size_t at = 0, k; at < got.n; at += k) {
            k = (size_t)utf8_get((unsigned char *)got.p + at, got.n - at, &c);
            REQUIRE(k > 0, "half a character after %zu ids", i + 1);
        }
    }
    tok_stream_end(t, &s, &got);
    CHECK(!strcmp(got.p, text), "\"%s\"", got.p);
    tok_stream_id(t, &s, 231, &got);
    CHECK(!strcmp(got.p, text), "a byte that may yet become a character came out: \"%s\"", got.p);
    tok_stream_end(t, &s, &got);
    CHECK(!strcmp(got.p + strlen(text), "\xEF\xBF\xBD"), "\"%s\"", got.p);
    ids_free(&ids), str_free(&got), tok_close(t);
}

static void check_turn(const struct tok *t, enum tok_template k, int turn, const char *system,
                       const char *user, const char *answer, const char *want) {
    struct ids ids = {0};
    struct str got = {0};
    template_source(t, k, turn, system, system ? strlen(system) : 0, user, strlen(user), &ids, NULL);
    template_target(t, k, answer, strlen(answer), &ids, NULL);
    for (size_t i = 0; i < ids.n; i++) str_printf(&got, i ? " %d" : "%d", ids.p[i]);
    CHECK(!strcmp(got.p, want), "turn %d, %s: %s, not %s", turn, user, got.p, want);
    ids_free(&ids), str_free(&got);
}

TEST(templates) {
    struct tok *t = open_small();
    REQUIRE(t, "no model");
    check_turn(t, TEMPLATE_YUAN_OLD, 0, NULL, "a", "a", "273 278 273 280");
    check_turn(t, TEMPLATE_YUAN_NEW, 0, NULL, "a", "a", "273 278 273 280 259 13");
    check_turn(t, TEMPLATE_YUAN_OLD, 1, NULL, "a", "a", "259 13 273 278 273 280");
    check_turn(t, TEMPLATE_YUAN_NEW, 1, NULL, "a", "a", "273 278 273 280 259 13");
    check_turn(t, TEMPLATE_YUAN_OLD, 0, "b", "a", "", "259 261 273 278 280");
    check_turn(t, TEMPLATE_YUAN_NEW, 1, "b", "a", "",
               "273 278 280 259 13"); /* the system text belongs to turn 0 */
    check_turn(t, TEMPLATE_YUAN_NEW, 0, "", "", "", "278 280 259 13");
    check_turn(t, TEMPLATE_YUAN_NEW, 0, NULL, "a<pad>", "a<eod>", "273 279 278 273 280 280 259 13");
    /* the first {{idx}} of a user text is the number of the turn: 3 and 7 are no pieces, the second one stays */
    check_turn(t, TEMPLATE_YUAN_NEW, 37, "{{idx}}", "{{idx}}{{", "{{",
               "259 54 58 126 126 278 259 126 126 280 259 13");
    check_turn(t, TEMPLATE_YUAN_OLD, 7, NULL, "a{{idx}}a{{idx}}", "",
               "259 13 273 58 260 126 126 108 103 262 128 128 278 280");
    tok_close(t);
}

/* ---- limits ---- */

static void check_fast(const struct tok *t, const char *unit, size_t bytes) {
    struct str text = {0}, back = {0};
    struct ids ids = {0};
    struct err e = {0};
    while (text.n < bytes) str_puts(&text, unit);
    clock_t start = clock();
    CHECK(!tok_encode(t, text.p, text.n, TOK_SPECIAL, &ids, &e), "%s", e.text);
    /* of the processor: 0.1 s as built for use, some seconds under valgrind; a square algorithm takes hours */
    CHECK((clock() - start) / CLOCKS_PER_SEC < 60, "%s: %.1f s", unit, (double)(clock() - start) / CLOCKS_PER_SEC);
    tok_decode(t, ids.p, ids.n, 0, &back);
    CHECK(back.n == text.n && !memcmp(back.p, text.p, text.n), "%s does not come back", unit);
    str_free(&text), str_free(&back), ids_free(&ids);
}

TEST(long_texts) {
    struct tok *t = open_small();
    REQUIRE(t, "no model");
    check_fast(t, "a", 1 << 20);
    check_fast(t, " ", 1 << 20);
    check_fast(t, "ab", 1 << 17);
    check_fast(t, "<", 1 << 17);
    check_fast(t, "<sep>", 1 << 17);
    check_fast(t, "你好", 1 << 17);
    CHECK(tok_encode(t, "", (size_t)INT32_MAX + 1, 0, NULL, NULL) == -1, "2 GiB in one text");
    tok_close(t);
}

static void *encode_often(void *arg) {
    const struct tok *t = arg;
    for (int k = 0; k < 100; k++) {
        struct ids ids = {0};
        int r = tok_encode(t, "ab  aaaaaab <sep>xyz 你好 ababababababababababababababababababababa", 66,
                           TOK_SPECIAL, &ids, NULL);
        int bad = r || ids.n < 10 || ids.p[0] != 273;
        ids_free(&ids);
        if (bad) return arg;
    }
    return NULL;
}

TEST(threads_share_a_tokenizer) {
    struct tok *t = open_small();
    pthread_t thread[4];
    void *bad;
    REQUIRE(t, "no model");
    for (int i = 0; i < COUNT(thread); i++)
        REQUIRE(!pthread_create(&thread[i], NULL, encode_often, t), "no thread");
    for (int i = 0; i < COUNT(thread); i++) {
        pthread_join(thread[i], &bad);
        CHECK(!bad, "thread %d got other ids", i);
    }
    tok_close(t);
}

/* Every allocation fails once: an error of code ERR_RUN, nothing leaks (ASan, valgrind), nothing half done
 * is left over. */
TEST(out_of_memory) {
    struct str model = {0};
    int failures[2] = {0};
    tok_model_write(small, SMALL, &model, NULL);
    for (int kind = 0; kind < 2; kind++)
        for (int at = 1, more = 1; more && at < 100; at++) {
            struct tok *t = kind ? open_small() : NULL;
            struct ids ids = {0};
            struct err e = {0};
            char text[400];
            memset(text, 'a', sizeof text);
            sys_fault = (struct sys_fault){.kinds = "a", .at = at};
            if (kind)
                more = tok_encode(t, text, sizeof text, 0, &ids, &e) != 0;
            else
                more = !(t = tok_parse(model.p, model.n, "test.model", &e));
            sys_fault = (struct sys_fault){0};
            CHECK(more == (e.code == ERR_RUN), "allocation %d: code %d, %s", at, e.code, e.text);
            failures[kind] += more;
            ids_free(&ids);
            tok_close(t);
        }
    CHECK(failures[0] >= 6 && failures[1] >= 3, "%d, %d failing allocations", failures[0], failures[1]);
    str_free(&model);
}

/* ---- files ---- */

TEST(pieces_have_up_to_1024_bytes) {
    for (int n = 1023; n <= 1025; n++) {
        struct tok_piece pieces[SMALL + 1];
        char text[1100];
        struct err e = {0};
        struct str model = {0};
        memset(text, 'k', (size_t)n), text[n] = 0;
        memcpy(pieces, small, sizeof small), pieces[SMALL] = (struct tok_piece){text, -3};
        struct tok *t = NULL;
        if (!tok_model_write(pieces, SMALL + 1, &model, &e)) t = tok_parse(model.p, model.n, "test.model", &e);
        CHECK(n <= 1024 ? t != NULL : !t && strstr(e.text, "1025 bytes of text"), "%d: %s", n, e.text);
        str_free(&model);
        tok_close(t);
    }
}

TEST(refuses_other_models) {
#define EXTRA(bytes) bytes, sizeof bytes - 1
    /* Appended to a good model: protobuf takes the last value of a field. */
    static const struct {
        const char *extra;
        size_t n;
        const char *why;
    } table[] = {
        {EXTRA("\x12\x02\x18\x01"), "unigram"},
        {EXTRA("\x12\x02\x18\x03"), "word"},
        {EXTRA("\x12\x02\x18\x04"), "character"},
        {EXTRA("\x12\x02\x18\x63"), "no known kind"},
        {EXTRA("\x12\x03\x98\x02\x00"), "byte_fallback"},
        {EXTRA("\x12\x03\xC0\x01\x01"), "treat_whitespace_as_suffix"},
        {EXTRA("\x1A\x03\x12\x01x"), "precompiled_charsmap"},
        {EXTRA("\x1A\x02\x18\x00"), "add_dummy_prefix"},
        {EXTRA("\x1A\x02\x20\x01"), "remove_extra_whitespaces"},
        {EXTRA("\x1A\x02\x28\x00"), "escape_whitespaces"},
        {EXTRA("\x12\x03\x1A\x01x"), "damaged"},
        {EXTRA("\x1A\x02\x10\x00"), "damaged"},
        {EXTRA("\x1A\x03\x1A\x01x"), "damaged"},
        {EXTRA("\x10\x01"), "damaged"},
        {EXTRA("\x0B"), "damaged"},
        {EXTRA("\x00\x00"), "damaged"},
        {EXTRA("\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01"), "damaged"},
        {EXTRA("\x0A\x05x"), "damaged"},
        {EXTRA("\x25\x01\x02"), "damaged"},
        {EXTRA("\x0A"), "damaged"},
        {EXTRA("\x0A\x00"), "280 has 0 bytes"},
        {EXTRA("\x0A\x03\x0A\x01 "), "U+2581"},
        {EXTRA("\x0A\x03\x0A\x01\xFF"), "not UTF-8"},
        {EXTRA("\x0A\x03\x0A\x01z\x0A\x05\x0A\x03xyz"), "281 (\"xyz\") occurs twice"},
        {EXTRA("\x0A\x03\x0A\x01"
               "a"),
         "280 (\"a\") occurs twice"},
        {EXTRA("\x0A\x06\x0A\x04😀"), "occurs twice"},
        {EXTRA("\x0A\x05\x0A\x01z\x18\x04"), "type 4"},
        {EXTRA("\x0A\x05\x0A\x01z\x18\x05"), "type 5"},
        {EXTRA("\x0A\x05\x0A\x01z\x18\x00"), "type 0"},
        {EXTRA("\x0A\x05\x0A\x01z\x18\x02"), "pieces 0 and 280"},
        {EXTRA("\x0A\x0A\x0A\x06<0x41>\x18\x06"), "pieces 68 and 280"},
        {EXTRA("\x0A\x0A\x0A\x06<0x4a>\x18\x06"), "<0xFF>"},
        {EXTRA("\x0A\x05\x0A\x01z\x18\x06"), "<0xFF>"},
        {EXTRA("\x0A\x08\x0A\x01z\x15\x00\x00\xC0\x7F"), "score"},
        {EXTRA("\x0A\x08\x0A\x01z\x15\x00\x00\x80\xFF"), "score"},
        {EXTRA("\x0A\x05\x0A\x01z\x10\x00"), "piece 280 is broken"},
        {EXTRA("\x0A\x02\x08\x01"), "broken"},
        {EXTRA("\x0A\x02\x0A\x05"), "broken"},
    };
    for (int i = 0; i < COUNT(table); i++) {
        struct err e = {0};
        struct tok *t = parse(small, SMALL, table[i].extra, table[i].n, &e);
        CHECK(!t && e.code == ERR_INPUT && strstr(e.text, table[i].why) && strstr(e.text, "test.model"),
              "%d (%s): %s", i, table[i].why, t ? "was taken" : e.text);
        tok_close(t);
    }
    /* Fields of no consequence are passed over, of any wire type. */
    struct err e = {0};
    static const char other[] = "\x22\x03xyz\x78\x07\xF9\x01xxxxxxxx\xFD\x01xxxx\x12\x04\x0A\x02hi\x0A\x08"
                                "\x0A\x01z\x25\x01\x01\x01\x01";
    struct tok *t = parse(small, SMALL, other, sizeof other - 1, &e);
    CHECK(t && tok_id(t, "z") == 280, "%s", e.text);
    tok_close(t);
}

TEST(cut_files) {
    struct str model = {0};
    int taken = 0;
    tok_model_write(small, SMALL, &model, NULL);
    for (size_t n = 0; n < model.n; n++) {
        struct err e = {0};
        char *exact = sys_grow(NULL, n, "a cut file", NULL);
        if (n) memcpy(exact, model.p, n);
        struct tok *t = tok_parse(exact, n, "test.model", &e);
        CHECK(!t == (e.code == ERR_INPUT), "%zu bytes: %s", n, e.text);
        taken += t != NULL;
        tok_close(t);
        sys_free(exact);
    }
    CHECK(taken == 0, "%d cut files were taken", taken);
    str_free(&model);
}

TEST(limits_of_a_model) {
    char text[1100];
    struct tok_piece pieces[] = {{BLANK, 0}, {text, 0}};
    for (int n = 1023; n <= 1025; n++) {
        struct err e = {0};
        memset(text, 'z', (size_t)n), text[n] = 0;
        struct tok *t = parse(pieces, 2, "", 0, &e);
        CHECK(!t == (n > 1024), "%d bytes: %s", n, e.text);
        tok_close(t);
    }
    struct err e = {0};
    struct tok *t = parse(pieces, 0, "", 0, &e);
    CHECK(!t && strstr(e.text, "no piece for the blank"), "%s", e.text);
    char big = 0;
    e = (struct err){0};
    CHECK(!(t = tok_parse(&big, (size_t)1 << 30, "big", &e)) && strstr(e.text, "too large"), "%s", e.text);
}

TEST(opens_folders_and_files) {
    char dir[] = "/tmp/qlora-tok-XXXXXX", path[100];
    struct str model = {0};
    struct err e = {0};
    REQUIRE(mkdtemp(dir), "no temporary folder");
    CHECK(!tok_open(dir, &e) && strstr(e.text, "tokenizer.model"), "%s", e.text);
    snprintf(path, sizeof path, "%s/tokenizer.model", dir);
    tok_model_write(small, SMALL, &model, NULL);
    e = (struct err){0};
    REQUIRE(!file_write_all(path, model.p, model.n, &e), "%s", e.text);
    for (int i = 0; i < 2; i++) {
        struct tok *t = tok_open(i ? path : dir, &e);
        CHECK(t && tok_count(t) == 294, "%s", e.text);
        tok_close(t);
    }
    str_free(&model);
    dir_remove(dir, NULL);
}

TEST_MAIN
