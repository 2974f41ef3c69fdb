/* pager/pager.c - see pager.h.
 *
 * Order of events for a page that passes through a slot (tickets are points on a queue):
 *   fetch   Q_IN waits for the slot's last compute use and its last write-back, and for the page's own write-back; copies
 *   get     Q_COMPUTE waits for the fetch (PAGE_WRITE: for the slot's write-back only)
 *   put     marks the compute use; if dirty Q_OUT waits for it and copies back
 * A slot is free for another page when nobody holds or wants it; the least recently used free slot is taken, so the last pages of
 * the forward sweep are still there when the backward sweep begins.
 *
 * A page of the file comes before its fetch into the ring: threads read it, and those behind it in the direction of the sweep. A
 * page of the ring is free for another when its copy was queued; the host waits until that copy is done. */
#include "pager/pager_internal.h"
#include "base/sys.h"
#include <string.h>

static size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }
static size_t size_of(const struct pages_config *c, int64_t i) { return c->bytes ? c->bytes[i] : c->page_bytes; }
static int64_t resident(const struct pages_config *c) { return c->resident < c->count ? c->resident : c->count; }

/* `part` of `all` things spread evenly: how many of the first i. */
static int64_t spread(int64_t i, int64_t part, int64_t all) { return all ? i * part / all : 0; }

enum page_home pages_place(const struct pages_config *c, int64_t i) {
    const int64_t n = c->count, r = resident(c);
    if (!r && !c->files) return HOME_HOST;
    if (r == n) return HOME_DEVICE;
    const int64_t before = c->spread ? spread(i, r, n) : i < r ? i : r, other = i - before; /* `other` pages before it are not on
                                                                                             * the device */
    if (c->spread ? spread(i + 1, r, n) > before : i < r) return HOME_DEVICE;
    return spread(other + 1, c->files, n - r) > spread(other, c->files, n - r) ? HOME_FILE : HOME_HOST;
}

static size_t slot_bytes(const struct pages_config *c) {
    size_t most = 0;
    if (!c->bytes) return c->resident < c->count ? aligned(c->page_bytes) : 0;
    for (int64_t i = 0; i < c->count; i++)
        if (pages_place(c, i) != HOME_DEVICE && aligned(size_of(c, i)) > most) most = aligned(size_of(c, i));
    return most;
}

static size_t ring_bytes(const struct pages_config *c) { return c->files ? disk_aligned(c->page_bytes) * (size_t)c->ring + DISK_ALIGN : 0; }

/* In the homes alone. */
static void sums(const struct pages_config *c, int64_t *device, int64_t *host) {
    const int64_t r = resident(c);
    *device = *host = 0;
    if (!c->bytes) *device = r * (int64_t)aligned(c->page_bytes), *host = (c->count - r - c->files) * (int64_t)aligned(c->page_bytes);
    for (int64_t i = 0; c->bytes && i < c->count; i++) *(pages_place(c, i) == HOME_DEVICE ? device : host) += (int64_t)aligned(c->bytes[i]);
}

void pages_cost(const struct pages_config *c, int64_t *device, int64_t *host, int64_t *disk) {
    ASSERT(!c->files || (!c->bytes && c->files <= c->count - resident(c)), "%s: %lld pages in a file", c->name, (long long)c->files);
    sums(c, device, host);
    *device += (int64_t)slot_bytes(c) * c->slots;
    *host += (int64_t)ring_bytes(c);
    *disk = c->files * (int64_t)disk_aligned(c->page_bytes);
}

void pages_moved(const struct pages_config *c, double *copied, double *read) {
    int64_t device, host;
    sums(c, &device, &host);
    const double in_file = (double)aligned(c->page_bytes) * (double)c->files, left = (double)slot_bytes(c) * c->slots;
    *copied = (double)host + in_file > left ? (double)host + in_file - left : 0;
    *read = c->files > c->ring ? (double)(c->files - c->ring) * (double)disk_aligned(c->page_bytes) : 0;
}

static int open_file(struct pages *p, int64_t bytes, struct err *e) {
    const struct pages_config *c = &p->c;
    ASSERT(c->ring >= 2 && c->dir, "%s: a ring of %d", c->name, c->ring);
    if (!(p->ring = sys_alloc_array((size_t)c->ring, sizeof *p->ring, "page table", e)) ||
        !(p->ring_block = backend_alloc(p->be, AT_HOST, ring_bytes(c), c->name, e)) ||
        !(p->disk = disk_open(c->dir, bytes, c->name, e)))
        return -1;
    unsigned char *at = (unsigned char *)p->ring_block + DISK_ALIGN - (uintptr_t)p->ring_block % DISK_ALIGN;
    for (int k = 0; k < c->ring; k++, at += disk_aligned(c->page_bytes))
        p->ring[k] = (struct ring){.job = {.to = at, .bytes = disk_aligned(c->page_bytes)}, .page = -1};
    return 0;
}

static int open_slots(struct pages *p, struct err *e) {
    const size_t bytes = slot_bytes(&p->c);
    if (bytes && p->c.slots && !(p->slot_block = backend_alloc(p->be, AT_DEVICE, bytes * (size_t)p->c.slots, p->c.name, e))) return -1;
    for (int s = 0; s < p->c.slots; s++) p->slot[s] = (struct slot){.data = (unsigned char *)p->slot_block + bytes * (size_t)s, .page = -1};
    return 0;
}

struct pages *pages_open(struct backend *be, const struct pages_config *c, struct err *e) {
    ASSERT(c->resident >= c->count || c->slots != 1, "%s: %d slots", c->name, c->slots);
    struct backend_info info;
    struct pages *p = sys_alloc(sizeof *p, "page table", e);
    if (!p) return NULL;
    be->info(be->self, &info);
    p->be = be, p->c = *c, p->unified = info.unified, p->last = -1;
    int64_t all, device, host, disk;
    pages_cost(c, &all, &host, &disk), sums(c, &device, &host);
    p->home = sys_alloc_array((size_t)c->count, sizeof *p->home, "page table", e);
    p->bytes = sys_alloc_array((size_t)c->count, sizeof *p->bytes, "page table", e);
    p->slot = sys_alloc_array((size_t)c->slots, sizeof *p->slot, "page table", e);
    if (!p->home || !p->bytes || !p->slot) goto fail;
    if (device && !(p->device_block = backend_alloc(be, AT_DEVICE, (size_t)device, c->name, e))) goto fail;
    if (host && !(p->host_block = backend_alloc(be, AT_HOST, (size_t)host, c->name, e))) goto fail;
    if (open_slots(p, e) || (c->files && open_file(p, disk, e))) goto fail;
    unsigned char *block[2] = {p->device_block, p->host_block};
    int64_t at = 0;
    for (int64_t i = 0; i < c->count; i++) {
        struct home *h = &p->home[i];
        p->bytes[i] = size_of(c, i);
        h->kind = pages_place(c, i);
        if (h->kind == HOME_FILE) h->at = at, at += (int64_t)disk_aligned(p->bytes[i]);
        else h->data = block[h->kind], block[h->kind] += aligned(p->bytes[i]);
    }
    p->c.bytes = NULL;
    return p;
fail:
    pages_close(p);
    return NULL;
}

void pages_close(struct pages *p) {
    if (!p) return;
    struct {
        enum place place;
        void *block;
    } block[] = {{AT_DEVICE, p->device_block}, {AT_DEVICE, p->slot_block}, {AT_HOST, p->host_block}, {AT_HOST, p->ring_block}};
    disk_close(p->disk); /* its threads write to the ring */
    for (int i = 0; i < 4; i++)
        if (block[i].block) p->be->release(p->be->self, block[i].place, block[i].block);
    sys_free(p->home), sys_free(p->bytes), sys_free(p->slot), sys_free(p->ring), sys_free(p);
}

size_t pages_bytes(const struct pages *p, int64_t i) { return p->bytes[i]; }

const void *pages_home(const struct pages *p, int64_t i) {
    ASSERT(i >= 0 && i < p->c.count && p->home[i].kind == HOME_HOST, "%s: page %lld is not in host memory", p->c.name, (long long)i);
    return p->home[i].data;
}

int pages_failed(struct pages *p, struct err *e) { return p && p->disk ? disk_failed(p->disk, e) : 0; }

static void wait_on(struct pages *p, enum queue q, int64_t ticket) {
    if (ticket) p->be->wait(p->be->self, q, ticket);
}

/* ---- the ring ---- */

static struct ring *ring_of(struct pages *p, int64_t i) {
    for (int k = 0; k < p->c.ring; k++)
        if (p->ring[k].page == i) return &p->ring[k];
    return NULL;
}

/* Starts reading page i. `must`: also in the place of one that was read and not used yet. NULL: there is no place. */
static struct ring *ring_read(struct pages *p, int64_t i, int64_t since, int must) {
    struct ring *r = ring_of(p, i);
    if (!r) {
        for (int k = 0; k < p->c.ring; k++) {
            struct ring *x = &p->ring[k];
            if ((x->fresh && !must) || x->age > since) continue;
            if (!r || x->fresh < r->fresh || (x->fresh == r->fresh && x->age < r->age)) r = x;
        }
        if (!r) return NULL;
        disk_wait(p->disk, &r->job);
        if (r->copied) p->be->wait_host(p->be->self, r->copied);
        r->page = i, r->fresh = 1, r->copied = 0, r->job.at = p->home[i].at;
        disk_start(p->disk, &r->job);
    }
    r->age = ++p->clock;
    return r;
}

/* ---- slots ---- */

static struct slot *slot_of(struct pages *p, int64_t i) {
    for (int s = 0; s < p->c.slots; s++)
        if (p->slot[s].page == i) return &p->slot[s];
    return NULL;
}

/* The slot that holds page i, or the one to use for it. `must`: also in the place of a page that is wanted. */
static struct slot *slot_for(struct pages *p, int64_t i, int must) {
    struct slot *found = slot_of(p, i);
    if (found) return found;
    for (int wanted = 0; !found && wanted <= must; wanted++)
        for (int s = 0; s < p->c.slots; s++) {
            struct slot *t = &p->slot[s];
            if (!t->held && t->wanted <= wanted && (!found || t->age < found->age)) found = t;
        }
    if (found) found->page = i, found->fetched = found->wanted = 0, found->sent = 0;
    return found;
}

/* Queues the copy of a slot's page up to byte `until`, as far as it is not there; of a page of the file once that was read, or
 * waits for it (`must`). */
static void fetch(struct pages *p, struct slot *s, size_t until, int must) {
    struct home *h = &p->home[s->page];
    const unsigned char *from = h->data;
    struct ring *r = NULL;
    if (s->fetched || s->sent >= until) return;
    if (h->kind == HOME_FILE) {
        if (!(r = ring_read(p, s->page, INT64_MAX, must))) return;
        if (must) disk_wait(p->disk, &r->job);
        else if (!disk_ready(p->disk, &r->job)) return;
        from = r->job.to;
    }
    if (!s->sent) {
        wait_on(p, Q_IN, s->use);
        wait_on(p, Q_IN, s->out);
        wait_on(p, Q_IN, h->out);
    }
    p->be->put(p->be->self, s->data + s->sent, from + s->sent, until - s->sent, Q_IN);
    s->fetch = p->be->mark(p->be->self, Q_IN);
    s->sent = until, s->fetched = until == p->bytes[s->page];
    if (r) r->fresh = !s->fetched, r->copied = s->fetch;
}

/* Reads the pages of the file from i on that are in no slot, as far as there is room. */
static void read_ahead(struct pages *p, int64_t i, int64_t step) {
    const int64_t since = p->clock;
    for (; i >= 0 && i < p->c.count && step; i += step) {
        if (p->home[i].kind != HOME_FILE) continue;
        const struct slot *s = slot_of(p, i);
        if ((!s || !s->fetched) && !ring_read(p, i, since, 0)) return;
    }
}

void pages_want(struct pages *p, int64_t i) { pages_want_part(p, i, 1, 1); }

static int64_t direction(const struct pages *p, int64_t i) { return i > p->last ? 1 : i < p->last ? -1 : 0; }

int64_t pages_next(const struct pages *p, int64_t i) {
    const int64_t step = direction(p, i);
    while (i >= 0 && i < p->c.count && p->home[i].kind == HOME_DEVICE) i += step ? step : p->c.count;
    return i < 0 || i >= p->c.count ? -1 : i;
}

void pages_want_part(struct pages *p, int64_t i, int part, int parts) {
    const int64_t step = direction(p, i);
    if ((i = pages_next(p, i)) < 0) return;
    struct slot *s = slot_for(p, i, 0);
    if (s) { /* else the later get will fetch */
        s->wanted = !s->held, s->age = ++p->clock;
        fetch(p, s, part < parts ? p->bytes[i] / (size_t)parts * (size_t)part / 256 * 256 : p->bytes[i], 0);
    }
    if (p->disk) read_ahead(p, i, step);
}

void *pages_get(struct pages *p, int64_t i, enum page_mode mode) {
    ASSERT(i >= 0 && i < p->c.count, "%s: page %lld of %lld", p->c.name, (long long)i, (long long)p->c.count);
    p->last = i;
    if (p->home[i].kind == HOME_DEVICE) return p->home[i].data;
    struct slot *s = slot_for(p, i, 1);
    ASSERT(s, "%s: all %d slots are held", p->c.name, p->c.slots);
    s->age = ++p->clock;
    if (mode == PAGE_WRITE) {
        s->fetched = 1;
        wait_on(p, Q_COMPUTE, s->out);
    } else fetch(p, s, p->bytes[i], 1);
    wait_on(p, Q_COMPUTE, s->fetch);
    s->held = 1, s->wanted = 0;
    return s->data;
}

void pages_put(struct pages *p, int64_t i, int dirty) {
    struct home *h = &p->home[i];
    if (h->kind == HOME_DEVICE) return;
    struct slot *s = slot_of(p, i);
    ASSERT(s && s->held && !(dirty && h->kind == HOME_FILE), "%s: page %lld is not held, or in a file", p->c.name, (long long)i);
    s->held = 0;
    s->use = p->be->mark(p->be->self, Q_COMPUTE);
    if (!dirty) return;
    wait_on(p, Q_OUT, s->use);
    p->be->get(p->be->self, h->data, s->data, p->bytes[i], Q_OUT);
    s->out = h->out = p->be->mark(p->be->self, Q_OUT);
}

/* ---- the host's ways ---- */

/* What was copied of a page is out of date. */
static void forget(struct pages *p, int64_t i) {
    struct slot *s = slot_of(p, i);
    struct ring *r = p->disk ? ring_of(p, i) : NULL;
    if (s) s->page = -1, s->fetched = s->held = s->wanted = 0, s->sent = 0;
    if (!r) return;
    disk_wait(p->disk, &r->job);
    r->page = -1, r->fresh = 0;
}

void *pages_edit(struct pages *p, int64_t i) {
    const struct home *h = &p->home[i];
    const struct slot *s = slot_of(p, i);
    ASSERT(i >= 0 && i < p->c.count && h->kind == HOME_HOST && !(s && s->held),
           "%s: page %lld is not at home in host memory, or held", p->c.name, (long long)i);
    if (h->out) p->be->wait_host(p->be->self, h->out);
    if (s && s->fetch) p->be->wait_host(p->be->self, s->fetch);
    forget(p, i);
    return h->data;
}

/* memcpy by all threads: of gigabytes, most of the time goes into pages that `to` has not touched yet. */
static void copy(unsigned char *to, const unsigned char *from, size_t bytes) {
    const int64_t pieces = (int64_t)((bytes + FILL_PIECE - 1) / FILL_PIECE);
#pragma omp parallel for schedule(static) if (pieces > 1)
    for (int64_t k = 0; k < pieces; k++) {
        const size_t at = (size_t)k * FILL_PIECE, left = bytes - at;
        memcpy(to + at, from + at, left < FILL_PIECE ? left : FILL_PIECE);
    }
}

int pages_write(struct pages *p, int64_t i, size_t offset, const void *host, size_t bytes, struct err *e) {
    struct home *h = &p->home[i];
    ASSERT(offset + bytes <= p->bytes[i], "%s: page %lld", p->c.name, (long long)i);
    if (p->be->sync(p->be->self, e)) return -1;
    if (h->kind == HOME_DEVICE) {
        p->be->put(p->be->self, h->data + offset, host, bytes, Q_COMPUTE);
        return p->be->sync(p->be->self, e); /* host may be reused by the caller */
    }
    forget(p, i);
    if (h->kind == HOME_FILE) return disk_write(p->disk, h->at + (int64_t)offset, host, bytes, e);
    copy(h->data + offset, host, bytes);
    return 0;
}

int pages_read(struct pages *p, int64_t i, size_t offset, void *host, size_t bytes, struct err *e) {
    const struct home *h = &p->home[i];
    ASSERT(offset + bytes <= p->bytes[i], "%s: page %lld", p->c.name, (long long)i);
    if (p->be->sync(p->be->self, e)) return -1;
    if (h->kind == HOME_FILE) return disk_read(p->disk, h->at + (int64_t)offset, host, bytes, e);
    if (h->kind == HOME_HOST) {
        copy(host, h->data + offset, bytes);
        return 0;
    }
    p->be->get(p->be->self, host, h->data + offset, bytes, Q_COMPUTE);
    return p->be->sync(p->be->self, e);
}

int pages_zero(struct pages *p, int64_t i, struct err *e) {
    const struct home *h = &p->home[i];
    const int64_t pieces = (int64_t)((p->bytes[i] + FILL_PIECE - 1) / FILL_PIECE);
    ASSERT(h->kind != HOME_FILE, "%s: page %lld is in a file", p->c.name, (long long)i);
    if (h->kind == HOME_DEVICE) return p->be->zero(p->be->self, h->data, p->bytes[i], Q_COMPUTE), 0;
    if (p->be->sync(p->be->self, e)) return -1;
    forget(p, i);
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < pieces; k++) {
        const size_t at = (size_t)k * FILL_PIECE, left = p->bytes[i] - at;
        memset(h->data + at, 0, left < FILL_PIECE ? left : FILL_PIECE);
    }
    return 0;
}
