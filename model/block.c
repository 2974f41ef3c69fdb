/* model/block.c - see block.h. Backward is forward read from the bottom up. */
#include "model/block.h"

static const float FILTER_EPS = 1e-6f; /* of lf_gate's norm, whatever rms_norm_eps says */

enum { NONE = -1 };

/* Takes the next (rows, cols) matrix out of an arena, with `behind` more columns in its rows; with p NULL only counts. */
static struct mat take(char *p, size_t *at, int64_t rows, int64_t cols, int64_t behind, enum dtype type) {
    struct mat m = {.data = p ? p + *at : NULL, .rows = rows, .cols = cols, .ld = cols + behind, .type = type};
    *at += ((size_t)(rows * m.ld) * dtype_bytes(type) + 255) / 256 * 256;
    return m;
}

/* The adapters' share of a layout: how many columns a projection's branch has, 0 if it is no target. */
struct branches { unsigned targets; int64_t R; };
static int64_t width(struct branches b, int p) { return p != NONE && b.targets >> p & 1 ? b.R : 0; }

/* A matrix with the (rows, R) matrices of up to two branches, which lie behind its columns if R keeps rows aligned, else apart. */
static struct mat take_with(char *p, size_t *at, int64_t rows, int64_t cols, enum dtype type, struct branches b, int p0, int p1, struct mat *to) {
    int64_t w0 = width(b, p0), w1 = width(b, p1), inside = b.R % 8 == 0;
    struct mat m = take(p, at, rows, cols, inside ? w0 + w1 : 0, type);
    const int which[] = {p0, p1};
    int64_t first = cols;
    for (int i = 0; i < 2; i++) {
        if (!width(b, which[i])) continue;
        to[which[i]] = inside ? mat_cols((struct mat){m.data, rows, m.ld, m.ld, type}, first, b.R) : take(p, at, rows, b.R, 0, type);
        first += b.R;
    }
    return m;
}

static size_t saved_lay(const struct model_config *c, enum dtype act, struct branches b, int64_t n, char *p, struct saved *s) {
    size_t at = 0;
    int64_t D = c->D;
    struct mat gradients[PROJ_COUNT] = {0}; /* of gate and up: their place is found again by tail() */
    *s = (struct saved){0};
    s->a = take_with(p, &at, n, D, act, b, PROJ_V, NONE, s->xa);
    s->u = take(p, &at, n, D / 2, 0, act);
    s->s = take(p, &at, n, D, 0, act);
    s->b = take_with(p, &at, n, D, act, b, PROJ_Q, PROJ_K, s->xa);
    s->qk = take(p, &at, n, 2 * D, 0, act), s->v = take(p, &at, n, D, 0, act);
    s->o = take_with(p, &at, n, D, act, b, PROJ_O, NONE, s->xa);
    s->x1 = take(p, &at, n, D, 0, act);
    s->c = take_with(p, &at, n, D, act, b, PROJ_GATE, PROJ_UP, s->xa);
    s->gu = take_with(p, &at, n, 2 * c->F, act, b, PROJ_GATE, PROJ_UP, gradients);
    s->lse = take(p, &at, n, c->H, 0, DT_F32).data;
    float **const r[] = {&s->r1, &s->rf, &s->r2};
    for (int i = 0; i < 3; i++) *r[i] = take(p, &at, n, 1, 0, DT_F32).data;
    return at;
}
size_t saved_bytes(const struct model_config *c, enum dtype act, unsigned targets, int64_t R, int64_t rows) {
    struct saved s;
    return saved_lay(c, act, (struct branches){targets, R}, rows, NULL, &s);
}
void saved_view(const struct model_config *c, enum dtype act, unsigned targets, int64_t R, int64_t rows, void *p, struct saved *s) {
    saved_lay(c, act, (struct branches){targets, R}, rows, p, s);
}

static size_t scratch_lay(const struct model_config *c, enum dtype act, struct branches b, int64_t n, int backward, char *p, struct scratch *t) {
    size_t first = 0, again = 0, second, other;
    int64_t D = c->D;
    struct mat xa[PROJ_COUNT] = {0};
    *t = (struct scratch){0};
    t->m = take_with(p, &first, n, c->F, act, b, PROJ_DOWN, NONE, xa);
    t->xa_down = xa[PROJ_DOWN];
    if (!backward) return first;
    t->dD = take(p, &again, n, D, 0, act), t->ds = take(p, &again, n, D, 0, act), t->du = take(p, &again, n, D / 2, 0, act);
    second = other = first > again ? first : again;
    t->dm = take(p, &second, n, c->F, 0, act);
    t->d_o = take(p, &other, n, D, 0, act);
    t->dqk = take_with(p, &other, n, 2 * D, act, b, PROJ_Q, PROJ_K, t->dxa);
    t->dv = take_with(p, &other, n, D, act, b, PROJ_V, NONE, t->dxa);
    if (other > second) second = other;
    t->delta = take(p, &second, n, c->H, 0, DT_F32).data;
    return second;
}
size_t scratch_bytes(const struct model_config *c, enum dtype act, unsigned targets, int64_t R, int64_t rows, int backward) {
    struct scratch t;
    return scratch_lay(c, act, (struct branches){targets, R}, rows, backward, NULL, &t);
}
void scratch_view(const struct model_config *c, enum dtype act, unsigned targets, int64_t R, int64_t rows, int backward, void *p, struct scratch *t) {
    scratch_lay(c, act, (struct branches){targets, R}, rows, backward, p, t);
}
int64_t gradient_columns(const struct model_config *c, unsigned targets, int64_t R) {
    struct branches b = {targets, R % 8 ? 0 : R};
    int64_t o = width(b, PROJ_O), down = width(b, PROJ_DOWN);
    return c->D + (o > down ? o : down);
}

/* ---- joint operands ---- */

static struct join_args join_of(const struct layer *w, const struct adapter *lora, enum proj p0, int p1) {
    struct join_args a = {.n = p1 == NONE ? 1 : 2};
    const int which[] = {(int)p0, p1};
    for (int i = 0; i < a.n; i++) {
        a.part[i].w = w->proj[which[i]];
        if (lora) a.part[i].lora = lora[which[i]];
    }
    return a;
}
static struct mat joint_mat(const struct join_args *a, enum dtype act, char *p, size_t *at) {
    int64_t rows, cols;
    join_shape(a, &rows, &cols);
    return take(p, at, rows, cols, (8 - cols % 8) % 8, act);
}
static const int joined[5][2] = {{PROJ_V, NONE}, {PROJ_Q, PROJ_K}, {PROJ_O, NONE}, {PROJ_GATE, PROJ_UP}, {PROJ_DOWN, NONE}};

size_t joints_bytes(const struct model_config *c, enum dtype act, unsigned targets, int64_t R) {
    struct layer w = {0};
    struct adapter lora[PROJ_COUNT] = {0};
    static char present;
    size_t at = 0;
    for (int p = 0; p < PROJ_COUNT; p++) {
        proj_shape(c, (enum proj)p, &w.proj[p].rows, &w.proj[p].cols);
        if (targets >> p & 1) lora[p].A = (struct mat){.data = &present, .rows = R};
    }
    for (int i = 0; i < 5; i++) {
        struct join_args a = join_of(&w, lora, (enum proj)joined[i][0], joined[i][1]);
        joint_mat(&a, act, NULL, &at);
    }
    return at;
}
void joints_make(struct backend *be, enum dtype act, const struct layer *w, const struct adapter *lora, void *p, struct joints *j) {
    struct mat *const to[] = {&j->v, &j->qk, &j->o, &j->gu, &j->down};
    size_t at = 0;
    for (int i = 0; i < 5; i++) {
        struct join_args a = join_of(w, lora, (enum proj)joined[i][0], joined[i][1]);
        a.to = *to[i] = joint_mat(&a, act, p, &at);
        op_join(be, &a);
    }
}

/* ---- the block ---- */

/* The (N,R) matrix behind columns `first` of m, absent when its rows have no room. */
static struct mat tail(struct mat m, int64_t first, int64_t R) {
    if (!m.data || m.ld < first + R) return (struct mat){0};
    m.cols = m.ld;
    return mat_cols(m, first, R);
}

/* One output of a linear: its weight, adapter, kept xa, dropout site, and in backward the gradients' places. */
static struct linear_out out(const struct block *b, enum proj p, struct mat y, struct mat dy) {
    struct linear_out o = {.w = b->w->proj[p], .y = y, .dy = dy};
    if (b->lora && b->lora[p].A.data) {
        int64_t N = b->rows->N, R = b->lora[p].A.rows;
        o.lora = b->lora[p];
        o.xa = mat_rows(p == PROJ_DOWN ? b->t->xa_down : b->s->xa[p], 0, N);
        o.drop = b->drop;
        o.drop.site = (uint32_t)p;
        if (dy.data) {
            int beside = p == PROJ_UP && b->lora[PROJ_GATE].A.data; /* up's room is behind gate's */
            if (p == PROJ_GATE || p == PROJ_UP) o.dxa = mat_rows(tail(b->s->gu, 2 * b->config->F + beside * R, R), 0, N);
            else if (p == PROJ_O || p == PROJ_DOWN) o.dxa = tail(dy, dy.cols, R);
            else o.dxa = mat_rows(b->t->dxa[p], 0, N);
        }
    }
    if (b->grads) o.dW = b->grads->proj[p];
    return o;
}

static struct mat joint(const struct block *b, enum proj p) {
    const struct joints *j = b->joints;
    if (!j) return (struct mat){0};
    switch (p) {
    case PROJ_Q: case PROJ_K: return j->qk;
    case PROJ_GATE: case PROJ_UP: return j->gu;
    case PROJ_V: return j->v;
    case PROJ_O: return j->o;
    default: return j->down;
    }
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
    struct mat cc = mat_rows(s->c, 0, N), gu = mat_rows(s->gu, 0, N), g = mat_cols(gu, 0, c->F), up = mat_cols(gu, c->F, c->F), m = mat_rows(b->t->m, 0, N);
    struct mat keys = qk, values = v, a_before = {0}, u_before = {0}, none = {0};
    int64_t past = 0;
    if (b->cache) { /* rows go to their place in the cache; attention sees all rows so far */
        past = b->cache->past;
        qk = mat_rows(b->cache->qk, past, N), keys = mat_rows(b->cache->qk, 0, past + N);
        v = mat_rows(b->cache->v, past, N), values = mat_rows(b->cache->v, 0, past + N);
        if (past) a_before = b->cache->a, u_before = b->cache->u;
    }
    norm(b, x, a, w->norm1, s->r1, c->eps);
    op_linear(be, &(struct linear_args){.rows = b->rows, .x = a, .n = 1, .joint = joint(b, PROJ_V), .out = {out(b, PROJ_V, v, none)}});
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
    op_linear(be, &(struct linear_args){.rows = b->rows, .x = f, .n = 2, .joint = joint(b, PROJ_Q),
                                        .out = {out(b, PROJ_Q, mat_cols(qk, 0, D), none), out(b, PROJ_K, mat_cols(qk, D, D), none)}});
    op_rope(be, &(struct rope_args){.rows = b->rows, .x = qk, .K = K, .sign = 1});
    op_attend(be, &(struct attend_args){.rows = b->rows, .H = c->H, .K = K, .past = past, .q = qk, .k = mat_cols(keys, K, 2 * D - K),
                                        .v = values, .o = o, .q_step = 2 * K, .k_step = 2 * K, .v_step = K, .lse = s->lse});
    struct linear_out attention = out(b, PROJ_O, x1, none);
    attention.add = x;
    op_linear(be, &(struct linear_args){.rows = b->rows, .x = o, .n = 1, .joint = joint(b, PROJ_O), .out = {attention}});
    norm(b, x1, cc, w->norm2, s->r2, c->eps);
    op_linear(be, &(struct linear_args){.rows = b->rows, .x = cc, .n = 2, .joint = joint(b, PROJ_GATE),
                                        .out = {out(b, PROJ_GATE, g, none), out(b, PROJ_UP, up, none)}});
    op_gate(be, &(struct gate_args){.rows = b->rows, .g = g, .u = up, .y = m});
    struct linear_out down = out(b, PROJ_DOWN, y, none);
    if (y.data) down.add = x1;
    else if (!down.lora.A.data) return;
    op_linear(be, &(struct linear_args){.rows = b->rows, .x = m, .n = 1, .joint = joint(b, PROJ_DOWN), .out = {down}});
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
    struct mat cc = mat_rows(s->c, 0, N), gu = mat_rows(s->gu, 0, N), g = mat_cols(gu, 0, c->F), up = mat_cols(gu, c->F, c->F), m = mat_rows(t->m, 0, N);
    struct mat dm = mat_rows(t->dm, 0, N), dD = mat_rows(t->dD, 0, N), d_o = mat_rows(t->d_o, 0, N), dqk = mat_rows(t->dqk, 0, N);
    struct mat dv = mat_rows(t->dv, 0, N), ds = mat_rows(t->ds, 0, N), du = mat_rows(t->du, 0, N), none = {0};

    /* y = x1 + m Wdᵀ, m = g * silu(up): dx stays the residual's gradient throughout */
    if (!m_valid) {
        struct linear_out down = out(b, PROJ_DOWN, none, none);
        op_gate(be, &(struct gate_args){.rows = b->rows, .g = g, .u = up, .y = m});
        if (down.lora.A.data) op_linear(be, &(struct linear_args){.rows = b->rows, .x = m, .n = 1, .joint = joint(b, PROJ_DOWN), .out = {down}});
    }
    op_linear_bwd(be, &(struct linear_args){.rows = b->rows, .x = m, .n = 1, .joint = joint(b, PROJ_DOWN), .out = {out(b, PROJ_DOWN, none, dx)}, .dx = dm});
    op_gate_bwd(be, &(struct gate_args){.rows = b->rows, .g = g, .u = up, .dy = dm, .dg = g, .du = up}); /* in place */
    op_linear_bwd(be, &(struct linear_args){.rows = b->rows, .x = cc, .n = 2, .joint = joint(b, PROJ_GATE), .dx = dD,
                                            .out = {out(b, PROJ_GATE, none, g), out(b, PROJ_UP, none, up)}});
    norm_bwd(b, x1, dD, dx, w->norm2, s->r2, c->eps, G->norm2, 0);
    /* x1 = x + o Woᵀ */
    op_linear_bwd(be, &(struct linear_args){.rows = b->rows, .x = o, .n = 1, .joint = joint(b, PROJ_O), .out = {out(b, PROJ_O, none, dx)}, .dx = d_o});
    op_attend_bwd(be, &(struct attend_args){.rows = b->rows, .H = c->H, .K = K, .q = qk, .k = mat_cols(qk, K, 2 * D - K), .v = v,
                                            .o = o, .q_step = 2 * K, .k_step = 2 * K, .v_step = K, .lse = s->lse, .d_o = d_o,
                                            .dq = dqk, .dk = mat_cols(dqk, K, 2 * D - K), .dv = dv, .delta = t->delta});
    op_rope(be, &(struct rope_args){.rows = b->rows, .x = dqk, .K = K, .sign = -1});
    op_linear_bwd(be, &(struct linear_args){.rows = b->rows, .x = f, .n = 2, .joint = joint(b, PROJ_Q), .dx = need_dx ? dD : none,
                                            .out = {out(b, PROJ_Q, none, mat_cols(dqk, 0, D)), out(b, PROJ_K, none, mat_cols(dqk, D, D))}});
    if (!need_dx) {
        op_linear_bwd(be, &(struct linear_args){.rows = b->rows, .x = a, .n = 1, .joint = joint(b, PROJ_V), .out = {out(b, PROJ_V, none, dv)}});
        return;
    }
    /* b = norm(s), s = a + conv2(conv1(a)): the gradient of a gathers in dD */
    norm_bwd(b, z, dD, ds, w->norm_f, s->rf, FILTER_EPS, G->norm_f, 1);
    op_filter_bwd(be, &(struct filter_args){.rows = b->rows, .x = u, .dy = ds, .dx = du, .w0 = w->conv2[0], .w1 = w->conv2[1],
                                            .dw0 = G->conv2[0], .dw1 = G->conv2[1], .db = G->conv2_b});
    op_filter_bwd(be, &(struct filter_args){.rows = b->rows, .x = a, .dy = du, .dx = dD, .dx_add = ds, .w0 = w->conv1[0],
                                            .w1 = w->conv1[1], .dw0 = G->conv1[0], .dw1 = G->conv1[1], .db = G->conv1_b});
    op_linear_bwd(be, &(struct linear_args){.rows = b->rows, .x = a, .n = 1, .joint = joint(b, PROJ_V), .out = {out(b, PROJ_V, none, dv)}, .dx = dD, .accumulate = 1});
    norm_bwd(b, x, dD, dx, w->norm1, s->r1, c->eps, G->norm1, 0);
}
