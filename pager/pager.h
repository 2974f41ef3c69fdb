/* pager/pager.h - families of large pages and where they live.
 *
 * A page's home is the device, or host memory the device copies from at full speed. A home page is used in place; any
 * other goes through one of a few device slots: fetched ahead of time on its own copy queue, written back on another,
 * so compute never waits when the link is fast enough. Copies are explicit; nothing faults; nothing is allocated after
 * pages_open. On a backend whose device memory is host memory (the CPU) with every page at home, nothing is ever copied.
 *
 *     for (l = 0; l < L; l++) {
 *         pages_want(p, l + 1);                        start the next copy behind this layer's compute
 *         void *w = pages_get(p, l, PAGE_READ);        valid until pages_put
 *         ... queue ops that use w ...
 *         pages_put(p, l, 0);
 *     }
 * Two pages of a family may be held at once if it has at least three slots; want counts as holding until its get.
 */
#ifndef QLORA_PAGER_H
#define QLORA_PAGER_H
#include "backend/backend.h"
#include "base/err.h"
#include <stdint.h>

enum page_mode { PAGE_READ, PAGE_WRITE /* old content not needed */, PAGE_READ_WRITE };

struct pages;
struct pages_config {
    const char *name;
    int64_t count;
    const size_t *bytes;  /* [count] sizes, or NULL: all of page_bytes */
    size_t page_bytes;
    int64_t resident;     /* pages 0 .. resident-1 live on the device; the others in host memory */
    int slots;            /* device slots for the others (>= 2); 0: there are none, or they are read where they are (pages_home) */
};
struct pages *pages_open(struct backend *be, const struct pages_config *c, struct err *e);
void pages_close(struct pages *p);
/* Bytes pages_open takes on the device and in host memory: the plan's arithmetic, so both always agree. */
void pages_cost(const struct pages_config *c, int64_t *device, int64_t *host);

void pages_want(struct pages *p, int64_t i); /* i out of range: nothing */
void *pages_get(struct pages *p, int64_t i, enum page_mode mode);
void pages_put(struct pages *p, int64_t i, int dirty);
size_t pages_bytes(const struct pages *p, int64_t i);
/* A page at home in host memory. */
const void *pages_home(const struct pages *p, int64_t i);
/* The same to be changed by the host, which waits for copies of it that are under way; nobody may hold the page. */
void *pages_edit(struct pages *p, int64_t i);

/* Host access at load and save time (waits for all copies of that page). read/write whole pages or parts of them. */
int pages_write(struct pages *p, int64_t i, size_t offset, const void *host, size_t bytes, struct err *e);
int pages_read(struct pages *p, int64_t i, size_t offset, void *host, size_t bytes, struct err *e);
#endif
