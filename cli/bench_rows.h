/* cli/bench_rows.h - the results of qlora bench, between running (bench.c), tables (bench_table.c) and the curve (bench_curve.c). */
#ifndef QLORA_CLI_BENCH_ROWS_H
#define QLORA_CLI_BENCH_ROWS_H
#include "base/str.h"
#include "cli/guide.h"
#include "train/bench.h"

struct bench_row {
    char model[40], method[40];
    const struct guide_row *guide; /* or NULL */
    int64_t vram;                  /* 0: what is free */
    int64_t sequence, micro, global;
    int measured;                  /* else the plan's figures, because of `why` */
    char why[300];
    struct bench_result r;
};
struct bench_machine {
    const char *name;
    double ceiling;                /* FLOP/s of products, in the same run */
    int64_t context;               /* bytes of the card's context; 0: no card, -1: not known */
};
double bench_row_speed(const struct bench_row *x);  /* tokens/s, measured or planned */
double bench_row_hours(const struct bench_row *x);  /* for GUIDE_TOKENS */
int64_t bench_row_bytes(const struct bench_row *x); /* of the card behind its context: taken, or where that is not known planned */

void bench_text(const struct bench_row *x, int n, const struct bench_machine *m, struct str *s);
/* Both tables of the guide; every row of x belongs to one of guide[]. */
void bench_text_guide(const struct bench_row *x, int n, const struct bench_machine *m, struct str *s);
/* A line for each row; of the guide's, one for each row of its two tables. */
void bench_json(const struct bench_row *x, int n, const struct bench_machine *m, struct str *s);
/* Speed over memory, a dot for each run, hollow where it is estimated: path ends in .svg or .png. */
int bench_curve(const char *path, const struct bench_row *x, int n, const struct bench_machine *m, struct err *e);
#endif
