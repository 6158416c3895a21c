"""Host memory for the KV pages of preempted sequences: places of a page each, in blocks that are made when needed."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Any

BLOCK = 256 << 20  # bytes of a block, about: to page-lock so many takes some 50 ms


class SwapSpace:
    """At most `places` places, each for a page of `page_bytes` bytes: the same token range of every layer's K and V.

    make(n): device array of n places in host memory (Device.pinned)."""

    def __init__(self, places: int, page_bytes: int, make: Callable[[int], Any]) -> None:
        self.places = places
        self._make = make
        self._a_block = max(1, min(BLOCK // page_bytes, places))
        self._blocks: list[Any] = []
        self.clear()

    @property
    def free(self) -> int:
        """Places that hold nothing."""
        return len(self._free)

    def clear(self) -> None:
        """Every place is free; the blocks stay."""
        self._free = list(range(self.places))  # a heap: the lowest first, so that few blocks are made

    def take(self, count: int) -> list[int] | None:
        """So many places, or None if too few are free."""
        if count > len(self._free):
            return None
        return [heapq.heappop(self._free) for _ in range(count)]

    def give_back(self, places: list[int]) -> None:
        """Free places. What was launched before may still read them: whoever has them next is launched after it."""
        for place in places:
            heapq.heappush(self._free, place)

    def by_block(self, pages: list[int], places: list[int]) -> Iterator[tuple[Any, list[int], list[int]]]:
        """(block, pages, places in the block) of pages that are copied to places, or from them."""
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
