/* cli/train.c - qlora train: the flags are a run's options already (cli/check.c). Predictions, and evaluations without
 * training, come after it (cli/predict.c). */
#include "base/log.h"
#include "base/print.h"
#include "base/str.h"
#include "cli/cli_internal.h"
#include <stdio.h>
#include <string.h>

/* --dry_run: all settings in force, as a file that qlora train reads. */
static int print_settings(const struct options *o, struct err *e) {
    struct str s = {0};
    for (int i = 0; i < flag_count; i++)
        if (flags[i].commands >> CMD_TRAIN & 1 && flags[i].status == USED && strcmp(flags[i].name, "dry_run")) flag_print(o, &flags[i], &s);
    int r = s.oom ? err_set(e, ERR_RUN, "out of memory: the settings") : 0;
    if (!r) print_text("# settings\n"), print_bytes(s.p, s.n);
    str_free(&s);
    return r;
}

/* --tokenized_path, where nothing is saved yet. */
static int tokenise(const struct data_config *c, const char *model, struct err *e) {
    struct dataset *train = NULL, *eval = NULL;
    struct data_report report;
    struct tok *t = tok_open(model, e);
    const int rc = !t || data_load(c, t, &train, &eval, &report, e) || data_save(c, t, train, eval, report.records, e);
    if (!rc)
        log_info("Tokenized dataset is saved at %s.\nPlease launch the training with `--tokenized_path %s`.", c->tokenized_path,
                 c->tokenized_path);
    data_free(train), data_free(eval), tok_close(t);
    return rc ? e->code : 0;
}

int cmd_train(struct options *o, struct err *e) {
    const struct train_options *t = &o->train;
    if (t->dry_run && print_settings(o, e)) return e->code;
    if (t->data.tokenized_path && !t->dry_run && !data_is_saved(t->data.tokenized_path))
        return tokenise(&t->data, t->model_name_or_path, e);
    int code = t->do_train ? train_run(t, e) : 0;
    if (code || t->dry_run || !(t->do_predict || (t->do_eval && !t->do_train))) return code;
    if (t->do_predict && !o->predict_with_generate)
        log_info("Please enable predict_with_generate to save model predictions; only the loss is measured.");
    return cli_predict(o, e);
}
