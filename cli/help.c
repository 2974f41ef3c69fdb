/* cli/help.c - help texts and docs/FLAGS.md, made from the table of flags and the table of commands. */
#include "base/print.h"
#include "base/str.h"
#include "cli/cli_internal.h"
#include <stdio.h>
#include <string.h>

enum { TEXT_COLUMN = 38, WIDTH = 110 };

static void out(const struct str *s) {
    print_bytes(s->p, s->n);
}

/* Appends words at TEXT_COLUMN, broken at WIDTH; `column` is where the line stands now. */
static void wrap(struct str *s, int column, const char *words) {
    while (*words) {
        size_t n = strcspn(words, " ");
        if (column > TEXT_COLUMN && column + 1 + (int)n > WIDTH) str_putc(s, '\n'), column = 0;
        if (column < TEXT_COLUMN)
            str_printf(s, "%*s", TEXT_COLUMN - column, ""), column = TEXT_COLUMN;
        else if (column > TEXT_COLUMN)
            str_putc(s, ' '), column++;
        str_add(s, words, n);
        column += (int)n;
        words += n;
        while (*words == ' ') words++;
    }
    str_putc(s, '\n');
}

const char *flag_value_name(const struct flag *f) {
    static const char *const names[] = {
        [FLAG_BOOL] = "true|false", [FLAG_INT] = "N",
        [FLAG_SEED] = "N",          [FLAG_NUM] = "X",
        [FLAG_CHOICE] = "",         [FLAG_BYTES] = "SIZE",
        [FLAG_WORD] = "NAME",       [FLAG_LIST] = "A,B",
        [FLAG_TEXT] = "TEXT",       [FLAG_REPEAT] = "KEY=VALUE",
    };
    return f->kind == FLAG_CHOICE ? f->range : names[f->kind];
}

int flag_many_choices(const struct flag *f) { return f->kind == FLAG_CHOICE && strlen(f->name) + strlen(f->range) + 5 > WIDTH; }

void flag_add_choices(const struct flag *f, struct str *words) {
    for (const char *p = f->range; *p; p += *p == '|') {
        size_t n = strcspn(p, "|");
        str_printf(words, "%s %.*s", p == f->range ? ":" : ",", (int)n, p);
        p += n;
    }
}

static void help_flag(struct str *s, const struct flag *f) {
    struct str words = {0};
    size_t from = s->n;
    const char *value = f->kind == FLAG_BOOL ? "" : flag_value_name(f);
    str_printf(s, "  --%s %s", f->name, flag_many_choices(f) ? "NAME" : value);
    str_puts(&words, f->help);
    if (flag_many_choices(f)) flag_add_choices(f, &words);
    str_printf(&words, "%s%s%s", f->fallback ? " [" : "", f->fallback ? f->fallback : "", f->fallback ? "]" : "");
    if (f->aliases) str_printf(&words, " (also %s)", f->aliases);
    int column = (int)(s->n - from);
    if (column > TEXT_COLUMN - 1) str_putc(s, '\n'), column = 0;
    if (words.p) wrap(s, column, words.p);
    str_free(&words);
}

/* Names of the flags of one status, as one paragraph. */
static void list_names(struct str *s, const struct command *c, enum flag_status status, const char *title) {
    struct str names = {0};
    for (int i = 0; i < flag_count; i++)
        if (flags[i].status == status && flags[i].commands >> c->id & 1)
            str_printf(&names, "%s%s", names.n ? " " : "", flags[i].name);
    if (names.n && !names.oom) {
        str_printf(s, "\n%s\n", title);
        wrap(s, 0, names.p);
    }
    str_free(&names);
}

void help_command(const struct command *c) {
    struct str s = {0};
    str_printf(&s, "Example:\n  %s\n\nqlora %s: %s. Defaults stand in brackets.\n", c->example, c->name,
               c->job);
    str_printf(&s,
               "\nFlags may stand in a file, too: qlora %s FILE.yaml [key=value ..]; .json likewise.\n"
               "An underscore may be written as a hyphen, and a name may be cut while it stays unique.\n",
               c->name);
    if (c->id == CMD_PREVIEW)
        str_puts(&s, "\nAll other flags of qlora train are accepted and not looked at.\n");
    if (c->id == CMD_ESTIMATE || c->id == CMD_BENCH)
        str_puts(&s, "\nAll flags of qlora train (see there) belong to it, too: they say which run is meant.\n");
    for (int g = 0; g < G_COUNT; g++) {
        int shown = 0;
        for (int i = 0; i < flag_count; i++) {
            const struct flag *f = &flags[i];
            if (f->status != USED || (int)f->group != g || !(f->commands >> c->id & 1)) continue;
            if (!shown++) str_printf(&s, "\n%s\n", group_names[g]);
            help_flag(&s, f);
        }
    }
    list_names(&s, c, INERT, "Accepted without effect (a line says why)");
    list_names(&s, c, REFUSED, "Known and not supported: an error when switched on");
    out(&s);
    str_free(&s);
}

void help_program(const struct command *commands, int n) {
    struct str s = {0};
    str_puts(&s,
             "qlora " QLORA_VERSION " fine-tunes Yuan 2.0 models: QLoRA, LoRA, or in full.\n\nExample:\n");
    str_printf(&s, "  %s\n\nCommands\n", commands[0].example);
    for (int i = 0; i < n; i++) str_printf(&s, "  %-10s %s\n", commands[i].name, commands[i].job);
    str_puts(
        &s,
        "  version    print the version\n"
        "  help       this text; `qlora COMMAND --help` for a command; `qlora help markdown|man|bash|zsh`: all flags,\n"
        "             the manual page, completions for a shell\n"
        "\nResults go to standard output, everything else to standard error. Exit codes: 0 done, 1 the run "
        "failed,\n"
        "2 the command line or an input file is wrong, 70 training met NaN, 130/143 stopped by a signal "
        "after saving.\n");
    out(&s);
    str_free(&s);
}

/* ---- markdown ---- */

static void cell(struct str *s, const char *text) {
    for (; *text; text++) {
        if (*text == '|') str_putc(s, '\\');
        str_putc(s, *text);
    }
}

static void row(struct str *s, const struct command *commands, int n, const struct flag *f) {
    str_printf(s, "| `%s`", f->name);
    for (const char *a = f->aliases; a && *a; a += strspn(a, " ")) {
        size_t k = strcspn(a, " ");
        str_printf(s, "<br>`%.*s`", (int)k, a);
        a += k;
    }
    str_puts(s, " | ");
    if (f->status == USED) {
        cell(s, flag_value_name(f));
        if (f->range && f->kind != FLAG_CHOICE) str_printf(s, " (%s)", f->range);
        str_printf(s, " | %s | ", f->fallback ? f->fallback : "");
    }
    int first = 1;
    for (int i = 0; i < n; i++)
        if (f->commands >> commands[i].id & 1) {
            str_printf(s, "%s%s", first ? "" : " ", commands[i].name);
            first = 0;
        }
    str_puts(s, " | ");
    cell(s, f->help);
    str_puts(s, " |\n");
}

void help_markdown(const struct command *commands, int n) {
    struct str s = {0};
    str_puts(&s, "# Flags\n\nMade from the table in `cli/flags.c` by `qlora help markdown > docs/FLAGS.md`; "
                 "a test compares them.\n"
                 "Names, aliases and defaults follow LLaMA-Factory and transformers. `qlora COMMAND --help` "
                 "shows those of one command.\n"
                 "Every command also reads a flat YAML or JSON file of flags in front, followed by `key=value` "
                 "overrides; `qlora preview`,\n"
                 "`qlora estimate` and `qlora bench` accept every flag of `qlora train`, so that one command line serves all.\n");
    for (int g = 0; g < G_COUNT; g++) {
        str_printf(&s, "\n## %s\n\n| flag | value | default | commands | meaning |\n|---|---|---|---|---|\n",
                   group_names[g]);
        for (int i = 0; i < flag_count; i++)
            if (flags[i].status == USED && (int)flags[i].group == g) row(&s, commands, n, &flags[i]);
    }
    static const char *const titles[] = {
        [INERT] = "## Accepted without effect\n\nOne line of the log names those that were given.",
        [REFUSED] = "## Known and not supported\n\nAccepted while off; an error when switched on, because "
                    "the result would differ.",
    };
    for (int status = INERT; status <= REFUSED; status++) {
        str_printf(&s, "\n%s\n\n| flag | commands | %s |\n|---|---|---|\n", titles[status],
                   status == INERT ? "why" : "instead");
        for (int i = 0; i < flag_count; i++)
            if ((int)flags[i].status == status) row(&s, commands, n, &flags[i]);
    }
    out(&s);
    str_free(&s);
}
