/* tests/golden/test_nf4_golden.c - the number formats against files made by their reference arithmetic,
 * bit for bit: 4-bit codes, scales, double quantisation, int8 rows, maps, 8-bit AdamW. Files:
 * $QLORA_SHARED/goldens/nf4.
 */
#include "base/file.h"
#include "base/half.h"
#include "base/json.h"
#include "base/sys.h"
#include "nf4/nf4.h"
#include "tests/test.h"
#include <math.h>

/* A safetensors file in memory. Tensors are copied out to aligned memory and freed with the file. */
struct golden {
    char *text;
    size_t bytes;
    struct cJSON *header;
    void *copies[64];
    int count;
};

static int golden_path(char path[1200], const char *name) {
    const char *dir = shared_dir();
    return dir ? snprintf(path, 1200, "%s/goldens/nf4/%s", dir, name) : -1;
}

/* 1 when open, 0 when there is no shared folder; a broken file fails the test. */
static int golden_open(struct golden *g, const char *name) {
    char path[1200];
    struct err e = {0};
    memset(g, 0, sizeof *g);
    if (golden_path(path, name) < 0) return 0;
    uint64_t n = 0;
    int bad = file_read_all(path, 1 << 24, &g->text, &g->bytes, &e);
    if (!bad) memcpy(&n, g->text, 8);
    if (!bad) g->header = n <= g->bytes - 8 ? json_parse(g->text + 8, n, path, &e) : NULL;
    CHECK(g->header, "%s: %s", path, e.text);
    return g->header != NULL;
}
static void golden_close(struct golden *g) {
    for (int i = 0; i < g->count; i++) sys_free(g->copies[i]);
    json_free(g->header);
    sys_free(g->text);
}

static void *golden_get(struct golden *g, const char *name, const char *type, int64_t *n) {
    const struct cJSON *t = json_get(g->header, name), *range = t ? json_get(t, "data_offsets") : NULL;
    const char *dtype = "";
    struct err e = {0};
    if (t) json_str(t, "dtype", &dtype, name, &e);
    CHECK(range && !strcmp(dtype, type), "tensor %s is %s, not %s", name, t ? dtype : "missing", type);
    if (!range || strcmp(dtype, type)) exit(1);
    uint64_t header;
    memcpy(&header, g->text, 8);
    size_t from = (size_t)cJSON_GetArrayItem(range, 0)->valuedouble,
           to = (size_t)cJSON_GetArrayItem(range, 1)->valuedouble;
    void *copy = g->copies[g->count++] = sys_alloc(to - from, name, &e);
    if (!copy || 8 + header + to > g->bytes) exit(1);
    memcpy(copy, g->text + 8 + header + from, to - from);
    size_t size = type[1] == '3' ? 4 : type[1] == '8' ? 1 : 2;
    if (n) *n = (int64_t)((to - from) / size);
    return copy;
}
/* FP4's code 8 is -0, which encodes as 0. */
static void forget_minus_zero(uint8_t *codes, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i++) {
        if (codes[i] >> 4 == 8) codes[i] &= 0x0f;
        if ((codes[i] & 15) == 8) codes[i] &= 0xf0;
    }
}
static const float *golden_f32(struct golden *g, const char *name, int64_t *n) {
    return golden_get(g, name, "F32", n);
}

/* The index of the first element that differs in its bits, or -1. */
static int64_t differ(const void *a, const void *b, int64_t n, size_t size) {
    for (int64_t i = 0; i < n; i++)
        if (memcmp((const char *)a + (size_t)i * size, (const char *)b + (size_t)i * size, size)) return i;
    return -1;
}
#define SAME(got, want, n, size, name)                                                                       \
    do {                                                                                                     \
        int64_t at_ = differ(got, want, n, size);                                                            \
        CHECK(at_ < 0, "%s: %s differs first at %lld of %lld", file, name, (long long)at_, (long long)(n));  \
    } while (0)

static void check_decode(const char *file, struct golden *g, const struct q4_view *v, int64_t n,
                         const char *prefix) {
    static const struct {
        const char *name, *type;
        enum dtype to;
    } outs[] = {
        {"dequant_f32", "F32", DT_F32}, {"dequant_bf16", "BF16", DT_BF16}, {"dequant_f16", "F16", DT_F16}};
    for (int k = 0; k < 3; k++) {
        if (k == 2 && *prefix) continue; /* fp16 exists for single quantisation only */
        char name[64];
        snprintf(name, sizeof name, "%s%s", prefix, outs[k].name);
        float *out = malloc((size_t)n * sizeof *out);
        q4_decode(v, 0, n, out, outs[k].to);
        SAME(out, golden_get(g, name, outs[k].type, NULL), n, dtype_bytes(outs[k].to), name);
        free(out);
    }
}

static void check_q4(const char *file, enum q4_type type, int block, enum dtype from) {
    struct golden g;
    if (!golden_open(&g, file)) return;
    int64_t n, bytes, nb, nested_n;
    const void *input = golden_get(&g, "input", dtype_name(from), &n);
    uint8_t *weight = golden_get(&g, "weight", "U8", &bytes);
    const float *absmax = golden_f32(&g, "absmax", &nb), *map = golden_f32(&g, "quant_map", NULL);
    const uint8_t *dq = golden_get(&g, "dq.absmax", "U8", NULL);
    const float *nested = golden_f32(&g, "dq.nested_absmax", &nested_n),
                *nested_map = golden_f32(&g, "dq.nested_quant_map", NULL);
    float offset = *golden_f32(&g, "dq.nested_offset", NULL);
    CHECK(bytes == q4_code_bytes(n) && nb == q4_blocks(n, block) && nested_n == q4_nested(nb), "%s: sizes",
          file);
    nf4_init();
    SAME(q4_levels(type), map, 16, 4, "quant_map");
    SAME(bw8_signed, nested_map, 256, 4, "nested_quant_map");

    uint8_t *codes = malloc((size_t)bytes), *q = malloc((size_t)nb);
    float *a = malloc((size_t)nb * sizeof *a), *s = malloc((size_t)nested_n * sizeof *s), own_offset;
    CHECK(q4_encode(type, block, input, from, n, codes, a) == -1, "%s: refused", file);
    SAME(codes, weight, bytes, 1, "weight");
    SAME(a, absmax, nb, 4, "absmax");
    q4_double(absmax, nb, q, s, &own_offset);
    CHECK(own_offset == offset, "%s: offset %a for %a", file, (double)own_offset, (double)offset);
    SAME(q, dq, nb, 1, "dq.absmax");
    SAME(s, nested, nested_n, 4, "dq.nested_absmax");

    struct q4_view v = {.codes = weight, .absmax = absmax, .levels = map, .block = block};
    check_decode(file, &g, &v, n, "");
    v.absmax = NULL, v.absmax_q = dq, v.nested_absmax = nested, v.nested_map = nested_map,
    v.nested_offset = offset;
    const float *restored = golden_f32(&g, "dq.absmax_restored", NULL);
    for (int64_t b = 0; b < nb; b++) a[b] = q4_scale(&v, b);
    SAME(a, restored, nb, 4, "dq.absmax_restored");
    check_decode(file, &g, &v, n, "dq.");

    float *x = malloc((size_t)n * sizeof *x);
    v.absmax = absmax;
    q4_decode(&v, 0, n, x, DT_F32);
    CHECK(q4_encode(type, block, x, DT_F32, n, codes, a) == -1, "%s: own decode refused", file);
    if (type == Q4_FP4) forget_minus_zero(weight, bytes);
    SAME(codes, weight, bytes, 1, "encode(decode)");
    SAME(a, absmax, nb, 4, "absmax of encode(decode)");
    free(codes), free(q), free(a), free(s), free(x);
    golden_close(&g);
}

#define Q4_CASE(id, file, type, block, from)                                                                 \
    TEST(id) {                                                                                               \
        if (!shared_dir()) SKIP("no shared folder");                                                         \
        check_q4(file ".safetensors", type, block, from);                                                    \
    }
Q4_CASE(normal_f32, "normal_64x64_f32", Q4_NF4, 64, DT_F32)
Q4_CASE(normal_bf16, "normal_64x64_bf16", Q4_NF4, 64, DT_BF16)
Q4_CASE(normal_f16, "normal_64x64_f16", Q4_NF4, 64, DT_F16)
Q4_CASE(half_block_at_the_end, "tail_100x40_bf16", Q4_NF4, 64, DT_BF16)
Q4_CASE(block_of_one_and_odd_nibble, "odd_33x33_f32", Q4_NF4, 64, DT_F32)
Q4_CASE(zero_blocks, "zero_blocks_48x128_bf16", Q4_NF4, 64, DT_BF16)
Q4_CASE(extremes_ties_subnormals, "extremes_32x64_f32", Q4_NF4, 64, DT_F32)
Q4_CASE(lattice, "lattice_64x64_bf16", Q4_NF4, 64, DT_BF16)
Q4_CASE(heavy_tails_over_nested_blocks, "heavy_40x1408_bf16", Q4_NF4, 64, DT_BF16)
Q4_CASE(block_128, "nf4_bs128_64x96_bf16", Q4_NF4, 128, DT_BF16)
Q4_CASE(fp4, "fp4_64x96_bf16", Q4_FP4, 64, DT_BF16)
Q4_CASE(fp4_cuts_with_both_signs, "fp4_edges_8x64_f32", Q4_FP4, 64, DT_F32)

TEST(int8_rows) {
    const char *file = "int8_rows_48x80_bf16.safetensors";
    struct golden g;
    if (!shared_dir()) SKIP("no shared folder");
    if (!golden_open(&g, file)) return;
    int64_t n, rows;
    const void *input = golden_get(&g, "input", "BF16", &n);
    const int8_t *weight = golden_get(&g, "weight", "I8", NULL);
    const float *scb = golden_f32(&g, "SCB", &rows);
    int8_t *q = malloc((size_t)n);
    float *s = malloc((size_t)rows * sizeof *s), *out = malloc((size_t)n * sizeof *out);
    CHECK(int8_encode(input, DT_BF16, rows, n / rows, q, s) == -1, "refused");
    SAME(q, weight, n, 1, "weight");
    SAME(s, scb, rows, 4, "SCB");
    int8_decode(weight, scb, n / rows, 0, rows, out, DT_F32);
    SAME(out, golden_get(&g, "dequant_f32", "F32", NULL), n, 4, "dequant_f32");
    int8_decode(weight, scb, n / rows, 0, rows, out, DT_BF16);
    SAME(out, golden_get(&g, "dequant_bf16", "BF16", NULL), n, 2, "dequant_bf16");
    free(q), free(s), free(out);
    golden_close(&g);
}

TEST(tables) {
    char path[1200];
    struct err e = {0};
    if (golden_path(path, "tables.json") < 0) SKIP("no shared folder");
    struct cJSON *j = json_parse_file(path, 1 << 20, &e);
    REQUIRE(j, "%s", e.text);
    nf4_init();
    static const float nf4_cut[] =
        {
#define ITEM(cut) cut,
            NF4_CUTS(ITEM)},
                       fp4_cut[] = {FP4_CUTS(ITEM)};
    const struct {
        const char *name;
        const float *table;
        int n;
    } tables[] = {{"nf4_bits", nf4_levels, 16},
                  {"nf4_cut_bits", nf4_cut, 15},
                  {"fp4_bits", fp4_levels, 16},
                  {"fp4_cut_bits", fp4_cut, 7},
                  {"dynamic_signed_bits", bw8_signed, 256},
                  {"dynamic_unsigned_bits", bw8_unsigned, 256}};
    for (size_t k = 0; k < sizeof tables / sizeof *tables; k++) {
        const struct cJSON *list = json_get(j, tables[k].name);
        CHECK(cJSON_GetArraySize(list) == tables[k].n, "%s: %d entries", tables[k].name,
              cJSON_GetArraySize(list));
        int i = 0;
        for (const struct cJSON *item = list ? list->child : NULL; item && i < tables[k].n;
             item = item->next, i++)
            CHECK(f32_bits(tables[k].table[i]) == (uint32_t)item->valuedouble, "%s[%d] is %a", tables[k].name,
                  i, (double)tables[k].table[i]);
    }
    json_free(j);
}

/* Every step from the file's own state before it. */
TEST(adamw_replays_each_step) {
    const char *file = "adamw8_5000.safetensors";
    struct golden g;
    if (!shared_dir()) SKIP("no shared folder");
    if (!golden_open(&g, file)) return;
    enum { N = 5000, NB = 20 };
    static float p[N], am[NB], av[NB];
    static uint8_t m8[N], v8[N];
    memcpy(p, golden_f32(&g, "p.0", NULL), sizeof p);
    nf4_init();
    SAME(bw8_signed, golden_f32(&g, "qmap1", NULL), 256, 4, "qmap1");
    SAME(bw8_unsigned, golden_f32(&g, "qmap2", NULL), 256, 4, "qmap2");
    for (int t = 1; t <= 5; t++) {
        const char *names[] = {"g.", "p.", "absmax1.", "absmax2.", "state1.", "state2."};
        const void *want[6];
        for (int k = 0; k < 6; k++) {
            char name[32];
            snprintf(name, sizeof name, "%s%d", names[k], t);
            want[k] = golden_get(&g, name, k < 4 ? "F32" : "U8", NULL);
        }
        static float before[N];
        memcpy(before, p, sizeof p);
        struct bw8_adam s = bw8_adam_step(t, 2e-4f, 0.9f, 0.999f, 1e-8f, 0.01f, 1.0f);
        bw8_adamw(&s, N, p, want[0], m8, am, v8, av);
        /* The file's own bits, although only 1e-5 of the update and one code in a thousand are promised
         * between machines: both sides round after every operation, and pow and sqrt are correctly rounded
         * here. */
        SAME(p, want[1], N, 4, "p");
        SAME(am, want[2], NB, 4, "absmax1");
        SAME(av, want[3], NB, 4, "absmax2");
        SAME(m8, want[4], N, 1, "state1");
        SAME(v8, want[5], N, 1, "state2");
        memcpy(p, want[1], sizeof p), memcpy(am, want[2], sizeof am), memcpy(av, want[3], sizeof av);
        memcpy(m8, want[4], sizeof m8), memcpy(v8, want[5], sizeof v8);
    }
    golden_close(&g);
}

/* Whole checkpoints: their stored maps are ours and their codes are what encoding the decoded matrix
 * gives. */
TEST(checkpoint_matrices) {
    static const struct {
        const char *file;
        enum q4_type type;
        int nested;
    } all[] = {{"ckpt_nf4_double.safetensors", Q4_NF4, 1},
               {"ckpt_nf4_single.safetensors", Q4_NF4, 0},
               {"ckpt_fp4_double.safetensors", Q4_FP4, 1}};
    if (!shared_dir()) SKIP("no shared folder");
    for (int k = 0; k < 3; k++) {
        const char *file = all[k].file, *base = "model.layers.0.mlp.down_proj.weight";
        char name[128], state[128];
        struct golden g;
        if (!golden_open(&g, file)) return;
        int64_t bytes, nb;
        struct q4_view v = {.block = 64};
        uint8_t *stored = golden_get(&g, base, "U8", &bytes);
        v.codes = stored;
        snprintf(name, sizeof name, "%s.quant_map", base), v.levels = golden_f32(&g, name, NULL);
        snprintf(name, sizeof name, "%s.absmax", base);
        if (all[k].nested) {
            v.absmax_q = golden_get(&g, name, "U8", &nb);
            snprintf(name, sizeof name, "%s.nested_absmax", base),
                v.nested_absmax = golden_f32(&g, name, NULL);
            snprintf(name, sizeof name, "%s.nested_quant_map", base),
                v.nested_map = golden_f32(&g, name, NULL);
            snprintf(state, sizeof state, "%s.quant_state.bitsandbytes__%s", base,
                     all[k].type == Q4_NF4 ? "nf4" : "fp4");
            int64_t text_bytes;
            struct err e = {0};
            const char *text = golden_get(&g, state, "U8", &text_bytes);
            struct cJSON *j = json_parse(text, (size_t)text_bytes, state, &e);
            double offset = 0;
            CHECK(j && json_num(j, "nested_offset", &offset, state, &e) == 1, "%s: %s", file, e.text);
            v.nested_offset = (float)offset;
            json_free(j);
            nf4_init();
            SAME(v.nested_map, bw8_signed, 256, 4, "nested_quant_map");
        } else {
            v.absmax = golden_f32(&g, name, &nb);
        }
        SAME(v.levels, q4_levels(all[k].type), 16, 4, "quant_map");
        int64_t n = bytes * 2;
        float *x = malloc((size_t)n * sizeof *x), *a = malloc((size_t)nb * sizeof *a);
        uint8_t *codes = malloc((size_t)bytes);
        q4_decode(&v, 0, n, x, DT_F32);
        CHECK(q4_encode(all[k].type, 64, x, DT_F32, n, codes, a) == -1, "%s: refused", file);
        if (all[k].type == Q4_FP4) forget_minus_zero(stored, bytes);
        SAME(codes, stored, bytes, 1, "codes");
        for (int64_t b = 0; b < nb; b++) CHECK(a[b] == q4_scale(&v, b), "%s: scale %lld", file, (long long)b);
        free(x), free(a), free(codes);
        golden_close(&g);
    }
}

TEST_MAIN
