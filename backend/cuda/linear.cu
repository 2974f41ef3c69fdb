/* backend/cuda/linear.cu - linear maps with adapters, and the localized filter, as cublasLt products.
 *
 * A linear works on its joint operand [W sB; A 0] in bf16, which the caller made once for a layer's visit (join) or which is
 * made here for one call. Outputs that share x (q|k, gate|up) are one product, and where xa lies behind x and dxa behind dy the
 * adapter is R more columns of K: 3 % more arithmetic at rank 64 instead of reading and writing y again. Otherwise (dropout,
 * odd ranks) the branch is a product of its own. Magnitudes (DoRA) have scaled the rows of W and sB in there.
 *
 * Gradients of A, B and W are sums over tokens: one product per sequence, added in order, so that they do not depend on how
 * sequences are grouped into chunks. */
#include "backend/cuda/cuda_internal.h"
#include "base/rng.h"

enum { THREADS = 256 };

static bf16 *data16(const struct mat *m) { return (bf16 *)m->data; }
static int has_lora(const struct linear_out *o) { return o->lora.A.data != NULL; }

/* ---- dropout ---- */

struct mask { float scale; uint32_t limit, key0, key1, step, site; }; /* limit: for the upper half of a word */
static struct mask mask_of(const struct dropout *d) {
    struct mask m;
    m.scale = 1.f / dropout_kept(d->p), m.limit = dropout_limit(d->p) << 16;
    m.key0 = (uint32_t)d->seed, m.key1 = (uint32_t)(d->seed >> 32) ^ d->layer, m.step = d->step, m.site = d->site;
    return m;
}
__device__ static inline void draw(const struct mask &k, int64_t i, uint32_t token, uint32_t word[4]) { /* of features i .. i+7 */
    uint32_t counter[4] = {(uint32_t)(i / 8), token, k.site, k.step}, key[2] = {k.key0, k.key1};
    philox4x32(counter, key, word);
}
/* to[t][i] (=|+=) kept(t, i) ? scale from[t][i] : 0.  thread: eight features of a row, one Philox draw; 4 or 6 bytes a feature. */
template <int ADD>
__global__ static void __launch_bounds__(THREADS)
    drop(struct mask k, const bf16 *from, int64_t ld_from, bf16 *to, int64_t ld_to, int64_t cols, uint32_t token0) {
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * 8, t = blockIdx.y;
    if (i >= cols) return;
    uint4 *out = (uint4 *)(to + t * ld_to + i), x = *(const uint4 *)(from + t * ld_from + i), y = ADD ? *out : x;
    const __nv_bfloat162 *in = (const __nv_bfloat162 *)&x;
    __nv_bfloat162 *sum = (__nv_bfloat162 *)&y;
    uint32_t word[4];
    draw(k, i, token0 + (uint32_t)t, word);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        float2 v = __bfloat1622float2(in[j]), s = ADD ? __bfloat1622float2(sum[j]) : make_float2(0.f, 0.f);
        s.x += word[j] << 16 >= k.limit ? v.x * k.scale : 0.f;
        s.y += word[j] >= k.limit ? v.y * k.scale : 0.f;
        sum[j] = __float22bfloat162_rn(s);
    }
    *out = y;
}
/* The same for rows of any length at any address. thread: eight features. */
template <int ADD>
__global__ static void drop_any(struct mask k, const bf16 *from, int64_t ld_from, bf16 *to, int64_t ld_to, int64_t cols,
                                uint32_t token0) {
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * 8, t = blockIdx.y;
    if (i >= cols) return;
    uint32_t word[4];
    draw(k, i, token0 + (uint32_t)t, word);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        if (i + j >= cols) return;
        float v = word[j / 2] << (j % 2 ? 0 : 16) >= k.limit ? __bfloat162float(from[t * ld_from + i + j]) * k.scale : 0.f;
        bf16 *out = &to[t * ld_to + i + j];
        *out = __float2bfloat16_rn(ADD ? __bfloat162float(*out) + v : v);
    }
}
static void dropped(struct cuda *c, const struct rows *rows, const struct dropout *d, int add, const bf16 *from, int64_t ld_from,
                    bf16 *to, int64_t ld_to, int64_t n, int64_t cols) {
    const struct mask k = mask_of(d);
    const int fits = ((uintptr_t)from | (uintptr_t)to) % 16 == 0 && (ld_from | ld_to | cols) % 8 == 0;
    const auto kernel = fits ? (add ? drop<1> : drop<0>) : (add ? drop_any<1> : drop_any<0>);
    for (int64_t t = 0; t < n; t += 65535) {
        dim3 grid((unsigned)ceil_div(cols, THREADS * 8), (unsigned)(n - t < 65535 ? n - t : 65535));
        kernel<<<grid, THREADS, 0, cuda_stream(c)>>>(k, from + t * ld_from, ld_from, to + t * ld_to, ld_to, cols,
                                                     (uint32_t)(rows->token0 + t));
        CUDA_LAUNCHED(c);
    }
}

/* ---- the joint operand ---- */

/* A call's frozen operands, all of leading dimension ld: W_i (out, in), s_iB_i (out, R), A_i (R, in), and whether they lie in
 * one joint operand. */
struct frozen {
    const bf16 *W[LINEAR_MAX], *B[LINEAR_MAX], *A[LINEAR_MAX];
    int64_t R[LINEAR_MAX], ld, out, rank; /* out, rank: sums over the outputs */
    int joint;
};
static struct frozen frozen(struct cuda *c, const struct linear_args *a) {
    struct frozen f = {};
    int64_t in = a->x.cols, row = 0, rank = 0;
    struct join_args j = {};
    j.n = a->n, j.to = a->joint;
    for (int i = 0; i < a->n; i++) {
        const struct linear_out *o = &a->out[i];
        f.R[i] = has_lora(o) ? o->lora.A.rows : 0;
        f.out += o->w.rows, f.rank += f.R[i];
        j.part[i].w = o->w, j.part[i].lora = o->lora;
    }
    const struct weight *w = &a->out[0].w;
    if (!a->joint.data && !f.rank && w->format == W_BF16 &&
        (a->n == 1 || (a->out[1].w.format == W_BF16 && (const bf16 *)a->out[1].w.data == (const bf16 *)w->data + w->rows * in))) {
        f.ld = in, f.joint = 1; /* nothing to make */
        f.W[0] = (const bf16 *)w->data, f.W[1] = f.W[0] + w->rows * in;
        return f;
    }
    if (!j.to.data) {
        struct mat to = {c->w16, 0, 0, 0, DT_BF16};
        join_shape(&j, &to.rows, &to.cols);
        to.ld = (to.cols + 7) / 8 * 8;
        ASSERT((size_t)(to.rows * to.ld) <= c->w16_elements, "(%lld,%lld) of %zu elements", (long long)to.rows,
               (long long)to.cols, c->w16_elements);
        j.to = to;
        cuda_join(c, &j);
    }
    const bf16 *p = data16(&j.to);
    f.ld = j.to.ld, f.joint = 1;
    for (int i = 0; i < a->n; i++) {
        f.W[i] = p + row * f.ld, f.B[i] = f.W[i] + in + rank, f.A[i] = p + (f.out + rank) * f.ld;
        row += a->out[i].w.rows, rank += f.R[i];
    }
    return f;
}

/* ---- products ---- */

/* y(N,out) = alpha x(N,in) w(out,in)ᵀ (+ add) */
static void forward(struct cuda *c, const bf16 *x, int64_t ldx, const bf16 *w, int64_t ldw, bf16 *y, int64_t ldy,
                    const struct mat *add, int64_t N, int64_t in, int64_t out) {
    struct gemm g = {};
    g.a = x, g.lda = ldx, g.b = w, g.ldb = ldw, g.tb = 1, g.c = y, g.ldc = ldy, g.m = N, g.n = out, g.k = in, g.alpha = 1;
    if (add && add->data) g.add = add->data, g.ld_add = add->ld;
    cuda_gemm(c, &g);
}
/* dx(N,in) (=|+=) dy(N,out) w(out,in) */
static void backward(struct cuda *c, const bf16 *dy, int64_t ldy, const bf16 *w, int64_t ldw, bf16 *dx, int64_t ldx, int64_t N,
                     int64_t out, int64_t in, int add) {
    struct gemm g = {};
    g.a = dy, g.lda = ldy, g.b = w, g.ldb = ldw, g.c = dx, g.ldc = ldx, g.add = add ? dx : NULL, g.ld_add = ldx, g.m = N,
    g.n = in, g.k = out, g.alpha = 1;
    cuda_gemm(c, &g);
}

/* sum[i] += Σ_s part[s][i] in order of s, row by row by_row times that if given */
__global__ static void add_parts(float *sum, int64_t ld, int64_t cols, const float *part, int64_t n, int parts, const float *by_row) {
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS) {
        float *to = &sum[i / cols * ld + i % cols], s = *to, by = by_row ? by_row[i / cols] : 1.f;
        for (int k = 0; k < parts; k++) s += by * part[k * n + i];
        *to = s;
    }
}

static void add_up(struct cuda *c, const struct mat *dW, int parts, const float *by_row) {
    const int64_t n = dW->rows * dW->cols, blocks = ceil_div(n, THREADS);
    add_parts<<<(unsigned)(blocks < 8 * c->sms ? blocks : 8 * c->sms), THREADS, 0, cuda_stream(c)>>>(
        (float *)dW->data, dW->ld, dW->cols, c->partial, n, parts, by_row);
    CUDA_LAUNCHED(c);
}

/* Where the slice ends that begins with sequence s. */
static int slice_end(const struct rows *r, int s) {
    const int64_t first = r->seq_start[s++];
    while (s < r->n_seqs && r->seq_start[s + 1] - first <= r->slice) s++;
    return s;
}

/* dW(rows,cols) += alpha Σ_t a[t]ᵀ b[t]. Slice by slice: each reads and writes all of dW once. Without slices one batched product
 * when all sequences are of one length and the parts fit the workspace, else one after the other. by_row: see add_parts. */
static void weight_gradient(struct cuda *c, const struct rows *r, const bf16 *left, int64_t ld_left, const bf16 *right,
                            int64_t ld_right, const struct mat *dW, float alpha, const float *by_row) {
    struct gemm g = {};
    int64_t n = dW->rows * dW->cols, length = r->seq_start[1], fit = (int64_t)c->partial_elements / n;
    g.lda = ld_left, g.ta = 1, g.ldb = ld_right, g.m = dW->rows, g.n = dW->cols, g.alpha = alpha, g.c_f32 = 1;
    if (!r->slice && r->N == length * r->n_seqs && r->n_seqs > 1 && fit > 1) {
        for (int s = 0; s < r->n_seqs; s += (int)fit) {
            int k = r->n_seqs - s < fit ? r->n_seqs - s : (int)fit;
            g.a = left + s * length * ld_left, g.b = right + s * length * ld_right, g.c = c->partial, g.ldc = dW->cols, g.k = length;
            g.batch = k, g.stride_a = length * ld_left, g.stride_b = length * ld_right, g.stride_c = n;
            cuda_gemm(c, &g);
            add_up(c, dW, k, by_row);
        }
        return;
    }
    ASSERT(!by_row || fit, "(%lld,%lld) of %zu", (long long)dW->rows, (long long)dW->cols, c->partial_elements);
    for (int s = 0, end; s < r->n_seqs; s = end) {
        int64_t first = r->seq_start[s];
        end = slice_end(r, s);
        g.a = left + first * ld_left, g.b = right + first * ld_right, g.k = r->seq_start[end] - first;
        if (by_row) g.c = c->partial, g.ldc = dW->cols;
        else g.c = dW->data, g.add = dW->data, g.ldc = g.ld_add = dW->ld;
        cuda_gemm(c, &g);
        if (by_row) add_up(c, dW, 1, by_row);
    }
}

/* Gradients of adapters gather here and run together (tall.cu); what does not fit runs at once. */
struct adapter_gradients { struct tall_job job[TALL_JOBS]; int n; };
static void gradient(struct cuda *c, struct adapter_gradients *q, const struct rows *r, const bf16 *left, int64_t ld_left,
                     const bf16 *right, int64_t ld_right, const struct mat *d, int transposed, float scale, const float *by_row) {
    int64_t rows = transposed ? d->cols : d->rows, R = transposed ? d->rows : d->cols;
    if (!cuda_tall_fits(left, ld_left, rows) || !cuda_tall_fits(right, ld_right, R)) {
        if (transposed) weight_gradient(c, r, right, ld_right, left, ld_left, d, scale, NULL);
        else weight_gradient(c, r, left, ld_left, right, ld_right, d, scale, by_row);
        return;
    }
    struct tall_job j = {left, right, ld_left, ld_right, (float *)d->data, d->ld, (int)rows, (int)R, transposed, scale, by_row};
    q->job[q->n++] = j;
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
static int drops(const struct linear_args *a) {
    for (int i = 0; i < a->n; i++)
        if (has_lora(&a->out[i]) && a->out[i].drop.p > 0) return 1;
    return 0;
}

/* Do the branches' matrices lie behind the columns of `first`, in order? */
static int behind(const struct linear_args *a, const struct mat *first, int64_t cols, int gradient) {
    const bf16 *at = data16(first) + cols;
    for (int i = 0; i < a->n; i++) {
        const struct mat *m = gradient ? &a->out[i].dxa : &a->out[i].xa;
        if (!has_lora(&a->out[i])) continue;
        if (data16(m) != at || m->ld != first->ld) return 0;
        at += m->cols;
    }
    return 1;
}
/* Are the outputs' y (gradient: dy) one matrix? */
static int side_by_side(const struct linear_args *a, int gradient) {
    if (a->n == 1) return 1;
    const struct mat *y0 = gradient ? &a->out[0].dy : &a->out[0].y, *y1 = gradient ? &a->out[1].dy : &a->out[1].y;
    return y0->data && y1->data && y0->ld == y1->ld && data16(y1) == data16(y0) + y0->cols &&
           (gradient || (!a->out[0].add.data && !a->out[1].add.data));
}

void cuda_linear(void *self, const struct linear_args *a) {
    struct cuda *c = (struct cuda *)self;
    if (c->limits.generates && cuda_decode_linear(c, a)) return;
    struct frozen f = frozen(c, a);
    int64_t N = a->x.rows, in = a->x.cols, ld;
    const bf16 *x = data16(&a->x);
    int tail = behind(a, &a->x, in, 0);
    if (f.rank && tail && !drops(a))
        forward(c, x, a->x.ld, f.A[0], f.ld, (bf16 *)x + in, a->x.ld, NULL, N, in, f.rank); /* all xa at once */
    else
        for (int i = 0; i < a->n; i++)
            if (f.R[i]) {
                const bf16 *from = input(c, a, i, &ld);
                forward(c, from, ld, f.A[i], f.ld, data16(&a->out[i].xa), a->out[i].xa.ld, NULL, N, in, f.R[i]);
            }
    if (!a->out[0].y.data) return;
    if (tail && side_by_side(a, 0)) { /* [x | xa] [W | sB]ᵀ */
        forward(c, x, a->x.ld, f.W[0], f.ld, data16(&a->out[0].y), a->out[0].y.ld, &a->out[0].add, N, in + f.rank, f.out);
        return;
    }
    for (int i = 0; i < a->n; i++) {
        const struct linear_out *o = &a->out[i];
        forward(c, x, a->x.ld, f.W[i], f.ld, data16(&o->y), o->y.ld, &o->add, N, in, o->w.rows);
        if (f.R[i]) forward(c, data16(&o->xa), o->xa.ld, f.B[i], f.ld, data16(&o->y), o->y.ld, &o->y, N, f.R[i], o->w.rows);
    }
}

void cuda_linear_bwd(void *self, const struct linear_args *a) {
    struct cuda *c = (struct cuda *)self;
    struct frozen f = frozen(c, a);
    const struct linear_out *o = a->out;
    int64_t N = a->x.rows, in = a->x.cols, ld;
    bf16 *dx = data16(&a->dx), *g[LINEAR_MAX] = {}; /* g_i = s dy_i B_i */
    int64_t ld_g = a->n * c->limits.R;
    int one = side_by_side(a, 1), fold = one && behind(a, &o[0].dy, f.out, 1) && !drops(a);
    if (f.rank && fold) {
        g[0] = data16(&o[0].dy) + f.out, g[1] = g[0] + f.R[0], ld_g = o[0].dy.ld;
        backward(c, data16(&o[0].dy), ld_g, f.W[0] + in, f.ld, g[0], ld_g, N, f.out, f.rank, 0);
    } else
        for (int i = 0; i < a->n; i++)
            if (f.R[i]) {
                g[i] = c->rank + i * c->limits.R;
                backward(c, data16(&o[i].dy), o[i].dy.ld, f.B[i], f.ld, g[i], ld_g, N, o[i].w.rows, f.R[i], 0);
            }
    if (dx && fold)
        backward(c, data16(&o[0].dy), o[0].dy.ld, f.W[0], f.ld, dx, a->dx.ld, N, f.out + f.rank, in,
                 a->accumulate); /* [dy | g] [W; A] */
    else if (dx) {
        int add = a->accumulate;
        for (int i = 0; i < a->n; i++, add = 1)
            backward(c, data16(&o[i].dy), o[i].dy.ld, f.W[i], f.ld, dx, a->dx.ld, N, o[i].w.rows, in, add);
        for (int i = 0; i < a->n; i++) {
            if (!f.R[i]) continue;
            if (o[i].drop.p <= 0) backward(c, g[i], ld_g, f.A[i], f.ld, dx, a->dx.ld, N, f.R[i], in, 1);
            else {
                backward(c, g[i], ld_g, f.A[i], f.ld, c->dropped, in, N, f.R[i], in, 0);
                dropped(c, a->rows, &o[i].drop, 1, c->dropped, in, dx, a->dx.ld, N, in);
            }
        }
    }
    struct adapter_gradients q = {};
    for (int i = 0; i < a->n; i++) {
        const struct adapter *l = &o[i].lora;
        if (o[i].dW.data) weight_gradient(c, a->rows, data16(&o[i].dy), o[i].dy.ld, data16(&a->x), a->x.ld, &o[i].dW, 1, NULL);
        if (!f.R[i]) continue;
        if (l->dB.data)
            gradient(c, &q, a->rows, data16(&o[i].dy), o[i].dy.ld, data16(&o[i].xa), o[i].xa.ld, &l->dB, 0, l->scale,
                     l->m ? l->c : NULL);
        if (!l->dA.data) continue;
        const bf16 *x = input(c, a, i, &ld);
        gradient(c, &q, a->rows, x, ld, g[i], ld_g, &l->dA, 1, 1, NULL);
        if (o[i].drop.p > 0) cuda_tall(c, a->rows, q.job, q.n), q.n = 0; /* the next output drops into the same scratch */
    }
    cuda_tall(c, a->rows, q.job, q.n);
}

/* ---- localized filter ---- */

/* Rows of y at the edge of a sequence (or part), which no neighbour reaches: y = add, or 0. last: its last row, else its first.
 * block: looks at EDGE rows, and all its threads copy those it finds. */
enum { EDGE = 16 };
__global__ static void edge_rows(bf16 *y, int64_t ld, const bf16 *add, int64_t ld_add, int64_t cols, const int32_t *offset,
                                 int64_t N, int last) {
    __shared__ int at_edge[EDGE];
    int64_t first = (int64_t)blockIdx.x * EDGE, mine = first + threadIdx.x;
    if (threadIdx.x < EDGE) at_edge[threadIdx.x] = mine < N && (last ? mine + 1 == N || !offset[mine + 1] : !offset[mine]);
    __syncthreads();
    for (int k = 0; k < EDGE; k++)
        for (int64_t t = first + k, i = threadIdx.x; at_edge[k] && i < cols; i += THREADS)
            y[t * ld + i] = add ? add[t * ld_add + i] : __float2bfloat16_rn(0.f);
}
static void edges(struct cuda *c, const struct rows *r, const struct mat *y, const struct mat *add, int last) {
    edge_rows<<<(unsigned)ceil_div(r->N, EDGE), THREADS, 0, cuda_stream(c)>>>(data16(y), y->ld, data16(add), add->ld, y->cols,
                                                                              r->offset, r->N, last);
    CUDA_LAUNCHED(c);
}
/* part[s][i] = Σ_t dy[t][i] (x[t][i] r[t]) over sequence s: eight warps take its rows in turn, their sums are added in order.
 * block: 32 columns of one sequence. */
enum { COLUMNS = 32 };
__global__ static void column_sums(const bf16 *dy, int64_t ld, int64_t cols, const bf16 *x, int64_t ldx, const float *r,
                                   const __grid_constant__ struct seq_list s, float *part) {
    __shared__ float all[THREADS / 32][COLUMNS];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int64_t i = (int64_t)blockIdx.x * COLUMNS + lane;
    float sum = 0;
#pragma unroll 8
    for (int t = s.at[blockIdx.y] + warp; t < s.at[blockIdx.y + 1]; t += THREADS / 32)
        sum += i >= cols ? 0.f : __bfloat162float(dy[t * ld + i]) * (x ? __bfloat162float(x[t * ldx + i]) * r[t] : 1.f);
    all[warp][lane] = sum;
    __syncthreads();
    if (warp || i >= cols) return;
    for (int w = 1; w < THREADS / 32; w++) sum += all[w][lane];
    part[blockIdx.y * cols + i] = sum;
}
void cuda_column_sums(struct cuda *c, const struct rows *rows, const struct mat *dy, const struct mat *x, const float *r, float *to) {
    for (int first = 0; first < rows->n_seqs; first += SEQ_LIST) {
        struct seq_list s = seq_list_of(rows, first);
        ASSERT((size_t)(s.n * dy->cols) <= c->partial_elements, "%d sequences of %lld columns", s.n, (long long)dy->cols);
        column_sums<<<dim3((unsigned)ceil_div(dy->cols, COLUMNS), (unsigned)s.n), THREADS, 0, cuda_stream(c)>>>(
            data16(dy), dy->ld, dy->cols, x ? data16(x) : NULL, x ? x->ld : 0, r, s, c->partial);
        add_parts<<<(unsigned)ceil_div(dy->cols, THREADS), THREADS, 0, cuda_stream(c)>>>(to, dy->cols, dy->cols, c->partial,
                                                                                         dy->cols, s.n, NULL);
        CUDA_LAUNCHED(c);
    }
}

/* Both taps in bf16: their own memory, or scratch. */
static void taps(struct cuda *c, const struct filter_args *a, const bf16 **w0, const bf16 **w1) {
    *w0 = cuda_unpack(c, &a->w0, c->taps);
    *w1 = cuda_unpack(c, &a->w1, c->taps + a->w0.rows * a->w0.cols);
}

/* Two products over shifted rows; the sum, the addend and the bias ride on their epilogues. */
void cuda_filter(void *self, const struct filter_args *a) {
    struct cuda *c = (struct cuda *)self;
    if (c->limits.generates && cuda_decode_filter(c, a)) return;
    const bf16 *w0, *w1, *b = (const bf16 *)a->b, *x = data16(&a->x);
    int64_t N = a->x.rows, in = a->x.cols, out = a->w1.rows;
    taps(c, a, &w0, &w1);
    if (a->b_type == DT_F32) cuda_to_bf16(c, c->bias, (const float *)a->b, out), b = c->bias;
    struct mat rest = a->add;
    if (rest.data) rest.data = data16(&rest) + rest.ld;
    if (N > 1) forward(c, x, a->x.ld, w0, in, data16(&a->y) + a->y.ld, a->y.ld, &rest, N - 1, in, out); /* y[t] = x[t-1] W0ᵀ (+ add[t]) */
    edges(c, a->rows, &a->y, &a->add, 0);
    if (a->before.data) forward(c, data16(&a->before), a->before.ld, w0, in, data16(&a->y), a->y.ld, &a->add, 1, in, out);
    struct gemm g = {};
    g.a = x, g.lda = a->x.ld, g.b = w1, g.ldb = in, g.tb = 1, g.c = a->y.data, g.ldc = a->y.ld, g.add = a->y.data,
    g.ld_add = a->y.ld, g.m = N, g.n = out, g.k = in, g.alpha = 1, g.bias = b;
    cuda_gemm(c, &g);
}

void cuda_filter_bwd(void *self, const struct filter_args *a) {
    struct cuda *c = (struct cuda *)self;
    const bf16 *w0, *w1, *dy = data16(&a->dy), *x = data16(&a->x);
    int64_t N = a->dy.rows, in = a->w1.cols, out = a->w1.rows;
    if (a->db) cuda_column_sums(c, a->rows, &a->dy, NULL, NULL, a->db);
    for (int s = 0; a->dw0.data && s < a->rows->n_seqs; s++) {
        int32_t first = a->rows->seq_start[s], n = a->rows->seq_start[s + 1] - first, starts[2] = {0, n - 1};
        struct rows one = *a->rows;
        one.n_seqs = 1, one.seq_start = starts, one.N = n - 1;
        if (n > 1) weight_gradient(c, &one, dy + (first + 1) * a->dy.ld, a->dy.ld, x + first * a->x.ld, a->x.ld, &a->dw0, 1, NULL);
    }
    if (a->dw0.data && a->before.data) {
        const int32_t starts[2] = {0, 1};
        struct rows one = *a->rows;
        one.seq_start = starts, one.N = 1;
        weight_gradient(c, &one, dy, a->dy.ld, data16(&a->before), a->before.ld, &a->dw0, 1, NULL);
    }
    if (a->dw1.data) weight_gradient(c, a->rows, dy, a->dy.ld, x, a->x.ld, &a->dw1, 1, NULL);
    if (!a->dx.data) return;
    taps(c, a, &w0, &w1);
    struct gemm g = {};
    g.a = dy + a->dy.ld, g.lda = a->dy.ld, g.b = w0, g.ldb = in, g.c = a->dx.data, g.ldc = a->dx.ld, g.add = a->dx_add.data,
    g.ld_add = a->dx_add.ld, g.m = N - 1, g.n = in, g.k = out, g.alpha = 1;
    cuda_gemm(c, &g); /* dx[t] = dy[t+1] W0 (+ dx_add[t]) */
    edges(c, a->rows, &a->dx, &a->dx_add, 1);
    if (a->after.data) backward(c, data16(&a->after), a->after.ld, w0, in, data16(&a->dx) + (N - 1) * a->dx.ld, a->dx.ld, 1, out, in, 1);
    backward(c, dy, a->dy.ld, w1, in, data16(&a->dx), a->dx.ld, N, out, in, 1);
}

size_t cuda_linear_workspace(struct cuda *c, const struct backend_limits *l, char *at) {
    size_t n = 0;
    struct card_work w;
    card_work(l, &w);
    c->lt_work_bytes = w.lt, c->w16_elements = w.w16 / 2, c->partial_elements = w.partial / 4;
    const struct { void **p; size_t bytes; } part[] = {
        {(void **)&c->lt_work, w.lt}, {(void **)&c->w16, w.w16}, {(void **)&c->rank, w.rank}, {(void **)&c->dropped, w.dropped},
        {(void **)&c->partial, w.partial}, {(void **)&c->turns, w.turns}, {(void **)&c->taps, w.taps}, {(void **)&c->bias, w.bias}};
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        *part[i].p = at ? at + n : NULL;
        n += (part[i].bytes + 255) / 256 * 256;
    }
    return n;
}
