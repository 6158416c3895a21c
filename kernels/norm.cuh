// Root mean square of a row, in one order of summation whoever computes it: norm.cu, or a product on its way in.
//
// A row is read as quads, four floats at a time. Quad i belongs to lane i % 32; a lane adds the squares of its quads in
// order, and the lanes meet in a butterfly. So a row has the same scale to the bit in a block of any size, or in one warp.
#pragma once
#include "reduce.cuh"

__device__ __forceinline__ float squares(float4 v) {
    return fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, v.x * v.x)));
}

// 1 / sqrt(mean(x^2) + eps) for every lane of a warp, of what each of its lanes has added up.
__device__ __forceinline__ float rms_scale(float lane_sum, int width, float eps) {
    return 1.f / sqrtf(fmaf(warp_sum(lane_sum), 1.f / width, eps));
}

// The same from squares[i] of every quad, in shared memory.
__device__ __forceinline__ float rms_scale(const float* quad_squares, int width, float eps) {
    float sum = 0.f;
    for (int i = threadIdx.x % 32; i < width / 4; i += 32) sum += quad_squares[i];
    return rms_scale(sum, width, eps);
}

__device__ __forceinline__ float4 scaled(float4 v, float scale, float4 weight) {
    return make_float4(v.x * scale * weight.x, v.y * scale * weight.y, v.z * scale * weight.z, v.w * scale * weight.w);
}
