/* The machine side of the CPU backend, the wrappers' checks and counters, and opening by name. */
#include "tests/ops/ops.h"
#include <errno.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

TEST(memory_is_aligned_and_copies_are_immediate) {
    struct err e = {0};
    struct backend *b = backend_open("cpu", &e);
    REQUIRE(b, "%s", e.text);
    struct backend_info i;
    b->info(b->self, &i);
    CHECK(i.activation == DT_F32 && i.unified && i.total_bytes > 0 && !strcmp(i.name, "cpu") && i.detail[0], "%s %s", i.name, i.detail);
    for (int n = 1; n < 600; n += 37) {
        char *p = b->alloc(b->self, AT_DEVICE, (size_t)n), *q = b->alloc(b->self, AT_HOST, (size_t)n), text[600];
        REQUIRE(p && q && (uintptr_t)p % 256 == 0 && (uintptr_t)q % 256 == 0, "%p %p", p, q);
        for (int j = 0; j < n; j++) text[j] = (char)(j * 7);
        b->put(b->self, p, text, (size_t)n, Q_IN);
        int64_t ticket = b->mark(b->self, Q_IN);
        b->wait(b->self, Q_COMPUTE, ticket);
        b->copy(b->self, q, p, (size_t)n, Q_COMPUTE);
        b->copy(b->self, q, q, (size_t)n, Q_COMPUTE); /* onto itself: nothing */
        b->zero(b->self, p, (size_t)n, Q_COMPUTE);
        b->wait_host(b->self, ticket);
        b->get(b->self, text, p, (size_t)n, Q_OUT);
        CHECK(text[0] == 0 && text[n - 1] == 0 && q[n - 1] == (char)((n - 1) * 7), "n %d", n);
        b->release(b->self, AT_DEVICE, p), b->release(b->self, AT_HOST, q);
    }
    b->release(b->self, AT_DEVICE, NULL);
    CHECK(!b->sync(b->self, &e), "%s", e.text);
    CHECK(!b->alloc(b->self, AT_DEVICE, SIZE_MAX - 10), "got too much");
    backend_close(b);
}

TEST(workspace_is_what_reserve_takes) {
    struct err e = {0};
    struct backend_limits small = {.rows = 64, .D = 64, .F = 256, .H = 4, .K = 16, .V = 100, .R = 8}, large = small;
    large.rows = 100000, large.D = 8192, large.F = 32768, large.V = 135040, large.K = 128;
    struct backend *b = backend_cpu(&e);
    size_t s = b->workspace(b->self, &small), l = b->workspace(b->self, &large);
    CHECK(s > (1 << 20) && l > s && l < (size_t)600 << 20, "%zu, %zu bytes", s, l);
    CHECK(!b->reserve(b->self, &small, &e), "%s", e.text);
    sys_fault = (struct sys_fault){.kinds = "a", .at = 1, .error = ENOMEM};
    CHECK(b->reserve(b->self, &large, &e) && strstr(e.text, "workspace"), "%s", e.text);
    sys_fault = (struct sys_fault){0};
    e = (struct err){0};
    CHECK(!b->reserve(b->self, &small, &e), "a second try: %s", e.text);
    backend_close(b);
    sys_fault = (struct sys_fault){.kinds = "a", .at = 1, .error = ENOMEM};
    CHECK(!backend_open("cpu", &e) && e.code == ERR_RUN, "%s", e.text);
    sys_fault = (struct sys_fault){0};
}

/* A table that is the CPU's but for what stands here. */
static char trace[200];
static int lost;
static int64_t room;
static void note_range(void *self, const char *name) {
    (void)self;
    snprintf(trace + strlen(trace), sizeof trace - strlen(trace), "%s%s", name ? name : ")", name ? "(" : "");
}
static int sync_card(void *self, struct err *e) { return (void)self, lost ? err_set(e, ERR_RUN, "the card failed") : 0; }
static void *no_room(void *self, enum place place, size_t bytes) { return (void)self, (void)place, (void)bytes, NULL; }
static void card_info(void *self, struct backend_info *i) { (void)self, *i = (struct backend_info){.free_bytes = room, .total_bytes = 8 << 20}; }

TEST(ranges_full_memory_and_a_lost_card) {
    struct err e = {0};
    struct backend *cpu = backend_cpu(&e), card = *cpu;
    float x = 3;
    double out = 0;
    const float *list[] = {&x};
    struct sqsum_args a = {.x = list, .n = (int64_t[]){1}, .count = 1, .out = &out};
    card.range = note_range, card.sync = sync_card, card.alloc = no_room, card.info = card_info;

    backend_range(&card, "layer %d", 3), op_sqsum(&card, &a), backend_range_end(&card);
    CHECK(!strcmp(trace, "layer 3(sqsum())") && out > 8.9, "%s %g", trace, out);
    backend_range(cpu, "nobody listens"), backend_range_end(cpu);

    room = 1 << 20;
    CHECK(!backend_alloc(&card, AT_DEVICE, 2 << 20, "a page", &e) && strstr(e.text, "a page needs 2 MiB") && strstr(e.text, "only 1 MiB are free") && strstr(e.text, "--vram"), "%s", e.text);
    e.code = 0, room = 4 << 20;
    CHECK(!backend_alloc(&card, AT_DEVICE, 2 << 20, "a page", &e) && strstr(e.text, "in one piece"), "%s", e.text);
    e.code = 0;
    CHECK(!backend_alloc(&card, AT_HOST, 2 << 20, "a page", &e) && strstr(e.text, "host memory"), "%s", e.text);
    CHECK(!backend_failed(&card, &e) && !backend_failed(NULL, &e) && strstr(e.text, "host memory"), "%s", e.text);

    lost = card.failed = 1, out = 0;
    op_sqsum(&card, &a);
    CHECK(out < 1, "an op on a lost card: %g", out);
    CHECK(backend_failed(&card, &e) && !strcmp(e.text, "the card failed"), "%s", e.text); /* in the place of an echo */
    e.code = 0;
    CHECK(!backend_alloc(&card, AT_DEVICE, 8, "a page", &e) && !strcmp(e.text, "the card failed"), "%s", e.text);
    lost = 0;
    backend_close(cpu);
}

/* The path of a shared library that is no backend, from this process's map. */
static const char *some_library(void) {
    static char line[4200];
    FILE *f = fopen("/proc/self/maps", "r");
    char *path = NULL;
    while (f && !path && fgets(line, sizeof line, f))
        if ((path = strchr(line, '/'))) {
            path[strcspn(path, "\n")] = 0;
            if (!strstr(path, "/libm.so")) path = NULL;
        }
    if (f) fclose(f);
    return path;
}

TEST(opening_names_what_is_wrong) {
    struct err e = {0};
    CHECK(!backend_open("gpu", &e) && e.code == ERR_INPUT && strstr(e.text, "gpu"), "%s", e.text);
    e = (struct err){0};
    CHECK(!backend_open("/nowhere/x.so", &e) && e.code == ERR_RUN && strstr(e.text, "/nowhere/x.so"), "%s", e.text);
    const char *library = some_library();
    e = (struct err){0};
    if (library) CHECK(!backend_open(library, &e) && strstr(e.text, "qlora_backend"), "%s", e.text);
    e = (struct err){0};
    CHECK(!backend_open("cuda", &e) && strstr(e.text, "libqlora-cuda.so"), "%s", e.text); /* none beside a test */
    struct backend *b = backend_open(NULL, &e);
    CHECK(b, "%s", e.text);
    backend_close(b);
    backend_close(NULL);
}

TEST(counters_count) {
    enum { N = 4, IN = 10, OUT = 6, R = 2 };
    struct backend *b = backend_for(cpu_kernels_best(), 1, N, 64);
    struct chunk_of c = chunk_new((int[]){N, 0}, 0);
    struct mat x = mat_random(N, IN, 0, 1), w = mat_random(OUT, IN, 0, 1), y = mat_new(N, OUT, 0), A = mat_random(R, IN, 0, 1);
    struct mat B = mat_random(OUT, R, 0, 1), xa = mat_new(N, R, 0);
    op_counts_reset();
    op_timing = 1;
    for (int i = 0; i < 3; i++)
        op_linear(b, &(struct linear_args){.rows = &c.rows, .x = x, .n = 1,
                                           .out = {{.w = {.rows = OUT, .cols = IN, .data = w.data}, .y = y, .xa = xa, .lora = {.A = A, .B = B, .scale = 1}}}});
    op_timing = 0;
    int n, found = 0;
    const struct op_count *count = op_counts(&n);
    for (int i = 0; i < n; i++) {
        if (strcmp(count[i].name, "linear")) CHECK(!count[i].calls, "%s", count[i].name);
        else {
            found++;
            CHECK(count[i].calls == 3 && count[i].flops == 3 * (2.0 * N * IN * OUT + 2.0 * N * R * (IN + OUT)) && count[i].seconds > 0,
                  "%lld calls, %g FLOPs", (long long)count[i].calls, count[i].flops);
            CHECK(count[i].bytes == 3 * 4.0 * (N * IN + N * OUT + OUT * IN), "%g bytes", count[i].bytes);
        }
    }
    CHECK(found == 1, "linear is counted %d times", found);
    op_counts_reset();
    CHECK(!op_counts(&n)[0].calls && op_counts(&n)[4].flops == 0, "not reset");
    backend_close(b), chunk_free(&c);
    mat_free(&x), mat_free(&w), mat_free(&y), mat_free(&A), mat_free(&B), mat_free(&xa);
}

/* 1 if the call ends in an assertion. */
static int aborts(void (*call)(struct backend *b, const struct rows *r, float *p)) {
    fflush(NULL);
    pid_t child = fork();
    if (!child) {
        float p[64] = {0};
        struct chunk_of c = chunk_new((int[]){2, 0}, 0);
        if (!freopen("/dev/null", "w", stderr)) _exit(3);
        call(backend_for(cpu_kernels_best(), 1, 8, 64), &c.rows, p);
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}
static void wrong_shape(struct backend *b, const struct rows *r, float *p) {
    struct mat x = {p, 2, 4, 4, DT_F32}, y = {p + 16, 2, 3, 3, DT_F32};
    op_linear(b, &(struct linear_args){.rows = r, .x = x, .n = 1, .out = {{.w = {.rows = 4, .cols = 4, .data = p}, .y = y}}});
}
static void wrong_rows(struct backend *b, const struct rows *r, float *p) {
    struct mat x = {p, 3, 4, 4, DT_F32};
    op_rope(b, &(struct rope_args){.rows = r, .x = x, .K = 4, .sign = 1});
}
static void wrong_type(struct backend *b, const struct rows *r, float *p) {
    struct mat x = {p, 2, 4, 4, DT_BF16};
    op_norm(b, &(struct norm_args){.rows = r, .x = x, .y = x, .g = p, .eps = 1});
}
static void too_many_rows(struct backend *b, const struct rows *r, float *p) {
    (void)r;
    struct chunk_of c = chunk_new((int[]){9, 0}, 0); /* 8 were reserved */
    struct mat x = {p, 9, 1, 1, DT_F32};
    op_linear_bwd(b, &(struct linear_args){.rows = &c.rows, .x = x, .n = 1, .dx = x,
                                           .out = {{.w = {.rows = 1, .cols = 1, .data = p}, .dy = x, .xa = x, .lora = {.A = {p, 1, 1, 1, DT_F32}, .B = {p, 1, 1, 1, DT_F32}}}}});
}
TEST(wrong_arguments_are_our_bug) {
    CHECK(aborts(wrong_shape) && aborts(wrong_rows) && aborts(wrong_type) && aborts(too_many_rows), "%d %d %d %d", aborts(wrong_shape),
          aborts(wrong_rows), aborts(wrong_type), aborts(too_many_rows));
}
TEST_MAIN
