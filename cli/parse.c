/* cli/parse.c - command lines and files of flags to struct options, by the rules of Python's argparse and the Hugging Face
 * argument parser. Nothing is dropped silently: what is not understood is an error that names the nearest flag. */
#include "base/file.h"
#include "base/str.h"
#include "base/sys.h"
#include "cli/cli_internal.h"
#include <stdio.h>
#include <string.h>

enum { FILE_BYTES_MAX = 1 << 20, NAME_MAX_BYTES = 80 };

/* ---- names ---- */

/* `preview`, `estimate` and `bench` accept the flags of `train`, whatever they mean to them, so that one command line serves all. */
static unsigned accepted(enum command_id cmd) {
    return 1u << cmd | (cmd == CMD_PREVIEW || cmd == CMD_ESTIMATE || cmd == CMD_BENCH ? 1u << CMD_TRAIN : 0);
}

/* 2: name is one of the flag's names, 1: it begins one, 0: neither. */
static int matches(const struct flag *f, const char *name) {
    size_t n = strlen(name);
    int best = strncmp(f->name, name, n) ? 0 : f->name[n] ? 1 : 2;
    for (const char *a = f->aliases; a && *a && best < 2; a += strspn(a, " ")) {
        size_t k = strcspn(a, " ");
        if (k >= n && !strncmp(a, name, n)) best = k == n ? 2 : best ? best : 1;
        a += k;
    }
    return best;
}

/* The same for "no_" + name: of booleans that are on by default. Flags without effect must be written out. */
static int matches_negated(const struct flag *f, const char *name) {
    int found = f->kind == FLAG_BOOL ? matches(f, name) : 0;
    if (f->status == INERT) return found == 2 ? 2 : 0;
    return f->fallback && !strcmp(f->fallback, "true") ? found : 0;
}

static int unknown_flag(enum command_id cmd, const char *name, struct err *e) {
    static const char *const commands[] = {"train",    "preview", "score", "chat",   "tokenize",
                                           "quantize", "export",  "new",   "doctor", "eval", "estimate", "bench"};
    const char *names[FLAGS_MAX + 1];
    int n = 0;
    for (int i = 0; i < flag_count; i++) {
        if (flags[i].commands & accepted(cmd)) names[n++] = flags[i].name;
        for (int c = 0; c < (int)(sizeof commands / sizeof *commands); c++)
            if (!strcmp(flags[i].name, name) && flags[i].commands >> c & 1)
                return err_set(e, ERR_INPUT, "--%s is a flag of qlora %s, not of qlora %s", name, commands[c],
                               commands[cmd]);
    }
    names[n] = NULL;
    const char *near = nearest_word(name, names);
    return near ? err_set(e, ERR_INPUT, "unknown flag --%s, did you mean --%s? (qlora %s --help)", name, near,
                          commands[cmd])
                : err_set(e, ERR_INPUT, "unknown flag --%s (qlora %s --help lists all)", name, commands[cmd]);
}

int flag_find(enum command_id cmd, const char *typed, int *no, struct err *e) {
    char name[NAME_MAX_BYTES];
    size_t n = strlen(typed);
    if (cli_refuse_lookalike("flag", typed, e)) return -1;
    if (!n || n >= sizeof name) return err_set(e, ERR_INPUT, "\"--%.100s\" is not a flag", typed);
    for (size_t i = 0; i <= n; i++) name[i] = typed[i] == '-' ? '_' : typed[i];
    int found = -1;
    struct str several = {0};
    for (int i = 0; i < flag_count; i++) {
        if (!(flags[i].commands & accepted(cmd))) continue;
        int positive = matches(&flags[i], name);
        int negative = text_starts(name, "no_") ? matches_negated(&flags[i], name + 3) : 0;
        if (!positive && !negative) continue;
        *no = !positive;
        if (positive == 2 || negative == 2) return str_free(&several), i;
        str_printf(&several, "%s--%s%s", several.n ? ", " : "", positive ? "" : "no_", flags[i].name);
        found = found == -1 ? i : -2;
    }
    if (found == -2)
        err_set(e, ERR_INPUT, "--%s may mean %s", name, several.oom ? "several flags" : several.p);
    else if (found == -1)
        unknown_flag(cmd, name, e);
    else
        *no = text_starts(name, "no_") && !matches(&flags[found], name);
    str_free(&several);
    return found < 0 ? -1 : found;
}

/* ---- the whole line ---- */

static int set_default(struct options *o, const struct flag *f, struct err *e) {
    return f->status != USED || !f->fallback ? 0 : flag_store(o, f, f->fallback, f->name, e);
}

static int read_flag_file(enum command_id cmd, const char *path, struct options *o, struct err *e) {
    struct pairs pairs = {0};
    char *text = NULL, where[400];
    size_t n;
    int rc = -1, no;
    if (file_read_all(path, FILE_BYTES_MAX, &text, &n, e)) return -1;
    if (text_ends(path, ".json") ? json_pairs(text, n, path, &pairs, e)
                                 : yaml_parse(text, n, path, &pairs, e))
        goto out;
    for (int i = 0; i < pairs.n; i++) {
        const struct pair *p = &pairs.p[i];
        int row = flag_find(cmd, p->key, &no, e);
        int at = snprintf(where, sizeof where, "%.300s", path);
        if (p->line) at += snprintf(where + at, sizeof where - (size_t)at, ":%d", p->line);
        if (row < 0) {
            err_where(e, "%s", where);
            goto out;
        }
        snprintf(where + at, sizeof where - (size_t)at, ": %.80s", p->key);
        if (p->value && flag_set(o, row, p->key, p->value, where, e)) goto out;
    }
    rc = 0;
out:
    pairs_free(&pairs);
    sys_free(text);
    return rc;
}

/* key=value behind a file */
static int read_override(enum command_id cmd, const char *arg, struct options *o, struct err *e) {
    char name[NAME_MAX_BYTES];
    size_t n = strcspn(arg, "=");
    int no, row;
    if (n >= sizeof name) return err_set(e, ERR_INPUT, "\"%.100s\" is not of the form key=value", arg);
    memcpy(name, arg, n);
    name[n] = 0;
    if ((row = flag_find(cmd, name, &no, e)) < 0) return -1;
    return flag_set(o, row, name, arg + n + 1, name, e);
}

/* args[i] is "--name" or "--name=value". Returns how many arguments it took, or -1. */
static int read_flag(enum command_id cmd, char **args, int left, int with_file, struct options *o,
                     struct err *e) {
    char name[NAME_MAX_BYTES], where[NAME_MAX_BYTES + 8];
    const char *eq = strchr(args[0], '='), *value = eq ? eq + 1 : NULL;
    size_t n = eq ? (size_t)(eq - args[0]) - 2 : strlen(args[0]) - 2;
    while (n && cli_is_space(args[0][2 + n - 1])) n--;
    if (n >= sizeof name) return err_set(e, ERR_INPUT, "\"%.100s\" is not a flag", args[0]);
    memcpy(name, args[0] + 2, n);
    name[n] = 0;
    int no = 0, row = flag_find(cmd, name, &no, e), took = 1;
    if (row < 0) return -1;
    const struct flag *f = &flags[row];
    int next = !value && !no && left > 1 && !text_starts(args[1], "--");
    if (next && f->kind != FLAG_TEXT && cli_is_dash_lookalike(args[1]))
        return cli_refuse_lookalike("flag", args[1], e);
    if (next && f->kind == FLAG_BOOL &&
        (args[1][0] == '-' || !args[1][strspn(args[1], " \t\r\n")] || (with_file && strchr(args[1], '='))))
        next = 0;
    if (next) value = args[1], took = 2;
    /* `"q_proj",  "v_proj"` arrives from the shell as several arguments: behind a comma a list goes on */
    while (f->kind == FLAG_LIST && value && text_ends(value, ",") && took < left && !text_starts(args[took], "--")) {
        char joined[4096];
        int len = snprintf(joined, sizeof joined, "%s%s", value, args[took++]);
        if (len >= (int)sizeof joined) return err_set(e, ERR_INPUT, "--%s: the list is too long", name);
        if (!(value = options_keep(o, joined, (size_t)len, e))) return -1;
    }
    if (no && value) return err_set(e, ERR_INPUT, "--%s takes no value", name);
    snprintf(where, sizeof where, "--%s", name);
    return flag_set(o, row, name, no ? "false" : value, where, e) ? -1 : took;
}

static int is_flag_file(const char *arg) {
    return text_ends(arg, ".yaml") || text_ends(arg, ".yml") || text_ends(arg, ".json");
}

static int read_arguments(enum command_id cmd, int argc, char **argv, struct options *o, struct err *e) {
    int i = 0, with_file = 0;
    if (cmd == CMD_TRAIN || cmd == CMD_ESTIMATE || cmd == CMD_BENCH || cmd == CMD_PREVIEW || cmd == CMD_EXPORT || cmd == CMD_CHAT)
        for (; i < argc && (text_ends(argv[i], "train_bash.py") || text_ends(argv[i], "src/train.py") || !strcmp(argv[i], "train")); i++)
            o->train_script |= text_ends(argv[i], "train_bash.py");
    if (i < argc && argv[i][0] != '-' && is_flag_file(argv[i])) {
        if (read_flag_file(cmd, argv[i++], o, e)) return -1;
        with_file = 1;
    }
    while (i < argc) {
        char *a = argv[i];
        while (cli_is_space(*a)) a++; /* what a blank behind a backslash leaves */
        if (!*a) {
            i++;
        } else if (text_starts(a, "--") && a[2]) {
            char *first = argv[i];
            argv[i] = a;
            int took = read_flag(cmd, argv + i, argc - i, with_file, o, e);
            argv[i] = first;
            if (took < 0) return -1;
            i += took;
        } else if (with_file && *a != '-' && strchr(a, '=')) {
            if (read_override(cmd, a, o, e)) return -1;
            i++;
        } else if (cli_is_dash_lookalike(a)) {
            return cli_refuse_lookalike("flag", a, e);
        } else {
            return err_set(e, ERR_INPUT,
                           "\"%.200s\" is not understood here; flags begin with two hyphens: --name value",
                           a);
        }
    }
    return 0;
}

/* The command line as a shell would take it, for the model card. */
static int keep_command(struct options *o, int argc, char **argv, struct err *e) {
    struct str s = {0};
    str_puts(&s, "qlora train");
    for (int i = 0; i < argc; i++) {
        int plain =
            argv[i][0] && !argv[i][strspn(argv[i], "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                                   "0123456789_-+=./,:@%")];
        str_puts(&s, plain ? " " : " '");
        for (const char *p = argv[i]; *p; p++)
            if (*p == '\'')
                str_puts(&s, "'\\''");
            else
                str_putc(&s, *p);
        if (!plain) str_putc(&s, '\'');
    }
    o->train.command = s.oom ? NULL : options_keep(o, s.p, s.n, e);
    str_free(&s);
    return o->train.command ? 0 : err_set(e, ERR_RUN, "out of memory for the flags");
}

int options_parse(enum command_id cmd, int argc, char **argv, struct options *o, struct err *e) {
    *o = (struct options){0};
    for (int i = 0; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return o->help = 1, 0;
    for (int i = 0; i < flag_count; i++)
        if (flags[i].commands & accepted(cmd) && set_default(o, &flags[i], e)) return -1;
    return read_arguments(cmd, argc, argv, o, e) || keep_command(o, argc, argv, e) || options_check(cmd, o, e)
               ? -1
               : 0;
}

void options_free(struct options *o) {
    for (int i = 0; i < o->n_owned; i++) sys_free(o->owned[i]);
    sys_free(o->owned);
    *o = (struct options){0};
}

const char *options_given(const struct options *o, const char *flag) {
    for (int i = 0; i < flag_count; i++)
        if (o->given[i].name && !strcmp(flags[i].name, flag)) return o->given[i].value;
    return NULL;
}
