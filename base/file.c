/* base/file.c - see file.h */
#define _GNU_SOURCE
#include "base/file.h"
#include "base/sha1.h"
#include "base/sys.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Opening fails for what the user named (2) or for what the machine lacks (1). */
static int open_error(void) {
    return errno == EIO || errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOSPC ? ERR_RUN
                                                                                                    : ERR_INPUT;
}

static char *copy_path(const char *path, const char *tail, struct err *e) {
    size_t n = strlen(path);
    char *p = sys_grow(NULL, n + strlen(tail) + 1, "file name", e);
    if (p) memcpy(p, path, n), strcpy(p + n, tail);
    return p;
}

/* ---- reading ---- */

struct file *file_open(const char *path, struct err *e) {
    struct stat st;
    struct file *f = sys_alloc(sizeof *f, "open file", e);
    if (!f) return NULL;
    f->fd = -1;
    if (!(f->path = copy_path(path, "", e))) goto fail;
    if ((f->fd = sys_open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0)) < 0) {
        err_errno(e, open_error(), "cannot open %s", path);
        goto fail;
    }
    if (sys_fstat(f->fd, &st)) {
        err_errno(e, ERR_RUN, "cannot look at %s", path);
        goto fail;
    }
    if (!S_ISREG(st.st_mode)) {
        err_set(e, ERR_INPUT, "%s is %s, a regular file is needed", path,
                S_ISDIR(st.st_mode) ? "a directory" : "a pipe, socket or device");
        goto fail;
    }
    f->bytes = st.st_size;
    return f;
fail:
    file_close(f);
    return NULL;
}

int file_pread(const struct file *f, void *p, size_t n, int64_t offset, struct err *e) {
    for (size_t done = 0; done < n;) {
        ssize_t r = sys_pread(f->fd, (char *)p + done, n - done, offset + (int64_t)done);
        if (r < 0)
            return err_errno(e, ERR_RUN, "cannot read %zu bytes at offset %lld of %s", n, (long long)offset, f->path);
        if (r == 0)
            return err_set(e, ERR_INPUT, "%s ends at byte %lld, but %zu bytes at offset %lld are needed; is it cut off?",
                           f->path, (long long)(offset + (int64_t)done), n, (long long)offset);
        done += (size_t)r;
    }
    return 0;
}

void file_ahead(const struct file *f, int64_t offset, int64_t bytes) { sys_read_ahead(f->fd, offset, bytes); }

void file_close(struct file *f) {
    if (!f) return;
    if (f->fd >= 0) sys_close(f->fd);
    sys_free(f->path);
    sys_free(f);
}

int file_read_all(const char *path, int64_t max_bytes, char **text, size_t *n, struct err *e) {
    int rc = -1;
    char *p = NULL;
    struct file *f = file_open(path, e);
    if (!f) return -1;
    if (f->bytes > max_bytes) {
        err_set(e, ERR_INPUT, "%s has %lld bytes, more than the %lld expected of such a file", path,
                (long long)f->bytes, (long long)max_bytes);
        goto out;
    }
    size_t bytes = (size_t)f->bytes;
    if (!(p = sys_grow(NULL, bytes + 1, path, e)) || file_pread(f, p, bytes, 0, e)) goto out;
    p[bytes] = 0;
    *text = p, *n = bytes;
    p = NULL, rc = 0;
out:
    sys_free(p);
    file_close(f);
    return rc;
}

/* ---- writing ---- */

/* So many bytes go to the disk at a time while more are written: the sync at the end then finds little left to do. */
static const int64_t BEHIND = 32 << 20;

struct out {
    int fd;
    int64_t bytes, behind; /* written; of which the system was asked to bring to the disk */
    char *path, *temporary;
    struct sha1 *sha;      /* of what was written, or NULL */
};

static void out_free(struct out *o) {
    sys_free(o->path);
    sys_free(o->temporary);
    sys_free(o->sha);
    sys_free(o);
}

struct out *out_open(const char *path, struct err *e) {
    struct stat st;
    char tail[40];
    snprintf(tail, sizeof tail, ".tmp.%ld", (long)getpid());
    if (!sys_stat(path, &st) && !S_ISREG(st.st_mode)) {
        err_set(e, ERR_INPUT, "cannot write %s: it exists and is not a regular file", path);
        return NULL;
    }
    struct out *o = sys_alloc(sizeof *o, "output file", e);
    if (!o) return NULL;
    if (!(o->path = copy_path(path, "", e)) || !(o->temporary = copy_path(path, tail, e))) goto fail;
    const int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW;
    o->fd = sys_open(o->temporary, flags, 0666);
    if (o->fd < 0 && errno == EEXIST) { /* of a killed process that had our number */
        sys_unlink(o->temporary);
        o->fd = sys_open(o->temporary, flags, 0666);
    }
    if (o->fd >= 0) return o;
    err_errno(e, open_error(), "cannot create %s", o->temporary);
fail:
    out_free(o);
    return NULL;
}

/* All of p[0..n), however often the system stops half way. Returns the bytes written; fewer than n: errno says why. */
static size_t write_fully(int fd, const char *p, size_t n) {
    size_t done = 0;
    while (done < n) {
        ssize_t r = sys_write(fd, p + done, n - done);
        if (r == 0) errno = ENOSPC;
        if (r <= 0) break;
        done += (size_t)r;
    }
    return done;
}

int out_write(struct out *o, const void *p, size_t n, struct err *e) {
    size_t done = write_fully(o->fd, p, n);
    o->bytes += (int64_t)done;
    if (o->sha) sha1_add(o->sha, p, done);
    if (o->bytes - o->behind >= BEHIND) sys_write_behind(o->fd, o->behind, o->bytes - o->behind), o->behind = o->bytes;
    if (done == n) return 0;
    return err_errno(e, ERR_RUN, "cannot write %zu bytes at offset %lld of %s", n - done, (long long)o->bytes, o->path);
}

int out_reserve(struct out *o, int64_t bytes, struct err *e) {
    if (bytes <= o->bytes || !sys_reserve(o->fd, bytes)) return 0;
    int64_t room;
    if (errno == EOPNOTSUPP || errno == ENOSYS) { /* this file system cannot promise; ask what it has */
        if (sys_froom(o->fd, &room) || room >= bytes - o->bytes) return 0;
        errno = ENOSPC;
    }
    return err_errno(e, ERR_RUN, "cannot write %s: it needs %lld bytes", o->path, (long long)bytes);
}

int64_t out_bytes(const struct out *o) { return o->bytes; }

int out_hash(struct out *o, struct err *e) {
    ASSERT(!o->bytes && !o->sha, "%s has %lld bytes", o->path, (long long)o->bytes);
    if (!(o->sha = sys_alloc(sizeof *o->sha, "checksum of a file", e))) return -1;
    sha1_init(o->sha);
    return 0;
}

void out_digest(struct out *o, char hex[41]) {
    ASSERT(o->sha, "%s is not hashed", o->path);
    sha1_hex(o->sha, hex);
}

/* The folder of a path: "a/b" -> "a", "b" -> ".", "/b" -> "/". */
static char *parent_of(const char *path, struct err *e) {
    const char *slash = strrchr(path, '/');
    if (!slash) return copy_path(".", "", e);
    char *p = copy_path(path, "", e);
    if (p) p[slash == path ? 1 : slash - path] = 0;
    return p;
}

int out_sync(struct out *o, struct err *e) {
    if (!sys_fsync(o->fd)) return 0;
    return err_errno(e, ERR_RUN, "cannot write the %lld bytes of %s to the disk", (long long)o->bytes, o->path);
}

int out_commit(struct out *o, struct err *e) {
    int rc = -1, fd = o->fd;
    char *parent = parent_of(o->path, e);
    if (!parent || out_sync(o, e)) goto out;
    o->fd = -1;
    if (sys_close(fd)) {
        err_errno(e, ERR_RUN, "cannot close %s after %lld bytes", o->temporary, (long long)o->bytes);
        goto out;
    }
    if (sys_rename(o->temporary, o->path)) {
        err_errno(e, ERR_RUN, "cannot rename %s to %s", o->temporary, o->path);
        goto out;
    }
    sys_free(o->temporary);
    o->temporary = NULL;
    rc = dir_sync(parent, e);
out:
    sys_free(parent);
    out_abort(o);
    return rc;
}

void out_abort(struct out *o) {
    if (!o) return;
    if (o->fd >= 0) sys_close(o->fd);
    if (o->temporary) sys_unlink(o->temporary);
    out_free(o);
}

int file_write_all(const char *path, const void *p, size_t n, struct err *e) {
    struct out *o = out_open(path, e);
    if (!o) return -1;
    if (out_write(o, p, n, e)) {
        out_abort(o);
        return -1;
    }
    return out_commit(o, e);
}

int file_append_line(const char *path, const char *line, struct err *e) {
    struct stat st;
    int rc = -1, fd = -1;
    size_t n = strlen(line) + 1;
    char *text = copy_path(line, "\n", e);
    if (!text) return -1;
    if ((fd = sys_open(path, O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK | O_NOCTTY, 0666)) < 0)
        err_errno(e, open_error(), "cannot open %s", path);
    else if (sys_fstat(fd, &st) || !S_ISREG(st.st_mode))
        err_set(e, ERR_INPUT, "cannot append to %s: it is not a regular file", path);
    else if (write_fully(fd, text, n) != n)
        err_errno(e, ERR_RUN, "cannot append %zu bytes to %s", n, path);
    else
        rc = 0;
    if (fd >= 0 && sys_close(fd) && rc == 0) rc = err_errno(e, ERR_RUN, "cannot close %s", path);
    sys_free(text);
    return rc;
}

int file_copy(const char *from, const char *to, struct err *e) {
    enum { CHUNK = 1 << 20 };
    int rc = -1;
    struct out *o = NULL;
    char *buf = sys_alloc(CHUNK, "copy buffer", e);
    struct file *f = buf ? file_open(from, e) : NULL;
    if (!f || !(o = out_open(to, e)) || out_reserve(o, f->bytes, e)) goto out;
    for (int64_t at = 0; at < f->bytes;) {
        size_t n = f->bytes - at < CHUNK ? (size_t)(f->bytes - at) : CHUNK;
        if (file_pread(f, buf, n, at, e) || out_write(o, buf, n, e)) goto out;
        at += (int64_t)n;
    }
    rc = out_commit(o, e);
    o = NULL;
out:
    out_abort(o);
    file_close(f);
    sys_free(buf);
    return rc;
}

/* ---- paths and directories ---- */

/* A broken disk is not "nothing there": it counts as there, so that who asks opens it and hears what is wrong. */
static int broken(void) { return errno == EIO || errno == ENOMEM || errno == ESTALE; }

int path_exists(const char *path) {
    struct stat st;
    return !sys_stat(path, &st) || broken();
}

int path_is_dir(const char *path) {
    struct stat st;
    return sys_stat(path, &st) ? broken() : S_ISDIR(st.st_mode);
}

int path_is_file(const char *path) {
    struct stat st;
    return sys_stat(path, &st) ? broken() : S_ISREG(st.st_mode);
}

int64_t path_bytes(const char *path) {
    struct stat st;
    return sys_stat(path, &st) ? -1 : st.st_size;
}

int path_is_same(const char *a, const char *b) {
    struct stat x, y;
    return !sys_stat(a, &x) && !sys_stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

int path_join(char *buf, size_t size, const char *dir, const char *name, struct err *e) {
    const char *slash = !*dir || text_ends(dir, "/") ? "" : "/";
    int n = snprintf(buf, size, "%s%s%s", dir, slash, name);
    if (n >= 0 && (size_t)n < size) return 0;
    return err_set(e, ERR_INPUT, "the path %.100s.../%.100s has more than %zu bytes", dir, name, size - 1);
}

int path_is_basename(const char *name) {
    if (!*name || !strcmp(name, ".") || !strcmp(name, "..")) return 0;
    for (; *name; name++)
        if ((unsigned char)*name < 32 || *name == 127 || *name == '/') return 0;
    return 1;
}

int dir_make(const char *path, struct err *e) {
    int rc = -1;
    char *p = copy_path(path, "", e);
    if (!p) return -1;
    for (char *end = p + (*p == '/');; *end++ = '/') {
        end += strcspn(end, "/");
        int last = !*end;
        *end = 0;
        if (sys_mkdir(p, 0777) && !(errno == EEXIST && path_is_dir(p))) {
            if (errno == EEXIST) err_set(e, open_error(), "cannot make the directory %s: a file has that name; give another folder", p);
            else err_errno(e, open_error(), "cannot make the directory %s", p);
            break;
        }
        if (last) {
            rc = 0;
            break;
        }
    }
    sys_free(p);
    return rc;
}

int dir_sync(const char *path, struct err *e) {
    int fd = sys_open(path, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0) return err_errno(e, ERR_RUN, "cannot open the directory %s", path);
    int rc = 0;
    if (sys_fsync(fd) && errno != EINVAL) /* EINVAL: this file system has no such thing */
        rc = err_errno(e, ERR_RUN, "cannot write the directory %s to the disk", path);
    sys_close(fd);
    return rc;
}

/* Removes `name` in the directory `at`, whatever it is; `path` is for the message. A link is removed, not followed. */
static int remove_at(int at, const char *name, const char *path, struct err *e) {
    int rc = -1, fd = sys_openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) {
        if (errno == ENOENT || !sys_unlinkat(at, name, 0)) return 0;
        return err_errno(e, ERR_RUN, "cannot remove %s under %s", name, path);
    }
    DIR *d = sys_opendir(fd);
    if (!d) return err_errno(e, ERR_RUN, "cannot read the directory %s under %s", name, path);
    for (const char *entry; (entry = sys_readdir(d));)
        if (remove_at(fd, entry, path, e)) goto out;
    if (errno) err_errno(e, ERR_RUN, "cannot read the directory %s under %s", name, path);
    else if (sys_unlinkat(at, name, AT_REMOVEDIR)) err_errno(e, ERR_RUN, "cannot remove %s under %s", name, path);
    else rc = 0;
out:
    sys_closedir(d);
    return rc;
}

int dir_remove(const char *path, struct err *e) {
    char *p = copy_path(path, "", e);
    if (!p) return -1;
    size_t n = strlen(p);
    while (n > 1 && p[n - 1] == '/') p[--n] = 0; /* "link/" would follow the link */
    int rc = remove_at(AT_FDCWD, p, path, e);
    sys_free(p);
    return rc;
}

static int by_bytes(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

int dir_list(const char *path, char ***names, int *count, struct err *e) {
    char **list = NULL;
    int n = 0, cap = 0;
    int fd = sys_open(path, O_RDONLY | O_DIRECTORY | O_NONBLOCK, 0);
    DIR *d = fd < 0 ? NULL : sys_opendir(fd);
    if (!d) return err_errno(e, open_error(), "cannot read the directory %s", path);
    for (const char *entry; (entry = sys_readdir(d));) {
        if (n == cap) {
            cap = cap ? cap * 2 : 16;
            char **more = sys_grow(list, (size_t)cap * sizeof *list, "list of files", e);
            if (!more) goto fail;
            list = more;
        }
        if (!(list[n] = copy_path(entry, "", e))) goto fail;
        n++;
    }
    if (errno) {
        err_errno(e, ERR_RUN, "cannot read the directory %s", path);
        goto fail;
    }
    if (n) qsort(list, (size_t)n, sizeof *list, by_bytes);
    sys_closedir(d);
    *names = list, *count = n;
    return 0;
fail:
    sys_closedir(d);
    dir_list_free(list, n);
    return -1;
}

void dir_list_free(char **names, int count) {
    for (int i = 0; i < count; i++) sys_free(names[i]);
    sys_free(names);
}

int64_t dir_free_bytes(const char *path) {
    int64_t room;
    return sys_room(path, &room) ? -1 : room;
}
