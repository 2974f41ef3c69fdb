/* datasets/convert.c - a record becomes a conversation: user, assistant, user, ..., and a system text.
 *
 * Two kinds of trouble. What an odd record may well look like (null, a role out of turn, no answer) drops
 * that record and is counted. What can only mean a wrong column map or a broken file (a number where text
 * belongs, a message without its role key) is an error, because it would drop everything. */
#include "base/sys.h"
#include "datasets/datasets_internal.h"
#include <stdio.h>
#include <string.h>

struct work {
    const struct data_config *c;
    const struct source *s;
    const struct cJSON *json;
    const struct record *r;
    struct conversation *out;
    struct err *e;
};

static const char *kind_of(const struct cJSON *v) {
    return cJSON_IsObject(v)   ? "an object"
           : cJSON_IsArray(v)  ? "a list"
           : cJSON_IsString(v) ? "a text"
           : cJSON_IsNumber(v) ? "a number"
           : cJSON_IsNull(v)   ? "null"
                               : "true or false";
}

static int wrong(struct work *w, const char *key, const char *need, const struct cJSON *v) {
    char keys[300];
    return record_error(w->r, 0, w->e, "\"%.100s\" must be %s, it is %s; the record has %s", key, need,
                        kind_of(v), key_list(keys, sizeof keys, w->json));
}

static int drop(struct work *w, enum drop why, const char *text) {
    w->out->drop = why;
    snprintf(w->out->why, sizeof w->out->why, "%s", text);
    return 0;
}

/* The value of a column; NULL for a column that is not mapped, absent or null. */
static const struct cJSON *column(struct work *w, enum column k) {
    const struct cJSON *v = w->s->column[k] ? json_get(w->json, w->s->column[k]) : NULL;
    if (v) w->out->seen |= 1u << k;
    return cJSON_IsNull(v) ? NULL : v;
}

static int column_text(struct work *w, enum column k, const char **text) {
    const struct cJSON *v = column(w, k);
    *text = v ? v->valuestring : NULL;
    return !v || cJSON_IsString(v) ? 0 : wrong(w, w->s->column[k], "a text", v);
}

static int add(struct work *w, const char *text) {
    struct conversation *v = w->out;
    if (v->count == v->cap) {
        int cap = v->cap ? 2 * v->cap : 8;
        struct message *p = sys_grow(v->message, (size_t)cap * sizeof *p, "messages", w->e);
        if (!p) return -1;
        v->message = p, v->cap = cap;
    }
    v->message[v->count++] = (struct message){.text = text};
    return 0;
}

/* Adds a message whose text was put together here; takes s over. */
static int add_owned(struct work *w, struct str *s) {
    if (s->oom || (!s->p && !(s->p = text_copy("", 0)))) {
        str_free(s);
        return err_set(w->e, ERR_RUN, "out of memory: a message");
    }
    if (add(w, s->p)) {
        str_free(s);
        return -1;
    }
    w->out->message[w->out->count - 1].owned = s->p;
    return 0;
}

/* ---- alpaca ---- */

static int add_history(struct work *w) {
    const struct cJSON *history = column(w, COL_HISTORY), *pair;
    if (!cJSON_IsArray(history))
        return 0; /* null, or a text as in some CSV files: ignored, as LLaMA-Factory does */
    cJSON_ArrayForEach(pair, history) {
        const struct cJSON *user = cJSON_GetArrayItem(pair, 0), *answer = cJSON_GetArrayItem(pair, 1);
        if (!cJSON_IsArray(pair) || cJSON_GetArraySize(pair) != 2)
            return wrong(w, w->s->column[COL_HISTORY], "a list of [question, answer] pairs", pair);
        if (cJSON_IsNull(user) || cJSON_IsNull(answer)) return drop(w, DROP_NULL, "null in its history");
        if (!cJSON_IsString(user) || !cJSON_IsString(answer))
            return wrong(w, w->s->column[COL_HISTORY], "a list of pairs of texts",
                         cJSON_IsString(user) ? answer : user);
        if (add(w, user->valuestring) || add(w, answer->valuestring)) return -1;
    }
    return 0;
}

/* Prompt and query joined by a line feed. OLD writes it even behind an empty prompt. */
static int add_question(struct work *w) {
    const char *prompt, *query;
    if (column_text(w, COL_PROMPT, &prompt) || column_text(w, COL_QUERY, &query)) return -1;
    int join = query && *query && prompt && (*prompt || !w->c->compat_new);
    if (!join) return add(w, query && *query ? query : prompt ? prompt : "");
    struct str s = {0};
    str_puts(&s, prompt);
    str_putc(&s, '\n');
    str_puts(&s, query);
    return add_owned(w, &s);
}

static int add_answer(struct work *w) {
    const struct cJSON *v = column(w, COL_RESPONSE);
    if (cJSON_IsArray(v) && cJSON_GetArraySize(v) == 1 && !w->c->compat_new)
        v = v->child; /* OLD: a list of answers */
    if (cJSON_IsString(v)) return add(w, v->valuestring);
    if (v && !cJSON_IsArray(v)) return wrong(w, w->s->column[COL_RESPONSE], "a text", v);
    return drop(w, DROP_ANSWER, v ? "a list of answers where one is needed" : "no answer");
}

static int from_alpaca(struct work *w) {
    if (add_history(w) || w->out->drop) return w->out->drop ? 0 : -1;
    if (add_question(w)) return -1;
    return w->c->stage == STAGE_PT ? 0 : add_answer(w);
}

/* ---- sharegpt ---- */

static int is_tag(const struct source *s, enum tag k, const char *role) {
    return s->tag[k] && !strcmp(s->tag[k], role);
}

/* The calls that an answer holds in place of text, if any. */
static const struct cJSON *calls_of(const struct cJSON *m) {
    const struct cJSON *calls = json_get(m, "tool_calls");
    return cJSON_IsArray(calls) && calls->child ? calls : NULL;
}

/* The role and text of a message; *text NULL for null, or none where there are calls. */
static int read_message(struct work *w, const struct cJSON *m, int number, const char **role,
                        const char **text) {
    const char *key[2] = {w->s->tag[TAG_ROLE], w->s->tag[TAG_CONTENT]}, **out[2] = {role, text};
    char keys[300];
    if (!cJSON_IsObject(m)) return wrong(w, w->s->column[COL_MESSAGES], "a list of objects", m);
    *text = NULL;
    for (int k = 0; k < 2; k++) {
        const struct cJSON *v = json_get(m, key[k]);
        if (!v && k && calls_of(m)) return 0;
        if (!v)
            return record_error(w->r, 0, w->e,
                                "message %d has no \"%.60s\", it has %s; name the keys in dataset_info.json "
                                "(tags: role_tag, content_tag)",
                                number, key[k], key_list(keys, sizeof keys, m));
        if (!cJSON_IsString(v) && !cJSON_IsNull(v)) return wrong(w, key[k], "a text", v);
        *out[k] = cJSON_IsNull(v) ? NULL : v->valuestring;
    }
    return 0;
}

/* The system text: the first message if it has that role (then *messages starts behind it), else the column.
 * */
static int read_system(struct work *w, const struct cJSON **first, int *number) {
    const char *role, *text = NULL;
    if (column_text(w, COL_SYSTEM, &w->out->system)) return -1;
    if (!*first || !w->s->tag[TAG_SYSTEM]) return 0;
    if (read_message(w, *first, 1, &role, &text)) return -1;
    if (!role || !is_tag(w->s, TAG_SYSTEM, role)) return 0;
    w->out->system = text;
    *first = (*first)->next;
    ++*number;
    return 0;
}

/* calls: take the place of the text. */
static int add_message(struct work *w, const char *role, const char *text, int is_call, const struct cJSON *calls) {
    struct str s = {0};
    if (!text && !calls) return drop(w, DROP_NULL, "null as the text of a message");
    if (!is_call && !calls) return add(w, text);
    if (!(calls ? tools_calls_text(calls, &s) : tools_call_text(text, w->c->compat_new, &s))) return add_owned(w, &s);
    int oom = s.oom;
    str_free(&s);
    if (oom) return err_set(w->e, ERR_RUN, "out of memory: a function call");
    char why[100];
    snprintf(why, sizeof why, "Invalid JSON format in function message (role %.40s)", role);
    return drop(w, DROP_CALL, why);
}

static int add_tools(struct work *w) {
    const struct cJSON *tools = column(w, COL_TOOLS);
    struct str s = {0};
    if (!tools || (cJSON_IsString(tools) && !*tools->valuestring)) return 0;
    if (!cJSON_IsString(tools) && !cJSON_IsArray(tools))
        return wrong(w, w->s->column[COL_TOOLS], "a text", tools);
    const char *system = w->out->system && *w->out->system ? w->out->system : w->c->default_system;
    if (system) str_puts(&s, system);
    int bad = tools_list_text(tools, w->c->compat_new, &s);
    if (bad || s.oom) {
        int oom = s.oom;
        str_free(&s);
        return oom ? err_set(w->e, ERR_RUN, "out of memory: tools")
                   : drop(w, DROP_CALL, "Invalid JSON format in tool description");
    }
    w->out->system = w->out->owned_system = s.p;
    return 0;
}

static int is_response(const struct work *w, const struct cJSON *m) {
    const struct cJSON *role = json_get(m, w->s->tag[TAG_ROLE]);
    return w->s->openai && cJSON_IsString(role) && is_tag(w->s, TAG_OBSERVATION, role->valuestring);
}

/* formatting openai: responses of tools from *m on are one message, joined as LLaMA-Factory joins them; *m becomes the last of
 * them. Behind the last answer they are left out, as there. */
static int add_responses(struct work *w, const struct cJSON **m, int *left, int *number) {
    struct str s = {0};
    for (int first = 1;; first = 0, *m = (*m)->next, --*left, ++*number) {
        const char *role, *text;
        if (read_message(w, *m, *number, &role, &text)) return str_free(&s), -1;
        if (!text) return str_free(&s), drop(w, DROP_NULL, "null as the text of a message");
        str_printf(&s, "%s%s", first ? "" : "\n</tool_response>\n<tool_response>\n", text);
        if (*left == 1 || !is_response(w, (*m)->next)) break;
    }
    if (*left > 1) return add_owned(w, &s);
    const int oom = s.oom;
    str_free(&s);
    return oom ? err_set(w->e, ERR_RUN, "out of memory: a message") : 0;
}

static int from_sharegpt(struct work *w) {
    struct conversation *out = w->out;
    const struct cJSON *messages = column(w, COL_MESSAGES), *m;
    if (!messages) return drop(w, DROP_NULL, "no messages");
    if (!cJSON_IsArray(messages)) return wrong(w, w->s->column[COL_MESSAGES], "a list of messages", messages);
    int number = 1, left;
    m = messages->child;
    if (read_system(w, &m, &number)) return -1;
    left = cJSON_GetArraySize(messages) - (number - 1);
    if (!w->c->compat_new && !w->s->openai) {
        left -= left % 2; /* OLD cuts an odd last message off */
        if (!left) return drop(w, DROP_VANISHED, "no messages");
    }
    for (; left > 0; m = m->next, left--, number++) {
        const char *role, *text;
        if (read_message(w, m, number, &role, &text)) return -1;
        int answers = out->count % 2, is_call = role && is_tag(w->s, TAG_FUNCTION, role);
        if (!role || !(answers ? is_call || is_tag(w->s, TAG_ASSISTANT, role)
                               : is_tag(w->s, TAG_USER, role) || is_tag(w->s, TAG_OBSERVATION, role))) {
            char why[160];
            snprintf(why, sizeof why, "Invalid role tag \"%.40s\" in message %d, \"%.40s\" is expected",
                     role ? role : "null", number, w->s->tag[answers ? TAG_ASSISTANT : TAG_USER]);
            out->odd_count = out->count % 2;
            return drop(w, DROP_ROLE, why);
        }
        if (is_response(w, m) ? add_responses(w, &m, &left, &number)
                              : add_message(w, role, text, is_call, answers ? calls_of(m) : NULL))
            return -1;
        if (out->drop) return 0;
    }
    if (w->s->openai && !w->c->compat_new && out->count % 2) sys_free(out->message[--out->count].owned);
    if (w->s->openai && !w->c->compat_new && !out->count) return drop(w, DROP_VANISHED, "no messages");
    if (out->count % 2) {
        out->odd_count = 1;
        return drop(w, DROP_COUNT, "Invalid message count: the last message has no answer");
    }
    if (!out->count) return drop(w, DROP_ANSWER, "no messages");
    return add_tools(w);
}

int convert_record(const struct data_config *c, const struct source *s, const struct cJSON *json,
                   const struct record *r, struct conversation *out, struct err *e) {
    struct work w = {c, s, json, r, out, e};
    if (s->format == FORMAT_SHAREGPT) return from_sharegpt(&w);
    if (column_text(&w, COL_SYSTEM, &out->system) || from_alpaca(&w)) return -1;
    return out->drop || !w.c->compat_new ? 0 : add_tools(&w);
}

void conversation_free(struct conversation *v) {
    for (int i = 0; i < v->count; i++) sys_free(v->message[i].owned);
    sys_free(v->message);
    sys_free(v->owned_system);
}
