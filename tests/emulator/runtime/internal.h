// Declarations shared by the files of the runtime.
#pragma once

#include "emu/machine.h"

#include <memory>

namespace emu {

extern sigjmp_buf give_up;  // where fail() and faults go

// scheduler.cpp
extern void (*kernel)(void** arguments);
extern unsigned threads_per_block;
void start_block(Block& b, unsigned linear, Block** cluster);  // all its threads ready
void run_block(Block& b);             // until all threads have ended or wait for other blocks; b.state says which
bool release(Block& b, State state);  // all its threads in that state are ready; whether there were any

// launch.cpp
extern std::vector<std::unique_ptr<Block>> resident;  // blocks that have memory
void order(unsigned* out, unsigned n);  // the schedule's order of n things: as they are, reversed, or shuffled

// faults.cpp
void catch_faults();
void release_faults();

// early.cpp
extern bool regions_guarded;
void guard_regions();    // from here on, as if the predecessors were still running
void unguard_regions();  // they have ended

// shared.cpp
void prepare_shared();  // at the start of a launch
void poison_shared();   // at the start of a block
void check_shared();    // at its end: gaps between variables untouched?

}  // namespace emu
