// Activations, with what the compiler could contract written out, so that they round alike wherever they are inlined.
#pragma once

// v P(N < v) for a standard normal N; with tanh v (1 + tanh(sqrt(2 / pi) (v + 0.044715 v^3))) / 2.
__device__ __forceinline__ float gelu(float v, bool tanh) {
    float inner = tanh ? tanhf(0.79788456f * fmaf(__fmul_rn(0.044715f * v, v), v, v)) : erff(0.70710678f * v);
    return __fmul_rn(0.5f * v, __fadd_rn(1.f, inner));
}

// v / (1 + exp(-v)), by the instructions that approximate both: within 2^-21 of it where v > -8.
__device__ __forceinline__ float silu(float v) {
    return __fdividef(v, __fadd_rn(1.f, __expf(-v)));
}
