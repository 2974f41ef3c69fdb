/* tests/unit/gzip_make.h - gzip files for tests. */
#ifndef QLORA_GZIP_MAKE_H
#define QLORA_GZIP_MAKE_H
#include "base/str.h"
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

/* Appends text as one gzip member. */
static inline void add_member(struct str *out, const void *text, size_t n) {
    z_stream z = {0};
    unsigned char buf[4096];
    if (deflateInit2(&z, 9, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY) != Z_OK) abort();
    z.next_in = (unsigned char *)(uintptr_t)text, z.avail_in = (uInt)n;
    int rc;
    do {
        z.next_out = buf, z.avail_out = sizeof buf;
        rc = deflate(&z, Z_FINISH);
        str_add(out, (const char *)buf, sizeof buf - z.avail_out);
    } while (rc == Z_OK);
    if (rc != Z_STREAM_END) abort();
    deflateEnd(&z);
}
#endif
