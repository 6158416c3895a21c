// Activations. Multiply-adds are written out, so that the compiler cannot contract them differently where it inlines.
#pragma once

// GELU: v P(N < v) for a standard normal N. tanh: v (1 + tanh(sqrt(2 / pi) (v + 0.044715 v^3))) / 2 instead.
__device__ __forceinline__ float gelu(float v, bool tanh) {
    float inner = tanh ? tanhf(0.79788456f * fmaf(__fmul_rn(0.044715f * v, v), v, v)) : erff(0.70710678f * v);
    return __fmul_rn(0.5f * v, __fadd_rn(1.f, inner));
}

// SiLU: v / (1 + exp(-v)) with approximate exp and division; relative error at most 2^-21 for v > -8.
__device__ __forceinline__ float silu(float v) {
    return __fdividef(v, __fadd_rn(1.f, __expf(-v)));
}
