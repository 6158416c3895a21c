"""The pages of the KV cache: free ones, shared ones with a reference count, and those kept in the prefix cache.

A page of prompt tokens that a prefill pass has filled may be kept under a key (prefix.py). Sequences with the same key
share it read-only. A kept page without users counts as free, but can still be found; if it is needed, it is evicted in
LRU order.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict


class PagePool:
    """Pages 1 .. pages - 1. Padding rows write to page 0, which no sequence reads."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.clear()

    def clear(self) -> None:
        """Free all pages and forget their contents."""
        self._empty = list(range(1, self.pages))  # a heap: the lowest first, so that a sequence's tend to be neighbours
        self._users: Counter[int] = Counter()
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # kept pages without users, the least recently used first

    @property
    def free(self) -> int:
        """Pages that `take` can give."""
        return len(self._empty) + len(self._idle)

    @property
    def kept(self) -> int:
        """Pages in the prefix cache."""
        return len(self._page_of)

    def used(self, key: bytes) -> bool:
        """Whether a sequence uses the page of this key, so that sharing it takes no free page."""
        page = self._page_of.get(key)
        return page is not None and self._users[page] > 0

    def take(self) -> int:
        """A page for one user, who may write it. The caller has checked `free`."""
        if self._empty:
            page = heapq.heappop(self._empty)
        else:
            page, _ = self._idle.popitem(last=False)
            self._forget(page)
        self._users[page] = 1
        return page

    def share(self, key: bytes) -> int | None:
        """The page of this key for one more user, read-only; None if there is none."""
        page = self._page_of.get(key)
        if page is not None:
            self._idle.pop(page, None)
            self._users[page] += 1
        return page

    def keep(self, page: int, key: bytes) -> None:
        """Put a page into the prefix cache; it is read-only from now on. A key that has a page keeps that one."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key], self._key_of[page] = page, key

    def give_back(self, page: int) -> None:
        """Remove one user of a page."""
        self._users[page] -= 1
        if self._users[page]:
            return
        del self._users[page]
        if page in self._key_of:
            self._idle[page] = None
        else:
            heapq.heappush(self._empty, page)

    def flush(self) -> None:
        """Empty the prefix cache. Pages in use stay with their users."""
        for page in self._idle:
            heapq.heappush(self._empty, page)
        self._idle.clear()
        self._page_of.clear()
        self._key_of.clear()

    def _forget(self, page: int) -> None:
        del self._page_of[self._key_of.pop(page)]
