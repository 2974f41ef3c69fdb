/* tests/unit/test_stream.c - files read from front to back: plain, gzip of one member and of several, and all that can be
 * wrong with one. */
#include "base/stream.h"
#include "base/sys.h"
#include "tests/data_make.h"
#include "tests/unit/gzip_make.h"
#include <errno.h>

/* The whole file through reads of `step` bytes; NULL with e. Freed with str_free. */
static int read_all(const char *path, size_t step, struct str *out, struct err *e) {
    static char buf[1 << 16];
    int64_t n = -1;
    struct stream *s = stream_open(path, e);
    str_clear(out);
    while (s && (n = stream_read(s, buf, step, e)) > 0) str_add(out, buf, (size_t)n);
    if (s && !n) CHECK(stream_done(s) == 1, "at %g of the file", stream_done(s));
    stream_close(s);
    if (out->oom) return err_set(e, ERR_RUN, "out of memory: the text");
    return n < 0 ? -1 : 0;
}

static void reads(const char *name, const struct str *file, const char *want, size_t n) {
    static const size_t steps[] = {1, 7, 4096, 65536};
    struct str have = {0};
    struct err e = {0};
    const char *path = put_bytes(name, file->p, file->n);
    for (int k = 0; k < 4; k++) {
        int rc = read_all(path, steps[k], &have, &e);
        CHECK(!rc && have.n == n && (!n || !memcmp(have.p, want, n)), "%s by %zu: %zu bytes of %zu: %s", name,
              steps[k], have.n, n, e.text);
    }
    str_free(&have);
}

/* Reading fails with all of these in the message. */
static void fails(const char *name, const struct str *file, const char *what, const char *where) {
    struct str have = {0};
    struct err e = {0};
    CHECK(read_all(put_bytes(name, file->p, file->n), 4096, &have, &e) && e.code == ERR_INPUT &&
              strstr(e.text, name) && strstr(e.text, what) && strstr(e.text, where),
          "%s: no \"%s\", \"%s\" in: %s", name, what, where, e.text);
    str_free(&have);
}

/* Text that does not pack to nothing. */
static void add_text(struct str *s, size_t n) {
    uint32_t x = 1;
    for (size_t i = 0; i < n; i++) str_putc(s, (char)('a' + (x = x * 1664525 + 1013904223) % 26));
}

TEST(plain_and_packed_files_read_alike) {
    struct str text = {0}, file = {0};
    reads("empty", &file, "", 0);
    str_puts(&file, "x");
    reads("one", &file, "x", 1);
    str_puts(&file, "\x1f");
    reads("two", &file, "x\x1f", 2);
    add_text(&text, 300000);
    reads("plain", &text, text.p, text.n);
    str_clear(&file);
    add_member(&file, text.p, text.n);
    CHECK(file.n < text.n, "%zu bytes packed", file.n);
    reads("packed.txt", &file, text.p, text.n); /* the name says nothing */
    str_clear(&file);
    add_member(&file, "", 0);
    reads("nothing.gz", &file, "", 0);
    str_free(&text), str_free(&file);
}

TEST(members_in_a_row_are_one_text) {
    struct str text = {0}, file = {0};
    add_text(&text, 200000);
    add_member(&file, text.p, 100), add_member(&file, "", 0), add_member(&file, text.p + 100, 99900),
        add_member(&file, text.p + 100000, 100000);
    reads("members.gz", &file, text.p, text.n);
    for (int i = 0; i < 1000; i++) str_putc(&file, 0);
    reads("padded.gz", &file, text.p, text.n);
    str_puts(&file, "more");
    fails("tail.gz", &file, "something that is not gzip begins at byte", "behind 200000 unpacked bytes");
    str_free(&text), str_free(&file);
}

TEST(a_file_cut_off_anywhere_is_an_error) {
    struct str text = {0}, file = {0}, part = {0};
    add_text(&text, 150);
    add_member(&file, text.p, text.n);
    for (size_t n = 2; n < file.n; n++) {
        str_clear(&part);
        str_add(&part, file.p, n);
        char where[60];
        snprintf(where, sizeof where, "at byte %zu of the gzip file", n);
        fails("cut.gz", &part, "the file ends in the middle of its data", where);
    }
    str_free(&text), str_free(&file), str_free(&part);
}

TEST(a_wrong_byte_is_found_by_the_checksum_at_the_latest) {
    struct str text = {0}, file = {0};
    add_text(&text, 150);
    add_member(&file, text.p, text.n);
    for (size_t i = 0; i < file.n; i++) {
        struct str have = {0};
        struct err e = {0};
        if (i == 3 || (i >= 4 && i < 10))
            continue; /* flags may name fields that swallow data; time and system mean nothing */
        file.p[i] ^= 1; /* the high bits of the last byte of the data are padding */
        int rc = read_all(put_bytes("wrong.gz", file.p, file.n), 4096, &have, &e);
        CHECK(i < 2 ? !rc : rc && e.code == ERR_INPUT && strstr(e.text, " at byte "), "byte %zu: rc %d %s", i,
              rc, e.text); /* without its magic it is no gzip */
        file.p[i] ^= 1;
        str_free(&have);
    }
    str_free(&text), str_free(&file);
}

TEST(every_call_may_fail) {
    static const struct {
        const char *kinds;
        int error;
    } fault[] = {{"a", ENOMEM}, {"o", EACCES}, {"r", EIO}};
    struct str text = {0}, file = {0}, have = {0};
    add_text(&text, 200000);
    add_member(&file, text.p, text.n);
    const char *path = put_bytes("faults.gz", file.p, file.n);
    for (int k = 0; k < 3; k++)
        for (int n = 1, done = 0; !done; n++) {
            struct err e = {0};
            sys_fault = (struct sys_fault){.at = n, .error = fault[k].error};
            snprintf(sys_fault.kinds, sizeof sys_fault.kinds, "%s", fault[k].kinds);
            int rc = read_all(path, 65536, &have, &e);
            done = sys_fault.calls < n;
            sys_fault = (struct sys_fault){0};
            CHECK(done ? !rc && n > 1 : rc && e.code, "call %d of kind %s: %s", n, fault[k].kinds, e.text);
            str_free(&have); /* lack of memory stays with it */
        }
    str_free(&text), str_free(&file), str_free(&have);
}

TEST_MAIN
