/* pager/pager_internal.h - what the files of this folder share: pages, and the file some of them live in. */
#ifndef QLORA_PAGER_INTERNAL_H
#define QLORA_PAGER_INTERNAL_H
#include "pager/pager.h"

/* ---- the file (pager/disk.c) ----
 *
 * Page by page, each on a multiple of DISK_ALIGN. Read ahead by threads, past the page cache where the file system lets them.
 * Calls are the main thread's, but for disk_write. */
enum { DISK_ALIGN = 4096, DISK_PIECE = 4 << 20, DISK_THREADS = 4 };
struct disk;
struct disk *disk_open(const char *dir, int64_t bytes, const char *what, struct err *e);
void disk_close(struct disk *d);
int disk_write(struct disk *d, int64_t at, const void *from, size_t bytes, struct err *e);
int disk_read(struct disk *d, int64_t at, void *to, size_t bytes, struct err *e); /* now, by the caller */
/* Brings what was written to the disk, and out of the page cache. */
int disk_settle(struct disk *d, struct err *e);
/* Queues the reading of whole blocks into memory aligned to DISK_ALIGN. */
struct disk_job {
    unsigned char *to;
    int64_t at;
    size_t bytes;
    int left;            /* pieces to come */
    size_t taken;
    struct disk_job *next;
};
void disk_start(struct disk *d, struct disk_job *job);
int disk_ready(struct disk *d, const struct disk_job *job);
void disk_wait(struct disk *d, const struct disk_job *job);
int disk_failed(struct disk *d, struct err *e); /* a read of the threads did */
static inline size_t disk_aligned(size_t bytes) { return (bytes + DISK_ALIGN - 1) / DISK_ALIGN * DISK_ALIGN; }

/* ---- pages ---- */

struct slot {
    unsigned char *data;
    int64_t page;          /* -1 = none */
    int held;              /* got, not yet put */
    int wanted;            /* will be got soon */
    int fetched;           /* the copy of all of `page` was queued */
    size_t sent;           /* so many bytes of it */
    int64_t fetch, use, out; /* tickets, 0 = none */
    int64_t age;
};
struct home {
    enum page_home kind;
    unsigned char *data; /* device or host */
    int64_t at;          /* place in the file */
    int64_t out;         /* ticket of its last write-back */
};
struct ring { /* a page of the file in host memory */
    struct disk_job job;
    int64_t page;        /* -1 = none */
    int fresh;           /* read for a copy that was not queued yet */
    int64_t copied;      /* ticket of its last copy to the device */
    int64_t age;
};
struct pages {
    struct backend *be;
    struct pages_config c;
    int unified;         /* the host may write to device memory */
    struct home *home;
    size_t *bytes;
    struct slot *slot;
    struct ring *ring;
    struct disk *disk;
    int64_t clock, last; /* last: the page got last */
    void *device_block, *host_block, *slot_block, *ring_block;
};
#endif
