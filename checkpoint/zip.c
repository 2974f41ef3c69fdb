/* checkpoint/zip.c - the zip container of a torch .bin: where each member's bytes are, nothing more.
 *
 *     [local header | name | extra | contents | descriptor?]... central directory [ZIP64 record locator] end record
 *
 * (PKWARE APPNOTE 6.3.) The central directory is the truth, because torch leaves sizes and CRC of the local
 * headers zero; a local header must still agree in name, method and whatever it does say. Accepted: stored
 * members, no encryption, one disk, no comment behind the end record, ZIP64. Members must not overlap and no
 * name may come twice. Contents are compared with their CRC by ckpt_zip_check before the first byte of them
 * is used. */
#include "base/stop.h"
#include "checkpoint/checkpoint_internal.h"
#include "base/sys.h"
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum {
    LOCAL_BYTES = 30,
    ENTRY_BYTES = 46,
    END_BYTES = 22,
    LOCATOR_BYTES = 20,
    RECORD_BYTES = 56,
    MEMBERS_MAX = 2 * CKPT_TENSORS_MAX,
    FLAG_DESCRIPTOR = 1 << 3, /* sizes and CRC follow the contents */
    FLAG_UTF8 = 1 << 11
};
static const uint64_t SATURATED = 0xffffffff; /* of a 32-bit field: the value is in the ZIP64 part */

/* Little-endian number of n bytes. */
static uint64_t get(const unsigned char *p, int n) {
    uint64_t v = 0;
    while (n-- > 0) v = v << 8 | p[n];
    return v;
}

static int bad(const struct file *f, struct err *e, const char *what) {
    return err_set(e, ERR_INPUT, "%s: damaged or not made by torch.save: %s", f->path, what);
}

struct directory {
    int64_t offset, bytes;
    int64_t entries;
};

/* Finds the central directory from the end records, checked to lie right before them. */
static int find_directory(const struct file *f, struct directory *d, struct err *e) {
    unsigned char tail[RECORD_BYTES + LOCATOR_BYTES + END_BYTES], *end = tail + RECORD_BYTES + LOCATOR_BYTES;
    unsigned char *locator = tail + RECORD_BYTES;
    size_t have = f->bytes < (int64_t)sizeof tail ? (size_t)f->bytes : sizeof tail;
    memset(tail, 0, sizeof tail);
    if (have < END_BYTES) return bad(f, e, "too short");
    if (file_pread(f, tail + sizeof tail - have, have, f->bytes - (int64_t)have, e)) return -1;
    if (get(end, 4) != 0x06054b50 || get(end + 20, 2))
        return bad(f, e, "no end record of a zip at the end of the file; is it cut off?");
    uint64_t entries = get(end + 10, 2), bytes = get(end + 12, 4), offset = get(end + 16, 4);
    int64_t stop = f->bytes - END_BYTES; /* where the central directory has to end */
    if (get(end + 4, 4) || get(end + 8, 2) != entries) return bad(f, e, "a zip of several disks");
    if (get(locator, 4) == 0x07064b50) {
        unsigned char *record = tail;
        stop -= LOCATOR_BYTES + RECORD_BYTES;
        if (get(record, 4) != 0x06064b50 || get(record + 4, 8) != RECORD_BYTES - 12 || get(locator + 4, 4) ||
            get(locator + 16, 4) != 1 || stop < 0 || get(locator + 8, 8) != (uint64_t)stop ||
            get(record + 16, 8) || get(record + 24, 8) != get(record + 32, 8))
            return bad(f, e, "its ZIP64 end record is wrong");
        if ((entries != 0xffff && entries != get(record + 32, 8)) ||
            (bytes != SATURATED && bytes != get(record + 40, 8)) ||
            (offset != SATURATED && offset != get(record + 48, 8)))
            return bad(f, e, "its two end records differ");
        entries = get(record + 32, 8), bytes = get(record + 40, 8), offset = get(record + 48, 8);
    }
    if (offset > (uint64_t)stop || bytes != (uint64_t)stop - offset)
        return bad(f, e, "the central directory does not end where the end record begins");
    if (entries > MEMBERS_MAX || bytes > 4 * (uint64_t)CKPT_HEADER_MAX)
        return bad(f, e, "the central directory is too large");
    *d = (struct directory){.offset = (int64_t)offset, .bytes = (int64_t)bytes, .entries = (int64_t)entries};
    return 0;
}

/* Replaces the saturated ones of the 32-bit values by those of the ZIP64 extra field, which holds just these,
 * in order. */
static int zip64_values(const unsigned char *extra, size_t n, uint64_t *values[], int count) {
    while (n >= 4) {
        size_t id = get(extra, 2), bytes = get(extra + 2, 2);
        extra += 4, n -= 4;
        if (bytes > n) return -1;
        for (int i = 0; id == 1 && i < count; i++) {
            if (*values[i] != SATURATED) continue;
            if (bytes < 8) return -1;
            *values[i] = get(extra, 8);
            extra += 8, bytes -= 8, n -= 8;
        }
        if (id == 1) return 0;
        extra += bytes, n -= bytes;
    }
    return 0;
}

/* Reads the local header of m, checks it against the central one and sets m->offset. */
static int read_local(const struct file *f, struct zip_member *m, unsigned flags, int64_t limit,
                      struct err *e) {
    unsigned char h[LOCAL_BYTES], *text = NULL;
    int rc = -1;
    if (m->header > limit - LOCAL_BYTES) return bad(f, e, "a member lies outside the file");
    if (file_pread(f, h, sizeof h, m->header, e)) return -1;
    size_t name_bytes = get(h + 26, 2), extra_bytes = get(h + 28, 2);
    if (get(h, 4) != 0x04034b50 || get(h + 6, 2) != flags || get(h + 8, 2) || name_bytes != m->name_bytes)
        return bad(f, e, "a local header differs from the central directory");
    m->offset = m->header + LOCAL_BYTES + (int64_t)(name_bytes + extra_bytes);
    if (m->offset > limit || m->bytes > limit - m->offset) return bad(f, e, "a member lies outside the file");
    if (!(text = sys_grow(NULL, name_bytes + extra_bytes, "zip header", e)) ||
        file_pread(f, text, name_bytes + extra_bytes, m->header + LOCAL_BYTES, e))
        goto out;
    uint64_t crc = get(h + 14, 4), packed = get(h + 18, 4), bytes = get(h + 22, 4);
    int later = (flags & FLAG_DESCRIPTOR) && !crc && !packed && !bytes;
    uint64_t *sizes[] = {&bytes, &packed};
    if (memcmp(text, m->name, name_bytes) || zip64_values(text + name_bytes, extra_bytes, sizes, 2) ||
        (!later && (crc != m->crc || packed != (uint64_t)m->bytes || bytes != (uint64_t)m->bytes))) {
        bad(f, e, "a local header differs from the central directory");
        goto out;
    }
    rc = 0;
out:
    sys_free(text);
    return rc;
}

/* The entry of the central directory at p[0..left), *length bytes long. */
static int read_entry(const struct file *f, const unsigned char *p, size_t left, int64_t limit,
                      struct zip_member *m, size_t *length, struct err *e) {
    if (left < ENTRY_BYTES || get(p, 4) != 0x02014b50) return bad(f, e, "a wrong central directory");
    unsigned flags = (unsigned)get(p + 8, 2);
    size_t name_bytes = get(p + 28, 2), extra_bytes = get(p + 30, 2);
    *length = ENTRY_BYTES + name_bytes + extra_bytes + get(p + 32, 2);
    uint64_t packed = get(p + 20, 4), bytes = get(p + 24, 4), header = get(p + 42, 4);
    uint64_t *values[] = {&bytes, &packed, &header};
    const char *problem = NULL;
    if (*length > left || zip64_values(p + ENTRY_BYTES + name_bytes, extra_bytes, values, 3))
        problem = "a wrong central directory";
    else if (flags & ~(unsigned)(FLAG_DESCRIPTOR | FLAG_UTF8))
        problem = "an encrypted or patched member";
    else if (get(p + 10, 2))
        problem = "a compressed member; torch.save stores them plain";
    else if (packed != bytes)
        problem = "a stored member with two different sizes";
    else if (get(p + 34, 2))
        problem = "a zip of several disks";
    else if (!name_bytes || memchr(p + ENTRY_BYTES, 0, name_bytes))
        problem = "a member with an impossible name";
    else if (bytes > (uint64_t)limit || header > (uint64_t)limit)
        problem = "a member lies outside the file";
    if (problem) return bad(f, e, problem);
    *m = (struct zip_member){.header = (int64_t)header,
                             .bytes = (int64_t)bytes,
                             .name = (const char *)p + ENTRY_BYTES,
                             .name_bytes = (uint16_t)name_bytes,
                             .crc = (uint32_t)get(p + 16, 4)};
    return read_local(f, m, flags, limit, e);
}

static int compare_name(const char *a, size_t an, const char *b, size_t bn) {
    int order = memcmp(a, b, an < bn ? an : bn);
    return order ? order : (an > bn) - (an < bn);
}

static int by_name(const void *pa, const void *pb) {
    const struct zip_member *a = pa, *b = pb;
    return compare_name(a->name, a->name_bytes, b->name, b->name_bytes);
}

static int by_offset(const void *pa, const void *pb) {
    const struct zip_member *a = pa, *b = pb;
    return (a->header > b->header) - (a->header < b->header);
}

void ckpt_zip_by_offset(struct zip *z) {
    if (z->count) qsort(z->members, (size_t)z->count, sizeof *z->members, by_offset);
}

int ckpt_zip_open(struct zip *z, const struct file *f, struct err *e) {
    struct directory d = {0};
    char shown[100];
    if (find_directory(f, &d, e)) return -1;
    if (!d.entries || d.bytes / ENTRY_BYTES < d.entries) return bad(f, e, "a wrong count of members");
    z->members = sys_alloc_array((size_t)d.entries, sizeof *z->members, "zip directory", e);
    z->directory = sys_grow(NULL, (size_t)d.bytes, "zip directory", e);
    if (!z->members || !z->directory || file_pread(f, z->directory, (size_t)d.bytes, d.offset, e)) return -1;
    const unsigned char *p = (const unsigned char *)z->directory;
    size_t left = (size_t)d.bytes;
    for (size_t length = 0; z->count < d.entries; z->count++, p += length, left -= length)
        if (read_entry(f, p, left, d.offset, &z->members[z->count], &length, e)) return -1;
    if (left) return bad(f, e, "a wrong count of members");
    ckpt_zip_by_offset(z);
    for (int64_t i = 1; i < z->count; i++)
        if (z->members[i].header < z->members[i - 1].offset + z->members[i - 1].bytes)
            return bad(f, e, "two members overlap");
    qsort(z->members, (size_t)z->count, sizeof *z->members, by_name);
    for (int64_t i = 1; i < z->count; i++)
        if (!by_name(&z->members[i], &z->members[i - 1]))
            return err_set(e, ERR_INPUT, "%s: the member '%s' is there twice", f->path,
                           ckpt_printable(shown, z->members[i].name, z->members[i].name_bytes));
    return 0;
}

void ckpt_zip_free(struct zip *z) {
    sys_free(z->members);
    sys_free(z->directory);
    *z = (struct zip){0};
}

struct zip_member *ckpt_zip_find(const struct zip *z, const char *name, size_t name_bytes) {
    int64_t low = 0, high = z->count;
    while (low < high) {
        int64_t mid = (low + high) / 2;
        struct zip_member *m = &z->members[mid];
        int order = compare_name(name, name_bytes, m->name, m->name_bytes);
        if (!order) return m;
        if (order < 0)
            high = mid;
        else
            low = mid + 1;
    }
    return NULL;
}

struct zip_member *ckpt_zip_at(const struct zip *z, int64_t offset) {
    int64_t low = 0, high = z->count; /* the last member whose header is before offset */
    while (high - low > 1) {
        int64_t mid = (low + high) / 2;
        if (z->members[mid].header < offset)
            low = mid;
        else
            high = mid;
    }
    struct zip_member *m = &z->members[low];
    ASSERT(offset >= m->offset && offset < m->offset + m->bytes, "byte %lld, member %lld + %lld",
           (long long)offset, (long long)m->offset, (long long)m->bytes);
    return m;
}

int ckpt_zip_check(struct zip_member *m, const struct file *f, struct err *e) {
    enum { CHUNK = 1 << 20 };
    if (__atomic_load_n(&m->good, __ATOMIC_ACQUIRE)) return 0;
    int64_t chunks = (m->bytes + CHUNK - 1) / CHUNK;
    uint32_t crc = 0; /* of no bytes */
    int failed = 0;
#pragma omp parallel if (chunks > 4)
    {
        struct err mine = {0};
        unsigned char *buffer =
            sys_grow(NULL, m->bytes < CHUNK ? (size_t)m->bytes : CHUNK, "buffer for a checksum", &mine);
#pragma omp for ordered schedule(static, 1)
        for (int64_t i = 0; i < chunks; i++) {
            size_t n = i < chunks - 1 ? CHUNK : (size_t)(m->bytes - i * CHUNK);
            uint32_t part = 0;
            if (buffer && !mine.code && !stop_check("while a file was verified", &mine) &&
                !file_pread(f, buffer, n, m->offset + i * CHUNK, &mine))
                part = (uint32_t)crc32_z(0, buffer, n);
#pragma omp ordered
            crc = (uint32_t)crc32_combine(crc, part, (z_off_t)n);
        }
        if (mine.code) {
#pragma omp critical(ckpt_zip_check)
            {
                failed = 1;
                err_set(e, mine.code, "%s", mine.text);
            }
        }
        sys_free(buffer);
    }
    if (failed) return -1;
    char shown[100];
    if (crc != m->crc)
        return err_set(e, ERR_INPUT,
                       "%s: the member '%s' is damaged (its CRC is %08x, %08x was written); copy it again",
                       f->path, ckpt_printable(shown, m->name, m->name_bytes), crc, m->crc);
    __atomic_store_n(&m->good, 1, __ATOMIC_RELEASE);
    return 0;
}
