/* tests/unit/test_pager.c - pager: pages on a card whose three queues run in every order that their waits allow. Copies are noted
 * and done late, in random turns between queues; a wait that is missing shows as a page with the wrong bytes. */
#include "pager/pager.h"
#include "tests/test.h"

enum { PAGES = 7, BYTES = 64, ITEMS = 4096, QUEUES = 3 };

/* ---- the card ---- */

struct item {
    int64_t ticket;                   /* to wait for, or 0 */
    void *dst;
    const void *src;
    size_t bytes;                     /* to copy */
    const unsigned char *read;        /* a kernel: must hold `value` throughout */
    unsigned char *write, value;      /* a kernel: is filled with it */
};
static struct item item[QUEUES][ITEMS];
static int64_t queued[QUEUES], done[QUEUES]; /* a ticket of queue q is (1 + queued) * QUEUES + q */
static uint64_t dice;
static int wrong;

static int roll(int n) {
    dice = dice * 6364136223846793005u + 1442695040888963407u;
    return (int)((dice >> 33) % (uint64_t)n);
}
static struct item *note(enum queue q) {
    ASSERT(queued[q] - done[q] < ITEMS, "%d items", ITEMS);
    struct item *x = &item[q][queued[q]++ % ITEMS];
    *x = (struct item){0};
    return x;
}

static int reached(int64_t ticket) { return done[ticket % QUEUES] >= ticket / QUEUES - 1; }

/* One item of a queue whose first can run; 0 when there is none left. */
static int one_turn(void) {
    int start = roll(QUEUES), left = 0;
    for (int k = 0; k < QUEUES; k++) {
        int q = (start + k) % QUEUES;
        if (done[q] == queued[q]) continue;
        const struct item *x = &item[q][done[q] % ITEMS];
        left = 1;
        if (x->ticket && !reached(x->ticket)) continue;
        if (x->bytes) memcpy(x->dst, x->src, x->bytes);
        for (int i = 0; x->read && i < BYTES; i++) wrong += x->read[i] != x->value;
        if (x->write) memset(x->write, x->value, BYTES);
        done[q]++;
        return 1;
    }
    ASSERT(!left, "the queues wait for one another");
    return 0;
}

static void info(void *self, struct backend_info *out) { (void)self, *out = (struct backend_info){.name = "late", .activation = DT_F32}; }
static void *alloc(void *self, enum place place, size_t bytes) { (void)self, (void)place; return calloc(1, bytes); }
static void release(void *self, enum place place, void *p) { (void)self, (void)place, free(p); }
static void move(void *self, void *dst, const void *src, size_t bytes, enum queue q) {
    (void)self;
    struct item *x = note(q);
    x->dst = dst, x->src = src, x->bytes = bytes;
}
static int64_t mark(void *self, enum queue q) { (void)self; return (1 + queued[q]) * QUEUES + (int64_t)q; }
static void wait(void *self, enum queue q, int64_t ticket) {
    (void)self;
    note(q)->ticket = ticket;
}
static void wait_host(void *self, int64_t ticket) {
    (void)self;
    while (!reached(ticket)) one_turn();
}
static int sync(void *self, struct err *e) {
    (void)self, (void)e;
    while (one_turn()) {}
    return 0;
}
static struct backend late = {.info = info, .alloc = alloc, .release = release, .put = move, .get = move, .copy = move, .mark = mark, .wait = wait, .wait_host = wait_host, .sync = sync};

/* A kernel that needs the page to hold `expect`, one that fills it. */
static void reads(const void *page, unsigned char expect) {
    struct item *x = note(Q_COMPUTE);
    x->read = page, x->value = expect;
}
static void writes(void *page, unsigned char fill) {
    struct item *x = note(Q_COMPUTE);
    x->write = page, x->value = fill;
}

/* ---- tests ---- */

/* Random visits to pages, as many as the queues hold, with two pages wanted ahead; then all pages are read back. */
static void visits(int64_t resident, int slots, uint64_t seed) {
    struct err e = {0};
    struct pages_config c = {.name = "test", .count = PAGES, .page_bytes = BYTES, .resident = resident, .slots = slots};
    struct pages *p = pages_open(&late, &c, &e);
    unsigned char holds[PAGES], got[BYTES], next = 1;
    REQUIRE(p, "%s", e.text);
    dice = seed, wrong = 0;
    for (int i = 0; i < PAGES; i++) {
        memset(got, holds[i] = next++, BYTES);
        REQUIRE(!pages_write(p, i, 0, got, BYTES, &e), "%s", e.text);
    }
    for (int turn = 0; turn < 200; turn++) {
        int i = roll(PAGES), mode = roll(3), ahead = roll(PAGES);
        void *data = pages_get(p, i, mode == 0 ? PAGE_READ : mode == 1 ? PAGE_READ_WRITE : PAGE_WRITE);
        if (slots > 2 && ahead != i) pages_want(p, ahead);
        const unsigned char write = mode ? (next = (unsigned char)(next % 250 + 1)) : 0;
        if (mode < 2) reads(data, holds[i]);
        if (write) writes(data, holds[i] = write);
        pages_put(p, i, write != 0);
        if (slots > 2 && ahead != i) { /* what was wanted is used next, or the slot stays held */
            data = pages_get(p, ahead, PAGE_READ);
            reads(data, holds[ahead]);
            pages_put(p, ahead, 0);
        }
        if (roll(4) == 0) one_turn();
        if (roll(60) == 0) sync(NULL, &e);
    }
    for (int i = 0; i < PAGES; i++) {
        REQUIRE(!pages_read(p, i, 0, got, BYTES, &e), "%s", e.text);
        for (int k = 0; k < BYTES; k++) wrong += got[k] != holds[i];
    }
    CHECK(!wrong, "%lld resident, %d slots, seed %llu: %d bytes are wrong", (long long)resident, slots, (unsigned long long)seed, wrong);
    pages_close(p);
}

TEST(any_order_of_the_queues_gives_the_same_pages) {
    for (uint64_t seed = 1; seed <= 40; seed++)
        for (int slots = 2; slots <= 4; slots++) {
            visits(0, slots, seed);
            visits(3, slots, seed + 1000);
        }
    visits(PAGES, 0, 1);
}

TEST(a_page_that_is_held_keeps_its_slot) {
    struct err e = {0};
    struct pages_config c = {.name = "test", .count = PAGES, .page_bytes = BYTES, .slots = 3};
    struct pages *p = pages_open(&late, &c, &e);
    unsigned char fill[BYTES];
    REQUIRE(p, "%s", e.text);
    wrong = 0;
    for (int i = 0; i < PAGES; i++) {
        memset(fill, i + 1, BYTES);
        REQUIRE(!pages_write(p, i, 0, fill, BYTES, &e), "%s", e.text);
    }
    const void *held = pages_get(p, 0, PAGE_READ);
    for (int i = 1; i < PAGES; i++) { /* twice as many as there are slots */
        const void *other = pages_get(p, i, PAGE_READ);
        CHECK(other != held, "page %d took the slot", i);
        reads(other, (unsigned char)(i + 1)), reads(held, 1);
        pages_put(p, i, 0);
    }
    pages_put(p, 0, 0);
    CHECK(!sync(NULL, &e) && !wrong, "%d bytes are wrong", wrong);
    pages_close(p);
}

TEST(costs) {
    int64_t device, host, disk;
    const size_t bytes[] = {100, 700, 300};
    pages_cost(&(struct pages_config){.name = "a", .count = 10, .page_bytes = 300, .resident = 4, .slots = 3}, &device, &host, &disk);
    CHECK(device == 4 * 512 + 3 * 512 && host == 6 * 512 && !disk, "%lld %lld", (long long)device, (long long)host);
    const struct pages_config one = {.name = "b", .count = 3, .bytes = bytes, .resident = 1, .slots = 2};
    const int64_t aligned[] = {256, 768, 512};
    int64_t resident = 0, others = 0, largest = 0, n = 0;
    for (int i = 0; i < 3; i++) {
        if (pages_place(&one, i) == HOME_DEVICE) resident += aligned[i], n++;
        else others += aligned[i], largest = aligned[i] > largest ? aligned[i] : largest;
    }
    pages_cost(&one, &device, &host, &disk);
    CHECK(n == 1 && device == resident + 2 * largest && host == others, "%lld resident, %lld %lld", (long long)n, (long long)device, (long long)host);
    pages_cost(&(struct pages_config){.name = "c", .count = 3, .bytes = bytes, .resident = 3}, &device, &host, &disk);
    CHECK(device == 256 + 768 + 512 && !host, "%lld %lld", (long long)device, (long long)host);
}

TEST_MAIN
