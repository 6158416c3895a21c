// Which thread runs next: fibers of a block take turns in the order of the schedule; blocks run one after the other,
// and several at once only while they wait for each other at a grid barrier.

#include "fibers.h"
#include "internal.h"
#include "emu/ptx.h"

#include <sys/mman.h>

#include <algorithm>
#include <memory>

namespace emu {

Launch* launch;
Block* block;
Thread* self;
dim3 grid_size, block_size;
sigjmp_buf give_up;

namespace {

void (*kernel)(void**);
void* main_context;
uint64_t random_state;
unsigned threads_per_block;
uint64_t stack_canary = 0x5bd1e995c2b2ae35u;

char* stack_of(const Thread& t) { return block->stacks + t.id * launch->stack_bytes; }

Thread* ready_at(unsigned position) {
    Thread& t = block->threads[block->order[position]];
    return t.state == State::ready ? &t : nullptr;
}

// Schedules 0 and 1: a warp runs as far ahead of the others as it can. Others: anybody.
Thread* next_ready() {
    unsigned n = threads_per_block, from = self ? block->position[self->id] : n - 1;
    if (launch->seed > 1) {
        from = unsigned(random_number() % n);
    } else if (self) {
        unsigned warp = self->id / 32;
        for (unsigned i = from + 1; i < n && block->order[i] / 32 == warp; i++)
            if (Thread* t = ready_at(i)) return t;
        for (unsigned i = from + 1; i-- > 0 && block->order[i] / 32 == warp;)
            if (Thread* t = ready_at(i)) return t;
    }
    for (unsigned i = from + 1; i < n; i++)
        if (Thread* t = ready_at(i)) return t;
    for (unsigned i = 0; i <= from; i++)
        if (Thread* t = ready_at(i)) return t;
    return nullptr;
}

// Gives the CPU to the next thread that can run, or back to run_blocks.
void leave() {
    Thread* me = self;
    Thread* next = next_ready();
    if (next == me) return;
    self = next;
    switch_context(&me->context, next ? next->context : main_context);
}

void release_barrier() {
    const Thread* first = nullptr;
    block->votes = block->true_votes = 0;
    for (unsigned i = 0; i < threads_per_block; i++) {
        Thread& t = block->threads[i];
        if (t.state != State::at_barrier) continue;
        if (!first) first = &t;
        if (t.site.line != first->site.line || t.site.file != first->site.file)
            fail("divergent barrier: thread %u waits at %s (%s:%d) and thread %u at %s (%s:%d)", first->id, first->site.what,
                 first->site.file, first->site.line, t.id, t.site.what, t.site.file, t.site.line);
        block->votes++;
        block->true_votes += t.vote != 0;
        t.state = State::ready;
    }
    block->at_barrier = 0;
}

// Ends the collective of `lanes`, all of which are there, unless some of them wait for another one.
bool finish_collective(Thread* warp, unsigned lanes) {
    const Thread& first = warp[__builtin_ctz(lanes)];
    for (unsigned m = lanes; m; m &= m - 1) {
        const Thread& t = warp[__builtin_ctz(m)];
        if (t.mask == first.mask && t.site.line == first.site.line && t.site.file == first.site.file) continue;
        if (!(t.mask >> (first.id & 31) & 1) || !(first.mask >> (t.id & 31) & 1)) return false;  // waits for others
        fail("warp collectives differ: lane %u is at %s (%s:%d, mask %#x), lane %u at %s (%s:%d, mask %#x)", first.id & 31,
             first.site.what, first.site.file, first.site.line, first.mask, t.id & 31, t.site.what, t.site.file, t.site.line,
             t.mask);
    }
    first.finish(warp, lanes);
    for (unsigned m = lanes; m; m &= m - 1) warp[__builtin_ctz(m)].state = State::ready;
    block->warps[warp->id / 32].waiting &= ~lanes;
    return true;
}

// A thread that ends is no longer waited for.
void end_thread() {
    Thread* me = self;
    if (*reinterpret_cast<uint64_t*>(stack_of(*me)) != stack_canary)
        fail("uses more than the emulator's %zu bytes of stack", launch->stack_bytes);
    me->state = State::done;
    me->copies.clear();
    block->alive--;
    if (block->alive && block->at_barrier == block->alive) release_barrier();
    Warp& w = block->warps[me->id / 32];
    Thread* warp = me - (me->id & 31);
    w.live &= ~(1u << (me->id & 31));
    for (unsigned m = w.waiting; m; m &= m - 1) {
        unsigned wanted = warp[__builtin_ctz(m)].mask & w.live;
        if ((w.waiting & wanted) == wanted && finish_collective(warp, wanted)) m &= w.waiting;
        if (!m) break;
    }
    leave();
}

void thread_main() {
    kernel(launch->arguments);
    end_thread();
    __builtin_unreachable();
}

// The schedule's order of n things: as they are, reversed, or shuffled.
void order(unsigned* out, unsigned n) {
    for (unsigned i = 0; i < n; i++) out[i] = launch->seed == 1 ? n - 1 - i : i;
    if (launch->seed > 1)
        for (unsigned i = n; i > 1; i--) std::swap(out[i - 1], out[random_number() % i]);
}

void start_block(Block& b, unsigned linear) {
    block = &b;
    b.index = {linear % grid_size.x, linear / grid_size.x % grid_size.y, linear / (grid_size.x * grid_size.y)};
    b.alive = threads_per_block;
    b.at_barrier = b.at_grid_sync = b.at_grid_wait = 0;
    b.waited = b.guarded = false;
    for (unsigned i = 0; i * 32 < threads_per_block; i++) {
        unsigned n = threads_per_block - 32 * i;
        b.warps[i] = {n < 32 ? (1u << n) - 1 : ~0u, 0};
    }
    order(b.order, threads_per_block);
    for (unsigned i = 0; i < threads_per_block; i++) b.position[b.order[i]] = i;
    for (unsigned i = 0; i < threads_per_block; i++) {
        Thread& t = b.threads[i];
        t.id = i;
        t.index = {i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)};
        t.state = State::ready;
        t.group = 0;
        t.copies.clear();
        *reinterpret_cast<uint64_t*>(stack_of(t)) = stack_canary;
        // Stacks that begin at different offsets do not compete for the same lines of the cache.
        t.context = new_context(stack_of(t) + launch->stack_bytes - 64 * (i & 31), thread_main);
    }
    poison_shared();
}

[[noreturn]] void report_deadlock() {
    const Thread *a = nullptr, *b = nullptr;
    for (unsigned i = 0; i < threads_per_block; i++) {
        const Thread& t = block->threads[i];
        if (t.state == State::done) continue;
        if (!a) a = &t;
        if (!b && (t.state != a->state || t.site.line != a->site.line || t.mask != a->mask)) b = &t;
    }
    self = const_cast<Thread*>(a);
    if (!b) fail("deadlock: waits for ever at %s (%s:%d)", a->site.what, a->site.file, a->site.line);
    fail("deadlock or divergent barrier: thread %u waits at %s (%s:%d, mask %#x) and thread %u at %s (%s:%d, mask %#x)", a->id,
         a->site.what, a->site.file, a->site.line, a->mask, b->id, b->site.what, b->site.file, b->site.line, b->mask);
}

[[noreturn]] void report_absent(Block& waiting) {
    block = &waiting;
    self = nullptr;
    const Site& site = waiting.threads[waiting.order[0]].site;
    fail("waits at %s (%s:%d) where others have ended", site.what, site.file, site.line);
}

void release(State state) {
    for (unsigned i = 0; i < threads_per_block; i++)
        if (block->threads[i].state == state) block->threads[i].state = State::ready;
}

// Runs the threads of a block until they have ended or all wait for other blocks.
void run_block(Block& b) {
    block = &b;
    for (;;) {
        self = nullptr;
        Thread* first = next_ready();
        if (first) {
            self = first;
            switch_context(&main_context, first->context);
        }
        self = nullptr;
        if (!b.alive || b.at_grid_sync == b.alive) break;
        if (!b.at_grid_wait) report_deadlock();
        if (b.guarded) unguard_regions();
        b.guarded = false;
        b.at_grid_wait = 0;
        release(State::at_grid_wait);
    }
    if (b.alive) return;
    check_shared();
    if (launch->dependent && !b.waited) fail("launched as dependent, and no thread of the block calls grid_wait");
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

unsigned live_lanes() { return block->warps[self->id / 32].live; }

void wait(State state, Site site) {
    self->state = state;
    self->site = site;
    leave();
}

void barrier(int vote, Site site) {
    Thread* me = self;
    me->vote = vote;
    me->mask = 0;
    me->site = site;
    me->state = State::at_barrier;
    if (++block->at_barrier == block->alive) release_barrier();
    else leave();
}

void meet(unsigned mask, Site site, const void* in, void* out, void (*finish)(Thread* warp, unsigned lanes)) {
    Thread* me = self;
    unsigned lane = me->id & 31;
    Thread* warp = me - lane;
    if (!(mask >> lane & 1)) fail("%s (%s:%d): mask %#x lacks the calling lane %u", site.what, site.file, site.line, mask, lane);
    me->mask = mask;
    me->site = site;
    me->in = in;
    me->out = out;
    me->finish = finish;
    me->state = State::at_warp;
    Warp& w = block->warps[me->id / 32];
    w.waiting |= 1u << lane;
    unsigned wanted = mask & w.live;
    if ((w.waiting & wanted) != wanted || !finish_collective(warp, wanted)) leave();
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
