// Shared memory of a block: static variables from the start with gaps between them, dynamic memory at the end.

#include "internal.h"
#include "emu/shared.h"

namespace emu {

namespace {

constexpr size_t gap = 64;       // guard bytes after every static variable
constexpr size_t front = 16384;  // guard bytes before dynamic memory

struct Variable {
    size_t start, bytes;
};

std::vector<Variable> variables;  // by slot; bytes 0: not placed in this launch
size_t static_bytes, static_end;
int slots;

size_t dynamic_start(size_t alignment) {
    uintptr_t end = reinterpret_cast<uintptr_t>(block->shared_end);
    return (end - launch->dynamic_shared) / alignment * alignment - reinterpret_cast<uintptr_t>(block->shared);
}

}  // namespace

int new_slot() {
    return slots++;
}

void prepare_shared() {
    variables.assign(variables.size(), {0, 0});
    static_bytes = static_end = 0;
}

void poison_shared() {
    memset(block->shared, int(launch->poison), static_end);
    char* poisoned = block->shared + dynamic_start(16) - front;
    memset(poisoned, int(launch->poison), size_t(block->shared_end - poisoned));
}

void* place_static(int slot, size_t bytes, size_t alignment) {
    if (variables.size() <= size_t(slot)) variables.resize(size_t(slots), {0, 0});
    Variable& v = variables[size_t(slot)];
    if (!v.bytes) {
        v = {(static_end + alignment - 1) / alignment * alignment, bytes};
        static_bytes += bytes;
        if (static_bytes + launch->dynamic_shared > max_shared)
            fail("more than %zu bytes of shared memory: %zu static and %zu dynamic", max_shared, static_bytes,
                 launch->dynamic_shared);
        // A new variable, and the gap behind it, was not poisoned when the blocks that are in memory started.
        for (const auto& b : resident)
            memset(b->shared + static_end, int(launch->poison), v.start + bytes + gap - static_end);
        static_end = v.start + bytes + gap;
    }
    return block->shared + v.start;
}

void* place_dynamic(size_t alignment) {
    return block->shared + dynamic_start(alignment < 16 ? 16 : alignment);
}

bool is_shared(const void* p, size_t bytes) {
    const char* c = static_cast<const char*>(p);
    return c >= block->shared && c + bytes <= block->shared_end;
}

void check_shared() {
    const unsigned char* base = reinterpret_cast<const unsigned char*>(block->shared);
    for (const Variable& v : variables) {
        if (!v.bytes) continue;
        for (size_t i = v.start + v.bytes; i < v.start + v.bytes + gap; i++)
            if (base[i] != launch->poison)
                fail("shared memory written %zu bytes behind a static __shared__ variable of %zu bytes",
                     i - v.start - v.bytes, v.bytes);
    }
    size_t end = size_t(block->shared_end - block->shared), used = (launch->dynamic_shared + 15) / 16 * 16;
    for (size_t i = end - used + launch->dynamic_shared; used && i < end; i++) {
        if (launch->dynamic_shared % 16 && base[i] != launch->poison)
            fail("shared memory written behind the launch's %zu dynamic bytes", launch->dynamic_shared);
    }
    size_t dynamic = dynamic_start(16);
    const unsigned char* before = base + dynamic - front;  // static variables end earlier
    if (before[0] == launch->poison && !memcmp(before, before + 1, front - 1)) return;
    for (size_t i = 1; i <= front; i++)
        if (base[dynamic - i] != launch->poison)
            fail("shared memory written %zu bytes in front of the launch's %zu dynamic bytes", i, launch->dynamic_shared);
}

}  // namespace emu
