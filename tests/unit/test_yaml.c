/* Flat YAML and JSON files of flags: what is read, and what is refused with which sentence. */
#include "base/str.h"
#include "base/sys.h"
#include "cli/cli_internal.h"
#include "tests/test.h"

/* "key=value;" for each pair, "key;" for null. NULL with e on failure. */
static char *flat(int json, const char *text, size_t n, struct err *e) {
    struct pairs p = {0};
    struct str s = {0};
    *e = (struct err){0};
    int rc = json ? json_pairs(text, n, "f", &p, e) : yaml_parse(text, n, "f", &p, e);
    str_puts(&s, "");
    for (int i = 0; i < p.n; i++) str_printf(&s, p.p[i].value ? "%s=%s;" : "%s;", p.p[i].key, p.p[i].value);
    pairs_free(&p);
    if (s.oom) rc = err_set(e, ERR_RUN, "the test itself has no memory");
    if (!rc) return s.p;
    str_free(&s);
    return NULL;
}

static const char *const yaml_good[][2] = {
    {"", ""},
    {"a: 1", "a=1;"},
    {"a: {\"b\": 1.5e-4, \"c\": \"x\"}  # JSON\n", "a={\"b\": 1.5e-4, \"c\": \"x\"};"},
    {"a: 1\nb: x y\n", "a=1;b=x y;"},
    {"\xef\xbb\xbf"
     "a: 1\r\nb: 2\r\n",
     "a=1;b=2;"},
    {"### model\nmodel_name_or_path: /m  # where\n\n### method\nstage: sft\n",
     "model_name_or_path=/m;stage=sft;"},
    {"---\na: 1\n...\n", "a=1;"},
    {"learning_rate: 1.0e-4\nlr: 1e-4\n", "learning_rate=1.0e-4;lr=1e-4;"},
    {"a: true\nb: False\nc: no\n", "a=true;b=False;c=no;"},
    {"a: null\nb: ~\nc:\nd: Null\n", "a;b;c;d;"},
    {"a: \"null\"\nb: ''\n", "a=null;b=;"},
    {"a: [x, y , \"z w\"]\n", "a=x,y,z w;"},
    {"a: [ ]\nb: []  # none\n", "a=;b=;"},
    {"a:\n- x\n- y # second\nb: 1\n", "a=x,y;b=1;"},
    {"a:\n  - x\n\n  # between\n  - \"y: z\"\n", "a=x,y: z;"},
    {"a: 'it''s'\n", "a=it's;"},
    {"a: \"tab\\t quote\\\" \\u4f60\\x41\"\n", "a=tab\t quote\" 你A;"},
    {"a: 'C:\\x'\n", "a=C:\\x;"},
    {"a: http://x/y#z\n", "a=http://x/y#z;"},
    {"a: 你好 世界\n", "a=你好 世界;"},
    {"a:   spaced   \nb:\ttabbed\n", "a=spaced;b=tabbed;"},
    {"per-device: 1\na.b: 2\n", "per-device=1;a.b=2;"},
    {"a: -1\nb: - 1\n", "a=-1;b=- 1;"},
    {"   # only a comment\n\t\n", ""},
};

TEST(reads_the_flat_subset) {
    for (size_t i = 0; i < sizeof yaml_good / sizeof *yaml_good; i++) {
        struct err e;
        char *s = flat(0, yaml_good[i][0], strlen(yaml_good[i][0]), &e);
        CHECK(s && !strcmp(s, yaml_good[i][1]), "\"%s\" gave \"%s\" %s", yaml_good[i][0], s ? s : "-",
              e.text);
        sys_free(s);
    }
}

static const char *const yaml_bad[][2] = {
    /* text, what the message must hold */
    {"a", "f:1: a line \"key: value\""},
    {"a:1", "key: value"},
    {": 1", "key: value"},
    {"a b: 1", "key: value"},
    {"\"a\": 1", "key: value"},
    {"a: 1\na: 2\n", "f:2: a stands twice, first on line 1"},
    {"a:\n  b: 1\n", "f:2: nested maps"},
    {"a: x\n  y\n", "f:2: nested maps and continued lines"},
    {"a: {b: 1}\n", "nested maps"},
    {"a: b: c\n", "nested maps"},
    {"a: &x 1\n", "anchors"},
    {"a: *x\n", "aliases"},
    {"a: !!int 1\n", "tags"},
    {"a: |\n  text\n", "block texts"},
    {"a: >-\n  text\n", "block texts"},
    {"a: @x\n", "must be quoted"},
    {"a: `x\n", "must be quoted"},
    {"a: %x\n", "must be quoted"},
    {"%YAML 1.2\n---\na: 1\n", "directives"},
    {"a: 1\n---\nb: 2\n", "f:2: a second document"},
    {"...\na: 1\n", "behind the end"},
    {"--- a\n", "nothing may stand behind"},
    {"? a\n: 1\n", "plain words"},
    {"- a\n", "without a key"},
    {"a: 1\n- b\n", "without a key"},
    {"a:\n- - b\n", "only plain values"},
    {"a:\n- [b]\n", "only plain values"},
    {"a:\n- b: 1\n", "nested maps"},
    {"a:\n- \n", "null"},
    {"a: [b, [c]]\n", "only plain values"},
    {"a: [b, {c}]\n", "nested maps"},
    {"a: [b\n, c]\n", "must end on its line"},
    {"a: [b, , c]\n", "null"},
    {"a: [b] c\n", "more text"},
    {"a: [\"b\" c]\n", "',' or ']'"},
    {"a: \"b\n", "must end on its line"},
    {"a: 'b' c\n", "more text"},
    {"a: \"\\q\"\n", "unknown escape"},
    {"a: \"\\x4\"\n", "hex digits"},
    {"a: \"\\u0000\"\n", "out of range"},
    {"\ta: 1\n", "tab"},
    {"a: \x01\n", "plain UTF-8"},
    {"a: \xff\n", "plain UTF-8"},
};

TEST(refuses_the_rest_with_line_and_reason) {
    for (size_t i = 0; i < sizeof yaml_bad / sizeof *yaml_bad; i++) {
        struct err e;
        char *s = flat(0, yaml_bad[i][0], strlen(yaml_bad[i][0]), &e);
        CHECK(!s && e.code == ERR_INPUT && strstr(e.text, yaml_bad[i][1]), "\"%s\" gave \"%s\" \"%s\"",
              yaml_bad[i][0], s ? s : "-", e.text);
        sys_free(s);
    }
    struct err e;
    char *s = flat(0, "a: 1\0b", 6, &e);
    CHECK(!s && strstr(e.text, "plain UTF-8"), "a NUL is accepted");
    sys_free(s);
}

TEST(reads_flat_json) {
    static const char *const good[][2] = {
        {"{}", ""},
        {"{\"a\": 1, \"b\": \"x y\", \"c\": true, \"d\": null, \"e\": 5e-5, \"f\": [\"q\", 2, false], \"g\": "
         "[]}",
         "a=1;b=x y;c=true;d;e=5e-05;f=q,2,false;g=;"},
        {"{\"a\": 500000000, \"b\": -1.5}", "a=500000000;b=-1.5;"},
    };
    static const char *const bad[][2] = {
        {"[]", "one JSON object"},
        {"{\"a\": {\"b\": {}}}", "\"a\" must be"},
        {"{\"a\": [[1]]}", "\"a\" must be"},
        {"{\"a\": [null]}", "\"a\" must be"},
        {"{\"a\": 1", "f:1:"},
        {"{\"a\":1,\"a\":2}", "twice"},
    };
    struct err e;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        char *s = flat(1, good[i][0], strlen(good[i][0]), &e);
        CHECK(s && !strcmp(s, good[i][1]), "\"%s\" gave \"%s\" %s", good[i][0], s ? s : "-", e.text);
        sys_free(s);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char *s = flat(1, bad[i][0], strlen(bad[i][0]), &e);
        CHECK(!s && e.code == ERR_INPUT && strstr(e.text, bad[i][1]), "\"%s\": \"%s\"", bad[i][0], e.text);
        sys_free(s);
    }
}

TEST(survives_every_failing_allocation) {
    const char *text = "a: 1\nb: [x, \"y\"]\nc:\n- u\n- v\nd: 'q'\n",
               *object = "{\"a\": [1, \"x\"], \"b\": null, \"c\": 2}";
    for (int json = 0; json < 2; json++)
        for (int64_t at = 1;; at++) {
            struct err e;
            sys_fault = (struct sys_fault){.kinds = "a", .at = at, .error = 12};
            char *s = json ? flat(1, object, strlen(object), &e) : flat(0, text, strlen(text), &e);
            int64_t calls = sys_fault.calls;
            sys_fault = (struct sys_fault){0};
            CHECK(s || e.code, "call %lld failed without a message", (long long)at);
            sys_free(s);
            if (calls < at) break;
            REQUIRE(at < 1000, "no end");
        }
}

TEST_MAIN
