// Turns faults of a kernel into messages: invalid memory accesses, and the findings of the compiler's checks.

#include "internal.h"

#include <signal.h>
#include <ucontext.h>

#include <cstdarg>
#include <cstdio>

namespace emu {

namespace {

constexpr int signals[] = {SIGSEGV, SIGBUS, SIGFPE};
struct sigaction before[3];
stack_t stack_before;
alignas(64) char signal_stack[65536];

size_t describe_thread(char* out, size_t size) {
    int n = 0;
    if (block) n = snprintf(out, size, "block (%u, %u, %u)", block->index.x, block->index.y, block->index.z);
    if (block && self)
        n += snprintf(out + n, size - size_t(n), ", thread (%u, %u, %u)", self->index.x, self->index.y, self->index.z);
    n += snprintf(out + n, size - size_t(n), ": ");
    return size_t(n);
}

void on_signal(int number, siginfo_t* info, void* raw) {
    if (!self) {  // not a fault of a kernel: restore the default behaviour
        release_faults();
        return;
    }
    const ucontext_t* context = static_cast<ucontext_t*>(raw);
    if (number == SIGFPE) fail("integer division by zero");
    launch->faulted = 1;
    launch->fault = reinterpret_cast<uintptr_t>(info->si_addr);
    for (const auto& b : resident)
        if (launch->fault - reinterpret_cast<uintptr_t>(b->shared_end) < unreadable) launch->shared = b->shared;
#if defined(__x86_64__)
    launch->fault_is_write = context->uc_mcontext.gregs[REG_ERR] >> 1 & 1;
    launch->instruction = uintptr_t(context->uc_mcontext.gregs[REG_RIP]);
#else
    (void)context;
#endif
    fail("accesses memory that it must not");
}

}  // namespace

void fail(const char* format, ...) {
    size_t n = describe_thread(launch->message, launch->message_bytes);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(launch->message + n, launch->message_bytes - n, format, arguments);
    va_end(arguments);
    siglongjmp(give_up, 1);
}

void catch_faults() {
    stack_t stack{};
    stack.ss_sp = signal_stack;
    stack.ss_size = sizeof signal_stack;
    sigaltstack(&stack, &stack_before);
    struct sigaction action{};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 3; i++) sigaction(signals[i], &action, &before[i]);
}

void release_faults() {
    for (int i = 0; i < 3; i++) sigaction(signals[i], &before[i], nullptr);
    sigaltstack(&stack_before, nullptr);
}

}  // namespace emu

// The compiler (-fsanitize) calls these before it would do what is undefined. Their data begins with the place.
struct Place {
    const char* file;
    uint32_t line, column;
};

extern "C" {

[[noreturn]] void __ubsan_handle_type_mismatch_v1_abort(Place* place, uintptr_t address) {
    emu::fail("%s:%u: misaligned access to address %#zx", place->file, place->line, size_t(address));
}

[[noreturn]] void __ubsan_handle_out_of_bounds_abort(Place* place, uintptr_t index) {
    emu::fail("%s:%u: index %lld is outside a fixed-size array", place->file, place->line,
              static_cast<long long>(index));
}

[[noreturn]] void __ubsan_handle_shift_out_of_bounds_abort(Place* place, uintptr_t, uintptr_t) {
    emu::fail("%s:%u: shift by more bits than the value has", place->file, place->line);
}

[[noreturn]] void __ubsan_handle_divrem_overflow_abort(Place* place, uintptr_t, uintptr_t) {
    emu::fail("%s:%u: integer division by zero", place->file, place->line);
}
}
