"""EmulatedDevice: runs kernels/*.cu on the CPU behind the Device interface, and checks every launch.

A launch raises KernelFault, which names kernel, block, thread and argument, if the kernel accesses memory outside an
array, waits at a barrier that other threads do not reach, reads data too early, and so on (README.md in this folder has
the list), or if host code passes wrong arguments.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostinato.ops.device import KERNELS, Dim, HostDevice

from .kernel import EmulatedKernel, base_name
from .memory import Memory
from .running import Chain, run

launched: Counter[tuple[str, str]] = Counter()  # (file, kernel without template arguments) -> launches of this process


class EmulatedDevice(HostDevice):
    """A GPU of compute capability 9.0 in ordinary memory.

    schedules: number of runs of each launch, from the same memory, with threads and blocks in different orders; all
    must leave the same bits. directory: source of the kernels. together: groups of instances that are
    compiled at once, by file.
    """

    name, arch, multiprocessors = "emulated", 90, 4

    def __init__(
        self,
        schedules: int = 1,
        directory: Path = KERNELS,
        together: Mapping[str, Sequence[Sequence[str]]] | None = None,
    ) -> None:
        self.schedules, self.directory, self.together = schedules, directory, together or {}
        self._memory, self._chain = Memory(), Chain()
        self._kernels: dict[tuple[str, str], EmulatedKernel] = {}

    def empty(self, shape: Dim, dtype: np.dtype) -> np.ndarray:
        return self._memory.new(shape, dtype)

    def upload(self, host: np.ndarray) -> np.ndarray:
        host = np.asarray(host)
        array = self.empty(host.shape, host.dtype)
        array[...] = host
        return array

    def write(self, array: np.ndarray, host: np.ndarray) -> None:
        if array.shape != host.shape or array.dtype != host.dtype:
            raise ValueError(f"write: expected {array.dtype} {array.shape}, found {host.dtype} {host.shape}")
        self._chain.clear()
        array[...] = host

    def read(self, array: np.ndarray) -> np.ndarray:
        self._chain.clear()
        return np.array(array)

    def synchronize(self) -> None:
        self._chain.clear()

    def kernel(self, file: str, name: str) -> EmulatedKernel:
        if (file, name) not in self._kernels:
            names = next((names for names in self.together.get(file, ()) if name in names), (name,))
            self._kernels[file, name] = EmulatedKernel.load(file, name, self.directory, tuple(names))
        return self._kernels[file, name]

    def clusters(self, kernel: EmulatedKernel, block: Dim, shared: int, cluster: int) -> int:
        return max(1, self.multiprocessors // cluster)

    def launch(
        self, kernel: EmulatedKernel, grid: Dim, block: Dim, args: Sequence[Any], shared=0, dependent=False, cluster=1
    ) -> None:
        launched[kernel.file, base_name(kernel.name)] += 1
        self.launches[kernel.name] += 1
        launch = kernel.launch(grid, block, shared, cluster)
        values = kernel.values(args, self._memory)
        pointers = (ctypes.c_void_p * max(1, len(values)))(*map(ctypes.addressof, values))
        launch.arguments = ctypes.addressof(pointers)
        if dependent:
            regions = self._chain.regions()
            launch.dependent, launch.region_count = True, len(regions)
            launch.regions = ctypes.addressof(regions) if len(regions) else None
        else:
            self._chain.clear()
        arrays = kernel.arrays(args, self._memory)
        self._chain.add(launch, arrays, run(kernel, launch, arrays, self.schedules))
