/* tests/unit/torch_make.h - builds torch .bin files, right ones and, with a patch here and there, wrong ones.
 *
 *     struct bin b = {0};
 *     bin_add(&b, "m/data.pkl", pickle, n);  bin_add(&b, "m/data/0", floats, 64);  bin_end(&b);      b.file is the file
 */
#ifndef QLORA_TESTS_TORCH_MAKE_H
#define QLORA_TESTS_TORCH_MAKE_H
#include "base/str.h"
#include <string.h>
#include <zlib.h>

struct bin {
    struct str file, directory;
    size_t local[16],
        central
            [16]; /* of each member: its local header in file, its entry in directory (file: after bin_end) */
    size_t record, locator, end; /* after bin_end */
    int members;
    int plain_sizes; /* sizes and CRC in the local header, no descriptor: as other zip writers do */
};

static inline void put_le(struct str *s, uint64_t v, int n) {
    char bytes[12];
    for (int i = 0; i < n; i++, v >>= 8) bytes[i] = (char)(v & 255);
    str_add(s, bytes, (size_t)n);
}

static inline void poke(struct str *s, size_t at, uint64_t v, int n) {
    for (; n-- > 0; v >>= 8) s->p[at++] = (char)(v & 255);
}

static inline void bin_add(struct bin *b, const char *name, const void *p, size_t n) {
    unsigned crc = (unsigned)crc32(0, p, (unsigned)n);
    size_t name_bytes = strlen(name), flags = b->plain_sizes ? 0 : 0x808, at = b->file.n;
    size_t pad = (64 - (at + 30 + name_bytes + 4) % 64) % 64;
    b->local[b->members] = at;
    put_le(&b->file, 0x04034b50, 4), put_le(&b->file, 0, 2), put_le(&b->file, flags, 2),
        put_le(&b->file, 0, 6);
    put_le(&b->file, b->plain_sizes ? crc : 0, 4);
    put_le(&b->file, b->plain_sizes ? n : 0, 4), put_le(&b->file, b->plain_sizes ? n : 0, 4);
    put_le(&b->file, name_bytes, 2), put_le(&b->file, 4 + pad, 2), str_puts(&b->file, name);
    str_puts(&b->file, "FB"),
        put_le(&b->file, pad, 2); /* torch pads the contents to 64 bytes with this extra field */
    char fill[64];
    memset(fill, 'Z', sizeof fill);
    str_add(&b->file, fill, pad);
    str_add(&b->file, p, n);
    if (!b->plain_sizes)
        put_le(&b->file, 0x08074b50, 4), put_le(&b->file, crc, 4), put_le(&b->file, n, 4),
            put_le(&b->file, n, 4);
    b->central[b->members++] = b->directory.n;
    put_le(&b->directory, 0x02014b50, 4), put_le(&b->directory, 0, 4), put_le(&b->directory, flags, 2);
    put_le(&b->directory, 0, 6), put_le(&b->directory, crc, 4), put_le(&b->directory, n, 4),
        put_le(&b->directory, n, 4);
    put_le(&b->directory, name_bytes, 2), put_le(&b->directory, 0, 12), put_le(&b->directory, at, 4);
    str_puts(&b->directory, name);
}

static inline void bin_end(struct bin *b) {
    size_t at = b->file.n, n = b->directory.n, count = (size_t)b->members;
    for (int i = 0; i < b->members; i++) b->central[i] += at;
    if (n) str_add(&b->file, b->directory.p, n);
    b->record = b->file.n;
    put_le(&b->file, 0x06064b50, 4), put_le(&b->file, 44, 8), put_le(&b->file, 0x2d031e, 4),
        put_le(&b->file, 0, 8);
    put_le(&b->file, count, 8), put_le(&b->file, count, 8), put_le(&b->file, n, 8), put_le(&b->file, at, 8);
    b->locator = b->file.n;
    put_le(&b->file, 0x07064b50, 4), put_le(&b->file, 0, 4), put_le(&b->file, b->record, 8),
        put_le(&b->file, 1, 4);
    b->end = b->file.n;
    put_le(&b->file, 0x06054b50, 4), put_le(&b->file, 0, 4), put_le(&b->file, count, 2),
        put_le(&b->file, count, 2);
    put_le(&b->file, n, 4), put_le(&b->file, at, 4), put_le(&b->file, 0, 2);
}

static inline void bin_free(struct bin *b) {
    str_free(&b->file);
    str_free(&b->directory);
}

/* ---- pieces of pickles, as torch.save writes them ---- */

static inline void pk_text(struct str *s, const char *text) {
    str_putc(s, 'X'), put_le(s, strlen(text), 4), str_puts(s, text);
}

static inline void pk_int(struct str *s, int64_t v) {
    if (v >= 0 && v < 256)
        str_putc(s, 'K'), put_le(s, (uint64_t)v, 1);
    else if (v >= 0 && v < 65536)
        str_putc(s, 'M'), put_le(s, (uint64_t)v, 2);
    else if (v >= -0x80000000ll && v < 0x80000000ll)
        str_putc(s, 'J'), put_le(s, (uint64_t)v, 4);
    else
        put_le(s, 0x8a, 1), put_le(s, 9, 1), put_le(s, (uint64_t)v, 8), put_le(s, v < 0 ? 255 : 0, 1);
}

static inline void pk_tuple(struct str *s, int n, const int64_t *v) {
    str_putc(s, '(');
    for (int i = 0; i < n; i++) pk_int(s, v[i]);
    str_putc(s, 't');
}

/* A tensor: elements of torch's class ("Float"), storage `key` with `held` elements. */
static inline void pk_tensor(struct str *s, const char *class, const char *key, int64_t held, int64_t offset,
                             int rank, const int64_t *size, const int64_t *stride) {
    str_puts(s, "ctorch._utils\n_rebuild_tensor_v2\n((");
    pk_text(s, "storage");
    str_printf(s, "ctorch\n%sStorage\n", class);
    pk_text(s, key), pk_text(s, "cpu"), pk_int(s, held);
    str_puts(s, "tQ");
    pk_int(s, offset);
    pk_tuple(s, rank, size), pk_tuple(s, rank, stride);
    str_puts(s, "\x89"
                "ccollections\nOrderedDict\n)RtR");
}
#endif
