/* Weights of the model trained in full, in part and in bf16: a few steps of a small model with random weights, in any plan, with
 * masters or without, updated on the device or by the processor. Every plan must leave the same bits; a part that is trained
 * alone must get the gradients that it gets among all. */
#include "tests/test.h"
#include "base/sys.h"
#include "model/tensors.h"
#include "train/trained.h"
#include "train/train_internal.h"
#include <math.h>
#include <unistd.h>

static const char shape[] = "{\"model_type\": \"yuan\", \"hidden_size\": 64, \"num_hidden_layers\": 4, \"num_attention_heads\": 4, \"intermediate_size\": 96, \"vocab_size\": 700, \"eod_token\": 698, \"pad_token_id\": 699, "
                            "\"max_position_embeddings\": 512, \"torch_dtype\": \"%s\", \"tie_word_embeddings\": %s}";
enum { STEPS = 3, SEQUENCES = 4, TOKENS = 33, LEAST = -1 };

struct run { /* how, and what came of it */
    enum finetuning finetuning;
    int bits8, pure, copies, untied;
    int64_t layers;
    const char *modules, *extra;
    int64_t vram;            /* LEAST: as little as it can do with */
    int by_host;             /* layers that the processor updates, slowly */
    int64_t resident;        /* so many layers at home on the device, whatever the plan says; 0: as it says */
    /* results */
    double loss[STEPS];
    float *value;            /* of all tensors in the order of the model */
    int64_t values, trained, device, streamed;
    double *norm;            /* squared gradient norms of the first step by layer (L: outer ones) and tensor */
};
enum { NORMS = LT_COUNT * 5 };

static void options(const struct run *r, struct train_options *o) {
    *o = (struct train_options){.finetuning = r->finetuning, .optimizer = r->bits8 ? OPT_ADAMW_8BIT : OPT_ADAMW, .pure_bf16 = r->pure, .freeze_layers = r->layers,
                                .freeze_modules = r->modules ? r->modules : "all", .freeze_extra = r->extra, .data = {.cutoff_len = TOKENS}, .batch = 1, .accumulate = SEQUENCES, .backend = "cpu",
                                .gradient_checkpointing = 1, .max_steps = STEPS, .learning_rate = 1e-3, .weight_decay = 0.01, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .max_grad_norm = 1,
                                .seed = 7, .vram_bytes = r->vram > 0 ? r->vram : r->vram == LEAST ? 1 : 0};
}

static int all_values(struct trainer *t, struct run *r, struct err *e) {
    struct params_reading from = {.q = &t->params};
    const struct model *m = &t->model;
    params_settle(&t->params);
    r->value = calloc((size_t)model_parameters(&m->config), sizeof *r->value);
    for (int64_t l = -1; l < m->config.L; l++)
        for (int i = 0; i < (l < 0 ? OT_COUNT : LT_COUNT); i++) {
            const struct tensor_place *p = l < 0 ? &m->outer[i] : &m->lay.t[i];
            if (!p->bytes) continue;
            if (params_read(&from, l, i, 0, p->rows * p->cols, r->value + r->values, e)) return -1;
            r->values += p->rows * p->cols;
        }
    return 0;
}

/* The copies that products read are the masters, rounded. */
static void check_copies(struct trainer *t, struct err *e) {
    const struct model *m = &t->model;
    struct params_reading from = {.q = &t->params};
    for (int64_t l = -1; l < m->config.L; l++)
        for (int i = 0; i < (l < 0 ? OT_COUNT : LT_COUNT); i++) {
            size_t size;
            const struct tensor_place *p = model_place(m, l, i, &size);
            const int64_t n = p->bytes ? p->rows * p->cols : 0;
            float *x = calloc((size_t)n + 1, 4), *y = calloc((size_t)n + 1, 4);
            REQUIRE(!params_read(&from, l, i, 0, n, x, e) && (!n || !model_read_pages(&t->model, l, i, 0, n, y, e)), "%s", e->text);
            int64_t off = 0;
            for (int64_t k = 0; k < n; k++) off += fabsf(y[k] - x[k]) > (size == 2 ? fabsf(x[k]) / 256 : 0);
            CHECK(!off, "layer %lld, tensor %d: %lld copies differ", (long long)l, i, (long long)off);
            free(x), free(y);
        }
}

static int rates_tried;

/* A processor that the passes are ahead of: what they take of a layer before it is up to date shows. */
static void (*adam)(void *self, const struct adam_args *a);
static void late_adam(void *self, const struct adam_args *a) { usleep(2000), adam(self, a); }

static int train(struct run *r, struct err *e) {
    struct train_options o;
    struct model_config c;
    char text[600];
    options(r, &o);
    snprintf(text, sizeof text, shape, r->copies || r->pure ? "bfloat16" : "float32", r->untied ? "false" : "true");
    struct trainer t = {.o = &o, .copies = r->copies};
    int32_t ids[SEQUENCES][TOKENS], status = -1;
    if (model_config_parse(text, strlen(text), "a test's model", &c, e) || !(t.be = backend_open("cpu", e))) return -1;
    setup_shape(&t);
    if (setup_model(&t, &c, e)) goto out;
    t.request.host_layers = r->by_host, t.request.host_bandwidth = 1e18;
    if (r->by_host) t.request.link = 1; /* so that it is worth it */
    if (setup_plan(&t, e)) {
        if (r->vram != LEAST) goto out;
        t.request.budget = t.plan.device, *e = (struct err){0};
        if (setup_plan(&t, e)) goto out;
    }
    if (r->by_host && !rates_tried) { /* the rate that was made up gives way to one of this machine */
        rates_tried = 1;
        t.request.host_bandwidth = 1e12;
        if (rates_measure(&t, e)) goto out;
        CHECK(t.request.host_bandwidth > 1e8 && t.request.host_bandwidth < 1e12, "the processor's update moves %g bytes/s", t.request.host_bandwidth);
        t.request.host_bandwidth = 1e18;
        if (setup_plan(&t, e)) goto out;
    }
    CHECK(t.plan.choice.by_host == r->by_host, "%lld layers are updated by the processor", (long long)t.plan.choice.by_host);
    if (r->resident) t.plan.choice.resident_layers = r->resident;
    r->device = t.plan.device, r->streamed = c.L - t.plan.choice.resident_layers;
    t.how.resident_layers = t.plan.choice.resident_layers, t.how.outer_on_host = t.plan.choice.outer_on_host;
    if (model_random(&t.model, &t.how, o.seed, e) || setup_run(&t, model_read_pages, &t.model, e)) goto out;
    if (t.params.host) adam = t.params.host->adam, t.params.host->adam = late_adam;
    r->trained = t.params.total, r->norm = calloc(NORMS, sizeof *r->norm);
    t.sequences = sys_alloc_array(SEQUENCES, sizeof *t.sequences, "sequences", e);
    for (int s = 0; s < SEQUENCES; s++) {
        for (int i = 0; i < TOKENS; i++) ids[s][i] = (s * 331 + i * i * 17 + i * 7) % 690;
        t.sequences[s] = (struct batch_sequence){.ids = ids[s], .n = TOKENS, .weight = 1.0f / (SEQUENCES * (TOKENS - 1))};
    }
    for (int step = 0; step < STEPS; step++) {
        struct step_result x = {0};
        if (train_update(&t, step, SEQUENCES, &x, e)) goto out;
        CHECK(x.finite, "step %d", step);
        r->loss[step] = x.loss, t.at.updates++;
        for (int64_t i = 0; !step && i < t.params.count; i++) {
            const struct param *p = &t.params.p[i];
            if (!p->at) r->norm[(p->layer < 0 ? 4 : p->layer) * LT_COUNT + p->which] = t.params.norms[i];
        }
    }
    status = all_values(&t, r, e);
    if (r->copies) check_copies(&t, e);
out:
    model_config_free(&c);
    setup_close(&t);
    return status;
}

static void drop(struct run *r) { free(r->value), free(r->norm); }

/* Runs of one kind under many plans. */
static void same_everywhere(struct run how, const char *name) {
    struct run first = how;
    struct err e = {0};
    REQUIRE(!train(&first, &e), "%s: %s", name, e.text);
    CHECK(first.loss[STEPS - 1] < first.loss[0], "%s: losses %g %g %g", name, first.loss[0], first.loss[1], first.loss[2]);
    static const struct { int64_t vram; int by_host; double more; int64_t resident; } plan[] = {{LEAST, 0, 1, 0}, {LEAST, 2, 1, 0}, {LEAST, 2, 1, 2}, {0, 0, 1.15, 0}, {0, 0, 1.6, 0}};
    const size_t plans = getenv("RUNNER") ? 3 : sizeof plan / sizeof *plan; /* valgrind takes minutes for all */
    int64_t least = 0;
    for (size_t i = 0; i < plans; i++) {
        struct run r = how;
        if (plan[i].by_host && (how.finetuning == FT_FREEZE && llabs(how.layers) < 3)) continue; /* two layers lie in their slots */
        r.vram = plan[i].vram ? plan[i].vram : (int64_t)(plan[i].more * (double)least), r.by_host = plan[i].by_host, r.resident = plan[i].resident;
        REQUIRE(!train(&r, &e), "%s, plan %zu: %s", name, i, e.text);
        if (!i) least = r.device;
        if (!i) CHECK(least < first.device && r.streamed, "%s: at least %lld bytes, %lld without a budget", name, (long long)least, (long long)first.device);
        CHECK(r.values == first.values && !memcmp(r.value, first.value, (size_t)r.values * 4) && !memcmp(r.loss, first.loss, sizeof r.loss), "%s, plan %zu: losses %a %a", name, i, r.loss[STEPS - 1],
              first.loss[STEPS - 1]);
        drop(&r);
    }
    drop(&first);
}

TEST(any_plan_leaves_the_same_bits) {
    same_everywhere((struct run){.finetuning = FT_FULL}, "full");
    same_everywhere((struct run){.finetuning = FT_FULL, .bits8 = 1, .untied = 1}, "full, 8-bit state, head of its own");
    same_everywhere((struct run){.finetuning = FT_FULL, .copies = 1}, "full, copies");
    same_everywhere((struct run){.finetuning = FT_FULL, .copies = 1, .bits8 = 1}, "full, copies, 8-bit state");
    same_everywhere((struct run){.finetuning = FT_FULL, .pure = 1}, "full, pure bf16");
    same_everywhere((struct run){.finetuning = FT_FULL, .pure = 1, .bits8 = 1}, "full, pure bf16, 8-bit state");
    same_everywhere((struct run){.finetuning = FT_FREEZE, .layers = 2}, "freeze");
    same_everywhere((struct run){.finetuning = FT_FREEZE, .layers = -3, .copies = 1, .modules = "mlp,input_layernorm"}, "freeze, first layers, copies");
    same_everywhere((struct run){.finetuning = FT_FREEZE, .layers = 2, .pure = 1, .extra = "embed_tokens,norm"}, "freeze, pure bf16, embedding");
}

TEST(copies_are_near_their_masters) { /* the same steps with products of bf16 weights: a loss of 7 moves in the third digit */
    struct run a = {.finetuning = FT_FULL}, b = {.finetuning = FT_FULL, .copies = 1}, c = {.finetuning = FT_FULL, .pure = 1};
    struct err e = {0};
    REQUIRE(!train(&a, &e) && !train(&b, &e) && !train(&c, &e), "%s", e.text);
    for (int i = 0; i < STEPS; i++) CHECK(fabs(a.loss[i] - b.loss[i]) < 2e-2 && fabs(b.loss[i] - c.loss[i]) < 2e-2, "step %d: %g, %g, %g", i, a.loss[i], b.loss[i], c.loss[i]);
    int64_t wide = 0, pure = 0;
    for (int64_t i = 0; i < b.values; i++) {
        union { float f; uint32_t u; } x = {b.value[i]}, y = {c.value[i]};
        wide += (x.u & 0xffff) != 0, pure += (y.u & 0xffff) != 0;
    }
    CHECK(wide > b.values / 2, "%lld of %lld masters have more than bf16", (long long)wide, (long long)b.values);
    CHECK(!pure, "%lld values have more than bf16", (long long)pure);
    drop(&a), drop(&b), drop(&c);
}

TEST(a_part_gets_the_gradients_it_gets_among_all) {
    static const struct run parts[] = {
        {.finetuning = FT_FREEZE, .layers = 2}, {.finetuning = FT_FREEZE, .layers = -1}, {.finetuning = FT_FREEZE, .layers = 1, .modules = "mlp"},
        {.finetuning = FT_FREEZE, .layers = 1, .modules = "self_attn"}, {.finetuning = FT_FREEZE, .layers = 4, .modules = "input_layernorm,post_attention_layernorm", .extra = "norm"},
        {.finetuning = FT_FREEZE, .extra = "embed_tokens"}, {.finetuning = FT_FREEZE, .extra = "norm"}, {.finetuning = FT_FREEZE, .layers = 1, .extra = "lm_head", .untied = 1}};
    struct err e = {0};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        struct run all = {.finetuning = FT_FULL, .untied = parts[i].untied}, part = parts[i];
        REQUIRE(!train(&all, &e) && !train(&part, &e), "part %zu: %s", i, e.text);
        int64_t same = 0, other = 0;
        for (int k = 0; k < NORMS; k++) same += part.norm[k] == all.norm[k] && all.norm[k] > 0, other += part.norm[k] != all.norm[k] && part.norm[k] != 0;
        CHECK(same && !other, "part %zu: %lld gradients agree, %lld do not", i, (long long)same, (long long)other);
        CHECK(part.trained < all.trained && part.trained > 0, "part %zu: %lld numbers of %lld", i, (long long)part.trained, (long long)all.trained);
        drop(&all), drop(&part);
    }
}

TEST(what_is_frozen_stays) {
    struct run none = {.finetuning = FT_FREEZE, .extra = "norm"}, mlp = {.finetuning = FT_FREEZE, .layers = -2, .modules = "mlp"};
    struct err e = {0};
    REQUIRE(!train(&none, &e) && !train(&mlp, &e), "%s", e.text);
    int64_t changed = 0;
    for (int64_t i = 0; i < mlp.values; i++) changed += mlp.value[i] != none.value[i];
    CHECK(mlp.trained == 2 * 3 * 64 * 96 && changed > mlp.trained * 9 / 10 && changed <= mlp.trained + 64, "%lld numbers changed of %lld trained", (long long)changed, (long long)mlp.trained);
    drop(&none), drop(&mlp);
}

static void refuses(struct run r, const char *sentence) {
    struct err e = {0};
    CHECK(train(&r, &e) && e.code == ERR_INPUT && strstr(e.text, sentence), "%s", e.text);
}
TEST(modules_that_are_not_there) {
    refuses((struct run){.finetuning = FT_FREEZE, .layers = 1, .modules = "mlps"}, "Module mlps is not found, please choose from self_attn, mlp, input_layernorm, post_attention_layernorm");
    refuses((struct run){.finetuning = FT_FREEZE, .layers = 1, .extra = "lm_head"}, "Module lm_head is not found, please choose from embed_tokens, norm");
    refuses((struct run){.finetuning = FT_FREEZE}, "nothing is left to train");
}
TEST_MAIN
