/* tests/run/lost_card.c - a plugin that is a card to everybody above the door: the CPU backend, reached through memory of its
 * own (pages are copied in and out) and lost at call N of alloc, copy, mark, wait or sync, by the rules of
 * backend/cuda/cuda.cu: QLORA_FAULT=cuda:N, cuda:0 counts. So tests/run/gpu_faults.sh runs without a card too. */
#include "backend/backend.h"
#include "base/log.h"
#include <stdio.h>
#include <stdlib.h>

static struct backend card, *cpu;
static struct err failure;
static long long calls, fault_at = -1;

static int lost(void) {
    if (!failure.code && ++calls == fault_at) err_set(&failure, ERR_RUN, "the card failed: call %lld of a test; nothing helps", calls);
    return card.failed = failure.code != 0;
}

static void info(void *self, struct backend_info *out) {
    *out = (struct backend_info){.name = "lost_card", .activation = DT_F32};
    if (lost()) return;
    cpu->info(self, out);
    out->unified = 0;
}
static void *alloc(void *self, enum place place, size_t bytes) { return lost() ? NULL : cpu->alloc(self, place, bytes); }
static void release(void *self, enum place place, void *p) {
    if (p) lost(), cpu->release(self, place, p); /* even then: leaks of the program shall show */
}
static void move(void *self, void *dst, const void *src, size_t bytes, enum queue q) {
    if (bytes && !lost()) cpu->copy(self, dst, src, bytes, q);
}
static void zero(void *self, void *dst, size_t bytes, enum queue q) {
    if (bytes && !lost()) cpu->zero(self, dst, bytes, q);
}
static int64_t mark(void *self, enum queue q) { return lost() ? 1 : cpu->mark(self, q); }
static void wait(void *self, enum queue q, int64_t ticket) {
    if (!lost()) cpu->wait(self, q, ticket);
}
static void wait_host(void *self, int64_t ticket) {
    if (!lost()) cpu->wait_host(self, ticket);
}
static int sync(void *self, struct err *e) { return lost() ? err_set(e, failure.code, "%s", failure.text) : cpu->sync(self, e); }
static int reserve(void *self, const struct backend_limits *l, struct err *e) { return sync(self, e) ? -1 : cpu->reserve(self, l, e); }
static void close_card(void *self) {
    if (!fault_at) log_info("QLORA_FAULT: %lld calls to the card", calls);
    cpu->close(self);
}

struct backend *qlora_backend(int version, struct err *e);
__attribute__((visibility("default"))) struct backend *qlora_backend(int version, struct err *e) {
    const char *s = getenv("QLORA_FAULT");
    if (version != BACKEND_VERSION || (s && sscanf(s, "cuda:%lld", &fault_at) < 1) || !(cpu = backend_cpu(e))) return NULL;
    card = *cpu;
    card.info = info, card.alloc = alloc, card.release = release, card.put = card.get = card.copy = move, card.zero = zero;
    card.mark = mark, card.wait = wait, card.wait_host = wait_host, card.sync = sync, card.reserve = reserve, card.close = close_card;
    return &card;
}
