// Storage types T (bf16, half, float) and conversions to and from float32, in which all arithmetic is done.
//
// Pack8<T> is eight elements of T in registers, not yet converted: load it early (one or two 16-byte loads), unpack it
// when it is needed.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

using bf16 = __nv_bfloat16;
typedef unsigned long long u64;  // NVRTC has no <cstdint>

constexpr int PAGE = 64;  // tokens per page of the KV cache; as in engine/sizes.py

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(bf16 v) { return __bfloat162float(v); }

// Rounds to nearest even.
template <class T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
    return v;
}
template <>
__device__ __forceinline__ half from_float<half>(float v) {
    return __float2half_rn(v);
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float v) {
    return __float2bfloat16_rn(v);
}

// Two values as T in one 32-bit register, lo in the low half, as mma fragments hold them. T is bf16 or half.
template <class T>
__device__ __forceinline__ unsigned pack2(float lo, float hi);
template <>
__device__ __forceinline__ unsigned pack2<half>(float lo, float hi) {
    half2 v = __floats2half2_rn(lo, hi);
    return *reinterpret_cast<unsigned*>(&v);
}
template <>
__device__ __forceinline__ unsigned pack2<bf16>(float lo, float hi) {
    __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
    return *reinterpret_cast<unsigned*>(&v);
}

// The inverse: .x from the low half. bf16 is the upper half of a float, so two integer operations do it.
template <class T>
__device__ __forceinline__ float2 unpack2(unsigned v);
template <>
__device__ __forceinline__ float2 unpack2<half>(unsigned v) {
    return __half22float2(*reinterpret_cast<half2*>(&v));
}
template <>
__device__ __forceinline__ float2 unpack2<bf16>(unsigned v) {
    return make_float2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
}

template <class T>
struct Pack8 {
    uint4 bits;
};
template <>
struct Pack8<float> {
    float4 lo, hi;
};

// p is 16-byte aligned. Plain loads, not ld.global.nc: the compiler may move read-only loads across grid_wait().
template <class T>
__device__ __forceinline__ Pack8<T> load8(const T* p) {
    return {*reinterpret_cast<const uint4*>(p)};
}
template <>
__device__ __forceinline__ Pack8<float> load8<float>(const float* p) {
    const float4* q = reinterpret_cast<const float4*>(p);
    return {q[0], q[1]};
}

template <class T>
__device__ __forceinline__ void unpack8(const Pack8<T>& p, float (&v)[8]) {
    float2 a = unpack2<T>(p.bits.x), b = unpack2<T>(p.bits.y), c = unpack2<T>(p.bits.z), d = unpack2<T>(p.bits.w);
    v[0] = a.x, v[1] = a.y, v[2] = b.x, v[3] = b.y, v[4] = c.x, v[5] = c.y, v[6] = d.x, v[7] = d.y;
}
template <>
__device__ __forceinline__ void unpack8<float>(const Pack8<float>& p, float (&v)[8]) {
    v[0] = p.lo.x, v[1] = p.lo.y, v[2] = p.lo.z, v[3] = p.lo.w;
    v[4] = p.hi.x, v[5] = p.hi.y, v[6] = p.hi.z, v[7] = p.hi.w;
}

// Load eight T from p, 16-byte aligned, as floats.
template <class T>
__device__ __forceinline__ void load8(const T* p, float (&v)[8]) {
    unpack8<T>(load8(p), v);
}

// Store eight floats as T to p, 16-byte aligned.
template <class T>
__device__ __forceinline__ void store8(T* p, const float (&v)[8]) {
   *reinterpret_cast<uint4*>(p) =
            make_uint4(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]), pack2<T>(v[4], v[5]), pack2<T>(v[6], v[7]));
}
template <>
__device__ __forceinline__ void store8<float>(float* p, const float (&v)[8]) {
    float4* q = reinterpret_cast<float4*>(p);
    q[0] = make_float4(v[0], v[1], v[2], v[3]);
    q[1] = make_float4(v[4], v[5], v[6], v[7]);
}

// Store four floats as T to p, which is aligned to their size.
template <class T>
__device__ __forceinline__ void store4(T* p, float4 v) {
    *reinterpret_cast<uint2*>(p) = make_uint2(pack2<T>(v.x, v.y), pack2<T>(v.z, v.w));
}
template <>
__device__ __forceinline__ void store4<float>(float* p, float4 v) {
    *reinterpret_cast<float4*>(p) = v;
}

// One of two types.
template <bool first, class A, class B>
struct Choose {
    using type = A;
};
template <class A, class B>
struct Choose<false, A, B> {
    using type = B;
};
