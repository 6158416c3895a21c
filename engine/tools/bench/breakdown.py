"""Splits the wall clock of a step: host time for launching, device time in kernels, idle device time.

Three measurements, each from its own runs:

    wall    host clock over many steps, launched as fast as possible, until the device has finished them all. The span
            of the same steps is read from device events before the first and after the last.
    host    host clock around the launches of these steps: Python, argument packing, driver calls.
    kernel  device events around one step. It runs as one graph or one graph per layer, whichever is faster, and is
            queued while the device reads a large buffer, so it never waits for the host. Gaps between the kernels of
            a graph count as kernel time.

idle = span - kernel. The device idles because the next launch is late, or because kernels that started early hold up
their predecessor. Host and device work in parallel, so host is not a summand: if host > kernel, the host limits the
speed. The breakdown is consistent if the span (device clock) equals the wall (host clock) and kernel fits into the
span, both within TOLERANCE.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from ...errors import DeviceError
from ...ops.device import Device
from .ceiling import Reader

TOLERANCE = 0.05  # share of the wall
REPEATS = 5  # runs; the one with the median wall counts
TRIES = 20  # measurements of the kernel time; their median counts


@dataclass(frozen=True)
class Breakdown:
    """One step: times in us, shares of the wall in percent."""

    wall_us: float
    host_us: float
    kernel_us: float
    idle_us: float
    host_percent: float
    kernel_percent: float
    idle_percent: float
    sum_percent: float  # kernel + idle (device clock) as a share of the wall (host clock)
    problem: str  # why the times are inconsistent; "" if they are not


def account(wall: float, host: float, span: float, kernel: float | None) -> Breakdown:
    """Break down one step and check it. All times in us. kernel=None: the device never waits for the host."""
    problem, kernel = "", span if kernel is None else kernel
    if abs(span / wall - 1) > TOLERANCE:
        problem = f"expected kernel + idle within {TOLERANCE:.0%} of the wall's {wall:.1f} us, found {span:.1f} us"
    elif kernel > span + TOLERANCE * wall:
        problem = f"expected kernels to take at most the step's {span:.1f} us, found {kernel:.1f} us"
    idle, percent = span - kernel, 100 / wall
    return Breakdown(
        wall, host, kernel, idle, host * percent, kernel * percent, idle * percent, span * percent, problem
    )  # fmt: skip


def live(
    device: Device, begin: Callable[[], None], step: Callable[[], object], steps: int
) -> tuple[float, float, float]:
    """(wall, host, span) in us per step. begin() prepares `steps` calls of step(), which must not wait."""
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
    """Device time of one step in us, without waiting for the host.

    While the device reads `reader`'s buffer, the host queues two steps: one restores the usual state of the caches, the
    second is measured. DeviceError if the host was too slow in every attempt."""
    found = []
    for attempt in range(2 * TRIES):
        begin()
        device.synchronize()
        began = time.perf_counter()
        start = device.record_event()
        for _ in range(1 + attempt // 4):  # read more if the host needed longer
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
                          "found it slower in every attempt")  # fmt: skip
    return statistics.median(found)
