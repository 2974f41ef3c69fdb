/* tests/unit/flag_lines.h - what the tests of flags share: command lines as text, and the beginnings of lines that are whole. */
#ifndef QLORA_FLAG_LINES_H
#define QLORA_FLAG_LINES_H
#include "base/log.h"
#include "base/str.h"
#include "base/sys.h"
#include "cli/cli_internal.h"
#include "tests/test.h"
#include <unistd.h>

enum { COMMANDS = CMD_EVAL + 1, WORDS = 80 };

/* Parses a line of words separated by blanks; "~" in a word stands for a blank. */
static inline int parse_line(enum command_id cmd, const char *line, struct options *o, struct err *e) {
    static char text[4000];
    char *argv[WORDS];
    int argc = 0;
    snprintf(text, sizeof text, "%s", line);
    for (char *p = strtok(text, " "); p && argc < WORDS; p = strtok(NULL, " ")) {
        for (char *q = p; *q; q++)
            if (*q == '~') *q = ' ';
        argv[argc++] = p;
    }
    *e = (struct err){0};
    log_quiet = 1;
    return options_parse(cmd, argc, argv, o, e);
}

#define BASE     "--model_name_or_path . --dataset d --output_dir o "
#define NEW_BASE BASE "--compat new "
#define EXPORT   "--model_name_or_path . --export_dir x "
#define EVAL     NEW_BASE "--val_size 0.1 "
#endif
