/* tests/fuzz/fuzz_file.h - an input as a file that the program can open, in memory where there is such a place. */
#ifndef QLORA_TESTS_FUZZ_FILE_H
#define QLORA_TESTS_FUZZ_FILE_H
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "tests/fuzz/steady.h"
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FUZZ_FILES = 8, FUZZ_FOLDERS = 10000 };
static char fuzz_dir[40]; /* of one length whatever the process, since messages and comparisons hold it; "" until the first file */
static struct fuzz_written { char path[120]; int fd; size_t n; } fuzz_written[FUZZ_FILES]; /* kept open: an input costs a write */

static void fuzz_clean(void) {
    for (int i = 0; i < FUZZ_FILES && *fuzz_written[i].path; i++) unlink(fuzz_written[i].path);
    rmdir(fuzz_dir); /* stays when a target has put more into it */
}

/* Makes the folder of this process, once: the first number that is free. */
static inline void fuzz_folder(void) {
    if (*fuzz_dir) return;
    const char *where = access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm";
    for (int i = 0; i < FUZZ_FOLDERS; i++) {
        snprintf(fuzz_dir, sizeof fuzz_dir, "%s/qlora-fuzz-%04d", where, i);
        if (!mkdir(fuzz_dir, 0700)) {
            atexit(fuzz_clean);
            return;
        }
        if (errno != EEXIST) break;
    }
    abort();
}

/* Writes the input to a file of this name in a folder of this process, with `zeros` behind it; returns its path. */
static inline const char *fuzz_file_zeros(const char *name, const void *data, size_t n, size_t zeros) {
    struct fuzz_written *f = fuzz_written;
    fuzz_folder();
    while (*f->path && strcmp(f->path + strlen(fuzz_dir) + 1, name)) f++;
    if (!*f->path) {
        snprintf(f->path, sizeof f->path, "%s/%s", fuzz_dir, name);
        if (f == fuzz_written + FUZZ_FILES - 1 || (f->fd = open(f->path, O_RDWR | O_CREAT, 0600)) < 0) abort();
    }
    if (pwrite(f->fd, data, n, 0) != (ssize_t)n) abort();
    if (n < f->n && ftruncate(f->fd, (off_t)n)) abort();
    if (zeros && ftruncate(f->fd, (off_t)(n + zeros))) abort();
    f->n = n + zeros;
    return f->path;
}
static inline const char *fuzz_file(const char *name, const void *data, size_t n) { return fuzz_file_zeros(name, data, n, 0); }

/* Opens a checkpoint and reads all of it: whole tensors, single elements, quantised matrices. Aborts where the readers
 * contradict each other or themselves. */
static inline void fuzz_checkpoint(const char *path) {
    enum { MOST = 1 << 16, SINGLES = 40 };
    struct err e = {0};
    struct ckpt *c = ckpt_open(path, &e);
    if (!c != (e.code != 0) || (!c && !strstr(e.text, fuzz_dir))) abort();
    for (int64_t i = 0; c && i < ckpt_count(c); i++) {
        struct err mine = {0};
        struct ckpt_quant q;
        const struct ckpt_tensor *t = ckpt_at(c, i);
        if (ckpt_find(c, t->name) != t || (i && strcmp(ckpt_at(c, i - 1)->name, t->name) >= 0)) abort();
        if (ckpt_quant(c, t->name, &q, &mine) != (mine.code ? -1 : 0)) abort();
        mine.code = 0;
        int real = t->type == DT_F32 || t->type == DT_BF16 || t->type == DT_F16 || t->type == DT_F64;
        enum dtype to = real ? DT_F32 : t->type;
        int64_t n = t->count < MOST ? t->count : MOST;
        size_t size = dtype_bytes(to);
        char *all = malloc((size_t)n * size + 1), one[8];
        int rc = ckpt_read_range(c, t, 0, n, to, all, &mine);
        if (rc != (mine.code ? -1 : 0)) abort();
        for (int64_t k = 0; !rc && k < n && k < SINGLES; k++) {
            int64_t at = k * 7919 % n;
            if (ckpt_read_range(c, t, at, 1, to, one, &mine) || memcmp(one, all + (size_t)at * size, size)) abort();
        }
        free(all);
    }
    ckpt_close(c);
}
#endif
