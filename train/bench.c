/* train/bench.c - see bench.h */
#include "train/bench.h"
#include "backend/card.h"
#include "base/half.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/stop.h"
#include "base/str.h"
#include "base/sys.h"
#include "train/train_internal.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WARM_STEPS = 2, LEAST_STEPS = 3, MOST_STEPS = 1000 };
static const double ENOUGH_SECONDS = 8, TOO_LONG = 120; /* of all timed steps; of one step, by the plan */

/* Sequences of cutoff_len random ids, every one counted; no <eod>, which may end what attention sees. */
static int fill(struct trainer *t, int32_t **ids, struct err *e) {
    const struct model_config *c = &t->model.config;
    int64_t n = t->longest + 1;
    if (!(*ids = sys_alloc_array((size_t)(t->max_seqs * n), sizeof **ids, "random tokens", e))) return -1;
    if (!(t->sequences = sys_alloc_array((size_t)t->max_seqs, sizeof *t->sequences, "sequences", e))) return -1;
    for (int64_t i = 0; i < t->max_seqs * n; i++) {
        uint32_t at[4] = {(uint32_t)i, 0, 0, 0}, key[2] = {(uint32_t)t->o->seed, 0}, word[4];
        philox4x32(at, key, word);
        (*ids)[i] = (int32_t)(word[0] % (uint64_t)c->V);
        if ((*ids)[i] == c->eod) (*ids)[i] = (int32_t)((c->eod + 1) % c->V);
    }
    for (int64_t s = 0; s < t->max_seqs; s++)
        t->sequences[s] = (struct batch_sequence){.ids = *ids + s * n, .n = n, .weight = (float)(1 / (double)t->max_rows)};
    return 0;
}

static int ascending(const void *a, const void *b) {
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

static double counted_flops(void) {
    int n;
    const struct op_count *c = op_counts(&n);
    double sum = 0;
    for (int i = 0; i < n; i++) sum += c[i].flops;
    return sum;
}

static int run(struct trainer *t, struct bench_result *r, struct err *e) {
    double *seconds = sys_alloc_array(MOST_STEPS, sizeof *seconds, "step times", e), flops = 0, sum = 0;
    int64_t wanted = t->o->max_steps > 0 ? t->o->max_steps : 0, n = 0;
    struct update_times before = {0};
    int status = seconds ? 0 : -1;
    for (int64_t step = 0; !status; step++) {
        struct step_result s = {0};
        if (step == WARM_STEPS) op_counts_reset(), before = params_times(&t->params);
        const double start = sys_seconds();
        if ((status = train_update(t, step, t->max_seqs, &s, e))) break;
        const double took = sys_seconds() - start;
        t->at.updates++, r->loss = s.loss;
        log_progress(0, "step %lld: %.3f s, %.0f tokens/s", (long long)step + 1, took, (double)s.rows / took);
        if (!s.finite)
            status = err_set(e, ERR_NONFINITE, "step %lld: the loss or a gradient is not finite; the figures would mean nothing",
                             (long long)step + 1);
        if (stop_requested()) status = err_set(e, 128 + stop_requested(), "stopped");
        if (step < WARM_STEPS) continue;
        seconds[n++] = took, sum += took;
        if (n == MOST_STEPS || (wanted ? n >= wanted : n >= LEAST_STEPS && sum > ENOUGH_SECONDS)) break;
    }
    if (!status) {
        flops = counted_flops();
        qsort(seconds, (size_t)n, sizeof *seconds, ascending);
        r->warm_steps = WARM_STEPS, r->steps = n, r->step_seconds = seconds[n / 2];
        r->tokens_per_second = (double)t->batch.N / r->step_seconds;
        r->slowest = (double)t->batch.N / seconds[n - 1], r->fastest = (double)t->batch.N / seconds[0];
        r->flops = flops / (double)n / r->step_seconds;
        const struct update_times after = params_times(&t->params);
        r->updating = (after.worked - before.worked) / (double)n, r->waiting = (after.waited - before.waited) / (double)n;
    }
    sys_free(seconds);
    return status;
}

int train_bench(const struct estimate_options *o, struct bench_result *r, struct err *e) {
    struct trainer t = {.o = o->train};
    struct backend_info info;
    int32_t *ids = NULL;
    int status = -1;
    *r = (struct bench_result){0};
    if (!(t.be = backend_open(o->train->backend, e))) return -1;
    t.be->info(t.be->self, &info);
    t.free_before = info.free_bytes;
    setup_host(&t, 1);
    setup_shape(&t);
    if (setup_model(&t, o->config, e) || estimate_plan(&t, o->memory, 0, e) || rates_measure(&t, e)) goto out;
    estimate_of(&t, &r->predicted);
    if (o->train->max_steps <= 0 && t.plan.seconds > TOO_LONG) {
        char text[40];
        err_set(e, ERR_RUN, "a step would take about %s; --max_steps N measures N of them all the same",
                text_seconds(text, t.plan.seconds));
        goto out;
    }
    const double start = sys_seconds();
    if (model_random(&t.model, &t.how, t.o->seed, e)) goto out;
    r->load_seconds = sys_seconds() - start;
    if (setup_run(&t, model_read_pages, &t.model, e) || fill(&t, &ids, e) || run(&t, r, e)) goto out;
    t.be->info(t.be->self, &info);
    if (!info.unified) r->device_bytes = t.free_before - info.free_bytes;
    sys_memory(&r->host);
    status = 0;
out:
    sys_free(ids);
    setup_close(&t);
    return status;
}

int bench_context(const char *backend, int64_t *bytes, struct err *e) {
    struct backend_info info;
    const int64_t before = card_used_bytes();
    struct backend *be = backend_open(backend, e);
    if (!be) return -1;
    be->info(be->self, &info);
    const int64_t after = info.unified ? 0 : card_used_bytes();
    *bytes = info.unified ? 0 : before < 0 || after < before ? -1 : after - before;
    backend_close(be);
    return 0;
}

/* Random values: a card computes zeros with less power, and so faster. */
static int random_block(struct backend *be, char *to, size_t bytes, enum dtype type, struct err *e) {
    const size_t size = dtype_bytes(type), piece = (size_t)4 << 20;
    char *x = sys_alloc(piece, "random values", e);
    if (!x) return -1;
    for (size_t i = 0; i < piece / size; i++) {
        uint32_t at[4] = {(uint32_t)i, 0, 0, 0}, key[2] = {0}, word[4];
        philox4x32(at, key, word);
        const float v = (float)(int32_t)word[0] * 0x1p-31f;
        const uint16_t half = f32_to_bf16(v);
        memcpy(x + i * size, size == 2 ? (const void *)&half : &v, size);
    }
    for (size_t i = 0; i < bytes; i += piece) be->put(be->self, to + i, x, bytes - i < piece ? bytes - i : piece, Q_COMPUTE);
    int r = be->sync(be->self, e);
    sys_free(x);
    return r;
}

int bench_ceiling(const char *backend, double seconds, double *flops, struct err *e) {
    struct backend *be = backend_open(backend, e);
    struct backend_info info;
    void *block = NULL;
    int r = -1;
    if (!be) return -1;
    be->info(be->self, &info);
    const int64_t n = info.unified ? 1024 : 8192;
    const size_t bytes = (size_t)(n * n) * dtype_bytes(info.activation);
    const struct backend_limits l = {.rows = n, .sequence = n, .D = n, .F = n, .H = 1, .K = 64, .V = 64, .joined = 1};
    if (!(block = backend_alloc(be, AT_DEVICE, 3 * bytes, "a product of 8192 cubed", e)) || be->reserve(be->self, &l, e)) goto out;
    char *p = block;
    if (random_block(be, p, 2 * bytes, info.activation, e)) goto out;
    const int32_t starts[2] = {0, (int32_t)n};
    const struct rows rows = {.N = n, .n_seqs = 1, .seq_start = starts};
    struct linear_args a = {.rows = &rows, .x = {p, n, n, n, info.activation}, .n = 1};
    a.out[0] =
        (struct linear_out){.w = {.format = info.activation == DT_BF16 ? W_BF16 : W_F32, .rows = n, .cols = n, .data = p + bytes},
                            .y = {p + 2 * bytes, n, n, n, info.activation}};
    double start = 0, took = 0;
    int64_t calls = 0, at_once = 1;
    for (int warm = 1; warm || took < seconds; warm = 0) {
        if (warm) start = sys_seconds();
        for (int64_t i = 0; i < at_once; i++) op_linear(be, &a);
        if (be->sync(be->self, e)) goto out;
        if (warm) start = sys_seconds(), calls = 0, at_once = info.unified ? 1 : 16;
        else calls += at_once, took = sys_seconds() - start;
    }
    *flops = 2.0 * (double)n * (double)n * (double)n * (double)calls / took;
    r = 0;
out:
    if (block) be->release(be->self, AT_DEVICE, block);
    backend_close(be);
    return r;
}
