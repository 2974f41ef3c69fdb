/* The adapter written by PEFT (goldens/yuan2-tiny-a/lora-adapter): read, and written again byte for byte. */
#include "base/file.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "lora/lora.h"
#include "tests/test.h"
#include <unistd.h>

TEST(reads_and_rewrites_a_peft_folder) {
    if (!shared_dir()) SKIP("no golden files");
    char dir[1200], model_dir[1200], path[1300], out[] = "/tmp/qlora-lora-XXXXXX";
    struct model_config m;
    struct lora l;
    struct err e = {0};
    snprintf(dir, sizeof dir, "%s/goldens/yuan2-tiny-a/lora-adapter", shared_dir());
    snprintf(model_dir, sizeof model_dir, "%s/goldens/yuan2-tiny-a/fp32", shared_dir());
    REQUIRE(!model_config_read(model_dir, &m, &e) && !lora_load(dir, &m, &l, &e), "%s", e.text);
    CHECK(l.config.rank == 4 && l.config.alpha == 8 && l.config.targets == (1u << PROJ_COUNT) - 1,
          "configuration");
    CHECK(lora_scale(&l.config) == 2.0f, "scale %g", (double)lora_scale(&l.config));

    /* every tensor of the file is where the offsets say */
    struct ckpt *c = ckpt_open_adapter(dir, &e);
    REQUIRE(c && ckpt_count(c) == 2 * 2 * PROJ_COUNT, "%s", e.text);
    for (int layer = 0; layer < 2; layer++)
        for (int p = 0; p < PROJ_COUNT; p++)
            for (int is_b = 0; is_b < 2; is_b++) {
                char name[200];
                float x[128 * 4];
                snprintf(name, sizeof name, "base_model.model.model.layers.%d.%s.lora_%c.weight", layer,
                         proj_module[p], "AB"[is_b]);
                const struct ckpt_tensor *t = ckpt_find(c, name);
                REQUIRE(t && t->count <= 512 && !ckpt_read_all(c, t, DT_F32, x, &e), "%s: %s", name, e.text);
                const float *ours =
                    l.data + layer * l.layer_floats +
                    (is_b ? lora_offset_b(&l, (enum proj)p) : lora_offset_a(&l, (enum proj)p));
                CHECK(!memcmp(ours, x, (size_t)t->count * sizeof *x), "%s", name);
            }
    ckpt_close(c);

    REQUIRE(mkdtemp(out) && !lora_save(&l, out, "../fp32", &e), "%s", e.text);
    char *theirs, *ours;
    size_t n, k;
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", dir);
    REQUIRE(!file_read_all(path, 1 << 20, &theirs, &n, &e), "%s", e.text);
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", out);
    REQUIRE(!file_read_all(path, 1 << 20, &ours, &k, &e), "%s", e.text);
    CHECK(n == k && !memcmp(ours, theirs, n), "%zu bytes, the golden file has %zu", k, n);
    sys_free(ours);
    sys_free(theirs);
    lora_free(&l);
    model_config_free(&m);
    dir_remove(out, &e);
}

/* The .bin path: a torch file that is no adapter is opened and refused by the name of its first strange tensor. */
TEST(reads_torch_files_too) {
    if (!shared_dir()) SKIP("no golden files");
    char from[1300], to[100], out[] = "/tmp/qlora-lora-XXXXXX";
    struct model_config m = {.D = 64, .L = 2, .H = 4, .K = 16, .F = 128, .V = 512};
    static const char config[] = "{\"target_modules\": [\"q_proj\"]}";
    struct lora l;
    struct err e = {0};
    REQUIRE(mkdtemp(out), "temporary folder");
    snprintf(from, sizeof from, "%s/goldens/yuan2-tiny-a/bf16/pytorch_model.bin", shared_dir());
    snprintf(to, sizeof to, "%s/adapter_model.bin", out);
    REQUIRE(!file_copy(from, to, &e), "%s", e.text);
    snprintf(to, sizeof to, "%s/adapter_config.json", out);
    REQUIRE(!file_write_all(to, config, sizeof config - 1, &e), "%s", e.text);
    CHECK(lora_load(out, &m, &l, &e) && strstr(e.text, "adapter_model.bin: tensor model.embed_tokens.weight"),
          "%s", e.text);
    e = (struct err){0};
    dir_remove(out, &e);
}
TEST_MAIN
