/* qlora export as a function: merged, converted, resharded and quantised checkpoints against plain loops over whole matrices,
 * and everything that must be refused. Models are tiny but have every tensor. */
#include "base/file.h"
#include "base/half.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/str.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "lora/lora.h"
#include "model/export.h"
#include "model/tensors.h"
#include "tests/test.h"
#include <math.h>
#include <unistd.h>

static char root[64];

static const char *folder(const char *name) {
    static char path[8][128];
    static int turn;
    char *p = path[turn++ & 7];
    snprintf(p, sizeof path[0], "%s/%s", root, name);
    return p;
}

/* A model of the tiny configuration; wide: MLP matrices with more elements than a piece of the export and an odd end. */
static int make(const char *name, const char *type, int wide, struct err *e) {
    struct model_config base = {0}, c = {0};
    const char *text = model_config_named("yuan2-tiny"),
               *overrides[] = {"vocab_size=512",   "eod_token=510", "eos_token_id=510",    "pad_token_id=510",
                               type,               wide ? "num_hidden_layers=1" : "num_hidden_layers=2",
                               "intermediate_size=32801"};
    char *changed = NULL;
    log_quiet = 1;
    *e = (struct err){0};
    int rc = model_config_parse(text, strlen(text), "tiny", &base, e) ||
             !(changed = model_config_text(&base, overrides, wide ? 7 : 6, NULL, e)) ||
             model_config_parse(changed, strlen(changed), "tiny", &c, e) || dir_make(folder(name), e) ||
             model_new(&c, folder(name), 1, NULL, e);
    sys_free(changed);
    model_config_free(&base);
    model_config_free(&c);
    return rc ? -1 : 0;
}

/* An adapter for a model with values of some size in A and B. */
static int make_adapter(const char *name, const char *model, struct lora_config c, uint32_t seed, struct err *e) {
    struct model_config m;
    struct lora l = {0};
    int rc = model_config_read(folder(model), &m, e);
    if (rc) return -1;
    rc = lora_init(&l, &c, &m, e);
    for (int64_t i = 0; !rc && i < m.L * l.layer_floats; i++) {
        uint32_t counter[4] = {(uint32_t)i, 0, 0, 0}, key[2] = {seed, 1}, word[4];
        philox4x32(counter, key, word);
        l.data[i] = ((float)(word[0] >> 8) * 0x1p-23f - 1) * 0.1f;
    }
    rc = rc || dir_make(folder(name), e) || lora_save(&l, folder(name), model, e);
    lora_free(&l);
    model_config_free(&m);
    return rc ? -1 : 0;
}

static int export_as(const char *from, const char *to, struct export_how how, struct err *e) {
    *e = (struct err){0};
    return model_export(folder(from), folder(to), &how, e);
}

static char *read_bytes(const char *dir, const char *file, size_t *n) {
    char path[300], *p = NULL;
    snprintf(path, sizeof path, "%s/%s", folder(dir), file);
    return file_read_all(path, 1 << 26, &p, n, NULL) ? NULL : p;
}

static int same_file(const char *a, const char *b, const char *file) {
    size_t n = 0, m = 0;
    char *x = read_bytes(a, file, &n), *y = read_bytes(b, file, &m);
    int same = x && y && n == m && !memcmp(x, y, n);
    sys_free(x);
    sys_free(y);
    return same;
}

static float *read_tensor(const struct ckpt *c, const char *name) {
    const struct ckpt_tensor *t = ckpt_find(c, name);
    float *x = t ? sys_alloc((size_t)t->count * 4, "test", NULL) : NULL;
    return x && !ckpt_read_all(c, t, DT_F32, x, NULL) ? x : NULL;
}

/* The matrix of a quantised checkpoint decoded in one call. */
static float *decoded(const struct ckpt *c, const char *name) {
    struct ckpt_quant q;
    if (ckpt_quant(c, name, &q, NULL)) return NULL;
    if (!q.bits) return read_tensor(c, name);
    int64_t n = q.rows * q.cols, nb = q.bits == 4 ? q.absmax->count : q.rows;
    float *x = sys_alloc((size_t)n * 4, "test", NULL), *scale = sys_alloc((size_t)nb * 4, "test", NULL);
    uint8_t *codes = sys_alloc((size_t)n, "test", NULL), *small = sys_alloc((size_t)nb, "test", NULL);
    float *nested = sys_alloc((size_t)q4_nested(nb) * 4, "test", NULL);
    ckpt_read_all(c, q.weight, q.weight->type, codes, NULL);
    if (q.bits == 8) {
        ckpt_read_all(c, q.row_scale, DT_F32, scale, NULL);
        int8_decode((int8_t *)codes, scale, q.cols, 0, q.rows, x, DT_F32);
    } else {
        struct q4_view v = {.codes = codes, .levels = q.levels, .block = q.block, .nested_map = q.nested_map, .nested_offset = q.nested_offset};
        if (q.nested) {
            ckpt_read_all(c, q.absmax, DT_U8, small, NULL), ckpt_read_all(c, q.nested_absmax, DT_F32, nested, NULL);
            v.absmax_q = small, v.nested_absmax = nested;
        } else {
            ckpt_read_all(c, q.absmax, DT_F32, scale, NULL);
            v.absmax = scale;
        }
        q4_decode(&v, 0, n, x, DT_F32);
    }
    sys_free(scale), sys_free(codes), sys_free(small), sys_free(nested);
    return x;
}

static int projection_of(const char *name) {
    for (int p = 0; p < PROJ_COUNT; p++)
        if (strstr(name, proj_module[p])) return p;
    return -1;
}

/* Every tensor of `to` against round(W + sum of scale B A), the sum in double. The fp32 sum of rank R products and the
 * addition are off by at most (R + 2) units of 2^-24 of the sum of magnitudes; rounding to bf16 adds 2^-8 of the value. */
static void check_merged(const char *from, const char *to, const char *const *adapters, int n, enum dtype type) {
    struct model_config c;
    struct err e = {0};
    struct lora l[2] = {0};
    REQUIRE(!model_config_read(folder(from), &c, &e), "%s", e.text);
    for (int i = 0; i < n; i++) REQUIRE(!lora_load(folder(adapters[i]), &c, &l[i], &e), "%s", e.text);
    struct ckpt *in = ckpt_open(folder(from), &e), *out = ckpt_open(folder(to), &e);
    REQUIRE(in && out && ckpt_count(out) == model_tensor_count(&c), "%s", e.text);
    for (int64_t i = 0; i < model_tensor_count(&c); i++) {
        struct model_tensor t;
        model_tensor_at(&c, i, &t);
        float *w = decoded(in, t.name), *have = read_tensor(out, t.name);
        REQUIRE(w && have && ckpt_find(out, t.name)->type == type, "%s", t.name);
        int p = t.kind == TENSOR_PROJ ? projection_of(t.name) : -1;
        int64_t layer = p < 0 ? 0 : strtoll(t.name + strlen("model.layers."), NULL, 10), bad = 0;
        for (int64_t k = 0; k < t.count; k++) {
            double sum = w[k], size = fabs(sum), ranks = 0;
            for (int a = 0; p >= 0 && a < n; a++) {
                if (!(l[a].config.targets >> p & 1)) continue;
                const float *x = l[a].data + layer * l[a].layer_floats, *A = x + lora_offset_a(&l[a], (enum proj)p),
                            *B = x + lora_offset_b(&l[a], (enum proj)p);
                int64_t R = l[a].config.rank, row = k / t.shape[1], col = k % t.shape[1];
                ranks += (double)R + 2;
                for (int64_t r = 0; r < R; r++) {
                    double part = (double)lora_scale(&l[a].config) * B[row * R + r] * A[r * t.shape[1] + col];
                    sum += part, size += fabs(part);
                }
            }
            double allowed = ranks * 0x1p-24 * size + (type == DT_F32 ? 0 : fabs(sum) * (type == DT_BF16 ? 0x1p-8 : 0x1p-11));
            if (type == DT_F16) allowed += 0x1p-25; /* subnormals */
            if (!(fabs(have[k] - sum) <= allowed) && !bad++)
                CHECK(0, "%s[%lld]: %.9g, %.9g expected", t.name, (long long)k, (double)have[k], sum);
        }
        CHECK(!bad, "%s: %lld of %lld elements", t.name, (long long)bad, (long long)t.count);
        sys_free(w), sys_free(have);
    }
    ckpt_close(in), ckpt_close(out);
    lora_free(&l[0]), lora_free(&l[1]);
    model_config_free(&c);
}

static const struct lora_config plain = {.rank = 3, .alpha = 6, .targets = 0x7f}, rs = {.rank = 4, .alpha = 8, .rslora = 1, .targets = 1u << PROJ_V | 1u << PROJ_DOWN};

TEST(merging_is_adding_scale_times_b_times_a) {
    static const char *const types[] = {"torch_dtype=bfloat16", "torch_dtype=float16", "torch_dtype=float32"};
    static const enum dtype stored[] = {DT_BF16, DT_F16, DT_F32};
    static const char *const both[] = {"one", "two"};
    struct err e;
    char list[300];
    REQUIRE(!make("m", "torch_dtype=float32", 0, &e) && !make_adapter("one", "m", plain, 1, &e) && !make_adapter("two", "m", rs, 2, &e), "%s", e.text);
    snprintf(list, sizeof list, "%s,%s", folder("one"), folder("two"));
    for (int i = 0; i < 3; i++) {
        char from[20], to[20];
        snprintf(from, sizeof from, "base%d", i), snprintf(to, sizeof to, "merged%d", i);
        REQUIRE(!make(from, types[i], 0, &e), "%s", e.text);
        REQUIRE(!export_as(from, to, (struct export_how){.type = -1, .adapters = folder("one")}, &e), "%s", e.text);
        check_merged(from, to, both, 1, stored[i]);
        snprintf(to, sizeof to, "both%d", i);
        REQUIRE(!export_as(from, to, (struct export_how){.type = -1, .adapters = list}, &e), "%s", e.text);
        check_merged(from, to, both, 2, stored[i]);
    }
    /* rounded once: the bf16 file holds the fp32 file's values, rounded */
    REQUIRE(!export_as("base2", "once", (struct export_how){.type = DT_BF16, .adapters = list}, &e), "%s", e.text);
    check_merged("base2", "once", both, 2, DT_BF16);
    struct ckpt *wide = ckpt_open(folder("both2"), &e), *narrow = ckpt_open(folder("once"), &e);
    REQUIRE(wide && narrow, "%s", e.text);
    for (int64_t i = 0; i < ckpt_count(wide); i++) {
        const char *name = ckpt_at(wide, i)->name;
        float *x = read_tensor(wide, name), *y = read_tensor(narrow, name);
        int64_t bad = 0;
        for (int64_t k = 0; k < ckpt_at(wide, i)->count; k++) bad += bf16_to_f32(f32_to_bf16(x[k])) != y[k];
        CHECK(!bad, "%s: %lld elements", name, (long long)bad);
        sys_free(x), sys_free(y);
    }
    ckpt_close(wide), ckpt_close(narrow);
}

TEST(pieces_and_odd_ends) {
    static const char *const one[] = {"wa"};
    struct err e;
    REQUIRE(!make("wide", "torch_dtype=bfloat16", 1, &e) && !make_adapter("wa", "wide", plain, 3, &e), "%s", e.text);
    REQUIRE(!export_as("wide", "widem", (struct export_how){.type = DT_F32, .adapters = folder("wa")}, &e), "%s", e.text);
    check_merged("wide", "widem", one, 1, DT_F32);
    /* the same through 4-bit (both kinds of scales) and 8-bit sources, whose blocks run across rows and pieces */
    static const struct export_how sources[] = {{.type = -1, .bits = 4, .nested = 1}, {.type = -1, .bits = 4, .q_type = Q4_FP4}, {.type = -1, .bits = 8}};
    for (int i = 0; i < 3; i++) {
        struct export_how over = {.type = DT_F32, .adapters = folder("wa"), .overwrite = 1};
        dir_remove(folder("wideq"), NULL);
        REQUIRE(!export_as("wide", "wideq", sources[i], &e) && !export_as("wideq", "widem", over, &e), "%s", e.text);
        check_merged("wideq", "widem", one, 1, DT_F32);
        over.adapters = NULL;
        REQUIRE(!export_as("wideq", "widem", over, &e), "%s", e.text);
        check_merged("wideq", "widem", one, 0, DT_F32);
        over.bits = 8; /* rows of a 4-bit matrix do not begin where blocks do */
        REQUIRE(!export_as("wideq", "widem", over, &e), "%s", e.text);
    }
}

TEST(four_bits_at_once_are_four_bits_afterwards) {
    static const struct export_how ways[] = {{.type = -1, .bits = 4, .nested = 1}, {.type = -1, .bits = 4}, {.type = -1, .bits = 4, .q_type = Q4_FP4}, {.type = -1, .bits = 8}};
    struct err e;
    REQUIRE(!make("q", "torch_dtype=bfloat16", 0, &e) && !make_adapter("qa", "q", plain, 4, &e), "%s", e.text);
    REQUIRE(!export_as("q", "qm", (struct export_how){.type = -1, .adapters = folder("qa")}, &e), "%s", e.text);
    for (int i = 0; i < 4; i++) {
        struct export_how once = ways[i];
        once.adapters = folder("qa");
        dir_remove(folder("q1"), NULL), dir_remove(folder("q2"), NULL);
        REQUIRE(!export_as("q", "q1", once, &e) && !export_as("qm", "q2", ways[i], &e), "%s", e.text);
        CHECK(same_file("q1", "q2", "model.safetensors"), "way %d: weights differ", i);
        CHECK(same_file("q1", "q2", "config.json"), "way %d: config.json differs", i);
    }
    /* and back: codes of decoded weights are the same codes, because each block holds a +-1 code; the scales are exact */
    REQUIRE(!export_as("qm", "r4", (struct export_how){.type = -1, .bits = 4}, &e) &&
                !export_as("r4", "r32", (struct export_how){.type = DT_F32}, &e) &&
                !export_as("r32", "r4b", (struct export_how){.type = -1, .bits = 4}, &e), "%s", e.text);
    struct ckpt *a = ckpt_open(folder("r4"), &e), *b = ckpt_open(folder("r4b"), &e);
    const char *name = "model.layers.1.mlp.down_proj.weight";
    float *x = a ? decoded(a, name) : NULL, *y = b ? decoded(b, name) : NULL;
    REQUIRE(x && y, "%s", e.text);
    CHECK(!memcmp(x, y, 64 * 128 * 4), "4 bits, decoded and encoded again, are other values");
    sys_free(x), sys_free(y);
    ckpt_close(a), ckpt_close(b);
}

TEST(shards_hold_what_fits_and_nothing_else_changes) {
    struct err e;
    struct model_config c;
    const int64_t limit = 30000; /* the embedding has 65,536 bytes: alone in its file */
    REQUIRE(!make("s", "torch_dtype=bfloat16", 0, &e) && !export_as("s", "sharded", (struct export_how){.type = -1, .shard_bytes = limit}, &e), "%s", e.text);
    REQUIRE(!model_config_read(folder("s"), &c, &e), "%s", e.text);
    struct ckpt *out = ckpt_open(folder("sharded"), &e);
    REQUIRE(out, "%s", e.text);
    int64_t bytes[64] = {0}, tensors[64] = {0}, files = 0, order = -1;
    for (int64_t i = 0; i < model_tensor_count(&c); i++) { /* shards in the order of the model, each as full as it gets */
        struct model_tensor t;
        model_tensor_at(&c, i, &t);
        const struct ckpt_tensor *k = ckpt_find(out, t.name);
        REQUIRE(k && k->file < 64, "%s", t.name);
        int shard = atoi(strstr(ckpt_file(out, k), "model-") + 6);
        CHECK(shard >= order, "%s goes back to shard %d", t.name, shard);
        if (shard > order) {
            CHECK(order < 0 || bytes[order] + 2 * t.count > limit, "shard %lld had room for %s", (long long)order, t.name);
            order = shard, files++;
        }
        bytes[shard] += 2 * t.count, tensors[shard]++;
    }
    for (int i = 0; i < 64; i++) CHECK(bytes[i] <= limit || tensors[i] == 1, "shard %d: %lld bytes in %lld tensors", i, (long long)bytes[i], (long long)tensors[i]);
    CHECK(files > 5, "%lld files", (long long)files);
    ckpt_close(out);
    model_config_free(&c);
    /* joined again: the original, byte for byte; what the smaller number of files replaces is gone */
    REQUIRE(!export_as("sharded", "joined", (struct export_how){.type = -1}, &e), "%s", e.text);
    CHECK(same_file("s", "joined", "model.safetensors"), "resharding changes bytes");
    REQUIRE(!file_write_all(folder("sharded/notes.txt"), "x", 1, &e) && !file_write_all(folder("sharded/model-old.safetensors"), "x", 1, &e) &&
                !export_as("joined", "sharded", (struct export_how){.type = -1, .overwrite = 1}, &e), "%s", e.text);
    CHECK(same_file("s", "sharded", "model.safetensors"), "overwriting leaves other weights");
    CHECK(!path_exists(folder("sharded/model.safetensors.index.json")) && path_exists(folder("sharded/notes.txt")) && path_exists(folder("sharded/model-old.safetensors")), "older files");
    char **names;
    int count, shards = 0;
    REQUIRE(!dir_list(folder("sharded"), &names, &count, &e), "%s", e.text);
    for (int i = 0; i < count; i++) shards += strstr(names[i], "-of-") != NULL;
    dir_list_free(names, count);
    CHECK(!shards, "%d older shards", shards);
}

/* ---- what adapters of other tools hold ---- */

/* An adapter with ranks and scales of its own for some modules, every number 1/64 times a small integer, so that products
 * and sums are exact. */
static int64_t own_rank(int64_t layer, int p) { return p == PROJ_V ? 2 : p == PROJ_UP && layer == 1 ? 5 : 3; }
static double own_alpha(int64_t layer, int p) { return p == PROJ_V && layer == 0 ? 8 : 3; }
static float own_value(int64_t layer, int p, int is_b, int64_t i) { return (float)((i * 7 + layer * 5 + p * 3 + is_b) % 9 - 4) / 64; }

static int make_patterned(const char *name, struct err *e) {
    static const char config[] = "{\"peft_type\": \"LORA\", \"r\": 3, \"lora_alpha\": 3, \"target_modules\": [\"v_proj\", \"up_proj\"], "
                                 "\"rank_pattern\": {\"v_proj\": 2, \"layers.1.mlp.up_proj\": 5}, \"alpha_pattern\": {\"^model.layers.0.self_attn.v_proj\": 8}}";
    char path[200], tensor[200];
    float x[5 * 128];
    snprintf(path, sizeof path, "%s/adapter_config.json", folder(name));
    struct ckpt_writer *w = dir_make(folder(name), e) || file_write_all(path, config, sizeof config - 1, e) ? NULL : ckpt_create(folder(name), "adapter_model", 0, e);
    if (!w) return -1;
    for (int pass = 0; pass < 2; pass++)
        for (int64_t layer = 0; layer < 2; layer++)
            for (int k = 0; k < 4; k++) {
                int p = k < 2 ? PROJ_V : PROJ_UP, is_b = k & 1;
                int64_t R = own_rank(layer, p), out = p == PROJ_UP ? 128 : 64, shape[2] = {is_b ? out : R, is_b ? R : 64};
                snprintf(tensor, sizeof tensor, "base_model.model.model.layers.%d.%s.lora_%c.weight", (int)layer, proj_module[p], "AB"[is_b]);
                for (int64_t i = 0; i < shape[0] * shape[1]; i++) x[i] = own_value(layer, p, is_b, i);
                if (pass ? ckpt_write(w, x, shape[0] * shape[1] * 4, e) : ckpt_declare(w, tensor, DT_F32, 2, shape, e)) return -1;
            }
    return ckpt_commit(w, e);
}

TEST(ranks_and_scales_of_single_modules) {
    struct err e = {0};
    struct model_config c;
    struct lora l;
    REQUIRE(!make("p", "torch_dtype=float32", 0, &e) && !make_patterned("pa", &e) && !model_config_read(folder("p"), &c, &e), "%s", e.text);
    REQUIRE(!lora_load(folder("pa"), &c, &l, &e), "%s", e.text);
    CHECK(l.config.rank == 5 && lora_scale(&l.config) == 1, "rank %lld, scale %g", (long long)l.config.rank, (double)lora_scale(&l.config));
    REQUIRE(!export_as("p", "pm", (struct export_how){.type = -1, .adapters = folder("pa")}, &e), "%s", e.text);
    check_merged("p", "pm", (const char *const[]){"pa"}, 1, DT_F32);
    for (int64_t layer = 0; layer < 2; layer++)
        for (int k = 0; k < 2; k++) {
            int p = k ? PROJ_UP : PROJ_V;
            int64_t R = own_rank(layer, p), rows, cols, bad = 0;
            proj_shape(&c, (enum proj)p, &rows, &cols);
            const float *A = l.data + layer * l.layer_floats + lora_offset_a(&l, (enum proj)p), *B = l.data + layer * l.layer_floats + lora_offset_b(&l, (enum proj)p);
            for (int64_t i = 0; i < rows * cols; i++) {
                double want = 0, have = 0;
                for (int64_t r = 0; r < R; r++)
                    want += own_alpha(layer, p) / (double)R * own_value(layer, p, 1, i / cols * R + r) * own_value(layer, p, 0, r * cols + i % cols);
                for (int64_t r = 0; r < 5; r++) have += (double)B[i / cols * 5 + r] * A[r * cols + i % cols];
                bad += fabs(have - want) > 1e-9; /* 3/5 is rounded once */
            }
            CHECK(!bad, "layer %d %s: %lld elements", (int)layer, proj_name[p], (long long)bad);
        }
    lora_free(&l), model_config_free(&c);
}

/* Adds whole tensors to an adapter: the embedding, and the head if asked. */
static int make_whole(const char *name, const char *of, int head, struct err *e) {
    char path[200];
    static float x[512 * 64];
    struct ckpt *in = ckpt_open_adapter(folder(of), e);
    struct ckpt_writer *w = in && !dir_make(folder(name), e) ? ckpt_create(folder(name), "adapter_model", 0, e) : NULL;
    static const char *const names[] = {"base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"};
    size_t n;
    if (!w) return -1;
    for (int64_t i = 0; i < ckpt_count(in); i++) ckpt_declare(w, ckpt_at(in, i)->name, DT_F32, 2, ckpt_at(in, i)->shape, e);
    for (int k = 0; k <= head; k++) ckpt_declare(w, names[k], DT_F32, 2, (int64_t[]){512, 64}, e);
    for (int64_t i = 0; i < ckpt_count(in); i++)
        if (ckpt_read_all(in, ckpt_at(in, i), DT_F32, x, e) || ckpt_write(w, x, ckpt_at(in, i)->count * 4, e)) return -1;
    for (int k = 0; k <= head; k++) {
        for (int i = 0; i < 512 * 64; i++) x[i] = (float)(i % 17 - 8 + k) / 16;
        if (ckpt_write(w, x, sizeof x, e)) return -1;
    }
    ckpt_close(in);
    char *config = read_bytes(of, "adapter_config.json", &n), *at = config ? strstr(config, "\"modules_to_save\": null") : NULL;
    struct str s = {0};
    if (!at || ckpt_commit(w, e)) return -1;
    str_add(&s, config, (size_t)(at - config));
    str_printf(&s, "\"modules_to_save\": [\"embed_tokens\"%s]%s", head ? ", \"lm_head\"" : "", at + strlen("\"modules_to_save\": null"));
    snprintf(path, sizeof path, "%s/adapter_config.json", folder(name));
    int rc = file_write_all(path, s.p, s.n, e);
    str_free(&s), sys_free(config);
    return rc;
}

/* V = W + s B A of one adapter over another, each with magnitudes multiplying its rows by m / |V| when its turn comes. */
TEST(magnitudes_scale_rows) {
    struct err e = {0};
    struct model_config c;
    struct lora_config dora = plain;
    dora.dora = 1;
    REQUIRE(!make("g", "torch_dtype=float32", 0, &e) && !make_adapter("gp", "g", plain, 8, &e) && !make_adapter("gd", "g", dora, 9, &e) && !model_config_read(folder("g"), &c, &e), "%s", e.text);
    for (int order = 0; order < 2; order++) {
        const char *const name[2] = {order ? "gd" : "gp", order ? "gp" : "gd"}, *to = order ? "gdp" : "gpd";
        char list[700];
        struct lora l[2];
        snprintf(list, sizeof list, "%s,", folder(name[0]));
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s", folder(name[1]));
        REQUIRE(!export_as("g", to, (struct export_how){.type = -1, .adapters = list}, &e) && !lora_load(folder(name[0]), &c, &l[0], &e) && !lora_load(folder(name[1]), &c, &l[1], &e), "%s", e.text);
        struct ckpt *in = ckpt_open(folder("g"), &e), *out = ckpt_open(folder(to), &e);
        REQUIRE(in && out, "%s", e.text);
        for (int64_t layer = 0; layer < c.L; layer++)
            for (int p = 0; p < PROJ_COUNT; p++) {
                if (!(plain.targets >> p & 1)) continue;
                char tensor[128];
                int64_t rows, cols, bad = 0, R = plain.rank;
                proj_shape(&c, (enum proj)p, &rows, &cols);
                snprintf(tensor, sizeof tensor, "model.layers.%lld.%s.weight", (long long)layer, proj_module[p]);
                float *w = read_tensor(in, tensor), *have = read_tensor(out, tensor);
                REQUIRE(w && have, "%s", tensor);
                for (int64_t i = 0; i < rows; i++) {
                    double v[512], largest = 0;
                    REQUIRE(cols <= 512, "%lld columns", (long long)cols);
                    for (int64_t j = 0; j < cols; j++) v[j] = (double)w[i * cols + j];
                    for (int a = 0; a < 2; a++) {
                        const float *x = l[a].data + layer * l[a].layer_floats, *A = x + lora_offset_a(&l[a], (enum proj)p), *B = x + lora_offset_b(&l[a], (enum proj)p);
                        double squares = 0;
                        for (int64_t j = 0; j < cols; j++) {
                            for (int64_t r = 0; r < R; r++) v[j] += (double)lora_scale(&l[a].config) * (double)B[i * R + r] * (double)A[r * cols + j];
                            squares += v[j] * v[j];
                        }
                        for (int64_t j = 0; l[a].config.dora && j < cols; j++) v[j] *= (double)x[lora_offset_m(&l[a], (enum proj)p) + i] / sqrt(squares);
                    }
                    for (int64_t j = 0; j < cols; j++) largest = fabs(v[j]) > largest ? fabs(v[j]) : largest;
                    for (int64_t j = 0; j < cols; j++) bad += !(fabs((double)have[i * cols + j] - v[j]) <= 4e-6 * largest); /* R + 4 roundings of 2^-24 */
                }
                CHECK(!bad, "%s of %s: %lld elements", tensor, to, (long long)bad);
                sys_free(w), sys_free(have);
            }
        ckpt_close(in), ckpt_close(out), lora_free(&l[0]), lora_free(&l[1]);
    }
    model_config_free(&c);
}

TEST(embedding_and_head_saved_whole) {
    struct err e = {0};
    struct model_config c;
    struct lora l;
    REQUIRE(!make("w", "torch_dtype=float32", 0, &e) && !make_adapter("wp", "w", plain, 8, &e) && !make_whole("we", "wp", 0, &e) && !make_whole("wh", "wp", 1, &e), "%s", e.text);
    REQUIRE(!model_config_read(folder("w"), &c, &e), "%s", e.text);
    unsigned wholes;
    CHECK(!lora_load(folder("we"), &c, &l, &e) && l.config.wholes == 1u << WHOLE_EMBED, "%s", e.text);
    lora_free(&l);
    CHECK(!lora_wholes(folder("wh"), &wholes, &e) && wholes == (1u << WHOLE_EMBED | 1u << WHOLE_HEAD), "%#x: %s", wholes, e.text);
    model_config_free(&c);
    for (int head = 0; head < 2; head++) {
        const char *to = head ? "wh_" : "we_";
        REQUIRE(!export_as("w", to, (struct export_how){.type = -1, .adapters = folder(head ? "wh" : "we")}, &e), "%s", e.text);
        REQUIRE(!model_config_read(folder(to), &c, &e) && !c.tied, "%s", e.text);
        model_config_free(&c);
        struct ckpt *base = ckpt_open(folder("w"), &e), *out = ckpt_open(folder(to), &e);
        REQUIRE(base && out, "%s", e.text);
        float *embed = read_tensor(out, "model.embed_tokens.weight"), *top = read_tensor(out, "lm_head.weight"), *old = read_tensor(base, "model.embed_tokens.weight");
        REQUIRE(embed && top && old, "tensors");
        for (int i = 0; i < 512 * 64; i++) {
            CHECK(embed[i] == (float)(i % 17 - 8) / 16, "embedding %d", i);
            CHECK(top[i] == (head ? (float)(i % 17 - 7) / 16 : old[i]), "head %d: what was tied stays as it was", i);
        }
        float *q = read_tensor(out, "model.layers.0.self_attn.q_proj.weight"), *q0 = read_tensor(base, "model.layers.0.self_attn.q_proj.weight");
        CHECK(memcmp(q, q0, 4096 * 4), "the projections are merged, too");
        sys_free(embed), sys_free(top), sys_free(old), sys_free(q), sys_free(q0);
        ckpt_close(base), ckpt_close(out);
    }
}

/* ---- refusals ---- */

static void refused(const char *from, const char *to, struct export_how how, const char *why) {
    struct err e;
    int existed = path_exists(folder(to));
    CHECK(export_as(from, to, how, &e) == -1 && e.code == ERR_INPUT && strstr(e.text, why), "wanted \"%s\", got \"%s\"", why, e.text);
    CHECK(existed || !path_exists(folder(to)), "%s is left behind", to);
}

TEST(wrong_input_is_refused_and_leaves_nothing) {
    struct err e;
    char list[300];
    size_t n;
    REQUIRE(!make("ok", "torch_dtype=float32", 0, &e) && !make("other", "torch_dtype=bfloat16", 1, &e), "%s", e.text);
    REQUIRE(!make_adapter("oka", "ok", plain, 5, &e) && !make_adapter("foreign", "other", plain, 5, &e) && !make_adapter("nan", "ok", plain, 5, &e), "%s", e.text);
    refused("none", "x", (struct export_how){.type = -1}, "config.json");
    refused("ok", "ok", (struct export_how){.type = -1, .overwrite = 1}, "folder of the input");
    refused("ok", "oka", (struct export_how){.type = -1, .adapters = folder("oka"), .overwrite = 1}, "folder of the input");
    refused("ok", "other", (struct export_how){.type = -1}, "already holds");
    refused("ok", "x", (struct export_how){.type = -1, .adapters = folder("gone")}, "adapter_config.json");
    refused("ok", "x", (struct export_how){.type = -1, .adapters = folder("ok")}, "adapter_config.json");
    refused("ok", "x", (struct export_how){.type = -1, .adapters = folder("foreign")}, "needs [3, ");
    snprintf(list, sizeof list, "%s,%s", folder("oka"), folder("gone"));
    refused("ok", "x", (struct export_how){.type = -1, .adapters = list}, "gone holds no adapter_config.json");
    char *config = read_bytes("oka", "adapter_config.json", &n), *mora = config ? strstr(config, "\"use_dora\": false") : NULL;
    REQUIRE(mora, "no configuration");
    memcpy(mora, "\"use_mora\": true ", 17);
    REQUIRE(!dir_make(folder("mora"), &e) && !file_write_all(folder("mora/adapter_config.json"), config, n, &e), "%s", e.text);
    sys_free(config);
    refused("ok", "x", (struct export_how){.type = -1, .adapters = folder("mora")}, "\"use_mora\" is set");
    char *weights = read_bytes("nan", "adapter_model.safetensors", &n);
    memset(weights + n - 400, 0xff, 4);
    REQUIRE(!file_write_all(folder("nan/adapter_model.safetensors"), weights, n, &e), "%s", e.text);
    sys_free(weights);
    refused("ok", "x", (struct export_how){.type = -1, .adapters = folder("nan")}, "not a finite number");
    REQUIRE(!export_as("ok", "q8", (struct export_how){.type = -1, .bits = 8}, &e), "%s", e.text);
    refused("q8", "x", (struct export_how){.type = -1, .bits = 4, .original = 1}, "quantised already");
    /* a weight that fp16 does not have */
    weights = read_bytes("ok", "model.safetensors", &n);
    const float big = 70000;
    memcpy(weights + n - 4, &big, 4);
    REQUIRE(!dir_make(folder("big"), &e) && !file_write_all(folder("big/model.safetensors"), weights, n, &e) &&
                !file_copy(folder("ok/config.json"), folder("big/config.json"), &e), "%s", e.text);
    sys_free(weights);
    refused("big", "x", (struct export_how){.type = DT_F16}, "beyond the format");
    REQUIRE(!export_as("big", "x", (struct export_how){.type = DT_BF16}, &e), "%s", e.text);
}

/* Every call fails once: no model appears unless all of it is there, and an older one is whole or gone. */
TEST(every_failing_call_leaves_no_half_model) {
    static const char *const kinds[] = {"a", "o", "r", "w", "s", "n", "u", "m"};
    struct err e;
    REQUIRE(!make("f", "torch_dtype=bfloat16", 0, &e) && !make_adapter("fa", "f", plain, 6, &e), "%s", e.text);
    char adapter[128];
    snprintf(adapter, sizeof adapter, "%s", folder("fa"));
    struct export_how how = {.type = -1, .bits = 8, .adapters = adapter, .shard_bytes = 60000};
    for (int k = 0; k < 8; k++)
        for (int64_t at = 1;; at += at < 20 ? 1 : 53) {
            dir_remove(folder("dst"), NULL);
            sys_fault = (struct sys_fault){.at = at, .error = 5};
            snprintf(sys_fault.kinds, sizeof sys_fault.kinds, "%s", kinds[k]);
            int rc = export_as("f", "dst", how, &e);
            int64_t calls = sys_fault.calls;
            sys_fault = (struct sys_fault){0};
            CHECK(!rc || e.code, "%s %lld: no message", kinds[k], (long long)at);
            if (path_exists(folder("dst/config.json"))) { /* only the last sync can have failed */
                struct ckpt *c = ckpt_open(folder("dst"), &e);
                CHECK(c && ckpt_find(c, "model.norm.weight"), "%s %lld: config.json without weights", kinds[k], (long long)at);
                ckpt_close(c);
            }
            if (calls < at) {
                CHECK(!rc, "%s", e.text);
                break;
            }
        }
}

__attribute__((constructor)) static void make_root(void) {
    snprintf(root, sizeof root, "/tmp/qlora-export-%d", (int)getpid());
    dir_make(root, NULL);
}
__attribute__((destructor)) static void remove_root(void) {
    dir_remove(root, NULL);
}

TEST_MAIN
