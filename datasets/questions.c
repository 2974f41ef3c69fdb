/* datasets/questions.c - see questions.h. Rows come from the CSV reader of the data sets. */
#include "datasets/questions.h"
#include "base/file.h"
#include "base/sys.h"
#include "datasets/datasets_internal.h"
#include <stdio.h>
#include <string.h>
#include <strings.h>

enum { IS_TEXT, IS_CHOICE, IS_ANSWER = IS_CHOICE + CHOICES, FIELDS };
static const char *const names[FIELDS] = {"question", "A", "B", "C", "D", "answer"};

/* Which cell of a row holds each field, -1: none. */
struct columns { int at[FIELDS]; };

static const char *cell(const struct cJSON *row, int k) {
    const struct cJSON *v = k < 0 ? NULL : cJSON_GetArrayItem(row, k);
    return cJSON_IsString(v) ? v->valuestring : "";
}

/* Is the first row a header? Then c says where its names stand. */
static int read_header(const struct cJSON *row, struct columns *c) {
    struct columns found;
    for (int f = 0; f < FIELDS; f++) {
        const struct cJSON *v;
        int k = 0;
        found.at[f] = -1;
        cJSON_ArrayForEach(v, row) {
            if (found.at[f] < 0 && cJSON_IsString(v) && !strcasecmp(v->valuestring, names[f])) found.at[f] = k;
            k++;
        }
        if (found.at[f] < 0 && f != IS_ANSWER) return 0;
    }
    *c = found;
    return 1;
}

static int read_row(const struct record *r, struct cJSON *row, const struct columns *c, struct questions *out, struct err *e) {
    struct question q = {.text = cell(row, c->at[IS_TEXT]), .answer = -1, .row = row};
    const char *answer = cell(row, c->at[IS_ANSWER]);
    if (!*q.text) return record_error(r, 0, e, "there is no question; a row holds question,A,B,C,D,answer");
    for (int k = 0; k < CHOICES; k++) q.choice[k] = cell(row, c->at[IS_CHOICE + k]);
    while (*answer == ' ') answer++;
    if (*answer && (*answer < 'A' || *answer > 'D' || answer[1 + strspn(answer + 1, " ")]))
        return record_error(r, 0, e, "the answer is \"%.40s\", but must be A, B, C or D; a row holds question,A,B,C,D,answer", answer);
    if (*answer) q.answer = *answer - 'A';
    if (out->n == out->cap) {
        int64_t cap = out->cap ? 2 * out->cap : 64;
        struct question *p = sys_grow(out->q, (size_t)cap * sizeof *p, "questions", e);
        if (!p) return -1;
        out->q = p, out->cap = cap;
    }
    out->q[out->n++] = q;
    return 0;
}

int questions_read(const char *path, struct questions *out, struct err *e) {
    struct columns c = {{0, 1, 2, 3, 4, 5}};
    struct record r;
    struct reader *reader = reader_open(path, SHAPE_ROWS, e);
    int found = -1;
    *out = (struct questions){0};
    while (reader && (found = reader_next(reader, &r, e)) > 0) {
        struct cJSON *row = record_parse(&r, e);
        if (!row) found = -1;
        if (!row || (r.number == 1 && read_header(row, &c))) {
            json_free(row);
            if (found < 0) break;
        } else if (read_row(&r, row, &c, out, e)) {
            json_free(row);
            found = -1;
            break;
        }
    }
    reader_close(reader);
    if (found < 0) questions_free(out);
    return found < 0 ? -1 : 0;
}

void questions_free(struct questions *v) {
    for (int64_t i = 0; i < v->n; i++) json_free(v->q[i].row);
    sys_free(v->q);
    *v = (struct questions){0};
}

/* ---- mapping.json ---- */

enum { MAPPING_MAX = 16 << 20 };

static int read_subject(const struct cJSON *j, const char *path, struct subject *s, struct err *e) {
    char where[1400];
    *s = (struct subject){j->string, j->string, "Other"};
    snprintf(where, sizeof where, "%.1200s: %.100s", path, j->string);
    if (!cJSON_IsObject(j)) return err_set(e, ERR_INPUT, "%s is not an object", where);
    if (!path_is_basename(s->id)) return err_set(e, ERR_INPUT, "%s is not the name of a file", where);
    return json_str(j, "name", &s->name, where, e) < 0 || json_str(j, "category", &s->category, where, e) < 0 ? -1 : 0;
}

int subjects_read(const char *path, struct subjects *out, struct err *e) {
    *out = (struct subjects){.json = json_parse_file(path, MAPPING_MAX, e)};
    if (!out->json) return -1;
    int r = 0;
    if (!cJSON_IsObject(out->json))
        r = err_set(e, ERR_INPUT, "%s must be an object {\"SUBJECT\": {\"name\": .., \"category\": ..}, ..}", path);
    else if (!(out->s = sys_alloc_array((size_t)cJSON_GetArraySize(out->json), sizeof *out->s, "subjects", e))) r = -1;
    for (const struct cJSON *j = out->json->child; !r && j; j = j->next) r = read_subject(j, path, &out->s[out->n++], e);
    if (r) subjects_free(out);
    return r;
}

void subjects_free(struct subjects *v) {
    json_free(v->json);
    sys_free(v->s);
    *v = (struct subjects){0};
}
