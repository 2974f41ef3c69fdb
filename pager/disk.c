/* pager/disk.c - the file that pages live in. It has no name: it goes when the process does, however that ends. */
#define _GNU_SOURCE
#include "base/file.h"
#include "base/log.h"
#include "base/sys.h"
#include "pager/pager_internal.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct disk {
    int fd, direct;      /* direct: the same file past the page cache; -1 where that is refused */
    char dir[1024];
    pthread_mutex_t lock; /* of all that follows */
    pthread_cond_t work, done;
    pthread_t thread[DISK_THREADS];
    int threads, stop;
    struct disk_job *first, *last;
    struct err failure;
};

static int read_error(const struct disk *d, int64_t at, ssize_t got, struct err *e) {
    if (!got)
        return err_set(e, ERR_RUN, "the page file in %s ends at offset %lld: something cut it while the run used it", d->dir,
                       (long long)at);
    return err_errno(e, ERR_RUN, "cannot read the page file in %s at offset %lld; give a folder on another disk by --page_dir",
                     d->dir, (long long)at);
}

/* A short direct read goes on where blocks begin, and through the page cache where it made no headway. */
static int read_at(struct disk *d, int64_t at, unsigned char *to, size_t bytes, int direct, struct err *e) {
    for (size_t n = 0; n < bytes;) {
        ssize_t r = direct ? sys_pread(d->direct, to + n, bytes - n, at + (int64_t)n) : -1;
        if (direct && r > 0) r -= r % DISK_ALIGN;
        if (!direct || r == 0 || (r < 0 && errno == EINVAL)) {
            direct = 0;
            r = sys_pread(d->fd, to + n, bytes - n, at + (int64_t)n);
        }
        if (r <= 0) return read_error(d, at + (int64_t)n, r, e);
        n += (size_t)r;
    }
    if (!direct) (void)posix_fadvise(d->fd, at, (off_t)bytes, POSIX_FADV_DONTNEED);
    return 0;
}

static void *serve(void *context) {
    struct disk *d = context;
    pthread_mutex_lock(&d->lock);
    for (;;) {
        while (!d->first && !d->stop) pthread_cond_wait(&d->work, &d->lock);
        if (d->stop) break;
        struct disk_job *j = d->first;
        const size_t from = j->taken, n = j->bytes - from < DISK_PIECE ? j->bytes - from : DISK_PIECE;
        j->taken += n;
        if (j->taken == j->bytes) d->first = j->next;
        pthread_mutex_unlock(&d->lock);
        struct err e = {0};
        const int failed = read_at(d, j->at + (int64_t)from, j->to + from, n, d->direct >= 0, &e);
        pthread_mutex_lock(&d->lock);
        if (failed && !d->failure.code) d->failure = e;
        if (!--j->left) pthread_cond_broadcast(&d->done);
    }
    pthread_mutex_unlock(&d->lock);
    return NULL;
}

static int no_room(const struct disk *d, int64_t bytes, const char *what, struct err *e) {
    char need[24], have[24];
    return err_set(e, ERR_RUN,
                   "%s need %s of disk in %s, where %s are free; give a folder on a larger disk by --page_dir, or more memory by "
                   "--host_memory",
                   what, text_bytes(need, bytes), d->dir, text_bytes(have, dir_free_bytes(d->dir)));
}

/* Opens the file twice and takes its name away. */
static int create(struct disk *d, struct err *e) {
    char path[1100];
    snprintf(path, sizeof path, "%s/.tmp-pages-%d-%lld", d->dir, (int)getpid(), (long long)(1e9 * sys_seconds()));
    if ((d->fd = sys_open(path, O_RDWR | O_CREAT | O_EXCL, 0600)) < 0)
        return err_errno(e, ERR_RUN, "cannot make a page file in %s; give another folder by --page_dir", d->dir);
    d->direct = sys_open(path, O_RDONLY | O_DIRECT, 0);
    return sys_unlink(path) ? err_errno(e, ERR_RUN, "cannot remove %s", path) : 0;
}

static int start(struct disk *d, struct err *e) {
    for (; d->threads < DISK_THREADS; d->threads++)
        if (pthread_create(&d->thread[d->threads], NULL, serve, d))
            return err_set(e, ERR_RUN, "no thread to read the page file with: raise the limit of processes (ulimit -u)");
    return 0;
}

struct disk *disk_open(const char *dir, int64_t bytes, const char *what, struct err *e) {
    struct disk *d = sys_alloc(sizeof *d, "page file", e);
    if (!d) return NULL;
    d->fd = d->direct = -1;
    pthread_mutex_init(&d->lock, NULL), pthread_cond_init(&d->work, NULL), pthread_cond_init(&d->done, NULL);
    if ((size_t)snprintf(d->dir, sizeof d->dir, "%s", dir) >= sizeof d->dir) {
        err_set(e, ERR_INPUT, "the path of --page_dir is too long");
        goto fail;
    }
    const int64_t left = dir_free_bytes(dir);
    if (left >= 0 && left < bytes) {
        no_room(d, bytes, what, e);
        goto fail;
    }
    if (create(d, e)) goto fail;
    if (sys_reserve(d->fd, bytes) && errno == ENOSPC) { /* others: the file system cannot, and will say so when it is full */
        no_room(d, bytes, what, e);
        goto fail;
    }
    if (disk_write(d, bytes - 1, "", 1, e) || start(d, e)) goto fail;
    return d;
fail:
    disk_close(d);
    return NULL;
}

void disk_close(struct disk *d) {
    if (!d) return;
    pthread_mutex_lock(&d->lock);
    d->stop = 1;
    pthread_cond_broadcast(&d->work);
    pthread_mutex_unlock(&d->lock);
    for (int i = 0; i < d->threads; i++) pthread_join(d->thread[i], NULL);
    if (d->fd >= 0) sys_close(d->fd);
    if (d->direct >= 0) sys_close(d->direct);
    pthread_mutex_destroy(&d->lock), pthread_cond_destroy(&d->work), pthread_cond_destroy(&d->done);
    sys_free(d);
}

int disk_write(struct disk *d, int64_t at, const void *from, size_t bytes, struct err *e) {
    for (size_t n = 0; n < bytes;) {
        ssize_t r = sys_pwrite(d->fd, (const char *)from + n, bytes - n, at + (int64_t)n);
        if (r <= 0)
            return err_errno(e, ERR_RUN,
                             "cannot write the page file in %s at offset %lld; give a folder on another disk by --page_dir",
                             d->dir, (long long)at + (long long)n);
        n += (size_t)r;
    }
    return 0;
}

int disk_read(struct disk *d, int64_t at, void *to, size_t bytes, struct err *e) { return read_at(d, at, to, bytes, 0, e); }

int disk_settle(struct disk *d, struct err *e) {
    if (sys_fsync(d->fd))
        return err_errno(e, ERR_RUN, "cannot write the page file in %s to the disk; give a folder on another disk by --page_dir",
                         d->dir);
    (void)posix_fadvise(d->fd, 0, 0, POSIX_FADV_DONTNEED);
    return 0;
}

void disk_start(struct disk *d, struct disk_job *j) {
    ASSERT(!j->left && j->bytes && !((uintptr_t)j->to % DISK_ALIGN) && !(j->at % DISK_ALIGN) && !(j->bytes % DISK_ALIGN),
           "%zu bytes at %lld", j->bytes, (long long)j->at);
    pthread_mutex_lock(&d->lock);
    j->taken = 0, j->next = NULL, j->left = (int)((j->bytes + DISK_PIECE - 1) / DISK_PIECE);
    if (d->first) d->last->next = j;
    else d->first = j;
    d->last = j;
    pthread_cond_broadcast(&d->work);
    pthread_mutex_unlock(&d->lock);
}

int disk_ready(struct disk *d, const struct disk_job *j) {
    pthread_mutex_lock(&d->lock);
    const int ready = !j->left;
    pthread_mutex_unlock(&d->lock);
    return ready;
}

void disk_wait(struct disk *d, const struct disk_job *j) {
    pthread_mutex_lock(&d->lock);
    while (j->left) pthread_cond_wait(&d->done, &d->lock);
    pthread_mutex_unlock(&d->lock);
}

int disk_failed(struct disk *d, struct err *e) {
    pthread_mutex_lock(&d->lock);
    const struct err failure = d->failure;
    pthread_mutex_unlock(&d->lock);
    return failure.code ? err_set(e, failure.code, "%s", failure.text) : 0;
}

double pages_disk_rate(const char *dir, struct err *e) {
    const size_t bytes = 64 << 20;
    unsigned char *raw = sys_alloc(bytes + DISK_ALIGN, "a block to measure the disk with", e),
                  *x = raw + DISK_ALIGN - (uintptr_t)raw % DISK_ALIGN;
    struct disk *d = raw ? disk_open(dir, (int64_t)bytes, "pages", e) : NULL;
    double rate = 0;
    uint64_t s = 88172645463325252u; /* a file system may press or leave out zeros */
    for (size_t i = 0; d && i < bytes; i += sizeof s) s ^= s << 13, s ^= s >> 7, s ^= s << 17, memcpy(x + i, &s, sizeof s);
    if (d && !disk_write(d, 0, x, bytes, e) && !disk_settle(d, e)) {
        struct disk_job j = {.to = x, .bytes = bytes};
        const double start_time = sys_seconds();
        disk_start(d, &j), disk_wait(d, &j);
        if (!disk_failed(d, e)) rate = (double)bytes / (sys_seconds() - start_time);
    }
    disk_close(d);
    sys_free(raw);
    return rate;
}
