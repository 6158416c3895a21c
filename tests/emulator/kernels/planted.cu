// One mistake a kernel: NAME<true> makes it, NAME<false> is the same kernel without it. test_detectors.py expects the
// first to be caught and the second to run.
//
// x [n] -> out [n] unless said otherwise.   LAUNCH: grid 1, block n = 64; shared 256 bytes
#include <cooperative_groups.h>

#include "ptx.cuh"

// -- order ------------------------------------------------------------------------------------------------------------

template <bool wrong>
__global__ void __launch_bounds__(64) unwritten_shared(const float* x, float* out) {
    __shared__ float part[64];
    if (!wrong || threadIdx.x != 5) part[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = part[threadIdx.x];
}

template <bool wrong>
__global__ void __launch_bounds__(64) missing_barrier(const float* x, float* out) {
    __shared__ float part[64];
    part[threadIdx.x] = x[threadIdx.x];
    if (!wrong) __syncthreads();
    out[threadIdx.x] = part[63 - threadIdx.x];
}

template <bool wrong>
__global__ void __launch_bounds__(64) reused_too_soon(const float* x, float* out) {
    __shared__ float part[64];
    float sum = 0.0f;
    for (int i = 0; i < 3; i++) {
        part[threadIdx.x] = x[threadIdx.x] * float(i);
        __syncthreads();
        sum += part[threadIdx.x ^ 1];
        if (!wrong) __syncthreads();
    }
    out[threadIdx.x] = sum;
}

template <bool wrong>
__global__ void __launch_bounds__(64) warp_runs_ahead(const float* x, float* out) {
    __shared__ float part[64];
    float v = x[threadIdx.x], sum = 0.0f;
    for (int i = 0; i < 3; i++) {
        v = __shfl_xor_sync(0xffffffffu, v, 1);
        part[threadIdx.x] = v * float(i);
        __syncthreads();
        sum += part[threadIdx.x ^ 32];
        if (!wrong) __syncthreads();
    }
    out[threadIdx.x] = sum;
}

template <bool wrong>
__global__ void __launch_bounds__(64) missing_warp_barrier(const float* x, float* out) {
    __shared__ float part[64];
    part[threadIdx.x] = x[threadIdx.x];
    if (!wrong) __syncwarp();
    out[threadIdx.x] = part[threadIdx.x ^ 31];
}

template <bool wrong>
__global__ void __launch_bounds__(64) atomic_order(const float* x, float* out) {
    atomicAdd(out + threadIdx.x % 4, wrong ? x[threadIdx.x] / 3.0f : 1.0f);
}

template <bool wrong>
__global__ void __launch_bounds__(64) block_order(const float* x, float* out) {  // LAUNCH: grid 3
    if (wrong || blockIdx.x == 1) out[threadIdx.x] = x[threadIdx.x] + float(blockIdx.x);
}

template <bool wrong>
__global__ void __launch_bounds__(64) copy_not_awaited(const float* x, float* out) {
    __shared__ float4 part[16];
    if (threadIdx.x < 16) cp_async16(part + threadIdx.x, x + 4 * threadIdx.x);
    cp_async_commit();
    if (!wrong) cp_async_wait<0>();
    __syncthreads();
    out[threadIdx.x] = reinterpret_cast<float*>(part)[threadIdx.x];
}

template <bool wrong>
__global__ void __launch_bounds__(64) copy_not_committed(const float* x, float* out) {
    __shared__ float4 part[16];
    if (threadIdx.x < 16) cp_async16(part + threadIdx.x, x + 4 * threadIdx.x);
    if (!wrong) cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    out[threadIdx.x] = reinterpret_cast<float*>(part)[threadIdx.x];
}

// -- barriers and masks -----------------------------------------------------------------------------------------------

template <bool wrong>
__global__ void __launch_bounds__(64) two_barriers(const float* x, float* out) {
    if (wrong && threadIdx.x >= 48) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = x[threadIdx.x];
}

// The second warp leaves what it has found for the first, which is not waited for.
template <bool wrong>
__global__ void __launch_bounds__(64) named_too_early(const float* x, float* out) {
    __shared__ float found[32];
    out[threadIdx.x] = 0.f;
    if (threadIdx.x >= 32) {
        if (wrong) barrier_arrive(1, 64);
        found[threadIdx.x - 32] = x[threadIdx.x];
        if (!wrong) barrier_arrive(1, 64);
    } else {
        barrier_wait(1, 64);
        out[threadIdx.x] = found[threadIdx.x];
    }
}

template <bool wrong>
__global__ void __launch_bounds__(64) named_and_nobody_comes(const float* x, float* out) {
    if (!wrong || threadIdx.x < 32) barrier_wait(2, 64);
    out[threadIdx.x] = x[threadIdx.x];
}

template <bool wrong>
__global__ void __launch_bounds__(64) named_once_too_often(const float* x, float* out) {
    if (threadIdx.x < 32) barrier_arrive(1, 64);
    if (threadIdx.x >= 32) barrier_wait(1, 64);
    if (wrong && threadIdx.x >= 32) barrier_arrive(1, 64);
    out[threadIdx.x] = x[threadIdx.x];
}

template <bool wrong>
__global__ void __launch_bounds__(64) named_for_two_sizes(const float* x, float* out) {
    if (threadIdx.x < 32) barrier_arrive(1, 64);
    if (threadIdx.x >= 32) barrier_wait(1, wrong ? 32 : 64);
    out[threadIdx.x] = x[threadIdx.x];
}

template <bool wrong>
__global__ void __launch_bounds__(64) named_for_half_a_warp(const float* x, float* out) {
    if (threadIdx.x < 32) barrier_wait(1, wrong ? 16 : 32);
    out[threadIdx.x] = x[threadIdx.x];
}

template <bool wrong>
__global__ void __launch_bounds__(64) barrier_and_shuffle(const float* x, float* out) {
    if (wrong && threadIdx.x < 16) __syncthreads();
    out[threadIdx.x] = __shfl_sync(0xffffffffu, x[threadIdx.x], 3);
    if (!wrong || threadIdx.x >= 16) __syncthreads();
}

template <bool wrong>
__global__ void __launch_bounds__(64) mask_without_caller(const float* x, float* out) {
    out[threadIdx.x] = __shfl_xor_sync(wrong ? 0xffffu : 0xffffffffu, x[threadIdx.x], 1);
}

template <bool wrong>
__global__ void __launch_bounds__(64) mask_of_absent_lanes(const float* x, float* out) {
    float v = x[threadIdx.x];
    if (threadIdx.x % 32 < 16) v += __shfl_xor_sync(wrong ? 0xffffffffu : 0xffffu, v, 1);
    __syncwarp();
    out[threadIdx.x] = v;
}

template <bool wrong>
__global__ void __launch_bounds__(64) shuffle_from_outside(const float* x, float* out) {
    float v = x[threadIdx.x];
    if (threadIdx.x % 32 < 16) v = __shfl_down_sync(0xffffu, v, 1, wrong ? 32 : 16);
    out[threadIdx.x] = v;
}

template <bool wrong>
__global__ void __launch_bounds__(64) half_a_warp_mma(const float* x, float* out) {
    float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (!wrong || threadIdx.x % 32 < 16) mma<__half>(d, make_uint4(0, 0, 0, 0), make_uint2(0, 0));
    out[threadIdx.x] = x[threadIdx.x] + d[0];
}

template <bool wrong>
__global__ void __launch_bounds__(64) matrix_not_shared(const float* x, float* out) {
    __shared__ uint4 tile[64];
    tile[threadIdx.x] = make_uint4(threadIdx.x, 0, 0, 0);
    __syncthreads();
    uint4 v = ldmatrix_x4_trans(wrong ? static_cast<const void*>(x) : tile + threadIdx.x % 32);
    out[threadIdx.x] = float(v.x);
}

template <bool wrong>
__global__ void __launch_bounds__(64) matrix_misaligned(const float*, float* out) {
    __shared__ uint4 tile[65];
    tile[threadIdx.x] = make_uint4(threadIdx.x, 0, 0, 0);
    __syncthreads();
    uint4 v = ldmatrix_x4_trans(reinterpret_cast<char*>(tile + threadIdx.x % 32) + 8 * wrong);
    out[threadIdx.x] = float(v.x);
}

// -- dependent launch: `first` writes out and reads x, the next one begins before it has ended ------------------------

extern "C" __global__ void first(const float* x, float* out) {
    out[blockDim.x * blockIdx.x + threadIdx.x] = x[blockDim.x * blockIdx.x + threadIdx.x];
}

template <bool wrong>
__global__ void __launch_bounds__(64) reads_early(const float* x, float* out) {
    float early = wrong ? x[threadIdx.x] : 0.0f;
    grid_wait();
    out[threadIdx.x] = (wrong ? early : x[threadIdx.x]) + 1.0f;
}

template <bool wrong>
__global__ void __launch_bounds__(64) writes_early(const float* x, float* out) {
    if (wrong) out[threadIdx.x] = 1.0f;
    grid_wait();
    out[threadIdx.x] = x[threadIdx.x] + 1.0f;
}

template <bool wrong>
__global__ void __launch_bounds__(64) never_waits(const float* x, float* out) {
    if (wrong) return;
    grid_wait();
    out[threadIdx.x] = 1.0f;
}

// -- a ticket -----------------------------------------------------------------------------------------------------------

// The block that comes last adds what all blocks wrote.   LAUNCH: grid 3; out [64 sums, 3 * 64 parts, ticket]
template <bool wrong>
__global__ void __launch_bounds__(64) ticket_too_early(const float* x, float* out) {
    __shared__ bool last;
    float *parts = out + 64, *ticket = parts + 3 * 64;
    parts[blockIdx.x * 64 + threadIdx.x] = x[threadIdx.x];
    __threadfence();
    if (!wrong) __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(ticket, 1.0f) == 2.0f;
    __syncthreads();
    if (!last) return;
    __threadfence();
    for (int b = 0; b < 3; b++) out[threadIdx.x] += __ldcg(parts + b * 64 + threadIdx.x);
}

// -- a grid barrier ---------------------------------------------------------------------------------------------------

// out[b] = sum of what all blocks wrote before.   LAUNCH: grid 5; out [10]
template <bool wrong>
__global__ void __launch_bounds__(64) grid_barrier(const float* x, float* out) {
    if (threadIdx.x == 0) out[5 + blockIdx.x] = x[blockIdx.x];
    if (!wrong || blockIdx.x != 3) cooperative_groups::this_grid().sync();
    if (threadIdx.x == 0) out[blockIdx.x] = out[5] + out[6] + out[7] + out[8] + out[9];
}
