/* cli/predict.c - what qlora train does with a finished model: --do_predict, and --do_eval without --do_train.
 *
 * The model is opened anew, as chat does, with the adapter or the weights that training has just written. Without
 * predict_with_generate a prediction is an evaluation under another name; with it each record's last answer is generated
 * from what stands before it, one record after the other. */
#include "base/file.h"
#include "base/log.h"
#include "base/stop.h"
#include "base/sys.h"
#include "cli/cli_internal.h"
#include "cli/session.h"
#include "model/generate.h"
#include "train/eval.h"
#include "train/report.h"
#include "train/similarity.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

/* The evaluation data: eval_dataset, or the part that val_size names, or, when nothing is trained and compat is old, the
 * data set itself. */
static int load_data(const struct options *o, const struct tok *t, int prompts, struct dataset **out, struct err *e) {
    struct data_config c = o->train.data;
    struct dataset *first = NULL, *second = NULL;
    struct data_report report;
    c.prompts = prompts;
    if (prompts) c.tokenized_path = NULL; /* holds no prompts */
    if (c.eval_on_each && !prompts) return data_load_parts(&c, t, c.eval_dataset, out, &report, e);
    const int saved = data_is_saved(c.tokenized_path);
    if (c.eval_dataset && !saved) c.dataset = c.eval_dataset, c.eval_dataset = NULL, c.val_size = 0;
    else if (!o->train.do_train && !c.compat_new && !saved) c.val_size = 0;
    if (data_load(&c, t, &first, &second, &report, e)) return -1;
    const int apart = saved ? second != NULL : c.val_size > 0;
    *out = apart ? second : first;
    data_free(apart ? first : second);
    return 0;
}

static void set(struct report_metrics *t, const char *prefix, const char *name, double value) {
    char key[REPORT_NAME_MAX + 20];
    snprintf(key, sizeof key, "%.8s_%.*s", prefix, REPORT_NAME_MAX + 9, name);
    report_set(t, key, value);
}

/* SPLIT_results.json with loss, perplexity, accuracy. */
static int measure(struct session *s, const struct options *o, const char *split, struct err *e) {
    struct dataset *d = NULL;
    struct eval_result r;
    struct report_metrics t = {.n = 0};
    if (load_data(o, s->tok, 0, &d, e)) return -1;
    int rc = eval_alone(&s->model, &s->lora, s->adapters, d, o->train.eval_batch, o->train.compute_accuracy,
                        o->train.label_smoothing, &r, e);
    for (int k = 0; !rc && k < r.parts; k++) { /* names are the data set's */
        char name[REPORT_NAME_MAX + 10];
        snprintf(name, sizeof name, "%.*s_loss", REPORT_NAME_MAX - 1, r.part[k].name), set(&t, split, name, r.part[k].loss);
        snprintf(name, sizeof name, "%.*s_accuracy", REPORT_NAME_MAX - 1, r.part[k].name), set(&t, split, name, r.part[k].accuracy);
    }
    data_free(d);
    if (rc || r.stopped) return rc;
    set(&t, split, "loss", r.loss), set(&t, split, "accuracy", r.accuracy);
    if (o->train.data.compat_new) set(&t, split, "perplexity", exp(r.loss));
    else report_set(&t, "perplexity", exp(r.loss));
    report_set_speed(&t, split, r.seconds, r.sequences, r.batches);
    return report_write(&t, o->train.output_dir, split, e);
}

/* ---- answers ---- */

struct writer {
    struct session *s;
    const struct options *o;
    struct generator g;
    struct sampling how;
    struct ids said;      /* prompt and answer of the record at hand */
    struct str line, answer, label;
    struct out *file;
    struct similarity sum;
};

/* Tokens of a sequence that are its prompt: all up to the last masked one. */
static int64_t prompt_length(const struct sequence *q) {
    int64_t n = q->n;
    while (n && q->labels[n - 1] >= 0) n--;
    return n;
}

/* Room for the longest prompt with its answer, as far as the model has positions. */
static int open_generator(struct writer *w, const struct dataset *d, struct err *e) {
    int64_t longest = 1, most = w->s->model.config.max_positions;
    for (int64_t i = 0; i < data_count(d); i++) {
        struct sequence q;
        if (data_get(d, i, &q, e)) return -1;
        int64_t n = prompt_length(&q);
        if (n > longest) longest = n;
    }
    if (most < longest + 1) most = longest + 1;
    if (most > longest + w->o->max_new_tokens) most = longest + w->o->max_new_tokens;
    return generator_open(&w->g, &w->s->model, w->s->adapters ? &w->s->lora : NULL, w->s->adapters, most, e);
}

static int generate(struct writer *w, const struct sequence *q, struct err *e) {
    size_t prompt = (size_t)prompt_length(q), fed = 0;
    w->said.n = 0;
    generator_reset(&w->g);
    if (!prompt) return 0;
    if (ids_add(&w->said, q->ids, prompt, e)) return -1;
    while ((int64_t)(w->said.n - prompt) < w->o->max_new_tokens && (int64_t)w->said.n < w->g.capacity && !stop_requested()) {
        if (generator_feed(&w->g, w->said.p + fed, (int64_t)(w->said.n - fed), e)) return -1;
        fed = w->said.n;
        int32_t id = sample_next(&w->how, w->g.logits, w->s->ids, w->said.p, (int64_t)w->said.n, e);
        if (id < 0) return -1;
        if (id == tok_eod(w->s->tok) && w->o->skip_special) break;
        if (ids_push(&w->said, id, e)) return -1;
        if (id == tok_eod(w->s->tok)) break;
    }
    return stop_check("while an answer was generated", e);
}

static void add_text(struct str *line, const char *open, const struct str *text) {
    str_puts(line, open);
    str_json(line, text->p ? text->p : "", text->n);
}

/* Generates, compares, writes a line {"prompt": .., "predict": .., "label": ..}. */
static int answer(struct writer *w, const struct sequence *q, struct err *e) {
    struct similarity one;
    size_t prompt = (size_t)prompt_length(q);
    const int how = w->o->skip_special ? TOK_SKIP_SPECIAL : 0;
    if (generate(w, q, e)) return -1;
    str_clear(&w->line), str_clear(&w->answer), str_clear(&w->label);
    tok_decode(w->s->tok, q->ids, prompt, 0, &w->label);
    add_text(&w->line, "{\"prompt\": ", &w->label);
    str_clear(&w->label);
    tok_decode(w->s->tok, q->ids + prompt, (size_t)q->n - prompt, how, &w->label);
    if (w->said.n > prompt) tok_decode(w->s->tok, w->said.p + prompt, w->said.n - prompt, how, &w->answer);
    add_text(&w->line, ", \"predict\": ", &w->answer);
    add_text(&w->line, ", \"label\": ", &w->label);
    str_puts(&w->line, "}\n");
    if (w->line.oom || w->answer.oom || w->label.oom) return err_set(e, ERR_RUN, "out of memory: a line of predictions");
    if (similarity_of(w->answer.p ? w->answer.p : "", w->answer.n, w->label.p ? w->label.p : "", w->label.n, &one, e)) return -1;
    w->sum.bleu4 += one.bleu4, w->sum.rouge1 += one.rouge1, w->sum.rouge2 += one.rouge2, w->sum.rougel += one.rougel;
    return out_write(w->file, w->line.p, w->line.n, e);
}

static int write_metrics(const struct writer *w, int64_t n, double seconds, struct err *e) {
    struct report_metrics t = {.n = 0};
    double all = n ? (double)n : 1;
    int64_t batch = w->o->train.eval_batch;
    report_set(&t, "predict_bleu-4", w->sum.bleu4 / all), report_set(&t, "predict_rouge-1", w->sum.rouge1 / all);
    report_set(&t, "predict_rouge-2", w->sum.rouge2 / all), report_set(&t, "predict_rouge-l", w->sum.rougel / all);
    report_set_speed(&t, "predict", seconds, n, (n + batch - 1) / batch);
    return report_write(&t, w->o->train.output_dir, "predict", e);
}

/* generated_predictions.jsonl and predict_results.json. A signal ends the file with the record before. */
static int predict(struct session *s, const struct options *o, struct err *e) {
    struct writer w = {.s = s, .o = o, .how = {.greedy = !o->do_sample, .temperature = o->temperature, .top_p = o->top_p, .top_k = o->top_k,
                                               .repetition_penalty = o->repetition_penalty, .seed = o->train.seed}};
    struct dataset *d = NULL;
    char path[1200];
    int64_t n = 0, done = 0;
    int rc = -1;
    if (load_data(o, s->tok, 1, &d, e) || open_generator(&w, d, e) ||
        path_join(path, sizeof path, o->train.output_dir, "generated_predictions.jsonl", e) || !(w.file = out_open(path, e)))
        goto out;
    n = data_count(d);
    log_info("***** Running Prediction *****\n  Num examples = %lld\n  ROUGE takes each Chinese character for a word "
             "(LLaMA-Factory: the words that jieba finds)",
             (long long)n);
    double start = sys_seconds();
    for (struct sequence q; done < n; done++) {
        if (data_get(d, done, &q, e)) goto out;
        if (stop_requested()) break;
        if (answer(&w, &q, e)) {
            if (!stop_requested()) goto out;
            *e = (struct err){0};
            break;
        }
        log_progress(done + 1 == n, "predicting %lld of %lld", (long long)done + 1, (long long)n);
    }
    rc = out_commit(w.file, e);
    w.file = NULL;
    if (!rc && done == n) rc = write_metrics(&w, n, sys_seconds() - start, e);
    if (!rc) log_info("Saving prediction results to %s", path);
out:
    out_abort(w.file);
    ids_free(&w.said), str_free(&w.line), str_free(&w.answer), str_free(&w.label);
    generator_close(&w.g), data_free(d);
    return rc;
}

int cli_predict(const struct options *given, struct err *e) {
    struct options o = *given; /* borrows all texts */
    struct train_options *t = &o.train;
    struct session s = {0};
    int r = -1;
    if (t->do_train && t->finetuning == FT_LORA) t->adapter_name_or_path = t->output_dir;
    else if (t->do_train) t->model_name_or_path = t->output_dir;
    if (dir_make(t->output_dir, e) || session_open(&s, &o, e)) goto out;
    if (!s.tok) {
        err_set(e, ERR_INPUT, "%s has no tokenizer.model, so no data can be read", t->model_name_or_path);
        goto out;
    }
    r = t->do_eval && !t->do_train ? measure(&s, &o, "eval", e) : 0;
    if (!r && t->do_predict && !stop_requested()) r = o.predict_with_generate ? predict(&s, &o, e) : measure(&s, &o, "predict", e);
out:
    session_close(&s);
    return r ? e->code : stop_requested() ? 128 + stop_requested() : 0;
}
