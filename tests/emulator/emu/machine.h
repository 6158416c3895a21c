// State of the threads, blocks and launch that the emulator runs; shared by kernels and the runtime.
//
// A CUDA thread is a fiber with its own stack. It runs until it waits at a barrier or warp collective; only then
// another thread may run. One block runs at a time, until it ends or all its threads wait for other blocks at the
// barrier of their cluster or of the grid. Everything runs on one CPU thread.
#pragma once

#include "emu/types.h"

#include <csetjmp>
#include <vector>

namespace emu {

constexpr unsigned max_threads = 1024;
constexpr size_t max_shared = 232448;  // bytes of a block on sm_90
constexpr size_t unreadable = 65536;   // bytes behind a block's shared memory

// A place in a kernel at which threads wait for one another.
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
    arrived,  // arrived at a named barrier without waiting; runs when the other threads cannot
    at_grid_wait,
    at_cluster_sync,
    at_grid_sync,
    done,
};

constexpr int named_barriers = 16;  // 0 is that of __syncthreads

// A copy to shared memory in flight, at most 16 bytes: the data is read when issued and arrives when waited for.
struct Copy {
    void* to;
    uint4 data;
    size_t bytes;
    int group;
};

struct Thread {
    void* context;  // where the fiber continues; see fibers.h
    uint3 index;    // threadIdx
    unsigned id;    // linear
    State state;
    Site site;                                     // where it waits
    unsigned mask;                                 // at_warp: lanes that take part
    const void* in;                                // at_warp: its input to the collective
    void* out;                                     // at_warp: destination of the result
    void (*finish)(Thread* warp, unsigned lanes);  // at_warp: computes the results of all lanes
    int vote;                                      // at_barrier: its argument of __syncthreads_count and the like
    int named;                                     // at_named_barrier: number of the barrier
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
    unsigned order[max_threads];     // the schedule: the order in which threads run
    unsigned position[max_threads];  // its inverse
    uint3 index;                     // blockIdx
    unsigned rank;                   // rank in its cluster
    Block** cluster;                 // the blocks of its cluster, by rank
    State state;                     // done, or the barrier at which it waits for other blocks
    Site site;                       // the place of that barrier
    bool synced;                     // has passed such a barrier: all blocks of its cluster have started
    Site reached;                    // where it called in_cluster since then; what is null if it has not
    unsigned alive, at_barrier, at_grid_wait;
    unsigned came[named_barriers];    // threads that have arrived at each since it last opened
    unsigned wanted[named_barriers];  // number of threads that it opens for, as the last of them passed it
    unsigned at_sync;       // threads that wait for other blocks
    int votes, true_votes;  // of the last barrier: threads, and those that voted true
    bool waited;            // some thread has called grid_wait
    bool guarded;           // runs as if the preceding kernels had not ended
    char* stacks;
    char* shared;      // static variables from here upwards
    char* shared_end;  // dynamic shared memory ends here, at unreadable pages
};

// Memory of the preceding kernels of a chain of dependent launches, which may still run before grid_wait. It must not
// be written before grid_wait, and what they wrote (mask per byte, or null) reads as poison.
struct Region {
    unsigned char* start;
    size_t bytes;
    const unsigned char* mask;
};

// One launch, as Python describes it (launch.py has the same structure), and its error.
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
    char* message;  // out: the error
    size_t message_bytes;
    int faulted;  // out: the kernel made an invalid access at address `fault`
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

// Parks the current thread until other blocks have arrived: at_cluster_sync or at_grid_sync.
void wait_for_blocks(State state, Site site);

// Arrives at the barrier of the block with a vote; returns when all threads that have not ended have arrived.
void barrier(int vote, Site site);

// Arrives at a named barrier that opens for `threads` threads, and waits there if `waits`.
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
