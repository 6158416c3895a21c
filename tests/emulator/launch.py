"""The C structures of emu/machine.h and emu/entry.h, and the memory for launches."""

from __future__ import annotations

import ctypes
from functools import cache

from .build import runtime
from .memory import reserve

STACK = 64 << 10  # bytes of a CUDA thread's stack
SHARED = 512 << 10  # bytes of a block's shared memory, gaps between variables included
THREADS = 1024


class Parameter(ctypes.Structure):
    """One parameter of a kernel: kind b"v" value, b"r" pointer to const, b"w" pointer; NumPy's name of the type."""

    _fields_ = [("kind", ctypes.c_char), ("type", ctypes.c_char_p), ("bytes", ctypes.c_size_t)]


class Entry(ctypes.Structure):
    """A compiled kernel."""

    _fields_ = [
        ("call", ctypes.c_void_p), ("parameters", ctypes.POINTER(Parameter)), ("count", ctypes.c_uint),
        ("bound", ctypes.c_uint),
    ]  # fmt: skip


class Region(ctypes.Structure):
    """Memory of the earlier kernels of a chain of dependent launches; mask: the bytes that they wrote."""

    _fields_ = [("start", ctypes.c_void_p), ("bytes", ctypes.c_size_t), ("mask", ctypes.c_void_p)]


class Launch(ctypes.Structure):
    """One launch, and its error afterwards. emu/machine.h describes the fields."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("cluster", ctypes.c_uint),
        ("dynamic_shared", ctypes.c_size_t),
        ("arguments", ctypes.c_void_p), ("stacks", ctypes.c_void_p), ("stack_bytes", ctypes.c_size_t),
        ("shared", ctypes.c_void_p), ("shared_bytes", ctypes.c_size_t), ("seed", ctypes.c_uint64),
        ("poison", ctypes.c_uint), ("dependent", ctypes.c_int), ("hide", ctypes.c_int), ("regions", ctypes.c_void_p),
        ("region_count", ctypes.c_size_t), ("triggered", ctypes.c_int), ("fenced", ctypes.c_int),
        ("message", ctypes.c_void_p), ("message_bytes", ctypes.c_size_t),
        ("faulted", ctypes.c_int), ("fault", ctypes.c_size_t), ("instruction", ctypes.c_size_t),
        ("fault_is_write", ctypes.c_int),
    ]  # fmt: skip

    def run(self, entry: Entry) -> str:
        """Run every thread of the launch; return the error, or ""."""
        stacks, shared = _memory()
        text = ctypes.create_string_buffer(1000)
        self.stacks, self.stack_bytes = stacks.ctypes.data, STACK
        self.shared, self.shared_bytes = shared.ctypes.data, SHARED
        self.message, self.message_bytes = ctypes.addressof(text), len(text)
        self.faulted = 0
        function = runtime().emu_run
        failed = function(ctypes.byref(self), ctypes.c_void_p(entry.call))
        return text.value.decode(errors="replace") if failed else ""


@cache
def _memory():
    return reserve(THREADS * STACK), reserve(SHARED)
