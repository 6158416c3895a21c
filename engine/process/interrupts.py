"""Ctrl-C at the right moment: not in the middle of a step that works for several callers."""

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
    """Hold SIGINT back inside; its usual handler is called at the end. Yields a list that is not empty once it came.

    now(): whether to call the handler at once after all, because nobody else would suffer. tell(): called when it has
    come, for what sleeps inside. Does nothing outside the main thread, where no signal arrives, or where SIGINT has no
    handler in Python."""
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
