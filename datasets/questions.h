/* datasets/questions.h - multiple-choice questions in the CSV forms of MMLU, C-Eval and CMMLU.
 *
 * With a header row, which names question, A, B, C, D and perhaps answer in any case and order (C-Eval, CMMLU); without one
 * the first six columns are these (MMLU). The answer is one of the letters, or empty where it is kept secret.
 */
#ifndef QLORA_DATASETS_QUESTIONS_H
#define QLORA_DATASETS_QUESTIONS_H
#include "base/err.h"
#include <stdint.h>

enum { CHOICES = 4 };
struct question {
    const char *text, *choice[CHOICES];
    int answer;       /* 0 .. 3, -1: not told */
    struct cJSON *row; /* owns the texts */
};
struct questions { struct question *q; int64_t n, cap; };
int questions_read(const char *path, struct questions *out, struct err *e);
void questions_free(struct questions *v);

/* mapping.json: {"SUBJECT": {"name": "shown in the prompt", "category": "STEM"}, ..}, in its order. */
struct subject { const char *id, *name, *category; }; /* id names files: no path */
struct subjects { struct subject *s; int64_t n; struct cJSON *json; /* owns the texts */ };
int subjects_read(const char *path, struct subjects *out, struct err *e);
void subjects_free(struct subjects *v);
#endif
