/* Growing strings, JSON text output, UTF-8, and the small text helpers. */
#include "base/json.h"
#include "base/str.h"
#include "base/sys.h"
#include "tests/test.h"
#include <math.h>

TEST(grows_and_keeps_nuls) {
    struct str s = {0};
    for (int i = 0; i < 1000; i++) str_printf(&s, "%d,", i);
    CHECK(s.n == 3890 && s.p[s.n] == 0 && strlen(s.p) == s.n, "n %zu", s.n);
    str_clear(&s);
    CHECK(s.n == 0 && s.p[0] == 0, "cleared");
    str_add(&s, "a\0b", 3);
    str_putc(&s, 0);
    str_add(&s, NULL, 0);
    CHECK(s.n == 4 && !memcmp(s.p, "a\0b\0", 5), "n %zu", s.n);
    str_free(&s);
    CHECK(!s.p && !s.n && !s.cap, "freed");
}

TEST(lack_of_memory_sticks) {
    struct str s = {0};
    str_puts(&s, "kept");
    sys_fault = (struct sys_fault){.kinds = "a", .at = 1};
    for (int i = 0; i < 100; i++) str_puts(&s, "0123456789");
    sys_fault = (struct sys_fault){0};
    size_t n = s.n;
    str_puts(&s, "x");
    CHECK(s.oom && s.n == n && !strncmp(s.p, "kept", 4), "oom %d, n %zu", s.oom, s.n);
    str_clear(&s);
    str_puts(&s, "x");
    CHECK(s.oom && !s.n, "what was lost before a clear is known behind it");
    str_free(&s);
    str_puts(&s, "x");
    CHECK(!s.oom && s.n == 1, "usable again once it was freed");
    str_free(&s);
}

static void quoted(const char *bytes, size_t n, const char *want) {
    struct str s = {0};
    str_json(&s, bytes, n);
    CHECK(s.p && !strcmp(s.p, want), "%s, not %s", s.p, want);
    str_free(&s);
}
TEST(json_text) {
    quoted("", 0, "\"\"");
    quoted("a\"b\\c/", 6, "\"a\\\"b\\\\c/\"");
    quoted("\b\f\n\r\t\x01\x1f\x7f", 8, "\"\\b\\f\\n\\r\\t\\u0001\\u001f\x7f\"");
    quoted("a\0b", 3, "\"a\\u0000b\"");
    quoted("源\xf0\x9f\x98\x80", 7, "\"源\xf0\x9f\x98\x80\"");
    quoted("a\xff" "b\xe6\xba", 5, "\"a\xef\xbf\xbd" "b\xef\xbf\xbd\xef\xbf\xbd\"");
    quoted("\xed\xa0\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"");
}

TEST(json_numbers_read_back) {
    static const struct { double x; const char *want; } table[] = {
        {0, "0"}, {-0.0, "-0"}, {1, "1"}, {0.1, "0.1"}, {1e22, "1e+22"}, {2e-5, "2e-05"}, {5e-324, "4.94065645841247e-324"},
        {1.0 / 3, "0.3333333333333333"}, {0.1 + 0.2, "0.30000000000000004"}, {9007199254740991, "9007199254740991"},
        {INFINITY, "null"}, {-INFINITY, "null"}, {NAN, "null"}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct str s = {0};
        str_json_num(&s, table[i].x);
        CHECK(!strcmp(s.p, table[i].want), "%s, not %s", s.p, table[i].want);
        if (isfinite(table[i].x)) CHECK(strtod(s.p, NULL) == table[i].x, "%s reads back as another number", s.p);
        CHECK(!json_check(s.p, s.n, NULL, NULL), "%s is not JSON", s.p);
        str_free(&s);
    }
}

/* Every code point there and back; every one that is none becomes U+FFFD. */
TEST(utf8_of_all_code_points) {
    struct str s = {0};
    for (uint32_t c = 0; c < 0x110100; c++) {
        uint32_t back = 0;
        str_clear(&s);
        str_utf8(&s, c);
        int len = utf8_get((const unsigned char *)s.p, s.n, &back);
        uint32_t want = c > 0x10ffff || (c >= 0xd800 && c < 0xe000) ? 0xfffd : c;
        CHECK((size_t)len == s.n && back == want, "U+%04X: %d bytes of %zu, U+%04X", c, len, s.n, back);
        for (int cut = 1; cut < len; cut++)
            CHECK(!utf8_get((const unsigned char *)s.p, (size_t)cut, &back), "U+%04X cut to %d bytes is accepted", c, cut);
    }
    str_free(&s);
}
TEST(utf8_refusals) {
    static const char *const bad[] = {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xed\xbf\xbf",
                                      "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80", "\xff", "\xc3(", "\xe2(\xa1"};
    uint32_t c;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(!utf8_get((const unsigned char *)bad[i], strlen(bad[i]), &c), "entry %zu is accepted", i);
}

TEST(nearest) {
    static const char *const list[] = {"learning_rate", "lora_rank", "lora_alpha", "num_train_epochs", NULL};
    static const struct { const char *word, *want; } table[] = {
        {"lora_rnak", "lora_rank"}, {"LORA_RANK", "lora_rank"}, {"learning-rate", "learning_rate"}, {"lr", NULL},
        {"num_epochs", NULL}, {"num_train_epoch", "num_train_epochs"}, {"", NULL}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const char *got = nearest_word(table[i].word, list), *want = table[i].want;
        CHECK(got == want || (got && want && !strcmp(got, want)), "%s: %s", table[i].word, got ? got : "none");
    }
    char longest[300];
    memset(longest, 'x', sizeof longest), longest[299] = 0;
    CHECK(!nearest_word(longest, list), "a word of 299 letters");
}

TEST(texts) {
    char *copy = text_copy("abcdef", 3);
    CHECK(copy && !strcmp(copy, "abc"), "copy");
    sys_free(copy);
    CHECK(text_starts("abc", "ab") && text_starts("abc", "") && !text_starts("a", "ab"), "starts");
    CHECK(text_ends("abc", "bc") && text_ends("abc", "") && !text_ends("c", "bc"), "ends");
}

TEST(readable_numbers) {
    static const struct { int64_t bytes; const char *want; } sizes[] = {
        {0, "0 bytes"}, {1, "1 byte"}, {17, "17 bytes"}, {1023, "1023 bytes"}, {1024, "1 KiB"}, {1536, "1.50 KiB"},
        {512 << 20, "512 MiB"}, {1320702444, "1.23 GiB"}, {13207024436, "12.3 GiB"}, {132070244352, "123 GiB"},
        {INT64_MAX, "8 EiB"}, {-2048, "-2 KiB"}, {INT64_MIN, "-8 EiB"}};
    char buf[40];
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        CHECK(!strcmp(text_bytes(buf, sizes[i].bytes), sizes[i].want), "%s, not %s", buf, sizes[i].want);
    static const struct { double s; const char *want; } times[] = { /* str(datetime.timedelta(seconds=int(s))) */
        {0, "0:00:00"}, {725.9, "0:12:05"}, {3600, "1:00:00"}, {86399, "23:59:59"}, {93784, "1 day, 2:03:04"},
        {172800, "2 days, 0:00:00"}, {NAN, "0:00:00"}, {-5, "0:00:00"}, {INFINITY, "11574074074 days, 1:46:40"}};
    for (size_t i = 0; i < sizeof times / sizeof *times; i++)
        CHECK(!strcmp(text_seconds(buf, times[i].s), times[i].want), "%s, not %s", buf, times[i].want);
    static const struct { int64_t n; const char *want; } counts[] = {
        {0, "0"}, {999, "999"}, {1000, "1,000"}, {52002, "52,002"}, {-52002, "-52,002"}, {-999, "-999"}, {100000, "100,000"},
        {INT64_MIN, "-9,223,372,036,854,775,808"}};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        CHECK(!strcmp(text_thousands(buf, counts[i].n), counts[i].want), "%s, not %s", buf, counts[i].want);
}
TEST_MAIN
