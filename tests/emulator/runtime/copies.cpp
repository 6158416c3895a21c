// cp.async: data is read when the copy is issued. It arrives in shared memory as late as possible (schedule 0),
// immediately (schedule 1), or at random (others). So a kernel that reads too early or reuses a buffer too soon is
// found.

#include "internal.h"
#include "emu/ptx.h"

namespace emu {

void issue_copy(void* to, uint4 data, size_t bytes) {
    bool at_once = launch->seed == 1 || (launch->seed > 1 && random_number() % 2);
    if (at_once)
        memcpy(to, &data, bytes);
    else
        self->copies.push_back({to, data, bytes, self->group});
}

void commit_copies() {
    self->group++;
}

void await_copies(int allowed) {
    size_t kept = 0;
    for (const Copy& copy : self->copies) {
        if (copy.group < self->group - allowed)
            memcpy(copy.to, &copy.data, copy.bytes);
        else
            self->copies[kept++] = copy;
    }
    self->copies.resize(kept);
}

}  // namespace emu
