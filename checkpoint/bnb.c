/* checkpoint/bnb.c - matrices quantised by bitsandbytes: the side tensors of P.weight, checked together.
 *
 *     4 bits   P.weight (packed codes, any element type), .absmax (F32, or U8 when double quantised),
 *              .quant_map F32 [16], .nested_absmax, .nested_quant_map F32 [256] (double),
 *              .quant_state.bitsandbytes__nf4 or __fp4 (JSON as U8)
 *     8 bits   P.weight I8 [rows, cols], P.SCB F32 [rows], P.weight_format U8 = 0
 *
 * Layout of the JSON: docs/FORMATS.md. Reading accepts any key order and ignores the shape of the packed
 * tensor; writing produces the text that bitsandbytes itself writes. Scales are looked at by whoever decodes,
 * not here. */
#include "base/json.h"
#include "base/str.h"
#include "base/sys.h"
#include "checkpoint/checkpoint_internal.h"
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    enum dtype type;
} sources[] = {{"float32", DT_F32}, {"float16", DT_F16}, {"bfloat16", DT_BF16}};

struct matrix { /* what the steps below share */
    const struct ckpt *c;
    const char *name, *file;
    struct err *e;
};

static const struct ckpt_tensor *find(const struct matrix *m, const char *name, const char *tail) {
    char full[CKPT_NAME_MAX + 64];
    int n = snprintf(full, sizeof full, "%s%s", name, tail);
    return n > 0 && (size_t)n < sizeof full ? ckpt_find(m->c, full) : NULL;
}

/* The side tensor name+tail, which must have this type and number of elements. */
static const struct ckpt_tensor *side(const struct matrix *m, const char *name, const char *tail,
                                      enum dtype type, int64_t count) {
    const struct ckpt_tensor *t = find(m, name, tail);
    if (!t)
        err_set(m->e, ERR_INPUT, "%s: matrix '%s' is quantised, but its tensor '%s%s' is missing", m->file,
                m->name, name, tail);
    else if (t->type != type || t->count != count)
        err_set(m->e, ERR_INPUT, "%s: tensor '%s' has %lld elements of type %s, %lld of type %s are needed",
                m->file, t->name, (long long)t->count, dtype_name(t->type), (long long)count,
                dtype_name(type));
    else
        return t;
    return NULL;
}

/* A small table of numbers, which must be finite. */
static int read_table(const struct matrix *m, const char *tail, int64_t count, float *out) {
    const struct ckpt_tensor *t = side(m, m->name, tail, DT_F32, count);
    if (!t || ckpt_read_all(m->c, t, DT_F32, out, m->e)) return -1;
    for (int64_t i = 0; i < count; i++)
        if (!isfinite(out[i]))
            return err_set(m->e, ERR_INPUT, "%s: tensor '%s' holds %g", m->file, t->name, out[i]);
    return 0;
}

static int wrong_state(const struct matrix *m, const char *what) {
    return err_set(m->e, ERR_INPUT, "%s: the quant_state of '%s' %s", m->file, m->name, what);
}

static int parse_shape(const struct matrix *m, const struct cJSON *j, struct ckpt_quant *q) {
    const struct cJSON *shape = json_get(j, "shape");
    int64_t size[2];
    if (!cJSON_IsArray(shape) || cJSON_GetArraySize(shape) != 2)
        return wrong_state(m, "has no shape of two numbers");
    for (int k = 0; k < 2; k++) {
        const struct cJSON *x = cJSON_GetArrayItem(shape, k);
        if (!cJSON_IsNumber(x) || !(x->valuedouble >= 1 && x->valuedouble <= INT32_MAX) ||
            x->valuedouble != floor(x->valuedouble))
            return wrong_state(m, "has a shape that is not of whole numbers from 1 to 2^31-1");
        size[k] = (int64_t)x->valuedouble;
    }
    q->rows = size[0], q->cols = size[1]; /* the product fits: < 2^62 */
    return 0;
}

/* Fills what the JSON says. */
static int parse_state(const struct matrix *m, const char *text, size_t n, struct ckpt_quant *q) {
    static const char *const known[] = {"quant_type",       "blocksize",    "dtype",         "shape",
                                        "nested_blocksize", "nested_dtype", "nested_offset", NULL};
    char where[1500];
    const char *type = "", *source = "", *nested_type = "";
    int64_t block = 0, nested_block = 0;
    double offset = 0;
    int rc = -1, nested;
    snprintf(where, sizeof where, "%s: quant_state of '%s'", m->file, m->name);
    struct cJSON *j = json_parse(text, n, where, m->e);
    if (!j) return -1;
    if (json_known_keys(j, known, where, m->e) || json_str(j, "quant_type", &type, where, m->e) < 0 ||
        json_str(j, "dtype", &source, where, m->e) < 0 ||
        json_int(j, "blocksize", 1, 4096, &block, where, m->e) < 0 ||
        json_int(j, "nested_blocksize", 256, 256, &nested_block, where, m->e) < 0 ||
        json_str(j, "nested_dtype", &nested_type, where, m->e) < 0 ||
        (nested = json_num(j, "nested_offset", &offset, where, m->e)) < 0 || parse_shape(m, j, q))
        goto out;
    if (strcmp(type, q->type == Q4_FP4 ? "fp4" : "nf4")) {
        wrong_state(m, "and the name of that tensor disagree about the quant_type");
        goto out;
    }
    size_t s = 0;
    while (s < sizeof sources / sizeof *sources && strcmp(source, sources[s].name)) s++;
    if (s == sizeof sources / sizeof *sources) {
        wrong_state(m, "names no dtype of float32, float16 and bfloat16");
        goto out;
    }
    if (block < 32 || (block & (block - 1))) {
        wrong_state(m, "has a blocksize other than 32, 64, 128, 256, 512, 1024, 2048 or 4096");
        goto out;
    }
    if (!nested != !nested_block || (nested ? strcmp(nested_type, "float32") : *nested_type)) {
        wrong_state(m,
                    "has some but not all of nested_blocksize 256, nested_dtype float32 and nested_offset");
        goto out;
    }
    if (fabs(offset) > FLT_MAX) {
        wrong_state(m, "has a nested_offset beyond fp32");
        goto out;
    }
    q->source = sources[s].type, q->block = (int)block, q->nested = nested, q->nested_offset = (float)offset;
    rc = 0;
out:
    json_free(j);
    return rc;
}

static int open_4bit(const struct matrix *m, const struct ckpt_tensor *state, struct ckpt_quant *q) {
    char text[2048];
    if (state->type != DT_U8 || state->count >= (int64_t)sizeof text)
        return wrong_state(m, "is not a short text");
    if (ckpt_read_all(m->c, state, DT_U8, text, m->e) || parse_state(m, text, (size_t)state->count, q))
        return -1;
    int64_t n = q->rows * q->cols, blocks = q4_blocks(n, q->block);
    if (ckpt_tensor_bytes(q->weight) != q4_code_bytes(n))
        return err_set(m->e, ERR_INPUT,
                       "%s: matrix '%s' has %lld bytes of codes, its shape %lld x %lld needs %lld", m->file,
                       m->name, (long long)ckpt_tensor_bytes(q->weight), (long long)q->rows,
                       (long long)q->cols, (long long)q4_code_bytes(n));
    if (!(q->absmax = side(m, m->name, ".absmax", q->nested ? DT_U8 : DT_F32, blocks)) ||
        read_table(m, ".quant_map", 16, q->levels))
        return -1;
    if (q->nested && (!(q->nested_absmax = side(m, m->name, ".nested_absmax", DT_F32, q4_nested(blocks))) ||
                      read_table(m, ".nested_quant_map", 256, q->nested_map)))
        return -1;
    q->bits = 4;
    return 0;
}

static int open_8bit(const struct matrix *m, const char *prefix, struct ckpt_quant *q) {
    const struct ckpt_tensor *format = find(m, prefix, "weight_format");
    uint8_t row_major = 0;
    if (q->weight->rank != 2)
        return err_set(m->e, ERR_INPUT, "%s: matrix '%s' has %d dimensions, 2 are needed", m->file, m->name,
                       q->weight->rank);
    q->rows = q->weight->shape[0], q->cols = q->weight->shape[1];
    if (!(q->row_scale = side(m, prefix, "SCB", DT_F32, q->rows))) return -1;
    if (format &&
        (!side(m, prefix, "weight_format", DT_U8, 1) || ckpt_read_all(m->c, format, DT_U8, &row_major, m->e)))
        return -1;
    if (row_major)
        return err_set(
            m->e, ERR_INPUT,
            "%s: '%s' is %d, only 0 (row-major) is read: save it again with a current bitsandbytes", m->file,
            format->name, row_major);
    q->bits = 8;
    return 0;
}

int ckpt_quant(const struct ckpt *c, const char *name, struct ckpt_quant *q, struct err *e) {
    *q = (struct ckpt_quant){.weight = ckpt_find(c, name)};
    if (!q->weight)
        return err_set(e, ERR_INPUT, "%s: tensor '%s' is missing",
                       c->shard_count ? c->shards[0].file->path : "no file", name);
    const struct matrix m = {c, name, ckpt_file(c, q->weight), e};
    const struct ckpt_tensor *nf4 = find(&m, name, ".quant_state.bitsandbytes__nf4");
    const struct ckpt_tensor *fp4 = find(&m, name, ".quant_state.bitsandbytes__fp4");
    if (nf4 && fp4) return wrong_state(&m, "is there as nf4 and as fp4");
    q->type = fp4 ? Q4_FP4 : Q4_NF4;
    if (nf4 || fp4) return open_4bit(&m, nf4 ? nf4 : fp4, q);
    if (find(&m, name, ".absmax") || find(&m, name, ".quant_map"))
        return err_set(
            e, ERR_INPUT,
            "%s: matrix '%s' is quantised, but its tensor '%s.quant_state.bitsandbytes__nf4' is missing",
            m.file, name, name);
    if (q->weight->type == DT_I8) {
        char prefix[CKPT_NAME_MAX + 1];
        snprintf(prefix, sizeof prefix, "%s", name);
        if (text_ends(prefix, "weight")) prefix[strlen(prefix) - strlen("weight")] = 0;
        return open_8bit(&m, prefix, q);
    }
    if (q->weight->type > DT_F64)
        return err_set(e, ERR_INPUT,
                       "%s: matrix '%s' has type %s without the tensors that say how it is quantised", m.file,
                       name, dtype_name(q->weight->type));
    q->rows = q->weight->rank ? q->weight->shape[0] : 1;
    q->cols = q->rows ? q->weight->count / q->rows : 0;
    return 0;
}

char *ckpt_quant_state(const struct ckpt_quant *q, struct err *e) {
    struct str s = {0};
    const char *source = NULL;
    for (size_t i = 0; i < sizeof sources / sizeof *sources; i++)
        if (sources[i].type == q->source) source = sources[i].name;
    ASSERT(q->bits == 4 && source, "bits %d, source %d", q->bits, q->source);
    str_printf(&s, "{\"quant_type\": \"%s\", \"blocksize\": %d, \"dtype\": \"%s\", \"shape\": [%lld, %lld]",
               q->type == Q4_FP4 ? "fp4" : "nf4", q->block, source, (long long)q->rows, (long long)q->cols);
    if (q->nested) {
        str_puts(&s, ", \"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": ");
        str_json_num(&s, (double)q->nested_offset);
    }
    str_putc(&s, '}');
    if (!s.oom) return s.p;
    err_set(e, ERR_RUN, "out of memory: a quant_state needs %zu bytes", s.n);
    str_free(&s);
    return NULL;
}
