// What the emulator knows about the threads, blocks and launch it is running; shared by kernels and the runtime.
//
// A CUDA thread is a fiber: its own stack, and it runs until it waits for others at a barrier or warp collective.
// Only then may another thread run, so between two such points nothing is interleaved. One block runs at a time, and
// it goes on until it ends or all its threads wait for other blocks: at the barrier of its cluster, or at the grid's.
// Everything happens on one CPU thread.
#pragma once

#include "emu/types.h"

#include <csetjmp>
#include <vector>

namespace emu {

constexpr unsigned max_threads = 1024;
constexpr size_t max_shared = 232448;  // bytes of a block on sm_90
constexpr size_t unreadable = 65536;   // bytes behind a block's shared memory

// A place in a kernel where threads wait for one another.
struct Site {
    const char* what;
    const char* file;
    int line;
};

enum class State : uint8_t {
    ready,
    at_warp,
    at_barrier,
    at_named_barrier,
    arrived,  // at a named barrier, and goes on: when the others cannot
    at_grid_wait,
    at_cluster_sync,
    at_grid_sync,
    done,
};

constexpr int named_barriers = 16;  // 0 is that of __syncthreads

// A copy to shared memory on its way, of 16 bytes at most: the data is read when issued and arrives when waited for.
struct Copy {
    void* to;
    uint4 data;
    size_t bytes;
    int group;
};

struct Thread {
    void* context;  // where the fiber goes on; see fibers.h
    uint3 index;    // threadIdx
    unsigned id;    // linear
    State state;
    Site site;                                     // why it waits
    unsigned mask;                                 // at_warp: which lanes it waits for
    const void* in;                                // at_warp: what it gives to the collective
    void* out;                                     // at_warp: where the result goes
    void (*finish)(Thread* warp, unsigned lanes);  // at_warp: computes the results of all lanes
    int vote;                                      // at_barrier: what it gives to __syncthreads_count and the like
    int named;                                     // at_named_barrier: which
    bool waited;                                   // has called grid_wait
    int group;                                     // cp.async groups committed
    std::vector<Copy> copies;
};

struct Warp {
    unsigned live;     // lanes that have not ended
    unsigned waiting;  // lanes at a collective
};

struct Block {
    Thread threads[max_threads];
    Warp warps[max_threads / 32];
    unsigned order[max_threads];     // the schedule: in which order threads get their turns
    unsigned position[max_threads];  // its inverse
    uint3 index;                     // blockIdx
    unsigned rank;                   // its place in its cluster
    Block** cluster;                 // the blocks of that, by rank
    State state;                     // done, or what it waits at for other blocks
    Site site;                       // where that is
    bool synced;                     // has passed such a barrier: all of its cluster have started
    Site reached;                    // where it called in_cluster since then; what: null if it has not
    unsigned alive, at_barrier, at_grid_wait;
    unsigned came[named_barriers];    // threads that have come to each since it last opened
    unsigned wanted[named_barriers];  // how many it opens for, as the last of those said
    unsigned at_sync;       // threads that wait for other blocks
    int votes, true_votes;  // of the last barrier: threads, and those that voted true
    bool waited;            // some thread has called grid_wait
    bool guarded;           // runs as if the kernels before had not ended
    char* stacks;
    char* shared;      // static variables from here upwards
    char* shared_end;  // dynamic shared memory ends here, at unreadable pages
};

// Memory of the kernels before this one in a dependent chain, any of which may still run before grid_wait: not to be
// written then, and what they wrote (mask, a byte each, or null) reads as poison.
struct Region {
    unsigned char* start;
    size_t bytes;
    const unsigned char* mask;
};

// One launch, as Python describes it (device.py holds the same structure), and what went wrong.
struct Launch {
    unsigned grid[3], block[3];
    unsigned cluster;  // blocks, along x
    size_t dynamic_shared;
    void** arguments;
    char* stacks;  // max_threads times stack_bytes
    size_t stack_bytes;
    char* shared;  // shared_bytes, then unreadable pages; out: of the block whose shared memory was left
    size_t shared_bytes;
    uint64_t seed;          // schedule: 0 in order, 1 in reverse, others random
    unsigned poison;        // byte that unwritten shared memory is filled with
    int dependent;          // may start before its predecessors have ended
    int hide;               // predecessors have written nothing yet when it starts
    const Region* regions;  // of the predecessors
    size_t region_count;
    int triggered;  // out: 1 if a block called grid_launch, 2 if it did so before it waited
    int fenced;     // out: a thread called __threadfence
    char* message;  // out: what went wrong
    size_t message_bytes;
    int faulted;  // out: the kernel touched memory that it must not, at address fault
    uintptr_t fault;
    uintptr_t instruction;  // out: of the code that made it
    int fault_is_write;
};

extern Launch* launch;
extern Block* block;
extern Thread* self;
extern dim3 grid_size, block_size;

// Ends the launch with "<what>" of the current thread, formatted like printf.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Parks the current thread in `state` until the runtime makes it ready.
void wait(State state, Site site);

// Parks it until other blocks are there too: at_cluster_sync or at_grid_sync.
void wait_for_blocks(State state, Site site);

// Arrives at the barrier of the block with a vote; returns when all threads that have not ended are there.
void barrier(int vote, Site site);

// Comes to a named barrier, which opens for `threads` threads, and waits there unless it only arrives.
void named_barrier(int barrier, unsigned threads, bool waits, Site site);

// Waits for the other lanes of mask at the same collective; the last one calls finish for all.
void meet(unsigned mask, Site site, const void* in, void* out, void (*finish)(Thread* warp, unsigned lanes));

// Lanes of the current warp that have not ended.
unsigned live_lanes();

uint64_t random_number();

}  // namespace emu

#define threadIdx (emu::self->index)
#define blockIdx (emu::block->index)
#define blockDim (emu::block_size)
#define gridDim (emu::grid_size)
#define warpSize 32

// Default arguments that name the caller's place in the kernel.
#define EMU_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
