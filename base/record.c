/* base/record.c - see record.h. It writes behind the seam: its own calls are neither counted nor made to fail. */
#define _GNU_SOURCE
#include "base/record.h"
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int record_on;
static FILE *diary;

void record_env(void) {
    const char *path = getenv("QLORA_RECORD");
    if (path && (diary = fopen(path, "we"))) record_on = 1;
}

/* Where a descriptor or a name below a directory's descriptor points. */
static const char *place(int fd, const char *name, char to[PATH_MAX * 2]) {
    char link[40], folder[PATH_MAX] = "";
    if (name && name[0] == '/') return name;
    snprintf(link, sizeof link, fd == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, folder, sizeof folder - 1);
    folder[n > 0 ? n : 0] = 0;
    snprintf(to, PATH_MAX * 2, "%s%s%s", folder, name ? "/" : "", name ? name : "");
    return to;
}

static void entry(const void *bytes, size_t n, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    flockfile(diary);
    vfprintf(diary, fmt, ap);
    if (n) fwrite(bytes, 1, n, diary);
    fflush(diary); /* a killed process keeps its diary */
    funlockfile(diary);
    va_end(ap);
}

void record_open(int fd, const char *path, int flags) {
    char at[PATH_MAX * 2];
    if ((flags & O_ACCMODE) != O_RDONLY) entry(NULL, 0, "O %d %d %s\n", fd, (flags & (O_EXCL | O_TRUNC)) != 0, place(AT_FDCWD, path, at));
}

void record_write(int fd, const void *p, size_t n) { entry(p, n, "W %d %zu\n", fd, n); }

void record_sync(int fd) {
    char at[PATH_MAX * 2];
    entry(NULL, 0, "S %s\n", place(fd, NULL, at));
}

void record_rename(const char *from, const char *to) {
    char a[PATH_MAX * 2], b[PATH_MAX * 2];
    entry(NULL, 0, "N %s\t%s\n", place(AT_FDCWD, from, a), place(AT_FDCWD, to, b));
}

void record_unlink(int dir_fd, const char *name) {
    char at[PATH_MAX * 2];
    entry(NULL, 0, "U %s\n", place(dir_fd, name, at));
}

void record_mkdir(const char *path) {
    char at[PATH_MAX * 2];
    entry(NULL, 0, "M %s\n", place(AT_FDCWD, path, at));
}
