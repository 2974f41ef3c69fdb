/* backend/card.h - what a plan must know of a card, without the card.
 *
 * The plugin asks the driver for these facts, estimates take them from a table of names; the arithmetic on them is the same,
 * so that what is planned for a card by its name is what a run on it plans.
 *
 *     const struct card *c = card_named("l40s");
 *     struct backend *be = backend_card(c, e);      answers info and workspace, and computes nothing
 */
#ifndef QLORA_CARD_H
#define QLORA_CARD_H
#include "backend/backend.h"

struct card {
    const char *name, *title;
    int major, minor;        /* compute capability */
    int geforce;             /* products that accumulate in fp32 run at half the rate */
    int sms, mhz;            /* multiprocessors, highest clock */
    double bandwidth;        /* bytes/s of its memory */
    int64_t memory;          /* bytes */
};
extern const struct card cards[]; /* the last has no name */
const struct card *card_named(const char *name); /* either name, with or without its maker; NULL: not in the table */
/* The facts of a card as info tells them: all but name, detail and free bytes. */
void card_info(const struct card *c, struct backend_info *out);
struct backend *backend_card(const struct card *c, struct err *e);

/* Bytes in use on all cards of the machine together, by the driver's management library, which needs no context; -1: it is not there.
 * The difference around backend_open is what the context takes, if nobody else comes or goes meanwhile. */
int64_t card_used_bytes(void);

/* Bytes of the CUDA ops' workspace, part by part (what for: backend/cuda/cuda_internal.h); each begins at 256 bytes. */
struct card_work { size_t lt, w16, rank, dropped, partial, turns, taps, bias, pieces, loss_e, slices; };
void card_work(const struct backend_limits *l, struct card_work *w);
size_t card_work_bytes(const struct backend_limits *l);
#endif
