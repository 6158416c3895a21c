"""NVTX ranges for profilers: around every operation and part in eager mode, around every graph in replay.

EngineConfig.nvtx turns them on; without it a step does not pass through this module. NVTX comes with CuPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..errors import RequestError
from ..ops.base import Ops
from ..ops.device import Device
from ..ops.observer import OpsObserver
from .capture import CaptureReport, Graph, Make, Part, Program, program


class Ranges:
    """NVTX ranges on one device. RequestError if the device is not a GPU."""

    def __init__(self, device: Device) -> None:
        if not device.is_gpu:
            raise RequestError(f"nvtx: expected a backend on a GPU, whose profilers show ranges, found {device.name}")
        self._push, self._pop = _library()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """A context manager: one range of this name."""
        self._push(name)
        try:
            yield
        finally:
            self._pop()

    def ops(self, ops: Ops) -> Any:
        """Wrap every operation in a range of its name."""
        return _NamedOps(ops, self)

    def parts(self, parts: Iterable[Part]) -> list[Part]:
        """Wrap every part of a step in a range of its name."""
        return [(name, partial(self._run, name, run)) for name, run in parts]

    def program(self, device: Device, ops: Ops, make: Make, scope: str, label: str, report: CaptureReport) -> Program:
        """capture.program with ranges around the parts (eager mode) and around the graphs (replay)."""
        step = program(device, ops, lambda over: self.parts(make(over)), scope, label, report)
        if step.graphs is not None:
            step.graphs = [self._graph(graph, label) for graph in step.graphs]
        return step

    def _run(self, name: str, run: Callable[[], None]) -> None:
        with self(name):
            run()

    def _graph(self, graph: Graph, label: str) -> Graph:
        parts = {call.part for call in graph.calls}
        name = f"{label}, {parts.pop()}" if len(parts) == 1 else label
        return _NamedGraph(graph.ops, graph.calls, graph.executable, graph.stream, self, name)


def prepared(ops: Ops, wanted: bool) -> tuple[Any, Callable[..., Program]]:
    """(ops, function `program`) for a runner. wanted: with NVTX ranges, else unchanged."""
    if not wanted:
        return ops, program
    ranges = Ranges(ops.device)
    return ranges.ops(ops), ranges.program


@dataclass
class _NamedGraph(Graph):
    """A graph that replays inside a range."""

    ranges: Any = None
    name: str = ""

    def launch(self) -> None:
        with self.ranges(self.name):
            super().launch()


class _NamedOps(OpsObserver):
    """Wraps every operation in a range of its name."""

    def __init__(self, ops: Ops, ranges: Ranges) -> None:
        super().__init__(ops)
        self._ranges = ranges

    def around(self, name: str, operation: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        with self._ranges(name):
            return operation(*args, **kwargs)


def _library() -> tuple[Callable[[str], None], Callable[[], None]]:
    """(push, pop) of NVTX."""
    from cupy.cuda import nvtx

    return nvtx.RangePush, nvtx.RangePop
