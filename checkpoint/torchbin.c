/* checkpoint/torchbin.c - a torch .bin: a zip (zip.c) with one folder of any name R, in it
 *
 *     R/data.pkl     the map of names to tensors (pickle.c)
 *     R/data/KEY     one storage each, elements in little-endian order
 *     R/byteorder    "little", from newer writers; R/version and others are not needed
 *
 * CRCs: data.pkl and byteorder are compared at opening, a storage when a tensor in it is first read (read.c);
 * so no unchecked byte is ever used, and opening a model does not read it all. */
#include "base/sys.h"
#include "checkpoint/checkpoint_internal.h"
#include <string.h>

static int check_magic(const struct file *f, struct err *e) {
    unsigned char magic[4] = {0};
    if (f->bytes < 4)
        return err_set(e, ERR_INPUT, "%s has %lld bytes, too few for a model", f->path, (long long)f->bytes);
    if (file_pread(f, magic, 4, 0, e)) return -1;
    if (magic[0] == 0x80)
        return err_set(
            e, ERR_INPUT,
            "%s is a bare pickle (the format of torch before 1.6), which is not read: load it in a current "
            "torch and save it again, best as safetensors",
            f->path);
    if (memcmp(magic, "PK\3\4", 4))
        return err_set(e, ERR_INPUT, "%s is not a file written by torch.save", f->path);
    return 0;
}

/* The member R/data.pkl; every member must be in the folder R. */
static struct zip_member *find_pickle(const struct zip *z, const struct file *f, struct err *e) {
    struct zip_member *pickle = NULL;
    const char *first = z->members[0].name, *slash = memchr(first, '/', z->members[0].name_bytes);
    size_t root = slash ? (size_t)(slash - first) + 1 : 0;
    for (int64_t i = 0; root && i < z->count; i++) {
        struct zip_member *m = &z->members[i];
        if (m->name_bytes < root || memcmp(m->name, first, root))
            root = 0;
        else if (m->name_bytes == root + 8 && !memcmp(m->name + root, "data.pkl", 8))
            pickle = m;
    }
    if (root && pickle) return pickle;
    err_set(e, ERR_INPUT, "%s is a zip, but not of torch.save: %s", f->path,
            root ? "it has no data.pkl" : "its members do not lie in one folder");
    return NULL;
}

static int check_byteorder(const struct zip *z, const struct file *f, const char *root, size_t root_bytes,
                           struct err *e) {
    char name[256], text[6];
    if (root_bytes + 9 > sizeof name)
        return err_set(e, ERR_INPUT, "%s: a folder name that is too long", f->path);
    memcpy(name, root, root_bytes);
    memcpy(name + root_bytes, "byteorder", 9);
    struct zip_member *m = ckpt_zip_find(z, name, root_bytes + 9);
    if (!m) return 0;
    if (ckpt_zip_check(m, f, e)) return -1;
    if (m->bytes == 6 && file_pread(f, text, 6, m->offset, e)) return -1;
    if (m->bytes == 6 && !memcmp(text, "little", 6)) return 0;
    return err_set(e, ERR_INPUT, "%s was written on a big-endian machine, which is not read", f->path);
}

int ckpt_torchbin_open(struct ckpt *c, int file, struct err *e) {
    struct shard *shard = &c->shards[file];
    const struct file *f = shard->file;
    struct zip_member *pickle;
    if (check_magic(f, e) || ckpt_zip_open(&shard->zip, f, e) || !(pickle = find_pickle(&shard->zip, f, e)))
        return -1;
    const char *root = pickle->name;
    size_t root_bytes = pickle->name_bytes - 8u;
    if (check_byteorder(&shard->zip, f, root, root_bytes, e)) return -1;
    if (pickle->bytes > CKPT_HEADER_MAX)
        return err_set(e, ERR_INPUT, "%s: a pickle of %lld bytes, at most %d are read", f->path,
                       (long long)pickle->bytes, CKPT_HEADER_MAX);
    size_t n = (size_t)pickle->bytes;
    if (ckpt_zip_check(pickle, f, e) || !(shard->text = sys_grow(NULL, n, "pickle", e)) ||
        file_pread(f, shard->text, n, pickle->offset, e) || ckpt_pickle_read(c, file, n, root, root_bytes, e))
        return -1;
    ckpt_zip_by_offset(&shard->zip);
    return 0;
}
