"""CupyDevice: an NVIDIA GPU as a Device. Imports CuPy and cuda-bindings when it is created."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DeviceError
from .arguments import Arguments
from .device import KERNELS, Device, Dim, headers_hash, kernel_source
from .driver import call


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
        self._clusters: dict[tuple, int] = {}
        self._arguments: dict[int, Arguments] = {}
        self._event = _event_class(cupy)
        self.end_at_fork()

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

    def total_memory(self):
        return self._cupy.cuda.runtime.memGetInfo()[1]

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

    def clusters(self, kernel, block, shared, cluster):
        key = kernel.name, block, shared, cluster
        if key not in self._clusters:
            kernel.allow(shared)
            config = self._config((cluster,), block, shared, False, cluster)
            sizes = f"{cluster} blocks of {block} threads with {shared} B shared"
            refused = f"{kernel.name}: a cluster of {sizes} does not fit the GPU"
            ask = self._driver.cuOccupancyMaxActiveClusters
            found = call(ask, kernel.handle, config, failed=lambda _, status: DeviceError(f"{refused}: {status.name}"))
            if not found:
                raise DeviceError(refused)
            self._clusters[key] = found
        return self._clusters[key]

    def launch(self, kernel, grid, block, args, shared=0, dependent=False, cluster=1):
        kernel.allow(shared)
        key = grid, block, shared, dependent, cluster
        config = self._configs.get(key)
        if config is None:
            config = self._configs[key] = self._config(*key)
        packed = self._arguments.get(len(args)) or self._arguments.setdefault(len(args), Arguments(len(args)))
        packed.fill(args)
        # Not through `call`, which would slow down every eager launch.
        (status,) = self._driver.cuLaunchKernelEx(config, kernel.handle, packed.address, 0)
        if status:
            sizes = f"grid {grid}, block {block}, cluster {cluster}, {shared} B shared"
            raise DeviceError(f"launch of {kernel.name} with {sizes}: {status.name}")
        self.launches[kernel.name] += 1

    def _config(self, grid: Dim, block: Dim, shared: int, dependent: bool, cluster: int) -> Any:
        """A CUlaunchConfig. Callers cache it, because creating one takes longer than a launch."""
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

    def record_event(self):
        return self.stream.record(self._event())

    def wait(self, event):
        try:
            event.synchronize()
        except self._cupy.cuda.runtime.CUDARuntimeError as e:
            raise DeviceError(f"{self.name}: {e}") from e

    def elapsed(self, first, last):
        self.synchronize()
        return self._cupy.cuda.get_elapsed_time(first, last)

    def about(self):
        return {"device": self.name, **_versions(self._cupy.cuda.runtime)}


@dataclass
class _Function:
    """A compiled kernel of CupyDevice."""

    name: str  # with template arguments
    raw: Any  # cupy.RawKernel, which keeps the module loaded
    handle: Any  # CUfunction
    shared: int  # current limit of dynamic shared memory in bytes

    def allow(self, shared: int) -> None:
        """Raise the limit of dynamic shared memory to `shared` bytes."""
        if shared > self.shared:
            self.raw.max_dynamic_shared_size_bytes = self.shared = shared


def _event_class(cupy: Any) -> type:
    """CuPy's Event, except that a forked child does not destroy the events it inherits, which would be an error."""
    process = os.getpid()

    class Event(cupy.cuda.Event):
        def __del__(self) -> None:
            if os.getpid() == process:
                super().__del__()

    return Event


def _versions(runtime: Any) -> dict[str, str]:
    """Versions of the driver, of the CUDA it supports, and of the CUDA runtime. runtime: cupy.cuda.runtime."""
    cuda = {"CUDA of the driver": runtime.driverGetVersion(), "CUDA runtime": runtime.runtimeGetVersion()}
    return {"driver": _driver_release(), **{name: f"{v // 1000}.{v % 1000 // 10}" for name, v in cuda.items()}}


def _driver_release() -> str:
    """Version of the NVIDIA kernel module, such as "580.159.04"."""
    try:
        found = re.search(r"\s(\d+\.[\d.]+)\s", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        found = None
    return found[1] if found else "unknown"
