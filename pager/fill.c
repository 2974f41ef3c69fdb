/* pager/fill.c - filling pages from several threads. The backend is called under one lock, and only to queue: bytes go to the
 * device while the threads read on. */
#include "base/sys.h"
#include "pager/pager_internal.h"
#include <pthread.h>
#include <string.h>

struct stage {
    unsigned char *data;
    int busy;
    int64_t copied; /* ticket of the copy from it, 0 = none */
};
struct filler {
    struct backend *be;
    pthread_mutex_t lock; /* of stages and backend */
    struct stage *stage;
    int stages, files;
    struct disk *file[4]; /* that pages were written to */
    void *block;
};

struct filler *filler_open(struct backend *be, int threads, struct err *e) {
    struct filler *f = sys_alloc(sizeof *f, "load buffers", e);
    if (!f) return NULL;
    f->be = be, f->stages = 2 * threads + 4;
    pthread_mutex_init(&f->lock, NULL);
    if ((f->stage = sys_alloc_array((size_t)f->stages, sizeof *f->stage, "load buffers", e))) return f;
    filler_close(f, NULL);
    return NULL;
}

/* Memory for all stages, when the first is asked for: many a model needs none. */
static int make_stages(struct filler *f, struct err *e) {
    if (f->block) return 0;
    if (!(f->block = backend_alloc(f->be, AT_HOST, (size_t)f->stages * FILL_PIECE, "load buffers", e))) return -1;
    for (int i = 0; i < f->stages; i++) f->stage[i].data = (unsigned char *)f->block + (size_t)i * FILL_PIECE;
    return 0;
}

/* The free stage whose copy was queued first. */
static int take(struct filler *f, struct room *r, struct err *e) {
    struct stage *s = NULL;
    if (make_stages(f, e)) return -1;
    for (int i = 0; i < f->stages; i++)
        if (!f->stage[i].busy && (!s || f->stage[i].copied < s->copied)) s = &f->stage[i];
    ASSERT(s, "%d rooms are open", f->stages);
    if (s->copied) f->be->wait_host(f->be->self, s->copied);
    s->busy = 1, s->copied = 0;
    r->stage = (int)(s - f->stage), r->at = s->data;
    return 0;
}

int filler_room(struct filler *f, struct pages *p, int64_t i, size_t offset, size_t bytes, struct room *r, struct err *e) {
    const struct home *h = &p->home[i];
    ASSERT(bytes <= FILL_PIECE && offset + bytes <= p->bytes[i], "%s: %zu bytes at %zu of page %lld", p->c.name, bytes, offset,
           (long long)i);
    *r = (struct room){.pages = p, .page = i, .offset = offset, .bytes = bytes, .stage = -1};
    if (h->kind == HOME_HOST || (h->kind == HOME_DEVICE && p->unified)) return r->at = h->data + offset, 0;
    pthread_mutex_lock(&f->lock);
    const int failed = take(f, r, e);
    pthread_mutex_unlock(&f->lock);
    return failed;
}

static void note_file(struct filler *f, struct disk *d) {
    for (int i = 0; i < f->files; i++)
        if (f->file[i] == d) return;
    ASSERT(f->files < 4, "%d files", f->files);
    f->file[f->files++] = d;
}

int filler_done(struct filler *f, const struct room *r, struct err *e) {
    struct pages *p = r->pages;
    const struct home *h = &p->home[r->page];
    int failed = 0;
    if (r->stage < 0) return 0;
    if (h->kind == HOME_FILE) failed = disk_write(p->disk, h->at + (int64_t)r->offset, r->at, r->bytes, e);
    pthread_mutex_lock(&f->lock);
    struct stage *s = &f->stage[r->stage];
    if (h->kind == HOME_FILE) note_file(f, p->disk);
    else {
        f->be->put(f->be->self, h->data + r->offset, r->at, r->bytes, Q_IN);
        s->copied = f->be->mark(f->be->self, Q_IN);
    }
    s->busy = 0;
    pthread_mutex_unlock(&f->lock);
    return failed;
}

void filler_drop(struct filler *f, const struct room *r) {
    if (r->stage < 0) return;
    pthread_mutex_lock(&f->lock);
    f->stage[r->stage].busy = 0;
    pthread_mutex_unlock(&f->lock);
}

int filler_copy(struct filler *f, struct pages *p, int64_t i, size_t offset, const void *from, size_t bytes, struct err *e) {
    for (size_t at = 0; at < bytes; at += FILL_PIECE) {
        const size_t n = bytes - at < FILL_PIECE ? bytes - at : FILL_PIECE;
        struct room r;
        if (filler_room(f, p, i, offset + at, n, &r, e)) return -1;
        memcpy(r.at, (const char *)from + at, n);
        if (filler_done(f, &r, e)) return -1;
    }
    return 0;
}

int filler_close(struct filler *f, struct err *e) {
    if (!f) return 0;
    int r = f->be->sync(f->be->self, e);
    for (int i = 0; !r && i < f->files; i++) r = disk_settle(f->file[i], e);
    if (f->block) f->be->release(f->be->self, AT_HOST, f->block);
    pthread_mutex_destroy(&f->lock);
    sys_free(f->stage), sys_free(f);
    return r;
}
