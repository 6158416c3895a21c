"""Delays Ctrl-C during a step that runs the requests of several callers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


def _never() -> bool:
    return False


@contextmanager
def held(now: Callable[[], bool] = _never, tell: Callable[[], None] | None = None) -> Iterator[list[int]]:
    """Delay SIGINT: its usual handler runs at the end. Yields a list that is not empty after SIGINT arrived.

    now(): True if the handler may run immediately, because no other caller is affected. tell(): called when SIGINT is
    delayed, to wake code that sleeps inside. Does nothing outside the main thread, which alone receives signals, or if
    SIGINT has no Python handler."""
    caught: list[int] = []
    usual = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if not callable(usual):
        yield caught
        return

    def handler(number: int, frame: FrameType | None) -> None:
        if now():
            usual(number, frame)
        else:
            caught.append(number)
            if tell is not None:
                tell()

    signal.signal(signal.SIGINT, handler)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, usual)
        if caught:
            usual(caught[0], None)
