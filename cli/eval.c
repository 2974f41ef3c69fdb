/* cli/eval.c - qlora eval: multiple-choice questions in the C-Eval/MMLU/CMMLU form, as LLaMA-Factory's evaluate.py asks them.
 *
 *     TASK_DIR/NAME/mapping.json                  {"SUBJECT": {"name": "shown in the prompt", "category": "STEM"}, ..}
 *     TASK_DIR/NAME/SUBJECT_{dev,val,test}.csv    or dev/SUBJECT_dev.csv and so on
 *
 * A question is a chat: the first n_shot rows of dev with their answers as turns before it, then the question itself. The
 * answer is the letter with the largest log-probability as next token. Prompts of a subject go through the layers together. */
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/print.h"
#include "base/stop.h"
#include "base/sys.h"
#include "cli/cli_internal.h"
#include "cli/session.h"
#include "datasets/questions.h"
#include "model/engine.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { CATEGORIES_MAX = 64, PASS = 256 };

/* lang en, zh; the first text of a prompt is told the subject */
static const struct { const char *before, *after, *answer_old, *answer_new; } words[] = {
    {"The following are multiple choice questions (with answers) about ", ".\n\n", "\nAnswer: ", "\nAnswer:"},
    {"以下是中国关于", "考试的单项选择题，请选出其中的正确答案。\n\n", "\n答案：", "\n答案："},
};

struct category { const char *name; int64_t asked, right; };
struct exam {
    const struct options *o;
    struct session s;
    struct engine g;
    struct batch b;
    int64_t rows;              /* of a chunk; 0 = not open yet */
    int32_t letter[CHOICES];   /* ids of A, B, C, D at the beginning of an answer */
    struct category category[CATEGORIES_MAX]; /* the first is all together */
    int categories;
    int64_t shortened, secret; /* prompts with fewer examples than n_shot for lack of positions; questions without an answer */
    struct str results;        /* results.json */
};
struct prompts { struct ids *p; int64_t n; };

/* ---- prompts ---- */

static void add_question(const struct exam *x, const struct question *q, struct str *s) {
    str_puts(s, q->text);
    for (int k = 0; k < CHOICES; k++) str_printf(s, "\n%c. ", 'A' + k), str_puts(s, q->choice[k]);
    str_puts(s, x->o->train.data.compat_new ? words[x->o->lang].answer_new : words[x->o->lang].answer_old);
}

/* The ids of a question behind examples first .. n-1. */
static int encode(const struct exam *x, const char *subject, const struct questions *dev, int64_t first, int64_t n,
                  const struct question *q, struct ids *out, struct err *e) {
    enum tok_template kind = x->o->train.data.compat_new ? TEMPLATE_YUAN_NEW : TEMPLATE_YUAN_OLD;
    struct str s = {0};
    int r = 0;
    out->n = 0;
    for (int64_t k = first; !r && k <= n; k++) {
        const struct question *asked = k < n ? &dev->q[k] : q;
        str_clear(&s);
        if (k == first) str_printf(&s, "%s%s%s", words[x->o->lang].before, subject, words[x->o->lang].after);
        add_question(x, asked, &s);
        if (s.oom) r = err_set(e, ERR_RUN, "out of memory: a prompt");
        else r = template_source(x->s.tok, kind, (int)(k - first), NULL, 0, s.p, s.n, out, e);
        char letter = (char)('A' + asked->answer);
        if (!r && k < n) r = template_target(x->s.tok, kind, &letter, asked->answer < 0 ? 0 : 1, out, e);
    }
    str_free(&s);
    return r;
}

static int make_prompts(struct exam *x, const char *subject, const struct questions *dev, const struct questions *asked,
                        struct prompts *out, struct err *e) {
    int64_t shots = x->o->n_shot < dev->n ? x->o->n_shot : dev->n;
    if (!(out->p = sys_alloc_array((size_t)asked->n, sizeof *out->p, "prompts", e))) return -1;
    for (; out->n < asked->n; out->n++) {
        struct ids *p = &out->p[out->n];
        for (int64_t first = 0; first <= shots; first++) { /* the oldest examples go first */
            if (encode(x, subject, dev, first, shots, &asked->q[out->n], p, e)) return ids_free(p), -1;
            if ((int64_t)p->n <= x->s.model.config.max_positions) break;
            x->shortened += first == 0 && shots > 0;
        }
    }
    return 0;
}

static void free_prompts(struct prompts *v) {
    for (int64_t i = 0; i < v->n; i++) ids_free(&v->p[i]);
    sys_free(v->p);
    *v = (struct prompts){0};
}

/* ---- answers ---- */

/* Engine and batch for chunks of at least `rows`; two chunks are a pass. */
static int make_room(struct exam *x, int64_t rows, struct err *e) {
    struct backend_info info;
    if (rows <= x->rows) return 0;
    x->s.be->info(x->s.be->self, &info);
    int64_t usual = info.unified ? 1024 : 8192;
    batch_close(&x->b), engine_close(&x->g);
    x->rows = rows < usual ? usual : rows;
    struct engine_config k = {.rows = x->rows,
                              .chunks = 5,
                              .longest = x->rows,
                              .resident_acts = -1, /* two neighbours hold more than one's rows */
                              .lora = x->s.adapters ? &x->s.lora : NULL,
                              .adapters = x->s.adapters};
    return engine_open(&x->g, &x->s.model, &k, e) ||
                   batch_open(&x->b, x->s.be, x->rows, x->rows, 2 * x->rows + CHOICES * PASS, PASS, e)
               ? -1
               : 0;
}

/* The letters (0 .. 3) for all prompts. */
static int answer(struct exam *x, const struct prompts *v, int *out, struct err *e) {
    struct batch_sequence s[PASS];
    int64_t longest = 1;
    for (int64_t i = 0; i < v->n; i++) longest = (int64_t)v->p[i].n > longest ? (int64_t)v->p[i].n : longest;
    if (make_room(x, longest, e)) return -1;
    for (int64_t done = 0, n; done < v->n && !stop_requested(); done += n) {
        int64_t rows = 0;
        for (n = 0; n < PASS && done + n < v->n && rows + (int64_t)v->p[done + n].n <= 2 * x->rows; n++) {
            const struct ids *p = &v->p[done + n];
            s[n] = (struct batch_sequence){.ids = p->p, .n = (int64_t)p->n, .choices = x->letter, .n_choices = CHOICES};
            rows += s[n].n;
        }
        batch_fill(&x->b, &x->s.model.config, s, n);
        if (engine_losses(&x->g, &x->b, e)) return -1;
        for (int64_t i = 0; i < n; i++) {
            const float *nll = x->b.nll + x->b.loss_of[i];
            int best = 0;
            for (int k = 0; k < CHOICES; k++) {
                if (!isfinite(nll[k]))
                    return err_set(e, ERR_NONFINITE,
                                   "the model gave a letter no finite probability: its weights or the adapter are damaged");
                if (nll[k] < nll[best]) best = k;
            }
            out[done + i] = best;
        }
    }
    return 0;
}

/* ---- subjects ---- */

static struct category *category(struct exam *x, const char *name, struct err *e) {
    for (int i = 0; i < x->categories; i++)
        if (!strcmp(x->category[i].name, name)) return &x->category[i];
    if (x->categories == CATEGORIES_MAX) return err_set(e, ERR_INPUT, "mapping.json names more than %d categories", CATEGORIES_MAX), NULL;
    x->category[x->categories] = (struct category){.name = name};
    return &x->category[x->categories++];
}

static int read_split(const char *dir, const char *subject, const char *split, struct questions *out, struct err *e) {
    char path[3000], other[3000];
    snprintf(path, sizeof path, "%s/%s_%s.csv", dir, subject, split);
    snprintf(other, sizeof other, "%s/%s/%s_%s.csv", dir, split, subject, split);
    if (path_is_file(path) || path_is_file(other)) return questions_read(path_is_file(path) ? path : other, out, e);
    return err_set(e, ERR_INPUT, "there is neither %s nor %s", path, other);
}

/* Adds a subject's answers to the counts and to results.json. */
static void note(struct exam *x, const char *id, const struct questions *asked, const int *given, struct category *c) {
    str_puts(&x->results, x->results.n > 1 ? ",\n  " : "\n  ");
    str_json(&x->results, id, strlen(id));
    str_puts(&x->results, ": {");
    for (int64_t i = 0; i < asked->n; i++) {
        str_printf(&x->results, "%s\n    \"%lld\": \"%c\"", i ? "," : "", (long long)i, 'A' + given[i]);
        if (asked->q[i].answer < 0) {
            x->secret++;
            continue;
        }
        int right = given[i] == asked->q[i].answer;
        x->category[0].asked++, x->category[0].right += right;
        if (c != x->category) c->asked++, c->right += right;
    }
    str_puts(&x->results, asked->n ? "\n  }" : "}");
}

static int examine(struct exam *x, const char *dir, const char *split, const struct subject *subject, struct err *e) {
    struct questions dev = {0}, asked = {0};
    struct prompts v = {0};
    struct category *c;
    int *given = NULL, r = -1;
    if (!(c = category(x, subject->category, e))) return -1;
    if ((x->o->n_shot && read_split(dir, subject->id, "dev", &dev, e)) || read_split(dir, subject->id, split, &asked, e)) goto out;
    for (; x->o->limit && asked.n > x->o->limit; asked.n--) json_free(asked.q[asked.n - 1].row);
    if (!(given = sys_alloc_array((size_t)asked.n, sizeof *given, "answers", e)) ||
        make_prompts(x, subject->name, &dev, &asked, &v, e) || answer(x, &v, given, e))
        goto out;
    note(x, subject->id, &asked, given, c);
    r = 0;
out:
    sys_free(given), free_prompts(&v), questions_free(&dev), questions_free(&asked);
    return r;
}

/* ---- the whole ---- */

/* "ceval_validation": the folder ceval, the files .._val.csv. */
static int read_task(const struct options *o, char dir[1200], const char **split, struct err *e) {
    static const char *const splits[][2] = {{"_validation", "val"}, {"_val", "val"}, {"_test", "test"}, {"_dev", "dev"}, {"_train", "dev"}};
    for (size_t i = 0; i < sizeof splits / sizeof *splits; i++) {
        size_t n = strlen(o->task), cut = strlen(splits[i][0]);
        if (n <= cut || !text_ends(o->task, splits[i][0])) continue;
        if (snprintf(dir, 1200, "%s/%.*s", o->task_dir, (int)(n - cut), o->task) >= 1200)
            return err_set(e, ERR_INPUT, "task_dir is too long");
        *split = splits[i][1];
        if (path_is_dir(dir)) return 0;
        return err_set(e, ERR_INPUT, "there is no folder %s; task %s is read from there (see --task_dir)", dir, o->task);
    }
    return err_set(e, ERR_INPUT,
                   "task %s does not say which questions: it must end in _validation or _test, as in ceval_validation, "
                   "mmlu_test, cmmlu_test",
                   o->task);
}

static int find_letters(struct exam *x, struct err *e) {
    struct ids ids = {0};
    for (int k = 0; k < CHOICES; k++) {
        char c = (char)('A' + k);
        ids.n = 0;
        if (tok_encode(x->s.tok, &c, 1, 0, &ids, e)) return ids_free(&ids), -1;
        x->letter[k] = ids.p[ids.n - 1];
    }
    ids_free(&ids);
    return 0;
}

/* results.json comes last: without it the folder is one of an exam that failed, and may be used again. */
static int save(const struct exam *x, const struct str *log, struct err *e) {
    char path[1300];
    const char *dir = x->o->save_dir;
    if (!dir) return 0;
    if (dir_make(dir, e) || path_join(path, sizeof path, dir, "results.log", e) ||
        file_write_all(path, log->n ? log->p : "", log->n, e))
        return -1;
    return path_join(path, sizeof path, dir, "results.json", e) || file_write_all(path, x->results.p, x->results.n, e) ? -1 : 0;
}

/* 1: save_dir holds something else than what a failed exam left there. */
static int occupied(const char *dir) {
    char **names;
    int n, other = 0;
    if (!path_exists(dir)) return 0;
    if (!path_is_dir(dir) || dir_list(dir, &names, &n, NULL)) return 1;
    for (int i = 0; i < n; i++) other |= strcmp(names[i], "results.log") && !strstr(names[i], ".tmp.");
    dir_list_free(names, n);
    return other;
}

static int conclude(struct exam *x, struct err *e) {
    struct str log = {0};
    for (int i = 0; i < x->categories; i++)
        if (x->category[i].asked)
            str_printf(&log, "%s%15s: %.2f", log.n ? "\n" : "", x->category[i].name,
                       100 * (double)x->category[i].right / (double)x->category[i].asked);
    str_puts(&x->results, x->results.n > 1 ? "\n}" : "}");
    int r = log.oom || x->results.oom ? err_set(e, ERR_RUN, "out of memory: results") : save(x, &log, e);
    if (!r && log.n) print_bytes(log.p, log.n), print_text("\n");
    if (x->shortened)
        log_warn("%lld questions were asked with fewer than n_shot examples: all would not fit the model's %lld positions",
                 (long long)x->shortened, (long long)x->s.model.config.max_positions);
    if (x->secret)
        log_warn("%lld questions have no answer in their file and are not counted; save_dir/results.json holds the model's",
                 (long long)x->secret);
    str_free(&log);
    return r;
}

static int all_subjects(struct exam *x, const char *dir, const char *split, struct err *e) {
    static const char *const known[] = {"Average", "STEM", "Social Sciences", "Humanities", "Other"}; /* in the order of the table */
    char path[1300];
    struct subjects all;
    int r = 0;
    if (path_join(path, sizeof path, dir, "mapping.json", e) || subjects_read(path, &all, e)) return -1;
    for (size_t k = 0; k < sizeof known / sizeof *known; k++) category(x, known[k], e);
    str_putc(&x->results, '{');
    for (int64_t i = 0; !r && i < all.n && !stop_requested(); i++) {
        r = examine(x, dir, split, &all.s[i], e);
        log_progress(i + 1 == all.n, "asked %lld of %lld subjects", (long long)i + 1, (long long)all.n);
    }
    if (!r && !stop_requested()) r = conclude(x, e); /* before the names go */
    subjects_free(&all);
    return r;
}

int cmd_eval(struct options *o, struct err *e) {
    struct exam *x = sys_alloc(sizeof *x, "exam", e);
    char dir[1200];
    const char *split = "";
    int r = -1;
    if (!x) return e->code;
    x->o = o;
    if (o->save_dir && occupied(o->save_dir)) err_set(e, ERR_INPUT, "save_dir %s exists already; choose another", o->save_dir);
    else if (!read_task(o, dir, &split, e) && !session_open(&x->s, o, e)) {
        if (!x->s.tok) err_set(e, ERR_INPUT, "%s has no tokenizer.model, so questions cannot be read", o->train.model_name_or_path);
        else {
            if (o->n_shot && x->s.model.config.document_mask)
                log_warn("examples end in <eod>, and this model's attention does not reach behind it (config.json: "
                         "reset_attention_mask): they hardly change its answers");
            r = find_letters(x, e) || all_subjects(x, dir, split, e) ? -1 : 0;
        }
    }
    batch_close(&x->b), engine_close(&x->g), session_close(&x->s), str_free(&x->results);
    sys_free(x);
    return r ? e->code : stop_requested() ? 128 + stop_requested() : 0;
}
