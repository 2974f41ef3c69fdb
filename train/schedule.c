/* train/schedule.c - see schedule.h. The order of operations is that of Python's, so that factors agree to the last bit
 * (linear) or to the library's cosine. */
#include "train/schedule.h"
#include <math.h>

int64_t schedule_warmup(double steps, double ratio, int64_t total) {
    if (steps >= 1) return (int64_t)fmin(steps, 0x1p62);
    return (int64_t)ceil((double)total * (steps > 0 ? steps : ratio));
}

double schedule_factor(enum schedule kind, int64_t step, int64_t warmup, int64_t total) {
    if (kind == LR_CONSTANT) return 1;
    if (step < warmup) return (double)step / (double)warmup;
    if (kind == LR_CONSTANT_WARMUP) return 1;
    double decay = total > warmup ? (double)(total - warmup) : 1;
    if (kind == LR_LINEAR) return fmax(0, (double)(total - step) / decay);
    double p = (double)(step - warmup) / decay;
    return fmax(0, 0.5 * (1 + cos(M_PI * p)));
}
