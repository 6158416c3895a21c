// RMS norms: four neighbours of a row at once, and a norm in two halves. Who writes a row of the residual stream in a
// decode step (embed, and the products that add to it) also writes T(x * weight / FACTOR), and the sum of x^2 of every
// sixteen neighbours; who reads it multiplies its own sums by FACTOR / rms(x), which is the same for all of a row.
#pragma once
#include "reduce.cuh"
#include "types.cuh"

// Halves end at 65504, which a residual stream may come near to before it is divided by its root mean square.
template <class T>
constexpr float FACTOR = 1.f;
template <>
constexpr float FACTOR<half> = 16.f;

// Floats from one row's sums of squares to the next one's: K / 16, up to a multiple of 4; those that fill up stay 0.
__device__ __forceinline__ int squared_line(int k) { return (k / 16 + 3) / 4 * 4; }

__device__ __forceinline__ float squares(float4 v) {
    return fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, v.x * v.x)));
}

__device__ __forceinline__ float4 scaled(float4 v, float scale, float4 weight) {
    return make_float4(v.x * scale * weight.x, v.y * scale * weight.y, v.z * scale * weight.z, v.w * scale * weight.w);
}
