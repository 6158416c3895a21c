// What the files of the runtime share.
#pragma once

#include "emu/machine.h"

namespace emu {

extern sigjmp_buf give_up;  // where fail() and faults go

// faults.cpp
void catch_faults();
void release_faults();

// early.cpp
extern bool regions_guarded;
void guard_regions();    // from here on as if the predecessors still ran
void unguard_regions();  // they have ended

// shared.cpp
void prepare_shared();   // at the start of a launch
void poison_shared();    // at the start of a block
void check_shared();     // at its end: gaps between variables untouched?

}  // namespace emu
