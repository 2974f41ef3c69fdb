/* cli/train.c - qlora train: the flags are a run's options already (cli/check.c). */
#include "cli/cli.h"

int cmd_train(struct options *o, struct err *e) { return train_run(&o->train, e); }
