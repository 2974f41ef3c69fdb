/* checkpoint/safetensors.c - reads the header of a .safetensors file.
 *
 *     u64 N | N bytes of JSON, padded with spaces | payloads
 *     {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, ..., "__metadata__": {"a": "b"}}
 *
 * Offsets count from 8 + N. Payloads are row-major, in any order, without gaps, and end with the file. The
 * header is scanned in place; its text stays in memory because the names live there.
 *
 * Never more liberal than the reference reader (safetensors 0.8), and stricter in these points: blanks in
 * front of the '{', a name twice (the reference keeps the last), control characters, NULs and more than
 * 1 KB in a name, unknown keys (they could change what the bytes mean), "__metadata__": null, more than 8
 * dimensions, sizes above 2^63-1 even where another is 0, element types this program has no use for, headers
 * above 16 MB, more than 100,000 tensors. tests/unit/test_safetensors_mutants.c compares the two. */
#include "checkpoint/checkpoint_internal.h"
#include "base/sys.h"
#include <stdlib.h>
#include <string.h>

static int parse_dtype(struct scan *s, enum dtype *type) {
    char *text, shown[100];
    size_t n;
    if (ckpt_scan_string(s, &text, &n)) return -1;
    for (enum dtype t = DT_F32; t <= DT_BOOL; t++)
        if (!strcmp(text, dtype_name(t))) {
            *type = t;
            return 0;
        }
    return err_set(s->e, ERR_INPUT, "%s: a tensor has dtype '%s', which is not read here", s->path,
                   ckpt_printable(shown, text, n));
}

/* "name": has been read; the description that follows becomes a tensor of c. `data` is where payloads begin.
 * */
static int parse_tensor(struct scan *s, struct ckpt *c, int file, int64_t data, const char *name,
                        size_t name_bytes) {
    enum { DTYPE = 1, SHAPE = 2, OFFSETS = 4 };
    int seen = 0, rank = 0, rc;
    int64_t shape[CKPT_RANK], begin = 0, end = 0;
    enum dtype type = DT_F32;
    char *key, shown[100];
    size_t n;
    if (ckpt_scan_expect(s, '{')) return -1;
    for (int i = 0; (rc = ckpt_scan_item(s, '}', i)) > 0; i++) {
        if (ckpt_scan_string(s, &key, &n) || ckpt_scan_expect(s, ':')) return -1;
        int field = !strcmp(key, "dtype")          ? DTYPE
                    : !strcmp(key, "shape")        ? SHAPE
                    : !strcmp(key, "data_offsets") ? OFFSETS
                                                   : 0;
        if (!field) return ckpt_scan_error(s, "a key other than dtype, shape and data_offsets");
        if (seen & field) return ckpt_scan_error(s, "a key that is there twice");
        seen |= field;
        if (field == DTYPE) {
            if (parse_dtype(s, &type)) return -1;
        } else if (field == SHAPE) {
            if (ckpt_scan_expect(s, '[')) return -1;
            for (; (rc = ckpt_scan_item(s, ']', rank)) > 0; rank++) {
                if (rank == CKPT_RANK) return ckpt_scan_error(s, "a shape with more than 8 dimensions");
                if (ckpt_scan_int(s, &shape[rank])) return -1;
            }
            if (rc) return -1;
        } else if (ckpt_scan_expect(s, '[') || ckpt_scan_int(s, &begin) || ckpt_scan_expect(s, ',') ||
                   ckpt_scan_int(s, &end) || ckpt_scan_expect(s, ']')) {
            return -1;
        }
    }
    if (rc) return -1;
    ckpt_printable(shown, name, name_bytes);
    if (seen != (DTYPE | SHAPE | OFFSETS))
        return err_set(s->e, ERR_INPUT, "%s: tensor '%s' lacks dtype, shape or data_offsets", s->path, shown);
    struct ckpt_tensor *t = ckpt_add(c, file, name, name_bytes, type, rank, shape, s->e);
    if (!t) return -1;
    if (begin > end || end > c->shards[file].file->bytes - data)
        return err_set(s->e, ERR_INPUT,
                       "%s: tensor '%s' claims bytes %lld to %lld of the %lld that are there", s->path, shown,
                       (long long)begin, (long long)end, (long long)(c->shards[file].file->bytes - data));
    if (end - begin != ckpt_tensor_bytes(t))
        return err_set(s->e, ERR_INPUT, "%s: tensor '%s' needs %lld bytes by its shape, but has %lld",
                       s->path, shown, (long long)ckpt_tensor_bytes(t), (long long)(end - begin));
    t->offset = data + begin;
    return 0;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct ckpt_tensor *)a)->name, ((const struct ckpt_tensor *)b)->name);
}

/* A name twice explains a layout that is wrong. */
static int blame_names(struct ckpt *c, int file, int64_t first, struct err *e) {
    if (c->count > first) qsort(c->tensors + first, (size_t)(c->count - first), sizeof *c->tensors, by_name);
    for (int64_t i = first + 1; i < c->count; i++)
        if (!by_name(&c->tensors[i - 1], &c->tensors[i]))
            return err_set(e, ERR_INPUT, "%s: tensor '%s' is listed twice", c->shards[file].file->path, c->tensors[i].name);
    return 0;
}

static int parse_metadata(struct scan *s) {
    char *text;
    size_t n;
    int rc;
    if (ckpt_scan_expect(s, '{')) return -1;
    for (int64_t i = 0; (rc = ckpt_scan_item(s, '}', i)) > 0; i++)
        if (ckpt_scan_string(s, &text, &n) || ckpt_scan_expect(s, ':') || ckpt_scan_string(s, &text, &n))
            return -1;
    return rc;
}

static int by_offset(const void *pa, const void *pb) {
    const struct ckpt_tensor *a = pa, *b = pb;
    if (a->offset != b->offset) return a->offset < b->offset ? -1 : 1;
    return (a->count > b->count) - (a->count < b->count); /* empty tensors may lie between two others */
}

/* Payloads follow each other without gap or overlap, from `at` to the end of the file. Sorts this file's
 * tensors. */
static int check_layout(struct ckpt *c, int file, int64_t first, int64_t at, struct err *e) {
    const struct file *f = c->shards[file].file;
    if (c->count > first)
        qsort(c->tensors + first, (size_t)(c->count - first), sizeof *c->tensors, by_offset);
    for (int64_t i = first; i < c->count; i++) {
        const struct ckpt_tensor *t = &c->tensors[i], wrong = *t;
        if (t->offset != at)
            return blame_names(c, file, first, e) ? -1 : err_set(e, ERR_INPUT,
                           "%s: tensor '%s' begins at byte %lld, %s byte %lld where the one before ends",
                           f->path, wrong.name, (long long)wrong.offset,
                           wrong.offset < at ? "inside the data before" : "after", (long long)at);
        at += ckpt_tensor_bytes(t);
    }
    if (at == f->bytes) return 0;
    if (blame_names(c, file, first, e)) return -1;
    return err_set(e, ERR_INPUT, "%s: the tensors end at byte %lld, the file at byte %lld", f->path,
                   (long long)at, (long long)f->bytes);
}

int ckpt_safetensors_open(struct ckpt *c, int file, struct err *e) {
    struct shard *shard = &c->shards[file];
    const struct file *f = shard->file;
    uint64_t n;
    int64_t first = c->count;
    int rc, metadata = 0;
    char *name;
    size_t name_bytes;
    if (f->bytes < 10)
        return err_set(e, ERR_INPUT, "%s has %lld bytes, too few for a safetensors file", f->path,
                       (long long)f->bytes);
    if (file_pread(f, &n, 8, 0, e)) return -1;
    if (n < 2 || n > (uint64_t)f->bytes - 8)
        return err_set(
            e, ERR_INPUT,
            "%s: the header should have %llu bytes, the file has %lld: not a safetensors file, or cut off",
            f->path, (unsigned long long)n, (long long)f->bytes);
    if (n > CKPT_HEADER_MAX)
        return err_set(e, ERR_INPUT, "%s: a header of %llu bytes, at most %d are read", f->path,
                       (unsigned long long)n, CKPT_HEADER_MAX);
    if (!(shard->text = sys_grow(NULL, n, "header of a safetensors file", e)) ||
        file_pread(f, shard->text, n, 8, e))
        return -1;
    if (shard->text[0] != '{')
        return err_set(e, ERR_INPUT, "%s: the header does not begin with '{': not a safetensors file",
                       f->path);
    struct scan s = {shard->text, shard->text + 1, shard->text + n, f->path, e};
    for (int64_t i = 0; (rc = ckpt_scan_item(&s, '}', i)) > 0; i++) {
        if (ckpt_scan_string(&s, &name, &name_bytes) || ckpt_scan_expect(&s, ':')) return -1;
        if (strcmp(name, "__metadata__")) {
            if (parse_tensor(&s, c, file, 8 + (int64_t)n, name, name_bytes)) return -1;
        } else if (metadata++) {
            return ckpt_scan_error(&s, "__metadata__ is there twice");
        } else if (parse_metadata(&s)) {
            return -1;
        }
    }
    if (rc || ckpt_scan_end(&s)) return -1;
    return check_layout(c, file, first, 8 + (int64_t)n, e);
}
