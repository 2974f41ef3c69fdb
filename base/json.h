/* base/json.h - the one door to cJSON. Strict: the text is checked first (grammar of RFC 8259, valid UTF-8, depth <= 64,
 * at most 4 million values, no duplicate keys, no \u0000, no number beyond double), then parsed.
 * Getters compare keys with case. `where` names the file or record in errors.
 *
 *     struct cJSON *j = json_parse(text, n, path, e);
 *     if (!j || json_int(j, "hidden_size", 1, 1 << 20, &hidden, path, e) < 0) ...
 */
#ifndef QLORA_BASE_JSON_H
#define QLORA_BASE_JSON_H
#include "base/err.h"
#include <cjson/cJSON.h>
#include <stddef.h>
#include <stdint.h>

struct cJSON *json_parse(const char *text, size_t n, const char *where, struct err *e);
struct cJSON *json_parse_file(const char *path, int64_t max_bytes, struct err *e);
void json_free(struct cJSON *j);
/* Checks only: 0 if text[0..n) is exactly one valid JSON value with white space around. On error *at (may be NULL) is
 * the byte offset and e says what is wrong there. */
int json_check(const char *text, size_t n, size_t *at, struct err *e);

const struct cJSON *json_get(const struct cJSON *object, const char *key); /* NULL if absent */
/* 1: present, *out set. 0: absent or null, *out untouched. -1: wrong type or out of range, e filled. */
int json_int(const struct cJSON *object, const char *key, int64_t min, int64_t max, int64_t *out, const char *where,
             struct err *e);
int json_num(const struct cJSON *object, const char *key, double *out, const char *where, struct err *e);
int json_bool(const struct cJSON *object, const char *key, int *out, const char *where, struct err *e);
int json_str(const struct cJSON *object, const char *key, const char **out, const char *where, struct err *e);
/* -1 with a suggestion if the object has a key that is not in the NULL-terminated list, or is no object at all. */
int json_known_keys(const struct cJSON *object, const char *const *known, const char *where, struct err *e);
#endif
