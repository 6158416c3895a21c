// CUDA's built-in functions: loads and stores with cache hints, atomics, fences, integer and float arithmetic.
#pragma once

#include "emu/machine.h"

#include <cfloat>
#include <climits>
#include <limits>

// -- loads, stores, fences: hints mean nothing here
// ---------------------------------------------------------------------

#define EMU_LOAD(NAME)   \
    template <class T>   \
    T NAME(const T* p) { \
        return *p;       \
    }
EMU_LOAD(__ldg)
EMU_LOAD(__ldca)
EMU_LOAD(__ldcg)
EMU_LOAD(__ldcs)
EMU_LOAD(__ldlu)
EMU_LOAD(__ldcv)
#undef EMU_LOAD

#define EMU_STORE(NAME)           \
    template <class T, class V>   \
    void NAME(T* p, const V& v) { \
        *p = v;                   \
    }
EMU_STORE(__stwb)
EMU_STORE(__stcg)
EMU_STORE(__stcs)
EMU_STORE(__stwt)
#undef EMU_STORE

inline void __threadfence() {
    emu::launch->fenced = 1;
}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}

// -- atomics: everything happens on one CPU thread, so a plain change is atomic
// -------------------------------------------

#define EMU_ATOMIC(NAME, NEW)     \
    template <class T, class V>   \
    T NAME(T* p, V given) {       \
        T old = *p, v = T(given); \
        *p = NEW;                 \
        return old;               \
    }
EMU_ATOMIC(atomicAdd, T(old + v))
EMU_ATOMIC(atomicSub, T(old - v))
EMU_ATOMIC(atomicExch, v)
EMU_ATOMIC(atomicMin, v < old ? v : old)
EMU_ATOMIC(atomicMax, old < v ? v : old)
EMU_ATOMIC(atomicAnd, T(old& v))
EMU_ATOMIC(atomicOr, T(old | v))
EMU_ATOMIC(atomicXor, T(old ^ v))
EMU_ATOMIC(atomicInc, old >= v ? T(0) : T(old + 1))
EMU_ATOMIC(atomicDec, old == 0 || old > v ? v : T(old - 1))
#undef EMU_ATOMIC

template <class T, class C, class V>
T atomicCAS(T* p, C expected, V v) {
    T old = *p;
    if (old == T(expected)) *p = T(v);
    return old;
}

// -- bits
// -----------------------------------------------------------------------------------------------------------------

inline unsigned __float_as_uint(float f) {
    return emu::bits<unsigned>(f);
}
inline float __uint_as_float(unsigned u) {
    return emu::bits<float>(u);
}
inline int __float_as_int(float f) {
    return emu::bits<int>(f);
}
inline float __int_as_float(int i) {
    return emu::bits<float>(i);
}
inline long long __double_as_longlong(double d) {
    return emu::bits<long long>(d);
}
inline double __longlong_as_double(long long i) {
    return emu::bits<double>(i);
}

inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
inline int __popcll(unsigned long long x) {
    return __builtin_popcountll(x);
}
inline int __ffs(int x) {
    return __builtin_ffs(x);
}
inline int __clz(int x) {
    return x ? __builtin_clz(unsigned(x)) : 32;
}
inline int __clzll(long long x) {
    return x ? __builtin_clzll((unsigned long long)x) : 64;
}
inline unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (x >> i & 1) << (31 - i);
    return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
    return unsigned((unsigned long long)a * b >> 32);
}
inline int __mulhi(int a, int b) {
    return int((long long)a * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned n) {
    n &= 31;
    return n ? high << n | low >> (32 - n) : high;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned n) {
    n &= 31;
    return n ? low >> n | high << (32 - n) : low;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    unsigned long long all = (unsigned long long)b << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) r |= unsigned(all >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
    return r;
}

// -- conversions
// ------------------------------------------------------------------------------------------------------------

namespace emu {

// CUDA's float to integer conversions stay within the range of the result; a NaN is 0.
template <class I>
I saturate(double x) {
    using Limits = std::numeric_limits<I>;
    if (x != x) return 0;
    if (x >= std::ldexp(1.0, Limits::digits)) return Limits::max();
    if (x <= double(Limits::min())) return Limits::min();
    return I(x);
}

}  // namespace emu

#define EMU_CONVERT(I, NAME)                                \
    inline I __float2##NAME##_rn(float x) {                 \
        return emu::saturate<I>(std::nearbyint(double(x))); \
    }                                                       \
    inline I __float2##NAME##_rz(float x) {                 \
        return emu::saturate<I>(std::trunc(double(x)));     \
    }                                                       \
    inline I __float2##NAME##_rd(float x) {                 \
        return emu::saturate<I>(std::floor(double(x)));     \
    }                                                       \
    inline I __float2##NAME##_ru(float x) {                 \
        return emu::saturate<I>(std::ceil(double(x)));      \
    }
EMU_CONVERT(int, int)
EMU_CONVERT(unsigned, uint)
EMU_CONVERT(long long, ll)
EMU_CONVERT(unsigned long long, ull)
#undef EMU_CONVERT

inline float __int2float_rn(int x) {
    return float(x);
}
inline float __uint2float_rn(unsigned x) {
    return float(x);
}
inline float __ll2float_rn(long long x) {
    return float(x);
}
inline float __ull2float_rn(unsigned long long x) {
    return float(x);
}

// -- float arithmetic: the GPU's fast functions are off by a few units in the last place, these are more accurate
// --------------

inline float __expf(float x) {
    return expf(x);
}
inline float __exp10f(float x) {
    return powf(10.0f, x);
}
inline float __logf(float x) {
    return logf(x);
}
inline float __log2f(float x) {
    return log2f(x);
}
inline float __sinf(float x) {
    return sinf(x);
}
inline float __cosf(float x) {
    return cosf(x);
}
inline void __sincosf(float x, float* s, float* c) {
    *s = sinf(x), *c = cosf(x);
}
inline float __powf(float x, float y) {
    return powf(x, y);
}
inline float __fdividef(float a, float b) {
    return a / b;
}
inline float rsqrtf(float x) {
    return float(1.0 / std::sqrt(double(x)));
}
inline float __frsqrt_rn(float x) {
    return rsqrtf(x);
}
inline float __frcp_rn(float x) {
    return 1.0f / x;
}
inline float __fsqrt_rn(float x) {
    return sqrtf(x);
}
inline float __saturatef(float x) {
    return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f;
}
inline float __fadd_rn(float a, float b) {
    return a + b;
}
inline float __fsub_rn(float a, float b) {
    return a - b;
}
inline float __fmul_rn(float a, float b) {
    return a * b;
}
inline float __fdiv_rn(float a, float b) {
    return a / b;
}
inline float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}

// min and max of float prefer a number to a NaN, as on the GPU.
template <class A, class B>
std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point<T>::value)
        return T(std::fmin(T(a), T(b)));
    else
        return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point<T>::value)
        return T(std::fmax(T(a), T(b)));
    else
        return T(a) < T(b) ? T(b) : T(a);
}

using std::isfinite;
using std::isinf;
using std::isnan;
