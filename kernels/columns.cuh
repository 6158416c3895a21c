// Where the decode product takes x from: straight from global memory, a copy in shared memory, or normalised there.
//
// In shared memory a row takes row_stride(K) elements: a multiple of 16 and not of 32, so that the eight columns of a
// fragment fall into different banks. Rows beyond R read row R - 1: columns do not influence one another.
#pragma once
#include "packed.cuh"
#include "reduce.cuh"

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

// Rows r0 .. r0 + M of normalise, M at a time so that their loads overlap. Rows from `rows` on repeat the last one.
template <class T, int WARPS, int M>
__device__ __forceinline__ void normalise_rows(const float* x, const int* index, const float* weight, float eps, int r0,
                                               int rows, int k, T* staged, float* part) {
    constexpr int THREADS = WARPS * 32;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const float4* x4 = reinterpret_cast<const float4*>(x);
    int row[M];  // where it begins in x4
    float sum[M];
#pragma unroll
    for (int m = 0; m < M; m++) {
        int r = min(r0 + m, rows - 1);
        row[m] = (index ? index[r] : r) * (k / 4);
        sum[m] = 0.f;
    }
#pragma unroll 2
    for (int i = threadIdx.x; i < k / 4; i += THREADS) {
#pragma unroll
        for (int m = 0; m < M; m++) {
            float4 v = x4[row[m] + i];
            sum[m] = fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum[m]))));
        }
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
        sum[m] = warp_sum(sum[m]);
        if (lane == 0) part[(r0 + m) * WARPS + warp] = sum[m];
    }
    __syncthreads();
#pragma unroll
    for (int m = 0; m < M; m++) {
        float all = warp_sum(lane < WARPS ? part[(r0 + m) * WARPS + lane] : 0.f);
        sum[m] = 1.f / sqrtf(fmaf(all, 1.f / k, eps));
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < k / 4; i += THREADS) {
        float4 w = reinterpret_cast<const float4*>(weight)[i];
#pragma unroll
        for (int m = 0; m < M; m++) {
            if (r0 + m >= rows) break;
            float4 v = x4[row[m] + i];
            store4(staged + (r0 + m) * row_stride(k) + i * 4,
                   make_float4(v.x * sum[m] * w.x, v.y * sum[m] * w.y, v.z * sum[m] * w.z, v.w * sum[m] * w.w));
        }
    }
}

// staged[r] = T(x[i] / sqrt(mean(x[i]^2) + eps) * weight) with i = index[r], or r without an index. Ends with a
// barrier. The order of the sum depends on K and WARPS only.   x [*, K] float32, weight [K], part [16 * WARPS] shared
template <class T, int WARPS>
__device__ __forceinline__ void normalise(const float* x, const int* index, const float* weight, float eps, int rows,
                                          int k, T* staged, float* part) {
    if (rows == 1) {
        normalise_rows<T, WARPS, 1>(x, index, weight, eps, 0, rows, k, staged, part);
    } else {
        for (int r = 0; r < rows; r += 2) normalise_rows<T, WARPS, 2>(x, index, weight, eps, r, rows, k, staged, part);
    }
    __syncthreads();
}
