/* cli/guide.h - what LLaMA-Factory's guide for Yuan 2.0 gives, to stand beside our figures, in two tables: the GPU memory of each
 * method and size; and, for two settings, memory and hours on one L40S: sequences of 1024, micro-batch 1, 16 accumulated, 10.02
 * million tokens. */
#ifndef QLORA_CLI_GUIDE_H
#define QLORA_CLI_GUIDE_H
#include "train/train.h"

struct guide_row {
    const char *model, *config, *method;
    double gb;              /* of the table of memory */
    double timed_gb, hours; /* of the table of times; hours 0: it has no such row */
    enum finetuning finetuning;
    int bits;
};
enum { GUIDE_ROWS = 9 };
extern const struct guide_row guide[GUIDE_ROWS];
static const double GUIDE_TOKENS = 10.02e6;
static const char GUIDE_CARD[] = "L40S"; /* of the times */
enum { GUIDE_CARDS = 1 };
/* Makes the run of o that of a row. */
void guide_apply(const struct guide_row *g, struct train_options *o);
#endif
