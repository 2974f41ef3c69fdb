/* backend/cuda/mma.h - the matrix unit of sm_80 and later as inline functions: ldmatrix, cp.async, mma.sync m16n8k16. */
#ifndef QLORA_CUDA_MMA_H
#define QLORA_CUDA_MMA_H
#include <cuda_bf16.h>
#include <stdint.h>

#define DEV __device__ __forceinline__

DEV uint32_t shared_at(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }
DEV void ld4(uint32_t r[4], const __nv_bfloat16 *p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_at(p)));
}
DEV void ld4t(uint32_t r[4], const __nv_bfloat16 *p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_at(p)));
}
DEV void ld2t(uint32_t r[2], const __nv_bfloat16 *p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_at(p)));
}
/* c(16,8) += a(16,16) b(16,8) */
DEV void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEV uint32_t pack(float lo, float hi) {
    __nv_bfloat162 h = __floats2bfloat162_rn(lo, hi);
    return *(uint32_t *)&h;
}
/* 16 bytes to shared memory behind the thread's back; 0 instead where there is nothing */
DEV void copy16(__nv_bfloat16 *to, const __nv_bfloat16 *from, int there = 1) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_at(to)), "l"(from), "r"(there ? 16 : 0));
}
DEV void copies_end() { asm volatile("cp.async.commit_group;"); }
template <int LEFT> DEV void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT)); }
#endif
