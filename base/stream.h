/* base/stream.h - a file from front to back, unpacked on the way if it is gzip (told by its first bytes, not its name).
 *
 * Several gzip members in a row are one text, zeros behind the last are padding. Damage, other bytes behind a member and
 * an end in the middle are errors of the user's world that say at which byte. However much a file unpacks to, memory is that of the
 * decoder (about 100 KiB): what is too large is for the reader to say.
 *
 *     struct stream *s = stream_open(path, e);
 *     while ((n = stream_read(s, buf, sizeof buf, e)) > 0) ...      0 at the end, -1 with e
 */
#ifndef QLORA_BASE_STREAM_H
#define QLORA_BASE_STREAM_H
#include "base/err.h"
#include <stddef.h>
#include <stdint.h>

struct stream;
struct stream *stream_open(const char *path, struct err *e);
/* Up to size bytes (> 0), fewer only at the end. */
int64_t stream_read(struct stream *s, void *p, size_t size, struct err *e);
double stream_done(const struct stream *s); /* share of the file behind us, 0..1 */
int64_t stream_left(const struct stream *s);  /* bytes to come, -1 if that is not known: it is packed */
const char *stream_path(const struct stream *s);
void stream_close(struct stream *s);
#endif
