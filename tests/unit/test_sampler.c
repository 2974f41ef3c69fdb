/* tests/unit/test_sampler.c - order and grouping, by hand and by property. */
#include "base/rng.h"
#include "datasets/datasets.h"
#include "tests/test.h"

/* "2 6|1 8 @0.4" for every step, joined by "; ". */
static const char *steps(const struct sampler_config *c) {
    static char out[2000];
    struct err e = {0};
    struct sampler *s = sampler_open(c, &e);
    size_t n = 0;
    out[0] = 0;
    if (!s) return snprintf(out, sizeof out, "error: %s", e.text), out;
    for (int64_t t = 0; t < sampler_total_steps(s) && n < 1800; t++) {
        struct sampler_step k;
        sampler_get(s, t, &k, &e);
        n += (size_t)snprintf(out + n, 10, "%s", t ? "; " : "");
        for (int64_t m = 0; m < k.micro_batches; m++)
            for (int64_t i = k.start[m]; i < k.start[m + 1]; i++)
                n += (size_t)snprintf(out + n, 30, "%s%lld",
                                      i > k.start[m] ? " "
                                      : m            ? "|"
                                                     : "",
                                      (long long)k.index[i]);
        n += (size_t)snprintf(out + n, 30, " @%.4g", k.epoch);
    }
    sampler_close(s);
    return out;
}

static void walks(const struct sampler_config *c, const char *want) {
    const char *have = steps(c);
    CHECK(!strcmp(have, want), "%s\nmust be\n%s", have, want);
}

/* Rules are cited by the sections of LLaMA-Factory's description (spec 5.2, 5.3): with n sequences, batch B, accumulation G and
 * E epochs, L = ceil(n/B) micro-batches an epoch, U updates an epoch, total = ceil(E*U). Expected orders are worked out by hand from the
 * permutations given there: seed 42, n 10 -> 2 6 1 8 4 5 0 9 3 7; seed 43 -> 8 4 9 0 5 1 6 7 2 3. */

/* 5.3, current: U = max(ceil(L/G), 1), a short last update closes each epoch. */
TEST(short_last_update_in_new) {
    struct sampler_config c = {
        .count = 10, .batch = 2, .accumulate = 2, .epochs = 2, .seed = 42, .shuffle = 1, .compat_new = 1};
    walks(&c, "2 6|1 8 @0.4; 4 5|0 9 @0.8; 3 7 @1; 8 4|9 0 @1.4; 5 1|6 7 @1.8; 2 3 @2");
    c.epochs = 0.5; /* ceil(0.5 * 3) */
    walks(&c, "2 6|1 8 @0.4; 4 5|0 9 @0.8");
    c.max_steps = 4;
    walks(&c, "2 6|1 8 @0.4; 4 5|0 9 @0.8; 3 7 @1; 8 4|9 0 @1.4");
    c = (struct sampler_config){.count = 5, .batch = 2, .accumulate = 4, .epochs = 2, .compat_new = 1};
    walks(&c, "0 1|2 3|4 @1; 0 1|2 3|4 @2");
    c.drop_last = 1;
    walks(&c, "0 1|2 3 @1; 0 1|2 3 @2");
    c.epochs = 0;
    walks(&c, "");
}

/* 5.3, of v0.5.0: U = max(L div G, 1); micro-batches left over are completed by the next epoch's, but for L <= G. */
TEST(left_over_micro_batches_go_on_in_old) {
    struct sampler_config c = {
        .count = 10, .batch = 2, .accumulate = 2, .epochs = 2, .seed = 42, .shuffle = 1};
    walks(&c, "2 6|1 8 @0.4; 4 5|0 9 @0.8; 3 7|8 4 @1.2; 9 0|5 1 @1.6");
    c.epochs = 1.2; /* ceil(1.2 * 2) */
    walks(&c, "2 6|1 8 @0.4; 4 5|0 9 @0.8; 3 7|8 4 @1.2");
    c = (struct sampler_config){.count = 7, .batch = 2, .accumulate = 3, .max_steps = 3};
    walks(&c, "0 1|2 3|4 5 @0.75; 6|0 1|2 3 @1.5; 4 5|6|0 1 @2.25");
    c.accumulate = 4; /* L = G */
    walks(&c, "0 1|2 3|4 5|6 @1; 0 1|2 3|4 5|6 @2; 0 1|2 3|4 5|6 @3");
    c.accumulate = 9, c.max_steps = 0, c.epochs = 2; /* L < G: an update at the end of each epoch */
    walks(&c, "0 1|2 3|4 5|6 @1; 0 1|2 3|4 5|6 @2");
    c.drop_last = 1, c.accumulate = 2;
    walks(&c, "0 1|2 3 @0.6667; 4 5|0 1 @1.333");
}

/* Each rule of 5.3 alone, counted by hand: the numbers of updates an epoch and in all. */
TEST(a_case_for_each_rule) {
    static const struct {
        const char *rule;
        struct sampler_config c;
        int64_t U, total;
    } k[] = {
        /* 10 sequences by 3: 4 micro-batches, the last of one; by 2 of them: 2 updates */
        {"L = ceil(n/B)", {.count = 10, .batch = 3, .accumulate = 2, .epochs = 1, .compat_new = 1}, 2, 2},
        /* the fourth is dropped: 3 micro-batches, ceil(3/2) */
        {"drop_last: L = n div B", {.count = 10, .batch = 3, .accumulate = 2, .epochs = 1, .drop_last = 1, .compat_new = 1}, 2, 2},
        {"drop_last, old: L = n div B, 3 div 2", {.count = 10, .batch = 3, .accumulate = 2, .epochs = 1, .drop_last = 1}, 1, 1},
        /* 7 micro-batches by 3: 2 and a short one; of old 2 */
        {"new: U = ceil(L/G)", {.count = 7, .batch = 1, .accumulate = 3, .epochs = 1, .compat_new = 1}, 3, 3},
        {"old: U = L div G", {.count = 7, .batch = 1, .accumulate = 3, .epochs = 1}, 2, 2},
        {"new: U is 1 at least", {.count = 2, .batch = 1, .accumulate = 8, .epochs = 5, .compat_new = 1}, 1, 5},
        {"old: U is 1 at least", {.count = 2, .batch = 1, .accumulate = 8, .epochs = 5}, 1, 5},
        /* ceil(0.5 * 3), ceil(1.5 * 3), ceil(2.01 * 3) */
        {"total = ceil(E*U), half an epoch", {.count = 7, .batch = 1, .accumulate = 3, .epochs = 0.5, .compat_new = 1}, 3, 2},
        {"total = ceil(E*U), one and a half", {.count = 7, .batch = 1, .accumulate = 3, .epochs = 1.5, .compat_new = 1}, 3, 5},
        {"total = ceil(E*U), a little over two", {.count = 7, .batch = 1, .accumulate = 3, .epochs = 2.01, .compat_new = 1}, 3, 7},
        {"total = ceil(E*U), old", {.count = 7, .batch = 1, .accumulate = 3, .epochs = 2.01}, 2, 5},
        {"max_steps goes before epochs", {.count = 7, .batch = 1, .accumulate = 3, .epochs = 9, .max_steps = 4, .compat_new = 1}, 3, 4},
        {"max_steps -1: epochs", {.count = 7, .batch = 1, .accumulate = 3, .epochs = 2, .max_steps = -1, .compat_new = 1}, 3, 6},
        /* of the size of the guide's runs: 8,669 blocks by 1 and 16, 3 epochs */
        {"a large one, new", {.count = 8669, .batch = 1, .accumulate = 16, .epochs = 3, .compat_new = 1}, 542, 1626},
        {"a large one, old", {.count = 8669, .batch = 1, .accumulate = 16, .epochs = 3}, 541, 1623},
    };
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) {
        struct err e = {0};
        struct sampler *s = sampler_open(&k[i].c, &e);
        REQUIRE(s, "%s: %s", k[i].rule, e.text);
        CHECK(sampler_steps_per_epoch(s) == k[i].U && sampler_total_steps(s) == k[i].total, "%s: %lld an epoch, %lld in all", k[i].rule,
              (long long)sampler_steps_per_epoch(s), (long long)sampler_total_steps(s));
        sampler_close(s);
    }
}

/* 5.3: "epoch" in logs is the epoch's index and the share of its micro-batches that are done. 5.2: batches are consecutive
 * slices of the order, which without shuffling is that of the file. */
TEST(epochs_as_logged_and_slices) {
    struct sampler_config c = {.count = 5, .batch = 2, .accumulate = 1, .epochs = 2, .compat_new = 1};
    walks(&c, "0 1 @0.3333; 2 3 @0.6667; 4 @1; 0 1 @1.333; 2 3 @1.667; 4 @2");
    c.drop_last = 1;
    walks(&c, "0 1 @0.5; 2 3 @1; 0 1 @1.5; 2 3 @2");
}

TEST(counts_of_steps) {
    static const struct {
        int64_t n, B, G;
        double E;
        int64_t max, new_U, new_total, old_U, old_total;
    } k[] = {
        {4421, 1, 16, 3, -1, 277, 831, 276, 828}, /* the guide's packed alpaca on one card */
        {1000, 8, 1, 3, -1, 125, 375, 125, 375},
        {1000, 3, 7, 0.1, -1, 48, 5, 47, 5},
        {5, 1, 8, 3, -1, 1, 3, 1, 3},
        {1000, 3, 7, 3, 10, 48, 10, 47, 10},
    };
    for (size_t i = 0; i < sizeof k / sizeof *k; i++)
        for (int new = 0; new < 2; new ++) {
            struct sampler_config c = {.count = k[i].n,
                                       .batch = k[i].B,
                                       .accumulate = k[i].G,
                                       .epochs = k[i].E,
                                       .max_steps = k[i].max,
                                       .compat_new = new};
            struct sampler *s = sampler_open(&c, NULL);
            CHECK(sampler_steps_per_epoch(s) == (new ? k[i].new_U : k[i].old_U), "case %zu: %lld an epoch", i,
                  (long long)sampler_steps_per_epoch(s));
            CHECK(sampler_total_steps(s) == (new ? k[i].new_total : k[i].old_total), "case %zu: %lld in all",
                  i, (long long)sampler_total_steps(s));
            sampler_close(s);
        }
}

TEST(senseless_settings_are_refused) {
    static const struct {
        struct sampler_config c;
        const char *says;
    } k[] = {
        {{.count = 0, .batch = 1, .accumulate = 1, .epochs = 1}, "at least 1"},
        {{.count = 1, .batch = 0, .accumulate = 1, .epochs = 1}, "at least 1"},
        {{.count = 1, .batch = 1, .accumulate = -1, .epochs = 1}, "at least 1"},
        {{.count = (int64_t)1 << 40, .batch = 1, .accumulate = 1, .epochs = 1}, "at most"},
        {{.count = 3, .batch = 4, .accumulate = 1, .epochs = 1, .drop_last = 1}, "dataloader_drop_last"},
        {{.count = 3, .batch = 1, .accumulate = 1, .epochs = -1}, "num_train_epochs"},
        {{.count = 3, .batch = 1, .accumulate = 1, .epochs = 1e300}, "num_train_epochs"},
        {{.count = 3, .batch = 1, .accumulate = 1, .max_steps = INT64_MAX}, "max_steps"},
    };
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) {
        struct err e = {0};
        CHECK(!sampler_open(&k[i].c, &e) && e.code == ERR_INPUT && strstr(e.text, k[i].says), "case %zu: %s",
              i, e.text);
    }
}

/* 5.2, group_by_length. The reference is the published algorithm run in Python on the same permutations. */
TEST(grouping_by_length) {
    static const int32_t lengths[] = {5, 3, 9, 3, 7, 1, 5, 5, 2, 8, 6, 4, 9, 3, 1, 2, 7, 7, 5, 6};
    int32_t given[20];
    static const struct {
        int64_t batch, accumulate;
        int epoch;
        int64_t want[20];
    } k[] = {
        {2, 1, 0, {2, 18, 15, 14, 4, 10, 0, 1, 6, 11, 3, 8, 12, 17, 7, 13, 9, 16, 19, 5}},
        {1, 2, 1, {12, 19, 13, 8, 9, 17, 10, 0, 16, 4, 11, 14, 18, 6, 7, 15, 2, 3, 1, 5}},
        {4, 2, 0, {2, 4, 10, 18, 0, 1, 15, 14, 12, 17, 6, 7, 11, 3, 13, 8, 9, 16, 19, 5}},
    };
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) {
        struct sampler_config c = {.count = 20,
                                   .batch = k[i].batch,
                                   .accumulate = k[i].accumulate,
                                   .epochs = 2,
                                   .seed = 42,
                                   .shuffle = 1,
                                   .compat_new = 1,
                                   .group_by_length = 1,
                                   .lengths = given};
        memcpy(given, lengths, sizeof given);
        struct sampler *s = sampler_open(&c, NULL);
        memset(given, 0, sizeof given); /* they are copied */
        int64_t place = 0, U = sampler_steps_per_epoch(s);
        for (int64_t t = k[i].epoch * U; t < (k[i].epoch + 1) * U; t++) {
            struct sampler_step step;
            sampler_get(s, t, &step, NULL);
            for (int64_t j = 0; j < step.sequences; j++, place++)
                CHECK(step.index[j] == k[i].want[place], "case %zu, place %lld: %lld", i, (long long)place,
                      (long long)step.index[j]);
        }
        CHECK(place == 20, "case %zu: %lld", i, (long long)place);
        sampler_close(s);
    }
}

/* Whatever the settings: walking the steps meets every sequence of an epoch once before the next epoch begins
 * (with drop_last: L * B of them), micro-batches are full but the last of an epoch, and a step asked for
 * again, out of order, is the same. */
TEST(walking_covers_every_epoch_once) {
    struct mt19937 g;
    mt_seed(&g, 5);
    for (int round = 0; round < 300; round++) {
        int32_t lengths[64];
        for (int i = 0; i < 64; i++) lengths[i] = (int32_t)(mt_next(&g) % 9);
        struct sampler_config c = {.count = 1 + mt_next(&g) % 60,
                                   .batch = 1 + mt_next(&g) % 9,
                                   .accumulate = 1 + mt_next(&g) % 9,
                                   .epochs = 3,
                                   .seed = mt_next(&g),
                                   .shuffle = round % 4 != 0,
                                   .drop_last = round % 3 == 0,
                                   .group_by_length = round % 5 == 0,
                                   .lengths = lengths,
                                   .compat_new = round % 2};
        if (c.drop_last && c.count < c.batch) continue;
        struct sampler *s = sampler_open(&c, NULL), *again = sampler_open(&c, NULL);
        const int64_t L = c.drop_last ? c.count / c.batch : (c.count + c.batch - 1) / c.batch;
        const int64_t epoch_size = c.drop_last ? L * c.batch : c.count, total = sampler_total_steps(s);
        char seen[64] = {0};
        int64_t met = 0, micro = 0;
        for (int64_t t = 0; t < total; t++) {
            struct sampler_step k;
            sampler_get(s, t, &k, NULL);
            CHECK(k.start[k.micro_batches] == k.sequences && k.start[0] == 0, "ends");
            for (int64_t m = 0; m < k.micro_batches; m++) {
                int64_t n = k.start[m + 1] - k.start[m], last = micro % L == L - 1;
                CHECK(n == c.batch || (last && n == epoch_size - (L - 1) * c.batch),
                      "round %d: micro-batch of %lld", round, (long long)n);
                for (int64_t i = k.start[m]; i < k.start[m + 1]; i++) {
                    CHECK(!seen[k.index[i]]++, "round %d: sequence %lld twice", round, (long long)k.index[i]);
                    if (++met % epoch_size == 0) memset(seen, 0, sizeof seen);
                }
                micro++;
            }
            CHECK(k.epoch == (double)((micro - 1) / L) + (double)((micro - 1) % L + 1) / (double)L,
                  "round %d: epoch %g", round, k.epoch);
        }
        if (c.compat_new)
            CHECK(met == 3 * epoch_size, "round %d: %lld met", round, (long long)met);
        else
            CHECK(met <= 3 * epoch_size && met > 3 * epoch_size - 3 * c.batch * c.accumulate,
                  "round %d: %lld met", round, (long long)met);
        for (int j = 0; j < 10; j++) {
            int64_t t = mt_next(&g) % total;
            struct sampler_step a, b;
            sampler_get(s, t, &a, NULL);
            sampler_get(again, t, &b, NULL);
            CHECK(a.sequences == b.sequences &&
                      !memcmp(a.index, b.index, (size_t)a.sequences * sizeof *a.index),
                  "round %d: step %lld", round, (long long)t);
            for (int64_t u = 0; u < t; u += 2)
                sampler_get(again, u, &b, NULL); /* leaves its cache somewhere else */
        }
        sampler_close(s);
        sampler_close(again);
    }
}

TEST_MAIN
