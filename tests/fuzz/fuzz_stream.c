/* tests/fuzz/fuzz_stream.c - a file of any bytes through base/stream: whatever the size of the reads, the text and the
 * verdict are the same. With an odd first byte the rest is packed here first, and must come back as it was. */
#include "base/stream.h"
#include "tests/fuzz/fuzz_file.h"
#include "tests/unit/gzip_make.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MOST = 1 << 17, READS = 256 }; /* of the unpacked text; small reads: more of them only take time */

static void need(int ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "%s\n", what);
    abort();
}

/* Up to MOST bytes in reads of `step`; whether the file was fine so far. */
static int read_all(const char *path, size_t step, struct str *out, struct err *e) {
    static char buf[1 << 16];
    int64_t n = -1;
    struct stream *s = stream_open(path, e);
    while (s && out->n < MOST && (n = stream_read(s, buf, step, e)) > 0) {
        need((size_t)n <= step, "more than was asked for");
        str_add(out, buf, (size_t)n);
    }
    if (s) need(stream_done(s) >= 0 && stream_done(s) <= 1, "a share of the file that is none");
    stream_close(s);
    need((n < 0) == (e->code != 0), "verdict and error disagree");
    return n >= 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct str packed, large, small; /* kept: making them anew for each input takes longer than reading */
    struct err a = {0}, b = {0};
    if (!size) return 0;
    str_clear(&packed), str_clear(&large), str_clear(&small);
    const int own = data[0] & 1;
    if (own) add_member(&packed, data + 1, size - 1);
    const char *path = own ? fuzz_file("stream", packed.p, packed.n) : fuzz_file("stream", data + 1, size - 1);
    const int fine = read_all(path, 65536, &large, &a);
    if (own) need(fine && large.n == size - 1 && !memcmp(large.p ? large.p : "", data + 1, large.n), "what was packed comes back as something else");
    const size_t step = 1 + data[0] / 2, least = large.n / READS;
    const int again = read_all(path, step > least ? step : least, &small, &b);
    const size_t common = small.n < large.n ? small.n : large.n;
    if (fine && large.n < MOST) need(again && small.n == large.n, "small reads give another verdict");
    if (!fine) need(small.n >= MOST || (!again && !strncmp(a.text, b.text, (size_t)(strstr(a.text, " at byte ") - a.text))), "small reads give another error"); /* zlib looks ahead in large ones: by a byte */
    need(!common || !memcmp(small.p, large.p, common), "small reads give another text");
    return 0;
}
