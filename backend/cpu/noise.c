/* backend/cpu/noise.c - noise on embeddings. */
#include "backend/cpu/cpu_internal.h"
#include "base/rng.h"

void cpu_noise(void *self, const struct noise_args *a) {
    const struct cpu *c = self;
    const uint32_t key[2] = {(uint32_t)a->seed, (uint32_t)(a->seed >> 32)};
#pragma omp parallel for num_threads(cpu_threads(c, a->y.rows * a->y.cols))
    for (int64_t t = 0; t < a->y.rows; t++) {
        float *y = mat_f32(&a->y) + t * a->y.ld;
        for (int64_t i = 0; i < a->y.cols; i += 4) {
            uint32_t counter[4] = {(uint32_t)(i / 4), (uint32_t)(a->rows->token0 + t), NOISE_SITE, a->step}, word[4];
            philox4x32(counter, key, word);
            for (int64_t k = 0; k < 4 && i + k < a->y.cols; k++) y[i + k] += a->size[t] * rng_signed(word[k]);
        }
    }
}
