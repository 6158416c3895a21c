// Loads and mma fragments of both attention kernels: rows of q, k and v in registers. D, the head size, is a multiple
// of 16. Lane l of a warp has g = l / 4 and q = l % 4. A Pair is two adjacent elements of T.
//
// load_quarter: q k^T sums over dims. A lane holds a quarter of a row, 8 dims at a time (16 bytes of a 16-bit T):
//
//   dims of a row      0..3   4..7   8..11  12..15  16..19  20..23  24..27  28..31 | 32 ...
//   lane q               0      0      1      1       2       2       3       3    |  0 ...
//   mma step             0      1      0      1       0       1       0       1    |  2 ...
//
//   Step 0 sums over dims 0..3, 8..11, 16..19 and 24..27. Any assignment is right that q and k share.
//
// load_eighth: p v sums over tokens, and dims are rows or columns of the result. A lane holds an eighth of a row:
//
//   dims of a row      0..7   8..15  16..23  24..31  32..39  40..47  48..55  56..63 | 64 ...
//   lane g               0      1      2       3       4       5       6       7    |  0 ...
//
// The two products of one warp need no shuffle in between: the registers that hold the scores D of the first product
// are, converted to T, an operand of the second one.
//
//   attend_decode    scores[head, token] = q[head, dim] k[dim, token]     out[dim, head] = v[dim, token] p[token, head]
//   attend_prefill   scores[row, token]  = q[row, dim]  k[dim, token]     out[row, dim]  = p[row, token] v[token, dim]
#pragma once
#include "ptx.cuh"
#include "types.cuh"


// The score of a token that a row does not attend to.
__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

// The reference of exp2: a row without a token so far has the maximum -inf, for which any finite number will do.
__device__ __forceinline__ float finite(float m) { return m == minus_infinity() ? 0.f : m; }

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

// d += A B of one 16 x 16 by 16 x 8 tile; fragments as in ptx.cuh.
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

// Load policy: bypass L1 (read once, and L1 may hold a stale line) or default.
struct BypassL1 {
    template <class V>
    __device__ __forceinline__ V operator()(const V* p) const {
        return __ldcg(p);
    }
};
struct DefaultLoad {
    template <class V>
    __device__ __forceinline__ V operator()(const V* p) const {
        return *p;
    }
};

// Load N = 4, 2 or 1 pairs from p, which is aligned to their size.
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

// A lane's quarter of dims 32 i .. 32 i + 31 of a row of q or k: 8 dims from 8 q on; of a last half block of 16 dims,
// 4 dims from 4 q on. Two pairs are its fragment of one mma step.   at: the row + 8 q
template <int D, class T, class Load>
__device__ __forceinline__ void load_part(const T* at, int i, int q, Load load, Pair<T>* to) {
    if (32 * i + 32 <= D)
        load_pairs<4>(at + 32 * i, load, to);
    else
        load_pairs<2>(at + 32 * i - 4 * q, load, to);
}

// A lane's quarter of a whole row.   at: the row + 8 q
template <int D, class T, class Load>
__device__ __forceinline__ void load_quarter(const T* at, int q, Load load, Pair<T> (&to)[D / 8]) {
#pragma unroll
    for (int i = 0; i < (D + 31) / 32; i++) load_part<D>(at, i, q, load, to + 4 * i);
}

// A lane's eighth of a row of v: of every 64 dims 8 from 8 g on, of remaining 32 dims 4 from 4 g on, of a last 16 dims
// 2 from 2 g on.   at: the row + 8 g
template <int D, class T, class Load>
__device__ __forceinline__ void load_eighth(const T* at, int g, Load load, Pair<T> (&to)[D / 16]) {
#pragma unroll
    for (int i = 0; i < D / 64; i++) load_pairs<4>(at + 64 * i, load, to + 4 * i);
    if constexpr (D % 64 >= 32) load_pairs<2>(at + D / 64 * 64 - 4 * g, load, to + D / 64 * 4);
    if constexpr (D % 32 != 0) load_pairs<1>(at + D / 32 * 32 - 6 * g, load, to + D / 16 - 1);
}

// The inverse of load_eighth: which lane holds dims (2 p, 2 p + 1) of a row (x = its g), in which of its pairs (y).
template <int D>
__device__ __forceinline__ uint2 place_of_pair(unsigned p) {
    constexpr unsigned WIDE = D / 64 * 32, MIDDLE = D % 64 >= 32 ? 16 : 0;
    if (p < WIDE) return make_uint2(p % 32 / 4, p / 32 * 4 + p % 4);
    p -= WIDE;
    if (p < MIDDLE) return make_uint2(p / 2, D / 64 * 4 + p % 2);
    return make_uint2(p - MIDDLE, D / 16 - 1);
}
