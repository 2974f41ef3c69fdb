/* Learning-rate factors against the closed forms, and the values of the Python stack at a few points. */
#include "tests/test.h"
#include "train/schedule.h"
#include <math.h>

TEST(warmup_counts) {
    CHECK(schedule_warmup(0, 0, 100) == 0, "none");
    CHECK(schedule_warmup(7, 0.5, 100) == 7, "a count wins over the ratio");
    CHECK(schedule_warmup(0, 0.03, 100) == 3, "exact share");
    CHECK(schedule_warmup(0, 0.03, 101) == 4, "shares round up");
    CHECK(schedule_warmup(0.1, 0, 55) == 6, "fractional steps are a share");
    CHECK(schedule_warmup(1, 0, 55) == 1, "1 is a count");
    /* 0.07 * 100 is 7.000000000000001 in binary: Python rounds it up too */
    CHECK(schedule_warmup(0, 0.07, 100) == 8, "%lld", (long long)schedule_warmup(0, 0.07, 100));
}

TEST(linear_is_exact) {
    for (int64_t s = 0; s <= 100; s++) {
        double want = s < 10 ? (double)s / 10.0 : (double)(100 - s) / 90.0;
        CHECK(schedule_factor(LR_LINEAR, s, 10, 100) == want, "step %lld", (long long)s);
    }
    CHECK(schedule_factor(LR_LINEAR, 0, 1, 10) == 0, "the first update of a warmed-up run has rate 0");
    CHECK(schedule_factor(LR_LINEAR, 0, 0, 10) == 1, "no warmup starts at the top");
    CHECK(schedule_factor(LR_LINEAR, 12, 0, 10) == 0, "never negative");
    CHECK(schedule_factor(LR_LINEAR, 3, 20, 10) == 0.15, "warmup longer than the run");
}

/* transformers' get_cosine_schedule_with_warmup with 10 of 100 steps of warmup, evaluated in Python. One unit in the last
 * place is left to the two libraries' cosines. */
TEST(cosine_values) {
    static const struct {
        int64_t step;
        double factor;
    } want[] = {{0, 0},
                {5, 0.5},
                {10, 1},
                {11, 0.9996954135095479},
                {25, 0.9330127018922194},
                {40, 0.75},
                {55, 0.5},
                {85, 0.06698729810778065},
                {99, 0.00030458649045211894},
                {100, 0}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        double f = schedule_factor(LR_COSINE, want[i].step, 10, 100);
        CHECK(fabs(f - want[i].factor) <= 1.2e-16, "step %lld: %.17g, not %.17g", (long long)want[i].step, f,
              want[i].factor);
    }
}

TEST(constant) {
    CHECK(schedule_factor(LR_CONSTANT, 0, 10, 100) == 1, "constant has no warmup");
    CHECK(schedule_factor(LR_CONSTANT_WARMUP, 3, 10, 100) == 3.0 / 10.0, "rising");
    CHECK(schedule_factor(LR_CONSTANT_WARMUP, 99, 10, 100) == 1, "flat");
}
TEST_MAIN
