/* tests/unit/test_datasets_stages.c - what happens to records once they are read: cutting, masking, tools,
 * mixing, packing, storing; and every failing call on the way. */
#include "base/rng.h"
#include "base/stop.h"
#include "tests/data_make.h"
#include <omp.h>
#include <signal.h>
#include <sys/wait.h>

/* ---- cutting and masking ---- */

TEST(cut_turns_as_both_eras_do) {
    static const struct {
        int64_t S, T, C, new_s, new_t, old_s, old_t;
    } k[] = {
        {900, 300, 1024, 724, 300, 768, 256},
        {300, 900, 1024, 300, 724, 256, 768},
        {1500, 1500, 1024, 512, 512, 512, 512},
        {3000, 100, 1024, 924, 100, 991, 33},
        {100, 3000, 1024, 100, 924, 34, 990},
        {120, 5, 128, 120, 5, 112, 5}, /* OLD cuts what would fit */
        {10, 10, 1024, 10, 10, 10, 10},
        {100, 40, 10, 8, 2, 94, 16}, /* OLD: 10 tokens of room, 110 taken */
        {3, 40, 10, 3, 7, 0, 16},
        {0, 7, 5, 0, 5, 0, 7},
        {5, 0, 3, 3, 0, 0, 0},
        {0, 0, 3, 0, 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) {
        int64_t s, t;
        cut_turn(1, k[i].S, k[i].T, k[i].C, &s, &t);
        CHECK(s == k[i].new_s && t == k[i].new_t, "new %zu: %lld/%lld", i, (long long)s, (long long)t);
        cut_turn(0, k[i].S, k[i].T, k[i].C, &s, &t);
        CHECK(s == k[i].old_s && t == k[i].old_t, "old %zu: %lld/%lld", i, (long long)s, (long long)t);
    }
}

static const char three_turns[] =
    "{\"instruction\":\"e\",\"output\":\"f\",\"history\":[[\"a\",\"b\"],[\"c\",\"d\"]],\"system\":\"s\"}\n";

TEST(masking) {
    struct loaded x;
    struct data_config c = settings(put("h.jsonl", three_turns));
    load(&c, &x);
    shows(&x, 0, "(_s_a|)_b._\n(_c|)_d._\n(_e|)_f._\n");
    CHECK(x.r.multi_turn == 1 && x.r.labelled_tokens == 15, "%lld labels", (long long)x.r.labelled_tokens);
    unload(&x);
    c.mask_history = 1;
    load(&c, &x);
    shows(&x, 0, "(_s_a|_b._\n_c|_d._\n_e|)_f._\n");
    unload(&x);
    c.cutoff_len = 14; /* the last turn has 8, the one before gets 6 */
    load(&c, &x);
    shows(&x, 0, "(_c|_d._e|)_f._\n");
    unload(&x);
    c.cutoff_len = 1000, c.mask_history = 0, c.train_on_prompt = 1;
    load(&c, &x);
    shows(&x, 0, "_s_a|_b._\n_c|_d._\n_e|_f._\n");
    unload(&x);
    c.train_on_prompt = 0, c.compat_new = 0;
    load(&c, &x);
    shows(&x, 0, "(_s_a|)_b.(_\n_c|)_d.(_\n_e|)_f.");
    unload(&x);
    c = settings(put("n.jsonl", "{\"instruction\":\"a\",\"output\":\"b\"}"));
    c.default_system = "z";
    load(&c, &x);
    shows(&x, 0, "(_z_a|)_b._\n");
    CHECK(x.r.multi_turn == 0, "%lld of several turns", (long long)x.r.multi_turn);
    unload(&x);
    c = settings(put("h.jsonl", three_turns)), c.mask_history = c.train_on_prompt = 1;
    load_fails(&c, "both", 1, "mutually exclusive");
}

TEST(warnings_say_how_often) {
    struct loaded x;
    struct data_config c = settings(
        put("w.jsonl", "{\"instruction\":\"a\",\"output\":\"b<eod>\"}\n"
                       "{\"instruction\":\"aaaaaaaaaaaaaaaaaaaa\",\"output\":\"bbbbbbbbbbbbbbbbbbbb\"}\n"));
    c.compat_new = 0, c.cutoff_len = 10;
    load(&c, &x);
    CHECK(!x.rc && x.r.double_eod == 1 && x.r.over_cutoff == 1 && x.r.longest == 32, "%s %lld", x.e.text,
          (long long)x.r.longest);
    CHECK(strstr(x.log, "<eod> stands in 1 of the answers already"), "%s", x.log);
    CHECK(strstr(x.log, "sequences longer than cutoff_len: 1 (of 2; the longest has 32 tokens)"), "%s",
          x.log);
    CHECK(strstr(x.log, "cut to cutoff_len 10:"), "%s", x.log);
    unload(&x);
}

/* ---- tools ---- */

TEST(json_is_written_again_as_python_does) {
    static const char *const k[][2] = {
        {"{ \"a\":[1 ,2],\"b\" :{ }, \"c\":[ ]}", "{\"a\": [1, 2], \"b\": {}, \"c\": []}"},
        {"[true,false,null]", "[true, false, null]"},
        {"[0.1,1e22,1.5E-5,123456.0,1e16,9999999999999998.0,1e-4,5e-324,-0.0,0.3333333333333333,2.5e300,1e2]",
         "[0.1, 1e+22, 1.5e-05, 123456.0, 1e+16, 9999999999999998.0, 0.0001, 5e-324, -0.0, "
         "0.3333333333333333, 2.5e+300, 100.0]"},
        {"[12345678901234567890,-0,-5]", "[12345678901234567890, 0, -5]"},
        {"\"\\u4f60\\ud83d\\ude00\\/\\b\\f\\n\\r\\t\\u0001\\\"\\\\\"",
         "\"\xe4\xbd\xa0\xf0\x9f\x98\x80/\\b\\f\\n\\r\\t\\u0001\\\"\\\\\""},
    };
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) {
        struct str s = {0};
        const char *p = k[i][0];
        tools_dump(&p, &s);
        CHECK(!strcmp(s.p, k[i][1]) && !*p, "%s, must be %s", s.p, k[i][1]);
        str_free(&s);
    }
}

TEST(function_calls) {
    static const struct {
        const char *text, *old, *new;
    } k[] = {
        /* NULL: dropped */
        {"{\"name\": \"f\", \"arguments\": {\"x\":1}}", "Action: f\nAction Input: {\"x\": 1}",
         "Action: f\nAction Input: {\"x\": 1}"},
        {" {\"id\":[{}],\"arguments\":\"t\",\"name\":\"g\"} ", "Action: g\nAction Input: \"t\"",
         "Action: g\nAction Input: \"t\""},
        {"[{\"name\":\"f\",\"arguments\":1},{\"name\":\"g\",\"arguments\":2}]",
         "Action: \nAction Input: ", "Action: f\nAction Input: 1\nAction: g\nAction Input: 2"},
        {"{\"name\":\"f\"}", "Action: \nAction Input: ", NULL},
        {"{\"name\":5,\"arguments\":1}", "Action: \nAction Input: ", NULL},
        {"not json", "Action: \nAction Input: ", NULL},
        {"5", "Action: \nAction Input: ", NULL},
        {"[5]", "Action: \nAction Input: ", NULL},
        {"[]", "Action: \nAction Input: ", ""},
    };
    for (size_t i = 0; i < sizeof k / sizeof *k; i++)
        for (int new = 0; new < 2; new ++) {
            const char *want = new ? k[i].new : k[i].old;
            struct str s = {0};
            int rc = tools_call_text(k[i].text, new, &s);
            CHECK(rc == (want ? 0 : -1) && !s.oom, "%s: %d", k[i].text, rc);
            CHECK(!want || !strcmp(s.p ? s.p : "", want), "%s: %s, must be %s", k[i].text, s.p, want);
            str_free(&s);
        }
}

static const char tool[] =
    "{\"name\":\"f\",\"description\":\"does\",\"parameters\":{\"type\":\"object\",\"required\":[\"x\"],"
    "\"properties\":{\"x\":{\"type\":\"string\",\"description\":\"an x\",\"enum\":[\"p\",\"q\"]},"
    "\"y\":{\"type\":\"array\",\"items\":{\"type\":\"number\"}}}}}";

static void list_is(const char *json, int new, const char *want) {
    struct str s = {0};
    struct cJSON *j = cJSON_CreateString(json);
    int rc = tools_list_text(j, new, &s);
    CHECK(rc == (want ? 0 : -1), "%s: %d", json, rc);
    CHECK(!want || !strcmp(s.p ? s.p : "", want), "%s: %s\nmust be\n%s", json, s.p, want);
    str_free(&s);
    json_free(j);
}

TEST(tool_lists) {
    char two[2000], wrapped[1000], want[2000];
    snprintf(two, sizeof two, "[%s,{\"name\":\"g\",\"parameters\":{\"properties\":{}}}]", tool);
    snprintf(wrapped, sizeof wrapped, "[{\"type\":\"function\",\"function\":%s}]", tool);
    for (int new = 0; new < 2; new ++) {
        const char *stop = new ? "" : ".";
        for (int both = 0; both < 2; both++) {
            snprintf(want, sizeof want,
                     "You have access to the following tools:\n> Tool Name: f\nTool Description: does\nTool "
                     "Args:\n"
                     "  - x (string, required): an x, should be one of [p, q]\n"
                     "  - y (array): , where each item should be number\n\n%s"
                     "Use the following format if using a tool:\n```\nAction: tool name (one of [f%s])%s\n"
                     "Action Input: the input to the tool, in a JSON format representing the kwargs (e.g. "
                     "```{\"input\": "
                     "\"hello world\", \"num_beams\": 5}```)%s\n```\n",
                     both ? "> Tool Name: g\nTool Description: \nTool Args:\n\n" : "", both ? ", g" : "",
                     stop, stop);
            if (both)
                list_is(two, new, want);
            else if (new)
                list_is(wrapped, new, want);
        }
        list_is("[]", new, "");
        list_is("{}", new, "");
        static const char *const wrong[] = {
            "not json",
            "5",
            "[5]",
            "[{\"name\":\"f\"}]",
            "{\"name\":\"f\"}",
            "[{\"name\":5,\"parameters\":{\"properties\":{}}}]",
            "[{\"name\":\"f\",\"parameters\":{\"properties\":{\"x\":5}}}]",
            "[{\"name\":\"f\",\"parameters\":{\"properties\":{\"x\":{\"enum\":[1]}}}}]"};
        for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
            list_is(wrong[i], new, new ? NULL : ""); /* OLD shrugs */
    }
    list_is(wrapped, 0, "");
}

/* Messages as OpenAI's interfaces give them. */
TEST(tool_calls_of_messages) {
#define CALL(name, arguments) "{\"id\":\"1\",\"type\":\"function\",\"function\":{\"name\":\"" name "\",\"arguments\":" arguments "}}"
#define USER "{\"role\":\"user\",\"content\":\"a\"},"
#define TOOL(text) "{\"role\":\"tool\",\"content\":\"" text "\"},"
#define SAYS "{\"role\":\"assistant\",\"content\":\"z\"}"
#define CALLS(list) "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[" list "]}"
    static const struct { const char *messages, *text; } k[] = { /* text "": dropped */
        {USER CALLS(CALL("f", "\"{\\\"x\\\":1.0}\"")), "(_a|)_Action:_f\nAction_Input:_{\"x\":_1.0}._\n"},
        {USER CALLS(CALL("f", "{\"x\":[1,2.5,true,null,\"q\\\"\"]}")), "(_a|)_Action:_f\nAction_Input:_{\"x\":_[1,_2.5,_true,_null,_\"q\\\"\"]}._\n"},
        {USER CALLS(CALL("f", "\"plain\"") "," CALL("g", "{}")), "(_a|)_Action:_f\nAction_Input:_\"plain\"\nAction:_g\nAction_Input:_{}._\n"},
        {USER CALLS(CALL("f", "{}")) "," TOOL("r") SAYS, "(_a|)_Action:_f\nAction_Input:_{}._\n(_r|)_z._\n"},
        {USER CALLS(CALL("f", "{}")) "," TOOL("r") TOOL("s") SAYS, "(_a|)_Action:_f\nAction_Input:_{}._\n(_r\n</tool_response>\n<tool_response>\ns|)_z._\n"},
        {USER CALLS(CALL("f", "{}")) "," TOOL("r") "{\"role\":\"tool\",\"content\":\"s\"}", "(_a|)_Action:_f\nAction_Input:_{}._\n"},
        {USER "{\"role\":\"assistant\",\"tool_calls\":[" CALL("f", "{}") "]}", "(_a|)_Action:_f\nAction_Input:_{}._\n"},
        {USER "{\"role\":\"assistant\",\"content\":\"z\",\"tool_calls\":[]}", "(_a|)_z._\n"},
        {USER CALLS("{}"), ""}, {USER CALLS("{\"function\":{\"name\":5,\"arguments\":{}}}"), ""}, {USER CALLS("{\"function\":{\"name\":\"f\"}}"), ""},
        {USER CALLS(CALL("f", "{}")) "," TOOL("r") TOOL("s") USER SAYS, ""}, {USER "{\"role\":\"tool\",\"content\":null}," SAYS, ""},
    };
    put("dataset_info.json", "{\"t\":{\"file_name\":\"t.jsonl\",\"formatting\":\"openai\"}}");
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) {
        struct loaded x;
        char line[2000];
        snprintf(line, sizeof line, "{\"messages\":[%s]}\n{\"messages\":[" USER SAYS "]}\n", k[i].messages);
        put("t.jsonl", line);
        struct data_config c = settings("t");
        load(&c, &x);
        if (*k[i].text) shows(&x, 0, k[i].text);
        else CHECK(x.r.sequences == 1 && x.r.records == 2, "%s: %lld of %lld", k[i].messages, (long long)x.r.sequences, (long long)x.r.records);
        unload(&x);
    }
}

TEST(tools_stand_behind_the_system_text) {
    struct loaded x;
    put("dataset_info.json", "{\"t\":{\"file_name\":\"t.jsonl\",\"formatting\":\"sharegpt\",\"columns\":{"
                             "\"messages\":\"c\",\"system\":"
                             "\"s\",\"tools\":\"t\"}}}");
    put("t.jsonl",
        "{\"c\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":\"gpt\",\"value\":\"b\"}],\"s\":\"y\",\"t\":"
        "\"[{\\\"name\\\":\\\"f\\\",\\\"parameters\\\":{\\\"properties\\\":{}}}]\"}\n"
        "{\"c\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":\"gpt\",\"value\":\"b\"}],\"t\":\"[]\"}\n"
        "{\"c\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":\"gpt\",\"value\":\"b\"}],\"t\":\"x\"}\n");
    struct data_config c = settings("t");
    load(&c, &x);
    CHECK(!x.rc && x.r.sequences == 2 && x.r.dropped_invalid == 1, "%s", x.e.text);
    CHECK(x.train && !strncmp(shown(x.train, 0), "(_yYou_have_access", 18), "%s", shown(x.train, 0));
    shows(&x, 1, "(_a|)_b._\n");
    char as_text[2000];
    snprintf(as_text, sizeof as_text, "%s", x.train ? shown(x.train, 0) : "");
    unload(&x);
    put("t.jsonl", /* the list itself in place of its text */
        "{\"c\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":\"gpt\",\"value\":\"b\"}],\"s\":\"y\",\"t\":"
        "[{\"name\":\"f\",\"parameters\":{\"properties\":{}}}]}\n");
    load(&c, &x);
    shows(&x, 0, as_text);
    unload(&x);
    put("t.jsonl",
        "{\"c\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":\"gpt\",\"value\":\"b\"}],\"t\":5}");
    load_fails(&c, "a number", 1, "\"t\" must be a text, it is a number");
}

/* ---- mixing ---- */

static void list_equals(const struct list *v, const char *want, const char *name) {
    char have[600] = "";
    size_t n = 0;
    for (int64_t i = 0; i < v->n && n < 580; i++)
        n += (size_t)snprintf(have + n, 20, i ? " %lld" : "%lld", (long long)v->p[i]);
    CHECK(!strcmp(have, want), "%s: %s, must be %s", name, have, want);
}

static struct list from_to(int64_t a, int64_t b) {
    struct list v = {0};
    for (; a < b; a++) list_add(&v, a, NULL);
    return v;
}

TEST(samples_are_drawn_as_numpy_draws_them) { /* numpy 2: seed, permutation(n)[:m], then choice(n, rest) */
    static const struct {
        uint32_t seed;
        int64_t n, samples;
        const char *want;
    } k[] = {
        {42, 10, 4, "8 1 5 0"},
        {42, 5, 12, "1 4 2 0 3 4 4 1 2 2 2 4"},
        {7, 1, 3, "0 0 0"},
    };
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) {
        struct mt19937 g;
        struct list v = from_to(0, k[i].n);
        mt_seed(&g, k[i].seed);
        CHECK(!mix_samples(&g, &v, k[i].samples, NULL), "case %zu", i);
        list_equals(&v, k[i].want, "samples");
        list_free(&v);
    }
}

TEST(interleaving) {
    struct data_config c = {.seed = 1};
    struct source names[3] = {{.name = (char[]){"x"}}, {.name = (char[]){"y"}}, {.name = (char[]){"z"}}};
    struct list part[3] = {from_to(0, 3), from_to(10, 15), from_to(20, 21)}, out;
    static const char *const want[] = {"0 1 2 10 11 12 13 14 20", "0 10 20",
                                       "0 10 20 1 11 20 2 12 20 0 13 20 1 14 20", "0 10 20 1 11 2 12 13 14"};
    for (c.mix = MIX_CONCAT; c.mix <= MIX_ONCE; c.mix++) {
        out = (struct list){0};
        CHECK(!mix_lists(&c, part, names, 3, &out, NULL), "mix %d", c.mix);
        list_equals(&out, want[c.mix], "by turns");
        list_free(&out);
    }
    c.interleave_probs =
        "0.2, 0.5,0.3"; /* numpy default_rng(1).choice(3, p=..): 1 2 0 2 1 1 2 1 1 0 2 1 1 2 1 1 0 .. */
    static const char *const drawn[] = {"10 20", "10 20 0 20 11 12 20 13 14 1 20 10 11 20 12 13 2",
                                        "10 20 0 11 12 13 14 1 2"};
    for (c.mix = MIX_UNDER; c.mix <= MIX_ONCE; c.mix++) {
        out = (struct list){0};
        CHECK(!mix_lists(&c, part, names, 3, &out, NULL), "mix %d", c.mix);
        list_equals(&out, drawn[c.mix - 1], "by chance");
        list_free(&out);
    }
    static const char *const wrong[][2] = {{"0.5,0.5", "2 numbers for 3"},
                                           {"0.2,0.2,0.2", "add up to 1"},
                                           {"1,0,0", "from 1e-09 to 1"},
                                           {"0.5,0.5,1e-17", "from 1e-09 to 1"},
                                           {"a,b,c", "not a list"},
                                           {"0.5;0.3;0.2", "not a list"},
                                           {"0.2,0.3,nan", "not a list"},
                                           {"0.2,0.3,0.2,0.3", "4 numbers for 3"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct err e = {0};
        c.interleave_probs = wrong[i][0], c.mix = MIX_UNDER, out = (struct list){0};
        CHECK(mix_lists(&c, part, names, 3, &out, &e) && strstr(e.text, wrong[i][1]), "%s: %s", wrong[i][0],
              e.text);
        list_free(&out);
    }
    struct err e = {0};
    c.mix = MIX_CONCAT, out = (struct list){0};
    CHECK(mix_lists(&c, part, names, 3, &out, &e) && strstr(e.text, "only valid for interleaved"), "%s",
          e.text);
    e.code = 0, c.mix = MIX_OVER, c.interleave_probs = NULL, part[1].n = 0;
    CHECK(mix_lists(&c, part, names, 3, &out, &e) && strstr(e.text, "data set y holds no record"), "%s",
          e.text);
    for (int k = 0; k < 3; k++) list_free(part + k);
}

TEST(validation_split) { /* numpy default_rng(42).permutation(10) = 5 6 0 7 3 2 4 9 1 8 */
    static const struct {
        double size;
        const char *test, *train;
    } k[] = {{0.3, "5 6 0", "7 3 2 4 9 1 8"},
             {0.21, "5 6 0", "7 3 2 4 9 1 8"},
             {2, "5 6", "0 7 3 2 4 9 1 8"},
             {2.9, "5 6", "0 7 3 2 4 9 1 8"}};
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) {
        struct data_config c = {.seed = 42, .val_size = k[i].size};
        struct list all = from_to(0, 10), test = {0};
        CHECK(!mix_split(&c, &all, &test, NULL), "case %zu", i);
        list_equals(&test, k[i].test, "test");
        list_equals(&all, k[i].train, "train");
        list_free(&all), list_free(&test);
    }
    static const double wrong[] = {1, 10, 11, 0.95, 1e300};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct data_config c = {.seed = 42, .val_size = wrong[i]};
        struct list all = from_to(0, 10), test = {0};
        struct err e = {0};
        CHECK(mix_split(&c, &all, &test, &e) && strstr(e.text, "val_size"), "%g", wrong[i]);
        list_free(&all), list_free(&test);
    }
}

TEST(several_data_sets_and_an_evaluation_set) {
    struct loaded x;
    put("dataset_info.json",
        "{\"a\":{\"file_name\":\"a.jsonl\"},\"b\":{\"file_name\":\"b.jsonl\",\"num_samples\":5}}");
    put("a.jsonl", "{\"instruction\":\"a\",\"input\":\"\",\"output\":\"a\"}\n{\"instruction\":\"b\","
                   "\"output\":\"b\"}\n{\"instruction\":\"c\",\"output\":\"c\"}");
    put("b.jsonl",
        "{\"instruction\":\"x\",\"input\":\"\",\"output\":\"x\"}\n{\"instruction\":\"y\",\"output\":\"y\"}");
    struct data_config c = settings("a,b");
    c.eval_dataset = "a", c.max_samples = 2, c.mix = MIX_UNDER;
    load(&c, &x);
    REQUIRE(!x.rc, "%s", x.e.text);
    CHECK(data_count(x.train) == 4 && x.eval && data_count(x.eval) == 2 && x.r.eval_sequences == 2, "%lld",
          (long long)data_count(x.train));
    shows(&x, 0, "(_a|)_a._\n");
    shows(&x, 1, "(_y|)_y._\n"); /* numpy: seed 42, permutation(2) = 1 0 */
    char one[41], two[41];
    data_hash(x.train, one, NULL), data_hash(x.eval, two, NULL);
    CHECK(strlen(one) == 40 && strcmp(one, two), "%s, %s", one, two);
    unload(&x);
    c.val_size = 0.5;
    load_fails(&c, "both", 1, "Cannot specify `val_size`");
    c = settings("a"), c.eval_dataset = put("none.jsonl", "{\"instruction\":\"x\",\"output\":null}");
    load_fails(&c, "empty evaluation", 1, "Empty dataset!");
}

/* ---- packing ---- */

/* Records of the given lengths, all tokens of record k being k. */
static const char *lengths_file(const int *length, int count) {
    struct str s = {0};
    for (int k = 0; k < count; k++) {
        str_puts(&s, "{\"input_ids\":[");
        for (int i = 0; i < length[k]; i++) str_printf(&s, i ? ",%d" : "%d", k);
        str_puts(&s, "]}\n");
    }
    const char *path = put("lengths.jsonl", s.p);
    str_free(&s);
    return path;
}

/* "4 4 2|..." is shortened to runs: "4x7 2x3 -x1": token x count, - for padding. */
static const char *runs(const struct dataset *d, int64_t i) {
    static char out[500];
    struct sequence s;
    size_t n = 0;
    data_get(d, i, &s, NULL);
    for (int64_t a = 0, b; a < s.n && n < 450; a = b) {
        for (b = a; b < s.n && s.ids[b] == s.ids[a] &&
                    (s.labels[b] == IGNORE_LABEL) == (s.labels[a] == IGNORE_LABEL);
             b++)
            if (s.positions)
                CHECK(s.positions[b] == (s.labels[a] == IGNORE_LABEL ? 0 : b - a), "position %lld",
                      (long long)b);
        char name[20];
        snprintf(name, sizeof name, s.labels[a] == IGNORE_LABEL ? "-" : "%d", s.ids[a]);
        n += (size_t)snprintf(out + n, 40, "%s%sx%lld", n ? " " : "", name, (long long)(b - a));
        if (s.documents) n += (size_t)snprintf(out + n, 20, "(%d)", s.documents[a]);
    }
    return out;
}

TEST(bins) {
    static const int length[] = {5, 3, 8, 3, 2, 7, 1};
    static const char *const plain[] = {"2x8(1) 4x2(1) -x1(1)", "5x7(1) 3x3(1) -x1(1)",
                                        "0x5(1) 1x3(1) 6x1(1) -x2(1)"};
    static const char *const neat[] = {"2x8(1) 4x2(2) -x1(0)", "5x7(1) 3x3(2) -x1(0)",
                                       "0x5(1) 1x3(2) 6x1(3) -x2(0)"};
    struct data_config c = settings(lengths_file(length, 7));
    c.cutoff_len = 11; /* 10 for records */
    for (c.neat_packing = 0; c.neat_packing < 2; c.neat_packing++) {
        struct loaded x;
        c.packing = c.neat_packing ? -1 : 1;
        load(&c, &x);
        REQUIRE(!x.rc && data_count(x.train) == 3, "%s", x.e.text);
        for (int i = 0; i < 3; i++) {
            const char *have = runs(x.train, i), *want = c.neat_packing ? neat[i] : plain[i];
            CHECK(!strcmp(have, want), "bin %d: %s, must be %s", i, have, want);
        }
        CHECK(x.r.tokens == 33 && x.r.labelled_tokens == 29, "%lld tokens", (long long)x.r.tokens);
        unload(&x);
    }
}

/* Any lengths, group sizes and shards: every record once and whole, no bin that could have taken the first
 * record of a later one of its group. */
TEST(bins_of_random_lengths) {
    enum { COUNT = 200, ROOM = 30 };
    struct mt19937 g;
    mt_seed(&g, 3);
    for (int round = 0; round < 12; round++) {
        int length[COUNT];
        char seen[COUNT] = {0};
        for (int k = 0; k < COUNT; k++) length[k] = 1 + (int)(mt_next(&g) % (round % 3 ? ROOM : 5));
        struct data_config c = settings(lengths_file(length, COUNT));
        struct loaded x;
        c.packing = 1, c.cutoff_len = ROOM + 1, c.group_size = 1 + mt_next(&g) % 100,
        c.num_workers = 1 + mt_next(&g) % 7;
        load(&c, &x);
        REQUIRE(!x.rc && x.r.dropped_lengthy == 0, "%s", x.e.text);
        for (int64_t i = 0; i < data_count(x.train); i++) {
            struct sequence s;
            data_get(x.train, i, &s, NULL);
            CHECK(s.n == ROOM + 1 && s.labels[ROOM] == IGNORE_LABEL, "block of %lld", (long long)s.n);
            for (int64_t a = 0; a < s.n && s.labels[a] != IGNORE_LABEL;) {
                int32_t k = s.ids[a];
                int b = 0;
                while (a + b < s.n && s.ids[a + b] == k && s.labels[a + b] == k && b < length[k]) b++;
                CHECK(b == length[k] && !seen[k]++, "record %d: %d of %d tokens", k, b, length[k]);
                a += b;
                if (b != length[k]) break;
            }
        }
        for (int k = 0; k < COUNT; k++) CHECK(seen[k] == 1, "record %d came %d times", k, seen[k]);
        unload(&x);
    }
}

TEST(chunks_depend_on_workers_and_groups) {
    static const int length[] = {3, 3, 3, 3, 3, 3, 3};
    static const struct {
        int64_t workers, group, blocks, lost;
    } k[] = {
        {0, 0, 5, 1}, /* 21 tokens by 4 */
        {2, 0, 5, 1}, /* 12 and 9 */
        {3, 0, 4, 5}, /* 9, 6, 6 */
        {1, 2, 3, 9}, /* 6, 6, 6, 3 */
        {7, 0, 0, 21}, {99, 0, 0, 21},
    };
    struct data_config c = settings(lengths_file(length, 7));
    c.sft_packing = 1, c.cutoff_len = 4;
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) {
        struct loaded x;
        c.num_workers = k[i].workers, c.group_size = k[i].group;
        load(&c, &x);
        CHECK(x.rc == (k[i].blocks ? 0 : -1) && x.r.sequences == k[i].blocks &&
                  x.r.remainder_tokens == k[i].lost,
              "case %zu: %s %lld blocks, %lld lost", i, x.e.text, (long long)x.r.sequences,
              (long long)x.r.remainder_tokens);
        if (i == 2) CHECK(strstr(x.log, "packed 7 records into 4 blocks, dropped 5 tokens"), "%s", x.log);
        if (!k[i].blocks) CHECK(strstr(x.e.text, "fills a block of 4 tokens"), "%s", x.e.text);
        if (i == 0 && !x.rc)
            CHECK(!strcmp(runs(x.train, 1), "1x2 2x2"), "%s",
                  runs(x.train, 1)); /* cut inside record 1 and 2 */
        unload(&x);
    }
    c.packing = 1;
    load_fails(&c, "two packings", 1, "sft_packing and packing exclude each other");
    c.sft_packing = 0, c.cutoff_len = 1;
    load_fails(&c, "no room", 1, "cutoff_len must be from 2");
    c = settings(lengths_file(length, 7)), c.cutoff_len = 0;
    load_fails(&c, "no cutoff", 1, "cutoff_len must be from 1");
}

/* ---- storing ---- */

static struct data_config many_records(void) {
    struct str s = {0};
    for (int k = 0; k < 3000; k++) {
        str_printf(&s, "{\"instruction\":\"%c%c\",\"output\":\"", 'a' + k % 26, 'a' + k / 26 % 26);
        for (int i = 0; i < k % 40; i++) str_putc(&s, (char)('a' + i % 26));
        str_puts(&s, "\"}\n");
    }
    struct data_config c = settings(put("many.jsonl", s.p));
    str_free(&s);
    return c;
}

TEST(neither_threads_nor_the_temporary_file_change_the_data) {
    struct data_config c = many_records();
    char first[41] = "", hash[41];
    const int threads = omp_get_max_threads();
    for (int k = 0; k < 8; k++) {
        struct loaded x;
        omp_set_num_threads(k & 1 ? 5 : 1);
        c.memory_limit = k & 2 ? 5000 : 0;
        c.temp_dir = scratch_dir();
        c.packing = k & 4 ? 1 : -1;
        load(&c, &x);
        REQUIRE(!x.rc, "%s", x.e.text);
        data_hash(x.train, hash, NULL);
        if (k % 4)
            CHECK(!strcmp(hash, first), "variant %d: %s, must be %s", k, hash, first);
        else
            strcpy(first, hash);
        unload(&x);
    }
    omp_set_num_threads(threads);
    char **names;
    int count;
    REQUIRE(!dir_list(scratch_dir(), &names, &count, NULL), "list");
    for (int i = 0; i < count; i++) CHECK(strncmp(names[i], "qlora-data", 10), "%s is left behind", names[i]);
    dir_list_free(names, count);
    c.temp_dir = "/nonexistent", c.memory_limit = 5000;
    struct loaded x;
    load(&c, &x);
    CHECK(x.rc && x.e.code == ERR_RUN && strstr(x.e.text, "--temp_dir"), "%s", x.e.text);
    unload(&x);
}

/* --eval_on_each_dataset: each set as it is alone, one behind the other. */
TEST(data_sets_that_stay_apart) {
    static const char *const names[] = {"p1.csv", "p2.csv", "p1.csv"};
    put("p1.csv", "instruction,output\na,b\nc,d\n,\n"), put("p2.csv", "instruction,output\ne,f\n");
    for (int packed = 0; packed < 2; packed++) {
        struct loaded x;
        struct data_config c = settings("p1.csv");
        int64_t first, n, next = 0;
        c.eval_dataset = "p1.csv,p2.csv,,p1.csv", c.eval_on_each = 1, c.mix = MIX_OVER;
        if (packed) c.packing = c.neat_packing = 1, c.cutoff_len = 20;
        load(&c, &x);
        REQUIRE(!x.rc && data_parts(x.eval) == 3 && !data_parts(x.train), "%s", x.e.text);
        for (int k = 0; k < 3; k++) {
            struct loaded alone;
            struct data_config one = c;
            one.dataset = names[k], one.eval_dataset = NULL, one.mix = MIX_CONCAT;
            load(&one, &alone);
            CHECK(!strcmp(data_part(x.eval, k, &first, &n), names[k]) && first == next && n == data_count(alone.train), "part %d: %lld from %lld on", k, (long long)n, (long long)first);
            for (int64_t i = 0; i < n; i++) CHECK(!strcmp(shown(x.eval, first + i), shown(alone.train, i)), "part %d: %s, must be %s", k, shown(x.eval, first + i), shown(alone.train, i));
            next += n;
            unload(&alone);
        }
        CHECK(next == data_count(x.eval) && x.r.eval_sequences == next, "%lld sequences", (long long)next);
        unload(&x);
        c.eval_dataset = "p1.csv,nowhere", load_fails(&c, "unknown", 1, "nowhere");
    }
}

/* Every allocation, open, read and write on the way fails once: a message, nothing leaked (ASan), nothing
 * left behind. */
TEST(every_failing_call_is_survived) {
    static const struct {
        const char *kinds;
        int error;
    } k[] = {{"a", 12}, {"o", 5}, {"r", 5}, {"w", 28}, {"u", 5}};
    put("dataset_info.json",
        "{\"a\":{\"file_name\":\"a.csv\",\"num_samples\":9},\"t\":{\"file_name\":\"t.jsonl\",\"formatting\":"
        "\"sharegpt\","
        "\"columns\":{\"messages\":\"c\",\"tools\":\"t\"}},\"d\":{\"file_name\":\"d\"}}");
    put("a.csv", "instruction,input,output\na,b,c\nd,e,f\n");
    put("t.jsonl", "{\"c\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":\"function_call\",\"value\":\"{"
                   "\\\"name\\\":\\\"f\\\","
                   "\\\"arguments\\\":{}}\"}],\"t\":\"[{\\\"name\\\":\\\"f\\\",\\\"parameters\\\":{"
                   "\\\"properties\\\":{}}}]\"}\n");
    char path[300];
    snprintf(path, sizeof path, "%s/d", scratch_dir());
    dir_make(path, NULL);
    put("d/x.json", "[{\"instruction\":\"a\",\"output\":\"b\"}]");
    struct data_config c = settings("a,t,d");
    c.packing = 1, c.cutoff_len = 600, c.val_size = 2, c.mix = MIX_OVER, c.interleave_probs = "0.3,0.3,0.4";
    c.memory_limit = 1000, c.temp_dir = scratch_dir();
    small_tok();
    const int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    log_quiet = 1;
    int stderr_fd = dup(2), null = open("/dev/null", O_WRONLY);
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) {
        int64_t at = 1;
        for (int rc = -1; rc && at < 5000; at++) {
            struct dataset *train, *eval;
            struct data_report r;
            struct err e = {0};
            snprintf(sys_fault.kinds, sizeof sys_fault.kinds, "%s", k[i].kinds);
            sys_fault.error = k[i].error, sys_fault.calls = 0, sys_fault.sticky = 0, sys_fault.at = at;
            dup2(null, 2);
            rc = data_load(&c, small_tok(), &train, &eval, &r, &e);
            dup2(stderr_fd, 2);
            int reached = sys_fault.calls >= at;
            sys_fault.at = 0;
            CHECK(rc ? e.code && *e.text && !train && !eval : !e.code && train, "%s %lld: rc %d, %s",
                  k[i].kinds, (long long)at, rc, e.text);
            if (rc && !reached) { /* fails without a fault: the test itself is wrong */
                CHECK(0, "%s", e.text);
                break;
            }
            if (!rc && reached) rc = -1; /* this failure was harmless: go on */
            data_free(train);
            data_free(eval);
        }
        CHECK(at > 2 && at < 5000, "%s: %lld calls", k[i].kinds, (long long)at);
    }
    close(stderr_fd), close(null);
    omp_set_num_threads(threads);
    log_quiet = 0;
}

TEST(a_signal_stops_the_reading) {
    struct data_config c = many_records();
    int status = -1;
    pid_t child = fork();
    if (child == 0) { /* the flag of a signal stays up: in a process of its own */
        struct dataset *train, *eval;
        struct data_report r;
        struct err e = {0};
        log_quiet = 1;
        stop_install();
        raise(SIGTERM);
        _exit(data_load(&c, small_tok(), &train, &eval, &r, &e) && !train ? e.code : 1);
    }
    REQUIRE(child > 0 && waitpid(child, &status, 0) == child, "fork");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 128 + SIGTERM, "status %d", status);
}

TEST_MAIN
