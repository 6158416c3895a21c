// Sampling, per token: the logit after bans and penalties, its order, its weight; random bits. engine/ops/sampling.py
// defines them all. Float operations are written out, so that the compiler fuses none and the bits agree.
#pragma once
#include "reduce.cuh"

constexpr int STOP_IDS = 32;
constexpr float ONE = 1099511627776.f;  // 2^40, weight of the largest token
constexpr unsigned NOT_A_NUMBER = 0xffffffffu;

// The sampling rules of a sequence: RULES of engine/ops/sampling.py, byte for byte.
struct Rules {
    float temperature;
    int top_k;
    float top_p;
    float min_p;
    float repetition_penalty;
    float presence_penalty;
    float frequency_penalty;
    int stop_from;
    u64 seed;
    int stop_ids[STOP_IDS];
};

// A row's logits, with the bans and penalties of its rules applied.
struct Adjusted {
    const float* logits;  // [V]
    const int* counts;    // [V], or null: no penalties
    const int* banned;    // [STOP_IDS], ids first, then -1; or null: no bans
    float repetition, presence, frequency;

    __device__ __forceinline__ float logit(int v) const {
        float x = logits[v];
        if (banned) {
            for (int i = 0; i < STOP_IDS && banned[i] >= 0; i++)
                if (banned[i] == v) x = __uint_as_float(0xff800000u);
        }
        if (counts) {
            int seen = counts[v];
            if (seen != 0) x = x > 0.f ? __fdiv_rn(x, repetition) : __fmul_rn(x, repetition);
            if (seen >> 1 > 0)
                x = __fadd_rn(__fadd_rn(x, -__fmul_rn(frequency, float(seen >> 1))), -presence);
        }
        return x;
    }
};

// Unsigned integers in the order of the floats; both zeros are equal. value_of is the inverse for all but NaN.
__device__ __forceinline__ unsigned order(float x) {
    unsigned bits = __float_as_uint(__fadd_rn(x, 0.f));
    return x != x ? NOT_A_NUMBER : bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float value_of(unsigned order) {
    return __uint_as_float(order >> 31 ? order & 0x7fffffffu : ~order);
}

// log2 of the token's weight relative to the largest weight, at least -63.
__device__ __forceinline__ float exponent(float x, float largest, float temperature) {
    return fmaxf(__fmul_rn(__fdiv_rn(__fadd_rn(x, -largest), temperature), 1.4426950408889634f), -63.f);
}

// floor(2^40 2^y)
__device__ __forceinline__ u64 weight(float y) {
    float n = rintf(y), f = __fadd_rn(y, -n), p = 1.5403530e-4f;
    p = __fadd_rn(__fmul_rn(p, f), 1.3333558e-3f);
    p = __fadd_rn(__fmul_rn(p, f), 9.6181291e-3f);
    p = __fadd_rn(__fmul_rn(p, f), 5.5504109e-2f);
    p = __fadd_rn(__fmul_rn(p, f), 2.4022651e-1f);
    p = __fadd_rn(__fmul_rn(p, f), 6.9314718e-1f);
    p = __fadd_rn(__fmul_rn(p, f), 1.f);
    return u64(__fmul_rn(p, ONE)) >> int(-n);
}

// The first 64 bits of Philox4x32-10 with key `seed` and counter (position, 0, 0, 0).
__device__ __forceinline__ u64 philox(u64 seed, unsigned position) {
    unsigned c0 = position, c1 = 0, c2 = 0, c3 = 0, k0 = unsigned(seed), k1 = unsigned(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u64 a = u64(0xD2511F53u) * c0, b = u64(0xCD9E8D57u) * c2;
        c0 = unsigned(b >> 32) ^ c1 ^ k0, c1 = unsigned(b);
        c2 = unsigned(a >> 32) ^ c3 ^ k1, c3 = unsigned(a);
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return c0 | u64(c1) << 32;
}

// Inclusive prefix sum over the threads of the block. Calls may follow one another without a barrier.
template <int THREADS>
__device__ __forceinline__ u64 block_scan(u64 v) {
    constexpr int WARPS = THREADS / 32;
    __shared__ u64 total[WARPS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        u64 below = __shfl_up_sync(0xffffffffu, v, offset);
        if (lane >= offset) v += below;
    }
    __syncthreads();  // the previous call's reads are done
    if (lane == 31) total[warp] = v;
    __syncthreads();
    for (int w = 0; w < warp; w++) v += total[w];
    return v;
}
