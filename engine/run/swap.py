"""Swap space: pinned host memory for the KV pages of preempted sequences, allocated in blocks on demand."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Any

BLOCK = 256 << 20  # bytes of a block, about: page-locking takes time, so it is done little by little


class SwapSpace:
    """Up to `places` places, each for one page of `page_bytes` bytes: K and V of 64 tokens in all layers.

    make(n): allocates n places; a device array on pinned host memory (Device.pinned)."""

    def __init__(self, places: int, page_bytes: int, make: Callable[[int], Any]) -> None:
        self.places = places
        self._make = make
        self._a_block = max(1, min(BLOCK // page_bytes, places))
        self._blocks: list[Any] = []
        self.clear()

    @property
    def free(self) -> int:
        """Free places."""
        return len(self._free)

    def clear(self) -> None:
        """Free all places; the blocks stay allocated."""
        self._free = list(range(self.places))  # a heap: the lowest first, so that few blocks are made

    def take(self, count: int) -> list[int] | None:
        """Take places; None if too few are free."""
        if count > len(self._free):
            return None
        return [heapq.heappop(self._free) for _ in range(count)]

    def give_back(self, places: list[int]) -> None:
        """Free places. Copies in flight may still read them: the next writer comes later in stream order."""
        for place in places:
            heapq.heappush(self._free, place)

    def by_block(self, pages: list[int], places: list[int]) -> Iterator[tuple[Any, list[int], list[int]]]:
        """Group copies by block: (block, pages, places in the block)."""
        groups: dict[int, tuple[list[int], list[int]]] = {}
        for page, place in zip(pages, places, strict=True):
            own, there = groups.setdefault(place // self._a_block, ([], []))
            own.append(page)
            there.append(place % self._a_block)
        for block, (own, there) in groups.items():
            while block >= len(self._blocks):
                left = self.places - len(self._blocks) * self._a_block
                self._blocks.append(self._make(min(self._a_block, left)))
            yield self._blocks[block], own, there
