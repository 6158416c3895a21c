"""One thread works, the others sleep: a lock that is handed over with a condition for each sleeper.

    with held(..., turn.rouse): Ctrl-C must not come between the next lines
        turn.sleep(ready)       until ready(), or until the turn is free for this thread
        if turn.take():
            try: work           touch what only the owner of the turn may touch
            finally: turn.pass_on()

A thread that is woken for the turn and leaves without it wakes the next one, so the turn is never free while somebody
sleeps who wants it. `lock` guards what the owner hands to sleepers: it is held for moments, never during the work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress


def _always() -> bool:
    return True


class _Sleeper:
    """A sleeping thread. A wake-up that comes before it sleeps is not lost; several count as one."""

    def __init__(self, ready: Callable[[], bool], wants: Callable[[], bool]) -> None:
        self.ready = ready  # what it waits for; called with the lock held
        self.wants = wants  # whether it would take the turn
        self._bell = threading.Lock()
        self._bell.acquire()

    def ring(self) -> None:
        """Wake it. Safe in signal handlers and finalizers, even inside another ring."""
        with suppress(RuntimeError):  # already released
            self._bell.release()

    def rest(self, lock: threading.Lock) -> None:
        """Sleep until `ring`. Releases the lock meanwhile, which the caller holds."""
        lock.release()
        try:
            self._bell.acquire()
        finally:
            lock.acquire()


class Turn:
    """One turn among any number of threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._taken = False
        self._first = 0  # sleeping threads that take precedence; they are at the head of the list
        self._sleepers: list[_Sleeper] = []

    @property
    def asked_for(self) -> bool:
        """Whether a thread with precedence waits: the owner should pass the turn on soon."""
        return self._first > 0

    def take(self, first: bool = False, wait: bool = True) -> bool:
        """Take the turn if it is free. first: with precedence. wait: block on the lock; a finalizer must not, as it may
        interrupt the thread that holds it."""
        if not self.lock.acquire(blocking=wait):
            return False
        try:
            free = not self._taken and (first or not self._first)
            self._taken = self._taken or free
            return free
        finally:
            self.lock.release()

    def pass_on(self) -> None:
        """Give up the turn and wake a sleeper that wants it."""
        with self.lock:
            self._taken = False
            self.wake()

    def sleep(self, ready: Callable[[], bool], wants: Callable[[], bool] = _always, first: bool = False) -> None:
        """Return once ready(), or once the turn is free for this thread and wants()."""

        def done() -> bool:
            return ready() or (not (self._taken or (self._first and not first)) and wants())

        with self.lock:
            if done():
                return
            sleeper = _Sleeper(ready, wants)
            self._first += first
            self._sleepers.insert(0 if first else len(self._sleepers), sleeper)
            try:
                while not done():  # once more: `rouse` may have come before it was among the sleepers
                    sleeper.rest(self.lock)
            finally:
                self._first -= first
                self._sleepers.remove(sleeper)
                if not self._taken:
                    self.wake()

    def wake(self) -> None:
        """Wake the sleepers that are ready and, if the turn is free, the first that wants it. Call with the lock."""
        free = not self._taken
        for sleeper in self._sleepers:
            wanted = free and sleeper.wants()
            if wanted or sleeper.ready():
                sleeper.ring()
            free = free and not wanted

    def rouse(self) -> None:
        """Make every sleeper check again. Takes no lock, so it is safe in signal handlers and finalizers."""
        for sleeper in list(self._sleepers):
            sleeper.ring()
