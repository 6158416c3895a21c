"""Threads for the NumPy backend: pieces of a matrix product, taken by whoever is free.

BLAS has threads of its own, but they wait for each other by spinning: on cores that others use too, a product takes
twenty times as long as on one thread. Here the calling thread works through all pieces itself, helpers take some of
them away if they get to run, and nobody waits for a helper that has not begun. Used by ops/numpy.py.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread

import numpy as np

_LONGEST = 16  # threads; memory is busy long before


class Helpers:
    """`count` threads beside the caller's. They never end and hold nothing between jobs."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        for _ in range(count):
            Thread(target=self._work, name="ostinato-numpy", daemon=True).start()

    def _work(self) -> None:
        while True:
            self._jobs.get()()

    def each(self, work: Callable[[int], None], pieces: range) -> None:
        """work(i) for every i of pieces, on any thread, in any order. Returns after the last; raises what one did."""
        if not self._count or len(pieces) < 2:
            for piece in pieces:
                work(piece)
            return
        todo, done = iter(pieces), SimpleQueue()  # to take from a range iterator is atomic

        def help() -> None:
            for piece in todo:
                try:
                    work(piece)
                except BaseException as e:
                    done.put(e)
                else:
                    done.put(None)

        for _ in range(min(self._count, len(pieces) - 1)):
            self._jobs.put(help)
        own = 0
        for piece in todo:
            work(piece)
            own += 1
        for error in [done.get() for _ in range(len(pieces) - own)]:
            if error is not None:
                raise error


@cache
def helpers() -> Helpers:
    """The process's helpers: as many threads in all as BLAS would use (OPENBLAS_NUM_THREADS), or as there are cores."""
    found = _openblas()
    threads = found[0]() if found else len(os.sched_getaffinity(0))
    return Helpers(min(threads, _LONGEST) - 1)


os.register_at_fork(after_in_child=helpers.cache_clear)  # threads do not survive a fork


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """BLAS works on the calling thread alone inside, where it is the OpenBLAS that NumPy's wheels bring.

    May be entered from several threads: who comes first changes the setting, who leaves last puts it back."""
    found = _openblas()
    if found is None:
        yield
        return
    get, put = found
    with _lock:
        if not _inside:
            _inside.append(get())
            put(1)
        _inside.append(0)
    try:
        yield
    finally:
        with _lock:
            _inside.pop()
            if len(_inside) == 1:
                put(_inside.pop())


_lock = Lock()
_inside: list[int] = []  # the setting to restore, then one entry for everybody inside


@cache
def _openblas() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """What reads and sets the number of threads of NumPy's OpenBLAS; None for another BLAS."""
    for path in sorted((Path(np.__file__).parents[1] / "numpy.libs").glob("libscipy_openblas*")):
        library = ctypes.CDLL(str(path))
        for suffix in ("64_", ""):
            get = getattr(library, f"scipy_openblas_get_num_threads{suffix}", None)
            put = getattr(library, f"scipy_openblas_set_num_threads{suffix}", None)
            if get is not None and put is not None:
                put.argtypes, put.restype = [ctypes.c_int], None
                return get, put
    return None
