"""Actions in a forked child process, whose copy of the memory holds its parent's locks, pipes and devices.

A lock held by another thread would never be released, as that thread does not exist in the child. Two processes that
share a pipe would read each other's answers. A CUDA context does not work after a fork.
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

_actions: dict[int, weakref.WeakMethod] = {}  # in order of registration
_numbers = itertools.count()


def in_child(method: Callable[[], None]) -> None:
    """Call a bound method in each child made by os.fork or multiprocessing, as long as its object lives."""
    for number, known in _actions.copy().items():  # copy() is atomic; list(items) lets other threads run in between
        if known() is None:
            _actions.pop(number, None)  # another thread may have removed it already
    _actions[next(_numbers)] = weakref.WeakMethod(method)


def _run() -> None:
    for action in _actions.copy().values():
        if (method := action()) is not None:
            method()


os.register_at_fork(after_in_child=_run)


def never_destroy(thing: Any) -> None:
    """Keep an object, and all it refers to, until the process ends. Their destructors never run."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


class Lock:
    """A reentrant lock that is free in a forked child, even if a thread of the parent held it."""

    def __init__(self) -> None:
        self._renew()
        in_child(self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(RuntimeError):  # in the child of a fork inside the `with` block
            self._lock.release()
