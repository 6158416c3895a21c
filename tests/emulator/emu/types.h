// CUDA's types on the CPU: dim3, vectors, and the 16-bit floats with the conversions that kernels use.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

// T2 and T4 are as strictly aligned as on the GPU, so that a misaligned vector access is found.
#define EMU_VECTOR(T, NAME)                                       \
    struct alignas(2 * sizeof(T)) NAME##2 {                       \
        T x, y;                                                   \
    };                                                            \
    struct alignas(sizeof(T) == 8 ? 16 : 4 * sizeof(T)) NAME##4 { \
        T x, y, z, w;                                             \
    };                                                            \
    inline NAME##2 make_##NAME##2(T x, T y) {                     \
        return {x, y};                                            \
    }                                                             \
    inline NAME##4 make_##NAME##4(T x, T y, T z, T w) {           \
        return {x, y, z, w};                                      \
    }
EMU_VECTOR(float, float)
EMU_VECTOR(double, double)
EMU_VECTOR(int, int)
EMU_VECTOR(unsigned, uint)
EMU_VECTOR(short, short)
EMU_VECTOR(unsigned short, ushort)
EMU_VECTOR(signed char, char)
EMU_VECTOR(unsigned char, uchar)
EMU_VECTOR(long long, longlong)
EMU_VECTOR(unsigned long long, ulonglong)
#undef EMU_VECTOR

namespace emu {

template <class To, class From>
inline To bits(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "bits: sizes differ");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

// Nearest, ties to even; a NaN becomes the one NaN that the GPU makes.
inline uint16_t float_to_bf16(float f) {
    uint32_t u = bits<uint32_t>(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return uint16_t((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

inline float bf16_to_float(uint16_t h) {
    return bits<float>(uint32_t(h) << 16);
}

inline uint16_t float_to_half(float f) {
    uint32_t u = bits<uint32_t>(f), sign = u >> 16 & 0x8000u, rest = u & 0x7fffffffu;
    if (rest > 0x7f800000u) return 0x7fff;
    if (rest >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // 65520 and above: infinity
    if (rest < 0x38800000u)                                    // below 2^-14: a multiple of 2^-24
        return uint16_t(sign | uint32_t(std::nearbyint(std::ldexp(double(bits<float>(rest)), 24))));
    return uint16_t(sign | (((rest + 0xfffu + (rest >> 13 & 1)) >> 13) - 0x1c000u));
}

inline float half_to_float(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000u) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ffu;
    if (exponent == 31) return bits<float>(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) return bits<float>(sign | bits<uint32_t>(float(mantissa) * 0x1p-24f));
    return bits<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

}  // namespace emu

// A 16-bit float: stored as bits, computed in float32, rounded after every operation as the GPU does.
#define EMU_FLOAT16(NAME, FROM_FLOAT, TO_FLOAT)                                    \
    struct alignas(2) NAME {                                                       \
        uint16_t raw;                                                              \
        NAME() = default;                                                          \
        template <class N, class = std::enable_if_t<std::is_arithmetic<N>::value>> \
        NAME(N n) : raw(emu::FROM_FLOAT(float(n))) {}                              \
        operator float() const { return emu::TO_FLOAT(raw); }                      \
        NAME& operator+=(NAME o) { return *this = NAME(float(*this) + float(o)); } \
        NAME& operator-=(NAME o) { return *this = NAME(float(*this) - float(o)); } \
        NAME& operator*=(NAME o) { return *this = NAME(float(*this) * float(o)); } \
    };                                                                             \
    inline NAME operator+(NAME a, NAME b) {                                        \
        return NAME(float(a) + float(b));                                          \
    }                                                                              \
    inline NAME operator-(NAME a, NAME b) {                                        \
        return NAME(float(a) - float(b));                                          \
    }                                                                              \
    inline NAME operator*(NAME a, NAME b) {                                        \
        return NAME(float(a) * float(b));                                          \
    }                                                                              \
    inline NAME operator/(NAME a, NAME b) {                                        \
        return NAME(float(a) / float(b));                                          \
    }                                                                              \
    inline NAME operator-(NAME a) {                                                \
        a.raw ^= 0x8000u;                                                          \
        return a;                                                                  \
    }                                                                              \
    struct alignas(4) NAME##2 {                                                    \
        NAME x, y;                                                                 \
        NAME##2() = default;                                                       \
        NAME##2(NAME a, NAME b) : x(a), y(b) {}                                    \
    };
EMU_FLOAT16(__nv_bfloat16, float_to_bf16, bf16_to_float)
EMU_FLOAT16(__half, float_to_half, half_to_float)
#undef EMU_FLOAT16
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;
typedef __half half;
typedef __half2 half2;

inline float __bfloat162float(__nv_bfloat16 h) {
    return h;
}
inline __nv_bfloat16 __float2bfloat16(float f) {
    return f;
}
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
    return f;
}
inline float2 __bfloat1622float2(__nv_bfloat162 v) {
    return {float(v.x), float(v.y)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) {
    return {a, b};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) {
    return {v.x, v.y};
}
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) {
    return {a, b};
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) {
    return h.raw;
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u) {
    return emu::bits<__nv_bfloat16>(u);
}

inline float __half2float(__half h) {
    return h;
}
inline __half __float2half(float f) {
    return f;
}
inline __half __float2half_rn(float f) {
    return f;
}
inline float2 __half22float2(__half2 v) {
    return {float(v.x), float(v.y)};
}
inline __half2 __floats2half2_rn(float a, float b) {
    return {a, b};
}
inline __half2 __float22half2_rn(float2 v) {
    return {v.x, v.y};
}
inline __half2 __halves2half2(__half a, __half b) {
    return {a, b};
}
inline unsigned short __half_as_ushort(__half h) {
    return h.raw;
}
inline __half __ushort_as_half(unsigned short u) {
    return emu::bits<__half>(u);
}
