/* base/json.c - see json.h. The checker walks the text once without building anything; only text that passed reaches
 * cJSON, whose own gaps (RFC 8259 numbers, UTF-8, duplicate keys, trailing text) therefore never show. */
#define _GNU_SOURCE
#include "base/json.h"
#include "base/file.h"
#include "base/str.h"
#include "base/sys.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>

enum {
    DEPTH_MAX = 64,
    VALUES_MAX = 4000000, /* a node of cJSON takes 64 bytes and more: some 400 MB */
    NUMBER_MAX = 63,      /* cJSON copies numbers into a buffer of this length */
    FEW = 16              /* open keys: room for them lies on the stack, which is enough for most texts */
};

/* Keys of the objects that are open, innermost last; an object's own keys are on top when its '}' comes. */
struct key {
    size_t at; /* of the character behind the opening quote */
    uint64_t hash;
};

struct check {
    const unsigned char *p;
    size_t n, i;
    int values;
    struct key *keys, *few; /* few: where keys begins */
    size_t key_count, key_cap;
    uint32_t *table, *small; /* scratch of close_object: index + 1 of a key, 0 = free; small: where table begins */
    size_t table_cap;
    uint64_t secret; /* of the hash, so that no file can be made of colliding keys */
    const char *what; /* is wrong with the text */
    struct err *e;    /* of memory */
};

static int bad(struct check *c, const char *what) { return c->what = what, -1; }

static void skip_space(struct check *c) {
    while (c->i < c->n && (c->p[c->i] == ' ' || c->p[c->i] == '\n' || c->p[c->i] == '\r' || c->p[c->i] == '\t')) c->i++;
}

static int here(const struct check *c, unsigned char ch) { return c->i < c->n && c->p[c->i] == ch; }

/* The value of 4 hex digits, or -1. */
static int hex4(const unsigned char *p, size_t n) {
    int v = 0;
    if (n < 4) return -1;
    for (int k = 0; k < 4; k++) {
        int d = p[k] >= '0' && p[k] <= '9'   ? p[k] - '0'
                : p[k] >= 'a' && p[k] <= 'f' ? p[k] - 'a' + 10
                : p[k] >= 'A' && p[k] <= 'F' ? p[k] - 'A' + 10
                                             : -1;
        if (d < 0) return -1;
        v = v << 4 | d;
    }
    return v;
}

/* The character at *i inside a string literal, escapes decoded; *i moves behind it. 0 at the closing quote, -1 and e on
 * an error. */
static int next_char(struct check *c, size_t *i, uint32_t *cp) {
    static const char plain[] = "\"\\/bfnrt", meaning[] = "\"\\/\b\f\n\r\t";
    const unsigned char *p = c->p + *i;
    size_t left = c->n - *i;
    if (!left) return bad(c, "the text ends inside a string");
    if (*p == '"') return 0;
    if (*p < 32) return bad(c, "a control character must be escaped in a string");
    if (*p != '\\') {
        if (*p < 0x80) return *cp = *p, ++*i, 1;
        int len = utf8_get(p, left, cp);
        if (!len) return bad(c, "invalid UTF-8");
        *i += (size_t)len;
        return 1;
    }
    if (left < 2) return bad(c, "the text ends inside a string");
    const char *known = p[1] ? strchr(plain, p[1]) : NULL;
    if (known) {
        *cp = (unsigned char)meaning[known - plain];
        *i += 2;
        return 1;
    }
    int u = p[1] == 'u' ? hex4(p + 2, left - 2) : -1;
    if (u < 0) return bad(c, "unknown escape in a string");
    if (u == 0) return bad(c, "\\u0000 is not accepted in a string");
    *i += 6;
    if (u >= 0xd800 && u < 0xe000) {
        int low = left >= 12 && p[6] == '\\' && p[7] == 'u' ? hex4(p + 8, 4) : -1;
        if (u >= 0xdc00 || low < 0xdc00 || low >= 0xe000) {
            *i -= 6;
            return bad(c, "half of a surrogate pair in a string");
        }
        *i += 6;
        u = 0x10000 + ((u - 0xd800) << 10) + (low - 0xdc00);
    }
    *cp = (uint32_t)u;
    return 1;
}

/* A string literal; its hash if wanted. */
static int check_string(struct check *c, uint64_t *hash) {
    uint64_t h = c->secret;
    uint32_t cp;
    int more;
    c->i++;
    while ((more = next_char(c, &c->i, &cp)) > 0) {
        unsigned __int128 m = (unsigned __int128)(h ^ cp) * (c->secret | 1);
        h = (uint64_t)m ^ (uint64_t)(m >> 64);
    }
    if (more < 0) return -1;
    c->i++;
    if (hash) *hash = h;
    return 0;
}

static int same_key(struct check *c, const struct key *a, const struct key *b) {
    size_t i = a->at, j = b->at;
    uint32_t x = 0, y = 0;
    if (a->hash != b->hash) return 0;
    for (;;) {
        int more = next_char(c, &i, &x);
        if (more != next_char(c, &j, &y)) return 0;
        if (!more) return 1;
        if (x != y) return 0;
    }
}

/* Refuses duplicates among keys[first..key_count) and takes them off. */
static int close_object(struct check *c, size_t first) {
    size_t count = c->key_count - first, cap = 16;
    while (cap < 2 * count) cap *= 2;
    if (cap > c->table_cap) {
        uint32_t *t = sys_grow(c->table == c->small ? NULL : c->table, cap * sizeof *t, "table of JSON keys", c->e);
        if (!t) return -1;
        c->table = t, c->table_cap = cap;
    }
    if (count > 1) memset(c->table, 0, cap * sizeof *c->table);
    for (size_t k = 0; k < count && count > 1; k++) {
        const struct key *key = c->keys + first + k;
        size_t slot = key->hash & (cap - 1);
        for (; c->table[slot]; slot = (slot + 1) & (cap - 1))
            if (same_key(c, key, c->keys + first + c->table[slot] - 1)) {
                c->i = key->at - 1;
                return bad(c, "this key stands twice in its object");
            }
        c->table[slot] = (uint32_t)k + 1;
    }
    c->key_count = first;
    return 0;
}

static int check_key(struct check *c) {
    if (c->key_count == c->key_cap) {
        const size_t cap = 2 * c->key_cap;
        struct key *k = sys_grow(c->keys == c->few ? NULL : c->keys, cap * sizeof *k, "JSON keys", c->e);
        if (!k) return -1;
        if (c->keys == c->few) memcpy(k, c->few, FEW * sizeof *k);
        c->keys = k, c->key_cap = cap;
    }
    struct key *key = c->keys + c->key_count;
    key->at = c->i + 1;
    if (check_string(c, &key->hash)) return -1;
    c->key_count++;
    return 0;
}

static size_t skip_digits(struct check *c) {
    size_t from = c->i;
    while (c->i < c->n && c->p[c->i] >= '0' && c->p[c->i] <= '9') c->i++;
    return c->i - from;
}

static int check_number(struct check *c) {
    size_t from = c->i;
    if (here(c, '-')) c->i++;
    if (here(c, '0')) c->i++;
    else if (!skip_digits(c)) return bad(c, "a value is expected here");
    if (here(c, '.')) {
        c->i++;
        if (!skip_digits(c)) return bad(c, "a digit is expected behind the decimal point");
    }
    if (here(c, 'e') || here(c, 'E')) {
        c->i++;
        if (here(c, '+') || here(c, '-')) c->i++;
        if (!skip_digits(c)) return bad(c, "a digit is expected in the exponent");
    }
    char text[NUMBER_MAX + 1] = {0};
    size_t n = c->i - from;
    if (n <= NUMBER_MAX) memcpy(text, c->p + from, n);
    if (n > NUMBER_MAX || isinf(strtod(text, NULL))) {
        c->i = from;
        return bad(c, n > NUMBER_MAX ? "this number is too long" : "this number is too large for a double");
    }
    return 0;
}

static int check_value(struct check *c, int depth);

static int check_members(struct check *c, int depth, int is_object) {
    const unsigned char close = is_object ? '}' : ']';
    const size_t first = c->key_count;
    if (depth == DEPTH_MAX) return bad(c, "nested deeper than 64 levels");
    c->i++;
    skip_space(c);
    if (here(c, close)) return c->i++, 0;
    for (;;) {
        if (is_object) {
            skip_space(c);
            if (!here(c, '"')) return bad(c, "a key in double quotes is expected here");
            if (check_key(c)) return -1;
            skip_space(c);
            if (!here(c, ':')) return bad(c, "':' is expected behind a key");
            c->i++;
        }
        if (check_value(c, depth + 1)) return -1;
        skip_space(c);
        if (here(c, close)) break;
        if (!here(c, ',')) return bad(c, is_object ? "',' or '}' is expected here" : "',' or ']' is expected here");
        c->i++;
    }
    if (is_object && close_object(c, first)) return -1;
    c->i++;
    return 0;
}

static int check_value(struct check *c, int depth) {
    static const struct { const char *text; size_t n; } words[] = {{"true", 4}, {"false", 5}, {"null", 4}};
    skip_space(c);
    if (c->i == c->n) return bad(c, "the text ends where a value is expected");
    if (++c->values > VALUES_MAX) return bad(c, "more than 4 million values");
    if (here(c, '{') || here(c, '[')) return check_members(c, depth, here(c, '{'));
    if (here(c, '"')) return check_string(c, NULL);
    for (size_t w = 0; w < 3; w++)
        if (c->n - c->i >= words[w].n && !memcmp(c->p + c->i, words[w].text, words[w].n)) {
            c->i += words[w].n;
            return 0;
        }
    return check_number(c);
}

/* Walks the text. -1: *what is wrong with it at *at; or *what is NULL, and e says that there was no memory. */
static int walk(const char *text, size_t n, size_t *at, const char **what, struct err *e) {
    struct key few[FEW];
    uint32_t small[2 * FEW];
    struct check c = {.p = (const unsigned char *)text, .n = n, .keys = few, .few = few, .key_cap = FEW, .table = small, .small = small,
                      .table_cap = 2 * FEW, .e = e};
    memcpy(&c.secret, (const void *)getauxval(AT_RANDOM), sizeof c.secret);
    int rc = n >= 3 && !memcmp(text, "\xef\xbb\xbf", 3) ? bad(&c, "starts with a byte order mark: save it as plain UTF-8")
                                                        : check_value(&c, 0);
    if (!rc) {
        skip_space(&c);
        if (c.i < n) rc = bad(&c, "the value has ended, but more text follows");
    }
    if (c.keys != few) sys_free(c.keys);
    if (c.table != small) sys_free(c.table);
    *at = c.i, *what = c.what;
    return rc;
}

int json_check(const char *text, size_t n, size_t *at, struct err *e) {
    const char *what;
    size_t end;
    const int rc = walk(text, n, &end, &what, e);
    if (at) *at = end;
    return rc && what ? err_set(e, ERR_INPUT, "%s", what) : rc;
}

/* ---- door to cJSON ---- */

static void *hook_alloc(size_t n) { return sys_grow(NULL, n, "JSON", NULL); }

__attribute__((constructor)) static void set_hooks(void) {
    cJSON_InitHooks(&(cJSON_Hooks){.malloc_fn = hook_alloc, .free_fn = sys_free});
}

struct cJSON *json_parse(const char *text, size_t n, const char *where, struct err *e) {
    struct err local;
    const char *what;
    size_t at;
    local.code = 0;
    if (walk(text, n, &at, &what, &local)) {
        long long line = 1, column = 1;
        for (size_t i = 0; i < at; i++)
            if (text[i] == '\n') line++, column = 1;
            else if (((unsigned char)text[i] & 0xc0) != 0x80) column++; /* characters, not bytes */
        if (what) err_set(e, ERR_INPUT, "%s:%lld:%lld: %s", where, line, column, what);
        else err_set(e, local.code, "%s: %s", where, local.text);
        return NULL;
    }
    struct cJSON *j = cJSON_ParseWithLength(text, n);
    if (!j) err_set(e, ERR_RUN, "%s: out of memory for %zu bytes of JSON", where, n);
    return j;
}

struct cJSON *json_parse_file(const char *path, int64_t max_bytes, struct err *e) {
    char *text;
    size_t n;
    if (file_read_all(path, max_bytes, &text, &n, e)) return NULL;
    struct cJSON *j = json_parse(text, n, path, e);
    sys_free(text);
    return j;
}

void json_free(struct cJSON *j) { cJSON_Delete(j); }

const struct cJSON *json_get(const struct cJSON *object, const char *key) {
    return cJSON_IsObject(object) ? cJSON_GetObjectItemCaseSensitive(object, key) : NULL;
}

/* The value of a key, NULL for absent and null alike. */
static const struct cJSON *present(const struct cJSON *object, const char *key) {
    const struct cJSON *v = json_get(object, key);
    return cJSON_IsNull(v) ? NULL : v;
}

static const char *kind_of(const struct cJSON *v) {
    return cJSON_IsObject(v)   ? "an object"
           : cJSON_IsArray(v)  ? "a list"
           : cJSON_IsString(v) ? "a text"
           : cJSON_IsNumber(v) ? "a number"
           : cJSON_IsNull(v)   ? "null"
                               : "true or false";
}

int json_int(const struct cJSON *object, const char *key, int64_t min, int64_t max, int64_t *out, const char *where,
             struct err *e) {
    const struct cJSON *v = present(object, key);
    if (!v) return 0;
    if (!cJSON_IsNumber(v))
        return err_set(e, ERR_INPUT, "%s: \"%s\" must be a whole number, it is %s", where, key, kind_of(v));
    double x = v->valuedouble;
    if (fabs(x) > 0x1p53 || x != floor(x) || (int64_t)x < min || (int64_t)x > max)
        return err_set(e, ERR_INPUT, "%s: \"%s\" must be a whole number from %lld to %lld, it is %.17g", where, key,
                       (long long)min, (long long)max, x);
    *out = (int64_t)x;
    return 1;
}

int json_num(const struct cJSON *object, const char *key, double *out, const char *where, struct err *e) {
    const struct cJSON *v = present(object, key);
    if (!v) return 0;
    if (!cJSON_IsNumber(v))
        return err_set(e, ERR_INPUT, "%s: \"%s\" must be a number, it is %s", where, key, kind_of(v));
    *out = v->valuedouble;
    return 1;
}

int json_bool(const struct cJSON *object, const char *key, int *out, const char *where, struct err *e) {
    const struct cJSON *v = present(object, key);
    if (!v) return 0;
    if (!cJSON_IsBool(v))
        return err_set(e, ERR_INPUT, "%s: \"%s\" must be true or false, it is %s", where, key, kind_of(v));
    *out = cJSON_IsTrue(v) != 0;
    return 1;
}

int json_str(const struct cJSON *object, const char *key, const char **out, const char *where, struct err *e) {
    const struct cJSON *v = present(object, key);
    if (!v) return 0;
    if (!cJSON_IsString(v))
        return err_set(e, ERR_INPUT, "%s: \"%s\" must be a text, it is %s", where, key, kind_of(v));
    *out = v->valuestring;
    return 1;
}

int json_known_keys(const struct cJSON *object, const char *const *known, const char *where, struct err *e) {
    const struct cJSON *v;
    if (object && !cJSON_IsObject(object))
        return err_set(e, ERR_INPUT, "%s must be an object in braces, it is %s", where, kind_of(object));
    cJSON_ArrayForEach(v, object) {
        const char *const *k = known;
        while (*k && strcmp(*k, v->string)) k++;
        if (*k) continue;
        const char *near = nearest_word(v->string, known);
        return near ? err_set(e, ERR_INPUT, "%s: unknown key \"%s\", did you mean \"%s\"?", where, v->string, near)
                    : err_set(e, ERR_INPUT, "%s: unknown key \"%s\"", where, v->string);
    }
    return 0;
}
