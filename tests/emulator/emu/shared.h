// Shared memory. rewrite.py turns the two kinds of declaration into calls of these functions:
//   __shared__ float part[32];         ->  auto& part = emu::static_shared<float[32], 0>([] {});
//   extern __shared__ float rows[];    ->  float* const rows = emu::dynamic_shared<float, 0>();
#pragma once

#include "emu/machine.h"

namespace emu {

// Address of the static variable number `slot` of this launch; places it when the first thread reaches it.
void* place_static(int slot, size_t bytes, size_t alignment);

// Number of a new static variable.
int new_slot();

// Start of the dynamic shared memory, which ends where the block's shared memory ends.
void* place_dynamic(size_t alignment);

bool is_shared(const void* p, size_t bytes);

// Tag is a different lambda type for every declaration and every instance of the enclosing function.
template <class T, size_t alignment, class Tag>
T& static_shared(Tag) {
    static const int slot = new_slot();
    return *static_cast<T*>(place_static(slot, sizeof(T), alignment > alignof(T) ? alignment : alignof(T)));
}

template <class T, size_t alignment>
T* dynamic_shared() {
    return static_cast<T*>(place_dynamic(alignment > alignof(T) ? alignment : alignof(T)));
}

}  // namespace emu
