/* tests/unit/test_sites.c - where dropout falls: each adapter of each layer has a mask of its own, in forward and backward the
 * same. A backend over the CPU's notes the keys that linear is given. */
#include "base/sys.h"
#include "model/engine.h"
#include "tests/test.h"
#include "train/params.h"

enum { LAYERS = 2, STEP = 5 };
static struct backend top, *cpu;
static int forward[LAYERS][PROJ_COUNT], backward[LAYERS][PROJ_COUNT], wrong;

static void note(const struct linear_args *a, int (*seen)[PROJ_COUNT]) {
    for (int i = 0; i < a->n; i++) {
        const struct dropout *d = &a->out[i].drop;
        if (d->layer >= LAYERS || d->site >= PROJ_COUNT || d->step != STEP || d->seed != 9 || !(d->p > 0.4f)) wrong++;
        else seen[d->layer][d->site]++;
    }
}
static void linear(void *self, const struct linear_args *a) { note(a, forward), cpu->linear(self, a); }
static void linear_bwd(void *self, const struct linear_args *a) { note(a, backward), cpu->linear_bwd(self, a); }

TEST(every_adapter_has_a_mask_of_its_own) {
    static const int32_t ids[] = {1, 2, 3, 4, 5, 6, 7};
    struct err e = {0};
    struct model m;
    struct model_config c;
    struct lora lora;
    struct params params = {0};
    struct engine g;
    struct batch b;
    struct model_how how = {.resident_layers = -1};
    struct lora_config l = {.rank = 4, .alpha = 8, .dropout = 0.5};
    REQUIRE((cpu = backend_cpu(&e)) && !model_config_find("yuan2-tiny", &c, &e), "%s", e.text);
    top = *cpu, top.linear = linear, top.linear_bwd = linear_bwd;
    c.V = 128;
    model_sketch(&m, &top, &c, &how);
    REQUIRE(!model_random(&m, &how, 1, &e) && !lora_parse_targets("all", &l.targets, &e) && !lora_init(&lora, &l, &m.config, &e), "%s", e.text);
    lora_start(&lora, 7);
    const struct params_how all = params_all(&m, 0);
    const struct params_place here = {.values = LAYERS, .state = LAYERS, .layers = LAYERS};
    REQUIRE(m.config.L == LAYERS && !params_describe(&params, &m, &lora, &all, &e) && !params_open(&params, &here, &e), "%s", e.text);
    struct engine_config k = {.rows = 16, .chunks = 1, .longest = 16, .training = 1, .drops = 1, .resident_acts = -1, .lora = &lora, .adapters = params.value};
    REQUIRE(!engine_open(&g, &m, &k, &e) && !batch_open(&b, &top, 16, 16, 16, 1, &e), "%s", e.text);
    const struct dropout drop = {.p = 0.5f, .seed = 9, .step = STEP};
    batch_fill(&b, &m.config, &(struct batch_sequence){.ids = ids, .n = 7, .weight = 1}, 1);
    engine_forward(&g, &b, &drop);
    engine_head(&g, &b, 1, NULL);
    for (int64_t i = LAYERS; i-- > 0;) {
        void *w = pages_get(m.layers, i, PAGE_READ);
        float *value = pages_get(params.value, i, PAGE_READ), *grad = pages_get(params.grad, i, PAGE_WRITE);
        engine_backward_layer(&g, &b, &drop, i, w, value, grad, NULL, i > 0);
        pages_put(params.value, i, 0), pages_put(params.grad, i, 1), pages_put(m.layers, i, 0);
    }
    CHECK(!wrong, "%d keys are of no layer, site, step or seed", wrong);
    for (int i = 0; i < LAYERS; i++)
        for (int p = 0; p < PROJ_COUNT; p++)
            CHECK(forward[i][p] >= 1 && backward[i][p] == 1, "layer %d, %s: %d forward, %d backward", i, proj_name[p], forward[i][p], backward[i][p]);
    batch_close(&b), engine_close(&g), params_close(&params), lora_free(&lora), model_free(&m);
    backend_close(cpu), model_config_free(&c);
}

TEST_MAIN
