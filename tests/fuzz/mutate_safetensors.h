/* tests/fuzz/mutate_safetensors.h - mutations of a .safetensors file: of its header as JSON, with the length in front set
 * right and, half of the time, the tensors laid out anew without gaps, as their types and shapes ask for. */
#ifndef QLORA_TESTS_FUZZ_MUTATE_SAFETENSORS_H
#define QLORA_TESTS_FUZZ_MUTATE_SAFETENSORS_H
#include "tests/fuzz/mutate.h"
MUTATORS_BEGIN

static const char *const header_words[] = {"dtype", "shape", "data_offsets", "__metadata__", "F32", "BF16", "F16", "F64", "U8", "I8", "I32", "I64", "BOOL", "U16", "F8_E4M3", "a", "b",
    "q.weight", "q.weight.absmax", "q.weight.quant_map", "q.weight.nested_absmax", "q.weight.nested_quant_map", "q.weight.quant_state.bitsandbytes__nf4", "q.weight.quant_state.bitsandbytes__fp4",
    "q.SCB", "q.weight_format", "format", "pt", "\\u0061", "\\ud83d\\ude00", "lm_head.weight", "model.norm.weight", "model.embed_tokens.weight"};
enum { HEADER_WORDS = sizeof header_words / sizeof *header_words };

static inline int token_is(const uint8_t *p, const struct json_token *t, const char *text) {
    return t->kind == '"' && t->n == strlen(text) + 2 && !memcmp(p + t->at + 1, text, t->n - 2);
}

/* Bytes that a type of this name takes; 0: unknown. */
static inline uint64_t type_bytes(const uint8_t *p, const struct json_token *t) {
    static const struct { const char *name; int bytes; } types[] = {{"F32", 4}, {"BF16", 2}, {"F16", 2}, {"F64", 8}, {"U8", 1}, {"I8", 1}, {"BOOL", 1}, {"I16", 2}, {"U16", 2}, {"I32", 4}, {"U32", 4}, {"I64", 8}, {"U64", 8}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (token_is(p, t, types[i].name)) return (uint64_t)types[i].bytes;
    return 0;
}

/* Writes data_offsets of all tensors in the order of the header. *end: where the last one ends. */
static inline size_t header_layout(uint8_t *p, size_t n, size_t max, uint64_t *end) {
    static struct json_token t[JSON_TOKENS];
    const size_t count = json_tokens(p, n, t);
    uint8_t *made = malloc(max + 1); /* the text with the offsets set in */
    uint64_t at = 0;
    size_t to = 0, taken = 0;
    *end = 0;
    for (size_t k = 2; made && k < count; k++) {
        if (t[k].kind != '{' || t[k - 1].kind != ':' || token_is(p, &t[k - 2], "__metadata__")) continue;
        size_t last = json_behind(t, count, k), offsets = 0;
        uint64_t size = 0, elements = 1;
        for (size_t i = k + 1; i + 2 < last; i++) {
            if (t[i + 1].kind != ':') continue;
            if (token_is(p, &t[i], "dtype")) size = type_bytes(p, &t[i + 2]);
            if (token_is(p, &t[i], "shape"))
                for (size_t d = i + 3; d < last && t[d].kind != ']'; d++)
                    if (t[d].kind == '0') elements *= strtoull((const char *)p + t[d].at, NULL, 10);
            if (token_is(p, &t[i], "data_offsets")) offsets = i + 2;
        }
        if (!offsets || !size || elements > 1 << 16) continue;
        char text[64];
        const size_t stop = json_behind(t, count, offsets), from = t[offsets].at, same = from - taken;
        const int len = snprintf(text, sizeof text, "[%llu,%llu]", (unsigned long long)at, (unsigned long long)(at + size * elements));
        if (to + same + (size_t)len > max) break;
        memcpy(made + to, p + taken, same), memcpy(made + to + same, text, (size_t)len);
        to += same + (size_t)len, taken = t[stop - 1].at + t[stop - 1].n;
        at += size * elements;
        k = stop - 1;
    }
    if (made && to + n - taken <= max) {
        memcpy(made + to, p + taken, n - taken);
        n = to + n - taken;
        memcpy(p, made, n);
        *end = at;
    }
    free(made);
    return n;
}

/* Of a header alone. One byte behind it must be there to end numbers. */
static inline size_t mutate_header(struct mutator *m, uint8_t *p, size_t n, size_t max, uint64_t *end) {
    n = mutate_json(m, p, n, max, header_words, HEADER_WORDS);
    *end = 0;
    if (mutate_pick(m, 2)) n = header_layout(p, n, max, end);
    return n;
}

/* Of a whole file. */
static inline size_t mutate_safetensors(struct mutator *m, uint8_t *data, size_t n, size_t max) {
    uint64_t header = 0, end;
    if (n < 10) return LLVMFuzzerMutate(data, n, max);
    memcpy(&header, data, 8);
    if (header > n - 8) header = n - 8;
    const size_t payload = n - 8 - (size_t)header, room = max - 8 - payload;
    uint8_t *text = calloc(max + 1, 1), *rest = malloc(payload + 1);
    if (!text || !rest || max < n) return free(text), free(rest), n;
    memcpy(text, data + 8, (size_t)header), memcpy(rest, data + 8 + header, payload);
    size_t now = mutate_header(m, text, (size_t)header, room, &end), total = payload;
    if (end && 8 + now + end <= max) total = (size_t)end;
    header = now + (mutate_pick(m, 16) ? 0 : mutate_pick(m, 5) - 2);
    memcpy(data, &header, 8), memcpy(data + 8, text, now);
    for (size_t i = 0; i < total; i++) data[8 + now + i] = i < payload ? rest[i] : (uint8_t)i;
    free(text), free(rest);
    return 8 + now + total;
}
MUTATORS_END
#endif
