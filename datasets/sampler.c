/* datasets/sampler.c - the order of sequences and their grouping into updates, as in the Hugging Face trainer.
 *
 * With n sequences, batch B and accumulation G an epoch has L = ceil(n/B) micro-batches (floor with
 * drop_last). Two eras:
 *     new   U = ceil(L/G) updates an epoch, the last one short
 *     old   U = max(L div G, 1); micro-batches left over at the end of an epoch are completed by the first of
 *           the next, except that an epoch of at most G micro-batches is one update
 * The total is ceil(epochs * U), or max_steps. Order of epoch k: torch.randperm seeded with seed + k.
 * Everything follows from the step number; only the permutation of the last epoch asked for is kept. */
#include "base/rng.h"
#include "base/sys.h"
#include "datasets/datasets.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    COUNT_MAX = UINT32_MAX / 20, /* above it torch.randperm draws from another generator */
    MEGA_BATCHES = 50
};

static const int64_t STEPS_MAX = 1000000000; /* times accumulate: still a small int64_t */

struct placed {
    int64_t length, place, index;
};

struct sampler {
    struct sampler_config c;
    int64_t L, U, total;
    int carries;            /* old, and L > G */
    int64_t epoch;          /* of order; -1 = none */
    int64_t *order;         /* [count] */
    int64_t *index, *start; /* of the last step handed out */
    struct placed *placed;  /* [mega], with group_by_length */
    int64_t mega;           /* sequences that are sorted together */
    int32_t *lengths;       /* [count] */
};

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

struct sampler *sampler_open(const struct sampler_config *c, struct err *e) {
    const int64_t n = c->count, B = c->batch, G = c->accumulate;
    if (n < 1 || n > COUNT_MAX || B < 1 || G < 1 || B > INT32_MAX || G > INT32_MAX) {
        err_set(e, ERR_INPUT,
                "%lld sequences in batches of %lld, %lld accumulated: each must be at least 1, the first at "
                "most %lld",
                (long long)n, (long long)B, (long long)G, (long long)COUNT_MAX);
        return NULL;
    }
    const int64_t L = c->drop_last ? n / B : ceil_div(n, B);
    if (!L) {
        err_set(e, ERR_INPUT,
                "%lld sequences are fewer than a batch of %lld, and dataloader_drop_last drops a short "
                "batch: nothing "
                "is left",
                (long long)n, (long long)B);
        return NULL;
    }
    if (c->max_steps > STEPS_MAX ||
        (c->max_steps <= 0 && !(c->epochs >= 0 && c->epochs * (double)L <= (double)STEPS_MAX))) {
        err_set(e, ERR_INPUT, "max_steps %lld or num_train_epochs %g cannot be meant: more than %lld steps",
                (long long)c->max_steps, c->epochs, (long long)STEPS_MAX);
        return NULL;
    }
    ASSERT(!c->group_by_length || c->lengths, "group_by_length without lengths of %lld sequences",
           (long long)n);
    struct sampler *s = sys_alloc(sizeof *s, "sampler", e);
    if (!s) return NULL;
    s->c = *c;
    s->L = L;
    s->U = c->compat_new || L <= G ? ceil_div(L, G) : L / G;
    s->carries = !c->compat_new && L > G;
    s->total = c->max_steps > 0 ? c->max_steps : (int64_t)ceil(c->epochs * (double)s->U);
    s->epoch = -1;
    const int64_t micro = min64(G, L), k = min64(n / (B * G) / 4, MEGA_BATCHES);
    s->mega = min64((k ? k : 1) * B * G, n);
    if (!(s->order = sys_alloc_array((size_t)n, sizeof *s->order, "order of sequences", e)) ||
        !(s->index =
              sys_alloc_array((size_t)(min64(B, n) * micro), sizeof *s->index, "order of sequences", e)) ||
        !(s->start = sys_alloc_array((size_t)micro + 1, sizeof *s->start, "order of sequences", e)) ||
        (c->group_by_length &&
         (!(s->placed = sys_alloc_array((size_t)s->mega, sizeof *s->placed, "order of sequences", e)) ||
          !(s->lengths = sys_alloc_array((size_t)n, sizeof *s->lengths, "order of sequences", e))))) {
        sampler_close(s);
        return NULL;
    }
    if (s->lengths) memcpy(s->lengths, c->lengths, (size_t)n * sizeof *s->lengths);
    return s;
}

void sampler_close(struct sampler *s) {
    if (!s) return;
    sys_free(s->order);
    sys_free(s->index);
    sys_free(s->start);
    sys_free(s->placed);
    sys_free(s->lengths);
    sys_free(s);
}

int64_t sampler_total_steps(const struct sampler *s) {
    return s->total;
}
int64_t sampler_steps_per_epoch(const struct sampler *s) {
    return s->U;
}

static int longer_first(const void *a, const void *b) {
    const struct placed *x = a, *y = b;
    if (x->length != y->length) return x->length < y->length ? 1 : -1;
    return x->place < y->place ? -1 : x->place > y->place;
}

/* Stretches of up to 50 updates, each sorted by falling length (equal ones keep their order); the longest
 * sequence of all changes places with the first one, so that the first step needs the most memory. */
static void group_by_length(struct sampler *s) {
    const int64_t n = s->c.count, mega = s->mega;
    int64_t longest = 0;
    for (int64_t from = 0; from < n; from += mega) {
        const int64_t count = min64(mega, n - from);
        for (int64_t i = 0; i < count; i++)
            s->placed[i] = (struct placed){s->lengths[s->order[from + i]], i, s->order[from + i]};
        qsort(s->placed, (size_t)count, sizeof *s->placed, longer_first);
        for (int64_t i = 0; i < count; i++) s->order[from + i] = s->placed[i].index;
        if (s->lengths[s->order[from]] > s->lengths[s->order[longest]]) longest = from;
    }
    const int64_t first = s->order[0];
    s->order[0] = s->order[longest];
    s->order[longest] = first;
}

static void order_epoch(struct sampler *s, int64_t epoch) {
    if (s->epoch == epoch) return;
    struct mt19937 g;
    s->epoch = epoch;
    if (s->c.shuffle) {
        mt_seed(&g, (uint32_t)(s->c.seed + (uint64_t)epoch));
        mt_permutation(&g, s->order, s->c.count);
        if (s->c.group_by_length) group_by_length(s);
    } else {
        for (int64_t i = 0; i < s->c.count; i++) s->order[i] = i;
    }
}

int sampler_get(struct sampler *s, int64_t step, struct sampler_step *out, struct err *e) {
    (void)e;
    ASSERT(step >= 0 && step < s->total, "step %lld of %lld", (long long)step, (long long)s->total);
    const int64_t n = s->c.count, B = s->c.batch, G = s->c.accumulate, L = s->L;
    /* micro-batches are numbered through all epochs */
    const int64_t first = s->carries ? step * G : step / s->U * L + step % s->U * G;
    const int64_t behind = s->carries ? first + G : min64(first + G, (step / s->U + 1) * L);
    int64_t filled = 0;
    for (int64_t m = first; m < behind; m++) {
        order_epoch(s, m / L);
        s->start[m - first] = filled;
        for (int64_t i = m % L * B; i < min64((m % L + 1) * B, n); i++) s->index[filled++] = s->order[i];
    }
    s->start[behind - first] = filled;
    *out = (struct sampler_step){.sequences = filled,
                                 .index = s->index,
                                 .micro_batches = behind - first,
                                 .start = s->start,
                                 .epoch =
                                     (double)((behind - 1) / L) + (double)((behind - 1) % L + 1) / (double)L};
    return 0;
}
