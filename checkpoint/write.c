/* checkpoint/write.c - writes a model as safetensors, in one file or in shards with an index.
 *
 * Everything is declared first, so that the headers can be written before the payloads, which then stream
 * through: memory holds names and shapes only, and of a large model 16 MB that a thread writes (queue.c) while
 * the caller makes the next; injected faults are counted, so then everything is written at once. Files grow under temporary
 * names (base/file.h), each synced when it is full. ckpt_commit renames them, the index last, once all of them are on the disk.
 * Between two renames of a sharded model there can be a moment without a complete one, but never an index that mixes old shards
 * with new: an index whose shards are about to be replaced goes first. A NAME in the other form (one file, or index) is
 * removed, so that no reader picks the old one. */
#include "base/str.h"
#include "base/sys.h"
#include "checkpoint/checkpoint_internal.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const int64_t QUEUED_FROM = 64 << 20; /* payload bytes: less is not worth a thread */

struct declared {
    char *name;
    enum dtype type;
    int rank, joined; /* joined: in the shard of the one before */
    int64_t shape[CKPT_RANK], bytes;
    int shard;
};
struct ckpt_writer {
    char dir[3000], name[200];
    int64_t shard_bytes;
    struct declared *t;
    int64_t count, cap;
    int join_next, hashed; /* hashed: the folder will have a MANIFEST */
    /* once writing has begun */
    struct declared **order; /* by name */
    struct out **outs;       /* of the shards, those begun */
    int shards, begun;
    struct ckpt_queue *queue; /* or NULL */
    int64_t left, total; /* payload bytes still missing in the last begun shard; of all */
};

struct ckpt_writer *ckpt_create(const char *dir, const char *name, int64_t shard_bytes, struct err *e) {
    if (dir_make(dir, e)) return NULL;
    struct ckpt_writer *w = sys_alloc(sizeof *w, "checkpoint writer", e);
    if (!w) return NULL;
    w->shard_bytes = shard_bytes > 0 ? shard_bytes : INT64_MAX;
    w->hashed = manifest_filling(dir);
    if ((size_t)snprintf(w->dir, sizeof w->dir, "%s", dir) < sizeof w->dir &&
        (size_t)snprintf(w->name, sizeof w->name, "%s", name) < sizeof w->name)
        return w;
    err_set(e, ERR_INPUT, "the path %.100s.../%.100s is too long", dir, name);
    sys_free(w);
    return NULL;
}

int ckpt_declare(struct ckpt_writer *w, const char *name, enum dtype type, int rank, const int64_t *shape,
                 struct err *e) {
    struct declared t = {
        .type = type, .rank = rank, .joined = w->join_next, .bytes = (int64_t)dtype_bytes(type)};
    ASSERT(!w->outs && rank >= 0 && rank <= CKPT_RANK, "tensor %s: rank %d, %d shards begun", name, rank,
           w->begun);
    w->join_next = 0;
    for (int k = 0; k < rank; k++) {
        ASSERT(shape[k] >= 0, "tensor %s: size %lld", name, (long long)shape[k]);
        t.shape[k] = shape[k];
        if (__builtin_mul_overflow(t.bytes, shape[k], &t.bytes) || t.bytes > INT64_MAX / 2)
            return err_set(e, ERR_INPUT, "tensor '%s' is too large to write", name);
    }
    if (w->count == w->cap) {
        int64_t cap = w->cap ? w->cap * 2 : 64;
        void *more = sys_grow(w->t, (size_t)cap * sizeof *w->t, "list of tensors to write", e);
        if (!more) return -1;
        w->t = more, w->cap = cap;
    }
    if (!(t.name = text_copy(name, strlen(name))))
        return err_set(e, ERR_RUN, "out of memory: the name of a tensor needs %zu bytes", strlen(name));
    w->t[w->count++] = t;
    return 0;
}

void ckpt_same_shard(struct ckpt_writer *w) {
    w->join_next = 1;
}

/* ---- planning ---- */

/* Fills shards in order; a group of joined tensors is never split. */
static void assign_shards(struct ckpt_writer *w) {
    int64_t used = 0;
    w->shards = 1;
    for (int64_t i = 0, j; i < w->count; i = j) {
        int64_t group = w->t[i].bytes;
        for (j = i + 1; j < w->count && w->t[j].joined; j++) group += w->t[j].bytes;
        if (used && group > w->shard_bytes - used) used = 0, w->shards++;
        used += group;
        for (int64_t k = i; k < j; k++) w->t[k].shard = w->shards - 1;
    }
}

static void file_name(const struct ckpt_writer *w, int shard, char *name, size_t size) {
    if (w->shards == 1)
        snprintf(name, size, "%s.safetensors", w->name);
    else
        snprintf(name, size, "%s-%05d-of-%05d.safetensors", w->name, shard + 1, w->shards);
}

static void file_path(const struct ckpt_writer *w, int shard, char path[4096]) {
    char name[256];
    file_name(w, shard, name, sizeof name);
    snprintf(path, 4096, "%s/%s", w->dir, name);
}

/* Length and header of a shard; *payload is what follows. The header is padded so that the payload begins at
 * a multiple of 8. */
static int make_header(const struct ckpt_writer *w, int shard, struct str *s, int64_t *payload,
                       struct err *e) {
    uint64_t n = 0;
    *payload = 0;
    str_add(s, &n, sizeof n);
    str_puts(s, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int64_t i = 0; i < w->count; i++) {
        const struct declared *t = &w->t[i];
        if (t->shard != shard) continue;
        str_putc(s, ',');
        str_json(s, t->name, strlen(t->name));
        str_printf(s, ":{\"dtype\":\"%s\",\"shape\":[", dtype_name(t->type));
        for (int k = 0; k < t->rank; k++) str_printf(s, "%s%lld", k ? "," : "", (long long)t->shape[k]);
        str_printf(s, "],\"data_offsets\":[%lld,%lld]}", (long long)*payload,
                   (long long)(*payload + t->bytes));
        *payload += t->bytes;
    }
    str_putc(s, '}');
    while (!s->oom && s->n % 8) str_putc(s, ' ');
    if (s->oom) return err_set(e, ERR_RUN, "out of memory: a header of more than %zu bytes", s->n);
    n = s->n - sizeof n;
    memcpy(s->p, &n, sizeof n);
    return 0;
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(struct declared *const *)a)->name, (*(struct declared *const *)b)->name);
}

static int begin(struct ckpt_writer *w, struct err *e) {
    char need[24], have[24];
    assign_shards(w);
    w->total = 0;
    for (int64_t i = 0; i < w->count; i++) w->total += w->t[i].bytes;
    int64_t available = dir_free_bytes(w->dir),
            bytes = w->total + 200 * (w->count + 1); /* names and numbers of headers */
    if (available >= 0 && bytes > available)
        return err_set(e, ERR_RUN, "%s: writing %s needs %s (%lld bytes), the disk has %s left", w->dir,
                       w->name, text_bytes(need, bytes), (long long)bytes, text_bytes(have, available));
    if (!(w->order = sys_alloc_array((size_t)w->count, sizeof *w->order, "index", e)) ||
        !(w->outs = sys_alloc_array((size_t)w->shards, sizeof *w->outs, "output files", e)))
        return -1;
    for (int64_t i = 0; i < w->count; i++) w->order[i] = &w->t[i];
    qsort(w->order, (size_t)w->count, sizeof(struct declared *), by_name);
    for (int64_t i = 1; i < w->count; i++)
        ASSERT(strcmp(w->order[i]->name, w->order[i - 1]->name), "tensor %s declared twice",
               w->order[i]->name);
    return 0;
}

static int begin_shard(struct ckpt_writer *w, struct err *e) {
    char path[4096];
    struct str header = {0};
    int rc = -1;
    file_path(w, w->begun, path);
    if (make_header(w, w->begun, &header, &w->left, e)) goto out;
    struct out *o = w->outs[w->begun] = out_open(path, e);
    if (!o) goto out;
    w->begun++;
    if (w->hashed && out_hash(o, e)) goto out;
    if (out_reserve(o, (int64_t)header.n + w->left, e) || out_write(o, header.p, header.n, e)) goto out;
    rc = 0;
out:
    str_free(&header);
    return rc;
}

/* Begins shards until one has room; syncs those that are full. */
static int next_shard(struct ckpt_writer *w, struct err *e) {
    while (!w->left && w->begun < w->shards) {
        if (w->begun && out_sync(w->outs[w->begun - 1], e)) return -1;
        if (begin_shard(w, e)) return -1;
    }
    return 0;
}

static int write_now(void *of, const void *p, int64_t bytes, struct err *e) {
    struct ckpt_writer *w = of;
    for (const char *from = p; bytes > 0;) {
        if (!w->left && next_shard(w, e)) return -1;
        ASSERT(w->left, "%lld bytes more than declared", (long long)bytes);
        int64_t n = bytes < w->left ? bytes : w->left;
        if (out_write(w->outs[w->begun - 1], from, (size_t)n, e)) return -1;
        from += n, bytes -= n, w->left -= n;
    }
    return 0;
}

int ckpt_write(struct ckpt_writer *w, const void *p, int64_t bytes, struct err *e) {
    if (!w->outs) {
        if (begin(w, e)) return -1;
        if (w->total >= QUEUED_FROM && !sys_fault.at) w->queue = ckpt_queue_open(write_now, w);
    }
    return w->queue ? ckpt_queue_add(w->queue, p, bytes, e) : write_now(w, p, bytes, e);
}

/* ---- the end ---- */

/* The index, complete on the disk but under its temporary name. */
static struct out *write_index(const struct ckpt_writer *w, const char *path, struct err *e) {
    char file[256];
    struct str s = {0};
    struct out *o = NULL;
    str_printf(&s, "{\n  \"metadata\": {\n    \"total_size\": %lld\n  },\n  \"weight_map\": {",
               (long long)w->total);
    for (int64_t i = 0; i < w->count; i++) {
        const struct declared *t = w->order[i];
        file_name(w, t->shard, file, sizeof file);
        str_puts(&s, i ? ",\n    " : "\n    ");
        str_json(&s, t->name, strlen(t->name));
        str_printf(&s, ": \"%s\"", file);
    }
    str_puts(&s, "\n  }\n}\n");
    if (s.oom)
        err_set(e, ERR_RUN, "out of memory: an index of more than %zu bytes", s.n);
    else if ((o = out_open(path, e)) && (out_write(o, s.p, s.n, e) || out_sync(o, e))) {
        out_abort(o);
        o = NULL;
    }
    str_free(&s);
    return o;
}

static int remove_file(const char *path, struct err *e) {
    if (!sys_unlink(path) || errno == ENOENT) return 0;
    return err_errno(e, ERR_RUN, "cannot remove the older %s", path);
}

static int commit_shard(struct ckpt_writer *w, int i, struct err *e) {
    struct out *shard = w->outs[i];
    char name[256], hex[41] = "";
    const int64_t bytes = out_bytes(shard);
    w->outs[i] = NULL;
    if (w->hashed) out_digest(shard, hex);
    if (out_commit(shard, e)) return -1;
    file_name(w, i, name, sizeof name);
    if (w->hashed) manifest_note(w->dir, name, bytes, hex);
    return 0;
}

static int commit(struct ckpt_writer *w, struct err *e) {
    char path[4096], single[4096], index[4096];
    struct out *o = NULL;
    int replaces = 0, sharded;
    if ((!w->outs && begin(w, e)) || next_shard(w, e) || out_sync(w->outs[w->begun - 1], e)) return -1;
    ASSERT(!w->left && w->begun == w->shards, "%lld bytes missing in shard %d of %d", (long long)w->left,
           w->begun, w->shards);
    snprintf(index, sizeof index, "%s/%s.safetensors.index.json", w->dir, w->name);
    snprintf(single, sizeof single, "%s/%s.safetensors", w->dir, w->name);
    sharded = w->shards > 1;
    if (sharded && !(o = write_index(w, index, e))) return -1;
    for (int i = 0; i < w->shards; i++) {
        file_path(w, i, path);
        replaces |= path_exists(path);
    }
    if (sharded && replaces && remove_file(index, e)) goto fail;
    for (int i = 0; i < w->shards; i++)
        if (commit_shard(w, i, e)) goto fail;
    if (sharded && out_commit(o, e)) return -1;
    return remove_file(sharded ? single : index, e);
fail:
    out_abort(o);
    return -1;
}

int ckpt_commit(struct ckpt_writer *w, struct err *e) {
    int rc = w->queue ? ckpt_queue_close(w->queue, e) : 0;
    w->queue = NULL;
    if (!rc) rc = commit(w, e);
    ckpt_abort(w);
    return rc;
}

void ckpt_abort(struct ckpt_writer *w) {
    if (!w) return;
    ckpt_queue_drop(w->queue);
    for (int i = 0; i < w->begun; i++) out_abort(w->outs[i]);
    for (int64_t i = 0; i < w->count; i++) sys_free(w->t[i].name);
    sys_free(w->order);
    sys_free(w->outs);
    sys_free(w->t);
    sys_free(w);
}
