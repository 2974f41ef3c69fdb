/* backend/backend.c - the wrappers in front of a backend's table, their counters, and the choice of a backend.
 *
 * A wrapper says what an op takes (shapes, types, strides: a mismatch is our bug and aborts here, on every machine alike),
 * counts its work, and calls the table. FLOPs are those of the mathematics: a masked score is not counted, unpacking neither.
 */
#define _GNU_SOURCE
#include "backend/backend.h"
#include "base/file.h"
#include "base/log.h"
#include "base/sys.h"
#include "base/str.h"
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

/* ---- counters ---- */

int op_timing;

enum op {
    EMBED,
    EMBED_BWD,
    NORM,
    NORM_BWD,
    LINEAR,
    LINEAR_BWD,
    JOIN,
    DORA,
    DORA_BWD,
    FILTER,
    FILTER_BWD,
    ROPE,
    ATTEND,
    ATTEND_BWD,
    GATE,
    GATE_BWD,
    LOSS,
    ADAM,
    SQSUM,
    NOISE,
    OPS
};
static const char *const names[OPS] = {"embed", "embed_bwd", "norm", "norm_bwd", "linear", "linear_bwd", "join", "dora", "dora_bwd", "filter",
                                       "filter_bwd", "rope", "attend", "attend_bwd", "gate", "gate_bwd", "loss", "adam", "sqsum", "noise"};
static struct op_count counts[OPS];
static pthread_mutex_t counting = PTHREAD_MUTEX_INITIALIZER; /* two backends may work at a time */

const struct op_count *op_counts(int *n) {
    for (int i = 0; i < OPS; i++) counts[i].name = names[i];
    *n = OPS;
    return counts;
}
void op_counts_reset(void) { memset(counts, 0, sizeof counts); }

/* Before and after a table's entry: the profiler's range, the work, and under op_timing the time between two syncs (whose
 * failure the caller's own sync reports too). */
static double begin(struct backend *b, enum op op) {
    if (b->range) b->range(b->self, names[op]);
    if (!op_timing) return 0;
    b->sync(b->self, NULL);
    return sys_seconds();
}
static void end(struct backend *b, enum op op, double start, double flops, double bytes) {
    if (op_timing) b->sync(b->self, NULL);
    pthread_mutex_lock(&counting);
    if (op_timing) counts[op].seconds += sys_seconds() - start;
    counts[op].calls++, counts[op].flops += flops, counts[op].bytes += bytes;
    pthread_mutex_unlock(&counting);
    if (b->range) b->range(b->self, NULL);
}
#define CALL(b, op, entry, args, flops, bytes)                                                                         \
    do {                                                                                                               \
        if ((b)->failed) break;                                                                                        \
        double start_ = begin(b, op);                                                                                  \
        (b)->entry((b)->self, args);                                                                                   \
        end(b, op, start_, flops, bytes);                                                                              \
    } while (0)

static double elements(const struct mat *m) { return m->data ? (double)m->rows * (double)m->cols : 0; }
static double bytes(const struct mat *m) { return elements(m) * (double)dtype_bytes(m->type); }

static double weight_bytes(const struct weight *w) {
    double n = (double)w->rows * (double)w->cols;
    switch (w->format) {
    case W_F32: return 4 * n;
    case W_BF16: return 2 * n;
    case W_INT8: return n + 4 * (double)w->rows;
    case W_Q4: return n / 2 + n / w->q4.block * (w->q4.absmax ? 4 : 1);
    }
    return 0;
}

/* ---- checks ---- */

#define SHAPE(m, r, c)                                                                                                 \
    ASSERT((m).data && (m).rows == (r) && (m).cols == (c) && (m).ld >= (m).cols,                                       \
           "%s: %p (%lld,%lld) ld %lld, expected (%lld,%lld)", __func__, (m).data, (long long)(m).rows,                \
           (long long)(m).cols, (long long)(m).ld, (long long)(r), (long long)(c))
#define SHAPE_IF(m, r, c)                                                                                              \
    do {                                                                                                               \
        if ((m).data) SHAPE(m, r, c);                                                                                  \
    } while (0)
#define TYPE(m, t)                                                                                                     \
    ASSERT(!(m).data || (m).type == (t), "%s: %s, expected %s", __func__, dtype_name((m).type), dtype_name(t))

static void check_rows(const struct rows *r, int64_t n) {
    ASSERT(r && r->N == n && n > 0 && r->n_seqs > 0 && r->seq_start[0] == 0 && r->seq_start[r->n_seqs] == n,
           "%lld rows in a chunk of %lld, %d sequences", (long long)n, r ? (long long)r->N : -1, r ? r->n_seqs : -1);
}

static void check_weight(const struct weight *w, int64_t rows, int64_t cols) {
    ASSERT(w->rows == rows && w->cols == cols, "weight (%lld,%lld), expected (%lld,%lld)", (long long)w->rows,
           (long long)w->cols, (long long)rows, (long long)cols);
    ASSERT(w->format == W_Q4 ? w->q4.codes != NULL : w->data != NULL, "weight of format %d has no data", w->format);
    ASSERT(w->format != W_INT8 || w->scale, "int8 weight without scales, %lld rows", (long long)rows);
}

static void check_adapter(const struct adapter *l, int64_t out, int64_t in) {
    int64_t R = l->A.rows;
    SHAPE(l->A, R, in);
    SHAPE(l->B, out, R);
    SHAPE_IF(l->dA, R, in);
    SHAPE_IF(l->dB, out, R);
    TYPE(l->A, DT_F32), TYPE(l->B, DT_F32), TYPE(l->dA, DT_F32), TYPE(l->dB, DT_F32);
    ASSERT(!l->m || l->c, "magnitudes of %lld outputs without their scales", (long long)out);
}

/* ---- wrappers ---- */

void op_embed(struct backend *b, const struct embed_args *a) {
    check_rows(a->rows, a->y.rows);
    SHAPE(a->y, a->rows->N, a->E.cols);
    CALL(b, EMBED, embed, a, 0, 2 * bytes(&a->y));
}

void op_embed_bwd(struct backend *b, const struct embed_args *a) {
    check_rows(a->rows, a->dy.rows);
    SHAPE(a->dy, a->rows->N, a->dE.cols);
    TYPE(a->dE, DT_F32);
    CALL(b, EMBED_BWD, embed_bwd, a, elements(&a->dy), 3 * bytes(&a->dy));
}

void op_norm(struct backend *b, const struct norm_args *a) {
    SHAPE(a->y, a->x.rows, a->x.cols);
    TYPE(a->y, a->x.type);
    CALL(b, NORM, norm, a, 4 * elements(&a->x), 2 * bytes(&a->x));
}

void op_norm_bwd(struct backend *b, const struct norm_args *a) {
    check_rows(a->rows, a->x.rows);
    SHAPE(a->dy, a->x.rows, a->x.cols);
    SHAPE(a->dx, a->x.rows, a->x.cols);
    ASSERT(a->r, "norm_bwd without r, %lld rows", (long long)a->x.rows);
    CALL(b, NORM_BWD, norm_bwd, a, 8 * elements(&a->x), (a->overwrite ? 3 : 4) * bytes(&a->x));
}

void op_linear(struct backend *b, const struct linear_args *a) {
    double work = 0, moved = bytes(&a->x);
    ASSERT(a->n >= 1 && a->n <= LINEAR_MAX, "n %d", a->n);
    check_rows(a->rows, a->x.rows);
    for (int i = 0; i < a->n; i++) {
        const struct linear_out *o = &a->out[i];
        int64_t N = a->x.rows, in = a->x.cols, out = o->w.rows;
        check_weight(&o->w, out, in);
        SHAPE_IF(o->y, N, out);
        SHAPE_IF(o->add, N, out);
        ASSERT(o->y.data || o->lora.A.data, "output %d of linear makes nothing", i);
        if (o->y.data) work += 2 * (double)N * (double)in * (double)out, moved += bytes(&o->y) + bytes(&o->add) + weight_bytes(&o->w);
        if (!o->lora.A.data) continue;
        check_adapter(&o->lora, out, in);
        SHAPE(o->xa, N, o->lora.A.rows);
        work += 2 * (double)N * (double)o->lora.A.rows * (double)(o->y.data ? in + out : in);
    }
    CALL(b, LINEAR, linear, a, work, moved);
}

void op_linear_bwd(struct backend *b, const struct linear_args *a) {
    double work = 0, moved = (a->accumulate ? 2 : 1) * bytes(&a->dx);
    ASSERT(a->n >= 1 && a->n <= LINEAR_MAX, "n %d", a->n);
    check_rows(a->rows, a->x.rows);
    SHAPE_IF(a->dx, a->x.rows, a->x.cols);
    for (int i = 0; i < a->n; i++) {
        const struct linear_out *o = &a->out[i];
        int64_t N = a->x.rows, in = a->x.cols, out = o->w.rows, R = o->lora.A.rows;
        check_weight(&o->w, out, in);
        SHAPE(o->dy, N, out);
        SHAPE_IF(o->dW, out, in);
        TYPE(o->dW, DT_F32);
        moved += bytes(&o->dy);
        if (a->dx.data) work += 2 * (double)N * (double)in * (double)out, moved += weight_bytes(&o->w);
        if (o->dW.data) work += 2 * (double)N * (double)in * (double)out, moved += bytes(&a->x) + 2 * bytes(&o->dW);
        if (!o->lora.A.data) continue;
        check_adapter(&o->lora, out, in);
        SHAPE(o->xa, N, R);
        SHAPE_IF(o->dxa, N, R);
        ASSERT(!o->lora.m || !o->dW.data, "magnitudes over a trained weight, %lld rows", (long long)out);
        int dx = a->dx.data != NULL, dA = o->lora.dA.data != NULL, dB = o->lora.dB.data != NULL;
        work += 2 * (double)N * (double)R * ((double)out * ((dx || dA) + dB) + (double)in * (dx + dA));
    }
    CALL(b, LINEAR_BWD, linear_bwd, a, work, moved);
}

void op_join(struct backend *b, const struct join_args *a) {
    int64_t rows, cols;
    double moved = 0;
    join_shape(a, &rows, &cols);
    ASSERT(a->n >= 1 && a->n <= LINEAR_MAX && a->to.ld % 8 == 0, "n %d, ld %lld", a->n, (long long)a->to.ld);
    SHAPE(a->to, rows, cols);
    for (int i = 0; i < a->n; i++) {
        check_weight(&a->part[i].w, a->part[i].w.rows, a->part[0].w.cols);
        if (a->part[i].lora.A.data) check_adapter(&a->part[i].lora, a->part[i].w.rows, a->part[i].w.cols);
        moved += weight_bytes(&a->part[i].w);
    }
    CALL(b, JOIN, join, a, 0, moved + bytes(&a->to));
}

void op_dora(struct backend *b, const struct dora_args *a) {
    const struct adapter *l = &a->lora;
    check_weight(&a->w, a->w.rows, a->w.cols);
    check_adapter(l, a->w.rows, a->w.cols);
    ASSERT(l->m || a->norm, "neither norms nor scales of %lld rows", (long long)a->w.rows);
    double n = (double)a->w.rows * (double)a->w.cols;
    CALL(b, DORA, dora, a, 2 * n * (double)(l->A.rows + 2), weight_bytes(&a->w) + bytes(&l->A) + bytes(&l->B));
}

void op_dora_bwd(struct backend *b, const struct dora_args *a) {
    check_rows(a->rows, a->y.rows);
    SHAPE(a->dy, a->y.rows, a->y.cols);
    ASSERT(a->lora.m && a->lora.dm, "gradient of no magnitudes, %lld outputs", (long long)a->y.cols);
    CALL(b, DORA_BWD, dora_bwd, a, 2 * elements(&a->y), 2 * bytes(&a->y));
}

static void check_filter(const struct filter_args *a) {
    check_rows(a->rows, a->x.rows);
    check_weight(&a->w0, a->w1.rows, a->x.cols);
    check_weight(&a->w1, a->w1.rows, a->x.cols);
}

void op_filter(struct backend *b, const struct filter_args *a) {
    check_filter(a);
    SHAPE(a->y, a->x.rows, a->w1.rows);
    SHAPE_IF(a->add, a->x.rows, a->w1.rows);
    SHAPE_IF(a->before, 1, a->x.cols);
    ASSERT(a->b, "filter without bias, %lld outputs", (long long)a->w1.rows);
    ASSERT(!a->before.data || a->rows->n_seqs == 1, "a part of %d sequences", a->rows->n_seqs);
    CALL(b, FILTER, filter, a, 4 * elements(&a->x) * (double)a->w1.rows,
         bytes(&a->x) + bytes(&a->y) + bytes(&a->add) + weight_bytes(&a->w0) + weight_bytes(&a->w1));
}

void op_filter_bwd(struct backend *b, const struct filter_args *a) {
    check_filter(a);
    SHAPE(a->dy, a->x.rows, a->w1.rows);
    SHAPE_IF(a->dx, a->x.rows, a->x.cols);
    SHAPE_IF(a->dx_add, a->x.rows, a->x.cols);
    SHAPE_IF(a->before, 1, a->x.cols);
    SHAPE_IF(a->after, 1, a->w1.rows);
    ASSERT((!a->before.data && !a->after.data) || a->rows->n_seqs == 1, "a part of %d sequences", a->rows->n_seqs);
    ASSERT(!a->dx_add.data || a->dx_add.data != a->dx.data, "the sum and its addend are one, %lld rows", (long long)a->x.rows);
    SHAPE_IF(a->dw0, a->w1.rows, a->x.cols);
    SHAPE_IF(a->dw1, a->w1.rows, a->x.cols);
    TYPE(a->dw0, DT_F32), TYPE(a->dw1, DT_F32);
    double each = 2 * elements(&a->x) * (double)a->w1.rows;
    int products = 2 * (a->dx.data != NULL) + (a->dw0.data != NULL) + (a->dw1.data != NULL);
    CALL(b, FILTER_BWD, filter_bwd, a, each * products,
         bytes(&a->x) + bytes(&a->dy) + bytes(&a->dx) + weight_bytes(&a->w0) + weight_bytes(&a->w1));
}

void op_rope(struct backend *b, const struct rope_args *a) {
    check_rows(a->rows, a->x.rows);
    ASSERT(a->K > 0 && a->K % 2 == 0 && a->x.cols % a->K == 0, "K %lld, %lld columns", (long long)a->K, (long long)a->x.cols);
    ASSERT(a->sign == 1 || a->sign == -1, "sign %d", a->sign);
    CALL(b, ROPE, rope, a, 3 * elements(&a->x), 2 * bytes(&a->x));
}

/* Pairs of query and key that the causal mask lets through (document cuts are not subtracted). */
static double attended(const struct attend_args *a) {
    double pairs = 0;
    for (int s = 0; s < a->rows->n_seqs; s++) {
        double n = a->rows->seq_start[s + 1] - a->rows->seq_start[s];
        pairs += n * (n + 1) / 2 + n * (double)a->past;
    }
    return pairs * (double)a->H * (double)a->K;
}

static void check_attend(const struct attend_args *a, const struct mat *q, const struct mat *k, const struct mat *v, const struct mat *o) {
    int64_t N = a->rows->N, keys = N + a->past, last = a->H - 1;
    check_rows(a->rows, q->rows);
    SHAPE(*o, N, a->H * a->K);
    ASSERT(k->rows == keys && v->rows == keys, "%lld keys, %lld values, expected %lld", (long long)k->rows, (long long)v->rows,
           (long long)keys);
    ASSERT(q->cols >= last * a->q_step + a->K && k->cols >= last * a->k_step + a->K && v->cols >= last * a->v_step + a->K,
           "H %lld K %lld: q %lld, k %lld, v %lld columns", (long long)a->H, (long long)a->K, (long long)q->cols, (long long)k->cols, (long long)v->cols);
}

void op_attend(struct backend *b, const struct attend_args *a) {
    check_attend(a, &a->q, &a->k, &a->v, &a->o);
    ASSERT(!a->past || a->rows->n_seqs == 1, "a cache for %d sequences", a->rows->n_seqs);
    CALL(b, ATTEND, attend, a, 4 * attended(a), 2 * bytes(&a->o) + bytes(&a->k) + bytes(&a->v));
}

void op_attend_bwd(struct backend *b, const struct attend_args *a) {
    check_attend(a, &a->q, &a->k, &a->v, &a->o);
    check_attend(a, &a->dq, &a->dk, &a->dv, &a->d_o);
    ASSERT(!a->past, "backward with a cache of %lld", (long long)a->past);
    CALL(b, ATTEND_BWD, attend_bwd, a, 10 * attended(a), 8 * bytes(&a->o));
}

void op_gate(struct backend *b, const struct gate_args *a) {
    SHAPE(a->u, a->g.rows, a->g.cols);
    SHAPE(a->y, a->g.rows, a->g.cols);
    CALL(b, GATE, gate, a, 4 * elements(&a->g), 3 * bytes(&a->g));
}

void op_gate_bwd(struct backend *b, const struct gate_args *a) {
    SHAPE(a->u, a->g.rows, a->g.cols);
    SHAPE(a->dy, a->g.rows, a->g.cols);
    SHAPE_IF(a->dg, a->g.rows, a->g.cols);
    SHAPE(a->du, a->g.rows, a->g.cols);
    SHAPE_IF(a->y, a->g.rows, a->g.cols);
    CALL(b, GATE_BWD, gate_bwd, a, 9 * elements(&a->g), (4 + (a->y.data != NULL) + (a->dg.data != NULL)) * bytes(&a->g));
}

void op_loss(struct backend *b, const struct loss_args *a) {
    check_rows(a->rows, a->y.rows);
    check_weight(&a->E, a->E.rows, a->y.cols);
    ASSERT(a->E.format == W_F32 || a->E.format == W_BF16, "head of format %d", a->E.format);
    SHAPE_IF(a->dy, a->y.rows, a->y.cols);
    SHAPE_IF(a->dE, a->E.rows, a->E.cols);
    TYPE(a->dE, DT_F32);
    int backward = (a->dy.data != NULL) + (a->dE.data != NULL);
    ASSERT(a->smoothing >= 0 && a->smoothing <= 1, "smoothing %g", (double)a->smoothing);
    ASSERT(!backward || a->weight || !a->n, "gradient of %lld losses without weights", (long long)a->n);
    CALL(b, LOSS, loss, a, 2 * (1 + backward) * (double)a->n * (double)a->E.rows * (double)a->E.cols,
         (1 + backward) * (weight_bytes(&a->E) + 4 * (double)a->n * (double)a->E.rows));
}

void op_adam(struct backend *b, const struct adam_args *a) {
    double n = 0, moved = 0;
    for (int64_t i = 0; i < a->count; i++) {
        const struct adam_tensor *t = &a->tensors[i];
        ASSERT(t->p || (t->copy && !t->round), "tensor %lld has no values", (long long)i);
        ASSERT(!t->n || (t->g != NULL) != (t->g16 != NULL), "tensor %lld has no gradient, or two", (long long)i);
        ASSERT(t->m ? t->v != NULL : t->m8 && t->v8 && t->m_absmax && t->v_absmax, "tensor %lld has no state", (long long)i);
        n += (double)t->n, moved += (double)t->n * ((t->m ? 28 : 16) - (t->g16 ? 2 : 0) + (!t->p ? -4 : t->copy ? 2 : 0));
    }
    ASSERT(a->t >= 1, "step %lld", (long long)a->t);
    CALL(b, ADAM, adam, a, 12 * n, moved);
}

void op_sqsum(struct backend *b, const struct sqsum_args *a) {
    double n = 0;
    for (int64_t i = 0; i < a->count; i++) n += (double)a->n[i];
    CALL(b, SQSUM, sqsum, a, 2 * n, (a->half ? 6 : 4) * n);
}

void op_noise(struct backend *b, const struct noise_args *a) {
    check_rows(a->rows, a->y.rows);
    ASSERT(a->y.data && a->size, "noise for %lld rows without their sizes", (long long)a->y.rows);
    CALL(b, NOISE, noise, a, 2 * elements(&a->y), 2 * bytes(&a->y));
}

/* ---- opening ---- */

static const char plugin_name[] = "libqlora-cuda.so";

/* Beside the running program, or where `make install` puts it. */
int backend_find_plugin(char *path, size_t size) {
    static const char *const folders[] = {"", "../lib/qlora/"};
    char program[4096];
    ssize_t n = sys_readlink("/proc/self/exe", program, sizeof program - 1);
    if (n <= 0) return -1;
    program[n] = 0;
    strrchr(program, '/')[1] = 0;
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        int length = snprintf(path, size, "%s%s%s", program, folders[i], plugin_name);
        if (length > 0 && (size_t)length < size && path_is_file(path)) return 0;
    }
    return -1;
}

int backend_has_driver(void) {
    void *driver = sys_library("libcuda.so.1");
    if (driver) dlclose(driver);
    return driver != NULL;
}

static struct backend *open_plugin(const char *path, struct err *e) {
    void *library = sys_library(path);
    if (!library) {
        const char *why = dlerror();
        err_set(e, ERR_RUN, "backend %s cannot be loaded: %s%s", path, why,
                strstr(why, "libcublas") ? "; add the CUDA toolkit's lib64 to LD_LIBRARY_PATH" : "");
        return NULL;
    }
    void *symbol = dlsym(library, "qlora_backend");
    struct backend *(*make)(int, struct err *);
    memcpy(&make, &symbol, sizeof make); /* ISO C has no cast from object to function pointer */
    struct backend *b = NULL;
    if (!symbol) err_set(e, ERR_RUN, "%s is no qlora backend: it does not export qlora_backend", path);
    else if ((b = make(BACKEND_VERSION, e)) && b->version != BACKEND_VERSION) {
        err_set(e, ERR_RUN, "backend %s has version %d, this program needs %d: build both from the same sources", path,
                b->version, BACKEND_VERSION);
        b->close(b->self);
        b = NULL;
    }
    return b; /* the library stays loaded: threads and driver state must not lose their code */
}

struct backend *backend_open(const char *name, struct err *e) {
    char path[4096];
    if (name && !strcmp(name, "cpu")) return backend_cpu(e);
    if (name && strchr(name, '/')) return open_plugin(name, e);
    if (name && strcmp(name, "cuda")) {
        const char *near = nearest_word(name, (const char *const[]){"cuda", "cpu", NULL});
        err_set(e, ERR_INPUT, "unknown backend \"%s\"%s%s%s: give cpu, cuda, or the path of a plugin (with a /)", name,
                near ? ", did you mean " : "", near ? near : "", near ? "?" : "");
        return NULL;
    }
    if (backend_find_plugin(path, sizeof path)) {
        if (!name) return backend_cpu(e);
        err_set(e, ERR_RUN,
                "no %s beside the program or in ../lib/qlora: build it with nvcc in PATH (make), or use --backend cpu",
                plugin_name);
        return NULL;
    }
    struct err no_card = {0};
    struct backend *b = open_plugin(path, name ? e : &no_card);
    if (b || name) return b;
    log_info("no usable card (%s): computing on the CPU", no_card.text);
    return backend_cpu(e);
}

void backend_close(struct backend *b) {
    if (b) b->close(b->self);
}

/* ---- memory, failures, ranges ---- */

void *backend_alloc(struct backend *b, enum place place, size_t bytes, const char *what, struct err *e) {
    void *p = b->alloc(b->self, place, bytes);
    if (p || b->sync(b->self, e)) return p;
    struct backend_info i;
    char need[24], left[24], all[24];
    b->info(b->self, &i);
    text_bytes(need, (int64_t)bytes), text_bytes(left, i.free_bytes), text_bytes(all, i.total_bytes);
    if (i.unified || place == AT_HOST)
        err_set(e, ERR_RUN, "out of host memory: %s needs %s%s, %s of the machine's memory are free", what, need,
                i.unified ? "" : " that the card can reach", text_bytes(left, sys_free_memory()));
    else if ((int64_t)bytes > i.free_bytes)
        err_set(e, ERR_RUN,
                "out of device memory: %s needs %s, and of the card's %s only %s are free now. If another program took the rest "
                "(`nvidia-smi` lists them), stop it; or plan with less by --vram",
                what, need, all, left);
    else
        err_set(e, ERR_RUN,
                "out of device memory: %s needs %s in one piece, and the %s that are free are in pieces or were taken by another "
                "program a moment ago; start again, or plan with less by --vram",
                what, need, left);
    return NULL;
}

int backend_failed(struct backend *b, struct err *e) {
    struct err card = {0};
    if (!b || !b->sync(b->self, &card)) return 0;
    if (e) *e = card;
    return -1;
}

void backend_range(struct backend *b, const char *fmt, ...) {
    char name[80];
    if (!b->range) return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    b->range(b->self, name);
}
void backend_range_end(struct backend *b) {
    if (b->range) b->range(b->self, NULL);
}
