/* datasets/store.c - rows of token ids, appended once and then read by any number of threads.
 *
 * Up to data_config.memory_limit they stay in memory; beyond it everything moves to a temporary file that has
 * no name any more (so it cannot be left behind) and is mapped read-only at the end. A row is struct row,
 * ids, labels and, with ROW_PACKED, positions and documents, all int32; its position counts int32 from the
 * start. */
#define _GNU_SOURCE
#include "base/sys.h"
#include "datasets/datasets_internal.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    ROW_WORDS = sizeof(struct row) / sizeof(int32_t),
    FLUSH_WORDS = 2 << 20, /* 8 MiB a write */
    /* A fault maps so many bytes around it (fault_around_bytes of the kernel), as far as they are in its cache. */
    WINDOW_BYTES = 64 << 10,
    WINDOWS = 256 /* that may stay mapped: 16 MiB */
};
static const int64_t default_limit = 64 << 20;

struct store {
    int32_t *mem;     /* before sealing: the rows that are not in the file */
    size_t used, cap; /* int32 */
    int64_t limit;    /* int32; FLUSH_WORDS once there is a file */
    int fd;
    int64_t filed;      /* int32 in the file */
    const int32_t *map; /* of the file, after sealing */
    uintptr_t window[WINDOWS]; /* of the map that were read last, as address / WINDOW_BYTES; a ring */
    int newest;
    const char *dir;
    int refs;
};

struct store *store_open(const struct data_config *c, struct err *e) {
    struct store *s = sys_alloc(sizeof *s, "sequences", e);
    if (!s) return NULL;
    const char *tmp = getenv("TMPDIR");
    s->dir = c->temp_dir ? c->temp_dir : tmp && *tmp ? tmp : "/tmp";
    s->limit = (c->memory_limit ? c->memory_limit : default_limit) / (int64_t)sizeof(int32_t);
    s->fd = -1;
    s->refs = 1;
    return s;
}

struct store *store_ref(struct store *s) {
    s->refs++;
    return s;
}

void store_unref(struct store *s) {
    if (!s || --s->refs) return;
    if (s->map) sys_unmap(s->map, (size_t)s->filed * sizeof *s->map);
    if (s->fd >= 0) sys_close(s->fd);
    sys_free(s->mem);
    sys_free(s);
}

static int open_file(struct store *s, struct err *e) {
    char path[4200];
    for (int k = 0; k < 100 && s->fd < 0; k++) {
        int n = snprintf(path, sizeof path, "%s/qlora-data-%ld-%d", s->dir, (long)getpid(), k);
        if (n < 0 || (size_t)n >= sizeof path)
            errno = ENAMETOOLONG;
        else
            s->fd = sys_open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
        if (s->fd < 0 && errno != EEXIST) break;
    }
    if (s->fd < 0)
        return err_errno(
            e, ERR_RUN,
            "cannot make a temporary file for sequences in %s; choose another folder with --temp_dir",
            s->dir);
    if (sys_unlink(path))
        return err_errno(e, ERR_RUN, "cannot take the name off the temporary file %s", path);
    return 0;
}

static int flush(struct store *s, struct err *e) {
    const char *p = (const char *)s->mem;
    for (size_t left = s->used * sizeof *s->mem; left;) {
        ssize_t n = sys_write(s->fd, p, left);
        if (n == 0) errno = ENOSPC;
        if (n <= 0)
            return err_errno(
                e, ERR_RUN,
                "cannot write sequences behind byte %lld of the temporary file in %s (choose another "
                "folder with --temp_dir)",
                (long long)s->filed * 4, s->dir);
        p += n, left -= (size_t)n;
    }
    s->filed += (int64_t)s->used;
    s->used = 0;
    return 0;
}

static int make_room(struct store *s, size_t words, struct err *e) {
    if ((int64_t)(s->used + words) > s->limit && s->used) {
        if (s->fd < 0 && open_file(s, e)) return -1;
        if (flush(s, e)) return -1;
        if (s->limit > FLUSH_WORDS) {
            s->limit = FLUSH_WORDS;
            sys_free(s->mem);
            s->mem = NULL, s->cap = 0;
        }
    }
    if (s->used + words <= s->cap) return 0;
    size_t cap = s->used + words + s->cap / 2 + 512;
    if ((int64_t)cap > s->limit && (int64_t)(s->used + words) <= s->limit) cap = (size_t)s->limit;
    int32_t *p = cap <= SIZE_MAX / sizeof *p ? sys_grow(s->mem, cap * sizeof *p, "sequences", e) : NULL;
    if (!p) return -1;
    s->mem = p, s->cap = cap;
    return 0;
}

int store_add(struct store *s, const struct row *row, const int32_t *ids, const int32_t *labels,
              const int32_t *positions, const int32_t *documents, int64_t *at, struct err *e) {
    const int32_t *column[4] = {ids, labels, positions, documents};
    const int columns = row->flags & ROW_PACKED ? 4 : 2;
    const size_t n = (size_t)row->n;
    if (make_room(s, ROW_WORDS + (size_t)columns * n, e)) return -1;
    *at = s->filed + (int64_t)s->used;
    memcpy(s->mem + s->used, row, sizeof *row);
    s->used += ROW_WORDS;
    for (int k = 0; k < columns && n; k++, s->used += n) memcpy(s->mem + s->used, column[k], n * sizeof *ids);
    return 0;
}

int store_seal(struct store *s, struct err *e) {
    if (s->fd < 0) return 0;
    if (flush(s, e)) return -1;
    sys_free(s->mem);
    s->mem = NULL, s->cap = 0;
    const int32_t *p = sys_map(s->fd, (size_t)s->filed * sizeof *p);
    if (!p)
        return err_errno(e, ERR_RUN, "cannot map the temporary file of sequences in %s", s->dir);
    s->map = p;
    return 0;
}

const struct row *store_row(const struct store *s, int64_t at) {
    const int64_t end = s->map ? s->filed : (int64_t)s->used;
    ASSERT(at >= 0 && at + ROW_WORDS <= end, "row at %lld of %lld", (long long)at, (long long)end);
    return (const struct row *)(const void *)((s->map ? s->map : s->mem) + at);
}

void store_walked(struct store *s, const struct row *r) {
    if (!s->map) return;
    const size_t columns = r->flags & ROW_PACKED ? 4 : 2;
    const uintptr_t map = (uintptr_t)s->map, map_end = map + (size_t)s->filed * sizeof *s->map;
    const uintptr_t end = (uintptr_t)r + sizeof *r + (size_t)r->n * columns * sizeof(int32_t);
    for (uintptr_t w = (uintptr_t)r / WINDOW_BYTES; w <= (end - 1) / WINDOW_BYTES; w++) {
        if (w == s->window[s->newest]) continue;
        s->newest = (s->newest + 1) % WINDOWS;
        const uintptr_t oldest = s->window[s->newest] * WINDOW_BYTES, from = oldest > map ? oldest : map;
        const uintptr_t to = oldest + WINDOW_BYTES < map_end ? oldest + WINDOW_BYTES : map_end;
        if (oldest) sys_forget((const void *)from, to - from);
        s->window[s->newest] = w;
    }
}
