/* datasets/mix.c - which rows become the data set, and in which order.
 *
 * Draws are those of the libraries under LLaMA-Factory, number for number: num_samples from numpy's global
 * generator (mt19937, masked rejection), interleave_probs and val_size from numpy.random.default_rng(seed).
 * */
#include "base/rng.h"
#include "base/sys.h"
#include "datasets/datasets_internal.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MIXED_MAX = 1000000000 };
/* A smaller one would hardly come up in so many draws, and may vanish in the sums. */
#define PROBABILITY_MIN 1e-9

int list_add(struct list *v, int64_t x, struct err *e) {
    if (v->n == v->cap) {
        int64_t cap = v->cap ? 2 * v->cap : 64;
        int64_t *p = sys_grow(v->p, (size_t)cap * sizeof *p, "list of records", e);
        if (!p) return -1;
        v->p = p, v->cap = cap;
    }
    v->p[v->n++] = x;
    return 0;
}

void list_free(struct list *v) {
    sys_free(v->p);
    *v = (struct list){0};
}

/* A number from 0 to max (included), from as few bits as hold max, drawn again when too large. */
static int64_t draw_to(struct mt19937 *g, int64_t max) {
    uint32_t mask = (uint32_t)max, x;
    if (!max) return 0;
    for (int s = 1; s < 32; s *= 2) mask |= mask >> s;
    do x = mt_next(g) & mask;
    while ((int64_t)x > max);
    return x;
}

int mix_samples(struct mt19937 *g, struct list *v, int64_t samples, struct err *e) {
    struct list out = {0};
    const int64_t n = v->n;
    ASSERT(n > 0 && n <= UINT32_MAX, "%lld records", (long long)n);
    struct list order = {0};
    for (int64_t i = 0; i < n; i++)
        if (list_add(&order, i, e)) goto fail;
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = draw_to(g, i), x = order.p[i];
        order.p[i] = order.p[j], order.p[j] = x;
    }
    for (int64_t i = 0; i < samples; i++)
        if (list_add(&out, v->p[i < n ? order.p[i] : draw_to(g, n - 1)], e)) goto fail;
    list_free(&order);
    list_free(v);
    *v = out;
    return 0;
fail:
    list_free(&order);
    list_free(&out);
    return -1;
}

/* ---- interleaving ---- */

int mix_probabilities(const char *text, int count, double *sum, struct err *e) {
    double total = 0;
    int n = 0;
    for (const char *p = text; *p; n++) {
        char *end;
        double x = strtod(p, &end);
        end += strspn(end, " \t");
        if (end == p || (*end && *end != ',') || !(x >= PROBABILITY_MIN && x <= 1))
            return err_set(e, ERR_INPUT,
                           "interleave_probs: \"%.100s\" is not a list of numbers from %g to 1", text,
                           PROBABILITY_MIN);
        if (n < count) sum[n] = total += x;
        p = end + (*end == ',');
    }
    if (n != count)
        return err_set(e, ERR_INPUT, "interleave_probs has %d numbers for %d data sets", n, count);
    if (fabs(total - 1) > 1e-8)
        return err_set(e, ERR_INPUT, "interleave_probs must add up to 1, they add up to %.9g", total);
    for (int k = 0; k < count; k++) sum[k] /= total;
    return 0;
}

static int by_turns(enum data_mix mix, const struct list *part, int count, struct list *out, struct err *e) {
    int64_t rounds = part[0].n;
    for (int k = 1; k < count; k++)
        if (mix == MIX_UNDER ? part[k].n < rounds : part[k].n > rounds) rounds = part[k].n;
    for (int64_t i = 0; i < rounds; i++)
        for (int k = 0; k < count; k++)
            if ((i < part[k].n || mix == MIX_OVER) && list_add(out, part[k].p[i % part[k].n], e)) return -1;
    return 0;
}

static int by_chance(const struct data_config *c, const struct list *part, int count, struct list *out,
                     struct err *e) {
    struct pcg64 g;
    int rc = -1, finished = 0, wanted = c->mix == MIX_UNDER ? 1 : count;
    double *sum = sys_alloc_array((size_t)count, sizeof *sum, "interleave_probs", e);
    int64_t *next = sys_alloc_array((size_t)count, sizeof *next, "interleaving", e); /* records taken */
    if (!sum || !next || mix_probabilities(c->interleave_probs, count, sum, e)) goto out;
    pcg_seed(&g, c->seed);
    while (finished < wanted) {
        double u = pcg_double(&g);
        int k = 0;
        while (k < count - 1 && sum[k] <= u) k++;
        if (c->mix == MIX_ONCE && next[k] >= part[k].n) continue;
        if (list_add(out, part[k].p[next[k]++ % part[k].n], e)) goto out;
        finished += next[k] == part[k].n;
        if (out->n > MIXED_MAX) {
            err_set(e, ERR_INPUT,
                    "interleave_probs: more than %d records before the rarest data set is through",
                    MIXED_MAX);
            goto out;
        }
    }
    rc = 0;
out:
    sys_free(sum);
    sys_free(next);
    return rc;
}

int mix_lists(const struct data_config *c, struct list *part, const struct source *source, int count,
              struct list *out, struct err *e) {
    if (c->interleave_probs && c->mix == MIX_CONCAT)
        return err_set(e, ERR_INPUT, "`interleave_probs` is only valid for interleaved mixing.");
    if (count == 1) {
        *out = part[0], part[0] = (struct list){0};
        return 0;
    }
    if (c->mix == MIX_CONCAT) {
        for (int k = 0; k < count; k++)
            for (int64_t i = 0; i < part[k].n; i++)
                if (list_add(out, part[k].p[i], e)) return -1;
        return 0;
    }
    for (int k = 0; k < count; k++)
        if (!part[k].n)
            return err_set(e, ERR_INPUT, "data set %s holds no record to interleave", source[k].name);
    return c->interleave_probs ? by_chance(c, part, count, out, e) : by_turns(c->mix, part, count, out, e);
}

/* ---- validation split ---- */

int mix_split(const struct data_config *c, struct list *all, struct list *test, struct err *e) {
    struct pcg64 g;
    const double size = c->val_size;
    const int64_t n = all->n, tests = size > 1 ? (int64_t)fmin(size, 9e15) : (int64_t)ceil(size * (double)n);
    if (!(size > 0) || size == 1)
        return err_set(e, ERR_INPUT, "val_size must be a share below 1 or a number above 1, it is %g", size);
    if (tests >= n)
        return err_set(e, ERR_INPUT, "val_size %g takes all of the %lld %s, nothing is left to train on",
                       size, (long long)n, c->compat_new ? "records" : "sequences");
    int64_t *order = sys_alloc_array((size_t)n, sizeof *order, "validation split", e);
    struct list train = {0};
    if (!order) return -1;
    pcg_seed(&g, c->seed);
    pcg_permutation(&g, order, n);
    for (int64_t i = 0; i < n; i++)
        if (list_add(i < tests ? test : &train, all->p[order[i]], e)) {
            sys_free(order);
            list_free(&train);
            return -1;
        }
    sys_free(order);
    list_free(all);
    *all = train;
    return 0;
}
