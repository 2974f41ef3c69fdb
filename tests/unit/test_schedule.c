/* Learning-rate factors against the closed forms, and the values of the Python stack at a few points. */
#include "tests/test.h"
#include "train/schedule.h"
#include <math.h>
#include <string.h>

/* The factor of one type without parameters, with so many updates of warmup. */
static double factor(enum schedule kind, int64_t step, int64_t warmup, int64_t total) {
    struct train_options o = {.schedule = kind, .learning_rate = 1e-3, .warmup_steps = (double)warmup};
    struct schedule_curve c;
    struct err e = {0};
    CHECK(!schedule_make(&c, &o, total, &e), "%s", e.text);
    return schedule_factor(&c, step);
}
/* With parameters, learning rate 1e-3 and ten updates of warmup in a hundred. NaN: refused, e says why. */
static struct err why;
static double with(enum schedule kind, const char *args, int64_t step) {
    struct train_options o = {.schedule = kind, .learning_rate = 1e-3, .warmup_steps = 10, .schedule_args = args};
    struct schedule_curve c;
    why = (struct err){0};
    return schedule_make(&c, &o, 100, &why) ? NAN : schedule_factor(&c, step);
}
static int near(double x, double y) { return fabs(x - y) <= 4e-16 * fmax(fabs(y), 1); } /* two units in the last place of 1 */

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
        CHECK(factor(LR_LINEAR, s, 10, 100) == want, "step %lld", (long long)s);
    }
    CHECK(factor(LR_LINEAR, 0, 1, 10) == 0, "the first update of a warmed-up run has rate 0");
    CHECK(factor(LR_LINEAR, 0, 0, 10) == 1, "no warmup starts at the top");
    CHECK(factor(LR_LINEAR, 12, 0, 10) == 0, "never negative");
    CHECK(factor(LR_LINEAR, 3, 20, 10) == 0.15, "warmup longer than the run");
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
        double f = factor(LR_COSINE, want[i].step, 10, 100);
        CHECK(fabs(f - want[i].factor) <= 1.2e-16, "step %lld: %.17g, not %.17g", (long long)want[i].step, f,
              want[i].factor);
    }
}

TEST(constant) {
    CHECK(factor(LR_CONSTANT, 0, 10, 100) == 1, "constant has no warmup");
    CHECK(factor(LR_CONSTANT_WARMUP, 3, 10, 100) == 3.0 / 10.0, "rising");
    CHECK(factor(LR_CONSTANT_WARMUP, 99, 10, 100) == 1, "flat");
}
/* Values below are worked out by hand from the formulas of transformers' optimization.py; p is the share done after warmup. */

TEST(cycles) {
    /* two full waves: up again at half time */
    CHECK(near(with(LR_COSINE, "{\"num_cycles\": 2}", 55), 1), "%.17g", with(LR_COSINE, "{\"num_cycles\": 2}", 55));
    CHECK(near(with(LR_COSINE, "{\"num_cycles\": 1}", 55), 0), "one wave: the trough at half time");
    CHECK(near(with(LR_COSINE, NULL, 55), 0.5), "half a wave");
    /* restarts: num_cycles falls, each from 1 towards 0; 1 by default */
    CHECK(factor(LR_RESTARTS, 5, 10, 100) == 0.5, "warmup");
    CHECK(near(with(LR_RESTARTS, NULL, 55), 0.5), "one fall");
    CHECK(with(LR_RESTARTS, "{\"num_cycles\": 3}", 10) == 1 && with(LR_RESTARTS, "{\"num_cycles\": 3}", 40) == 1 && with(LR_RESTARTS, "{\"num_cycles\": 3}", 70) == 1, "starts of three");
    CHECK(near(with(LR_RESTARTS, "{\"num_cycles\": 3}", 25), 0.5), "middle of the first of three");
    CHECK(with(LR_RESTARTS, "{\"num_cycles\": 3}", 100) == 0, "the end is not a start");
}

TEST(polynomial) {
    /* power 1, from 1e-3 to 1e-7: at half time the mean of both */
    CHECK(near(with(LR_POLYNOMIAL, NULL, 55), 0.50005), "%.17g", with(LR_POLYNOMIAL, NULL, 55));
    CHECK(near(with(LR_POLYNOMIAL, "{\"power\": 2, \"lr_end\": 2e-4}", 55), 0.4), "0.8 / 4 + 0.2");
    CHECK(near(with(LR_POLYNOMIAL, "{\"power\": 2, \"lr_end\": 2e-4}", 100), 0.2), "the end");
    CHECK(near(with(LR_POLYNOMIAL, "{\"lr_end\": 2e-4}", 101), 0.2), "behind the end");
    CHECK(isnan(with(LR_POLYNOMIAL, "{\"lr_end\": 1e-3}", 0)) && strstr(why.text, "lr_end (0.001) must be smaller than initial lr (0.001)"), "%s", why.text);
}

TEST(inverse_sqrt) {
    CHECK(with(LR_INVERSE_SQRT, NULL, 10) == 1 && with(LR_INVERSE_SQRT, NULL, 40) == 0.5 && with(LR_INVERSE_SQRT, NULL, 90) == 1 / sqrt(9), "timescale = warmup");
    CHECK(with(LR_INVERSE_SQRT, "{\"timescale\": 20}", 70) == 0.5, "(70 + 20 - 10) / 20 = 4");
    CHECK(factor(LR_INVERSE_SQRT, 30000, 0, 40000) == 0.5, "10000 without warmup");
}

TEST(least_rate) {
    CHECK(near(with(LR_COSINE_MIN, "{\"min_lr\": 1e-4}", 55), 0.55) && near(with(LR_COSINE_MIN, "{\"min_lr_rate\": 0.1}", 100), 0.1), "half way, end");
    CHECK(with(LR_COSINE_MIN, "{\"min_lr_rate\": 0.1}", 5) == 0.5, "the warmup begins at 0");
    CHECK(isnan(with(LR_COSINE_MIN, NULL, 0)) && strstr(why.text, "One of min_lr or min_lr_rate should be set"), "%s", why.text);
    CHECK(isnan(with(LR_COSINE_MIN, "{\"min_lr\": 1e-4, \"min_lr_rate\": 0.1}", 0)) && strstr(why.text, "Only one of"), "%s", why.text);
    CHECK(isnan(with(LR_COSINE_MIN, "{\"min_lr\": 2e-3}", 0)) && strstr(why.text, "from 0 to 0.001"), "above the learning rate: %s", why.text);
}

/* LLaMA-Factory: of what is left after warmup a third stays at the top, the rest decays, along a cosine. 90 updates: 30 and 60. */
TEST(warmup_stable_decay) {
    CHECK(with(LR_STABLE_DECAY, NULL, 4) == 0.4 && with(LR_STABLE_DECAY, NULL, 10) == 1 && with(LR_STABLE_DECAY, NULL, 39) == 1 && with(LR_STABLE_DECAY, NULL, 40) == 1, "top");
    CHECK(near(with(LR_STABLE_DECAY, NULL, 70), 0.5) && with(LR_STABLE_DECAY, NULL, 100) == 0, "slope");
    CHECK(near(with(LR_STABLE_DECAY, "{\"decay_type\": \"linear\"}", 55), 0.75), "a line");
    CHECK(near(with(LR_STABLE_DECAY, "{\"decay_type\": \"1-sqrt\"}", 55), 0.5), "1 - sqrt(1/4)");
    CHECK(near(with(LR_STABLE_DECAY, "{\"warmup_type\": \"cosine\"}", 5), 0.5) && near(with(LR_STABLE_DECAY, "{\"warmup_type\": \"1-sqrt\", \"min_lr_ratio\": 0.5}", 0), 0.5), "other starts");
    CHECK(near(with(LR_STABLE_DECAY, "{\"num_stable_steps\": 5, \"num_decay_steps\": 20, \"min_lr_ratio\": 0.2}", 25), 0.6), "half way down to 0.2");
    CHECK(with(LR_STABLE_DECAY, "{\"num_stable_steps\": 5, \"num_decay_steps\": 20, \"min_lr_ratio\": 0.2}", 35) == 0.2, "the floor");
    CHECK(isnan(with(LR_STABLE_DECAY, "{\"decay_type\": \"square\"}", 0)) && strstr(why.text, "choose from linear, cosine, 1-sqrt"), "%s", why.text);
}

/* Factors after each evaluation, as ReduceLROnPlateau of PyTorch gives them (its code, by hand), the learning rate being 1e-3. */
TEST(reduce_lr_on_plateau) {
    static const struct { const char *args; double metric[10]; double factor[10]; } k[] = {
        {"{\"patience\": 1, \"factor\": 0.5}", {3, 2, 2, 2, 2, 2, 1, 1, 1, 1}, {1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125}},
        {"{\"patience\": 0, \"factor\": 0.5, \"cooldown\": 2}", {3, 3, 3, 3, 3, 3, 3, 3, 3, 3}, {1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125, 0.125}},
        {"{\"patience\": 0, \"factor\": 0.5, \"min_lr\": 3e-4}", {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 0.5, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3}},
        {"{\"patience\": 0, \"factor\": 0.5, \"mode\": \"max\"}", {1, 2, 3, 2, 4, 4.0001, 5, 6, 7, 8}, {1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25}},
        {"{\"patience\": 0, \"factor\": 0.5, \"threshold\": 0.5, \"threshold_mode\": \"abs\"}", {4, 3.6, 3.4, 2.95, 2.4, 1, 1, 0, 0, 0}, {1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125, 0.0625, 0.03125}},
        {"{\"patience\": 0, \"factor\": 0.5, \"eps\": 4e-4}", {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5}},
        {NULL, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}},
    };
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) {
        struct train_options o = {.schedule = LR_PLATEAU, .schedule_args = k[i].args, .learning_rate = 1e-3};
        struct schedule_curve c;
        struct plateau p = {0};
        CHECK(!schedule_make(&c, &o, 100, &why) && schedule_factor(&c, 50) == 1, "%s", why.text);
        for (int n = 0; n < 10; n++) {
            const double before = p.factor > 0 ? p.factor : 1;
            const int cut = schedule_judge(&c, &p, k[i].metric[n]);
            const double now = p.factor > 0 ? p.factor : 1;
            CHECK(near(now, k[i].factor[n]) && cut == (now != before), "case %zu, evaluation %d: %g, must be %g", i, n, now, k[i].factor[n]);
        }
    }
    struct train_options o = {.schedule = LR_PLATEAU, .learning_rate = 1e-3};
    struct schedule_curve c;
    struct plateau p = {0};
    int64_t at = 0;
    CHECK(!schedule_make(&c, &o, 100, &why), "%s", why.text);
    while (!schedule_judge(&c, &p, 1)) at++;
    CHECK(at == 11 && near(p.factor, 0.1), "ten evaluations are borne behind the first, the eleventh cuts to a tenth: %lld, %g", (long long)at, p.factor);
}

TEST(parameters_that_do_not_suit) {
    static const struct { enum schedule kind; const char *args, *says; } bad[] = {
        {LR_COSINE, "{\"num_cycle\": 2}", "did you mean \"num_cycles\"?"},
        {LR_COSINE, "{\"power\": 2}", "cosine, which takes num_cycles"},
        {LR_LINEAR, "{\"power\": 2}", "lr_scheduler_type linear has no parameters, so \"power\" would change nothing"},
        {LR_CONSTANT, "{\"num_cycles\": 2}", "constant has no parameters"},
        {LR_COSINE, "{\"num_cycles\": \"two\"}", "must be a number"},
        {LR_COSINE, "{\"num_cycles\": 0}", "it must be from 1e-06"},
        {LR_INVERSE_SQRT, "{\"timescale\": 0}", "it must be from 1"},
        {LR_PLATEAU, "{\"mode\": \"most\"}", "choose from min, max"},
        {LR_PLATEAU, "{\"factor\": 1}", "it must be from 1e-06"},
        {LR_PLATEAU, "{\"patience\": 1.5}", "whole number"},
        {LR_PLATEAU, "{\"min_lr\": 1}", "from 0 to 0.001"},
        {LR_COSINE, "num_cycles=2", "a JSON object such as"},
        {LR_COSINE, "[2]", "a JSON object such as"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(isnan(with(bad[i].kind, bad[i].args, 0)) && why.code == ERR_INPUT && strstr(why.text, bad[i].says), "%s: %s", bad[i].args, why.text);
    CHECK(with(LR_LINEAR, "{}", 55) == 0.5, "an empty object is none");
}
TEST_MAIN
