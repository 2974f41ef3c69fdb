/* backend/cuda/pinned.cu - host memory that the card copies to and from at full speed.
 *
 * cudaHostAlloc finds, clears and pins a page of 4 KiB after the other, in one thread: tens of seconds for the weights of a large
 * model. A large block is mapped instead, in huge pages where the system has them, touched by several threads, and then pinned as
 * it is. Where pinning is refused (a limit of locked memory, an old kernel) cudaHostAlloc has to do. */
#include "backend/cuda/cuda_internal.h"
extern "C" {
#include "base/sys.h"
}
#include <pthread.h>
#include <sys/mman.h>

enum { PIN_FROM = 64 << 20, HUGE_PAGE = 2 << 20, SMALL_PAGE = 4096, PIN_THREADS = 16 };

struct share { char *at; size_t bytes; };
static void *touch(void *context) {
    const struct share *s = (const struct share *)context;
    for (size_t i = 0; i < s->bytes; i += SMALL_PAGE) *(volatile char *)(s->at + i) = 0;
    return NULL;
}

/* A share that gets no thread is touched by this one. */
static void touch_all(char *p, size_t bytes) {
    const size_t part = (bytes / PIN_THREADS + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    struct share share[PIN_THREADS];
    pthread_t thread[PIN_THREADS];
    int runs[PIN_THREADS] = {};
    for (int i = 0; i < PIN_THREADS; i++) {
        const size_t at = part * (size_t)i < bytes ? part * (size_t)i : bytes;
        share[i].at = p + at, share[i].bytes = bytes - at < part ? bytes - at : part;
        runs[i] = i && share[i].bytes && !pthread_create(&thread[i], NULL, touch, &share[i]);
    }
    for (int i = 0; i < PIN_THREADS; i++)
        if (!runs[i]) touch(&share[i]);
    for (int i = 0; i < PIN_THREADS; i++)
        if (runs[i]) pthread_join(thread[i], NULL);
}

/* NULL: not in this way. Memory that the machine has not got is not touched: that would end the process. */
static void *map_and_pin(struct cuda *c, size_t bytes) {
    const size_t all = bytes + HUGE_PAGE;
    const int64_t left = sys_free_memory();
    if (c->pinned_blocks == PINNED_MOST || (left && (int64_t)bytes > left)) return NULL;
    char *raw = (char *)mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) return NULL;
    char *p = raw + (HUGE_PAGE - (uintptr_t)raw % HUGE_PAGE) % HUGE_PAGE;
    (void)madvise(p, bytes, MADV_HUGEPAGE);
    touch_all(p, bytes);
    if (cudaHostRegister(p, bytes, cudaHostRegisterDefault) != cudaSuccess) {
        cudaGetLastError();
        munmap(raw, all);
        return NULL;
    }
    struct pinned *b = &c->pinned[c->pinned_blocks++];
    b->p = p, b->raw = raw, b->all = all;
    return p;
}

cudaError_t cuda_host_alloc(struct cuda *c, void **p, size_t bytes) {
    *p = bytes >= PIN_FROM ? map_and_pin(c, bytes) : NULL;
    return *p ? cudaSuccess : cudaHostAlloc(p, bytes ? bytes : 256, cudaHostAllocDefault);
}

cudaError_t cuda_host_free(struct cuda *c, void *p) {
    for (int i = 0; i < c->pinned_blocks; i++) {
        struct pinned *b = &c->pinned[i];
        if (b->p != p) continue;
        const cudaError_t code = cudaHostUnregister(p);
        if (code == cudaSuccess) munmap(b->raw, b->all);
        *b = c->pinned[--c->pinned_blocks];
        return code;
    }
    return cudaFreeHost(p);
}
