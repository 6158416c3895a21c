// The part of cooperative groups that a kernel of ours may use: this_grid().sync() of a grid that fits the machine.
#pragma once

#include "emu/machine.h"

namespace cooperative_groups {

struct grid_group {
    void sync(EMU_SITE) const { emu::wait_for_blocks(emu::State::at_grid_sync, {"grid sync", file, line}); }
};

inline grid_group this_grid() {
    return {};
}

}  // namespace cooperative_groups
