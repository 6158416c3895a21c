"""How long every node of a decode step takes inside the step. Called by command.py.

Kernels that start before their predecessor has ended overlap, so a node's time is what it adds: from the end of the
node before it to its own end. Events between the nodes would stop that overlap. Instead the graph is cut: the graph of
the first n nodes is replayed for every n, and node n takes what n nodes take longer than n - 1. Nothing stands between
the nodes, and the edges are those of the step. Where no graph is captured the calls are timed by the clock, one by one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from ..bench.session import Session
from ..cuda_graph import CudaGraph
from ..graph import Graph
from ..ops.device import Device
from .step import Step, matrices, opened, recorded

WITHIN = 0.05  # of a replay's time: how far the sum of the nodes' times may be from it
TOGETHER, REPEATS = 8, 7  # replays between two marks; how often


def balanced(step: Step) -> bool:
    """Whether the nodes' times add up to a replay's."""
    return step.apart <= WITHIN


def look(session: Session) -> Step:
    """Open the middle step of a session whose prompts are filled in, time it, and time its nodes."""
    bucket, device = session.runner.current, session.device
    graphs = bucket.program.graphs or []
    names = matrices(session.runner.w)

    def begin() -> None:
        session.restart(session.load.max_tokens // 2)

    if device.stream is None:
        nodes, edges = recorded(graphs, names)
        ends = _call_ends(device, graphs, begin)
    else:
        recipes = [CudaGraph.of(device, graph) for graph in graphs]
        nodes, edges = opened(graphs, [recipe.read() for recipe in recipes], names)
        ends = _node_ends(device, graphs, recipes, begin)
    timed = [replace(node, us=b - a) for node, (a, b) in zip(nodes, pairwise([0.0, *ends]), strict=True)]
    return Step(timed, edges, len(graphs), session.runner.captured.bytes, period_us(device, bucket.program.run, begin))


def period_us(device: Device, run: Callable[[], None], begin: Callable[[], None]) -> float:
    """us that run() takes when it follows itself, as steps do; the median."""
    marks = []
    for _ in range(REPEATS):
        begin()
        run()  # the device must not wait for the first of those that count
        first = device.mark()
        for _ in range(TOGETHER):
            run()
        marks.append((first, device.mark()))
    return 1e3 * statistics.median(device.elapsed(a, b) for a, b in marks) / TOGETHER


def _node_ends(device: Device, graphs: list[Graph], recipes: list[CudaGraph], begin: Callable[[], None]) -> list[float]:
    """us from the start of the step to the end of every node."""
    ends: list[float] = []
    for i, recipe in enumerate(recipes):
        found = []
        for _, cut in recipe.shrinking():

            def run(whole: list[Graph] = graphs[:i], last: Callable[[], None] = cut.launch) -> None:
                for graph in whole:
                    graph.launch()
                last()

            found.append(period_us(device, run, begin))
        ends += reversed(found)
    return ends


def _call_ends(device: Device, graphs: list[Graph], begin: Callable[[], None]) -> list[float]:
    """us from the start of the step to the end of every recorded call, each replayed by itself in its order."""
    calls = [(graph, call) for graph in graphs for call in graph.calls]
    spans = []
    for _ in range(REPEATS):
        begin()
        marks = [device.mark()]
        for graph, call in calls:
            getattr(graph.ops, call.name)(*call.args, **call.kwargs)
            marks.append(device.mark())
        spans.append([device.elapsed(a, b) for a, b in pairwise(marks)])
    ends, end = [], 0.0
    for call in zip(*spans, strict=True):
        end += 1e3 * statistics.median(call)
        ends.append(end)
    return ends
