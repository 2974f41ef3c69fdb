/* base/sandbox.h - from here on this process may write only where it said, and start no program: Landlock (Linux 5.19 and later).
 * For itself, all threads made later, and all libraries: what a hostile file might bring a parser to do ends at the kernel.
 *
 *     sandbox_add(&s, "out", SANDBOX_FOLDER); ..
 *     sandbox_enter(&s)          0: in force; -1: the kernel has none (nothing has changed)
 *
 * Reading is not limited. Must come before threads are started: those that run already stay free. */
#ifndef QLORA_BASE_SANDBOX_H
#define QLORA_BASE_SANDBOX_H

enum sandbox_right {
    SANDBOX_FOLDER,   /* make, write, rename and remove files and folders below */
    SANDBOX_DEVICE,   /* write to what is there */
    SANDBOX_FORGET    /* remove empty folders below: what was made for nothing */
};
enum { SANDBOX_PATHS = 96 };
struct sandbox {
    int fd[SANDBOX_PATHS];
    enum sandbox_right right[SANDBOX_PATHS];
    int n;
    int network; /* TCP stays allowed */
};
int sandbox_version(void); /* of Landlock in this kernel, 0: none that will do */
/* A path that is not there is left out. */
void sandbox_add(struct sandbox *s, const char *path, enum sandbox_right right);
int sandbox_enter(struct sandbox *s); /* closes what was added */
#endif
