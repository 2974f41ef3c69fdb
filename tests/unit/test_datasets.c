/* tests/unit/test_datasets.c - what comes in: files of every format, dataset_info.json, records; and what is
 * said when they are wrong. */
#include "tests/data_make.h"
#include "tests/unit/gzip_make.h"
#include <sys/resource.h>

/* ---- records ---- */

/* All records of a file as "number@line:column text" lines, or the error. */
static const char *records(const char *path) {
    static char out[4000];
    struct err e = {0};
    struct record r;
    enum shape shape = reader_shape(path, &e);
    struct reader *reader = shape == SHAPE_UNKNOWN ? NULL : reader_open(path, shape, &e);
    int n = 0, found = -1;
    out[0] = 0;
    while (reader && (found = reader_next(reader, &r, &e)) > 0 && n < 3000)
        n += snprintf(out + n, 900, "%lld@%lld:%lld %.*s\n", (long long)r.number, (long long)r.line,
                      (long long)r.column, (int)(r.n < 300 ? r.n : 300), r.text);
    if (found < 0) snprintf(out + n, sizeof out - (size_t)n, "error: %s", e.text);
    reader_close(reader);
    return out;
}

#define READS(name, text, want)                                                                              \
    do {                                                                                                     \
        const char *have_ = records(put(name, text));                                                        \
        CHECK(!strcmp(have_, want), "%s:\n%s\nmust be\n%s", name, have_, want);                              \
    } while (0)

#define FAILS(name, text, where, what)                                                                       \
    do {                                                                                                     \
        const char *have_ = records(put(name, text));                                                        \
        CHECK(strstr(have_, "error: ") && strstr(have_, where) && strstr(have_, what),                       \
              "%s: no \"%s\", \"%s\" in: %s", name, where, what, have_);                                     \
    } while (0)

TEST(json_arrays_and_lines_in_either_extension) {
    static const char array[] = "\xef\xbb\xbf \r\n [ {\"a\":1},\r\n\t{\"b\": \"}]\\\"{\", \"c\":[{}]}\n] \n";
    READS("a.json", array, "1@2:4 {\"a\":1}\n2@3:2 {\"b\": \"}]\\\"{\", \"c\":[{}]}\n");
    READS("a.jsonl", array, "1@2:4 {\"a\":1}\n2@3:2 {\"b\": \"}]\\\"{\", \"c\":[{}]}\n");
    READS("b.jsonl", "{\"a\":1}\r\n\n  {\"b\":2} \t\r\n{\"c\":3}",
          "1@1:1 {\"a\":1}\n2@3:3 {\"b\":2}\n3@4:1 {\"c\":3}\n");
    READS("b.json", "{\"a\":1}\n{\"b\":2}\n", "1@1:1 {\"a\":1}\n2@2:1 {\"b\":2}\n");
    READS("c.json", "[]", "");
    READS("d.json", "[ {\"\xe4\xbd\xa0\":1}, {}]",
          "1@1:3 {\"\xe4\xbd\xa0\":1}\n2@1:12 {}\n"); /* columns count characters */
}

TEST(broken_json_files_say_where) {
    FAILS("a.json", "", ":1:1:", "the file is empty");
    FAILS("a.json", "\xef\xbb\xbf\n ", ":2:2:", "the file is empty");
    FAILS("a.json", "hello", ":1:1:", "begins with [");
    FAILS("a.json", "[{\"a\":1},\n]", ":2:1:", "comma");
    FAILS("a.json", "[{\"a\":1}\n{\"a\":1}]", ":2:1:", "',' or ']' is expected behind record 1");
    FAILS("a.json", "[{\"a\":1}\n", ":2:1:", "the ] of its list is missing");
    FAILS("a.json", "[{\"a\":1}] x", ":1:11:", "behind the ]");
    FAILS("a.json", "[{\"a\":1}, 5]", ":1:11:", "record 2 must be an object");
    FAILS("a.json", "[,{\"a\":1}]", ":1:2:", "record 1 must be an object");
    FAILS("a.json", "[{\"a\":1,\n{\"b\":2}\n", ":2:1:", "record 1, from line 1: a key in double quotes");
    FAILS("a.json", "[{\"a\":\"x},\n{\"b\":2}]", ":1:11:", "record 1, from line 1: a control character");
    FAILS("a.json", "[{\"a\":\"\xe4\xbd\xa0\"", ":1:10:", "the file ends inside record 1");
    FAILS("a.jsonl", "{\"a\":1}\n[1]\n", ":2:1:", "record 2 must be an object");
    FAILS("a.json", "\xff\xfe[\0", "", "UTF-16");
    FAILS("a.parquet", "PAR1", "a.parquet",
          "File extension must be txt, csv, json or jsonl. Parquet and arrow");
    FAILS("a.xlsx", "PK", "a.xlsx", "File extension must be txt, csv, json or jsonl.");
    CHECK(strstr(records("/nonexistent/a.json"), "cannot open /nonexistent/a.json"), "%s",
          records("/nonexistent/a.json"));
}

TEST(text_files_give_a_record_a_line) {
    READS("a.txt",
          "one\ntwo\r\nthree\r\rfive \"q\"\xe2\x80\xa8"
          "5\x0c"
          "5\n\n",
          "1@1:1 {\"text\":\"one\"}\n2@2:1 {\"text\":\"two\"}\n3@3:1 {\"text\":\"three\"}\n4@4:1 "
          "{\"text\":\"\"}\n"
          "5@5:1 {\"text\":\"five \\\"q\\\"\xe2\x80\xa8"
          "5\\f5\"}\n6@6:1 {\"text\":\"\"}\n");
    READS("a.txt", "no line end", "1@1:1 {\"text\":\"no line end\"}\n");
    READS("a.txt", "", "");
    FAILS("a.txt", "ok\nab\xc4\xe3", ":2:3:", "0xC4 is not UTF-8; if the file is GBK");
    const char *have = records(put_bytes("a.txt", "a\0b", 3));
    CHECK(strstr(have, "NUL byte"), "%s", have);
}

TEST(csv_files) {
    READS("a.csv",
          "\xef\xbb\xbf"
          "q,\"a,b\",n\r\n1,\"x \"\"y\"\",\nz\",\n\n,\"\",\"w\"\r\nlast",
          "1@2:1 {\"q\":\"1\",\"a,b\":\"x \\\"y\\\",\\nz\",\"n\":null}\n2@5:1 "
          "{\"q\":null,\"a,b\":null,\"n\":\"w\"}\n"
          "3@6:1 {\"q\":\"last\",\"a,b\":null,\"n\":null}\n");
    READS("b.csv", "q,,a\n1,2,3\n",
          "1@2:1 {\"q\":\"1\",\"a\":\"3\"}\n"); /* a nameless column is passed over */
    READS("b.csv", "q\r1\r2\r", "1@1:3 {\"q\":\"1\"}\n2@1:5 {\"q\":\"2\"}\n");
    FAILS("a.csv", "", "a.csv", "header row is needed");
    FAILS("a.csv", "q,a,q\n", ":1:1:", "the column \"q\" twice");
    FAILS("a.csv", "q,a\n1,2,3\n", ":2:1:", "record 1 has 3 cells, but the header has 2");
    FAILS("a.csv", "q,a\n1,\"2\n3\n", ":2:1:", "never closed");
    FAILS("a.csv", "q,a\n1,\"2\"x\n", ":2:6:", "behind a closing quote");
    FAILS("a.csv", "q,a\n1,\xb0\xa1\n", ":2:3:", "not UTF-8");
}

/* Any file may be packed, under its own name or with .gz behind it. */
TEST(packed_files) {
    static const struct { const char *name, *text, *want; } k[] = {
        {"a.json", "[{\"a\":1},\n {\"b\":2}]", "1@1:2 {\"a\":1}\n2@2:2 {\"b\":2}\n"},
        {"a.jsonl.gz", "{\"a\":1}\n{\"b\":2}\n", "1@1:1 {\"a\":1}\n2@2:1 {\"b\":2}\n"},
        {"a.csv.gz", "q\n1\n", "1@2:1 {\"q\":\"1\"}\n"},
        {"a.txt.gz", "one\ntwo", "1@1:1 {\"text\":\"one\"}\n2@2:1 {\"text\":\"two\"}\n"},
    };
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) {
        struct str file = {0};
        add_member(&file, k[i].text, strlen(k[i].text));
        const char *have = records(put_bytes(k[i].name, file.p, file.n));
        CHECK(!strcmp(have, k[i].want), "%s:\n%s\nmust be\n%s", k[i].name, have, k[i].want);
        have = records(put_bytes(k[i].name, file.p, file.n - 1));
        CHECK(strstr(have, "error: ") && strstr(have, "ends in the middle"), "%s: %s", k[i].name, have);
        str_free(&file);
    }
    FAILS("a.json.gz", "{\"a\":1}\n[", ":2:1:", "record 2 must be an object"); /* .gz that is plain */
}

/* A gigabyte of one record, and of nothing but white space, in a megabyte. */
TEST(bombs_take_no_memory) {
    static const struct { const char *head, *says; char fill; } k[] = {{"[{\"a\":\"", "record 1 is larger than 16 MiB", 'x'}, {"", "the file is empty", ' '}};
    static char block[1 << 20];
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    for (int i = 0; i < 2; i++) {
        struct str file = {0}, member = {0};
        memset(block, k[i].fill, sizeof block);
        add_member(&file, k[i].head, strlen(k[i].head));
        add_member(&member, block, sizeof block);
        for (int n = 0; n < 1 << 10; n++) str_add(&file, member.p, member.n);
        const char *have = records(put_bytes("bomb.json.gz", file.p, file.n));
        CHECK(strstr(have, k[i].says), "%s", have);
        str_free(&file), str_free(&member);
    }
    getrusage(RUSAGE_SELF, &after);
    long grown = after.ru_maxrss - before.ru_maxrss;
    CHECK(grown < 100 << 10, "%ld KiB more", grown); /* twice a record, as the buffer grows */
}

TEST(records_may_straddle_any_buffer_and_be_16_mib_long) {
    enum { RECORDS = 9, BYTES = 700001 };
    struct str s = {0};
    str_putc(&s, '[');
    for (int k = 0; k < RECORDS; k++) {
        str_printf(&s, "%s{\"k\":%d,\"x\":\"", k ? ",\n" : "", k);
        for (int i = 0; i < BYTES; i++) str_putc(&s, i % 5 ? 'x' : '{');
        str_puts(&s, "\"}");
    }
    str_putc(&s, ']');
    const char *path = put_bytes("big.json", s.p, s.n);
    struct err e = {0};
    struct record r;
    struct reader *reader = reader_open(path, SHAPE_LINES, &e);
    for (int k = 0; k < RECORDS; k++) {
        REQUIRE(reader_next(reader, &r, &e) == 1, "record %d: %s", k, e.text);
        CHECK(r.n == BYTES + 14 && r.text[5] == '0' + k && r.text[r.n - 1] == '}', "record %d: %zu bytes", k,
              r.n);
    }
    CHECK(reader_next(reader, &r, &e) == 0 && !e.code, "%s", e.text);
    reader_close(reader);

    str_clear(&s);
    str_puts(&s, "{\"a\":\"");
    for (int i = 0; i < RECORD_MAX_BYTES; i++) str_putc(&s, 'x');
    str_puts(&s, "\"}\n");
    for (int k = 0; k < 2; k++) { /* as a line, as an element, as a text */
        if (k) s.p[0] = '[', s.p[1] = '{', s.p[2] = '"', s.p[3] = '"', s.p[4] = ':';
        const char *have = records(put_bytes(k ? "big.json" : "big.jsonl", s.p, s.n));
        CHECK(strstr(have, "record 1 is larger than 16 MiB"), "%.200s", have);
    }
    CHECK(strstr(records(put_bytes("big.txt", s.p, s.n)), "larger than 16 MiB"), "text");
    str_free(&s);
}

/* ---- dataset_info.json ---- */

static void info(const char *text) {
    put("dataset_info.json", text);
}

static const char plain[] = "[{\"instruction\":\"ab\",\"input\":\"\",\"output\":\"c\"},"
                            "{\"instruction\":\"d\",\"input\":\"e\",\"output\":\"f\"}]";

TEST(names_and_files) {
    struct loaded x;
    put("plain.json", plain);
    info("{\"one\":{\"file_name\":\"plain.json\"},\"two\":{\"file_name\":\"plain.json\",\"hf_hub_url\":\"x/"
         "y\",\"subset\":\"s\","
         "\"split\":\"train\",\"folder\":\"f\"}}");
    struct data_config c = settings(" \"one\" , two,");
    load(&c, &x);
    REQUIRE(!x.rc, "%s", x.e.text);
    CHECK(x.r.records == 4 && data_count(x.train) == 4 && !x.eval, "%lld records", (long long)x.r.records);
    shows(&x, 0, "(_ab|)_c._\n");
    shows(&x, 3, "(_d\ne|)_f._\n");
    CHECK(!strstr(x.log, "warning"), "%s", x.log);
    unload(&x);
    c = settings("plain.json"); /* in dataset_dir, without an entry */
    load(&c, &x);
    CHECK(!x.rc && x.r.records == 2, "%s", x.e.text);
    CHECK(strstr(x.log, "read as alpaca records") && strstr(x.log, "\"instruction\""), "log: %s", x.log);
    unload(&x);
}

TEST(wrong_names) {
    put("plain.json", plain);
    info("{\"alpaca_en\":{\"hf_hub_url\":\"x\"},\"identity\":{\"file_name\":\"plain.json\"}}");
    struct data_config c = settings("alpca_en");
    load_fails(&c, "typo", 2, "Undefined dataset alpca_en in dataset_info.json.", "Did you mean alpaca_en?");
    c.dataset = "zzzzzzzzzz";
    load_fails(&c, "nothing like it", 2, "Undefined dataset zzzzzzzzzz", "\"alpaca_en\", \"identity\"");
    c.dataset = "alpaca_en";
    load_fails(&c, "hub", 1,
               "hub data sets are not downloaded; put the file beside dataset_info.json and add file_name");
    c.dataset = "data/nothing.json";
    load_fails(&c, "no file", 2, "File data/nothing.json not found", scratch_dir());
    c.dataset = " , ";
    load_fails(&c, "none", 1, "Please specify dataset");
    c = settings("identity"), c.dataset_dir = "/nonexistent/data";
    load_fails(&c, "no info", 2, "Cannot open /nonexistent/data/dataset_info.json", "set dataset_dir");
    info("[]");
    c = settings("identity");
    load_fails(&c, "a list", 1, "must be an object");
    info("{\"a\":1,}");
    load_fails(&c, "broken", 1, "dataset_info.json:1:8:");
}

TEST(courtesy_name_of_the_guide) {
    struct loaded x;
    info("{\"alpaca_en\":{\"hf_hub_url\":\"x\"}}");
    char *path = text_copy(put("alpaca_data_en_52k.json", plain), 300);
    struct data_config c = settings("alpaca_en");
    load(&c, &x);
    CHECK(!x.rc && x.r.records == 2, "%s", x.e.text);
    unload(&x);
    unlink(path);
    sys_free(path);
}

TEST(entries_are_read_strictly) {
    static const struct {
        const char *entry, *piece[2];
    } wrong[] = {
        {"{\"file_name\":\"plain.json\",\"format\":\"sharegpt\"}",
         {"unknown key \"format\"", "did you mean \"formatting\"?"}},
        {"{\"file_name\":\"plain.json\",\"colums\":{}}", {"unknown key \"colums\"", "\"columns\""}},
        {"{\"file_name\":\"plain.json\",\"columns\":{\"promt\":\"x\"}}",
         {"columns: unknown key \"promt\"", "\"prompt\""}},
        {"{\"file_name\":\"plain.json\",\"tags\":{\"role\":\"x\"}}",
         {"tags: unknown key \"role\"", "\"role_tag\""}},
        {"{\"file_name\":\"plain.json\",\"formatting\":\"shargpt\"}",
         {"unknown formatting \"shargpt\"", "\"sharegpt\""}},
        {"{\"file_name\":\"plain.json\",\"formatting\":\"xml\"}",
         {"unknown formatting \"xml\"", "alpaca, sharegpt"}},
        {"{\"file_name\":\"plain.json\",\"ranking\":true}",
         {"not applicable in the current training stage", "one"}},
        {"{\"file_name\":\"plain.json\",\"columns\":{\"prompt\":\"x\",\"kto_tag\":\"y\"}}",
         {"not applicable", "KTO"}},
        {"{\"file_name\":\"plain.json\",\"columns\":{\"prompt\":\"x\",\"images\":\"y\"}}",
         {"\"images\"", "text only"}},
        {"{\"file_name\":\"plain.json\",\"columns\":{\"response\":\"x\"}}",
         {"neither \"prompt\" nor \"query\"", "one"}},
        {"{\"file_name\":\"plain.json\",\"columns\":5}", {"columns must be an object", ""}},
        {"{\"file_name\":\"plain.json\",\"num_samples\":0}", {"num_samples", "from 1"}},
        {"{\"file_name\":\"plain.json\",\"formatting\":\"sharegpt\",\"tags\":{\"user_tag\":5}}",
         {"tags: \"user_tag\" must be a text", "number"}},
        {"{\"file_name\":5}", {"file_name", "must be a text"}},
        {"{\"formatting\":\"alpaca\"}", {"has no file_name", "one"}},
        {"{\"file_name\":\"none.json\"}", {"none.json not found", "File "}},
        {"{\"file_name\":\"/etc/passwd\"}", {"leaves dataset_dir", "--allow_outside"}},
        {"{\"file_name\":\"sub/../../plain.json\"}", {"leaves dataset_dir", "--allow_outside"}},
        {"{\"file_name\":\"plain.arrow\"}", {"not found", ""}},
        {"\"plain.json\"", {"must be an object", ""}},
    };
    put("plain.json", plain);
    for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++) {
        char text[400];
        snprintf(text, sizeof text, "{\"one\":%s}", wrong[k].entry);
        info(text);
        struct data_config c = settings("one");
        load_fails(&c, wrong[k].entry, 2, wrong[k].piece[0], wrong[k].piece[1]);
    }
}

TEST(outside_and_directories) {
    struct loaded x;
    char path[300], text[500];
    struct err e = {0};
    put("plain.json", plain);
    snprintf(path, sizeof path, "%s/parts/..data", scratch_dir());
    REQUIRE(!dir_make(path, &e), "%s", e.text);
    put("parts/..data/b.jsonl", "{\"instruction\":\"b\",\"output\":\"b\"}\n");
    put("parts/..data/a.jsonl", "{\"instruction\":\"a\",\"output\":\"a\",\"input\":null}\n");
    put("parts/..data/.hidden", "x");
    snprintf(text, sizeof text,
             "{\"one\":{\"file_name\":\"parts/..data\"},\"abs\":{\"file_name\":\"%s/plain.json\"}}",
             scratch_dir());
    info(text);
    struct data_config c = settings("one,abs");
    c.allow_outside = 1;
    load(&c, &x);
    CHECK(!x.rc && x.r.records == 4, "%s", x.e.text);
    shows(&x, 0, "(_a|)_a._\n"); /* files in the order of their names */
    unload(&x);
    put("parts/..data/c.csv", "instruction,output\nc,c\n");
    load_fails(&c, "mixed", 1, "File types should be identical");
}

TEST(checksums_only_warn) {
    static const struct {
        const char *sha1, *warning;
        int compat_new;
    } k[] = {
        {"", "missing SHA-1", 0},
        {"", NULL, 1},
        {",\"file_sha1\":\"0000000000000000000000000000000000000000\"", "mismatched SHA-1 hash value at ", 0},
        {",\"file_sha1\":\"2ec270a4ecaf4e6d2d05480f6ee4358d36de7322\"", NULL, 0}, /* of the text below */
    };
    put("sha.json", "{\"instruction\":\"abcdefg\",\"input\":\"\",\"output\":\"h\"}");
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) {
        struct loaded x;
        char text[300];
        snprintf(text, sizeof text, "{\"one\":{\"file_name\":\"sha.json\"%s}}", k[i].sha1);
        info(text);
        struct data_config c = settings("one");
        c.compat_new = k[i].compat_new;
        load(&c, &x);
        CHECK(!x.rc, "%s", x.e.text);
        int warned = strstr(x.log, "Checksum failed") != NULL;
        CHECK(k[i].warning ? warned && strstr(x.log, k[i].warning) : !warned, "case %zu: %s", i, x.log);
        unload(&x);
    }
}

/* ---- formats and columns ---- */

TEST(formats_are_guessed_from_the_first_record) {
    static const struct {
        const char *name, *text, *says, *first;
    } k[] = {
        {"g1.jsonl",
         "{\"conversations\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":\"gpt\",\"value\":\"b\"}],"
         "\"system\":\"s\"}",
         "sharegpt (from and value)", "(_s_a|)_b._\n"},
        {"g2.jsonl",
         "{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"a\"},"
         "{\"role\":\"assistant\",\"content\":\"b\"}]}",
         "sharegpt (role and content)", "(_s_a|)_b._\n"},
        {"g3.jsonl", "{\"instruction\":\"a\",\"output\":\"b\",\"history\":[[\"c\",\"d\"]],\"system\":\"s\"}",
         "alpaca", "(_s_c|)_d._\n(_a|)_b._\n"},
        {"g4.csv", "instruction,output\na,b\n", "alpaca", "(_a|)_b._\n"},
        {"g5.jsonl", "{\"input_ids\":[262,263,260],\"labels\":[-100,263,260]}", "ids", "(a)b."},
    };
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) {
        struct loaded x;
        struct data_config c = settings(put(k[i].name, k[i].text));
        load(&c, &x);
        CHECK(!x.rc && strstr(x.log, k[i].says), "%s: %s%s", k[i].name, x.e.text, x.log);
        shows(&x, 0, k[i].first);
        unload(&x);
    }
    struct data_config c = settings(put("g6.jsonl", "{\"question\":\"a\",\"answer\":\"b\"}"));
    load_fails(&c, "unknown keys", 2, "cannot be told", "\"question\", \"answer\"");
    c.dataset = put("g7.txt", "hello\n");
    load_fails(&c, "text in sft", 1, "--stage pt");
    c.dataset = put("g8.json", "[]");
    load_fails(&c, "no record", 1, "holds no record");
}

TEST(pretraining_text) {
    struct loaded x;
    struct data_config c = settings(put("pt.txt", "abc\n\ndefgh\n"));
    c.stage = STAGE_PT, c.packing = 0, c.cutoff_len = 5;
    load(&c, &x);
    CHECK(!x.rc && x.r.cut_record == 1 && x.r.sequences == 3, "%s", x.e.text);
    shows(&x, 0, "_abc.");
    shows(&x, 1, ".");
    shows(&x, 2, "_defg");
    unload(&x);
    info("{\"pages\":{\"file_name\":\"pt.txt\"}}"); /* prompt = text is understood */
    c = settings("pages"), c.stage = STAGE_PT, c.cutoff_len = 4;
    load(&c, &x);
    CHECK(!x.rc && x.r.sequences == 3 && x.r.remainder_tokens == 1, "%s %lld", x.e.text,
          (long long)x.r.remainder_tokens);
    shows(&x, 1, ".._d");
    unload(&x);
}

TEST(columns_are_mapped_and_missed) {
    struct loaded x;
    put("m.json",
        "[{\"question\":\"a\",\"answer\":\"b\",\"instruction\":\"z\",\"output\":\"z\"},{\"answer\":\"c\"}]");
    info("{\"m\":{\"file_name\":\"m.json\",\"columns\":{\"prompt\":\"question\",\"response\":\"answer\","
         "\"history\":\"past\"}}}");
    struct data_config c = settings("m");
    load(&c, &x);
    CHECK(!x.rc, "%s", x.e.text);
    shows(&x, 0, "(_a|)_b._\n");
    shows(&x, 1, "(|)_c._\n"); /* absent here, present elsewhere: null */
    CHECK(strstr(x.log, "no record has the key \"past\" (column history of data set m)"), "%s", x.log);
    unload(&x);
    info("{\"m\":{\"file_name\":\"m.json\",\"columns\":{\"prompt\":\"question\",\"response\":\"reply\"}}}");
    load_fails(&c, "no response", 3, "no record has the key \"reply\" (column response of data set m)",
               "m.json", "\"question\", \"answer\", \"instruction\", \"output\"");
    info("{\"m\":{\"file_name\":\"m.json\",\"columns\":{\"prompt\":\"question\"}}}");
    load_fails(&c, "none mapped", 1, "its columns name no \"response\"");
    info("{\"m\":{\"file_name\":\"m.json\",\"formatting\":\"sharegpt\"}}");
    load_fails(&c, "no messages", 2, "no record has the key \"conversations\"", "\"question\"");
}

/* The first batch tells enough: what comes behind it, here broken, is not read. */
TEST(useless_data_are_refused_early) {
    struct str s = {0};
    for (int k = 0; k < 1500; k++) str_puts(&s, "{\"instruction\":\"a\"}\n");
    str_puts(&s, "{broken\n");
    struct data_config c = settings(put("useless.jsonl", s.p));
    load_fails(&c, "no answers", 2, "no record has the key \"output\"", "\"instruction\"");
    str_free(&s);
}

TEST(long_lists_of_keys_are_shortened) {
    struct str s = {0};
    for (int k = 0; k < 60; k++) str_printf(&s, "%s\"key%d\":1", k ? "," : "{", k);
    str_putc(&s, '}');
    struct data_config c = settings(put("keys.jsonl", s.p));
    load_fails(&c, "many keys", 2, "\"key0\", \"key1\"", "\"key33\"...;");
    c.dataset = put("keys.jsonl", "{}");
    load_fails(&c, "none", 1, "which has no keys");
    str_free(&s);
}

TEST(tags) {
    struct loaded x;
    put("t.json", "[{\"dialog\":[{\"role\":\"sys\",\"content\":\"s\"},{\"role\":\"q\",\"content\":\"a\"},{"
                  "\"role\":\"r\","
                  "\"content\":\"b\"}]}]");
    info("{\"t\":{\"file_name\":\"t.json\",\"formatting\":\"sharegpt\",\"columns\":{\"messages\":\"dialog\"},"
         "\"tags\":{\"role_tag\":"
         "\"role\",\"content_tag\":\"content\",\"user_tag\":\"q\",\"assistant_tag\":\"r\",\"system_tag\":"
         "\"sys\"}}}");
    struct data_config c = settings("t");
    for (c.compat_new = 0; c.compat_new < 2; c.compat_new++) {
        load(&c, &x);
        CHECK(!x.rc, "%s", x.e.text);
        shows(&x, 0, c.compat_new ? "(_s_a|)_b._\n" : "(_s_a|)_b.");
        unload(&x);
    }
    /* before v0.5.0 the two keys stood among the columns */
    put("t.json",
        "[{\"conversations\":[{\"role\":\"human\",\"text\":\"a\"},{\"role\":\"gpt\",\"text\":\"b\"}]}]");
    info("{\"t\":{\"file_name\":\"t.json\",\"formatting\":\"sharegpt\",\"columns\":{\"messages\":"
         "\"conversations\",\"role\":\"role\","
         "\"content\":\"text\"}}}");
    c.compat_new = 1;
    load(&c, &x);
    CHECK(!x.rc, "%s", x.e.text);
    shows(&x, 0, "(_a|)_b._\n");
    unload(&x);
    info("{\"t\":{\"file_name\":\"t.json\",\"formatting\":\"sharegpt\"}}");
    load_fails(&c, "wrong tags", 3, "t.json:1:2: record 1: message 1 has no \"from\"", "\"role\", \"text\"",
               "role_tag");
}

/* ---- records that are wrong ---- */

TEST(records_of_the_wrong_kind_are_errors_with_their_place) {
    static const struct {
        const char *record, *where, *what;
    } k[] = {
        {"{\"instruction\":\"a\",\"output\":5}",
         ":3:1: record 2:", "\"output\" must be a text, it is a number"},
        {"{\"instruction\":[\"a\"],\"output\":\"b\"}",
         ":3:1: record 2:", "\"instruction\" must be a text, it is a list"},
        {"{\"instruction\":\"a\",\"output\":\"b\",\"history\":[\"c\"]}",
         ":3:1: record 2:", "[question, answer] pairs"},
        {"{\"instruction\":\"a\",\"output\":\"b\",\"history\":[[\"c\",1]]}",
         ":3:1: record 2:", "pairs of texts, it is a number"},
        {"{\"instruction\":\"a\",\"output\":\"b\",\"system\":true}",
         ":3:1: record 2:", "\"system\" must be a text"},
        {"{\"instruction\":\"a\",\"output\":}", ":3:29: record 2:", "value is expected"},
        {"{\"instruction\":\"a\"", ":3:19: record 2:", "holds one record per line"},
        {"{\"output\":\"a\",\"output\":\"b\"}", ":3:15: record 2:", "twice"},
        {"{\"output\":\"\xff\"}", ":3:12: record 2:", "UTF-8"},
    };
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) {
        char text[400];
        snprintf(text, sizeof text, "{\"instruction\":\"a\",\"output\":\"b\",\"input\":\"c\"}\n\n%s\n",
                 k[i].record);
        struct data_config c = settings(put("w.jsonl", text));
        load_fails(&c, k[i].record, 3, "w.jsonl", k[i].where, k[i].what);
    }
    struct data_config list = settings(put("w.json", "[{\"instruction\":\"a\",\n{\"instruction\":\"b\"}]"));
    load_fails(&list, "brace missing in a list", 2, "w.json:2:1: record 1:", "a key in double quotes");
}

TEST(odd_records_are_dropped_and_counted) {
    struct loaded x;
    struct data_config c = settings(
        put("odd.jsonl",
            "{\"conversations\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":\"gpt\",\"value\":\"b\"}]}\n"
            "{\"conversations\":[{\"from\":\"human\",\"value\":null},{\"from\":\"gpt\",\"value\":\"b\"}]}\n"
            "{\"conversations\":null}\n"
            "{\"conversations\":[{\"from\":\"gpt\",\"value\":\"b\"}]}\n"
            "{\"conversations\":[{\"from\":\"human\",\"value\":\"a\"}]}\n"
            "{\"conversations\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":null,\"value\":\"b\"}]}\n"
            "{\"conversations\":[]}\n"
            "{\"conversations\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":\"function_call\",\"value\":"
            "\"{\"}]}\n"));
    load(&c, &x);
    CHECK(!x.rc, "%s", x.e.text);
    const struct data_report *r = &x.r;
    CHECK(r->records == 8 && r->sequences == 1, "%lld records", (long long)r->records);
    CHECK(r->dropped_invalid == 5 && r->dropped_empty == 2, "%lld, %lld", (long long)r->dropped_invalid,
          (long long)r->dropped_empty);
    CHECK(r->invalid_role == 2 && r->invalid_count == 2, "%lld, %lld", (long long)r->invalid_role,
          (long long)r->invalid_count);
    CHECK(strstr(x.log, "dropped 2 of 8 records for a role out of turn; the first:") &&
              strstr(x.log,
                     "odd.jsonl:4: record 4: Invalid role tag \"gpt\" in message 1, \"human\" is expected"),
          "%s", x.log);
    CHECK(strstr(x.log, "odd.jsonl:2: record 2: null as the text of a message"), "%s", x.log);
    unload(&x);
    c.compat_new = 0; /* an odd last message is cut off; what is empty then vanishes like the empty one */
    load(&c, &x);
    CHECK(!x.rc && x.r.records == 5 && x.r.vanished == 3, "%s %lld records, %lld vanished", x.e.text,
          (long long)x.r.records, (long long)x.r.vanished);
    CHECK(x.r.sequences == 2, "%lld sequences",
          (long long)x.r.sequences); /* a broken call becomes an empty one */
    unload(&x);
    c.dataset = put("odd.jsonl",
                    "{\"instruction\":\"a\",\"output\":null}\n{\"instruction\":\"a\",\"output\":[\"b\"]}");
    c.compat_new = 1;
    load_fails(&c, "all dropped", 2, "Empty dataset!", "odd.jsonl:1: record 1: no answer");
    c.compat_new = 0; /* a list of one answer is an answer there */
    load(&c, &x);
    CHECK(!x.rc && x.r.sequences == 1 && x.r.dropped_invalid == 1, "%s", x.e.text);
    unload(&x);
}

TEST(ids_are_used_as_they_are) {
    struct loaded x;
    struct data_config c =
        settings(put("ids.jsonl", "{\"input_ids\":[1,2,3,4]}\n{\"input_ids\":[5,6],\"labels\":[-100,6]}\n"
                                  "{\"input_ids\":[]}\n{\"input_ids\":[7],\"labels\":null}\n"));
    c.cutoff_len = 3;
    load(&c, &x);
    REQUIRE(!x.rc, "%s", x.e.text);
    CHECK(x.r.sequences == 3 && x.r.dropped_empty == 1 && x.r.cut_record == 1, "%lld",
          (long long)x.r.sequences);
    CHECK(x.r.tokens == 6 && x.r.labelled_tokens == 5 && x.r.longest == 3, "%lld", (long long)x.r.tokens);
    struct sequence s;
    data_get(x.train, 1, &s, NULL);
    CHECK(s.n == 2 && s.ids[0] == 5 && s.labels[0] == -100 && s.labels[1] == 6 && !s.positions &&
              !s.documents,
          "%lld", (long long)s.n);
    unload(&x);
    static const struct {
        const char *record, *what;
    } wrong[] = {
        {"{\"input_ids\":[100000]}", "\"input_ids\"[0] is not a token id"},
        {"{\"input_ids\":[1,-1]}", "\"input_ids\"[1]"},
        {"{\"input_ids\":[-100]}", "\"input_ids\"[0]"},
        {"{\"input_ids\":[1.5]}", "\"input_ids\"[0]"},
        {"{\"input_ids\":[\"1\"]}", "\"input_ids\"[0]"},
        {"{\"input_ids\":[1],\"labels\":[1,2]}", "2 labels for 1 input_ids"},
        {"{\"input_ids\":[1],\"labels\":[-99]}", "\"labels\"[0] is not a token id (0 to"},
        {"{\"input_ids\":5}", "must be a list"},
        {"{\"input_ids\":[1],\"labels\":5}", "\"labels\" must be a list"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        c.dataset = put("ids.jsonl", wrong[i].record);
        load_fails(&c, wrong[i].record, 2, "ids.jsonl:1:1: record 1", wrong[i].what);
    }
    info("{\"i\":{\"file_name\":\"ids.jsonl\",\"formatting\":\"ids\"}}");
    put("ids.jsonl", "{\"input_ids\":[1,2]}");
    c.dataset = "i";
    load(&c, &x);
    CHECK(!x.rc && x.r.tokens == 2, "%s", x.e.text);
    unload(&x);
}

TEST_MAIN
