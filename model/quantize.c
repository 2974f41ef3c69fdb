/* model/quantize.c - see quantize.h. Pieces are read by several threads, encoded by several threads (nf4/), and written in
 * the order of the file. Scales of a matrix are kept until its codes are out: 1/16 of the matrix at most. */
#include "model/quantize.h"
#include "base/file.h"
#include "base/half.h"
#include "base/log.h"
#include "base/stop.h"
#include "base/str.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "model/files.h"
#include "model/tensors.h"
#include <stdio.h>
#include <string.h>

enum {
    BLOCK = 64,      /* elements a scale: what every reader of the format knows */
    PIECE = 2 << 20, /* elements read at once: large for a disk, small for memory; a multiple of BLOCK */
    MAX_READERS = 16,
    STATE_SLACK = 24 /* nested_offset prints in at most so many characters */
};
static const int64_t SHARD_BYTES = 5000000000;

struct job {
    struct model_config config;
    const struct quantize_how *how;
    struct ckpt *in;
    struct ckpt_writer *out;
    void *piece, *spare; /* [PIECE] values as stored; [PIECE] fp32 when a type has to be changed */
    uint8_t *codes;      /* [PIECE] codes of a piece */
    int64_t read_bytes, all_bytes, write_bytes;
    double start;
    struct err *e;
};

/* ---- reading ---- */

/* Elements first..first+count of t in the configuration's type, into j->piece. */
static int read_piece(struct job *j, const struct ckpt_tensor *t, int64_t first, int64_t count) {
    const enum dtype want = j->config.stored, as = want == DT_F16 && t->type != DT_F16 ? DT_F32 : want;
    char *to = as == want ? j->piece : j->spare;
    struct err errs[MAX_READERS] = {{0}};
    int readers = sys_threads() < MAX_READERS ? sys_threads() : MAX_READERS;
    if (count < 1 << 16) readers = 1;
    int64_t share = (count + readers - 1) / readers;
#pragma omp parallel for num_threads(readers) schedule(static, 1)
    for (int r = 0; r < readers; r++) {
        int64_t from = r * share, n = from + share < count ? share : count - from;
        if (n > 0)
            ckpt_read_range(j->in, t, first + from, n, as, to + (size_t)from * dtype_bytes(as), &errs[r]);
    }
    for (int r = 0; r < readers; r++)
        if (errs[r].code) return err_set(j->e, errs[r].code, "%s", errs[r].text);
    if (as != want) {
        const float *x = j->spare;
        uint16_t *h = j->piece;
#pragma omp parallel for
        for (int64_t i = 0; i < count; i++) h[i] = f32_to_f16(x[i]);
    }
    j->read_bytes += count * (int64_t)dtype_bytes(t->type);
    double took = sys_seconds() - j->start;
    log_progress(0, "quantizing: %.1f of %.1f GB, %.0f MB/s", (double)j->read_bytes * 1e-9,
                 (double)j->all_bytes * 1e-9, took > 0 ? (double)j->read_bytes * 1e-6 / took : 0);
    int sig = stop_requested();
    return sig ? err_set(j->e, 128 + sig, "stopped by a signal; nothing was written") : 0;
}

static int not_finite(struct job *j, const struct ckpt_tensor *t, int64_t i) {
    return err_set(j->e, ERR_INPUT, "%s: element %lld of %s is NaN, infinite or beyond the format",
                   ckpt_file(j->in, t), (long long)i, t->name);
}

/* ---- one tensor ---- */

static int write_plain(struct job *j, const struct ckpt_tensor *t) {
    for (int64_t at = 0; at < t->count; at += PIECE) {
        int64_t n = t->count - at < PIECE ? t->count - at : PIECE;
        if (read_piece(j, t, at, n) ||
            ckpt_write(j->out, j->piece, n * (int64_t)dtype_bytes(j->config.stored), j->e))
            return -1;
    }
    return 0;
}

static int write_int8(struct job *j, const struct ckpt_tensor *t, int64_t rows, int64_t cols) {
    const uint8_t row_major = 0;
    float *scale = sys_alloc((size_t)rows * sizeof *scale, "row scales", j->e);
    int rc = scale ? 0 : -1;
    for (int64_t row = 0, step = PIECE / cols; row < rows && !rc; row += step) {
        int64_t n = rows - row < step ? rows - row : step;
        if ((rc = read_piece(j, t, row * cols, n * cols))) break;
        int64_t bad = int8_encode(j->piece, j->config.stored, n, cols, (int8_t *)j->codes, scale + row);
        rc = bad >= 0 ? not_finite(j, t, row * cols + bad) : ckpt_write(j->out, j->codes, n * cols, j->e);
    }
    rc = rc || ckpt_write(j->out, scale, rows * 4, j->e) || ckpt_write(j->out, &row_major, 1, j->e);
    sys_free(scale);
    return rc ? -1 : 0;
}

static void describe(const struct job *j, int64_t rows, int64_t cols, float offset, struct ckpt_quant *q) {
    *q = (struct ckpt_quant){.bits = 4,
                             .rows = rows,
                             .cols = cols,
                             .type = j->how->type,
                             .block = BLOCK,
                             .nested = j->how->nested,
                             .nested_offset = offset,
                             .source = j->config.stored};
}

/* Bytes kept for the JSON of a matrix: its length depends on the offset, which is known only when the matrix has been
 * read; blanks behind the object fill the rest. */
static int64_t state_bytes(const struct job *j, int64_t rows, int64_t cols) {
    struct ckpt_quant q;
    describe(j, rows, cols, 0, &q);
    char *text = ckpt_quant_state(&q, j->e);
    int64_t n = text ? (int64_t)strlen(text) + (j->how->nested ? STATE_SLACK : 0) : -1;
    sys_free(text);
    return n;
}

static int write_state(struct job *j, int64_t rows, int64_t cols, float offset) {
    struct ckpt_quant q;
    struct str s = {0};
    describe(j, rows, cols, offset, &q);
    int64_t n = state_bytes(j, rows, cols);
    char *text = ckpt_quant_state(&q, j->e);
    int rc = -1;
    if (text && n >= 0) {
        str_printf(&s, "%-*s", (int)n, text);
        ASSERT(s.oom || (int64_t)s.n == n, "state of %zu bytes, %lld were declared", s.n, (long long)n);
        rc = s.oom ? err_set(j->e, ERR_RUN, "out of memory") : ckpt_write(j->out, s.p, n, j->e);
    }
    sys_free(text);
    str_free(&s);
    return rc;
}

static int write_q4(struct job *j, const struct ckpt_tensor *t, int64_t rows, int64_t cols) {
    const int64_t blocks = q4_blocks(t->count, BLOCK), groups = q4_nested(blocks);
    float *absmax = sys_alloc((size_t)blocks * 4, "scales", j->e), *nested = NULL, offset = 0;
    uint8_t *small = NULL;
    int rc = absmax ? 0 : -1;
    for (int64_t at = 0; at < t->count && !rc; at += PIECE) {
        int64_t n = t->count - at < PIECE ? t->count - at : PIECE;
        if ((rc = read_piece(j, t, at, n))) break;
        int64_t bad =
            q4_encode(j->how->type, BLOCK, j->piece, j->config.stored, n, j->codes, absmax + at / BLOCK);
        rc = bad >= 0 ? not_finite(j, t, at + bad) : ckpt_write(j->out, j->codes, q4_code_bytes(n), j->e);
    }
    if (!rc && j->how->nested) {
        small = sys_alloc((size_t)blocks, "scales", j->e);
        nested = sys_alloc((size_t)groups * 4, "scales", j->e);
        rc = small && nested ? 0 : -1;
        if (!rc) q4_double(absmax, blocks, small, nested, &offset);
        rc = rc || ckpt_write(j->out, small, blocks, j->e) ||
             ckpt_write(j->out, q4_levels(j->how->type), 64, j->e) ||
             ckpt_write(j->out, nested, groups * 4, j->e) || ckpt_write(j->out, bw8_signed, 1024, j->e);
    } else if (!rc) {
        rc = ckpt_write(j->out, absmax, blocks * 4, j->e) ||
             ckpt_write(j->out, q4_levels(j->how->type), 64, j->e);
    }
    rc = rc || write_state(j, rows, cols, offset);
    sys_free(small);
    sys_free(nested);
    sys_free(absmax);
    return rc ? -1 : 0;
}

/* ---- the whole ---- */

static int declare(struct job *j, const char *name, const char *tail, enum dtype type, int rank,
                   const int64_t *shape) {
    char full[192];
    int64_t bytes = (int64_t)dtype_bytes(type);
    snprintf(full, sizeof full, "%s%s", name, tail);
    for (int k = 0; k < rank; k++) bytes *= shape[k];
    j->write_bytes += bytes;
    if (*tail) ckpt_same_shard(j->out);
    return ckpt_declare(j->out, full, type, rank, shape, j->e);
}

static int declare_proj(struct job *j, const struct model_tensor *m) {
    const int64_t n = m->count, blocks = q4_blocks(n, BLOCK),
                  state = state_bytes(j, m->shape[0], m->shape[1]);
    const int nested = j->how->nested;
    if (j->how->bits == 8) {
        char base[128]; /* SCB and weight_format stand beside "weight", not below it */
        snprintf(base, sizeof base, "%.*s", (int)(strlen(m->name) - strlen(".weight")), m->name);
        return declare(j, m->name, "", DT_I8, 2, m->shape) || declare(j, base, ".SCB", DT_F32, 1, m->shape) ||
               declare(j, base, ".weight_format", DT_U8, 0, NULL);
    }
    return state < 0 || declare(j, m->name, "", DT_U8, 2, (int64_t[]){q4_code_bytes(n), 1}) ||
           declare(j, m->name, ".absmax", nested ? DT_U8 : DT_F32, 1, (int64_t[]){blocks}) ||
           declare(j, m->name, ".quant_map", DT_F32, 1, (int64_t[]){16}) ||
           (nested && declare(j, m->name, ".nested_absmax", DT_F32, 1, (int64_t[]){q4_nested(blocks)})) ||
           (nested && declare(j, m->name, ".nested_quant_map", DT_F32, 1, (int64_t[]){256})) ||
           declare(j, m->name,
                   j->how->type == Q4_NF4 ? ".quant_state.bitsandbytes__nf4"
                                          : ".quant_state.bitsandbytes__fp4",
                   DT_U8, 1, &state);
}

static int check_tensor(struct job *j, const struct model_tensor *m, const char *from) {
    const struct ckpt_tensor *t = ckpt_find(j->in, m->name);
    if (!t)
        return err_set(j->e, ERR_INPUT, "%s: tensor %s is missing; is this a complete Yuan 2.0 checkpoint?",
                       from, m->name);
    int same = t->rank == m->rank;
    for (int k = 0; same && k < m->rank; k++) same = t->shape[k] == m->shape[k];
    if (!same)
        return err_set(j->e, ERR_INPUT,
                       "%s: tensor %s has not the shape that config.json asks for (%lld elements, %lld)",
                       ckpt_file(j->in, t), m->name, (long long)t->count, (long long)m->count);
    if (t->type != DT_F32 && t->type != DT_BF16 && t->type != DT_F16 && t->type != DT_F64)
        return err_set(j->e, ERR_INPUT, "%s: tensor %s has type %s, a float type is needed",
                       ckpt_file(j->in, t), m->name, dtype_name(t->type));
    j->all_bytes += t->count * (int64_t)dtype_bytes(t->type);
    return 0;
}

static int declare_all(struct job *j, const char *from, const char *to) {
    struct model_tensor m;
    char need[24], have[24];
    for (int64_t i = 0; i < model_tensor_count(&j->config); i++) {
        model_tensor_at(&j->config, i, &m);
        if (check_tensor(j, &m, from)) return -1;
        if (m.kind == TENSOR_PROJ ? declare_proj(j, &m)
                                  : declare(j, m.name, "", j->config.stored, m.rank, m.shape))
            return -1;
    }
    int64_t room = dir_free_bytes(to);
    if (room >= 0 && room < j->write_bytes)
        return err_set(j->e, ERR_RUN, "%s: the result needs %s, the disk has %s free", to,
                       text_bytes(need, j->write_bytes), text_bytes(have, room));
    return 0;
}

static int write_all(struct job *j) {
    struct model_tensor m;
    for (int64_t i = 0; i < model_tensor_count(&j->config); i++) {
        model_tensor_at(&j->config, i, &m);
        const struct ckpt_tensor *t = ckpt_find(j->in, m.name);
        int rc = m.kind != TENSOR_PROJ ? write_plain(j, t)
                 : j->how->bits == 8   ? write_int8(j, t, m.shape[0], m.shape[1])
                                       : write_q4(j, t, m.shape[0], m.shape[1]);
        if (rc) return -1;
    }
    return 0;
}

static int write_config(const struct job *j, const char *to) {
    char path[4096];
    struct model_config q = {
        .q_bits = j->how->bits, .q_type = j->how->type, .q_double = j->how->bits == 4 && j->how->nested};
    char *text = model_config_text(&j->config, NULL, 0, &q, j->e);
    int rc = text ? path_join(path, sizeof path, to, "config.json", j->e) ||
                        file_write_all(path, text, strlen(text), j->e)
                  : -1;
    sys_free(text);
    return rc ? -1 : 0;
}

int model_quantize(const char *from, const char *to, const struct quantize_how *how, struct err *e) {
    struct job j = {.how = how, .e = e, .start = sys_seconds()};
    char in[24], out[24];
    int rc = -1;
    nf4_init();
    if (model_config_read(from, &j.config, e)) return -1;
    if (j.config.q_bits) {
        err_set(e, ERR_INPUT, "%s is quantised already (%d bits); give the original checkpoint", from,
                j.config.q_bits);
        goto done;
    }
    if (model_output_dir(to, from, how->overwrite, e) || !(j.in = ckpt_open(from, e)) ||
        !(j.out = ckpt_create(to, "model", SHARD_BYTES, e)) || declare_all(&j, from, to) ||
        !(j.piece = sys_alloc((size_t)PIECE * 4, "a piece of a tensor", e)) ||
        !(j.spare = sys_alloc((size_t)PIECE * 4, "a piece of a tensor", e)) ||
        !(j.codes = sys_alloc((size_t)PIECE, "codes", e)) || write_all(&j))
        goto done;
    rc = ckpt_commit(j.out, e);
    j.out = NULL;
    rc = rc || model_copy_files(from, to, e) || write_config(&j, to)
             ? -1
             : 0; /* config.json last: then all is there */
    if (!rc)
        log_progress(1, "quantized %s to %s in %.1f s, %.0f MB/s: %s", text_bytes(in, j.read_bytes),
                     text_bytes(out, j.write_bytes), sys_seconds() - j.start,
                     (double)j.read_bytes * 1e-6 / (sys_seconds() - j.start + 1e-9), to);
done:
    if (j.out) ckpt_abort(j.out);
    ckpt_close(j.in);
    sys_free(j.piece);
    sys_free(j.spare);
    sys_free(j.codes);
    model_config_free(&j.config);
    return rc;
}
