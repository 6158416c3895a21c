"""A captured CUDA graph as the driver sees it: read its nodes and edges, add event records, launch it, update it.

Only tools use this; capture.py captures and replays a step without it. Calls the driver through cuda-bindings.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import CaptureError
from ..ops.device import Device
from ..ops.driver import call
from .capture import Graph, captured, no_collection

COPIES = 32  # executable graphs made to measure the memory of one


@dataclass(frozen=True)
class Fact:
    """One node of a graph, as the driver describes it."""

    kind: str  # "kernel", "memcpy", "memset", "empty", "graph", ...
    name: str  # the kernel's name with its template arguments; other nodes: the kind
    grid: tuple[int, ...] = ()
    block: tuple[int, ...] = ()
    shared: int = 0  # bytes of dynamic shared memory
    registers: int = 0  # per thread


@dataclass(frozen=True)
class Edge:
    """Node `target` depends on node `source`. programmatic: it may begin before `source` has ended."""

    source: int
    target: int
    programmatic: bool


@dataclass(frozen=True)
class Opened:
    """The nodes and edges of a graph, in capture order."""

    nodes: list[Fact]
    edges: list[Edge]


class CudaGraph:
    """A captured graph (cudaGraph_t). `executable` instantiates it for launching."""

    def __init__(self, device: Device, handle: int, owner: Any = None) -> None:
        """handle: cudaGraph_t. owner: the object that owns the handle and is kept alive; None: destroy it here."""
        from cuda.bindings import driver

        self.device, self._driver, self._owner = device, driver, owner
        self.handle = driver.CUgraph(handle)

    @cached_property
    def nodes(self) -> list[Any]:
        """The driver's node handles, in capture order."""
        _, count = self._call("cuGraphGetNodes", self.handle)
        return self._call("cuGraphGetNodes", self.handle, count)[0]

    @staticmethod
    def of(device: Device, graph: Graph) -> CudaGraph:
        """The cudaGraph_t that a step's executable graph was instantiated from."""
        return CudaGraph(device, graph.executable.graph, graph)

    def __del__(self) -> None:
        if self._owner is None:
            self._driver.cuGraphDestroy(self.handle)

    def read(self) -> Opened:
        """Read nodes and edges. CaptureError if the driver does not list the nodes in an order they can run in."""
        names = {int(f.handle): f.name for f in getattr(self.device, "functions", {}).values()}
        facts = [self._fact(node, names) for node in self.nodes]
        index = {int(node): i for i, node in enumerate(self.nodes)}
        get = self._versioned("cuGraphGetEdges")
        sources, targets, data, _ = self._call(get, self.handle, self._call(get, self.handle)[-1])
        edges = [Edge(index[int(a)], index[int(b)], int(d.type) == 1)  # CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC
                 for a, b, d in zip(sources, targets, data, strict=True)]  # fmt: skip
        if any(e.source >= e.target for e in edges):
            raise CaptureError("graph: expected its nodes in the order of their capture, found an edge that goes back")
        return Opened(facts, sorted(edges, key=lambda e: (e.source, e.target)))

    def _fact(self, node: Any, names: dict[int, str]) -> Fact:
        kind = self._call("cuGraphNodeGetType", node).name.removeprefix("CU_GRAPH_NODE_TYPE_").lower()
        if kind != "kernel":
            return Fact(kind, kind)
        p = self._call("cuGraphKernelNodeGetParams", node)
        function = p.func if int(p.func) else self._call("cuKernelGetFunction", p.kern)  # CUkernel: a library's kernel
        registers = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NUM_REGS
        name = names.get(int(function)) or readable(self._call("cuFuncGetName", function).decode())
        return Fact(kind, name, (p.gridDimX, p.gridDimY, p.gridDimZ), (p.blockDimX, p.blockDimY, p.blockDimZ),
                    p.sharedMemBytes, self._call("cuFuncGetAttribute", registers, function))  # fmt: skip

    def parameters(self) -> list[tuple[Any, Any]]:
        """(node, CUDA_KERNEL_NODE_PARAMS) of every kernel node, as Executable.set takes them."""
        kernel = self._driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL
        return [(n, self._call("cuGraphKernelNodeGetParams", n)) for n in self.nodes
                if self._call("cuGraphNodeGetType", n) == kernel]  # fmt: skip

    def executable(self) -> Executable:
        """Instantiate the graph and upload it to the device."""
        return Executable(self, self._call("cuGraphInstantiate", self.handle, 0))

    def again(self, run: Callable[[], None]) -> CudaGraph:
        """Capture what run() launches on the same stream now, as this graph was captured; not instantiated."""
        stream = self._driver.CUstream(self.device.stream.ptr)
        relaxed = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        with no_collection():
            self._call("cuStreamBeginCapture", stream, relaxed)
            return captured(run, lambda: CudaGraph(self.device, int(self._call("cuStreamEndCapture", stream))))

    def with_events(self, begin: bool, after: int | None) -> Executable:
        """An executable copy with event-record nodes: one before the first node, one after node `after`.

        The event nodes are siblings of the chain and change none of its edges: an event between two nodes would turn a
        programmatic edge into a full one."""
        copy = CudaGraph(self.device, int(self._call("cuGraphClone", self.handle)))
        made, first = [self._call("cuEventCreate", 0) for _ in range(2)], self.nodes[0]
        if begin:
            node = self._call("cuGraphAddEventRecordNode", copy.handle, None, 0, made[0])
            add = self._versioned("cuGraphAddDependencies")
            mine = self._call("cuGraphNodeFindInClone", first, copy.handle)
            self._call(add, copy.handle, [node], [mine], None, 1)
        if after is not None:
            mine = self._call("cuGraphNodeFindInClone", self.nodes[after], copy.handle)
            self._call("cuGraphAddEventRecordNode", copy.handle, [mine], 1, made[1])
        executable = copy.executable()
        executable.begin, executable.end = made
        return executable

    def device_bytes(self) -> int:
        """Device memory of one executable graph: the mean of COPIES, as the driver allocates in large pieces."""
        before = self.device.free_memory()
        held = [self.executable() for _ in range(COPIES)]
        self.device.synchronize()
        return max(0, before - self.device.free_memory()) // len(held)

    def _versioned(self, name: str) -> str:
        """The variant of a driver function that takes edge data: `_v2` in CUDA 12, the plain name in CUDA 13."""
        return f"{name}_v2" if hasattr(self._driver, f"{name}_v2") else name

    def _call(self, name: str, *args: Any) -> Any:
        return call(getattr(self._driver, name), *args)


class Executable:
    """An instantiated graph (cudaGraphExec_t): launch it, change the parameters of its nodes."""

    def __init__(self, graph: CudaGraph, handle: Any) -> None:
        self._driver, self.handle, self._graph = graph._driver, handle, graph
        self._stream = self._driver.CUstream(graph.device.stream.ptr)
        self._call("cuGraphUpload", handle, self._stream)
        self.begin: Any = None  # events of `with_events`
        self.end: Any = None

    def __del__(self) -> None:
        self._driver.cuGraphExecDestroy(self.handle)
        for event in (self.begin, self.end):
            if event is not None:
                self._driver.cuEventDestroy(event)

    def us_until(self, last: Executable) -> float:
        """us from this graph's `begin` event to the `end` event of `last`; the latest launches of both are done."""
        return 1e3 * self._call("cuEventElapsedTime", self.begin, last.end)

    def launch(self) -> None:
        """Launch on the device's stream; does not wait."""
        self._call("cuGraphLaunch", self.handle, self._stream)

    def set(self, node: Any, parameters: Any) -> None:
        """Set a kernel node's parameters (node: of the source graph). Launches already issued keep the old ones."""
        self._call("cuGraphExecKernelNodeSetParams", self.handle, node, parameters)

    def update(self, graph: CudaGraph) -> None:
        """Take all parameters of another graph. DeviceError if its structure differs."""
        self._call("cuGraphExecUpdate", self.handle, graph.handle)

    def _call(self, name: str, *args: Any) -> Any:
        return call(getattr(self._driver, name), *args)


def readable(name: str) -> str:
    """Demangle a C++ kernel name, without its template arguments: "_ZN6cublas4gemvILi1EEEvv" is "cublas::gemv"."""
    rest, parts = re.sub(r"^_ZN?", "", name) if name.startswith("_Z") else "", []
    while found := re.match(r"\d+", rest):
        end = found.end() + int(found[0])
        parts.append(rest[found.end() : end])
        rest = rest[end:]
    return "::".join(parts) or name
