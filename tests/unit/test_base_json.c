/* What JSON is accepted and refused, where the error is said to be, and what the getters return. */
#include "base/json.h"
#include "base/str.h"
#include "base/sys.h"
#include "tests/test.h"

TEST(accepts) {
    static const char *const good[] = {
        "0", "-0", "1.5e-3", "1E+2", "123456789012345678901234567890", "1e-999", "\"\"", "true", " \t\r\n null \n", "[]", "{}", "[[],{}]",
        "{\"\":1}", "{\"a\":1,\"A\":2}", "{\"a\":{\"a\":1},\"b\":[{\"a\":2},{\"a\":3}]}", "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\"",
        "\"\\ud83d\\ude00\\uFFFF\"", "\"源\xf0\x9f\x98\x80\x7f\"", "[1,2 , 3]", "1.7976931348623157e308"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        struct err e = {0};
        CHECK(!json_check(good[i], strlen(good[i]), NULL, &e), "%s: %s", good[i], e.text);
        struct cJSON *j = json_parse(good[i], strlen(good[i]), "t", &e);
        CHECK(j, "%s: %s", good[i], e.text);
        json_free(j);
    }
}

/* Text, offset of the error, a piece of the sentence. */
TEST(refuses) {
    static const struct { const char *text; size_t at; const char *why; } bad[] = {
        {"", 0, "ends where a value"}, {"  ", 2, "ends where a value"}, {"nul", 0, "value is expected"}, {"True", 0, "value is"},
        {"NaN", 0, "value is"}, {"-Infinity", 1, "value is"}, {"01", 1, "more text"}, {"-", 1, "value is"}, {"+1", 0, "value is"},
        {".5", 0, "value is"}, {"1.", 2, "decimal point"}, {"1.e5", 2, "decimal point"}, {"1e", 2, "exponent"}, {"1e+", 3, "exponent"},
        {"0x10", 1, "more text"}, {"1e999", 0, "too large"}, {"[-1e999]", 1, "too large"}, {"1 2", 2, "more text"}, {"{} x", 3, "more text"},
        {"[1,]", 3, "value is"}, {"[1 2]", 3, "',' or ']'"}, {"[1", 2, "',' or ']'"}, {"[", 1, "ends where"}, {"]", 0, "value is"},
        {"{\"a\"}", 4, "':'"}, {"{\"a\" 1}", 5, "':'"}, {"{a:1}", 1, "key in double quotes"}, {"{1:1}", 1, "key in"},
        {"{\"a\":1,}", 7, "key in"}, {"{\"a\":1", 6, "',' or '}'"}, {"{,}", 1, "key in"}, {"{'a':1}", 1, "key in"}, {"'a'", 0, "value is"},
        {"\"abc", 4, "inside a string"}, {"\"abc\\", 4, "inside a string"}, {"\"a\nb\"", 2, "control character"},
        {"\"\t\"", 1, "control character"}, {"\"\\x41\"", 1, "unknown escape"}, {"\"\\u12g4\"", 1, "unknown escape"},
        {"\"\\u12", 1, "unknown escape"}, {"\"\\u0000\"", 1, "\\u0000"}, {"\"\\ud800\"", 1, "surrogate"}, {"\"\\udc00\"", 1, "surrogate"},
        {"\"\\ud800\\u0041\"", 1, "surrogate"}, {"\"\\ud800\\ud800\"", 1, "surrogate"}, {"\"\\ud800x", 1, "surrogate"},
        {"\"\\ud800\\ue000\"", 1, "surrogate"}, {"\"\\ud800\\udbff\"", 1, "surrogate"},
        {"\"\xff\"", 1, "UTF-8"}, {"\"\xc0\x80\"", 1, "UTF-8"}, {"\"\xed\xa0\x80\"", 1, "UTF-8"}, {"\"\xe6\xba", 1, "UTF-8"},
        {"\xef\xbb\xbf{}", 0, "byte order mark"}, {"// c\n1", 0, "value is"}, {"[1]/**/", 3, "more text"},
        {"{\"a\":1,\"a\":2}", 7, "twice"}, {"{\"a\":1,\"\\u0061\":2}", 7, "twice"}, {"[{\"x\":{\"k\":0},\"y\":0,\"x\":0}]", 20, "twice"},
        {"{\"\":1,\"\":2}", 6, "twice"}, {"{\"\\ud83d\\ude00\":1,\"\xf0\x9f\x98\x80\":2}", 18, "twice"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e = {0};
        size_t at = 999, n = strlen(bad[i].text);
        CHECK(json_check(bad[i].text, n, &at, &e) == -1, "%s is accepted", bad[i].text);
        CHECK(at == bad[i].at && strstr(e.text, bad[i].why) && e.code == ERR_INPUT, "%s: \"%s\" at %zu, not at %zu", bad[i].text, e.text,
              at, bad[i].at);
        CHECK(!json_parse(bad[i].text, n, "t", NULL), "%s is parsed", bad[i].text);
    }
    CHECK(json_check("1\0", 2, NULL, NULL), "a NUL behind the value is accepted");
    CHECK(json_check("\"a\0b\"", 5, NULL, NULL), "a NUL in a string is accepted");
    CHECK(!json_check("12", 1, NULL, NULL), "the length is not obeyed");
}

static int checks(struct str *s) {
    int rc = json_check(s->p, s->n, NULL, NULL);
    str_free(s);
    return rc;
}
static void repeat(struct str *s, const char *text, int n) { while (n-- > 0) str_puts(s, text); }

TEST(limits) {
    for (int depth = 64; depth <= 65; depth++) {
        struct str a = {0}, o = {0};
        repeat(&a, "[", depth), repeat(&a, "]", depth);
        repeat(&o, "{\"a\":", depth - 1), str_puts(&o, "{}"), repeat(&o, "}", depth - 1);
        CHECK(checks(&a) == (depth > 64 ? -1 : 0), "lists of depth %d", depth);
        CHECK(checks(&o) == (depth > 64 ? -1 : 0), "objects of depth %d", depth);
    }
    for (int digits = 63; digits <= 64; digits++) { /* cJSON cuts numbers at 63 characters */
        struct str s = {0};
        repeat(&s, "7", digits);
        CHECK(checks(&s) == (digits > 63 ? -1 : 0), "a number of %d digits", digits);
    }
    for (int n = 3999999; n <= 4000000; n++) { /* the list itself is a value too */
        struct str s = {0};
        str_puts(&s, "[0");
        repeat(&s, ",0", n - 1);
        str_puts(&s, "]");
        CHECK(checks(&s) == (n >= 4000000 ? -1 : 0), "%d values in a list", n);
    }
}

/* 200,000 keys in one object: found in linear time (seconds would mean quadratic), the duplicate at the end found. */
TEST(many_keys) {
    struct str s = {0};
    str_puts(&s, "{");
    for (int i = 0; i < 200000; i++) str_printf(&s, "\"key%d\":%d,", i, i);
    size_t n = s.n, at = 0;
    double start = sys_seconds();
    str_puts(&s, "\"last\":0}");
    CHECK(!json_check(s.p, s.n, NULL, NULL), "200,001 different keys");
    s.n = n;
    str_puts(&s, "\"key77777\":0}");
    CHECK(json_check(s.p, s.n, &at, NULL) && at == n, "duplicate said to be at %zu, not %zu", at, n);
    CHECK(sys_seconds() - start < 10, "%.1f s", sys_seconds() - start); /* 0.02 s; 10 leaves room for valgrind */
    str_free(&s);
}

/* Room for keys grows while objects are open: none is lost on the way. */
TEST(first_key_again) {
    for (int n = 1; n <= 70; n++) {
        struct str s = {0};
        size_t at = 0;
        for (int i = 0; i < n; i++) str_printf(&s, "%s\"k%d\":%s", i % 8 ? "," : "{", i, i % 8 == 7 ? "" : "0");
        if (n % 8 == 0) str_puts(&s, "0");
        const int open = (n + 7) / 8;
        const size_t inner = s.n;
        repeat(&s, "}", open);
        CHECK(!json_check(s.p, s.n, NULL, NULL), "%d keys in %d objects", n, open);
        s.n = inner;
        repeat(&s, "}", open - 1);
        const size_t outer = s.n;
        str_puts(&s, ",\"k0\":0}");
        CHECK(json_check(s.p, s.n, &at, NULL) && at == outer + 1, "the first of %d keys again: at %zu, not %zu", n, at, outer + 1);
        str_free(&s);
    }
}

TEST(line_and_column) {
    struct err e = {0};
    const char *text = "{\n  \"源源\": 1,\n  \"a\": \"源\" x\n}";
    CHECK(!json_parse(text, strlen(text), "config.json", &e), "accepted");
    CHECK(text_starts(e.text, "config.json:3:12: "), "%s", e.text);
}

TEST(getters) {
    static const char text[] = "{\"i\":42,\"f\":1.5,\"b\":true,\"s\":\"x\",\"z\":null,\"big\":9007199254740992,\"huge\":9007199254740994,"
                               "\"neg\":-7,\"whole\":1e3,\"I\":1,\"l\":[],\"o\":{}}";
    struct err e = {0};
    struct cJSON *j = json_parse(text, sizeof text - 1, "t", &e);
    REQUIRE(j, "%s", e.text);
    int64_t i = 5;
    double d = 5;
    int b = 5;
    const char *s = "5";
    CHECK(json_int(j, "i", 0, 42, &i, "t", &e) == 1 && i == 42, "i %lld", (long long)i);
    CHECK(json_int(j, "I", 0, 42, &i, "t", &e) == 1 && i == 1, "keys differ by case");
    CHECK(json_int(j, "neg", -7, 0, &i, "t", &e) == 1 && i == -7, "neg %lld", (long long)i);
    CHECK(json_int(j, "whole", 0, 5000, &i, "t", &e) == 1 && i == 1000, "whole %lld", (long long)i);
    CHECK(json_int(j, "big", 0, INT64_MAX, &i, "t", &e) == 1 && i == 1ll << 53, "big %lld", (long long)i);
    CHECK(json_num(j, "f", &d, "t", &e) == 1 && d == 1.5, "f %g", d);
    CHECK(json_bool(j, "b", &b, "t", &e) == 1 && b == 1, "b %d", b);
    CHECK(json_str(j, "s", &s, "t", &e) == 1 && !strcmp(s, "x"), "s %s", s);
    i = 5, d = 5, b = 5, s = "5";
    CHECK(json_int(j, "z", 0, 9, &i, "t", &e) == 0 && json_num(j, "z", &d, "t", &e) == 0 && json_bool(j, "z", &b, "t", &e) == 0 &&
              json_str(j, "none", &s, "t", &e) == 0 && i == 5 && d == 5 && b == 5 && *s == '5' && !e.code,
          "null and absent leave the value: %s", e.text);
    static const char *const not_whole[] = {"f", "huge", "s", "b", "l"};
    for (int k = 0; k < 5; k++) {
        struct err x = {0};
        CHECK(json_int(j, not_whole[k], INT64_MIN, INT64_MAX, &i, "t", &x) == -1 && x.code == ERR_INPUT && strstr(x.text, not_whole[k]),
              "%s as a whole number: %s", not_whole[k], x.text);
    }
    CHECK(json_int(j, "i", 43, 99, &i, "t", NULL) == -1 && json_int(j, "i", 0, 41, &i, "t", NULL) == -1, "the range is not obeyed");
    CHECK(json_num(j, "s", &d, "t", NULL) == -1 && json_bool(j, "i", &b, "t", NULL) == -1 && json_str(j, "i", &s, "t", NULL) == -1,
          "wrong types are accepted");
    CHECK(i == 5 && d == 5 && b == 5 && *s == '5', "a failed getter has written");
    CHECK(!json_get(j, "J") && !json_get(NULL, "i") && json_get(j, "o"), "json_get");

    static const char *const known[] = {"i", "f", "b", "s", "z", "big", "hugs", "neg", "whole", "I", "l", "o", NULL};
    struct err x = {0};
    CHECK(json_known_keys(j, known, "t", &x) == -1 && strstr(x.text, "\"huge\", did you mean \"hugs\"?"), "%s", x.text);
    CHECK(json_known_keys(json_get(j, "o"), known, "t", NULL) == 0, "an empty object");
    CHECK(json_known_keys(json_get(j, "l"), known, "t", NULL) == -1, "a list has no keys");
    json_free(j);
}

/* Every allocation fails once: an error that says so, nothing leaked (ASan), never a crash. */
TEST(survives_lack_of_memory) {
    struct str s = {0};
    str_puts(&s, "{\"list\":[1,2,{\"x\":\"y\"}]");
    for (int i = 0; i < 40; i++) str_printf(&s, ",\"key %d\":\"text %d\"", i, i);
    str_puts(&s, "}");
    int failures = 0;
    for (int64_t at = 1;; at++) {
        struct err e = {0};
        sys_fault = (struct sys_fault){.kinds = "a", .at = at};
        struct cJSON *j = json_parse(s.p, s.n, "t", &e);
        int reached = sys_fault.calls >= at;
        sys_fault = (struct sys_fault){0};
        CHECK(reached ? !j && e.code == ERR_RUN : j != NULL, "allocation %lld: %s", (long long)at, e.text);
        json_free(j);
        if (!reached) break;
        failures++;
    }
    CHECK(failures > 100, "only %d allocations", failures);
    str_free(&s);
}
TEST_MAIN
