/* tests/run/nan_card.c - a plugin over another backend that puts one NaN into what an operation reads or writes.
 *
 *     QLORA_NAN=PLACE:N[:M]  at call N (from 1) of the place's operation, and at M - 1 more that follow
 *     QLORA_NAN=count:0      nowhere; the calls of all places are told at the end
 *     QLORA_UNDER=cuda       the backend below, "cpu" unless given
 *
 * The names of places are in the wrappers below. What is poisoned is backend memory, written through put, so any backend can be
 * under it. */
#include "backend/backend.h"
#include "base/log.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct backend top, *below;
static long long at, times = 1, calls;
static char place[24];

static struct { const char *name; long long calls; } counted[40];

static void count(const char *name) {
    int i = 0;
    while (counted[i].name && strcmp(counted[i].name, name)) i++;
    ASSERT(i < 39, "%s is one place too many", name);
    counted[i].name = name, counted[i].calls++;
}

/* Is it this operation's turn? */
static int due(const char *name) {
    if (!at) count(name);
    if (strcmp(name, place)) return 0;
    calls++;
    return calls >= at && calls < at + times;
}

static void poison(void *p, enum dtype type) {
    static const uint16_t bf16 = 0x7fc0;
    static const float f32 = NAN;
    if (type == DT_BF16) below->put(below->self, p, &bf16, 2, Q_COMPUTE);
    else below->put(below->self, p, &f32, 4, Q_COMPUTE);
}
/* The middle element, so that it is in no corner that an op treats specially. */
static void poison_mat(const struct mat *m) {
    size_t size = dtype_bytes(m->type);
    if (m->data) poison((char *)m->data + ((size_t)(m->rows / 2 * m->ld) + (size_t)(m->cols / 2)) * size, m->type);
}
static void poison_floats(const float *p, int64_t n) { poison((void *)(uintptr_t)(p + n / 2), DT_F32); }

/* A scale of a quantised weight, or a value of a plain one. */
static void poison_weight(const struct weight *w) {
    const int64_t n = w->rows * w->cols;
    if (w->format == W_Q4 && w->q4.nested_absmax) poison_floats(w->q4.nested_absmax, 1);
    else if (w->format == W_Q4) poison_floats(w->q4.absmax, n / w->q4.block);
    else if (w->format == W_INT8) poison_floats(w->scale, w->rows);
    else poison_mat(&(struct mat){(void *)(uintptr_t)w->data, w->rows, w->cols, w->cols, w->format == W_BF16 ? DT_BF16 : DT_F32});
}

static void embed(void *self, const struct embed_args *a) {
    if (due("embedding")) poison_mat(&a->E);
    below->embed(self, a);
    if (due("embed")) poison_mat(&a->y);
}
static void norm(void *self, const struct norm_args *a) {
    if (due("norm_weight")) poison((char *)(uintptr_t)a->g, a->g_type);
    below->norm(self, a);
    if (due("norm")) poison_mat(&a->y);
}
static void norm_bwd(void *self, const struct norm_args *a) {
    below->norm_bwd(self, a);
    if (due("norm_dx")) poison_mat(&a->dx);
}
static void linear(void *self, const struct linear_args *a) {
    if (!a->joint.data && due("weight")) poison_weight(&a->out[0].w);
    if (!a->joint.data && a->out[0].lora.A.data && due("lora_A")) poison_mat(&a->out[0].lora.A);
    if (!a->joint.data && a->out[0].lora.B.data && due("lora_B")) poison_mat(&a->out[0].lora.B);
    below->linear(self, a);
    if (a->out[0].y.data && due("linear")) poison_mat(&a->out[0].y);
    if (a->out[0].xa.data && due("xa")) poison_mat(&a->out[0].xa);
}
static void linear_bwd(void *self, const struct linear_args *a) {
    below->linear_bwd(self, a);
    if (a->dx.data && due("linear_dx")) poison_mat(&a->dx);
    if (a->out[0].lora.dA.data && due("dA")) poison_mat(&a->out[0].lora.dA);
    if (a->out[0].lora.dB.data && due("dB")) poison_mat(&a->out[0].lora.dB);
    if (a->out[0].dW.data && due("dW")) poison_mat(&a->out[0].dW);
}
static void join(void *self, const struct join_args *a) { /* where there are joint operands, linear reads these alone */
    const struct adapter *lora = &a->part[0].lora;
    if (due("weight")) poison_weight(&a->part[0].w);
    if (lora->A.data && due("lora_A")) poison_mat(&lora->A);
    if (lora->B.data && due("lora_B")) poison_mat(&lora->B);
    below->join(self, a);
}
static void filter(void *self, const struct filter_args *a) {
    below->filter(self, a);
    if (due("filter")) poison_mat(&a->y);
}
static void filter_bwd(void *self, const struct filter_args *a) {
    below->filter_bwd(self, a);
    if (a->dx.data && due("filter_dx")) poison_mat(&a->dx);
}
static void rope(void *self, const struct rope_args *a) {
    below->rope(self, a);
    if (due("rope")) poison_mat(&a->x);
}
static void attend(void *self, const struct attend_args *a) {
    below->attend(self, a);
    if (due("attend")) poison_mat(&a->o);
    if (a->lse && due("lse")) poison_floats(a->lse, a->rows->N * a->H);
}
static void attend_bwd(void *self, const struct attend_args *a) {
    below->attend_bwd(self, a);
    if (due("attend_dq")) poison_mat(&a->dq);
    if (due("attend_dv")) poison_mat(&a->dv);
}
static void gate(void *self, const struct gate_args *a) {
    below->gate(self, a);
    if (due("gate")) poison_mat(&a->y);
}
static void gate_bwd(void *self, const struct gate_args *a) {
    below->gate_bwd(self, a);
    if (due("gate_dg")) poison_mat(&a->dg);
}
static void loss(void *self, const struct loss_args *a) {
    below->loss(self, a);
    if (a->n && due("loss")) poison_floats(a->nll, a->n);
    if (a->dy.data && due("loss_dy")) poison_mat(&a->dy);
}
static void sqsum(void *self, const struct sqsum_args *a) {
    if (due("gradient")) poison_floats(a->x[0], a->n[0]);
    below->sqsum(self, a);
}
static void adam(void *self, const struct adam_args *a) {
    const struct adam_tensor *t = a->tensors;
    if (due("moment")) poison_floats(t->m ? t->m : t->m_absmax, t->m ? t->n : 1);
    below->adam(self, a);
    if (due("master")) poison_floats(t->p, t->n);
}
static void close_card(void *self) {
    for (int i = 0; counted[i].name; i++) log_info("QLORA_NAN: %lld calls of %s", counted[i].calls, counted[i].name);
    below->close(self);
}

struct backend *qlora_backend(int version, struct err *e);
__attribute__((visibility("default"))) struct backend *qlora_backend(int version, struct err *e) {
    const char *s = getenv("QLORA_NAN"), *under = getenv("QLORA_UNDER");
    if (version != BACKEND_VERSION || (s && sscanf(s, "%23[^:]:%lld:%lld", place, &at, &times) < 2)) return NULL;
    if (!(below = backend_open(under ? under : "cpu", e))) return NULL;
    top = *below; /* self is that of below, so the functions that stay are called as before; a lost card shows in sync */
    top.embed = embed, top.norm = norm, top.norm_bwd = norm_bwd, top.linear = linear, top.linear_bwd = linear_bwd, top.join = below->join ? join : NULL;
    top.filter = filter, top.filter_bwd = filter_bwd, top.rope = rope, top.attend = attend, top.attend_bwd = attend_bwd;
    top.gate = gate, top.gate_bwd = gate_bwd, top.loss = loss, top.sqsum = sqsum, top.adam = adam, top.close = close_card;
    return &top;
}
