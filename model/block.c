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
static struct mat take_with(char *p, size_t *at, int64_t rows, int64_t cols, enum dtype type, struct branches b, int p0, int p1,
                            struct mat *to) {
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

static int64_t seams(struct capacity n) { return n.chunk > n.window ? n.chunk / n.window : 0; }

static size_t saved_lay(const struct model_config *c, enum dtype act, struct branches b, struct capacity n, char *p, struct saved *s) {
    size_t at = 0;
    int64_t D = c->D, w = n.window;
    struct mat gradients[PROJ_COUNT] = {0}; /* of gate and up: their place is found again by tail() */
    *s = (struct saved){0};
    s->a = take_with(p, &at, w, D, act, b, PROJ_V, NONE, s->xa);
    s->u = take(p, &at, w, D / 2, 0, act);
    s->s = take(p, &at, w, D, 0, act);
    s->b = take_with(p, &at, w, D, act, b, PROJ_Q, PROJ_K, s->xa);
    s->qk = take(p, &at, n.chunk, 2 * D, 0, act), s->v = take(p, &at, n.chunk, D, 0, act);
    s->o = take_with(p, &at, n.chunk, D, act, b, PROJ_O, NONE, s->xa);
    s->x1 = take(p, &at, w, D, 0, act);
    s->c = take_with(p, &at, w, D, act, b, PROJ_GATE, PROJ_UP, s->xa);
    s->gu = take_with(p, &at, w, 2 * c->F, act, b, PROJ_GATE, PROJ_UP, gradients);
    s->lse = take(p, &at, n.chunk, c->H, 0, DT_F32).data;
    float **const r[] = {&s->r1, &s->rf, &s->r2};
    for (int i = 0; i < 3; i++) *r[i] = take(p, &at, w, 1, 0, DT_F32).data;
    s->seam_a = take(p, &at, seams(n), D, 0, act), s->seam_u = take(p, &at, seams(n), D / 2, 0, act);
    return at;
}
size_t saved_bytes(const struct model_config *c, enum dtype act, unsigned targets, int64_t R, struct capacity n) {
    struct saved s;
    return saved_lay(c, act, (struct branches){targets, R}, n, NULL, &s);
}
void saved_view(const struct model_config *c, enum dtype act, unsigned targets, int64_t R, struct capacity n, void *p, struct saved *s) {
    saved_lay(c, act, (struct branches){targets, R}, n, p, s);
}

static size_t scratch_lay(const struct model_config *c, enum dtype act, struct branches b, struct capacity n, int backward,
                          char *p, struct scratch *t) {
    size_t first = 0, again = 0, second, other;
    int64_t D = c->D, w = n.window;
    struct mat xa[PROJ_COUNT] = {0};
    *t = (struct scratch){0};
    t->m = take_with(p, &first, w, c->F, act, b, PROJ_DOWN, NONE, xa);
    t->xa_down = xa[PROJ_DOWN];
    if (!backward) return first;
    t->dD = take(p, &again, w, D, 0, act), t->ds = take(p, &again, w, D, 0, act), t->du = take(p, &again, w, D / 2, 0, act);
    if (again > first) first = again;
    if (seams(n)) {
        t->after_s = take(p, &first, 1, D, 0, act), t->after_u = take(p, &first, 1, D / 2, 0, act);
        t->d_o = take(p, &first, n.chunk, D, 0, act);
    }
    second = other = first;
    t->dm = take(p, &second, w, c->F, 0, act);
    if (!seams(n)) t->d_o = take(p, &other, n.chunk, D, 0, act);
    t->dqk = take_with(p, &other, n.chunk, 2 * D, act, b, PROJ_Q, PROJ_K, t->dxa);
    t->dv = take_with(p, &other, n.chunk, D, act, b, PROJ_V, NONE, t->dxa);
    if (other > second) second = other;
    t->delta = take(p, &second, n.chunk, c->H, 0, DT_F32).data;
    return second;
}
size_t scratch_bytes(const struct model_config *c, enum dtype act, unsigned targets, int64_t R, struct capacity n, int backward) {
    struct scratch t;
    return scratch_lay(c, act, (struct branches){targets, R}, n, backward, NULL, &t);
}
void scratch_view(const struct model_config *c, enum dtype act, unsigned targets, int64_t R, struct capacity n, int backward,
                  void *p, struct scratch *t) {
    scratch_lay(c, act, (struct branches){targets, R}, n, backward, p, t);
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

void scales_make(struct backend *be, const struct layer *w, const struct adapter *lora) {
    for (int p = 0; p < PROJ_COUNT; p++)
        if (lora[p].m) op_dora(be, &(struct dora_args){.w = w->proj[p], .lora = lora[p]});
}

/* ---- the block ---- */

/* The (N,R) matrix behind columns `first` of m, absent when its rows have no room. */
static struct mat tail(struct mat m, int64_t first, int64_t R) {
    if (!m.data || m.ld < first + R) return (struct mat){0};
    m.cols = m.ld;
    return mat_cols(m, first, R);
}

/* Rows of a matrix that holds a chunk, and of one that holds a window. */
static struct mat of_chunk(struct mat m, const struct window *w) { return mat_rows(m, w->at, w->rows.N); }
static struct mat of_window(struct mat m, const struct window *w) { return mat_rows(m, 0, w->rows.N); }

/* One output of a linear: its weight, adapter, kept xa, dropout site, and in backward the gradients' places. */
static struct linear_out out(const struct block *b, const struct window *w, enum proj p, struct mat y, struct mat dy) {
    struct linear_out o = {.w = b->w->proj[p], .y = y, .dy = dy};
    if (b->lora && b->lora[p].A.data) {
        int64_t R = b->lora[p].A.rows;
        o.lora = b->lora[p];
        o.xa = p == PROJ_DOWN ? of_window(b->t->xa_down, w) : p == PROJ_O ? of_chunk(b->s->xa[p], w) : of_window(b->s->xa[p], w);
        o.drop = b->drop;
        o.drop.site = (uint32_t)p;
        if (dy.data) {
            int beside = p == PROJ_UP && b->lora[PROJ_GATE].A.data; /* up's room is behind gate's */
            if (p == PROJ_GATE || p == PROJ_UP) o.dxa = of_window(tail(b->s->gu, 2 * b->config->F + beside * R, R), w);
            else if (p == PROJ_O || p == PROJ_DOWN) o.dxa = tail(dy, dy.cols, R);
            else o.dxa = of_chunk(b->t->dxa[p], w);
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

static const struct mat none = {0};

static void norm(const struct block *b, const struct window *w, struct mat x, struct mat y, const float *g, float *r, float eps) {
    op_norm(b->be, &(struct norm_args){.rows = &w->rows, .x = x, .y = y, .g = g, .g_type = DT_F32, .r = r, .eps = eps});
}
static void norm_bwd(const struct block *b, const struct window *w, struct mat x, struct mat dy, struct mat dx, const float *g, float *r,
                     float eps, float *dg, int overwrite) {
    op_norm_bwd(b->be, &(struct norm_args){.rows = &w->rows, .x = x, .dy = dy, .dx = dx, .g = g, .g_type = DT_F32, .r = r,
                                           .eps = eps, .dg = dg, .overwrite = overwrite});
}
/* A linear without outputs makes its xa alone: nothing to do without adapters. */
static void linear(const struct block *b, const struct linear_args *a) {
    if (a->out[0].y.data || a->out[0].lora.A.data || (a->n > 1 && a->out[1].lora.A.data)) op_linear(b->be, a);
}
static void keep_row(const struct block *b, struct mat to, struct mat from, int64_t row) {
    if (to.data) b->be->copy(b->be->self, to.data, mat_rows(from, row, 1).data, (size_t)from.cols * dtype_bytes(from.type), Q_COMPUTE);
}

/* x -> a, u, s, b -> q|k, v. qk and v absent: attention has read them already, the rest is made again. */
static void before_attention(const struct block *b, const struct window *w, struct mat x, struct mat qk, struct mat v) {
    const struct layer *l = b->w;
    struct saved *s = b->s;
    int64_t N = w->rows.N, D = b->config->D;
    struct mat a = of_window(s->a, w), u = of_window(s->u, w), z = of_window(s->s, w), f = of_window(s->b, w), a_before = none,
               u_before = none;
    if (w->seam >= 0) a_before = mat_rows(s->seam_a, w->seam, 1), u_before = mat_rows(s->seam_u, w->seam, 1);
    if (b->cache && b->cache->past) a_before = b->cache->a, u_before = b->cache->u;
    norm(b, w, x, a, l->norm1, s->r1, b->config->eps);
    linear(b, &(struct linear_args){.rows = &w->rows, .x = a, .n = 1, .joint = joint(b, PROJ_V), .out = {out(b, w, PROJ_V, v, none)}});
    op_filter(b->be, &(struct filter_args){.rows = &w->rows, .x = a, .y = u, .w0 = l->conv1[0], .w1 = l->conv1[1],
                                           .b = l->conv1_b, .b_type = DT_F32, .before = a_before});
    op_filter(b->be, &(struct filter_args){.rows = &w->rows, .x = u, .y = z, .w0 = l->conv2[0], .w1 = l->conv2[1],
                                           .b = l->conv2_b, .b_type = DT_F32, .before = u_before,
                                           .add = a});
    struct mat next_a = b->cache ? b->cache->a : none, next_u = b->cache ? b->cache->u : none;
    if (w->goes_on) next_a = mat_rows(s->seam_a, w[1].seam, 1), next_u = mat_rows(s->seam_u, w[1].seam, 1);
    keep_row(b, next_a, a, N - 1), keep_row(b, next_u, u, N - 1);
    norm(b, w, z, f, l->norm_f, s->rf, FILTER_EPS);
    struct mat q = qk.data ? mat_cols(qk, 0, D) : none, k = qk.data ? mat_cols(qk, D, D) : none;
    linear(b, &(struct linear_args){.rows = &w->rows, .x = f, .n = 2, .joint = joint(b, PROJ_Q),
                                    .out = {out(b, w, PROJ_Q, q, none), out(b, w, PROJ_K, k, none)}});
    if (qk.data) op_rope(b->be, &(struct rope_args){.rows = &w->rows, .x = qk, .K = b->config->K, .sign = 1});
}

/* o -> x1, c, g|u, m, y. y absent: only what backward needs. */
static void after_attention(const struct block *b, const struct window *w, struct mat x, struct mat y) {
    const struct model_config *c = b->config;
    struct saved *s = b->s;
    struct mat o = of_chunk(s->o, w), x1 = of_window(s->x1, w), cc = of_window(s->c, w), gu = of_window(s->gu, w),
               m = of_window(b->t->m, w);
    struct mat g = mat_cols(gu, 0, c->F), up = mat_cols(gu, c->F, c->F);
    struct linear_out attention = out(b, w, PROJ_O, x1, none), down = out(b, w, PROJ_DOWN, y, none);
    attention.add = x;
    if (y.data) down.add = x1;
    linear(b, &(struct linear_args){.rows = &w->rows, .x = o, .n = 1, .joint = joint(b, PROJ_O), .out = {attention}});
    norm(b, w, x1, cc, b->w->norm2, s->r2, c->eps);
    linear(b, &(struct linear_args){.rows = &w->rows, .x = cc, .n = 2, .joint = joint(b, PROJ_GATE),
                                    .out = {out(b, w, PROJ_GATE, g, none), out(b, w, PROJ_UP, up, none)}});
    op_gate(b->be, &(struct gate_args){.rows = &w->rows, .g = g, .u = up, .y = m});
    linear(b, &(struct linear_args){.rows = &w->rows, .x = m, .n = 1, .joint = joint(b, PROJ_DOWN), .out = {down}});
}

/* The gradient of a projection's magnitudes, if it has any, from its output. */
static void magnitudes(const struct block *b, const struct window *w, enum proj p, struct mat y, struct mat dy) {
    if (b->lora && b->lora[p].m) op_dora_bwd(b->be, &(struct dora_args){.w = b->w->proj[p], .lora = b->lora[p],
                                                                        .rows = &w->rows, .y = y, .dy = dy});
}
/* The same of a projection whose output was added to the residual: it is made again in `y`, which has room for more than that. */
static void magnitudes_again(const struct block *b, const struct window *w, enum proj p, struct mat x, struct mat room, struct mat dy) {
    if (!b->lora || !b->lora[p].m) return;
    struct mat y = {room.data, w->rows.N, b->config->D, b->config->D, room.type};
    op_linear(b->be, &(struct linear_args){.rows = &w->rows, .x = x, .n = 1, .joint = joint(b, p), .out = {out(b, w, p, y, none)}});
    magnitudes(b, w, p, y, dy);
}

/* The windows of the rows; one that holds all of them if the caller names none. */
static int windows(const struct block *b, struct window *all, const struct window **w) {
    *all = (struct window){.rows = *b->rows, .seam = -1};
    *w = b->n_windows ? b->window : all;
    return b->n_windows ? b->n_windows : 1;
}

/* Everything up to o, for all windows. */
static void up_to_attention(const struct block *b, const struct window *w, int n, struct mat x) {
    const struct model_config *c = b->config;
    struct saved *s = b->s;
    int64_t N = b->rows->N, D = c->D, K = c->K, past = b->cache ? b->cache->past : 0;
    struct mat qk = mat_rows(s->qk, 0, N), v = mat_rows(s->v, 0, N), keys = qk, values = v;
    if (b->cache) { /* rows go to their place in the cache; attention sees all rows so far */
        qk = mat_rows(b->cache->qk, past, N), keys = mat_rows(b->cache->qk, 0, past + N);
        v = mat_rows(b->cache->v, past, N), values = mat_rows(b->cache->v, 0, past + N);
    }
    for (int i = 0; i < n; i++) before_attention(b, w + i, of_chunk(x, w + i), of_chunk(qk, w + i), of_chunk(v, w + i));
    op_attend(b->be, &(struct attend_args){.rows = b->rows, .H = c->H, .K = K, .past = past, .q = qk,
                                           .k = mat_cols(keys, K, 2 * D - K), .v = values,
                                           .o = mat_rows(s->o, 0, N), .q_step = 2 * K, .k_step = 2 * K, .v_step = K, .lse = s->lse});
}

void block_forward(const struct block *b, struct mat x, struct mat y) {
    struct window all;
    const struct window *w;
    int n = windows(b, &all, &w);
    up_to_attention(b, w, n, x);
    for (int i = 0; i < n; i++) after_attention(b, w + i, of_chunk(x, w + i), of_chunk(y, w + i));
}

/* y = x1 + m Wdᵀ, m = g * silu(up), x1 = x + o Woᵀ: dx stays the residual's gradient throughout. Leaves d_o. */
static void back_to_attention(const struct block *b, const struct window *w, struct mat dx, int m_valid) {
    const struct model_config *c = b->config;
    struct backend *be = b->be;
    struct saved *s = b->s;
    struct scratch *t = b->t;
    struct mat o = of_chunk(s->o, w), d_o = of_chunk(t->d_o, w), x1 = of_window(s->x1, w), cc = of_window(s->c, w),
               gu = of_window(s->gu, w), m = of_window(t->m, w);
    struct mat g = mat_cols(gu, 0, c->F), up = mat_cols(gu, c->F, c->F), dm = of_window(t->dm, w), dD = of_window(t->dD, w);
    if (!m_valid) {
        op_gate(be, &(struct gate_args){.rows = &w->rows, .g = g, .u = up, .y = m});
        linear(b, &(struct linear_args){.rows = &w->rows, .x = m, .n = 1, .joint = joint(b, PROJ_DOWN),
                                        .out = {out(b, w, PROJ_DOWN, none, none)}});
    }
    magnitudes_again(b, w, PROJ_DOWN, m, t->dm, dx); /* dm and what follows it are not in use yet: at least 2 D columns */
    op_linear_bwd(be, &(struct linear_args){.rows = &w->rows, .x = m, .n = 1, .joint = joint(b, PROJ_DOWN),
                                            .out = {out(b, w, PROJ_DOWN, none, dx)}, .dx = dm});
    magnitudes(b, w, PROJ_GATE, m, dm); /* g dg = m dm, for m = g silu(up) */
    if (b->lora && b->lora[PROJ_UP].m) {
        op_gate_bwd(be, &(struct gate_args){.rows = &w->rows, .g = g, .u = up, .dy = dm, .du = m});
        magnitudes(b, w, PROJ_UP, up, m);
    }
    op_gate_bwd(be, &(struct gate_args){.rows = &w->rows, .g = g, .u = up, .dy = dm, .dg = g, .du = up}); /* in place */
    op_linear_bwd(be, &(struct linear_args){.rows = &w->rows, .x = cc, .n = 2, .joint = joint(b, PROJ_GATE), .dx = dD,
                                            .out = {out(b, w, PROJ_GATE, none, g), out(b, w, PROJ_UP, none, up)}});
    norm_bwd(b, w, x1, dD, dx, b->w->norm2, s->r2, c->eps, b->grads ? b->grads->norm2 : NULL, 0);
    magnitudes_again(b, w, PROJ_O, o, t->dD, dx);
    op_linear_bwd(be, &(struct linear_args){.rows = &w->rows, .x = o, .n = 1, .joint = joint(b, PROJ_O),
                                            .out = {out(b, w, PROJ_O, none, dx)}, .dx = d_o});
}

/* From dq|dk and dv to dx; the gradient of a gathers in dD. */
static void back_to_input(const struct block *b, const struct window *w, struct mat x, struct mat dx, int need_dx) {
    const struct layer_grads none_grads = {0}, *G = b->grads ? b->grads : &none_grads;
    const struct layer *l = b->w;
    struct backend *be = b->be;
    struct saved *s = b->s;
    struct scratch *t = b->t;
    int64_t D = b->config->D;
    struct mat a = of_window(s->a, w), u = of_window(s->u, w), z = of_window(s->s, w), f = of_window(s->b, w),
               dqk = of_chunk(t->dqk, w), dv = of_chunk(t->dv, w);
    struct mat dD = of_window(t->dD, w), ds = of_window(t->ds, w), du = of_window(t->du, w), after_s = none, after_u = none,
               a_before = none, u_before = none;
    op_rope(be, &(struct rope_args){.rows = &w->rows, .x = dqk, .K = b->config->K, .sign = -1});
    if (b->lora && (b->lora[PROJ_Q].m || b->lora[PROJ_K].m)) { /* q and k as their projections made them */
        struct mat qk = of_chunk(s->qk, w);
        op_rope(be, &(struct rope_args){.rows = &w->rows, .x = qk, .K = b->config->K, .sign = -1});
        magnitudes(b, w, PROJ_Q, mat_cols(qk, 0, D), mat_cols(dqk, 0, D));
        magnitudes(b, w, PROJ_K, mat_cols(qk, D, D), mat_cols(dqk, D, D));
    }
    magnitudes(b, w, PROJ_V, of_chunk(s->v, w), dv);
    op_linear_bwd(be, &(struct linear_args){
                          .rows = &w->rows,
                          .x = f,
                          .n = 2,
                          .joint = joint(b, PROJ_Q),
                          .dx = need_dx ? dD : none,
                          .out = {out(b, w, PROJ_Q, none, mat_cols(dqk, 0, D)), out(b, w, PROJ_K, none, mat_cols(dqk, D, D))}});
    struct linear_args v = {.rows = &w->rows, .x = a, .n = 1, .joint = joint(b, PROJ_V), .out = {out(b, w, PROJ_V, none, dv)}};
    if (!need_dx) {
        op_linear_bwd(be, &v);
        return;
    }
    if (w->goes_on) { /* ds and du still hold the window behind */
        after_s = t->after_s, after_u = t->after_u;
        keep_row(b, after_s, t->ds, 0), keep_row(b, after_u, t->du, 0);
    }
    if (w->seam >= 0) a_before = mat_rows(s->seam_a, w->seam, 1), u_before = mat_rows(s->seam_u, w->seam, 1);
    norm_bwd(b, w, z, dD, ds, l->norm_f, s->rf, FILTER_EPS, G->norm_f, 1); /* b = norm(s), s = a + conv2(conv1(a)) */
    op_filter_bwd(be, &(struct filter_args){.rows = &w->rows, .x = u, .dy = ds, .dx = du, .w0 = l->conv2[0], .w1 = l->conv2[1],
                                            .before = u_before, .after = after_s,
                                            .dw0 = G->conv2[0], .dw1 = G->conv2[1], .db = G->conv2_b});
    op_filter_bwd(be, &(struct filter_args){.rows = &w->rows, .x = a, .dy = du, .dx = dD, .dx_add = ds, .w0 = l->conv1[0],
                                            .w1 = l->conv1[1], .before = a_before, .after = after_u,
                                            .dw0 = G->conv1[0], .dw1 = G->conv1[1], .db = G->conv1_b});
    v.dx = dD, v.accumulate = 1;
    op_linear_bwd(be, &v);
    norm_bwd(b, w, x, dD, dx, l->norm1, s->r1, b->config->eps, G->norm1, 0);
}

void block_backward(const struct block *b, struct mat x, struct mat dx, int kept, int need_dx) {
    const struct model_config *c = b->config;
    struct saved *s = b->s;
    struct scratch *t = b->t;
    int64_t N = b->rows->N, D = c->D, K = c->K;
    struct window all;
    const struct window *w;
    int n = windows(b, &all, &w);
    ASSERT(!kept || n == 1, "%d windows are kept", n);
    if (!kept) up_to_attention(b, w, n, x);
    for (int i = 0; i < n; i++) {
        if (!kept) after_attention(b, w + i, of_chunk(x, w + i), none);
        back_to_attention(b, w + i, of_chunk(dx, w + i), !kept);
    }
    struct mat qk = mat_rows(s->qk, 0, N), dqk = mat_rows(t->dqk, 0, N);
    op_attend_bwd(b->be, &(struct attend_args){.rows = b->rows, .H = c->H, .K = K, .q = qk, .k = mat_cols(qk, K, 2 * D - K),
                                               .v = mat_rows(s->v, 0, N), .o = mat_rows(s->o, 0, N),
                                               .q_step = 2 * K, .k_step = 2 * K, .v_step = K, .lse = s->lse, .d_o = mat_rows(t->d_o, 0, N),
                                               .dq = dqk, .dk = mat_cols(dqk, K, 2 * D - K), .dv = mat_rows(t->dv, 0, N),
                                               .delta = t->delta});
    for (int i = n - 1; i >= 0; i--) {
        if (i < n - 1) before_attention(b, w + i, of_chunk(x, w + i), none, none); /* the last one's are still there */
        back_to_input(b, w + i, of_chunk(x, w + i), of_chunk(dx, w + i), need_dx);
    }
}
