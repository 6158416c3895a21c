"""The queue of waiting sequences: by priority, fairness between keys, and arrival."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator

from .sequence import Sequence

AGING = 10.0  # seconds of waiting that lower the priority number by one


class Waiting:
    """The order: lowest priority number; then the key with the fewest running sequences; then the key that was served
    longest ago; then arrival. A preempted sequence keeps its arrival.

    now(): seconds, of any clock."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._since: dict[Sequence, float] = {}
        self._running: Counter[str] = Counter()  # by key
        self._served: dict[str, int] = {}  # by key: number of its last admission; only keys that wait or run
        self._turns = 0
        self._first: Sequence | None = None  # the result of `first`, until something changes

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
        """Remove a sequence that ends before it is admitted."""
        del self._since[seq]
        self._first = None
        self._tidy(seq.request.schedule.key)

    def first(self) -> Sequence | None:
        """The next sequence; None if none waits."""
        if self._first is None and self._since:
            now = self._now()
            self._first = min(self._since, key=lambda seq: self._rank(seq, now))
        return self._first

    def began(self, seq: Sequence) -> None:
        """Move a sequence from the queue to the running ones."""
        key = seq.request.schedule.key
        self._turns += 1
        self._served[key] = self._turns
        self._running[key] += 1
        self.remove(seq)

    def left(self, seq: Sequence) -> None:
        """Note that a running sequence has ended or was preempted."""
        self._running[seq.request.schedule.key] -= 1
        self._first = None
        self._tidy(seq.request.schedule.key)

    def clear(self) -> None:
        """Forget all sequences."""
        self._since.clear()
        self._running.clear()
        self._served.clear()
        self._first = None

    def _rank(self, seq: Sequence, now: float) -> tuple[int, int, int, int]:
        schedule = seq.request.schedule
        urgency = schedule.priority - int((now - self._since[seq]) / AGING)
        return urgency, self._running[schedule.key], self._served.get(schedule.key, 0), seq.arrival

    def _tidy(self, key: str) -> None:
        """Forget a key without sequences: the number of keys is not bounded."""
        if self._running[key] <= 0:
            del self._running[key]
            if not any(seq.request.schedule.key == key for seq in self._since):
                self._served.pop(key, None)
