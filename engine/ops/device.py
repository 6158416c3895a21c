"""Device: the interface between operations and hardware (memory, copies, kernels, events), and HostDevice for NumPy.

gpu.py implements it for a GPU. The tests implement it with an emulator and run the same host code.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..errors import DeviceError
from ..process import forks

KERNELS = Path(__file__).resolve().parents[1] / "kernels"  # installed: ostinato/kernels
if not KERNELS.is_dir():  # in a checkout engine/ stands beside kernels/
    KERNELS = Path(__file__).resolve().parents[2] / "kernels"

HUGE = 4 << 20  # bytes of an array from which on NumPy asks for huge pages
Dim = tuple[int, ...]  # of a grid or block: 1 to 3 sizes


@cache
def kernel_source(file: str) -> str:
    """Text of kernels/<file>."""
    return (KERNELS / file).read_text(encoding="utf-8")


@cache
def headers_hash() -> str:
    """Digest of all headers in kernels/, for cache keys: compile caches do not see included files."""
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(KERNELS.glob("*.cuh")))).hexdigest()[:16]


class Device:
    """Memory and kernels of one device. Arrays are NumPy's or CuPy's. Work runs in the order in which it is issued."""

    name: str  # for messages
    arch: int  # compute capability times ten: 80, 90, 120
    multiprocessors: int  # number of SMs; 0: the device has no kernels
    stream: Any = None  # the stream of a GPU, on which work is issued and captured; None on a CPU
    cache_bytes: int = 0  # size of the last-level cache; 0 = unknown

    @property
    def is_gpu(self) -> bool:
        """Whether work is issued to a stream and done later; else a call has done its work when it returns."""
        return self.stream is not None

    @cached_property
    def launches(self) -> Counter[str]:
        """Name of a kernel or library function -> number of launches so far, without graph replays."""
        return Counter()

    def end_at_fork(self) -> None:
        """Make every method raise DeviceError in processes forked from now on."""
        forks.in_child(self._end)

    def _end(self) -> None:
        for name, value in vars(Device).items():
            if callable(value) and not name.startswith("_"):
                setattr(self, name, self._refuse)
        forks.never_destroy(self)

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise DeviceError(f"{self.name}: expected the process that opened it, found one forked from it, where CUDA "
                          "does not work; open the model after the fork, or start processes by spawn")  # fmt: skip

    def check(self) -> None:
        """DeviceError if this process was forked from the one that opened the device, and cannot use it."""

    def empty(self, shape: Dim, dtype: np.dtype) -> Any:
        """A new array, contents unspecified."""
        raise NotImplementedError

    def upload(self, host: np.ndarray) -> Any:
        """A new device array equal to `host`."""
        raise NotImplementedError

    def write(self, array: Any, host: np.ndarray) -> None:
        """Copy `host` into an existing device array of the same shape and dtype."""
        raise NotImplementedError

    def read(self, array: Any) -> np.ndarray:
        """Copy a device array to the host; waits for the work issued before."""
        raise NotImplementedError

    def pinned(self, shape: Dim, dtype: np.dtype) -> tuple[np.ndarray, Any]:
        """Pinned host memory that kernels write to directly: (host array, device array), contents unspecified.

        The host sees writes of work after it has waited for that work."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Wait until all issued work is done; raises DeviceError if any of it failed."""
        raise NotImplementedError

    def free_memory(self) -> int:
        """Bytes that could still be allocated."""
        raise NotImplementedError

    def total_memory(self) -> int:
        """Total memory of the device in bytes."""
        raise NotImplementedError

    def trim(self) -> None:
        """Return unused memory of the allocator to the system."""

    def kernel(self, file: str, name: str) -> Any:
        """The __global__ function `name` (template arguments written out: "scale<bf16, 4>") of kernels/<file>."""
        raise NotImplementedError

    def local_bytes(self, kernel: Any) -> int:
        """Bytes of local memory per thread of a kernel; more than 0 if registers spill."""
        return 0

    def clusters(self, kernel: Any, block: Dim, shared: int, cluster: int) -> int:
        """Maximum number of clusters of `cluster` blocks that are resident together."""
        raise NotImplementedError

    def launch(
        self, kernel: Any, grid: Dim, block: Dim, args: Sequence[Any], shared: int = 0, dependent: bool = False,
        cluster: int = 1,
    ) -> None:  # fmt: skip
        """Run a kernel. args: device arrays, NumPy scalars of the parameter's exact type, or None for a null pointer.

        shared: bytes of dynamic shared memory. dependent: programmatic dependent launch; the kernel may start before
        its predecessor has ended, and must call griddepcontrol.wait before it reads the predecessor's writes.
        cluster: number of adjacent blocks along x in a thread block cluster; at most 8, and 1 below sm_90."""
        raise NotImplementedError

    def record_event(self) -> Any:
        """An event that completes when all work issued before it is done, for `wait` and `elapsed`; does not wait."""
        raise NotImplementedError

    def wait(self, event: Any) -> None:
        """Wait for an event, not for work issued after it. DeviceError if any work has failed."""
        raise NotImplementedError

    def elapsed(self, first: Any, last: Any) -> float:
        """Milliseconds between two events; waits for all issued work."""
        raise NotImplementedError

    def about(self) -> dict[str, str]:
        """A description for reports: device, driver, CUDA versions."""
        return {"device": self.name}


class HostDevice(Device):
    """The CPU with NumPy arrays; has no kernels."""

    name, arch, multiprocessors = "CPU", 0, 0

    def empty(self, shape, dtype):
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < HUGE:
            return np.empty(shape, dtype)
        # NumPy asks for huge pages: each touched place of the KV cache would take 2 MB.
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return np.ndarray(shape, dtype, memory)

    def upload(self, host):
        return np.array(host)

    def write(self, array, host):
        array[...] = host

    def read(self, array):
        return np.array(array)

    def pinned(self, shape, dtype):
        array = self.empty(shape, dtype)
        return array, array

    def synchronize(self):
        pass

    def free_memory(self):
        # Linux says what it would give back as well, such as the pages of files that were read
        with suppress(OSError, StopIteration), open("/proc/meminfo", encoding="ascii") as f:
            return 1024 * next(int(line.split()[1]) for line in f if line.startswith("MemAvailable:"))
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def total_memory(self):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def record_event(self):
        return time.perf_counter()

    def wait(self, event):
        pass

    def elapsed(self, first, last):
        return (last - first) * 1e3
