/* model/block.c - see block.h. Backward is forward read from the bottom up. */
#include "model/block.h"

static const float FILTER_EPS = 1e-6f; /* of lf_gate's norm, whatever rms_norm_eps says */

/* Takes the next (rows, cols) matrix out of an arena; with p NULL only counts. */
static struct mat take(char **p, size_t *at, int64_t rows, int64_t cols, enum dtype type) {
    struct mat m = {.data = *p ? *p + *at : NULL, .rows = rows, .cols = cols, .ld = cols, .type = type};
    *at += ((size_t)(rows * cols) * dtype_bytes(type) + 255) / 256 * 256;
    return m;
}

static size_t saved_lay(const struct model_config *c, enum dtype act, unsigned targets, int64_t R, int64_t n, char *p, struct saved *s) {
    size_t at = 0;
    int64_t D = c->D, F = c->F;
    struct mat *const m[] = {&s->a, &s->u, &s->s, &s->b, &s->qk, &s->v, &s->o, &s->x1, &s->c, &s->g, &s->up};
    const int64_t cols[] = {D, D / 2, D, D, 2 * D, D, D, D, D, F, F};
    for (int i = 0; i < 11; i++) *m[i] = take(&p, &at, n, cols[i], act);
    for (int i = 0; i < PROJ_COUNT; i++) s->xa[i] = targets >> i & 1 ? take(&p, &at, n, R, act) : (struct mat){0};
    s->lse = take(&p, &at, n, c->H, DT_F32).data;
    float **const r[] = {&s->r1, &s->rf, &s->r2};
    for (int i = 0; i < 3; i++) *r[i] = take(&p, &at, n, 1, DT_F32).data;
    return at;
}
size_t saved_bytes(const struct model_config *c, enum dtype act, unsigned targets, int64_t R, int64_t rows) {
    struct saved s;
    return saved_lay(c, act, targets, R, rows, NULL, &s);
}
void saved_view(const struct model_config *c, enum dtype act, unsigned targets, int64_t R, int64_t rows, void *p, struct saved *s) {
    saved_lay(c, act, targets, R, rows, p, s);
}

static size_t scratch_lay(const struct model_config *c, enum dtype act, int64_t n, int backward, char *p, struct scratch *t) {
    size_t at = 0;
    int64_t D = c->D;
    *t = (struct scratch){.m = take(&p, &at, n, c->F, act)};
    if (!backward) return at;
    struct mat *const m[] = {&t->dm, &t->dD, &t->do_, &t->dqk, &t->dv, &t->ds, &t->du};
    const int64_t cols[] = {c->F, D, D, 2 * D, D, D, D / 2};
    for (int i = 0; i < 7; i++) *m[i] = take(&p, &at, n, cols[i], act);
    t->delta = take(&p, &at, n, c->H, DT_F32).data;
    return at;
}
size_t scratch_bytes(const struct model_config *c, enum dtype act, int64_t rows, int backward) {
    struct scratch t;
    return scratch_lay(c, act, rows, backward, NULL, &t);
}
void scratch_view(const struct model_config *c, enum dtype act, int64_t rows, int backward, void *p, struct scratch *t) {
    scratch_lay(c, act, rows, backward, p, t);
}

/* One output of a linear: its weight, adapter, kept xa, dropout site, and in backward the weight's gradient. */
static struct linear_out out(const struct block *b, enum proj p, struct mat y, struct mat dy) {
    struct linear_out o = {.w = b->w->proj[p], .y = y, .dy = dy};
    if (b->lora && b->lora[p].A.data) {
        o.lora = b->lora[p];
        o.xa = mat_rows(b->s->xa[p], 0, b->rows->N);
        o.drop = b->drop;
        o.drop.site = (uint32_t)p;
    }
    if (b->grads) o.dW = b->grads->proj[p];
    return o;
}

static void norm(const struct block *b, struct mat x, struct mat y, const float *g, float *r, float eps) {
    op_norm(b->be, &(struct norm_args){.rows = b->rows, .x = x, .y = y, .g = g, .g_type = DT_F32, .r = r, .eps = eps});
}

void block_forward(const struct block *b, struct mat x, struct mat y) {
    const struct model_config *c = b->config;
    const struct layer *w = b->w;
    struct backend *be = b->be;
    struct saved *s = b->s;
    int64_t N = b->rows->N, D = c->D, K = c->K;
    struct mat a = mat_rows(s->a, 0, N), u = mat_rows(s->u, 0, N), z = mat_rows(s->s, 0, N), f = mat_rows(s->b, 0, N);
    struct mat qk = mat_rows(s->qk, 0, N), v = mat_rows(s->v, 0, N), o = mat_rows(s->o, 0, N), x1 = mat_rows(s->x1, 0, N);
    struct mat cc = mat_rows(s->c, 0, N), g = mat_rows(s->g, 0, N), up = mat_rows(s->up, 0, N), m = mat_rows(b->t->m, 0, N);
    struct mat keys = qk, values = v, a_before = {0}, u_before = {0}, none = {0};
    int64_t past = 0;
    if (b->cache) { /* rows go to their place in the cache; attention sees all rows so far */
        past = b->cache->past;
        qk = mat_rows(b->cache->qk, past, N), keys = mat_rows(b->cache->qk, 0, past + N);
        v = mat_rows(b->cache->v, past, N), values = mat_rows(b->cache->v, 0, past + N);
        if (past) a_before = b->cache->a, u_before = b->cache->u;
    }
    norm(b, x, a, w->norm1, s->r1, c->eps);
    op_linear(be, &(struct linear_args){.rows = b->rows, .x = a, .n = 1, .out = {out(b, PROJ_V, v, none)}});
    op_filter(be, &(struct filter_args){.rows = b->rows, .x = a, .y = u, .w0 = w->conv1[0], .w1 = w->conv1[1],
                                        .b = w->conv1_b, .b_type = DT_F32, .before = a_before});
    op_filter(be, &(struct filter_args){.rows = b->rows, .x = u, .y = z, .w0 = w->conv2[0], .w1 = w->conv2[1],
                                        .b = w->conv2_b, .b_type = DT_F32, .add = a, .before = u_before});
    if (b->cache) {
        struct mat la = mat_rows(a, N - 1, 1), lu = mat_rows(u, N - 1, 1);
        be->copy(be->self, b->cache->a.data, la.data, (size_t)D * dtype_bytes(la.type), Q_COMPUTE);
        be->copy(be->self, b->cache->u.data, lu.data, (size_t)(D / 2) * dtype_bytes(lu.type), Q_COMPUTE);
    }
    norm(b, z, f, w->norm_f, s->rf, FILTER_EPS);
    op_linear(be, &(struct linear_args){.rows = b->rows, .x = f, .n = 2,
                                        .out = {out(b, PROJ_Q, mat_cols(qk, 0, D), none), out(b, PROJ_K, mat_cols(qk, D, D), none)}});
    op_rope(be, &(struct rope_args){.rows = b->rows, .x = qk, .K = K, .sign = 1});
    op_attend(be, &(struct attend_args){.rows = b->rows, .H = c->H, .K = K, .past = past, .q = qk, .k = mat_cols(keys, K, 2 * D - K),
                                        .v = values, .o = o, .q_step = 2 * K, .k_step = 2 * K, .v_step = K, .lse = s->lse});
    struct linear_out attention = out(b, PROJ_O, x1, none);
    attention.add = x;
    op_linear(be, &(struct linear_args){.rows = b->rows, .x = o, .n = 1, .out = {attention}});
    norm(b, x1, cc, w->norm2, s->r2, c->eps);
    op_linear(be, &(struct linear_args){.rows = b->rows, .x = cc, .n = 2,
                                        .out = {out(b, PROJ_GATE, g, none), out(b, PROJ_UP, up, none)}});
    op_gate(be, &(struct gate_args){.rows = b->rows, .g = g, .u = up, .y = m});
    struct linear_out down = out(b, PROJ_DOWN, y, none);
    if (y.data) down.add = x1;
    else if (!down.lora.A.data) return;
    op_linear(be, &(struct linear_args){.rows = b->rows, .x = m, .n = 1, .out = {down}});
}

static void norm_bwd(const struct block *b, struct mat x, struct mat dy, struct mat dx, const float *g, float *r,
                     float eps, float *dg, int overwrite) {
    op_norm_bwd(b->be, &(struct norm_args){.rows = b->rows, .x = x, .dy = dy, .dx = dx, .g = g, .g_type = DT_F32, .r = r,
                                           .eps = eps, .dg = dg, .overwrite = overwrite});
}

void block_backward(const struct block *b, struct mat x, struct mat dx, int m_valid, int need_dx) {
    const struct model_config *c = b->config;
    const struct layer *w = b->w;
    const struct layer_grads none_grads = {0}, *G = b->grads ? b->grads : &none_grads;
    struct backend *be = b->be;
    struct saved *s = b->s;
    struct scratch *t = b->t;
    int64_t N = b->rows->N, D = c->D, K = c->K;
    struct mat a = mat_rows(s->a, 0, N), u = mat_rows(s->u, 0, N), z = mat_rows(s->s, 0, N), f = mat_rows(s->b, 0, N);
    struct mat qk = mat_rows(s->qk, 0, N), v = mat_rows(s->v, 0, N), o = mat_rows(s->o, 0, N), x1 = mat_rows(s->x1, 0, N);
    struct mat cc = mat_rows(s->c, 0, N), g = mat_rows(s->g, 0, N), up = mat_rows(s->up, 0, N), m = mat_rows(t->m, 0, N);
    struct mat dm = mat_rows(t->dm, 0, N), dD = mat_rows(t->dD, 0, N), d_o = mat_rows(t->do_, 0, N), dqk = mat_rows(t->dqk, 0, N);
    struct mat dv = mat_rows(t->dv, 0, N), ds = mat_rows(t->ds, 0, N), du = mat_rows(t->du, 0, N), none = {0};

    /* y = x1 + m Wdᵀ, m = g * silu(up): dx stays the residual's gradient throughout */
    if (!m_valid) op_gate(be, &(struct gate_args){.rows = b->rows, .g = g, .u = up, .y = m});
    op_linear_bwd(be, &(struct linear_args){.rows = b->rows, .x = m, .n = 1, .out = {out(b, PROJ_DOWN, none, dx)}, .dx = dm});
    op_gate_bwd(be, &(struct gate_args){.rows = b->rows, .g = g, .u = up, .dy = dm, .dg = g, .du = up}); /* in place */
    op_linear_bwd(be, &(struct linear_args){.rows = b->rows, .x = cc, .n = 2, .dx = dD,
                                            .out = {out(b, PROJ_GATE, none, g), out(b, PROJ_UP, none, up)}});
    norm_bwd(b, x1, dD, dx, w->norm2, s->r2, c->eps, G->norm2, 0);
    /* x1 = x + o Woᵀ */
    op_linear_bwd(be, &(struct linear_args){.rows = b->rows, .x = o, .n = 1, .out = {out(b, PROJ_O, none, dx)}, .dx = d_o});
    op_attend_bwd(be, &(struct attend_args){.rows = b->rows, .H = c->H, .K = K, .q = qk, .k = mat_cols(qk, K, 2 * D - K), .v = v,
                                            .o = o, .q_step = 2 * K, .k_step = 2 * K, .v_step = K, .lse = s->lse, .d_o = d_o,
                                            .dq = dqk, .dk = mat_cols(dqk, K, 2 * D - K), .dv = dv, .delta = t->delta});
    op_rope(be, &(struct rope_args){.rows = b->rows, .x = dqk, .K = K, .sign = -1});
    op_linear_bwd(be, &(struct linear_args){.rows = b->rows, .x = f, .n = 2, .dx = need_dx ? dD : none,
                                            .out = {out(b, PROJ_Q, none, mat_cols(dqk, 0, D)), out(b, PROJ_K, none, mat_cols(dqk, D, D))}});
    if (!need_dx) {
        op_linear_bwd(be, &(struct linear_args){.rows = b->rows, .x = a, .n = 1, .out = {out(b, PROJ_V, none, dv)}});
        return;
    }
    /* b = norm(s), s = a + conv2(conv1(a)): ds becomes da */
    norm_bwd(b, z, dD, ds, w->norm_f, s->rf, FILTER_EPS, G->norm_f, 1);
    op_filter_bwd(be, &(struct filter_args){.rows = b->rows, .x = u, .dy = ds, .dx = du, .w0 = w->conv2[0], .w1 = w->conv2[1],
                                            .dw0 = G->conv2[0], .dw1 = G->conv2[1], .db = G->conv2_b});
    op_filter_bwd(be, &(struct filter_args){.rows = b->rows, .x = a, .dy = du, .dx = ds, .accumulate = 1, .w0 = w->conv1[0],
                                            .w1 = w->conv1[1], .dw0 = G->conv1[0], .dw1 = G->conv1[1], .db = G->conv1_b});
    op_linear_bwd(be, &(struct linear_args){.rows = b->rows, .x = a, .n = 1, .out = {out(b, PROJ_V, none, dv)}, .dx = ds, .accumulate = 1});
    norm_bwd(b, x, ds, dx, w->norm1, s->r1, c->eps, G->norm1, 0);
}
