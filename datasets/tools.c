/* datasets/tools.c - function calls and tool lists as text, in LLaMA-Factory's default tool format.
 *
 * The texts are part of the format: a model tuned elsewhere on such data has seen exactly these. Arguments
 * are written again as Python's json.dumps(ensure_ascii=False) would: ", " and ": ", whole numbers digit by
 * digit, others as repr(float). */
#include "datasets/datasets_internal.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Python's way of writing JSON; the text is valid (json_check) ---- */

static void skip_space(const char **p) {
    *p += strspn(*p, " \t\r\n");
}

/* The shortest digits that read back, as repr(float): plain from 1e-4 to below 1e16, else with an exponent.
 * */
static void dump_double(double x, struct str *out) {
    char text[40];
    int digits = 1;
    do snprintf(text, sizeof text, "%.*e", digits - 1, x);
    while (strtod(text, NULL) != x && ++digits <= 17);
    int exponent = atoi(strchr(text, 'e') + 1);
    if (exponent < -4 || exponent >= 16) {
        str_add(out, text, (size_t)(strchr(text, 'e') - text));
        str_printf(out, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
        return;
    }
    str_printf(out, "%.*f", digits - 1 - exponent > 1 ? digits - 1 - exponent : 1, x);
}

static void dump_number(const char **p, struct str *out) {
    size_t n = strspn(*p, "+-0123456789.eE");
    if (strcspn(*p, ".eE") < n)
        dump_double(strtod(*p, NULL), out);
    else if (n == 2 && !strncmp(*p, "-0", 2))
        str_putc(out, '0');
    else
        str_add(out, *p, n);
    *p += n;
}

static unsigned hex4(const char *p) {
    char text[5] = {p[0], p[1], p[2], p[3], 0};
    return (unsigned)strtoul(text, NULL, 16);
}

/* The string literal at *p, decoded. */
static void decode_string(const char **p, struct str *out) {
    static const char plain[] = "\"\\/bfnrt", meaning[] = "\"\\/\b\f\n\r\t";
    for (++*p; **p != '"';) {
        if (**p != '\\') {
            size_t n = strcspn(*p, "\"\\");
            str_add(out, *p, n);
            *p += n;
        } else if ((*p)[1] != 'u') {
            str_putc(out, meaning[strchr(plain, (*p)[1]) - plain]);
            *p += 2;
        } else {
            uint32_t u = hex4(*p + 2);
            *p += 6;
            if (u >= 0xd800 && u < 0xdc00) {
                u = 0x10000 + ((u - 0xd800) << 10) + (hex4(*p + 2) - 0xdc00);
                *p += 6;
            }
            str_utf8(out, u);
        }
    }
    ++*p;
}

static void encode_string(const char *p, size_t n, struct str *out) {
    static const char plain[] = "\"\\bfnrt", meaning[] = "\"\\\b\f\n\r\t";
    str_putc(out, '"');
    for (size_t i = 0; i < n; i++) {
        const char *known = strchr(meaning, p[i]);
        if (known)
            str_printf(out, "\\%c", plain[known - meaning]);
        else if ((unsigned char)p[i] < 32)
            str_printf(out, "\\u%04x", p[i]);
        else
            str_putc(out, p[i]);
    }
    str_putc(out, '"');
}

static void dump_string(const char **p, struct str *out) {
    struct str s = {0};
    decode_string(p, &s);
    encode_string(s.p ? s.p : "", s.n, out);
    out->oom |= s.oom;
    str_free(&s);
}

void tools_dump(const char **p, struct str *out) {
    skip_space(p);
    const char open = **p;
    if (open == '"') {
        dump_string(p, out);
    } else if (open == '{' || open == '[') {
        str_putc(out, open);
        for (++*p, skip_space(p); **p != open + 2;
             skip_space(p)) { /* '}' and ']' are two behind '{' and '[' */
            if (**p == ',') {
                ++*p;
                str_puts(out, ", ");
            }
            if (open == '{') {
                skip_space(p);
                dump_string(p, out);
                skip_space(p);
                ++*p;
                str_puts(out, ": ");
            }
            tools_dump(p, out);
        }
        str_putc(out, **p);
        ++*p;
    } else if (open == '-' || (open >= '0' && open <= '9')) {
        dump_number(p, out);
    } else {
        size_t n = strspn(*p, "abcdefghijklmnopqrstuvwxyz");
        str_add(out, *p, n);
        *p += n;
    }
}

/* ---- a function call ---- */

/* The object at *p: its "name", which must be a text, and its "arguments" written again. */
static int call_text(const char **p, struct str *out) {
    struct str name = {0}, arguments = {0}, key = {0}, other = {0};
    int has_name = 0, has_arguments = 0;
    if (**p != '{') return -1;
    for (++*p, skip_space(p); **p != '}'; skip_space(p)) {
        if (**p == ',') ++*p;
        skip_space(p);
        str_clear(&key);
        decode_string(p, &key);
        skip_space(p);
        ++*p;
        skip_space(p);
        if (key.p && !strcmp(key.p, "name") && **p == '"') {
            decode_string(p, &name);
            has_name = 1;
        } else if (key.p && !strcmp(key.p, "arguments")) {
            tools_dump(p, &arguments);
            has_arguments = 1;
        } else {
            str_clear(&other);
            tools_dump(p, &other);
        }
    }
    ++*p;
    int ok = has_name && has_arguments;
    if (ok)
        str_printf(out, "Action: %s\nAction Input: %s", name.p ? name.p : "", arguments.p ? arguments.p : "");
    out->oom |= name.oom | arguments.oom | key.oom | other.oom;
    str_free(&name);
    str_free(&arguments);
    str_free(&key);
    str_free(&other);
    return ok ? 0 : -1;
}

int tools_call_text(const char *content, int compat_new, struct str *out) {
    const char *p = content;
    struct err why = {0};
    int bad = json_check(content, strlen(content), NULL, &why);
    if (why.code == ERR_RUN) return out->oom = 1, -1;
    skip_space(&p);
    if (!bad && *p == '[' && compat_new) { /* several calls, a line each */
        for (++p, skip_space(&p); !bad && *p != ']'; skip_space(&p)) {
            if (*p == ',') ++p, str_putc(out, '\n');
            skip_space(&p);
            bad = call_text(&p, out);
        }
        return bad;
    }
    if (!bad) bad = call_text(&p, out);
    if (!bad || compat_new) return bad;
    str_puts(out, "Action: \nAction Input: "); /* OLD says nothing and goes on with both empty */
    return 0;
}

/* A parsed value in the same way. */
static void dump_tree(const struct cJSON *v, struct str *out) {
    const int object = cJSON_IsObject(v);
    const struct cJSON *x;
    if (object || cJSON_IsArray(v)) {
        str_putc(out, object ? '{' : '[');
        cJSON_ArrayForEach(x, v) {
            if (x != v->child) str_puts(out, ", ");
            if (object) encode_string(x->string, strlen(x->string), out), str_puts(out, ": ");
            dump_tree(x, out);
        }
        str_putc(out, object ? '}' : ']');
    } else if (cJSON_IsString(v)) {
        encode_string(v->valuestring, strlen(v->valuestring), out);
    } else if (cJSON_IsNumber(v)) {
        if (v->valuedouble == rint(v->valuedouble) && fabs(v->valuedouble) < 0x1p53) str_printf(out, "%.0f", v->valuedouble);
        else dump_double(v->valuedouble, out);
    } else {
        str_puts(out, cJSON_IsTrue(v) ? "true" : cJSON_IsFalse(v) ? "false" : "null");
    }
}

int tools_calls_text(const struct cJSON *calls, struct str *out) {
    const struct cJSON *call;
    cJSON_ArrayForEach(call, calls) {
        const struct cJSON *function = json_get(call, "function"), *name = json_get(function, "name"),
                           *arguments = json_get(function, "arguments");
        struct err why = {0};
        if (!cJSON_IsString(name) || !arguments) return -1;
        str_printf(out, "%sAction: %s\nAction Input: ", call == calls->child ? "" : "\n", name->valuestring);
        const char *text = cJSON_IsString(arguments) ? arguments->valuestring : NULL;
        const int is_json = text && text[strspn(text, " \t\r\n")] == '{' && !json_check(text, strlen(text), NULL, &why);
        if (why.code == ERR_RUN) return out->oom = 1, -1;
        if (is_json) tools_dump(&text, out); /* OpenAI writes the object as a text */
        else dump_tree(arguments, out);
    }
    return 0;
}

/* ---- a list of tools ---- */

/* The text of a key, "" if there is none; -1 if it is something else. */
static int text_of(const struct cJSON *object, const char *key, const char **text) {
    const struct cJSON *v = json_get(object, key);
    *text = v ? v->valuestring : "";
    return !v || cJSON_IsString(v) ? 0 : -1;
}

static int is_in(const struct cJSON *list, const char *word) {
    const struct cJSON *v;
    cJSON_ArrayForEach(v, list) if (cJSON_IsString(v) && !strcmp(v->valuestring, word)) return 1;
    return 0;
}

static int parameter_text(const struct cJSON *parameter, int required, struct str *out) {
    const struct cJSON *choices = json_get(parameter, "enum"), *items = json_get(parameter, "items"), *v;
    const char *type, *description, *item_type;
    if (!cJSON_IsObject(parameter) || text_of(parameter, "type", &type) ||
        text_of(parameter, "description", &description))
        return -1;
    str_printf(out, "  - %s (%s%s): %s", parameter->string, type, required ? ", required" : "", description);
    if (choices && choices->child) {
        str_puts(out, ", should be one of [");
        cJSON_ArrayForEach(v, choices) {
            if (!cJSON_IsString(v)) return -1;
            str_printf(out, "%s%s", v == choices->child ? "" : ", ", v->valuestring);
        }
        str_putc(out, ']');
    }
    if (items && items->child) {
        if (text_of(items, "type", &item_type)) return -1;
        str_printf(out, ", where each item should be %s", item_type);
    }
    str_putc(out, '\n');
    return 0;
}

/* One tool: its block of text, and its name behind those before. */
static int tool_text(const struct cJSON *tool, int compat_new, struct str *out, struct str *names) {
    const char *name, *description, *type;
    const struct cJSON *wrapped = json_get(tool, "function"), *v;
    if (compat_new && wrapped && !text_of(tool, "type", &type) && !strcmp(type, "function")) tool = wrapped;
    const struct cJSON *parameters = json_get(tool, "parameters"),
                       *properties = json_get(parameters, "properties");
    if (!json_get(tool, "name") || !cJSON_IsObject(properties) || text_of(tool, "name", &name) ||
        text_of(tool, "description", &description))
        return -1;
    str_printf(out, "> Tool Name: %s\nTool Description: %s\nTool Args:\n", name, description);
    cJSON_ArrayForEach(
        v,
        properties) if (parameter_text(v, is_in(json_get(parameters, "required"), v->string), out)) return -1;
    str_putc(out, '\n');
    str_printf(names, "%s%s", names->n ? ", " : "", name);
    return 0;
}

int tools_list_text(const struct cJSON *tools, int compat_new, struct str *out) {
    struct err why = {0};
    struct cJSON *parsed = NULL;
    const struct cJSON *tool;
    struct str text = {0}, names = {0};
    int bad = 0;
    if (cJSON_IsString(tools)) {
        tools = parsed = json_parse(tools->valuestring, strlen(tools->valuestring), "tools", &why);
        bad = !parsed;
    }
    out->oom |= why.code == ERR_RUN;
    bad = bad || !(cJSON_IsArray(tools) || (cJSON_IsObject(tools) && !tools->child));
    if (!bad)
        cJSON_ArrayForEach(tool, tools) if ((bad = tool_text(tool, compat_new, &text, &names)) != 0) break;
    if (!bad && tools->child) {
        const char *stop = compat_new ? "" : "."; /* the two forms differ in two full stops */
        str_printf(
            out,
            "You have access to the following tools:\n%sUse the following format if using a tool:\n```\n"
            "Action: tool name (one of [%s])%s\nAction Input: the input to the tool, in a JSON format "
            "representing the "
            "kwargs (e.g. ```{\"input\": \"hello world\", \"num_beams\": 5}```)%s\n```\n",
            text.p ? text.p : "", names.p ? names.p : "", stop, stop);
    }
    out->oom |= text.oom | names.oom;
    str_free(&text);
    str_free(&names);
    json_free(parsed);
    return bad && compat_new ? -1 : 0; /* OLD goes on without tools */
}
