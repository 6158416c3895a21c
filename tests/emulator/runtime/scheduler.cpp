// The threads of a block: fibers that run in the order of the schedule, barriers and warp collectives.

#include "fibers.h"
#include "internal.h"

#include <algorithm>

namespace emu {

Block* block;
Thread* self;
dim3 grid_size, block_size;
void (*kernel)(void**);
unsigned threads_per_block;

namespace {

void* main_context;
uint64_t stack_canary = 0x5bd1e995c2b2ae35u;

char* stack_of(const Thread& t) {
    return block->stacks + t.id * launch->stack_bytes;
}

Thread* ready_at(unsigned position) {
    Thread& t = block->threads[block->order[position]];
    return t.state == State::ready ? &t : nullptr;
}

// Schedules 0 and 1: a warp runs as far ahead of the others as it can. Other schedules: any thread may run next.
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
    if (launch->fenced) launch->fenced = 2;  // not by the thread that runs from here on
    Thread* me = self;
    Thread* next = next_ready();
    if (next == me) return;
    self = next;
    switch_context(&me->context, next ? next->context : main_context);
}

// In random schedules a thread 0 that reaches a barrier directly after a __threadfence lets the other blocks run first:
// what it announced, for instance by a ticket, must hold before the rest of its block has arrived. Once per block
// (synced).
void let_other_blocks_run() {
    if (self->id || launch->seed < 2 || launch->cluster > 1 || launch->fenced != 1 || block->synced) return;
    block->synced = true;
    switch_context(&self->context, main_context);  // run_block returns
}

// The first of the threads that have not ended, all of which wait: at the same place, or it fails.
const Thread& all_at_one_site() {
    const Thread* first = nullptr;
    for (unsigned i = 0; i < threads_per_block; i++) {
        const Thread& t = block->threads[i];
        if (t.state == State::done) continue;
        if (!first) first = &t;
        if (t.site.line != first->site.line || t.site.file != first->site.file)
            fail("divergent barrier: thread %u waits at %s (%s:%d) and thread %u at %s (%s:%d)", first->id,
                 first->site.what, first->site.file, first->site.line, t.id, t.site.what, t.site.file, t.site.line);
    }
    return *first;
}

void release_barrier() {
    all_at_one_site();
    block->votes = block->true_votes = 0;
    for (unsigned i = 0; i < threads_per_block; i++) {
        Thread& t = block->threads[i];
        if (t.state != State::at_barrier) continue;
        block->votes++;
        block->true_votes += t.vote != 0;
        t.state = State::ready;
    }
    block->at_barrier = 0;
}

// All threads that have not ended wait for other blocks.
void stop_block() {
    const Thread& first = all_at_one_site();
    block->state = first.state;
    block->site = first.site;
    if (block->state == State::at_cluster_sync && block->alive != threads_per_block)
        fail("%u threads wait at %s (%s:%d) and the other %u have ended", block->alive, first.site.what,
             first.site.file, first.site.line, threads_per_block - block->alive);
}

// All threads have ended.
void end_block() {
    block->state = State::done;
    check_shared();
    for (int i = 0; i < named_barriers; i++)
        if (block->came[i]) fail("ended while barrier %d waits for %u of its %u threads", i,
                                 block->wanted[i] - block->came[i], block->wanted[i]);
    if (launch->dependent && !block->waited)
        fail("launched as dependent, and no thread of the block calls grid_wait");
    if (const Site& site = block->reached; site.what)
        fail("%s (%s:%d) is not followed by a cluster_sync: the other block may have ended", site.what, site.file,
             site.line);
}

// Completes the collective of `lanes`, which have all arrived, unless some of them wait for another one.
bool finish_collective(Thread* warp, unsigned lanes) {
    const Thread& first = warp[__builtin_ctz(lanes)];
    for (unsigned m = lanes; m; m &= m - 1) {
        const Thread& t = warp[__builtin_ctz(m)];
        if (t.mask == first.mask && t.site.line == first.site.line && t.site.file == first.site.file) continue;
        if (!(t.mask >> (first.id & 31) & 1) || !(first.mask >> (t.id & 31) & 1)) return false;  // waits for others
        fail("warp collectives differ: lane %u is at %s (%s:%d, mask %#x), lane %u at %s (%s:%d, mask %#x)",
             first.id & 31, first.site.what, first.site.file, first.site.line, first.mask, t.id & 31, t.site.what,
             t.site.file, t.site.line, t.mask);
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
    fail("deadlock or divergent barrier: thread %u waits at %s (%s:%d, mask %#x) and thread %u at %s (%s:%d, mask %#x)",
         a->id, a->site.what, a->site.file, a->site.line, a->mask, b->id, b->site.what, b->site.file, b->site.line,
         b->mask);
}

}  // namespace

void start_block(Block& b, unsigned linear, Block** cluster) {
    block = &b;
    b.index = {linear % grid_size.x, linear / grid_size.x % grid_size.y, linear / (grid_size.x * grid_size.y)};
    b.rank = linear % launch->cluster;
    b.cluster = cluster;
    b.state = State::ready;
    b.alive = threads_per_block;
    b.at_barrier = b.at_grid_wait = b.at_sync = 0;
    for (unsigned& came : b.came) came = 0;
    b.waited = b.guarded = b.synced = false;
    b.reached = {};
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

void run_block(Block& b) {
    block = &b;
    for (;;) {
        self = nullptr;
        Thread* first = next_ready();
        if (first) {
            self = first;
            switch_context(&main_context, first->context);
            if (self) return;  // other blocks run first; the state is still `ready`
        }
        self = nullptr;
        if (!b.alive) return end_block();
        if (release(b, State::arrived)) continue;
        if (b.at_sync == b.alive) return stop_block();
        if (!b.at_grid_wait) report_deadlock();
        unguard_regions();
        b.guarded = false;
        b.at_grid_wait = 0;
        release(b, State::at_grid_wait);
    }
}

void wait(State state, Site site) {
    self->state = state;
    self->site = site;
    leave();
}

void wait_for_blocks(State state, Site site) {
    self->mask = 0;
    block->at_sync++;
    wait(state, site);
}

void barrier(int vote, Site site) {
    Thread* me = self;
    let_other_blocks_run();
    me->vote = vote;
    me->mask = 0;
    me->site = site;
    me->state = State::at_barrier;
    if (++block->at_barrier == block->alive)
        release_barrier();
    else
        leave();
}

void named_barrier(int barrier, unsigned threads, bool waits, Site site) {
    Thread* me = self;
    if (barrier < 1 || barrier >= named_barriers || threads % 32 || !threads || threads > threads_per_block)
        fail("%s (%s:%d): expected barrier 1 to %d and a multiple of 32 threads of the block's %u, found barrier %d "
             "and %u threads",
             site.what, site.file, site.line, named_barriers - 1, threads_per_block, barrier, threads);
    unsigned& came = block->came[barrier];
    if (came && block->wanted[barrier] != threads)
        fail("%s (%s:%d): barrier %d is for %u threads here and for %u where others came to it", site.what, site.file,
             site.line, barrier, threads, block->wanted[barrier]);
    block->wanted[barrier] = threads;
    me->mask = 0;
    me->site = site;
    me->named = barrier;
    const bool opens = ++came == threads;
    if (opens) came = 0;
    for (unsigned i = 0; opens && i < threads_per_block; i++) {
        Thread& t = block->threads[i];
        if (t.state == State::at_named_barrier && t.named == barrier) t.state = State::ready;
    }
    // A thread that only arrives continues immediately in the first schedule, and after all others in the rest.
    if (waits ? !opens : launch->seed > 0) me->state = waits ? State::at_named_barrier : State::arrived;
    leave();
}

void meet(unsigned mask, Site site, const void* in, void* out, void (*finish)(Thread* warp, unsigned lanes)) {
    Thread* me = self;
    unsigned lane = me->id & 31;
    Thread* warp = me - lane;
    if (!(mask >> lane & 1))
        fail("%s (%s:%d): mask %#x lacks the calling lane %u", site.what, site.file, site.line, mask, lane);
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

}  // namespace emu
