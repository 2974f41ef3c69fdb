/* cli/session.h - a loaded model with or without adapters, for the commands that only look: score and chat. */
#ifndef QLORA_CLI_SESSION_H
#define QLORA_CLI_SESSION_H
#include "cli/cli.h"
#include "model/model.h"
#include "tokenizer/tokenizer.h"

struct session {
    struct backend *be;
    struct model model;
    struct tok *tok;         /* NULL: the folder has no tokenizer.model; ids only */
    struct lora lora;        /* the adapters in force as one; rank 0: none */
    struct pages *adapters;  /* NULL: none */
    int ready;               /* opened: the model stays as it is */
    int64_t ids;             /* ids 0 .. ids-1 are valid */
};
int session_open(struct session *s, const struct options *o, struct err *e);
void session_close(struct session *s);
/* Puts the adapters of a comma list of folders in force, applied together; NULL: none. When one of them cannot be loaded,
 * nothing changes. Generators made before must be closed first. Adapters with whole weights (modules_to_save) come with the opening of
 * a session or not at all: they take the place of the model's own. */
int session_adapters(struct session *s, const char *dirs, struct err *e);
/* Text to ids with special strings; an error if the folder has no tokenizer. */
int session_encode(const struct session *s, const char *text, size_t n, struct ids *ids, struct err *e);

/* Lines of a JSON lines file ("-": standard input), one object at a time. */
struct cJSON;
struct lines { char *text; size_t n, at; int64_t line; const char *name; };
int lines_open(struct lines *l, const char *path, struct err *e);
/* 1: *j is the next object (json_free), 0: the end, -1: e. Blank lines are skipped. */
int lines_next(struct lines *l, struct cJSON **j, struct err *e);
void lines_close(struct lines *l);
#endif
