// Where the decode product takes x from: straight from global memory, a copy in shared memory, or normalised there.
//
// In shared memory a row takes row_stride(K) elements: a multiple of 16 and not of 32, so that the eight columns of a
// fragment fall into different banks. Rows beyond R read row R - 1: columns do not influence one another.
#pragma once
#include "packed.cuh"
#include "norm.cuh"

enum Source { DIRECT, STAGED, NORM };  // x as it is in global memory; copied; T(x / rms(x) * weight) of float32 x

template <class T, int SOURCE>
struct Input {
    using type = T;
};
template <class T>
struct Input<T, NORM> {
    using type = float;
};

__device__ __forceinline__ int row_stride(int k) {
    return k / 16 % 2 ? k : k + 16;
}

// staged[r] = x[r] for r < rows. Ends with a barrier.   x [R, K] T
template <class T, int THREADS>
__device__ __forceinline__ void stage(const T* x, int rows, int k, T* staged) {
    constexpr int EACH = 16 / sizeof(T);
    for (int r = 0; r < rows; r++)
        for (int i = threadIdx.x * EACH; i < k; i += THREADS * EACH)
            cp_async16(staged + r * row_stride(k) + i, x + static_cast<size_t>(r) * k + i);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
}

constexpr int EACH = 2;       // quads a thread holds of a single row: K <= 4 EACH THREADS
constexpr int ROW_QUADS = 5;  // quads a lane holds of one of several rows: K <= 128 ROW_QUADS

// Whether a block of WARPS warps normalises several rows: more warps leave a thread too few registers.
template <int WARPS>
constexpr bool SEVERAL = WARPS <= 12;

// What normalise needs in shared memory: quad_squares [K / 4], then weight [K].
__device__ __forceinline__ int norm_floats(int k) {
    return k / 4 + k;
}

// Brings the norm's weight to shared memory; may run before grid_wait(), and ends with a barrier.   weight, copy [K]
template <int THREADS>
__device__ __forceinline__ void stage_norm(const float* weight, int k, float* copy) {
    for (int i = threadIdx.x * 4; i < k; i += THREADS * 4) cp_async16(copy + i, weight + i);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
}

// staged[r] = T(x[i] / sqrt(mean(x[i]^2) + eps) * weight) with i = index[r], or r without an index. Ends with a barrier.
// One row is shared out over the block, so that it is read in one go; of several, each belongs to a warp. The bits are
// the same (norm.cuh).   x [*, K] float32; weight [K] and quad_squares [K / 4] shared
template <class T, int WARPS>
__device__ __forceinline__ void normalise(const float* x, const int* index, const float* weight, float eps, int rows,
                                          int k, T* staged, float* quad_squares) {
    constexpr int THREADS = WARPS * 32;
    const float4* w4 = reinterpret_cast<const float4*>(weight);
    int quads = k / 4, lane = threadIdx.x % 32;
    if (!SEVERAL<WARPS> || rows == 1) {
        const float4* row = reinterpret_cast<const float4*>(x) + (index ? index[0] : 0) * quads;
        float4 v[EACH];
#pragma unroll
        for (int j = 0; j < EACH; j++)
            if (threadIdx.x + j * THREADS < quads) v[j] = row[threadIdx.x + j * THREADS];
#pragma unroll
        for (int j = 0; j < EACH; j++)
            if (threadIdx.x + j * THREADS < quads) quad_squares[threadIdx.x + j * THREADS] = squares(v[j]);
        __syncthreads();
        float scale = rms_scale(quad_squares, k, eps);
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            int i = threadIdx.x + j * THREADS;
            if (i < quads) store4(staged + i * 4, scaled(v[j], scale, w4[i]));
        }
    } else {
        for (int r = threadIdx.x / 32; r < rows; r += WARPS) {
            const float4* row = reinterpret_cast<const float4*>(x) + (index ? index[r] : r) * quads;
            float4 v[ROW_QUADS];
#pragma unroll
            for (int j = 0; j < ROW_QUADS; j++)
                if (lane + j * 32 < quads) v[j] = row[lane + j * 32];
            float sum = 0.f;
#pragma unroll
            for (int j = 0; j < ROW_QUADS; j++)
                if (lane + j * 32 < quads) sum += squares(v[j]);
            float scale = rms_scale(sum, k, eps);
#pragma unroll
            for (int j = 0; j < ROW_QUADS; j++) {
                int i = lane + j * 32;
                if (i < quads) store4(staged + r * row_stride(k) + i * 4, scaled(v[j], scale, w4[i]));
            }
        }
    }
    __syncthreads();
}
