/* model/files.c - see files.h */
#include "model/files.h"
#include "base/file.h"
#include "base/str.h"
#include <string.h>
#include <sys/stat.h>

static int is_side_file(const char *name) {
    static const char *const names[] = {"tokenizer.model",       "tokenizer.json",
                                        "tokenizer_config.json", "special_tokens_map.json",
                                        "added_tokens.json",     "generation_config.json"};
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

static int is_same(const char *a, const char *b) {
    struct stat x, y;
    return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

int model_output_dir(const char *dir, const char *from, int overwrite, struct err *e) {
    char **names;
    int n, rc = 0;
    if (dir_make(dir, e)) return -1;
    if (from && is_same(dir, from))
        return err_set(e, ERR_INPUT, "output_dir %s is the folder of the input; give another one", dir);
    if (overwrite) return 0;
    if (dir_list(dir, &names, &n, e)) return -1;
    for (int i = 0; i < n && !rc; i++)
        if (!strcmp(names[i], "config.json") || text_ends(names[i], ".safetensors") ||
            text_ends(names[i], ".bin"))
            rc = err_set(e, ERR_INPUT,
                         "output_dir %s already holds %s; give another folder or --overwrite_output_dir", dir,
                         names[i]);
    dir_list_free(names, n);
    return rc;
}
