/* base/jobs.h - jobs 0 .. n-1, taken in order by several threads.
 *
 * When one fails no further job is begun; the error is that of the lowest job that failed, so it is the one that a single
 * thread would have met, whatever the number of threads.
 *
 *     static int job(void *context, int64_t i, int thread, struct err *e);
 *     if (jobs_run(n, jobs_threads(), job, &context, e)) goto fail;
 */
#ifndef QLORA_BASE_JOBS_H
#define QLORA_BASE_JOBS_H
#include "base/err.h"
#include <stdint.h>

typedef int job(void *context, int64_t i, int thread, struct err *e); /* 0, or -1 and e */
enum { JOBS_THREADS = 32 };
/* Threads for jobs that wait for a disk now and then: at least four, at most JOBS_THREADS. */
int jobs_threads(void);
int jobs_run(int64_t n, int threads, job *run, void *context, struct err *e);
#endif
