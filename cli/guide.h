/* cli/guide.h - what LLaMA-Factory's guide for Yuan 2.0 asks for, to stand beside our figures: GPU memory of each method, and hours
 * for the settings that it gives a time for, on one L40S: sequences of 1024, micro-batch 1, 16 accumulated, 10.02 million tokens. */
#ifndef QLORA_CLI_GUIDE_H
#define QLORA_CLI_GUIDE_H
#include "train/train.h"

struct guide_row {
    const char *model, *config, *method;
    double gb, hours;   /* hours 0: not given */
    enum finetuning finetuning;
    int bits;
};
enum { GUIDE_ROWS = 9 };
extern const struct guide_row guide[GUIDE_ROWS];
static const double GUIDE_TOKENS = 10.02e6;
/* Makes the run of o that of a row. */
void guide_apply(const struct guide_row *g, struct train_options *o);
#endif
