/* backend/card.c - see card.h */
#include "backend/card.h"
#include "base/str.h"
#include "base/sys.h"
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

/* Clock, multiprocessors, bandwidth: NVIDIA's data sheets and architecture papers (GA100, GA102, AD102, GH100). Memory: what
 * the driver shows. Dense bf16 rates with fp32 accumulation that follow: A100 312, H100 989 at 1830 MHz, L40S 366, A6000 155,
 * 4090 165, 3090 71 TFLOP/s. */
#define MIB(n) ((int64_t)(n) << 20)
const struct card cards[] = {
    {"h100", "NVIDIA H100 80GB SXM", 9, 0, 0, 132, 1980, 3352e9, MIB(81079)},
    {"h200", "NVIDIA H200 141GB SXM", 9, 0, 0, 132, 1980, 4800e9, MIB(143156)},
    {"a100", "NVIDIA A100 80GB SXM", 8, 0, 0, 108, 1410, 2039e9, MIB(81038)},
    {"a100-40", "NVIDIA A100 40GB SXM", 8, 0, 0, 108, 1410, 1555e9, MIB(40326)},
    {"l40s", "NVIDIA L40S", 8, 9, 0, 142, 2520, 864e9, MIB(45495)},
    {"a6000", "NVIDIA RTX A6000", 8, 6, 0, 84, 1800, 768e9, MIB(48541)},
    {"a40", "NVIDIA A40", 8, 6, 0, 84, 1740, 696e9, MIB(45416)},
    {"a10", "NVIDIA A10", 8, 6, 0, 72, 1695, 600e9, MIB(22592)},
    {"4090", "NVIDIA GeForce RTX 4090", 8, 9, 1, 128, 2520, 1008e9, MIB(24081)},
    {"4080", "NVIDIA GeForce RTX 4080", 8, 9, 1, 76, 2505, 717e9, MIB(15944)},
    {"4070ti", "NVIDIA GeForce RTX 4070 Ti", 8, 9, 1, 60, 2610, 504e9, MIB(11994)},
    {"3090", "NVIDIA GeForce RTX 3090", 8, 6, 1, 82, 1695, 936e9, MIB(24122)},
    {"3080", "NVIDIA GeForce RTX 3080", 8, 6, 1, 68, 1710, 760e9, MIB(10009)},
    {"3060", "NVIDIA GeForce RTX 3060", 8, 6, 1, 28, 1777, 360e9, MIB(11909)},
    {0}};

static const char *without_maker(const char *name) {
    static const char *const makers[] = {"NVIDIA ", "GeForce ", "RTX "};
    for (size_t i = 0; i < sizeof makers / sizeof *makers; i++)
        if (!strncasecmp(name, makers[i], strlen(makers[i]))) name += strlen(makers[i]);
    return name;
}

const struct card *card_named(const char *name) {
    name = without_maker(name);
    for (int i = 0; cards[i].name; i++)
        if (!strcasecmp(name, cards[i].name) || !strcasecmp(name, without_maker(cards[i].title))) return &cards[i];
    return NULL;
}

/* The rate that large products keep up: dense bf16 FLOPs of a multiprocessor and cycle, times the share that power and memory
 * leave. sm_90: 680 to 800 of 1070 TFLOP/s were measured (bench/results/h100.jsonl). The other shares are published figures of
 * cuBLAS: A100 250 of 312, 4090 155 of 165, 3090 63 of 71; the L40S (350 W) is assumed at 220 of 366. */
static double product_rate(const struct card *c) {
    int hopper = c->major >= 9, a100 = c->major == 8 && c->minor == 0;
    double cycle = hopper ? 4096 : a100 ? 2048 : c->geforce ? 512 : 1024;
    double share = hopper ? 0.68 : a100 ? 0.8 : c->geforce ? 0.9 : c->minor == 9 ? 0.6 : 0.75;
    return share * cycle * c->sms * c->mhz * 1e6;
}

void card_info(const struct card *c, struct backend_info *out) {
    /* Kernels: 15 to 16 MiB were measured on sm_90. Links: PCIe 5 and 4 with 16 lanes, to and from pinned memory. */
    *out = (struct backend_info){.activation = DT_BF16, .joins = 1, .code_bytes = 16 << 20, .flops = product_rate(c),
                                 .bandwidth = c->bandwidth,
                                 .link = c->major >= 9 ? 50e9 : 24e9, .total_bytes = c->memory};
}

/* Elements of the largest joint operand (backend.h, join): q|k, gate|up, down. */
static size_t largest_joint(size_t D, size_t F, size_t R) {
    size_t qk = (2 * D + 2 * R) * (D + 2 * R + 8), gu = (2 * F + 2 * R) * (D + 2 * R + 8), down = (D + R) * (F + R + 8),
           most = gu > down ? gu : down;
    return most > qk ? most : qk;
}

/* Calls of a few rows (generation, and the tails of chunks) split keys into slices of 256, for up to 8 rows. */
static size_t slice_floats(const struct backend_limits *l) {
    size_t slices = (size_t)(l->sequence + 255) / 256, rows = (size_t)(l->rows < 8 ? l->rows : 8);
    return slices > 1 ? rows * (size_t)l->H * slices * (size_t)(l->K + 2) : 0;
}

void card_work(const struct backend_limits *l, struct card_work *w) {
    size_t D = (size_t)l->D, F = (size_t)l->F, R = (size_t)l->R, rows = (size_t)l->rows, widest = D > F ? D : F;
    *w = (struct card_work){.lt = (size_t)32 << 20, .w16 = l->joined ? 0 : largest_joint(D, F, R) * 2, .rank = rows * LINEAR_MAX * R * 2,
                            .dropped = l->drops ? rows * widest * 2 : 0,
                            .partial = l->trains_weights ? (size_t)64 << 20 : 8 * R * widest * 4,
                            .turns = (size_t)(1 << 16) * 4, .taps = D * D * 2, .bias = D * 2,
                            .pieces = (size_t)32768 * 8, .loss_e = l->head_f32 ? (size_t)(l->V * l->D) * 2 : 0,
                            .slices = slice_floats(l) * 4};
}

size_t card_work_bytes(const struct backend_limits *l) {
    struct card_work w;
    card_work(l, &w);
    const size_t part[] = {w.lt, w.w16, w.rank, w.dropped, w.partial, w.turns, w.taps, w.bias, w.pieces, w.loss_e, w.slices};
    size_t n = 0;
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) n += (part[i] + 255) / 256 * 256;
    return n;
}

/* ---- a backend of arithmetic ---- */

struct paper { struct backend table; const struct card *card; };

/* A process takes about half a GiB for its context before it can allocate. */
static void paper_info(void *self, struct backend_info *out) {
    const struct card *c = ((struct paper *)self)->card;
    card_info(c, out);
    out->free_bytes = c->memory - MIB(512);
    snprintf(out->name, sizeof out->name, "cuda");
    snprintf(out->detail, sizeof out->detail, "%s, sm_%d%d, %d multiprocessors", c->title, c->major, c->minor, c->sms);
}
static size_t paper_workspace(void *self, const struct backend_limits *l) { return (void)self, card_work_bytes(l); }
static int paper_sync(void *self, struct err *e) { return (void)self, (void)e, 0; }
static void paper_close(void *self) { sys_free(self); }

struct backend *backend_card(const struct card *c, struct err *e) {
    struct paper *p = sys_alloc(sizeof *p, "the card", e);
    if (!p) return NULL;
    *p = (struct paper){.table = {.version = BACKEND_VERSION, .self = p, .info = paper_info, .workspace = paper_workspace, .sync = paper_sync, .close = paper_close}, .card = c};
    return &p->table;
}

int64_t card_used_bytes(void) {
    struct { unsigned long long total, free, used; } memory; /* nvmlMemory_t */
    int (*start)(void), (*stop)(void), (*count)(unsigned *), (*at)(unsigned, void **), (*ask)(void *, void *);
    void *const to[] = {&start, &stop, &count, &at, &ask};
    static const char *const names[] = {"nvmlInit_v2", "nvmlShutdown", "nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetMemoryInfo"};
    int64_t sum = 0;
    unsigned n = 0;
    void *lib = sys_library("libnvidia-ml.so.1"); /* stays loaded */
    int bad = !lib;
    for (size_t i = 0; i < sizeof names / sizeof *names && !bad; i++) {
        void *symbol = dlsym(lib, names[i]);
        bad = !symbol;
        memcpy(to[i], &symbol, sizeof symbol);
    }
    if (!bad && !(bad = start())) {
        bad = count(&n);
        for (unsigned i = 0; i < n && !bad; i++) {
            void *device;
            bad = at(i, &device) || ask(device, &memory);
            if (!bad) sum += (int64_t)memory.used;
        }
        stop();
    }
    return bad ? -1 : sum;
}
