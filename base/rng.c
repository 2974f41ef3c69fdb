/* base/rng.c - see rng.h */
#include "base/rng.h"

void mt_seed(struct mt19937 *g, uint32_t seed) {
    g->s[0] = seed;
    for (uint32_t i = 1; i < 624; i++) g->s[i] = 1812433253u * (g->s[i - 1] ^ (g->s[i - 1] >> 30)) + i;
    g->i = 624;
}

uint32_t mt_next(struct mt19937 *g) {
    if (g->i == 624) {
        for (int k = 0; k < 624; k++) {
            uint32_t y = (g->s[k] & 0x80000000u) | (g->s[(k + 1) % 624] & 0x7fffffffu);
            g->s[k] = g->s[(k + 397) % 624] ^ (y >> 1) ^ ((y & 1) ? 0x9908b0dfu : 0);
        }
        g->i = 0;
    }
    uint32_t y = g->s[g->i++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

void mt_permutation(struct mt19937 *g, int64_t *r, int64_t n) {
    for (int64_t i = 0; i < n; i++) r[i] = i;
    for (int64_t i = 0; i + 1 < n; i++) {
        int64_t z = i + (int64_t)(mt_next(g) % (uint64_t)(n - i)), t = r[i];
        r[i] = r[z], r[z] = t;
    }
}

void pcg_seed(struct pcg64 *g, uint64_t seed) {
    uint32_t e[4] = {(uint32_t)seed, (uint32_t)(seed >> 32), 0, 0}, pool[4], h = 0x43b0d7e5u, w[8];
#define HASHMIX(v, out)                                                                                                \
    do {                                                                                                               \
        uint32_t v_ = (v) ^ h;                                                                                         \
        h *= 0x931e8875u;                                                                                              \
        v_ *= h;                                                                                                       \
        (out) = v_ ^ (v_ >> 16);                                                                                       \
    } while (0)
    for (int i = 0; i < 4; i++) HASHMIX(e[i], pool[i]);
    for (int a = 0; a < 4; a++)
        for (int b = 0; b < 4; b++)
            if (a != b) {
                uint32_t m;
                HASHMIX(pool[a], m);
                uint32_t r = 0xca01f9ddu * pool[b] - 0x4973f715u * m;
                pool[b] = r ^ (r >> 16);
            }
#undef HASHMIX
    uint32_t k = 0x8b51f9ddu;
    for (int i = 0; i < 8; i++) {
        uint32_t v = pool[i % 4] ^ k;
        k *= 0x58f38dedu;
        v *= k;
        w[i] = v ^ (v >> 16);
    }
    uint64_t u[4];
    for (int i = 0; i < 4; i++) u[i] = w[2 * i] | (uint64_t)w[2 * i + 1] << 32;
    unsigned __int128 start = (unsigned __int128)u[0] << 64 | u[1];
    g->inc = ((unsigned __int128)u[2] << 64 | u[3]) * 2 + 1;
    g->s = 0, g->has_half = 0;
    pcg_next64(g);
    g->s += start;
    pcg_next64(g);
}

uint64_t pcg_next64(struct pcg64 *g) {
    const unsigned __int128 m = (unsigned __int128)0x2360ED051FC65DA4ull << 64 | 0x4385DF649FCCF645ull;
    g->s = g->s * m + g->inc;
    uint64_t x = (uint64_t)(g->s >> 64) ^ (uint64_t)g->s;
    unsigned r = (unsigned)(g->s >> 122);
    return x >> r | x << (-r & 63);
}

uint32_t pcg_next32(struct pcg64 *g) {
    if (g->has_half) return g->has_half = 0, g->half;
    uint64_t x = pcg_next64(g);
    g->half = (uint32_t)(x >> 32), g->has_half = 1;
    return (uint32_t)x;
}

double pcg_double(struct pcg64 *g) { return (double)(pcg_next64(g) >> 11) * 0x1p-53; }

uint32_t pcg_below(struct pcg64 *g, uint32_t n) { /* Lemire 2019, algorithm 5 */
    if (n < 2) return 0;
    uint64_t m = (uint64_t)pcg_next32(g) * n;
    while ((uint32_t)m < n && (uint32_t)m < -n % n) m = (uint64_t)pcg_next32(g) * n;
    return (uint32_t)(m >> 32);
}

void pcg_permutation(struct pcg64 *g, int64_t *a, int64_t n) {
    for (int64_t i = 0; i < n; i++) a[i] = i;
    for (int64_t i = n - 1; i > 0; i--) {
        uint64_t mask = (uint64_t)i, v;
        for (int s = 1; s < 64; s *= 2) mask |= mask >> s;
        if (mask <= 0xffffffffu) do v = pcg_next32(g) & mask;
            while (v > (uint64_t)i);
        else do v = pcg_next64(g) & mask;
            while (v > (uint64_t)i);
        int64_t t = a[i];
        a[i] = a[v], a[v] = t;
    }
}
