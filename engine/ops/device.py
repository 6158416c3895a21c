"""What a backend needs of a machine: memory, copies, kernels. HostDevice is NumPy's, CupyDevice a GPU's.

The one seam between the operations and the hardware: tests put an emulated device here and run the same host code.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DeviceError
from .arguments import word
from .versions import versions

KERNELS = Path(__file__).resolve().parents[1] / "kernels"  # installed: ostinato/kernels
if not KERNELS.is_dir():  # in a checkout engine/ stands beside kernels/
    KERNELS = Path(__file__).resolve().parents[2] / "kernels"

Dim = tuple[int, ...]  # of a grid or block: 1 to 3 sizes


@cache
def kernel_source(file: str) -> str:
    """Text of kernels/<file>."""
    return (KERNELS / file).read_text(encoding="utf-8")


@cache
def headers_hash() -> str:
    """Digest of every header in kernels/: compilers' caches do not look into included files."""
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(KERNELS.glob("*.cuh")))).hexdigest()[:16]


class Device:
    """Memory and kernels of one machine. Arrays are NumPy's or CuPy's; work is ordered as it was issued."""

    name: str  # what doctor and the logs call it
    arch: int  # compute capability times ten: 80, 90, 120
    multiprocessors: int  # 0: no kernels
    stream: Any = None  # where a GPU's work is issued and captured; None: there is nothing to capture
    cache_bytes: int = 0  # of the last cache before the memory; 0 = not known

    @cached_property
    def launches(self) -> Counter[str]:
        """How often each kernel, or library function, was launched so far, by name; replays of a graph do not count."""
        return Counter()

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
        """The contents of a device array; waits for the work issued before."""
        raise NotImplementedError

    def pinned(self, shape: Dim, dtype: np.dtype) -> tuple[np.ndarray, Any]:
        """Memory of the host that kernels write to directly, contents unspecified: the host's array, the device's.

        What work wrote there is to be seen by the host once it has waited for that work."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Wait until all issued work is done; raises DeviceError if any of it failed."""
        raise NotImplementedError

    def free_memory(self) -> int:
        """Bytes that could still be allocated."""
        raise NotImplementedError

    def trim(self) -> None:
        """Give memory that no array uses any more back to the machine."""

    def kernel(self, file: str, name: str) -> Any:
        """The __global__ function `name` (template arguments written out: "scale<bf16, 4>") of kernels/<file>."""
        raise NotImplementedError

    def local_bytes(self, kernel: Any) -> int:
        """Bytes of local memory a thread of a kernel has: of registers that were spilled."""
        return 0

    def launch(self, kernel: Any, grid: Dim, block: Dim, args: Sequence[Any], shared=0, dependent=False, cluster=1):
        """Run a kernel. args: device arrays, NumPy scalars of the parameter's exact type, or None for a null pointer.

        shared: bytes of dynamic shared memory. dependent: the kernel may start before its predecessor has ended,
        because it waits itself (griddepcontrol.wait) before touching what that one wrote. cluster: blocks, neighbours
        along x, that run at the same time and reach each other's shared memory; at most 8, and 1 below sm_90."""
        raise NotImplementedError

    def mark(self) -> Any:
        """The moment at which the work issued before is done, for `wait` and `elapsed`; does not wait."""
        raise NotImplementedError

    def wait(self, mark: Any) -> None:
        """Wait for a mark, not for what was issued after it; raises DeviceError if any work has failed."""
        raise NotImplementedError

    def elapsed(self, first: Any, last: Any) -> float:
        """Milliseconds between two marks; waits for all issued work."""
        raise NotImplementedError

    def about(self) -> dict[str, str]:
        """What reports say of the machine: the device, its driver, the CUDA versions."""
        return {"device": self.name}


class HostDevice(Device):
    """The CPU with NumPy arrays; has no kernels."""

    name, arch, multiprocessors = "CPU", 0, 0

    def empty(self, shape, dtype):
        return np.empty(shape, dtype)

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
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def mark(self):
        return time.perf_counter()

    def wait(self, mark):
        pass

    def elapsed(self, first, last):
        return (last - first) * 1e3


class CupyDevice(Device):
    """One NVIDIA GPU. All work goes to one non-blocking stream, the only kind that can be captured."""

    def __init__(self) -> None:
        try:
            import cupy
            from cuda.bindings import driver
        except ImportError as e:
            raise DeviceError(f"backend cuda needs CuPy and cuda-bindings, and {e.name} is not installed; "
                              "install ostinato[cuda12] or ostinato[cuda13]") from e  # fmt: skip
        try:
            found = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as e:
            raise DeviceError(f"backend cuda needs an NVIDIA GPU and its driver; CUDA says: {e}") from e
        if not found:
            raise DeviceError("backend cuda needs an NVIDIA GPU; the driver sees none")
        self._cupy, self._driver = cupy, driver
        self.stream = cupy.cuda.Stream(non_blocking=True)
        about = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        self.name = about["name"].decode()
        self.arch = about["major"] * 10 + about["minor"]
        self.multiprocessors, self.cache_bytes = about["multiProcessorCount"], about["l2CacheSize"]
        self.functions: dict[tuple[str, str], _Function] = {}
        self._configs: dict[tuple, Any] = {}

    def empty(self, shape, dtype):
        with self.stream:
            return self._cupy.empty(shape, dtype)

    def upload(self, host):
        with self.stream:
            return self._cupy.asarray(np.ascontiguousarray(host))

    def write(self, array, host):
        if array.shape != host.shape or array.dtype != host.dtype:
            raise ValueError(f"write: expected {array.dtype} {array.shape}, found {host.dtype} {host.shape}")
        array.set(np.ascontiguousarray(host), stream=self.stream)

    def read(self, array):
        return self._cupy.asnumpy(array, stream=self.stream)

    def pinned(self, shape, dtype):
        cuda, count = self._cupy.cuda, math.prod(shape)
        memory = cuda.alloc_pinned_memory(count * dtype.itemsize)  # mapped: the GPU knows it by the same address
        seen = cuda.UnownedMemory(memory.ptr, count * dtype.itemsize, memory, cuda.Device().id)
        host = np.frombuffer(memory, dtype, count).reshape(shape)
        return host, self._cupy.ndarray(shape, dtype, cuda.MemoryPointer(seen, 0))

    def synchronize(self):
        self.wait(self.stream)

    def free_memory(self):
        pool = self._cupy.get_default_memory_pool()
        return self._cupy.cuda.runtime.memGetInfo()[0] + pool.free_bytes()

    def trim(self):
        self._cupy.get_default_memory_pool().free_all_blocks()

    def kernel(self, file, name):
        if (file, name) not in self.functions:
            options = ("-std=c++17", f"-I{KERNELS}", f"-DHEADERS_{headers_hash()}")
            module = self._cupy.RawModule(code=kernel_source(file), options=options, name_expressions=[name])
            kernel = module.get_function(name)
            self.functions[file, name] = _Function(
                name, kernel, self._driver.CUfunction(kernel.kernel.ptr), kernel.max_dynamic_shared_size_bytes
            )
        return self.functions[file, name]

    def local_bytes(self, kernel):
        return kernel.raw.local_size_bytes

    def launch(self, kernel, grid, block, args, shared=0, dependent=False, cluster=1):
        if shared > kernel.shared:
            kernel.raw.max_dynamic_shared_size_bytes = kernel.shared = shared
        key = grid, block, shared, dependent, cluster
        config = self._configs.get(key)
        if config is None:
            config = self._configs[key] = self._config(*key)
        # One 8-byte word an argument: a kernel reads the first bytes of it, as many as its parameter has.
        words = (ctypes.c_uint64 * len(args))(*[word(a) for a in args])
        first = ctypes.addressof(words)
        pointers = (ctypes.c_void_p * len(args))(*range(first, first + 8 * len(args), 8))
        (status,) = self._driver.cuLaunchKernelEx(config, kernel.handle, ctypes.addressof(pointers), 0)
        if status:
            sizes = f"grid {grid}, block {block}, cluster {cluster}, {shared} B shared"
            raise DeviceError(f"launch of {kernel.name} with {sizes}: {status.name}")
        self.launches[kernel.name] += 1

    def _config(self, grid: Dim, block: Dim, shared: int, dependent: bool, cluster: int) -> Any:
        """A CUlaunchConfig; kept, as making one takes longer than a launch."""
        config = self._driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = (*grid, 1, 1)[:3]
        config.blockDimX, config.blockDimY, config.blockDimZ = (*block, 1, 1)[:3]
        config.sharedMemBytes, config.hStream = shared, self.stream.ptr
        ids, attributes = self._driver.CUlaunchAttributeID, []
        if dependent and self.arch >= 90:
            attributes.append(attribute := self._driver.CUlaunchAttribute())
            attribute.id = ids.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
        if cluster > 1:
            attributes.append(attribute := self._driver.CUlaunchAttribute())
            attribute.id = ids.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            size = attribute.value.clusterDim
            size.x, size.y, size.z = cluster, 1, 1
        if attributes:
            config.attrs, config.numAttrs = attributes, len(attributes)
        return config

    def mark(self):
        return self.stream.record()

    def wait(self, mark):
        try:
            mark.synchronize()
        except self._cupy.cuda.runtime.CUDARuntimeError as e:
            raise DeviceError(f"{self.name}: {e}") from e

    def elapsed(self, first, last):
        self.synchronize()
        return self._cupy.cuda.get_elapsed_time(first, last)

    def about(self):
        return {"device": self.name, **versions(self._cupy.cuda.runtime)}


@dataclass
class _Function:
    """A compiled kernel of CupyDevice."""

    name: str  # as it was asked for
    raw: Any  # cupy.RawKernel, which keeps the module loaded
    handle: Any  # CUfunction
    shared: int  # bytes of dynamic shared memory it may have so far
