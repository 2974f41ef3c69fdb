/* cli/chat.c - qlora chat: a conversation, one answer, or the answers to a file of prompts. */
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/print.h"
#include "base/stop.h"
#include "base/sys.h"
#include "cli/cli_internal.h"
#include "cli/session.h"
#include "model/generate.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

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
    struct str system, history; /* system text; the conversation as text */
    struct str active;         /* comma list of the adapters in force */
};

/* A cache for at least `tokens`. It doubles, so that a long conversation is seldom read anew. */
static int make_room(struct talk *t, int64_t tokens, struct err *e) {
    int64_t most = t->s.model.config.max_positions, twice = 2 * t->g.capacity < most ? 2 * t->g.capacity : most;
    if (t->g.capacity >= tokens) return 0;
    if (tokens < twice) tokens = twice;
    generator_close(&t->g);
    t->fed = 0;
    return generator_open(&t->g, &t->s.model, t->s.adapters ? &t->s.lora : NULL, t->s.adapters, tokens, e);
}

static void forget(struct talk *t) {
    t->said.n = t->fed = 0, t->turn = 0;
    str_free(&t->history);
    if (t->g.be) generator_reset(&t->g);
}

/* Continues after t->said; the new tokens are appended there. The text goes to `out` and, with show, to the screen. */
static int answer(struct talk *t, int show, struct str *out, struct err *e) {
    int64_t left = t->o->max_new_tokens, need = (int64_t)t->said.n + left;
    struct tok_stream stream = {.flags = t->o->skip_special ? TOK_SKIP_SPECIAL : 0};
    int32_t stop = t->s.tok ? tok_eod(t->s.tok) : (int32_t)t->s.model.config.eod;
    if (need > t->s.model.config.max_positions)
        need = (int64_t)t->said.n >= t->s.model.config.max_positions ? (int64_t)t->said.n + 1 : t->s.model.config.max_positions;
    if (make_room(t, need, e)) return -1;
    size_t shown = out->n;
    for (; left > 0 && (int64_t)t->said.n < t->g.capacity; left--) {
        if (generator_feed(&t->g, t->said.p + t->fed, (int64_t)(t->said.n - t->fed), e)) return -1;
        t->fed = t->said.n;
        int32_t id = sample_next(&t->how, t->g.logits, t->s.ids, t->said.p, (int64_t)t->said.n, e);
        if (id < 0) return -1;
        if (id == stop) {
            if (t->s.tok && !t->o->skip_special) tok_stream_id(t->s.tok, &stream, id, out);
            break;
        }
        if (ids_push(&t->said, id, e)) return -1;
        if (t->s.tok) tok_stream_id(t->s.tok, &stream, id, out);
        if (show && out->n > shown) print_bytes(out->p + shown, out->n - shown), print_flush(), shown = out->n;
        if (stop_requested()) break;
    }
    if (t->s.tok) tok_stream_end(t->s.tok, &stream, out);
    if (show && out->n > shown) print_bytes(out->p + shown, out->n - shown);
    return out->oom ? err_set(e, ERR_RUN, "out of memory: the answer") : 0;
}

/* Appends a user's turn behind what was said: end of the last answer, then the source. */
static int ask(struct talk *t, const char *text, size_t n, struct err *e) {
    if (!t->s.tok) return err_set(e, ERR_INPUT, "the model's folder has no tokenizer.model; give the prompt with --ids");
    if (t->turn && template_target(t->s.tok, t->kind, "", 0, &t->said, e)) return -1;
    return template_source(t->s.tok, t->kind, t->turn++, t->system.p, t->system.n, text, n, &t->said, e);
}

static int print_json(struct talk *t, const char *prompt, size_t first, const struct str *text, struct err *e) {
    struct str out = {0};
    str_putc(&out, '{');
    if (prompt) str_puts(&out, "\"prompt\":"), str_json(&out, prompt, strlen(prompt)), str_putc(&out, ',');
    if (t->s.tok) str_puts(&out, "\"answer\":"), str_json(&out, text->p ? text->p : "", text->n), str_putc(&out, ',');
    cli_add_ids(&out, "\"ids\":[", t->said.p + first, (int64_t)(t->said.n - first));
    str_puts(&out, "}\n");
    int r = out.oom ? err_set(e, ERR_RUN, "out of memory: the answer") : 0;
    if (!r) print_bytes(out.p, out.n), print_flush();
    str_free(&out);
    return r;
}

/* Of a model without a tokenizer: "5 17 3". */
static int print_ids(const struct talk *t, size_t first, struct err *e) {
    struct str out = {0};
    for (size_t i = first; i < t->said.n; i++) str_printf(&out, "%d%c", t->said.p[i], i + 1 < t->said.n ? ' ' : '\n');
    int r = out.oom ? err_set(e, ERR_RUN, "out of memory: the answer") : 0;
    if (!r) print_bytes(out.p, out.n);
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
    else if (!r && t->s.tok) print_text("\n");
    else if (!r) r = print_ids(t, first, e);
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

/* ---- the conversation ---- */

static int set_text(struct str *s, const char *text, struct err *e) {
    str_clear(s);
    str_puts(s, text);
    if (!s->oom) return 0;
    str_free(s); /* the next one may have room */
    return err_set(e, ERR_RUN, "out of memory: the conversation");
}

static const char *last_part(const char *path, size_t n) {
    size_t i = n;
    while (i && path[i - 1] != '/') i--;
    return path + i;
}

/* The folder of an adapter as typed: the last part of one from the command line, or a path. */
static int add_adapter(const struct talk *t, const char *name, size_t n, struct str *dirs, struct err *e) {
    const char *given = t->o->train.adapter_name_or_path, *p = given ? given : "";
    for (; *p; p += *p == ',') {
        size_t length = strcspn(p, ",");
        const char *last = last_part(p, length);
        if ((length == n && !strncmp(p, name, n)) || ((size_t)(p + length - last) == n && !strncmp(last, name, n))) break;
        p += length;
    }
    if (*p) name = p, n = strcspn(p, ",");
    char path[3100];
    snprintf(path, sizeof path, "%.*s/adapter_config.json", (int)(n < 3000 ? n : 3000), name);
    if (!path_is_file(path))
        return err_set(e, ERR_INPUT,
                       "\"%.*s\" is neither the name of an adapter from the command line%s%s%s nor the folder of one", (int)n,
                       name, given ? " (" : "", given ? given : "", given ? ")" : "");
    str_printf(dirs, "%s%.*s", dirs->n ? "," : "", (int)n, name);
    return 0;
}

/* "NAME", "A,B" or "none". The conversation stays; it is read anew with the other weights. */
static int switch_adapter(struct talk *t, const char *names, struct err *e) {
    struct str dirs = {0};
    int r = 0, none = !strcmp(names, "none");
    for (const char *p = names; !none && !r && *p; p += *p == ',') {
        size_t n = strcspn(p, ",");
        r = add_adapter(t, p, n, &dirs, e);
        p += n;
    }
    if (!r && dirs.oom) r = err_set(e, ERR_RUN, "out of memory: the adapter");
    if (!r) {
        generator_close(&t->g);
        t->fed = 0;
        r = session_adapters(&t->s, dirs.p, e) || set_text(&t->active, dirs.p ? dirs.p : "", e) ? -1 : 0;
    }
    str_free(&dirs);
    return r;
}

static void show_adapters(const struct talk *t) {
    const char *given = t->o->train.adapter_name_or_path;
    fprintf(stderr, "In force: %s. From the command line: %s.\n", t->active.n ? t->active.p : "none", given ? given : "none");
}

static const char help[] = "  /clear          forget the conversation\n"
                           "  /system TEXT    set the system text and begin anew; without TEXT: none\n"
                           "  /adapter NAME   answer with this adapter (A,B: with both), none: without; alone: say which\n"
                           "  /history        print the conversation\n"
                           "  /help           this text\n"
                           "  /exit           leave\n"
                           "A message that begins with // is sent with one slash. `clear` and `exit` work, too.\n";

/* A line that is not a message. 1: leave, 0: done, -1: e. */
static int command(struct talk *t, const char *line, struct err *e) {
    static const char *const names[] = {"clear", "system", "adapter", "history", "help", "exit", NULL};
    enum { CLEAR, SYSTEM, ADAPTER, HISTORY, HELP, EXIT };
    size_t n = strcspn(line, " \t");
    const char *rest = line + n + strspn(line + n, " \t");
    char word[32];
    int k = 0;
    snprintf(word, sizeof word, "%.*s", (int)(n < 31 ? n : 31), line);
    while (names[k] && strcmp(names[k], word)) k++;
    switch (k) {
    case CLEAR:
        forget(t);
        fprintf(stderr, "History has been removed.\n");
        return 0;
    case SYSTEM:
        forget(t);
        fprintf(stderr, "System text %s; the conversation begins anew.\n", *rest ? "set" : "removed");
        return set_text(&t->system, rest, e);
    case ADAPTER:
        if (*rest && switch_adapter(t, rest, e)) return -1;
        return show_adapters(t), 0;
    case HISTORY:
        fputs(t->history.n ? t->history.p : "Nothing was said yet.\n", stderr);
        return 0;
    case HELP:
        fputs(help, stderr);
        return 0;
    case EXIT:
        return 1;
    }
    const char *near = nearest_word(word, names);
    return err_set(e, ERR_INPUT, "unknown command /%s%s%s%s (/help lists all)", word, near ? ", did you mean /" : "",
                   near ? near : "", near ? "?" : "");
}

static int say(struct talk *t, const char *line, size_t n, struct err *e) {
    struct str text = {0};
    if ((int64_t)t->said.n + (int64_t)n + 64 > t->s.model.config.max_positions && t->said.n) {
        forget(t);
        fprintf(stderr, "The conversation is longer than the model's %lld positions; it starts anew.\n",
                (long long)t->s.model.config.max_positions);
    }
    if (ask(t, line, n, e)) return -1;
    fprintf(stderr, "Assistant: ");
    int r = answer(t, 1, &text, e);
    print_text("\n"), print_flush();
    str_printf(&t->history, "User: %s\nAssistant: %s\n", line, text.p ? text.p : "");
    str_free(&text);
    return r;
}

/* The next line of standard input without its end; one that is too long comes in pieces. 0: there is none, or a signal. */
struct input { char p[1 << 16]; size_t n, used; };
static int next_line(struct input *in, char **line, struct err *e) {
    in->n -= in->used;
    memmove(in->p, in->p + in->used, in->n);
    in->used = 0;
    for (;;) {
        char *end = memchr(in->p, '\n', in->n);
        if (end || in->n == sizeof in->p - 1) {
            in->used = end ? (size_t)(end + 1 - in->p) : in->n;
            break;
        }
        if (stop_wait_input(STDIN_FILENO)) return 0;
        ssize_t r = sys_read(STDIN_FILENO, in->p + in->n, sizeof in->p - 1 - in->n);
        if (r < 0) return err_errno(e, ERR_RUN, "standard input cannot be read");
        if (!r && !in->n) return 0;
        if (!r) in->p[in->n++] = '\n'; /* the last line has no end */
        in->n += (size_t)r;
    }
    size_t length = in->used;
    while (length && (in->p[length - 1] == '\n' || in->p[length - 1] == '\r')) length--;
    if (length == in->used) { /* a piece: make room for its end */
        memmove(in->p + length + 1, in->p + length, in->n - length);
        in->n++, in->used++;
    }
    in->p[length] = 0;
    *line = in->p;
    return 1;
}

static int converse(struct talk *t, struct err *e) {
    struct input in = {.n = 0};
    char *line;
    fprintf(stderr, "Type a message; /help lists commands, /exit leaves.\n");
    for (;;) {
        fprintf(stderr, "\nUser: ");
        int got = next_line(&in, &line, e);
        if (got <= 0) return got;
        if (!*line) continue;
        int word = !strcmp(line, "exit") || !strcmp(line, "clear");
        if (word || (line[0] == '/' && line[1] != '/')) {
            struct err problem = {0}; /* the user is there: say it and go on */
            int r = command(t, line + !word, &problem);
            if (r > 0) return 0;
            if (r) err_print(&problem);
            continue;
        }
        const char *message = line + (line[0] == '/');
        if (say(t, message, strlen(message), e)) return -1;
        if (stop_requested()) return 0;
    }
}

int cmd_chat(struct options *o, struct err *e) {
    struct talk t = {.o = o,
                     .kind = o->train.data.compat_new ? TEMPLATE_YUAN_NEW : TEMPLATE_YUAN_OLD,
                     .how = {.greedy = !o->do_sample,
                             .temperature = o->temperature,
                             .top_p = o->top_p,
                             .top_k = o->top_k,
                             .repetition_penalty = o->repetition_penalty,
                             .seed = o->train.seed}};
    int r = -1;
    if ((o->prompt != NULL) + (o->ids != NULL) + (o->file != NULL) > 1) {
        err_set(e, ERR_INPUT, "chat takes one of --prompt, --ids and --file");
        return e->code;
    }
    log_quiet = o->json;
    if (session_open(&t.s, o, e) || set_text(&t.system, o->system ? o->system : "", e) ||
        set_text(&t.active, o->train.adapter_name_or_path ? o->train.adapter_name_or_path : "", e))
        goto out;
    if (o->ids) r = cli_read_ids(o->ids, t.s.ids, &t.said, e) || one(&t, NULL, e) ? -1 : 0;
    else if (o->prompt) r = ask(&t, o->prompt, strlen(o->prompt), e) || one(&t, o->prompt, e) ? -1 : 0;
    else if (o->file) r = answer_file(&t, o->file, e);
    else
        r = make_room(&t, t.s.model.config.max_positions < CONTEXT ? t.s.model.config.max_positions : CONTEXT, e) ||
                    converse(&t, e)
                ? -1
                : 0;
out:
    str_free(&t.system), str_free(&t.history), str_free(&t.active);
    ids_free(&t.said), generator_close(&t.g), session_close(&t.s);
    return r ? e->code : stop_requested() ? 128 + stop_requested() : 0;
}
