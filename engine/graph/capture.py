"""Parts of a step, run eagerly or recorded once and replayed: CUDA graphs on a GPU, Recording elsewhere.

A graph replays the same operations on the same arrays, so whatever changes from step to step has to live in arrays.
With CUDA graphs this module imports CuPy, else it touches only what it is given.
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

Part = tuple[str, Callable[[], None]]  # a name for messages, and what runs it
Make = Callable[[Any], Iterable[Part]]  # the parts of a step over given operations


@dataclass
class CaptureReport:
    """What making the graphs took."""

    graphs: int = 0
    seconds: float = 0.0
    bytes: int = 0  # device memory the graphs hold

    def __add__(self, other: CaptureReport) -> CaptureReport:
        return CaptureReport(self.graphs + other.graphs, self.seconds + other.seconds, self.bytes + other.bytes)


@dataclass
class Call:
    """One operation of a step, as it was recorded."""

    part: str  # that called it: "layer 3"
    name: str  # of the method of Ops
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    nodes: int = 0  # of the CUDA graph that it added, which has its nodes in the order of the calls


class Recording(OpsObserver):
    """Keeps every operation with its arguments. It runs them too if `run`: under a stream capture, which then records
    what they launch. Else it only notes them, as a capture does.

    part: whose operations come now; "" once all are done. count(): how many nodes the capture has so far, an error if
    it is no longer valid; asked after every operation, so that one that broke it in silence is found."""

    def __init__(self, ops: Ops, run: bool) -> None:
        super().__init__(ops)
        self._run, self._busy, self._seen = run, False, 0
        self.part, self.calls = "", list[Call]()
        self.count: Callable[[], int] = lambda: 0

    def around(self, name: str, operation: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> None:
        """Note an operation, and run it if `run`."""
        noted = Call(self.part, name, args, kwargs)
        self.calls.append(noted)
        if self._run:
            self._busy = True
            operation(*args, **kwargs)
            before, self._seen = self._seen, self.count()
            noted.nodes = self._seen - before
            self._busy = False

    def take(self) -> list[Call]:
        """The operations since the last take, which are those of one graph."""
        calls, self.calls, self._seen = self.calls, [], 0
        return calls

    def place(self) -> str:
        """Where the recording is, for messages: "layer 3, operation attend"."""
        if not self.part:
            return "at the end of the capture"
        names = [c.name for c in self.calls if c.part == self.part]
        if not names:
            return f"{self.part}, before its first operation"
        return f"{self.part}, {'operation' if self._busy else 'after operation'} {names[-1]}"


@dataclass
class Graph:
    """One or more parts, recorded. `calls` keeps every array alive that the CUDA graph points to."""

    ops: Ops
    calls: list[Call]
    executable: Any = None  # cupy.cuda.Graph, or None where the recording itself is replayed
    stream: Any = None

    def launch(self) -> None:
        """Run what was recorded on the arrays as they are now; does not wait."""
        if self.executable is not None:
            self.executable.launch(self.stream)
            return
        for call in self.calls:
            getattr(self.ops, call.name)(*call.args, **call.kwargs)


@dataclass
class Program:
    """A step or pass of one size, ready to be run again and again."""

    eager: Callable[[], None]
    graphs: list[Graph] | None = field(default=None)  # None: run eagerly

    def run(self) -> None:
        """One step; does not wait."""
        if self.graphs is None:
            self.eager()
            return
        for graph in self.graphs:
            graph.launch()


def program(device: Device, ops: Ops, make: Make, scope: str, label: str, report: CaptureReport) -> Program:
    """The parts of make(ops) recorded by scope: "off" (not at all), "layer" (a graph a part) or "step" (one graph).

    On a GPU the parts run once before, to warm every kernel, so the rows must be spare ones. CaptureError names
    `label`, the part, the operation and the cause. Adds to the report."""

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
    """Record parts in order, on a GPU by stream capture."""

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
    """Tells how many nodes a capture of a stream, which has just begun, has so far. CaptureError once it is spoilt."""
    from cuda.bindings import driver

    handle = driver.CUstream(stream.ptr)
    graph = driver.cuStreamGetCaptureInfo(handle)[3]
    sound = driver.CUresult.CUDA_SUCCESS, driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE

    def count() -> int:
        if tuple(driver.cuStreamIsCapturing(handle)) != sound:
            raise CaptureError("it did what a capture forbids, such as waiting for the device")
        return driver.cuGraphGetNodes(graph)[2]

    return count


def _stream_capture(stream: Any, run: Callable[[], None]) -> Any:
    """The cupy.cuda.Graph of what run() launches on the stream, instantiated and uploaded."""
    with no_collection(), stream, _allocation_guard()():
        stream.begin_capture()
        graph = captured(run, stream.end_capture)
    graph.upload(stream)
    return graph


def captured(
    run: Callable[[], None], end: Callable[[], Any], tell: Callable[[BaseException, Any], None] | None = None
) -> Any:
    """What end() gives after run(): the graph of a stream capture that has begun.

    The capture is ended whatever run() raises, so that the stream can be used again. tell(error, graph) learns of the
    error before it is raised again, and has the graph so far; None: the capture could not be ended as one."""
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
    """No garbage collection inside: it could free device memory or unload a module, which invalidates a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _allocation_guard() -> Any:
    """A CuPy memory hook that refuses allocation: a graph has no memory of its own, so a temporary made while capturing
    would be given away and overwritten by every replay."""
    import cupy

    class NoAllocation(cupy.cuda.MemoryHook):
        name = "ostinato: no allocation while capturing"

        def malloc_preprocess(self, device_id: int, size: int, mem_size: int) -> None:
            raise MemoryError(f"it allocates {size} bytes of device memory")

    return NoAllocation
