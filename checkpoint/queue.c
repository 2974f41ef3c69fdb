/* checkpoint/queue.c - bytes on their way to a file: whoever makes them goes on while a thread writes (write.c).
 *
 * A ring of QUEUE_BYTES. The maker copies in at `put` and waits while it is full; the thread takes what lies at `taken`, a piece
 * at a time, and waits while it is empty. Both counts only grow; the place is their remainder. The first error ends the writing, is
 * kept, and is what the maker hears at its next call. */
#include "base/sys.h"
#include "checkpoint/checkpoint_internal.h"
#include <pthread.h>
#include <string.h>

enum { QUEUE_BYTES = 16 << 20, QUEUE_PIECE = 4 << 20 };

struct ckpt_queue {
    ckpt_queue_write *write;
    void *context;
    unsigned char *ring;
    int64_t put, taken;
    int last, dropped, failed; /* last: nothing comes any more; dropped: what is there is not wanted any more */
    struct err e;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t moved;
};

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static void *work(void *of) {
    struct ckpt_queue *q = of;
    pthread_mutex_lock(&q->lock);
    while (!q->failed && !q->dropped) {
        const int64_t at = q->taken % QUEUE_BYTES, n = smaller(smaller(q->put - q->taken, QUEUE_PIECE), QUEUE_BYTES - at);
        if (!n && q->last) break;
        if (!n) {
            pthread_cond_wait(&q->moved, &q->lock);
            continue;
        }
        pthread_mutex_unlock(&q->lock);
        const int bad = q->write(q->context, q->ring + at, n, &q->e);
        pthread_mutex_lock(&q->lock);
        q->taken += n, q->failed = bad != 0;
        pthread_cond_signal(&q->moved);
    }
    pthread_mutex_unlock(&q->lock);
    return NULL;
}

struct ckpt_queue *ckpt_queue_open(ckpt_queue_write *write, void *context) {
    struct ckpt_queue *q = sys_alloc(sizeof *q, "writing queue", NULL);
    if (!q) return NULL;
    q->write = write, q->context = context;
    pthread_mutex_init(&q->lock, NULL), pthread_cond_init(&q->moved, NULL);
    if ((q->ring = sys_grow(NULL, QUEUE_BYTES, "writing queue", NULL)) && !pthread_create(&q->thread, NULL, work, q)) return q;
    sys_free(q->ring), sys_free(q);
    return NULL;
}

int ckpt_queue_add(struct ckpt_queue *q, const void *p, int64_t bytes, struct err *e) {
    const unsigned char *from = p;
    pthread_mutex_lock(&q->lock);
    while (bytes > 0 && !q->failed) {
        const int64_t at = q->put % QUEUE_BYTES, n = smaller(smaller(QUEUE_BYTES - (q->put - q->taken), bytes), QUEUE_BYTES - at);
        if (!n) {
            pthread_cond_wait(&q->moved, &q->lock);
            continue;
        }
        pthread_mutex_unlock(&q->lock); /* nobody else touches what is free */
        memcpy(q->ring + at, from, (size_t)n);
        from += n, bytes -= n;
        pthread_mutex_lock(&q->lock);
        q->put += n;
        pthread_cond_signal(&q->moved);
    }
    const int failed = q->failed;
    if (failed && e) *e = q->e;
    pthread_mutex_unlock(&q->lock);
    return failed ? -1 : 0;
}

static void end(struct ckpt_queue *q, int drop) {
    pthread_mutex_lock(&q->lock);
    q->last = 1, q->dropped = drop;
    pthread_cond_signal(&q->moved);
    pthread_mutex_unlock(&q->lock);
    pthread_join(q->thread, NULL);
    pthread_mutex_destroy(&q->lock), pthread_cond_destroy(&q->moved);
}

int ckpt_queue_close(struct ckpt_queue *q, struct err *e) {
    end(q, 0);
    const int failed = q->failed;
    if (failed && e) *e = q->e;
    sys_free(q->ring), sys_free(q);
    return failed ? -1 : 0;
}

void ckpt_queue_drop(struct ckpt_queue *q) {
    if (!q) return;
    end(q, 1);
    sys_free(q->ring), sys_free(q);
}
