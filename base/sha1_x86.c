/* base/sha1_x86.c - SHA-1 with the instructions that newer x86 processors have for it (SHA-NI); the bits are those of sha1.c,
 * checked by tests/unit/test_base_file.c.
 *
 * An instruction does four rounds, another four words of the schedule, w[t] = rol1(w[t-3] ^ w[t-8] ^ w[t-14] ^ w[t-16]).
 */
#include "base/sha1_internal.h"

#ifndef __x86_64__
int sha1_fast(uint32_t h[5], const unsigned char *p, size_t blocks) {
    (void)h, (void)p, (void)blocks;
    return 0;
}
#else
#include <cpuid.h>
#include <immintrin.h>

static int detect(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 9 & 1) || !(c >> 19 & 1)) return 0; /* SSSE3, SSE4.1 */
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && b >> 29 & 1;
}

/* Rounds 4i .. 4i+3; w[i % 4] becomes the words of the rounds that are 16 later. */
#define ROUNDS(i)                                                                                                      \
    do {                                                                                                               \
        e = (i) ? _mm_sha1nexte_epu32(before, w[(i) % 4]) : _mm_add_epi32(e, w[0]);                                    \
        before = abcd;                                                                                                 \
        abcd = _mm_sha1rnds4_epu32(abcd, e, (i) / 5);                                                                  \
        if ((i) < 16)                                                                                                  \
            w[(i) % 4] = _mm_sha1msg2_epu32(                                                                           \
                _mm_xor_si128(_mm_sha1msg1_epu32(w[(i) % 4], w[((i) + 1) % 4]), w[((i) + 2) % 4]), w[((i) + 3) % 4]);  \
    } while (0)

__attribute__((target("sha,sse4.1,ssse3"))) static void compress(uint32_t h[5], const unsigned char *p, size_t blocks) {
    const __m128i order = _mm_set_epi64x(0x0001020304050607, 0x08090a0b0c0d0e0f); /* bytes and words are big-endian */
    __m128i abcd = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(const void *)h), 0x1b), w[4];
    __m128i start_e = _mm_set_epi32((int)h[4], 0, 0, 0);
    for (; blocks; blocks--, p += 64) {
        const __m128i start = abcd;
        __m128i e = start_e, before = abcd;
        for (int k = 0; k < 4; k++) w[k] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(p + 16 * k)), order);
        ROUNDS(0); ROUNDS(1); ROUNDS(2); ROUNDS(3); ROUNDS(4); ROUNDS(5); ROUNDS(6); ROUNDS(7); ROUNDS(8); ROUNDS(9);
        ROUNDS(10); ROUNDS(11); ROUNDS(12); ROUNDS(13); ROUNDS(14); ROUNDS(15); ROUNDS(16); ROUNDS(17); ROUNDS(18); ROUNDS(19);
        start_e = _mm_sha1nexte_epu32(before, start_e);
        abcd = _mm_add_epi32(abcd, start);
    }
    _mm_storeu_si128((__m128i *)(void *)h, _mm_shuffle_epi32(abcd, 0x1b));
    h[4] = (uint32_t)_mm_extract_epi32(start_e, 3);
}

int sha1_fast(uint32_t h[5], const unsigned char *p, size_t blocks) {
    static int known = -1; /* threads that ask at once find the same */
    int have = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (have < 0) __atomic_store_n(&known, have = detect(), __ATOMIC_RELAXED);
    if (have) compress(h, p, blocks);
    return have;
}
#endif
