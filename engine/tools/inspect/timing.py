"""How long every node of a decode step takes inside the step.

Kernels that start before their predecessor has ended overlap, so a node's time is what it adds: from the end of the
node before it to its own end. The ends are seen by events inside the graph, one node at a time: a copy of the graph has
one event before its first node, and one that hangs beside the node, so that no edge of the step is changed. That makes
a copy for every node, and the sum of all times the end of the last, which is then held against the time of a replay.
Where no graph is captured the calls are timed by the clock, one by one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate, pairwise

from ...graph.capture import Graph
from ...graph.cuda_graph import CudaGraph, Executable
from ...ops.device import Device
from ..bench.session import Session
from .step import Step, matrices, opened, recorded

WITHIN = 0.05  # of a replay's time: how far the sum of the nodes' times may be from it
TOGETHER, REPEATS = 8, 7  # replays between two events; how often


def balanced(step: Step) -> bool:
    """Whether the nodes' times add up to a replay's."""
    return step.apart <= WITHIN


def look(session: Session) -> Step:
    """Open the middle step of a session whose prompts are filled in, time it, and time its nodes."""
    session.restart()
    bucket, device = session.runner.current, session.device
    graphs = bucket.program.graphs or []
    names, middle = matrices(session.runner.w), session.load.max_tokens // 2
    for _ in range(middle):  # their keys and values are what the step looks at
        session.runner.decode()

    def begin() -> None:
        session.restart(middle)

    if device.stream is None:
        nodes, edges = recorded(graphs, names)
        ends, replay = _by_the_clock(device, bucket.program.run, graphs, begin)
        held = 0
    else:
        recipes = [CudaGraph.of(device, graph) for graph in graphs]
        nodes, edges = opened(graphs, [recipe.read() for recipe in recipes], names)
        held = sum(recipe.device_bytes() for recipe in recipes)
        replay = period_us(device, bucket.program.run, begin)
        ends = _node_ends(device, recipes, begin)
    timed = [replace(node, us=b - a) for node, (a, b) in zip(nodes, pairwise([0.0, *ends]), strict=True)]
    return Step(timed, edges, len(graphs), held, replay)


def period_us(device: Device, run: Callable[[], None], begin: Callable[[], None]) -> float:
    """us that run() takes when it follows itself, as steps do; the median."""
    events = []
    for _ in range(REPEATS):
        begin()
        run()  # the device must not wait for the first of those that count
        first = device.record_event()
        for _ in range(TOGETHER):
            run()
        events.append((first, device.record_event()))
    return 1e3 * statistics.median(device.elapsed(a, b) for a, b in events) / TOGETHER


def _node_ends(device: Device, recipes: list[CudaGraph], begin: Callable[[], None]) -> list[float]:
    """us from the beginning of the step to the end of every node."""
    whole, opening = [recipe.executable() for recipe in recipes], recipes[0].with_events(True, None)
    ends = []
    for i, recipe in enumerate(recipes):
        for n in range(len(recipe.nodes)):
            last = recipe.with_events(not i, n)
            first = opening if i else last
            step = [first, *whole[1:i], last] if i else [last]
            ends.append(_median_end(device, [*step, *whole[i + 1 :]], first, last, begin))
    return ends


def _median_end(
    device: Device, step: list[Executable], first: Executable, last: Executable, begin: Callable[[], None]
) -> float:
    """us from the beginning of `first` to the mark of `last`, in a step that follows another one."""
    found = []
    for _ in range(REPEATS):
        begin()
        for executable in [*step, *step]:
            executable.launch()
        device.synchronize()
        found.append(first.us_until(last))
    return statistics.median(found)


def _by_the_clock(
    device: Device, run: Callable[[], None], graphs: list[Graph], begin: Callable[[], None]
) -> tuple[list[float], float]:
    """us to the end of every recorded call, each replayed by itself in its order; us of a replay, measured in turn."""
    calls = [(graph, call) for graph in graphs for call in graph.calls]
    spans, whole = [], []
    for _ in range(REPEATS):
        begin()
        events = [device.record_event()]
        run()
        whole.append(1e3 * device.elapsed(events[0], device.record_event()))
        begin()
        events = [device.record_event()]
        for graph, call in calls:
            getattr(graph.ops, call.name)(*call.args, **call.kwargs)
            events.append(device.record_event())
        spans.append([1e3 * device.elapsed(a, b) for a, b in pairwise(events)])
    ends = accumulate(statistics.median(call) for call in zip(*spans, strict=True))
    return list(ends), statistics.median(whole)
