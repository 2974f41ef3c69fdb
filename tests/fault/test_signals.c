/* Signals at random times of each phase: the command ends with 128 + the signal and a state from which the same command goes on, or it
 * had finished before. A second signal ends it at once. Commands that wait for input hear one.
 *
 * SIGNALS=100 sends so many in each phase (make faults), otherwise three; SIGNALS_OUT=FILE gets a line of figures for each. */
#include "tests/fault/fault.h"
#include <time.h>

struct phase { const char *name, *words, *before; };
static const struct phase phases[] = {
    {"load", "score --model_name_or_path large --text a --quiet", 0},
    {"load, 4 bits", "score --model_name_or_path large --text a --quantization_bit 4 --quiet", 0},
    {"quantise", "quantize --model_name_or_path large --output_dir out --quantization_bit 4 --quiet", 0},
    {"train", FAULT_LORA "--num_train_epochs 8 --save_steps 1000", 0},
    {"evaluate", FAULT_LORA "--val_size 0.5 --evaluation_strategy steps --eval_steps 1 --save_steps 1000 --num_train_epochs 4", 0},
    {"save", FAULT_LORA "--save_steps 1 --num_train_epochs 2", 0},
    {"resume", FAULT_LORA, "resume"},
    {"export", "export --model_name_or_path large --export_dir out --quiet", 0},
    {"chat", "chat --model_name_or_path m --prompt hello --max_new_tokens 200 --quiet", 0},
    {"score", "score --model_name_or_path m --file few.jsonl --quiet", 0},
    {"tokenize", "tokenize --model_name_or_path m --file many.jsonl", 0},
    {"preview", "preview --model_name_or_path m --dataset_dir data --dataset world,questions --cutoff_len 64 --packing true --compat new --quiet", 0},
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
static void wait_for(double seconds) {
    struct timespec t = {.tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9)};
    while (nanosleep(&t, &t) && errno == EINTR) continue;
}

static void prepare(const struct phase *p) {
    struct err e = {0};
    if (dir_remove("out", &e)) fprintf(stderr, "%s\n", e.text), abort();
    if (p->before) fault_shell("cp -r %s out", p->before);
}

struct heard { int code; double latency; char said[2000]; };

/* Starts the command, waits, sends the signals, and waits for its end. */
static void send(const char *words, int in, double after, int first, int second, struct heard *h) {
    int err_fd = memfd_create("stderr", MFD_CLOEXEC), null = open("/dev/null", O_RDWR | O_CLOEXEC), status;
    fflush(stdout), fflush(stderr);
    pid_t pid = fork();
    if (pid < 0) perror("fork"), abort();
    if (!pid) {
        if (in >= 0) dup2(in, 0);
        fault_child(words, NULL, err_fd, null, null);
    }
    wait_for(after);
    double sent = now();
    kill(pid, first);
    if (second) kill(pid, second);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
    h->latency = now() - sent;
    h->code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    ssize_t n = pread(err_fd, h->said, sizeof h->said - 1, 0);
    h->said[n > 0 ? n : 0] = 0;
    close(err_fd), close(null);
}

/* The adapter of a run, whose checkpoints are where the signals came; all of another folder. */
static void result(char hex[41]) {
    if (!path_exists("out/adapter_model.safetensors") || sha1_file("out/adapter_model.safetensors", hex, NULL)) fault_hash("out", hex);
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double draw(void) {
    static uint32_t x = 12345;
    x = x * 1664525 + 1013904223;
    return (double)(x >> 8) / (1 << 24);
}

static void run_phase(const struct phase *p, int count, FILE *out) {
    enum { MOST = 1000 };
    static double latency[MOST];
    struct outcome x;
    char want[41], hex[41];
    int stopped = 0, finished = 0;
    prepare(p);
    double start = now();
    fault_run(p->words, NULL, &x);
    double seconds = now() - start;
    REQUIRE(!x.code, "%s: exit status %d\n%s", p->name, x.code, x.said);
    result(want);
    for (int i = 0; i < count && i < MOST && test_failed < 20; i++) {
        int sig = i & 1 ? SIGINT : SIGTERM;
        struct heard h;
        prepare(p);
        send(p->words, -1, seconds * draw(), sig, 0, &h);
        latency[i] = h.latency;
        stopped += h.code == 128 + sig, finished += h.code == 0;
        CHECK(h.code == 128 + sig || h.code == 0, "%s: signal %d gave exit status %d\n%s", p->name, sig, h.code, h.said);
        CHECK(!fault_leftovers("out"), "%s: temporary files are left\n%s", p->name, h.said);
        /* The commands are small: a step takes milliseconds, the rest is a machine with other work. */
        CHECK(h.latency < 4 + seconds, "%s: %.1f s after the signal; the whole takes %.1f s", p->name, h.latency, seconds);
        if (!strstr(p->words, "out")) continue;
        fault_run(p->words, NULL, &x);
        result(hex);
        int again = x.code == ERR_INPUT && h.code == 0; /* it was complete */
        CHECK((x.code == 0 || again) && !strcmp(hex, want), "%s: then exit status %d%s\n%s", p->name, x.code, x.code ? "" : ", other bytes", x.said);
    }
    qsort(latency, (size_t)count, sizeof *latency, by_size);
    printf("  %-14s %3d signals, %3d stopped, %3d had finished; median %6.1f ms, worst %7.1f ms (of %.2f s)\n", p->name, count, stopped, finished, 1e3 * latency[count / 2], 1e3 * latency[count - 1],
           seconds);
    if (out)
        fprintf(out, "{\"phase\": \"%s\", \"signals\": %d, \"stopped\": %d, \"finished\": %d, \"median_ms\": %.1f, \"worst_ms\": %.1f, \"command_s\": %.2f}\n", p->name, count, stopped, finished,
                1e3 * latency[count / 2], 1e3 * latency[count - 1], seconds);
    CHECK(stopped > 0 || count < 20, "%s: no signal came in time", p->name);
}

static void large_world(void) {
    fault_world();
    if (path_exists("many.jsonl")) return;
    fault_must("new --config yuan2-tiny --tokenizer tok --output_dir large --override vocab_size=600 --override eod_token=583 --override pad_token_id=583 "
               "--override num_hidden_layers=12 --override hidden_size=128 --override intermediate_size=256 --quiet");
    fault_shell("for i in $(seq 300); do printf '{\"text\":\"What colour is the toni number %%d?\"}\\n' $i; done >few.jsonl; for i in $(seq 40); do cat few.jsonl; done >many.jsonl");
}

TEST(at_random_times) {
    const char *n = getenv("SIGNALS"), *path = getenv("SIGNALS_OUT");
    FILE *out = path ? fopen(path, "ae") : NULL;
    if (out) setvbuf(out, NULL, _IOLBF, 0); /* nothing waits in it that a child would write again */
    large_world();
    for (size_t i = 0; i < sizeof phases / sizeof *phases; i++) run_phase(&phases[i], n && atoi(n) > 0 ? atoi(n) : getenv("TEST_SHORT") ? 1 : 3, out);
    if (out) fclose(out);
}

/* The end of the run, at once, and the run goes on afterwards from what it had. */
TEST(a_second_signal) {
    static const int pairs[][2] = {{SIGTERM, SIGTERM}, {SIGINT, SIGINT}, {SIGTERM, SIGINT}, {SIGINT, SIGTERM}};
    fault_world();
    for (size_t i = 0; i < 4; i++) {
        struct heard h;
        struct outcome x;
        prepare(&phases[3]);
        send(FAULT_LORA "--num_train_epochs 500 --save_steps 20", -1, 1, pairs[i][0], pairs[i][1], &h);
        /* Two kinds that are both pending: the kernel delivers the lower number first. */
        CHECK(h.code == 128 + pairs[i][0] || h.code == 128 + pairs[i][1], "signals %d and %d: exit status %d\n%s", pairs[i][0], pairs[i][1], h.code, h.said);
        CHECK(h.latency < 2, "signals %d and %d: %.1f s", pairs[i][0], pairs[i][1], h.latency);
        fault_run(FAULT_LORA "--max_steps 4", NULL, &x);
        CHECK(!x.code, "then exit status %d\n%s", x.code, x.said);
    }
}

TEST(while_waiting_for_input) {
    static const char *const waits[] = {"tokenize --model_name_or_path m --file -", "score --model_name_or_path m --file - --quiet", "chat --model_name_or_path m --quiet"};
    fault_world();
    for (int i = 0; i < 6; i++) {
        struct heard h;
        int fd[2], sig = i & 1 ? SIGINT : SIGTERM;
        if (pipe2(fd, O_CLOEXEC)) perror("pipe"), abort();
        send(waits[i / 2], fd[0], 1, sig, 0, &h);
        CHECK(h.code == 128 + sig, "%s: signal %d gave exit status %d\n%s", waits[i / 2], sig, h.code, h.said);
        CHECK(h.latency < 3, "%s: %.1f s after the signal", waits[i / 2], h.latency);
        close(fd[0]), close(fd[1]);
    }
}

/* SIGUSR1 saves and goes on. */
TEST(save_and_go_on) {
    struct heard h;
    char **names;
    int n, saved = 0;
    fault_world();
    prepare(&phases[3]);
    send(FAULT_LORA "--num_train_epochs 400 --save_steps 100000", -1, 0.5, SIGUSR1, 0, &h);
    CHECK(!h.code, "exit status %d\n%s", h.code, h.said);
    REQUIRE(!dir_list("out", &names, &n, NULL), "no output folder");
    for (int i = 0; i < n; i++) saved += text_starts(names[i], "checkpoint-");
    dir_list_free(names, n);
    CHECK(saved == 2 && path_exists("out/adapter_model.safetensors"), "%d checkpoints: that of the signal and the last", saved);
}
TEST_MAIN
