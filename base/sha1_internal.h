/* base/sha1_internal.h - between sha1.c, the definition, and its fast path. */
#ifndef QLORA_BASE_SHA1_INTERNAL_H
#define QLORA_BASE_SHA1_INTERNAL_H
#include <stddef.h>
#include <stdint.h>
/* h takes in so many blocks of 64 bytes; 0: this processor cannot, and nothing was done. */
int sha1_fast(uint32_t h[5], const unsigned char *p, size_t blocks);
extern int sha1_portable; /* tests: 1 leaves the fast path out */
#endif
