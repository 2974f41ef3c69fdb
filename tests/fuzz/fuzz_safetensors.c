/* A .safetensors file from a stranger: any bytes open or are refused, and what opens can be read. */
#include "tests/fuzz/fuzz_file.h"
#include "tests/fuzz/mutate_safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_checkpoint(fuzz_file("fuzz.safetensors", data, size));
    return 0;
}

MUTATORS_BEGIN
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned seed) {
    struct mutator m = mutate_begin(seed);
    return mutate_plain(&m) ? LLVMFuzzerMutate(data, n, max) : mutate_safetensors(&m, data, n, max);
}
MUTATORS_END
