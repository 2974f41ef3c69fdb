/* train/params_internal.h - what params.c and update.c share */
#ifndef QLORA_TRAIN_PARAMS_INTERNAL_H
#define QLORA_TRAIN_PARAMS_INTERNAL_H
#include "train/params.h"

/* Where the model holds bf16, fp32 masters of everything lie beside the moments, of what its pages hold in fp32 too. */
int params_masters(const struct params *q);
/* A layer's page is made anew from its masters: what it held is not needed. */
int params_replaces(const struct params *q);
/* Where a group's values, or the copies of them, live. */
struct pages *params_home(const struct params *q, int64_t group, int64_t *page);

/* The thread that updates the processor's groups; q->host is open. */
int update_open(struct params *q, struct err *e);
void update_close(struct params *q); /* without one, nothing */
#endif
