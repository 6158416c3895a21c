// mma.sync on the CPU, bit for bit like tensor cores that follow the rules below.
//
// The hardware adds a dot product in groups of `group` products. The products of a group are exact. They and the sum so
// far are shifted to the largest exponent among them, where each keeps `fraction` bits after the binary point and is
// truncated. These integers are added exactly, and the sum is truncated (not rounded) to float32. An exponent is that
// of the encoding: that of a product is the sum of its factors' exponents, even if the product is 2 or more; that of a
// subnormal number is the smallest exponent of its format. Zeros have none; the largest is at least -133.

#include "tensor_core.h"

#include "emu/ptx.h"

namespace emu {

Rules rules_16_bit = {16, 25};  // bf16 and fp16: products in a group, bits kept behind the binary point
Rules rules_tf32 = {8, 25};

namespace {

constexpr int no_exponent = -4000, least_exponent = -133;

struct Number {
    double value;
    int exponent;
};

// What a register holds, as the format of the instruction reads it: 16-bit numbers from the given half.
template <Format format>
Number decode(unsigned word, int half) {
    if (format == Format::f16) {
        uint16_t h = uint16_t(half ? word >> 16 : word);
        int field = h >> 10 & 31;
        return {half_to_float(h), h & 0x7fff ? (field ? field : 1) - 15 : no_exponent};
    }
    if (format == Format::bf16)
        word = half ? word & 0xffff0000u : word << 16;
    else
        word &= 0xffffe000u;
    int field = int(word >> 23 & 255);
    return {bits<float>(word), word & 0x7fffffffu ? (field ? field : 1) - 127 : no_exponent};
}

double power_of_two(int exponent) {
    return bits<double>(uint64_t(1023 + exponent) << 52);
}

// The float32 next to x towards zero.
float cut(double x) {
    double magnitude = std::fabs(x);
    if (magnitude >= 0x1p128) return std::copysign(INFINITY, float(x));
    if (magnitude < 0x1p-126) return float(std::trunc(x * 0x1p149) * 0x1p-149);
    return float(bits<double>(bits<uint64_t>(x) & ~((uint64_t(1) << 29) - 1)));
}

// The sum where a factor or c is infinite or not a number.
template <int n>
float add_special(const double* a, const double* b, float c) {
    double sum = c;
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return std::isnan(sum) ? bits<float>(0x7fffffffu) : float(sum);
}

// c + the sum of n products, n a constant so that the loops become vector instructions.
template <int n>
float add(const double* a, const int* ea, const double* b, const int* eb, float c, int fraction) {
    int field = int(bits<uint32_t>(c) >> 23 & 255), exponent = least_exponent;
    if (c != 0.0f && (field ? field : 1) - 127 > exponent) exponent = (field ? field : 1) - 127;
    for (int i = 0; i < n; i++) exponent = ea[i] + eb[i] > exponent ? ea[i] + eb[i] : exponent;
    double scale = power_of_two(fraction - exponent);
    int64_t sum = int(c * scale);  // a conversion to an integer cuts
    for (int i = 0; i < n; i++) sum += int(a[i] * b[i] * scale);
    return cut(double(sum) * power_of_two(exponent - fraction));
}

template <Format format, int k, int group>
void multiply(const Operands* const (&lanes)[32], int fraction) {
    constexpr bool wide = format == Format::tf32;
    double a[16][k], b[8][k];
    int ea[16][k], eb[8][k];
    bool special_a[16] = {}, special_b[8] = {};
    for (int lane = 0; lane < 32; lane++) {
        const Operands& o = *lanes[lane];
        const unsigned words[6] = {o.a.x, o.a.y, o.a.z, o.a.w, o.b.x, o.b.y};
        for (int w = 0; w < 6; w++) {
            int row = lane / 4 + (w < 4 ? w % 2 * 8 : 0), late = w < 4 ? w / 2 : w - 4;
            for (int half = 0; half < (wide ? 1 : 2); half++) {
                int column = wide ? lane % 4 + 4 * late : lane % 4 * 2 + half + 8 * late;
                Number number = decode<format>(words[w], half);
                (w < 4 ? a[row] : b[row])[column] = number.value;
                (w < 4 ? ea[row] : eb[row])[column] = number.exponent;
                (w < 4 ? special_a[row] : special_b[row]) |= !std::isfinite(number.value);
            }
        }
    }
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            float& d = lanes[lane]->d[i];
            for (int from = 0; from < k; from += group)
                if (special_a[row] || special_b[column] || !std::isfinite(d))
                    d = add_special<group>(a[row] + from, b[column] + from, d);
                else
                    d = add<group>(a[row] + from, ea[row] + from, b[column] + from, eb[column] + from, d, fraction);
        }
}

template <Format format, int k>
void multiply(const Operands* const (&lanes)[32], Rules rules) {
    switch (rules.group) {
        case 4:
            return multiply<format, k, 4>(lanes, rules.fraction);
        case 8:
            return multiply<format, k, 8>(lanes, rules.fraction);
        default:
            return multiply<format, k, k>(lanes, rules.fraction);
    }
}

}  // namespace

void tensor_core(Format format, const Operands* const (&lanes)[32]) {
    switch (format) {
        case Format::bf16:
            return multiply<Format::bf16, 16>(lanes, rules_16_bit);
        case Format::f16:
            return multiply<Format::f16, 16>(lanes, rules_16_bit);
        case Format::tf32:
            return multiply<Format::tf32, 8>(lanes, rules_tf32);
    }
}

}  // namespace emu

extern "C" void emu_set_rules(int group, int fraction, int group_tf32, int fraction_tf32) {
    emu::rules_16_bit = {group, fraction};
    emu::rules_tf32 = {group_tf32, fraction_tf32};
}
