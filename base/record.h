/* base/record.h - a diary of what this process did to files, for tests that replay what a power cut leaves of it
 * (tests/fault/test_replay.c). On when the environment has QLORA_RECORD=FILE; base/sys.c is the only caller.
 *
 * Each entry is one line, and behind a W line come the bytes:
 *     O fd new path       opened for writing; new: it was created or cut to nothing
 *     W fd bytes          S path (a file's or directory's changes are on the disk)
 *     M path              made a directory          U path  removed a file or directory
 *     N from<TAB>to       renamed
 * Paths are absolute. Writes go to the end of their file: nothing here writes elsewhere. */
#ifndef QLORA_BASE_RECORD_H
#define QLORA_BASE_RECORD_H
#include <stddef.h>

extern int record_on;
void record_env(void); /* reads QLORA_RECORD */
void record_open(int fd, const char *path, int flags);
void record_write(int fd, const void *p, size_t n);
void record_sync(int fd);
void record_rename(const char *from, const char *to);
void record_unlink(int dir_fd, const char *name);
void record_mkdir(const char *path);
#endif
