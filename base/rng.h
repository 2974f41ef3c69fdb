/* base/rng.h - the random generators of the program. All are defined to the bit, so results repeat everywhere.
 *
 * philox  counter-based (Salmon et al., SC 2011, Philox4x32-10): dropout masks and weight initialisation; stateless.
 * mt19937 Matsumoto & Nishimura 1998: the order of samples, as torch.randperm draws it.
 * pcg64   O'Neill 2014 (XSL-RR 128/64) behind numpy's SeedSequence: the validation split and mixing, as numpy draws them.
 */
#ifndef QLORA_BASE_RNG_H
#define QLORA_BASE_RNG_H
#include <stdint.h>

#ifdef __CUDACC__
#define RNG_FN static inline __host__ __device__
#else
#define RNG_FN static inline
#endif

/* out[4] = Philox4x32-10(counter, key). */
RNG_FN void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
    for (int r = 0; r < 10; r++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1, c3 = (uint32_t)p0, c0 = n0, c2 = n2;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* A word as a number in (-1,1): multiples of 2^-22 plus a half of one, each exact in fp32. */
RNG_FN float rng_signed(uint32_t word) {
    return ((float)(word >> 9) + 0.5f) * 0x1p-22f - 1;
}

struct mt19937 { uint32_t s[624]; int i; };
void mt_seed(struct mt19937 *g, uint32_t seed);
uint32_t mt_next(struct mt19937 *g);
/* torch.randperm(n) on the CPU: r = 0..n-1; for i in 0..n-2 swap r[i], r[i + next mod (n-i)]. */
void mt_permutation(struct mt19937 *g, int64_t *r, int64_t n);

struct pcg64 { unsigned __int128 s, inc; uint32_t half; int has_half; };
void pcg_seed(struct pcg64 *g, uint64_t seed); /* numpy.random.default_rng(seed) */
uint64_t pcg_next64(struct pcg64 *g);
uint32_t pcg_next32(struct pcg64 *g);
double pcg_double(struct pcg64 *g); /* [0,1): (next64 >> 11) * 2^-53 */
uint32_t pcg_below(struct pcg64 *g, uint32_t n); /* Generator.integers(0, n) */
void pcg_permutation(struct pcg64 *g, int64_t *a, int64_t n); /* Generator.permutation(n) */
#endif
