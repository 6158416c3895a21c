"""Where the wall clock of a step goes: the host that launches it, the device that runs its kernels, and the device
that runs none, as a rule because the next launch has not come yet.

Three instruments, each in runs of its own:

    wall    host clock over many steps, launched as fast as the host can, until the device has done them all; the
            device's clock (events before the first and after the last) over the very same steps gives the span
    host    host clock around the launches of each of these steps: the operations' Python, arguments and driver calls
    kernel  device events around one step that is a graph, or a graph a layer, whichever is faster, queued behind a
            device that is busy reading its memory, so that it never waits for the host; the pauses between the kernels
            of a graph are part of it

idle = span - kernel: no kernel runs, or kernels that were started early hold up the one before. The host works while
the device does, so host is no summand: where host is longer than kernel the host sets the pace and the device idles.
The account holds if kernel + idle, by the device's clock, is the wall, by the host's, and if kernel, measured by
itself, is not more than the span it has to fit into: both within TOLERANCE.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from ...errors import DeviceError
from ...ops.device import Device
from .ceiling import Reader

TOLERANCE = 0.05  # of the wall
REPEATS = 5  # of which the one with the median wall counts
TRIES = 20  # of the kernel time, whose median counts


@dataclass(frozen=True)
class Breakdown:
    """One step, in us. Shares of the wall are percentages."""

    wall_us: float
    host_us: float
    kernel_us: float
    idle_us: float
    host_percent: float
    kernel_percent: float
    idle_percent: float
    sum_percent: float  # kernel + idle by the device's clock, of the wall by the host's
    problem: str  # what is wrong with the account; "" if it holds


def account(wall: float, host: float, span: float, kernel: float | None) -> Breakdown:
    """The Breakdown of one step's times in us, and whether it holds. kernel None: the device never waits."""
    problem, kernel = "", span if kernel is None else kernel
    if abs(span / wall - 1) > TOLERANCE:
        problem = f"kernel + idle is {span:.1f} us, which is not the wall clock's {wall:.1f} within {TOLERANCE:.0%}"
    elif kernel > span + TOLERANCE * wall:
        problem = f"kernels alone take {kernel:.1f} us, which is more than the {span:.1f} of the whole step"
    idle, percent = span - kernel, 100 / wall
    return Breakdown(
        wall, host, kernel, idle, host * percent, kernel * percent, idle * percent, span * percent, problem
    )  # fmt: skip


def live(
    device: Device, begin: Callable[[], None], step: Callable[[], object], steps: int
) -> tuple[float, float, float]:
    """(wall, host, span) in us a step. begin() prepares for `steps` calls of step(), which must not wait."""
    runs = []
    for _ in range(REPEATS):
        begin()
        device.synchronize()
        host = 0.0
        began = time.perf_counter()
        first = device.record_event()
        for _ in range(steps):
            before = time.perf_counter()
            step()
            host += time.perf_counter() - before
        last = device.record_event()
        device.synchronize()
        wall = time.perf_counter() - began
        runs.append((wall * 1e6 / steps, host * 1e6 / steps, device.elapsed(first, last) * 1e3 / steps))
    return sorted(runs)[REPEATS // 2]


def kernel_us(device: Device, begin: Callable[[], None], step: Callable[[], object], reader: Reader) -> float:
    """Device time in us of one step of few launches, while the device never waits for the host.

    The device first reads `reader`'s buffer, meanwhile everything is queued: one step to bring the caches into their
    usual state, one that is measured. DeviceError if the host never was fast enough."""
    found = []
    for attempt in range(2 * TRIES):
        begin()
        device.synchronize()
        began = time.perf_counter()
        start = device.record_event()
        for _ in range(1 + attempt // 4):  # longer, if that was too short for the host
            reader.read()
        released = device.record_event()
        step()
        first = device.record_event()
        step()
        last = device.record_event()
        queued = (time.perf_counter() - began) * 1e3
        if device.elapsed(start, released) > queued:
            found.append(device.elapsed(first, last) * 1e3)
        if len(found) == TRIES:
            break
    if not found:
        raise DeviceError("kernel time: expected the host to queue two graphs while the device reads its memory, "
                          "found it slower every time")  # fmt: skip
    return statistics.median(found)
