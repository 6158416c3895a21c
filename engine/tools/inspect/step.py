"""A captured decode step as data: nodes, edges, and the operation and layer that each node came from.

timing.py builds it. On a GPU the nodes are those of the CUDA graph. On a CPU, where the recording is replayed, every
recorded call is a node.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import CaptureError
from ...graph.capture import Call, Graph
from ...graph.cuda_graph import Edge, Opened
from ...ops.base import Ops


@dataclass(frozen=True)
class Node:
    """A node of a step: a kernel, copy or fill of a CUDA graph, or a recorded call."""

    kind: str  # "kernel", "memset", ... as the driver names it; "call" without a CUDA graph
    name: str  # the kernel with its template arguments; for a call: the operation
    part: str = ""  # "layer 3"
    operation: str = ""  # "norm_qkv", "linear_add o"
    grid: tuple[int, ...] = ()
    block: tuple[int, ...] = ()
    shared: int = 0  # bytes of dynamic shared memory
    registers: int = 0  # per thread
    arrays: str = ""  # arguments of the operation, with shapes
    graph: int = 0  # index of the step's graph that holds it
    us: float = 0.0  # from the end of the previous node to its own end

    @property
    def same(self) -> tuple:
        """The fields that are equal in the nodes of identical layers."""
        return self.kind, self.name, self.operation, self.grid, self.block, self.shared, self.registers, self.arrays


@dataclass
class Step:
    """A decode step with its nodes, edges and times."""

    nodes: list[Node]
    edges: list[Edge]  # source and target are indices into nodes
    graphs: int
    bytes: int = 0  # device memory of its graphs
    replay_us: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)  # model, backend, batch, device ...

    @property
    def total_us(self) -> float:
        """The sum of the node times."""
        return sum(node.us for node in self.nodes)

    @property
    def apart(self) -> float:
        """Relative difference between the sum of the node times and the time of a replay."""
        return abs(self.total_us / self.replay_us - 1)


def opened(graphs: list[Graph], read: list[Opened], names: dict[int, str]) -> tuple[list[Node], list[Edge]]:
    """The nodes and edges of CUDA graphs. names: id of a weight -> name, for `operation`.

    CaptureError if a graph does not have the nodes that its operations added."""
    nodes: list[Node] = []
    edges: list[Edge] = []
    for i, (graph, found) in enumerate(zip(graphs, read, strict=True)):
        owners = [call for call in graph.calls for _ in range(call.nodes)]
        if len(owners) != len(found.nodes):
            raise CaptureError(f"graph {i}: expected the {len(owners)} nodes that its operations added, "
                               f"found {len(found.nodes)}")  # fmt: skip
        edges += [replace(e, source=e.source + len(nodes), target=e.target + len(nodes)) for e in found.edges]
        nodes += [
            Node(n.kind, n.name, call.part, operation(call, names), n.grid, n.block, n.shared, n.registers,
                 arrays(call), i)
            for n, call in zip(found.nodes, owners, strict=True)
        ]  # fmt: skip
    return nodes, edges


def recorded(graphs: list[Graph], names: dict[int, str]) -> tuple[list[Node], list[Edge]]:
    """The calls of recordings as a chain of nodes."""
    calls = [(i, call) for i, graph in enumerate(graphs) for call in graph.calls]
    nodes = [Node("call", c.name, c.part, operation(c, names), arrays=arrays(c), graph=i) for i, c in calls]
    pairs = zip(range(len(nodes)), range(1, len(nodes)), strict=False)
    return nodes, [Edge(a, b, False) for a, b in pairs if nodes[a].graph == nodes[b].graph]


def operation(call: Call, names: dict[int, str]) -> str:
    """The operation's name; for a GEMM with several possible weights, also the weight's: "linear_add o"."""
    matrix = (names[id(a)] for a in call.args if id(a) in names) if call.name in ("linear", "linear_add") else ()
    return f"{call.name} {next(iter(matrix), '')}".rstrip()


def matrices(w: Any) -> dict[int, str]:
    """id of a weight -> its name, over all layers of a model."""
    return {id(value): name for layer in w.layers for name, value in vars(layer).items() if value is not None}


def arrays(call: Call) -> str:
    """The array arguments of a call with their shapes: "x [1, 576], weight [960, 576]"."""
    method = getattr(Ops, call.name, None)
    given = inspect.signature(method).bind_partial(None, *call.args, **call.kwargs).arguments if method else call.kwargs
    return ", ".join(_shapes(given.items()))


def _shapes(given: Iterable[tuple[str, Any]]) -> Iterable[str]:
    for name, value in given:
        inner = {"b": "x", "s": "positions", "cache": "k"}.get(name)  # the array that represents a group
        value, name = (getattr(value, inner), f"{name}.{inner}") if inner else (value, name)
        shape = getattr(value, "shape", None)
        if shape is None and hasattr(value, "n"):  # packed weight
            shape = value.n, value.k
        if isinstance(shape, tuple) and shape:
            yield f"{name} {list(shape)}"
