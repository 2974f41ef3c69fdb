/* NEFTune's noise: the definition against a loop over the generator, its distribution, its independence of chunks; on a card
 * (QLORA_BACKEND=cuda) the same numbers up to one rounding to bf16. */
#include "tests/ops/ops.h"
#include "base/rng.h"

enum { D = 70, SEED_HIGH = 5 };
static const uint64_t SEED = 42 | (uint64_t)SEED_HIGH << 32;
static const uint32_t STEP = 9;

static float expected(int64_t token, int j) {
    uint32_t counter[4] = {(uint32_t)j / 4, (uint32_t)token, NOISE_SITE, STEP}, key[2] = {42, SEED_HIGH}, word[4];
    philox4x32(counter, key, word);
    return (float)(((double)(word[j % 4] >> 9) + 0.5) / 0x1p22 - 1); /* exact, so that fp32 makes no difference */
}

TEST(noise_is_the_generators_and_knows_no_chunks) {
    const int lengths[] = {5, 1, 9, 2, 0};
    struct chunk_of ch = chunk_new(lengths, 0);
    int64_t N = ch.rows.N;
    float size[17];
    for (int t = 0; t < N; t++) size[t] = t == 4 ? 0 : 0.25f * (float)(t % 3 + 1);
    struct mat x = mat_random(N, D, 2, 1), y = mat_copy(x), parts = mat_copy(x);
    struct backend *b = backend_for(*cpu_kernels_all(), 3, N, D);
    op_noise(b, &(struct noise_args){.rows = &ch.rows, .y = y, .size = size, .seed = SEED, .step = STEP});
    for (int64_t t = 0; t < N; t++)
        for (int j = 0; j < D; j++) {
            float want = *at(&x, t, j) + size[t] * expected(ch.rows.token0 + t, j);
            CHECK(*at(&y, t, j) == want, "row %d column %d: %.9g, %.9g", (int)t, j, (double)*at(&y, t, j), (double)want);
        }
    for (int s = 0; s < ch.rows.n_seqs; s++) {
        struct chunk_of part = chunk_part(&ch, s);
        int64_t t = ch.rows.seq_start[s];
        op_noise(b, &(struct noise_args){.rows = &part.rows, .y = mat_part(parts, t, part.rows.N), .size = size + t, .seed = SEED, .step = STEP});
        chunk_free(&part);
    }
    CHECK(mat_same(y, parts), "chunks change bits");
    backend_close(b);
    mat_free(&x), mat_free(&y), mat_free(&parts), chunk_free(&ch);
}

TEST(noise_is_uniform) {
    enum { N = 400 };
    const int lengths[] = {N, 0};
    struct chunk_of ch = chunk_new(lengths, 0);
    float size[N];
    double sum = 0, squares = 0, tenths[20] = {0};
    for (int t = 0; t < N; t++) size[t] = 1;
    struct mat y = mat_new(N, D, 0);
    memset(y.data, 0, N * D * 4);
    struct backend *b = backend_for(*cpu_kernels_all(), 2, N, D);
    op_noise(b, &(struct noise_args){.rows = &ch.rows, .y = y, .size = size, .seed = 1, .step = 0});
    for (int64_t i = 0; i < N * D; i++) {
        float u = ((float *)y.data)[i];
        REQUIRE(u > -1 && u < 1, "%g", (double)u);
        sum += u, squares += (double)u * u, tenths[(int)((u + 1) * 10)]++;
    }
    const double n = N * D;
    CHECK(fabs(sum / n) < 6 / sqrt(3 * n), "mean %g", sum / n);                  /* six standard errors */
    CHECK(fabs(squares / n - 1.0 / 3) < 6 * sqrt(4.0 / 45 / n), "mean square %g", squares / n);
    for (int i = 0; i < 20; i++) CHECK(fabs(tenths[i] - n / 20) < 6 * sqrt(n * 0.05 * 0.95), "cell %d: %g", i, tenths[i]);
    backend_close(b);
    mat_free(&y), chunk_free(&ch);
}

TEST(a_card_makes_the_same_noise) {
    enum { ROWS = 17, EVEN = 72 };
    const char *name = getenv("QLORA_BACKEND");
    struct err e = {0};
    if (!name || strcmp(name, "cuda")) SKIP("no card asked for (QLORA_BACKEND=cuda)");
    const char *plugin = getenv("QLORA_PLUGIN"); /* when it does not lie beside the program */
    struct backend *gpu = backend_open(plugin ? plugin : name, &e);
    REQUIRE(gpu, "%s", e.text);
    const int lengths[] = {ROWS, 0};
    struct chunk_of ch = chunk_new(lengths, 0);
    float size[ROWS];
    uint16_t x[ROWS * EVEN], y[ROWS * EVEN];
    for (int t = 0; t < ROWS; t++) size[t] = 0.5f;
    for (int i = 0; i < ROWS * EVEN; i++) x[i] = f32_to_bf16(uniform());
    void *dev = gpu->alloc(gpu->self, AT_DEVICE, sizeof x), *dev_size = gpu->alloc(gpu->self, AT_DEVICE, sizeof size);
    REQUIRE(dev && dev_size, "no memory on the card");
    gpu->put(gpu->self, dev, x, sizeof x, Q_COMPUTE), gpu->put(gpu->self, dev_size, size, sizeof size, Q_COMPUTE);
    op_noise(gpu, &(struct noise_args){.rows = &ch.rows, .y = {dev, ROWS, EVEN, EVEN, DT_BF16}, .size = dev_size, .seed = SEED, .step = STEP});
    gpu->get(gpu->self, y, dev, sizeof y, Q_COMPUTE);
    REQUIRE(!gpu->sync(gpu->self, &e), "%s", e.text);
    for (int i = 0; i < ROWS * EVEN; i++) {
        float want = bf16_to_f32(x[i]) + 0.5f * expected(ch.rows.token0 + i / EVEN, i % EVEN);
        CHECK(y[i] == f32_to_bf16(want), "element %d: %g, %g", i, (double)bf16_to_f32(y[i]), (double)want);
    }
    gpu->release(gpu->self, AT_DEVICE, dev), gpu->release(gpu->self, AT_DEVICE, dev_size);
    backend_close(gpu), chunk_free(&ch);
}

TEST_MAIN
