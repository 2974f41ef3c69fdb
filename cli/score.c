/* cli/score.c - qlora score: the log-probability that a model gives to each token of its input, and the loss.
 *
 * Inputs wait until a group of some thousand tokens is full, then go through the layers together. */
#include "base/json.h"
#include "base/print.h"
#include "base/stop.h"
#include "base/sys.h"
#include "cli/cli_internal.h"
#include "cli/session.h"
#include "model/engine.h"
#include <stdio.h>
#include <string.h>

enum { GROUP = 64, GROUP_ROWS = 4096, WINDOW = 8192 /* of a longer input, so that its length costs no more than keys and values */ };

struct input { struct ids ids, labels; }; /* labels.n == 0: every next token counts */
struct scorer {
    struct session s;
    struct engine g;
    struct batch b;
    int64_t rows;              /* of a chunk; 0 = not open yet */
    struct input in[GROUP];
    int n;
    int64_t waiting;           /* rows of the inputs that wait */
};

/* Engine and batch for chunks of at least `rows`. */
static int make_room(struct scorer *c, int64_t rows, struct err *e) {
    if (rows <= c->rows) return 0;
    batch_close(&c->b), engine_close(&c->g);
    c->rows = rows < 512 ? 512 : rows;
    const int64_t window = c->rows < WINDOW ? c->rows : WINDOW;
    int64_t total = c->rows > GROUP_ROWS ? 2 * c->rows : GROUP_ROWS + c->rows;
    struct engine_config k = {.rows = c->rows, .window = window, .chunks = GROUP, .longest = c->rows, .resident_acts = -1, .join = 1,
                              .lora = c->s.adapters ? &c->s.lora : NULL, .adapters = c->s.adapters};
    int64_t chunks = total / (c->rows / 2) + 2; /* two neighbouring chunks hold more than one chunk's rows */
    if (chunks < k.chunks) k.chunks = chunks;
    return engine_open(&c->g, &c->s.model, &k, e) || batch_open(&c->b, c->s.be, c->rows, window, total, GROUP, e) ? -1 : 0;
}

/* Mean of -log P(labels[i] | before) of one input; its labels may be other ids than the input's. */
static int labelled_loss(struct scorer *c, const struct input *in, double *loss, struct err *e) {
    struct batch_sequence s = {.ids = in->ids.p, .labels = in->labels.p, .n = (int64_t)in->ids.n};
    batch_fill(&c->b, &c->s.model.config, &s, 1);
    if (engine_losses(&c->g, &c->b, e)) return -1;
    double sum = 0;
    for (int64_t i = 0; i < c->b.n_loss; i++) sum += (double)c->b.nll[i];
    *loss = c->b.n_loss ? sum / (double)c->b.n_loss : 0;
    return 0;
}

static void print(const struct input *in, const float *nll, int64_t n_nll, double loss, int64_t counted, struct str *out) {
    str_clear(out);
    cli_add_ids(out, "{\"ids\":[", in->ids.p, (int64_t)in->ids.n);
    str_puts(out, in->ids.n ? ",\"logprobs\":[null" : ",\"logprobs\":[");
    for (int64_t i = 0; i < n_nll; i++) str_putc(out, ','), str_json_num(out, -(double)nll[i]);
    str_puts(out, "],\"loss\":");
    str_json_num(out, loss);
    str_printf(out, ",\"tokens\":%lld}\n", (long long)counted);
}

static int flush(struct scorer *c, struct err *e) {
    struct batch_sequence s[GROUP];
    int64_t longest = 1;
    struct str out = {0};
    int r = 0;
    for (int i = 0; i < c->n; i++) {
        s[i] = (struct batch_sequence){.ids = c->in[i].ids.p, .n = (int64_t)c->in[i].ids.n};
        if (s[i].n > longest) longest = s[i].n;
    }
    if (!c->n || make_room(c, longest, e)) return c->n ? -1 : 0;
    batch_fill(&c->b, &c->s.model.config, s, c->n);
    if (engine_losses(&c->g, &c->b, e)) return -1;
    int64_t start[GROUP + 1];
    memcpy(start, c->b.loss_of, sizeof *start * (size_t)(c->n + 1));
    float *nll = sys_alloc_array((size_t)c->b.n_loss + 1, sizeof *nll, "log-probabilities", e);
    if (!nll) return -1;
    memcpy(nll, c->b.nll, (size_t)c->b.n_loss * sizeof *nll); /* the batch may be used again below */
    for (int i = 0; !r && i < c->n; i++) {
        const struct input *in = &c->in[i];
        int64_t n = start[i + 1] - start[i], counted = 0;
        double sum = 0, loss = 0;
        int other = 0;
        for (int64_t k = 0; k < n; k++) {
            int32_t label = in->labels.n ? in->labels.p[k + 1] : in->ids.p[k + 1];
            if (label < 0) continue;
            counted++, sum += (double)nll[start[i] + k], other |= label != in->ids.p[k + 1];
        }
        loss = counted ? sum / (double)counted : 0;
        if (other) r = labelled_loss(c, in, &loss, e);
        print(in, nll + start[i], n, loss, counted, &out);
        if (out.oom) r = err_set(e, ERR_RUN, "out of memory: an output line");
        else if (!r) print_bytes(out.p, out.n);
    }
    sys_free(nll), str_free(&out);
    for (int i = 0; i < c->n; i++) ids_free(&c->in[i].ids), ids_free(&c->in[i].labels);
    c->n = 0, c->waiting = 0;
    return r;
}

/* Takes the input in c->in[c->n], which is filled. */
static int take(struct scorer *c, struct err *e) {
    const struct input *in = &c->in[c->n];
    if (in->ids.n > 1 << 20) return err_set(e, ERR_INPUT, "an input has %zu tokens; at most 1048576 are scored at once", in->ids.n);
    c->n++, c->waiting += (int64_t)in->ids.n;
    return c->n == GROUP || c->waiting >= GROUP_ROWS ? flush(c, e) : 0;
}

static int read_list(const struct cJSON *list, int64_t limit, int labels, struct ids *out, const char *key, struct err *e) {
    const struct cJSON *v;
    if (!cJSON_IsArray(list)) return err_set(e, ERR_INPUT, "\"%s\" is not a list of numbers", key);
    cJSON_ArrayForEach(v, list) {
        if (!cJSON_IsNumber(v)) return err_set(e, ERR_INPUT, "\"%s\" holds something that is not a number", key);
        if (labels && v->valuedouble == IGNORE_LABEL ? ids_push(out, IGNORE_LABEL, e)
                                                     : cli_push_id(limit, v->valuedouble, out, e))
            return err_where(e, "\"%s\"", key);
    }
    return 0;
}

static int read_object(struct scorer *c, const struct cJSON *j, const char *where, struct err *e) {
    static const char *const known[] = {"text", "ids", "labels", NULL};
    struct input *in = &c->in[c->n];
    const char *text = NULL;
    *in = (struct input){0};
    if (json_known_keys(j, known, where, e)) return -1;
    int has_text = json_str(j, "text", &text, where, e);
    const struct cJSON *ids = json_get(j, "ids"), *labels = json_get(j, "labels");
    if (has_text < 0) return -1;
    if ((has_text == 1) == (ids != NULL)) return err_set(e, ERR_INPUT, "%s: needs either \"text\" or \"ids\"", where);
    if (labels && !ids) return err_set(e, ERR_INPUT, "%s: \"labels\" goes with \"ids\"", where);
    if (has_text ? session_encode(&c->s, text, strlen(text), &in->ids, e)
                 : read_list(ids, c->s.model.config.V, 0, &in->ids, "ids", e))
        return err_where(e, "%s", where);
    if (labels && read_list(labels, c->s.model.config.V, 1, &in->labels, "labels", e)) return err_where(e, "%s", where);
    if (labels && in->labels.n != in->ids.n) return err_set(e, ERR_INPUT, "%s: %zu labels for %zu ids", where, in->labels.n, in->ids.n);
    return 0;
}

static int score_file(struct scorer *c, const char *path, struct err *e) {
    struct lines l;
    struct cJSON *j;
    char where[600];
    int r = lines_open(&l, path, e);
    while (!r && (r = lines_next(&l, &j, e)) > 0) {
        snprintf(where, sizeof where, "%.500s line %lld", l.name, (long long)l.line);
        r = read_object(c, j, where, e) || take(c, e) ? -1 : 0;
        json_free(j);
        if (stop_requested()) break;
    }
    lines_close(&l);
    return r;
}

int cmd_score(struct options *o, struct err *e) {
    struct scorer *c = sys_alloc(sizeof *c, "scorer", e);
    int sources = (o->text != NULL) + (o->ids != NULL) + (o->file != NULL), r = -1;
    if (!c) return e->code;
    if (sources != 1) {
        err_set(e, ERR_INPUT, "score needs one of --text, --ids and --file");
        goto out;
    }
    if (session_open(&c->s, o, e)) goto out;
    if (o->file) r = score_file(c, o->file, e);
    else
        r = (o->text ? session_encode(&c->s, o->text, strlen(o->text), &c->in[0].ids, e)
                     : cli_read_ids(o->ids, c->s.model.config.V, &c->in[0].ids, e)) ||
                    take(c, e)
                ? -1
                : 0;
    if (!r && !stop_requested()) r = flush(c, e);
out:
    for (int i = 0; i <= c->n && i < GROUP; i++) ids_free(&c->in[i].ids), ids_free(&c->in[i].labels);
    batch_close(&c->b), engine_close(&c->g), session_close(&c->s);
    sys_free(c);
    return r ? e->code : stop_requested() ? 128 + stop_requested() : 0;
}
