/* The sandbox: what was named may be written, nothing else, no program starts, no connection is made; and what main does with it. */
#define _GNU_SOURCE
#include "base/file.h"
#include "base/sandbox.h"
#include "tests/test.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[200];
static const char *in(const char *name) {
    static char path[4][300];
    static int k;
    snprintf(path[k = (k + 1) % 4], sizeof path[0], "%s/%s", folder, name);
    return path[k];
}
static int makes(const char *path) {
    int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600);
    if (fd >= 0) close(fd);
    return fd >= 0;
}

/* Numbers of the first thing that is not as it should be. */
static int confined(int network) {
    struct sandbox s = {.network = network};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    char text[8];
    sandbox_add(&s, in("out"), SANDBOX_FOLDER), sandbox_add(&s, in("none"), SANDBOX_FOLDER), sandbox_add(&s, in("dev"), SANDBOX_DEVICE);
    sandbox_add(&s, in("forget"), SANDBOX_FORGET);
    if (sandbox_enter(&s) || s.n) return 1;
    if (!makes(in("out/a")) || mkdir(in("out/d"), 0700) || rename(in("out/a"), in("out/d/b")) || unlink(in("out/d/b")) || rmdir(in("out/d"))) return 2;
    if (makes(in("new")) || makes(in("old")) || makes(in("out/../old"))) return 3;
    if (!mkdir(in("e"), 0700) || !unlink(in("old")) || !rename(in("old"), in("out/old")) || !symlink("x", in("out/link")) || !mkfifo(in("out/fifo"), 0600)) return 4;
    if (!makes(in("dev")) || makes(in("forget/x")) || rmdir(in("forget/empty")) || !unlink(in("forget/file"))) return 5;
    int fd = open(in("old"), O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, text, sizeof text) != 3) return 6;
    execl("/bin/true", "true", (char *)NULL);
    if (errno != EACCES) return 7;
    int s4 = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s4 >= 0 && connect(s4, (struct sockaddr *)&to, sizeof to) && (errno == EACCES) == network && sandbox_version() >= 4) return 8;
    return 0;
}

TEST(only_what_was_named) {
    const char *tmp = getenv("TMPDIR");
    if (!sandbox_version()) SKIP("this kernel has no Landlock");
    snprintf(folder, sizeof folder, "%s/qlora-sandbox-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    REQUIRE(mkdtemp(folder), "%s", folder);
    struct err e = {0};
    for (int network = 0; network < 2; network++) {
        int status;
        if (dir_make(in("out"), &e) || dir_make(in("forget/empty"), &e) || file_write_all(in("old"), "old", 3, &e) || file_write_all(in("dev"), "x", 1, &e) ||
            file_write_all(in("forget/file"), "x", 1, &e))
            fprintf(stderr, "%s\n", e.text), abort();
        pid_t pid = fork();
        if (!pid) _exit(confined(network));
        REQUIRE(waitpid(pid, &status, 0) == pid && WIFEXITED(status), "status %d", status);
        CHECK(!WEXITSTATUS(status), "network %d: check %d", network, WEXITSTATUS(status));
        CHECK(path_bytes(in("old")) == 3, "the file outside is another one");
    }
    dir_remove(folder, NULL);
}
TEST_MAIN
