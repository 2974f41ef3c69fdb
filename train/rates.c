/* train/rates.c - what a machine's link, processor and disk do in a second: the plan begins with what is known of such
 * machines, and is held to what is measured here.
 *
 * A measured rate is never twice the same, and a plan should be: it is made anew only where a rate is far from the known one,
 * and with one of few values. What is predicted follows the measurement. */
#include "base/file.h"
#include "base/sys.h"
#include "train/params_internal.h"
#include "train/train_internal.h"
#include <stdlib.h>
#include <string.h>

/* Bytes/s of AdamW: so many a core, as long as its memory keeps up. A card that is not here is taken to have 16 cores. */
double rates_known_update(int threads) {
    const double core = 5e9, memory = 100e9, all = core * (threads ? threads : 16);
    return all < memory ? all : memory;
}

/* Bytes a second of copies each way, the slower of both; 0: not measured. */
static double link_rate(struct backend *be) {
    const size_t bytes = 64 << 20;
    void *device = be->alloc(be->self, AT_DEVICE, bytes), *host = be->alloc(be->self, AT_HOST, bytes);
    double slower = 0;
    for (int i = 0; device && host && i < 4; i++) { /* the first of each way is not counted */
        const double start = sys_seconds();
        if (i & 1) be->get(be->self, host, device, bytes, Q_COMPUTE);
        else be->put(be->self, device, host, bytes, Q_COMPUTE);
        if (be->sync(be->self, NULL)) break;
        const double rate = (double)bytes / (sys_seconds() - start);
        if (i > 1 && (slower <= 0 || rate < slower)) slower = rate;
    }
    be->release(be->self, AT_DEVICE, device), be->release(be->self, AT_HOST, host);
    return slower;
}

/* Queues copies both ways between `device` and the two halves of `host`, as long as `seconds` at `link` bytes/s. They walk on, since
 * what stays in the processor's caches is no load on its memory. */
enum { COPY = 16 << 20 };
static void occupy(struct backend *be, char *device, char *host, size_t half, double link, double seconds, size_t *at) {
    for (double busy = 0; link > 0 && busy < seconds; busy += COPY / link) {
        be->put(be->self, device, host + *at, COPY, Q_IN);
        be->get(be->self, host + half + *at, device + COPY, COPY, Q_OUT);
        *at = *at + 2 * COPY <= half ? *at + COPY : 0;
    }
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Elements of an update that is tried; bytes of its state: master, where there is one, and moments with the scales of 8-bit ones. */
enum { ELEMENTS = 4 << 20, ROUNDS = 6 };
static size_t state_bytes(const struct params *q) {
    const size_t n = ELEMENTS;
    return (params_masters(q) ? 4 * n : 0) + (q->how.bits8 ? 2 * (n + n / 64) : 8 * n);
}

/* It at `at`: gradient, weights in bf16, state. */
static struct adam_tensor trial(const struct params *q, char *at) {
    const int64_t n = ELEMENTS;
    struct adam_tensor x = {.n = n, .lr = 1e-3, .g16 = (const uint16_t *)at, .copy = at + 2 * n};
    char *next = at + 4 * n;
    if (params_masters(q)) x.p = (float *)next, next += 4 * n;
    if (q->how.bits8) x.m8 = (uint8_t *)next, x.v8 = x.m8 + n, x.m_absmax = (float *)(next + 2 * n), x.v_absmax = x.m_absmax + n / 256;
    else x.m = (float *)next, x.v = x.m + n;
    return x;
}

/* Bytes a second of the processor's update, as the plan counts them (params_moves), of what its caches do not hold, in memory of the
 * kind that it will work on and beside copies at `link` bytes/s each way, which share that memory: the slower half of four
 * decides. 0: not measured. */
static double update_rate(struct backend *be, const struct params *q, double link) {
    const size_t half = 256 << 20, n = ELEMENTS, page = 4 * n + state_bytes(q),
                 moved = 2 * n + 2 * state_bytes(q) + (params_masters(q) ? 2 * n : 4 * n);
    size_t copied = 0;
    struct backend *host = backend_cpu(NULL);
    char *at = be->alloc(be->self, AT_HOST, ROUNDS * page + 2 * half), *device = be->alloc(be->self, AT_DEVICE, 2 * COPY);
    double took[ROUNDS] = {0};
    if (host && at && device) {
        memset(at, 0x3c, ROUNDS * page + 2 * half); /* 0.01 in either type: zeros are less work */
        be->zero(be->self, device, 2 * COPY, Q_IN);
        for (int i = 0; i < ROUNDS; i++) { /* the first two wake the threads and say how long copies must go on */
            const struct adam_tensor x = trial(q, at + (size_t)i * page);
            occupy(be, device, at + ROUNDS * page, half, link, i ? 1.5 * took[i - 1] : 0, &copied);
            const double start = sys_seconds();
            op_adam(host, &(struct adam_args){.tensors = &x, .count = 1, .t = 1, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8,
                                              .grad_scale = 1});
            took[i] = sys_seconds() - start;
            if (be->sync(be->self, NULL)) {
                took[4] = 0;
                break;
            }
        }
        if (took[4] > 0) qsort(took + 2, ROUNDS - 2, sizeof *took, ascending);
    }
    be->release(be->self, AT_DEVICE, device), be->release(be->self, AT_HOST, at);
    backend_close(host);
    return took[4] > 0 ? (double)moved / took[4] : 0;
}

/* Whether *rate is far from what was measured (> 0): by more than one measurement from another. It then becomes the rate * 1.4^k
 * that is next to that. */
static int far_off(double *rate, double measured) {
    const double known = *rate;
    while (*rate > 1.4 * measured) *rate /= 1.4;
    while (*rate < measured / 1.4) *rate *= 1.4;
    return *rate < known || *rate > known;
}

int rates_measure(struct trainer *t, struct err *e) {
    struct plan_request *r = &t->request;
    const double known = r->link, link = t->model.info.unified ? 0 : link_rate(t->be),
                 update = r->host_layers ? update_rate(t->be, &t->params, link) : 0;
    int anew = update > 0 && far_off(&r->host_bandwidth, update);
    if (link > 0 && link < known / 1.5) {
        while (r->link > 1.5 * link) r->link /= 2;
        anew = 1;
    }
    if (anew && setup_plan(t, e)) return -1;
    if (link > 0) r->link = link;
    if (update > 0) r->host_bandwidth = update;
    if (t->plan.choice.disk_layers) {
        if (dir_make(t->how.page_dir, e)) return -1;
        r->disk = pages_disk_rate(t->how.page_dir, e);
        if (r->disk <= 0) return -1;
    }
    t->plan.seconds = plan_seconds(r, &t->plan);
    return 0;
}
