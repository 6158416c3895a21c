"""Search for stop texts in a text that arrives piece by piece.

A search is built once per request and shared by its completions. The state of a completion is the longest suffix of its
text that is a prefix of a stop text. That suffix must be held back, and the next character needs no other state. Stop
texts are sorted, so a prefix is found by binary search.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable


class StopSearch:
    """An immutable set of stop texts. Each completion keeps its own state, "" at the beginning."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = frozenset(stops)
        self._sorted = sorted(self._stops)
        self._starts = frozenset(stop[0] for stop in self._stops)
        self._lengths = sorted({len(stop) for stop in self._stops}, reverse=True)

    def idle(self, state: str, text: str) -> bool:
        """Whether `text` neither continues nor begins a stop text. True for most tokens, and cheap."""
        return not state and self._starts.isdisjoint(text)

    def advance(self, state: str, text: str, count: bool = True) -> tuple[str, int, int]:
        """Search `text`: (new state, end of the match in `text`, length of the match). Without a match both are 0.

        The match is the stop text that ends first; among those that end at the same character, the longest. It may
        begin before `text`. count=False: a stop text that ends in `text` is ignored, now and later."""
        for end, char in enumerate(text, 1):
            if not state and char not in self._starts:
                continue
            state = self._longest(state + char)
            if count and (length := self._complete(state)):
                return state, end, length
        if state in self._stops and not self._begins(state, longer=True):  # ignored, and nothing continues it
            state = self._longest(state[1:])
        return state, 0, 0

    def _longest(self, text: str) -> str:
        """The longest suffix of `text` that is a prefix of a stop text."""
        while text and not self._begins(text):
            text = text[1:]
        return text

    def _begins(self, text: str, longer: bool = False) -> bool:
        """Whether `text` is a prefix of a stop text. longer: of one that is longer than `text`."""
        at = (bisect_right if longer else bisect_left)(self._sorted, text)
        return at < len(self._sorted) and self._sorted[at].startswith(text)

    def _complete(self, state: str) -> int:
        """Length of the longest stop text that is a suffix of `state`; 0 if there is none."""
        for length in self._lengths:
            if length <= len(state) and state[-length:] in self._stops:
                return length
        return 0
