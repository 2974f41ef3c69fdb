/* train/step.c - one update: the whole global batch goes through layer l before anything goes through layer l+1.
 *
 *     forward    for layer l:        weights(l) in  ->  for chunk c: x[l][c] -> block -> x[l+1][c]
 *     head       for chunk c:        norm + lm_head + softmax + cross-entropy + gradient, in slices of tokens
 *     backward   for layer l, down:  weights(l) in  ->  for chunk c: recompute block(x[l][c]), dx[c] = block'(dx[c]); dA, dB +=
 *     update     clip by global norm, then AdamW over pages of (value, gradient, moments)
 */
#include "base/log.h"
#include "base/str.h"
#include "train/train_internal.h"
#include <math.h>

/* The step's sequences with the weight of their tokens: the mean over micro-batches of the mean over a micro-batch's
 * counted tokens, or with --loss_norm token one mean over all. */
static int gather(struct trainer *t, const struct dataset *d, const struct sampler_step *s, struct err *e) {
    int64_t all = 0, D = t->model.config.D;
    for (int64_t m = 0; m < s->micro_batches; m++) {
        int64_t counted = 0, longest = 1;
        for (int64_t i = s->start[m]; i < s->start[m + 1]; i++) {
            struct sequence q;
            if (data_get(d, s->index[i], &q, e)) return -1;
            t->sequences[i] = (struct batch_sequence){.ids = q.ids, .labels = q.labels, .positions = q.positions,
                                                      .documents = q.documents, .n = q.n};
            if (q.n > longest) longest = q.n;
            for (int64_t k = 1; k < q.n; k++) counted += batch_counts(&t->sequences[i], k);
        }
        if (!counted) log_warn("a micro-batch has no labelled token (all prompt, or cut away); it counts as loss 0");
        int64_t parts = t->o->data.compat_new ? s->micro_batches : t->o->accumulate;
        float weight = counted ? (float)(1.0 / ((double)counted * (double)parts)) : 0;
        /* NEFTune: alpha / sqrt(L D), L being what the micro-batch would be padded to */
        float noise = (float)(t->o->neftune_alpha / sqrt((double)((longest + 7) / 8 * 8 * D)));
        for (int64_t i = s->start[m]; i < s->start[m + 1]; i++) t->sequences[i].weight = weight, t->sequences[i].noise = noise;
        all += counted;
    }
    for (int64_t i = 0; t->o->loss_per_token && i < s->sequences; i++) t->sequences[i].weight = all ? (float)(1.0 / (double)all) : 0;
    return 0;
}

static void forward(struct trainer *t, const struct dropout *drop) { engine_forward(&t->engine, &t->batch, drop); }

static void head(struct trainer *t, struct head_grads *outer) {
    const int trained = params_outer_grads(&t->params, outer);
    engine_head(&t->engine, &t->batch, 1, trained ? outer : NULL);
}

/* One layer: its adapters, its weights, those of them that are trained, or none. below: dx is needed. */
static void backward_layer(struct trainer *t, const struct dropout *drop, int64_t l, int below) {
    struct params *p = &t->params;
    struct pages *weights = t->model.layers;
    const int64_t g = params_group(p, l), next = l > t->engine.c.lowest ? l - 1 : -1;
    void *w = pages_get(weights, l, PAGE_READ);
    float *value = p->value ? pages_get(p->value, l, PAGE_READ) : NULL;
    void *page = g >= 0 ? pages_get(p->grad, g, PAGE_WRITE) : NULL;
    float *grad = page ? params_sums(p, g, page) : NULL;
    if (value) pages_want(p->value, next);
    struct layer_grads lg;
    if (!value && grad) params_layer_grads(p, g, grad, &lg);
    engine_backward_layer(&t->engine, &t->batch, drop, l, w, value, value ? grad : NULL, !value && grad ? &lg : NULL, below);
    if (grad) params_norms(p, g, grad, page), pages_put(p->grad, g, 1);
    if (value) pages_put(p->value, l, 0);
    pages_put(weights, l, 0);
}

static void backward(struct trainer *t, const struct dropout *drop, const struct head_grads *outer) {
    int below;
    const int64_t lowest = params_lowest(&t->params, &below);
    for (int64_t l = t->model.config.L - 1; l >= lowest; l--) backward_layer(t, drop, l, below || l > lowest);
    engine_embed_backward(&t->engine, &t->batch, outer);
    params_outer_norms(&t->params);
    params_expect(&t->params);
}

static int is_lost(const struct batch *b, int64_t i) {
    for (int64_t k = b->loss_of[i]; k < b->loss_of[i + 1]; k++)
        if (!isfinite(b->nll[k])) return 1;
    return 0;
}

/* What was not finite: gradients from the first to the last in the order of the model, and sequences by their place in the
 * data set or stream, from 1. Where every loss is a number, the damage came later, and any sequence of the step may have done it. */
static void name_nonfinite(const struct trainer *t, int64_t step, const struct sampler_step *s) {
    enum { SHOWN = 16 };
    const struct params *p = &t->params;
    struct str which = {0};
    const int64_t passed = t->stream ? step * s->sequences : 0;
    int64_t bad = 0, first = 0, last = 0, lost = 0, shown = 0;
    for (int64_t i = 0; i < p->count; i++)
        if (!isfinite(p->norms[i])) last = i, first = bad++ ? first : i;
    for (int64_t i = 0; i < s->sequences; i++) lost += is_lost(&t->batch, i);
    for (int64_t i = 0; i < s->sequences && shown < SHOWN; i++)
        if (!lost || is_lost(&t->batch, i)) str_printf(&which, "%s%lld", shown++ ? ", " : "", (long long)(passed + s->index[i] + 1));
    if (shown < (lost ? lost : s->sequences)) str_puts(&which, ", ..");
    log_warn("step %lld: the %s not finite: %lld of %lld gradients (%s%s%s), %s %s of the data set; the step is not applied",
             (long long)step + 1,
             lost  ? "loss is"
             : bad ? "gradient is"
                   : "gradient's size is",
             (long long)bad, (long long)p->count, bad ? p->p[first].name : "only their sum", bad > 1 ? " to " : "",
             bad > 1 ? p->p[last].name : "", lost ? "with the loss of sequence" : "in a step of the sequences",
             which.oom ? "?" : which.p);
    str_free(&which);
}

/* The batch t->sequences[0 .. n) through the model, and the update. */
int train_update(struct trainer *t, int64_t step, int64_t n, struct step_result *r, struct err *e) {
    const struct train_options *o = t->o;
    struct head_grads outer;
    struct dropout drop = {.p = (float)o->lora.dropout, .seed = o->seed, .step = (uint32_t)step};
    batch_fill(&t->batch, &t->model.config, t->sequences, n);
    forward(t, &drop);
    head(t, &outer);
    backward(t, &drop, &outer);
    if (batch_losses(&t->batch, e) || pages_failed(t->model.layers, e)) return -1;

    double norm2 = 0;
    for (int64_t i = 0; i < t->params.count; i++) norm2 += t->params.norms[i];
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = t->batch.loss_of[i]; k < t->batch.loss_of[i + 1]; k++)
            r->loss += (double)t->sequences[i].weight * (double)t->batch.nll[k];
    r->grad_norm = sqrt(norm2), r->rows = t->batch.N;
    r->finite = isfinite(norm2) && isfinite(r->loss);
    if (!r->finite) return 0;

    double clip = o->max_grad_norm > 0 ? o->max_grad_norm / (r->grad_norm + 1e-6) : 1;
    backend_range(t->be, "update");
    params_update(&t->params, &(struct adam_settings){.t = t->at.updates + 1, .beta1 = o->beta1, .beta2 = o->beta2, .eps = o->epsilon,
                                                      .lr = rate_of(t, step),
                                                      .weight_decay = o->weight_decay, .grad_scale = clip < 1 ? clip : 1});
    backend_range_end(t->be);
    return t->be->sync(t->be->self, e);
}

/* The sequences of a step of a stream; what lies before it is passed over. */
static int stream_to(struct trainer *t, int64_t step, int64_t n, const struct dataset **d, struct err *e) {
    ASSERT(step >= t->streamed, "step %lld after step %lld", (long long)step, (long long)t->streamed);
    if (data_stream_skip(t->stream, (step - t->streamed) * n, e) || data_stream_take(t->stream, n, d, e)) return -1;
    t->streamed = step + 1;
    return 0;
}

int train_step(struct trainer *t, int64_t step, struct step_result *r, struct err *e) {
    struct sampler_step s;
    const struct dataset *d = t->train;
    *r = (struct step_result){0};
    if (sampler_get(t->sampler, step, &s, e) || (t->stream && stream_to(t, step, s.sequences, &d, e)) || gather(t, d, &s, e) ||
        train_update(t, step, s.sequences, r, e)) return -1;
    if (!r->finite) name_nonfinite(t, step, &s);
    r->epoch = epoch_after(t, step, &s);
    return 0;
}
