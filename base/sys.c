/* base/sys.c - see sys.h */
#define _GNU_SOURCE
#include "base/sys.h"
#include "base/record.h"
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif

struct sys_fault sys_fault;

void sys_fault_env(void) {
    const char *s = getenv("QLORA_FAULT");
    if (!s || !strncmp(s, "cuda:", 5)) return;
    static const struct { const char *name; int value; } names[] = {
        {"ENOSPC", ENOSPC}, {"EIO", EIO}, {"EINTR", EINTR}, {"ENOMEM", ENOMEM}, {"EMFILE", EMFILE}, {"SHORT", SYS_SHORT}, {"KILL", SYS_KILL}};
    char kinds[16], error[16] = "", sticky[16] = "";
    long long at = -1;
    int known = 0;
    if (sscanf(s, "%15[a-z]:%lld:%15[A-Z]:%15s", kinds, &at, error, sticky) >= 2)
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            if (!strcmp(names[i].name, error)) sys_fault.error = names[i].value, known = 1;
    if (at < 0 || (at && !known) || (*sticky && strcmp(sticky, "sticky"))) {
        fprintf(stderr, "warning: QLORA_FAULT=%s is not understood and does nothing (base/sys.h)\n", s);
        return;
    }
    memcpy(sys_fault.kinds, kinds, sizeof kinds);
    sys_fault.at = at ? at : INT64_MAX;
    sys_fault.sticky = *sticky != 0;
}

void sys_fault_report(void) {
    if (!sys_fault.at) return;
    fprintf(stderr, "QLORA_FAULT: %lld calls, %lld blocks and %d descriptors left\n", (long long)sys_fault.calls,
            (long long)sys_blocks(), sys_open_files());
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

static int64_t blocks;

void *sys_alloc(size_t bytes, const char *what, struct err *e) {
    void *p = NULL;
    size_t want = (bytes + 63) / 64 * 64;
    if (want < bytes || faulty('a') || posix_memalign(&p, 64, want ? want : 64)) {
        err_set(e, ERR_RUN, "out of memory: %s needs %zu bytes", what, bytes);
        return NULL;
    }
    memset(p, 0, want ? want : 64);
    __atomic_add_fetch(&blocks, 1, __ATOMIC_RELAXED);
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
    else if (!p) __atomic_add_fetch(&blocks, 1, __ATOMIC_RELAXED);
    return q;
}

void sys_large_pages(void *p, size_t bytes) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = ((uintptr_t)p + page - 1) / page * page,
                    to = ((uintptr_t)p + bytes) / page * page;
    if (to > from) (void)madvise((void *)from, to - from, MADV_HUGEPAGE);
}

void sys_free(void *p) {
    if (p) __atomic_sub_fetch(&blocks, 1, __ATOMIC_RELAXED);
    free(p);
}

int64_t sys_blocks(void) { return __atomic_load_n(&blocks, __ATOMIC_RELAXED); }

int sys_open(const char *path, int flags, int mode) {
    int fd;
    RETRY(fd, faulty('o') ? -1 : open(path, flags | O_CLOEXEC, mode));
    if (fd >= 0 && record_on) record_open(fd, path, flags);
    return fd;
}

int sys_openat(int dir_fd, const char *name, int flags) {
    int fd;
    RETRY(fd, faulty('o') ? -1 : openat(dir_fd, name, flags | O_CLOEXEC));
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
    if (r > 0 && record_on) record_write(fd, p, (size_t)r);
    return r;
}

ssize_t sys_write_out(const void *p, size_t n) {
    ssize_t r, m;
    RETRY(r, (m = allowed('p', n)) < 0 ? -1 : write(STDOUT_FILENO, p, (size_t)m));
    return r;
}

ssize_t sys_pwrite(int fd, const void *p, size_t n, int64_t offset) {
    ssize_t r, m;
    RETRY(r, (m = allowed('w', n)) < 0 ? -1 : pwrite(fd, p, (size_t)m, (off_t)offset));
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
    if (!r && record_on) record_sync(fd);
    return r;
}

int sys_close(int fd) { /* never retried: Linux has closed it, whatever it says */
    int bad = faulty('c');
    int r = close(fd);
    return bad || (r < 0 && errno != EINTR) ? -1 : 0;
}

int sys_rename(const char *from, const char *to) {
    int r;
    RETRY(r, faulty('n') ? -1 : rename(from, to));
    if (!r && record_on) record_rename(from, to);
    return r;
}

int sys_unlink(const char *path) { return sys_unlinkat(AT_FDCWD, path, 0); }
int sys_rmdir(const char *path) { return sys_unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int sys_unlinkat(int dir_fd, const char *name, int flags) {
    int r;
    RETRY(r, faulty('u') ? -1 : unlinkat(dir_fd, name, flags));
    if (!r && record_on) record_unlink(dir_fd, name);
    return r;
}

int sys_mkdir(const char *path, int mode) {
    int r;
    RETRY(r, faulty('m') ? -1 : mkdir(path, (mode_t)mode));
    if (!r && record_on) record_mkdir(path);
    return r;
}

int sys_stat(const char *path, struct stat *st) {
    int r;
    RETRY(r, faulty('t') ? -1 : stat(path, st));
    return r;
}

int sys_fstat(int fd, struct stat *st) {
    int r;
    RETRY(r, faulty('t') ? -1 : fstat(fd, st));
    return r;
}

int sys_room(const char *path, int64_t *bytes) {
    struct statvfs v;
    int r;
    RETRY(r, faulty('t') ? -1 : statvfs(path, &v));
    if (!r) *bytes = (int64_t)v.f_bavail * (int64_t)v.f_frsize;
    return r;
}

int sys_froom(int fd, int64_t *bytes) {
    struct statvfs v;
    int r;
    RETRY(r, faulty('t') ? -1 : fstatvfs(fd, &v));
    if (!r) *bytes = (int64_t)v.f_bavail * (int64_t)v.f_frsize;
    return r;
}

ssize_t sys_readlink(const char *path, char *to, size_t size) { return faulty('t') ? -1 : readlink(path, to, size); }

DIR *sys_opendir(int fd) {
    DIR *d = faulty('d') ? NULL : fdopendir(fd);
    if (d) return d;
    int why = errno;
    close(fd);
    errno = why;
    return NULL;
}

const char *sys_readdir(DIR *d) {
    if (faulty('d')) return NULL;
    for (struct dirent *entry; errno = 0, (entry = readdir(d));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) return entry->d_name;
    return NULL;
}

void sys_closedir(DIR *d) { closedir(d); }

void *sys_map(int fd, size_t bytes) {
    void *p = faulty('x') ? MAP_FAILED : mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    return p == MAP_FAILED ? NULL : p;
}

void sys_unmap(const void *p, size_t bytes) { munmap((void *)(uintptr_t)p, bytes); }
void sys_forget(const void *p, size_t bytes) { madvise((void *)(uintptr_t)p, bytes, MADV_DONTNEED); }

/* A failure has its text from the loader: a path that cannot be there. */
void *sys_library(const char *path) { return dlopen(faulty('l') ? "/proc/self/fd/no library" : path, RTLD_NOW | RTLD_LOCAL); }

int sys_open_files(void) {
    int n = -1; /* the one that reads */
    DIR *d = opendir("/proc/self/fd");
    for (struct dirent *entry; d && (entry = readdir(d));) n += entry->d_name[0] != '.';
    if (d) closedir(d);
    return n;
}

double sys_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The number behind `key` in a file of lines "key number", or alone in it (key ""); -1: there is none ("max", too). */
static int64_t number_in(const char *dir, const char *name, const char *key) {
    char path[1200], line[200];
    long long v, found = -1;
    const size_t n = strlen(key);
    if ((size_t)snprintf(path, sizeof path, "%s/%s", dir, name) >= sizeof path) return -1;
    FILE *f = fopen(path, "re");
    if (!f) return -1;
    while (found < 0 && fgets(line, sizeof line, f))
        if (!strncmp(line, key, n) && sscanf(line + n, "%lld", &v) == 1 && v >= 0) found = v;
    fclose(f);
    return found;
}

/* What the group at `dir` may still take: its limit without what it uses, but for cached files, which give way. */
static int64_t group_room(const char *dir, int v2) {
    const int64_t limit = number_in(dir, v2 ? "memory.max" : "memory.limit_in_bytes", ""),
                  used = number_in(dir, v2 ? "memory.current" : "memory.usage_in_bytes", "");
    const int64_t cached = number_in(dir, "memory.stat", v2 ? "inactive_file " : "total_inactive_file ");
    if (limit < 0 || used < 0) return INT64_MAX;
    const int64_t taken = cached > 0 && cached < used ? used - cached : used;
    return limit > taken ? limit - taken : 0;
}

/* The group and all above it; in a container the path may be the host's, and its group lie at the root. */
static int64_t groups_room(const char *root, const char *path, int v2) {
    char dir[1100];
    int64_t least = group_room(root, v2);
    if ((size_t)snprintf(dir, sizeof dir, "%s%s", root, path) >= sizeof dir) return least;
    for (size_t n = strlen(dir); n > strlen(root); n--)
        if (dir[n] == '/' || !dir[n]) {
            dir[n] = 0;
            const int64_t room = group_room(dir, v2);
            if (room < least) least = room;
        }
    return least;
}

int64_t sys_group_memory(const char *groups, const char *root) {
    char line[1100], own[1100];
    int64_t least = INT64_MAX;
    FILE *f = fopen(groups, "re");
    if (!f) return least;
    while (fgets(line, sizeof line, f)) { /* "0::/path", or of version 1 "4:memory:/path" */
        char *names = strchr(line, ':'), *path = names ? strchr(names + 1, ':') : NULL;
        if (!path) continue;
        line[strcspn(line, "\n")] = 0, *path++ = 0, names++;
        const int v2 = !*names;
        int memory = 0;
        for (char *s = names, *end = NULL; s && *s; s = end ? end + 1 : NULL) {
            end = strchr(s, ',');
            if (end) *end = 0;
            memory |= !strcmp(s, "memory");
        }
        if (!v2 && !memory) continue;
        snprintf(own, sizeof own, "%s%s", root, v2 ? "" : "/memory");
        const int64_t room = groups_room(own, path, v2);
        if (room < least) least = room;
    }
    fclose(f);
    return least;
}

int64_t sys_free_memory(void) {
    const int64_t kib = number_in("/proc", "meminfo", "MemAvailable:"), machine = kib > 0 ? kib * 1024 : 0,
                  group = sys_group_memory("/proc/self/cgroup", "/sys/fs/cgroup");
    return group < machine ? group : machine;
}

int64_t sys_resident_bytes(void) {
    long long total = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f) return 0;
    if (fscanf(f, "%lld %lld", &total, &resident) != 2) resident = 0;
    fclose(f);
    return resident * sysconf(_SC_PAGESIZE);
}

void sys_memory(struct sys_memory *m) {
    const struct {
        const char *name;
        int64_t *to;
    } lines[] = {{"VmRSS:", &m->resident}, {"VmHWM:", &m->most_resident}, {"VmLck:", &m->locked}, {"VmPin:", &m->pinned}};
    char line[200], group[160] = "", path[200];
    *m = (struct sys_memory){-1, -1, -1, -1, -1};
    FILE *f = fopen("/proc/self/status", "re");
    while (f && fgets(line, sizeof line, f))
        for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
            const size_t n = strlen(lines[i].name);
            long long kib;
            if (!strncmp(line, lines[i].name, n) && sscanf(line + n, "%lld kB", &kib) == 1) *lines[i].to = kib * 1024;
        }
    if (f) fclose(f);
    if ((f = fopen("/proc/self/cgroup", "re"))) { /* version 2: "0::/path" */
        while (fgets(line, sizeof line, f))
            if (sscanf(line, "0::%159[^\n]", group) == 1) break;
        fclose(f);
    }
    snprintf(path, sizeof path, "/sys/fs/cgroup%s", group);
    m->cgroup = group[0] ? number_in(path, "memory.current", "") : -1;
}

int sys_threads(void) {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}
