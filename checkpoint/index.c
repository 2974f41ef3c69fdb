/* checkpoint/index.c - a model in several files, listed in NAME.index.json:
 *
 *     {"metadata": {"total_size": 123}, "weight_map": {"model.norm.weight": "model-00002-of-00002.bin", ...}}
 *
 * The files lie beside the index; a name that is anything but a plain file name is refused. Every listed
 * tensor must be in its file. A tensor that is in a file but not listed is taken too, unless it is there
 * twice. total_size is informative and wrong in enough published files that it is not looked at. */
#include "base/json.h"
#include "base/str.h"
#include "base/sys.h"
#include "checkpoint/checkpoint_internal.h"
#include <stdlib.h>
#include <string.h>

struct entry {
    const char *name, *file; /* in the text of the index */
    int shard;
};
struct entries {
    struct entry *p;
    int64_t count, cap;
};

static int add_entry(struct entries *list, const char *name, const char *file, struct scan *s) {
    char shown[100];
    if (!path_is_basename(file) || !(text_ends(file, ".safetensors") || text_ends(file, ".bin")))
        return err_set(
            s->e, ERR_INPUT,
            "%s: '%s' is not a plain name of a .safetensors or .bin file beside the index, refused", s->path,
            ckpt_printable(shown, file, strlen(file)));
    if (list->count == CKPT_TENSORS_MAX)
        return err_set(s->e, ERR_INPUT, "%s: more than %d tensors", s->path, CKPT_TENSORS_MAX);
    if (list->count == list->cap) {
        int64_t cap = list->cap ? list->cap * 2 : 256;
        struct entry *more = sys_grow(list->p, (size_t)cap * sizeof *more, "index", s->e);
        if (!more) return -1;
        list->p = more, list->cap = cap;
    }
    list->p[list->count++] = (struct entry){name, file, 0};
    return 0;
}

/* The text has passed json_check: the grammar is right and no key comes twice. */
static int parse(struct scan *s, struct entries *list) {
    char *key, *file;
    size_t n;
    int rc;
    if (ckpt_scan_expect(s, '{')) return -1;
    for (int64_t i = 0; (rc = ckpt_scan_item(s, '}', i)) > 0; i++) {
        if (ckpt_scan_string(s, &key, &n) || ckpt_scan_expect(s, ':')) return -1;
        if (strcmp(key, "weight_map")) {
            if (ckpt_scan_skip(s)) return -1;
            continue;
        }
        if (ckpt_scan_expect(s, '{')) return -1;
        for (int64_t k = 0; (rc = ckpt_scan_item(s, '}', k)) > 0; k++)
            if (ckpt_scan_string(s, &key, &n) || ckpt_scan_expect(s, ':') || ckpt_scan_string(s, &file, &n) ||
                add_entry(list, key, file, s))
                return -1;
        if (rc) return -1;
    }
    if (!rc && !list->count) rc = err_set(s->e, ERR_INPUT, "%s: its weight_map is missing or empty", s->path);
    return rc;
}

static int by_file(const void *a, const void *b) {
    return strcmp(((const struct entry *)a)->file, ((const struct entry *)b)->file);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

/* Opens each file once and notes its number with its tensors. */
static int open_shards(struct ckpt *c, struct entries *list, const char *path, struct err *e) {
    char dir[4096], file[4096];
    const char *slash = strrchr(path, '/');
    size_t dir_bytes = slash ? (size_t)(slash - path) + 1 : 0;
    if (dir_bytes >= sizeof dir) return err_set(e, ERR_INPUT, "%.100s...: the path is too long", path);
    memcpy(dir, path, dir_bytes);
    dir[dir_bytes] = 0;
    qsort(list->p, (size_t)list->count, sizeof *list->p, by_file);
    for (int64_t i = 0; i < list->count; i++) {
        struct entry *x = &list->p[i];
        if (!i || strcmp(x->file, x[-1].file)) {
            if (c->shard_count == CKPT_SHARDS_MAX)
                return err_set(e, ERR_INPUT, "%s: more than %d files", path, CKPT_SHARDS_MAX);
            if (path_join(file, sizeof file, dir, x->file, e)) return -1;
            if (ckpt_shard_open(c, file, e)) return err_where(e, "%s", path);
        }
        x->shard = c->shard_count - 1;
    }
    return 0;
}

/* Compares list and files, both sorted by name, and drops the copies that the index does not point to. */
static int match(struct ckpt *c, const struct entries *list, const char *path, struct err *e) {
    int64_t kept = 0, next = 0;
    for (int64_t i = 0, j; i < c->count; i = j) {
        const char *name = c->tensors[i].name;
        for (j = i + 1; j < c->count && !strcmp(c->tensors[j].name, name);) j++;
        if (next < list->count && strcmp(list->p[next].name, name) < 0) break; /* it is in no file */
        int64_t pick = i, copies = j - i;
        if (next < list->count && !strcmp(list->p[next].name, name)) {
            int shard = list->p[next++].shard;
            for (copies = 0; i < j; i++)
                if (c->tensors[i].file == shard) pick = i, copies++;
            if (!copies) {
                next--;
                break;
            }
        }
        if (copies > 1)
            return err_set(e, ERR_INPUT, "%s: tensor '%s' is in %s twice", path, name,
                           ckpt_file(c, &c->tensors[pick]));
        c->tensors[kept++] = c->tensors[pick];
    }
    if (next < list->count) {
        char shown[100];
        const struct entry *x = &list->p[next];
        return err_set(e, ERR_INPUT, "%s: tensor '%s' should be in %s but is not", path,
                       ckpt_printable(shown, x->name, strlen(x->name)), x->file);
    }
    c->count = kept;
    return 0;
}

int ckpt_index_open(struct ckpt *c, const char *path, struct err *e) {
    struct entries list = {0};
    char *text;
    size_t n, at = 0;
    int rc = -1;
    if (file_read_all(path, CKPT_HEADER_MAX, &text, &n, e)) return -1;
    struct scan s = {text, text, text + n, path, e};
    if (json_check(text, n, &at, e)) {
        err_where(e, "%s: byte %zu", path, at);
        goto out;
    }
    if (parse(&s, &list) || open_shards(c, &list, path, e)) goto out;
    qsort(list.p, (size_t)list.count, sizeof *list.p, by_name);
    ckpt_sort(c);
    rc = match(c, &list, path, e);
out:
    sys_free(list.p);
    sys_free(text);
    return rc;
}
