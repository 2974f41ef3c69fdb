/* A long time of small steps with everything that may happen to a run: killed, stopped, out of disk or memory, its calls failing. After
 * each disturbance the same command goes on; what it ends with must be the bytes of a run that nobody disturbed. Memory and
 * descriptors of a long run stay flat.
 *
 * SOAK_SECONDS=900 for so long (make soak SECONDS=900), otherwise some seconds; SOAK_OUT=FILE gets a line of figures. */
#include "tests/fault/fault.h"
#include <time.h>

#define RUN FAULT_LORA "--save_steps 5 --num_train_epochs 10 --logging_steps 100 --resume_from_checkpoint true"
enum { STEPS = 40 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
static double draw(void) {
    static uint32_t x = 1;
    x = x * 1664525 + 1013904223;
    return (double)(x >> 8) / (1 << 24);
}
static int below(int n) { return (int)(draw() * n); }

static int64_t disturbed[6], steps;
static const char *const kinds[6] = {"kills", "kills in a call", "signals", "full disks", "calls that failed", "memory refused"};

/* The newest checkpoint's step. */
static int64_t reached(void) {
    char **names;
    int n;
    int64_t step = 0;
    if (!path_is_dir("out") || dir_list("out", &names, &n, NULL)) return 0;
    for (int i = 0; i < n; i++)
        if (text_starts(names[i], "checkpoint-") && atoi(names[i] + 11) > step) step = atoi(names[i] + 11);
    dir_list_free(names, n);
    return step;
}

/* One start of the run that something happens to. */
static void disturb(int64_t calls, double seconds) {
    static const struct { const char *kinds; int error; } hard[] = {{"r", EIO}, {"w", EIO}, {"s", EIO}, {"n", EIO}, {"o", EMFILE}, {"t", EIO}, {"d", EIO}, {"u", EIO}, {"m", ENOSPC}, {"c", EIO}};
    const int what = below(6), sticky = below(2), k = below((int)(sizeof hard / sizeof *hard));
    struct sys_fault f = {.kinds = "wscnum", .at = 1 + below((int)calls), .error = SYS_KILL, .sticky = sticky};
    struct outcome x = {0};
    disturbed[what]++;
    if (what == 0 || what == 2) {
        int null = open("/dev/null", O_RDWR | O_CLOEXEC), sig = what == 0 ? SIGKILL : below(2) ? SIGINT : SIGTERM, status;
        double wait = seconds * draw();
        fflush(stdout), fflush(stderr);
        pid_t pid = fork();
        if (!pid) fault_child(RUN, NULL, null, null, null);
        struct timespec t = {.tv_sec = (time_t)wait, .tv_nsec = (long)((wait - (double)(time_t)wait) * 1e9)};
        nanosleep(&t, NULL);
        kill(pid, sig);
        waitpid(pid, &status, 0);
        close(null);
        int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        CHECK(code == 0 || code == 128 + sig, "signal %d gave exit status %d", sig, code);
        return;
    }
    if (what == 3) f.kinds[1] = 0, f.error = ENOSPC;
    if (what == 4) strcpy(f.kinds, hard[k].kinds), f.error = hard[k].error;
    if (what == 5) strcpy(f.kinds, "a"), f.error = ENOMEM, f.at = 1 + below(2000);
    fault_run(RUN, &f, &x);
    CHECK(what == 1 ? x.signal == SIGKILL || !x.code : !x.signal, "%s, call %lld: signal %d\n%s", kinds[what], (long long)f.at, x.signal, x.said);
    if (x.signal) return;
    CHECK(!x.blocks && !x.files && (x.code == 0 ? !x.errors : x.code <= 2 && x.errors == 1), "%s, call %lld of %s: exit status %d, %d sentences, %lld blocks, %d descriptors\n%s", kinds[what],
          (long long)f.at, f.kinds, x.code, x.errors, (long long)x.blocks, x.files, x.said);
}

static void result(char hex[41]) {
    if (sha1_file("out/adapter_model.safetensors", hex, NULL)) strcpy(hex, "none");
}

TEST(nothing_is_unrecoverable) {
    const char *given = getenv("SOAK_SECONDS"), *path = getenv("SOAK_OUT");
    const double end = now() + (given && atoi(given) > 0 ? atoi(given) : getenv("TEST_SHORT") ? 1 : 8);
    struct outcome x;
    struct err e = {0};
    char want[41], hex[41];
    int64_t runs = 0, all = 0;
    fault_world();
    double start = now();
    dir_remove("out", &e);
    fault_run(RUN, &(struct sys_fault){.kinds = "wscnum"}, &x);
    REQUIRE(!x.code, "%s", x.said);
    const double seconds = now() - start;
    const int64_t calls = x.calls;
    result(want);
    do {
        dir_remove("out", &e);
        for (int i = 0; i < 8 && test_failed < 10; i++) {
            int64_t before = reached();
            disturb(calls, seconds);
            int64_t after = reached();
            CHECK(after >= before, "a checkpoint of step %lld is lost, %lld is the newest", (long long)before, (long long)after);
            steps += after - before;
        }
        int64_t before = reached();
        fault_run(RUN, NULL, &x);
        result(hex);
        steps += STEPS - before;
        CHECK(!x.code && !strcmp(hex, want), "after all: exit status %d%s\n%s", x.code, x.code ? "" : ", another adapter", x.said);
        runs++;
    } while (now() < end && test_failed < 10);
    printf("  %lld runs, %lld steps kept;", (long long)runs, (long long)steps);
    for (int k = 0; k < 6; k++) printf(" %lld %s%s", (long long)disturbed[k], kinds[k], k < 5 ? "," : "\n"), all += disturbed[k];
    FILE *out = path ? fopen(path, "ae") : NULL;
    if (!out) return;
    fprintf(out, "{\"soak_s\": %.0f, \"runs\": %lld, \"steps\": %lld, \"disturbances\": %lld, \"failed_checks\": %d}\n", now() - start, (long long)runs, (long long)steps, (long long)all, test_failed);
    fclose(out);
}

/* Resident memory and descriptors of a run, looked at from outside while it takes its steps. */
TEST(memory_and_descriptors_are_flat) {
    const char *given = getenv("SOAK_SECONDS");
    const double watch = given && atoi(given) > 0 ? atoi(given) / 4.0 : 4;
    struct err e = {0};
    char path[60];
    int64_t first = 0, most = 0;
    int files = 0, most_files = 0, looks = 0, status;
    fault_world();
    dir_remove("out", &e);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    fflush(stdout), fflush(stderr);
    fault_seconds = (unsigned)watch + 60;
    pid_t pid = fork();
    /* Few lines of log: each stays in memory, 160 bytes, for trainer_state.json has them all. */
    if (!pid) fault_child(FAULT_LORA "--max_steps 10000000 --save_steps 200 --logging_steps 10000", NULL, null, null, null);
    double start = now();
    while (now() - start < watch) {
        long long pages = 0;
        usleep(50000);
        snprintf(path, sizeof path, "/proc/%d/statm", pid);
        FILE *f = fopen(path, "re");
        if (!f || fscanf(f, "%*d %lld", &pages) != 1) pages = 0;
        if (f) fclose(f);
        snprintf(path, sizeof path, "/proc/%d/fd", pid);
        char **names;
        int n = 0;
        if (!dir_list(path, &names, &n, NULL)) dir_list_free(names, n);
        if (now() - start < watch / 3 || !pages) continue; /* starting, and first saves */
        if (!looks++) first = pages, files = n;
        if (pages > most) most = pages;
        if (n > most_files) most_files = n;
    }
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    close(null);
    printf("  %lld KiB at first, %lld KiB at most; %d descriptors, at most %d\n", (long long)first * 4, (long long)most * 4, files, most_files);
    CHECK(looks > 10, "the run ended by itself");
    /* 1 MiB: buffers of a save that the allocator keeps. A save has some files open at a time. */
    CHECK(most - first < 256, "memory grew from %lld to %lld pages", (long long)first, (long long)most);
    CHECK(most_files - files < 8, "descriptors grew from %d to %d", files, most_files);
}
TEST_MAIN
