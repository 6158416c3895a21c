"""The block table: which page of the KV cache holds which tokens of a sequence. NumPy only; the runner has the arrays.

A sequence has pages for the tokens launched so far, and grows by a page when the last one is full.
"""

from __future__ import annotations

import numpy as np

from ..errors import CacheFull
from ..sizes import PAGE
from .pages import PagePool


def pages_of(tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // PAGE)


class PageTable:
    """The block table of `slots` sequences of at most `max_len` tokens on a pool of `pages` pages.

    `host` [slots + 1, pages of max_len] int32: the block table. `stale`: the rows that the device's copy, Step.table,
    does not have yet."""

    def __init__(self, slots: int, max_len: int, pages: int) -> None:
        self.pages = pages
        self.pool = PagePool(pages)
        self.host = np.zeros((slots + 1, pages_of(max_len)), np.int32)
        self.stale: set[int] = set()
        self.clear()

    def clear(self) -> None:
        """Free all pages and forget their contents."""
        self.pool.clear()
        self._owned: dict[int, list[int]] = {}  # by slot: its pages in order; 0 for a page behind the window
        self.host[...] = 0
        self.stale.update(range(len(self.host)))

    @property
    def free(self) -> int:
        """Pages that no sequence uses, including those kept for their prefix."""
        return self.pool.free

    def check(self, tokens: int) -> None:
        """CacheFull if so many tokens would not fit even into an empty cache."""
        if pages_of(tokens) > self.pages - 1:
            raise CacheFull(f"prompt and max_tokens: expected at most {(self.pages - 1) * PAGE} tokens, which is the "
                            f"whole KV cache (cache_tokens, gpu_memory), found {tokens}")  # fmt: skip

    def fits(self, tokens: int) -> bool:
        """Whether there are free pages for so many tokens."""
        return pages_of(tokens) <= self.free

    def allocate(self, slot: int, tokens: int = 0) -> None:
        """Begin a sequence in a free slot, with pages for so many tokens. CacheFull if there are too few."""
        if slot in self._owned or not self.fits(tokens):
            raise CacheFull(f"slot {slot}: expected a free slot and {pages_of(tokens)} free pages, "
                            f"found {self.free} free pages, slots {sorted(self._owned)} taken")  # fmt: skip
        self._owned[slot] = []
        self.grow(slot, tokens)

    def owned(self, slot: int) -> int:
        """Pages of a sequence, including those behind the window."""
        return len(self._owned[slot])

    def in_use(self, slot: int) -> list[tuple[int, int]]:
        """(index in the sequence, page) of a sequence's pages, without those behind the window."""
        return [(i, page) for i, page in enumerate(self._owned[slot]) if page]

    def reach(self, slot: int) -> int:
        """Tokens that a sequence could hold with all free pages."""
        return (self.owned(slot) + self.free) * PAGE

    def grow(self, slot: int, tokens: int) -> bool:
        """Give a sequence pages for its first `tokens` tokens. False, without any change, if too few are free."""
        lacking = pages_of(tokens) - self.owned(slot)
        if lacking > self.free:
            return False
        for _ in range(lacking):
            self._append(slot, self.pool.take())
        return True

    def restore(self, slot: int, indices: list[int]) -> list[int]:
        """Give a sequence without pages new ones at consecutive indices; those before are behind its window. Returns
        the pages."""
        self._owned[slot] = [0] * indices[0]
        self.grow(slot, (indices[-1] + 1) * PAGE)
        return self._owned[slot][indices[0] :]

    def share(self, slot: int, key: bytes) -> bool:
        """Give a sequence the page of a key as its next one, read-only. False if there is none."""
        page = self.pool.share(key)
        if page is not None:
            self._append(slot, page)
        return page is not None

    def keep(self, slot: int, index: int, key: bytes) -> None:
        """Keep page number `index` of a sequence under a key: see PagePool.keep."""
        if page := self._owned[slot][index]:
            self.pool.keep(page, key)

    def let_go(self, slot: int, tokens: int) -> None:
        """Free the pages of a sequence that hold only tokens before position `tokens`: no layer reads them again."""
        own, row = self._owned[slot], self.host[slot]
        for i in range(tokens // PAGE - 1, -1, -1):
            if not own[i]:
                break
            self.pool.give_back(own[i])
            own[i] = row[i] = 0
            self.stale.add(slot)

    def release(self, slot: int) -> None:
        """Free all pages of a sequence, the last one first, so that a prefix is evicted after its continuations."""
        for page in reversed(self._owned.pop(slot)):
            if page:
                self.pool.give_back(page)
        self.host[slot] = 0  # the device's copy may keep the row: it is rewritten before it is read again

    def _append(self, slot: int, page: int) -> None:
        own = self._owned[slot]
        self.host[slot, len(own)] = page
        own.append(page)
        self.stale.add(slot)
