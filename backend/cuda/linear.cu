/* backend/cuda/linear.cu - linear maps with adapters, and the localized filter, as cublasLt products.
 *
 * The frozen weight is unpacked to bf16 just before its product (cuda_unpack); outputs that share x and lie side by side
 * (q|k) are one product over both weights, and their adapters' A one product too. The low-rank branch is added by a second
 * product into y: xa is needed for backward anyway.
 *
 * Gradients of A, B and W are sums over tokens: one product per sequence, added in order, so that they do not depend on how
 * sequences are grouped into chunks. */
#include "backend/cuda/cuda_internal.h"
#include "base/rng.h"
#include <math.h>

enum { THREADS = 256 };

static bf16 *data16(const struct mat *m) { return (bf16 *)m->data; }
static int has_lora(const struct linear_out *o) { return o->lora.A.data != NULL; }

/* ---- dropout ---- */

struct mask { float p, keep; uint32_t limit, key0, key1, step, site; };
static struct mask mask_of(const struct dropout *d) {
    struct mask m;
    m.p = d->p, m.keep = 1.f - d->p, m.limit = (uint32_t)ceil((double)d->p * 0x1p32);
    m.key0 = (uint32_t)d->seed, m.key1 = (uint32_t)(d->seed >> 32) ^ d->layer, m.step = d->step, m.site = d->site;
    return m;
}
/* to[t][i] (=|+=) kept(t, i) ? from[t][i] / (1-p) : 0.  thread: four features of a row, one Philox draw. */
template <int ADD> __global__ static void drop(struct mask k, const bf16 *from, int64_t ld_from, bf16 *to, int64_t ld_to, int64_t cols, uint32_t token0) {
    int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * 4, t = blockIdx.y;
    if (i >= cols) return;
    uint32_t counter[4] = {(uint32_t)(i / 4), token0 + (uint32_t)t, k.site, k.step}, key[2] = {k.key0, k.key1}, word[4];
    philox4x32(counter, key, word);
    for (int j = 0; j < 4 && i + j < cols; j++) {
        float v = word[j] >= k.limit ? __bfloat162float(from[t * ld_from + i + j]) / k.keep : 0.f;
        bf16 *out = &to[t * ld_to + i + j];
        *out = __float2bfloat16_rn(ADD ? __bfloat162float(*out) + v : v);
    }
}
static void dropped(struct cuda *c, const struct rows *rows, const struct dropout *d, int add, const bf16 *from, int64_t ld_from, bf16 *to, int64_t ld_to, int64_t n, int64_t cols) {
    struct mask k = mask_of(d);
    for (int64_t t = 0; t < n; t += 65535) {
        dim3 grid((unsigned)ceil_div(cols, THREADS * 4), (unsigned)(n - t < 65535 ? n - t : 65535));
        uint32_t token = (uint32_t)(rows->token0 + t);
        if (add) drop<1><<<grid, THREADS, 0, cuda_stream(c)>>>(k, from + t * ld_from, ld_from, to + t * ld_to, ld_to, cols, token);
        else drop<0><<<grid, THREADS, 0, cuda_stream(c)>>>(k, from + t * ld_from, ld_from, to + t * ld_to, ld_to, cols, token);
        CUDA_LAUNCHED(c);
    }
}

/* ---- products ---- */

/* y(N,out) = alpha x(N,in) w(out,in)ᵀ (+ add) */
static void forward(struct cuda *c, const bf16 *x, int64_t ldx, const bf16 *w, int64_t ldw, struct mat y, const bf16 *add, int64_t ld_add, int64_t N, int64_t in, float alpha) {
    struct gemm g = {};
    g.a = x, g.lda = ldx, g.b = w, g.ldb = ldw, g.tb = 1, g.c = y.data, g.ldc = y.ld, g.add = add, g.ld_add = ld_add, g.m = N, g.n = y.cols, g.k = in, g.alpha = alpha;
    cuda_gemm(c, &g);
}
/* dx(N,in) (=|+=) alpha dy(N,out) w(out,in) */
static void backward(struct cuda *c, const bf16 *dy, int64_t ldy, const bf16 *w, int64_t ldw, bf16 *dx, int64_t ldx, int64_t N, int64_t out, int64_t in, float alpha, int add) {
    struct gemm g = {};
    g.a = dy, g.lda = ldy, g.b = w, g.ldb = ldw, g.c = dx, g.ldc = ldx, g.add = add ? dx : NULL, g.ld_add = ldx, g.m = N, g.n = in, g.k = out, g.alpha = alpha;
    cuda_gemm(c, &g);
}

/* sum[i] += Σ_s part[s][i] in order of s */
__global__ static void add_parts(float *sum, int64_t ld, int64_t cols, const float *part, int64_t n, int parts) {
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS) {
        float *to = &sum[i / cols * ld + i % cols], s = *to;
        for (int k = 0; k < parts; k++) s += part[k * n + i];
        *to = s;
    }
}

/* dW(out,in) += alpha Σ_t dy[t]ᵀ x[t], sequence by sequence: one batched product when all are of one length and the parts
 * fit the workspace, else one after the other. */
static void weight_gradient(struct cuda *c, const struct rows *r, const bf16 *dy, int64_t ldy, const bf16 *x, int64_t ldx, const struct mat *dW, float alpha) {
    struct gemm g = {};
    int64_t n = dW->rows * dW->cols, length = r->seq_start[1], fit = (int64_t)c->partial_elements / n;
    int equal = r->N == length * r->n_seqs;
    g.lda = ldy, g.ta = 1, g.ldb = ldx, g.m = dW->rows, g.n = dW->cols, g.alpha = alpha, g.c_f32 = 1;
    if (equal && r->n_seqs > 1 && fit > 1) {
        for (int s = 0; s < r->n_seqs; s += (int)fit) {
            int k = r->n_seqs - s < fit ? r->n_seqs - s : (int)fit;
            g.a = dy + s * length * ldy, g.b = x + s * length * ldx, g.c = c->partial, g.ldc = dW->cols, g.k = length;
            g.batch = k, g.stride_a = length * ldy, g.stride_b = length * ldx, g.stride_c = n;
            cuda_gemm(c, &g);
            int64_t blocks = ceil_div(n, THREADS);
            add_parts<<<(unsigned)(blocks < 8 * c->sms ? blocks : 8 * c->sms), THREADS, 0, cuda_stream(c)>>>((float *)dW->data, dW->ld, dW->cols, c->partial, n, k);
            CUDA_LAUNCHED(c);
        }
        return;
    }
    for (int s = 0; s < r->n_seqs; s++) {
        int64_t first = r->seq_start[s];
        g.a = dy + first * ldy, g.b = x + first * ldx, g.k = r->seq_start[s + 1] - first;
        g.c = dW->data, g.add = dW->data, g.ldc = g.ld_add = dW->ld;
        cuda_gemm(c, &g);
    }
}

/* The adapters of all outputs in bf16: A stacked (n R, in), B one behind the other. */
static void adapters(struct cuda *c, const struct linear_args *a, const bf16 *A[LINEAR_MAX], const bf16 *B[LINEAR_MAX]) {
    bf16 *at = c->a16, *bt = c->b16;
    for (int i = 0; i < a->n; i++) {
        const struct adapter *l = &a->out[i].lora;
        if (!has_lora(&a->out[i])) continue;
        A[i] = at, B[i] = bt;
        cuda_to_bf16(c, at, (const float *)l->A.data, l->A.rows * l->A.cols);
        cuda_to_bf16(c, bt, (const float *)l->B.data, l->B.rows * l->B.cols);
        at += l->A.rows * l->A.cols, bt += l->B.rows * l->B.cols;
    }
}

/* drop(x) of output i: x itself without dropout. */
static const bf16 *input(struct cuda *c, const struct linear_args *a, int i, int64_t *ld) {
    const struct linear_out *o = &a->out[i];
    *ld = a->x.ld;
    if (o->drop.p <= 0) return data16(&a->x);
    *ld = a->x.cols;
    dropped(c, a->rows, &o->drop, 0, data16(&a->x), a->x.ld, c->dropped, a->x.cols, a->x.rows, a->x.cols);
    return c->dropped;
}

/* Weights of all outputs in bf16, one behind the other where they had to be unpacked. */
static void weights(struct cuda *c, const struct linear_args *a, const bf16 *W[LINEAR_MAX]) {
    bf16 *at = c->w16;
    for (int i = 0; i < a->n; i++) {
        const struct weight *w = &a->out[i].w;
        W[i] = cuda_unpack(c, w, at);
        if (W[i] == at) at += w->rows * w->cols;
    }
}

/* Both outputs as one: their results and their weights lie side by side. */
static int adjacent(const struct linear_args *a, const bf16 *const W[LINEAR_MAX], const struct mat *y0, const struct mat *y1) {
    return a->n == 2 && y0->data && y1->data && y0->ld == y1->ld && data16(y1) == data16(y0) + y0->cols && W[1] == W[0] + a->out[0].w.rows * a->x.cols &&
           !a->out[0].add.data && !a->out[1].add.data;
}

void cuda_linear(void *self, const struct linear_args *a) {
    struct cuda *c = (struct cuda *)self;
    const bf16 *A[LINEAR_MAX] = {}, *B[LINEAR_MAX] = {}, *W[LINEAR_MAX] = {};
    int64_t N = a->x.rows, in = a->x.cols, ld;
    adapters(c, a, A, B);
    for (int i = 0; i < a->n; i++) { /* xa = drop(x) Aᵀ */
        if (!has_lora(&a->out[i])) continue;
        const bf16 *x = input(c, a, i, &ld);
        forward(c, x, ld, A[i], in, a->out[i].xa, NULL, 0, N, in, 1);
    }
    if (!a->out[0].y.data) return;
    weights(c, a, W);
    if (adjacent(a, W, &a->out[0].y, &a->out[1].y)) {
        struct mat both = a->out[0].y;
        both.cols += a->out[1].y.cols;
        forward(c, data16(&a->x), a->x.ld, W[0], in, both, NULL, 0, N, in, 1);
    } else
        for (int i = 0; i < a->n; i++) forward(c, data16(&a->x), a->x.ld, W[i], in, a->out[i].y, data16(&a->out[i].add), a->out[i].add.ld, N, in, 1);
    for (int i = 0; i < a->n; i++) { /* y += s xa Bᵀ */
        const struct linear_out *o = &a->out[i];
        if (has_lora(o)) forward(c, data16(&o->xa), o->xa.ld, B[i], o->lora.B.cols, o->y, data16(&o->y), o->y.ld, N, o->lora.B.cols, o->lora.scale);
    }
}

void cuda_linear_bwd(void *self, const struct linear_args *a) {
    struct cuda *c = (struct cuda *)self;
    const bf16 *A[LINEAR_MAX] = {}, *B[LINEAR_MAX] = {}, *W[LINEAR_MAX] = {};
    int64_t N = a->x.rows, in = a->x.cols, ld;
    adapters(c, a, A, B);
    int add = a->accumulate;
    if (a->dx.data) {
        weights(c, a, W);
        const struct linear_out *o = a->out;
        int stacked = a->n == 2 && o[0].dy.ld == o[1].dy.ld && data16(&o[1].dy) == data16(&o[0].dy) + o[0].dy.cols && W[1] == W[0] + o[0].w.rows * in;
        for (int i = 0; i < (stacked ? 1 : a->n); i++) {
            int64_t out = o[i].w.rows + (stacked ? o[1].w.rows : 0);
            backward(c, data16(&o[i].dy), o[i].dy.ld, W[i], in, data16(&a->dx), a->dx.ld, N, out, in, 1, add);
            add = 1;
        }
    }
    for (int i = 0; i < a->n; i++) {
        const struct linear_out *o = &a->out[i];
        const struct adapter *l = &o->lora;
        if (o->dW.data) weight_gradient(c, a->rows, data16(&o->dy), o->dy.ld, data16(&a->x), a->x.ld, &o->dW, 1);
        if (!has_lora(o)) continue;
        int64_t out = o->w.rows, R = l->B.cols;
        backward(c, data16(&o->dy), o->dy.ld, B[i], R, c->rank, R, N, out, R, 1, 0); /* dyB (N,R) */
        if (l->dB.data) weight_gradient(c, a->rows, data16(&o->dy), o->dy.ld, data16(&o->xa), o->xa.ld, &l->dB, l->scale);
        if (l->dA.data) {
            const bf16 *x = input(c, a, i, &ld);
            weight_gradient(c, a->rows, c->rank, R, x, ld, &l->dA, l->scale);
        }
        if (!a->dx.data) continue;
        if (o->drop.p <= 0) backward(c, c->rank, R, A[i], in, data16(&a->dx), a->dx.ld, N, R, in, l->scale, 1);
        else {
            backward(c, c->rank, R, A[i], in, c->dropped, in, N, R, in, l->scale, 0);
            dropped(c, a->rows, &o->drop, 1, c->dropped, in, data16(&a->dx), a->dx.ld, N, in);
        }
    }
}

/* ---- localized filter ---- */

/* Rows of y that start a sequence (first = 1) or end one: zero there, or `edge` W0ᵀ made elsewhere. block: one row. */
__global__ static void zero_rows(bf16 *y, int64_t ld, int64_t cols, const int32_t *start, int64_t N, int last) {
    int64_t t = blockIdx.x;
    int at = last ? t + 1 == N || start[t + 1] == t + 1 : start[t] == t;
    if (!at) return;
    for (int64_t i = threadIdx.x; i < cols; i += THREADS) y[t * ld + i] = __float2bfloat16_rn(0.f);
}
/* y[t][i] += b[i] (+ add[t][i]) */
__global__ static void bias(bf16 *y, int64_t ld, const bf16 *add, int64_t ld_add, const float *b32, const bf16 *b16, int64_t cols) {
    int64_t t = blockIdx.x;
    for (int64_t i = threadIdx.x; i < cols; i += THREADS) {
        float v = __bfloat162float(y[t * ld + i]) + (b32 ? b32[i] : __bfloat162float(b16[i]));
        if (add) v += __bfloat162float(add[t * ld_add + i]);
        y[t * ld + i] = __float2bfloat16_rn(v);
    }
}
/* db[i] += Σ_t dy[t][i] over one sequence, in order */
__global__ static void column_sums(const bf16 *dy, int64_t ld, int64_t rows, int64_t cols, float *db) {
    int64_t i = (int64_t)blockIdx.x * 32 + threadIdx.x;
    if (i >= cols) return;
    float s = 0;
    for (int64_t t = 0; t < rows; t++) s += __bfloat162float(dy[t * ld + i]);
    db[i] += s;
}

static void two_weights(struct cuda *c, const struct filter_args *a, const bf16 **w0, const bf16 **w1) {
    *w0 = cuda_unpack(c, &a->w0, c->w16);
    *w1 = cuda_unpack(c, &a->w1, c->w16 + a->w0.rows * a->w0.cols);
}

void cuda_filter(void *self, const struct filter_args *a) {
    struct cuda *c = (struct cuda *)self;
    const bf16 *w0, *w1;
    int64_t N = a->x.rows, in = a->x.cols, out = a->w1.rows;
    two_weights(c, a, &w0, &w1);
    struct mat y = a->y, rest = a->y;
    rest.data = data16(&y) + y.ld, rest.rows = N - 1;
    if (N > 1) forward(c, data16(&a->x), a->x.ld, w0, in, rest, NULL, 0, N - 1, in, 1); /* y[t] = x[t-1] W0ᵀ */
    zero_rows<<<(unsigned)N, THREADS, 0, cuda_stream(c)>>>(data16(&y), y.ld, out, a->rows->start, N, 0);
    if (a->before.data) {
        struct mat row = y;
        row.rows = 1;
        forward(c, data16(&a->before), a->before.ld, w0, in, row, NULL, 0, 1, in, 1);
    }
    forward(c, data16(&a->x), a->x.ld, w1, in, y, data16(&y), y.ld, N, in, 1);
    bias<<<(unsigned)N, THREADS, 0, cuda_stream(c)>>>(data16(&y), y.ld, data16(&a->add), a->add.ld, a->b_type == DT_F32 ? (const float *)a->b : NULL,
                                                       a->b_type == DT_F32 ? NULL : (const bf16 *)a->b, out);
    CUDA_LAUNCHED(c);
}

void cuda_filter_bwd(void *self, const struct filter_args *a) {
    struct cuda *c = (struct cuda *)self;
    const bf16 *w0, *w1, *dy = data16(&a->dy), *x = data16(&a->x);
    int64_t N = a->dy.rows, in = a->w1.cols, out = a->w1.rows;
    for (int s = 0; s < a->rows->n_seqs; s++) {
        int32_t first = a->rows->seq_start[s], n = a->rows->seq_start[s + 1] - first, starts[2] = {0, n - 1};
        struct rows one = *a->rows;
        one.n_seqs = 1, one.seq_start = starts, one.N = n - 1;
        if (a->db) column_sums<<<(unsigned)ceil_div(out, 32), 32, 0, cuda_stream(c)>>>(dy + first * a->dy.ld, a->dy.ld, n, out, a->db);
        if (a->dw0.data && n > 1) weight_gradient(c, &one, dy + (first + 1) * a->dy.ld, a->dy.ld, x + first * a->x.ld, a->x.ld, &a->dw0, 1);
    }
    if (a->dw1.data) weight_gradient(c, a->rows, dy, a->dy.ld, x, a->x.ld, &a->dw1, 1);
    CUDA_LAUNCHED(c);
    if (!a->dx.data) return;
    two_weights(c, a, &w0, &w1);
    /* dy[t+1] W0 goes to scratch, so that a sequence's last row can be cleared before it is added */
    if (N > 1) backward(c, dy + a->dy.ld, a->dy.ld, w0, in, c->shift, in, N - 1, out, in, 1, 0);
    zero_rows<<<(unsigned)N, THREADS, 0, cuda_stream(c)>>>(c->shift, in, in, a->rows->start, N, 1);
    CUDA_LAUNCHED(c);
    struct gemm g = {};
    g.a = dy, g.lda = a->dy.ld, g.b = w1, g.ldb = in, g.c = c->shift, g.ldc = in, g.add = c->shift, g.ld_add = in, g.m = N, g.n = in, g.k = out, g.alpha = 1;
    if (!a->accumulate) g.c = a->dx.data, g.ldc = a->dx.ld;
    cuda_gemm(c, &g);
    if (!a->accumulate) return;
    struct mask none = {};
    none.keep = 1;
    for (int64_t t = 0; t < N; t += 65535) { /* dx += shift: a dropout that keeps all */
        dim3 grid((unsigned)ceil_div(in, THREADS * 4), (unsigned)(N - t < 65535 ? N - t : 65535));
        drop<1><<<grid, THREADS, 0, cuda_stream(c)>>>(none, c->shift + t * in, in, data16(&a->dx) + t * a->dx.ld, a->dx.ld, in, 0);
        CUDA_LAUNCHED(c);
    }
}

size_t cuda_linear_workspace(struct cuda *c, const struct backend_limits *l, char *at) {
    size_t n = 0, D = (size_t)l->D, F = (size_t)l->F, R = (size_t)l->R, rows = (size_t)l->rows, widest = D > F ? D : F;
    size_t matrix = D * widest > D * D ? D * widest : D * D, gradient = LINEAR_MAX * R * widest;
    c->lt_work_bytes = (size_t)32 << 20;
    c->w16_elements = LINEAR_MAX * matrix;
    c->partial_elements = 16 * gradient;
    const struct { void **p; size_t bytes; } part[] = {
        {&c->lt_work, c->lt_work_bytes}, {(void **)&c->w16, c->w16_elements * 2}, {(void **)&c->a16, LINEAR_MAX * R * widest * 2}, {(void **)&c->b16, LINEAR_MAX * R * widest * 2},
        {(void **)&c->rank, rows * R * 2}, {(void **)&c->dropped, rows * widest * 2}, {(void **)&c->partial, c->partial_elements * 4}, {(void **)&c->shift, rows * D * 2}};
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        *part[i].p = at ? at + n : NULL;
        n += (part[i].bytes + 255) / 256 * 256;
    }
    return n;
}
