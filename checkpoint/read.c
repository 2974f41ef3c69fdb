/* checkpoint/read.c - elements of a tensor into memory, converted, whatever its strides.
 *
 * A range of elements in row-major order is cut into boxes (sub-blocks with full inner dimensions). A box is
 * read in the order of the file: dimensions sorted by stride, the small ones gathered into pieces of the file
 * that are read at once and scattered to their places. A row-major tensor is one box of one dimension, read
 * straight into the caller's memory when no conversion is needed. Scratch memory is one piece, whatever the
 * size of the tensor. */
#include "base/half.h"
#include "base/sys.h"
#include "checkpoint/checkpoint_internal.h"
#include <string.h>

enum {
    PIECE_BYTES =
        2 << 20,     /* of the file, read at once: large enough for any disk, small enough for a cache */
    GAP_BYTES = 4096 /* a hole up to one page is cheaper to read than to seek over */
};

struct dim {
    int64_t size, src, dst; /* src: stride in the file; dst: stride in the result; in elements */
};
struct reader {
    const struct file *file;
    enum dtype from, to;
    unsigned char *scratch;
    struct err *e;
};

/* n elements src[i*step] -> dst[i*dst_step] */
static void convert(const unsigned char *src, enum dtype from, int64_t step, unsigned char *dst,
                    enum dtype to, int64_t dst_step, int64_t n) {
#define LOOP(from_type, to_type, expression)                                                                 \
    do {                                                                                                     \
        const size_t a = sizeof(from_type), b = sizeof(to_type);                                             \
        if (step == 1 && dst_step == 1) /* unit steps known to the compiler: vector code */                  \
            for (size_t i = 0; i < (size_t)n; i++) {                                                         \
                from_type x;                                                                                 \
                memcpy(&x, src + i * a, a);                                                                  \
                to_type y = (expression);                                                                    \
                memcpy(dst + i * b, &y, b);                                                                  \
            }                                                                                                \
        else                                                                                                 \
            for (int64_t i = 0; i < n; i++) {                                                                \
                from_type x;                                                                                 \
                memcpy(&x, src + i * step * (int64_t)a, a);                                                  \
                to_type y = (expression);                                                                    \
                memcpy(dst + i * dst_step * (int64_t)b, &y, b);                                              \
            }                                                                                                \
    } while (0)
    if (from == to) {
        switch (dtype_bytes(from)) {
        case 1:
            LOOP(uint8_t, uint8_t, x);
            return;
        case 2:
            LOOP(uint16_t, uint16_t, x);
            return;
        case 4:
            LOOP(uint32_t, uint32_t, x);
            return;
        default:
            LOOP(uint64_t, uint64_t, x);
            return;
        }
    }
    switch (from) {
    case DT_F32:
        LOOP(float, uint16_t, f32_to_bf16(x));
        return;
    case DT_BF16:
        LOOP(uint16_t, float, bf16_to_f32(x));
        return;
    case DT_F16:
        if (to == DT_F32)
            LOOP(uint16_t, float, f16_to_f32(x));
        else
            LOOP(uint16_t, uint16_t, f32_to_bf16(f16_to_f32(x)));
        return;
    case DT_F64: /* to bf16 through fp32, as torch does */
        if (to == DT_F32)
            LOOP(double, float, (float)x);
        else
            LOOP(double, uint16_t, f32_to_bf16((float)x));
        return;
    default:
        ASSERT(0, "from %d to %d", from, to);
    }
#undef LOOP
}

/* The piece in memory, `rank` dimensions, to its places; the last dimension runs innermost. */
static void scatter(const struct reader *r, const struct dim *d, int rank, const unsigned char *src,
                    unsigned char *dst) {
    if (rank == 1) {
        convert(src, r->from, d->src, dst, r->to, d->dst, d->size);
        return;
    }
    for (int64_t i = 0; i < d->size; i++)
        scatter(r, d + 1, rank - 1, src + i * d->src * (int64_t)dtype_bytes(r->from),
                dst + i * d->dst * (int64_t)dtype_bytes(r->to));
}

/* Insertion sort: at most 8 dimensions. */
static void sort_dims(struct dim *d, int rank, int by_src) {
    for (int i = 1; i < rank; i++)
        for (int k = i; k > 0 && (by_src ? d[k - 1].src > d[k].src : d[k - 1].dst < d[k].dst); k--) {
            struct dim swap = d[k];
            d[k] = d[k - 1], d[k - 1] = swap;
        }
}

static int read_piece(struct reader *r, const struct dim *d, int rank, int64_t span, int64_t offset,
                      unsigned char *dst) {
    const size_t bytes = (size_t)span * dtype_bytes(r->from);
    if (rank == 1 && d->src == 1 && d->dst == 1 && r->from == r->to)
        return file_pread(r->file, dst, bytes, offset, r->e);
    if (file_pread(r->file, r->scratch, bytes, offset, r->e)) return -1;
    struct dim order[CKPT_RANK];
    memcpy(order, d, (size_t)rank * sizeof *d);
    sort_dims(order, rank, 0);
    scatter(r, order, rank, r->scratch, dst);
    return 0;
}

/* d: dimensions by rising stride in the file, of which the first `inner` make pieces of `span` elements each.
 * */
static int read_pieces(struct reader *r, struct dim *d, int rank, int inner, int64_t span, int64_t offset,
                       unsigned char *dst) {
    const int64_t from_bytes = (int64_t)dtype_bytes(r->from), to_bytes = (int64_t)dtype_bytes(r->to);
    if (rank == inner) return read_piece(r, d, inner, span, offset, dst);
    const struct dim outer = d[rank - 1];
    for (int64_t i = 0; i < outer.size; i++)
        if (read_pieces(r, d, rank - 1, inner, span, offset + i * outer.src * from_bytes,
                        dst + i * outer.dst * to_bytes))
            return -1;
    return 0;
}

/* Chooses the pieces of a box. */
static int read_box(struct reader *r, const struct dim *box, int rank, int64_t offset, unsigned char *dst) {
    const int64_t from_bytes = (int64_t)dtype_bytes(r->from), to_bytes = (int64_t)dtype_bytes(r->to);
    const int64_t most = PIECE_BYTES / from_bytes;
    struct dim d[CKPT_RANK + 1];
    memcpy(d, box, (size_t)rank * sizeof *d);
    sort_dims(d, rank, 1);
    int inner = 0;
    int64_t span = 1,
            fit = 0; /* elements from first to last of the inner dimensions; of the next, how many fit too */
    for (; inner < rank; inner++) {
        if ((d[inner].src - span) * from_bytes > GAP_BYTES) break;
        fit = d[inner].src ? 1 + (most - span) / d[inner].src : d[inner].size;
        if (fit < d[inner].size) break;
        span += (d[inner].size - 1) * d[inner].src;
        fit = 0;
    }
    if (inner == rank || fit < 2) {
        static const struct dim one = {1, 1, 1};
        if (inner) return read_pieces(r, d, rank, inner, span, offset, dst);
        memmove(d + 1, d, (size_t)rank * sizeof *d); /* single elements, far apart */
        d[0] = one;
        return read_pieces(r, d, rank + 1, 1, 1, offset, dst);
    }
    /* Dimension `inner` goes in runs of `fit`; the dimensions outside it run around that. */
    const struct dim cut = d[inner];
    for (int64_t i = 0; i < cut.size; i += fit) {
        d[inner].size = cut.size - i < fit ? cut.size - i : fit;
        if (read_pieces(r, d, rank, inner + 1, span + (d[inner].size - 1) * cut.src,
                        offset + i * cut.src * from_bytes, dst + i * cut.dst * to_bytes))
            return -1;
    }
    return 0;
}

/* Elements first .. first+count of the block that d[0..rank) spans, into dst[0..count). */
static int read_part(struct reader *r, const struct dim *d, int rank, int64_t first, int64_t count,
                     int64_t offset, unsigned char *dst) {
    const int64_t from_bytes = (int64_t)dtype_bytes(r->from), to_bytes = (int64_t)dtype_bytes(r->to);
    int64_t row = rank ? d[0].dst : 1; /* elements in one step of the first dimension */
    while (count) {
        int64_t at = first / row, skip = first % row, take;
        int64_t start = offset + (rank ? at * d[0].src : 0) * from_bytes;
        if (skip || count < row) { /* part of one row */
            take = count < row - skip ? count : row - skip;
            if (read_part(r, d + 1, rank - 1, skip, take, start, dst)) return -1;
        } else { /* whole rows */
            struct dim box[CKPT_RANK];
            if (rank) memcpy(box, d, (size_t)rank * sizeof *d), box[0].size = count / row;
            take = count / row * row;
            if (read_box(r, box, rank, start, dst)) return -1;
        }
        first += take, count -= take, dst += take * to_bytes;
    }
    return 0;
}

/* The tensor's dimensions without those of size 1, neighbours joined where one continues the other. */
static int simplify(const struct ckpt_tensor *t, struct dim *d) {
    int rank = 0;
    int64_t dst = t->count;
    for (int k = 0; k < t->rank; k++) {
        dst /= t->shape[k];
        if (t->shape[k] == 1) continue;
        if (rank && d[rank - 1].src == t->stride[k] * t->shape[k])
            d[rank - 1] = (struct dim){d[rank - 1].size * t->shape[k], t->stride[k], dst};
        else
            d[rank++] = (struct dim){t->shape[k], t->stride[k], dst};
    }
    return rank;
}

int ckpt_read_range(const struct ckpt *c, const struct ckpt_tensor *t, int64_t first, int64_t count,
                    enum dtype to, void *dst, struct err *e) {
    const struct shard *shard = &c->shards[t->file];
    struct reader r = {.file = shard->file, .from = t->type, .to = to, .e = e};
    struct dim d[CKPT_RANK];
    ASSERT(first >= 0 && count >= 0 && first <= t->count && count <= t->count - first,
           "elements %lld + %lld of %lld", (long long)first, (long long)count, (long long)t->count);
    ASSERT(to == t->type || to == DT_F32 || to == DT_BF16, "type %d", to);
    if (to != t->type && t->type != DT_F32 && t->type != DT_BF16 && t->type != DT_F16 && t->type != DT_F64)
        return err_set(e, ERR_INPUT, "%s: tensor '%s' has type %s, a floating-point type is needed",
                       shard->file->path, t->name, dtype_name(t->type));
    if (!count) return 0;
    if (shard->zip.count && ckpt_zip_check(ckpt_zip_at(&shard->zip, t->offset), shard->file, e)) return -1;
    int rank = simplify(t, d);
    int direct = r.from == r.to && (!rank || (rank == 1 && d[0].src == 1));
    int64_t extent = 1; /* elements of the file that the range can touch */
    for (int k = 0; k < rank; k++) extent += ((rank == 1 ? count : d[k].size) - 1) * d[k].src;
    int64_t bytes = extent < PIECE_BYTES ? extent * (int64_t)dtype_bytes(r.from) : PIECE_BYTES;
    if (bytes > PIECE_BYTES) bytes = PIECE_BYTES;
    if (!direct && !(r.scratch = sys_grow(NULL, (size_t)bytes, "buffer for reading", e))) return -1;
    int rc = read_part(&r, d, rank, first, count, t->offset, dst);
    sys_free(r.scratch);
    return rc;
}

void ckpt_ahead(const struct ckpt *c, const struct ckpt_tensor *t, int64_t first, int64_t count) {
    struct dim d[CKPT_RANK];
    const int64_t size = (int64_t)dtype_bytes(t->type);
    const int rank = t->count ? simplify(t, d) : 2;
    if (rank > 1 || (rank && d[0].src != 1)) return;
    file_ahead(c->shards[t->file].file, t->offset + first * size, count * size);
}

int ckpt_read_all(const struct ckpt *c, const struct ckpt_tensor *t, enum dtype to, void *dst,
                  struct err *e) {
    return ckpt_read_range(c, t, 0, t->count, to, dst, e);
}
