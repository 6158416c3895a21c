// Where the decode product takes x from: straight from global memory, or a copy in shared memory; and rows' scales.
//
// In the relay, and in the copy, x is [K / 16, R, 16]: the eight columns of a fragment are neighbours, and fall into
// different banks. Rows beyond R read row R - 1: columns do not influence one another.
#pragma once
#include "packed.cuh"
#include "reduce.cuh"
#include "relay.cuh"

enum Source { DIRECT, STAGED };  // STAGED only of x in the relay's order

// A lane's part of 16 k of eight columns, on its way from where another kernel may still write it.
template <class T>
__device__ __forceinline__ FragmentB<T> load_column(const T* p) {
    return {load_relaxed(reinterpret_cast<const uint2*>(p))};
}
template <>
__device__ __forceinline__ FragmentB<float> load_column<float>(const float* p) {
    uint4 v = load_relaxed(reinterpret_cast<const uint4*>(p));
    return {make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w))};
}

// The same once it is there. p is where it came from.
template <class T>
__device__ __forceinline__ FragmentB<T> settle_column(FragmentB<T> b, const T* p, bool live) {
    return {settle<T>(b.v, reinterpret_cast<const uint2*>(p), live)};
}
template <>
__device__ __forceinline__ FragmentB<float> settle_column<float>(FragmentB<float> b, const float* p, bool live) {
    uint4 v = make_uint4(__float_as_uint(b.v.x), __float_as_uint(b.v.y), __float_as_uint(b.v.z), __float_as_uint(b.v.w));
    v = settle<float>(v, reinterpret_cast<const uint4*>(p), live);
    return {make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w))};
}

// staged = x, in a rehearsal whatever is there. Needs a barrier behind it.   x [count] T, in the relay's order
template <class T, int THREADS>
__device__ __forceinline__ void stage(const T* x, int count, T* staged, bool live) {
    constexpr int EACH = 16 / sizeof(T), AHEAD = 2;  // elements of a load, loads in flight
    const uint4* from = reinterpret_cast<const uint4*>(x);
    for (int first = threadIdx.x; first < count / EACH; first += THREADS * AHEAD) {
        const int here = (count / EACH - first + THREADS - 1) / THREADS;
        uint4 v[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (j < here) v[j] = load_relaxed(from + first + j * THREADS);
        settle<T>(v, from + first, THREADS, here, live);
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (j < here) reinterpret_cast<uint4*>(staged)[first + j * THREADS] = v[j];
    }
}

// scales[r] = 1 / (SHRINK sqrt(mean of row r's squares + eps)), or 1 without `squares`. Needs a barrier behind it. Always
// summed up in the same order; the last warp begins, as the first ones have more of x to fetch.
//   squares [R, K / 16] float32: of 16 neighbours of the row each
template <class T, int WARPS>
__device__ __forceinline__ void row_scales(const float* squares, float eps, int rows, int k, float* scales, bool live) {
    const int lane = threadIdx.x % 32, runs = k / 16;
    if (!squares) {
        if (threadIdx.x < rows) scales[threadIdx.x] = 1.f;
        return;
    }
    for (int r = WARPS - 1 - threadIdx.x / 32; r < rows; r += WARPS) {
        const unsigned* row = reinterpret_cast<const unsigned*>(squares) + r * runs;
        float sum = 0.f;
        for (int first = lane; first < runs; first += 128) {
            const int here = (runs - first + 31) / 32;
            unsigned v[4];
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (j < here) v[j] = load_relaxed(row + first + 32 * j);
            settle<float>(v, row + first, 32, here, live);
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (j < here) sum += __uint_as_float(v[j]);
        }
        sum = warp_sum(sum);
        if (lane == 0) scales[r] = rsqrtf(fmaf(sum, 1.f / k, eps)) * (1.f / SHRINK<T>);
    }
}
