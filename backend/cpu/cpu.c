/* backend/cpu/cpu.c - the machine side of the CPU backend: memory, workspace, the table.
 *
 * Device memory is host memory and all queues are the caller's thread: copies are done when they return, tickets mean nothing.
 */
#include "backend/cpu/cpu_internal.h"
#include "base/sys.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void cpu_info(void *self, struct backend_info *out) {
    const struct cpu *c = self;
    long pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
    /* A core of Zen 3 keeps up 70 GFLOP/s of fp32 products (bench/cpu_ops); memory: two channels of DDR4. */
    *out = (struct backend_info){.name = "cpu", .activation = DT_F32, .unified = 1, .flops = 7e10 * c->threads,
                                 .bandwidth = 4e10, .link = 5e9, .free_bytes = sys_free_memory(),
                                 .total_bytes = (int64_t)pages * page_bytes};
    snprintf(out->detail, sizeof out->detail, "%d threads, %s", c->threads, c->k->name);
}

/* 256-byte aligned, with the allocation's own address in front. */
static void *cpu_alloc(void *self, enum place place, size_t bytes) {
    (void)self, (void)place;
    enum { ALIGN = 256 };
    char *raw = bytes > SIZE_MAX - ALIGN ? NULL : sys_alloc(bytes + ALIGN, "backend memory", NULL);
    if (!raw) return NULL;
    char *p = raw + ALIGN - (uintptr_t)raw % ALIGN; /* at least 64 behind: raw is 64-byte aligned */
    memcpy(p - sizeof raw, &raw, sizeof raw);
    return p;
}

static void cpu_release(void *self, enum place place, void *p) {
    (void)self, (void)place;
    char *raw;
    if (!p) return;
    memcpy(&raw, (char *)p - sizeof raw, sizeof raw);
    sys_free(raw);
}

static void cpu_copy(void *self, void *dst, const void *src, size_t bytes, enum queue q) {
    (void)self, (void)q;
    if (dst != src && bytes) memcpy(dst, src, bytes);
}

static void cpu_zero(void *self, void *dst, size_t bytes, enum queue q) {
    (void)self, (void)q;
    if (bytes) memset(dst, 0, bytes);
}

static int64_t cpu_mark(void *self, enum queue q) { (void)self, (void)q; return 0; }
static void cpu_wait(void *self, enum queue q, int64_t ticket) { (void)self, (void)q, (void)ticket; }
static void cpu_wait_host(void *self, int64_t ticket) { (void)self, (void)ticket; }
static int cpu_sync(void *self, struct err *e) { (void)self, (void)e; return 0; }

static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* Rows of logits held at once when the caller has no wish: 128 MiB of them, since E is decoded twice per slice. */
static int64_t loss_rows(const struct backend_limits *l) {
    int64_t rows = l->loss_slice ? l->loss_slice : ((int64_t)128 << 20) / 4 / max64(l->V, 1);
    if (!l->loss_slice && rows > 1024) rows = 1024;
    return max64(rows, LOSS_BLOCK);
}

/* Cuts the workspace at p (NULL: only its size is wanted) for these limits. */
static size_t lay_workspace(struct cpu *c, const struct backend_limits *l, char *p) {
    size_t at = 0, slice = (size_t)loss_rows(l), widest = (size_t)max64(l->D, l->F);
    size_t scratch = product_scratch_bytes(), attend = attend_scratch_bytes(c->k, l->K);
    c->scratch_bytes = ((scratch > attend ? scratch : attend) + 4095) / 4096 * 4096;
    const struct { void **part; size_t bytes; } part[] = {
        {(void **)&c->left, (size_t)STEP_M * STEP_K * sizeof(float)},
        {(void **)&c->scratch, c->scratch_bytes * (size_t)c->threads},
        {(void **)&c->rank, (size_t)l->rows * LINEAR_MAX * (size_t)l->R * sizeof(float)},
        {(void **)&c->vector, widest * sizeof(float)},
        {(void **)&c->slice, DROP_ROWS * widest * sizeof(float)},
        {(void **)&c->logits, slice * (size_t)l->V * sizeof(float)},
        {(void **)&c->loss_y, slice * (size_t)l->D * sizeof(float)},
        {(void **)&c->loss_dy, slice * (size_t)l->D * sizeof(float)},
        {(void **)&c->cuts, (slice + 1) * sizeof(int32_t)}};
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        *part[i].part = p ? p + at : NULL;
        at += (part[i].bytes + 4095) / 4096 * 4096;
    }
    return at;
}

static size_t cpu_workspace(void *self, const struct backend_limits *l) {
    struct cpu probe = *(const struct cpu *)self;
    return lay_workspace(&probe, l, NULL);
}

static int cpu_reserve(void *self, const struct backend_limits *l, struct err *e) {
    struct cpu *c = self;
    ASSERT(l->K <= HEAD_MAX, "head size %lld", (long long)l->K);
    sys_free(c->work);
    c->work = sys_alloc(lay_workspace(c, l, NULL), "the workspace of the CPU backend", e);
    c->limits = c->work ? *l : (struct backend_limits){0};
    c->limits.loss_slice = loss_rows(l);
    c->widest = max64(c->limits.D, c->limits.F);
    if (!c->work) return -1;
    lay_workspace(c, l, c->work);
    return 0;
}

static void cpu_close(void *self) {
    struct cpu *c = self;
    sys_free(c->work);
    sys_free(c);
}

static const struct backend table = {
    .version = BACKEND_VERSION,
    .info = cpu_info,
    .alloc = cpu_alloc,
    .release = cpu_release,
    .put = cpu_copy,
    .get = cpu_copy,
    .copy = cpu_copy,
    .zero = cpu_zero,
    .mark = cpu_mark,
    .wait = cpu_wait,
    .wait_host = cpu_wait_host,
    .sync = cpu_sync,
    .workspace = cpu_workspace,
    .reserve = cpu_reserve,
    .close = cpu_close,
    .embed = cpu_embed,
    .embed_bwd = cpu_embed_bwd,
    .norm = cpu_norm,
    .norm_bwd = cpu_norm_bwd,
    .linear = cpu_linear,
    .linear_bwd = cpu_linear_bwd,
    .dora = cpu_dora,
    .dora_bwd = cpu_dora_bwd,
    .filter = cpu_filter,
    .filter_bwd = cpu_filter_bwd,
    .rope = cpu_rope,
    .attend = cpu_attend,
    .attend_bwd = cpu_attend_bwd,
    .gate = cpu_gate,
    .gate_bwd = cpu_gate_bwd,
    .loss = cpu_loss,
    .adam = cpu_adam,
    .sqsum = cpu_sqsum,
    .noise = cpu_noise,
};

struct backend *backend_cpu_with(const struct cpu_kernels *k, int threads, struct err *e) {
    struct cpu *c = sys_alloc(sizeof *c, "the CPU backend", e);
    if (!c) return NULL;
    c->table = table;
    c->table.self = c;
    c->k = k;
    c->threads = threads;
    return &c->table;
}

struct backend *backend_cpu(struct err *e) { return backend_cpu_with(cpu_kernels_best(), sys_threads(), e); }
