/* backend/cuda/noise.cu - noise on embeddings, once a step. */
#include "backend/cuda/cuda_internal.h"
#include "base/rng.h"

enum { THREADS = 256 };

/* y[t] += size[t] * u(t, i).  block: one row; thread: four features, one Philox draw. 2 D bytes in, 2 D out; ten rounds of
 * two 32-bit products for four numbers hide behind them. */
__global__ static void noise(uint32_t key0, uint32_t key1, uint32_t step, uint32_t token0, const float *size, bf16 *y, int64_t ld,
                             int64_t D) {
    bf16 *row = y + blockIdx.x * ld;
    const float s = size[blockIdx.x];
    for (int64_t i = (int64_t)threadIdx.x * 4; i < D; i += THREADS * 4) {
        uint32_t counter[4] = {(uint32_t)(i / 4), token0 + blockIdx.x, NOISE_SITE, step}, key[2] = {key0, key1}, word[4];
        philox4x32(counter, key, word);
        for (int k = 0; k < 4 && i + k < D; k++)
            row[i + k] = __float2bfloat16_rn(__fadd_rn(__bfloat162float(row[i + k]), __fmul_rn(s, rng_signed(word[k]))));
    }
}
void cuda_noise(void *self, const struct noise_args *a) {
    struct cuda *c = (struct cuda *)self;
    noise<<<(unsigned)a->y.rows, THREADS, 0, cuda_stream(c)>>>((uint32_t)a->seed, (uint32_t)(a->seed >> 32), a->step,
                                                               (uint32_t)a->rows->token0, a->size, (bf16 *)a->y.data, a->y.ld,
                                                               a->y.cols);
    CUDA_LAUNCHED(c);
}
