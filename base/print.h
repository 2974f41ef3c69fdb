/* base/print.h - results on standard output: buffered, shown at once on a terminal. The first failure is kept, what comes
 * behind it is dropped, and print_end tells. */
#ifndef QLORA_BASE_PRINT_H
#define QLORA_BASE_PRINT_H
#include "base/err.h"
#include <stddef.h>

int print_bytes(const void *p, size_t n); /* 0, or -1: standard output has failed */
int print_text(const char *text);
int print_flush(void);
int print_end(struct err *e); /* flushes; -1 and e when anything printed is lost */
#endif
