// The entry of a compiled kernel for Python: the types of its parameters, and a call with an array of pointers.
#pragma once

#include "emu/machine.h"

#include <utility>

namespace emu {

// The last parameter of every kernel; rewrite.py puts __launch_bounds__ there.
template <unsigned threads>
struct LaunchBound {};

struct Parameter {
    char kind;         // 'v' a value, 'r' pointer to const, 'w' pointer
    const char* type;  // NumPy's name of the type, or of what the pointer points to; "" if NumPy has none
    size_t bytes;      // size of the value
};

struct Entry {
    void (*call)(void** arguments);
    const Parameter* parameters;
    unsigned count;
    unsigned bound;  // maximum threads per block
};

template <class T>
constexpr const char* numpy_name() {
    using U = std::remove_cv_t<T>;
    if (std::is_same<U, bool>::value) return "bool";
    if (std::is_same<U, float>::value) return "float32";
    if (std::is_same<U, double>::value) return "float64";
    if (std::is_same<U, __nv_bfloat16>::value) return "bfloat16";
    if (std::is_same<U, __half>::value) return "float16";
    if constexpr (std::is_integral<U>::value) {
        constexpr bool s = std::is_signed<U>::value;
        switch (sizeof(U)) {
            case 1:
                return s ? "int8" : "uint8";
            case 2:
                return s ? "int16" : "uint16";
            case 4:
                return s ? "int32" : "uint32";
            case 8:
                return s ? "int64" : "uint64";
        }
    }
    return "";
}

template <class T>
constexpr Parameter parameter() {
    if constexpr (std::is_pointer<T>::value) {
        using Target = std::remove_pointer_t<T>;
        return {std::is_const<Target>::value ? 'r' : 'w', numpy_name<Target>(), sizeof(T)};
    } else {
        return {'v', numpy_name<T>(), sizeof(T)};
    }
}

template <class T>
struct Bound {
    static constexpr unsigned threads = 0;
};
template <unsigned n>
struct Bound<LaunchBound<n>> {
    static constexpr unsigned threads = n;
};

template <class Signature>
struct Split;

// The parameters of a kernel without the launch bound at the end.
template <class... All>
struct Split<void (*)(All...)> {
    static constexpr unsigned count = sizeof...(All) - 1;
    static constexpr Parameter list[] = {parameter<All>()...};

    static constexpr unsigned bound = (Bound<All>::threads + ... + 0u);
    static_assert(bound > 0, "a kernel is declared in one piece: __global__ void [__launch_bounds__(...)] name(...)");

    template <size_t... i>
    static void call(void (*kernel)(All...), void** arguments, std::index_sequence<i...>) {
        kernel(pick<All>(arguments, i)...);
    }
    template <class T>
    static T pick(void** arguments, size_t i) {
        if constexpr (std::is_empty<T>::value)
            return {};
        else
            return *static_cast<T*>(arguments[i]);
    }
};

template <auto kernel>
struct Caller {
    using Parts = Split<decltype(kernel)>;
    static void call(void** arguments) { Parts::call(kernel, arguments, std::make_index_sequence<Parts::count + 1>()); }
    static constexpr Entry entry{call, Parts::list, Parts::count, Parts::bound};
};

}  // namespace emu

#define EMU_ENTRY(...) &emu::Caller<&__VA_ARGS__>::entry
