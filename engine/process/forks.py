"""What a forked child process must do anew: locks, pipes and devices in its copy of the memory are its parent's.

A thread that held a lock does not exist in the child, so the lock would never be free; two processes that share a pipe
read each other's answers; a CUDA context does not work after a fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

_actions: dict[int, weakref.WeakMethod] = {}  # in the order in which they were registered
_numbers = itertools.count()


def in_child(method: Callable[[], None]) -> None:
    """Call a bound method in every child that os.fork or multiprocessing makes, as long as its object lives."""
    for number, known in _actions.copy().items():  # copied in one go: list(items) lets other threads in between
        if known() is None:
            _actions.pop(number, None)  # another thread may have been here as well
    _actions[next(_numbers)] = weakref.WeakMethod(method)


def _run() -> None:
    for action in _actions.copy().values():
        if (method := action()) is not None:
            method()


os.register_at_fork(after_in_child=_run)


def never_destroy(thing: Any) -> None:
    """Keep an object, and all it refers to, until the process has ended: not even then do destructors run."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


class Lock:
    """A reentrant lock that is free in a forked child, whoever held it in the parent."""

    def __init__(self) -> None:
        self._renew()
        in_child(self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(RuntimeError):  # this thread forked while it held the lock, and is now in the child
            self._lock.release()
