"""The read ceiling: how fast a device reads memory when it does nothing else. Other rates are shares of it."""

from __future__ import annotations

import statistics
from itertools import pairwise

import numpy as np

from ...ops.device import Device
from .synthetic import random

BLOCKS = (2, 4, 8, 16, 32)  # blocks of 512 threads per multiprocessor; the fastest counts
STEP = 1 << 15  # bytes that a block reads per iteration
HOST_BYTES = 128 << 20
HOST_COLUMNS = 1 << 12


class Reader:
    """A buffer several times as large as the L2 cache, and functions that read all of it.

    size: bytes, rounded up to whole steps; None = 16 times the cache. DeviceError if the memory is not available."""

    def __init__(self, device: Device, size: int | None = None) -> None:
        self._device = device
        self.bytes = -(-(size or 16 * device.cache_bytes or HOST_BYTES) // STEP) * STEP
        if device.multiprocessors:
            self.source = random(device, (self.bytes // 4,), np.dtype(np.float32))
            threads = max(BLOCKS) * device.multiprocessors * 512
            self.sums = device.empty((threads,), np.dtype(np.uint32))
            self._kernel = device.kernel("read_ceiling.cu", "read_ceiling")
        else:
            self.source = random(device, (self.bytes // 4 // HOST_COLUMNS, HOST_COLUMNS), np.dtype(np.float32))
            self._ones = np.ones(HOST_COLUMNS, np.float32)
            self.sums = np.empty(len(self.source), np.float32)

    def read(self, blocks: int = BLOCKS[-1]) -> None:
        """Read the whole buffer, which also evicts everything else from L2. blocks: per multiprocessor."""
        if not self._device.multiprocessors:
            np.dot(self.source, self._ones, out=self.sums)
            return
        grid = (blocks * self._device.multiprocessors,)
        args = [self.source.view(np.uint32), self.sums, np.int32(self.bytes // 16)]
        self._device.launch(self._kernel, grid, (512,), args)

    def ceiling(self, repeats: int = 5, passes: int = 4) -> float:
        """GB/s of the fastest launch shape: the median of `repeats` runs of `passes` reads each."""
        shapes = BLOCKS if self._device.multiprocessors else BLOCKS[:1]
        return passes * self.bytes / 1e6 / min(self._median_ms(blocks, repeats, passes) for blocks in shapes)

    def _median_ms(self, blocks: int, repeats: int, passes: int) -> float:
        self.read(blocks)
        events = [self._device.record_event()]
        for _ in range(repeats):
            for _ in range(passes):
                self.read(blocks)
            events.append(self._device.record_event())
        return statistics.median(self._device.elapsed(a, b) for a, b in pairwise(events))
