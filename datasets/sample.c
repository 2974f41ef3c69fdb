/* datasets/sample.c - how large data sets are, from their first records: for plans that must not wait for all of them.
 *
 * A file's records are as many as fit into its size when they are as long as the first ones. What is read to its end is counted. */
#include "base/file.h"
#include "base/str.h"
#include "datasets/datasets_internal.h"

enum { SEPARATOR = 2 }; /* bytes between records: a line feed, a comma with one */

struct first { /* of the files of a source so far */
    int64_t records, bytes;
    int whole; /* no record was left out */
};

/* Reads on until there is enough; *count: records of the file, perhaps estimated. */
static int read_first(const char *path, int64_t most_records, int64_t most_bytes, struct first *f, double *count, struct err *e) {
    struct reader *reader = reader_open(path, reader_shape(path, e), e);
    struct record r;
    int more = 1, verbatim = 1;
    int64_t n = 0, bytes = 0;
    if (!reader) return -1;
    while (f->records + n < most_records && f->bytes + bytes < most_bytes && (more = reader_next(reader, &r, e)) > 0)
        n++, bytes += (int64_t)r.n + SEPARATOR, verbatim &= r.verbatim;
    if (more > 0) more = reader_next(reader, &r, e) > 0; /* the sample may end with the file */
    const double done = reader_done(reader), size = (double)path_bytes(path);
    reader_close(reader);
    if (more < 0) return -1;
    f->records += n, f->bytes += bytes, f->whole &= !more;
    const double each = f->records ? (double)f->bytes / (double)f->records : 1;
    *count = !more ? (double)n : verbatim && !text_ends(path, ".gz") ? size / each : n && done > 0 ? (double)n / done : size / each;
    if (*count < (double)n) *count = (double)n;
    return 0;
}

static int sample_source(const struct data_config *c, const struct source *s, int64_t records, int64_t bytes, double *count,
                         struct first *f, struct err *e) {
    *f = (struct first){.whole = 1}, *count = 0;
    if (s->samples) return *count = (double)s->samples, 0; /* drawn from all records, so all are read in any case */
    if (c->max_samples && c->max_samples <= records) records = c->max_samples;
    for (int i = 0; i < s->file_count; i++) {
        double n;
        if (read_first(s->files[i], records, bytes, f, &n, e)) return -1;
        *count += n;
    }
    if (!c->max_samples || *count < (double)c->max_samples) return 0;
    *count = (double)c->max_samples;
    f->whole |= f->records >= c->max_samples;
    return 0;
}

int data_sample(const struct data_config *config, int64_t records, int64_t bytes, struct data_sample *out, struct err *e) {
    struct data_config c = *config;
    struct catalog k;
    double read = 0, all = 0;
    int rc = -1;
    *out = (struct data_sample){.scale = 1};
    if (!c.dataset_dir) c.dataset_dir = "data";
    c.glance = 2;
    if (catalog_open(&k, &c, c.dataset, e)) return -1;
    for (int i = 0; i < k.count; i++) {
        struct first f;
        double count;
        if (sample_source(&c, k.source + i, records, bytes, &count, &f, e)) goto out;
        all += count;
        if (!f.whole && (!out->records || f.records < out->records)) out->records = f.records;
        read += f.whole ? count : (double)f.records;
    }
    if (out->records && read > 0) out->scale = all / read;
    out->all = all;
    rc = 0;
out:
    catalog_close(&k);
    return rc;
}
