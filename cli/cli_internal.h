/* cli/cli_internal.h - the flag table and the readers of flags, for the files of this folder and their tests. */
#ifndef QLORA_CLI_INTERNAL_H
#define QLORA_CLI_INTERNAL_H
#include "cli/cli.h"
#include "tokenizer/tokenizer.h"

enum flag_kind {
    FLAG_BOOL,   /* int */
    FLAG_INT,    /* int64_t */
    FLAG_SEED,   /* uint64_t */
    FLAG_NUM,    /* double */
    FLAG_CHOICE, /* unsigned or int: index into `choices` */
    FLAG_BYTES,  /* int64_t: 8GiB, 512MB, 1000 */
    FLAG_WORD,   /* text, trimmed: paths and names; an empty one, none and null mean "not given" */
    FLAG_LIST,   /* comma list; blanks and quotes round the items go */
    FLAG_TEXT,   /* text as it stands */
    FLAG_REPEAT  /* text, kept in order of appearance: options.overrides */
};
enum flag_group { G_MODEL, G_METHOD, G_DATA, G_RUN, G_OPTIMIZER, G_SAVE, G_MACHINE, G_TEXT, G_EXPORT, G_COUNT };
extern const char *const group_names[G_COUNT];
enum flag_status {
    USED,
    INERT,  /* accepted; named once in a line "ignored: .."; help is the reason */
    REFUSED /* accepted while off, an error when on; help says what to do instead */
};
enum { NOWHERE = -1 };

struct flag {
    const char *name;
    const char *aliases;  /* blank-separated, NULL if none */
    enum flag_kind kind;
    int at;               /* offset in struct options, or NOWHERE */
    const char *fallback; /* default, as it would be typed; NULL: none. REFUSED: the value that is off */
    const char *range;    /* numbers: "lo..hi", either may be missing; FLAG_CHOICE: "a|b|c" */
    unsigned commands;    /* bits 1 << enum command_id */
    enum flag_group group;
    enum flag_status status;
    const char *help;
};
extern const struct flag flags[];
extern const int flag_count;

/* "N", "true|false", "a|b|c": what a flag takes, as help shows it. */
const char *flag_value_name(const struct flag *f);
/* Choices that fill more than a line stand behind the words of help instead: ": a, b, c". */
int flag_many_choices(const struct flag *f);
void flag_add_choices(const struct flag *f, struct str *words);

/* Row of a name in either spelling for a command: exact or unambiguous prefix. -1 and e if there is none. *no: "no_x". */
int flag_find(enum command_id cmd, const char *name, int *no, struct err *e);
/* Reads `value` (NULL: a boolean without value) as the flag's kind and stores it. `where` opens a message. */
int flag_set(struct options *o, int row, const char *name, const char *value, const char *where, struct err *e);
/* As flag_set without remembering that it was given: defaults. */
int flag_store(struct options *o, const struct flag *f, const char *value, const char *where, struct err *e);
/* "name: value" as a line of YAML, if the flag has a value. */
void flag_print(const struct options *o, const struct flag *f, struct str *out);
/* "8GiB", "1500 MB", "100" (bytes). -1: no size. */
int cli_read_bytes(const char *s, int64_t *out);
const char *options_keep(struct options *o, const char *text, size_t n, struct err *e);

/* -1 and e when text holds a character that only looks like one of ASCII. */
int cli_refuse_lookalike(const char *where, const char *text, struct err *e);
int cli_is_dash_lookalike(const char *text); /* begins with one */
int cli_is_space(char c);

/* The cross checks, and what follows from several flags together. */
int options_check(enum command_id cmd, struct options *o, struct err *e);

/* do_predict, and do_eval without do_train. Exit code. */
int cli_predict(const struct options *o, struct err *e);

/* A flat file of flags. value NULL = null; a list is joined by commas; line 0 in JSON. */
struct pair { char *key, *value; int line; };
struct pairs { struct pair *p; int n; };
int yaml_parse(const char *text, size_t n, const char *where, struct pairs *out, struct err *e);
int json_pairs(const char *text, size_t n, const char *where, struct pairs *out, struct err *e);
void pairs_free(struct pairs *p);

/* "1 2 3", "[1, 2, 3]": the value of --ids. */
int cli_read_ids(const char *text, int64_t limit, struct ids *ids, struct err *e);
/* Appends x, which must be a whole number below limit. */
int cli_push_id(int64_t limit, double x, struct ids *ids, struct err *e);
/* Appends open, the numbers with commas between, and "]". */
void cli_add_ids(struct str *s, const char *open, const int32_t *x, int64_t n);
#endif
