"""A recorded decode step as data: its nodes, its edges, and the operation of the layer that each node came from.

Made by timing.py and drawn by the rest of this folder. On a GPU a node is one of the captured graph; elsewhere, where
the recording itself is replayed, every call is one.
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
    """Something that a step does: a kernel, a copy, a fill of a graph, or a recorded call."""

    kind: str  # "kernel", "memset", ... as the driver has it; "call" where there is no graph
    name: str  # of the kernel, with its template arguments; of the operation for a call
    part: str = ""  # "layer 3"
    operation: str = ""  # "norm_qkv", "linear_add o"
    grid: tuple[int, ...] = ()
    block: tuple[int, ...] = ()
    shared: int = 0  # bytes of dynamic shared memory
    registers: int = 0  # of a thread
    arrays: str = ""  # that the operation was given
    graph: int = 0  # which of the step's graphs
    us: float = 0.0  # from the end of the node before it to its own end

    @property
    def same(self) -> tuple:
        """What two layers have in common if they are the same."""
        return self.kind, self.name, self.operation, self.grid, self.block, self.shared, self.registers, self.arrays


@dataclass
class Step:
    """A decode step, opened up."""

    nodes: list[Node]
    edges: list[Edge]  # between indices of nodes
    graphs: int
    bytes: int = 0  # of device memory that its graphs hold
    replay_us: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)  # model, backend, batch, device ...

    @property
    def total_us(self) -> float:
        """What the nodes' times add up to."""
        return sum(node.us for node in self.nodes)

    @property
    def apart(self) -> float:
        """By how much of a replay the sum of the nodes' times differs from it."""
        return abs(self.total_us / self.replay_us - 1)


def opened(graphs: list[Graph], read: list[Opened], names: dict[int, str]) -> tuple[list[Node], list[Edge]]:
    """The nodes of CUDA graphs and the edges between them. names: of matrices, by id; see `operation`.

    CaptureError if a graph has not the nodes that its operations added."""
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
    """The calls of recordings, one after the other."""
    calls = [(i, call) for i, graph in enumerate(graphs) for call in graph.calls]
    nodes = [Node("call", c.name, c.part, operation(c, names), arrays=arrays(c), graph=i) for i, c in calls]
    pairs = zip(range(len(nodes)), range(1, len(nodes)), strict=False)
    return nodes, [Edge(a, b, False) for a, b in pairs if nodes[a].graph == nodes[b].graph]


def operation(call: Call, names: dict[int, str]) -> str:
    """The operation's name, with the matrix's where the operation alone does not tell: "linear_add o"."""
    matrix = (names[id(a)] for a in call.args if id(a) in names) if call.name in ("linear", "linear_add") else ()
    return f"{call.name} {next(iter(matrix), '')}".rstrip()


def matrices(w: Any) -> dict[int, str]:
    """The names of the weights of a model's layers, by id."""
    return {id(value): name for layer in w.layers for name, value in vars(layer).items() if value is not None}


def arrays(call: Call) -> str:
    """The arrays a call was given, with their shapes: "x [1, 576], weight [960, 576]"."""
    method = getattr(Ops, call.name, None)
    given = inspect.signature(method).bind_partial(None, *call.args, **call.kwargs).arguments if method else call.kwargs
    return ", ".join(_shapes(given.items()))


def _shapes(given: Iterable[tuple[str, Any]]) -> Iterable[str]:
    for name, value in given:
        inner = {"b": "x", "s": "positions", "cache": "k"}.get(name)  # of a group of arrays, the one that tells
        value, name = (getattr(value, inner), f"{name}.{inner}") if inner else (value, name)
        shape = getattr(value, "shape", None)
        if shape is None and hasattr(value, "n"):  # a packed matrix
            shape = value.n, value.k
        if isinstance(shape, tuple) and shape:
            yield f"{name} {list(shape)}"
