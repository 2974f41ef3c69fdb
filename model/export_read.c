/* model/export_read.c - pieces of a tensor as the merged model has them: read by several threads, while the system reads
 * on, decoded when they are stored in 4 or 8 bits, adapters added in fp32, rounded once. */
#include "base/half.h"
#include "base/log.h"
#include "base/stop.h"
#include "base/str.h"
#include "base/sys.h"
#include "model/export_internal.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    MAX_READERS = 16,
    ALIGN = 4096,   /* elements: the largest block, whose codes are whole elements of any storage type */
    SLICE = 1 << 14 /* elements a thread decodes at a time: a multiple of all block sizes */
};

int source_not_finite(struct job *j, const struct source *s, int64_t element) {
    return err_set(j->e, ERR_INPUT, "%s: element %lld of %s is NaN, infinite or beyond the format%s",
                   ckpt_file(s->from, s->t), (long long)element, s->t->name,
                   s->adapters ? ", with the adapter added" : "");
}

/* ---- a tensor ---- */

static int check_shape(struct job *j, const struct model_tensor *m, int rank, const int64_t *shape,
                       const struct source *s) {
    int same = rank == m->rank;
    for (int k = 0; same && k < rank; k++) same = shape[k] == m->shape[k];
    if (same) return 0;
    return err_set(j->e, ERR_INPUT,
                   "%s: tensor %s has not the shape that config.json asks for (%lld elements, %lld)",
                   ckpt_file(s->from, s->t), m->name, (long long)s->t->count, (long long)m->count);
}

/* The tensor that takes the place of m: of the last adapter that holds it whole, else the model's own. */
static void find_tensor(const struct job *j, const struct model_tensor *m, struct source *s) {
    *s = (struct source){.m = m, .from = j->in, .cols = m->shape[m->rank - 1]};
    if (j->made) return;
    for (int i = j->adapters; !s->t && m->kind != TENSOR_PROJ && i-- > 0;)
        if ((s->t = lora_file_saved(&j->adapter[i], m->name))) s->from = j->adapter[i].c;
    if (s->t) return;
    const int head = j->untied && !strcmp(m->name, "lm_head.weight");
    s->t = ckpt_find(j->in, head ? "model.embed_tokens.weight" : m->name);
}

/* A convolution whose taps are matrices in 4 bits. */
static int stored_in_taps(const struct job *j, const struct model_tensor *m) {
    char name[160];
    if (m->kind != TENSOR_MATRIX || m->rank != 4) return 0;
    snprintf(name, sizeof name, "%.*s.0.weight", (int)(strlen(m->name) - strlen(".weight")), m->name);
    return ckpt_find(j->in, name) != NULL;
}

int source_check(struct job *j, const struct model_tensor *m, const char *from) {
    struct ckpt_quant q = {0};
    struct source s;
    if (j->made) return j->all_bytes += m->count * (int64_t)dtype_bytes(j->type), 0;
    find_tensor(j, m, &s);
    const struct ckpt_tensor *t = s.t;
    if (!t && stored_in_taps(j, m))
        return err_set(
            j->e, ERR_INPUT,
            "%s: the localized filter is stored in 4 bits, from which no other checkpoint is made; give the original one", from);
    if (!t)
        return err_set(j->e, ERR_INPUT, "%s: tensor %s is missing; is this a complete Yuan 2.0 checkpoint?",
                       from, m->name);
    if (m->kind == TENSOR_PROJ && ckpt_quant(j->in, m->name, &q, j->e)) return -1;
    j->all_bytes += t->count * (int64_t)dtype_bytes(t->type);
    if (q.bits) return check_shape(j, m, 2, (int64_t[]){q.rows, q.cols}, &s);
    if (t->type == DT_F32 || t->type == DT_BF16 || t->type == DT_F16 || t->type == DT_F64)
        return check_shape(j, m, t->rank, t->shape, &s);
    return err_set(j->e, ERR_INPUT, "%s: tensor %s has type %s, a float type is needed", ckpt_file(s.from, t),
                   m->name, dtype_name(t->type));
}

static int open_scales(struct job *j, struct source *s) {
    const struct ckpt_quant *q = &s->q;
    const struct ckpt_tensor *t = q->bits == 8 ? q->row_scale : q->absmax;
    if (!(s->scale = sys_alloc((size_t)t->count * 4, "scales", j->e))) return -1;
    if (q->bits == 8 || !q->nested) return ckpt_read_all(j->in, t, DT_F32, s->scale, j->e);
    uint8_t *small = sys_alloc((size_t)t->count, "8-bit scales", j->e);
    float *nested = sys_alloc((size_t)q->nested_absmax->count * 4, "nested scales", j->e);
    int rc = small && nested && !ckpt_read_all(j->in, t, DT_U8, small, j->e) &&
                     !ckpt_read_all(j->in, q->nested_absmax, DT_F32, nested, j->e)
                 ? 0
                 : -1;
    const struct q4_view v = {.absmax_q = small,
                              .nested_absmax = nested,
                              .nested_map = q->nested_map,
                              .nested_offset = q->nested_offset};
    for (int64_t b = 0; !rc && b < t->count; b++) s->scale[b] = q4_scale(&v, b);
    sys_free(small);
    sys_free(nested);
    return rc;
}

/* The projection that a tensor's name ends with. */
static int find_projection(const struct model_tensor *m, int64_t *layer, enum proj *p) {
    char module[64];
    long long l;
    if (sscanf(m->name, "model.layers.%lld.%63s", &l, module) != 2) return -1;
    *layer = l;
    for (int i = 0; i < PROJ_COUNT; i++)
        if (!strncmp(module, proj_module[i], strlen(proj_module[i]))) return *p = (enum proj)i, 0;
    return -1;
}

static int read_wide(struct job *j, const struct source *s, int64_t first, int64_t count);
static void apply(const struct job *j, const struct source *s, int adapters, int64_t first, int64_t count);

/* The scales of adapter k from its magnitudes, by a pass over the matrix with the adapters before it applied. */
static int make_scales(struct job *j, const struct model_tensor *m, struct source *s, int k, const float *magnitudes) {
    const int64_t rows = m->shape[0];
    double *squares = sys_alloc((size_t)rows * sizeof *squares, "row norms", j->e);
    int rc = squares ? 0 : -1;
    for (int64_t at = 0; !rc && at < m->count; at += EXPORT_PIECE) {
        const int64_t n = m->count - at < EXPORT_PIECE ? m->count - at : EXPORT_PIECE;
        if ((rc = read_wide(j, s, at, n))) break;
        apply(j, s, k + 1, at, n); /* its own scales are not there yet: the bare sum */
        lora_squares(s->cols, at, n, j->wide, squares);
    }
    if (!rc && (s->scales[k] = sys_alloc((size_t)rows * 4, "row scales", j->e))) lora_scales(rows, magnitudes, squares, s->scales[k]);
    sys_free(squares);
    return s->scales[k] ? 0 : -1;
}

static int open_adapters(struct job *j, const struct model_tensor *m, struct source *s) {
    int64_t layer;
    enum proj p;
    int found = find_projection(m, &layer, &p);
    ASSERT(!found, "%s is no projection", m->name);
    for (int i = 0; i < j->adapters; i++) {
        const struct lora_config *c = &j->adapter[i].shape.config;
        if (!(c->targets >> p & 1)) continue;
        int k = s->adapters++;
        s->config[k] = c;
        s->a[k] = sys_alloc((size_t)(c->rank * m->shape[1]) * 4, "adapter of one matrix", j->e);
        s->b[k] = sys_alloc((size_t)(c->rank * m->shape[0]) * 4, "adapter of one matrix", j->e);
        float *magnitudes = c->dora ? sys_alloc((size_t)m->shape[0] * 4, "magnitudes", j->e) : NULL;
        int rc = s->a[k] && s->b[k] && (magnitudes || !c->dora) &&
                         !lora_file_read(&j->adapter[i], layer, p, s->a[k], s->b[k], magnitudes, j->e) &&
                         !(c->dora && make_scales(j, m, s, k, magnitudes))
                     ? 0
                     : -1;
        sys_free(magnitudes);
        if (rc) return -1;
    }
    return 0;
}

int source_open(struct job *j, const struct model_tensor *m, struct source *s) {
    find_tensor(j, m, s);
    if (m->kind != TENSOR_PROJ || j->made) return 0;
    if (!ckpt_quant(j->in, m->name, &s->q, j->e) && !(s->q.bits && open_scales(j, s)) &&
        !open_adapters(j, m, s))
        return 0;
    source_close(s);
    return -1;
}

void source_close(struct source *s) {
    sys_free(s->scale);
    for (int i = 0; i < s->adapters; i++) sys_free(s->a[i]), sys_free(s->b[i]), sys_free(s->scales[i]);
    *s = (struct source){0};
}

/* ---- a piece ---- */

/* Elements of t as they are or as `as`, by several threads. */
static int read_range(struct job *j, const struct ckpt *from_file, const struct ckpt_tensor *t, int64_t first,
                      int64_t count, enum dtype as, void *to) {
    struct err errs[MAX_READERS] = {{0}};
    int readers = sys_threads() < MAX_READERS ? sys_threads() : MAX_READERS;
    if (count < 1 << 16) readers = 1;
    int64_t share = (count + readers - 1) / readers;
#pragma omp parallel for num_threads(readers) schedule(static, 1)
    for (int r = 0; r < readers; r++) {
        int64_t from = r * share, n = from + share < count ? share : count - from;
        if (n > 0)
            ckpt_read_range(from_file, t, first + from, n, as, (char *)to + (size_t)from * dtype_bytes(as),
                            &errs[r]);
    }
    for (int r = 0; r < readers; r++)
        if (errs[r].code) return err_set(j->e, errs[r].code, "%s", errs[r].text);
    return 0;
}

static int decode_q4(struct job *j, const struct source *s, int64_t first, int64_t count) {
    const struct ckpt_tensor *t = s->q.weight;
    const int64_t start = first / ALIGN * ALIGN, per = 2 * (int64_t)dtype_bytes(t->type);
    int64_t units = (first + count - start + per - 1) / per;
    if (units > t->count - start / per) units = t->count - start / per;
    if (read_range(j, j->in, t, start / per, units, t->type, j->codes)) return -1;
    const struct q4_view v = {.codes = j->codes,
                              .absmax = s->scale + start / s->q.block,
                              .levels = s->q.levels,
                              .block = s->q.block};
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += SLICE)
        q4_decode(&v, first - start + i, count - i < SLICE ? count - i : SLICE, j->wide + i, DT_F32);
    return 0;
}

static int decode_int8(struct job *j, const struct source *s, int64_t first, int64_t count) {
    const int8_t *q = (const int8_t *)j->codes;
    const int64_t cols = s->cols, end = first + count, rows = (end + cols - 1) / cols;
    if (read_range(j, j->in, s->q.weight, first, count, DT_I8, j->codes)) return -1;
#pragma omp parallel for schedule(static)
    for (int64_t row = first / cols; row < rows; row++) {
        int64_t from = row * cols > first ? row * cols : first,
                to = (row + 1) * cols < end ? (row + 1) * cols : end;
        const float unit = int8_unit(s->scale[row]);
        for (int64_t i = from - first; i < to - first; i++) j->wide[i] = (float)q[i] * unit;
    }
    return 0;
}

/* wide[0..count) to piece. -1, or the index of the first value that is not finite in the target. */
static int64_t round_piece(struct job *j, int64_t count) {
    const float *x = j->wide;
    const float limit = j->type == DT_F16 ? 65520 : j->type == DT_BF16 ? 0x1.ffp127f : INFINITY;
    uint16_t *h = j->piece;
    int64_t bad = INT64_MAX;
#pragma omp parallel for schedule(static) reduction(min : bad)
    for (int64_t i = 0; i < count; i++) {
        if (!(x[i] < limit && x[i] > -limit) && i < bad) bad = i;
        if (j->type == DT_F32)
            ((float *)j->piece)[i] = x[i];
        else
            h[i] = j->type == DT_F16 ? f32_to_f16(x[i]) : f32_to_bf16(x[i]);
    }
    return bad == INT64_MAX ? -1 : bad;
}

/* Tensors go through in this order: the system may read the next AHEAD bytes while these are encoded and written. */
static void read_ahead(struct job *j) {
    static const int64_t AHEAD = 64 << 20;
    struct model_tensor m;
    struct source s;
    while (j->ahead_bytes < j->read_bytes + AHEAD && j->ahead_tensor < model_tensor_count(&j->config)) {
        model_tensor_at(&j->config, j->ahead_tensor, &m);
        find_tensor(j, &m, &s);
        const int64_t left = s.t->count - j->ahead_at, n = left < EXPORT_PIECE ? left : EXPORT_PIECE;
        ckpt_ahead(s.from, s.t, j->ahead_at, n);
        j->ahead_bytes += n * (int64_t)dtype_bytes(s.t->type), j->ahead_at += n;
        if (n == left) j->ahead_tensor++, j->ahead_at = 0;
    }
}

/* Elements of the tensor itself, in fp32. */
static int read_wide(struct job *j, const struct source *s, int64_t first, int64_t count) {
    if (!s->q.bits) return read_range(j, s->from, s->t, first, count, DT_F32, j->wide);
    return s->q.bits == 4 ? decode_q4(j, s, first, count) : decode_int8(j, s, first, count);
}

/* The first so many adapters on elements in wide, one after the other. */
static void apply(const struct job *j, const struct source *s, int adapters, int64_t first, int64_t count) {
    for (int i = 0; i < adapters; i++) {
        lora_merge(s->config[i], s->cols, s->a[i], s->b[i], first, count, j->wide);
        if (s->scales[i]) lora_rescale(s->cols, s->scales[i], first, count, j->wide);
    }
}

static int read_merged(struct job *j, const struct source *s, int64_t first, int64_t count) {
    const struct ckpt_tensor *t = s->t;
    const int as_is = !s->q.bits && !s->adapters && (j->type != DT_F16 || t->type == DT_F16);
    read_ahead(j);
    if (as_is ? read_range(j, s->from, t, first, count, j->type, j->piece) : read_wide(j, s, first, count)) return -1;
    apply(j, s, s->adapters, first, count);
    if (s->q.bits || s->adapters || (j->type == DT_F16 && t->type != DT_F16)) {
        int64_t bad = round_piece(j, count);
        if (bad >= 0) return source_not_finite(j, s, first + bad);
    }
    return 0;
}

int source_read(struct job *j, const struct source *s, int64_t first, int64_t count) {
    if (j->made) made_fill(j->made, s->m, first, count, j->piece);
    else if (read_merged(j, s, first, count)) return -1;
    j->read_bytes += s->q.bits == 4 ? count / 2 : count * (int64_t)dtype_bytes(j->made ? j->type : s->t->type);
    double took = sys_seconds() - j->start;
    char done[24], all[24];
    log_progress(0, "%s: %s of %s, %.0f MB/s", j->how->bits ? "quantizing" : j->made ? "writing" : "exporting",
                 text_bytes(done, j->read_bytes), text_bytes(all, j->all_bytes),
                 took > 0 ? (double)j->read_bytes * 1e-6 / took : 0);
    int sig = stop_requested();
    return sig ? err_set(j->e, 128 + sig, "stopped by a signal; nothing was written") : 0;
}
