/* NAME.index.json from a stranger, beside three files: a.safetensors with tensor a, b.safetensors and c.safetensors with b
 * and c, and x in both. */
#include "tests/fuzz/fuzz_file.h"
#include "tests/fuzz/mutate.h"

static void beside(const char *name, const char *header, size_t payload) {
    char bytes[300];
    uint64_t n = strlen(header);
    memcpy(bytes, &n, 8);
    memcpy(bytes + 8, header, n);
    memset(bytes + 8 + n, 1, payload);
    fuzz_file(name, bytes, 8 + n + payload);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *path = fuzz_file("fuzz.safetensors.index.json", data, size);
    static int ready;
    if (!ready++) {
        beside("a.safetensors", "{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}", 3);
        beside("b.safetensors", "{\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                                "\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 2);
        beside("c.safetensors", "{\"c\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                                "\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 2);
    }
    fuzz_checkpoint(path);
    return 0;
}

static const char *const words[] = {"weight_map", "metadata", "total_size", "a", "b", "c", "x", "a.safetensors", "b.safetensors", "c.safetensors", "d.bin", "../a.safetensors", "/etc/passwd", ".", "sub/a.safetensors"};
MUTATE_WITH(mutate_json, words)
