/* model/batch.c - see batch.h */
#include "model/batch.h"
#include "base/sys.h"

/* Nine arrays of max_tokens 32-bit words, host and device alike, so that one copy moves them all. */
enum { A_IDS, A_POSITION, A_FIRST, A_OFFSET, A_NOISE, A_ROW, A_LABEL, A_WEIGHT, A_COUNT };

int64_t batch_cost(int64_t max_tokens) { return max_tokens * 4 * (A_COUNT + 2) + 512; }

int batch_open(struct batch *b, struct backend *be, int64_t max_rows, int64_t window_rows, int64_t max_tokens, int64_t max_seqs,
               struct err *e) {
    *b = (struct batch){.be = be, .max_rows = max_rows, .window_rows = window_rows, .max_tokens = max_tokens, .max_seqs = max_seqs};
    size_t bytes = (size_t)max_tokens * 4, windows = (size_t)(max_seqs + max_tokens / window_rows + 1);
    b->window = sys_alloc_array(windows, sizeof *b->window, "windows", e);
    b->window_starts = sys_alloc_array((size_t)max_seqs + 2 * windows, sizeof *b->window_starts, "sequence starts", e);
    b->chunk = sys_alloc_array((size_t)max_seqs + 1, sizeof *b->chunk, "chunks", e);
    b->starts = sys_alloc_array((size_t)(2 * max_seqs + 2), sizeof *b->starts, "sequence starts", e);
    b->loss_of = sys_alloc_array((size_t)max_seqs + 1, sizeof *b->loss_of, "sequence losses", e);
    if (b->chunk && b->starts && b->loss_of && b->window && b->window_starts &&
        (b->nll = backend_alloc(be, AT_HOST, bytes + 4, "token arrays", e)) &&
        (b->best = backend_alloc(be, AT_HOST, bytes + 4, "token arrays", e)) &&
        (b->dev_best = backend_alloc(be, AT_DEVICE, bytes + 4, "token arrays", e)) &&
        (b->host = backend_alloc(be, AT_HOST, bytes * A_COUNT + 4, "token arrays", e)) &&
        (b->dev = backend_alloc(be, AT_DEVICE, bytes * A_COUNT + 4, "token arrays", e)) &&
        (b->dev_nll = backend_alloc(be, AT_DEVICE, bytes + 4, "token arrays", e)))
        return 0;
    batch_close(b);
    return -1;
}

void batch_close(struct batch *b) {
    if (!b->be) return;
    if (b->nll) b->be->release(b->be->self, AT_HOST, b->nll);
    if (b->best) b->be->release(b->be->self, AT_HOST, b->best);
    if (b->host) b->be->release(b->be->self, AT_HOST, b->host);
    if (b->dev) b->be->release(b->be->self, AT_DEVICE, b->dev);
    if (b->dev_nll) b->be->release(b->be->self, AT_DEVICE, b->dev_nll);
    if (b->dev_best) b->be->release(b->be->self, AT_DEVICE, b->dev_best);
    sys_free(b->chunk), sys_free(b->starts), sys_free(b->loss_of), sys_free(b->window), sys_free(b->window_starts);
    *b = (struct batch){0};
}

static int64_t labelled_rows(const int32_t *labels, int64_t n) {
    for (int64_t t = n - 1; t >= 1; t--)
        if (!labels || labels[t] >= 0) return t;
    return 0;
}

/* The document of s that begins at `at`: its length, and the rows it takes. */
static int64_t next_document(const struct batch_sequence *s, int64_t at, int64_t *rows) {
    int64_t n = s->documents ? 1 : s->n;
    while (at + n < s->n && s->documents[at + n] == s->documents[at]) n++;
    *rows = s->documents && !s->documents[at] ? 0 : s->choices ? n : labelled_rows(s->labels ? s->labels + at : NULL, n);
    return n;
}

int64_t batch_rows(const struct batch_sequence *s, int64_t *documents) {
    int64_t sum = 0, rows;
    *documents = 0;
    for (int64_t at = 0; at < s->n;) {
        at += next_document(s, at, &rows);
        sum += rows, *documents += rows > 0;
    }
    return sum;
}

/* Cuts a chunk into windows, in order: as many whole sequences as fit, or a part of one that fits nowhere. */
static void cut(const struct batch *b, struct chunk *k, struct window *w, int32_t *starts) {
    const struct rows *r = &k->rows;
    int seams = 0;
    k->window = w, k->n_windows = 0;
    for (int s = 0; s < r->n_seqs; s++) {
        int64_t at = r->seq_start[s], end = r->seq_start[s + 1], first = at;
        for (int64_t n; at < end; at += n) {
            int joins = at == first && k->n_windows && !w[-1].goes_on && w[-1].seam < 0 && end - w[-1].at <= b->window_rows;
            n = end - at < b->window_rows ? end - at : b->window_rows;
            if (!joins) {
                *w = (struct window){.at = at,
                                     .seam = at > first ? seams++ : -1,
                                     .goes_on = at + n < end,
                                     .rows = {.token0 = r->token0 + at,
                                              .slice = r->slice,
                                              .seq_start = starts,
                                              .position = r->position + at,
                                              .first = r->first + at,
                                              .offset = r->offset + at}};
                *starts++ = 0;
                w++, k->n_windows++;
            }
            w[-1].rows.N += n, w[-1].rows.n_seqs++;
            *starts++ = (int32_t)w[-1].rows.N;
        }
    }
}

int chunk_begins(struct chunking *c, int64_t rows) {
    int begins = !c->rows || (!c->slice && c->rows + rows > c->capacity);
    if (c->slice && c->rows && c->in_slice + rows > c->slice) {
        const int64_t fit = c->capacity / c->slice;
        c->in_slice = 0, begins = ++c->slices >= fit;
    }
    if (begins) c->rows = c->slices = c->in_slice = 0;
    c->rows += rows, c->in_slice += rows;
    return begins;
}

struct filling {
    struct chunking into;
    struct batch *b;
    const struct model_config *c;
    int32_t *h[A_COUNT]; /* host arrays */
    struct chunk *k;     /* being filled */
    int32_t *starts;     /* of its sequences */
    int64_t placed;      /* sequences and documents so far */
};

/* Room for a sequence of so many rows: in the chunk at hand, or a new one. */
static void make_room(struct filling *f, int64_t rows) {
    struct batch *b = f->b;
    ASSERT(rows <= b->max_rows && b->N + rows <= b->max_tokens && f->placed < b->max_seqs, "%lld rows", (long long)rows);
    f->placed++;
    if (!chunk_begins(&f->into, rows)) return;
    if (f->k) f->starts += f->k->rows.n_seqs + 1;
    f->k = &b->chunk[b->n_chunks++];
    *f->k = (struct chunk){.rows = {.token0 = b->N, .seq_start = f->starts, .slice = b->slice}, .loss0 = b->n_loss};
    f->starts[0] = 0;
}

/* The first `rows` of s from `at` on become a sequence of the chunk. */
static void place(struct filling *f, const struct batch_sequence *s, int64_t at, int64_t rows) {
    struct batch *b = f->b;
    int32_t **h = f->h;
    float *weight = (float *)h[A_WEIGHT], *noise = (float *)h[A_NOISE];
    make_room(f, rows);
    int64_t base = f->k->rows.N, first = base; /* rows count from the chunk's start */
    for (int64_t t = 0; t < rows; t++) {
        int64_t row = b->N + t, from = at + t;
        h[A_IDS][row] = s->ids[from];
        h[A_POSITION][row] = s->positions ? s->positions[from] : (int32_t)t;
        h[A_FIRST][row] = (int32_t)first;
        h[A_OFFSET][row] = (int32_t)t;
        noise[row] = s->noise;
        if (f->c->document_mask && s->ids[from] == f->c->eod) first = base + t + 1; /* <eod> ends its own document */
        if (s->choices) continue;
        int32_t label = s->labels ? s->labels[from + 1] : s->ids[from + 1];
        if (label < 0) continue;
        h[A_ROW][b->n_loss] = (int32_t)(base + t);
        h[A_LABEL][b->n_loss] = label;
        weight[b->n_loss++] = s->weight;
    }
    for (int a = 0; s->choices && a < s->n_choices; a++, b->n_loss++) {
        ASSERT(b->n_loss < b->max_tokens, "%lld choices", (long long)b->n_loss);
        h[A_ROW][b->n_loss] = (int32_t)(base + rows - 1), h[A_LABEL][b->n_loss] = s->choices[a], weight[b->n_loss] = 0;
    }
    b->N += rows, f->k->rows.N += rows;
    f->starts[++f->k->rows.n_seqs] = (int32_t)f->k->rows.N;
    f->k->n_loss = b->n_loss - f->k->loss0;
}

void batch_fill(struct batch *b, const struct model_config *c, const struct batch_sequence *s, int64_t n) {
    ASSERT(n <= b->max_seqs, "%lld sequences of %lld", (long long)n, (long long)b->max_seqs);
    struct filling f = {.into = {.capacity = b->max_rows, .slice = b->slice}, .b = b, .c = c, .starts = b->starts};
    int32_t **h = f.h;
    for (int i = 0; i < A_COUNT; i++) h[i] = b->host + i * b->max_tokens;
    int noisy = 0;
    b->N = b->n_loss = b->n_chunks = 0;
    for (int64_t i = 0; i < n; i++) {
        b->loss_of[i] = b->n_loss;
        for (int64_t at = 0, length, rows; at < s[i].n; at += length) {
            length = next_document(&s[i], at, &rows);
            if (rows) place(&f, &s[i], at, rows), noisy |= s[i].noise > 0;
        }
    }
    b->loss_of[n] = b->n_loss;
    struct window *w = b->window;
    int32_t *window_starts = b->window_starts;
    for (int i = 0; i < b->n_chunks; i++) {
        struct chunk *j = &b->chunk[i];
        const int32_t *d[A_COUNT];
        for (int a = 0; a < A_COUNT; a++) d[a] = b->dev + a * b->max_tokens + (a < A_ROW ? j->rows.token0 : j->loss0);
        j->noise = noisy ? (const float *)d[A_NOISE] : NULL;
        j->ids = d[A_IDS], j->host_ids = h[A_IDS] + j->rows.token0, j->rows.position = d[A_POSITION], j->rows.first = d[A_FIRST],
        j->rows.offset = d[A_OFFSET];
        j->row = d[A_ROW], j->label = d[A_LABEL], j->weight = (const float *)d[A_WEIGHT];
        j->nll = b->dev_nll + j->loss0;
        j->best = b->with_best ? b->dev_best + j->loss0 : NULL;
        cut(b, j, w, window_starts);
        w += j->n_windows, window_starts += j->rows.n_seqs + 2 * j->n_windows;
    }
    for (int a = 0; a < A_COUNT; a++)
        b->be->put(b->be->self, b->dev + a * b->max_tokens, h[a], (size_t)(a < A_ROW ? b->N : b->n_loss) * 4, Q_COMPUTE);
}

int batch_losses(struct batch *b, struct err *e) {
    b->be->get(b->be->self, b->nll, b->dev_nll, (size_t)b->n_loss * 4, Q_COMPUTE);
    if (b->with_best) b->be->get(b->be->self, b->best, b->dev_best, (size_t)b->n_loss * 4, Q_COMPUTE);
    return b->be->sync(b->be->self, e);
}
