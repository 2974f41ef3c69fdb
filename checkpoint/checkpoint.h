/* checkpoint/checkpoint.h - tensors in files: safetensors and torch .bin, single or sharded.
 *
 * Reading maps names to places; bytes move only in ckpt_read, straight into the caller's buffer, so a model
 * larger than memory can be streamed. A torch .bin is a zip with a pickle: it is interpreted as data by an
 * allow-list and never executed (checkpoint/torchbin.c). All limits of hostile files are checked at opening
 * time.
 *
 *     struct ckpt *c = ckpt_open(dir, e);                      lists of names and shapes only
 *     const struct ckpt_tensor *t = ckpt_find(c, "model.norm.weight");
 *     ckpt_read(c, t, 0, t->shape[0], DT_F32, x, e);
 */
#ifndef QLORA_CHECKPOINT_H
#define QLORA_CHECKPOINT_H
#include "base/dtype.h"
#include "base/err.h"
#include "nf4/nf4.h"
#include <stdint.h>

enum { CKPT_RANK = 8 };
struct ckpt_tensor {
    const char *name; /* lives as long as the ckpt */
    enum dtype type;
    int rank;                  /* 0 = scalar */
    int64_t shape[CKPT_RANK];
    int64_t stride[CKPT_RANK]; /* in elements; row-major unless a .bin says otherwise */
    int64_t count;             /* elements */
    int64_t offset;            /* bytes from the start of the file to element 0 */
    int file;                  /* index of the shard */
};

struct ckpt;
/* dir: a folder in the Hugging Face layout (model.safetensors.index.json, model.safetensors,
 * pytorch_model.bin.index.json, pytorch_model.bin, looked for in this order), or the path of one .safetensors
 * / .bin file. */
struct ckpt *ckpt_open(const char *dir, struct err *e);
int ckpt_present(const char *dir); /* there is something to open */
/* The adapter of a PEFT folder: adapter_model.safetensors or adapter_model.bin. */
struct ckpt *ckpt_open_adapter(const char *dir, struct err *e);
void ckpt_close(struct ckpt *c);
int64_t ckpt_count(const struct ckpt *c);
const struct ckpt_tensor *ckpt_at(const struct ckpt *c, int64_t i); /* sorted by name */
const struct ckpt_tensor *ckpt_find(const struct ckpt *c, const char *name); /* NULL if absent */
const char *ckpt_file(const struct ckpt *c, const struct ckpt_tensor *t);    /* path, for messages */
int64_t ckpt_bytes(const struct ckpt *c);                                    /* of all tensors */

/* Reads elements [first, first+count) in row-major order into dst, converted to `to`: DT_F32, DT_BF16 (from
 * any float type), or the tensor's own type (raw copy). Thread-safe. */
int ckpt_read_range(const struct ckpt *c, const struct ckpt_tensor *t, int64_t first, int64_t count,
                    enum dtype to, void *dst, struct err *e);
/* Asks the system to begin reading these elements, as far as they lie in one stretch of the file; waits for
 * nothing. */
void ckpt_ahead(const struct ckpt *c, const struct ckpt_tensor *t, int64_t first, int64_t count);
int ckpt_read_all(const struct ckpt *c, const struct ckpt_tensor *t, enum dtype to, void *dst, struct err *e);

/* A bitsandbytes-quantised matrix: side tensors found by name, checked against each other. */
struct ckpt_quant {
    int bits; /* 4, 8, or 0 = the tensor is plain */
    int64_t rows, cols;
    const struct ckpt_tensor *weight;
    /* 4 bit */
    enum q4_type type;
    int block, nested;      /* nested: double quantised */
    float nested_offset;
    enum dtype source;      /* type before quantisation */
    float levels[16], nested_map[256];
    const struct ckpt_tensor *absmax, *nested_absmax;
    /* 8 bit */
    const struct ckpt_tensor *row_scale; /* SCB */
};
/* Fills q for the matrix called `name` ("...q_proj.weight"). -1 with e if its side tensors are missing or
 * disagree. */
int ckpt_quant(const struct ckpt *c, const char *name, struct ckpt_quant *q, struct err *e);
/* The JSON text of quant_state.bitsandbytes__nf4 for a matrix to be written (NUL-terminated, sys_free). */
char *ckpt_quant_state(const struct ckpt_quant *q, struct err *e);

/* Writing: declare every tensor, then write the payloads in the order of declaration, then commit. One file
 * (shard_bytes = 0: DIR/NAME.safetensors) or shards NAME-0000i-of-0000n.safetensors with
 * NAME.safetensors.index.json. Nothing appears under its final name before ckpt_commit. */
struct ckpt_writer;
struct ckpt_writer *ckpt_create(const char *dir, const char *name, int64_t shard_bytes, struct err *e);
int ckpt_declare(struct ckpt_writer *w, const char *name, enum dtype type, int rank, const int64_t *shape,
                 struct err *e);
/* Keeps the next declared tensor in the shard of the one before: call it before each side tensor of a
 * quantised matrix. */
void ckpt_same_shard(struct ckpt_writer *w);
/* The next `bytes` bytes of payload, in declaration order; tensors may be written in several pieces. Of a large
 * file a thread does the writing, with 16 MB on their way: an error may be that of an earlier piece. */
int ckpt_write(struct ckpt_writer *w, const void *p, int64_t bytes, struct err *e);
int ckpt_commit(struct ckpt_writer *w, struct err *e); /* frees w in any case */
void ckpt_abort(struct ckpt_writer *w);

/* Directories that appear whole or not at all, with a MANIFEST (checkpoint/manifest.c). begin: makes
 * PARENT/.tmp-NAME.PID and returns its path; fill it with files, from several threads if you like; commit:
 * hashes and syncs every file, writes and syncs MANIFEST, renames to PARENT/NAME (replacing an older one),
 * syncs PARENT. Files of a ckpt_writer are hashed while they are written and not read again. */
int manifest_begin(const char *parent, const char *name, char *tmp, size_t tmp_size, struct err *e);
/* `facts` is a JSON object text stored under "facts" (step, configuration hash, ...). */
int manifest_commit(const char *parent, const char *name, const char *tmp, const char *facts, struct err *e);
void manifest_abort(const char *tmp);
/* 1: valid (facts JSON text returned, sys_free), 0: not valid, *e says why, -1: cannot tell (I/O). */
int manifest_verify(const char *dir, char **facts, struct err *e);
/* The same without facts, and without reading files of a folder that this process committed or verified before:
 * the MANIFEST must be the same, and names and sizes as it says. */
int manifest_check(const char *dir, struct err *e);
#endif
