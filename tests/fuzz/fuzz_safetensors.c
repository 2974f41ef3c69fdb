/* A .safetensors file from a stranger: any bytes open or are refused, and what opens can be read. */
#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_checkpoint(fuzz_file("fuzz.safetensors", data, size));
    return 0;
}
