/* tokenizer/template.c - the chat template `yuan` of LLaMA-Factory: system, user and answer texts, each
 * encoded apart.
 *
 *              source of turn 0              source of a later turn      target
 *     OLD      system  user <sep>            "\n"  user <sep>            answer <eod>
 *     NEW      system  user <sep>            user <sep>                  answer <eod> "\n"
 */
#define _GNU_SOURCE /* memmem */
#include "tokenizer/tokenizer_internal.h"

/* The user's text, its first {{idx}} being the number of the turn: a slot of the template that reaches
 * into its data. */
static int put_user(const struct tok *t, int turn, const char *user, size_t n, struct ids *out,
                    struct err *e) {
    static const char slot[] = "{{idx}}";
    const char *at = n ? memmem(user, n, slot, sizeof slot - 1) : NULL;
    if (!at) return tok_encode(t, user, n, TOK_SPECIAL, out, e);
    struct str s = {0};
    size_t before = (size_t)(at - user), slot_n = sizeof slot - 1;
    str_add(&s, user, before);
    str_printf(&s, "%d", turn);
    str_add(&s, at + slot_n, n - before - slot_n);
    int r = s.oom ? err_set(e, ERR_RUN, "out of memory: a user text of %zu bytes", n)
                  : tok_encode(t, s.p, s.n, TOK_SPECIAL, out, e);
    str_free(&s);
    return r;
}

int template_source(const struct tok *t, enum tok_template k, int turn, const char *system, size_t system_n,
                    const char *user, size_t user_n, struct ids *out, struct err *e) {
    if (turn > 0 && k == TEMPLATE_YUAN_OLD && tok_encode(t, "\n", 1, 0, out, e)) return -1;
    if (turn == 0 && system && tok_encode(t, system, system_n, TOK_SPECIAL, out, e)) return -1;
    if (put_user(t, turn, user, user_n, out, e)) return -1;
    return ids_push(out, t->sep, e);
}

/* NEW is defined as one string answer + "<eod>\n": the same ids, since no special string spans the seam. */
int template_target(const struct tok *t, enum tok_template k, const char *answer, size_t answer_n,
                    struct ids *out, struct err *e) {
    if (tok_encode(t, answer, answer_n, TOK_SPECIAL, out, e) || ids_push(out, t->eod, e)) return -1;
    return k == TEMPLATE_YUAN_NEW ? tok_encode(t, "\n", 1, 0, out, e) : 0;
}
