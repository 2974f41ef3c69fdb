/* base/stream.c - see stream.h. The gzip format is RFC 1952; zlib unpacks it and checks its CRC and length. */
#include "base/stream.h"
#include "base/file.h"
#include "base/sys.h"
#include <string.h>
#include <zlib.h>

enum { PACKED_BYTES = 1 << 16, GZIP_WINDOW = 16 + MAX_WBITS };

struct stream {
    struct file *file;
    int64_t at; /* bytes of the file that were read */
    int packed; /* gzip */
    int inside; /* a member has begun and not ended */
    int64_t unpacked;
    z_stream z; /* next_in points into `in` */
    unsigned char *in;
};

/* zlib's memory comes from where all memory comes from. */
static voidpf z_alloc(voidpf unused, uInt count, uInt size) {
    (void)unused;
    return sys_alloc_array(count, size, "gzip decoder", NULL);
}
static void z_free(voidpf unused, voidpf p) {
    (void)unused;
    sys_free(p);
}

struct stream *stream_open(const char *path, struct err *e) {
    unsigned char magic[2];
    struct stream *s = sys_alloc(sizeof *s, "reader of a file", e);
    if (!s || !(s->file = file_open(path, e))) goto fail;
    if (s->file->bytes < 2) return s;
    if (file_pread(s->file, magic, 2, 0, e)) goto fail;
    if (magic[0] != 0x1f || magic[1] != 0x8b) return s;
    s->z.zalloc = z_alloc, s->z.zfree = z_free;
    const size_t most = s->file->bytes < PACKED_BYTES ? (size_t)s->file->bytes : PACKED_BYTES;
    if (!(s->in = sys_grow(NULL, most, "gzip decoder", e))) goto fail;
    if (inflateInit2(&s->z, GZIP_WINDOW) != Z_OK) {
        err_set(e, ERR_RUN, "%s: out of memory for the gzip decoder", path);
        goto fail;
    }
    s->packed = s->inside = 1;
    return s;
fail:
    stream_close(s);
    return NULL;
}

void stream_close(struct stream *s) {
    if (!s) return;
    if (s->packed) inflateEnd(&s->z);
    file_close(s->file);
    sys_free(s->in);
    sys_free(s);
}

const char *stream_path(const struct stream *s) {
    return s->file->path;
}

double stream_done(const struct stream *s) {
    return s->file->bytes > 0 ? (double)(s->at - s->z.avail_in) / (double)s->file->bytes : 1;
}

int64_t stream_left(const struct stream *s) {
    return s->packed ? -1 : s->file->bytes - s->at;
}

/* Bytes of the file at hand for the decoder: 1, 0 at the end of the file, -1. */
static int refill(struct stream *s, struct err *e) {
    if (s->z.avail_in) return 1;
    const int64_t left = s->file->bytes - s->at;
    const size_t n = left < PACKED_BYTES ? (size_t)left : PACKED_BYTES;
    if (!n) return 0;
    if (file_pread(s->file, s->in, n, s->at, e)) return -1;
    s->at += (int64_t)n;
    s->z.next_in = s->in, s->z.avail_in = (uInt)n;
    return 1;
}

static int damaged(const struct stream *s, const char *what, struct err *e) {
    return err_set(
        e, ERR_INPUT,
        "%s: %s at byte %lld of the gzip file, behind %lld unpacked bytes; make it again, or unpack what "
        "there is with gzip -dc",
        stream_path(s), what, (long long)(s->at - s->z.avail_in), (long long)s->unpacked);
}

/* Between two members: 1 if another one begins, 0 at the end of the file. */
static int next_member(struct stream *s, struct err *e) {
    int more;
    while ((more = refill(s, e)) > 0 && !*s->z.next_in) s->z.next_in++, s->z.avail_in--;
    if (more <= 0) return more;
    if (*s->z.next_in != 0x1f) return damaged(s, "something that is not gzip begins", e);
    inflateReset(&s->z);
    return s->inside = 1;
}

static int64_t unpack(struct stream *s, unsigned char *p, size_t size, struct err *e) {
    size_t n = 0;
    while (n < size) {
        int more = s->inside ? refill(s, e) : next_member(s, e);
        if (more < 0) return -1;
        if (!more && !s->inside) break;
        const uInt room = size - n < 1u << 30 ? (uInt)(size - n) : 1u << 30;
        s->z.next_out = p + n, s->z.avail_out = room;
        const int rc = inflate(&s->z, Z_NO_FLUSH);
        n += room - s->z.avail_out, s->unpacked += room - s->z.avail_out;
        if (rc == Z_MEM_ERROR)
            return err_set(e, ERR_RUN, "%s: out of memory for the gzip decoder", stream_path(s));
        if (rc == Z_STREAM_END)
            s->inside = 0;
        else if (rc == Z_BUF_ERROR && !more) /* and nothing left in the decoder */
            return damaged(s, "the file ends in the middle of its data,", e);
        else if (rc != Z_OK && rc != Z_BUF_ERROR)
            return damaged(s, "the data are damaged", e);
    }
    return (int64_t)n;
}

int64_t stream_read(struct stream *s, void *p, size_t size, struct err *e) {
    if (s->packed) return unpack(s, p, size, e);
    const int64_t left = s->file->bytes - s->at;
    const size_t n = left < (int64_t)size ? (size_t)left : size;
    if (n && file_pread(s->file, p, n, s->at, e)) return -1;
    s->at += (int64_t)n;
    return (int64_t)n;
}
