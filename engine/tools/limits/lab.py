"""The tools that a probe works with. Every probe gets a new Lab with its own stream and graphs.

Only this module and linking.py import CuPy and cuda-bindings here; probes use lab.cupy, lab.driver and lab.runtime.
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

N = 1000  # elements of most arrays; not a multiple of THREADS, so that the last block has idle threads
THREADS = 128


class Graph:
    """A CUgraph, instantiated by default. It is not destroyed: the worker process is short-lived."""

    def __init__(self, lab: Lab, graph: Any, flags: int | None = 0) -> None:
        """flags: CUgraphInstantiate_flags; None: do not instantiate."""
        self._lab, self.graph = lab, graph
        self.executable: Any = None if flags is None else lab.ask(lab.driver.cuGraphInstantiate, graph, flags)

    def start(self, stream: Any = None) -> None:
        """Replay on a stream (default: the lab's); does not wait."""
        self._lab.ask(self._lab.driver.cuGraphLaunch, self.executable, (stream or self._lab.stream).ptr)

    def launch(self, times: int = 1) -> None:
        """Replay `times` times and wait."""
        for _ in range(times):
            self.start()
        self._lab.synchronize()

    def nodes(self, kind: str = "") -> list[Any]:
        """The nodes of a kind ("KERNEL", "MEM_ALLOC", ...), or all nodes."""
        driver = self._lab.driver
        nodes = self._lab.ask(driver.cuGraphGetNodes, self.graph, 0)[1]
        nodes = self._lab.ask(driver.cuGraphGetNodes, self.graph, nodes)[0]
        types = [self._lab.ask(driver.cuGraphNodeGetType, node) for node in nodes]
        wanted = getattr(driver.CUgraphNodeType, f"CU_GRAPH_NODE_TYPE_{kind}") if kind else None
        return [node for node, t in zip(nodes, types, strict=True) if kind == "" or t == wanted]


class Lab:
    """A new stream on the GPU, and the operations of probes on it. Use it in a `with`. DeviceError without a GPU."""

    def __init__(self) -> None:
        self.device = CupyDevice()
        import cupy
        from cuda.bindings import driver, runtime

        self.cupy, self.driver, self.runtime = cupy, driver, runtime
        self.stream = self.device.stream
        self.arch = self.device.arch

    def __enter__(self) -> Lab:
        """Make the stream CuPy's current one, on which RawModule launches. Stream.use() would not outlast a `with`."""
        self.stream.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.stream.__exit__(*error)

    # -- arrays and kernels ---------------------------------------------------------------------------------------

    def array(self, values: Any = range(N), dtype: Any = np.float32) -> Any:
        """A device array of these values; default: 0, 1, 2, ..., N - 1."""
        return self.device.upload(np.asarray(values, dtype))

    def expect(self, what: str, got: Any, right: Any) -> None:
        """Raise Wrong unless an array holds exactly these numbers."""
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
        """The module of sources.DEVICE_RUNTIME. CannotRun if it cannot be built."""
        return linking.module(self.cupy, self.driver, sources.DEVICE_RUNTIME, self.arch)

    def run(self, name: str, *arrays: Any, grid: int = 0, block: int = THREADS, shared: int = 0) -> None:
        """Launch a kernel of sources.PLAIN over the elements of the first array, whose size is the last argument."""
        n = arrays[0].size
        kernel = self.plain.get_function(name)
        kernel((grid or -(-n // block),), (block,), (*arrays, np.int32(n)), shared_mem=shared)

    def single(self, name: str, *args: Any) -> None:
        """Launch one thread of a kernel of sources.DEVICE_RUNTIME."""
        self.linked.get_function(name)((1,), (1,), args)

    def other_stream(self) -> Any:
        """A new stream that does not synchronize with the legacy stream."""
        return self.cupy.cuda.Stream(non_blocking=True)

    def events(self, timing: bool = False) -> tuple[Any, Any]:
        """Two new events."""
        return tuple(self.cupy.cuda.Event(disable_timing=not timing) for _ in range(2))

    # -- asking CUDA ----------------------------------------------------------------------------------------------

    def ask(self, function: Callable[..., tuple], *args: Any) -> Any:
        """Call a function of cuda-bindings and return its results without the status. Refused if that is an error."""
        return call(function, *args, failed=lambda name, status: Refused(status.name, self.describe(status)))

    def describe(self, status: Any) -> str:
        """The text of an error status."""
        describe = self.driver.cuGetErrorString
        if type(status).__name__ == "cudaError_t":
            describe = self.runtime.cudaGetErrorString
        text = describe(status)[1]
        return text.decode() if text else ""

    def attempt(self, issue: Callable[[], Any], stream: Any = None) -> None:
        """Call issue() with a stream (default: the lab's) as CuPy's current one. Refused for errors of CUDA or CuPy."""
        try:
            with stream or self.stream:
                issue()
        except Exception as e:
            if (refused := refusal(e)) is not None:
                raise refused from e
            raise

    def synchronize(self) -> None:
        """Wait for the stream. Refused if work on it failed."""
        self.ask(self.driver.cuStreamSynchronize, self.stream.ptr)

    def settle(self) -> None:
        """Wait for the whole GPU: copies on other streams may be in flight."""
        self.ask(self.driver.cuCtxSynchronize)

    def capture(
        self, record: Callable[[], Any], mode: str = "RELAXED", flags: int | None = 0, stream: Any = None
    ) -> Graph:
        """Capture what record() issues on a stream (default: the lab's). mode: CUstreamCaptureMode. flags: see Graph.

        Refused with the error of a call in record(); its detail says whether the capture survived."""
        stream = stream or self.stream
        self.plain.get_function("add_one")  # load the module before the capture
        self.synchronize()
        self.ask(self.driver.cuStreamBeginCapture, stream.ptr, self._mode(mode))
        return Graph(self, self._recorded(record, stream, new=True), flags)

    def capture_into(self, graph: Any, after: list[Any], record: Callable[[], Any]) -> None:
        """Capture what record() issues into an existing CUgraph, after the nodes `after`. Refused as by capture()."""
        begin = self.driver.cuStreamBeginCaptureToGraph
        self.ask(begin, self.stream.ptr, graph, after, None, len(after), self._mode("RELAXED"))
        self._recorded(record, self.stream, new=False)

    def _mode(self, name: str) -> Any:
        return getattr(self.driver.CUstreamCaptureMode, f"CU_STREAM_CAPTURE_MODE_{name}")

    def _recorded(self, record: Callable[[], Any], stream: Any, new: bool) -> Any:
        """Run record() in a capture that has begun; return its CUgraph. new: destroy the graph if record() fails."""

        def tell(error: BaseException, graph: Any) -> None:
            if isinstance(error, Refused):
                error.detail = "the capture is lost" if graph is None else "the capture goes on"
            if new and graph is not None:
                self.driver.cuGraphDestroy(graph)

        def end() -> Any:
            return self.ask(self.driver.cuStreamEndCapture, stream.ptr)

        return captured(lambda: self.attempt(record, stream), end, tell)

    def needs(self, arch: int = 0, device_runtime: bool = False) -> None:
        """CannotRun below compute capability `arch` / 10, or if DEVICE_RUNTIME cannot be built."""
        if self.arch < arch:
            raise CannotRun(f"needs compute capability {arch / 10:.1f}, this GPU has {self.arch / 10:.1f}")
        if device_runtime:
            self.linked.get_function("add_one")

    def healthy(self) -> None:
        """Raise if the GPU no longer works in this process. Checks a graph of one kernel."""
        data = self.array()
        self.run("add_one", data)
        self.capture(lambda: self.run("add_one", data)).launch()
        self.expect("data", data, np.arange(N) + 2)


def refusal(e: Exception) -> Refused | None:
    """Convert an exception of CuPy or of this package's CUDA calls; None for any other exception."""
    if isinstance(e, Refused):
        return e
    text = " ".join(str(e).split())
    if found := re.match(r"(cudaError\w*|CUDA_ERROR_\w+|CUBLAS_\w+): ?(.*)", text):
        return Refused(found[1], found[2])
    if isinstance(e, (RuntimeError, DeviceError, MemoryError)):  # CuPy itself refuses
        return Refused(type(e).__name__, text)
    return None


def free(lab: Lab, address: int) -> None:
    """cudaFree without raising: the CUDA context may be broken."""
    with suppress(Refused):
        lab.ask(lab.runtime.cudaFree, address)
