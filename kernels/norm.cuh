// RMSNorm on four elements at a time, and the RMSNorm with deferred scale of decode steps:
//
//   writer of a residual row (embed, O, down)   stores T(x * weight / FACTOR), and sum(x^2) of every 16 elements
//   reader (QKV, gate/up, LM head)              multiplies that vector by W, then its sums by FACTOR / rms(x)
//
// 1 / rms(x) is one number per row, so it can be applied after the product, and no kernel needs a complete row.
#pragma once
#include "reduce.cuh"
#include "types.cuh"

// The largest half is 65504, which x * weight may exceed before it is divided by rms(x).
template <class T>
constexpr float FACTOR = 1.f;
template <>
constexpr float FACTOR<half> = 16.f;

// Row stride of the sums of squares, in floats: K / 16, rounded up to a multiple of 4. Padding floats stay 0.
__device__ __forceinline__ int squared_line(int k) { return (k / 16 + 3) / 4 * 4; }

__device__ __forceinline__ float squares(float4 v) {
    return fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, v.x * v.x)));
}

__device__ __forceinline__ float4 scaled(float4 v, float scale, float4 weight) {
    return make_float4(v.x * scale * weight.x, v.y * scale * weight.y, v.z * scale * weight.z, v.w * scale * weight.w);
}
