/* datasets/saved.c - tokenised data sets on disk: what data_load made is written once and read by later runs.
 *
 * FOLDER/sequences holds train.rows, eval.rows where there is an evaluation part, and a MANIFEST with their checksums and with
 * what the ids depend on: tokenizer, template, stage, cutoff. The folder appears whole or not at all. docs/FORMATS.md draws a
 * file of rows. Reading moves the rows into a store, which keeps large sets in a temporary file and not in memory; each number is
 * checked on the way, since a checksum finds damage and not malice. */
#include "base/file.h"
#include "base/log.h"
#include "base/stop.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "datasets/datasets_internal.h"
#include <stdio.h>
#include <string.h>

static const char FOLDER[] = "sequences", MAGIC[16] = "qlora rows 1\n";
enum { HEAD_BYTES = sizeof MAGIC + sizeof(int64_t), BUFFER_BYTES = 256 << 10 };

int data_is_saved(const char *folder) {
    char path[4096];
    return folder && snprintf(path, sizeof path, "%s/%s/MANIFEST", folder, FOLDER) < (int)sizeof path && path_is_file(path);
}

/* ---- writing ---- */

static int flush(struct out *o, struct str *s, struct err *e) {
    if (s->oom) return err_set(e, ERR_RUN, "out of memory: sequences to be saved");
    if (s->n && out_write(o, s->p, s->n, e)) return -1;
    str_clear(s);
    return 0;
}

static int write_rows(const char *dir, const char *name, const struct dataset *d, struct err *e) {
    char path[4200];
    struct str s = {0};
    if (path_join(path, sizeof path, dir, name, e)) return -1;
    struct out *o = out_open(path, e);
    if (!o) return -1;
    str_add(&s, MAGIC, sizeof MAGIC);
    str_add(&s, &d->rows.n, sizeof d->rows.n);
    for (int64_t i = 0; i < d->rows.n; i++) {
        const struct row *r = store_row(d->store, d->rows.p[i]);
        const int32_t columns = r->flags & ROW_PACKED ? 4 : 2;
        store_walked(d->store, r);
        str_add(&s, &r->n, sizeof r->n);
        str_add(&s, &columns, sizeof columns);
        str_add(&s, row_ids(r), (size_t)columns * (size_t)r->n * sizeof(int32_t));
        if ((s.n < BUFFER_BYTES || !flush(o, &s, e)) && !stop_check("while a tokenised data set was saved", e)) continue;
        str_free(&s), out_abort(o);
        return -1;
    }
    const int rc = flush(o, &s, e);
    str_free(&s);
    if (!rc) return out_commit(o, e);
    out_abort(o);
    return -1;
}

static const char *era(int compat_new) { return compat_new ? "new" : "old"; }
static const char *stage_name(enum data_stage s) { return s == STAGE_PT ? "pt" : "sft"; }

/* What the ids depend on, and of what they were made. */
static void write_facts(const struct data_config *c, const struct tok *t, int64_t records, struct str *s) {
    char hex[41];
    tok_hash(t, hex);
    str_printf(
        s,
        "{\"tokenizer\": \"%s\", \"compat\": \"%s\", \"stage\": \"%s\", \"cutoff_len\": %lld, \"records\": %lld, \"dataset\": ",
        hex, era(c->compat_new), stage_name(c->stage), (long long)c->cutoff_len, (long long)records);
    str_json(s, c->dataset, strlen(c->dataset));
    str_puts(s, "}");
}

/* Others' files are left alone: the folder must be new, or hold nothing but what a killed process left. */
static int check_folder(const char *folder, struct err *e) {
    char **names;
    int n, other = -1;
    if (!path_exists(folder)) return 0;
    if (!path_is_dir(folder)) return err_set(e, ERR_INPUT, "tokenized_path %s is a file; it must be a folder, new or empty", folder);
    if (dir_list(folder, &names, &n, e)) return -1;
    for (int i = 0; i < n && other < 0; i++)
        if (!text_starts(names[i], ".tmp-")) other = i;
    if (other >= 0)
        err_set(e, ERR_INPUT,
                "tokenized_path %s holds %.100s and no tokenised data set of this program (what LLaMA-Factory saved there are "
                "Arrow files, which are not read); give a new folder",
                folder, names[other]);
    dir_list_free(names, n);
    return other >= 0 ? -1 : 0;
}

int data_save(const struct data_config *c, const struct tok *t, const struct dataset *train, const struct dataset *eval,
              int64_t records, struct err *e) {
    char tmp[4096];
    struct str facts = {0};
    if (check_folder(c->tokenized_path, e) || manifest_begin(c->tokenized_path, FOLDER, tmp, sizeof tmp, e)) return -1;
    write_facts(c, t, records, &facts);
    int rc = facts.oom ? err_set(e, ERR_RUN, "out of memory: facts of a data set") : write_rows(tmp, "train.rows", train, e);
    if (!rc && eval) rc = write_rows(tmp, "eval.rows", eval, e);
    if (!rc) rc = manifest_commit(c->tokenized_path, FOLDER, tmp, facts.p, e);
    if (rc) manifest_abort(tmp);
    str_free(&facts);
    return rc;
}

/* ---- reading ---- */

struct reading {
    struct file *f;
    int64_t at;             /* of the file: what is taken next */
    char *window;           /* [BUFFER_BYTES, or what the file has] of the file, */
    int64_t from, to;       /* this stretch of it */
    int32_t *columns;       /* of the row at hand */
    size_t cap;             /* int32 */
};

static int damaged(const struct reading *r, int64_t row, const char *what, struct err *e) {
    return err_set(e, ERR_INPUT, "%s: row %lld, in front of byte %lld, %s; remove the folder and tokenise again", r->f->path,
                   (long long)row + 1, (long long)r->at, what);
}

/* The next n bytes, of which the caller knows that they are there. */
static int take(struct reading *r, void *to, int64_t n, struct err *e) {
    for (char *p = to; n;) {
        if (r->at >= r->to) {
            const int64_t left = r->f->bytes - r->at;
            r->from = r->at, r->to = r->at + (left < BUFFER_BYTES ? left : BUFFER_BYTES);
            if (file_pread(r->f, r->window, (size_t)(r->to - r->from), r->from, e)) return -1;
        }
        const int64_t here = n < r->to - r->at ? n : r->to - r->at;
        memcpy(p, r->window + (r->at - r->from), (size_t)here);
        p += here, n -= here, r->at += here;
    }
    return 0;
}

static int within(const int32_t *p, int32_t n, int32_t least, int32_t most) {
    for (int32_t i = 0; i < n; i++)
        if (p[i] < least || p[i] > most) return 0;
    return 1;
}

static int read_row(struct reading *r, int64_t row, int32_t vocabulary, struct dataset *d, struct err *e) {
    int32_t head[2];
    int64_t at;
    if (r->f->bytes - r->at < (int64_t)sizeof head) return damaged(r, row, "is missing", e);
    if (take(r, head, sizeof head, e)) return -1;
    const int32_t n = head[0], columns = head[1];
    if (n < 1 || n > CUTOFF_MAX || (columns != 2 && columns != 4)) return damaged(r, row, "is no row", e);
    const int64_t words = (int64_t)n * columns;
    if ((r->f->bytes - r->at) / (int64_t)sizeof(int32_t) < words) return damaged(r, row, "is cut off", e);
    if ((size_t)words > r->cap) {
        int32_t *p = sys_grow(r->columns, (size_t)words * sizeof *p, "a sequence", e);
        if (!p) return -1;
        r->columns = p, r->cap = (size_t)words;
    }
    if (take(r, r->columns, words * (int64_t)sizeof(int32_t), e)) return -1;
    const int32_t *ids = r->columns, *labels = ids + n;
    struct row x = {.n = n, .flags = columns == 4 ? ROW_PACKED : 0};
    for (int32_t i = 0; i < n; i++) x.labelled += labels[i] != IGNORE_LABEL;
    for (int32_t i = 0; i < n; i++)
        if (labels[i] != IGNORE_LABEL && (labels[i] < 0 || labels[i] >= vocabulary))
            return damaged(r, row, "has a label that is no token", e);
    if (!within(ids, n, 0, vocabulary - 1)) return damaged(r, row, "has an id that is no token", e);
    if (columns == 4 && !(within(ids + 2 * n, n, 0, n - 1) && within(ids + 3 * n, n, 0, INT32_MAX)))
        return damaged(r, row, "has a position or a number of a record that cannot be", e);
    return store_add(d->store, &x, ids, labels, columns == 4 ? ids + 2 * n : NULL, columns == 4 ? ids + 3 * n : NULL, &at, e) ||
                   list_add(&d->rows, at, e)
               ? -1
               : 0;
}

static int read_all(struct reading *r, int32_t vocabulary, struct dataset *d, struct err *e) {
    char magic[sizeof MAGIC];
    int64_t rows;
    if (r->f->bytes < HEAD_BYTES || take(r, magic, sizeof magic, e) || take(r, &rows, sizeof rows, e) || memcmp(magic, MAGIC, sizeof magic))
        return e->code ? -1 : err_set(e, ERR_INPUT, "%s is no file of tokenised rows", r->f->path);
    if (rows < 1 || rows > r->f->bytes / 16) return err_set(e, ERR_INPUT, "%s: %lld rows cannot be", r->f->path, (long long)rows);
    for (int64_t i = 0; i < rows; i++) {
        if (stop_check("while a tokenised data set was read", e) || read_row(r, i, vocabulary, d, e)) return -1;
        if (i % 65536 == 65535) log_progress(0, "reading %s: %.0f %%", r->f->path, 100 * (double)r->at / (double)r->f->bytes);
    }
    if (r->at != r->f->bytes)
        return err_set(e, ERR_INPUT, "%s: %lld bytes behind the last row", r->f->path, (long long)(r->f->bytes - r->at));
    if (store_seal(d->store, e)) return -1;
    dataset_count(d);
    return 0;
}

int rows_read(const char *path, const struct data_config *c, int32_t vocabulary, struct dataset **out, struct err *e) {
    struct reading r = {.f = file_open(path, e)};
    struct dataset *d = r.f ? sys_alloc(sizeof *d, "data set", e) : NULL;
    int rc = -1;
    const size_t bytes = r.f && r.f->bytes < BUFFER_BYTES ? (size_t)r.f->bytes : BUFFER_BYTES;
    if (d && (r.window = sys_alloc(bytes, "reading a data set", e)) && (d->store = store_open(c, e)))
        rc = read_all(&r, vocabulary, d, e);
    if (rc) data_free(d);
    else *out = d;
    file_close(r.f), sys_free(r.window), sys_free(r.columns);
    return rc;
}

/* ---- what it was made for ---- */

static int other(struct err *e, const char *folder, const char *flag, const char *was, const char *is) {
    return err_set(e, ERR_INPUT,
                   "the data set in %s was tokenised with %s %s, this run has %s; give --%s %s, or another tokenized_path",
                   folder, flag, was, is, flag, was);
}

/* Settings that change ids must be those of this run. */
static int check_facts(const struct data_config *c, const struct tok *t, const struct cJSON *j, int64_t *records, struct err *e) {
    const char *folder = c->tokenized_path, *hash = "", *compat = "", *stage = "", *made_of = "";
    char hex[41], was[24], is[24];
    int64_t cutoff = 0;
    tok_hash(t, hex);
    if (json_str(j, "tokenizer", &hash, folder, e) < 0 || json_str(j, "compat", &compat, folder, e) < 0 ||
        json_str(j, "stage", &stage, folder, e) < 0 || json_int(j, "cutoff_len", 1, CUTOFF_MAX, &cutoff, folder, e) < 0 ||
        json_int(j, "records", 0, INT64_MAX / 2, records, folder, e) < 0 || json_str(j, "dataset", &made_of, folder, e) < 0)
        return -1;
    if (strcmp(hash, hex))
        return err_set(e, ERR_INPUT,
                       "the data set in %s was tokenised with another tokenizer than that of model_name_or_path; tokenise again "
                       "into another tokenized_path",
                       folder);
    if (strcmp(compat, era(c->compat_new))) return other(e, folder, "compat", compat, era(c->compat_new));
    if (strcmp(stage, stage_name(c->stage))) return other(e, folder, "stage", stage, stage_name(c->stage));
    snprintf(was, sizeof was, "%lld", (long long)cutoff), snprintf(is, sizeof is, "%lld", (long long)c->cutoff_len);
    if (cutoff != c->cutoff_len) return other(e, folder, "cutoff_len", was, is);
    log_warn("Loading dataset from disk will ignore other data arguments. (%s was made of %.200s)", folder, made_of);
    return 0;
}

int data_load_saved(const struct data_config *c, const struct tok *t, struct dataset **train, struct dataset **eval,
                    struct data_report *r, struct err *e) {
    char dir[4096], path[4200], *facts = NULL;
    struct cJSON *j = NULL;
    int rc = -1;
    *train = *eval = NULL;
    *r = (struct data_report){0};
    if (path_join(dir, sizeof dir, c->tokenized_path, FOLDER, e) || manifest_verify(dir, &facts, e) != 1 ||
        !(j = json_parse(facts, strlen(facts), dir, e)) || check_facts(c, t, j, &r->records, e) ||
        path_join(path, sizeof path, dir, "train.rows", e) || rows_read(path, c, tok_count(t), train, e))
        goto out;
    if (path_join(path, sizeof path, dir, "eval.rows", e) || (path_exists(path) && rows_read(path, c, tok_count(t), eval, e))) goto out;
    if ((c->eval_dataset || c->val_size > 0) && !*eval) {
        err_set(e, ERR_INPUT, "the data set in %s has no evaluation part: it was tokenised without eval_dataset and val_size",
                c->tokenized_path);
        goto out;
    }
    r->sequences = (*train)->rows.n, r->tokens = (*train)->tokens, r->labelled_tokens = (*train)->labelled, r->longest = (*train)->longest;
    r->eval_sequences = *eval ? (*eval)->rows.n : 0;
    log_info("Loaded tokenized dataset from %s.", c->tokenized_path);
    rc = 0;
out:
    if (rc) {
        data_free(*train), data_free(*eval);
        *train = *eval = NULL;
    }
    json_free(j);
    sys_free(facts);
    return rc;
}
