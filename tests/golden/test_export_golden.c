/* Merged checkpoints against the official code: logits of base + adapter (goldens/yuan2-tiny-a/expected_lora), through every
 * way to apply an adapter: beside the weights, stacked, and merged into fp32, bf16 and 4-bit files. */
#include "base/file.h"
#include "base/log.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "model/export.h"
#include "model/generate.h"
#include "tests/test.h"
#include <math.h>
#include <unistd.h>

enum { TOKENS = 17, V = 512 };
static struct err e;
static char root[64];

static const char *golden_path(const char *name) {
    static char path[4][1200];
    static int turn;
    char *p = path[turn++ & 3];
    snprintf(p, sizeof path[0], "%s/goldens/yuan2-tiny-a/%s", shared_dir(), name);
    return p;
}

static int read_golden(const char *file, const char *name, enum dtype type, void *x) {
    struct ckpt *c = ckpt_open(golden_path(file), &e);
    const struct ckpt_tensor *t = c ? ckpt_find(c, name) : NULL;
    int rc = t ? ckpt_read_all(c, t, type, x, &e) : -1;
    ckpt_close(c);
    return rc;
}

/* Logits of every position of ids_17; `stacked`: how many times the golden adapter is applied beside the weights. */
static int logits(const char *dir, int stacked, float out[TOKENS * V]) {
    struct model_how how = {.resident_layers = -1};
    struct model m = {0};
    struct lora l = {0}, more = {0};
    struct generator g = {0};
    struct pages *pages = NULL;
    struct ckpt *c = NULL;
    int32_t ids[TOKENS];
    int rc = -1;
    struct backend *be = backend_open("cpu", &e);
    if (!be || read_golden("inputs.safetensors", "ids_17", DT_I32, ids) || model_open(&m, be, dir, &how, &c, &e) ||
        model_load(&m, &how, c, &e))
        goto out;
    if (stacked && lora_load(golden_path("lora-adapter"), &m.config, &l, &e)) goto out;
    for (int i = 1; i < stacked; i++) {
        if (lora_load(golden_path("lora-adapter"), &m.config, &more, &e) || lora_append(&l, &more, &e)) goto out;
        lora_free(&more);
    }
    if (stacked) {
        struct pages_config pc = {.name = "adapters", .count = m.config.L, .page_bytes = (size_t)l.layer_floats * 4, .resident = m.config.L};
        if (!(pages = pages_open(be, &pc, &e))) goto out;
        for (int64_t i = 0; i < m.config.L; i++)
            if (pages_write(pages, i, 0, l.data + i * l.layer_floats, pc.page_bytes, &e)) goto out;
    }
    if (generator_open(&g, &m, stacked ? &l : NULL, pages, TOKENS, &e)) goto out;
    for (int t = 0; t < TOKENS; t++) {
        if (generator_feed(&g, ids + t, 1, &e)) goto out;
        memcpy(out + t * V, g.logits, V * sizeof *out);
    }
    rc = 0;
out:
    ckpt_close(c), generator_close(&g), pages_close(pages), lora_free(&l), lora_free(&more), model_free(&m), backend_close(be);
    return rc;
}

static double difference(const float *x, const float *y) {
    double m = 0;
    for (int i = 0; i < TOKENS * V; i++) m = isfinite(x[i]) ? fmax(m, fabs((double)x[i] - (double)y[i])) : INFINITY;
    return m;
}

static const char *exported(const char *name, const char *from, const char *adapters, enum dtype type, int bits) {
    static char dir[4][200];
    static int turn;
    char *d = dir[turn++ & 3];
    struct export_how how = {.type = (int)type, .bits = bits, .nested = 1, .adapters = adapters};
    log_quiet = 1;
    snprintf(d, sizeof dir[0], "%s/%s", root, name);
    return model_export(from, d, &how, &e) ? NULL : d;
}

static float want[TOKENS * V], have[TOKENS * V], other[TOKENS * V];

TEST(merged_is_base_plus_adapter) {
    if (!shared_dir()) SKIP("no golden files");
    REQUIRE(!read_golden("expected_lora.safetensors", "logits_17", DT_F32, want), "%s", e.text);
    REQUIRE(!logits(golden_path("fp32"), 1, other) && difference(other, want) < 1e-4, "beside the weights: %g", difference(other, want));
    const char *dir = exported("m32", golden_path("fp32"), golden_path("lora-adapter"), DT_F32, 0);
    REQUIRE(dir && !logits(dir, 0, have), "%s", e.text);
    /* both differ by fp32 rounding alone: sums of up to 128 products of size 1 */
    CHECK(difference(have, other) < 2e-5, "merged and beside the weights differ by %g", difference(have, other));
    CHECK(difference(have, want) < 1e-4, "merged in fp32: %g", difference(have, want));

    /* bf16: what rounding the weights of this model does to its logits, by the goldens */
    REQUIRE(!read_golden("expected_full.safetensors", "logits_17", DT_F32, have) && !read_golden("expected_bf16.safetensors", "logits_17", DT_F32, other), "%s", e.text);
    double rounding = difference(have, other);
    dir = exported("m16", golden_path("fp32"), golden_path("lora-adapter"), DT_BF16, 0);
    REQUIRE(dir && !logits(dir, 0, have), "%s", e.text);
    CHECK(difference(have, want) < 2 * rounding, "merged in bf16: %g, rounding moves logits by %g", difference(have, want), rounding);

    /* 4 bits: the file and its decoded form are one model, since 4-bit weights enter products as bf16 */
    const char *four = exported("m4", golden_path("bf16"), golden_path("lora-adapter"), DT_BF16, 4), *back = four ? exported("m4b", four, NULL, DT_BF16, 0) : NULL;
    REQUIRE(back && !logits(four, 0, have) && !logits(back, 0, other), "%s", e.text);
    CHECK(difference(have, other) < 2e-5, "4 bits and decoded: %g", difference(have, other));
}

TEST(two_adapters_stacked_are_two_adapters_merged) {
    if (!shared_dir()) SKIP("no golden files");
    char twice[2500];
    snprintf(twice, sizeof twice, "%s,%s", golden_path("lora-adapter"), golden_path("lora-adapter"));
    const char *dir = exported("t32", golden_path("fp32"), twice, DT_F32, 0);
    REQUIRE(dir && !logits(dir, 0, have) && !logits(golden_path("fp32"), 2, other), "%s", e.text);
    CHECK(difference(have, other) < 2e-5, "%g", difference(have, other));
    REQUIRE(!read_golden("expected_lora.safetensors", "logits_17", DT_F32, want), "%s", e.text);
    CHECK(difference(have, want) > 0.1, "the second adapter has no effect");
}

__attribute__((constructor)) static void make_root(void) {
    snprintf(root, sizeof root, "/tmp/qlora-export-golden-%d", (int)getpid());
    dir_make(root, NULL);
}
__attribute__((destructor)) static void remove_root(void) {
    dir_remove(root, NULL);
}

TEST_MAIN
