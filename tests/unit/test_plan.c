/* The plan over a cost that is simple enough to check by hand: budgets from all that could be wanted down to nothing. Then the
 * plans of real runs beside what a card did, and requests that no machine could serve. */
#include "backend/card.h"
#include "model/tensors.h"
#include "tests/test.h"
#include "train/estimate.h"
#include <math.h>
#include <string.h>

/* Sixteen layers of 100 bytes of weights, 64 of state; a token takes 2 bytes of input in every layer, 10 when its activations
 * are kept, 20 of working set; operands made once take 150. */
enum { LAYERS = 16, TOKENS = 4096, CALLS_MOST = 20000 };
static int calls;

static int cost(void *context, const struct plan_choice *c, struct plan_item *items) {
    (void)context;
    calls++;
    int64_t streamed = LAYERS - c->resident_layers, chunks = (TOKENS + c->rows - 1) / c->rows;
    items[0] = (struct plan_item){.name = "weights", .device = 100 * (c->resident_layers + (streamed ? 3 : 0)), .host = 100 * streamed, .in = 200.0 * (double)streamed};
    items[1] = (struct plan_item){.name = "state", .device = c->state_on_host ? 3 * 64 : 64 * LAYERS, .host = c->state_on_host ? 64 * LAYERS : 0};
    items[2] = (struct plan_item){.name = "values", .device = c->values_on_host ? 3 * 8 : 8 * LAYERS, .host = c->values_on_host ? 8 * LAYERS : 0};
    items[3] = (struct plan_item){.name = "inputs", .device = c->acts_on_host ? 4 * 2 * c->rows : 2 * TOKENS * LAYERS, .host = c->acts_on_host ? 2 * TOKENS * LAYERS : 0};
    items[4] = (struct plan_item){.name = "kept", .device = 10 * c->rows * chunks * c->keep_layers};
    items[5] = (struct plan_item){.name = "working set", .device = 20 * c->rows + (c->join ? 150 : 0)};
    items[6] = (struct plan_item){.name = "embedding", .device = c->outer_on_host ? 0 : 500, .host = c->outer_on_host ? 500 : 0, .alone = c->outer_on_host ? 500 : 0};
    items[1].in = items[1].out = (double)items[1].host, items[2].in = items[2].out = (double)items[2].host;
    items[3].in = items[3].out = (double)items[3].host;
    return 7;
}

static struct plan_request request(int64_t budget) {
    return (struct plan_request){.budget = budget, .keep_budget = budget, .may = PLAN_WAYS - 1, .layers = LAYERS, .longest = 100, .prefer_rows = 2048, .step_rows = TOKENS, .joins = 1, .training = 1,
                                 .advice = "A lower --cutoff_len, --optim paged_adamw_32bit", .forward = {1e6, 1e4, 1e4}, .again = {8e5, 1e4, 1e4}, .backward = {1e6, 2e4, 2e4}, .rest = {1e5, 0, 1e3},
                                 .unpacked = 1e4, .tail = 256, .visit = 1e-5, .flops = 1e6, .bandwidth = 1e6, .link = 1e6};
}

static int64_t device_of(const struct plan *p) {
    int64_t sum = 0;
    for (int i = 0; i < p->items; i++) sum += p->item[i].device;
    return sum;
}

TEST(every_budget_is_kept_and_more_is_never_slower) {
    double before = 0;
    int64_t least = 0;
    for (int64_t budget = 1 << 21; budget > 0; budget = budget * 15 / 16) {
        struct plan_request r = request(budget);
        struct plan p;
        struct err e = {0};
        calls = 0;
        int rc = plan_make(&r, cost, NULL, &p, &e);
        CHECK(calls <= CALLS_MOST, "%d calls of the cost", calls);
        CHECK(p.device == device_of(&p), "the items add up to %lld, the plan says %lld", (long long)device_of(&p), (long long)p.device);
        if (rc) { /* the smallest plan, and nothing below it */
            CHECK(p.device > budget, "%lld of %lld fit after all", (long long)p.device, (long long)budget);
            CHECK(!least || p.device == least, "the least is %lld, then %lld", (long long)least, (long long)p.device);
            least = p.device;
            continue;
        }
        CHECK(!least, "%lld fits where a larger budget did not", (long long)budget);
        CHECK(p.device <= budget, "%lld of %lld", (long long)p.device, (long long)budget);
        CHECK(p.seconds >= before, "budget %lld: %g s, with more memory %g s", (long long)budget, p.seconds, before);
        CHECK(p.seconds == plan_seconds(&r, &p), "%g s", p.seconds);
        CHECK(p.choice.rows >= r.longest && p.choice.keep_layers <= LAYERS && p.choice.resident_layers <= LAYERS, "%lld rows", (long long)p.choice.rows);
        before = p.seconds;
    }
    REQUIRE(least > 0, "nothing was too small");
    struct plan_request r = request(least);
    struct plan p;
    struct err e = {0};
    CHECK(!plan_make(&r, cost, NULL, &p, &e), "what the smallest plan needs is enough: %s", e.text);
    r.budget--;
    CHECK(plan_make(&r, cost, NULL, &p, &e), "one byte less is not");
}

TEST(a_large_budget_keeps_everything) {
    struct plan_request r = request((int64_t)1 << 40);
    struct plan p;
    struct err e = {0};
    REQUIRE(!plan_make(&r, cost, NULL, &p, &e), "%s", e.text);
    const struct plan_choice *c = &p.choice;
    CHECK(c->keep_layers == LAYERS && c->resident_layers == LAYERS && !c->acts_on_host && !c->state_on_host && !c->values_on_host && !c->outer_on_host && c->join, "kept %lld, resident %lld",
          (long long)c->keep_layers, (long long)c->resident_layers);
    CHECK(c->rows == 2048 && p.host == 0, "%lld rows, %lld bytes on the host", (long long)c->rows, (long long)p.host);
}

TEST(what_is_not_allowed_is_not_chosen) {
    for (int64_t budget = 1 << 21; budget > 1 << 12; budget = budget * 3 / 4) {
        struct plan_request r = request(budget);
        struct plan p;
        struct err e = {0};
        r.may &= ~(unsigned)PLAN_STATE, r.must = PLAN_ACTS, r.keep_all = 1;
        if (plan_make(&r, cost, NULL, &p, &e)) continue;
        CHECK(!p.choice.state_on_host && p.choice.acts_on_host && p.choice.keep_layers == LAYERS, "budget %lld", (long long)budget);
    }
}

TEST(the_message_says_what_is_missing) {
    struct plan_request r = request(1000);
    struct plan p;
    struct err e = {0};
    REQUIRE(plan_make(&r, cost, NULL, &p, &e), "1000 bytes are enough");
    CHECK(!strcmp(e.text, "this run needs at least 3.24 KiB on the device and has 1000 bytes: working set 1.95 KiB, inputs 800 bytes, weights 300 bytes. "
                          "A lower --cutoff_len, --optim paged_adamw_32bit would fit more"), "%s", e.text);
    CHECK(!strchr(e.text, '\n'), "%s", e.text);
}

TEST(host_memory_is_a_budget_too) {
    int64_t before = INT64_MAX;
    double seconds = 0;
    for (int64_t host = 1 << 20; host > 0; host = host * 3 / 4) {
        struct plan_request r = request(20000);
        struct plan p;
        struct err e = {0};
        r.host_budget = host;
        if (plan_make(&r, cost, NULL, &p, &e)) { /* what it names would do */
            CHECK(p.device <= r.budget && p.host > host, "%lld and %lld bytes", (long long)p.device, (long long)p.host);
            CHECK(strstr(e.text, "of host memory"), "%s", e.text);
            r.host_budget = p.host;
            CHECK(!plan_make(&r, cost, NULL, &p, &e), "%s", e.text);
            before = -1;
            continue;
        }
        CHECK(before > 0, "%lld bytes are enough where more were not", (long long)host);
        CHECK(p.host <= host && p.device <= r.budget && p.seconds >= seconds, "%lld bytes of %lld, %g s", (long long)p.host, (long long)host, p.seconds);
        seconds = p.seconds, before = p.host;
    }
    CHECK(before < 0, "nothing was too small");
}

/* The terms of the model of time, one by one. */
TEST(time_by_its_terms) {
    struct plan_request r = request(1 << 20);
    struct plan p = {.choice = {.rows = 2048, .keep_layers = LAYERS, .resident_layers = LAYERS, .join = 1}};
    double kept = plan_seconds(&r, &p);
    p.choice.keep_layers = 0;
    double again = plan_seconds(&r, &p) - kept;
    CHECK(again > r.again.products / r.flops && again < 1.5 * r.again.products / r.flops, "recomputation takes %g s", again);
    p.choice.keep_layers = LAYERS, p.choice.rows = 128;
    CHECK(plan_seconds(&r, &p) > kept, "small chunks are slower");
    r.visit = 1; /* a host that cannot keep up: 32 chunks, two passes, 16 layers */
    CHECK(plan_seconds(&r, &p) == 32.0 * 2 * LAYERS, "%g s", plan_seconds(&r, &p));
    p.items = 1, p.item[0] = (struct plan_item){.in = 1e10, .out = 1};
    CHECK(plan_seconds(&r, &p) >= 1e4, "the link sets the pace: %g s", plan_seconds(&r, &p));
}

/* Rates of the data sheets: dense bf16 with fp32 accumulation, of which a card keeps up a share. */
TEST(cards_by_name) {
    static const struct { const char *name; double peak; } known[] = {{"NVIDIA A100", 312e12}, {"RTX 4090", 165e12}, {"3090", 71e12}, {"L40S", 362e12}, {"h100", 989e12}, {"a6000", 155e12}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const struct card *c = card_named(known[i].name);
        struct backend_info info;
        REQUIRE(c, "%s", known[i].name);
        card_info(c, &info);
        CHECK(info.flops > 0.55 * known[i].peak && info.flops < 0.95 * known[i].peak, "%s: %g FLOP/s", known[i].name, info.flops);
        CHECK(info.activation == DT_BF16 && info.joins && info.bandwidth > 1e11 && info.link > 1e10, "%s", known[i].name);
    }
    for (int i = 0; cards[i].name; i++) CHECK(card_named(cards[i].name) == &cards[i] && card_named(cards[i].title + strlen("NVIDIA ")) == &cards[i], "%s", cards[i].name);
    CHECK(!card_named("voodoo"), "a card that is not there");
}

TEST(workspace_follows_the_limits) {
    struct backend_limits l = {.rows = 4096, .sequence = 1024, .D = 2048, .F = 8192, .H = 32, .K = 64, .V = 135040, .R = 64, .joined = 1};
    size_t joined = card_work_bytes(&l);
    l.joined = 0;
    size_t apart = card_work_bytes(&l);
    CHECK(apart >= joined + 2 * (2 * 8192 + 128) * (2048 + 128), "room for gate|up: %zu and %zu", joined, apart);
    l.drops = 1;
    CHECK(card_work_bytes(&l) == apart + 4096 * 8192 * 2, "room for drop(x)");
    l.drops = 0, l.trains_weights = 1;
    CHECK(card_work_bytes(&l) < apart + (64 << 20), "room for sums over sequences");
    l.head_f32 = 1;
    CHECK(card_work_bytes(&l) >= apart + (size_t)135040 * 2048 * 2, "room for the embedding in bf16");
}

/* ---- the plans of runs ---- */

static struct train_options run_options(void) {
    return (struct train_options){.lora = {.rank = 64, .alpha = 128, .targets = (1 << PROJ_COUNT) - 1}, .data = {.cutoff_len = 1025}, .batch = 1, .accumulate = 16,
                                  .double_quantization = 1, .paged = 1, .bf16 = 1, .gradient_checkpointing = 1, .max_steps = 3};
}
static int estimate(const struct train_options *o, const char *config, enum estimate_memory memory, struct estimate *x, struct err *e) {
    struct model_config c;
    if (model_config_find(config, &c, e)) return -1;
    const int r = train_estimate(&(struct estimate_options){.train = o, .config = &c, .card = "h100", .memory = memory}, x, e);
    model_config_free(&c);
    return r;
}
static double off(double is, double was) { return is / was - 1; }

/* bench/results/h100.jsonl, but for 1500 MB, where the plan has found a faster way since: 2B, rank 64 on all seven, micro-batch 1, accumulate 16, paged 32-bit AdamW; memory as taken from the
 * card. 3 % of memory: what cublasLt and kernels take beside the plan. 10 % of time: clocks of one card differ so much by load. */
TEST(measured_on_an_h100) {
    static const struct { int bits; int64_t cutoff, vram_mb; double gib, tokens_per_second; } row[] = {
        {4, 1025, 2000, 1.87, 38154}, {4, 1025, 2500, 2.34, 39817},   {4, 1025, 4000, 3.73, 40063}, {4, 1025, 8000, 7.45, 41247},
        {4, 1025, 16000, 14.9, 44005}, {4, 1025, 0, 32.1, 50871},   {0, 1025, 6000, 5.54, 40080}, {4, 2049, 2500, 2.31, 38032},  {0, 2049, 6000, 5.61, 38370}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct train_options o = run_options();
        struct estimate x;
        struct err e = {0};
        o.quantization_bit = row[i].bits, o.data.cutoff_len = row[i].cutoff, o.vram_bytes = row[i].vram_mb * 1000000;
        REQUIRE(!estimate(&o, "yuan2-2b", ESTIMATE_CARD, &x, &e), "%s", e.text);
        const double memory = off((double)x.plan.device / (1 << 30), row[i].gib), speed = off(x.tokens_per_second, row[i].tokens_per_second);
        CHECK(memory > -0.03 && memory < 0.03, "row %zu: memory %+.1f %%", i, 100 * memory);
        CHECK(speed > -0.1 && speed < 0.1, "row %zu: speed %+.1f %%", i, 100 * speed);
        CHECK(x.tokens == 3 * 16.0 * (double)(row[i].cutoff - 1), "%g tokens", x.tokens);
    }
}

/* The same source: forward, recomputation and backward of a layer of 51B for 16,384 tokens at once, and (docs/PERFORMANCE.md) in
 * chunks of 4,096, at 86.5 % of the product's rate instead of 91.5. */
TEST(a_layer_of_51b_on_an_h100) {
    static const struct { int64_t rows; double ms; } row[] = {{16384, 179.2}, {4096, 179.2 * 91.5 / 86.5}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct train_options o = run_options();
        struct estimate x;
        struct err e = {0};
        o.quantization_bit = 4, o.chunk_tokens = row[i].rows;
        REQUIRE(!estimate(&o, "yuan2-51b", ESTIMATE_RESIDENT, &x, &e), "%s", e.text);
        REQUIRE(x.plan.choice.rows == row[i].rows && x.plan.choice.resident_layers == 42 && !x.plan.choice.keep_layers, "%lld rows", (long long)x.plan.choice.rows);
        x.request.rest = (struct plan_work){0}, x.plan.items = 0; /* no head, no copies */
        const double time = off(1e3 * plan_seconds(&x.request, &x.plan) / 42, row[i].ms);
        CHECK(time > -0.1 && time < 0.1, "chunks of %lld: %+.1f %%", (long long)row[i].rows, 100 * time);
    }
}

/* All of 2B in 8 GB: at half of what an H100 keeps up in products (700 TFLOP/s), 8 FLOPs a weight and token, recomputation counted. */
TEST(full_of_2b_in_8_gb) {
    for (int bits8 = 0; bits8 < 2; bits8++)
        for (int pure = 0; pure < 2; pure++) {
            struct train_options o = run_options();
            struct model_config c;
            struct estimate x;
            struct err e = {0};
            o.finetuning = FT_FULL, o.vram_bytes = 8000000000, o.optimizer = bits8 ? OPT_ADAMW_8BIT : OPT_ADAMW, o.pure_bf16 = pure;
            REQUIRE(!estimate(&o, "yuan2-2b", ESTIMATE_CARD, &x, &e) && !model_config_find("yuan2-2b", &c, &e), "%s", e.text);
            const double share = x.tokens_per_second * 8 * (double)model_parameters(&c) / 700e12;
            CHECK(share >= 0.5 && x.plan.device <= 8000000000 && x.plan.host < 40000000000, "%.1f %% in %lld and %lld bytes", 100 * share, (long long)x.plan.device, (long long)x.plan.host);
            struct estimate all = x;
            o.vram_bytes = 0, o.accumulate = 16;
            REQUIRE(!estimate(&o, "yuan2-2b", ESTIMATE_CARD, &all, &e), "%s", e.text);
            CHECK(!all.plan.choice.by_host && all.plan.choice.resident_layers == c.L && !all.plan.choice.state_on_host, "a card of 80 GB holds it all");
            model_config_free(&c);
        }
}

/* An update goes before the forward pass: copies for it wait for nothing else to hide behind, and the processor shares it. */
TEST(updates_are_waited_for) {
    struct plan_request r = request(1 << 20);
    struct plan p = {.choice = {.rows = 2048, .keep_layers = LAYERS, .resident_layers = LAYERS, .join = 1}, .items = 1};
    const double none = plan_seconds(&r, &p), pass = r.forward.products / r.flops * (1 + r.tail / 2048) + r.forward.attention / (0.38 * r.flops) + r.forward.bytes / (0.65 * r.bandwidth);
    p.item[0].update_in = pass / 2 * r.link;
    CHECK(plan_seconds(&r, &p) == none, "half a pass is hidden");
    p.item[0].update_in = (pass + 3) * r.link;
    CHECK(fabs(plan_seconds(&r, &p) - none - 3) < 1e-9, "%g s more", plan_seconds(&r, &p) - none);
    r.host_bandwidth = 1e3, p.item[0].by_host = (pass + 5) * 1e3;
    CHECK(fabs(plan_seconds(&r, &p) - none - 5) < 1e-9, "%g s more", plan_seconds(&r, &p) - none);
}

/* Budgets from more than enough to too little: kept, never faster with less, and the smallest is the smallest. */
TEST(budgets_of_real_runs) {
    static const char *const config[] = {"yuan2-2b", "yuan2-51b"};
    for (int m = 0; m < 2; m++)
        for (int method = 0; method < 3; method++) { /* QLoRA, LoRA, full */
            struct train_options o = run_options();
            struct estimate x, least;
            struct err e = {0};
            double before = 1e30;
            o.quantization_bit = method ? 0 : 4, o.finetuning = method == 2 ? FT_FULL : FT_LORA;
            REQUIRE(!estimate(&o, config[m], ESTIMATE_LEAST, &least, &e), "%s", e.text);
            for (double budget = 2e12; budget > 1e8; budget *= 0.6) {
                struct err why = {0};
                o.vram_bytes = (int64_t)budget;
                const int r = estimate(&o, config[m], ESTIMATE_CARD, &x, &why);
                CHECK(!r == (o.vram_bytes >= least.plan.device), "%s in %g bytes: %s", config[m], budget, why.text);
                if (r) {
                    CHECK(why.code == ERR_RUN && strstr(why.text, "needs at least") && strstr(why.text, "--cutoff_len"), "%s", why.text);
                    continue;
                }
                CHECK(x.plan.device == device_of(&x.plan) && x.plan.device <= o.vram_bytes, "%lld bytes", (long long)x.plan.device);
                CHECK(x.tokens_per_second <= before, "%s: %g tokens/s with less, %g with more", config[m], x.tokens_per_second, before);
                before = x.tokens_per_second;
            }
        }
}

/* Sizes as large as flags and config.json may say: refused in words, or planned without overflow (the sanitizer's build says). */
TEST(hostile_sizes) {
    static const char shape[] = "{\"model_type\": \"yuan\", \"hidden_size\": 65536, \"num_hidden_layers\": 1024, \"num_attention_heads\": 1024, \"intermediate_size\": 1048576, "
                                "\"vocab_size\": 4194304, \"max_position_embeddings\": 2147483647, \"tie_word_embeddings\": false}";
    static const int64_t size[] = {1, 2, 1 << 20};
    struct model_config c;
    struct err e = {0};
    REQUIRE(!model_config_parse(shape, strlen(shape), "largest", &c, &e), "%s", e.text);
    for (int i = 0; i < 3 * 3 * 3 * 2; i++) {
        struct train_options o = run_options();
        struct estimate x;
        struct err why = {0};
        o.batch = size[i % 3], o.accumulate = size[i / 3 % 3], o.data.cutoff_len = 16 * size[i / 9 % 3];
        o.finetuning = i / 27 ? FT_FULL : FT_LORA, o.lora.rank = 65536, o.max_steps = INT64_MAX, o.vram_bytes = INT64_MAX;
        const int r = train_estimate(&(struct estimate_options){.train = &o, .config = &c, .card = "3060"}, &x, &why);
        if (r) CHECK(strstr(why.text, "fits in no machine") || strstr(why.text, "needs at least"), "%s", why.text);
        else CHECK(x.plan.device > 0 && x.plan.device == device_of(&x.plan) && x.plan.host >= 0 && x.plan.seconds > 0, "%lld and %lld bytes", (long long)x.plan.device, (long long)x.plan.host);
    }
    model_config_free(&c);
}
TEST_MAIN
