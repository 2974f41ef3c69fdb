/* base/file.h - reading and writing files so that nothing is ever half written.
 *
 * Reading: regular files only (a pipe or device is refused), opened without blocking, links followed.
 * Writing: to a temporary name beside the target, synced, then renamed; an aborted or killed write leaves the old file.
 *
 *     struct out *o = out_open(path, e);
 *     if (!o || out_write(o, p, n, e)) goto fail;          fail: out_abort(o)   (NULL is fine)
 *     return out_commit(o, e);                              frees o in any case
 */
#ifndef QLORA_BASE_FILE_H
#define QLORA_BASE_FILE_H
#include "base/err.h"
#include "base/str.h"
#include <stdint.h>
#include <stddef.h>

struct file {
    int fd;
    int64_t bytes; /* at opening time */
    char *path;
};
struct file *file_open(const char *path, struct err *e);
/* Reads exactly n bytes at offset, or fails naming the file and the offset. Thread-safe. */
int file_pread(const struct file *f, void *p, size_t n, int64_t offset, struct err *e);
void file_ahead(const struct file *f, int64_t offset, int64_t bytes); /* will be read soon: the system may begin */
void file_close(struct file *f);
/* Whole file, NUL-terminated, refused when larger than max_bytes. *text is freed with sys_free. */
int file_read_all(const char *path, int64_t max_bytes, char **text, size_t *n, struct err *e);

struct out;
struct out *out_open(const char *path, struct err *e);
int out_write(struct out *o, const void *p, size_t n, struct err *e);
/* Reserves space for the whole file; ENOSPC is found here, before anything is written. */
int out_reserve(struct out *o, int64_t bytes, struct err *e);
int64_t out_bytes(const struct out *o);
/* Before the first write: what is written is hashed as it goes by, so that nobody has to read it again. */
int out_hash(struct out *o, struct err *e);
void out_digest(struct out *o, char hex[41]); /* SHA-1 of all that was written; once, behind the last write */
/* Brings what was written so far to the disk: before the renames of several files, so that only they are left to fail. */
int out_sync(struct out *o, struct err *e);
int out_commit(struct out *o, struct err *e);
void out_abort(struct out *o);
int file_write_all(const char *path, const void *p, size_t n, struct err *e); /* open, write, commit */
/* Appends one line (with its LF) in a single write and does not sync: logs. */
int file_append_line(const char *path, const char *line, struct err *e);
int file_copy(const char *from, const char *to, struct err *e);

int path_exists(const char *path);
int path_is_dir(const char *path);
int path_is_file(const char *path);
int64_t path_bytes(const char *path); /* -1 if there is none */
int path_is_same(const char *a, const char *b); /* both are there and are one file or folder */
/* "dir/name" into buf; -1 and e when it does not fit. */
int path_join(char *buf, size_t size, const char *dir, const char *name, struct err *e);
/* 1 if name is one plain file name: not empty, no '/', not "." or "..", no NUL or control characters. */
int path_is_basename(const char *name);
int dir_make(const char *path, struct err *e);   /* with parents; existing is fine */
int dir_sync(const char *path, struct err *e);   /* fsync of the directory itself */
int dir_remove(const char *path, struct err *e); /* with its contents; never follows links; absent is fine */
/* Names in a directory ("." and ".." left out), sorted by bytes. Free each name and the array with sys_free. */
int dir_list(const char *path, char ***names, int *count, struct err *e);
void dir_list_free(char **names, int count);
int64_t dir_free_bytes(const char *path); /* of its file system; -1 if unknown */
#endif
