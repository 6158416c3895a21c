// Programmatic dependent launch: a block starts while the preceding kernels still run, and sees memory in that state.

#include "internal.h"

#include <sys/mman.h>

namespace emu {

bool regions_guarded;

namespace {

std::vector<std::vector<unsigned char>> kept;  // by region: what guard_regions replaced

}  // namespace

void guard_regions() {
    if (regions_guarded) return;
    regions_guarded = true;
    kept.resize(launch->region_count);
    for (size_t r = 0; r < launch->region_count; r++) {
        const Region& region = launch->regions[r];
        if (region.mask && launch->hide) {
            kept[r].assign(region.start, region.start + region.bytes);
            for (size_t i = 0; i < region.bytes; i++)
                if (region.mask[i]) region.start[i] = 0xff;
        }
        mprotect(region.start, region.bytes, PROT_READ);
    }
}

void unguard_regions() {
    if (!regions_guarded) return;
    regions_guarded = false;
    for (size_t r = 0; r < launch->region_count; r++) {
        const Region& region = launch->regions[r];
        mprotect(region.start, region.bytes, PROT_READ | PROT_WRITE);
        if (region.mask && launch->hide) memcpy(region.start, kept[r].data(), region.bytes);
    }
}

}  // namespace emu
