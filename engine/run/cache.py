"""Who owns which pages of the key/value cache. NumPy only: the arrays themselves are the runner's.

Page 0 belongs to the spare sequence: rows that fill up a bucket write there and nobody reads it. A sequence gets all
pages of its prompt and its longest completion when it is admitted, so that it never runs out half way.
"""

from __future__ import annotations

import heapq

import numpy as np

from ..errors import CacheFull
from ..sizes import PAGE


def pages_of(tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // PAGE)


class PageTable:
    """Pages 1..pages-1 shared out among `slots` sequences of at most `max_len` tokens.

    `host` [slots + 1, pages of max_len] int32 is what Step.table must equal; `changed` says that it no longer does."""

    def __init__(self, slots: int, max_len: int, pages: int) -> None:
        self.pages = pages
        self.host = np.zeros((slots + 1, pages_of(max_len)), np.int32)
        self.clear()

    def clear(self) -> None:
        """Every page is free, whoever had it."""
        self._free = list(range(1, self.pages))  # a heap: the lowest first, so that a sequence's tend to be neighbours
        self._owned: dict[int, list[int]] = {}
        self.host[...] = 0
        self.changed = True

    @property
    def free(self) -> int:
        """Pages that belong to nobody."""
        return len(self._free)

    def check(self, tokens: int) -> None:
        """CacheFull if so many tokens would not fit even into an empty cache."""
        if pages_of(tokens) > self.pages - 1:
            raise CacheFull(f"prompt and max_tokens: expected at most {(self.pages - 1) * PAGE} tokens, "
                            f"which is the whole key/value cache (cache_tokens), found {tokens}")  # fmt: skip

    def fits(self, tokens: int) -> bool:
        """Whether so many tokens can be admitted now."""
        return pages_of(tokens) <= len(self._free)

    def admit(self, slot: int, tokens: int) -> None:
        """Give the slot pages for so many tokens; the caller has asked `fits`."""
        if slot in self._owned or not self.fits(tokens):
            raise CacheFull(f"slot {slot}: expected a free slot and {pages_of(tokens)} free pages, "
                            f"found {self.free} free pages, slots {sorted(self._owned)} taken")  # fmt: skip
        own = [heapq.heappop(self._free) for _ in range(pages_of(tokens))]
        self._owned[slot] = own
        self.host[slot, : len(own)] = own
        self.changed = True

    def release(self, slot: int) -> None:
        """Take the slot's pages back; its row of the table points at page 0 again."""
        for page in self._owned.pop(slot):
            heapq.heappush(self._free, page)
        self.host[slot] = 0
        self.changed = True
