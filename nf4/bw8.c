/* nf4/bw8.c - 8-bit blocks by the dynamic map of Dettmers et al. 2022 (8-bit optimizers via block-wise
 * quantization), and AdamW on such state. Bytes: docs/FORMATS.md, pinned by the golden test. The vector paths are bw8_avx*.c.
 */
#include "nf4/nf4_internal.h"
#include <pthread.h>

float bw8_signed[256], bw8_unsigned[256];
bw8_step *bw8_steps[3];
static struct bw8_index signed_index, unsigned_index;

/* The map covers (0,1) in 7 decades, 10^-6 .. 1, of 2^decade (signed) or twice as many values: the
 * midpoints of equal steps over [0.1, 1]. The boundaries are those of torch.linspace: from the near end,
 * one rounding each. */
static int fill_decade(int decade, int count, float *out) {
    static const float power[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
    float step = (1.0f - 0.1f) / (float)count, bound = 0.1f;
    for (int k = 0; k < count; k++) {
        int next = k + 1; /* of count + 1 boundaries */
        float upper =
            next < (count + 1) / 2 ? fmaf(step, (float)next, 0.1f) : fmaf(-step, (float)(count - next), 1.0f);
        out[k] = power[decade] * ((bound + upper) / 2.0f);
        bound = upper;
    }
    return count;
}

static void fill_maps(void) {
    float *u = bw8_unsigned, *s = bw8_signed;
    int nu = 1, ns = 128; /* entries 0 and, signed, 127 are 0; both maps end in 1, and there is no -1 */
    for (int decade = 0; decade < 7; decade++) {
        nu += fill_decade(decade, 2 << decade, u + nu);
        ns += fill_decade(decade, 1 << decade, s + ns);
    }
    for (int k = 0; k < 127; k++) s[126 - k] = -s[128 + k];
    u[255] = s[255] = 1;
}

static void fill_index(struct bw8_index *ix, const float *map) {
    for (uint32_t k = 0; k < 1 << 16; k++) {
        uint32_t flip = k & 0x8000 ? 0xffff : 0, from = 0x10000; /* below zero the lowest has the largest magnitude */
        int near = bw8_nearest(map, f32_from_bits(k << 16 | flip)),
            last = bw8_nearest(map, f32_from_bits(k << 16 | (flip ^ 0xffff)));
        if (near < last) {
            float middle = (map[near] + map[last]) * 0.5f, up = near & 1 ? middle : nextafterf(middle, INFINITY); /* tie: even */
            from = (f32_bits(up) ^ flip) & 0xffff;
        }
        ix->cell[k] = (near + 1) * 0x10000 - (int32_t)from;
    }
}

static void fill_steps(void) {
#if defined(__x86_64__)
    bw8_step **next = bw8_steps;
    if (__builtin_cpu_supports("avx512f")) *next++ = bw8_adamw_avx512;
    if (__builtin_cpu_supports("avx2")) *next++ = bw8_adamw_avx2;
#endif
}

static void fill(void) {
    fill_maps();
    fill_index(&signed_index, bw8_signed);
    fill_index(&unsigned_index, bw8_unsigned);
    fill_steps();
}

void nf4_init(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, fill);
}

const struct bw8_index *bw8_index(const float *map) {
    ASSERT(map == bw8_signed || map == bw8_unsigned, "a map from elsewhere: encoding uses ours");
    nf4_init();
    return map == bw8_signed ? &signed_index : &unsigned_index;
}

static int64_t block_end(int64_t first, int64_t n) {
    return n - first < BW8_BLOCK ? n : first + BW8_BLOCK;
}

void bw8_encode_block(const struct bw8_index *ix, const float *x, int64_t n, uint8_t *codes, float *absmax) {
    float a = 0;
    for (int64_t i = 0; i < n; i++) a = fabsf(x[i]) > a ? fabsf(x[i]) : a;
    float r = nf4_inverse(&a);
    *absmax = a;
    for (int64_t i = 0; i < n; i++) codes[i] = (uint8_t)bw8_find(ix, x[i] * r);
}

void bw8_encode(const float *map, const float *x, int64_t n, uint8_t *codes, float *absmax) {
    const struct bw8_index *ix = bw8_index(map);
#pragma omp parallel for schedule(static) if (n > CHUNK)
    for (int64_t i = 0; i < n; i += BW8_BLOCK)
        bw8_encode_block(ix, x + i, block_end(i, n) - i, codes + i, absmax + i / BW8_BLOCK);
}

void bw8_decode(const float *map, const uint8_t *codes, const float *absmax, int64_t n, float *x) {
    nf4_init();
#pragma omp parallel for schedule(static) if (n > CHUNK)
    for (int64_t first = 0; first < n; first += BW8_BLOCK)
        for (int64_t i = first, end = block_end(first, n); i < end; i++)
            x[i] = map[codes[i]] * absmax[first / BW8_BLOCK];
}

struct bw8_adam bw8_adam_step(int64_t t, float lr, float beta1, float beta2, float eps, float weight_decay,
                              float grad_scale) {
    ASSERT(t > 0, "step %lld", (long long)t);
    float c1 = 1.0f - (float)pow((double)beta1, (double)t),
          c2 = sqrtf(1.0f - (float)pow((double)beta2, (double)t));
    return (struct bw8_adam){.beta1 = beta1,
                             .beta2 = beta2,
                             .g1 = 1.0f - beta1,
                             .g2 = 1.0f - beta2,
                             .step = -lr * c2 / c1,
                             .eps = c2 * eps,
                             .decay = 1.0f - lr * weight_decay,
                             .grad_scale = grad_scale};
}

void bw8_adamw(const struct bw8_adam *s, int64_t n, float *p, const float *g, uint8_t *m8, float *m_absmax,
               uint8_t *v8, float *v_absmax) {
    const struct bw8_index *m_index = bw8_index(bw8_signed), *v_index = bw8_index(bw8_unsigned);
    int64_t done = bw8_steps[0] && !nf4_portable ? bw8_steps[0](s, n, p, g, m8, m_absmax, v8, v_absmax) : 0;
    for (int64_t first = done; first < n; first += BW8_BLOCK) {
        float m[BW8_BLOCK], v[BW8_BLOCK], *am = m_absmax + first / BW8_BLOCK,
                                          *av = v_absmax + first / BW8_BLOCK;
        float m_max = 0, v_max = 0;
        int64_t count = block_end(first, n) - first;
        for (int64_t k = 0; k < count; k++) {
            m[k] = bw8_signed[m8[first + k]] * *am;
            v[k] = bw8_unsigned[v8[first + k]] * *av;
        }
        for (int64_t k = 0; k < count; k++) {
            bw8_adam_element(s, g[first + k], &p[first + k], &m[k], &v[k]);
            m_max = fabsf(m[k]) > m_max ? fabsf(m[k]) : m_max;
            v_max = v[k] > v_max ? v[k] : v_max;
        }
        *am = m_max, *av = v_max;
        for (int64_t k = 0; k < count; k++) {
            int code = m_max > 0 ? bw8_find(m_index, m[k] / m_max) : BW8_ZERO;
            m8[first + k] = (uint8_t)bw8_keep_sign(code, m[k]);
            v8[first + k] = (uint8_t)(v_max > 0 ? bw8_find(v_index, v[k] / v_max) : 0);
        }
    }
}
