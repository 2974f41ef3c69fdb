/* model/files.c - see files.h */
#include "model/files.h"
#include "base/file.h"
#include "base/str.h"
#include "base/sys.h"
#include <stdio.h>
#include <string.h>

static int is_side_file(const char *name) {
    static const char *const names[] = {
        "tokenizer.model",   "tokenizer.json",         "tokenizer_config.json", "special_tokens_map.json",
        "added_tokens.json", "generation_config.json", "chat_template.jinja"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i])) return 1;
    return text_ends(name, ".py") || text_starts(name, "LICENSE");
}

int model_copy_files(const char *from, const char *to, struct err *e) {
    char **names, source[4096], target[4096];
    int n, rc = 0;
    if (dir_list(from, &names, &n, e)) return -1;
    for (int i = 0; i < n && !rc; i++) {
        if (!is_side_file(names[i])) continue;
        rc = path_join(source, sizeof source, from, names[i], e) ||
             path_join(target, sizeof target, to, names[i], e);
        if (!rc && path_is_file(source)) rc = file_copy(source, target, e);
    }
    dir_list_free(names, n);
    return rc ? -1 : 0;
}

int model_write_generation(const struct model_config *c, const char *dir, struct err *e) {
    char path[4096];
    struct str s = {0};
    str_printf(&s, "{\n  \"bos_token_id\": %lld,\n  \"eos_token_id\": %lld,\n  \"pad_token_id\": %lld\n}\n", (long long)c->eod,
               (long long)c->eod, (long long)c->pad);
    int rc = s.oom ? err_set(e, ERR_RUN, "out of memory: generation_config.json")
                   : path_join(path, sizeof path, dir, "generation_config.json", e);
    if (!rc && !path_exists(path)) rc = file_write_all(path, s.p, s.n, e);
    str_free(&s);
    return rc ? -1 : 0;
}

int model_output_dir(const char *dir, const char *from, int overwrite, struct err *e) {
    char **names;
    int n, rc = 0;
    if (dir_make(dir, e)) return -1;
    if (from && path_is_same(dir, from))
        return err_set(e, ERR_INPUT, "%s is the folder of the input; give another one for the output", dir);
    if (overwrite) return 0;
    if (dir_list(dir, &names, &n, e)) return -1;
    for (int i = 0; i < n && !rc; i++)
        if (names[i][0] != '.')
            rc = err_set(e, ERR_INPUT, "%s already holds %s; give another folder or --overwrite_output_dir",
                         dir, names[i]);
    dir_list_free(names, n);
    return rc;
}

/* ---- publishing ---- */

/* What would make a reader take an older model, or mix it with the new one: the names of weights in the Hugging Face layout. */
static int is_weights(const char *name) {
    static const char *const names[] = {"config.json", "model.safetensors", "model.safetensors.index.json",
                                        "pytorch_model.bin", "pytorch_model.bin.index.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i])) return 1;
    int n = 0; /* a shard */
    if (sscanf(name, "model-%*5[0-9]-of-%*5[0-9].safetensors%n", &n) == 0 && n && !name[n]) return 1;
    return sscanf(name, "pytorch_model-%*5[0-9]-of-%*5[0-9].bin%n", &n) == 0 && n && !name[n];
}

static int remove_older(const char *dir, struct err *e) {
    char **names, path[4096];
    int n, rc = 0;
    if (dir_list(dir, &names, &n, e)) return -1;
    for (int i = 0; i < n && !rc; i++) { /* sorted: config.json is among the first to go */
        if (!is_weights(names[i])) continue;
        rc = path_join(path, sizeof path, dir, names[i], e);
        if (!rc && sys_unlink(path)) rc = err_errno(e, ERR_RUN, "cannot remove the older %s", path);
    }
    dir_list_free(names, n);
    return rc;
}

static int move(const char *tmp, const char *dir, const char *name, struct err *e) {
    char from[4096], to[4096];
    if (path_join(from, sizeof from, tmp, name, e) || path_join(to, sizeof to, dir, name, e)) return -1;
    return sys_rename(from, to) ? err_errno(e, ERR_RUN, "cannot rename %s to %s", from, to) : 0;
}

/* Takes back what was moved: a folder without config.json is no model, and the next try must not stumble over it. */
static void take_back(const char *dir, char **names, int n) {
    char path[4096];
    for (int i = 0; i < n; i++)
        if (!path_join(path, sizeof path, dir, names[i], NULL)) sys_unlink(path);
}

int model_publish(const char *tmp, const char *dir, struct err *e) {
    char **names;
    int n, moved = 0, rc = 0;
    if (remove_older(dir, e) || dir_list(tmp, &names, &n, e)) return -1;
    for (; moved < n && !rc; moved += !rc)
        if (strcmp(names[moved], "config.json")) rc = move(tmp, dir, names[moved], e);
    rc = rc || dir_sync(dir, e) || move(tmp, dir, "config.json", e) || dir_sync(dir, e) ? -1 : 0;
    if (rc) take_back(dir, names, moved);
    dir_list_free(names, n);
    return rc;
}
