/* base/sys.h - the seam to the machine: every allocation, file call and rename of the program goes through here, so that
 * tests can make call number n fail (tests/fault). Semantics are those of the C library, with EINTR retried.
 *
 *     float *x = sys_alloc(n * sizeof *x, "scratch", e);     NULL and e filled when there is no memory
 */
#ifndef QLORA_BASE_SYS_H
#define QLORA_BASE_SYS_H
#include "base/err.h"
#include <stddef.h>
#include <dirent.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

/* Zeroed memory (64-byte aligned); `what` names it in the error. bytes = 0 gives a valid pointer. */
void *sys_alloc(size_t bytes, const char *what, struct err *e);
/* count * size with overflow check. */
void *sys_alloc_array(size_t count, size_t size, const char *what, struct err *e);
/* Grows p (from sys_grow or NULL; contents kept, new bytes undefined). On failure p stays valid and NULL is returned. */
void *sys_grow(void *p, size_t bytes, const char *what, struct err *e);
/* A hint for memory that is about to be filled: in large pages it costs fewer faults. */
void sys_large_pages(void *p, size_t bytes);
void sys_free(void *p); /* of sys_alloc and sys_grow alike */
int64_t sys_blocks(void); /* that were allocated and not freed */

int sys_open(const char *path, int flags, int mode); /* O_CLOEXEC added */
int sys_openat(int dir_fd, const char *name, int flags);
ssize_t sys_read(int fd, void *p, size_t n);
ssize_t sys_pread(int fd, void *p, size_t n, int64_t offset);
ssize_t sys_write(int fd, const void *p, size_t n);
ssize_t sys_pwrite(int fd, const void *p, size_t n, int64_t offset);
int sys_fsync(int fd);
int sys_close(int fd);
int sys_rename(const char *from, const char *to);
int sys_unlink(const char *path);
int sys_unlinkat(int dir_fd, const char *name, int flags);
int sys_rmdir(const char *path);
ssize_t sys_write_out(const void *p, size_t n); /* to standard output, which base/print.h buffers */
int sys_stat(const char *path, struct stat *st);
int sys_fstat(int fd, struct stat *st);
int sys_room(const char *path, int64_t *bytes); /* free on the file system of a path; of a descriptor: sys_froom */
int sys_froom(int fd, int64_t *bytes);
ssize_t sys_readlink(const char *path, char *to, size_t size);
DIR *sys_opendir(int fd); /* takes the descriptor, also when it fails */
/* The next name ("." and ".." left out). NULL at the end, with errno 0, or when it cannot be read. */
const char *sys_readdir(DIR *d);
void sys_closedir(DIR *d);
void *sys_map(int fd, size_t bytes); /* read-only; NULL and errno on failure */
void sys_unmap(const void *p, size_t bytes);
void sys_forget(const void *p, size_t bytes); /* these pages of a map are not needed soon */
void *sys_library(const char *path);          /* dlopen, its symbols kept apart; NULL: dlerror() says why */
/* Blocks for `bytes` bytes without changing the size (fallocate); counts as a write for fault injection. */
int sys_reserve(int fd, int64_t bytes);
int sys_mkdir(const char *path, int mode);
/* Asks the system to begin reading these bytes into its cache; waits for nothing. */
void sys_read_ahead(int fd, int64_t offset, int64_t bytes);
/* Asks the system to begin bringing these bytes to the disk; waits for nothing and promises nothing (sys_fsync does). */
void sys_write_behind(int fd, int64_t offset, int64_t bytes);

double sys_seconds(void);        /* monotonic clock */
int64_t sys_free_memory(void);   /* bytes of memory the machine could still give, within the limits of our control group; 0 if unknown */
/* Bytes that the control groups of a process leave to it, of either version; INT64_MAX: no limit. groups: /proc/self/cgroup. */
int64_t sys_group_memory(const char *groups, const char *root);
int64_t sys_resident_bytes(void); /* of this process, 0 if unknown */
/* What the kernel counts for this process; -1: it does not say. Memory that a driver pins may stand in none of the first four. */
struct sys_memory { int64_t resident, most_resident, locked, pinned, cgroup; }; /* cgroup: of all its processes, page cache included */
void sys_memory(struct sys_memory *m);
int sys_threads(void);           /* OpenMP threads in force */

/* Fault injection. Calls are counted from 1; while armed, call number `at` (and all later ones if sticky) of the chosen
 * kinds fails with `error` (EINTR: once, and is retried as a real one), moves only half (SYS_SHORT), or kills the process
 * (SYS_KILL). Also armed by the environment variable QLORA_FAULT="kinds:at:error[:sticky]", read once at start by
 * sys_fault_env: kinds of letters a(lloc) o(pen) r(ead) w(rite) s(ync) c(lose) n(rename) u(nlink) m(kdir) t (stat) d(irectory)
 * x (map) l(ibrary) p(rint); error ENOSPC EIO EINTR ENOMEM EMFILE SHORT KILL. at = 0 only counts. sys_fault_report then says
 * on standard error how many calls there were and what is left open and allocated.
 * "cuda:.." is for calls to the card (backend/cuda/cuda.cu). */
enum { SYS_SHORT = -1, SYS_KILL = -2 };
struct sys_fault {
    char kinds[16];
    int64_t at;   /* 0 = off */
    int error;    /* errno value, SYS_SHORT or SYS_KILL */
    int sticky;
    int64_t calls; /* so far, of the chosen kinds */
};
extern struct sys_fault sys_fault;
void sys_fault_env(void);
void sys_fault_report(void);
int sys_open_files(void); /* descriptors of this process, -1 if unknown */
#endif
