/* Generators against published answers and against numpy 2 and torch; 16-bit floats against numpy and by their rule. */
#include "base/half.h"
#include "base/rng.h"
#include "base/sha1.h"
#include "tests/test.h"
#include <math.h>

/* Known answers of the Random123 distribution (Salmon et al.): counter, key, output. */
TEST(philox_answers) {
    static const uint32_t kat[][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09, 0x94fdcceb, 0x5001e420,
         0x24126ea1}};
    for (size_t i = 0; i < 3; i++) {
        uint32_t out[4];
        philox4x32(kat[i], kat[i] + 4, out);
        for (int k = 0; k < 4; k++)
            CHECK(out[k] == kat[i][6 + k], "vector %zu word %d: %08x, not %08x", i, k, out[k], kat[i][6 + k]);
    }
}

/* The reference program's seed 5489: first and 10000th output. */
TEST(mt19937_answers) {
    struct mt19937 g;
    mt_seed(&g, 5489);
    uint32_t first = mt_next(&g), last = 0;
    for (int i = 2; i <= 10000; i++) last = mt_next(&g);
    CHECK(first == 3499211612u, "first %u", first);
    CHECK(last == 4123659995u, "10000th %u", last);
}

TEST(permutations_of_torch) {
    static const int64_t want[2][10] = {{2, 6, 1, 8, 4, 5, 0, 9, 3, 7}, {8, 4, 9, 0, 5, 1, 6, 7, 2, 3}};
    for (uint32_t s = 0; s < 2; s++) {
        struct mt19937 g;
        int64_t r[10];
        mt_seed(&g, 42 + s);
        mt_permutation(&g, r, 10);
        for (int i = 0; i < 10; i++)
            CHECK(r[i] == want[s][i], "seed %u at %d: %lld, not %lld", 42 + s, i, (long long)r[i], (long long)want[s][i]);
    }
}

TEST(pcg64_is_numpys) {
    struct pcg64 g;
    pcg_seed(&g, 42);
    double x = pcg_double(&g);
    CHECK(x == 0.7739560485559633, "%.17g", x);
    CHECK(pcg_next64(&g) == 8095878257575067585ull, "second draw");
    pcg_seed(&g, (1ull << 32) + 7); /* a seed of two words */
    CHECK(pcg_next64(&g) == 0xc527f515dec95ccdull && pcg_next64(&g) == 0x1ca7438de0381decull, "seed of 33 bits");
    static const uint32_t want[5] = {2881021352u, 3457461230u, 97294837u, 3470079269u, 2013703616u};
    pcg_seed(&g, 5);
    for (int i = 0; i < 5; i++) {
        uint32_t v = pcg_next32(&g);
        CHECK(v == want[i], "word %d: %u, not %u", i, v, want[i]);
    }
}

/* SHA-1 of the permutation as little-endian int64, made with numpy.random.default_rng(42).permutation(n). */
TEST(permutations_of_numpy) {
    static const int64_t want[2][10] = {{4, 6, 2, 7, 3, 5, 9, 0, 8, 1}, {5, 6, 0, 7, 3, 2, 4, 9, 1, 8}};
    static const struct { int64_t n; const char *sha1; } big[] = {
        {1000, "93cdb3b0832d18f725cda374de58d9101e23a091"}, {52002, "21ff83534fae47668189a5267ffa49d99689bd08"}};
    static int64_t a[52002];
    struct pcg64 g;
    for (unsigned s = 0; s < 2; s++) {
        pcg_seed(&g, s * 42);
        pcg_permutation(&g, a, 10);
        for (int i = 0; i < 10; i++) CHECK(a[i] == want[s][i], "seed %u at %d: %lld", s * 42, i, (long long)a[i]);
    }
    for (int k = 0; k < 2; k++) {
        struct sha1 s;
        char hex[41];
        pcg_seed(&g, 42);
        pcg_permutation(&g, a, big[k].n);
        sha1_init(&s);
        sha1_add(&s, a, (size_t)big[k].n * sizeof *a);
        sha1_hex(&s, hex);
        CHECK(!strcmp(hex, big[k].sha1), "n %lld: %s", (long long)big[k].n, hex);
    }
    pcg_seed(&g, 1);
    pcg_permutation(&g, a, 0);
    pcg_permutation(&g, a, 1);
    CHECK(a[0] == 0, "a permutation of one");
}

/* All 65,536 patterns widened by numpy, NaN payloads included. */
TEST(f16_widens_as_numpy) {
    struct sha1 s;
    char hex[41];
    sha1_init(&s);
    for (uint32_t h = 0; h < 65536; h++) {
        uint32_t u = f32_bits(f16_to_f32((uint16_t)h));
        sha1_add(&s, &u, 4);
    }
    sha1_hex(&s, hex);
    CHECK(!strcmp(hex, "658381651276d987553c6e3a62ceebd48050ab0a"), "%s", hex);
}

/* A million random bit patterns narrowed by numpy; NaNs (whose payload differs) left out. */
TEST(f16_narrows_as_numpy) {
    struct pcg64 g;
    struct sha1 s;
    char hex[41];
    int n = 0;
    pcg_seed(&g, 1);
    sha1_init(&s);
    for (int i = 0; i < 1000000; i++) {
        float x = f32_from_bits(pcg_next32(&g));
        uint16_t h = f32_to_f16(x);
        if (isnan(x)) {
            CHECK(isnan(f16_to_f32(h)), "NaN became %04x", h);
            continue;
        }
        sha1_add(&s, &h, 2);
        n++;
    }
    sha1_hex(&s, hex);
    CHECK(n == 996152 && !strcmp(hex, "171dc2e23945deee86d394f6f7fe45e346085059"), "%d values, %s", n, hex);
}

static uint16_t f16(float x) { return f32_to_f16(x); }
static float wide16(uint16_t h) { return f16_to_f32(h); }
static uint16_t b16(float x) { return f32_to_bf16(x); }
static float wideb(uint16_t h) { return bf16_to_f32(h); }

/* For every pattern: it comes back; the middle between it and its neighbour goes to the even one, and one float beside
 * the middle to the nearer one. `infinity` is the pattern of +inf. */
static void rounding(const char *type, uint16_t (*narrow)(float), float (*wide)(uint16_t), uint32_t infinity) {
    for (uint32_t h = 0; h < 65536; h++) {
        float x = wide((uint16_t)h);
        uint32_t magnitude = h & 0x7fff;
        if (magnitude > infinity) {
            CHECK(isnan(x) && isnan(wide(narrow(x))), "%s %04x is not kept a NaN", type, h);
            continue;
        }
        CHECK(narrow(x) == h, "%s %04x comes back as %04x", type, h, narrow(x));
        if (magnitude + 1 >= infinity) continue;
        float next = wide((uint16_t)(h + 1)), middle = (float)(((double)x + (double)next) / 2);
        uint32_t even = h & 1 ? h + 1 : h;
        CHECK(narrow(middle) == even, "%s middle above %04x goes to %04x", type, h, narrow(middle));
        CHECK(narrow(nextafterf(middle, x)) == h, "%s below the middle above %04x", type, h);
        CHECK(narrow(nextafterf(middle, next)) == h + 1, "%s above the middle above %04x", type, h);
    }
    CHECK(narrow(INFINITY) == infinity && narrow(-INFINITY) == (infinity | 0x8000), "%s infinity", type);
}
TEST(f16_rounds_to_nearest_even) {
    rounding("f16", f16, wide16, 0x7c00);
    CHECK(f16(65519.996f) == 0x7bff && f16(65520.0f) == 0x7c00, "the edge to infinity");
    CHECK(f16(0x1p-25f) == 0 && f16(0x1.000002p-25f) == 1, "the edge to zero");
}
TEST(bf16_rounds_to_nearest_even) {
    rounding("bf16", b16, wideb, 0x7f80);
    CHECK(b16(0x1.fep127f) == 0x7f7f && b16(0x1.ffp127f) == 0x7f80, "the edge to infinity");
}
/* numpy.random.default_rng(seed).integers(0, n, size=8) */
TEST(whole_numbers_below_a_bound) {
    static const struct { uint64_t seed; uint32_t n, want[8]; } k[] = {
        {42, 10, {0, 7, 6, 4, 4, 8, 0, 6}}, {42, 16384, {1462, 12680, 10724, 7190, 7094, 14067, 1408, 11425}}, {7, 3, {2, 1, 2, 2, 1, 2, 2, 0}}};
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) {
        struct pcg64 g;
        pcg_seed(&g, k[i].seed);
        for (int j = 0; j < 8; j++) {
            uint32_t x = pcg_below(&g, k[i].n);
            CHECK(x == k[i].want[j], "seed %d, number %d: %u", (int)k[i].seed, j, x);
        }
        CHECK(pcg_below(&g, 1) == 0, "below 1");
    }
}

TEST_MAIN
