// A launch: blocks one after the other, and several at once only while they wait for each other at a grid barrier.

#include "internal.h"
#include "emu/ptx.h"

#include <sys/mman.h>

#include <algorithm>
#include <memory>

namespace emu {

Launch* launch;
sigjmp_buf give_up;

namespace {

uint64_t random_state;

[[noreturn]] void report_absent(Block& waiting) {
    block = &waiting;
    self = nullptr;
    const Site& site = waiting.threads[waiting.order[0]].site;
    fail("waits at %s (%s:%d) where others have ended", site.what, site.file, site.line);
}

// One block after the other. Those that wait at a grid barrier stay, each with memory of its own.
void run_blocks(std::vector<std::unique_ptr<Block>>& resident, unsigned blocks) {
    std::vector<unsigned> turn(blocks);
    order(turn.data(), blocks);
    Block* free = resident[0].get();
    std::vector<Block*> waiting;
    for (unsigned i = 0; i < blocks; i++) {
        if (!free) {
            resident.push_back(std::make_unique<Block>());
            free = resident.back().get();
            size_t stacks = max_threads * launch->stack_bytes;
            free->stacks = static_cast<char*>(mmap(nullptr, stacks + launch->shared_bytes, PROT_READ | PROT_WRITE,
                                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
            if (free->stacks == MAP_FAILED) fail("no memory for %zu blocks that wait for each other", resident.size());
            free->shared = free->stacks + stacks;
            free->shared_end = free->shared + launch->shared_bytes;
        }
        start_block(*free, turn[i]);
        // The first, the last and every 16th block are watched for what they touch before grid_wait.
        if (launch->dependent && (i % 16 == 0 || i + 1 == blocks)) {
            guard_regions();
            free->guarded = true;
        }
        run_block(*free);
        unguard_regions();
        free->guarded = false;
        if (free->alive) waiting.push_back(free), free = nullptr;
    }
    while (!waiting.empty()) {
        if (waiting.size() != blocks) report_absent(*waiting[0]);
        for (Block* b : waiting) {
            block = b;
            b->at_grid_sync = 0;
            release(State::at_grid_sync);
        }
        std::vector<Block*> again;
        for (Block* b : waiting) {
            run_block(*b);
            if (b->alive) again.push_back(b);
        }
        if (!again.empty() && again.size() != waiting.size()) report_absent(*again[0]);
        waiting.swap(again);
    }
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

void grid_sync(Site site) {
    block->at_grid_sync++;
    self->mask = 0;
    wait(State::at_grid_sync, site);
}

}  // namespace emu

// Runs `call` for every thread of the launch; 0, or 1 with launch->message (and fault) saying what went wrong.
extern "C" int emu_run(emu::Launch* launch, void (*call)(void**)) {
    using namespace emu;
    static std::vector<std::unique_ptr<Block>> resident;
    if (resident.empty()) resident.push_back(std::make_unique<Block>());
    emu::launch = launch;
    kernel = call;
    random_state = launch->seed;
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
    if (!failed) run_blocks(resident, grid_size.x * grid_size.y * grid_size.z);
    release_faults();
    unguard_regions();
    for (size_t i = 1; i < resident.size(); i++)
        munmap(resident[i]->stacks, max_threads * launch->stack_bytes + launch->shared_bytes);
    resident.resize(1);
    return failed;
}
