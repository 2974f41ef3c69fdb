/* A torch .bin from a stranger. The first byte chooses: 'z', the rest is the file; otherwise the rest is the pickle of a
 * well-formed zip (random bytes would never get past its CRC) with storages 0 (64 bytes) and 1 (24 bytes). */
#include "tests/fuzz/fuzz_file.h"
#include "tests/unit/torch_make.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const unsigned char storage[64] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21};
    if (size && data[0] == 'z') {
        fuzz_checkpoint(fuzz_file("fuzz.bin", data + 1, size - 1));
        return 0;
    }
    struct bin b = {0};
    bin_add(&b, "m/data.pkl", size ? data + 1 : data, size ? size - 1 : 0);
    bin_add(&b, "m/data/0", storage, 64);
    bin_add(&b, "m/data/1", storage, 24);
    bin_end(&b);
    fuzz_checkpoint(fuzz_file("fuzz.bin", b.file.p, b.file.n));
    bin_free(&b);
    return 0;
}
