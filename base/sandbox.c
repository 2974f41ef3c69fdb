/* base/sandbox.c - see sandbox.h. The structures are those of linux/landlock.h, which older systems do not have. */
#define _GNU_SOURCE
#include "base/sandbox.h"
#include "base/sys.h"
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { CREATE_RULESET = 444, ADD_RULE, RESTRICT_SELF }; /* numbers of all architectures but alpha */
enum { VERSION_FLAG = 1, PATH_BENEATH = 1 };
enum { /* LANDLOCK_ACCESS_FS_.. */
       EXECUTE = 1 << 0,
       WRITE_FILE = 1 << 1,
       REMOVE_DIR = 1 << 4,
       REMOVE_FILE = 1 << 5,
       MAKE_CHAR = 1 << 6,
       MAKE_DIR = 1 << 7,
       MAKE_REG = 1 << 8,
       MAKE_SOCK = 1 << 9,
       MAKE_FIFO = 1 << 10,
       MAKE_BLOCK = 1 << 11,
       MAKE_SYM = 1 << 12,
       REFER = 1 << 13,
       TRUNCATE = 1 << 14
};
enum { BIND_TCP = 1, CONNECT_TCP = 2 };
struct ruleset { uint64_t fs, net; };
struct path_beneath { uint64_t allowed; int32_t parent_fd; } __attribute__((packed));

/* 2 is the first under which files may move between folders, as a finished export does. */
int sandbox_version(void) {
    long v = syscall(CREATE_RULESET, NULL, 0, VERSION_FLAG);
    return v >= 2 ? (int)v : 0;
}

void sandbox_add(struct sandbox *s, const char *path, enum sandbox_right right) {
    int fd = s->n < SANDBOX_PATHS ? open(path, O_PATH | O_CLOEXEC) : -1;
    if (fd >= 0) s->fd[s->n] = fd, s->right[s->n++] = right;
}

static uint64_t allowed(enum sandbox_right right, int fd, int version) {
    struct stat st;
    const uint64_t write = WRITE_FILE | (version >= 3 ? TRUNCATE : 0);
    if (fstat(fd, &st) || right == SANDBOX_DEVICE || !S_ISDIR(st.st_mode)) return right == SANDBOX_FORGET ? 0 : write;
    return right == SANDBOX_FORGET ? REMOVE_DIR : write | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | REFER;
}

int sandbox_enter(struct sandbox *s) {
    const int version = sandbox_version();
    struct ruleset r = {.fs = EXECUTE | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_CHAR | MAKE_DIR | MAKE_REG | MAKE_SOCK |
                              MAKE_FIFO | MAKE_BLOCK | MAKE_SYM | REFER | (version >= 3 ? TRUNCATE : 0),
                        .net = s->network ? 0 : BIND_TCP | CONNECT_TCP};
    int rc = -1, rules = version ? (int)syscall(CREATE_RULESET, &r, version >= 4 ? sizeof r : sizeof r.fs, 0) : -1;
    for (int i = 0; i < s->n; i++) {
        struct path_beneath p = {.allowed = allowed(s->right[i], s->fd[i], version), .parent_fd = s->fd[i]};
        if (rules >= 0 && p.allowed) syscall(ADD_RULE, rules, PATH_BENEATH, &p, 0); /* one that cannot be is not allowed */
        close(s->fd[i]);
    }
    s->n = 0;
    if (rules >= 0 && !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !syscall(RESTRICT_SELF, rules, 0)) rc = 0;
    if (rules >= 0) close(rules);
    return rc;
}
