/* checkpoint/checkpoint.c - the list of tensors of one checkpoint, over all its files.
 *
 * Names point into the header text of their file (one block per shard), the list is sorted by name once it is
 * complete. Nothing here looks at payloads. */
#include "checkpoint/checkpoint_internal.h"
#include "base/str.h"
#include "base/sys.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *ckpt_printable(char buf[100], const char *text, size_t n) {
    size_t k = 0, show = n > 92 ? 92 : n;
    uint32_t c;
    for (size_t i = 0; i < show;) {
        int length = utf8_get((const unsigned char *)text + i, n - i, &c);
        int plain = length && c >= 32 && (c < 127 || c > 159) && i + (size_t)length <= show;
        if (plain)
            memcpy(buf + k, text + i, (size_t)length);
        else
            buf[k] = '?';
        k += plain ? (size_t)length : 1;
        i += length ? (size_t)length : 1;
    }
    snprintf(buf + k, 100 - k, "%s", show < n ? "..." : "");
    return buf;
}

static int check_name(const char *path, const char *name, size_t n, struct err *e) {
    uint32_t c;
    char shown[100];
    ckpt_printable(shown, name, n);
    if (n > CKPT_NAME_MAX)
        return err_set(e, ERR_INPUT, "%s: tensor '%s' has a name of %zu bytes, at most %d are allowed", path,
                       shown, n, CKPT_NAME_MAX);
    for (size_t i = 0; i < n;) {
        int length = utf8_get((const unsigned char *)name + i, n - i, &c);
        if (!length || c < 32 || (c >= 127 && c < 160))
            return err_set(e, ERR_INPUT, "%s: the name of tensor '%s' holds %s", path, shown,
                           length ? "a control character" : "invalid UTF-8");
        i += (size_t)length;
    }
    return 0;
}

struct ckpt_tensor *ckpt_add(struct ckpt *c, int file, const char *name, size_t name_bytes, enum dtype type,
                             int rank, const int64_t *shape, struct err *e) {
    const char *path = c->shards[file].file->path;
    char shown[100];
    if (check_name(path, name, name_bytes, e)) return NULL;
    if (c->count == CKPT_TENSORS_MAX) {
        err_set(e, ERR_INPUT, "%s: more than %d tensors", path, CKPT_TENSORS_MAX);
        return NULL;
    }
    if (c->count == c->cap) {
        int64_t cap = c->cap ? c->cap * 2 : 64;
        void *more = sys_grow(c->tensors, (size_t)cap * sizeof *c->tensors, "list of tensors", e);
        if (!more) return NULL;
        c->tensors = more, c->cap = cap;
    }
    struct ckpt_tensor t = {.name = name, .type = type, .rank = rank, .count = 1, .file = file};
    int64_t bytes;
    int fits = 1;
    for (int k = 0; k < rank; k++) {
        t.shape[k] = shape[k];
        fits = fits && !__builtin_mul_overflow(t.count, shape[k], &t.count);
    }
    if (!fits || __builtin_mul_overflow(t.count, (int64_t)dtype_bytes(type), &bytes)) {
        err_set(e, ERR_INPUT, "%s: tensor '%s' has more elements than 64 bits can count", path,
                ckpt_printable(shown, name, name_bytes));
        return NULL;
    }
    int64_t stride = 1;
    for (int k = rank; t.count && k-- > 0; stride *= shape[k])
        t.stride[k] = stride; /* no overflow: divides count */
    c->tensors[c->count] = t;
    return &c->tensors[c->count++];
}

int ckpt_shard_open(struct ckpt *c, const char *path, struct err *e) {
    char magic[24] = "";
    struct file *f = file_open(path, e);
    if (!f) return -1;
    struct shard *more = sys_grow(c->shards, ((size_t)c->shard_count + 1) * sizeof *more, "list of files", e);
    if (!more) {
        file_close(f);
        return -1;
    }
    c->shards = more;
    c->shards[c->shard_count++] = (struct shard){.file = f};
    if (file_pread(f, magic, f->bytes < 23 ? (size_t)f->bytes : 23, 0, e)) return -1;
    if (text_starts(magic, "version https://git-lfs"))
        return err_set(e, ERR_INPUT,
                       "%s is a git-lfs pointer, not the file itself: run `git lfs pull` in its folder",
                       path);
    return text_ends(path, ".safetensors") ? ckpt_safetensors_open(c, c->shard_count - 1, e)
                                           : ckpt_torchbin_open(c, c->shard_count - 1, e);
}

static int by_name(const void *pa, const void *pb) {
    const struct ckpt_tensor *a = pa, *b = pb;
    int order = strcmp(a->name, b->name);
    return order ? order : (a->file > b->file) - (a->file < b->file);
}

void ckpt_sort(struct ckpt *c) {
    if (c->count) qsort(c->tensors, (size_t)c->count, sizeof *c->tensors, by_name);
}

static int single_open(struct ckpt *c, const char *path, struct err *e) {
    if (ckpt_shard_open(c, path, e)) return -1;
    ckpt_sort(c);
    for (int64_t i = 1; i < c->count; i++)
        if (!strcmp(c->tensors[i].name, c->tensors[i - 1].name))
            return err_set(e, ERR_INPUT, "%s: tensor '%s' is listed twice", path, c->tensors[i].name);
    return 0;
}

/* path is a file, or a folder in which the first of `names` that exists is taken. */
static struct ckpt *open_first(const char *path, const char *const *names, const char *kind, struct err *e) {
    char file[4096];
    struct ckpt *c = sys_alloc(sizeof *c, "checkpoint", e);
    if (!c) return NULL;
    const char *found = path;
    if (path_is_dir(path)) {
        found = NULL;
        for (; *names && !found; names++) {
            if (path_join(file, sizeof file, path, *names, e)) goto fail;
            if (path_exists(file)) found = file;
        }
        if (!found) {
            err_set(e, ERR_INPUT, "%s holds no %s", path, kind);
            goto fail;
        }
    }
    if (text_ends(found, ".index.json") ? ckpt_index_open(c, found, e) : single_open(c, found, e)) goto fail;
    return c;
fail:
    ckpt_close(c);
    return NULL;
}

static const char *const model_names[] = {"model.safetensors.index.json", "model.safetensors",
                                          "pytorch_model.bin.index.json", "pytorch_model.bin", NULL};

int ckpt_present(const char *path) {
    char file[4096];
    struct err none = {0};
    if (!path_is_dir(path)) return path_exists(path);
    for (int i = 0; model_names[i]; i++)
        if (!path_join(file, sizeof file, path, model_names[i], &none) && path_exists(file)) return 1;
    return 0;
}

struct ckpt *ckpt_open(const char *dir, struct err *e) {
    return open_first(
        dir, model_names, "model: neither model.safetensors nor pytorch_model.bin, nor their .index.json, is there",
        e);
}

struct ckpt *ckpt_open_adapter(const char *dir, struct err *e) {
    static const char *const names[] = {"adapter_model.safetensors", "adapter_model.bin", NULL};
    return open_first(dir, names, "adapter: neither adapter_model.safetensors nor adapter_model.bin is there",
                      e);
}

void ckpt_close(struct ckpt *c) {
    if (!c) return;
    for (int i = 0; i < c->shard_count; i++) {
        ckpt_zip_free(&c->shards[i].zip);
        sys_free(c->shards[i].text);
        file_close(c->shards[i].file);
    }
    sys_free(c->shards);
    sys_free(c->tensors);
    sys_free(c);
}

int64_t ckpt_count(const struct ckpt *c) {
    return c->count;
}

const struct ckpt_tensor *ckpt_at(const struct ckpt *c, int64_t i) {
    ASSERT(i >= 0 && i < c->count, "tensor %lld of %lld", (long long)i, (long long)c->count);
    return &c->tensors[i];
}

const struct ckpt_tensor *ckpt_find(const struct ckpt *c, const char *name) {
    int64_t low = 0, high = c->count;
    while (low < high) {
        int64_t mid = (low + high) / 2;
        int order = strcmp(name, c->tensors[mid].name);
        if (!order) return &c->tensors[mid];
        if (order < 0)
            high = mid;
        else
            low = mid + 1;
    }
    return NULL;
}

const char *ckpt_file(const struct ckpt *c, const struct ckpt_tensor *t) {
    return c->shards[t->file].file->path;
}

int64_t ckpt_tensor_bytes(const struct ckpt_tensor *t) {
    return t->count * (int64_t)dtype_bytes(t->type);
}

int64_t ckpt_bytes(const struct ckpt *c) {
    int64_t total = 0;
    for (int64_t i = 0; i < c->count; i++) total += ckpt_tensor_bytes(&c->tensors[i]);
    return total;
}
