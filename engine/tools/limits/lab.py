"""What a probe works with. One Lab a probe: its stream and its graphs are its own.

With `linking.py` the only module of this package that imports CuPy and cuda-bindings: probes reach them as lab.cupy,
lab.driver and lab.runtime.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np

from ...errors import DeviceError
from ...graph.capture import captured
from ...ops.driver import call
from ...ops.gpu import CupyDevice
from . import linking, sources
from .probe import CannotRun, Refused, Wrong

N = 1000  # elements of most arrays; no multiple of THREADS, so that the last block has idle threads
THREADS = 128


class Graph:
    """A graph (CUgraph), instantiated by default; kept until the process ends, which is soon."""

    def __init__(self, lab: Lab, graph: Any, flags: int | None = 0) -> None:
        """flags: of CUgraphInstantiate_flags; None: not instantiated."""
        self._lab, self.graph = lab, graph
        self.executable: Any = None if flags is None else lab.ask(lab.driver.cuGraphInstantiate, graph, flags)

    def start(self, stream: Any = None) -> None:
        """Replay on a stream (the lab's); does not wait."""
        self._lab.ask(self._lab.driver.cuGraphLaunch, self.executable, (stream or self._lab.stream).ptr)

    def launch(self, times: int = 1) -> None:
        """Replay and wait."""
        for _ in range(times):
            self.start()
        self._lab.synchronize()

    def nodes(self, kind: str = "") -> list[Any]:
        """Its nodes of a kind ("KERNEL", "MEM_ALLOC", ...), or all."""
        driver = self._lab.driver
        nodes = self._lab.ask(driver.cuGraphGetNodes, self.graph, 0)[1]
        nodes = self._lab.ask(driver.cuGraphGetNodes, self.graph, nodes)[0]
        types = [self._lab.ask(driver.cuGraphNodeGetType, node) for node in nodes]
        wanted = getattr(driver.CUgraphNodeType, f"CU_GRAPH_NODE_TYPE_{kind}") if kind else None
        return [node for node, t in zip(nodes, types, strict=True) if kind == "" or t == wanted]


class Lab:
    """A fresh stream on the GPU, and what probes do with it, inside a `with`. DeviceError without a GPU."""

    def __init__(self) -> None:
        self.device = CupyDevice()
        import cupy
        from cuda.bindings import driver, runtime

        self.cupy, self.driver, self.runtime = cupy, driver, runtime
        self.stream = self.device.stream
        self.arch = self.device.arch

    def __enter__(self) -> Lab:
        """Our stream is CuPy's current one, where RawModule's kernels go; Stream.use() would not outlast a `with`."""
        self.stream.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.stream.__exit__(*error)

    # -- arrays and kernels ---------------------------------------------------------------------------------------

    def array(self, values: Any = range(N), dtype: Any = np.float32) -> Any:
        """A device array of these values: 0, 1, 2, ... if nothing is given."""
        return self.device.upload(np.asarray(values, dtype))

    def expect(self, what: str, got: Any, right: Any) -> None:
        """Wrong unless an array holds exactly these numbers."""
        found = got if isinstance(got, np.ndarray) else self.device.read(got)
        right = np.broadcast_to(np.asarray(right, found.dtype), found.shape)
        if not np.array_equal(found, right):
            i = int(np.flatnonzero(found.ravel() != right.ravel())[0])
            raise Wrong(f"{what}: expected {right.ravel()[i]:g} at {i}, found {found.ravel()[i]:g}")

    @cached_property
    def plain(self) -> Any:
        """The module of sources.PLAIN."""
        return self.cupy.RawModule(code=sources.PLAIN, options=("-std=c++17",))

    @cached_property
    def linked(self) -> Any:
        """The module of sources.DEVICE_RUNTIME. CannotRun if it cannot be built here."""
        return linking.module(self.cupy, self.driver, sources.DEVICE_RUNTIME, self.arch)

    def run(self, name: str, *arrays: Any, grid: int = 0, block: int = THREADS, shared: int = 0) -> None:
        """Launch a kernel of sources.PLAIN over the elements of the first array; its size is the last argument."""
        n = arrays[0].size
        kernel = self.plain.get_function(name)
        kernel((grid or -(-n // block),), (block,), (*arrays, np.int32(n)), shared_mem=shared)

    def single(self, name: str, *args: Any) -> None:
        """Launch one thread of a kernel of sources.DEVICE_RUNTIME."""
        self.linked.get_function(name)((1,), (1,), args)

    def other_stream(self) -> Any:
        """One more stream that is not ordered with the legacy one."""
        return self.cupy.cuda.Stream(non_blocking=True)

    def events(self, timing: bool = False) -> tuple[Any, Any]:
        """Two events."""
        return tuple(self.cupy.cuda.Event(disable_timing=not timing) for _ in range(2))

    # -- asking CUDA ----------------------------------------------------------------------------------------------

    def ask(self, function: Callable[..., tuple], *args: Any) -> Any:
        """What a function of cuda-bindings returns beside its status; Refused if that is an error."""
        return call(function, *args, failed=lambda name, status: Refused(status.name, self.describe(status)))

    def describe(self, status: Any) -> str:
        """The text of an error."""
        describe = self.driver.cuGetErrorString
        if type(status).__name__ == "cudaError_t":
            describe = self.runtime.cudaGetErrorString
        text = describe(status)[1]
        return text.decode() if text else ""

    def attempt(self, issue: Callable[[], Any], stream: Any = None) -> None:
        """Call issue() with a stream (ours) as CuPy's current one; Refused for what CuPy is answered, or answers."""
        try:
            with stream or self.stream:
                issue()
        except Exception as e:
            if (refused := refusal(e)) is not None:
                raise refused from e
            raise

    def synchronize(self) -> None:
        """Wait for the stream; Refused if what ran on it failed."""
        self.ask(self.driver.cuStreamSynchronize, self.stream.ptr)

    def settle(self) -> None:
        """Wait for the whole GPU: a copy that is not on our stream may still be under way."""
        self.ask(self.driver.cuCtxSynchronize)

    def capture(
        self, record: Callable[[], Any], mode: str = "RELAXED", flags: int | None = 0, stream: Any = None
    ) -> Graph:
        """The graph of what record() issues on a stream (ours). mode: of CUstreamCaptureMode. flags: see Graph.

        Refused with whatever a call of record() was answered, and with what became of the capture by that."""
        stream = stream or self.stream
        self.plain.get_function("add_one")  # loaded before: that is no question of this package
        self.synchronize()
        self.ask(self.driver.cuStreamBeginCapture, stream.ptr, self._mode(mode))
        return Graph(self, self._recorded(record, stream, new=True), flags)

    def capture_into(self, graph: Any, after: list[Any], record: Callable[[], Any]) -> None:
        """Add what record() issues to an existing CUgraph, behind the nodes `after`. Refused as by capture()."""
        begin = self.driver.cuStreamBeginCaptureToGraph
        self.ask(begin, self.stream.ptr, graph, after, None, len(after), self._mode("RELAXED"))
        self._recorded(record, self.stream, new=False)

    def _mode(self, name: str) -> Any:
        return getattr(self.driver.CUstreamCaptureMode, f"CU_STREAM_CAPTURE_MODE_{name}")

    def _recorded(self, record: Callable[[], Any], stream: Any, new: bool) -> Any:
        """The CUgraph of a capture that has begun. new: nobody else has it, so that it goes if the capture fails."""

        def tell(error: BaseException, graph: Any) -> None:
            if isinstance(error, Refused):
                error.detail = "the capture is lost" if graph is None else "the capture goes on"
            if new and graph is not None:
                self.driver.cuGraphDestroy(graph)

        def end() -> Any:
            return self.ask(self.driver.cuStreamEndCapture, stream.ptr)

        return captured(lambda: self.attempt(record, stream), end, tell)

    def needs(self, arch: int = 0, device_runtime: bool = False) -> None:
        """CannotRun on a GPU older than this compute capability times ten, or without DEVICE_RUNTIME's kernels."""
        if self.arch < arch:
            raise CannotRun(f"needs compute capability {arch / 10:.1f}, this GPU has {self.arch / 10:.1f}")
        if device_runtime:
            self.linked.get_function("add_one")

    def healthy(self) -> None:
        """Raises if the GPU no longer works for this process: by a graph of one kernel, and its numbers."""
        data = self.array()
        self.run("add_one", data)
        self.capture(lambda: self.run("add_one", data)).launch()
        self.expect("data", data, np.arange(N) + 2)


def refusal(e: Exception) -> Refused | None:
    """An exception of CuPy, or of our own use of CUDA, as what CUDA said; None: it is nothing of that kind."""
    if isinstance(e, Refused):
        return e
    text = " ".join(str(e).split())
    if found := re.match(r"(cudaError\w*|CUDA_ERROR_\w+|CUBLAS_\w+): ?(.*)", text):
        return Refused(found[1], found[2])
    if isinstance(e, (RuntimeError, DeviceError, MemoryError)):  # what CuPy refuses before it asks CUDA
        return Refused(type(e).__name__, text)
    return None


def free(lab: Lab, address: int) -> None:
    """Give device memory back that cudaMalloc gave, whatever state things are in."""
    with suppress(Refused):
        lab.ask(lab.runtime.cudaFree, address)
