/* tests/unit/test_nf4.c - the number formats against their definitions, written here as plainly as
 * possible: every tie, every 16-bit value, all block sizes and tails, refusals; and that vector paths and
 * threads change no bit.
 */
#include "base/half.h"
#include "base/rng.h"
#include "nf4/nf4.h"
#include "nf4/nf4_internal.h"
#include "tests/test.h"
#include <float.h>
#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#endif

/* The bits of docs/FORMATS.md. */
static const uint32_t nf4_bits[16] = {0xbf800000, 0xbf3239b1, 0xbf066b30, 0xbeca32a0, 0xbe91a24d, 0xbe3d353f,
                                      0xbdba7871, 0x00000000, 0x3da2faff, 0x3e24cae3, 0x3e7c04dd, 0x3ead033a,
                                      0x3ee1a4b8, 0x3f1007ab, 0x3f3913b3, 0x3f800000};
static const uint32_t nf4_cut_bits[15] = {0xbf591cd9, 0xbf1c5270, 0xbeeb8480, 0xbeadea76, 0xbe703cec,
                                          0xbe0d38bc, 0xbd3a7871, 0x3d22faff, 0x3df64863, 0x3e5067e0,
                                          0x3e9582d4, 0x3ec753f9, 0x3f006d03, 0x3f248daf, 0x3f5c89d9};
static const uint32_t fp4_bits[8] = {0x00000000, 0x3baaaaab, 0x3f2aaaab, 0x3f800000,
                                     0x3eaaaaab, 0x3f000000, 0x3e2aaaab, 0x3e800000};
static const uint32_t fp4_cut_bits[7] = {0x3b2aaab9, 0x3db00000, 0x3e555555, 0x3e955555,
                                         0x3ed55556, 0x3f155550, 0x3f555555};
static const int fp4_rank[8] = {0, 1, 6, 7, 4, 5, 2, 3}; /* codes by magnitude */
static const int blocks[] = {32, 64, 128, 256, 512, 1024, 2048, 4096};
static const enum dtype types[] = {DT_F32, DT_BF16, DT_F16};
enum { BLOCKS = 8, TYPES = 3 };

static int reference_code(enum q4_type t, float x) {
    int n = 0;
    if (t == Q4_NF4) {
        while (n < 15 && x > f32_from_bits(nf4_cut_bits[n])) n++;
        return n;
    }
    while (n < 7 && fabsf(x) > f32_from_bits(fp4_cut_bits[n])) n++;
    return fp4_rank[n] + (x < 0 ? 8 : 0);
}

static float element(const void *p, enum dtype t, int64_t i) {
    if (t == DT_F32) return ((const float *)p)[i];
    uint16_t h = ((const uint16_t *)p)[i];
    return t == DT_BF16 ? bf16_to_f32(h) : f16_to_f32(h);
}
static void set_element(void *p, enum dtype t, int64_t i, float x) {
    if (t == DT_F32)
        ((float *)p)[i] = x;
    else
        ((uint16_t *)p)[i] = t == DT_BF16 ? f32_to_bf16(x) : f32_to_f16(x);
}

static void reference_encode(enum q4_type t, int block, const void *src, enum dtype from, int64_t n,
                             uint8_t *codes, float *absmax) {
    if (n & 1) codes[n / 2] = t == Q4_NF4 ? 7 : 0;
    for (int64_t b = 0; b * block < n; b++) {
        float a = 0;
        for (int64_t i = b * block; i < n && i < (b + 1) * block; i++)
            a = fmaxf(a, fabsf(element(src, from, i)));
        absmax[b] = a < FLT_MIN ? 0 : a;
        float r = a < FLT_MIN ? 0 : 1 / a;
        for (int64_t i = b * block; i < n && i < (b + 1) * block; i++) {
            int code = reference_code(t, element(src, from, i) * r);
            codes[i / 2] =
                (uint8_t)(i & 1 ? (codes[i / 2] & 0xf0) | code : (codes[i / 2] & 0x0f) | code << 4);
        }
    }
}

static void set_threads(int n) {
#ifdef _OPENMP
    omp_set_num_threads(n);
#else
    (void)n;
#endif
}

static struct pcg64 rng;
__attribute__((constructor)) static void seed(void) {
    pcg_seed(&rng, 4);
}
/* Numbers of many kinds: mostly nearly normal, some zeros, some far out. */
static float number(void) {
    uint32_t kind = pcg_next32(&rng) % 64;
    float x = (float)(pcg_double(&rng) + pcg_double(&rng) + pcg_double(&rng) - 1.5);
    return kind == 0 ? 0.0f : kind == 1 ? -0.0f : kind == 2 ? x * 8 : kind == 3 ? x * 1e-4f : x;
}

/* Encodes with guard bytes behind, in both paths, and compares with the definition. */
static void check_encode(enum q4_type t, int block, const void *src, enum dtype from, int64_t n,
                         const char *what) {
    int64_t bytes = q4_code_bytes(n), nb = q4_blocks(n, block);
    uint8_t *want = malloc((size_t)bytes + 1), *got = malloc((size_t)bytes + 1);
    float *want_a = malloc((size_t)nb * 4 + 4), *got_a = malloc((size_t)nb * 4 + 4);
    reference_encode(t, block, src, from, n, want, want_a);
    for (nf4_portable = 0; nf4_portable < 2; nf4_portable++) {
        memset(got, 0xaa, (size_t)bytes + 1), memset(got_a, 0xaa, (size_t)nb * 4 + 4);
        int64_t bad = q4_encode(t, block, src, from, n, got, got_a);
        CHECK(bad == -1, "%s: refused element %lld", what, (long long)bad);
        CHECK(!memcmp(got, want, (size_t)bytes), "%s: codes, type %d, block %d, %s, n %lld, portable %d",
              what, t, block, dtype_name(from), (long long)n, nf4_portable);
        CHECK(!memcmp(got_a, want_a, (size_t)nb * 4), "%s: scales, block %d, %s, n %lld", what, block,
              dtype_name(from), (long long)n);
        CHECK(got[bytes] == 0xaa && f32_bits(got_a[nb]) == 0xaaaaaaaa, "%s: wrote behind the end", what);
    }
    nf4_portable = 0;
    free(want), free(got), free(want_a), free(got_a);
}

TEST(levels_and_cuts_have_the_documented_bits) {
    for (int i = 0; i < 16; i++) {
        CHECK(f32_bits(nf4_levels[i]) == nf4_bits[i], "nf4[%d] %a", i, (double)nf4_levels[i]);
        CHECK(f32_bits(fp4_levels[i]) == (fp4_bits[i & 7] | (uint32_t)(i >> 3) << 31), "fp4[%d] %a", i,
              (double)fp4_levels[i]);
    }
    CHECK(q4_levels(Q4_NF4) == nf4_levels && q4_levels(Q4_FP4) == fp4_levels, "tables");
}

TEST(a_tie_keeps_the_lower_code) {
    for (int i = 0; i < 15; i++) {
        float cut = f32_from_bits(nf4_cut_bits[i]);
        CHECK(nf4_code(cut) == i, "cut %d gives %d", i, nf4_code(cut));
        CHECK(nf4_code(nextafterf(cut, 2)) == i + 1 && nf4_code(nextafterf(cut, -2)) == i, "beside cut %d",
              i);
    }
    for (int i = 0; i < 7; i++) {
        float cut = f32_from_bits(fp4_cut_bits[i]), above = nextafterf(cut, 2);
        CHECK(fp4_code(cut) == fp4_rank[i] && fp4_code(above) == fp4_rank[i + 1], "cut %d", i);
        CHECK(fp4_code(-cut) == 8 + fp4_rank[i] && fp4_code(-above) == 8 + fp4_rank[i + 1], "cut -%d", i);
    }
    CHECK(fp4_code(0.0f) == 0 && fp4_code(-0.0f) == 0 && fp4_code(-1e-6f) == 8, "FP4 zeros");
    for (int i = 0; i < 16; i++) CHECK(q4_code(Q4_NF4, nf4_levels[i]) == i, "level %d", i);
    for (int i = 0; i < 16; i++) CHECK(q4_code(Q4_FP4, fp4_levels[i]) == (i == 8 ? 0 : i), "level %d", i);
}

/* Cuts and their neighbours, up to two units away, as elements of blocks whose scale is 1 and whose r is
 * exact or not. */
TEST(encodes_ties_in_blocks) {
    static float x[64 * 64];
    const float scales[] = {1, 0x1p-100f, 0x1p100f, 3, 0.7f, 1e-30f};
    for (int k = 0; k < 6; k++)
        for (int type = 0; type < 2; type++) {
            int n = 0;
            for (int i = 0; i < (type ? 7 : 15); i++)
                for (int d = -2; d <= 2; d++)
                    for (int sign = -1; sign <= 1; sign += 2) {
                        if (n % 64 == 0) x[n++] = scales[k]; /* the largest of its block */
                        uint32_t u = (type ? fp4_cut_bits : nf4_cut_bits)[i] + (uint32_t)d;
                        x[n++] = f32_from_bits(u) * scales[k] * (float)sign;
                    }
            check_encode((enum q4_type)type, 64, x, DT_F32, n, "ties");
        }
}

TEST(encodes_every_16_bit_value) {
    static uint16_t x[65536 / 31 * 32 + 64];
    for (int t = 1; t < TYPES; t++) {
        int n = 0;
        for (uint32_t h = 0; h < 65536; h++) {
            uint16_t limit = types[t] == DT_BF16 ? 0x7f80 : 0x7c00; /* not finite */
            if ((h & 0x7fff) >= limit) continue;
            x[n++] = (uint16_t)h;
            if (n % 32 == 31) x[n++] = types[t] == DT_BF16 ? 0x3f80 : 0x3c00; /* 1.0 */
        }
        check_encode(Q4_NF4, 32, x, types[t], n, "every value");
        check_encode(Q4_FP4, 64, x, types[t], n, "every value");
    }
}

TEST(encodes_all_block_sizes_types_and_tails) {
    static float x[3 * 4096 + 77];
    for (int b = 0; b < BLOCKS; b++)
        for (int t = 0; t < TYPES; t++) {
            int block = blocks[b];
            const int64_t sizes[] = {
                0, 1, 2, 3, block - 1, block, block + 1, 2 * block + 31, 3 * block, 3 * block + 77};
            for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
                for (int64_t i = 0; i < sizes[k]; i++) set_element(x, types[t], i, number());
                check_encode(k % 2 ? Q4_FP4 : Q4_NF4, block, x, types[t], sizes[k], "sizes");
                check_encode(k % 2 ? Q4_NF4 : Q4_FP4, block, x, types[t], sizes[k], "sizes");
            }
        }
}

TEST(zero_and_subnormal_blocks_decode_to_zero) {
    static float x[6 * 64 + 3];
    uint8_t codes[sizeof x / 8 + 1];
    float absmax[7];
    for (int i = 0; i < 64; i++) {
        x[64 + i] = i & 1 ? -0.0f : 0;
        x[2 * 64 + i] = f32_from_bits(0x007fffff) * (i & 1 ? -1 : 1); /* the largest subnormal */
        x[3 * 64 + i] = i == 9 ? -FLT_MIN : 0;
        x[4 * 64 + i] = i == 63 ? f32_from_bits(1) : 0;
        x[5 * 64 + i] = i == 0 ? FLT_MAX : -FLT_MAX / 3;
    }
    x[6 * 64] = f32_from_bits(0x80000003);
    for (int t = 0; t < 2; t++) {
        uint8_t zero = t == Q4_NF4 ? 0x77 : 0;
        check_encode((enum q4_type)t, 64, x, DT_F32, 6 * 64 + 3, "special blocks");
        CHECK(q4_encode((enum q4_type)t, 64, x, DT_F32, 6 * 64 + 3, codes, absmax) == -1, "refused");
        const int is_zero[7] = {1, 1, 1, 0, 1, 0, 1};
        for (int b = 0; b < 7; b++) {
            if (!is_zero[b]) continue;
            CHECK(f32_bits(absmax[b]) == 0, "block %d: scale %a", b, (double)absmax[b]);
            for (int i = 0; i < (b < 6 ? 32 : 2); i++)
                CHECK(codes[b * 32 + i] == zero, "block %d: byte %02x", b, codes[b * 32 + i]);
        }
        CHECK(absmax[3] == FLT_MIN && absmax[5] == FLT_MAX, "scales at the ends of the range");
        /* With a restored scale that is not 0 the codes still mean 0. */
        struct q4_view v = {.codes = codes,
                            .absmax = (float[7]){1, 1, 1, 1, 1, 1, 1},
                            .levels = q4_levels((enum q4_type)t),
                            .block = 64};
        CHECK(q4_value(&v, 0) == 0 && q4_value(&v, 6 * 64 + 2) == 0, "a zero block decodes to %g",
              (double)q4_value(&v, 0));
    }
}

TEST(refuses_nan_and_infinity_with_the_index) {
    enum { N = 65536 + 4096 + 33 };
    static float x[N], absmax[N / 32 + 1];
    static uint8_t codes[N / 2 + 1];
    const int64_t places[] = {0, 1, 63, 64, 100, 4095, 4096, 65535, 65536, 65541, N - 34, N - 1};
    const float bad[] = {NAN, INFINITY, -INFINITY, -NAN};
    for (int t = 0; t < TYPES; t++)
        for (size_t k = 0; k < sizeof places / sizeof *places; k++) {
            memset(x, 0, sizeof x);
            for (nf4_portable = 0; nf4_portable < 2; nf4_portable++)
                for (int type = 0; type < 2; type++) {
                    set_element(x, types[t], places[k], bad[k % 4]);
                    int64_t at =
                        q4_encode((enum q4_type)type, blocks[k % BLOCKS], x, types[t], N, codes, absmax);
                    CHECK(at == places[k], "%s: found %lld, put at %lld", dtype_name(types[t]), (long long)at,
                          (long long)places[k]);
                    set_element(x, types[t], N - 1, NAN); /* the first one counts, whoever meets it */
                    set_threads(1 + type);
                    at = q4_encode((enum q4_type)type, 64, x, types[t], N, codes, absmax);
                    CHECK(at == places[k], "first of two: %lld, put at %lld", (long long)at,
                          (long long)places[k]);
                }
        }
    nf4_portable = 0;
}

/* A view with random codes; scales may be anything that a file can hold. */
struct random_view {
    uint8_t *codes, *q;
    float *absmax, *nested;
    struct q4_view v;
};
static struct random_view random_view(int64_t n, int block, int nested) {
    int64_t nb = q4_blocks(n, block);
    struct random_view r = {malloc((size_t)q4_code_bytes(n)),
                            malloc((size_t)nb),
                            malloc((size_t)nb * 4),
                            malloc((size_t)q4_nested(nb) * 4),
                            {.levels = nf4_levels, .block = block}};
    for (int64_t i = 0; i < q4_code_bytes(n); i++) r.codes[i] = (uint8_t)pcg_next32(&rng);
    for (int64_t b = 0; b < nb; b++) r.q[b] = (uint8_t)pcg_next32(&rng), r.absmax[b] = number();
    for (int64_t b = 0; b < q4_nested(nb); b++) r.nested[b] = number();
    r.v.codes = r.codes;
    if (nested)
        r.v.absmax_q = r.q, r.v.nested_absmax = r.nested, r.v.nested_map = bw8_signed,
        r.v.nested_offset = 0.7f;
    else
        r.v.absmax = r.absmax;
    return r;
}
static void random_view_free(struct random_view *r) {
    free(r->codes), free(r->q), free(r->absmax), free(r->nested);
}

static void check_decode(const struct q4_view *v, int64_t first, int64_t count, enum dtype to) {
    float *got = malloc((size_t)count * 4 + 4), want;
    for (nf4_portable = 0; nf4_portable < 2; nf4_portable++) {
        memset(got, 0xaa, (size_t)count * 4 + 4);
        q4_decode(v, first, count, got, to);
        size_t size = dtype_bytes(to);
        for (int64_t i = 0; i < count; i++) {
            set_element(&want, to, 0, q4_value(v, first + i));
            if (!memcmp((char *)got + (size_t)i * size, &want, size)) continue;
            CHECK(0, "%s of %lld..+%lld, block %d, portable %d: differs at %lld", dtype_name(to),
                  (long long)first, (long long)count, v->block, nf4_portable, (long long)i);
            break;
        }
        CHECK(((uint8_t *)got)[(size_t)count * size] == 0xaa, "wrote behind the end");
    }
    nf4_portable = 0;
    free(got);
}

TEST(decodes_any_range_as_its_elements) {
    nf4_init();
    for (int b = 0; b < BLOCKS; b++)
        for (int nested = 0; nested < 2; nested++) {
            int64_t block = blocks[b], n = 5 * block + 43;
            struct random_view r = random_view(n, blocks[b], nested);
            const int64_t ranges[][2] = {{0, n},
                                         {0, 1},
                                         {1, 1},
                                         {1, n - 1},
                                         {block, 2 * block},
                                         {block - 1, block + 2},
                                         {3, block},
                                         {2 * block + 8, 7},
                                         {7, block - 8},
                                         {5 * block, 43},
                                         {block, n - block},
                                         {0, 0}};
            for (int t = 0; t < TYPES; t++)
                for (size_t k = 0; k < sizeof ranges / sizeof *ranges; k++)
                    check_decode(&r.v, ranges[k][0], ranges[k][1], types[t]);
            random_view_free(&r);
        }
}

TEST(decodes_odd_scales_and_foreign_tables_alike) {
    struct random_view r = random_view(64 * 16, 64, 0);
    const float scales[16] = {0,
                              -0.0f,
                              -1,
                              FLT_MAX,
                              -FLT_MAX,
                              FLT_MIN,
                              1e-44f,
                              INFINITY,
                              -INFINITY,
                              NAN,
                              f32_from_bits(0xffffffff),
                              f32_from_bits(0x7f800001),
                              1e-8f,
                              6e4f,
                              7e4f,
                              f32_from_bits(0x3f808000)};
    memcpy(r.absmax, scales, sizeof scales);
    float levels[16];
    for (int i = 0; i < 16; i++) levels[i] = number();
    for (int own = 0; own < 2; own++, r.v.levels = levels)
        for (int t = 0; t < TYPES; t++) check_decode(&r.v, 0, 64 * 16, types[t]);
    random_view_free(&r);
}

TEST(encoding_a_decoded_matrix_changes_nothing) {
    enum { N = 4096 * 3 + 101 };
    static float x[N], absmax[N], again_absmax[N];
    static uint8_t codes[N], again[N];
    for (int b = 0; b < BLOCKS; b++) {
        for (int i = 0; i < N; i++) x[i] = number();
        CHECK(q4_encode(Q4_NF4, blocks[b], x, DT_F32, N, codes, absmax) == -1, "refused");
        struct q4_view v = {.codes = codes, .absmax = absmax, .levels = nf4_levels, .block = blocks[b]};
        q4_decode(&v, 0, N, x, DT_F32);
        CHECK(q4_encode(Q4_NF4, blocks[b], x, DT_F32, N, again, again_absmax) == -1, "refused");
        CHECK(!memcmp(codes, again, (size_t)q4_code_bytes(N)), "block %d: codes", blocks[b]);
        CHECK(!memcmp(absmax, again_absmax, (size_t)q4_blocks(N, blocks[b]) * 4), "block %d: scales",
              blocks[b]);
    }
}

static uint64_t hash(const float *x, int n) { /* FNV-1a over 32-bit words */
    uint64_t h = 0xcbf29ce484222325;
    for (int i = 0; i < n; i++) h = (h ^ f32_bits(x[i])) * 0x100000001b3;
    return h;
}

TEST(maps_have_the_documented_bits) {
    nf4_init();
    for (int i = 0; i < 255; i++)
        CHECK(bw8_signed[i] < bw8_signed[i + 1] && bw8_unsigned[i] < bw8_unsigned[i + 1], "entry %d", i);
    for (int i = 0; i < 127; i++) CHECK(bw8_signed[i] == -bw8_signed[254 - i], "signed %d", i);
    CHECK(bw8_signed[127] == 0 && bw8_signed[255] == 1 && bw8_unsigned[0] == 0 && bw8_unsigned[255] == 1,
          "ends");
    CHECK(f32_bits(bw8_signed[0]) == 0xbf7e3333 && f32_bits(bw8_unsigned[254]) == 0x3f7f199a, "inner ends");
    CHECK(hash(bw8_signed, 256) == 0x690ca6ad558a2475, "signed: %016llx",
          (unsigned long long)hash(bw8_signed, 256));
    CHECK(hash(bw8_unsigned, 256) == 0xa9aaf4b4f33a51e3, "unsigned: %016llx",
          (unsigned long long)hash(bw8_unsigned, 256));
}

/* The map entry nearest to x by looking at all of them; on a tie the even index. */
static int reference_nearest(const float *map, float x) {
    int i = 0;
    for (; i < 255; i++) {
        float middle = (map[i] + map[i + 1]) * 0.5f;
        if (x < middle || (x == middle && !(i & 1))) break;
    }
    return i;
}

/* The fast index is exact if it is exact at both ends of each of its 65536 cells and around each
 * threshold. */
TEST(finds_the_nearest_entry_everywhere) {
    nf4_init();
    for (int which = 0; which < 2; which++) {
        const float *map = which ? bw8_unsigned : bw8_signed;
        const struct bw8_index *ix = bw8_index(map);
        for (int i = 0; i < 255; i++) {
            float middle = (map[i] + map[i + 1]) * 0.5f;
            const float xs[] = {middle, nextafterf(middle, 2), nextafterf(middle, -2), map[i], map[i + 1]};
            for (int k = 0; k < 5; k++) {
                int want = reference_nearest(map, xs[k]);
                CHECK(bw8_nearest(map, xs[k]) == want, "map %d near %d: %d, not %d", which, i,
                      bw8_nearest(map, xs[k]), want);
                CHECK(bw8_find(ix, xs[k]) == want, "map %d near %d: index finds %d, not %d", which, i,
                      bw8_find(ix, xs[k]), want);
            }
        }
        for (uint32_t cell = 0; cell < 65536; cell++)
            for (uint32_t end = 0; end < 2; end++) {
                float x = f32_from_bits(cell << 16 | (end ? 0xffff : 0));
                if (isnan(x) && !(f32_bits(x) & 0x400000)) continue; /* signalling: no quotient is */
                CHECK(bw8_find(ix, x) == bw8_nearest(map, x), "map %d at %a", which, (double)x);
            }
    }
}

TEST(bw8_blocks_follow_the_definition) {
    enum { N = 256 * 9 + 37, NB = 10 };
    static float x[N], absmax[NB], y[N];
    static uint8_t codes[N];
    nf4_init();
    for (int which = 0; which < 2; which++) {
        const float *map = which ? bw8_unsigned : bw8_signed;
        for (int i = 0; i < N; i++) x[i] = which ? fabsf(number()) : number();
        for (int i = 0; i < 256; i++) x[256 + i] = 0, x[512 + i] = 1e-40f, x[768 + i] *= 1e-30f;
        bw8_encode(map, x, N, codes, absmax);
        bw8_decode(map, codes, absmax, N, y);
        for (int i = 0; i < N; i++) {
            float a = 0;
            for (int k = i / 256 * 256; k < N && k < (i / 256 + 1) * 256; k++) a = fmaxf(a, fabsf(x[k]));
            if (a < FLT_MIN) a = 0;
            int want = reference_nearest(map, a > 0 ? x[i] * (1 / a) : 0);
            CHECK(absmax[i / 256] == a && codes[i] == want, "element %d: scale %a, code %d; not %a, %d", i,
                  (double)absmax[i / 256], codes[i], (double)a, want);
            CHECK(f32_bits(y[i]) == f32_bits(map[codes[i]] * a), "element %d decodes to %a", i, (double)y[i]);
        }
    }
}

TEST(double_quantisation_follows_the_definition) {
    enum { NB = 256 * 3 + 5 };
    static float absmax[NB], nested[4], offset;
    static uint8_t q[NB];
    nf4_init();
    double sum = 0;
    for (int b = 0; b < NB; b++) absmax[b] = fabsf(number()), sum += (double)absmax[b];
    q4_double(absmax, NB, q, nested, &offset);
    CHECK(offset == (float)(sum / NB), "offset %a", (double)offset);
    struct q4_view v = {.absmax_q = q,
                        .nested_absmax = nested,
                        .nested_map = bw8_signed,
                        .nested_offset = offset,
                        .block = 64};
    for (int b = 0; b < NB; b++) {
        float s = 0;
        for (int k = b / 256 * 256; k < NB && k < (b / 256 + 1) * 256; k++)
            s = fmaxf(s, fabsf(absmax[k] - offset));
        CHECK(nested[b / 256] == s, "nested scale %d: %a, not %a", b / 256, (double)nested[b / 256],
              (double)s);
        CHECK(q[b] == reference_nearest(bw8_signed, (absmax[b] - offset) * (1 / s)), "scale %d: code %d", b,
              q[b]);
        volatile float product = bw8_signed[q[b]] * s; /* two roundings */
        CHECK(q4_scale(&v, b) == product + offset, "scale %d restores to %a", b, (double)q4_scale(&v, b));
    }
    for (int b = 0; b < NB; b++) absmax[b] = 0.25f; /* equal scales: all differences are 0 */
    q4_double(absmax, NB, q, nested, &offset);
    CHECK(offset == 0.25f && nested[3] == 0 && q[NB - 1] == 127 &&
              q4_scale(&v, 0) == 0.7f * 0 + v.nested_offset,
          "equal scales");
    q4_double(absmax, 0, q, nested, &offset);
    CHECK(offset == 0, "no scales");
}

TEST(int8_rows_follow_the_definition) {
    enum { ROWS = 7, MAX = 777 };
    static float x[ROWS * MAX], s[ROWS], out[ROWS * MAX];
    static int8_t q[ROWS * MAX + 1];
    const int cols[] = {1, 2, 255, 256, 257, MAX};
    for (int k = 0; k < 6; k++)
        for (int t = 0; t < TYPES; t++) {
            int n = ROWS * cols[k];
            for (int i = 0; i < n; i++) {
                int row = i / cols[k];
                float v = number() * (row == 2 ? 1e-7f : row == 3 ? 0 : row == 4 ? 5000.0f : 1);
                set_element(x, types[t], i, v);
            }
            q[n] = 99;
            CHECK(int8_encode(x, types[t], ROWS, cols[k], q, s) == -1, "refused");
            CHECK(q[n] == 99, "wrote behind the end");
            for (int i = 0; i < n; i++) {
                int row = i / cols[k];
                float w = f16_to_f32(f32_to_f16(element(x, types[t], i))), top = 0;
                for (int c = 0; c < cols[k]; c++)
                    top = fmaxf(top, fabsf(f16_to_f32(f32_to_f16(element(x, types[t], row * cols[k] + c)))));
                float want = top > 0 ? rintf(w * (127.0f / top)) : 0;
                CHECK(s[row] == top && (float)q[i] == want, "row %d: scale %a, code %d; not %a, %g", row,
                      (double)s[row], q[i], (double)top, (double)want);
            }
            for (int o = 0; o < TYPES; o++) {
                int8_decode(q, s, cols[k], 1, ROWS - 1, out, types[o]);
                for (int i = 0; i < n - cols[k]; i++) {
                    float want;
                    set_element(&want, types[o], 0,
                                (float)q[cols[k] + i] * (s[1 + i / cols[k]] * (1 / 127.0f)));
                    CHECK(!memcmp((char *)out + (size_t)i * dtype_bytes(types[o]), &want,
                                  dtype_bytes(types[o])),
                          "%s at %d", dtype_name(types[o]), i);
                }
            }
        }
}

/* fp32 numbers on and beside the ties of fp16, from 0 to 65536, each a row of its own so that the scale
 * shows it. */
TEST(int8_rounds_weights_to_fp16_first) {
    enum { STEP = 7 << 12, N = 3 * (0x47800000 / STEP) };
    static float each[N], scale[N];
    static int8_t code[N];
    int n = 0;
    for (uint32_t u = STEP; n < N; u += STEP)
        for (uint32_t d = 0; d < 3; d++) each[n++] = f32_from_bits(u - 1 + d);
    while (each[n - 1] >= 65520.0f) n--;
    CHECK(int8_encode(each, DT_F32, n, 1, code, scale) == -1, "refused");
    for (int i = 0; i < n; i++)
        CHECK(scale[i] == f16_to_f32(f32_to_f16(each[i])), "%a gives %a", (double)each[i], (double)scale[i]);
    float x[300] = {0}, s;
    int8_t q[300];
    const float bad[] = {NAN, -NAN, INFINITY, -INFINITY, 65520.0f, -1e30f};
    for (int k = 0; k < 6; k++) {
        x[299] = bad[k], x[40 * k + 3] = bad[k];
        CHECK(int8_encode(x, DT_F32, 1, 300, q, &s) == 40 * k + 3, "%g", (double)bad[k]);
        CHECK(int8_encode(x, DT_F32, 3, 100, q, (float[3]){0}) == 40 * k + 3, "%g in rows", (double)bad[k]);
        x[40 * k + 3] = 0;
    }
    x[299] = 65519.0f;
    CHECK(int8_encode(x, DT_F32, 1, 300, q, &s) == -1 && s == 65504.0f, "the largest fp16");
}

/* Section by section as the formulas stand, one element at a time. */
TEST(adamw_follows_the_definition) {
    enum { N = 4096 + 77, NB = 17 };
    static float p[N], g[N], want_p[N], am[NB], av[NB];
    static uint8_t m8[N], v8[N];
    const float lr = 1e-3f, beta1 = 0.9f, beta2 = 0.95f, eps = 1e-6f, decay = 0.1f, scale = 0.5f;
    nf4_init();
    for (int i = 0; i < N; i++)
        p[i] = number(), m8[i] = v8[i] = (uint8_t)pcg_next32(&rng); /* with scale 0 any code is 0 */
    for (int t = 1; t <= 4; t++) {
        static float m[N], v[N], old_am[NB], old_av[NB];
        for (int i = 0; i < N; i++) {
            g[i] = i < 256 || (i < 512 && t < 3) ? 0 : number();
            if (i >= 512 && i < 600) g[i] *= 1e-9f;
        }
        memcpy(old_am, am, sizeof am), memcpy(old_av, av, sizeof av);
        float c1 = 1 - (float)pow(0.9f, t), c2 = sqrtf(1 - (float)pow(0.95f, t));
        for (int i = 0; i < N; i++) {
            float gi = g[i] * scale;
            v[i] = bw8_unsigned[v8[i]] * av[i / 256] * beta2 + (1 - beta2) * gi * gi;
            m[i] = bw8_signed[m8[i]] * am[i / 256] * beta1 + (1 - beta1) * gi;
            want_p[i] = (p[i] + -lr * c2 / c1 * (m[i] / (sqrtf(v[i]) + c2 * eps))) * (1 - lr * decay);
        }
        struct bw8_adam s = bw8_adam_step(t, lr, beta1, beta2, eps, decay, scale);
        bw8_adamw(&s, N, p, g, m8, am, v8, av);
        for (int b = 0; b < NB; b++) {
            float top_m = 0, top_v = 0;
            for (int i = b * 256; i < N && i < b * 256 + 256; i++)
                top_m = fmaxf(top_m, fabsf(m[i])), top_v = fmaxf(top_v, v[i]);
            CHECK(am[b] == top_m && av[b] == top_v, "step %d block %d: scales %a %a, not %a %a", t, b,
                  (double)am[b], (double)av[b], (double)top_m, (double)top_v);
        }
        for (int i = 0; i < N; i++) {
            int cm = am[i / 256] > 0 ? reference_nearest(bw8_signed, m[i] / am[i / 256]) : 127;
            if (m[i] != 0 && !signbit(bw8_signed[cm]) != !signbit(m[i])) cm += m[i] > 0 ? 1 : -1;
            int cv = av[i / 256] > 0 ? reference_nearest(bw8_unsigned, v[i] / av[i / 256]) : 0;
            CHECK(f32_bits(p[i]) == f32_bits(want_p[i]), "step %d p[%d] %a, not %a", t, i, (double)p[i],
                  (double)want_p[i]);
            CHECK(m8[i] == cm && v8[i] == cv, "step %d state[%d] %d %d, not %d %d", t, i, m8[i], v8[i], cm,
                  cv);
        }
        CHECK(m8[0] == 127 && v8[0] == 0 && am[0] == 0, "a block of zeros");
    }
}

TEST(adamw_keeps_the_sign_of_a_tiny_moment) {
    CHECK(bw8_keep_sign(BW8_ZERO, -1e-20f) == 126 && bw8_keep_sign(BW8_ZERO, 1e-20f) == 127, "tiny");
    CHECK(bw8_keep_sign(BW8_ZERO, -0.0f) == 127 && bw8_keep_sign(BW8_ZERO, 0.0f) == 127, "zeros");
    CHECK(bw8_keep_sign(126, -1e-6f) == 126 && bw8_keep_sign(128, 1e-6f) == 128 &&
              bw8_keep_sign(0, -1.0f) == 0,
          "others");
    float p[2] = {1, 1}, g[2] = {1, -1e-12f}, am = 0, av = 0;
    uint8_t m8[2], v8[2];
    struct bw8_adam s = bw8_adam_step(1, 0.1f, 0.9f, 0.999f, 1e-8f, 0, 1);
    memset(m8, 0, 2), memset(v8, 0, 2);
    bw8_adamw(&s, 2, p, g, m8, &am, v8, &av);
    CHECK(m8[0] == 255 && m8[1] == 126, "codes %d %d", m8[0], m8[1]);
    CHECK(s.decay == 1 && fabsf(p[0] - 0.9f) < 1e-6f, "the first step is lr: p %g", (double)p[0]);
}

/* ---- vector paths of AdamW ---- */

enum { STATE = 256 * 256, STATE_BLOCKS = STATE / 256 };
struct state {
    float p[STATE], g[STATE], am[STATE_BLOCKS], av[STATE_BLOCKS];
    uint8_t m8[STATE], v8[STATE];
};
static struct state given, want_state, got_state;

static int same(float a, float b) { /* which of two NaN a sum gives is the compiler's choice */
    return f32_bits(a) == f32_bits(b) || (isnan(a) && isnan(b));
}

static void compare_states(const char *what, int path, int64_t n) {
    for (int64_t i = 0; i < STATE; i++) {
        const struct state *want = i < n ? &want_state : &given; /* behind n nothing is written */
        if (same(got_state.p[i], want->p[i]) && got_state.m8[i] == want->m8[i] && got_state.v8[i] == want->v8[i]) continue;
        CHECK(0, "%s, path %d, g %a at %lld of %lld: %a %d %d, not %a %d %d", what, path, (double)given.g[i], (long long)i,
              (long long)n, (double)got_state.p[i], got_state.m8[i], got_state.v8[i], (double)want->p[i], want->m8[i],
              want->v8[i]);
        return;
    }
    for (int64_t b = 0; b < STATE_BLOCKS; b++) {
        const struct state *want = b * 256 < n ? &want_state : &given;
        CHECK(f32_bits(got_state.am[b]) == f32_bits(want->am[b]) && f32_bits(got_state.av[b]) == f32_bits(want->av[b]),
              "%s, path %d, block %lld: scales %a %a, not %a %a", what, path, (long long)b, (double)got_state.am[b],
              (double)got_state.av[b], (double)want->am[b], (double)want->av[b]);
    }
}

/* A step of the first n elements of `given`: by the portable code, by each vector path of this machine, as callers have it. */
static void check_step(const struct bw8_adam *s, int64_t n, const char *what) {
    struct state *w = &want_state, *x = &got_state;
    nf4_init();
    nf4_portable = 1;
    *w = given;
    bw8_adamw(s, n, w->p, w->g, w->m8, w->am, w->v8, w->av);
    nf4_portable = 0;
    for (int k = 0; bw8_steps[k]; k++) {
        *x = given;
        int64_t done = bw8_steps[k](s, n, x->p, x->g, x->m8, x->am, x->v8, x->av);
        CHECK(done == n / 256 * 256, "%s: path %d did %lld of %lld", what, k, (long long)done, (long long)n);
        compare_states(what, k, done);
    }
    *x = given;
    bw8_adamw(s, n, x->p, x->g, x->m8, x->am, x->v8, x->av);
    compare_states(what, -1, n);
}

/* Steps that go on from one another, from every code in every lane. */
TEST(adamw_by_vectors_gives_the_same_bits) {
    struct bw8_adam s = bw8_adam_step(1, 1e-3f, 0.9f, 0.999f, 1e-8f, 0.1f, 0.7f);
    for (int i = 0; i < STATE; i++)
        given.p[i] = number(), given.m8[i] = (uint8_t)(i + i / 256), given.v8[i] = (uint8_t)(i * 77 + i / 256);
    for (int b = 0; b < STATE_BLOCKS; b++) given.am[b] = fabsf(number()), given.av[b] = fabsf(number());
    const int64_t sizes[] = {0, 1, 255, 256, 257, 511, 512, 513, 30 * 256 + 100, STATE - 1, STATE};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        for (int i = 0; i < STATE; i++) given.g[i] = number() * (i / 256 % 3 ? 1 : 1e-12f);
        check_step(&s, sizes[k], "random");
        memcpy(&given, &want_state, sizeof given);
        s = bw8_adam_step((int64_t)k + 2, 1e-3f, 0.9f, 0.999f, k & 1 ? 0 : 1e-8f, 0.1f, k & 2 ? 1 : 1e-3f);
    }
}

/* With beta1 = 0 the gradients are the moments: both ends of each cell of the index, and each threshold and its neighbours,
 * below scales whose quotients are exact or not; what is stored then of their squares. */
TEST(adamw_by_vectors_finds_every_code) {
    const struct bw8_adam s = {.g1 = 1, .g2 = 1, .step = -1e-3f, .eps = 1e-8f, .decay = 1, .grad_scale = 1};
    const float scales[] = {1, 3, 0.7f, 0x1p-60f, 1e-30f, 0x1p60f, FLT_MAX};
    nf4_init();
    for (int k = 0; k < 7; k++) {
        int64_t n = 0;
        for (uint32_t u = 0; u < 4 * 0x3f80; u++) {
            if (n % 256 == 0) given.g[n++] = scales[k];
            given.g[n++] = f32_from_bits((u & 1) << 31 | u >> 2 << 16 | (u & 2 ? 0xffff : 0)) * scales[k];
        }
        for (; n % 256; n++) given.g[n] = 0;
        check_step(&s, n, "cells");
        n = 0;
        for (int which = 0; which < 3; which++)
            for (int i = 0; i < 255; i++)
                for (int d = -3; d <= 3; d++) {
                    if (n % 256 == 0) given.g[n++] = scales[k];
                    const float *map = which ? bw8_unsigned : bw8_signed;
                    float middle = (map[i] + map[i + 1]) * 0.5f, x = which == 2 ? sqrtf(middle) : middle;
                    given.g[n++] = f32_from_bits(f32_bits(x) + (uint32_t)d) * scales[k];
                }
        check_step(&s, n, "thresholds");
    }
}

TEST(adamw_by_vectors_treats_odd_numbers_alike) {
    const float odd[16] = {0,       -0.0f,    1,       -1,     NAN,     -NAN,   INFINITY, -INFINITY,
                           FLT_MAX, -FLT_MAX, FLT_MIN, 1e-40f, -1e-45f, 1e-20f, 1e20f,    f32_from_bits(0x7f800001)};
    const float eps[] = {0, 1e-8f, INFINITY, NAN};
    enum { USUAL, ODD, ONE_ODD, ZERO, SUBNORMAL, EQUAL, GRADIENTS };
    for (int k = 0; k < 4; k++)
        for (int kind = 0; kind < GRADIENTS; kind++) {
            for (int i = 0; i < STATE; i++) {
                uint32_t r = pcg_next32(&rng);
                float x = number(), any = odd[r >> 28];
                given.m8[i] = (uint8_t)r, given.v8[i] = (uint8_t)(r >> 8), given.p[i] = (r >> 16) % 64 ? x : any;
                if (kind == ODD || (kind == ONE_ODD && i % 256 == i / 256)) x = any;
                if (kind == ZERO) x = 0;
                if (kind == SUBNORMAL) x *= 1e-38f;
                if (kind == EQUAL) x = odd[i / 256 % 16];
                given.g[i] = x;
            }
            for (int b = 0; b < STATE_BLOCKS; b++) given.am[b] = odd[b % 16], given.av[b] = odd[b / 16];
            struct bw8_adam s = bw8_adam_step(3, 1e-3f, 0.9f, 0.999f, eps[k], 0.1f, k == 3 ? 1e-30f : 1);
            check_step(&s, STATE, "odd numbers");
        }
}

TEST(threads_change_no_bit) {
    enum { N = 5 * 65536 + 4321, ROWS = 333, COLS = 987, NB = N / 256 + 1 };
    static float x[N];
    static struct {
        float absmax[N / 64 + 1], nested[NB], offset, s[ROWS], am[NB], y[N];
        uint8_t codes[N / 2 + 1], q[N], m8[N];
        int8_t rows[ROWS * COLS];
    } out[2];
    for (int i = 0; i < N; i++) x[i] = number();
    for (int k = 0; k < 2; k++) {
        set_threads(k ? 3 : 1);
        q4_encode(Q4_NF4, 64, x, DT_F32, N, out[k].codes, out[k].absmax);
        q4_double(x, N, out[k].q, out[k].nested, &out[k].offset);
        int8_encode(x, DT_F32, ROWS, COLS, out[k].rows, out[k].s);
        bw8_encode(bw8_signed, x, N, out[k].m8, out[k].am);
        bw8_decode(bw8_signed, out[k].m8, out[k].am, N, out[k].y);
    }
    CHECK(!memcmp(&out[0], &out[1], sizeof out[0]), "one thread and three give different bytes");
}

TEST_MAIN
