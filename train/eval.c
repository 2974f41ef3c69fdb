/* train/eval.c - see eval.h. Batches are units of the mean only: as many sequences as there is room for go through the layers
 * together, whatever batch they belong to. */
#include "train/eval.h"
#include "base/log.h"
#include "base/stop.h"
#include "base/sys.h"
#include "train/train_internal.h"
#include <math.h>

struct tally { /* sums so far */
    double loss, weight;           /* of whole batches */
    double nll;                    /* of the batch at hand */
    int64_t counted, in_batch;
    double right;                  /* shares, summed over sequences */
    int64_t judged;
};

/* Sequence i of the pass. */
static void count(struct tally *t, const struct eval_room *room, int64_t i, int64_t batch, int accuracy, int last) {
    const struct batch_sequence *s = &room->sequences[i];
    const struct batch *b = room->batch;
    int64_t from = b->loss_of[i], n = b->loss_of[i + 1] - from, right = 0;
    for (int64_t k = 0; k < n; k++) t->nll += (double)b->nll[from + k];
    if (accuracy && n) {
        for (int64_t pos = 1, k = 0; k < n; pos++)
            if (batch_counts(s, pos)) right += b->best[from + k++] == s->labels[pos];
        t->right += (double)right / (double)n, t->judged++;
    }
    t->counted += n;
    if (++t->in_batch < batch && !last) return;
    if (t->counted) t->loss += t->nll / (double)t->counted * (double)t->in_batch, t->weight += (double)t->in_batch;
    t->nll = 0, t->counted = t->in_batch = 0;
}

/* Fills a pass from sequence `first` of n on; returns how many it takes, -1 with e. */
static int64_t fill(const struct eval_room *room, const struct dataset *d, int64_t first, int64_t n, struct err *e) {
    int64_t count = 0, rows = 0, documents = 0, chunk_rows = 0, chunks = 1;
    for (; first + count < n && count < room->max_seqs; count++) {
        struct sequence q;
        if (data_get(d, first + count, &q, e)) return -1;
        struct batch_sequence *s = &room->sequences[count];
        *s = (struct batch_sequence){.ids = q.ids, .labels = q.labels, .positions = q.positions, .documents = q.documents, .n = q.n};
        int64_t parts, own = batch_rows(s, &parts);
        if (chunk_rows + own > room->engine->c.rows) chunks++, chunk_rows = 0; /* documents alone fill chunks as well or better */
        if (rows + own > room->max_rows || documents + parts > room->max_seqs || chunks > room->engine->c.chunks) break;
        rows += own, documents += parts, chunk_rows += own;
    }
    ASSERT(count, "sequence %lld does not fit", (long long)first);
    return count;
}

/* Sequences from `first` to before `end`: their loss and accuracy, NaN where there is nothing to judge. */
static int stretch(const struct eval_room *room, const struct dataset *d, int64_t first, int64_t end, int64_t batch, int accuracy,
                   struct eval_result *r, struct eval_part *out, struct err *e) {
    struct tally t = {0};
    for (int64_t i = first, taken; i < end && !(r->stopped = stop_requested()); i += taken) {
        if ((taken = fill(room, d, i, end, e)) < 0) return -1;
        batch_fill(room->batch, &room->engine->m->config, room->sequences, taken);
        if (engine_losses(room->engine, room->batch, e)) return -1;
        for (int64_t k = 0; k < taken; k++) count(&t, room, k, batch, accuracy, i + k + 1 == end);
        log_progress(i + taken == r->sequences, "evaluating %lld of %lld", (long long)(i + taken), (long long)r->sequences);
    }
    r->batches += (end - first + batch - 1) / batch;
    out->loss = t.weight > 0 ? t.loss / t.weight : 0;
    out->accuracy = t.judged ? t.right / (double)t.judged : NAN;
    return 0;
}

/* Each part by itself, and the mean of all, each weighing as its sequences. */
static int each_part(const struct eval_room *room, const struct dataset *d, int64_t batch, int accuracy, struct eval_result *r,
                     struct err *e) {
    double loss = 0, right = 0;
    r->parts = data_parts(d);
    ASSERT(r->parts <= EVAL_PARTS_MAX, "%d data sets", r->parts);
    for (int k = 0; k < r->parts && !r->stopped; k++) {
        int64_t first, n;
        r->part[k].name = data_part(d, k, &first, &n);
        if (stretch(room, d, first, first + n, batch, accuracy, r, &r->part[k], e)) return -1;
        loss += r->part[k].loss * (double)n, right += r->part[k].accuracy * (double)n;
    }
    r->loss = loss / (double)r->sequences, r->accuracy = right / (double)r->sequences;
    return 0;
}

int eval_run(const struct eval_room *room, const struct dataset *d, int64_t batch, int accuracy, struct eval_result *r, struct err *e) {
    const int64_t n = data_count(d);
    const double start = sys_seconds();
    struct eval_part all;
    *r = (struct eval_result){.sequences = n};
    log_info("***** Running Evaluation *****\n  Num examples = %lld\n  Batch size = %lld", (long long)n, (long long)batch);
    room->batch->with_best = accuracy;
    if (data_parts(d)) {
        if (each_part(room, d, batch, accuracy, r, e)) return -1;
    } else {
        if (stretch(room, d, 0, n, batch, accuracy, r, &all, e)) return -1;
        r->loss = all.loss, r->accuracy = all.accuracy;
    }
    room->batch->with_best = 0;
    r->seconds = sys_seconds() - start;
    return 0;
}

int train_evaluate(struct trainer *t, struct eval_result *r, struct err *e) {
    struct eval_room room = {&t->engine, &t->batch, t->sequences, t->max_seqs, t->max_rows};
    return eval_run(&room, t->eval, t->o->eval_batch, t->o->compute_accuracy, r, e);
}

enum { PASS_SEQUENCES = 1024 };

int eval_alone(struct model *m, const struct lora *lora, struct pages *adapters, const struct dataset *d, int64_t batch, int accuracy,
               double smoothing, struct eval_result *r, struct err *e) {
    struct backend_info info;
    struct engine g = {0};
    struct batch b = {0};
    int rc = -1;
    m->be->info(m->be->self, &info);
    int64_t longest = data_longest(d), rows = info.unified ? 1024 : 8192; /* as a training run chooses */
    if (rows < longest) rows = longest;
    struct eval_room room = {.engine = &g,
                             .batch = &b,
                             .max_seqs = longest > PASS_SEQUENCES ? longest : PASS_SEQUENCES /* documents of one token */,
                             .max_rows = 2 * rows};
    room.sequences = sys_alloc_array((size_t)room.max_seqs, sizeof *room.sequences, "sequences of a pass", e);
    /* two neighbouring chunks hold more than the rows of one */
    struct engine_config k = {.rows = rows,
                              .chunks = 2 * room.max_rows / rows + 1,
                              .longest = longest,
                              .resident_acts = -1,
                              .smoothing = smoothing,
                              .lora = adapters ? lora : NULL,
                              .adapters = adapters};
    if (room.sequences && !engine_open(&g, m, &k, e) && !batch_open(&b, m->be, rows, rows, room.max_rows, room.max_seqs, e))
        rc = eval_run(&room, d, batch, accuracy, r, e);
    batch_close(&b), engine_close(&g), sys_free(room.sequences);
    return rc;
}
