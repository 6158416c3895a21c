// A launch: runs clusters one after the other; without clusters, of one block each. Blocks are in memory together only
// while they may wait for each other: those of a cluster, and all that wait at a grid barrier.

#include "internal.h"
#include "emu/ptx.h"

#include <sys/mman.h>

#include <algorithm>

namespace emu {

Launch* launch;
sigjmp_buf give_up;
std::vector<std::unique_ptr<Block>> resident;

namespace {

constexpr size_t max_cluster = 8;

uint64_t random_state;

// Blocks that are in memory together: those of a cluster or, with a grid barrier, all.
using Blocks = std::vector<Block*>;

Blocks unused;  // of the resident ones

Block* new_block() {
    if (unused.empty()) {
        // Stacks and shared memory like those that Python gives to the first block.
        size_t stacks = max_threads * launch->stack_bytes;
        void* memory = mmap(nullptr, stacks + launch->shared_bytes + unreadable, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) fail("no memory for %zu blocks that wait for each other", resident.size() + 1);
        Block& b = *resident.emplace_back(std::make_unique<Block>());
        b.stacks = static_cast<char*>(memory);
        b.shared = b.stacks + stacks;
        b.shared_end = b.shared + launch->shared_bytes;
        mprotect(b.shared_end, unreadable, PROT_NONE);
        unused.push_back(&b);
    }
    Block* b = unused.back();
    unused.pop_back();
    return b;
}

// Opens a barrier for these blocks; it is complete if there are `expected` of them. False if no block waits there.
bool open(const Blocks& blocks, State barrier, size_t expected) {
    size_t there = 0;
    Block* one = nullptr;
    for (Block* b : blocks)
        if (b->state == barrier) one = b, there++;
    if (!one) return false;
    if (there != expected) {
        block = one;
        self = nullptr;
        fail("waits at %s (%s:%d), and %zu of %zu blocks do not come", one->site.what, one->site.file, one->site.line,
             expected - there, expected);
    }
    for (Block* b : blocks) {
        b->state = State::ready;
        b->at_sync = 0;
        b->synced = true;
        b->reached = {};
        release(*b, barrier);
    }
    return true;
}

// Runs the blocks of a cluster, in the schedule's order from barrier to barrier, until they have ended or wait for the
// rest of the grid.
void run_cluster(const Blocks& cluster) {
    std::vector<unsigned> turn(cluster.size());
    do {
        order(turn.data(), unsigned(turn.size()));
        for (unsigned rank : turn) {
            Block& b = *cluster[rank];
            b.guarded ? guard_regions() : unguard_regions();
            run_block(b);
        }
    } while (open(cluster, State::at_cluster_sync, cluster.size()));
}

// Runs those that are ready, the last first; false if none is.
bool go_on(const std::vector<Blocks>& clusters) {
    bool any = false;
    for (size_t i = clusters.size(); i-- > 0;)
        if (clusters[i][0]->state == State::ready) run_cluster(clusters[i]), any = true;
    return any;
}

// Runs one cluster after the other. Clusters that wait at a grid barrier, or let others run first, stay in memory.
void run_grid(unsigned blocks) {
    unsigned clusters = blocks / launch->cluster;
    std::vector<unsigned> turn(clusters);
    order(turn.data(), clusters);
    std::vector<Blocks> waiting;
    Blocks all;  // of these
    for (unsigned i = 0; i < clusters; i++) {
        Blocks cluster(launch->cluster);
        for (unsigned rank = 0; rank < launch->cluster; rank++) {
            cluster[rank] = new_block();
            start_block(*cluster[rank], turn[i] * launch->cluster + rank, cluster.data());
            // Accesses before grid_wait are checked in the first, the last and every 16th cluster.
            cluster[rank]->guarded = launch->dependent && (i % 16 == 0 || i + 1 == clusters);
        }
        run_cluster(cluster);
        bool ended = std::all_of(cluster.begin(), cluster.end(), [](Block* b) { return b->state == State::done; });
        Blocks& place = ended ? unused : all;
        place.insert(place.end(), cluster.begin(), cluster.end());
        if (!ended) waiting.push_back(std::move(cluster));
    }
    do {
        while (go_on(waiting)) {}
    } while (open(all, State::at_grid_sync, blocks));
}

}  // namespace

uint64_t random_number() {  // splitmix64
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

// The schedule's order of n things: as they are, reversed, or shuffled.
void order(unsigned* out, unsigned n) {
    for (unsigned i = 0; i < n; i++) out[i] = launch->seed == 1 ? n - 1 - i : i;
    if (launch->seed > 1)
        for (unsigned i = n; i > 1; i--) std::swap(out[i - 1], out[random_number() % i]);
}

bool release(Block& b, State state) {
    bool any = false;
    for (unsigned i = 0; i < threads_per_block; i++)
        if (b.threads[i].state == state) b.threads[i].state = State::ready, any = true;
    return any;
}

unsigned live_lanes() {
    return block->warps[self->id / 32].live;
}

void grid_wait() {
    block->waited = true;
    if (!launch->dependent || !block->guarded) return;
    block->at_grid_wait++;
    self->mask = 0;
    wait(State::at_grid_wait, {"grid_wait", "", 0});
}

void grid_launch() {
    launch->triggered = std::max(launch->triggered, launch->dependent && !block->waited ? 2 : 1);
}

void* in_cluster(void* p, unsigned rank, Site site) {
    if (rank >= launch->cluster)
        fail("in_cluster (%s:%d): rank %u is outside a cluster of %u", site.file, site.line, rank, launch->cluster);
    if (!is_shared(p, 1))
        fail("in_cluster (%s:%d): address %p is not in the block's shared memory", site.file, site.line, p);
    if (rank == block->rank) return p;
    if (!block->synced)
        fail("in_cluster (%s:%d) before the first cluster_sync: block %u may not have started", site.file, site.line,
             rank);
    if (!block->reached.what) block->reached = site;
    return block->cluster[rank]->shared + (static_cast<char*>(p) - block->shared);
}

}  // namespace emu

// Runs `call` for every thread of the launch. Returns 0, or 1 with the error in launch->message (and fault).
extern "C" int emu_run(emu::Launch* launch, void (*call)(void**)) {
    using namespace emu;
    if (resident.empty()) resident.push_back(std::make_unique<Block>());
    unused.clear();
    for (size_t i = resident.size(); i-- > 0;) unused.push_back(resident[i].get());
    emu::launch = launch;
    kernel = call;
    random_state = launch->seed;
    launch->fenced = 0;
    grid_size = dim3(launch->grid[0], launch->grid[1], launch->grid[2]);
    block_size = dim3(launch->block[0], launch->block[1], launch->block[2]);
    threads_per_block = block_size.x * block_size.y * block_size.z;
    Block& first = *resident[0];
    first.stacks = launch->stacks;
    first.shared = launch->shared;
    first.shared_end = launch->shared + launch->shared_bytes;
    block = nullptr;
    self = nullptr;
    prepare_shared();
    catch_faults();
    int failed = sigsetjmp(give_up, 0);
    if (!failed) run_grid(grid_size.x * grid_size.y * grid_size.z);
    release_faults();
    unguard_regions();
    for (; resident.size() > max_cluster; resident.pop_back())
        munmap(resident.back()->stacks, max_threads * launch->stack_bytes + launch->shared_bytes + unreadable);
    return failed;
}
