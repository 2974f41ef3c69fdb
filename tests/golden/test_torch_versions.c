/* Files that torch.save of torch 1.13 and 2.15 wrote (tests/interop/torch_bin.py), read bit for bit: every element type, views
 * with offsets and strides, expanded, empty and scalar tensors, parameters, a state_dict with its attributes and a plain dict. */
#include "checkpoint/checkpoint.h"
#include "tests/test.h"
#include <glob.h>

/* Element i of the tensors, as its lowest bytes. The product has more than 64 bits, as in Python. */
static uint64_t bits(int64_t i) { return (uint64_t)((unsigned __int128)(uint64_t)(i + 1) * 0x9e3779b97f4a7c15u >> 3); }

static const struct expected {
    const char *name;
    enum dtype type;
    int rank;
    int64_t shape[3], first, step[3]; /* element (i,j,k) is bits(first + i step[0] + ..) */
} all[] = {
    {"type.float32", DT_F32, 3, {2, 3, 4}, 0, {12, 4, 1}}, {"type.bfloat16", DT_BF16, 3, {2, 3, 4}, 0, {12, 4, 1}}, {"type.float16", DT_F16, 3, {2, 3, 4}, 0, {12, 4, 1}},
    {"type.float64", DT_F64, 3, {2, 3, 4}, 0, {12, 4, 1}}, {"type.uint8", DT_U8, 3, {2, 3, 4}, 0, {12, 4, 1}}, {"type.int8", DT_I8, 3, {2, 3, 4}, 0, {12, 4, 1}},
    {"type.int32", DT_I32, 3, {2, 3, 4}, 0, {12, 4, 1}}, {"type.int64", DT_I64, 3, {2, 3, 4}, 0, {12, 4, 1}}, {"type.bool", DT_BOOL, 3, {2, 3, 4}, 0, {12, 4, 1}},
    /* the plain dict holds those alone */
    {"a", DT_F32, 2, {3, 4}, 0, {4, 1}}, {"b", DT_BF16, 2, {3, 4}, 0, {4, 1}}, {"inner.weight", DT_F32, 2, {3, 4}, 0, {4, 1}}, {"inner.bias", DT_F32, 1, {3}, 0, {1}},
    {"view.whole", DT_F32, 2, {6, 10}, 0, {10, 1}}, {"view.rows", DT_F32, 2, {2, 10}, 20, {10, 1}}, {"view.columns", DT_F32, 2, {6, 4}, 3, {10, 1}},
    {"view.transposed", DT_F32, 2, {10, 6}, 0, {1, 10}}, {"view.every_other", DT_F32, 2, {3, 3}, 1, {20, 3}}, {"view.expanded", DT_F32, 2, {4, 10}, 10, {0, 1}},
    {"view.permuted", DT_F16, 3, {4, 2, 3}, 0, {1, 12, 4}}, {"scalar", DT_F32, 0, {0}, 0, {0}}, {"empty", DT_BF16, 2, {0, 5}, 0, {5, 1}}, {"parameter", DT_BF16, 2, {2, 3}, 0, {3, 1}}};
enum { ALL = sizeof all / sizeof *all, TYPES = 9 };

static void check_tensor(const char *path, const struct ckpt *c, const struct expected *x) {
    const struct ckpt_tensor *t = ckpt_find(c, x->name);
    struct err e = {0};
    unsigned char got[60 * 8];
    REQUIRE(t && t->type == x->type && t->rank == x->rank, "%s: %s", path, x->name);
    int64_t n = 1, size = (int64_t)dtype_bytes(x->type);
    for (int k = 0; k < x->rank; k++) {
        CHECK(t->shape[k] == x->shape[k], "%s: %s: %lld", path, x->name, (long long)t->shape[k]);
        n *= x->shape[k];
    }
    REQUIRE(t->count == n && n * size <= (int64_t)sizeof got && !ckpt_read_all(c, t, x->type, got, &e), "%s: %s: %s", path, x->name, e.text);
    for (int64_t i = 0; i < n; i++) {
        int64_t at = x->first, rest = i;
        for (int k = x->rank; k-- > 0; rest /= x->shape[k]) at += rest % x->shape[k] * x->step[k];
        uint64_t want = bits(at) & (x->type == DT_BOOL ? 1 : ~0ull);
        CHECK(!memcmp(got + i * size, &want, (size_t)size), "%s: %s: element %lld", path, x->name, (long long)i);
    }
}

TEST(every_version_reads_bit_for_bit) {
    glob_t files;
    REQUIRE(!glob("tests/golden/torch-*.bin", 0, NULL, &files) && files.gl_pathc == 4, "the files of two versions");
    for (size_t i = 0; i < files.gl_pathc; i++) {
        struct err e = {0};
        const char *path = files.gl_pathv[i];
        const int64_t count = strstr(path, "-dict") ? TYPES : ALL;
        struct ckpt *c = ckpt_open(path, &e);
        REQUIRE(c && ckpt_count(c) == count, "%s: %s", path, e.text);
        for (int64_t k = 0; k < count; k++) check_tensor(path, c, &all[k]);
        ckpt_close(c);
    }
    globfree(&files);
}

TEST_MAIN
