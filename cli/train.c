/* cli/train.c - qlora train: the flags are a run's options already (cli/check.c). Predictions, and evaluations without
 * training, come after it (cli/predict.c). */
#include "base/log.h"
#include "cli/cli_internal.h"

int cmd_train(struct options *o, struct err *e) {
    const struct train_options *t = &o->train;
    int code = t->do_train ? train_run(t, e) : 0;
    if (code || t->dry_run || !(t->do_predict || (t->do_eval && !t->do_train))) return code;
    if (t->do_predict && !o->predict_with_generate) log_info("Please enable predict_with_generate to save model predictions; only the loss is measured.");
    return cli_predict(o, e);
}
