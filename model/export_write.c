/* model/export_write.c - tensors as they stand in the file: plain, int8 with a scale a row, or 4-bit codes with their side
 * tensors, for which a convolution is two matrices, one a tap. Scales of a matrix are kept until its codes are out: 1/16 of the
 * matrix at most. */
#include "base/str.h"
#include "base/sys.h"
#include "model/export_internal.h"
#include <stdio.h>
#include <string.h>

enum {
    BLOCK = 64,      /* elements a scale: what every reader of the format knows */
    STATE_SLACK = 24 /* nested_offset prints in at most so many characters */
};

/* ---- the JSON of a 4-bit matrix ---- */

static void describe(const struct job *j, int64_t rows, int64_t cols, float offset, struct ckpt_quant *q) {
    *q = (struct ckpt_quant){.bits = 4,
                             .rows = rows,
                             .cols = cols,
                             .type = j->how->q_type,
                             .block = BLOCK,
                             .nested = j->how->nested,
                             .nested_offset = offset,
                             .source = j->type};
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

/* ---- declaring ---- */

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

static int declare_int8(struct job *j, const struct model_tensor *m) {
    char base[128]; /* SCB and weight_format stand beside "weight", not below it */
    snprintf(base, sizeof base, "%.*s", (int)(strlen(m->name) - strlen(".weight")), m->name);
    return declare(j, m->name, "", DT_I8, 2, m->shape) || declare(j, base, ".SCB", DT_F32, 1, m->shape) ||
           declare(j, base, ".weight_format", DT_U8, 0, NULL);
}

static int declare_q4(struct job *j, const char *name, int64_t rows, int64_t cols) {
    const int64_t n = rows * cols, blocks = q4_blocks(n, BLOCK), state = state_bytes(j, rows, cols);
    const int nested = j->how->nested;
    return state < 0 || declare(j, name, "", DT_U8, 2, (int64_t[]){q4_code_bytes(n), 1}) ||
           declare(j, name, ".absmax", nested ? DT_U8 : DT_F32, 1, (int64_t[]){blocks}) ||
           declare(j, name, ".quant_map", DT_F32, 1, (int64_t[]){16}) ||
           (nested && declare(j, name, ".nested_absmax", DT_F32, 1, (int64_t[]){q4_nested(blocks)})) ||
           (nested && declare(j, name, ".nested_quant_map", DT_F32, 1, (int64_t[]){256})) ||
           declare(j, name,
                   j->how->q_type == Q4_NF4 ? ".quant_state.bitsandbytes__nf4"
                                            : ".quant_state.bitsandbytes__fp4",
                   DT_U8, 1, &state);
}

/* A convolution whose taps are stored apart, as matrices in 4 bits. */
static int in_taps(const struct job *j, const struct model_tensor *m) {
    return m->kind == TENSOR_MATRIX && m->rank == 4 && j->how->bits == 4 && j->how->filter_4bit;
}

static int declare_taps(struct job *j, const struct model_tensor *m) {
    char name[160];
    for (int k = 0; k < 2; k++) {
        snprintf(name, sizeof name, "%.*s.%d.weight", (int)(strlen(m->name) - strlen(".weight")), m->name, k);
        if (declare_q4(j, name, m->shape[0], m->shape[1])) return -1;
    }
    return 0;
}

int export_declare(struct job *j, const struct model_tensor *m) {
    const int bits = m->kind == TENSOR_PROJ ? j->how->bits : 0;
    int rc = in_taps(j, m) ? declare_taps(j, m)
             : bits == 8   ? declare_int8(j, m)
             : bits == 4   ? declare_q4(j, m->name, m->shape[0], m->shape[1])
                           : declare(j, m->name, "", j->type, m->rank, m->shape);
    return rc ? -1 : 0;
}

/* ---- writing ---- */

static int write_plain(struct job *j, const struct source *s, int64_t count) {
    for (int64_t at = 0; at < count; at += EXPORT_PIECE) {
        int64_t n = count - at < EXPORT_PIECE ? count - at : EXPORT_PIECE;
        if (source_read(j, s, at, n) || ckpt_write(j->out, j->piece, n * (int64_t)dtype_bytes(j->type), j->e))
            return -1;
    }
    return 0;
}

static int write_int8(struct job *j, const struct source *s, int64_t rows, int64_t cols) {
    const uint8_t row_major = 0;
    float *scale = sys_alloc((size_t)rows * sizeof *scale, "row scales", j->e);
    int rc = scale ? 0 : -1;
    ASSERT(cols <= EXPORT_PIECE, "a row of %lld", (long long)cols);
    for (int64_t row = 0, step = EXPORT_PIECE / cols; row < rows && !rc; row += step) {
        int64_t n = rows - row < step ? rows - row : step;
        if ((rc = source_read(j, s, row * cols, n * cols))) break;
        int64_t bad = int8_encode(j->piece, j->type, n, cols, (int8_t *)j->codes, scale + row);
        rc = bad >= 0 ? source_not_finite(j, s, row * cols + bad)
                      : ckpt_write(j->out, j->codes, n * cols, j->e);
    }
    rc = rc || ckpt_write(j->out, scale, rows * 4, j->e) || ckpt_write(j->out, &row_major, 1, j->e);
    sys_free(scale);
    return rc ? -1 : 0;
}

/* Every second element of j->piece from `tap` on, n in all, to where there is room for them. */
static const void *pick_tap(const struct job *j, int tap, int64_t n) {
    const uint16_t *half = j->piece;
    const float *full = j->piece;
    uint16_t *to = (uint16_t *)(void *)j->wide;
    for (int64_t i = 0; i < n; i++)
        if (j->type == DT_F32) j->wide[i] = full[2 * i + tap];
        else to[i] = half[2 * i + tap];
    return j->wide;
}

/* tap -1: s is the matrix; 0, 1: that tap of the convolution s. */
static int write_q4(struct job *j, const struct source *s, int64_t rows, int64_t cols, int tap) {
    const int64_t every = tap < 0 ? 1 : 2, most = EXPORT_PIECE / every;
    const int64_t count = rows * cols, blocks = q4_blocks(count, BLOCK), groups = q4_nested(blocks);
    float *absmax = sys_alloc((size_t)blocks * 4, "scales", j->e), *nested = NULL, offset = 0;
    uint8_t *small = NULL;
    int rc = absmax ? 0 : -1;
    for (int64_t at = 0; at < count && !rc; at += most) {
        int64_t n = count - at < most ? count - at : most;
        if ((rc = source_read(j, s, at * every, n * every))) break;
        const void *from = tap < 0 ? j->piece : pick_tap(j, tap, n);
        int64_t bad = q4_encode(j->how->q_type, BLOCK, from, j->type, n, j->codes, absmax + at / BLOCK);
        rc = bad >= 0 ? source_not_finite(j, s, (at + bad) * every + (tap > 0))
                      : ckpt_write(j->out, j->codes, q4_code_bytes(n), j->e);
    }
    if (!rc && j->how->nested) {
        small = sys_alloc((size_t)blocks, "scales", j->e);
        nested = sys_alloc((size_t)groups * 4, "scales", j->e);
        rc = small && nested ? 0 : -1;
        if (!rc) q4_double(absmax, blocks, small, nested, &offset);
        rc = rc || ckpt_write(j->out, small, blocks, j->e) ||
             ckpt_write(j->out, q4_levels(j->how->q_type), 64, j->e) ||
             ckpt_write(j->out, nested, groups * 4, j->e) || ckpt_write(j->out, bw8_signed, 1024, j->e);
    } else if (!rc) {
        rc = ckpt_write(j->out, absmax, blocks * 4, j->e) ||
             ckpt_write(j->out, q4_levels(j->how->q_type), 64, j->e);
    }
    rc = rc || write_state(j, rows, cols, offset);
    sys_free(small);
    sys_free(nested);
    sys_free(absmax);
    return rc ? -1 : 0;
}

static int write_taps(struct job *j, const struct model_tensor *m, const struct source *s) {
    const int64_t before = j->read_bytes;
    if (write_q4(j, s, m->shape[0], m->shape[1], 0)) return -1;
    j->read_bytes = before; /* read twice, counted once */
    return write_q4(j, s, m->shape[0], m->shape[1], 1);
}

int export_tensor(struct job *j, const struct model_tensor *m, const struct source *s) {
    const int bits = m->kind == TENSOR_PROJ ? j->how->bits : 0;
    return in_taps(j, m) ? write_taps(j, m, s)
           : bits == 8   ? write_int8(j, s, m->shape[0], m->shape[1])
           : bits == 4   ? write_q4(j, s, m->shape[0], m->shape[1], -1)
                         : write_plain(j, s, m->count);
}
