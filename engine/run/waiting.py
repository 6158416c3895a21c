"""Who is next: the sequences that wait, by priority, fairness between keys, and arrival."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator

from .sequence import Sequence

AGING = 10.0  # seconds after which who waits counts as one class more urgent


class Waiting:
    """A queue. The most urgent class goes first; in it the key of which the fewest run, then the one that has not been
    served for the longest; then who arrived first. A sequence that was preempted keeps its arrival.

    now(): seconds, of any clock."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._since: dict[Sequence, float] = {}
        self._running: Counter[str] = Counter()  # by key
        self._served: dict[str, int] = {}  # by key: when one of it began; only of keys that wait or run
        self._turns = 0
        self._first: Sequence | None = None  # what `first` has found, until something changes

    def __len__(self) -> int:
        return len(self._since)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._since)

    def __contains__(self, seq: Sequence) -> bool:
        return seq in self._since

    def add(self, seq: Sequence) -> None:
        """Queue a sequence."""
        self._since[seq] = self._now()
        self._first = None

    def remove(self, seq: Sequence) -> None:
        """Take a sequence out that does not begin."""
        del self._since[seq]
        self._first = None
        self._tidy(seq.request.schedule.key)

    def first(self) -> Sequence | None:
        """Who is next; None if nobody waits."""
        if self._first is None and self._since:
            now = self._now()
            self._first = min(self._since, key=lambda seq: self._rank(seq, now))
        return self._first

    def began(self, seq: Sequence) -> None:
        """A sequence of the queue runs from now on."""
        key = seq.request.schedule.key
        self._turns += 1
        self._served[key] = self._turns
        self._running[key] += 1
        self.remove(seq)

    def left(self, seq: Sequence) -> None:
        """A sequence that ran has ended, or was preempted."""
        self._running[seq.request.schedule.key] -= 1
        self._first = None
        self._tidy(seq.request.schedule.key)

    def clear(self) -> None:
        """Nobody waits and nobody runs."""
        self._since.clear()
        self._running.clear()
        self._served.clear()
        self._first = None

    def _rank(self, seq: Sequence, now: float) -> tuple[int, int, int, int]:
        schedule = seq.request.schedule
        urgency = schedule.priority - int((now - self._since[seq]) / AGING)
        return urgency, self._running[schedule.key], self._served.get(schedule.key, 0), seq.arrival

    def _tidy(self, key: str) -> None:
        """Forget a key of which nobody is left: there may be any number of them."""
        if self._running[key] <= 0:
            del self._running[key]
            if not any(seq.request.schedule.key == key for seq in self._since):
                self._served.pop(key, None)
