/* datasets/encode.c - a conversation becomes ids and labels.
 *
 * Each turn is a source (system in front of the first, user text, <sep>) and a target (answer, <eod>),
 * encoded apart by the template. Turns are taken in order until cutoff tokens are used up, each cut by
 * cut_turn to what room is left; with mask_history from the last turn backwards, so that the answer that is
 * trained is the one that surely fits. Labels are the ids of the targets; sources are masked unless
 * train_on_prompt, earlier targets are masked under mask_history. Prompts for generation are one turn: all that
 * stands before the last answer is the source, cut at its end like any other. */
#include "base/sys.h"
#include "datasets/datasets_internal.h"
#include <stdio.h>
#include <string.h>

enum {
    OLD_RESERVED = 16,  /* v0.5.0 keeps so many tokens of a target, whatever reserved_label_len says */
    OLD_UNCUT = 1000000 /* its "no cutoff" under packing */
};

void encoder_init(struct encoder *k, const struct data_config *c, const struct tok *t) {
    enum packing packing = pack_kind(c);
    *k = (struct encoder){.c = c,
                          .tok = t,
                          .template = c->compat_new ? TEMPLATE_YUAN_NEW : TEMPLATE_YUAN_OLD,
                          .cutoff = packing == PACK_CHUNKS ? OLD_UNCUT
                                    : packing == PACK_BINS ? c->cutoff_len - 1
                                                           : c->cutoff_len};
}

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static int64_t max64(int64_t a, int64_t b) {
    return a > b ? a : b;
}

void cut_turn(int compat_new, int64_t S, int64_t T, int64_t C, int64_t *s, int64_t *t) {
    /* the target's share of the room, as Python computes it: a division, a product, cut to a whole number */
    int64_t share = S + T ? (int64_t)((double)C * ((double)T / (double)(S + T))) : 0;
    if (compat_new) {
        int64_t most = 2 * T < C ? C : 2 * S < C ? C - S : share;
        *t = min64(most, T);
        *s = min64(max64(C - *t, 0), S);
        return;
    }
    int64_t most = max64(share, OLD_RESERVED), rest = C - most;
    *t = min64(most, T);
    /* A negative end of a Python slice counts from the back: with less than 16 tokens of room nearly all of
     * the source stays. */
    *s = rest < 0 ? max64(S + rest, 0) : min64(rest, S);
}

/* A turn as it was encoded: ids[at .. at + S) source, then T of target; s and t of them stay. */
struct turn {
    size_t at, S, T;
    int64_t s, t;
    int masked;
};

static int encode_turn(const struct encoder *k, const struct conversation *v, int i, struct ids *ids,
                       struct turn *turn, struct err *e) {
    const char *user = v->message[2 * i].text, *answer = v->message[2 * i + 1].text;
    const char *system = v->system && *v->system ? v->system : k->c->default_system;
    turn->at = ids->n;
    if (template_source(k->tok, k->template, i, i == 0 ? system : NULL, i == 0 && system ? strlen(system) : 0,
                        user, strlen(user), ids, e))
        return -1;
    turn->S = ids->n - turn->at;
    if (template_target(k->tok, k->template, answer, strlen(answer), ids, e)) return -1;
    turn->T = ids->n - turn->at - turn->S;
    return 0;
}

static int count_eod(const struct encoder *k, const int32_t *p, size_t n) {
    int count = 0;
    for (size_t i = 0; i < n; i++) count += p[i] == tok_eod(k->tok);
    return count;
}

static int add_labels(struct ids *labels, const int32_t *p, size_t n, int masked, struct err *e) {
    if (!masked) return ids_add(labels, p, n, e);
    for (size_t i = 0; i < n; i++)
        if (ids_push(labels, IGNORE_LABEL, e)) return -1;
    return 0;
}

static int encode_turns(const struct encoder *k, const struct conversation *v, struct encoded *out) {
    const int count = v->count / 2, backwards = k->c->mask_history;
    int rc = -1, done = 0;
    int64_t total = 0;
    struct ids ids = {0};
    struct row *row = &out->row;
    struct turn *turns = sys_alloc_array((size_t)count, sizeof *turns, "turns", &out->e);
    if (!turns) return -1;
    for (; done < count && total < k->cutoff; done++) {
        int i = backwards ? count - 1 - done : done;
        struct turn *u = turns + i;
        if (encode_turn(k, v, i, &ids, u, &out->e)) goto out;
        cut_turn(k->c->compat_new, (int64_t)u->S, (int64_t)u->T, k->cutoff - total, &u->s, &u->t);
        u->masked = backwards && done > 0;
        total += u->s + u->t;
        int cut_s = u->s < (int64_t)u->S, cut_t = u->t < (int64_t)u->T;
        row->cut_source += cut_s && !cut_t;
        row->cut_target += cut_t && !cut_s;
        row->cut_both += cut_s && cut_t;
        row->double_eod += count_eod(k, ids.p + u->at + u->S, u->T) > 1;
    }
    row->turns = count;
    row->skipped_turns = count - done;
    for (int i = backwards ? count - done : 0; i < (backwards ? count : done); i++) {
        const struct turn *u = turns + i;
        const int32_t *source = ids.p + u->at, *target = source + u->S;
        if (ids_add(&out->ids, source, (size_t)u->s, &out->e) ||
            ids_add(&out->ids, target, (size_t)u->t, &out->e) ||
            add_labels(&out->labels, source, (size_t)u->s, !k->c->train_on_prompt, &out->e) ||
            add_labels(&out->labels, target, (size_t)u->t, u->masked, &out->e))
            goto out;
    }
    rc = 0;
out:
    ids_free(&ids);
    sys_free(turns);
    return rc;
}

static int encode_prompt(const struct encoder *k, const struct conversation *v, struct encoded *out) {
    const int count = v->count / 2;
    struct ids ids = {0};
    struct turn last = {0};
    struct row *row = &out->row;
    int rc = -1;
    for (int i = 0; i < count; i++)
        if (encode_turn(k, v, i, &ids, &last, &out->e)) goto out;
    const int64_t T = (int64_t)last.T, S = (int64_t)ids.n - T;
    cut_turn(k->c->compat_new, S, T, k->cutoff, &last.s, &last.t);
    row->turns = count;
    row->cut_source = last.s < S && last.t == T;
    row->cut_target = last.t < T && last.s == S;
    row->cut_both = last.s < S && last.t < T;
    if (ids_add(&out->ids, ids.p, (size_t)last.s, &out->e) || ids_add(&out->ids, ids.p + S, (size_t)last.t, &out->e) ||
        add_labels(&out->labels, ids.p, (size_t)last.s, 1, &out->e) || add_labels(&out->labels, ids.p + S, (size_t)last.t, 0, &out->e))
        goto out;
    rc = 0;
out:
    ids_free(&ids);
    return rc;
}

/* Cuts what has no turns: pre-training texts and given ids. Chunks are cut later, from all records together.
 * */
static void cut_record(const struct encoder *k, struct encoded *out) {
    if (pack_kind(k->c) == PACK_CHUNKS || (int64_t)out->ids.n <= k->cutoff) return;
    out->ids.n = out->labels.n = (size_t)k->cutoff;
    out->row.cut_record = 1;
}

static int encode_text(const struct encoder *k, const struct conversation *v, struct encoded *out) {
    const char *text = v->message[0].text;
    if (tok_encode(k->tok, text, strlen(text), TOK_SPECIAL, &out->ids, &out->e) ||
        ids_push(&out->ids, tok_eod(k->tok), &out->e) ||
        ids_add(&out->labels, out->ids.p, out->ids.n, &out->e))
        return -1;
    out->row.turns = 1;
    cut_record(k, out);
    return 0;
}

/* A list of ids; `ignore` allows IGNORE_LABEL too. */
static int read_ids(const struct encoder *k, const struct cJSON *json, const char *key, int ignore,
                    const struct record *r, struct ids *out, struct err *e) {
    char keys[300];
    const struct cJSON *list = json_get(json, key), *v;
    if (!cJSON_IsArray(list))
        return record_error(r, 0, e, "\"%s\" must be a list of token ids; the record has %s", key,
                            key_list(keys, sizeof keys, json));
    cJSON_ArrayForEach(v, list) {
        double x = cJSON_IsNumber(v) ? v->valuedouble : -1;
        int valid = x >= 0 && x < tok_count(k->tok) && x == (double)(int32_t)x;
        if (!valid && !(ignore && x == IGNORE_LABEL))
            return record_error(r, 0, e, "\"%s\"[%zu] is not a token id (0 to %d%s)", key, out->n,
                                tok_count(k->tok) - 1, ignore ? ", or -100" : "");
        if (ids_push(out, (int32_t)x, e)) return -1;
    }
    return 0;
}

static int encode_ids(const struct encoder *k, const struct cJSON *json, const struct record *r,
                      struct encoded *out) {
    const struct cJSON *labels = json_get(json, "labels");
    if (read_ids(k, json, "input_ids", 0, r, &out->ids, &out->e)) return -1;
    if (!labels || cJSON_IsNull(labels)) {
        if (ids_add(&out->labels, out->ids.p, out->ids.n, &out->e)) return -1;
    } else {
        if (read_ids(k, json, "labels", 1, r, &out->labels, &out->e)) return -1;
        if (out->labels.n != out->ids.n)
            return record_error(r, 0, &out->e, "%zu labels for %zu input_ids", out->labels.n, out->ids.n);
    }
    out->row.turns = 1;
    if (!out->ids.n) {
        out->row.drop = DROP_EMPTY;
        snprintf(out->why, sizeof out->why, "input_ids is empty");
    }
    cut_record(k, out);
    return 0;
}

void encode_record(const struct encoder *k, const struct source *s, const struct record *r,
                   struct encoded *out) {
    struct conversation v = {0};
    struct cJSON *json = record_parse(r, &out->e);
    if (!json) return;
    if (!cJSON_IsObject(json)) {
        record_error(r, 0, &out->e, "a record must be an object {...}");
    } else if (s->format == FORMAT_IDS) {
        encode_ids(k, json, r, out);
    } else if (!convert_record(k->c, s, json, r, &v, &out->e)) {
        out->row.drop = (int32_t)v.drop;
        out->row.flags = (v.drop == DROP_ROLE ? ROW_BAD_ROLE : 0) | (v.odd_count ? ROW_BAD_COUNT : 0);
        memcpy(out->why, v.why, sizeof out->why);
        if (!v.drop && k->c->stage == STAGE_PT)
            encode_text(k, &v, out);
        else if (!v.drop && k->c->prompts)
            encode_prompt(k, &v, out);
        else if (!v.drop)
            encode_turns(k, &v, out);
    }
    out->seen = v.seen;
    if (out->e.code && out->e.code != ERR_INPUT)
        err_where(&out->e, "%s: record %lld", r->path, (long long)r->number);
    out->row.n = (int32_t)out->ids.n;
    for (size_t i = 0; i < out->labels.n; i++) out->row.labelled += out->labels.p[i] != IGNORE_LABEL;
    conversation_free(&v);
    json_free(json);
}

void encoded_free(struct encoded *x) {
    ids_free(&x->ids);
    ids_free(&x->labels);
}
