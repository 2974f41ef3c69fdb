/* datasets/pack.c - rows of records become blocks of one length.
 *
 * Records are taken in groups: n records fall into preprocessing_num_workers shards (the first n mod W one
 * longer), a shard into runs of preprocessing_batch_size. Groups are packed apart, so both numbers change the
 * result.
 *
 *     chunks   OLD --sft_packing, and stage pt: all tokens of a group in a row, cut every `block` tokens, the
 *              rest dropped
 *     bins     --packing, --neat_packing: whole records; the longest that still fits goes into the open bin;
 *              when none fits the bin is padded with <eod> (label -100) to cutoff_len, by one token at least
 */
#include "base/stop.h"
#include "base/sys.h"
#include "datasets/datasets_internal.h"
#include <string.h>

struct packer {
    const struct data_config *c;
    struct store *from;
    struct store *to;
    struct list *out;
    struct data_report *r;
    int64_t block;
    int32_t pad;
    struct row head;                               /* of the open block */
    int32_t *ids, *labels, *positions, *documents; /* [block] of the open block; the last two with bins */
    int32_t *first, *next,
        *below; /* bins: first[length] -> record -> next record of that length; below: see find_length */
    int64_t next_cap;
};

enum packing pack_kind(const struct data_config *c) {
    if (c->prompts) return PACK_NONE;
    if (c->stage == STAGE_PT) return c->packing ? PACK_CHUNKS : PACK_NONE;
    return c->sft_packing ? PACK_CHUNKS : c->packing > 0 || c->neat_packing ? PACK_BINS : PACK_NONE;
}

int64_t pack_block(const struct data_config *c) {
    /* asking for packing by name lowers cutoff_len by one; bins give that token back as padding, pt does not
     * */
    return c->stage == STAGE_PT && c->packing > 0 && c->compat_new ? c->cutoff_len - 1 : c->cutoff_len;
}

static int close_block(struct packer *p, struct err *e) {
    int64_t at;
    if (store_add(p->to, &p->head, p->ids, p->labels, p->positions, p->documents, &at, e) ||
        list_add(p->out, at, e))
        return -1;
    p->head = (struct row){0};
    return 0;
}

/* ---- chunks ---- */

static int pack_chunks(struct packer *p, const int64_t *at, int64_t count, struct err *e) {
    for (int64_t i = 0; i < count; i++) {
        const struct row *r = store_row(p->from, at[i]);
        store_walked(p->from, r);
        report_row(p->c, r, p->r);
        for (int32_t k = 0; k < r->n;) {
            int32_t room = (int32_t)p->block - p->head.n, n = r->n - k < room ? r->n - k : room;
            memcpy(p->ids + p->head.n, row_ids(r) + k, (size_t)n * sizeof *p->ids);
            memcpy(p->labels + p->head.n, row_labels(r) + k, (size_t)n * sizeof *p->labels);
            for (int32_t j = 0; j < n; j++) p->head.labelled += row_labels(r)[k + j] != IGNORE_LABEL;
            p->head.n += n, k += n;
            if (p->head.n == p->block && close_block(p, e)) return -1;
        }
    }
    p->r->remainder_tokens += p->head.n;
    p->head = (struct row){0};
    return 0;
}

/* ---- bins ---- */

/* The greatest length up to `room` of which a record is left, or -1. below[l + 1] leads towards it: l + 1
 * while there is such a record, else a smaller index; paths are halved on the way (union-find). */
static int32_t find_length(struct packer *p, int32_t room) {
    int32_t i = room + 1;
    while (p->below[i] != i) i = p->below[i] = p->below[p->below[i]];
    return i - 1;
}

static void add_record(struct packer *p, const struct row *r, int32_t document) {
    for (int32_t k = 0, n = p->head.n; k < r->n; k++, n++) {
        p->ids[n] = row_ids(r)[k];
        p->labels[n] = row_labels(r)[k];
        p->positions[n] = k;
        p->documents[n] = p->c->neat_packing ? document : 1;
    }
    p->head.n += r->n;
    p->head.labelled += r->labelled;
}

static int close_bin(struct packer *p, struct err *e) {
    for (int32_t n = p->head.n; n < p->block; n++) {
        p->ids[n] = p->pad, p->labels[n] = IGNORE_LABEL, p->positions[n] = 0;
        p->documents[n] = p->c->neat_packing ? 0 : 1;
    }
    p->head.n = (int32_t)p->block;
    p->head.flags = ROW_PACKED;
    return close_block(p, e);
}

static int pack_bins(struct packer *p, const int64_t *at, int64_t count, struct err *e) {
    const int32_t most = (int32_t)p->block - 1;
    int64_t left = 0;
    if (count > p->next_cap) {
        int32_t *q = sys_grow(p->next, (size_t)count * sizeof *q, "packing", e);
        if (!q) return -1;
        p->next = q, p->next_cap = count;
    }
    for (int32_t l = 0; l <= most; l++) p->first[l] = -1, p->below[l + 1] = l;
    for (int64_t i = 0; i < count; i++) {
        const struct row *r = store_row(p->from, at[i]);
        store_walked(p->from, r);
        report_row(p->c, r, p->r);
        if (r->drop) continue;
        if (r->n > most) {
            p->r->dropped_lengthy++;
            continue;
        }
        p->next[i] = p->first[r->n];
        p->first[r->n] = (int32_t)i; /* the last one comes first */
        p->below[r->n + 1] = r->n + 1;
        left++;
    }
    while (left) {
        int32_t l, document = 0;
        while ((l = find_length(p, most - p->head.n)) >= 0) {
            int32_t i = p->first[l];
            if ((p->first[l] = p->next[i]) < 0) p->below[l + 1] = l;
            const struct row *r = store_row(p->from, at[i]);
            store_walked(p->from, r);
            add_record(p, r, ++document);
            left--;
        }
        if (stop_check("while sequences were packed", e) || close_bin(p, e)) return -1;
    }
    return 0;
}

int pack_rows(const struct data_config *c, const struct tok *t, struct store *from,
              const struct list *in, struct store *to, struct list *out, struct data_report *r,
              struct err *e) {
    const int bins = pack_kind(c) == PACK_BINS;
    const int64_t group = c->group_size ? c->group_size : 1000, n = in->n;
    int64_t shards = c->num_workers ? c->num_workers : 1, start = 0;
    struct packer p = {
        .c = c, .from = from, .to = to, .out = out, .r = r, .block = pack_block(c), .pad = tok_eod(t)};
    const size_t block = (size_t)p.block, bytes = sizeof *p.ids;
    int rc = -1;
    if (!(p.ids = sys_alloc_array(block, bytes, "packing", e)) ||
        !(p.labels = sys_alloc_array(block, bytes, "packing", e)))
        goto out;
    if (bins && (!(p.positions = sys_alloc_array(block, bytes, "packing", e)) ||
                 !(p.documents = sys_alloc_array(block, bytes, "packing", e)) ||
                 !(p.first = sys_alloc_array(block, bytes, "packing", e)) ||
                 !(p.below = sys_alloc_array(block + 1, bytes, "packing", e))))
        goto out;
    if (shards > n) shards = n;
    for (int64_t k = 0; k < shards; k++) {
        int64_t end = start + n / shards + (k < n % shards);
        for (; start < end; start += group < end - start ? group : end - start) {
            int64_t count = group < end - start ? group : end - start;
            if (stop_check("while sequences were packed", e)) goto out;
            if (bins ? pack_bins(&p, in->p + start, count, e) : pack_chunks(&p, in->p + start, count, e))
                goto out;
        }
    }
    rc = 0;
out:
    sys_free(p.ids);
    sys_free(p.labels);
    sys_free(p.positions);
    sys_free(p.documents);
    sys_free(p.first);
    sys_free(p.next);
    sys_free(p.below);
    return rc;
}
