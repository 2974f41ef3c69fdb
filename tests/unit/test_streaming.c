/* tests/unit/test_streaming.c - sequences as they come: the order of the shuffle against numpy's, passes without end,
 * skipping, validation records, packing, and what can be wrong. */
#include "tests/data_make.h"
#include <errno.h>

/* A file of n records whose tokens are their number k, 1 + k % 3 times. */
static const char *numbers(const char *name, int n) {
    struct str s = {0};
    for (int k = 0; k < n; k++) {
        str_puts(&s, "{\"input_ids\":[");
        for (int i = 0; i <= k % 3; i++) str_printf(&s, i ? ",%d" : "%d", k % 29);
        str_printf(&s, "],\"labels\":[");
        for (int i = 0; i <= k % 3; i++) str_printf(&s, i ? ",%d" : "%d", k % 29);
        str_puts(&s, "]}\n");
    }
    const char *path = put_bytes(name, s.p, s.n);
    str_free(&s);
    return path;
}

struct flow {
    struct data_stream *s;
    struct dataset *first, *eval;
    struct data_report r;
    struct err e;
};
static void flow_open(struct flow *f, const struct data_config *c) {
    *f = (struct flow){0};
    log_quiet = 1;
    f->s = data_stream_open(c, small_tok(), &f->first, &f->eval, &f->r, &f->e);
}
static void flow_close(struct flow *f) {
    data_free(f->first), data_free(f->eval), data_stream_close(f->s);
}

/* The first ids of the next n sequences, "|" where a pass begins. */
static const char *next(struct flow *f, int64_t n, int64_t at_once) {
    static char out[4][4000];
    static int turn;
    char *text = out[turn = (turn + 1) % 4];
    size_t length = 0;
    int64_t pass = -1;
    *text = 0;
    for (int64_t i = 0; i < n; i += at_once) {
        const struct dataset *d;
        if (data_stream_take(f->s, at_once, &d, &f->e)) return snprintf(text, 4000, "error: %s", f->e.text), text;
        for (int64_t k = 0; k < data_count(d); k++) {
            struct sequence q;
            data_get(d, k, &q, NULL);
            if (at_once == 1 && data_stream_pass(f->s) != pass) length += (size_t)snprintf(text + length, 4, "|"), pass = data_stream_pass(f->s);
            length += (size_t)snprintf(text + length, 16, " %d", q.ids[0]);
        }
    }
    return text;
}

static void gives(struct flow *f, int64_t n, int64_t at_once, const char *want) {
    const char *have = next(f, n, at_once);
    CHECK(!strcmp(have, want), "%s\nmust be\n%s", have, want);
}

/* Orders worked out with numpy and the library's loop (IterableDataset.shuffle, set_epoch). */
TEST(the_order_is_that_of_the_library) {
    static const struct { int64_t n, buffer; uint64_t seed; const char *want; } k[] = {
        {12, 4, 42, "| 0 3 2 1 7 5 4 6 8 10 9 11| 2 1 0 4 5 8 7 3 6 10 11 9| 1 4 2 3 7 8 6 9 0 5 10 11"},
        {12, 100, 42, "| 0 7 6 9 11 3 5 2 4 10 1 8| 1 11 7 10 4 2 3 8 5 6 0 9| 2 8 0 7 5 10 6 11 3 9 1 4"},
        {9, 1, 7, "| 0 1 2 3 4 5 6 7 8| 0 1 2 3 4 5 6 7 8| 0 1 2 3 4 5 6 7 8"},
        {9, 0, 7, "| 0 1 2 3 4 5 6 7 8| 0 1 2 3 4 5 6 7 8| 0 1 2 3 4 5 6 7 8"},
    };
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) {
        struct data_config c = settings(numbers("n.jsonl", (int)k[i].n));
        c.buffer_size = k[i].buffer, c.seed = k[i].seed;
        struct flow f;
        flow_open(&f, &c);
        REQUIRE(f.s && !f.eval && data_count(f.first) == k[i].n, "%s", f.e.text);
        gives(&f, 3 * k[i].n, 1, k[i].want);
        flow_close(&f);
    }
}

/* Two sets, of n and m records: 0, 1, .. and 10, 11, .. */
static struct data_config two_sets(int n, int m) {
    struct str s = {0};
    for (int k = 0; k < n + m; k++) {
        if (k == n) put_bytes("one.jsonl", s.p, s.n), str_clear(&s);
        str_printf(&s, "{\"input_ids\":[%d,1]}\n", k < n ? k : 10 + k - n);
    }
    put_bytes("two.jsonl", s.p, s.n);
    str_free(&s);
    return settings("one.jsonl,two.jsonl");
}

/* As datasets' iterable interleaving does it: a set is exhausted with its last record, and a pass may end inside a round. */
TEST(interleaved_in_turns) {
    static const struct { int n, m; enum data_mix mix; int64_t taken; const char *want; } k[] = {
        {3, 5, MIX_UNDER, 11, "| 0 10 1 11 2| 0 10 1 11 2| 0"},      {5, 3, MIX_UNDER, 7, "| 0 10 1 11 2 12| 0"},
        {3, 5, MIX_OVER, 11, "| 0 10 1 11 2 12 0 13 1 14| 0"},       {5, 3, MIX_OVER, 10, "| 0 10 1 11 2 12 3 10 4| 0"},
        {3, 5, MIX_ONCE, 9, "| 0 10 1 11 2 12 13 14| 0"},            {1, 4, MIX_ONCE, 6, "| 0 10 11 12 13| 0"},
        {3, 5, MIX_CONCAT, 9, "| 0 1 2 10 11 12 13 14| 0"},
    };
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) {
        struct data_config c = two_sets(k[i].n, k[i].m);
        struct flow f;
        c.mix = k[i].mix;
        flow_open(&f, &c);
        REQUIRE(f.s, "%s", f.e.text);
        gives(&f, k[i].taken, 1, k[i].want);
        flow_close(&f);
    }
}

/* Drawn sets come in the order in which data_load mixes them, which golden files hold to numpy's. */
TEST(interleaved_by_chance) {
    for (int i = 0; i < 9; i++) {
        struct data_config c = two_sets(4 + i % 2, 7);
        struct loaded whole;
        struct flow f;
        c.mix = (enum data_mix)(MIX_UNDER + i % 3), c.interleave_probs = i < 6 ? "0.3,0.7" : "0.85,0.15", c.seed = (uint64_t)i;
        load(&c, &whole);
        flow_open(&f, &c);
        REQUIRE(f.s && !whole.rc, "%s%s", f.e.text, whole.e.text);
        for (int pass = 0; pass < 2; pass++)
            for (int64_t k = 0; k < data_count(whole.train); k++) {
                const struct dataset *d;
                struct sequence p, q;
                REQUIRE(!data_stream_take(f.s, 1, &d, &f.e), "%s", f.e.text);
                data_get(d, 0, &p, NULL), data_get(whole.train, k, &q, NULL);
                CHECK(p.ids[0] == q.ids[0] && data_stream_pass(f.s) == pass, "case %d, pass %d, %lld: %d, must be %d", i, pass, (long long)k, p.ids[0], q.ids[0]);
            }
        flow_close(&f), unload(&whole);
    }
}

/* Records that are kept for evaluation are the first ones of the mixture, and never trained. */
TEST(validation_of_interleaved_sets) {
    struct data_config c = two_sets(3, 5);
    struct flow f;
    static const int kept[] = {0, 10, 1};
    c.mix = MIX_ONCE, c.val_size = 3;
    flow_open(&f, &c);
    REQUIRE(f.s && f.eval && data_count(f.eval) == 3, "%s", f.e.text);
    for (int64_t k = 0; k < 3; k++) {
        struct sequence q;
        data_get(f.eval, k, &q, NULL);
        CHECK(q.ids[0] == kept[k], "%lld: %d", (long long)k, q.ids[0]);
    }
    gives(&f, 10, 1, "| 11 2 12 13 14| 11 2 12 13 14");
    flow_close(&f);
}

/* Draws are made a thousand at a time: 2,500 records are more than two such batches, and three groups. */
TEST(long_files) {
    struct data_config c = settings(numbers("long.jsonl", 2500));
    struct flow f;
    c.buffer_size = 8, c.seed = 3;
    flow_open(&f, &c);
    REQUIRE(f.s, "%s", f.e.text);
    CHECK(data_count(f.first) == 1000, "%lld looked at", (long long)data_count(f.first));
    const int begin[] = {6, 0, 1, 10, 11, 8}, middle[] = {1205, 1203, 1204, 1201, 1209, 1202}, end[] = {2499, 2497, 2495, 2472, 2488, 2490};
    char want[3][100], *p;
    for (int k = 0; k < 3; k++) {
        p = want[k];
        for (int i = 0; i < 6; i++) p += sprintf(p, " %d", (k == 0 ? begin : k == 1 ? middle : end)[i] % 29);
    }
    gives(&f, 6, 6, want[0]);
    CHECK(!data_stream_skip(f.s, 1194, &f.e), "%s", f.e.text);
    gives(&f, 6, 3, want[1]);
    CHECK(!data_stream_skip(f.s, 2494 - 1206, &f.e), "%s", f.e.text);
    gives(&f, 6, 2, want[2]);
    flow_close(&f);
}

TEST(skipping_leads_to_where_taking_does) {
    struct data_config c = settings(numbers("skip.jsonl", 50));
    c.buffer_size = 7;
    for (int64_t at = 0; at < 160; at += 13) {
        struct flow a, b;
        flow_open(&a, &c), flow_open(&b, &c);
        REQUIRE(a.s && b.s && !data_stream_skip(b.s, at, &b.e), "%s", b.e.text);
        if (at) next(&a, at, 1);
        const char *want = next(&a, 20, 20);
        gives(&b, 20, 20, want);
        flow_close(&a), flow_close(&b);
    }
}

TEST(the_first_records_are_kept_out_for_evaluation) {
    struct data_config c = settings(numbers("val.jsonl", 9));
    struct flow f;
    c.val_size = 3;
    flow_open(&f, &c);
    REQUIRE(f.s && f.eval, "%s", f.e.text);
    CHECK(data_count(f.eval) == 3, "%lld", (long long)data_count(f.eval));
    gives(&f, 12, 1, "| 3 4 5 6 7 8| 3 4 5 6 7 8");
    flow_close(&f);
    c.val_size = 9;
    flow_open(&f, &c);
    CHECK(!f.s && f.e.code == ERR_INPUT && strstr(f.e.text, "takes all"), "%s", f.e.text);
    flow_close(&f);
    char names[900];
    snprintf(names, sizeof names, "%s", c.dataset);
    c.val_size = 0, c.eval_dataset = numbers("other.jsonl", 4);
    flow_open(&f, &c);
    REQUIRE(f.s && f.eval && data_count(f.eval) == 4, "%s", f.e.text);
    flow_close(&f);
}

TEST(several_files_and_packing) {
    struct data_config c = settings(NULL);
    struct flow f;
    char both[900];
    snprintf(both, sizeof both, "%s,%s", numbers("x.jsonl", 3), numbers("y.jsonl", 2));
    c.dataset = both;
    flow_open(&f, &c);
    REQUIRE(f.s, "%s", f.e.text);
    gives(&f, 7, 1, "| 0 1 2 0 1| 0 1");
    flow_close(&f);
    /* a bin of up to 5 tokens out of each group of 3 records (1 + 2 + 3): 2 and 1, with 3 alone before them; then 1 + 2 */
    c.cutoff_len = 6, c.packing = 1, c.group_size = 3;
    flow_open(&f, &c);
    REQUIRE(f.s, "%s", f.e.text);
    const struct dataset *d;
    REQUIRE(!data_stream_take(f.s, 3, &d, &f.e), "%s", f.e.text);
    for (int i = 0; i < 3; i++) {
        struct sequence q;
        data_get(d, i, &q, NULL);
        CHECK(q.n == 6 && q.positions && q.documents, "block %d has %lld", i, (long long)q.n);
    }
    flow_close(&f);
    /* cut and joined: 6 tokens of the first file and 3 of the second make 4 + 2 lost, then nothing */
    c.cutoff_len = 4, c.packing = -1, c.sft_packing = 1, c.compat_new = 0;
    flow_open(&f, &c);
    REQUIRE(f.s, "%s", f.e.text);
    gives(&f, 3, 1, "| 0| 0| 0");
    flow_close(&f);
}

TEST(nothing_is_longer_than_a_step_has_room_for) {
    struct data_config c = settings(put("old.jsonl", "{\"instruction\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\",\"output\":\"bbbbbbbbbbbbbbbbbbb\"}\n"));
    struct flow f;
    const struct dataset *d;
    c.cutoff_len = 10, c.compat_new = 0;
    flow_open(&f, &c);
    REQUIRE(f.s && data_longest(f.first) > 10, "%s", f.e.text); /* the fault of v0.5.0 */
    REQUIRE(!data_stream_take(f.s, 2, &d, &f.e), "%s", f.e.text);
    CHECK(data_longest(d) == 10 && data_tokens(d) == 20, "%lld", (long long)data_longest(d));
    flow_close(&f);
}

TEST(faults_are_found_where_they_are) {
    struct str s = {0};
    for (int k = 0; k < 1500; k++) str_puts(&s, "{\"input_ids\":[1,2]}\n");
    str_puts(&s, "{\"input_ids\":[1,2}\n");
    struct data_config c = settings(put_bytes("late.jsonl", s.p, s.n));
    struct flow f;
    str_free(&s);
    flow_open(&f, &c);
    REQUIRE(f.s, "%s", f.e.text);
    const char *have = next(&f, 1600, 1);
    CHECK(strstr(have, "error: ") && strstr(have, "late.jsonl:1501:"), "%s", have);
    flow_close(&f);
    c.dataset = put("empty.jsonl", "{\"input_ids\":[]}\n");
    flow_open(&f, &c);
    CHECK(!f.s && strstr(f.e.text, "Empty dataset!"), "%s", f.e.text);
    flow_close(&f);
    c.dataset = "/nonexistent.jsonl";
    flow_open(&f, &c);
    CHECK(!f.s && strstr(f.e.text, "not found"), "%s", f.e.text);
    flow_close(&f);
    numbers("m1.jsonl", 2), put("m2.jsonl", "");
    c = settings("m1.jsonl,m2.jsonl"), c.mix = MIX_OVER;
    flow_open(&f, &c);
    CHECK(!f.s || next(&f, 1, 1), "opened");
    CHECK(f.e.code == ERR_INPUT && strstr(f.e.text, "m2.jsonl"), "%s", f.e.text);
    flow_close(&f);
    c = settings("m1.jsonl,m1.jsonl"), c.mix = MIX_OVER, c.interleave_probs = "0.5";
    flow_open(&f, &c);
    CHECK(!f.s && strstr(f.e.text, "1 numbers for 2 data sets"), "%s", f.e.text);
    flow_close(&f);
}

/* What identifies the data of a run: files, sizes, settings. */
TEST(hash_of_what_was_streamed) {
    char hex[5][41];
    for (int i = 0; i < 5; i++) {
        struct data_config c = settings(numbers("hash.jsonl", i == 3 ? 31 : 30));
        struct flow f;
        c.buffer_size = i == 1 ? 9 : 8, c.cutoff_len = i == 2 ? 50 : 60, c.mix = i == 4 ? MIX_OVER : MIX_CONCAT;
        flow_open(&f, &c);
        REQUIRE(f.s && !data_stream_hash(f.s, hex[i], &f.e), "%s", f.e.text);
        flow_close(&f);
        for (int k = 0; k < i; k++) CHECK(strcmp(hex[i], hex[k]), "%d and %d are alike", i, k);
    }
}

TEST(every_allocation_and_read_may_fail) {
    static const struct { const char *kinds; int error; } fault[] = {{"a", ENOMEM}, {"r", EIO}, {"o", EACCES}};
    for (int k = 0; k < 6; k++) {
        struct data_config c = k < 3 ? settings(numbers("fault.jsonl", 30)) : two_sets(12, 20);
        c.buffer_size = 4, c.val_size = 2, c.mix = k < 3 ? MIX_CONCAT : MIX_ONCE, c.interleave_probs = k < 3 ? NULL : "0.5,0.5";
        for (int64_t n = 1, done = 0; !done; n += 1 + n / 40) {
            struct flow f;
            const struct dataset *d;
            sys_fault = (struct sys_fault){.at = n, .error = fault[k % 3].error};
            snprintf(sys_fault.kinds, sizeof sys_fault.kinds, "%s", fault[k % 3].kinds);
            flow_open(&f, &c);
            const int rc = f.s ? data_stream_take(f.s, 40, &d, &f.e) : -1;
            done = sys_fault.calls < n;
            sys_fault = (struct sys_fault){0};
            CHECK(done ? !rc : rc && f.e.code, "call %lld of kind %s: %s", (long long)n, fault[k % 3].kinds, f.e.text);
            flow_close(&f);
        }
    }
}

TEST_MAIN
