/* backend/cuda/gemm.cu - matrix products by cublasLt: row-major, bf16 operands, fp32 accumulation.
 *
 * The heuristic is asked once per shape and its choice kept, so a shape always runs the same kernel. Sums are never split over
 * K: a row's bits then depend neither on how many rows the product has nor on the run. */
#include "backend/cuda/cuda_internal.h"
#include <string.h>

static int lt(struct cuda *c, cublasStatus_t status, const char *what) {
    if (status == CUBLAS_STATUS_SUCCESS) return 0;
    CUDA_LAUNCHED(c); /* of a failed card the runtime knows more */
    err_set(&c->failure, ERR_RUN, "cublasLt failed: %s in %s; is the CUDA toolkit newer than the driver?",
            cublasLtGetStatusString(status), what);
    return -1;
}

/* A row-major (rows, cols) matrix is a column-major (cols, rows) one. */
static int layout(struct cuda *c, cublasLtMatrixLayout_t *out, cudaDataType_t type, int64_t rows, int64_t cols, int64_t ld,
                  int64_t batch, int64_t stride) {
    if (lt(c, cublasLtMatrixLayoutCreate(out, type, (uint64_t)cols, (uint64_t)rows, ld), "a layout")) return -1;
    int32_t count = (int32_t)batch;
    if (batch <= 1) return 0;
    return lt(c, cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count), "a batch") ||
           lt(c, cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride), "a batch");
}

static struct gemm_plan *plan_of(struct cuda *c, const struct gemm_key *k) {
    for (int i = 0; i < c->plans; i++)
        if (!memcmp(&c->plan[i].key, k, sizeof *k)) return &c->plan[i];
    if (c->plans == GEMM_CACHE) { /* unusual: many lengths. The oldest goes */
        struct gemm_plan *old = &c->plan[0];
        cublasLtMatmulDescDestroy(old->op);
        cublasLtMatrixLayoutDestroy(old->a), cublasLtMatrixLayoutDestroy(old->b), cublasLtMatrixLayoutDestroy(old->add),
            cublasLtMatrixLayoutDestroy(old->c);
        memmove(c->plan, c->plan + 1, sizeof *c->plan * --c->plans);
    }
    struct gemm_plan p = {};
    p.key = *k;
    cudaDataType_t result = k->c_f32 ? CUDA_R_32F : CUDA_R_16BF;
    cublasOperation_t opa = k->ta ? CUBLAS_OP_T : CUBLAS_OP_N, opb = k->tb ? CUBLAS_OP_T : CUBLAS_OP_N;
    if (layout(c, &p.a, CUDA_R_16BF, k->ta ? k->k : k->m, k->ta ? k->m : k->k, k->lda, k->batch, k->stride_a) ||
        layout(c, &p.b, CUDA_R_16BF, k->tb ? k->n : k->k, k->tb ? k->k : k->n, k->ldb, k->batch, k->stride_b) ||
        layout(c, &p.add, result, k->m, k->n, k->ld_add ? k->ld_add : k->ldc, k->batch, k->stride_c) ||
        layout(c, &p.c, result, k->m, k->n, k->ldc, k->batch, k->stride_c) ||
        lt(c, cublasLtMatmulDescCreate(&p.op, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a product") ||
        /* columns first: C'(n,m) = op(b)' op(a)' */
        lt(c, cublasLtMatmulDescSetAttribute(p.op, CUBLASLT_MATMUL_DESC_TRANSA, &opb, sizeof opb), "a product") ||
        lt(c, cublasLtMatmulDescSetAttribute(p.op, CUBLASLT_MATMUL_DESC_TRANSB, &opa, sizeof opa), "a product"))
        return NULL;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    if (k->bias &&
        lt(c, cublasLtMatmulDescSetAttribute(p.op, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue), "a bias"))
        return NULL;
    cublasLtMatmulPreference_t pref;
    cublasLtMatmulHeuristicResult_t best;
    uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_NONE, aligned = (uint32_t)k->aligned;
    int found = 0;
    if (lt(c, cublasLtMatmulPreferenceCreate(&pref), "a preference")) return NULL;
    cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &c->lt_work_bytes, sizeof c->lt_work_bytes);
    cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes, sizeof schemes);
    for (auto what : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                      CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
        cublasLtMatmulPreferenceSetAttribute(pref, what, &aligned, sizeof aligned);
    cublasStatus_t s = cublasLtMatmulAlgoGetHeuristic(c->lt, p.op, p.b, p.a, p.add, p.c, pref, 1, &best, &found);
    cublasLtMatmulPreferenceDestroy(pref);
    if (lt(c, s, "the choice of a kernel") || !found)
        return err_set(&c->failure, ERR_RUN, "cublasLt has no kernel for a (%lld,%lld) by (%lld,%lld) product", (long long)k->m,
                       (long long)k->k, (long long)k->k, (long long)k->n),
               nullptr;
    p.algo = best.algo;
    c->plan[c->plans] = p;
    return &c->plan[c->plans++];
}

void cuda_gemm(struct cuda *c, const struct gemm *g) {
    struct gemm_key k;
    memset(&k, 0, sizeof k); /* padding too: keys are compared as bytes */
    k.m = g->m, k.n = g->n, k.k = g->k, k.lda = g->lda, k.ldb = g->ldb, k.ldc = g->ldc, k.ld_add = g->add ? g->ld_add : 0;
    k.batch = g->batch, k.stride_a = g->stride_a, k.stride_b = g->stride_b, k.stride_c = g->stride_c, k.ta = g->ta, k.tb = g->tb,
    k.c_f32 = g->c_f32, k.bias = g->bias != NULL;
    const uintptr_t bits = (uintptr_t)g->a | (uintptr_t)g->b | (uintptr_t)g->c | (uintptr_t)g->add |
                           16; /* operands may begin at a column of a joint matrix */
    k.aligned = (int64_t)(bits & -bits);
    if (!g->m || !g->n || c->failure.code) return;
    struct gemm_plan *p = plan_of(c, &k);
    if (!p) return;
    if (g->bias &&
        lt(c, cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &g->bias, sizeof g->bias), "a bias"))
        return;
    float beta = g->add ? 1.0f : 0.0f;
    lt(c,
       cublasLtMatmul(c->lt, p->op, &g->alpha, g->b, p->b, g->a, p->a, &beta, g->add ? g->add : g->c, p->add, g->c, p->c,
                      &p->algo, c->lt_work, c->lt_work_bytes, cuda_stream(c)),
       "a product");
    CUDA_LAUNCHED(c);
}
