/* tests/fuzz/steady.h - an input takes the same way through the program in every process: the random bytes that a process
 * gets from the kernel, which base/json hashes keys with, are no longer random. */
#ifndef QLORA_TESTS_FUZZ_STEADY_H
#define QLORA_TESTS_FUZZ_STEADY_H
#include <string.h>
#include <sys/auxv.h>

__attribute__((constructor)) static void fuzz_steady(void) { memset((void *)getauxval(AT_RANDOM), 42, 16); }
#endif
