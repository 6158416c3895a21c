// Every PTX instruction that a kernel uses, one small function each.
//
// No other file in kernels/ has inline assembly. With OSTINATO_EMULATOR (tests on a CPU) the functions come from
// emu/ptx.h, so GPU and emulator compile the same kernels.
//
// Fragments. A warp multiplies a 16 x 16 tile A by a 16 x 8 tile B; lane l has g = l / 4, q = l % 4. Which k a register
// stands for is arbitrary as long as A and B agree. Here a lane's four k are adjacent, k = 4q .. 4q + 3, so that one
// load fetches its part of a column of B:
//   A  [row g, k0 k1] [row g + 8, k0 k1] [row g, k2 k3] [row g + 8, k2 k3]      8 values: uint4, or float[8]
//   B  [column g, k0 k1 k2 k3]                                                  4 values: uint2, or float[4]
//   D  [row g, columns 2q 2q+1] [row g + 8, columns 2q 2q+1]                    4 float32
// Operands loaded by ldmatrix hold k = 2q, 2q+1, 2q+8, 2q+9 instead, in A and B alike.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifdef OSTINATO_EMULATOR
#include "emu/ptx.h"
#else

#define PTX __device__ __forceinline__

// -- matrix products: D += A B, one instruction a function ------------------------------------------------------------

PTX void mma_bf16_m16n8k16(float (&d)[4], uint4 a, uint2 b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
}

PTX void mma_f16_m16n8k16(float (&d)[4], uint4 a, uint2 b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
}

// a: [row g, k q] [row g + 8, k q] [row g, k q + 4] [row g + 8, k q + 4], b: [k q] [k q + 4] of column g, as TF32 bits.
PTX void mma_tf32_m16n8k8(float (&d)[4], uint4 a, uint2 b) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
}

// The nearest TF32 number (10 mantissa bits, ties away from zero), as float32 bits.
PTX unsigned to_tf32(float x) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}

// -- shared memory to fragments: 8 x 8 tiles of 16-bit values ---------------------------------------------------------
// Lane l passes the address of row l % 8 of tile l / 8 (16 bytes, 16-byte aligned). From every tile it receives column
// l / 4, rows 2 (l % 4) and 2 (l % 4) + 1.

PTX unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

PTX uint4 ldmatrix_x4_trans(const void* row) {
    uint4 r;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "r"(shared_address(row))
                 : "memory");
    return r;
}

// -- asynchronous copies: 16 bytes, both addresses 16-byte aligned, unless it says otherwise --------------------------

PTX void cp_async16(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}

// 4, 8 or 16 bytes, both addresses aligned to as many.
template <int BYTES>
PTX void cp_async(void* shared, const void* global) {
    if constexpr (BYTES == 16)
        cp_async16(shared, global);
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(shared)), "l"(global), "n"(BYTES)
                     : "memory");
}

// Copies the first `bytes` (0 to 16) and fills the rest with zeros; with 0 nothing is read.
PTX void cp_async16(void* shared, const void* global, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}

PTX void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Wait until at most N of this thread's latest groups are in flight. Other threads also need a barrier.
template <int N>
PTX void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// -- programmatic dependent launch (sm_90 and later; no-ops below) ----------------------------------------------------
//
//   kernel n      start, grid_launch(), prefetch, grid_wait() -- compute -- store -- end
//   kernel n + 1           start, grid_launch(), prefetch, grid_wait() . . . . . . . . | compute -- store -- end
//   kernel n + 2                    start, grid_launch(), prefetch, grid_wait() . . . . . . . . . . . . . . . . |
//
// Read before grid_wait(): weights, constants, and data that was complete when the step began. Read after it: data that
// kernels of this step write. Every thread of every kernel must execute grid_wait(): a kernel that skips it could end
// before its predecessor, and its successor would start too early.

// Block until all preceding kernels have ended and their writes are visible.
PTX void grid_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Allow the next kernel to start once every block has called this or has ended. Call it early.
PTX void grid_launch() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// -- named barriers, 1 to 15, for some of a block's warps -------------------------------------------------------------

// Wait until `threads` threads, a multiple of 32, have arrived. Their earlier writes to shared memory are then visible.
PTX void barrier_wait(int barrier, int threads) {
    asm volatile("barrier.cta.sync.aligned %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Arrive at the barrier without waiting.
PTX void barrier_arrive(int barrier, int threads) {
    asm volatile("barrier.cta.arrive.aligned %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// -- clusters (sm_90 and later; below, every block is a cluster of one) -----------------------------------------------
//
//   blockIdx.x      0   1   2   3 | 4   5   6   7          a cluster of SPLIT = 4 adjacent blocks, on one GPC
//   cluster_rank    0   1   2   3 | 0   1   2   3
//   shared memory   a   b   c   d | ...                    in_cluster(p, 2): block c's copy of p (DSMEM)

// This block's rank in its cluster.
PTX unsigned cluster_rank() {
#if __CUDA_ARCH__ >= 900
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
#else
    return 0;
#endif
}

// The address of p, a shared variable, in the shared memory of block `rank` of the cluster, for plain loads and stores.
// That block must have started and must not have ended: call cluster_sync before the first access and after the last.
template <class T>
PTX T* in_cluster(T* p, unsigned rank) {
#if __CUDA_ARCH__ >= 900
    T* there;
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(p), "r"(rank));
    return there;
#else
    return p;
#endif
}

// Wait for all threads of the cluster. Their earlier writes to shared memory are then visible to one another.
PTX void cluster_sync() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __syncthreads();
#endif
}

// -- loads and arithmetic ---------------------------------------------------------------------------------------------

// Load 16 bytes that the kernel reads once: weights. A plain load and not ld.global.nc, although weights are read-only:
// ptxas moves ld.global.nc down to the first use, below grid_wait(), which would defeat the prefetch.
PTX uint4 load_stream(const uint4* p) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

// The same with 8 and with 4 bytes.
PTX uint2 load_stream(const uint2* p) {
    uint2 v;
    asm volatile("ld.global.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}

PTX unsigned load_stream(const unsigned* p) {
    unsigned v;
    asm volatile("ld.global.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

// Return p with its provenance hidden from the compiler. Loads at fixed offsets from p then share one base register;
// otherwise the compiler adds base and index for each of them.
template <class T>
PTX const T* one_address(const T* p) {
    size_t at = __cvta_generic_to_global(p);
    asm volatile("" : "+l"(at));
    return static_cast<const T*>(__cvta_global_to_generic(at));
}

PTX void prefetch_l2(const void* p) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

// The products of two pairs of bf16, each rounded to nearest even.
PTX unsigned multiply_bf16x2(unsigned a, unsigned b) {
    unsigned d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(0x80008000u));
    return d;
}

// Asks for `bytes` from p on, multiples of 16, to be brought to L2. Below sm_90 it does nothing.
PTX void prefetch_l2(const void* p, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes));
#endif
}

// 2^x within 2 units in the last place; results below 2^-126 are 0.
PTX float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#undef PTX
#endif  // OSTINATO_EMULATOR

// -- D += A B for any storage type: mma<bf16>(d, a, b) ----------------------------------------------------------------

template <class T>
__device__ __forceinline__ void mma(float (&d)[4], uint4 a, uint2 b);

template <>
__device__ __forceinline__ void mma<__nv_bfloat16>(float (&d)[4], uint4 a, uint2 b) {
    mma_bf16_m16n8k16(d, a, b);
}

template <>
__device__ __forceinline__ void mma<__half>(float (&d)[4], uint4 a, uint2 b) {
    mma_f16_m16n8k16(d, a, b);
}

// float32 operands as a sum of two TF32 numbers each; the product of the two small parts is below the last bit.
template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const float (&a)[8], const float (&b)[4]) {
    static_assert(sizeof(T) == 4, "16-bit operands come as uint4 and uint2");
#pragma unroll
    for (int half = 0; half < 2; half++) {  // k0 k1, then k2 k3
        const float* x = a + 4 * half;
        const float* y = b + 2 * half;
        uint4 big = make_uint4(to_tf32(x[0]), to_tf32(x[2]), to_tf32(x[1]), to_tf32(x[3]));
        uint4 small = make_uint4(to_tf32(x[0] - __uint_as_float(big.x)), to_tf32(x[2] - __uint_as_float(big.y)),
                                 to_tf32(x[1] - __uint_as_float(big.z)), to_tf32(x[3] - __uint_as_float(big.w)));
        uint2 big_b = make_uint2(to_tf32(y[0]), to_tf32(y[1]));
        uint2 small_b = make_uint2(to_tf32(y[0] - __uint_as_float(big_b.x)), to_tf32(y[1] - __uint_as_float(big_b.y)));
        mma_tf32_m16n8k8(d, small, big_b);
        mma_tf32_m16n8k8(d, big, small_b);
        mma_tf32_m16n8k8(d, big, big_b);
    }
}
