/* cli/chat.c - qlora chat: a conversation, one answer, or the answers to a file of prompts. */
#include "base/json.h"
#include "base/log.h"
#include "base/stop.h"
#include "base/sys.h"
#include "cli/cli_internal.h"
#include "cli/session.h"
#include "model/generate.h"
#include <stdio.h>
#include <string.h>

enum { CONTEXT = 4096 };

struct talk {
    struct session s;
    const struct options *o;
    struct generator g;
    struct sampling how;
    enum tok_template kind;
    struct ids said;           /* all tokens of the conversation, fed or not */
    size_t fed;
    int turn;
};

/* A cache for at least `tokens`. */
static int make_room(struct talk *t, int64_t tokens, struct err *e) {
    if (t->g.capacity >= tokens) return 0;
    generator_close(&t->g);
    t->fed = 0;
    return generator_open(&t->g, &t->s.model, t->s.adapters ? &t->s.lora : NULL, t->s.adapters, tokens, e);
}

static void forget(struct talk *t) {
    t->said.n = t->fed = 0, t->turn = 0;
    if (t->g.be) generator_reset(&t->g);
}

/* Continues after t->said; the new tokens are appended there. The text goes to `out` and, with show, to the screen. */
static int answer(struct talk *t, int show, struct str *out, struct err *e) {
    int64_t left = t->o->max_new_tokens, need = (int64_t)t->said.n + left;
    struct tok_stream stream = {.flags = TOK_SKIP_SPECIAL};
    int32_t stop = t->s.tok ? tok_eod(t->s.tok) : (int32_t)t->s.model.config.eod;
    if (need > t->s.model.config.max_positions) need = (int64_t)t->said.n >= t->s.model.config.max_positions ? (int64_t)t->said.n + 1 : t->s.model.config.max_positions;
    if (make_room(t, need, e)) return -1;
    size_t shown = out->n;
    for (; left > 0 && (int64_t)t->said.n < t->g.capacity; left--) {
        if (generator_feed(&t->g, t->said.p + t->fed, (int64_t)(t->said.n - t->fed), e)) return -1;
        t->fed = t->said.n;
        int32_t id = sample_next(&t->how, t->g.logits, t->s.ids, t->said.p, (int64_t)t->said.n, e);
        if (id < 0) return -1;
        if (id == stop) break;
        if (ids_push(&t->said, id, e)) return -1;
        if (t->s.tok) tok_stream_id(t->s.tok, &stream, id, out);
        if (show && out->n > shown) fwrite(out->p + shown, 1, out->n - shown, stdout), fflush(stdout), shown = out->n;
        if (stop_requested()) break;
    }
    if (t->s.tok) tok_stream_end(t->s.tok, &stream, out);
    if (show && out->n > shown) fwrite(out->p + shown, 1, out->n - shown, stdout);
    return out->oom ? err_set(e, ERR_RUN, "out of memory: the answer") : 0;
}

/* Appends a user's turn behind what was said: end of the last answer, then the source. */
static int ask(struct talk *t, const char *text, size_t n, struct err *e) {
    if (!t->s.tok) return err_set(e, ERR_INPUT, "the model's folder has no tokenizer.model; give the prompt with --ids");
    if (t->turn && template_target(t->s.tok, t->kind, "", 0, &t->said, e)) return -1;
    const char *system = t->o->system;
    return template_source(t->s.tok, t->kind, t->turn++, system, system ? strlen(system) : 0, text, n, &t->said, e);
}

static int print_json(struct talk *t, const char *prompt, size_t first, const struct str *text, struct err *e) {
    struct str out = {0};
    str_putc(&out, '{');
    if (prompt) str_puts(&out, "\"prompt\":"), str_json(&out, prompt, strlen(prompt)), str_putc(&out, ',');
    if (t->s.tok) str_puts(&out, "\"answer\":"), str_json(&out, text->p ? text->p : "", text->n), str_putc(&out, ',');
    cli_add_ids(&out, "\"ids\":[", t->said.p + first, (int64_t)(t->said.n - first));
    str_puts(&out, "}\n");
    int r = out.oom ? err_set(e, ERR_RUN, "out of memory: the answer") : 0;
    if (!r) fwrite(out.p, 1, out.n, stdout), fflush(stdout);
    str_free(&out);
    return r;
}

/* One answer to what was said. */
static int one(struct talk *t, const char *prompt, struct err *e) {
    struct str text = {0};
    size_t first = t->said.n;
    if (!first) return err_set(e, ERR_INPUT, "the prompt is empty");
    int r = answer(t, !t->o->json, &text, e);
    if (!r && t->o->json) r = print_json(t, prompt, first, &text, e);
    else if (!r && t->s.tok) puts("");
    else if (!r)
        for (size_t i = first; i < t->said.n; i++) printf("%d%c", t->said.p[i], i + 1 < t->said.n ? ' ' : '\n');
    str_free(&text);
    return r;
}

static int answer_file(struct talk *t, const char *path, struct err *e) {
    struct lines l;
    struct cJSON *j;
    char where[600];
    int r = lines_open(&l, path, e);
    while (!r && (r = lines_next(&l, &j, e)) > 0) {
        static const char *const known[] = {"prompt", NULL};
        const char *prompt = NULL;
        snprintf(where, sizeof where, "%.500s line %lld", l.name, (long long)l.line);
        r = json_known_keys(j, known, where, e) ? -1 : json_str(j, "prompt", &prompt, where, e);
        if (!r) r = err_set(e, ERR_INPUT, "%s: the key \"prompt\" is missing", where);
        forget(t);
        if (r > 0) r = ask(t, prompt, strlen(prompt), e) || one(t, prompt, e) ? -1 : 0;
        json_free(j);
        if (stop_requested()) break;
    }
    lines_close(&l);
    return r;
}

static int converse(struct talk *t, struct err *e) {
    char line[1 << 16];
    fprintf(stderr, "Type a message; `clear` forgets the conversation, `exit` leaves.\n");
    for (;;) {
        fprintf(stderr, "\nUser: ");
        if (!fgets(line, sizeof line, stdin) || stop_requested()) return 0;
        size_t n = strcspn(line, "\r\n");
        line[n] = 0;
        if (!strcmp(line, "exit")) return 0;
        if (!strcmp(line, "clear")) {
            forget(t);
            fprintf(stderr, "History has been removed.\n");
            continue;
        }
        if (!n) continue;
        if ((int64_t)t->said.n + (int64_t)n + 64 > t->s.model.config.max_positions) {
            forget(t);
            fprintf(stderr, "The conversation is longer than the model's %lld positions; it starts anew.\n", (long long)t->s.model.config.max_positions);
        }
        if (ask(t, line, n, e)) return -1;
        fprintf(stderr, "Assistant: ");
        struct str text = {0};
        int r = answer(t, 1, &text, e);
        puts("");
        str_free(&text);
        if (r || stop_requested()) return r;
    }
}

int cmd_chat(struct options *o, struct err *e) {
    struct talk t = {.o = o, .kind = o->train.data.compat_new ? TEMPLATE_YUAN_NEW : TEMPLATE_YUAN_OLD,
                     .how = {.greedy = !o->do_sample, .temperature = o->temperature, .top_p = o->top_p, .top_k = o->top_k, .repetition_penalty = o->repetition_penalty, .seed = o->train.seed}};
    int r = -1;
    if ((o->prompt != NULL) + (o->ids != NULL) + (o->file != NULL) > 1) {
        err_set(e, ERR_INPUT, "chat takes one of --prompt, --ids and --file");
        return e->code;
    }
    log_quiet = o->json;
    if (session_open(&t.s, o, e)) goto out;
    if (o->ids) r = cli_read_ids(o->ids, t.s.ids, &t.said, e) || one(&t, NULL, e) ? -1 : 0;
    else if (o->prompt) r = ask(&t, o->prompt, strlen(o->prompt), e) || one(&t, o->prompt, e) ? -1 : 0;
    else if (o->file) r = answer_file(&t, o->file, e);
    else r = make_room(&t, t.s.model.config.max_positions < CONTEXT ? t.s.model.config.max_positions : CONTEXT, e) || converse(&t, e) ? -1 : 0;
out:
    ids_free(&t.said), generator_close(&t.g), session_close(&t.s);
    return r ? e->code : stop_requested() ? 128 + stop_requested() : 0;
}
