/* train/update.c - AdamW over pages, put off until the next forward pass comes by (params.h).
 *
 * The device's groups are updated in the order of that pass: their pages come, are worked on and leave again. The processor's
 * go to a thread of its own as soon as the size of the gradient is known, in the same order, and the pass waits where it is
 * ahead. So copies, processor and device work side by side, and queueing waits for none of them. */
#include "base/sys.h"
#include "train/params_internal.h"
#include <pthread.h>

enum { ADAM_MAX = 32 };

/* A group whose pages are in host memory, and nobody else's until it is done. */
struct host_job { int64_t group; char *page, *state; const void *grad; };
struct host_update {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t more, less;     /* there is a job, or the end; one was done */
    struct host_job *job;          /* of the update under way, in its order */
    int64_t jobs, done;
    int end;
    struct update_times times;
};

static struct adam_tensor adam_of(const struct params *q, const struct param *p, char *page, char *state, const void *grad) {
    const struct adam_settings *s = &q->due;
    char *value = page + p->place;
    struct adam_tensor t = {.n = p->n, .lr = s->lr * p->lr_ratio, .weight_decay = p->decay ? s->weight_decay : 0};
    if (q->half_grads && p->group < q->layers) t.g16 = (const uint16_t *)grad + p->offset;
    else t.g = (const float *)grad + p->offset;
    if (p->has_master) t.p = (float *)(state + p->master), t.copy = p->half ? value : NULL;
    else if (p->half) t.copy = value;
    else t.p = (float *)value, t.round = q->how.pure;
    if (p->small_state)
        t.m8 = (uint8_t *)state + p->m, t.v8 = (uint8_t *)state + p->v, t.m_absmax = (float *)(state + p->m_absmax),
        t.v_absmax = (float *)(state + p->v_absmax);
    else t.m = (float *)(state + p->m), t.v = (float *)(state + p->v);
    return t;
}

/* AdamW over a group in memory of `be`; then what a layer's page holds in fp32 follows its master. */
static void run_update(struct params *q, struct backend *be, int64_t g, char *page, char *state, const void *grad) {
    const struct adam_settings *s = &q->due;
    for (int64_t i = q->first[g]; i < q->first[g + 1]; i += ADAM_MAX) {
        struct adam_tensor t[ADAM_MAX];
        int64_t k = 0;
        for (; k < ADAM_MAX && i + k < q->first[g + 1]; k++) t[k] = adam_of(q, &q->p[i + k], page, state, grad);
        op_adam(be, &(struct adam_args){.tensors = t, .count = k, .t = s->t, .beta1 = s->beta1, .beta2 = s->beta2,
                                        .eps = s->eps, .grad_scale = s->grad_scale});
    }
    for (int64_t i = q->first[g]; i < q->first[g + 1]; i++)
        if (q->p[i].has_master && !q->p[i].half)
            be->copy(be->self, page + q->p[i].place, state + q->p[i].master, (size_t)q->p[i].n * 4, Q_COMPUTE);
}

/* ---- the processor's part ---- */

static int of_host(const struct params *q, int64_t g) { return q->aside && params_by_host(q, &q->where, g); }

static void *work(void *params) {
    struct params *q = params;
    struct host_update *h = q->aside;
    pthread_mutex_lock(&h->lock);
    while (!h->end) {
        if (h->done == h->jobs) {
            pthread_cond_wait(&h->more, &h->lock);
            continue;
        }
        const struct host_job *j = &h->job[h->done];
        pthread_mutex_unlock(&h->lock);
        const double start = sys_seconds();
        run_update(q, q->host, j->group, j->page, j->state, j->grad);
        pthread_mutex_lock(&h->lock);
        h->done++, h->times.layers++, h->times.worked += sys_seconds() - start;
        pthread_cond_signal(&h->less);
    }
    pthread_mutex_unlock(&h->lock);
    return NULL;
}

int update_open(struct params *q, struct err *e) {
    struct host_update *h = sys_alloc(sizeof *h, "update on the processor", e);
    if (!h) return -1;
    if (!(h->job = sys_alloc_array((size_t)q->layers, sizeof *h->job, "update on the processor", e))) return sys_free(h), -1;
    pthread_mutex_init(&h->lock, NULL), pthread_cond_init(&h->more, NULL), pthread_cond_init(&h->less, NULL);
    q->aside = h;
    if (!pthread_create(&h->thread, NULL, work, q)) return 0;
    q->aside = NULL;
    sys_free(h->job), sys_free(h);
    return err_set(e, ERR_RUN,
                   "no thread can be started for the update on the processor; the limit of processes (ulimit -u) may be reached");
}

void update_close(struct params *q) {
    struct host_update *h = q->aside;
    if (!h) return;
    pthread_mutex_lock(&h->lock);
    h->end = 1;
    pthread_cond_signal(&h->more);
    pthread_mutex_unlock(&h->lock);
    pthread_join(h->thread, NULL);
    pthread_cond_destroy(&h->less), pthread_cond_destroy(&h->more), pthread_mutex_destroy(&h->lock);
    sys_free(h->job), sys_free(h);
    q->aside = NULL;
}

/* Hands over all that the processor updates, once what is copied of it has arrived. */
static void hand_over(struct params *q) {
    struct host_update *h = q->aside;
    int64_t n = 0, page;
    if (!h) return;
    for (int64_t g = 0; g < q->layers; g++) {
        if (!of_host(q, g)) continue;
        struct pages *values = params_home(q, g, &page);
        h->job[n++] = (struct host_job){g, pages_edit(values, page), pages_edit(q->state, g), pages_edit(q->grad, g)};
    }
    pthread_mutex_lock(&h->lock);
    h->jobs = n, h->done = 0;
    pthread_cond_signal(&h->more);
    pthread_mutex_unlock(&h->lock);
}

static int is_done(struct host_update *h, int64_t g) { return h->done == h->jobs || h->job[h->done].group > g; }

/* Whether a group of the processor's is up to date; waits until it is. */
static int host_done(struct params *q, int64_t g, int wait) {
    struct host_update *h = q->aside;
    pthread_mutex_lock(&h->lock);
    const double start = wait && !is_done(h, g) ? sys_seconds() : 0;
    while (wait && !is_done(h, g)) pthread_cond_wait(&h->less, &h->lock);
    if (start > 0) h->times.waited += sys_seconds() - start;
    const int done = is_done(h, g);
    pthread_mutex_unlock(&h->lock);
    return done;
}

/* ---- all of it ---- */

static void update_group(struct params *q, int64_t g) {
    int64_t i;
    struct pages *values = params_home(q, g, &i), *grads = g < q->layers ? q->grad : q->outer_grad;
    const int64_t j = g < q->layers ? g : 0;
    if (of_host(q, g)) {
        (void)host_done(q, g, 1);
        return;
    }
    char *page = pages_get(values, i, g < q->layers && params_replaces(q) ? PAGE_WRITE : PAGE_READ_WRITE),
         *state = pages_get(q->state, g, PAGE_READ_WRITE);
    run_update(q, q->be, g, page, state, pages_get(grads, j, PAGE_READ));
    pages_put(values, i, 1), pages_put(grads, j, 0), pages_put(q->state, g, 1);
}

/* The order of an update is that of the next forward pass: the outer groups, then the layers. */
static int64_t nth(const struct params *q, int64_t i) { return i < q->groups - q->layers ? q->layers + i : i - (q->groups - q->layers); }

/* That page and no other: those of the processor's groups are not to be read meanwhile. */
static void want(struct pages *p, int64_t i) {
    if (pages_next(p, i) == i) pages_want(p, i);
}

/* Starts the copies for the next group that the device updates, if there is one from position i of the order on; returns its
 * position. What is ready goes first: copies in are made in this order, and a gradient may still have to be copied out. */
static int64_t want_from(struct params *q, int64_t i) {
    int64_t page;
    while (i < q->groups && of_host(q, nth(q, i))) i++;
    if (i >= q->groups) return i;
    const int64_t g = nth(q, i);
    struct pages *values = params_home(q, g, &page);
    want(q->state, g);
    if (g >= q->layers || !params_replaces(q)) want(values, page);
    if (g < q->layers) want(q->grad, g);
    return i;
}

void params_expect(struct params *q) { want_from(q, want_from(q, 0) + 1); }

void params_update(struct params *q, const struct adam_settings *s) {
    params_settle(q);
    q->due = *s, q->done = 0;
    want_from(q, 0);
    hand_over(q);
}

static void advance(struct params *q, int64_t until) {
    while (q->done < until) {
        int64_t g = nth(q, q->done++);
        want_from(q, q->done);
        update_group(q, g);
    }
}
void params_reach(struct params *q, int64_t l) {
    int64_t layers = l + 1 - q->how.first_layer;
    if (layers < 0) layers = 0;
    advance(q, q->groups - q->layers + (layers < q->layers ? layers : q->layers));
}
void params_settle(struct params *q) { advance(q, q->groups); }

struct update_times params_times(struct params *q) {
    struct update_times t = {0};
    if (!q->aside) return t;
    pthread_mutex_lock(&q->aside->lock);
    t = q->aside->times;
    pthread_mutex_unlock(&q->aside->lock);
    return t;
}

int params_brings(struct params *q, int64_t l) {
    const int64_t g = params_group(q, l);
    if (q->lora || g < 0 || q->groups - q->layers + g < q->done) return 0;
    return of_host(q, g) ? !host_done(q, g, 0) : params_replaces(q);
}
