/* base/dtype.h - element types shared by files, number formats and backends. */
#ifndef QLORA_BASE_DTYPE_H
#define QLORA_BASE_DTYPE_H
#include <stddef.h>
enum dtype { DT_F32, DT_BF16, DT_F16, DT_F64, DT_I64, DT_I32, DT_I16, DT_I8, DT_U8, DT_BOOL };
static inline size_t dtype_bytes(enum dtype t) {
    static const unsigned char bytes[] = {4, 2, 2, 8, 8, 4, 2, 1, 1, 1};
    return bytes[t];
}
static inline const char *dtype_name(enum dtype t) { /* as safetensors writes it */
    static const char *const names[] = {"F32", "BF16", "F16", "F64", "I64", "I32", "I16", "I8", "U8", "BOOL"};
    return names[t];
}
#endif
