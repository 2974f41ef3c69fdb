/* datasets/streaming.c - training sequences as they come: records are read, shuffled through a buffer and encoded in groups
 * while the run goes on, so that nothing is kept of a file but the buffer.
 *
 * The order is that of the library under LLaMA-Factory (datasets, IterableDataset.shuffle): the buffer is filled with buffer_size records;
 * then each record that is read takes the place of one drawn at random, which goes on; at the end of the files what is
 * left in the buffer goes on in random order, and the next pass begins with another seed. Draws are numpy's. With val_size the
 * first records of every pass are kept out of it; which they are, feed.c decides, and alike for every pass.
 *
 * Everything is a function of the configuration and of how many sequences were taken: to resume is to skip. */
#include "base/file.h"
#include "base/log.h"
#include "base/sha1.h"
#include "base/stop.h"
#include "base/sys.h"
#include "datasets/datasets_internal.h"
#include <stdio.h>
#include <string.h>

enum {
    PROBE_RECORDS = 1000, /* of each data set are looked at before the run */
    DRAWS = 1000          /* are made at a time, as the library does: it matters for those behind */
};

struct held { /* a record in the buffer */
    struct record r;
    char *text; /* owned */
    const struct source *source;
};

struct data_stream {
    struct data_config c;
    const struct tok *tok;
    struct catalog k;
    struct feed *feed;
    int64_t pass, skip;    /* passes that are complete; records of this one still to be kept out */
    /* the buffer */
    struct held *held;
    int64_t count;
    int64_t *order;        /* [buffer_size] of what is left at the end of a pass, from place `left` on */
    int64_t left;
    int draining;
    struct pcg64 g;
    uint32_t draw[DRAWS];
    int drawn;
    /* encoded and not yet taken */
    struct dataset *group;
    int64_t next, in_pass; /* sequence of the group; sequences of this pass so far */
    int64_t group_pass;    /* that the group belongs to */
    struct data_report r;
    struct dataset *out;   /* taken last */
};

/* ---- records in the order of the files ---- */

/* The next record of a pass that is not kept out: 1, 0 at its end, -1. */
static int read_record(struct data_stream *s, struct record *r, const struct source **source, struct err *e) {
    int found;
    while ((found = feed_next(s->feed, r, source, e)) > 0 && s->skip) s->skip--;
    return found;
}

static int next_in_file(struct data_stream *s, struct batch *b, struct err *e) {
    struct record r;
    const struct source *source;
    const int found = read_record(s, &r, &source, e);
    if (found > 0) batch_add(b, source, &r);
    return found;
}

static void begin_pass(struct data_stream *s) {
    feed_begin(s->feed);
    s->skip = (int64_t)s->c.val_size;
    s->draining = 0, s->left = 0, s->drawn = DRAWS, s->in_pass = 0;
    pcg_seed(&s->g, s->c.seed);
    if (!s->pass) return;
    const uint64_t seed = (pcg_next64(&s->g) >> 1) - (uint64_t)s->pass;
    pcg_seed(&s->g, seed >> 63 ? seed + ((uint64_t)1 << 63) : seed);
}

/* ---- the buffer ---- */

static int hold(struct held *h, const struct record *r, const struct source *source, struct err *e) {
    char *text = text_copy(r->text, r->n);
    if (!text) return err_set(e, ERR_RUN, "out of memory: records that are shuffled; lower --buffer_size");
    sys_free(h->text);
    *h = (struct held){.r = *r, .text = text, .source = source};
    h->r.text = text;
    return 0;
}

static int64_t draw(struct data_stream *s) {
    if (s->drawn == DRAWS) {
        for (s->drawn = 0; s->drawn < DRAWS; s->drawn++) s->draw[s->drawn] = pcg_below(&s->g, (uint32_t)s->c.buffer_size);
        s->drawn = 0;
    }
    return s->draw[s->drawn++];
}

/* Passes the next record on to the batch: 1, 0 at the end of a pass, -1. */
static int next_record(struct data_stream *s, struct batch *b, struct err *e) {
    struct record r;
    const struct source *source;
    int found = 1;
    if (!s->c.buffer_size) return next_in_file(s, b, e);
    while (!s->draining && (found = read_record(s, &r, &source, e)) > 0) {
        if (s->count < s->c.buffer_size) {
            if (hold(s->held + s->count++, &r, source, e)) return -1;
            continue;
        }
        struct held *h = s->held + draw(s);
        batch_add(b, h->source, &h->r);
        return hold(h, &r, source, e) ? -1 : 1;
    }
    if (found < 0) return -1;
    if (!s->draining) pcg_permutation(&s->g, s->order, s->count), s->draining = 1;
    if (s->left == s->count) {
        s->count = 0;
        return 0;
    }
    const struct held *h = s->held + s->order[s->left++];
    batch_add(b, h->source, &h->r);
    return 1;
}

/* ---- groups ---- */

/* Encodes up to `most` records that `next` hands on into *out (NULL if none gives a sequence); *ended: the pass did. */
static int encode_group(struct data_stream *s, int64_t most, int (*next)(struct data_stream *, struct batch *, struct err *),
                        struct dataset **out, int *ended, struct err *e) {
    struct data_config c = s->c;
    struct list rows = {0};
    unsigned seen = 0;
    int rc = -1, found = 1;
    *out = NULL;
    struct loader *l = loader_open(&c, s->tok, e);
    while (l && l->records < most && found > 0) {
        struct batch *b = &l->batch;
        batch_clear(b);
        while (b->n < BATCH_RECORDS && b->text.n < BATCH_BYTES && l->records + b->n < most && (found = next(s, b, e)) > 0) {
        }
        if (found < 0 || loader_encode(l, &rows, &seen, e)) goto out;
    }
    *ended = found == 0;
    if (!l || store_seal(l->store, e)) goto out;
    struct err none = {0};
    if (rows.n && loader_make(l, &rows, c.dataset, out, &s->r, &none) && none.code != ERR_INPUT) {
        err_set(e, none.code, "%s", none.text);
        goto out;
    }
    rc = 0;
out:
    list_free(&rows);
    loader_close(l);
    return rc;
}

/* The next group that holds sequences; passes end and begin on the way. */
static int next_group(struct data_stream *s, struct err *e) {
    const int64_t group = pack_kind(&s->c) != PACK_NONE && s->c.group_size ? s->c.group_size : BATCH_RECORDS;
    data_free(s->group);
    s->group = NULL, s->next = 0;
    while (!s->group) {
        int ended = 0;
        s->group_pass = s->pass;
        if (encode_group(s, group, next_record, &s->group, &ended, e)) return -1;
        if (s->group) s->in_pass += s->group->rows.n;
        if (!ended) continue;
        if (!s->in_pass)
            return err_set(e, ERR_INPUT, "Empty dataset! No record of %s gives a sequence", s->c.dataset);
        s->pass++;
        begin_pass(s);
    }
    return 0;
}

/* ---- the door ---- */

/* What is wrong with columns and formats is found before the run begins, and there is a first example to show. */
static int probe(struct data_stream *s, struct dataset **first, struct dataset **eval, struct data_report *r,
                 struct err *e) {
    struct data_config c = s->c;
    struct data_report of_eval;
    struct dataset *none;
    c.val_size = 0, c.eval_dataset = NULL, c.max_samples = PROBE_RECORDS, c.mix = MIX_CONCAT, c.interleave_probs = NULL;
    log_info("streaming: the first %d records of each data set are looked at before the run", PROBE_RECORDS);
    if (data_load(&c, s->tok, first, &none, r, e)) return -1;
    if (!s->c.eval_dataset) return 0;
    c.dataset = s->c.eval_dataset, c.max_samples = 0;
    if (c.eval_on_each) return data_load_parts(&c, s->tok, s->c.eval_dataset, eval, &of_eval, e);
    return data_load(&c, s->tok, eval, &none, &of_eval, e);
}

/* val_size: the first records, which every pass leaves out. */
static int take_eval(struct data_stream *s, struct dataset **eval, struct err *e) {
    int ended, more = 0;
    struct record r;
    const struct source *source;
    const int64_t n = (int64_t)s->c.val_size;
    if (!n) return 0;
    s->skip = 0;
    if (encode_group(s, n, next_in_file, eval, &ended, e)) return -1;
    if (!ended && (more = read_record(s, &r, &source, e)) < 0) return -1;
    if (!more) return err_set(e, ERR_INPUT, "val_size %lld takes all of the records, nothing is left to train on", (long long)n);
    if (!*eval) return err_set(e, ERR_INPUT, "Empty dataset! None of the first %lld records (val_size) gives a sequence", (long long)n);
    s->r = (struct data_report){0};
    begin_pass(s);
    return 0;
}

struct data_stream *data_stream_open(const struct data_config *c, const struct tok *t, struct dataset **first,
                                     struct dataset **eval, struct data_report *r, struct err *e) {
    *first = *eval = NULL;
    struct data_stream *s = sys_alloc(sizeof *s, "stream of data", e);
    if (!s) return NULL;
    s->c = *c, s->tok = t;
    if (!s->c.dataset_dir) s->c.dataset_dir = "data";
    const size_t places = (size_t)c->buffer_size;
    if (probe(s, first, eval, r, e) || catalog_open(&s->k, &s->c, c->dataset, e) || !(s->feed = feed_open(&s->c, &s->k, e)) ||
        !(s->held = sys_alloc_array(places, sizeof *s->held, "records that are shuffled", e)) ||
        !(s->order = sys_alloc_array(places, sizeof *s->order, "records that are shuffled", e)))
        goto fail;
    for (int i = 0; i < s->k.count; i++)
        if (s->k.source[i].samples)
            log_warn("data set %s: num_samples has no effect with streaming", s->k.source[i].name);
    begin_pass(s);
    if (s->c.val_size > 0 && s->c.mix == MIX_OVER)
        log_warn("streaming with interleave_over: a data set that begins again brings records of val_size back into training; "
                 "eval_dataset does not");
    if (take_eval(s, eval, e)) goto fail;
    return s;
fail:
    data_free(*first), data_free(*eval);
    *first = *eval = NULL;
    data_stream_close(s);
    return NULL;
}

void data_stream_close(struct data_stream *s) {
    if (!s) return;
    const int64_t dropped = s->r.dropped_invalid + s->r.dropped_empty + s->r.dropped_lengthy;
    if (dropped)
        log_warn("streaming: dropped %lld of %lld records that were read", (long long)dropped, (long long)s->r.records);
    for (int64_t i = 0; s->held && i < s->c.buffer_size; i++) sys_free(s->held[i].text);
    sys_free(s->held);
    sys_free(s->order);
    data_free(s->group);
    data_free(s->out);
    feed_close(s->feed);
    catalog_close(&s->k);
    sys_free(s);
}

/* A sequence moves over; truncation of v0.5.0 may leave it longer than a step has room for. */
static int copy_row(struct data_stream *s, const struct row *from, struct dataset *to, struct err *e) {
    struct row head = *from;
    const int packed = from->flags & ROW_PACKED;
    const int32_t *ids = row_ids(from), *labels = row_labels(from);
    int64_t at;
    if (head.n > s->c.cutoff_len) {
        head.n = (int32_t)s->c.cutoff_len, head.labelled = 0;
        for (int32_t i = 0; i < head.n; i++) head.labelled += labels[i] != IGNORE_LABEL;
    }
    if (store_add(to->store, &head, ids, labels, packed ? ids + 2 * from->n : NULL, packed ? ids + 3 * from->n : NULL, &at, e) ||
        list_add(&to->rows, at, e))
        return -1;
    to->tokens += head.n, to->labelled += head.labelled;
    if (head.n > to->longest) to->longest = head.n;
    return 0;
}

int data_stream_take(struct data_stream *s, int64_t n, const struct dataset **out, struct err *e) {
    data_free(s->out);
    if (!(s->out = sys_alloc(sizeof *s->out, "sequences of a step", e)) || !(s->out->store = store_open(&s->c, e))) return -1;
    for (; n; n--) {
        if ((!s->group || s->next == s->group->rows.n) && next_group(s, e)) return -1;
        const struct row *r = store_row(s->group->store, s->group->rows.p[s->next++]);
        if (copy_row(s, r, s->out, e)) return -1;
    }
    *out = s->out;
    return store_seal(s->out->store, e);
}

int data_stream_skip(struct data_stream *s, int64_t n, struct err *e) {
    for (int64_t done = 0, left; done < n; done += left) {
        if (stop_check("while a stream was passed over", e)) return -1; /* a step that takes is finished, and saved */
        if ((!s->group || s->next == s->group->rows.n) && next_group(s, e)) return -1;
        left = s->group->rows.n - s->next < n - done ? s->group->rows.n - s->next : n - done;
        s->next += left;
        log_progress(done + left == n, "streaming: %lld of %lld sequences passed over", (long long)(done + left), (long long)n);
    }
    return 0;
}

int64_t data_stream_pass(const struct data_stream *s) { return s->group_pass; }

int data_stream_hash(const struct data_stream *s, char hex[41], struct err *e) {
    const struct data_config *c = &s->c;
    struct str text = {0};
    struct sha1 h;
    for (int i = 0; i < s->k.count; i++)
        for (int f = 0; f < s->k.source[i].file_count; f++)
            str_printf(&text, "%s %lld\n", s->k.source[i].files[f], (long long)path_bytes(s->k.source[i].files[f]));
    str_printf(&text, "%d %d %lld %d %d %d %d %d %lld %g %lld %llu %s", (int)c->stage, c->compat_new, (long long)c->cutoff_len,
               c->sft_packing, c->packing, c->neat_packing, c->train_on_prompt, c->mask_history, (long long)c->group_size,
               c->val_size, (long long)c->buffer_size, (unsigned long long)c->seed, c->default_system ? c->default_system : "");
    if (c->mix != MIX_CONCAT) str_printf(&text, " %d %s", (int)c->mix, c->interleave_probs ? c->interleave_probs : "");
    const int oom = text.oom;
    sha1_init(&h);
    sha1_add(&h, text.p, text.n);
    sha1_hex(&h, hex);
    str_free(&text);
    return oom ? err_set(e, ERR_RUN, "out of memory: description of the stream") : 0;
}
