/* base/sys.h - the seam to the machine: every allocation, file call and rename of the program goes through here, so that
 * tests can make call number n fail (tests/fault). Semantics are those of the C library, with EINTR retried.
 *
 *     float *x = sys_alloc(n * sizeof *x, "scratch", e);     NULL and e filled when there is no memory
 */
#ifndef QLORA_BASE_SYS_H
#define QLORA_BASE_SYS_H
#include "base/err.h"
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Zeroed memory (64-byte aligned); `what` names it in the error. bytes = 0 gives a valid pointer. */
void *sys_alloc(size_t bytes, const char *what, struct err *e);
/* count * size with overflow check. */
void *sys_alloc_array(size_t count, size_t size, const char *what, struct err *e);
/* Grows p (from sys_grow or NULL; contents kept, new bytes undefined). On failure p stays valid and NULL is returned. */
void *sys_grow(void *p, size_t bytes, const char *what, struct err *e);
void sys_free(void *p); /* of sys_alloc and sys_grow alike */

int sys_open(const char *path, int flags, int mode); /* O_CLOEXEC added */
ssize_t sys_read(int fd, void *p, size_t n);
ssize_t sys_pread(int fd, void *p, size_t n, int64_t offset);
ssize_t sys_write(int fd, const void *p, size_t n);
int sys_fsync(int fd);
int sys_close(int fd);
int sys_rename(const char *from, const char *to);
int sys_unlink(const char *path);
int sys_unlinkat(int dir_fd, const char *name, int flags);
/* Blocks for `bytes` bytes without changing the size (fallocate); counts as a write for fault injection. */
int sys_reserve(int fd, int64_t bytes);
int sys_mkdir(const char *path, int mode);
/* Asks the system to begin reading these bytes into its cache; waits for nothing. */
void sys_read_ahead(int fd, int64_t offset, int64_t bytes);
/* Asks the system to begin bringing these bytes to the disk; waits for nothing and promises nothing (sys_fsync does). */
void sys_write_behind(int fd, int64_t offset, int64_t bytes);

double sys_seconds(void);        /* monotonic clock */
int64_t sys_free_memory(void);   /* bytes of memory the machine could still give, 0 if unknown */
int64_t sys_resident_bytes(void); /* of this process, 0 if unknown */
int sys_threads(void);           /* OpenMP threads in force */

/* Fault injection. Calls are counted from 1; while armed, call number `at` (and all later ones if sticky) of the chosen
 * kinds fails with `error` (EINTR: once, and is retried as a real one), moves only half (SYS_SHORT), or kills the process
 * (SYS_KILL). Also armed by the
 * environment variable QLORA_FAULT="kinds:at:error[:sticky]", kinds of letters a(lloc) o(pen) r(ead) w(rite) s(ync)
 * c(lose) n(rename) u(nlink) m(kdir), error ENOSPC EIO EINTR ENOMEM SHORT KILL, read once at start by sys_fault_env.
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
#endif
