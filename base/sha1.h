/* base/sha1.h - SHA-1 (FIPS 180-4): dataset_info.json's file_sha1 and checkpoint manifests. Finds damage, not malice. */
#ifndef QLORA_BASE_SHA1_H
#define QLORA_BASE_SHA1_H
#include "base/err.h"
#include <stddef.h>
#include <stdint.h>
struct sha1 { uint32_t h[5]; uint64_t bytes; unsigned char block[64]; };
void sha1_init(struct sha1 *s);
void sha1_add(struct sha1 *s, const void *p, size_t n);
void sha1_hex(struct sha1 *s, char hex[41]);
int sha1_file(const char *path, char hex[41], struct err *e);
/* As sha1_file, for one who only looks: a signal ends it (stop_check). */
int sha1_check(const char *path, char hex[41], struct err *e);
#endif
