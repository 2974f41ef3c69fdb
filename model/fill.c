/* model/fill.c - a checkpoint into pages, by several threads: the tensors are cut into pieces of a few MiB, and each piece is
 * read, converted or quantised, and written to its place. Some threads wait for the disk while others compute; nothing is held
 * but a piece a thread, and the scales of the matrices that are being quantised. */
#include "base/jobs.h"
#include "base/log.h"
#include "base/stop.h"
#include "base/str.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "model/model.h"
#include <string.h>

enum kind {
    RAW,    /* elements as they are */
    PLAIN,  /* as fp32 or bf16 */
    TABLES, /* of a stored 4-bit matrix */
    CODES,  /* quantised */
    TAPS,   /* a convolution: the two taps lie side by side in the file and apart in the page; plain or quantised */
    TIED    /* elements of a stored lm_head against the embedding's */
};
/* A matrix that is quantised to 4 bits: its scales are coded when all of them are known. */
struct scales {
    float *absmax;
    int64_t left;           /* pieces to come */
};
struct piece {
    enum kind kind;
    int64_t l;              /* layer, or -1: the outer page */
    int tensor;             /* enum layer_tensor, or where it matters not, 0 */
    const struct ckpt_tensor *t;
    enum dtype to;
    int64_t first, n;       /* elements of t; of TAPS, of one tap */
    size_t offset;          /* in the page, of element `first` of RAW and PLAIN */
};
struct fill {
    struct model *m;
    const struct model_how *how;
    const struct ckpt *c;
    struct filler *filler;
    struct scales (*scales)[MATRICES];
    unsigned char *scratch; /* [threads] pieces */
    struct piece *piece;
    int64_t n, room;
    int64_t *layer_left;    /* pieces of each layer to come */
    int64_t layers_done;
    int differs;            /* a stored head from the tied embedding */
};
/* What a piece takes of a thread's scratch at most: both taps, or the source of codes. */
enum { SOURCE_BYTES = FILL_PIECE, SCRATCH_BYTES = 3 * FILL_PIECE };

static enum dtype of_format(enum weight_format f) { return f == W_F32 ? DT_F32 : DT_BF16; }
/* The type in which values of t are read to be quantised. */
static enum dtype exact(const struct ckpt_tensor *t) { return t->type == DT_BF16 || t->type == DT_F16 ? t->type : DT_F32; }
static enum weight_format format_of(const struct model *m, int tensor) { return tensor < PROJ_COUNT ? m->lay.proj : m->lay.conv; }
static struct pages *pages_of(const struct fill *f, const struct piece *p) { return p->l < 0 ? f->m->outer_page : f->m->layers; }
static int64_t page_of(const struct piece *p) { return p->l < 0 ? 0 : p->l; }

/* ---- the pieces ---- */

static int add(struct fill *f, struct piece p, struct err *e) {
    if (f->n == f->room) {
        const int64_t room = f->room ? 2 * f->room : 1024;
        struct piece *more = sys_grow(f->piece, (size_t)room * sizeof *more, "pieces of the checkpoint", e);
        if (!more) return -1;
        f->piece = more, f->room = room;
    }
    f->piece[f->n++] = p;
    if (p.l >= 0) f->layer_left[p.l]++;
    if ((p.kind == CODES || p.kind == TAPS) && format_of(f->m, p.tensor) == W_Q4)
        for (int k = 0; k < 1 + (p.kind == TAPS); k++) f->scales[p.l][p.tensor + k].left++;
    return 0;
}

/* `all` elements in pieces of `most`. */
static int cut(struct fill *f, struct piece p, int64_t all, int64_t most, size_t bytes, struct err *e) {
    for (p.first = 0; p.first < all; p.first += most, p.offset += (size_t)most * bytes) {
        p.n = all - p.first < most ? all - p.first : most;
        if (add(f, p, e)) return -1;
    }
    return 0;
}

static int raw(struct fill *f, int64_t l, size_t offset, const struct ckpt_tensor *t, int64_t n, struct err *e) {
    const size_t bytes = dtype_bytes(t->type);
    return cut(f, (struct piece){.kind = RAW, .l = l, .t = t, .to = t->type,
                                 .offset = offset}, n / (int64_t)bytes, FILL_PIECE / (int64_t)bytes, bytes, e);
}

static int plain(struct fill *f, int64_t l, size_t offset, const struct ckpt_tensor *t, enum dtype to, struct err *e) {
    const size_t bytes = dtype_bytes(to);
    return cut(f, (struct piece){.kind = PLAIN, .l = l, .t = t, .to = to,
                                 .offset = offset}, t->count, FILL_PIECE / (int64_t)bytes, bytes, e);
}

/* Whole blocks of 4 bits, whole rows of 8. */
static int codes(struct fill *f, int64_t l, int tensor, const struct ckpt_tensor *t, struct err *e) {
    const struct tensor_place *at = &f->m->lay.t[tensor];
    const int64_t source = SOURCE_BYTES / (int64_t)dtype_bytes(exact(t)), rows = source / at->cols;
    return cut(f, (struct piece){.kind = CODES, .l = l, .tensor = tensor, .t = t,
                                 .to = exact(t)}, t->count, f->m->lay.proj == W_Q4 ? source : (rows ? rows : 1) * at->cols, 0, e);
}

static int taps(struct fill *f, int64_t l, int tensor, const struct ckpt_tensor *t, struct err *e) {
    const enum dtype to = f->m->lay.conv == W_Q4 ? exact(t) : of_format(f->m->lay.conv);
    return cut(f, (struct piece){.kind = TAPS, .l = l, .tensor = tensor, .t = t,
                                 .to = to}, t->count / 2, SOURCE_BYTES / (int64_t)dtype_bytes(to), 0, e);
}

static int stored_quant(struct fill *f, int64_t l, int p, const struct ckpt_quant *q, struct err *e) {
    const struct layout *lay = &f->m->lay;
    const size_t at = lay->t[p].offset;
    const int64_t n = q->rows * q->cols;
    if (q->bits == 8) return raw(f, l, at, q->weight, n, e) || raw(f, l, at + lay->scale[p], q->row_scale, q->rows * 4, e) ? -1 : 0;
    const int64_t nb = q4_blocks(n, q->block);
    if (raw(f, l, at, q->weight, q4_code_bytes(n), e) || raw(f, l, at + lay->scale[p], q->absmax, q->nested ? nb : nb * 4, e)) return -1;
    if (q->nested && raw(f, l, at + lay->nested[p], q->nested_absmax, q4_nested(nb) * 4, e)) return -1;
    f->m->q_offset[l][p] = q->nested_offset;
    return add(f, (struct piece){.kind = TABLES, .l = l, .tensor = p, .t = q->weight}, e);
}

static int layer(struct fill *f, int64_t l, struct err *e) {
    const struct layout *lay = &f->m->lay;
    char name[128];
    for (int i = 0; i < LT_COUNT; i++) {
        int r = 0;
        model_tensor_name(name, l, (enum layer_tensor)i);
        const struct ckpt_tensor *t = ckpt_find(f->c, name);
        if (i < PROJ_COUNT) {
            struct ckpt_quant q;
            if (ckpt_quant(f->c, name, &q, e)) return -1;
            r = q.bits                                     ? stored_quant(f, l, i, &q, e)
                : lay->proj == W_Q4 || lay->proj == W_INT8 ? codes(f, l, i, t, e)
                                                           : plain(f, l, lay->t[i].offset, t, of_format(lay->proj), e);
        } else if (i < MATRICES) {
            struct ckpt_quant q;
            model_tap_name(name, l, (enum layer_tensor)i);
            if (ckpt_find(f->c, name)) r = ckpt_quant(f->c, name, &q, e) || stored_quant(f, l, i, &q, e) ? -1 : 0;
            else if (i == LT_CONV1_0 || i == LT_CONV2_0) r = taps(f, l, i, t, e);
        } else r = plain(f, l, lay->t[i].offset, t, DT_F32, e);
        if (r) return -1;
    }
    return 0;
}

/* A stored lm_head beside a tied embedding must be the same matrix; if not, the embedding wins, with a warning. */
static int tied_head(struct fill *f, struct err *e) {
    const struct ckpt_tensor *h = ckpt_find(f->c, outer_names[OT_HEAD]), *x = ckpt_find(f->c, outer_names[OT_EMBED]);
    if (!h) return 0;
    if (h->count != x->count)
        return log_warn("%s: lm_head.weight has another shape than the tied embedding; the embedding is used",
                        ckpt_file(f->c, h)),
               0;
    if (h->file == x->file && h->offset == x->offset) return 0;
    return cut(f, (struct piece){.kind = TIED, .l = -1, .t = h}, h->count, SOURCE_BYTES / 4, 0, e);
}

static int outer(struct fill *f, struct err *e) {
    const struct model *m = f->m;
    if (m->config.tied && tied_head(f, e)) return -1;
    for (int i = 0; i < OT_COUNT; i++)
        if (m->outer[i].bytes &&
            plain(f, -1, m->outer[i].offset, ckpt_find(f->c, outer_names[i == OT_HEAD && m->untied ? (int)OT_EMBED : i]),
                  i == OT_NORM ? DT_F32 : of_format(m->outer_format), e))
            return -1;
    return 0;
}

/* ---- what becomes of them ---- */

static int fill_tables(struct fill *f, const struct piece *p, const float levels[16], const float map[256], struct err *e) {
    const size_t at = f->m->lay.t[p->tensor].offset + f->m->lay.tables[p->tensor];
    return filler_copy(f->filler, f->m->layers, p->l, at, levels, 64, e) ||
                   filler_copy(f->filler, f->m->layers, p->l, at + 64, map, 1024, e)
               ? -1
               : 0;
}

static int read_in_place(struct fill *f, const struct piece *p, struct err *e) {
    struct room r;
    if (filler_room(f->filler, pages_of(f, p), page_of(p), p->offset, (size_t)p->n * dtype_bytes(p->to), &r, e)) return -1;
    if (ckpt_read_range(f->c, p->t, p->first, p->n, p->to, r.at, e)) return filler_drop(f->filler, &r), -1;
    return filler_done(f->filler, &r, e);
}

static int stored_tables(struct fill *f, const struct piece *p, struct err *e) {
    struct ckpt_quant q;
    return ckpt_quant(f->c, p->t->name, &q, e) || fill_tables(f, p, q.levels, q.nested_map, e) ? -1 : 0;
}

static int not_finite(const struct fill *f, const struct piece *p, int64_t element, struct err *e) {
    return err_set(e, ERR_INPUT, "%s: tensor %s has a NaN or infinity at element %lld; it cannot be quantised",
                   ckpt_file(f->c, p->t), p->t->name, (long long)element);
}

/* The scales of a matrix, all its codes being there. */
static int finish_scales(struct fill *f, const struct piece *p, int tensor, struct err *e) {
    const struct layout *lay = &f->m->lay;
    struct scales *s = &f->scales[p->l][tensor];
    const int64_t nb = q4_blocks(lay->t[tensor].rows * lay->t[tensor].cols, lay->q_block);
    const size_t at = lay->t[tensor].offset;
    struct piece whole = *p;
    int r = -1;
    whole.tensor = tensor;
    if (!lay->q_nested) r = filler_copy(f->filler, f->m->layers, p->l, at + lay->scale[tensor], s->absmax, (size_t)nb * 4, e);
    else {
        uint8_t *small = sys_alloc((size_t)nb, "8-bit scales", e);
        float *nested = sys_alloc((size_t)q4_nested(nb) * 4, "nested scales", e);
        if (small && nested) {
            q4_double(s->absmax, nb, small, nested, &f->m->q_offset[p->l][tensor]);
            r = filler_copy(f->filler, f->m->layers, p->l, at + lay->scale[tensor], small, (size_t)nb, e) ||
                filler_copy(f->filler, f->m->layers, p->l, at + lay->nested[tensor], nested, (size_t)q4_nested(nb) * 4, e) ? -1 : 0;
        }
        sys_free(small), sys_free(nested);
    }
    sys_free(s->absmax);
    s->absmax = NULL;
    if (r) return -1;
    nf4_init();
    return fill_tables(f, &whole, q4_levels(f->how->q_type), bw8_signed, e);
}

/* Elements first .. of the matrix `tensor`, which lie at src, in 4 bits. *bad: the first that is not finite, else -1. */
static int encode4(struct fill *f, const struct piece *p, int tensor, const void *src, int64_t *bad, struct err *e) {
    const struct layout *lay = &f->m->lay;
    struct scales *s = &f->scales[p->l][tensor];
    const int64_t nb = q4_blocks(lay->t[tensor].rows * lay->t[tensor].cols, lay->q_block);
    struct room r;
    int failed = 0;
#pragma omp critical(scales)
    if (!s->absmax) failed = !(s->absmax = sys_alloc((size_t)nb * 4, "scales", e));
    if (failed || filler_room(f->filler, f->m->layers, p->l, lay->t[tensor].offset + (size_t)p->first / 2,
                              (size_t)q4_code_bytes(p->n), &r, e))
        return -1;
    *bad = q4_encode(f->how->q_type, lay->q_block, src, p->to, p->n, r.at, s->absmax + p->first / lay->q_block);
    if (filler_done(f->filler, &r, e)) return -1;
    return *bad < 0 && !__atomic_sub_fetch(&s->left, 1, __ATOMIC_ACQ_REL) ? finish_scales(f, p, tensor, e) : 0;
}

static int encode8(struct fill *f, const struct piece *p, const void *src, int64_t *bad, struct err *e) {
    const struct layout *lay = &f->m->lay;
    const int64_t cols = lay->t[p->tensor].cols, rows = p->n / cols, row = p->first / cols;
    const size_t at = lay->t[p->tensor].offset;
    struct room q, s;
    if (filler_room(f->filler, f->m->layers, p->l, at + (size_t)p->first, (size_t)p->n, &q, e)) return -1;
    if (filler_room(f->filler, f->m->layers, p->l, at + lay->scale[p->tensor] + (size_t)row * 4, (size_t)rows * 4, &s, e))
        return filler_drop(f->filler, &q), -1;
    *bad = int8_encode(src, p->to, rows, cols, (int8_t *)q.at, (float *)(void *)s.at);
    const int failed = filler_done(f->filler, &q, e);
    return filler_done(f->filler, &s, e) || failed ? -1 : 0;
}

static int fill_codes(struct fill *f, const struct piece *p, unsigned char *scratch, struct err *e) {
    int64_t bad = -1;
    if (ckpt_read_range(f->c, p->t, p->first, p->n, p->to, scratch, e)) return -1;
    if (f->m->lay.proj == W_Q4 ? encode4(f, p, p->tensor, scratch, &bad, e) : encode8(f, p, scratch, &bad, e)) return -1;
    return bad < 0 ? 0 : not_finite(f, p, p->first + bad, e);
}

/* to[k][j] = both[2j + k] */
static void part16(const uint16_t *both, int64_t n, uint16_t *to0, uint16_t *to1) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) to0[j] = both[2 * j], to1[j] = both[2 * j + 1];
}
static void part32(const uint32_t *both, int64_t n, uint32_t *to0, uint32_t *to1) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) to0[j] = both[2 * j], to1[j] = both[2 * j + 1];
}
static void part(const void *both, int64_t n, size_t bytes, void *to0, void *to1) {
    if (bytes == 2) part16(both, n, to0, to1);
    else part32(both, n, to0, to1);
}

/* conv weight [out, in, 2, 1] */
static int fill_taps(struct fill *f, const struct piece *p, unsigned char *scratch, struct err *e) {
    const size_t bytes = dtype_bytes(p->to), n = (size_t)p->n * bytes;
    unsigned char *tap[2] = {scratch, scratch + n}, *both = scratch + 2 * n;
    struct room r[2];
    if (f->m->lay.conv == W_Q4) {
        int64_t bad[2] = {-1, -1};
        if (ckpt_read_range(f->c, p->t, 2 * p->first, 2 * p->n, p->to, both, e)) return -1;
        part(both, p->n, bytes, tap[0], tap[1]);
        for (int k = 0; k < 2; k++)
            if (encode4(f, p, p->tensor + k, tap[k], &bad[k], e)) return -1;
        if (bad[0] < 0 && bad[1] < 0) return 0;
        const int k = bad[0] < 0 || (bad[1] >= 0 && bad[1] < bad[0]);
        return not_finite(f, p, 2 * (p->first + bad[k]) + k, e);
    }
    for (int k = 0; k < 2; k++)
        if (filler_room(f->filler, f->m->layers, p->l, f->m->lay.t[p->tensor + k].offset + (size_t)p->first * bytes, n, &r[k], e))
            return k ? filler_drop(f->filler, &r[0]), -1 : -1;
    if (ckpt_read_range(f->c, p->t, 2 * p->first, 2 * p->n, p->to, scratch, e))
        return filler_drop(f->filler, &r[0]), filler_drop(f->filler, &r[1]), -1;
    part(scratch, p->n, bytes, r[0].at, r[1].at);
    const int failed = filler_done(f->filler, &r[0], e);
    return filler_done(f->filler, &r[1], e) || failed ? -1 : 0;
}

static int compare(struct fill *f, const struct piece *p, unsigned char *scratch, struct err *e) {
    const size_t bytes = (size_t)p->n * 4;
    if (__atomic_load_n(&f->differs, __ATOMIC_RELAXED)) return 0;
    if (ckpt_read_range(f->c, p->t, p->first, p->n, DT_F32, scratch, e) ||
        ckpt_read_range(f->c, ckpt_find(f->c, outer_names[OT_EMBED]), p->first, p->n, DT_F32, scratch + bytes, e))
        return -1;
    if (memcmp(scratch, scratch + bytes, bytes)) __atomic_store_n(&f->differs, 1, __ATOMIC_RELAXED);
    return 0;
}

static void note_layer(struct fill *f, int64_t l) {
    const int64_t L = f->m->config.L;
    if (l < 0 || __atomic_sub_fetch(&f->layer_left[l], 1, __ATOMIC_RELAXED)) return;
#pragma omp critical(progress)
    {
        f->layers_done++;
        log_progress(f->layers_done == L, "loading layer %lld of %lld", (long long)f->layers_done, (long long)L);
    }
}

static int run(void *context, int64_t i, int thread, struct err *e) {
    struct fill *f = context;
    const struct piece *p = &f->piece[i];
    unsigned char *scratch = f->scratch + (size_t)thread * SCRATCH_BYTES;
    int r = 0;
    if (stop_requested()) return err_set(e, 128 + stop_requested(), "stopped while loading the model; nothing was written");
    switch (p->kind) {
    case RAW: case PLAIN: r = read_in_place(f, p, e); break;
    case TABLES: r = stored_tables(f, p, e); break;
    case CODES: r = fill_codes(f, p, scratch, e); break;
    case TAPS: r = fill_taps(f, p, scratch, e); break;
    case TIED: r = compare(f, p, scratch, e); break;
    }
    if (!r) note_layer(f, p->l);
    return r;
}

static int fill(struct fill *f, struct err *e) {
    const int threads = jobs_threads();
    const size_t L = (size_t)f->m->config.L;
    if (!(f->scales = sys_alloc_array(L, sizeof *f->scales, "scales", e)) ||
        !(f->layer_left = sys_alloc_array(L, sizeof *f->layer_left, "layer counts", e)) ||
        !(f->scratch = sys_alloc_array((size_t)threads, SCRATCH_BYTES, "load buffers", e)) ||
        !(f->filler = filler_open(f->m->be, threads, e)))
        return -1;
    for (size_t l = 0; l < L; l++)
        if (layer(f, (int64_t)l, e)) return -1;
    if (outer(f, e) || jobs_run(f->n, threads, run, f, e)) return -1;
    if (f->differs)
        log_warn("%s: lm_head.weight differs from the embedding although tie_word_embeddings is true; the embedding is used",
                 ckpt_file(f->c, ckpt_find(f->c, outer_names[OT_HEAD])));
    return 0;
}

int model_load(struct model *m, const struct model_how *how, const struct ckpt *c, struct err *e) {
    struct pages_config layers, outer_page;
    struct fill f = {.m = m, .how = how, .c = c};
    model_pages(m, how, &layers, &outer_page);
    m->q_offset = sys_alloc_array((size_t)m->config.L, sizeof *m->q_offset, "scale offsets", e);
    if (!m->q_offset || !(m->layers = pages_open(m->be, &layers, e)) || !(m->outer_page = pages_open(m->be, &outer_page, e))) return -1;
    const double start = sys_seconds();
    int r = fill(&f, e);
    if (filler_close(f.filler, e)) r = -1;
    for (int64_t i = 0; f.scales && i < m->config.L * MATRICES; i++) sys_free(f.scales[i / MATRICES][i % MATRICES].absmax);
    sys_free(f.scales), sys_free(f.layer_left), sys_free(f.scratch), sys_free(f.piece);
    char size[24];
    if (!r)
        log_info("loaded %lld layers, %s, in %.1f s", (long long)m->config.L,
                 text_bytes(size, (int64_t)(layers.page_bytes * (size_t)layers.count + outer_page.page_bytes)),
                 sys_seconds() - start);
    return r;
}
