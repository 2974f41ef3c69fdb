/* tests/ops/card.h - the CUDA backend (gpu) and the CPU's (cpu), which it is held to, and numbers for both. */
#ifndef QLORA_TESTS_CARD_H
#define QLORA_TESTS_CARD_H
#include "tests/test.h"
#include "backend/backend.h"
#include "base/rng.h"

static struct backend *cpu, *gpu;
static struct err e;
static uint32_t counter;

static inline float uniform(void) {
    uint32_t c[4] = {counter++, 7, 0, 0}, k[2] = {11, 13}, w[4];
    philox4x32(c, k, w);
    return (float)w[0] * 0x1p-31f - 1;
}
static inline int start(void) {
    if (cpu) return 1;
    const char *plugin = getenv("QLORA_PLUGIN"); /* libqlora-cuda.so, when it does not lie beside the program */
    gpu = backend_open(plugin ? plugin : "cuda", &e);
    if (!gpu) return printf("  no card: %s\n", e.text), 0;
    cpu = backend_open("cpu", &e);
    return 1;
}
#define NEED_CARD() do { if (!start()) SKIP("no card"); } while (0)
#endif
