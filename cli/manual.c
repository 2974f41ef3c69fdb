/* cli/manual.c - the manual page qlora.1 and the completions of bash and zsh, made from the table of flags and the table of
 * commands. The manual is in the macros of man(7). Flags that are only accepted or refused are offered by a completion when
 * nothing else begins as what was typed. */
#include "base/print.h"
#include "base/str.h"
#include "cli/cli_internal.h"
#include <stdio.h>
#include <string.h>

static void print(struct str *s) {
    print_bytes(s->p, s->n);
    str_free(s);
}

static int belongs(const struct flag *f, const struct command *c) {
    return (int)(f->commands >> c->id & 1);
}

/* Text with a prefix in front of each of the characters in `special`. */
static void escaped(struct str *s, const char *text, const char *special, const char *prefix) {
    for (; *text; text++) {
        if (strchr(special, *text)) str_puts(s, prefix);
        str_putc(s, *text);
    }
}

/* The name and the aliases of a flag, each between `before` and `after`. */
static void each_name(struct str *s, const struct flag *f, const char *before, const char *after) {
    str_printf(s, "%s%s%s", before, f->name, after);
    for (const char *a = f->aliases; a && *a; a += strspn(a, " ")) {
        size_t n = strcspn(a, " ");
        str_printf(s, "%s%.*s%s", before, (int)n, a, after);
        a += n;
    }
}

/* ---- qlora.1 ---- */

/* Text for troff: a backslash is \e, a hyphen that is typed is \-, and no line begins with a control character. */
static void roff(struct str *s, const char *text) {
    if (*text == '.' || *text == '\'') str_puts(s, "\\&");
    for (; *text; text++) {
        if (*text == '\\')
            str_puts(s, "\\e");
        else if (*text == '-')
            str_puts(s, "\\-");
        else if (*text == '\n')
            str_puts(s, text[1] == '.' || text[1] == '\'' ? "\n\\&" : "\n");
        else
            str_putc(s, *text);
    }
}

static void roff_flag(struct str *s, const struct command *commands, int n, const struct flag *f) {
    struct str words = {0};
    str_puts(&words, f->help);
    if (flag_many_choices(f)) flag_add_choices(f, &words);
    str_printf(s, ".TP\n.BI \\-\\-%s \" ", f->name);
    if (f->status == USED && f->kind != FLAG_BOOL) roff(s, flag_many_choices(f) ? "NAME" : flag_value_name(f));
    str_puts(s, "\"\n");
    if (words.p) roff(s, words.p);
    str_free(&words);
    str_puts(s, ".\n");
    if (f->range && f->status == USED && f->kind != FLAG_CHOICE) str_puts(s, "Range: "), roff(s, f->range), str_puts(s, ".\n");
    if (f->fallback && f->status == USED) str_puts(s, "Default: "), roff(s, f->fallback), str_puts(s, ".\n");
    if (f->aliases) str_puts(s, "Also: "), roff(s, f->aliases), str_puts(s, ".\n");
    str_puts(s, "[");
    for (int i = 0, first = 1; i < n; i++)
        if (belongs(f, &commands[i])) str_printf(s, "%s%s", first ? "" : " ", commands[i].name), first = 0;
    str_puts(s, "]\n");
}

void help_man(const struct command *commands, int n) {
    static const char *const rest[] = {[INERT] = "ACCEPTED WITHOUT EFFECT", [REFUSED] = "KNOWN AND NOT SUPPORTED"};
    struct str s = {0};
    str_puts(&s, ".TH QLORA 1 \"\" \"qlora " QLORA_VERSION "\" \"User commands\"\n"
                 ".SH NAME\nqlora \\- fine\\-tune Yuan 2.0 models: QLoRA, LoRA, or in full\n"
                 ".SH SYNOPSIS\n.B qlora\n.I COMMAND\n.RI [ FLAGS ]\n.br\n.B qlora\n.I COMMAND FILE.yaml\n.RI [ key=value \" ..]\"\n"
                 ".SH DESCRIPTION\nTakes the command lines, data files and checkpoints that are used with LLaMA\\-Factory, PEFT, bitsandbytes and\n"
                 "DeepSpeed, and leaves adapters and checkpoints that load in them.\n"
                 "Flags are written \\-\\-name value or \\-\\-name=value; an underscore may be a hyphen, a name may be cut while it stays\n"
                 "unique, and the last of several wins. Results go to standard output, everything else to standard error.\n"
                 ".SH COMMANDS\n");
    for (int i = 0; i < n; i++) str_printf(&s, ".TP\n.B %s\n", commands[i].name), roff(&s, commands[i].job), str_puts(&s, ".\n");
    str_puts(&s, ".TP\n.B version\nprint the version.\n.TP\n.B help\n"
                 "an overview; \\fBqlora help\\fR \\fICOMMAND\\fR for one command, \\fBqlora help markdown\\fR, \\fBman\\fR, \\fBbash\\fR and \\fBzsh\\fR\n"
                 "for the list of flags, this page and the completions.\n"
                 ".SH FLAGS\nThe commands that know a flag stand in brackets behind it.\n");
    for (int g = 0; g < G_COUNT; g++) {
        str_printf(&s, ".SS %s\n", group_names[g]);
        for (int i = 0; i < flag_count; i++)
            if (flags[i].status == USED && (int)flags[i].group == g) roff_flag(&s, commands, n, &flags[i]);
    }
    for (int status = INERT; status <= REFUSED; status++) {
        str_printf(&s, ".SH %s\n%s\n", rest[status],
                   status == INERT ? "One line of the log names those that were given." : "Accepted while off; an error when switched on.");
        for (int i = 0; i < flag_count; i++)
            if ((int)flags[i].status == status) roff_flag(&s, commands, n, &flags[i]);
    }
    str_puts(
        &s,
        ".SH EXIT STATUS\n.TP\n.B 0\ndone\n.TP\n.B 1\nthe run failed: disk, memory, device\n.TP\n.B 2\nthe command line or an "
        "input file is wrong\n"
        ".TP\n.B 70\ntraining met NaN or infinity\n.TP\n.BR 130 \", \" 143\nstopped by SIGINT or SIGTERM, after saving\n"
        ".SH ENVIRONMENT\n.TP\n.B OMP_NUM_THREADS\nthreads of the CPU backend\n.TP\n.B TMPDIR\nfolder of temporary files\n"
        ".SH SIGNALS\nSIGUSR1 writes a checkpoint and goes on. A second SIGINT ends at once and leaves all files as they are.\n"
        ".SH EXAMPLES\n");
    for (int i = 0; i < n; i++) str_puts(&s, ".PP\n.nf\n"), roff(&s, commands[i].example), str_puts(&s, "\n.fi\n");
    print(&s);
}

/* ---- bash ---- */

/* "a|b" -> "a b", for what has a closed list of values; 0 for the rest. */
static int closed_values(struct str *s, const struct flag *f) {
    if (f->kind != FLAG_BOOL && f->kind != FLAG_CHOICE) return 0;
    for (const char *p = flag_value_name(f); *p; p++) str_putc(s, *p == '|' ? ' ' : *p);
    return 1;
}

void help_bash(const struct command *commands, int n) {
    struct str s = {0};
    str_puts(&s, "# bash completion of qlora, made by `qlora help bash`\n"
                 "_qlora() {\n"
                 "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} flags='' more='' values=''\n"
                 "    [[ $cur == = ]] && cur='' || { [[ $prev == = ]] && prev=${COMP_WORDS[COMP_CWORD - 2]}; }\n"
                 "    COMPREPLY=()\n"
                 "    if ((COMP_CWORD == 1)); then\n        mapfile -t COMPREPLY < <(compgen -W '");
    for (int i = 0; i < n; i++) str_printf(&s, "%s ", commands[i].name);
    str_puts(&s, "help version' -- \"$cur\")\n        return\n    fi\n    case ${COMP_WORDS[1]} in\n    help) values='");
    for (int i = 0; i < n; i++) str_printf(&s, "%s ", commands[i].name);
    str_puts(&s, "markdown man bash zsh' ;;\n");
    for (int i = 0; i < n; i++) {
        str_printf(&s, "    %s)\n        flags='--help", commands[i].name);
        for (int k = 0; k < flag_count; k++)
            if (belongs(&flags[k], &commands[i]) && flags[k].status == USED) each_name(&s, &flags[k], " --", "");
        str_puts(&s, "'\n        more='");
        for (int k = 0; k < flag_count; k++)
            if (belongs(&flags[k], &commands[i]) && flags[k].status != USED) each_name(&s, &flags[k], " --", "");
        str_puts(&s, "'\n        case $prev in\n");
        for (int k = 0; k < flag_count; k++) {
            struct str values = {0};
            if (belongs(&flags[k], &commands[i]) && closed_values(&values, &flags[k]) && !values.oom) {
                str_printf(&s, "        --%s", flags[k].name);
                for (const char *a = flags[k].aliases; a && *a; a += strspn(a, " ")) {
                    size_t len = strcspn(a, " ");
                    str_printf(&s, " | --%.*s", (int)len, a);
                    a += len;
                }
                str_printf(&s, ") values='%s' ;;\n", values.p);
            }
            str_free(&values);
        }
        str_puts(&s, "        esac\n        ;;\n");
    }
    str_puts(&s, "    esac\n"
                 "    if [[ $cur == -* ]]; then\n"
                 "        mapfile -t COMPREPLY < <(compgen -W \"$flags\" -- \"$cur\")\n"
                 "        ((${#COMPREPLY[@]})) || mapfile -t COMPREPLY < <(compgen -W \"$more\" -- \"$cur\")\n"
                 "    elif [[ $values ]]; then\n"
                 "        mapfile -t COMPREPLY < <(compgen -W \"$values\" -- \"$cur\")\n"
                 "    fi\n"
                 "}\n"
                 "complete -o default -F _qlora qlora\n");
    print(&s);
}

/* ---- zsh ---- */

/* Text between single quotes, where brackets and colons mean something to _arguments and _describe. */
static void zsh_text(struct str *s, const char *text) {
    struct str plain = {0};
    escaped(&plain, text, "[]:\\", "\\");
    for (const char *p = plain.p ? plain.p : ""; *p; p++) {
        if (*p == '\'') str_puts(s, "'\\'");
        str_putc(s, *p);
    }
    s->oom |= plain.oom;
    str_free(&plain);
}

static void zsh_flag(struct str *s, const struct flag *f, const char *name, size_t n) {
    str_printf(s, "            '--%.*s[", (int)n, name);
    zsh_text(s, f->help);
    str_puts(s, f->kind == FLAG_BOOL ? "]::value:" : "]:value:");
    size_t before = s->n;
    str_putc(s, '(');
    if (closed_values(s, f)) {
        str_putc(s, ')');
    } else {
        s->n = before;
        if (f->kind == FLAG_WORD || f->kind == FLAG_LIST) str_puts(s, "_files");
    }
    str_puts(s, "' \\\n");
}

void help_zsh(const struct command *commands, int n) {
    struct str s = {0};
    str_puts(&s, "#compdef qlora\n# zsh completion of qlora, made by `qlora help zsh`\n"
                 "_qlora() {\n    local -a commands=(\n");
    for (int i = 0; i < n; i++) {
        str_printf(&s, "        '%s:", commands[i].name);
        zsh_text(&s, commands[i].job);
        str_puts(&s, "'\n");
    }
    str_puts(&s, "        'help:an overview, or the flags of a command'\n        'version:print the version'\n    )\n"
                 "    if ((CURRENT == 2)); then\n        _describe command commands\n        return\n    fi\n"
                 "    local command=$words[2]\n    shift words\n    ((CURRENT--))\n    case $command in\n"
                 "    help) _values topic");
    for (int i = 0; i < n; i++) str_printf(&s, " %s", commands[i].name);
    str_puts(&s, " markdown man bash zsh ;;\n");
    for (int i = 0; i < n; i++) {
        str_printf(&s, "    %s)\n        _arguments \\\n", commands[i].name);
        for (int k = 0; k < flag_count; k++) {
            const struct flag *f = &flags[k];
            if (!belongs(f, &commands[i])) continue;
            zsh_flag(&s, f, f->name, strlen(f->name));
            for (const char *a = f->aliases; a && *a; a += strspn(a, " ")) {
                size_t len = strcspn(a, " ");
                zsh_flag(&s, f, a, len);
                a += len;
            }
        }
        str_puts(&s, "            '--help[the flags of this command]' '*:file:_files'\n        ;;\n");
    }
    str_puts(&s, "    esac\n}\n_qlora \"$@\"\n");
    print(&s);
}
