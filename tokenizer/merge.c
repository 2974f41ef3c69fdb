/* tokenizer/merge.c - merging the symbols of one part of a text: best rank first, of equals the leftmost.
 *
 * Short parts scan the ranks of all neighbours for each merge. Long ones keep them in a binary heap of
 * rank << 32 | left index: O(n log n). An entry of the heap is stale when rank[left] has changed since; if
 * it has changed back, the entry is right again, since it says no more than "left and its neighbour merge
 * with this rank". */
#include "base/sys.h"
#include "tokenizer/tokenizer_internal.h"

void tok_merge_free(struct tok_merge *m) {
    sys_free(m->sym);
    sys_free(m->heap);
    *m = (struct tok_merge){0};
}

int tok_merge_reserve(struct tok_merge *m, size_t n, struct err *e) {
    if (n <= m->cap) return 0;
    tok_merge_free(m);
    m->sym = sys_alloc_array(n, 4 * sizeof *m->sym, "merging a long text", e);
    m->heap = sys_alloc_array(n, 2 * sizeof *m->heap, "merging a long text", e);
    if (!m->sym || !m->heap) {
        tok_merge_free(m);
        return -1;
    }
    m->rank = m->sym + n, m->next = m->rank + n, m->prev = m->next + n;
    m->cap = n;
    return 0;
}

static uint32_t rank_of(const struct tok *t, uint32_t whole) {
    return whole == SYM_NONE ? RANK_NONE : t->pieces[whole].rank;
}

/* The rule of two characters side by side. */
static uint32_t first_rule(const struct tok *t, uint32_t a, uint32_t b) {
    return (a | b) < 128 ? t->ascii[a << 7 | b] : rule_find(t, sym_char(t, a), sym_char(t, b));
}

static size_t merge_short(const struct tok *t, uint32_t *sym, size_t n) {
    uint32_t rank[MERGE_SHORT], whole[MERGE_SHORT];
    for (size_t i = 0; i + 1 < n; i++) {
        whole[i] = first_rule(t, sym[i], sym[i + 1]);
        rank[i] = rank_of(t, whole[i]);
    }
    for (size_t i = 0; i < n; i++) sym[i] = sym_char(t, sym[i]);
    while (n > 1) {
        size_t at = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[at]) at = i;
        if (rank[at] == RANK_NONE) break;
        sym[at] = whole[at];
        n--;
        for (size_t i = at + 1; i < n; i++) sym[i] = sym[i + 1];
        for (size_t i = at + 1; i + 1 < n; i++) rank[i] = rank[i + 1], whole[i] = whole[i + 1];
        if (at > 0) rank[at - 1] = rank_of(t, whole[at - 1] = rule_find(t, sym[at - 1], sym[at]));
        if (at + 1 < n) rank[at] = rank_of(t, whole[at] = rule_find(t, sym[at], sym[at + 1]));
    }
    return n;
}

static void heap_down(uint64_t *heap, size_t n, size_t i) {
    uint64_t x = heap[i];
    for (size_t k; (k = 2 * i + 1) < n; i = k) {
        if (k + 1 < n && heap[k + 1] < heap[k]) k++;
        if (x <= heap[k]) break;
        heap[i] = heap[k];
    }
    heap[i] = x;
}

static void heap_push(uint64_t *heap, size_t *n, uint64_t x) {
    size_t i = (*n)++;
    for (; i > 0 && x < heap[(i - 1) / 2]; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = x;
}

static uint64_t heap_pop(uint64_t *heap, size_t *n) {
    uint64_t top = heap[0];
    heap[0] = heap[--*n];
    if (*n) heap_down(heap, *n, 0);
    return top;
}

static void offer(const struct tok *t, struct tok_merge *m, size_t *heap_n, uint32_t left) {
    uint32_t whole = rule_find(t, m->sym[left], m->sym[m->next[left]]);
    m->rank[left] = rank_of(t, whole);
    if (whole != SYM_NONE) heap_push(m->heap, heap_n, (uint64_t)m->rank[left] << 32 | left);
}

/* The heap has at most 2n entries: fewer than n at first, and each of fewer than n merges takes one and adds
 * two. */
static size_t merge_long(const struct tok *t, struct tok_merge *m, size_t n) {
    uint32_t *sym = m->sym, *next = m->next, *prev = m->prev, end = (uint32_t)n;
    size_t heap_n = 0, left = 0;
    for (uint32_t i = 0; i < end; i++) {
        m->rank[i] = i + 1 < end ? rank_of(t, first_rule(t, sym[i], sym[i + 1])) : RANK_NONE;
        if (m->rank[i] != RANK_NONE) m->heap[heap_n++] = (uint64_t)m->rank[i] << 32 | i;
        next[i] = i + 1;
        prev[i] = i ? i - 1 : end;
    }
    for (size_t i = heap_n / 2; i-- > 0;) heap_down(m->heap, heap_n, i);
    for (uint32_t i = 0; i < end; i++) sym[i] = sym_char(t, sym[i]);
    while (heap_n) {
        uint64_t top = heap_pop(m->heap, &heap_n);
        uint32_t i = (uint32_t)top, j = next[i];
        if (m->rank[i] != top >> 32) continue;
        sym[i] = rule_find(t, sym[i], sym[j]);
        m->rank[i] = m->rank[j] = RANK_NONE;
        next[i] = next[j];
        if (next[i] != end) prev[next[i]] = i, offer(t, m, &heap_n, i);
        if (prev[i] != end) offer(t, m, &heap_n, prev[i]);
    }
    for (uint32_t i = 0; i < end; i = next[i]) sym[left++] = sym[i];
    return left;
}

size_t tok_merge_run(const struct tok *t, struct tok_merge *m, uint32_t *sym, size_t n) {
    return n <= MERGE_SHORT ? merge_short(t, sym, n) : merge_long(t, m, n);
}
