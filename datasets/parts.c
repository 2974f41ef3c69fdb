/* datasets/parts.c - several data sets as one that remembers where each begins (--eval_on_each_dataset). Each is loaded, cut and
 * packed by itself, so that its sequences are those it has alone; then their rows move into one store. */
#include "base/sys.h"
#include "datasets/datasets_internal.h"
#include <string.h>

static int append(struct dataset *all, const struct dataset *d, struct err *e) {
    for (int64_t i = 0; i < d->rows.n; i++) {
        const struct row *r = store_row(d->store, d->rows.p[i]);
        const int32_t *ids = row_ids(r), *labels = row_labels(r);
        const int packed = r->flags & ROW_PACKED;
        int64_t at;
        store_walked(d->store, r);
        if (store_add(all->store, r, ids, labels, packed ? ids + 2 * r->n : NULL, packed ? ids + 3 * r->n : NULL, &at, e) ||
            list_add(&all->rows, at, e))
            return -1;
    }
    return 0;
}

/* The part `name`, from the place that `all` has reached. */
static int load_part(const struct data_config *c, const struct tok *t, const char *name, size_t n, struct dataset *all,
                     struct data_report *r, struct err *e) {
    struct data_config one = *c;
    struct dataset *d = NULL, *none = NULL;
    struct data_report of_part;
    struct part *p = sys_grow(all->part, (size_t)(all->parts + 1) * sizeof *p, "parts of a data set", e);
    if (!p) return -1;
    all->part = p, p += all->parts;
    *p = (struct part){.name = text_copy(name, n), .first = all->rows.n};
    if (!p->name) return err_set(e, ERR_RUN, "out of memory: name of a data set");
    all->parts++;
    one.dataset = p->name, one.eval_dataset = NULL, one.val_size = 0, one.eval_on_each = 0;
    one.mix = MIX_CONCAT, one.interleave_probs = NULL;
    if (data_load(&one, t, &d, &none, &of_part, e)) return -1;
    const int rc = append(all, d, e);
    data_free(d);
    r->records += of_part.records;
    return rc;
}

int data_load_parts(const struct data_config *c, const struct tok *t, const char *names, struct dataset **out,
                    struct data_report *r, struct err *e) {
    struct dataset *all = sys_alloc(sizeof *all, "data set", e);
    int rc = all && (all->store = store_open(c, e)) ? 0 : -1;
    *r = (struct data_report){0};
    for (const char *p = names; !rc && *p; p += *p == ',') {
        const size_t n = strcspn(p, ",");
        if (n) rc = load_part(c, t, p, n, all, r, e);
        p += n;
    }
    if (rc || store_seal(all->store, e)) return data_free(all), -1;
    dataset_count(all);
    r->sequences = all->rows.n, r->tokens = all->tokens, r->labelled_tokens = all->labelled, r->longest = all->longest;
    *out = all;
    return 0;
}

int data_parts(const struct dataset *d) { return d->parts; }

const char *data_part(const struct dataset *d, int k, int64_t *first, int64_t *n) {
    ASSERT(k >= 0 && k < d->parts, "part %d of %d", k, d->parts);
    *first = d->part[k].first, *n = (k + 1 < d->parts ? d->part[k + 1].first : d->rows.n) - *first;
    return d->part[k].name;
}

void parts_free(struct dataset *d) {
    for (int k = 0; k < d->parts; k++) sys_free(d->part[k].name);
    sys_free(d->part);
}
