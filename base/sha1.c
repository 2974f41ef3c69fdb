/* base/sha1.c - SHA-1 as FIPS 180-4 section 6.1 writes it; sha1_x86.c does the same with instructions made for it. */
#include "base/sha1.h"
#include "base/file.h"
#include "base/sha1_internal.h"
#include "base/stop.h"
#include "base/sys.h"
#include <stdio.h>
#include <string.h>

int sha1_portable;

static uint32_t rol(uint32_t x, int k) { return x << k | x >> (32 - k); }

static void compress(uint32_t h[5], const unsigned char p[64]) {
    uint32_t w[80];
    for (int t = 0; t < 16; t++, p += 4)
        w[t] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    for (int t = 16; t < 80; t++) w[t] = rol(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
    uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
    for (int t = 0; t < 80; t++) {
        uint32_t f = t < 20   ? ((b & c) ^ (~b & d)) + 0x5a827999u
                     : t < 40 ? (b ^ c ^ d) + 0x6ed9eba1u
                     : t < 60 ? ((b & c) ^ (b & d) ^ (c & d)) + 0x8f1bbcdcu
                              : (b ^ c ^ d) + 0xca62c1d6u;
        uint32_t next = rol(a, 5) + f + e + w[t];
        e = d, d = c, c = rol(b, 30), b = a, a = next;
    }
    h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
}

static void blocks(uint32_t h[5], const unsigned char *p, size_t n) {
    if (!sha1_portable && sha1_fast(h, p, n)) return;
    for (; n; n--, p += 64) compress(h, p);
}

void sha1_init(struct sha1 *s) {
    *s = (struct sha1){.h = {0x67452301u, 0xefcdab89u, 0x98badcfeu, 0x10325476u, 0xc3d2e1f0u}};
}

void sha1_add(struct sha1 *s, const void *data, size_t n) {
    const unsigned char *p = data;
    while (n) {
        size_t at = s->bytes % 64, k = 64 - at < n ? 64 - at : n;
        if (k == 64) blocks(s->h, p, n / 64), k = n / 64 * 64;
        else {
            memcpy(s->block + at, p, k);
            if (at + k == 64) blocks(s->h, s->block, 1);
        }
        s->bytes += k, p += k, n -= k;
    }
}

void sha1_hex(struct sha1 *s, char hex[41]) {
    static const unsigned char pad[64] = {0x80};
    uint64_t bits = s->bytes * 8;
    unsigned char length[8];
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)(bits >> (56 - 8 * i));
    sha1_add(s, pad, 1 + (119 - s->bytes % 64) % 64);
    sha1_add(s, length, 8);
    for (int i = 0; i < 5; i++) snprintf(hex + 8 * i, 9, "%08x", s->h[i]);
}

static int of_file(const char *path, int may_stop, char hex[41], struct err *e) {
    enum { CHUNK = 1 << 18 };
    struct sha1 s;
    int rc = -1;
    char *buf = NULL;
    struct file *f = file_open(path, e);
    if (!f || !(buf = sys_grow(NULL, f->bytes < CHUNK ? (size_t)f->bytes : CHUNK, "buffer for a checksum", e))) goto out;
    sha1_init(&s);
    for (int64_t at = 0; at < f->bytes;) {
        size_t n = f->bytes - at < CHUNK ? (size_t)(f->bytes - at) : CHUNK;
        if ((may_stop && stop_check("while a file was verified", e)) || file_pread(f, buf, n, at, e)) goto out;
        sha1_add(&s, buf, n);
        at += (int64_t)n;
    }
    sha1_hex(&s, hex);
    rc = 0;
out:
    file_close(f);
    sys_free(buf);
    return rc;
}

int sha1_file(const char *path, char hex[41], struct err *e) { return of_file(path, 0, hex, e); }
int sha1_check(const char *path, char hex[41], struct err *e) { return of_file(path, 1, hex, e); }
