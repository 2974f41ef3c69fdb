/* train/tfevents.c - scalars for TensorBoard: a TFRecord file of Event protocol buffers.
 *
 *     record   length u64 LE | masked CRC32C of the 8 length bytes u32 | data | masked CRC32C of data u32
 *     Event    1 wall_time double, 2 step int64, 3 file_version string, 5 summary, 7 session log
 *     Summary  1 value { 1 tag string, 2 simple_value float };   SessionLog  1 status (1 = START)
 *
 * Every record is one write, so a killed run leaves whole records (readers skip a torn last one).
 */
#include "base/file.h"
#include "base/sys.h"
#include "train/report.h"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct tfevents {
    int fd;
    uint32_t crc[256];
    char path[4096];
};

/* CRC-32C (Castagnoli, reflected polynomial 0x82F63B78), rotated and offset as TFRecord stores it. */
static uint32_t masked_crc(const uint32_t table[256], const void *p, size_t n) {
    uint32_t c = ~0u;
    for (const unsigned char *b = p; n--; b++) c = table[(c ^ *b) & 255] ^ c >> 8;
    c = ~c;
    return (c >> 15 | c << 17) + 0xa282ead8u;
}

/* ---- protocol buffer fields, appended to a string ---- */

static void put_varint(struct str *s, uint64_t v) {
    for (; v > 127; v >>= 7) str_putc(s, (char)(v | 128));
    str_putc(s, (char)v);
}

static void put_bytes(struct str *s, int field, const void *p, size_t n) {
    put_varint(s, (uint64_t)field << 3 | 2);
    put_varint(s, n);
    str_add(s, p, n);
}

static void put_le(struct str *s, uint64_t v, int bytes) {
    for (int i = 0; i < bytes; i++) str_putc(s, (char)(v >> 8 * i));
}

static double wall_time(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Appends one Event with the given step whose field `field` holds the bytes of `what`. */
static int put_event(struct tfevents *t, int64_t step, int field, const void *what, size_t n, struct err *e) {
    struct str event = {0}, record = {0};
    double now = wall_time();
    uint64_t bits;
    memcpy(&bits, &now, 8);
    put_varint(&event, 1 << 3 | 1);
    put_le(&event, bits, 8);
    put_varint(&event, 2 << 3);
    put_varint(&event, (uint64_t)step);
    put_bytes(&event, field, what, n);

    put_le(&record, event.n, 8);
    put_le(&record, record.oom ? 0 : masked_crc(t->crc, record.p, 8), 4);
    str_add(&record, event.p, event.n);
    put_le(&record, event.oom ? 0 : masked_crc(t->crc, event.p, event.n), 4);

    int r = event.oom || record.oom ? err_set(e, ERR_RUN, "out of memory: %s", t->path) : 0;
    for (size_t done = 0; !r && done < record.n;) {
        ssize_t w = sys_write(t->fd, record.p + done, record.n - done);
        if (w < 0)
            r = err_errno(e, ERR_RUN, "cannot write %s", t->path);
        else
            done += (size_t)w;
    }
    str_free(&event);
    str_free(&record);
    return r;
}

struct tfevents *tfevents_open(const char *dir, int64_t from_step, struct err *e) {
    static const char version[] = "brain.Event:2";
    static const unsigned char start[] = {1 << 3, 1}; /* from here on, later points of older files are void */
    char host[64] = "", name[160];
    struct tfevents *t = sys_alloc(sizeof *t, "events file", e);
    if (!t) return NULL;
    t->fd = -1;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c >> 1 ^ (c & 1 ? 0x82f63b78u : 0);
        t->crc[i] = c;
    }
    if (gethostname(host, sizeof host - 1) || !path_is_basename(host)) strcpy(host, "localhost");
    /* TensorBoard reads files in the order of their names: seconds first */
    snprintf(name, sizeof name, "events.out.tfevents.%010lld.%s.%ld", (long long)time(NULL), host,
             (long)getpid());
    if (path_join(t->path, sizeof t->path, dir, name, e)) goto fail;
    if ((t->fd = sys_open(t->path, O_WRONLY | O_CREAT | O_APPEND, 0644)) < 0) {
        err_errno(e, ERR_RUN, "cannot create %s", t->path);
        goto fail;
    }
    if (put_event(t, 0, 3, version, sizeof version - 1, e) ||
        put_event(t, from_step + 1, 7, start, sizeof start, e))
        goto fail;
    return t;
fail:
    tfevents_close(t);
    return NULL;
}

int tfevents_scalar(struct tfevents *t, const char *tag, int64_t step, double value, struct err *e) {
    struct str v = {0}, summary = {0};
    float x = (float)value;
    uint32_t bits;
    memcpy(&bits, &x, 4);
    put_bytes(&v, 1, tag, strlen(tag));
    put_varint(&v, 2 << 3 | 5);
    put_le(&v, bits, 4);
    put_bytes(&summary, 1, v.p, v.n);
    int r = v.oom || summary.oom ? err_set(e, ERR_RUN, "out of memory: %s", t->path)
                                 : put_event(t, step, 5, summary.p, summary.n, e);
    str_free(&v);
    str_free(&summary);
    return r;
}

void tfevents_close(struct tfevents *t) {
    if (!t) return;
    if (t->fd >= 0) sys_close(t->fd);
    sys_free(t);
}
