/* base/jobs.c - see jobs.h */
#include "base/jobs.h"
#include "base/sys.h"

int jobs_threads(void) {
    const int n = sys_threads();
    return n < 4 ? 4 : n > JOBS_THREADS ? JOBS_THREADS : n;
}

int jobs_run(int64_t n, int threads, job *run, void *context, struct err *e) {
    int64_t next = 0, failed = n;
    ASSERT(threads > 0 && threads <= JOBS_THREADS, "%d threads", threads);
    if (n < threads) threads = n > 1 ? (int)n : 1;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; t++)
        for (;;) {
            struct err own = {0};
            const int64_t i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
            if (i >= __atomic_load_n(&failed, __ATOMIC_RELAXED)) break;
            if (!run(context, i, t, &own)) continue;
#pragma omp critical(jobs)
            if (i < failed) {
                __atomic_store_n(&failed, i, __ATOMIC_RELAXED);
                if (e) *e = own;
            }
        }
    return failed < n ? -1 : 0;
}
