// Fibers: stacks and context switches.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)

// Saves the callee-saved registers on the stack and the stack pointer in *from, and continues at `to`.
extern "C" void emu_switch(void** from, void* to);
asm(".text\n"
    ".type emu_switch, @function\n"
    "emu_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  popq %rcx\n  jmp *%rcx\n"
    ".size emu_switch, . - emu_switch\n");

namespace emu {

// A context that starts `entry`, which never returns, on the stack that ends at `top`.
inline void* new_context(char* top, void (*entry)()) {
    void** sp = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(15));
    *--sp = nullptr;  // where entry would return to; keeps the stack aligned as after a call
    *--sp = reinterpret_cast<void*>(entry);
    return sp - 6;  // six registers with arbitrary values
}

inline void switch_context(void** from, void* to) {
    emu_switch(from, to);
}

}  // namespace emu

#else  // any other CPU: the C library's contexts, slower because they save the signal mask

#include <ucontext.h>

namespace emu {

// The context lies at the top of its own stack.
inline void* new_context(char* top, void (*entry)()) {
    constexpr size_t own = (sizeof(ucontext_t) + 63) / 64 * 64;
    ucontext_t* context = reinterpret_cast<ucontext_t*>(top - own);
    getcontext(context);
    context->uc_stack.ss_sp = top - own - 32768;
    context->uc_stack.ss_size = 32768;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    return context;
}

inline void switch_context(void** from, void* to) {
    ucontext_t here;
    *from = &here;
    swapcontext(&here, static_cast<ucontext_t*>(to));
}

}  // namespace emu

#endif
