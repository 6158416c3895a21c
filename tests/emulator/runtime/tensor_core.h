// The rule by which a generation of tensor cores adds; tensor_core.cpp has the figures.
#pragma once

namespace emu {

struct Rules {
    int group;     // products that are added together
    int fraction;  // bits kept behind the binary point of the largest exponent
};

extern Rules rules_16_bit, rules_tf32;

}  // namespace emu
