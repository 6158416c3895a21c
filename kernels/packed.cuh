// How a weight matrix [N, K] lies in memory for the matrix products, and how a lane loads its part.
//
// Packed: [tiles][K / 16][32 lanes][8 T], one 16 x 16 tile after the other, each lane's eight values its A fragment
// (ptx.cuh), so that a warp reads a tile as one run of bytes. tiles = N / 16, rounded up with rows of zeros.
//
// Which rows share a tile is given by `span`, the tiles of a group. Rows g and g + 8 of a tile are
//     row  = group * 16 * span + j * 8 + g        with group = tile / span, j = tile % span
//     row' = row + 8 * span
// so span 1 keeps the order, span d / 16 pairs element i of a head with i + d / 2 (the partners of RoPE), and span
// N / 16 pairs row j with row j + N / 2 (gate and up). Partners are in one lane's accumulators, which can combine them.
#pragma once
#include "ptx.cuh"
#include "types.cuh"

// The first of the two rows that lane group g holds of a tile; the other is 8 * span further.
__device__ __forceinline__ int first_row(int tile, int span, int g) {
    int group = tile / span;
    return (group * span + tile) * 8 + g;  // group * 16 * span + (tile - group * span) * 8 + g
}

// A lane's part of a tile of weights.
template <class T>
struct FragmentA {
    uint4 v;
};
template <>
struct FragmentA<float> {
    uint4 v, w;
};

// A lane's part of 16 k of eight columns of x: four neighbours of one column.
template <class T>
struct FragmentB {
    uint2 v;
};
template <>
struct FragmentB<float> {
    float4 v;
};

// Puts a lane's part of a tile on its way to shared memory. p: packed + (tile * 32 + lane) * 8.
template <class T>
__device__ __forceinline__ void copy_a(FragmentA<T>* to, const T* p) {
#pragma unroll
    for (int i = 0; i < sizeof(FragmentA<T>) / 16; i++)
        cp_async16(reinterpret_cast<uint4*>(to) + i, reinterpret_cast<const uint4*>(p) + i);
}

// Loads it from memory that does not change while the kernel runs.
template <class T>
__device__ __forceinline__ FragmentA<T> load_a(const T* p) {
    return {load_stream(reinterpret_cast<const uint4*>(p))};
}
template <>
__device__ __forceinline__ FragmentA<float> load_a<float>(const float* p) {
    const uint4* v = reinterpret_cast<const uint4*>(p);
    return {load_stream(v), load_stream(v + 1)};
}

// The same from any memory.
template <class T>
__device__ __forceinline__ FragmentA<T> read_a(const T* p) {
    return {*reinterpret_cast<const uint4*>(p)};
}
template <>
__device__ __forceinline__ FragmentA<float> read_a<float>(const float* p) {
    const uint4* v = reinterpret_cast<const uint4*>(p);
    return {v[0], v[1]};
}

// p points at the lane's four values, aligned to their size.
template <class T>
__device__ __forceinline__ void copy_b(FragmentB<T>* to, const T* p) {
    if constexpr (sizeof(T) == 4)
        cp_async16(to, p);
    else
        cp_async<8>(to, p);
}

template <class T>
__device__ __forceinline__ FragmentB<T> load_b(const T* p) {
    return {*reinterpret_cast<const uint2*>(p)};
}
template <>
__device__ __forceinline__ FragmentB<float> load_b<float>(const float* p) {
    return {*reinterpret_cast<const float4*>(p)};
}

// acc += a b
template <class T>
__device__ __forceinline__ void multiply(float (&acc)[4], const FragmentA<T>& a, const FragmentB<T>& b) {
    mma<T>(acc, a.v, b.v);
}
template <>
__device__ __forceinline__ void multiply<float>(float (&acc)[4], const FragmentA<float>& a, const FragmentB<float>& b) {
    float x[8] = {__uint_as_float(a.v.x), __uint_as_float(a.v.y), __uint_as_float(a.v.z), __uint_as_float(a.v.w),
                  __uint_as_float(a.w.x), __uint_as_float(a.w.y), __uint_as_float(a.w.z), __uint_as_float(a.w.w)};
    float y[4] = {b.v.x, b.v.y, b.v.z, b.v.w};
    mma<float>(acc, x, y);
}
