"""Finds stop texts in a text that arrives piece by piece.

Built once for a request and shared by its completions. The state of a search is the longest end of the text so far
with which a stop text begins: what must be held back, and all that the next character needs. Stop texts are kept
sorted, so that a look-up halves them instead of trying each one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable


class StopSearch:
    """A set of stop texts. It never changes; each completion keeps its own state, "" at the beginning."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = frozenset(stops)
        self._sorted = sorted(self._stops)
        self._starts = frozenset(stop[0] for stop in self._stops)
        self._lengths = sorted({len(stop) for stop in self._stops}, reverse=True)

    def idle(self, state: str, text: str) -> bool:
        """Whether `text` neither continues nor begins a stop text: the case of most tokens, and quick."""
        return not state and self._starts.isdisjoint(text)

    def advance(self, state: str, text: str, count: bool = True) -> tuple[str, int, int]:
        """Read `text`: (new state, where a match ends in it, length of the match); the last two are 0 without one.

        The match is the stop text that is complete first; of those that end at the same character, the longest. It may
        have begun before `text`. count=False: what is complete by the end of `text` is passed over for good."""
        for end, char in enumerate(text, 1):
            if not state and char not in self._starts:
                continue
            state = self._longest(state + char)
            if count and (length := self._complete(state)):
                return state, end, length
        if state in self._stops and not self._begins(state, longer=True):  # passed over, and nothing continues it
            state = self._longest(state[1:])
        return state, 0, 0

    def _longest(self, text: str) -> str:
        """The longest end of `text` with which a stop text begins."""
        while text and not self._begins(text):
            text = text[1:]
        return text

    def _begins(self, text: str, longer: bool = False) -> bool:
        """Whether a stop text begins with `text`, and goes on after it if `longer`."""
        at = (bisect_right if longer else bisect_left)(self._sorted, text)
        return at < len(self._sorted) and self._sorted[at].startswith(text)

    def _complete(self, state: str) -> int:
        """Length of the longest stop text with which `state` ends, 0 if there is none."""
        for length in self._lengths:
            if length <= len(state) and state[-length:] in self._stops:
                return length
        return 0
