/* base/stop.c - see stop.h. The handler only sets flags; a second signal ends the process from inside it: what was not
 * published yet stays a temporary file. Files that are being written are never seen half done (base/file.h). */
#define _GNU_SOURCE
#include "base/stop.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

static volatile sig_atomic_t stopping, save;

static void on_signal(int sig) {
    if (sig == SIGUSR1) {
        save = 1;
        return;
    }
    if (stopping) _exit(128 + sig);
    stopping = sig;
}

/* SIGINT and SIGTERM wait for each other's handler, so that the flag has one writer. */
void stop_install(void) {
    struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&act.sa_mask);
    sigaddset(&act.sa_mask, SIGINT);
    sigaddset(&act.sa_mask, SIGTERM);
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGUSR1, &act, NULL);
}

int stop_requested(void) { return stopping; }

int stop_save_requested(void) {
    if (!save) return 0;
    save = 0;
    return 1;
}

int stop_check(const char *while_, struct err *e) {
    return stopping ? err_set(e, 128 + stopping, "stopped %s", while_) : 0;
}

/* Signals are held back between the look at the flag and the wait, and let in by ppoll itself: none comes in between. */
int stop_wait_input(int fd) {
    sigset_t both, before;
    struct pollfd p = {.fd = fd, .events = POLLIN};
    sigemptyset(&both);
    sigaddset(&both, SIGINT);
    sigaddset(&both, SIGTERM);
    sigprocmask(SIG_BLOCK, &both, &before);
    while (!stopping && ppoll(&p, 1, NULL, &before) < 0 && errno == EINTR) continue;
    sigprocmask(SIG_SETMASK, &before, NULL);
    return stopping;
}
