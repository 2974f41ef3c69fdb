/* pager/pager.c - see pager.h.
 *
 * Order of events for a page that passes through a slot (tickets are points on a queue):
 *   fetch   Q_IN waits for the slot's last compute use and its last write-back, and for the page's own write-back; copies
 *   get     Q_COMPUTE waits for the fetch (PAGE_WRITE: for the slot's write-back only)
 *   put     marks the compute use; if dirty Q_OUT waits for it and copies back
 * A slot is free for another page when nobody holds it; the least recently used free slot is taken, so the last layers of
 * the forward sweep are still there when the backward sweep begins. */
#include "pager/pager.h"
#include "base/sys.h"
#include <string.h>

struct slot {
    unsigned char *data;
    int64_t page;          /* -1 = none */
    int held;              /* wanted or got, not yet put */
    int fetched;           /* a fetch of `page` was queued */
    int64_t fetch, use, out; /* tickets, 0 = none */
    int64_t age;
};
struct home {
    unsigned char *data; /* device or host */
    int64_t out;         /* ticket of its last write-back */
};
struct pages {
    struct backend *be;
    struct pages_config c;
    struct home *home;
    size_t *bytes;
    struct slot *slot;
    int64_t clock;
    void *device_block, *host_block, *slot_block;
};

static size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }
static size_t size_of(const struct pages_config *c, int64_t i) { return c->bytes ? c->bytes[i] : c->page_bytes; }

static size_t slot_bytes(const struct pages_config *c) {
    size_t most = 0;
    if (!c->bytes) return c->resident < c->count ? aligned(c->page_bytes) : 0;
    for (int64_t i = c->resident; i < c->count; i++)
        if (aligned(size_of(c, i)) > most) most = aligned(size_of(c, i));
    return most;
}

void pages_cost(const struct pages_config *c, int64_t *device, int64_t *host) {
    const int64_t here = c->resident < c->count ? c->resident : c->count;
    *device = *host = 0;
    if (!c->bytes) *device = here * (int64_t)aligned(c->page_bytes), *host = (c->count - here) * (int64_t)aligned(c->page_bytes);
    for (int64_t i = 0; c->bytes && i < c->count; i++) *(i < here ? device : host) += (int64_t)aligned(c->bytes[i]);
    *device += (int64_t)slot_bytes(c) * c->slots;
}

struct pages *pages_open(struct backend *be, const struct pages_config *c, struct err *e) {
    ASSERT(c->resident >= c->count || c->slots != 1, "%s: %d slots", c->name, c->slots);
    struct pages *p = sys_alloc(sizeof *p, "page table", e);
    if (!p) return NULL;
    p->be = be, p->c = *c;
    int64_t device, host;
    pages_cost(c, &device, &host);
    size_t slots = slot_bytes(c) * (size_t)c->slots;
    p->home = sys_alloc_array((size_t)c->count, sizeof *p->home, "page table", e);
    p->bytes = sys_alloc_array((size_t)c->count, sizeof *p->bytes, "page table", e);
    p->slot = sys_alloc_array((size_t)c->slots, sizeof *p->slot, "page table", e);
    if (!p->home || !p->bytes || !p->slot) goto fail;
    size_t on_device = (size_t)device - slots;
    if (on_device && !(p->device_block = backend_alloc(be, AT_DEVICE, on_device, c->name, e))) goto fail;
    if (slots && !(p->slot_block = backend_alloc(be, AT_DEVICE, slots, c->name, e))) goto fail;
    if (host && !(p->host_block = backend_alloc(be, AT_HOST, (size_t)host, c->name, e))) goto fail;
    unsigned char *d = p->device_block, *h = p->host_block;
    for (int64_t i = 0; i < c->count; i++) {
        unsigned char **from = i < c->resident ? &d : &h;
        p->home[i].data = *from;
        p->bytes[i] = size_of(c, i);
        *from += aligned(p->bytes[i]);
    }
    for (int s = 0; s < c->slots; s++) {
        p->slot[s].data = (unsigned char *)p->slot_block + slot_bytes(c) * (size_t)s;
        p->slot[s].page = -1;
    }
    p->c.bytes = NULL;
    return p;
fail:
    pages_close(p);
    return NULL;
}

void pages_close(struct pages *p) {
    if (!p) return;
    if (p->device_block) p->be->release(p->be->self, AT_DEVICE, p->device_block);
    if (p->slot_block) p->be->release(p->be->self, AT_DEVICE, p->slot_block);
    if (p->host_block) p->be->release(p->be->self, AT_HOST, p->host_block);
    sys_free(p->home), sys_free(p->bytes), sys_free(p->slot), sys_free(p);
}

size_t pages_bytes(const struct pages *p, int64_t i) { return p->bytes[i]; }

const void *pages_home(const struct pages *p, int64_t i) {
    ASSERT(i >= p->c.resident && i < p->c.count, "%s: page %lld is on the device", p->c.name, (long long)i);
    return p->home[i].data;
}

static void wait_on(struct pages *p, enum queue q, int64_t ticket) {
    if (ticket) p->be->wait(p->be->self, q, ticket);
}

/* The slot that holds page i, or the one to use for it. */
static struct slot *slot_for(struct pages *p, int64_t i) {
    struct slot *oldest = NULL;
    for (int s = 0; s < p->c.slots; s++) {
        struct slot *t = &p->slot[s];
        if (t->page == i) return t;
        if (!t->held && (!oldest || t->age < oldest->age)) oldest = t;
    }
    return oldest;
}

static struct slot *fetch(struct pages *p, int64_t i) {
    struct slot *s = slot_for(p, i);
    if (!s) return NULL;
    s->age = ++p->clock;
    if (s->page == i && s->fetched) return s;
    s->page = i, s->fetched = 1;
    wait_on(p, Q_IN, s->use);
    wait_on(p, Q_IN, s->out);
    wait_on(p, Q_IN, p->home[i].out);
    p->be->put(p->be->self, s->data, p->home[i].data, p->bytes[i], Q_IN);
    s->fetch = p->be->mark(p->be->self, Q_IN);
    return s;
}

void pages_want(struct pages *p, int64_t i) {
    if (i < p->c.resident || i >= p->c.count || i < 0) return;
    struct slot *s = fetch(p, i);
    if (s) s->held = 1; /* no free slot: the later get will fetch */
}

void *pages_get(struct pages *p, int64_t i, enum page_mode mode) {
    ASSERT(i >= 0 && i < p->c.count, "%s: page %lld of %lld", p->c.name, (long long)i, (long long)p->c.count);
    if (i < p->c.resident) return p->home[i].data;
    struct slot *s;
    if (mode == PAGE_WRITE) {
        s = slot_for(p, i);
        ASSERT(s, "%s: all %d slots are held", p->c.name, p->c.slots);
        s->page = i, s->fetched = 1, s->age = ++p->clock;
        wait_on(p, Q_COMPUTE, s->out);
        wait_on(p, Q_COMPUTE, s->fetch);
    } else {
        s = fetch(p, i);
        ASSERT(s, "%s: all %d slots are held", p->c.name, p->c.slots);
        wait_on(p, Q_COMPUTE, s->fetch);
    }
    s->held = 1;
    return s->data;
}

void pages_put(struct pages *p, int64_t i, int dirty) {
    if (i < p->c.resident) return;
    struct slot *s = slot_for(p, i);
    ASSERT(s && s->page == i && s->held, "%s: page %lld is not held", p->c.name, (long long)i);
    s->held = 0;
    s->use = p->be->mark(p->be->self, Q_COMPUTE);
    if (!dirty) return;
    wait_on(p, Q_OUT, s->use);
    p->be->get(p->be->self, p->home[i].data, s->data, p->bytes[i], Q_OUT);
    s->out = p->home[i].out = p->be->mark(p->be->self, Q_OUT);
}

void *pages_edit(struct pages *p, int64_t i) {
    ASSERT(i >= p->c.resident && i < p->c.count, "%s: page %lld is on the device", p->c.name, (long long)i);
    if (p->home[i].out) p->be->wait_host(p->be->self, p->home[i].out);
    for (int s = 0; s < p->c.slots; s++) {
        struct slot *t = &p->slot[s];
        if (t->page != i) continue;
        ASSERT(!t->held, "%s: page %lld is held", p->c.name, (long long)i);
        if (t->fetch) p->be->wait_host(p->be->self, t->fetch);
        t->page = -1, t->fetched = 0;
    }
    return p->home[i].data;
}

static void drop_slot(struct pages *p, int64_t i) {
    for (int s = 0; s < p->c.slots; s++)
        if (p->slot[s].page == i) p->slot[s].page = -1, p->slot[s].fetched = 0, p->slot[s].held = 0;
}

int pages_write(struct pages *p, int64_t i, size_t offset, const void *host, size_t bytes, struct err *e) {
    ASSERT(offset + bytes <= p->bytes[i], "%s: page %lld", p->c.name, (long long)i);
    if (p->be->sync(p->be->self, e)) return -1;
    if (i >= p->c.resident) {
        memcpy(p->home[i].data + offset, host, bytes);
        drop_slot(p, i);
        return 0;
    }
    p->be->put(p->be->self, p->home[i].data + offset, host, bytes, Q_COMPUTE);
    return p->be->sync(p->be->self, e); /* host may be reused by the caller */
}

int pages_read(struct pages *p, int64_t i, size_t offset, void *host, size_t bytes, struct err *e) {
    ASSERT(offset + bytes <= p->bytes[i], "%s: page %lld", p->c.name, (long long)i);
    if (p->be->sync(p->be->self, e)) return -1;
    if (i >= p->c.resident) {
        memcpy(host, p->home[i].data + offset, bytes);
        return 0;
    }
    p->be->get(p->be->self, host, p->home[i].data + offset, bytes, Q_COMPUTE);
    return p->be->sync(p->be->self, e);
}
