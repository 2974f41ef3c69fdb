/* A torch .bin from a stranger. The first byte chooses: 'z', the rest is the file; otherwise the rest is the pickle of a
 * well-formed zip (random bytes would never get past its CRC) with storages 0 (64 bytes) and 1 (24 bytes). */
#include "tests/fuzz/fuzz_file.h"
#include "tests/fuzz/mutate.h"
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

/* ---- mutations: the pickle as a row of opcodes; the zip around it is made anew for each input ---- */

MUTATORS_BEGIN
struct opcode { size_t at, n; };

/* Bytes of the opcode at p, its argument included; 0 behind the end. */
static size_t opcode_bytes(const uint8_t *p, size_t n) {
    size_t lines = 0, size = 1;
    switch (*p) {
    case 'c': case 'i': lines = 2; break;
    case 'I': case 'L': case 'F': case 'S': case 'V': case 'P': case 'g': case 'p': lines = 1; break;
    case 'K': case 'h': case 'q': case 0x80: case 0x82: size = 2; break;
    case 'M': case 0x83: size = 3; break;
    case 'J': case 'r': case 'j': case 0x84: size = 5; break;
    case 'G': case 0x95: size = 9; break;
    case 'U': case 'C': case 0x8a: case 0x8c: size = n > 1 ? 2u + p[1] : 2; break;
    case 'X': case 'T': case 'B': case 0x8b: size = n > 4 ? 5 + (size_t)(p[1] | p[2] << 8 | p[3] << 16) : 5; break;
    default: break;
    }
    while (lines && size < n) lines -= p[size++] == '\n';
    return size;
}

static size_t opcodes(const uint8_t *p, size_t n, struct opcode *out, size_t most) {
    size_t count = 0;
    for (size_t i = 0; i < n && count < most; i += out[count++].n) {
        size_t k = opcode_bytes(p + i, n - i);
        out[count] = (struct opcode){i, k < n - i ? k : n - i};
    }
    return count;
}

#define PIECE(text) {text, sizeof(text) - 1}
static const struct { const char *p; size_t n; } pieces[] = {
    PIECE("}"), PIECE("]"), PIECE(")"), PIECE("("), PIECE("t"), PIECE("\x85"), PIECE("\x86"), PIECE("\x87"), PIECE("N"), PIECE("\x88"), PIECE("\x89"), PIECE("R"), PIECE("Q"), PIECE("s"), PIECE("u"), PIECE("a"), PIECE("e"),
    PIECE("b"), PIECE("."), PIECE("0"), PIECE("2"), PIECE("\x81"), PIECE("\x93"), PIECE("\x94"), PIECE("q\0"), PIECE("h\0"), PIECE("q\1"), PIECE("h\1"), PIECE("r\0\1\0\0"), PIECE("j\0\1\0\0"), PIECE("K\0"), PIECE("K\4"), PIECE("K\20"),
    PIECE("M\0\1"), PIECE("J\xff\xff\xff\xff"), PIECE("\x8a\x08\0\0\0\0\0\0\0\x40"), PIECE("\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\0"), PIECE("\x8a\0"), PIECE("X\1\0\0\0w"), PIECE("X\1\0\0\0000"), PIECE("X\1\0\0\0001"),
    PIECE("X\7\0\0\0storage"), PIECE("X\3\0\0\0cpu"), PIECE("X\6\0\0\0cuda:0"), PIECE("ctorch\nFloatStorage\n"), PIECE("ctorch\nHalfStorage\n"), PIECE("ctorch\nBFloat16Storage\n"), PIECE("ctorch\nDoubleStorage\n"),
    PIECE("ctorch\nByteStorage\n"), PIECE("ctorch\nLongStorage\n"), PIECE("ctorch\nBoolStorage\n"), PIECE("ccollections\nOrderedDict\n"), PIECE("ctorch._utils\n_rebuild_tensor_v2\n"), PIECE("ctorch._utils\n_rebuild_parameter\n"),
    PIECE("ccollections\nOrderedDict\n)R"), PIECE("cos\nsystem\n"), PIECE("c__builtin__\neval\n"),
    PIECE("(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpuK\20tQ"),
    PIECE("X\1\0\0\0vctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpuK\20tQK\0K\2K\3\x86K\4K\1\x86\x89" "ccollections\nOrderedDict\n)RtRs")};

static size_t mutate_pickle(struct mutator *m, uint8_t *p, size_t n, size_t max) {
    static struct opcode op[4096];
    size_t count = opcodes(p, n, op, 4096), which = mutate_pick(m, sizeof pieces / sizeof *pieces);
    struct opcode a = count ? op[mutate_pick(m, count)] : (struct opcode){0, 0}, b = count ? op[mutate_pick(m, count)] : a;
    switch (mutate_pick(m, 8)) {
    case 0: return mutate_splice(p, n, max, a.at, a.n, "", 0);
    case 1: return mutate_splice(p, n, max, b.at, 0, p + a.at, a.n);
    case 2: return a.at + a.n <= b.at ? mutate_swap(p, n, a.at, a.n, b.at, b.n) : b.at + b.n <= a.at ? mutate_swap(p, n, b.at, b.n, a.at, a.n) : n;
    case 3: return mutate_splice(p, n, max, a.at, a.n, pieces[which].p, pieces[which].n);
    case 4: return mutate_splice(p, n, max, a.at, 0, pieces[which].p, pieces[which].n);
    case 5: { /* a row of opcodes once more */
        size_t end = b.at + b.n > a.at ? b.at + b.n : a.at + a.n;
        return mutate_splice(p, n, max, mutate_pick(m, 2) ? end : a.at, 0, p + a.at, end - a.at);
    }
    default: /* its argument */
        for (int tries = 0; tries < 30 && a.n < 2 && count; tries++) a = op[mutate_pick(m, count)];
        if (a.n < 2) return n;
        size_t from = a.at + 1 + (strchr("XTB", p[a.at]) && a.n > 5 ? 4 : 0), size = a.at + a.n - from;
        if (mutate_pick(m, 2)) p[from + mutate_pick(m, size)] = (uint8_t)"\0\1\2\3\4\10\20\77\100\177\200\377"[mutate_pick(m, 12)];
        else LLVMFuzzerMutate(p + from, size, size);
        return n;
    }
}

/* Of a whole file: fields of its headers, which the CRC does not cover. */
static size_t mutate_zip(struct mutator *m, uint8_t *p, size_t n, size_t max) {
    static const struct { char mark[4]; size_t bytes; } heads[] = {{"PK\3\4", 30}, {"PK\1\2", 46}, {"PK\6\6", 56}, {"PK\6\7", 20}, {"PK\5\6", 22}, {"PK\7\10", 16}};
    static const uint64_t values[] = {0, 1, 8, 0xffff, 0xffffffff, 0x7fffffff, UINT64_MAX, 1ull << 63};
    size_t start = mutate_pick(m, n);
    for (size_t i = 0; i < n; i++) {
        size_t at = (start + i) % n;
        for (size_t k = 0; k < sizeof heads / sizeof *heads; k++)
            if (at + heads[k].bytes <= n && !memcmp(p + at, heads[k].mark, 4)) {
                static const size_t widths[] = {2, 4, 8};
                size_t width = widths[mutate_pick(m, 3)], to = at + 4 + mutate_pick(m, (heads[k].bytes - 4) / 2) * 2;
                uint64_t v = values[mutate_pick(m, sizeof values / sizeof *values)];
                if (mutate_pick(m, 2)) memcpy(&v, p + to, to + 8 <= n ? 8 : 2), v += mutate_pick(m, 3) - 1;
                for (size_t b = 0; b < width && to + b < n; b++) p[to + b] = (uint8_t)(v >> (8 * b));
                return n;
            }
    }
    return LLVMFuzzerMutate(p, n, max);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned seed) {
    struct mutator m = mutate_begin(seed);
    if (n < 2 || mutate_plain(&m)) return LLVMFuzzerMutate(data, n, max);
    return 1 + (*data == 'z' ? mutate_zip : mutate_pickle)(&m, data + 1, n - 1, max - 1);
}
MUTATORS_END
