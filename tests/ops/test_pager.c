/* Pages with homes on the device, in host memory and in a file: what is got is what was put in, whatever the homes and the order;
 * the plan's arithmetic of copies and reads against what happens; and every call to the file that can fail. On the CPU, and on a
 * card (QLORA_BACKEND=cuda). */
#include "tests/test.h"
#include "base/file.h"
#include "base/jobs.h"
#include "base/sys.h"
#include "pager/pager.h"
#include <errno.h>
#include <unistd.h>

enum { COUNT = 13, BYTES = 70001, THREADS = 4 };
static struct backend *be;
static struct err e;
static char folder[64] = "/tmp/qlora-test-pager-XXXXXX";

static int open_backend(void) {
    if (!be) be = backend_open(getenv("QLORA_BACKEND") ? getenv("QLORA_PLUGIN") ? getenv("QLORA_PLUGIN") : "cuda" : "cpu", &e);
    if (be && strstr(folder, "XXXXXX") && !mkdtemp(folder)) return 0;
    return be != NULL;
}

static unsigned char byte_of(int64_t page, size_t i) { return (unsigned char)(((uint64_t)i * 2654435761u >> 9) + (uint64_t)page * 37); }

struct family { struct pages *p; struct filler *f; size_t bytes; };
enum { PARTS = 3 };
static int fill_part(void *context, int64_t i, int thread, struct err *why) {
    struct family *x = context;
    const size_t part = x->bytes / PARTS, at = (size_t)(i % PARTS) * part, n = i % PARTS == PARTS - 1 ? x->bytes - at : part;
    unsigned char *own = malloc(n);
    (void)thread;
    for (size_t k = 0; k < n; k++) own[k] = byte_of(i / PARTS, at + k);
    int r = filler_copy(x->f, x->p, i / PARTS, at, own, n, why);
    free(own);
    return r;
}
static struct pages *make(int64_t resident, int64_t files, int slots, int ring, size_t bytes) {
    struct pages_config c = {.name = "pages", .count = COUNT, .page_bytes = bytes, .resident = resident, .spread = 1, .files = files, .dir = folder, .slots = resident < COUNT ? slots : 0, .ring = files ? ring : 0};
    struct family x = {.p = pages_open(be, &c, &e), .bytes = bytes};
    if (!x.p) return NULL;
    int r = (x.f = filler_open(be, THREADS, &e)) ? jobs_run(COUNT * PARTS, THREADS, fill_part, &x, &e) : -1;
    if (filler_close(x.f, &e) || r) return pages_close(x.p), NULL;
    return x.p;
}

/* Gets page i and looks at all of it, as compute would see it. */
static int visit(struct pages *p, int64_t i) {
    const size_t n = pages_bytes(p, i);
    unsigned char *seen = malloc(n);
    size_t bad = 0;
    void *at = pages_get(p, i, PAGE_READ);
    be->get(be->self, seen, at, n, Q_COMPUTE);
    if (be->sync(be->self, &e)) bad++;
    for (size_t k = 0; k < n; k++) bad += seen[k] != byte_of(i, k);
    free(seen);
    return !bad;
}

/* To and fro as training goes. */
static int sweeps(struct pages *p, int n) {
    int good = 1;
    for (int s = 0; s < n; s++)
        for (int64_t k = 0; k < COUNT; k++) {
            const int64_t i = s & 1 ? COUNT - 1 - k : k;
            good &= visit(p, i);
            pages_want(p, s & 1 ? i - 1 : i + 1);
            pages_put(p, i, 0);
        }
    return good;
}

TEST(homes_are_spread_and_add_up) {
    for (int64_t r = 0; r <= COUNT + 1; r++)
        for (int64_t f = 0; f <= (r < COUNT ? COUNT - r : 0); f++) {
            struct pages_config c = {.name = "pages", .count = COUNT, .page_bytes = 8192, .resident = r, .spread = 1, .files = f, .slots = 2, .ring = 3};
            int64_t n[3] = {0}, device, host, disk, streamed = 0;
            for (int64_t i = 0; i < COUNT; i++) {
                const enum page_home home = pages_place(&c, i);
                n[home]++, streamed = home == HOME_DEVICE ? 0 : streamed + 1;
                CHECK(streamed <= (COUNT + r) / (r ? r : 1), "%lld in a row of %lld resident", (long long)streamed, (long long)r);
            }
            pages_cost(&c, &device, &host, &disk);
            CHECK(n[HOME_DEVICE] == (r < COUNT ? r : COUNT) && n[HOME_FILE] == f, "%lld, %lld of %lld, %lld", (long long)n[0], (long long)n[2], (long long)r, (long long)f);
            CHECK(disk == f * 8192 && device == (n[HOME_DEVICE] + (r < COUNT ? 2 : 0)) * 8192, "%lld, %lld", (long long)device, (long long)disk);
            CHECK(host == n[HOME_HOST] * 8192 + (f ? 3 * 8192 + 4096 : 0), "%lld", (long long)host);
        }
}

TEST(what_is_got_is_what_was_put_in) {
    REQUIRE(open_backend(), "%s", e.text);
    static const struct { int64_t resident, files; int slots, ring; } c[] = {{0, 0, 2, 0}, {COUNT, 0, 0, 0}, {5, 0, 2, 0}, {0, COUNT, 2, 2}, {0, COUNT, 2, 3}, {0, COUNT, 3, 5}, {4, 9, 2, 2}, {4, 5, 2, 3}, {12, 1, 2, 2}, {1, 1, 3, 2}, {0, 6, 2, 3}};
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        struct pages *p = make(c[i].resident, c[i].files, c[i].slots, c[i].ring, BYTES + i);
        REQUIRE(p, "%s", e.text);
        CHECK(sweeps(p, 4), "case %zu, to and fro: %s", i, e.text);
        for (int64_t k = 0; k < 40; k++) { /* in no order, wanted or not, or something else wanted */
            const int64_t at = k * k * 7 % COUNT;
            if (k % 3) pages_want(p, k % 3 == 1 ? at : (at + 5) % COUNT);
            CHECK(visit(p, at), "case %zu, page %lld: %s", i, (long long)at, e.text);
            pages_put(p, at, 0);
        }
        for (int s = 0; s < 2; s++) /* evaluation: up, and up again */
            for (int64_t k = 0; k < COUNT; k++) {
                CHECK(visit(p, k), "case %zu, page %lld: %s", i, (long long)k, e.text);
                pages_want(p, k + 1), pages_want(p, k + 1), pages_put(p, k, 0);
            }
        CHECK(!pages_failed(p, &e), "%s", e.text);
        pages_close(p);
    }
}

/* Larger than what threads read and fill at once. */
TEST(large_pages) {
    REQUIRE(open_backend(), "%s", e.text);
    struct pages *p = make(2, 8, 2, 3, 3 * FILL_PIECE + 5);
    REQUIRE(p, "%s", e.text);
    CHECK(sweeps(p, 2), "%s", e.text);
    pages_close(p);
}

TEST(parts_of_pages) {
    REQUIRE(open_backend(), "%s", e.text);
    struct pages *p = make(4, 5, 2, 2, BYTES);
    REQUIRE(p && sweeps(p, 1), "%s", e.text);
    unsigned char own[3000], back[3000];
    for (int64_t i = 0; i < COUNT; i++) {
        for (size_t k = 0; k < sizeof own; k++) own[k] = (unsigned char)~byte_of(i, 501 + k);
        CHECK(!pages_write(p, i, 501, own, sizeof own, &e) && !pages_read(p, i, 501, back, sizeof back, &e) && !memcmp(own, back, sizeof own), "page %lld: %s", (long long)i, e.text);
        CHECK(!visit(p, i), "page %lld is what it was", (long long)i);
        pages_put(p, i, 0);
        for (size_t k = 0; k < sizeof own; k++) own[k] = byte_of(i, 501 + k);
        CHECK(!pages_write(p, i, 501, own, sizeof own, &e), "%s", e.text);
    }
    CHECK(sweeps(p, 3), "%s", e.text);
    pages_close(p);
    p = make(4, 0, 2, 0, 3 * FILL_PIECE + 5);
    REQUIRE(p, "%s", e.text);
    for (int64_t i = 0; i < COUNT; i += 4) {
        CHECK(!pages_zero(p, i, &e), "%s", e.text);
        for (size_t at = 0; at < pages_bytes(p, i); at += FILL_PIECE / 2 + 77)
            CHECK(!pages_read(p, i, at, back, 1, &e) && !back[0], "page %lld, byte %zu: %s", (long long)i, at, e.text);
    }
    pages_close(p);
}

/* With more room than pages the file is read once; else a sweep reads what the plan says, and less than a page more. */
TEST(reads_of_a_sweep) {
    REQUIRE(open_backend(), "%s", e.text);
    static const struct { int64_t resident, files; int ring; } c[] = {{0, COUNT, 3}, {0, COUNT, 2}, {4, 9, 4}, {4, 5, 3}, {0, 3, 3}};
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        struct pages_config k = {.count = COUNT, .page_bytes = BYTES, .resident = c[i].resident, .spread = 1, .files = c[i].files, .slots = 2, .ring = c[i].ring};
        double copied, read;
        struct pages *p = make(c[i].resident, c[i].files, 2, c[i].ring, BYTES);
        REQUIRE(p && sweeps(p, 2), "%s", e.text);
        pages_moved(&k, &copied, &read);
        sys_fault = (struct sys_fault){.kinds = "r", .at = INT64_MAX, .error = EIO}; /* counts */
        CHECK(sweeps(p, 4), "%s", e.text);
        for (int64_t seen = -1; seen != sys_fault.calls;) seen = sys_fault.calls, usleep(50000); /* what is read ahead of the next sweep */
        const double reads = (double)sys_fault.calls, page = (BYTES + 4095) / 4096 * 4096;
        sys_fault = (struct sys_fault){0};
        CHECK(reads * page <= 4 * (read + page) && reads * page >= 4 * (read - page), "case %zu: %g reads, the plan says %g", i, reads, 4 * read / page);
        pages_close(p);
    }
}

/* Every call fails once: the words say what, and nothing hangs or is left. */
TEST(the_disk_fails) {
    REQUIRE(open_backend(), "%s", e.text);
    static const struct { const char *kind; int error; const char *words; } c[] = {{"o", ENOSPC, "cannot make a page file in"}, {"w", ENOSPC, ""}, {"s", EIO, "cannot write the page file in"}, {"u", EIO, "cannot remove"}, {"r", EIO, "cannot read the page file in"}};
    for (size_t i = 0; i < sizeof c / sizeof *c; i++)
        for (int at = 1; at < 60; at += at < 8 ? 1 : 7) {
            e = (struct err){0};
            sys_fault = (struct sys_fault){.at = at, .error = c[i].error};
            snprintf(sys_fault.kinds, sizeof sys_fault.kinds, "%s", c[i].kind);
            struct pages *p = make(4, 6, 2, 3, BYTES);
            const int64_t made = sys_fault.calls;
            if (p) {
                sweeps(p, 2);
                int seen = 0;
                for (int k = 0; k < 1000 && !seen; k++) { /* what is read ahead fails a moment after it is counted */
                    usleep(2000);
                    const int failed = pages_failed(p, &e) != 0;
                    seen = *c[i].kind != 'r' || failed == (sys_fault.calls >= at);
                }
                CHECK(seen, "read %d fails unseen", at);
            }
            const int64_t calls = sys_fault.calls;
            sys_fault = (struct sys_fault){0};
            if (*c[i].kind == 'o' && at == 2) CHECK(p && !e.code, "without direct reads it goes on: %s", e.text);
            else if (*c[i].kind == 'w' && at == 2) CHECK(!p, "the last byte is not written");
            else if (*c[i].kind != 'r') CHECK(!p == (made >= at), "%s %d of %lld: %s", c[i].kind, at, (long long)made, e.text);
            if (e.code) CHECK(e.code == ERR_RUN && strstr(e.text, c[i].words) && strstr(e.text, folder) && !strchr(e.text, '\n'), "%s %d: %s", c[i].kind, at, e.text);
            pages_close(p);
            if (calls < at) break;
        }
    e = (struct err){0};
    for (int soft = 0; soft < 2; soft++) { /* short or interrupted calls are gone on with */
        for (int at = 1; at < 40; at += 3) {
            sys_fault = (struct sys_fault){.kinds = "rw", .at = at, .error = soft ? EINTR : SYS_SHORT};
            struct pages *p = make(4, 6, 2, 3, BYTES);
            CHECK(p && sweeps(p, 2) && !pages_failed(p, &e), "call %d: %s", at, e.text);
            sys_fault = (struct sys_fault){0};
            pages_close(p);
        }
    }
    char **names, path[400];
    int n = 0;
    REQUIRE(!dir_list(folder, &names, &n, &e), "%s", e.text);
    CHECK(n == 1, "%d files are left: one, whose name could not be taken away", n);
    for (int i = 0; i < n; i++)
        if (!path_join(path, sizeof path, folder, names[i], &e)) unlink(path);
    dir_list_free(names, n);
}

TEST(folders) {
    REQUIRE(open_backend(), "%s", e.text);
    CHECK(pages_disk_rate(folder, &e) > 1e6, "%s", e.text);
    CHECK(pages_disk_rate("/nowhere", &e) <= 0 && strstr(e.text, "cannot make a page file in /nowhere"), "%s", e.text);
    e = (struct err){0};
    struct pages_config c = {.name = "layer weights", .count = 1000, .page_bytes = (size_t)1 << 45, .files = 1000, .dir = folder, .slots = 0, .ring = 2, .resident = 0};
    c.page_bytes = 1 << 20, c.count = c.files = (int64_t)1 << 24;
    struct pages *p = pages_open(be, &c, &e);
    CHECK(!p && strstr(e.text, "layer weights need 16 TiB of disk in") && strstr(e.text, "--page_dir"), "%s", e.text);
    pages_close(p);
    e = (struct err){0};
    rmdir(folder);
    snprintf(folder, sizeof folder, "/dev/shm"); /* where nothing is read past the page cache */
    if (path_is_dir(folder)) {
        p = make(0, COUNT, 2, 2, BYTES);
        CHECK(p && sweeps(p, 3) && !pages_failed(p, &e), "%s", e.text);
        pages_close(p);
    }
}

TEST_MAIN
