"""A compiled kernel instance, and the check of its launch arguments."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ostinato.ops.device import Dim

from . import build
from .launch import Entry, Launch
from .memory import Allocation, Memory

MAX_SHARED = 232448  # bytes a block may have on sm_90
MAX_CLUSTER = 8  # blocks


class KernelFault(RuntimeError):
    """A fault of a kernel, or of the host code that launched it."""


@dataclass(frozen=True)
class Argument:
    """An array argument of a launch."""

    index: int
    allocation: Allocation
    written: bool  # the parameter is not a pointer to const


@dataclass(frozen=True)
class EmulatedKernel:
    """One instance of a __global__ function, compiled for the CPU."""

    file: str
    name: str
    path: Path
    loaded: ctypes.CDLL
    entry: Entry
    parameters: tuple[str, ...]

    @classmethod
    def load(cls, file: str, name: str, directory: Path, names: tuple[str, ...]) -> EmulatedKernel:
        """Load the instance `name` of <directory>/<file>, compiled with all of `names` unless that was done before."""
        path = build.shared_object(file, names, directory)
        build.runtime()  # the kernel is linked to it
        loaded = ctypes.CDLL(str(path))
        entries = (ctypes.POINTER(Entry) * len(names)).in_dll(loaded, "emu_entries")
        entry = entries[names.index(name)].contents
        parameters = build.parameter_names(file, directory).get(base_name(name), [])
        return cls(file, name, path, loaded, entry, tuple(parameters))

    def __str__(self) -> str:
        return f"{self.file} {self.name}"

    def argument(self, i: int) -> str:
        """The name of argument `i` in messages."""
        return f"argument {i} ({self.parameters[i]})" if i < len(self.parameters) else f"argument {i}"

    def launch(self, grid: Dim, block: Dim, shared: int, cluster: int) -> Launch:
        """A launch with these sizes. KernelFault if a GPU would reject them."""
        sizes, threads = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
        if min(sizes) < 1 or max(sizes[1:]) > 65535:
            raise KernelFault(f"{self}: grid {grid} is out of range")
        if min(threads) < 1 or np.prod(threads) > self.entry.bound:
            raise KernelFault(f"{self}: block {block}, the kernel takes at most {self.entry.bound} threads")
        if not 0 <= shared <= MAX_SHARED:
            raise KernelFault(f"{self}: {shared} bytes of shared memory, at most {MAX_SHARED}")
        if not 1 <= cluster <= MAX_CLUSTER or sizes[0] % cluster:
            expected = f"1 to {MAX_CLUSTER}, a divisor of the grid's first size"
            raise KernelFault(f"{self}: grid {grid} in clusters of {cluster}: expected {expected}")
        launch = Launch(dynamic_shared=shared, cluster=cluster)
        launch.grid[:], launch.block[:] = sizes, threads
        return launch

    def values(self, args: Sequence[Any], memory: Memory) -> list[Any]:
        """The arguments as C objects. KernelFault if they do not match the parameters."""
        if len(args) != self.entry.count:
            raise KernelFault(f"{self}: expected {self.entry.count} arguments {self.parameters}, found {len(args)}")
        return [self._value(i, a, memory) for i, a in enumerate(args)]

    def arrays(self, args: Sequence[Any], memory: Memory) -> list[Argument]:
        """The arrays among the arguments."""
        found = [(i, memory.find(a.ctypes.data)) for i, a in enumerate(args) if isinstance(a, np.ndarray)]
        return [Argument(i, a, self.entry.parameters[i].kind == b"w") for i, a in found if a]

    def _value(self, i: int, value: Any, memory: Memory) -> Any:
        parameter = self.entry.parameters[i]
        expected, what = parameter.type.decode(), f"{self}: {self.argument(i)}"
        if parameter.kind == b"v":
            if not isinstance(value, np.generic) or value.dtype.name != expected:
                found = value.dtype.name if isinstance(value, np.generic) else type(value).__name__
                raise KernelFault(f"{what}: expected a NumPy {expected}, found {found}")
            return (ctypes.c_char * parameter.bytes).from_buffer_copy(value.tobytes())
        if value is None:
            return ctypes.c_void_p(None)
        if not isinstance(value, np.ndarray):
            raise KernelFault(f"{what}: expected a device array or None, found {type(value).__name__}")
        if value.size and memory.find(value.ctypes.data) is None:
            raise KernelFault(f"{what}: expected a device array, found one of the host")
        if expected and expected != value.dtype.name and "uint8" not in (expected, value.dtype.name):
            raise KernelFault(f"{what}: expected {expected}, found {value.dtype.name}")
        return ctypes.c_void_p(value.ctypes.data)


def base_name(name: str) -> str:
    """The kernel's name without template arguments."""
    return name.split("<")[0].strip()
