/* backend/cuda/cuda.cu - the machine side of the CUDA backend: memory, queues, tickets, workspace, the table.
 *
 * Three streams: compute, copies in, copies out. A ticket is an event in a ring; waiting on a ticket whose event was reused
 * waits for more than was asked, never for less.
 *
 * Failures. Every call to the card asks cuda_fault first and hands its code to cuda_failed. The first failure is kept for
 * sync; after it no call reaches the card any more, not even to free what it holds: a driver that lost its card may hang in
 * any of them, and the end of the process frees all. So whoever waits is told at once. QLORA_FAULT tries that out:
 * "cuda:N" makes call N fail as on a card with a memory error, "cuda:N:TRAP" lets a kernel trap there, so that the driver
 * itself loses the card; "cuda:0" fails nothing and says at the end how many calls there were. */
#include "backend/cuda/cuda_internal.h"
extern "C" {
#include "backend/card.h"
#include "base/log.h"
#include "base/str.h"
#include "base/sys.h"
}
#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h> /* costs nothing without a profiler */
static void range(void *, const char *name) {
    if (name) nvtxRangePushA(name);
    else nvtxRangePop();
}
#else
static void (*const range)(void *, const char *) = NULL;
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- failures ---- */

/* Ends in the way a bug of a kernel does; asked for its code, it tells whether this library was built for the card. */
__global__ static void trap(void) { asm("trap;"); }

static void read_fault(struct cuda *c) {
    char how[8] = "";
    const char *s = getenv("QLORA_FAULT");
    c->poison = getenv("QLORA_POISON") != NULL;
    if (!s || sscanf(s, "cuda:%lld:%7s", &c->fault_at, how) < 1) return;
    c->fault_trap = !strcmp(how, "TRAP"), c->fault_count = !c->fault_at;
}

/* Memory full of NaN, and of indices that no array has: what is read before it is written shows. */
static cudaError_t fresh(const struct cuda *c, void **p, size_t bytes) {
    cudaError_t code = cudaMalloc(p, bytes);
    if (code == cudaSuccess && c->poison) code = cudaMemset(*p, 0xff, bytes);
    return code == cudaSuccess && c->poison ? cudaDeviceSynchronize() : code; /* no stream of ours waits for that memset */
}

cudaError_t cuda_fault(struct cuda *c) {
    if (c->failure.code) return c->table.failed = 1, cudaErrorUnknown;
    if (++c->calls != c->fault_at) return cudaSuccess;
    if (!c->fault_trap) return cudaErrorECCUncorrectable;
    trap<<<1, 1>>>();
    return cudaDeviceSynchronize();
}

static const char *meaning(cudaError_t code) {
    switch (code) {
    case cudaErrorECCUncorrectable:
        return "its memory has an error that it cannot correct; restart the machine, and have the card replaced if it comes back";
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorIllegalInstruction:
    case cudaErrorHardwareStackError: case cudaErrorLaunchFailure: case cudaErrorAssert:
        return "a kernel went astray, by a bug here or a fault of the card; CUDA_LAUNCH_BLOCKING=1 names the kernel";
    case cudaErrorLaunchTimeout: return "the driver ends long kernels on a card that drives a display; use one that does not";
    case cudaErrorMemoryAllocation: return "another program took its memory (`nvidia-smi` lists them)";
    default: return "the driver lost it; `nvidia-smi` and `dmesg | grep -i xid` say why";
    }
}

void cuda_failed(struct cuda *c, cudaError_t code, const char *what, const char *file, int line) {
    err_set(&c->failure, ERR_RUN, "the card failed: %s (%s) in %.80s at %s:%d; %s", cudaGetErrorString(code),
            cudaGetErrorName(code), what, file, line, meaning(code));
    c->table.failed = 1;
}

/* ---- memory and queues ---- */

static void info(void *self, struct backend_info *out) {
    struct cuda *c = (struct cuda *)self;
    size_t free_bytes = 0, total = 0;
    CUDA_TRY(c, cudaMemGetInfo(&free_bytes, &total));
    struct card card = {};
    card.major = c->props.major, card.minor = c->props.minor, card.geforce = strstr(c->props.name, "GeForce") != NULL;
    card.sms = c->sms, card.mhz = c->clock_khz / 1000, card.bandwidth = c->bandwidth, card.memory = (int64_t)total;
    card_info(&card, out);
    out->free_bytes = (int64_t)free_bytes;
    snprintf(out->name, sizeof out->name, "cuda");
    snprintf(out->detail, sizeof out->detail, "%.100s, sm_%d%d, %d multiprocessors", c->props.name, c->props.major, c->props.minor, c->sms);
}

static void *alloc(void *self, enum place place, size_t bytes) {
    struct cuda *c = (struct cuda *)self;
    void *p = NULL;
    cudaError_t code = cuda_fault(c);
    if (code == cudaSuccess) code = place == AT_DEVICE ? fresh(c, &p, bytes ? bytes : 256) : cuda_host_alloc(c, &p, bytes);
    if (code == cudaSuccess) return p;
    if (code == cudaErrorMemoryAllocation) cudaGetLastError(); /* no room: the caller's to tell */
    else cuda_failed(c, code, "an allocation", __FILE__, __LINE__);
    return NULL;
}
static void release(void *self, enum place place, void *p) {
    struct cuda *c = (struct cuda *)self;
    if (p) CUDA_TRY(c, place == AT_DEVICE ? cudaFree(p) : cuda_host_free(c, p));
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

/* ---- workspace ---- */

/* The workspace is cut in the same order when it is counted and when it is taken. */
static size_t lay(struct cuda *c, const struct backend_limits *l, char *at) {
    size_t n = 0;
    n += cuda_linear_workspace(c, l, at ? at + n : NULL);
    n += cuda_adam_workspace(c, l, at ? at + n : NULL);
    n += cuda_loss_workspace(c, l, at ? at + n : NULL);
    n += cuda_decode_workspace(c, l, at ? at + n : NULL);
    return n;
}
static size_t workspace(void *, const struct backend_limits *l) { return card_work_bytes(l); }
static int reserve(void *self, const struct backend_limits *l, struct err *e) {
    struct cuda *c = (struct cuda *)self;
    release(c, AT_DEVICE, c->work);
    c->work_bytes = lay(c, l, NULL);
    ASSERT(c->work_bytes == card_work_bytes(l), "workspace of %zu bytes, planned %zu", c->work_bytes, card_work_bytes(l));
    if (!(c->work = alloc(c, AT_DEVICE, c->work_bytes))) {
        struct backend_info now;
        char need[24], left[24];
        info(c, &now);
        return sync(c, e) ? -1
                          : err_set(e, ERR_RUN,
                                    "out of device memory: the workspace of the ops needs %s, only %s are free now. If another "
                                    "program took the rest (`nvidia-smi` lists them), stop it; or plan with less by --vram",
                                    text_bytes(need, (int64_t)c->work_bytes), text_bytes(left, now.free_bytes));
    }
    c->limits = *l;
    lay(c, l, (char *)c->work);
    zero(c, c->turns, (TALL_TILES + 1) * sizeof *c->turns, Q_COMPUTE);
    return 0;
}

static void destroy(struct cuda *c) {
    for (int i = 0; i < c->plans; i++) {
        cublasLtMatmulDescDestroy(c->plan[i].op);
        cublasLtMatrixLayoutDestroy(c->plan[i].a), cublasLtMatrixLayoutDestroy(c->plan[i].b),
            cublasLtMatrixLayoutDestroy(c->plan[i].add), cublasLtMatrixLayoutDestroy(c->plan[i].c);
    }
    release(c, AT_DEVICE, c->work), release(c, AT_DEVICE, c->maps);
    if (c->lt) cublasLtDestroy(c->lt);
    for (int i = 0; i < TICKETS; i++)
        if (c->event[i]) cudaEventDestroy(c->event[i]);
    for (int q = 0; q < 3; q++)
        if (c->stream[q]) cudaStreamDestroy(c->stream[q]);
}
static void close_cuda(void *self) {
    struct cuda *c = (struct cuda *)self;
    if (c->fault_count) log_info("QLORA_FAULT: %lld calls to the card", c->calls);
    if (!c->failure.code) destroy(c);
    sys_free(c);
}

/* ---- start ---- */

/* Why this card cannot be used, and what would help. */
static int refused(struct cuda *c, cudaError_t code, struct err *e) {
    const char *name = c->props.name, *visible = getenv("CUDA_VISIBLE_DEVICES");
    int driver = 0, mode = 0, built = CUDART_VERSION;
    size_t left = 0, all = 0;
    char a[24], b[24];
    err_set(&c->failure, ERR_RUN, "%s", "no start");
    switch (code) {
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
        if (visible)
            return err_set(e, ERR_RUN,
                           "no card: CUDA_VISIBLE_DEVICES=\"%.80s\" names none that there is; `nvidia-smi -L` lists them",
                           visible);
        return err_set(e, ERR_RUN, "no card: the NVIDIA driver finds none (`nvidia-smi -L`); in a container, start it with --gpus all");
    case cudaErrorInsufficientDriver:
        cudaDriverGetVersion(&driver);
        if (!driver) return err_set(e, ERR_RUN, "no NVIDIA driver: `nvidia-smi` must work first; or run with --backend cpu");
        return err_set(e, ERR_RUN,
                       "the NVIDIA driver knows CUDA up to %d.%d, this program was built with %d.%d: update the driver, or build "
                       "with an older toolkit (make clean; make NVCC=/path/to/nvcc)",
                       driver / 1000, driver % 1000 / 10, built / 1000, built % 1000 / 10);
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
        return err_set(e, ERR_RUN,
                       "the NVIDIA driver's library and its kernel module are of different versions: restart the machine after "
                       "an update of the driver");
    case cudaErrorSystemNotReady:
        return err_set(e, ERR_RUN,
                       "the cards are not ready: on a machine with NVSwitch the service nvidia-fabricmanager must run");
    case cudaErrorDevicesUnavailable:
        cudaDeviceGetAttribute(&mode, cudaDevAttrComputeMode, c->device);
        if (mode == cudaComputeModeProhibited)
            return err_set(e, ERR_RUN, "%s is closed to programs (compute mode \"prohibited\"): `nvidia-smi -c 0` opens it",
                           name);
        if (mode == cudaComputeModeExclusiveProcess)
            return err_set(e, ERR_RUN,
                           "%s is in exclusive-process mode and another program has it (`nvidia-smi` names it): wait for that, "
                           "or choose another card by CUDA_VISIBLE_DEVICES",
                           name);
        return err_set(
            e, ERR_RUN,
            "%s is busy or unavailable: `nvidia-smi` names the programs on it; choose another card by CUDA_VISIBLE_DEVICES",
            name);
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorUnsupportedPtxVersion:
        return err_set(e, ERR_RUN, "%s is sm_%d%d, for which this program was not built: make ARCH=%d%d", name, c->props.major,
                       c->props.minor, c->props.major, c->props.minor);
    case cudaErrorMemoryAllocation:
        cudaMemGetInfo(&left, &all);
        return err_set(e, ERR_RUN,
                       "%s has no room to start, %s of %s are free: another program holds the rest (`nvidia-smi` lists them)",
                       name, text_bytes(a, (int64_t)left), text_bytes(b, (int64_t)all));
    default: return err_set(e, ERR_RUN, "no usable card: %s (%s); %s", cudaGetErrorString(code), cudaGetErrorName(code), meaning(code));
    }
}

/* The runtime itself obeys CUDA_VISIBLE_DEVICES. */
static int start(struct cuda *c, struct err *e) {
    cudaError_t code;
    cudaFuncAttributes code_for_card;
#define TRY(call)                                                                                                      \
    if ((code = cuda_fault(c)) != cudaSuccess || (code = (call)) != cudaSuccess) return refused(c, code, e)
    TRY(cudaGetDevice(&c->device));
    TRY(cudaGetDeviceProperties(&c->props, c->device));
    if (c->props.major < 8)
        return err_set(e, ERR_RUN, "%s is sm_%d%d: bf16 needs sm_80 or later; run with --backend cpu", c->props.name,
                       c->props.major, c->props.minor);
    c->sms = c->props.multiProcessorCount;
    if (cudaDeviceGetAttribute(&c->clock_khz, cudaDevAttrClockRate, c->device) != cudaSuccess) c->clock_khz = 1500000;
    int memory_khz = 0, bits = 0;
    cudaDeviceGetAttribute(&memory_khz, cudaDevAttrMemoryClockRate, c->device),
        cudaDeviceGetAttribute(&bits, cudaDevAttrGlobalMemoryBusWidth, c->device);
    c->bandwidth = memory_khz && bits ? 2e3 * memory_khz * bits / 8 : 1e12; /* two transfers a cycle */
    TRY(cudaFuncGetAttributes(&code_for_card, trap));
    c->ptx = code_for_card.ptxVersion;
    for (int q = 0; q < 3; q++) TRY(cudaStreamCreateWithFlags(&c->stream[q], cudaStreamNonBlocking));
    for (int i = 0; i < TICKETS; i++) TRY(cudaEventCreateWithFlags(&c->event[i], cudaEventDisableTiming));
    TRY(cuda_adam_start(c));
#undef TRY
    if (cublasLtCreate(&c->lt) != CUBLAS_STATUS_SUCCESS)
        return err_set(e, ERR_RUN, "cublasLt does not start on %s: are its library and the driver of the same age?",
                       c->props.name);
    return 0;
}

extern "C" __attribute__((visibility("default"))) struct backend *qlora_backend(int version, struct err *e) {
    if (version != BACKEND_VERSION) {
        err_set(e, ERR_RUN, "libqlora-cuda.so speaks version %d of the door, the program version %d; build both together",
                BACKEND_VERSION, version);
        return NULL;
    }
    struct cuda *c = (struct cuda *)sys_alloc(sizeof *c, "the CUDA backend", e);
    if (!c) return NULL;
    read_fault(c);
    struct backend t = {};
    t.version = BACKEND_VERSION, t.self = c, t.info = info, t.alloc = alloc, t.release = release, t.put = put, t.get = get,
    t.copy = copy, t.zero = zero;
    t.mark = mark, t.wait = wait, t.wait_host = wait_host, t.sync = sync, t.workspace = workspace, t.reserve = reserve,
    t.close = close_cuda, t.range = range;
    t.embed = cuda_embed, t.embed_bwd = cuda_embed_bwd, t.norm = cuda_norm, t.norm_bwd = cuda_norm_bwd, t.linear = cuda_linear,
    t.linear_bwd = cuda_linear_bwd, t.dora = cuda_dora, t.dora_bwd = cuda_dora_bwd;
    t.join = cuda_join, t.filter = cuda_filter, t.filter_bwd = cuda_filter_bwd, t.rope = cuda_rope, t.attend = cuda_attend,
    t.attend_bwd = cuda_attend_bwd;
    t.gate = cuda_gate, t.gate_bwd = cuda_gate_bwd, t.loss = cuda_loss, t.adam = cuda_adam, t.sqsum = cuda_sqsum, t.noise = cuda_noise;
    c->table = t;
    if (!start(c, e)) return &c->table;
    close_cuda(c);
    return NULL;
}
