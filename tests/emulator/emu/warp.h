// Barriers and warp collectives: every lane passes its input, and the last lane to arrive computes all results.
#pragma once

#include "emu/machine.h"

namespace emu {

inline unsigned lane() {
    return self->id & 31;
}

template <class T>
const T& given(Thread* warp, unsigned lane) {
    return *static_cast<const T*>(warp[lane].in);
}

template <class T>
T& result(Thread* warp, unsigned lane) {
    return *static_cast<T*>(warp[lane].out);
}

template <class F>
void each_lane(unsigned lanes, F f) {
    for (; lanes; lanes &= lanes - 1) f(unsigned(__builtin_ctz(lanes)));
}

template <class T>
struct Shuffle {
    T value;
    unsigned source;  // lane whose value this lane reads
};

template <class T>
T shuffle(const char* what, unsigned mask, T value, unsigned source, const char* file, int line) {
    Shuffle<T> in{value, source};
    T out;
    meet(mask, {what, file, line}, &in, &out, [](Thread* warp, unsigned lanes) {
        each_lane(lanes, [&](unsigned l) {
            unsigned source = given<Shuffle<T>>(warp, l).source;
            if (!(lanes >> source & 1))
                fail("%s at %s:%d: lane %u reads lane %u, which does not take part", warp[l].site.what,
                     warp[l].site.file, warp[l].site.line, l, source);
            result<T>(warp, l) = given<Shuffle<T>>(warp, source).value;
        });
    });
    return out;
}

// out = Fold of the lanes' values in lane order
template <class T, class Fold>
T reduce(const char* what, unsigned mask, T value, const char* file, int line) {
    T out;
    meet(mask, {what, file, line}, &value, &out, [](Thread* warp, unsigned lanes) {
        T all = given<T>(warp, unsigned(__builtin_ctz(lanes)));
        each_lane(lanes & (lanes - 1), [&](unsigned l) { all = Fold()(all, given<T>(warp, l)); });
        each_lane(lanes, [&](unsigned l) { result<T>(warp, l) = all; });
    });
    return out;
}

struct Add {
    template <class T>
    T operator()(T a, T b) {
        return T(a + b);
    }
};
struct Min {
    template <class T>
    T operator()(T a, T b) {
        return b < a ? b : a;
    }
};
struct Max {
    template <class T>
    T operator()(T a, T b) {
        return a < b ? b : a;
    }
};
struct And {
    template <class T>
    T operator()(T a, T b) {
        return T(a & b);
    }
};
struct Or {
    template <class T>
    T operator()(T a, T b) {
        return T(a | b);
    }
};
struct Xor {
    template <class T>
    T operator()(T a, T b) {
        return T(a ^ b);
    }
};

inline unsigned ballot(const char* what, unsigned mask, bool vote, const char* file, int line) {
    return reduce<unsigned, Or>(what, mask, unsigned(vote) << lane(), file, line);
}

}  // namespace emu

// -- barriers of a block
// ------------------------------------------------------------------------------------------------

inline void __syncthreads(EMU_SITE) {
    emu::barrier(0, {"__syncthreads", file, line});
}

inline int __syncthreads_or(int p, EMU_SITE) {
    emu::barrier(p, {"__syncthreads_or", file, line});
    return emu::block->true_votes != 0;
}

inline int __syncthreads_and(int p, EMU_SITE) {
    emu::barrier(p, {"__syncthreads_and", file, line});
    return emu::block->true_votes == emu::block->votes;
}

inline int __syncthreads_count(int p, EMU_SITE) {
    emu::barrier(p, {"__syncthreads_count", file, line});
    return emu::block->true_votes;
}

// -- of a warp
// ----------------------------------------------------------------------------------------------------------

inline void __syncwarp(unsigned mask = ~0u, EMU_SITE) {
    emu::meet(mask, {"__syncwarp", file, line}, nullptr, nullptr, [](emu::Thread*, unsigned) {});
}

// Lanes are numbered inside groups of `width`; a source outside the group is the lane itself.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMU_SITE) {
    unsigned group = emu::lane() & ~unsigned(width - 1);
    return emu::shuffle("__shfl_sync", mask, value, group + (unsigned(source) & unsigned(width - 1)), file, line);
}

// xor may reach into a group before the lane's own, not behind it.
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance, int width = 32, EMU_SITE) {
    unsigned l = emu::lane(), source = l ^ unsigned(distance);
    return emu::shuffle("__shfl_xor_sync", mask, value, source / width > l / width ? l : source & 31, file, line);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32, EMU_SITE) {
    unsigned l = emu::lane(), source = l + distance;
    return emu::shuffle("__shfl_down_sync", mask, value, source / width == l / width ? source : l, file, line);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, EMU_SITE) {
    unsigned l = emu::lane(), first = l & ~unsigned(width - 1);
    return emu::shuffle("__shfl_up_sync", mask, value, l >= first + distance ? l - distance : l, file, line);
}

inline unsigned __ballot_sync(unsigned mask, int p, EMU_SITE) {
    return emu::ballot("__ballot_sync", mask, p != 0, file, line);
}

inline int __any_sync(unsigned mask, int p, EMU_SITE) {
    return emu::ballot("__any_sync", mask, p != 0, file, line) != 0;
}

inline int __all_sync(unsigned mask, int p, EMU_SITE) {
    return emu::ballot("__all_sync", mask, p == 0, file, line) == 0;
}

inline unsigned __activemask() {
    return emu::live_lanes();
}

#define EMU_REDUCE(NAME, FOLD)                                              \
    template <class T>                                                      \
    T NAME(unsigned mask, T value, EMU_SITE) {                              \
        static_assert(std::is_integral<T>::value && sizeof(T) == 4, #NAME); \
        return emu::reduce<T, emu::FOLD>(#NAME, mask, value, file, line);   \
    }
EMU_REDUCE(__reduce_add_sync, Add)
EMU_REDUCE(__reduce_min_sync, Min)
EMU_REDUCE(__reduce_max_sync, Max)
EMU_REDUCE(__reduce_and_sync, And)
EMU_REDUCE(__reduce_or_sync, Or)
EMU_REDUCE(__reduce_xor_sync, Xor)
#undef EMU_REDUCE
