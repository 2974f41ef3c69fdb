/* Errors, messages and signals: what reaches standard error, and which flags a signal sets. */
#define _GNU_SOURCE
#include "base/err.h"
#include "base/log.h"
#include "base/print.h"
#include "base/stop.h"
#include "base/sys.h"
#include "tests/test.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* Runs f in a child whose standard error is `to`, and returns what came out at `from`; *status as waitpid gives it. */
static const char *said_through(int from, int to, void (*f)(void), int *status) {
    static char text[8192];
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        dup2(to, 2);
        f();
        fflush(stderr);
        _exit(0);
    }
    close(to);
    size_t n = 0;
    for (ssize_t r; n < sizeof text - 1 && (r = read(from, text + n, sizeof text - 1 - n)) > 0;) n += (size_t)r;
    text[n] = 0;
    close(from);
    waitpid(child, status, 0);
    return text;
}
static const char *stderr_of(void (*f)(void), int *status) {
    int fd[2];
    if (pipe(fd)) abort();
    return said_through(fd[0], fd[1], f, status);
}

TEST(first_error_wins) {
    struct err e = {0};
    CHECK(err_set(&e, ERR_INPUT, "bad %d", 7) == -1 && e.code == ERR_INPUT && !strcmp(e.text, "bad 7"), "%s", e.text);
    err_set(&e, ERR_RUN, "later");
    CHECK(e.code == ERR_INPUT && !strcmp(e.text, "bad 7"), "%s", e.text);
    CHECK(err_where(&e, "file %s", "f") == -1 && !strcmp(e.text, "file f: bad 7"), "%s", e.text);
    struct err none = {0};
    CHECK(err_where(&none, "x") == -1 && !none.code && !*none.text && err_set(NULL, 1, "x") == -1, "nothing to fill");
    char longer[3000];
    memset(longer, 'x', sizeof longer), longer[2999] = 0;
    struct err big = {0};
    err_set(&big, ERR_RUN, "%s", longer);
    err_where(&big, "%s", "front");
    CHECK(strlen(big.text) == sizeof big.text - 1 && !strncmp(big.text, "front: xxx", 10), "%zu characters", strlen(big.text));
}

TEST(allocation) {
    struct err e = {0};
    char *p = sys_alloc(100, "x", &e);
    REQUIRE(p, "%s", e.text);
    CHECK((uintptr_t)p % 64 == 0 && p[0] == 0 && p[99] == 0, "alignment and zeroes");
    sys_free(p);
    p = sys_alloc(0, "x", &e);
    CHECK(p, "no bytes still give a pointer");
    sys_free(p);
    CHECK(!sys_alloc(SIZE_MAX - 5, "the moon", &e) && e.code == ERR_RUN && strstr(e.text, "the moon"), "%s", e.text);
    CHECK(!sys_alloc_array(SIZE_MAX / 2, 3, "x", NULL) && !sys_alloc_array(1ull << 33, 1ull << 31, "x", NULL), "products overflow");
    p = sys_grow(NULL, 3, "x", NULL);
    memcpy(p, "ab", 3);
    sys_fault = (struct sys_fault){.kinds = "a", .at = 1};
    CHECK(!sys_grow(p, 1 << 20, "x", NULL) && !strcmp(p, "ab"), "a failed growth keeps the old block");
    sys_fault = (struct sys_fault){0};
    p = sys_grow(p, 1 << 20, "x", NULL);
    CHECK(p && !strcmp(p, "ab"), "growth keeps the contents");
    sys_free(p);
}

TEST(faults_from_the_environment) {
    setenv("QLORA_FAULT", "rw:17:SHORT:sticky", 1);
    sys_fault_env();
    CHECK(!strcmp(sys_fault.kinds, "rw") && sys_fault.at == 17 && sys_fault.error == SYS_SHORT && sys_fault.sticky, "parsed as %s %lld %d %d",
          sys_fault.kinds, (long long)sys_fault.at, sys_fault.error, sys_fault.sticky);
    sys_fault = (struct sys_fault){0};
    setenv("QLORA_FAULT", "nonsense", 1);
    sys_fault_env();
    CHECK(!sys_fault.at, "nonsense arms it");
    sys_fault = (struct sys_fault){0};
    unsetenv("QLORA_FAULT");
}

static void speak(void) {
    log_info("loaded %d tensors", 3);
    log_warn("odd\x1b[31m name");
    for (int i = 0; i < 100; i++) log_progress(0, "step %d", i); /* a pipe: one line a second at most */
    log_progress(1, "step 100");
    log_quiet = 1;
    log_info("hidden"), log_progress(1, "hidden"), log_warn("shown");
}
TEST(lines_on_a_pipe) {
    int status;
    const char *text = stderr_of(speak, &status);
    CHECK(!strcmp(text, "loaded 3 tensors\nwarning: odd?[31m name\nstep 100\nwarning: shown\n"), "%s", text);
}

/* Both streams on the terminal, as people have them. */
static void print_during_progress(void) {
    dup2(2, 1);
    setenv("TERM", "xterm", 1), unsetenv("NO_COLOR");
    log_info("loaded");
    usleep(150000);
    log_progress(0, "step 1");
    print_text("{'loss': 1}\n"), print_flush();
    print_text("{'loss': 2}\n"), print_flush();
    log_progress(1, "step 2");
}
TEST(results_take_the_place_of_a_progress_line) {
    int status, from = posix_openpt(O_RDWR | O_NOCTTY), to = from < 0 || grantpt(from) || unlockpt(from) ? -1 : open(ptsname(from), O_RDWR | O_NOCTTY);
    if (to < 0) SKIP("no pseudo-terminal");
    const char *text = said_through(from, to, print_during_progress, &status);
    CHECK(!strcmp(text, "loaded\r\n\r\033[Kstep 1\r\033[K{'loss': 1}\r\n{'loss': 2}\r\nstep 2\r\n"), "%s", text);
}

static void speak_at_length(void) {
    char longer[9000];
    memset(longer, 'x', sizeof longer), longer[8999] = 0;
    log_info("%s", longer);
}
TEST(long_lines_are_cut) {
    int status;
    const char *text = stderr_of(speak_at_length, &status);
    size_t n = strlen(text);
    CHECK(n > 4000 && n < 4100 && text[n - 1] == '\n', "%zu bytes", n);
}

static void break_an_assertion(void) {
    int n = 3;
    ASSERT(n == 4, "n %d", n);
}
TEST(assert_aborts_with_values) {
    int status;
    const char *text = stderr_of(break_an_assertion, &status);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT && strstr(text, "n == 4: n 3"), "%s", text);
}

static int first_signal, second_signal;
static void interrupted_twice(void) {
    stop_install();
    raise(first_signal);
    if (stop_requested() != first_signal) _exit(3);
    raise(second_signal);
    _exit(4);
}
TEST(signals) {
    int status;
    stop_install();
    CHECK(!stop_requested() && !stop_save_requested(), "nothing asked yet");
    raise(SIGUSR1);
    CHECK(stop_save_requested() == 1 && stop_save_requested() == 0 && !stop_requested(), "SIGUSR1 once");
    for (int i = 0; i < 4; i++) { /* of either kind, the second leaves at once */
        first_signal = i & 1 ? SIGTERM : SIGINT, second_signal = i & 2 ? SIGTERM : SIGINT;
        stderr_of(interrupted_twice, &status);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 128 + second_signal, "status %x", status);
    }
    raise(SIGINT);
    CHECK(stop_requested() == SIGINT, "SIGINT: %d", stop_requested());
}
TEST_MAIN
