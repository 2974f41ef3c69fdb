/* base/sys.c - see sys.h */
#define _GNU_SOURCE
#include "base/sys.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif

struct sys_fault sys_fault;

void sys_fault_env(void) {
    const char *s = getenv("QLORA_FAULT");
    if (!s || !strncmp(s, "cuda:", 5)) return;
    char error[16] = "", sticky[16] = "";
    long long at = 0;
    if (sscanf(s, "%15[a-z]:%lld:%15[A-Z]:%15s", sys_fault.kinds, &at, error, sticky) < 3) return;
    static const struct { const char *name; int value; } names[] = {
        {"ENOSPC", ENOSPC}, {"EIO", EIO}, {"EINTR", EINTR}, {"ENOMEM", ENOMEM}, {"SHORT", SYS_SHORT}, {"KILL", SYS_KILL}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(names[i].name, error)) sys_fault.error = names[i].value;
    sys_fault.at = at;
    sys_fault.sticky = !strcmp(sticky, "sticky");
}

/* How many of n bytes this call may move: all, half of them (SYS_SHORT), or -1 and errno when it must fail. */
static ssize_t allowed(char kind, size_t n) {
    if (!sys_fault.at || !strchr(sys_fault.kinds, kind)) return (ssize_t)n;
    int64_t call = __atomic_add_fetch(&sys_fault.calls, 1, __ATOMIC_RELAXED);
    int sticky = sys_fault.sticky && sys_fault.error != EINTR; /* EINTR is retried: for ever, if it stayed */
    if (sticky ? call < sys_fault.at : call != sys_fault.at) return (ssize_t)n;
    if (sys_fault.error == SYS_KILL) raise(SIGKILL);
    if (sys_fault.error == SYS_SHORT) return (ssize_t)(n > 1 ? n / 2 : n);
    errno = sys_fault.error;
    return -1;
}

static int faulty(char kind) { return allowed(kind, 0) < 0; }

#define RETRY(result, call)                                                                                            \
    do (result) = (call);                                                                                              \
    while ((result) < 0 && errno == EINTR)

void *sys_alloc(size_t bytes, const char *what, struct err *e) {
    void *p = NULL;
    size_t want = (bytes + 63) / 64 * 64;
    if (want < bytes || faulty('a') || posix_memalign(&p, 64, want ? want : 64)) {
        err_set(e, ERR_RUN, "out of memory: %s needs %zu bytes", what, bytes);
        return NULL;
    }
    memset(p, 0, want ? want : 64);
    return p;
}

void *sys_alloc_array(size_t count, size_t size, const char *what, struct err *e) {
    if (size && count > (SIZE_MAX - 64) / size) {
        err_set(e, ERR_RUN, "out of memory: %s needs %zu items of %zu bytes", what, count, size);
        return NULL;
    }
    return sys_alloc(count * size, what, e);
}

void *sys_grow(void *p, size_t bytes, const char *what, struct err *e) {
    void *q = faulty('a') ? NULL : realloc(p, bytes ? bytes : 1);
    if (!q) err_set(e, ERR_RUN, "out of memory: %s needs %zu bytes", what, bytes);
    return q;
}

void sys_free(void *p) { free(p); }

int sys_open(const char *path, int flags, int mode) {
    int fd;
    RETRY(fd, faulty('o') ? -1 : open(path, flags | O_CLOEXEC, mode));
    return fd;
}

ssize_t sys_read(int fd, void *p, size_t n) {
    ssize_t r, m;
    RETRY(r, (m = allowed('r', n)) < 0 ? -1 : read(fd, p, (size_t)m));
    return r;
}

ssize_t sys_pread(int fd, void *p, size_t n, int64_t offset) {
    ssize_t r, m;
    RETRY(r, (m = allowed('r', n)) < 0 ? -1 : pread(fd, p, (size_t)m, (off_t)offset));
    return r;
}

ssize_t sys_write(int fd, const void *p, size_t n) {
    ssize_t r, m;
    RETRY(r, (m = allowed('w', n)) < 0 ? -1 : write(fd, p, (size_t)m));
    return r;
}

int sys_reserve(int fd, int64_t bytes) {
    int r;
    RETRY(r, faulty('w') ? -1 : fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes));
    return r;
}

void sys_read_ahead(int fd, int64_t offset, int64_t bytes) { (void)posix_fadvise(fd, (off_t)offset, (off_t)bytes, POSIX_FADV_WILLNEED); }

void sys_write_behind(int fd, int64_t offset, int64_t bytes) {
    (void)sync_file_range(fd, (off_t)offset, (off_t)bytes, SYNC_FILE_RANGE_WRITE); /* where it cannot be done, fsync has more to do */
}

int sys_fsync(int fd) {
    int r;
    RETRY(r, faulty('s') ? -1 : fsync(fd));
    return r;
}

int sys_close(int fd) { /* never retried: Linux has closed it, whatever it says */
    int bad = faulty('c');
    int r = close(fd);
    return bad || (r < 0 && errno != EINTR) ? -1 : 0;
}

int sys_rename(const char *from, const char *to) { return faulty('n') ? -1 : rename(from, to); }
int sys_unlink(const char *path) { return faulty('u') ? -1 : unlink(path); }
int sys_unlinkat(int dir_fd, const char *name, int flags) { return faulty('u') ? -1 : unlinkat(dir_fd, name, flags); }
int sys_mkdir(const char *path, int mode) { return faulty('m') ? -1 : mkdir(path, (mode_t)mode); }

double sys_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int64_t sys_free_memory(void) {
    int64_t kib = 0;
    char line[200];
    FILE *f = fopen("/proc/meminfo", "re");
    if (!f) return 0;
    while (fgets(line, sizeof line, f)) {
        long long v;
        if (sscanf(line, "MemAvailable: %lld kB", &v) == 1) kib = v;
    }
    fclose(f);
    return kib * 1024;
}

int64_t sys_resident_bytes(void) {
    long long total = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f) return 0;
    if (fscanf(f, "%lld %lld", &total, &resident) != 2) resident = 0;
    fclose(f);
    return resident * sysconf(_SC_PAGESIZE);
}

int sys_threads(void) {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}
