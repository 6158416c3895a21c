"""Runs the parts of a step eagerly, or captures them once and replays them.

On a GPU a capture becomes a CUDA graph; on a CPU a `Recording` replays its list of calls. A replay repeats the same
operations on the same arrays, so every value that changes from step to step lives in an array. CuPy is imported only
for a GPU.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ..errors import CaptureError
from ..ops.base import Ops
from ..ops.device import Device
from ..ops.observer import OpsObserver

Part = tuple[str, Callable[[], None]]  # (name for messages, function that runs the part)
Make = Callable[[Any], Iterable[Part]]  # Ops -> the parts of a step


@dataclass
class CaptureReport:
    """Number of graphs captured, and what they cost."""

    graphs: int = 0
    seconds: float = 0.0
    bytes: int = 0  # of device memory

    def __add__(self, other: CaptureReport) -> CaptureReport:
        return CaptureReport(self.graphs + other.graphs, self.seconds + other.seconds, self.bytes + other.bytes)


@dataclass
class Call:
    """One recorded operation of a step."""

    part: str  # the part that called it: "layer 3"
    name: str  # the method of Ops
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    nodes: int = 0  # nodes it added to the CUDA graph; the graph holds them in call order


class Recording(OpsObserver):
    """Keeps every operation with its arguments.

    run=True also executes them, so that a stream capture records their launches; run=False only keeps them.
    part: the part that is being recorded; "" after the last one. count(): the number of nodes captured so far; it
    raises if the capture has become invalid. It is called after every operation, so an operation that silently
    invalidates the capture is named."""

    def __init__(self, ops: Ops, run: bool) -> None:
        super().__init__(ops)
        self._run, self._busy, self._seen = run, False, 0
        self.part, self.calls = "", list[Call]()
        self.count: Callable[[], int] = lambda: 0

    def around(self, name: str, operation: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> None:
        """Record one operation, and execute it if `run`."""
        noted = Call(self.part, name, args, kwargs)
        self.calls.append(noted)
        if self._run:
            self._busy = True
            operation(*args, **kwargs)
            before, self._seen = self._seen, self.count()
            noted.nodes = self._seen - before
            self._busy = False

    def take(self) -> list[Call]:
        """Return the operations since the last call: those of one graph."""
        calls, self.calls, self._seen = self.calls, [], 0
        return calls

    def place(self) -> str:
        """The current position, for messages: "layer 3, operation attend"."""
        if not self.part:
            return "at the end of the capture"
        names = [c.name for c in self.calls if c.part == self.part]
        if not names:
            return f"{self.part}, before its first operation"
        return f"{self.part}, {'operation' if self._busy else 'after operation'} {names[-1]}"


@dataclass
class Graph:
    """One or more captured parts. `calls` keeps alive every array that the CUDA graph points to."""

    ops: Ops
    calls: list[Call]
    executable: Any = None  # cupy.cuda.Graph; None: replay `calls`
    stream: Any = None

    def launch(self) -> None:
        """Replay on the current contents of the arrays; does not wait."""
        if self.executable is not None:
            self.executable.launch(self.stream)
            return
        for call in self.calls:
            getattr(self.ops, call.name)(*call.args, **call.kwargs)


@dataclass
class Program:
    """A decode step or prefill pass of one size, prepared for repeated runs."""

    eager: Callable[[], None]
    graphs: list[Graph] | None = field(default=None)  # None: run `eager`

    def run(self) -> None:
        """Run one step; does not wait."""
        if self.graphs is None:
            self.eager()
            return
        for graph in self.graphs:
            graph.launch()


def program(device: Device, ops: Ops, make: Make, scope: str, label: str, report: CaptureReport) -> Program:
    """Capture the parts of make(ops). scope: "off" (eager), "layer" (one graph per part) or "step" (one graph).

    On a GPU the parts run once before the capture, to compile and load every kernel, so the rows must be padding rows.
    Adds counts, time and memory to `report`. CaptureError names `label`, part, operation and cause."""

    def eager() -> None:
        for _, run in make(ops):
            run()

    if scope == "off":
        return Program(eager)
    started = time.perf_counter()
    if device.is_gpu:
        eager()
        device.synchronize()
        gc.collect()
    before = device.free_memory()
    recording = Recording(ops, run=device.is_gpu)
    parts = list(make(recording))
    groups = [parts] if scope == "step" else [[part] for part in parts]
    graphs = [_capture(device, ops, recording, group, label) for group in groups]
    device.synchronize()
    report.graphs += len(graphs)
    report.seconds += time.perf_counter() - started
    if device.is_gpu:
        report.bytes += max(0, before - device.free_memory())
    return Program(eager, graphs)


def _capture(device: Device, ops: Ops, recording: Recording, parts: list[Part], label: str) -> Graph:
    """Record parts in order; on a GPU by stream capture."""

    def run() -> None:
        if device.is_gpu:
            recording.count = _counter(device.stream)
        for recording.part, part in parts:
            part()
        recording.part = ""

    try:
        executable = _stream_capture(device.stream, run) if device.is_gpu else run()
    except Exception as e:
        raise CaptureError(f"{label}, {recording.place()}: cannot be captured: {e}") from e
    return Graph(ops, recording.take(), executable, device.stream)


def _counter(stream: Any) -> Callable[[], int]:
    """A function that returns the number of nodes in the stream's current capture. CaptureError once it is invalid."""
    from cuda.bindings import driver

    handle = driver.CUstream(stream.ptr)
    graph = driver.cuStreamGetCaptureInfo(handle)[3]
    sound = driver.CUresult.CUDA_SUCCESS, driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE

    def count() -> int:
        if tuple(driver.cuStreamIsCapturing(handle)) != sound:
            raise CaptureError("it made a call that a capture forbids, such as waiting for the device")
        return driver.cuGraphGetNodes(graph)[2]

    return count


def _stream_capture(stream: Any, run: Callable[[], None]) -> Any:
    """Capture what run() launches on the stream; return it as an instantiated and uploaded cupy.cuda.Graph."""
    with no_collection(), stream, _allocation_guard()():
        stream.begin_capture()
        graph = captured(run, stream.end_capture)
    graph.upload(stream)
    return graph


def captured(
    run: Callable[[], None], end: Callable[[], Any], tell: Callable[[BaseException, Any], None] | None = None
) -> Any:
    """Call run() inside a stream capture that has begun, and return end(): its graph.

    The capture is ended even if run() raises, so that the stream can be used again. tell(error, graph) is called before
    the error is raised again. graph: what was captured so far; None: the capture did not end as a valid graph."""
    try:
        run()
    except BaseException as e:
        graph = None
        with suppress(Exception):  # the first error is the one to raise
            graph = end()
        if tell is not None:
            tell(e, graph)
        raise
    return end()


@contextmanager
def no_collection() -> Iterator[None]:
    """Disable garbage collection: freeing device memory or unloading a module would invalidate a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _allocation_guard() -> Any:
    """A CuPy memory hook that refuses allocation. A graph owns no memory: the pool would reuse a temporary that was
    allocated during capture for another array, and every replay would overwrite that array."""
    import cupy

    class NoAllocation(cupy.cuda.MemoryHook):
        name = "ostinato: no allocation while capturing"

        def malloc_preprocess(self, device_id: int, size: int, mem_size: int) -> None:
            raise MemoryError(f"it allocates {size} bytes of device memory")

    return NoAllocation
