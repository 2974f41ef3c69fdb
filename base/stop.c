/* base/stop.c - see stop.h. The handler only sets flags; a second SIGINT ends the process from inside it. */
#include "base/stop.h"
#include <signal.h>
#include <unistd.h>

static volatile sig_atomic_t stopping, interrupts, save;

static void on_signal(int sig) {
    if (sig == SIGUSR1) {
        save = 1;
        return;
    }
    if (sig == SIGINT && interrupts++) _exit(128 + SIGINT);
    if (!stopping) stopping = sig;
}

void stop_install(void) {
    struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&act.sa_mask);
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
