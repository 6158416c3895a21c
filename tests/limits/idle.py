"""A fake GPU that does nothing: every call succeeds, but no kernel runs, no copy is made and no graph replays."""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np

from ostinato.ops.device import HostDevice
from ostinato.tools.limits.lab import Lab


class Status(int):
    name = "SUCCESS"


class Array(np.ndarray):
    """A host array in place of a CuPy array."""

    set = MagicMock()
    data = property(lambda self: MagicMock(ptr=self.ctypes.data))  # pyright: ignore


class Bindings:
    """A module of cuda-bindings with real enums and structures; its functions do nothing and return success."""

    NODES = ("the only node",)

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._module, name)  # AttributeError for what is not there
        if isinstance(real, (type, int)) or not callable(real):
            return real
        if name == "cuGraphGetNodes":
            return lambda graph, count: (Status(0), self.NODES, len(self.NODES))
        if name == "cuGraphNodeGetType":
            return lambda node: (Status(0), self._module.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL)
        results = () if name in ("cuGraphLaunch", "cuStreamSynchronize", "cuCtxSynchronize") else (_address(),)
        return lambda *args: (Status(0), *results)


def _address() -> MagicMock:
    """A handle, or an array of graphs."""
    handle = MagicMock()
    handle.__int__.return_value = 4096
    return handle


class Library:
    """A fake ctypes.CDLL whose functions do nothing and return 0."""

    def __init__(self, path: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *args: 0


class IdleDevice(HostDevice):
    stream, arch = MagicMock(ptr=7), 90

    def empty(self, shape: Any, dtype: Any) -> Any:
        return np.empty(shape, dtype).view(Array)

    def upload(self, host: np.ndarray) -> Any:
        return np.array(host).view(Array)

    def kernel(self, file: str, name: str) -> None:
        pass

    def launch(self, *args: Any, **options: Any) -> None:
        pass


def idle_lab(driver: ModuleType, runtime: ModuleType) -> Lab:
    """A Lab on the fake GPU. driver, runtime: modules of cuda-bindings, for their names."""
    lab = object.__new__(Lab)
    lab.device, lab.arch = IdleDevice(), 90  # pyright: ignore
    lab.stream, lab.cupy, lab.linked = lab.device.stream, MagicMock(), MagicMock()
    lab.driver, lab.runtime = Bindings(driver), Bindings(runtime)
    lab.cupy.cuda.alloc_pinned_memory = bytearray
    lab.cupy.ndarray = lambda shape, dtype, memory: np.zeros(shape, dtype).view(Array)
    managed = ctypes.create_string_buffer(1 << 14)
    lab.cupy.cuda.malloc_managed = lambda size: MagicMock(ptr=ctypes.addressof(managed))
    return lab
