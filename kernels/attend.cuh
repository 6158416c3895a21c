// What the attention kernels share: rows of q, k and v in registers, in the order in which mma wants them.
//
// Lane l of a warp has g = l / 4 and q = l % 4. A Pair is two neighbours of T. In products over dims (q times k) a lane
// holds a quarter of a row, in products over tokens (p times v) an eighth: both in runs that 16-byte loads fetch.
// D, the head size, is a multiple of 16.
#pragma once
#include "ptx.cuh"
#include "types.cuh"


// Minus infinity: the score of a token that a row does not see.
__device__ __forceinline__ float nothing() { return __uint_as_float(0xff800000u); }

// Before exp2: a row that sees nothing yet has no largest score, and any finite number serves.
__device__ __forceinline__ float finite(float m) { return m == nothing() ? 0.f : m; }

template <class T>
struct Pair {
    unsigned bits;
};
template <>
struct Pair<float> {
    float lo, hi;
};

template <class T>
__device__ __forceinline__ Pair<T> make_pair2(float lo, float hi) {
    return {pack2<T>(lo, hi)};
}
template <>
__device__ __forceinline__ Pair<float> make_pair2<float>(float lo, float hi) {
    return {lo, hi};
}

template <class T>
__device__ __forceinline__ float2 unpack(Pair<T> p) {
    return unpack2<T>(p.bits);
}
template <>
__device__ __forceinline__ float2 unpack<float>(Pair<float> p) {
    return make_float2(p.lo, p.hi);
}

// (a.lo, b.lo) in a, (a.hi, b.hi) in b.
template <class T>
__device__ __forceinline__ void transpose(Pair<T>& a, Pair<T>& b) {
    unsigned lo = __byte_perm(a.bits, b.bits, 0x5410), hi = __byte_perm(a.bits, b.bits, 0x7632);
    a.bits = lo, b.bits = hi;
}
template <>
__device__ __forceinline__ void transpose<float>(Pair<float>& a, Pair<float>& b) {
    float hi = a.hi;
    a.hi = b.lo, b.lo = hi;
}

// d += A B of one 16 x 16 by 16 x 8 tile; the order of a and b is that of ptx.cuh.
template <class T>
__device__ __forceinline__ void mma_pairs(float (&d)[4], Pair<T> a0, Pair<T> a1, Pair<T> a2, Pair<T> a3, Pair<T> b0,
                                          Pair<T> b1) {
    mma<T>(d, make_uint4(a0.bits, a1.bits, a2.bits, a3.bits), make_uint2(b0.bits, b1.bits));
}
template <>
__device__ __forceinline__ void mma_pairs<float>(float (&d)[4], Pair<float> a0, Pair<float> a1, Pair<float> a2,
                                                 Pair<float> a3, Pair<float> b0, Pair<float> b1) {
    float a[8] = {a0.lo, a0.hi, a1.lo, a1.hi, a2.lo, a2.hi, a3.lo, a3.hi};
    float b[4] = {b0.lo, b0.hi, b1.lo, b1.hi};
    mma<float>(d, a, b);
}

// How to read: past L1, for what is read once and may be older in L1 than in memory, or like anything else.
struct PastL1 {
    template <class V>
    __device__ __forceinline__ V operator()(const V* p) const {
        return __ldcg(p);
    }
};
struct Plainly {
    template <class V>
    __device__ __forceinline__ V operator()(const V* p) const {
        return *p;
    }
};

// N = 4, 2 or 1 pairs at p, which is aligned to their size.
template <int N, class T, class Load>
__device__ __forceinline__ void load_pairs(const T* p, Load load, Pair<T>* to) {
    if constexpr (sizeof(T) == 4 && N > 1) {
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            float4 v = load(reinterpret_cast<const float4*>(p) + i);
            to[2 * i] = {v.x, v.y}, to[2 * i + 1] = {v.z, v.w};
        }
    } else if constexpr (sizeof(T) == 4) {
        float2 v = load(reinterpret_cast<const float2*>(p));
        to[0] = {v.x, v.y};
    } else if constexpr (N == 4) {
        uint4 v = load(reinterpret_cast<const uint4*>(p));
        to[0] = {v.x}, to[1] = {v.y}, to[2] = {v.z}, to[3] = {v.w};
    } else if constexpr (N == 2) {
        uint2 v = load(reinterpret_cast<const uint2*>(p));
        to[0] = {v.x}, to[1] = {v.y};
    } else {
        to[0] = {load(reinterpret_cast<const unsigned*>(p))};
    }
}

// A lane's quarter of dims 32 i to 32 i + 31 of a row of q or k: the 8 from 8 q on; where only 16 are left, the 4 from
// 4 q on. Two pairs each are its part of a product over 16 dims; q and k agree on which dims these are, and that is all
// that counts.   at: the row + 8 q
template <int D, class T, class Load>
__device__ __forceinline__ void load_part(const T* at, int i, int q, Load load, Pair<T>* to) {
    if (32 * i + 32 <= D)
        load_pairs<4>(at + 32 * i, load, to);
    else
        load_pairs<2>(at + 32 * i - 4 * q, load, to);
}

// The lane's quarter of a whole row.
template <int D, class T, class Load>
__device__ __forceinline__ void load_quarter(const T* at, int q, Load load, Pair<T> (&to)[D / 8]) {
#pragma unroll
    for (int i = 0; i < (D + 31) / 32; i++) load_part<D>(at, i, q, load, to + 4 * i);
}

// A lane's eighth of a row of v: of every 64 dims the 8 from 8 g on, of a further 32 the 4 from 4 g on, of a last 16
// the 2 from 2 g on.   at: the row + 8 g
template <int D, class T, class Load>
__device__ __forceinline__ void load_eighth(const T* at, int g, Load load, Pair<T> (&to)[D / 16]) {
#pragma unroll
    for (int i = 0; i < D / 64; i++) load_pairs<4>(at + 64 * i, load, to + 4 * i);
    if constexpr (D % 64 >= 32) load_pairs<2>(at + D / 64 * 64 - 4 * g, load, to + D / 64 * 4);
    if constexpr (D % 32 != 0) load_pairs<1>(at + D / 32 * 32 - 6 * g, load, to + D / 16 - 1);
}

// Where load_eighth put the pair (2 p, 2 p + 1) of a row: x = g of the lane, y = index of its pair.
template <int D>
__device__ __forceinline__ uint2 place_of_pair(unsigned p) {
    constexpr unsigned WIDE = D / 64 * 32, MIDDLE = D % 64 >= 32 ? 16 : 0;
    if (p < WIDE) return make_uint2(p % 32 / 4, p / 32 * 4 + p % 4);
    p -= WIDE;
    if (p < MIDDLE) return make_uint2(p / 2, D / 64 * 4 + p % 2);
    return make_uint2(p - MIDDLE, D / 16 - 1);
}
