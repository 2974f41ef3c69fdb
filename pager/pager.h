/* pager/pager.h - families of large pages and where they live.
 *
 * A page's home is the device, host memory the device copies from at full speed, or a file. A page at home on the device is
 * used in place; any other goes through one of a few device slots: fetched ahead of time on its own copy queue, written back
 * on another, so compute never waits when the link is fast enough. What comes from the file is read ahead by threads into a
 * few pages of host memory, a further step ahead. Copies are explicit; nothing faults; nothing is allocated after
 * pages_open. On a backend whose device memory is host memory (the CPU) with every page at home, nothing is ever copied.
 *
 *     for (l = 0; l < L; l++) {
 *         void *w = pages_get(p, l, PAGE_READ);        valid until pages_put
 *         pages_want(p, l + 1);                        start the next copy behind this layer's compute
 *         ... queue ops that use w ...
 *         pages_put(p, l, 0);
 *     }
 * Two pages of a family may be held at once if it has at least three slots. One thread calls; only filling has several.
 */
#ifndef QLORA_PAGER_H
#define QLORA_PAGER_H
#include "backend/backend.h"
#include "base/err.h"
#include <stdint.h>

enum page_mode { PAGE_READ, PAGE_WRITE /* old content not needed */, PAGE_READ_WRITE };
enum page_home { HOME_DEVICE, HOME_HOST, HOME_FILE };

struct pages;
struct pages_config {
    const char *name;
    int64_t count;
    const size_t *bytes;  /* [count] sizes, or NULL: all of page_bytes */
    size_t page_bytes;
    int64_t resident;     /* so many pages live on the device: the first ones, or */
    int spread;           /* spread evenly, so that copies of the others are, too */
    int64_t files;        /* of the others so many live in a file, spread evenly; they are read only once they are filled */
    const char *dir;      /* the folder of that file, which has no name in it and ends with the process */
    int slots;            /* device slots for the others (>= 2); 0: there are none, or they are read where they are (pages_home) */
    int ring;             /* pages of host memory that the file is read into (>= 2), if there are files */
};
struct pages *pages_open(struct backend *be, const struct pages_config *c, struct err *e);
void pages_close(struct pages *p);
/* Bytes pages_open takes on the device, in host memory, and on the disk: the plan's arithmetic, so both always agree. */
void pages_cost(const struct pages_config *c, int64_t *device, int64_t *host, int64_t *disk);
enum page_home pages_place(const struct pages_config *c, int64_t i);
/* Bytes that a sweep over all pages copies to the device, and of these reads from the file, the sweep before it having gone the
 * other way: what it left in slots and ring is still there. */
void pages_moved(const struct pages_config *c, double *copied, double *read);

/* i is used next. If it is at home on the device, the next page in the same direction that is not. Out of range: nothing. May be
 * said again. */
void pages_want(struct pages *p, int64_t i);
/* The page that a want of i is for, -1: none. Of what somebody else is at work on nothing may be wanted. */
int64_t pages_next(const struct pages *p, int64_t i);
/* The first `part` of `parts` of it, for now: so that a large page does not keep small ones of other families waiting. */
void pages_want_part(struct pages *p, int64_t i, int part, int parts);
void *pages_get(struct pages *p, int64_t i, enum page_mode mode);
void pages_put(struct pages *p, int64_t i, int dirty);
size_t pages_bytes(const struct pages *p, int64_t i);
/* A page at home in host memory. */
const void *pages_home(const struct pages *p, int64_t i);
/* The same to be changed by the host, which waits for copies of it that are under way; nobody may hold the page. */
void *pages_edit(struct pages *p, int64_t i);
/* -1 when the file could not be read: what pages held since then is of no use. p may be NULL. */
int pages_failed(struct pages *p, struct err *e);

/* Host access at load and save time (waits for all copies). read/write whole pages or parts of them. */
int pages_write(struct pages *p, int64_t i, size_t offset, const void *host, size_t bytes, struct err *e);
int pages_read(struct pages *p, int64_t i, size_t offset, void *host, size_t bytes, struct err *e);
int pages_zero(struct pages *p, int64_t i, struct err *e);

/* Filling pages from several threads, before any is got: a thread asks for room, writes it in full, and hands it in. Room is the
 * page itself where the host can write there, else memory that the card copies from; threads may hold two rooms at once.
 *
 *     struct filler *f = filler_open(be, threads, e);
 *     struct room r;
 *     if (filler_room(f, pages, i, offset, bytes, &r, e)) ..    bytes <= FILL_PIECE
 *     ... write bytes at r.at ...
 *     if (filler_done(f, &r, e)) ..
 *     filler_close(f, e);                                       when all copies have arrived; f may be NULL
 */
enum { FILL_PIECE = 4 << 20 };
struct filler;
struct room {
    unsigned char *at;
    struct pages *pages;
    int64_t page;
    size_t offset, bytes;
    int stage;            /* -1: the page itself */
};
struct filler *filler_open(struct backend *be, int threads, struct err *e);
int filler_room(struct filler *f, struct pages *p, int64_t i, size_t offset, size_t bytes, struct room *r, struct err *e);
int filler_done(struct filler *f, const struct room *r, struct err *e);
void filler_drop(struct filler *f, const struct room *r); /* instead of done: its bytes are not wanted */
/* bytes of any number into a page. */
int filler_copy(struct filler *f, struct pages *p, int64_t i, size_t offset, const void *from, size_t bytes, struct err *e);
int filler_close(struct filler *f, struct err *e);

/* Bytes a second that a file in dir is read at, measured on one of 64 MiB; 0 and e where there can be none. */
double pages_disk_rate(const char *dir, struct err *e);
#endif
