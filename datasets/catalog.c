/* datasets/catalog.c - from the names given as --dataset to files, formats and keys.
 *
 * dataset_info.json is read strictly: an unknown key in the entry that is used is an error with a suggestion,
 * because a misspelt key ("format") would otherwise change the data without a word. A name that is a file
 * needs no entry: its format is guessed from the first record. */
#include "base/file.h"
#include "base/log.h"
#include "base/sha1.h"
#include "base/sys.h"
#include "datasets/datasets_internal.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { PATH_BYTES = 4096, INFO_MAX_BYTES = 16 << 20 };

const char *const column_names[COL_COUNT + 1] = {"prompt",   "query",  "response", "history",
                                                 "messages", "system", "tools",    NULL};
static const char *const tag_names[TAG_COUNT + 1] = {
    "role_tag",        "content_tag",  "user_tag",   "assistant_tag",
    "observation_tag", "function_tag", "system_tag", NULL};

static const char *const alpaca_columns[COL_COUNT] = {[COL_PROMPT] = "instruction",
                                                      [COL_QUERY] = "input",
                                                      [COL_RESPONSE] = "output",
                                                      [COL_MESSAGES] = "conversations"};
static const char *const sharegpt_tags[TAG_COUNT] = {"from",        "value",         "human", "gpt",
                                                     "observation", "function_call", "system"};
static const char *const openai_tags[TAG_COUNT] = {"role", "content",       "user",  "assistant",
                                                   "tool", "function_call", "system"};

/* What stood under these names beside dataset_info.json in the years of OLD. */
static const char *const courtesy[][2] = {{"alpaca_en", "alpaca_data_en_52k.json"},
                                          {"alpaca_zh", "alpaca_data_zh_51k.json"}};

static const char *suggest(const char *word, const char *const *list) {
    const char *near = nearest_word(word, list);
    for (; !near && *list; list++)
        if (strlen(word) > 3 && (text_starts(*list, word) || text_starts(word, *list))) near = *list;
    return near;
}

static int check_keys(const struct cJSON *object, const char *const *known, const char *where,
                      struct err *e) {
    const struct cJSON *v;
    cJSON_ArrayForEach(v, object) {
        const char *const *k = known;
        while (*k && strcmp(*k, v->string)) k++;
        if (*k) continue;
        const char *near = suggest(v->string, known);
        return near ? err_set(e, ERR_INPUT, "%s: unknown key \"%.100s\", did you mean \"%s\"?", where,
                              v->string, near)
                    : err_set(e, ERR_INPUT, "%s: unknown key \"%.100s\"", where, v->string);
    }
    return 0;
}

/* ---- files ---- */

static int add_file(struct source *s, const char *path, struct err *e) {
    char **p = sys_grow(s->files, (size_t)(s->file_count + 1) * sizeof *p, "file names", e);
    if (!p) return -1;
    s->files = p;
    if (!(p[s->file_count] = text_copy(path, strlen(path))))
        return err_set(e, ERR_RUN, "out of memory: file names");
    s->file_count++;
    return 0;
}

static int add_directory(struct source *s, const char *dir, struct err *e) {
    char **names = NULL, path[PATH_BYTES];
    int count = 0, rc = -1;
    enum shape shape = SHAPE_UNKNOWN;
    if (dir_list(dir, &names, &count, e)) return -1;
    for (int i = 0; i < count; i++) {
        if (names[i][0] == '.') continue;
        if (path_join(path, sizeof path, dir, names[i], e)) goto out;
        enum shape k = reader_shape(path, e);
        if (k == SHAPE_UNKNOWN) goto out;
        if (shape != SHAPE_UNKNOWN && k != shape) {
            err_set(e, ERR_INPUT, "File types should be identical: %s has another one than %s", path,
                    s->files[0]);
            goto out;
        }
        shape = k;
        if (add_file(s, path, e)) goto out;
    }
    rc = s->file_count ? 0 : err_set(e, ERR_INPUT, "there is no data file in the directory %s", dir);
out:
    dir_list_free(names, count);
    return rc;
}

static int leaves(const char *name) { /* an absolute path, or one with ".." in it */
    if (*name == '/') return 1;
    for (const char *p = name; *p; p += strcspn(p, "/"), p += *p == '/')
        if (!strncmp(p, "..", 2) && (p[2] == '/' || !p[2])) return 1;
    return 0;
}

static int find_files(struct source *s, const struct data_config *c, const char *name, const char *where,
                      struct err *e) {
    char path[PATH_BYTES];
    if (leaves(name) && !c->allow_outside)
        return err_set(
            e, ERR_INPUT,
            "%s: file_name \"%.200s\" leaves dataset_dir %s; put the file there, or pass --allow_outside",
            where, name, c->dataset_dir);
    if (path_join(path, sizeof path, *name == '/' ? "" : c->dataset_dir, name, e)) return -1;
    if (path_is_dir(path)) return add_directory(s, path, e);
    if (!path_exists(path)) return err_set(e, ERR_INPUT, "%s: File %s not found.", where, path);
    return reader_shape(path, e) == SHAPE_UNKNOWN ? -1 : add_file(s, path, e);
}

static int check_sha1(const struct source *s, const struct data_config *c, struct err *e) {
    char hex[41];
    if (!s->sha1) {
        if (!c->compat_new && !s->guessed)
            log_warn("Checksum failed: missing SHA-1 hash value in dataset_info.json (data set %s).",
                     s->name);
        return 0;
    }
    if (s->file_count > 1) {
        log_warn("Checksum failed: too many files (data set %s).", s->name);
        return 0;
    }
    if (sha1_check(s->files[0], hex, e)) return -1;
    if (strcmp(hex, s->sha1)) log_warn("Checksum failed: mismatched SHA-1 hash value at %s.", s->files[0]);
    return 0;
}

/* ---- an entry of dataset_info.json ---- */

static void set_defaults(struct source *s, const struct data_config *c) {
    s->format = FORMAT_ALPACA;
    memcpy(s->column, alpaca_columns, sizeof s->column);
    memcpy(s->tag, sharegpt_tags, sizeof s->tag);
    if (!c->compat_new) s->tag[TAG_SYSTEM] = NULL;
}

static int read_columns(struct source *s, const struct cJSON *columns, const char *where, struct err *e) {
    static const char *const known[] = {"prompt",  "query",  "response", "history", "messages", "system",
                                        "tools",   "images", "videos",   "audios",  "chosen",   "rejected",
                                        "kto_tag", "role",   "content",  NULL};
    char place[600];
    snprintf(place, sizeof place, "%s: columns", where);
    if (!cJSON_IsObject(columns)) return err_set(e, ERR_INPUT, "%s must be an object {...}", place);
    if (check_keys(columns, known, place, e)) return -1;
    for (int k = 0; k < COL_COUNT; k++) {
        s->column[k] = NULL; /* what is not listed is none */
        if (json_str(columns, column_names[k], &s->column[k], place, e) < 0) return -1;
    }
    for (int k = 7; k < 10; k++)
        if (cJSON_IsString(json_get(columns, known[k])))
            return err_set(e, ERR_INPUT, "%s: \"%s\" cannot be used: the model reads text only", place,
                           known[k]);
    if (cJSON_IsString(json_get(columns, "kto_tag")))
        return err_set(e, ERR_INPUT,
                       "%s: The dataset is not applicable in the current training stage. (kto_tag: KTO data)",
                       place);
    if (!s->column[COL_MESSAGES]) s->column[COL_MESSAGES] = alpaca_columns[COL_MESSAGES];
    if (json_str(columns, "role", &s->tag[TAG_ROLE], place, e) < 0 ||
        json_str(columns, "content", &s->tag[TAG_CONTENT], place, e) < 0)
        return -1;
    if (s->format == FORMAT_ALPACA && !s->column[COL_PROMPT] && !s->column[COL_QUERY])
        return err_set(e, ERR_INPUT,
                       "%s: neither \"prompt\" nor \"query\" is given, and what is not listed is not read",
                       place);
    return 0;
}

static int read_tags(struct source *s, const struct cJSON *tags, const char *where, struct err *e) {
    char place[600];
    snprintf(place, sizeof place, "%s: tags", where);
    if (!cJSON_IsObject(tags)) return err_set(e, ERR_INPUT, "%s must be an object {...}", place);
    if (check_keys(tags, tag_names, place, e)) return -1;
    for (int k = 0; k < TAG_COUNT; k++) {
        if (k > TAG_ASSISTANT)
            s->tag[k] = NULL; /* what is not listed is none; without the first four nothing works */
        if (json_str(tags, tag_names[k], &s->tag[k], place, e) < 0) return -1;
    }
    return 0;
}

static int read_formatting(struct source *s, const struct cJSON *entry, const char *where, struct err *e) {
    static const char *const known[] = {"alpaca", "sharegpt", "openai", "ids", NULL};
    const char *word = known[0];
    if (json_str(entry, "formatting", &word, where, e) < 0) return -1;
    int k = 0;
    while (known[k] && strcmp(known[k], word)) k++;
    if (!known[k]) {
        const char *near = suggest(word, known);
        return err_set(e, ERR_INPUT, "%s: unknown formatting \"%.100s\"%s%s%s", where, word,
                       near ? ", did you mean \"" : "; it is alpaca, sharegpt, openai or ids",
                       near ? near : "", near ? "\"?" : "");
    }
    s->format = k == 0 ? FORMAT_ALPACA : k == 3 ? FORMAT_IDS : FORMAT_SHAREGPT;
    s->openai = k == 2;
    if (k == 2) memcpy(s->tag, openai_tags, sizeof s->tag), s->column[COL_MESSAGES] = "messages";
    return 0;
}

static int has_hub(const struct cJSON *entry) {
    return json_get(entry, "hf_hub_url") || json_get(entry, "ms_hub_url") || json_get(entry, "om_hub_url") ||
           json_get(entry, "script_url") || json_get(entry, "cloud_file_name");
}

static const char *courtesy_file(const char *name, const struct data_config *c, char path[PATH_BYTES]) {
    for (size_t k = 0; k < sizeof courtesy / sizeof *courtesy; k++)
        if (!strcmp(name, courtesy[k][0]) &&
            !path_join(path, PATH_BYTES, c->dataset_dir, courtesy[k][1], NULL) && path_is_file(path))
            return courtesy[k][1];
    return NULL;
}

static int read_entry(struct source *s, const struct cJSON *entry, const struct data_config *c,
                      const char *info_path, struct err *e) {
    static const char *const known[] = {"file_name",  "file_sha1",   "formatting", "columns",
                                        "tags",       "num_samples", "ranking",    "hf_hub_url",
                                        "ms_hub_url", "om_hub_url",  "script_url", "cloud_file_name",
                                        "subset",     "split",       "folder",     NULL};
    char where[500], path[PATH_BYTES];
    const char *file = NULL;
    int ranking = 0;
    snprintf(where, sizeof where, "%.300s: data set \"%.100s\"", info_path, s->name);
    if (!cJSON_IsObject(entry)) return err_set(e, ERR_INPUT, "%s must be an object {...}", where);
    if (check_keys(entry, known, where, e) || json_str(entry, "file_name", &file, where, e) < 0 ||
        json_str(entry, "file_sha1", &s->sha1, where, e) < 0 ||
        json_bool(entry, "ranking", &ranking, where, e) < 0 ||
        json_int(entry, "num_samples", 1, INT32_MAX, &s->samples, where, e) < 0)
        return -1;
    if (ranking)
        return err_set(e, ERR_INPUT,
                       "%s: The dataset is not applicable in the current training stage. (ranking: it holds "
                       "preference pairs)",
                       where);
    if (!file && has_hub(entry) && !(file = courtesy_file(s->name, c, path)))
        return err_set(e, ERR_INPUT,
                       "%s: hub data sets are not downloaded; put the file beside dataset_info.json and add "
                       "file_name",
                       where);
    if (!file) return err_set(e, ERR_INPUT, "%s has no file_name", where);
    if (read_formatting(s, entry, where, e) || find_files(s, c, file, where, e)) return -1;
    const struct cJSON *tags = json_get(entry, "tags"), *columns = json_get(entry, "columns");
    if (tags && read_tags(s, tags, where, e)) return -1;
    if (columns) return read_columns(s, columns, where, e);
    if (s->format == FORMAT_ALPACA && reader_shape(s->files[0], NULL) == SHAPE_TEXT) {
        memset(s->column, 0, sizeof s->column);
        s->column[COL_PROMPT] = "text";
    }
    return 0;
}

/* ---- a file in place of a name ---- */

static int guess(struct source *s, const struct cJSON *first, const struct data_config *c, const char *path,
                 struct err *e) {
    char keys[300];
    const struct cJSON *messages = json_get(first, "conversations");
    const char *what = "alpaca";
    if (!messages && (messages = json_get(first, "messages"))) s->column[COL_MESSAGES] = "messages";
    if (json_get(first, "input_ids")) {
        s->format = FORMAT_IDS, what = "ids";
    } else if (json_get(first, "instruction")) {
        s->column[COL_HISTORY] = "history";
        s->column[COL_SYSTEM] = "system";
    } else if (messages) {
        int openai = json_get(cJSON_GetArrayItem(messages, 0), "role") != NULL;
        s->format = FORMAT_SHAREGPT,
        what = openai ? "sharegpt (role and content)" : "sharegpt (from and value)";
        s->openai = openai;
        if (openai) memcpy(s->tag, openai_tags, sizeof s->tag);
        s->column[COL_SYSTEM] = "system";
        s->column[COL_TOOLS] = "tools";
    } else if (json_get(first, "text")) {
        if (c->stage != STAGE_PT)
            return err_set(e, ERR_INPUT, "%s holds plain text, which is for --stage pt", path);
        memset(s->column, 0, sizeof s->column);
        s->column[COL_PROMPT] = "text", what = "text";
    } else {
        return err_set(e, ERR_INPUT,
                       "%s: its format cannot be told from its first record, which has %s; name the keys in "
                       "dataset_info.json (columns)",
                       path, key_list(keys, sizeof keys, first));
    }
    if (c->glance < 2) log_info("%s: read as %s records, because the first one has %s", path, what,
             key_list(keys, sizeof keys, first));
    return 0;
}

static int guess_file(struct source *s, const char *path, const struct data_config *c, struct err *e) {
    struct record first;
    struct cJSON *j = NULL;
    enum shape shape = reader_shape(path, e);
    struct reader *r = shape == SHAPE_UNKNOWN ? NULL : reader_open(path, shape, e);
    int rc = -1, found = r ? reader_next(r, &first, e) : -1;
    if (found == 0) err_set(e, ERR_INPUT, "%s holds no record", path);
    if (found <= 0 || !(j = record_parse(&first, e))) goto out;
    s->guessed = 1;
    rc = guess(s, j, c, path, e) ? -1 : add_file(s, path, e);
out:
    json_free(j);
    reader_close(r);
    return rc;
}

/* ---- names ---- */

static int unknown_name(const struct catalog *k, const char *name, const struct data_config *c,
                        const char *info_path, struct err *e) {
    char here[300] = "", known[300];
    const struct cJSON *v;
    const char **list = sys_alloc_array((size_t)cJSON_GetArraySize(k->info) + 1, sizeof *list, "names", e);
    if (!list) return -1;
    int n = 0;
    cJSON_ArrayForEach(v, k->info) list[n++] = v->string;
    const char *near = suggest(name, list);
    if (*c->dataset_dir != '/' && !getcwd(here, sizeof here)) here[0] = 0;
    if (near)
        err_set(e, ERR_INPUT, "Undefined dataset %.200s in dataset_info.json. Did you mean %.200s? (%s)",
                name, near, info_path);
    else
        err_set(e, ERR_INPUT,
                "Undefined dataset %.200s in dataset_info.json. %s%s%s has %s; the path of a data file will "
                "do too.",
                name, info_path, *here ? ", seen from " : "", here, key_list(known, sizeof known, k->info));
    sys_free(list);
    return -1;
}

static int find_source(struct catalog *k, struct source *s, const struct data_config *c,
                       const char *info_path, struct err *e) {
    char path[PATH_BYTES];
    const char *name = s->name, *file;
    set_defaults(s, c);
    const struct cJSON *entry = json_get(k->info, name);
    if (entry) return read_entry(s, entry, c, info_path, e) ? -1 : c->glance ? 0 : check_sha1(s, c, e);
    int is_path = strchr(name, '/') || reader_shape(name, NULL) != SHAPE_UNKNOWN;
    if (is_path && path_is_file(name)) return guess_file(s, name, c, e);
    if (is_path && !path_join(path, sizeof path, c->dataset_dir, name, NULL) && path_is_file(path))
        return guess_file(s, path, c, e);
    if (is_path)
        return err_set(e, ERR_INPUT, "File %.500s not found, neither here nor in %.500s.", name,
                       c->dataset_dir);
    if ((file = courtesy_file(name, c, path))) return add_file(s, path, e);
    if (!k->info) {
        int missing = !path_exists(info_path);
        return err_set(
            e, ERR_INPUT,
            "Cannot open %s due to %s: it says what the data set %.100s is; set dataset_dir, or give "
            "the path of a data file as the data set",
            info_path, strerror(missing ? ENOENT : EISDIR), name);
    }
    return unknown_name(k, name, c, info_path, e);
}

/* The next name of a comma list, blanks and quotes around it removed; NULL at the end. */
static const char *next_name(const char **p, size_t *n) {
    static const char skip[] = " \t\r\n\"'";
    while (**p) {
        const char *a = *p, *b = a + strcspn(a, ",");
        *p = b + (*b == ',');
        while (a < b && strchr(skip, *a)) a++;
        while (a < b && strchr(skip, b[-1])) b--;
        if (a < b) return *n = (size_t)(b - a), a;
    }
    return NULL;
}

int catalog_open(struct catalog *k, const struct data_config *c, const char *names, struct err *e) {
    char info_path[PATH_BYTES];
    size_t n;
    *k = (struct catalog){0};
    if (path_join(info_path, sizeof info_path, c->dataset_dir, "dataset_info.json", e)) return -1;
    if (path_is_file(info_path)) {
        if (!(k->info = json_parse_file(info_path, INFO_MAX_BYTES, e))) return -1;
        if (!cJSON_IsObject(k->info)) {
            err_set(e, ERR_INPUT, "%s must be an object {...} of data sets", info_path);
            goto fail;
        }
    }
    for (const char *p = names, *name; (name = next_name(&p, &n));) {
        struct source *s = sys_grow(k->source, (size_t)(k->count + 1) * sizeof *s, "data sets", e);
        if (!s) goto fail;
        k->source = s, s += k->count++;
        *s = (struct source){.name = text_copy(name, n)};
        if (!s->name) {
            err_set(e, ERR_RUN, "out of memory: data set names");
            goto fail;
        }
        if (find_source(k, s, c, info_path, e)) goto fail;
    }
    if (k->count) return 0;
    err_set(e, ERR_INPUT, "Please specify dataset for training.");
fail:
    catalog_close(k);
    return -1;
}

void catalog_close(struct catalog *k) {
    for (int i = 0; i < k->count; i++) {
        struct source *s = k->source + i;
        for (int f = 0; f < s->file_count; f++) sys_free(s->files[f]);
        sys_free(s->files);
        sys_free(s->name);
    }
    sys_free(k->source);
    json_free(k->info);
    *k = (struct catalog){0};
}
