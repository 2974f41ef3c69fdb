/* cli/preview.c - qlora preview: the training sequences of a data set as JSON lines or as text.
 * Keys and their order are those of the golden files: input_ids, labels, and with packing by records position_ids and
 * attention_mask. No padding is shown: none takes part in training. */
#include "base/log.h"
#include "base/print.h"
#include "base/stop.h"
#include "base/str.h"
#include "base/sys.h"
#include "cli/cli_internal.h"
#include "tokenizer/tokenizer.h"
#include <stdio.h>
#include <string.h>

static void add_json(struct str *s, const struct sequence *q) {
    cli_add_ids(s, "{\"input_ids\":[", q->ids, q->n);
    cli_add_ids(s, ",\"labels\":[", q->labels, q->n);
    if (q->positions) cli_add_ids(s, ",\"position_ids\":[", q->positions, q->n);
    if (q->documents) cli_add_ids(s, ",\"attention_mask\":[", q->documents, q->n);
    str_puts(s, "}\n");
}

/* Stretches that count in the loss and stretches that do not, each under its own line. */
static void add_text(struct str *s, const struct sequence *q, int64_t index, const struct tok *t) {
    int64_t labelled = 0;
    for (int64_t i = 0; i < q->n; i++) labelled += q->labels[i] != IGNORE_LABEL;
    str_printf(s, "=== sequence %lld: %lld tokens, %lld labelled\n", (long long)index, (long long)q->n,
               (long long)labelled);
    for (int64_t i = 0, j; i < q->n; i = j) {
        int masked = q->labels[i] == IGNORE_LABEL;
        for (j = i; j < q->n && (q->labels[j] == IGNORE_LABEL) == masked; j++) {
        }
        str_puts(s, masked ? "--- masked\n" : "--- trained\n");
        tok_decode(t, q->ids + i, (size_t)(j - i), 0, s);
        str_putc(s, '\n');
    }
}

static int print_sequence(const struct options *o, const struct dataset *d, int64_t i, const struct tok *t,
                          struct str *s, struct err *e) {
    struct sequence q;
    if (data_get(d, i, &q, e)) return -1;
    str_clear(s);
    if (o->as_text)
        add_text(s, &q, i, t);
    else
        add_json(s, &q);
    if (s->oom) return err_set(e, ERR_RUN, "out of memory for a line of output");
    return print_bytes(s->p, s->n) ? print_end(e) : 0;
}

/* Lengths of all sequences, for group_by_length. */
static int32_t *lengths_of(const struct dataset *d, struct err *e) {
    int32_t *n = sys_alloc_array((size_t)data_count(d), sizeof *n, "lengths", e);
    struct sequence q;
    for (int64_t i = 0; n && i < data_count(d); i++) {
        if (data_get(d, i, &q, e)) return sys_free(n), NULL;
        n[i] = (int32_t)q.n;
    }
    return n;
}

/* Prints in the order of the first epoch, every sequence once. */
static int print_all(const struct options *o, const struct dataset *d, const struct tok *t, struct err *e) {
    const struct train_options *r = &o->train;
    struct sampler_config c = {.count = data_count(d),
                               .batch = r->batch,
                               .accumulate = r->accumulate,
                               .epochs = 1,
                               .seed = r->data_seed,
                               .shuffle = !r->disable_shuffling,
                               .group_by_length = r->group_by_length,
                               .compat_new = 1};
    int64_t left = o->limit ? o->limit : INT64_MAX;
    int32_t *lengths = NULL;
    struct sampler *order = NULL;
    struct str s = {0};
    int rc = -1;
    if (c.group_by_length && !(c.lengths = lengths = lengths_of(d, e))) goto out;
    if (!(order = sampler_open(&c, e))) goto out;
    for (int64_t step = 0; step < sampler_total_steps(order) && left; step++) {
        struct sampler_step now;
        if (stop_requested()) {
            rc = 128 + stop_requested();
            goto out;
        }
        if (sampler_get(order, step, &now, e)) goto out;
        for (int64_t i = 0; i < now.sequences && left; i++, left--)
            if (print_sequence(o, d, now.index[i], t, &s, e)) goto out;
    }
    rc = 0;
out:
    str_free(&s);
    sampler_close(order);
    sys_free(lengths);
    return rc < 0 ? e->code : rc;
}

/* Prints a stream in its order, up to the end of the files. */
static int print_stream(const struct options *o, const struct tok *t, struct err *e) {
    int64_t left = o->limit ? o->limit : INT64_MAX;
    struct dataset *first, *eval;
    const struct dataset *one;
    struct data_report report;
    struct str s = {0};
    int rc = -1;
    struct data_stream *stream = data_stream_open(&o->train.data, t, &first, &eval, &report, e);
    if (!stream) return e->code;
    for (; left && !stop_requested(); left--) {
        if (data_stream_take(stream, 1, &one, e)) goto out;
        if (data_stream_pass(stream)) break;
        if (print_sequence(o, one, 0, t, &s, e)) goto out;
    }
    rc = stop_requested() ? 128 + stop_requested() : 0;
out:
    str_free(&s);
    data_free(first), data_free(eval);
    data_stream_close(stream);
    return rc < 0 ? e->code : rc;
}

int cmd_preview(struct options *o, struct err *e) {
    struct dataset *train = NULL, *eval = NULL;
    struct data_report report;
    int code = ERR_RUN;
    struct tok *t = tok_open(o->train.model_name_or_path, e);
    if (t && o->train.streaming)
        code = print_stream(o, t, e);
    else if (!t || data_load(&o->train.data, t, &train, &eval, &report, e))
        code = e->code;
    else
        code = print_all(o, train, t, e);
    data_free(train);
    data_free(eval);
    tok_close(t);
    return code;
}
