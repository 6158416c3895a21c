"""Probes: streams, events, and launch sizes."""

from __future__ import annotations

import numpy as np

from .lab import Lab, N
from .probe import probe


@probe("streams", "fork to a second stream and join it again")
def fork_and_join(lab: Lab) -> str:
    """Each branch works on its own array; the kernel after the join reads both."""
    left, right, out = lab.array(), lab.array(), lab.array()
    other, (fork, join) = lab.other_stream(), lab.events()

    def record() -> None:
        other.wait_event(lab.stream.record(fork))
        with other:
            lab.run("times_two", right)
        lab.run("add_one", left)
        lab.stream.wait_event(other.record(join))
        lab.run("sum", left, right, out)

    graph = lab.capture(record)
    graph.launch(3)
    lab.expect("out", out, np.arange(N) + 3 + 8 * np.arange(N))
    return f"{len(graph.nodes('KERNEL'))} kernels, events became edges"


@probe("streams", "fork to a second stream without a join", says="")
def fork_without_join(lab: Lab) -> str:
    """The forked stream has captured work when the capture ends."""
    left, right = lab.array(), lab.array()
    other, (fork, _) = lab.other_stream(), lab.events()

    def record() -> None:
        other.wait_event(lab.stream.record(fork))
        with other:
            lab.run("add_one", right)
        lab.run("add_one", left)

    lab.capture(record).launch()
    lab.expect("right", right, np.arange(N) + 1)
    return ""


@probe("streams", "a graph launched on one stream beside work on another")
def beside_other_work(lab: Lab) -> str:
    """The graph runs on its capture stream and on another stream, between other launches."""
    data, apart = lab.array(), lab.array()
    graph = lab.capture(lambda: lab.run("add_one", data))
    other = lab.other_stream()
    with other:  # runs while the graph is launched on lab.stream
        for _ in range(5):
            lab.run("add_one", apart)
    graph.launch()
    graph.start(other)
    other.synchronize()
    lab.expect("data", data, np.arange(N) + 2)
    lab.expect("apart", apart, np.arange(N) + 5)
    return ""


@probe("events", "a captured stream waits for an event of another captured stream")
def event_as_dependency(lab: Lab) -> str:
    """The event becomes an edge: the last kernel must not start before the other stream's kernels have ended."""
    data = lab.array()
    other, (begin, end) = lab.other_stream(), lab.events()

    def record() -> None:
        other.wait_event(lab.stream.record(begin))
        with other:
            for _ in range(20):
                lab.run("add_one", data)
        lab.stream.wait_event(other.record(end))
        lab.run("times_two", data)

    graph = lab.capture(record)
    graph.launch(2)
    lab.expect("data", data, 4 * np.arange(N) + 120)
    return f"{len(graph.nodes())} nodes, {len(graph.nodes('EVENT_RECORD'))} of them events"


@probe("events", "an external event: every replay waits for work outside the graph")
def external_event_wait(lab: Lab) -> str:
    """cudaStreamWaitEvent(cudaEventWaitExternal) becomes a node."""
    data, (event, _), other = lab.array(), lab.events(), lab.other_stream()

    def record() -> None:
        flag = lab.runtime.cudaEventWaitExternal
        lab.ask(lab.runtime.cudaStreamWaitEvent, lab.stream.ptr, event.ptr, flag)
        lab.run("times_two", data)

    graph = lab.capture(record)
    for _ in range(2):
        with other:
            for _ in range(100):
                lab.run("add_one", data)
        other.record(event)
        graph.launch()
    lab.expect("data", data, 4 * np.arange(N) + 600)
    return f"{len(graph.nodes('WAIT_EVENT'))} wait node"


@probe("events", "a wait in a capture for an event recorded before the capture", says="")
def event_from_outside(lab: Lab) -> str:
    """An ordinary wait for an event that is not part of the graph."""
    data, (event, _), other = lab.array(), lab.events(), lab.other_stream()
    other.record(event)
    graph = lab.capture(lambda: (lab.stream.wait_event(event), lab.run("add_one", data)))
    graph.launch()
    lab.expect("data", data, np.arange(N) + 1)
    return f"{len(graph.nodes())} node(s)"


@probe("events", "time between two plain events of a capture", says="")
def plain_event_times(lab: Lab) -> str:
    """Plain events become edges: a replay records no times."""
    data, events = lab.array(), lab.events(timing=True)

    def record() -> None:
        lab.stream.record(events[0])
        lab.run("add_one", data)
        lab.stream.record(events[1])

    lab.capture(record).launch()
    lab.expect("data", data, np.arange(N) + 1)
    return f"{_elapsed(lab, events) * 1e3:.1f} us"


@probe("events", "time between two external event-record nodes")
def external_event_times(lab: Lab) -> str:
    """cudaEventRecordWithFlags(cudaEventRecordExternal) becomes a node that records a time at every replay."""
    data, events = lab.array(), lab.events(timing=True)

    def record_event(event: object) -> None:
        flag = lab.runtime.cudaEventRecordExternal
        lab.ask(lab.runtime.cudaEventRecordWithFlags, event.ptr, lab.stream.ptr, flag)  # pyright: ignore

    def record() -> None:
        record_event(events[0])
        lab.run("add_one", data)
        record_event(events[1])

    graph = lab.capture(record)
    graph.launch()
    lab.expect("data", data, np.arange(N) + 1)
    return f"{len(graph.nodes('EVENT_RECORD'))} event nodes, {_elapsed(lab, events) * 1e3:.1f} us for one kernel"


def _elapsed(lab: Lab, events: tuple) -> float:
    """Milliseconds between two events."""
    return lab.ask(lab.runtime.cudaEventElapsedTime, events[0].ptr, events[1].ptr)


@probe("launch sizes", "grid and block sizes known only at run time")
def sizes_at_run_time(lab: Lab) -> str:
    """The sizes are random; the graph keeps those of the capture."""
    blocks, threads = (int(v) for v in np.random.default_rng().integers((2, 1), (9, 5)))
    data = lab.array(range(blocks * threads * 32))
    graph = lab.capture(lambda: lab.run("add_one", data, grid=blocks, block=threads * 32))
    graph.launch(2)
    lab.expect("data", data, np.arange(data.size) + 2)
    return f"grid {blocks}, block {threads * 32}, drawn at random"
