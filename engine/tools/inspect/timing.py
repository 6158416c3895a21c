"""Measures the time of every node of a decode step, inside the step.

Kernels of programmatic edges overlap, so the time of a node is what it adds to the step: from the end of the previous
node to its own end. The end of a node is measured in a copy of the graph with two event-record nodes: one before the
first node, one after the node in question. They change no edge of the step (CudaGraph.with_events). So there is one
copy per node, and the sum of all times is the end of the last node; it is compared with the time of a replay. Without
a CUDA graph the calls are timed one by one with the host clock.
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

WITHIN = 0.05  # allowed difference between the sum of the node times and a replay, as a share of the replay
TOGETHER, REPEATS = 8, 7  # replays between two events; number of measurements


def balanced(step: Step) -> bool:
    """Whether the node times add up to the time of a replay."""
    return step.apart <= WITHIN


def look(session: Session) -> Step:
    """Read the middle step of a session after prefill, time it, and time its nodes."""
    session.restart()
    bucket, device = session.runner.current, session.device
    graphs = bucket.program.graphs or []
    names, middle = matrices(session.runner.w), session.load.max_tokens // 2
    for _ in range(middle):  # the step attends to the keys and values of these steps
        session.runner.decode()

    def begin() -> None:
        session.restart(middle)

    if not device.is_gpu:
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
    """Median us of run() in a back-to-back sequence of runs."""
    events = []
    for _ in range(REPEATS):
        begin()
        run()  # warm-up: the device must not wait for the first measured launch
        first = device.record_event()
        for _ in range(TOGETHER):
            run()
        events.append((first, device.record_event()))
    return 1e3 * statistics.median(device.elapsed(a, b) for a, b in events) / TOGETHER


def _node_ends(device: Device, recipes: list[CudaGraph], begin: Callable[[], None]) -> list[float]:
    """us from the begin of the step to the end of every node."""
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
    """us from the `begin` event of `first` to the `end` event of `last`, in a step that follows another step."""
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
    """(us to the end of every recorded call, us of a replay). Runs call by call alternate with whole replays."""
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
