"""The pages of the KV cache: which are free, who shares one, and which hold the keys and values of a known prefix.

A page that a prefill pass has filled with prompt tokens may be kept under a key (prefix.py). Whoever comes with the
same key shares it: it is counted, never written again, and given back page by page. A kept page that nobody uses any
more is free as well, but found until its place is needed: the one that was given back first goes first.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict


class PagePool:
    """Pages 1 .. pages - 1. Page 0 belongs to the padding rows: they write there and nobody reads it."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.clear()

    def clear(self) -> None:
        """Every page is free and holds nothing, whoever had it."""
        self._empty = list(range(1, self.pages))  # a heap: the lowest first, so that a sequence's tend to be neighbours
        self._users: Counter[int] = Counter()
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # kept, without a user; the first one goes first

    @property
    def free(self) -> int:
        """Pages that `take` can give."""
        return len(self._empty) + len(self._idle)

    @property
    def kept(self) -> int:
        """Pages that are found by a key."""
        return len(self._page_of)

    def used(self, key: bytes) -> bool:
        """Whether somebody uses a page of this key: to share it takes no free page."""
        page = self._page_of.get(key)
        return page is not None and self._users[page] > 0

    def take(self) -> int:
        """A page for one user, who may write it; the caller has asked `free`."""
        if self._empty:
            page = heapq.heappop(self._empty)
        else:
            page, _ = self._idle.popitem(last=False)
            self._forget(page)
        self._users[page] = 1
        return page

    def share(self, key: bytes) -> int | None:
        """The page of this key for one more user, who must not write it; None if there is none."""
        page = self._page_of.get(key)
        if page is not None:
            self._idle.pop(page, None)
            self._users[page] += 1
        return page

    def keep(self, page: int, key: bytes) -> None:
        """Have a page found by a key from now on: nobody writes it any more. Of two of one key the first is kept."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key], self._key_of[page] = page, key

    def give_back(self, page: int) -> None:
        """One user less."""
        self._users[page] -= 1
        if self._users[page]:
            return
        del self._users[page]
        if page in self._key_of:
            self._idle[page] = None
        else:
            heapq.heappush(self._empty, page)

    def flush(self) -> None:
        """Forget every key; pages in use stay their users'."""
        for page in self._idle:
            heapq.heappush(self._empty, page)
        self._idle.clear()
        self._page_of.clear()
        self._key_of.clear()

    def _forget(self, page: int) -> None:
        del self._page_of[self._key_of.pop(page)]
