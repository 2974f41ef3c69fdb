/* train/eval.c - the evaluation loss during a run, through the same engine and memory as training. */
#include "base/log.h"
#include "base/stop.h"
#include "base/sys.h"
#include "train/train_internal.h"

/* As many whole evaluation batches as fit in the training buffers go through the layers together; the loss of a batch is
 * the mean over its labelled tokens, and batches are weighted by their number of sequences (a trailing short one less). */
int train_evaluate(struct trainer *t, double *loss, double *seconds, struct err *e) {
    int64_t n = data_count(t->eval), B = t->o->eval_batch;
    double start = sys_seconds(), sum = 0, weight = 0;
    log_info("***** Running Evaluation *****\n  Num examples = %lld\n  Batch size = %lld", (long long)n, (long long)B);
    for (int64_t i = 0; i < n;) {
        int64_t count = 0, rows = 0, chunk_rows = 0, chunks = 1;
        for (; i + count < n && count < t->max_seqs; count++) { /* as much as one pass holds */
            struct sequence q;
            if (data_get(t->eval, i + count, &q, e)) return -1;
            int64_t own = batch_rows(q.labels, q.n);
            if (chunk_rows + own > t->engine.c.rows) chunks++, chunk_rows = 0;
            if (rows + own > t->max_rows || chunks > t->engine.c.chunks) break;
            rows += own, chunk_rows += own;
            t->sequences[count] = (struct batch_sequence){.ids = q.ids, .labels = q.labels, .positions = q.positions, .n = q.n};
        }
        if (i + count < n && count > B) count = count / B * B; /* whole batches, unless one alone is too large */
        batch_fill(&t->batch, &t->model.config, t->sequences, count);
        if (engine_losses(&t->engine, &t->batch, e)) return -1;
        for (int64_t b = 0; b < count; b += B) {
            int64_t end = b + B < count ? b + B : count, from = t->batch.loss_of[b], to = t->batch.loss_of[end];
            double own = 0;
            for (int64_t k = from; k < to; k++) own += (double)t->batch.nll[k];
            if (to > from) sum += own / (double)(to - from) * (double)(end - b), weight += (double)(end - b);
        }
        i += count;
        log_progress(i == n, "evaluating %lld of %lld", (long long)i, (long long)n);
        if (stop_requested()) break;
    }
    *loss = weight > 0 ? sum / weight : 0;
    *seconds = sys_seconds() - start;
    return 0;
}
