/* checkpoint/checkpoint_internal.h - what the files of this folder share. Tests and fuzzers see it, other
 * folders do not.
 *
 * Limits of what a file may ask of us stand here. They are far above any real model: the largest Yuan has
 * 1,100 tensors and a header of 130 KB. */
#ifndef QLORA_CHECKPOINT_INTERNAL_H
#define QLORA_CHECKPOINT_INTERNAL_H
#include "base/file.h"
#include "checkpoint/checkpoint.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "payloads are copied: both formats are little endian");

enum {
    CKPT_HEADER_MAX = 16 << 20, /* bytes of a safetensors header, of data.pkl, of an index file */
    CKPT_TENSORS_MAX = 100000,
    CKPT_NAME_MAX = 1024, /* bytes of a tensor's name */
    CKPT_SHARDS_MAX = 1000
};

/* ---- zip.c: the container of a torch .bin. Stored members only; everything checked but the CRC of the
 * contents. ---- */

struct zip_member {
    int64_t header;        /* of the local header, from the start of the file */
    int64_t offset, bytes; /* of the contents */
    const char *name;      /* in zip.directory, not NUL-terminated */
    uint32_t crc;
    uint16_t name_bytes;
    unsigned char good; /* the contents agree with the CRC; set once, atomically */
};
struct zip {
    struct zip_member *members; /* sorted by name after ckpt_zip_open */
    int64_t count;
    char *directory;
};
int ckpt_zip_open(struct zip *z, const struct file *f, struct err *e);
void ckpt_zip_free(struct zip *z);
struct zip_member *ckpt_zip_find(const struct zip *z, const char *name,
                                 size_t name_bytes); /* needs the order by name */
void ckpt_zip_by_offset(struct zip *z);
struct zip_member *ckpt_zip_at(const struct zip *z,
                               int64_t offset); /* holding this byte; needs the order by offset */
/* Reads the member once to compare its CRC. Remembers success; thread-safe. */
int ckpt_zip_check(struct zip_member *m, const struct file *f, struct err *e);

/* ---- shards and the list of tensors ---- */

struct shard {
    struct file *file;
    char *text;     /* header or pickle: the names of the tensors point into it */
    struct zip zip; /* of a .bin, ordered by offset; count 0 for safetensors */
};
struct ckpt {
    struct shard *shards;
    int shard_count;
    struct ckpt_tensor *tensors;
    int64_t count, cap;
};
/* A new row-major tensor at the end of the list, its offset still to be set. Checks name, shape and size.
 * `name` must be NUL-terminated before anyone looks at it, and live as long as c. */
struct ckpt_tensor *ckpt_add(struct ckpt *c, int file, const char *name, size_t name_bytes, enum dtype type,
                             int rank, const int64_t *shape, struct err *e);
int ckpt_shard_open(struct ckpt *c, const char *path,
                    struct err *e); /* appends; the kind follows from the name */
int ckpt_safetensors_open(struct ckpt *c, int file, struct err *e);
int ckpt_torchbin_open(struct ckpt *c, int file, struct err *e);
int ckpt_pickle_read(struct ckpt *c, int file, size_t n, const char *root, size_t root_bytes, struct err *e);
int ckpt_index_open(struct ckpt *c, const char *path, struct err *e);
void ckpt_sort(struct ckpt *c); /* by name, then file */

/* ---- manifest.c: a folder being filled (manifest_begin) wants to know the checksums of its files ---- */

int manifest_filling(const char *dir);
/* A file of such a folder is on the disk under its name, with these bytes. */
void manifest_note(const char *dir, const char *name, int64_t bytes, const char hex[41]);

/* ---- queue.c: bytes to be written by a thread, 16 MB of them on their way ---- */

typedef int ckpt_queue_write(void *context, const void *p, int64_t bytes, struct err *e);
struct ckpt_queue;
struct ckpt_queue *ckpt_queue_open(ckpt_queue_write *write, void *context); /* NULL: no memory or thread for it */
int ckpt_queue_add(struct ckpt_queue *q, const void *p, int64_t bytes, struct err *e); /* waits for room; -1: a write failed */
int ckpt_queue_close(struct ckpt_queue *q, struct err *e); /* all is written, or -1; frees q */
void ckpt_queue_drop(struct ckpt_queue *q);                /* the rest is not wanted any more; frees q; NULL is fine */

int64_t ckpt_tensor_bytes(const struct ckpt_tensor *t);
/* Text from a file made fit for a message: control characters become '?', long text is cut. Returns buf. */
const char *ckpt_printable(char buf[100], const char *text, size_t n);

/* ---- scan.c: a cursor over JSON text, for headers too large to be worth a tree. Strings are unescaped in
 * place. ---- */

struct scan {
    char *start, *p, *end;
    const char *path; /* for messages */
    struct err *e;
};
int ckpt_scan_error(struct scan *s, const char *what); /* "PATH: byte N of the JSON text: what"; returns -1 */
int ckpt_scan_expect(struct scan *s, char c);
/* Loop over an object or array behind its opening bracket: for (i = 0; (rc = ckpt_scan_item(s, '}', i)) > 0;
 * i++) */
int ckpt_scan_item(struct scan *s, char close, int64_t i);
/* *text is NUL-terminated and valid UTF-8 without NULs; it overwrites the literal. */
int ckpt_scan_string(struct scan *s, char **text, size_t *n);
int ckpt_scan_int(struct scan *s, int64_t *v); /* 0 .. 2^63-1, exact */
int ckpt_scan_skip(struct scan *s);            /* any value; the grammar must have been checked before */
int ckpt_scan_end(struct scan *s);             /* only white space is left */
#endif
