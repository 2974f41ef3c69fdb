/* backend/cuda/cuda.cu - the machine side of the CUDA backend: memory, queues, tickets, workspace, the table.
 *
 * Three streams: compute, copies in, copies out. A ticket is an event in a ring; waiting on a ticket whose event was reused
 * waits for more than was asked, never for less. Device failures are sticky: the first is kept and sync reports it. */
#include "backend/cuda/cuda_internal.h"
extern "C" {
#include "base/sys.h"
}
#include <stdio.h>
#include <string.h>

void cuda_failed(struct cuda *c, cudaError_t code, const char *what, const char *file, int line) {
    err_set(&c->failure, ERR_RUN, "the card failed: %s (%s) in %.80s at %s:%d; see `nvidia-smi`, and `dmesg` for a hardware fault", cudaGetErrorString(code), cudaGetErrorName(code), what, file, line);
}

static void info(void *self, struct backend_info *out) {
    struct cuda *c = (struct cuda *)self;
    size_t free_bytes = 0, total = 0;
    CUDA_TRY(c, cudaMemGetInfo(&free_bytes, &total));
    memset(out, 0, sizeof *out);
    /* Dense bf16 FLOPs a multiprocessor and cycle: 4096 on sm_90, 2048 on sm_80, 1024 else; about 7 of 10 are reached. */
    double per_cycle = c->props.major == 9 ? 4096 : c->props.major == 8 && c->props.minor == 0 ? 2048 : 1024;
    out->activation = DT_BF16, out->joins = 1;
    out->flops = 0.7 * per_cycle * c->sms * 1e3 * c->clock_khz, out->link = c->props.major >= 9 ? 50e9 : 24e9;
    out->free_bytes = (int64_t)free_bytes, out->total_bytes = (int64_t)total;
    snprintf(out->name, sizeof out->name, "cuda");
    snprintf(out->detail, sizeof out->detail, "%.100s, sm_%d%d, %d multiprocessors", c->props.name, c->props.major, c->props.minor, c->sms);
}

static void *alloc(void *, enum place place, size_t bytes) {
    void *p = NULL;
    cudaError_t code = place == AT_DEVICE ? cudaMalloc(&p, bytes ? bytes : 256) : cudaHostAlloc(&p, bytes ? bytes : 256, cudaHostAllocDefault);
    if (code == cudaSuccess) return p;
    cudaGetLastError(); /* a full card is the caller's to tell */
    return NULL;
}
static void release(void *self, enum place place, void *p) {
    if (p) CUDA_TRY((struct cuda *)self, place == AT_DEVICE ? cudaFree(p) : cudaFreeHost(p));
}

static void put(void *self, void *dst, const void *host, size_t bytes, enum queue q) {
    struct cuda *c = (struct cuda *)self;
    if (bytes) CUDA_TRY(c, cudaMemcpyAsync(dst, host, bytes, cudaMemcpyHostToDevice, c->stream[q]));
}
static void get(void *self, void *host, const void *src, size_t bytes, enum queue q) {
    struct cuda *c = (struct cuda *)self;
    if (bytes) CUDA_TRY(c, cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, c->stream[q]));
}
static void copy(void *self, void *dst, const void *src, size_t bytes, enum queue q) {
    struct cuda *c = (struct cuda *)self;
    if (bytes && dst != src) CUDA_TRY(c, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, c->stream[q]));
}
static void zero(void *self, void *dst, size_t bytes, enum queue q) {
    struct cuda *c = (struct cuda *)self;
    if (bytes) CUDA_TRY(c, cudaMemsetAsync(dst, 0, bytes, c->stream[q]));
}

static int64_t mark(void *self, enum queue q) {
    struct cuda *c = (struct cuda *)self;
    CUDA_TRY(c, cudaEventRecord(c->event[++c->tickets % TICKETS], c->stream[q]));
    return c->tickets;
}
static void wait(void *self, enum queue q, int64_t ticket) {
    struct cuda *c = (struct cuda *)self;
    CUDA_TRY(c, cudaStreamWaitEvent(c->stream[q], c->event[ticket % TICKETS], 0));
}
static void wait_host(void *self, int64_t ticket) {
    struct cuda *c = (struct cuda *)self;
    CUDA_TRY(c, cudaEventSynchronize(c->event[ticket % TICKETS]));
}
static int sync(void *self, struct err *e) {
    struct cuda *c = (struct cuda *)self;
    for (int q = 0; q < 3; q++) CUDA_TRY(c, cudaStreamSynchronize(c->stream[q]));
    return c->failure.code ? err_set(e, c->failure.code, "%s", c->failure.text) : 0;
}

/* The workspace is cut in the same order when it is counted and when it is taken. */
static size_t lay(struct cuda *c, const struct backend_limits *l, char *at) {
    size_t n = 0;
    n += cuda_linear_workspace(c, l, at ? at + n : NULL);
    n += cuda_adam_workspace(c, l, at ? at + n : NULL);
    n += cuda_loss_workspace(c, l, at ? at + n : NULL);
    return n;
}
static size_t workspace(void *self, const struct backend_limits *l) { return lay((struct cuda *)self, l, NULL); }
static int reserve(void *self, const struct backend_limits *l, struct err *e) {
    struct cuda *c = (struct cuda *)self;
    release(c, AT_DEVICE, c->work);
    c->work_bytes = lay(c, l, NULL);
    if (!(c->work = alloc(c, AT_DEVICE, c->work_bytes)))
        return err_set(e, ERR_RUN, "out of device memory: the workspace of the ops needs %zu bytes", c->work_bytes);
    c->limits = *l;
    lay(c, l, (char *)c->work);
    return 0;
}

static void close_cuda(void *self) {
    struct cuda *c = (struct cuda *)self;
    for (int i = 0; i < c->plans; i++) {
        cublasLtMatmulDescDestroy(c->plan[i].op);
        cublasLtMatrixLayoutDestroy(c->plan[i].a), cublasLtMatrixLayoutDestroy(c->plan[i].b), cublasLtMatrixLayoutDestroy(c->plan[i].add), cublasLtMatrixLayoutDestroy(c->plan[i].c);
    }
    release(c, AT_DEVICE, c->work), release(c, AT_DEVICE, c->maps);
    if (c->lt) cublasLtDestroy(c->lt);
    for (int i = 0; i < TICKETS; i++)
        if (c->event[i]) cudaEventDestroy(c->event[i]);
    for (int q = 0; q < 3; q++)
        if (c->stream[q]) cudaStreamDestroy(c->stream[q]);
    sys_free(c);
}

static int start(struct cuda *c, struct err *e) {
    cudaError_t code = cudaGetDevice(&c->device);
    if (code == cudaSuccess) code = cudaGetDeviceProperties(&c->props, c->device);
    if (code != cudaSuccess) return err_set(e, ERR_RUN, "no usable card: %s; see `nvidia-smi`, or run with --backend cpu", cudaGetErrorString(code));
    if (c->props.major < 8) return err_set(e, ERR_RUN, "%s is sm_%d%d: bf16 needs sm_80 or later; run with --backend cpu", c->props.name, c->props.major, c->props.minor);
    c->sms = c->props.multiProcessorCount;
    if (cudaDeviceGetAttribute(&c->clock_khz, cudaDevAttrClockRate, c->device) != cudaSuccess) c->clock_khz = 1500000;
    for (int q = 0; q < 3; q++)
        if ((code = cudaStreamCreateWithFlags(&c->stream[q], cudaStreamNonBlocking)) != cudaSuccess) break;
    for (int i = 0; code == cudaSuccess && i < TICKETS; i++) code = cudaEventCreateWithFlags(&c->event[i], cudaEventDisableTiming);
    if (code != cudaSuccess) return err_set(e, ERR_RUN, "%s cannot be used: %s; is another program holding its memory?", c->props.name, cudaGetErrorString(code));
    if (cuda_adam_start(c)) return err_set(e, ERR_RUN, "%s has no memory left; is another program holding it?", c->props.name);
    if (cublasLtCreate(&c->lt) != CUBLAS_STATUS_SUCCESS) return err_set(e, ERR_RUN, "cublasLt does not start on %s: is the CUDA toolkit newer than the driver?", c->props.name);
    return 0;
}

extern "C" __attribute__((visibility("default"))) struct backend *qlora_backend(int version, struct err *e) {
    if (version != BACKEND_VERSION) {
        err_set(e, ERR_RUN, "libqlora-cuda.so speaks version %d of the door, the program version %d; build both together", BACKEND_VERSION, version);
        return NULL;
    }
    struct cuda *c = (struct cuda *)sys_alloc(sizeof *c, "the CUDA backend", e);
    if (!c) return NULL;
    struct backend t = {};
    t.version = BACKEND_VERSION, t.self = c, t.info = info, t.alloc = alloc, t.release = release, t.put = put, t.get = get, t.copy = copy, t.zero = zero;
    t.mark = mark, t.wait = wait, t.wait_host = wait_host, t.sync = sync, t.workspace = workspace, t.reserve = reserve, t.close = close_cuda;
    t.embed = cuda_embed, t.embed_bwd = cuda_embed_bwd, t.norm = cuda_norm, t.norm_bwd = cuda_norm_bwd, t.linear = cuda_linear, t.linear_bwd = cuda_linear_bwd;
    t.join = cuda_join, t.filter = cuda_filter, t.filter_bwd = cuda_filter_bwd, t.rope = cuda_rope, t.attend = cuda_attend, t.attend_bwd = cuda_attend_bwd;
    t.gate = cuda_gate, t.gate_bwd = cuda_gate_bwd, t.loss = cuda_loss, t.adam = cuda_adam, t.sqsum = cuda_sqsum;
    c->table = t;
    if (!start(c, e)) return &c->table;
    close_cuda(c);
    return NULL;
}
