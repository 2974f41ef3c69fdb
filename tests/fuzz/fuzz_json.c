/* tests/fuzz/fuzz_json.c - base/json: what the checker accepts, cJSON must parse to the same number of values, and
 * str_json must write a string that reads back. */
#include "base/json.h"
#include "base/str.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tests/fuzz/mutate.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void need(int ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "%s\n", what);
    abort();
}

static void walk(const struct cJSON *j) {
    const struct cJSON *v;
    double number;
    int64_t whole;
    const char *text;
    int flag;
    cJSON_ArrayForEach(v, j) {
        if (cJSON_IsObject(j)) {
            need(json_get(j, v->string) == v, "a key is not found again");
            json_num(j, v->string, &number, "fuzz", NULL);
            json_int(j, v->string, INT64_MIN, INT64_MAX, &whole, "fuzz", NULL);
            json_str(j, v->string, &text, "fuzz", NULL);
            json_bool(j, v->string, &flag, "fuzz", NULL);
        }
        walk(v);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err e = {0};
    size_t at = 0;
    struct str s = {0};
    int valid = !json_check((const char *)data, size, &at, &e);
    need(at <= size, "the error lies outside the text");
    need(valid == !e.code, "verdict and error disagree");
    struct cJSON *j = json_parse((const char *)data, size, "fuzz", NULL);
    need(valid == (j != NULL), "checker and parser disagree");
    if (j) {
        static const char *const known[] = {"name", "value", NULL};
        walk(j);
        json_known_keys(j, known, "fuzz", NULL);
    }
    json_free(j);
    str_json(&s, (const char *)data, size);
    need(!memchr(data, 0, size) ? !json_check(s.p, s.n, NULL, NULL) : 1, "str_json wrote an invalid string");
    str_free(&s);
    return 0;
}

static const char *const words[] = {"name", "value", "\\u0000", "\\ud83d\\ude00", "\\ud83d", "\xff", "\xc0\x80", "\\x", "\xe4\xbd\xa0"};
MUTATE_WITH(mutate_json, words)
