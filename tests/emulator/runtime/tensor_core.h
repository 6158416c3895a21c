// How a generation of tensor cores adds; the figures are in tensor_core.cpp, in one place.
#pragma once

namespace emu {

struct Rules {
    int group;     // products that are added at once
    int fraction;  // bits kept behind the binary point of the largest exponent
};

extern Rules rules_16_bit, rules_tf32;

}  // namespace emu
