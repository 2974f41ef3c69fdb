/* datasets/feed.c - records of several data sets as they come from their files: one set after the other, or interleaved.
 *
 * Interleaving is that of the library under LLaMA-Factory (datasets, IterableDataset): sets take turns, or are drawn by
 * interleave_probs as in mix.c; a set is exhausted when its last record has gone, so the next one of each waits here. `under`
 * ends a pass with the first exhausted set, in the middle of a round, `over` begins a set again until all were exhausted,
 * `once` passes over those that are. Every pass has the same order. */
#include "base/sys.h"
#include "datasets/datasets_internal.h"
#include <string.h>

struct place { /* in a data set */
    const struct source *source;
    int file;
    struct reader *reader; /* NULL: the next file is not open yet */
    /* interleaved */
    struct record next;    /* waits; its text is waiting.p */
    struct str waiting;
    int ready, exhausted;  /* a record waits; the last one has gone at least once */
};

struct feed {
    const struct data_config *c;
    struct place *place;   /* [count] */
    int count, turn, exhausted, begun;
    struct str now;        /* text of the record handed out last */
    double *sum;           /* running sums of interleave_probs, or NULL */
    struct pcg64 g;
};

static void rewind_place(struct place *p) {
    reader_close(p->reader);
    p->reader = NULL, p->file = 0;
}

/* The next record of a set: 1, 0 at its end, -1. */
static int read_record(struct place *p, struct record *r, struct err *e) {
    for (; p->file < p->source->file_count; p->file++) {
        const char *path = p->source->files[p->file];
        if (!p->reader && !(p->reader = reader_open(path, reader_shape(path, e), e))) return -1;
        const int found = reader_next(p->reader, r, e);
        r->path = path; /* outlives the reader */
        if (found) return found;
        reader_close(p->reader);
        p->reader = NULL;
    }
    return 0;
}

static int one_after_the_other(struct feed *f, struct record *r, const struct source **source, struct err *e) {
    for (; f->turn < f->count; f->turn++) {
        const int found = read_record(f->place + f->turn, r, e);
        *source = f->place[f->turn].source;
        if (found) return found;
    }
    return 0;
}

/* ---- interleaved ---- */

/* The record behind the one that goes now; none left is no error. */
static int look_ahead(struct place *p, struct err *e) {
    str_clear(&p->waiting);
    p->ready = read_record(p, &p->next, e);
    if (p->ready <= 0) return p->ready;
    str_add(&p->waiting, p->next.text, p->next.n);
    if (p->waiting.oom) return err_set(e, ERR_RUN, "out of memory: a record that waits for its turn");
    return 0;
}

static int begin_mixed(struct feed *f, struct err *e) {
    for (int k = 0; k < f->count; k++) {
        if (look_ahead(f->place + k, e)) return -1;
        if (!f->place[k].ready) return err_set(e, ERR_INPUT, "data set %s holds no record to interleave", f->place[k].source->name);
    }
    pcg_seed(&f->g, f->c->seed);
    f->begun = 1;
    return 0;
}

static int choose(struct feed *f) {
    int k = f->turn;
    if (!f->sum) return f->turn = (k + 1) % f->count, k;
    const double u = pcg_double(&f->g);
    k = 0;
    while (k < f->count - 1 && f->sum[k] <= u) k++;
    return k;
}

static int interleaved(struct feed *f, struct record *r, const struct source **source, struct err *e) {
    if (!f->begun && begin_mixed(f, e)) return -1;
    if (f->exhausted == (f->c->mix == MIX_UNDER ? 1 : f->count)) return 0;
    struct place *p;
    do p = f->place + choose(f);
    while (f->c->mix == MIX_ONCE && p->exhausted);
    if (!p->ready) { /* over: from the beginning */
        rewind_place(p);
        if (look_ahead(p, e)) return -1;
        if (!p->ready) return err_set(e, ERR_INPUT, "data set %s lost its records while it was read", p->source->name);
    }
    const struct str text = f->now;
    f->now = p->waiting, p->waiting = text;
    *r = p->next, *source = p->source;
    r->text = f->now.p;
    if (look_ahead(p, e)) return -1;
    if (!p->ready && !p->exhausted) p->exhausted = 1, f->exhausted++;
    return 1;
}

/* ---- the door ---- */

int feed_next(struct feed *f, struct record *r, const struct source **source, struct err *e) {
    return (f->c->mix == MIX_CONCAT || f->count == 1 ? one_after_the_other : interleaved)(f, r, source, e);
}

void feed_begin(struct feed *f) {
    for (int k = 0; k < f->count; k++) rewind_place(f->place + k), f->place[k].ready = f->place[k].exhausted = 0;
    f->turn = f->exhausted = f->begun = 0;
}

struct feed *feed_open(const struct data_config *c, const struct catalog *k, struct err *e) {
    struct feed *f = sys_alloc(sizeof *f, "records of a stream", e);
    if (!f) return NULL;
    f->c = c;
    if (!(f->place = sys_alloc_array((size_t)k->count, sizeof *f->place, "records of a stream", e))) goto fail;
    for (f->count = 0; f->count < k->count; f->count++) f->place[f->count].source = k->source + f->count;
    if (c->interleave_probs && (!(f->sum = sys_alloc_array((size_t)k->count, sizeof *f->sum, "interleave_probs", e)) ||
                                mix_probabilities(c->interleave_probs, k->count, f->sum, e)))
        goto fail;
    return f;
fail:
    feed_close(f);
    return NULL;
}

void feed_close(struct feed *f) {
    if (!f) return;
    for (int k = 0; k < f->count; k++) rewind_place(f->place + k), str_free(&f->place[k].waiting);
    str_free(&f->now);
    sys_free(f->place), sys_free(f->sum), sys_free(f);
}
