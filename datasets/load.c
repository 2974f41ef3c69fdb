/* datasets/load.c - runs the stages.
 *
 * Every record of every file is read, encoded (in batches, by all threads) and stored in file order; then
 * lists of rows are mixed, split and packed. Results do not depend on the number of threads. */
#include "base/file.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/sha1.h"
#include "base/stop.h"
#include "base/sys.h"
#include "datasets/datasets_internal.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- reading and encoding ---- */

static int read_batch(struct batch *b, const struct source *s, struct reader *reader, int64_t most, struct err *e) {
    int found = 1;
    struct record r;
    batch_clear(b);
    while (b->n < BATCH_RECORDS && b->n < most && b->text.n < BATCH_BYTES && !b->text.oom) {
        if ((found = reader_next(reader, &r, e)) <= 0) break;
        batch_add(b, s, &r);
    }
    if (b->text.oom) return err_set(e, ERR_RUN, "out of memory: a batch of records");
    return found < 0 ? -1 : 0;
}

void batch_clear(struct batch *b) {
    str_clear(&b->text);
    b->n = 0;
}

void batch_add(struct batch *b, const struct source *s, const struct record *r) {
    ASSERT(b->n < BATCH_RECORDS, "%d records", b->n);
    if (b->n == b->cap) {
        const int cap = b->cap ? (2 * b->cap < BATCH_RECORDS ? 2 * b->cap : BATCH_RECORDS) : 8;
        struct batched *p = sys_grow(b->one, (size_t)cap * sizeof *p, "a batch of records", NULL);
        if (!p) {
            b->text.oom = 1;
            return;
        }
        b->one = p, b->cap = cap;
    }
    b->one[b->n++] = (struct batched){.record = *r, .source = s, .at = b->text.n};
    str_add(&b->text, r->text, r->n);
}

int loader_encode(struct loader *l, struct list *rows, unsigned *seen, struct err *e) {
    struct batch *b = &l->batch;
    int rc = 0;
    if (b->text.oom) return err_set(e, ERR_RUN, "out of memory: a batch of records");
    for (int i = 0; i < b->n; i++) b->one[i].record.text = b->text.p + b->one[i].at;
#pragma omp parallel for schedule(dynamic, 8)
    for (int i = 0; i < b->n; i++) encode_record(&l->encoder, b->one[i].source, &b->one[i].record, &b->one[i].out);
    for (int i = 0; i < b->n; i++) {
        struct encoded *x = &b->one[i].out;
        const struct record *r = &b->one[i].record;
        const int drop = x->row.drop;
        int64_t at;
        if (!rc && x->e.code) rc = err_set(e, x->e.code, "%s", x->e.text);
        *seen |= x->seen;
        l->records++;
        if (drop && !l->dropped[drop]++)
            snprintf(l->first[drop], sizeof l->first[drop], "%.200s:%lld: record %lld: %s", r->path,
                     (long long)r->line, (long long)r->number, x->why);
        if (!rc && store_add(l->store, &x->row, x->ids.p, x->labels.p, NULL, NULL, &at, e)) rc = -1;
        if (!rc && drop != DROP_VANISHED && list_add(rows, at, e)) rc = -1;
        encoded_free(x);
    }
    return rc;
}

/* Columns that no record has: an error when the data mean nothing without them, else a warning. */
static int check_columns(const struct loader *l, const struct source *s, unsigned seen, const char *keys,
                         int at_end, struct err *e) {
    int needed = -1;
    if (s->format == FORMAT_IDS) return 0;
    unsigned question = 1u << COL_PROMPT | 1u << COL_QUERY;
    if (s->format == FORMAT_SHAREGPT)
        needed = seen & 1u << COL_MESSAGES ? -1 : COL_MESSAGES;
    else if (!(seen & question))
        needed = s->column[COL_PROMPT] ? COL_PROMPT : COL_QUERY;
    else if (l->c->stage == STAGE_SFT && !(seen & 1u << COL_RESPONSE))
        needed = COL_RESPONSE;
    if (needed >= 0 && !s->column[needed])
        return err_set(e, ERR_INPUT,
                       "data set %s: its columns name no \"%s\", and what is not listed is not read%s", s->name,
                       column_names[needed], needed == COL_RESPONSE ? "; text without answers is for --stage pt" : "");
    if (needed >= 0)
        return err_set(e, ERR_INPUT,
                       "%s: no record has the key \"%s\" (column %s of data set %s); the first one has %s. "
                       "Name the keys in dataset_info.json (columns, formatting)",
                       s->files[0], s->column[needed], column_names[needed], s->name, keys);
    for (int k = 0; at_end && !s->guessed && k < COL_COUNT; k++) {
        int used = k == COL_MESSAGES ? s->format == FORMAT_SHAREGPT
                   : k == COL_SYSTEM || k == COL_TOOLS
                       ? 1
                       : s->format == FORMAT_ALPACA && (k != COL_RESPONSE || l->c->stage == STAGE_SFT);
        if (used && s->column[k] && !(seen & 1u << k))
            log_warn("%s: no record has the key \"%s\" (column %s of data set %s); it counts as null",
                     s->files[0], s->column[k], column_names[k], s->name);
    }
    return 0;
}

/* A batch: encoded, kept, and looked at before gigabytes are read that cannot be used. */
static int take_batch(struct loader *l, const struct source *s, struct list *rows, unsigned *seen,
                      char keys[300], struct err *e) {
    const struct batch *b = &l->batch;
    const int64_t kept = rows->n;
    int any = 0;
    if (!*keys) {
        struct record head = b->one[0].record;
        if (b->text.oom) return err_set(e, ERR_RUN, "out of memory: a batch of records");
        head.text = b->text.p;
        struct cJSON *first = record_parse(&head, e);
        if (!first) return -1;
        key_list(keys, 300, first);
        json_free(first);
    }
    if (loader_encode(l, rows, seen, e)) return -1;
    for (int i = 0; i < b->n; i++) any |= !b->one[i].out.row.drop;
    return any || kept ? 0 : check_columns(l, s, *seen, keys, 0, e);
}

static int load_file(struct loader *l, const struct source *s, const char *path, int64_t most,
                     struct list *rows, unsigned *seen, char keys[300], struct err *e) {
    int rc = -1, broken = 0;
    char count[32];
    struct reader *reader = reader_open(path, reader_shape(path, e), e);
    if (!reader) return -1;
    for (int64_t done = 0;; done += l->batch.n) {
        struct err late = {0}; /* what is wrong with a record before comes first */
        if (stop_check("while a data set was read", e)) goto out;
        broken = read_batch(&l->batch, s, reader, most - done, &late);
        if (l->batch.n && take_batch(l, s, rows, seen, keys, e)) goto out;
        if (broken) err_set(e, late.code, "%s", late.text);
        if (broken || !l->batch.n) break;
        log_progress(0, "reading %s: %.0f %%, %s records", path, 100 * reader_done(reader),
                     text_thousands(count, done + l->batch.n));
    }
    rc = broken;
out:
    reader_close(reader);
    return rc;
}

static int load_source(struct loader *l, const struct source *s, struct list *rows, struct err *e) {
    char keys[300] = "", count[32];
    unsigned seen = 0;
    const int64_t max = l->c->max_samples ? l->c->max_samples : INT64_MAX, before = l->records;
    for (int f = 0; f < s->file_count; f++) {
        int64_t most = s->samples ? INT64_MAX : max - (l->records - before);
        if (most > 0 && load_file(l, s, s->files[f], most, rows, &seen, keys, e)) return -1;
    }
    if (*keys && check_columns(l, s, seen, keys, 1, e)) return -1;
    log_info("data set %s: %s records", s->name, text_thousands(count, l->records - before));
    if (s->samples && rows->n && mix_samples(&l->samples, rows, s->samples, e)) return -1;
    if (rows->n > max) rows->n = max;
    return 0;
}

/* All data sets of a comma list, mixed. */
static int load_names(struct loader *l, const char *names, struct list *out, struct err *e) {
    struct catalog k;
    if (catalog_open(&k, l->c, names, e)) return -1;
    int rc = -1;
    struct list *part = sys_alloc_array((size_t)k.count, sizeof *part, "data sets", e);
    if (!part) goto out;
    for (int i = 0; i < k.count; i++)
        if (load_source(l, k.source + i, part + i, e)) goto out;
    rc = mix_lists(l->c, part, k.source, k.count, out, e);
out:
    for (int i = 0; part && i < k.count; i++) list_free(part + i);
    sys_free(part);
    catalog_close(&k);
    return rc;
}

/* ---- rows to a data set ---- */

void dataset_count(struct dataset *d) {
    d->tokens = d->labelled = d->longest = 0;
    for (int64_t i = 0; i < d->rows.n; i++) {
        const struct row *r = store_row(d->store, d->rows.p[i]);
        store_walked(d->store, r);
        d->tokens += r->n;
        d->labelled += r->labelled;
        if (r->n > d->longest) d->longest = r->n;
    }
}

void report_row(const struct data_config *c, const struct row *x, struct data_report *r) {
    static const char invalid[DROP_COUNT_OF] = {
        [DROP_ROLE] = 1, [DROP_COUNT] = 1, [DROP_ANSWER] = 1, [DROP_CALL] = 1};
    r->records++;
    r->dropped_invalid += x->drop && invalid[x->drop];
    r->dropped_empty += x->drop && !invalid[x->drop];
    r->invalid_role += (x->flags & ROW_BAD_ROLE) != 0;
    r->invalid_count += (x->flags & ROW_BAD_COUNT) != 0;
    r->multi_turn += x->turns > 1;
    r->cut_source += x->cut_source;
    r->cut_target += x->cut_target;
    r->cut_both += x->cut_both;
    r->cut_record += x->cut_record;
    r->skipped_turns += x->skipped_turns;
    r->double_eod += x->double_eod;
    r->over_cutoff += pack_kind(c) == PACK_NONE && x->n > c->cutoff_len;
}

static int no_sequences(const struct loader *l, const struct data_report *r, const char *what,
                        struct err *e) {
    for (int k = 1; k < DROP_COUNT_OF; k++)
        if (l->dropped[k] && r->records == r->dropped_invalid + r->dropped_empty)
            return err_set(e, ERR_INPUT, "Empty dataset! None of the records of %s gives a sequence; %s",
                           what, l->first[k]);
    if (r->remainder_tokens)
        return err_set(e, ERR_INPUT,
                       "Empty dataset! No group of records of %s fills a block of %lld tokens (%lld tokens "
                       "left over): lower cutoff_len or preprocessing_num_workers, or leave out packing",
                       what, (long long)pack_block(l->c), (long long)r->remainder_tokens);
    return err_set(e, ERR_INPUT, "Empty dataset! %s: there are no records", what);
}

int loader_make(const struct loader *l, struct list *in, const char *what, struct dataset **out,
                struct data_report *r, struct err *e) {
    struct dataset *d = sys_alloc(sizeof *d, "data set", e);
    if (!d) return -1;
    if (pack_kind(l->c) != PACK_NONE) {
        if (!(d->store = store_open(l->c, e)) ||
            pack_rows(l->c, l->tok, l->store, in, d->store, &d->rows, r, e) || store_seal(d->store, e))
            goto fail;
    } else {
        d->store = store_ref(l->store);
        d->rows = *in, *in = (struct list){0};
        const int64_t n = d->rows.n;
        d->rows.n = 0;
        for (int64_t i = 0; i < n; i++) {
            if (stop_check("while a data set was made", e)) goto fail;
            const struct row *x = store_row(l->store, d->rows.p[i]);
            store_walked(l->store, x);
            report_row(l->c, x, r);
            if (!x->drop) d->rows.p[d->rows.n++] = d->rows.p[i];
        }
    }
    if (!d->rows.n) {
        no_sequences(l, r, what, e);
        goto fail;
    }
    dataset_count(d);
    *out = d;
    return 0;
fail:
    data_free(d);
    return -1;
}

/* OLD: the finished sequences are split. */
static int split_dataset(const struct data_config *c, struct dataset *d, struct dataset **eval,
                         struct err *e) {
    struct dataset *v = sys_alloc(sizeof *v, "data set", e);
    if (!v) return -1;
    if (mix_split(c, &d->rows, &v->rows, e)) {
        data_free(v);
        return -1;
    }
    v->store = store_ref(d->store);
    dataset_count(d);
    dataset_count(v);
    *eval = v;
    return 0;
}

/* ---- what happened ---- */

void loader_log_drops(const struct loader *l) {
    static const char *const what[DROP_COUNT_OF] = {
        [DROP_ROLE] = "a role out of turn",
        [DROP_COUNT] = "an odd number of messages",
        [DROP_ANSWER] = "not exactly one answer",
        [DROP_CALL] = "a function call or tool list that is not valid",
        [DROP_NULL] = "null in place of text",
        [DROP_EMPTY] = "nothing in it",
        [DROP_VANISHED] = "no messages"};
    char a[32], b[32];
    for (int k = 1; k < DROP_COUNT_OF; k++)
        if (l->dropped[k])
            log_warn("dropped %s of %s records for %s; the first: %s", text_thousands(a, l->dropped[k]),
                     text_thousands(b, l->records), what[k], l->first[k]);
}

static void log_report(const struct loader *l, const struct data_report *r) {
    const struct data_config *c = l->c;
    char a[32], b[32], d[32], longest[32];
    const long long cutoff = (long long)c->cutoff_len;
    loader_log_drops(l);
    if (r->cut_source + r->cut_target + r->cut_both + r->skipped_turns)
        log_warn("cut to cutoff_len %lld: %lld questions, %lld answers (which then lack their <eod>); turns "
                 "left out: %lld",
                 cutoff, (long long)(r->cut_source + r->cut_both), (long long)(r->cut_target + r->cut_both),
                 (long long)r->skipped_turns);
    if (r->cut_record) log_warn("cut to cutoff_len %lld: %lld records", cutoff, (long long)r->cut_record);
    if (r->over_cutoff)
        log_warn("sequences longer than cutoff_len: %lld (of %lld; the longest has %lld tokens): the "
                 "truncation of v0.5.0 lets that "
                 "happen, --compat new does not",
                 (long long)r->over_cutoff, (long long)r->sequences, (long long)r->longest);
    if (r->double_eod)
        log_warn("<eod> stands in %lld of the answers already and is put behind them once more; take it out "
                 "of the data",
                 (long long)r->double_eod);
    if (r->dropped_lengthy)
        log_warn("dropped %lld records longer than a block of cutoff_len %lld", (long long)r->dropped_lengthy,
                 cutoff);
    if (pack_kind(c) == PACK_CHUNKS)
        log_info("packed %s records into %s blocks, dropped %s tokens",
                 text_thousands(a, r->records - r->dropped_invalid - r->dropped_empty),
                 text_thousands(b, r->sequences), text_thousands(d, r->remainder_tokens));
    if (pack_kind(c) == PACK_BINS)
        log_info("packed %s records into %s blocks",
                 text_thousands(a, r->records - r->dropped_invalid - r->dropped_empty - r->dropped_lengthy),
                 text_thousands(b, r->sequences));
    log_info("%s sequences, %s tokens, of which %s count in the loss; the longest has %s",
             text_thousands(a, r->sequences), text_thousands(b, r->tokens), text_thousands(d, r->labelled_tokens),
             text_thousands(longest, r->longest));
}

/* ---- the door ---- */

static int check_config(const struct data_config *c, struct err *e) {
    int64_t least = pack_kind(c) == PACK_NONE ? 1 : 2;
    if (!c->dataset) return err_set(e, ERR_INPUT, "Please specify dataset for training.");
    if (c->cutoff_len < least || c->cutoff_len > CUTOFF_MAX)
        return err_set(e, ERR_INPUT, "cutoff_len must be from %lld to %d, it is %lld", (long long)least,
                       CUTOFF_MAX, (long long)c->cutoff_len);
    if (c->sft_packing && (c->packing > 0 || c->neat_packing))
        return err_set(e, ERR_INPUT, "sft_packing and %s exclude each other",
                       c->neat_packing ? "neat_packing" : "packing");
    if (c->train_on_prompt && c->mask_history)
        return err_set(e, ERR_INPUT, "`train_on_prompt` is mutually exclusive with `mask_history`.");
    if (c->eval_dataset && c->val_size > 0)
        return err_set(e, ERR_INPUT, "Cannot specify `val_size` if `eval_dataset` is not None.");
    if (c->max_samples < 0 || c->num_workers < 0 || c->group_size < 0 || c->memory_limit < 0 ||
        c->group_size > INT32_MAX)
        return err_set(
            e, ERR_INPUT,
            "max_samples, preprocessing_num_workers, preprocessing_batch_size and data_memory must not "
            "be negative, the third not above %d",
            INT32_MAX);
    if (!(c->val_size >= 0))
        return err_set(e, ERR_INPUT, "val_size must not be negative, it is %g", c->val_size);
    return 0;
}

struct loader *loader_open(const struct data_config *c, const struct tok *t, struct err *e) {
    struct loader *l = check_config(c, e) ? NULL : sys_alloc(sizeof *l, "data loader", e);
    if (!l) return NULL;
    l->c = c, l->tok = t;
    encoder_init(&l->encoder, c, t);
    if ((l->store = store_open(c, e))) return l;
    loader_close(l);
    return NULL;
}

void loader_close(struct loader *l) {
    if (!l) return;
    store_unref(l->store);
    str_free(&l->batch.text);
    sys_free(l->batch.one);
    sys_free(l);
}

int data_load(const struct data_config *config, const struct tok *t, struct dataset **train,
              struct dataset **eval, struct data_report *r, struct err *e) {
    struct data_config c = *config;
    struct list rows = {0}, test = {0};
    struct data_report of_eval = {0};
    int rc = -1;
    *train = *eval = NULL;
    *r = (struct data_report){0};
    if (!c.dataset_dir) c.dataset_dir = "data";
    if (data_is_saved(c.tokenized_path)) return data_load_saved(&c, t, train, eval, r, e);
    struct loader *l = loader_open(&c, t, e);
    if (!l) return -1;
    mt_seed(&l->samples, (uint32_t)c.seed);
    if (load_names(l, c.dataset, &rows, e)) goto out;
    const int each = c.eval_dataset && c.eval_on_each;
    if (each && data_load_parts(&c, t, c.eval_dataset, eval, &of_eval, e)) goto out;
    if (c.eval_dataset && !each && load_names(l, c.eval_dataset, &test, e)) goto out;
    if (store_seal(l->store, e)) goto out;
    if (c.val_size > 0 && c.compat_new && mix_split(&c, &rows, &test, e)) goto out;
    if (loader_make(l, &rows, c.dataset, train, r, e)) goto out;
    if (test.n && loader_make(l, &test, c.eval_dataset ? c.eval_dataset : "val_size", eval, &of_eval, e))
        goto out;
    if (c.eval_dataset && !*eval) {
        no_sequences(l, &of_eval, c.eval_dataset, e);
        goto out;
    }
    if (c.val_size > 0 && !c.compat_new && split_dataset(&c, *train, eval, e)) goto out;
    r->vanished = l->dropped[DROP_VANISHED];
    r->sequences = (*train)->rows.n, r->tokens = (*train)->tokens;
    r->labelled_tokens = (*train)->labelled, r->longest = (*train)->longest;
    r->eval_sequences = *eval ? (*eval)->rows.n : 0;
    log_report(l, r);
    rc = 0;
out:
    if (rc) {
        data_free(*train);
        data_free(*eval);
        *train = *eval = NULL;
    }
    list_free(&rows);
    list_free(&test);
    loader_close(l);
    return rc;
}

int64_t data_count(const struct dataset *d) {
    return d->rows.n;
}
int64_t data_tokens(const struct dataset *d) {
    return d->tokens;
}
int64_t data_longest(const struct dataset *d) {
    return d->longest;
}

int data_get(const struct dataset *d, int64_t i, struct sequence *s, struct err *e) {
    (void)e;
    ASSERT(i >= 0 && i < d->rows.n, "sequence %lld of %lld", (long long)i, (long long)d->rows.n);
    const struct row *r = store_row(d->store, d->rows.p[i]);
    store_walked(d->store, r);
    const int32_t *ids = row_ids(r);
    const int packed = r->flags & ROW_PACKED;
    *s = (struct sequence){.ids = ids,
                           .labels = ids + r->n,
                           .positions = packed ? ids + 2 * r->n : NULL,
                           .documents = packed ? ids + 3 * r->n : NULL,
                           .n = r->n};
    return 0;
}

int data_hash(const struct dataset *d, char hex[41], struct err *e) {
    struct sha1 h;
    sha1_init(&h);
    for (int64_t i = 0; i < d->rows.n; i++) {
        if (stop_check("while the data set was read", e)) return -1;
        const struct row *r = store_row(d->store, d->rows.p[i]);
        const size_t columns = r->flags & ROW_PACKED ? 4 : 2;
        store_walked(d->store, r);
        sha1_add(&h, &r->n, sizeof r->n);
        sha1_add(&h, r + 1, columns * (size_t)r->n * sizeof(int32_t));
    }
    sha1_hex(&h, hex);
    return 0;
}

void data_free(struct dataset *d) {
    if (!d) return;
    store_unref(d->store);
    list_free(&d->rows);
    parts_free(d);
    sys_free(d);
}
