// Reductions over the lanes of a warp and the threads of a block, in a fixed order: the same bits in every run.
//
// All are butterfly reductions: every thread gets the result, with the same bits. Every thread of the warp or block
// must call them. V is float, int, unsigned or u64.
#pragma once
#include "types.cuh"

struct Sum {
    template <class V>
    __device__ __forceinline__ V operator()(V a, V b) const {
        return a + b;
    }
};

struct Max {
    template <class V>
    __device__ __forceinline__ V operator()(V a, V b) const {
        return a > b ? a : b;
    }
};

// Over each group of N adjacent lanes, N a power of two up to 32. Every lane gets the result of its group.
template <int N = 32, class V, class Op>
__device__ __forceinline__ V warp_reduce(V v, Op op) {
#pragma unroll
    for (int offset = N / 2; offset > 0; offset /= 2) v = op(v, __shfl_xor_sync(0xffffffffu, v, offset));
    return v;
}

template <int N = 32, class V>
__device__ __forceinline__ V warp_sum(V v) {
    return warp_reduce<N>(v, Sum());
}

template <int N = 32, class V>
__device__ __forceinline__ V warp_max(V v) {
    return warp_reduce<N>(v, Max());
}

// Over a one-dimensional block of THREADS threads, 32 times a power of two. Every thread gets the result. Calls may
// follow one another without a barrier. Shared memory that the block wrote before the call is visible after it.
template <int THREADS, class V, class Op>
__device__ __forceinline__ V block_reduce(V v, Op op) {
    constexpr int WARPS = THREADS / 32;
    static_assert(THREADS % 32 == 0 && (WARPS & (WARPS - 1)) == 0, "a block is a power of two of warps");
    v = warp_reduce(v, op);
    if (WARPS == 1) {
        __syncwarp();
        return v;
    }
    __shared__ V part[WARPS];
    __syncthreads();  // the previous call's reads are done
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_reduce<WARPS>(part[threadIdx.x % WARPS], op);
}

template <int THREADS, class V>
__device__ __forceinline__ V block_sum(V v) {
    return block_reduce<THREADS>(v, Sum());
}

template <int THREADS, class V>
__device__ __forceinline__ V block_max(V v) {
    return block_reduce<THREADS>(v, Max());
}
