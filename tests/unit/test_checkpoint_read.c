/* Reading: torch .bin with any strides, element types and containers; conversion; CRC; threads; memory. */
#include "base/file.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "tests/test.h"
#include "tests/unit/torch_make.h"
#include <math.h>
#include <unistd.h>

static char dir[40], path[100]; /* path: of the file under test */

__attribute__((constructor)) static void set_up(void) {
    strcpy(dir, access("/dev/shm", W_OK) ? "/tmp/qlora-test-XXXXXX" : "/dev/shm/qlora-test-XXXXXX");
    if (!mkdtemp(dir)) abort();
}

__attribute__((destructor)) static void tear_down(void) {
    dir_remove(dir, NULL);
}

static struct ckpt *open_bin(const struct bin *b, struct err *e) {
    snprintf(path, sizeof path, "%s/model.bin", dir);
    if (file_write_all(path, b->file.p, b->file.n, e)) return NULL;
    return ckpt_open(path, e);
}

/* One tensor 'w' over a storage of `held` elements. */
static void one_tensor(struct bin *b, const char *class, const void *data, size_t bytes, int64_t held,
                       int64_t offset, int rank, const int64_t *size, const int64_t *stride) {
    struct str s = {0};
    str_puts(&s, "\x80\2}(");
    pk_text(&s, "w");
    pk_tensor(&s, class, "0", held, offset, rank, size, stride);
    str_puts(&s, "u.");
    bin_add(b, "model/data.pkl", s.p, s.n);
    bin_add(b, "model/data/0", data, bytes);
    bin_add(b, "model/version", "3\n", 2);
    bin_end(b);
    str_free(&s);
}

static uint64_t state = 1; /* xorshift */
static int64_t below(int64_t n) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (int64_t)(state % (uint64_t)n);
}

/* Reads tensor w whole and in ranges and compares with a plain loop over all indices. data: fp32 storage. */
static void check_view(const char *what, const float *data, int64_t held, int64_t offset, int rank,
                       const int64_t *size, const int64_t *stride) {
    struct bin b = {0};
    struct err e = {0};
    int64_t count = 1, index[8] = {0};
    one_tensor(&b, "Float", data, (size_t)held * 4, held, offset, rank, size, stride);
    struct ckpt *c = open_bin(&b, &e);
    bin_free(&b);
    REQUIRE(c, "%s: %s", what, e.text);
    const struct ckpt_tensor *t = ckpt_find(c, "w");
    for (int k = 0; k < rank; k++) count *= size[k];
    REQUIRE(t && t->count == count, "%s", what);
    float *expected = malloc((size_t)count * 4 + 4), *got = malloc((size_t)count * 4 + 4);
    uint16_t *half = malloc((size_t)count * 2 + 2);
    for (int64_t i = 0; i < count; i++) {
        int64_t at = offset;
        for (int k = 0; k < rank; k++) at += index[k] * stride[k];
        expected[i] = data[at];
        for (int k = rank; k-- > 0;) {
            if (++index[k] < size[k]) break;
            index[k] = 0;
        }
    }
    CHECK(!ckpt_read_all(c, t, DT_F32, got, &e) && !memcmp(got, expected, (size_t)count * 4), "%s: whole %s",
          what, e.text);
    CHECK(!ckpt_read_all(c, t, DT_BF16, half, &e), "%s", e.text);
    int64_t wrong = 0;
    for (int64_t i = 0; i < count; i++) wrong += half[i] != f32_to_bf16(expected[i]);
    CHECK(!wrong, "%s: %lld of %lld as bf16", what, (long long)wrong, (long long)count);
    for (int k = 0; k < 20 && count; k++) {
        int64_t first = below(count), n = below(count - first + 1);
        got[n] = 1234.0f;
        CHECK(!ckpt_read_range(c, t, first, n, DT_F32, got, &e), "%s", e.text);
        CHECK(!memcmp(got, expected + first, (size_t)n * 4) && got[n] == 1234.0f,
              "%s: %lld elements from %lld", what, (long long)n, (long long)first);
    }
    free(expected), free(got), free(half);
    ckpt_close(c);
}

TEST(random_strides) {
    enum { HELD = 6000 };
    float data[HELD];
    for (int i = 0; i < HELD; i++) data[i] = (float)i + 0.5f;
    for (int round = 0; round < 150; round++) {
        int rank = (int)below(6);
        int64_t size[8], stride[8], room = HELD - 1, offset = below(100);
        room -= offset;
        for (int k = 0; k < rank; k++) {
            size[k] = 1 + below(6);
            stride[k] = below(4) ? below(1 + room / (size[k] * 2)) : below(3);
            if ((size[k] - 1) * stride[k] > room) stride[k] = 0;
            room -= (size[k] - 1) * stride[k];
        }
        check_view("random", data, HELD, offset, rank, size, stride);
    }
}

/* Sizes around the 2 MB of a piece and the 4 KB of a gap (checkpoint/read.c). */
TEST(large_strides) {
    enum { HELD = 3 << 20 };
    float *data = malloc(HELD * 4);
    for (int i = 0; i < HELD; i++) data[i] = (float)i;
    static const struct {
        const char *what;
        int64_t offset;
        int rank;
        int64_t size[4], stride[4];
    } cases[] = {{"row-major", 3, 1, {HELD - 3}, {1}},
                 {"transposed", 0, 2, {1536, 2048}, {1, 1536}},
                 {"transposed, columns longer than a piece", 7, 2, {700000, 4}, {1, 700001}},
                 {"slice of columns", 5, 2, {3000, 8}, {1000, 1}},
                 {"slice of columns, far apart", 0, 2, {300, 100}, {10000, 1}},
                 {"single elements, far apart", 1, 2, {15, 17}, {200000, 2000}},
                 {"every other element", 0, 1, {HELD / 2}, {2}},
                 {"three dimensions turned round", 0, 3, {64, 128, 96}, {1, 64, 8192}},
                 {"expanded", 2, 3, {50, 40, 30}, {0, 30, 1}},
                 {"turned and with holes", 0, 3, {40, 100, 200}, {3, 20000, 130}}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_view(cases[i].what, data, HELD, cases[i].offset, cases[i].rank, cases[i].size, cases[i].stride);
    free(data);
}

TEST(sixteen_bit_patterns_convert_exactly) {
    uint16_t all[65536], own[65536], half[65536];
    float single[65536];
    static const char *const classes[] = {"BFloat16", "Half"};
    const int64_t size[] = {65536}, stride[] = {1};
    for (int i = 0; i < 65536; i++) all[i] = (uint16_t)i;
    for (int k = 0; k < 2; k++) {
        struct bin b = {0};
        struct err e = {0};
        one_tensor(&b, classes[k], all, sizeof all, 65536, 0, 1, size, stride);
        struct ckpt *c = open_bin(&b, &e);
        bin_free(&b);
        REQUIRE(c, "%s", e.text);
        const struct ckpt_tensor *t = ckpt_at(c, 0);
        REQUIRE(!ckpt_read_all(c, t, t->type, own, &e) && !ckpt_read_all(c, t, DT_F32, single, &e) &&
                    !ckpt_read_all(c, t, DT_BF16, half, &e),
                "%s", e.text);
        CHECK(!memcmp(own, all, sizeof all), "%s raw", classes[k]);
        int wrong = 0;
        for (int i = 0; i < 65536; i++) {
            float x = k ? f16_to_f32(all[i]) : bf16_to_f32(all[i]);
            wrong += f32_bits(single[i]) != f32_bits(x) || half[i] != (k ? f32_to_bf16(x) : all[i]);
        }
        CHECK(!wrong, "%s: %d wrong", classes[k], wrong);
        ckpt_close(c);
    }
}

/* Transposed matrices of every element size, raw. */
TEST(every_size_turns) {
    static const struct {
        const char *class;
        enum dtype type;
    } types[] = {{"Byte", DT_U8},  {"Char", DT_I8}, {"Bool", DT_BOOL}, {"Short", DT_I16},
                 {"Half", DT_F16}, {"Int", DT_I32}, {"Long", DT_I64},  {"Double", DT_F64}};
    const int64_t size[] = {7, 5}, stride[] = {1, 7};
    unsigned char data[35 * 8], got[35 * 8];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (unsigned char)(i * 37 + i / 8);
    for (size_t k = 0; k < sizeof types / sizeof *types; k++) {
        size_t n = dtype_bytes(types[k].type), wrong = 0;
        struct bin b = {0};
        struct err e = {0};
        one_tensor(&b, types[k].class, data, 35 * n, 35, 0, 2, size, stride);
        struct ckpt *c = open_bin(&b, &e);
        REQUIRE(c && ckpt_at(c, 0)->type == types[k].type &&
                    !ckpt_read_all(c, ckpt_at(c, 0), types[k].type, got, &e),
                "%s", e.text);
        for (size_t i = 0; i < 7; i++)
            for (size_t j = 0; j < 5; j++)
                wrong += memcmp(got + (i * 5 + j) * n, data + (j * 7 + i) * n, n) != 0;
        CHECK(!wrong, "%s: %zu wrong", types[k].class, wrong);
        ckpt_close(c);
        bin_free(&b);
    }
}

TEST(doubles_and_integers) {
    const double x[] = {0.1, -1e300, 3.0, 1e-320, INFINITY, 1.00390625 + 1e-9};
    const int64_t size[] = {2, 3}, stride[] = {3, 1}, id[] = {-5, 1ll << 40, 7};
    float f[6];
    uint16_t h[6];
    int64_t same[3];
    struct bin b = {0}, b2 = {0};
    struct err e = {0};
    one_tensor(&b, "Double", x, sizeof x, 6, 0, 2, size, stride);
    struct ckpt *c = open_bin(&b, &e);
    REQUIRE(c && !ckpt_read_all(c, ckpt_at(c, 0), DT_F32, f, &e), "%s", e.text);
    for (int i = 0; i < 6; i++) CHECK(f[i] == (float)x[i], "%g is %g", x[i], (double)f[i]);
    REQUIRE(!ckpt_read_all(c, ckpt_at(c, 0), DT_BF16, h, &e), "%s", e.text);
    for (int i = 0; i < 6; i++) CHECK(h[i] == f32_to_bf16((float)x[i]), "%g is %04x", x[i], h[i]);
    ckpt_close(c);
    one_tensor(&b2, "Long", id, sizeof id, 3, 0, 1, size + 1, stride + 1);
    c = open_bin(&b2, &e);
    REQUIRE(c && !ckpt_read_all(c, ckpt_at(c, 0), DT_I64, same, &e) && !memcmp(same, id, sizeof id), "%s",
            e.text);
    CHECK(ckpt_read_all(c, ckpt_at(c, 0), DT_F32, f, &e) && strstr(e.text, "has type I64"), "%s", e.text);
    ckpt_close(c);
    bin_free(&b), bin_free(&b2);
}

/* What writers other than torch 1.13 do: newer members, sizes in local headers, 32-bit end record only,
 * parameters, attributes, 64-bit numbers, memo. */
TEST(containers_and_pickles_of_other_writers) {
    const float data[] = {1, 2, 3, 4, 5, 6};
    const int64_t size[] = {2, 3}, stride[] = {3, 1};
    for (int variant = 0; variant < 3; variant++) {
        struct bin b = {.plain_sizes = variant == 1};
        struct str s = {0};
        struct err e = {0};
        float got[6], zero = -1;
        str_puts(&s, "\x80\2"
                     "ccollections\nOrderedDict\nq");
        put_le(&s, 0, 1),
            str_puts(&s, ")Rq\1("); /* the state dict is an OrderedDict, kept at places 0 and 1 */
        pk_text(&s, "a");
        str_puts(&s, "ctorch._utils\n_rebuild_parameter\n(");
        pk_tensor(&s, "Float", "7", 6, 0, 2, size, stride);
        str_puts(&s, "\x88h"), put_le(&s, 0, 1), str_puts(&s, ")RtR");
        pk_text(&s, "scalar");
        pk_tensor(&s, "Float", "7", 6, 5, 0, size, stride);
        pk_text(&s, "empty");
        pk_tensor(&s, "Float", "8", 0, 0, 1, (int64_t[]){0}, stride);
        str_puts(&s, "u}");
        pk_text(&s, "_metadata");
        str_puts(&s, "}("), pk_text(&s, "layer"), str_puts(&s, "}"), pk_text(&s, "version"),
            pk_int(&s, 1ll << 40);
        str_puts(&s, "s"), pk_text(&s, "x"), str_puts(&s, "](K\1G"), put_le(&s, 0, 8),
            str_puts(&s, "Neusb."); /* {'layer': {'version': 2^40}, 'x': [1, 0.0, None]} */
        bin_add(&b, "x/data.pkl", s.p, s.n);
        if (variant != 1) {
            bin_add(&b, "x/.format_version", "1", 1), bin_add(&b, "x/.storage_alignment", "64", 2);
            bin_add(&b, "x/byteorder", "little", 6);
        }
        bin_add(&b, "x/data/7", data, sizeof data), bin_add(&b, "x/data/8", "", 0),
            bin_add(&b, "x/version", "3\n", 2);
        if (variant != 1)
            bin_add(&b, "x/.data/serialization_id", "0123456789012345678901234567890123456789", 40);
        bin_end(&b);
        if (variant == 2) { /* take the ZIP64 record and its locator out */
            memmove(b.file.p + b.record, b.file.p + b.end, 22);
            b.file.n = b.record + 22;
        }
        struct ckpt *c = open_bin(&b, &e);
        REQUIRE(c && ckpt_count(c) == 3, "variant %d: %s", variant, e.text);
        const struct ckpt_tensor *a = ckpt_find(c, "a"), *scalar = ckpt_find(c, "scalar"),
                                 *empty = ckpt_find(c, "empty");
        REQUIRE(a && scalar && empty && !scalar->rank && scalar->count == 1 && !empty->count, "variant %d",
                variant);
        REQUIRE(!ckpt_read_all(c, a, DT_F32, got, &e) && !ckpt_read_all(c, scalar, DT_F32, &zero, &e) &&
                    !ckpt_read_all(c, empty, DT_F32, NULL, &e),
                "%s", e.text);
        CHECK(!memcmp(got, data, sizeof data) && zero == 6, "variant %d: scalar %g", variant, (double)zero);
        ckpt_close(c);
        bin_free(&b);
        str_free(&s);
    }
}

/* Places beyond 4 GiB: sparse files, of which only the ends are written and read. */
TEST(files_beyond_4_gib) {
    const int64_t large = (5ll << 30) + 3, size[] = {4}, stride[] = {1};
    struct err e = {0};
    struct str pickle = {0}, s = {0};
    unsigned char got[4] = {0};
    snprintf(path, sizeof path, "%s/large.safetensors", dir);
    str_printf(&s, "........{\"a\":{\"dtype\":\"U8\",\"shape\":[%lld],\"data_offsets\":[0,%lld]},",
               (long long)large, (long long)large);
    str_printf(&s, "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[%lld,%lld]}}", (long long)large,
               (long long)large + 4);
    poke(&s, 0, s.n - 8, 8);
    FILE *f = fopen(path, "w");
    REQUIRE(f && fwrite(s.p, 1, s.n, f) == s.n && !fseeko(f, large - 1, SEEK_CUR) &&
                fwrite("\x07wxyz", 1, 5, f) == 5 && !fclose(f),
            "cannot write");
    struct ckpt *c = ckpt_open(path, &e);
    REQUIRE(c && ckpt_count(c) == 2, "%s", e.text);
    CHECK(!ckpt_read_all(c, ckpt_at(c, 1), DT_U8, got, &e) && !memcmp(got, "wxyz", 4), "%s", e.text);
    CHECK(!ckpt_read_range(c, ckpt_at(c, 0), large - 2, 2, DT_U8, got, &e) && !got[0] && got[1] == 7, "%s",
          e.text);
    ckpt_close(c);
    unlink(path);

    /* torch .bin: storage 0 is large (never read: its CRC is not checked), storage 1 behind it, sizes and places in ZIP64 */
    struct bin b = {0};
    str_puts(&pickle, "\x80\2}("), pk_text(&pickle, "a"),
        pk_tensor(&pickle, "Byte", "0", large, large - 4, 1, size, stride);
    pk_text(&pickle, "b"), pk_tensor(&pickle, "Byte", "1", 4, 0, 1, size, stride), str_puts(&pickle, "u.");
    bin_add(&b, "m/data.pkl", pickle.p, pickle.n), bin_add(&b, "m/data/0", "", 0);
    size_t before = b.local[1] + 30 + 8;
    before += (unsigned char)b.file.p[b.local[1] + 28]; /* where storage 0 begins: name and padding passed */
    struct bin tail = {0};
    bin_add(&tail, "m/data/1", "wxyz", 4);
    int64_t second = (int64_t)before + large;
    struct str *d = &b.directory;
    poke(d, b.central[1] + 20, UINT64_MAX, 8), poke(d, b.central[1] + 30, 20, 2);
    put_le(d, 1, 2), put_le(d, 16, 2), put_le(d, (uint64_t)large, 8), put_le(d, (uint64_t)large, 8);
    size_t entry = d->n;
    str_add(d, tail.directory.p, tail.directory.n);
    poke(d, entry + 30, 12, 2), poke(d, entry + 42, 0xffffffff, 4);
    put_le(d, 1, 2), put_le(d, 8, 2), put_le(d, (uint64_t)second, 8);
    int64_t start = second + (int64_t)tail.file.n;
    struct str end = {0};
    put_le(&end, 0x06064b50, 4), put_le(&end, 44, 8), put_le(&end, 0x2d031e, 4), put_le(&end, 0, 8),
        put_le(&end, 3, 8);
    put_le(&end, 3, 8), put_le(&end, d->n, 8), put_le(&end, (uint64_t)start, 8);
    put_le(&end, 0x07064b50, 4), put_le(&end, 0, 4), put_le(&end, (uint64_t)start + d->n, 8),
        put_le(&end, 1, 4);
    put_le(&end, 0x06054b50, 4), put_le(&end, 0, 4), put_le(&end, 3, 2), put_le(&end, 3, 2),
        put_le(&end, d->n, 4);
    put_le(&end, 0xffffffff, 4), put_le(&end, 0, 2);
    snprintf(path, sizeof path, "%s/large.bin", dir);
    REQUIRE((f = fopen(path, "w")) && fwrite(b.file.p, 1, before, f) == before &&
                !fseeko(f, second, SEEK_SET),
            "cannot write");
    fwrite(tail.file.p, 1, tail.file.n, f), fwrite(d->p, 1, d->n, f), fwrite(end.p, 1, end.n, f);
    REQUIRE(!fclose(f), "cannot write");
    c = ckpt_open(path, &e);
    REQUIRE(c && ckpt_count(c) == 2, "%s", e.text);
    CHECK(!ckpt_read_all(c, ckpt_find(c, "b"), DT_U8, got, &e) && !memcmp(got, "wxyz", 4), "%s", e.text);
    CHECK(ckpt_find(c, "a")->offset == second - 4, "a lies at %lld", (long long)ckpt_find(c, "a")->offset);
    ckpt_close(c);
    unlink(path);
    bin_free(&b), bin_free(&tail), str_free(&pickle), str_free(&s), str_free(&end);
}

TEST(names_with_escapes) {
    static const char header[] =
        "{\"\\u00e9\\u4F60\\ud83d\\ude00\\\"\\/\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}x";
    struct str s = {0};
    struct err e = {0};
    put_le(&s, sizeof header - 2, 8), str_puts(&s, header);
    snprintf(path, sizeof path, "%s/names.safetensors", dir);
    REQUIRE(!file_write_all(path, s.p, s.n, &e), "%s", e.text);
    struct ckpt *c = ckpt_open(path, &e);
    CHECK(c && ckpt_find(c, "\xc3\xa9\xe4\xbd\xa0\xf0\x9f\x98\x80\"/"), "%s",
          c ? ckpt_at(c, 0)->name : e.text);
    ckpt_close(c);
    str_free(&s);
}

/* More than 256 values kept: the long forms of PUT and GET, as in every real model. */
TEST(many_tensors) {
    enum { TENSORS = 700 };
    float data[TENSORS], got;
    struct str s = {0};
    struct bin b = {0};
    struct err e = {0};
    int kept = 0;
    str_puts(&s, "\x80\2}(");
    for (int i = 0; i < TENSORS; i++) {
        char name[20];
        data[i] = (float)i;
        snprintf(name, sizeof name, "layer.%d", i);
        pk_text(&s, name);
        if (i % 2) { /* the tensor of the name before, which is kept at place i / 2 */
            str_putc(&s, i / 2 < 256 ? 'h' : 'j'), put_le(&s, (uint64_t)(i / 2), i / 2 < 256 ? 1 : 4);
            continue;
        }
        pk_tensor(&s, "Float", "0", TENSORS, i, 0, NULL, NULL);
        str_putc(&s, kept < 256 ? 'q' : 'r'), put_le(&s, (uint64_t)kept, kept < 256 ? 1 : 4), kept++;
    }
    str_puts(&s, "u.");
    bin_add(&b, "m/data.pkl", s.p, s.n), bin_add(&b, "m/data/0", data, sizeof data), bin_end(&b);
    struct ckpt *c = open_bin(&b, &e);
    REQUIRE(c && ckpt_count(c) == TENSORS, "%s", e.text);
    for (int i = 0; i < TENSORS; i++) {
        char name[20];
        snprintf(name, sizeof name, "layer.%d", i);
        const struct ckpt_tensor *t = ckpt_find(c, name);
        CHECK(t && !ckpt_read_all(c, t, DT_F32, &got, &e) && got == (float)(i / 2 * 2), "%s", name);
    }
    ckpt_close(c);
    bin_free(&b), str_free(&s);
}

/* A byte changed in a storage is found when that storage is read, before any of it is given out. */
TEST(damage_is_found_at_first_use) {
    enum { N = 3 << 20 }; /* several chunks of the checksum */
    char *data = calloc(N, 1), *got = malloc(N);
    const int64_t size[] = {N}, stride[] = {1};
    struct bin b = {0};
    struct err e = {0};
    one_tensor(&b, "Byte", data, N, N, 0, 1, size, stride);
    struct ckpt *c = open_bin(&b, &e);
    REQUIRE(c && !ckpt_read_range(c, ckpt_at(c, 0), 5, 10, DT_U8, got, &e), "%s", e.text);
    ckpt_close(c);
    b.file.p[b.file.n / 2] ^= 4;
    REQUIRE((c = open_bin(&b, &e)), "%s", e.text);
    memset(got, 7, 10);
    CHECK(ckpt_read_range(c, ckpt_at(c, 0), 0, 10, DT_U8, got, &e) &&
              strstr(e.text, "model/data/0' is damaged"),
          "%s", e.text);
    CHECK(got[0] == 7 && got[9] == 7, "unchecked bytes were given out");
    e.code = 0;
    CHECK(ckpt_read_range(c, ckpt_at(c, 0), 0, 10, DT_U8, got, &e), "damage is forgotten");
    ckpt_close(c);
    bin_free(&b);
    free(data), free(got);
}

TEST(every_damaged_byte_is_found) { /* whichever of the two checksums is the larger number */
    enum { N = 100 };
    char data[N] = {0}, got[N];
    const int64_t size[] = {N}, stride[] = {1};
    for (size_t at = 0; at < N; at++) {
        struct bin b = {0};
        struct err e = {0};
        one_tensor(&b, "Byte", data, N, N, 0, 1, size, stride);
        const size_t contents = (b.local[1] + 30 + strlen("model/data/0") + 4 + 63) / 64 * 64;
        b.file.p[contents + at] = (char)(at + 1);
        struct ckpt *c = open_bin(&b, &e);
        REQUIRE(c, "%s", e.text);
        CHECK(ckpt_read_range(c, ckpt_at(c, 0), 0, N, DT_U8, got, &e) && strstr(e.text, "is damaged"), "byte %zu: %s", at, e.text);
        ckpt_close(c);
        bin_free(&b);
    }
}

TEST(threads_read_one_storage) {
    enum { N = 1 << 20, PARTS = 32 };
    float *data = malloc(N * 4);
    uint16_t *got = malloc(N * 2);
    const int64_t size[] = {1024, 1024}, stride[] = {1, 1024};
    struct bin b = {0};
    struct err e = {0};
    for (int i = 0; i < N; i++) data[i] = (float)(i % 251);
    one_tensor(&b, "Float", data, N * 4, N, 0, 2, size, stride);
    struct ckpt *c = open_bin(&b, &e);
    REQUIRE(c, "%s", e.text);
    int failed = 0, wrong = 0;
#pragma omp parallel for num_threads(4) reduction(+ : failed)
    for (int i = 0; i < PARTS; i++)
        failed += ckpt_read_range(c, ckpt_at(c, 0), i * (N / PARTS), N / PARTS, DT_BF16,
                                  got + i * (N / PARTS), NULL) != 0;
    for (int i = 0; i < N; i++) wrong += bf16_to_f32(got[i]) != data[i % 1024 * 1024 + i / 1024];
    CHECK(!failed && !wrong, "%d failed, %d wrong", failed, wrong);
    ckpt_close(c);
    bin_free(&b);
    free(data), free(got);
}

/* A short read is continued; an error names the file and leaves nothing open. */
TEST(read_faults) {
    const float data[] = {1, 2, 3, 4, 5, 6};
    const int64_t size[] = {2, 3}, stride[] = {1, 2};
    static const struct {
        const char *kinds;
        int error;
    } faults[] = {{"r", SYS_SHORT}, {"r", 5 /* EIO */}, {"o", 5}, {"a", 12 /* ENOMEM */}};
    struct bin b = {0};
    struct err e = {0};
    float got[6];
    one_tensor(&b, "Float", data, sizeof data, 6, 0, 2, size, stride);
    ckpt_close(open_bin(&b, &e));
    for (size_t f = 0; f < sizeof faults / sizeof *faults; f++)
        for (int64_t n = 1, done = 0; !done; n++) {
            struct err mine = {0};
            sys_fault = (struct sys_fault){.at = n, .error = faults[f].error};
            strcpy(sys_fault.kinds, faults[f].kinds);
            struct ckpt *c = ckpt_open(path, &mine);
            int rc = c ? ckpt_read_all(c, ckpt_at(c, 0), DT_F32, got, &mine) : -1;
            done = sys_fault.calls < n;
            sys_fault.at = 0;
            ckpt_close(c);
            CHECK(n < 500, "no end");
            if (done || faults[f].error == SYS_SHORT)
                CHECK(!rc && got[0] == 1 && got[1] == 3 && got[5] == 6, "call %lld of %s: %s", (long long)n,
                      faults[f].kinds, mine.text);
            else
                CHECK(rc && mine.code == ERR_RUN && mine.text[0], "call %lld of %s: code %d", (long long)n,
                      faults[f].kinds, mine.code);
        }
    bin_free(&b);
}

/* A tensor far larger than the scratch memory passes through without a copy of it. */
TEST(memory_stays_small) {
    enum { MIB = 96 };
    const int64_t count = (int64_t)MIB << 20;
    struct err e = {0};
    char piece[65536] = {0}, got[65536];
    snprintf(path, sizeof path, "%s/large.safetensors", dir);
    struct out *o = out_open(path, &e);
    char header[120];
    uint64_t n = (uint64_t)snprintf(header, sizeof header,
                                    "{\"w\":{\"dtype\":\"U8\",\"shape\":[%lld],\"data_offsets\":[0,%lld]}}",
                                    (long long)count, (long long)count);
    REQUIRE(o && !out_write(o, &n, 8, &e) && !out_write(o, header, n, &e), "%s", e.text);
    for (int64_t i = 0; i < count; i += (int64_t)sizeof piece)
        REQUIRE(!out_write(o, piece, sizeof piece, &e), "%s", e.text);
    REQUIRE(!out_commit(o, &e), "%s", e.text);
    int64_t before = sys_resident_bytes();
    struct ckpt *c = ckpt_open(path, &e);
    REQUIRE(c && ckpt_bytes(c) == count, "%s", e.text);
    for (int64_t i = 0; i < count; i += (int64_t)sizeof got)
        REQUIRE(!ckpt_read_range(c, ckpt_at(c, 0), i, sizeof got, DT_U8, got, &e), "%s", e.text);
    CHECK(sys_resident_bytes() - before < 16 << 20, "%lld bytes more",
          (long long)(sys_resident_bytes() - before));
    ckpt_close(c);
    unlink(path);
}

TEST_MAIN
