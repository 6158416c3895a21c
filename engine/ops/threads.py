"""The threads of the NumPy backend: tasks that no slow thread holds up, and BLAS held to one thread.

BLAS shares a product out in equal parts and spins until the last one is done. Where other work takes one of its
cores, every product waits for that core. Here a thread takes the next task when it has ended one, and the caller does
again what a helper has not finished in time: with idle cores the tasks take all of them, and with busy ones not much
longer than the caller alone. A result depends on its task, so who computes it does not matter.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

MOST = 16  # threads that are used without being asked for: more of them wait for Python's lock
_PATIENCE = 1.0  # times the caller's own slowest task that it waits for a helper's before it does it again
_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")  # the first one that is set says how many threads to use


def threads() -> int:
    """Threads for products: what the environment asks BLAS to use, else the cores of this process, at most MOST."""
    for name in _VARIABLES:
        if os.environ.get(name, "").isdecimal() and int(os.environ[name]) > 0:
            return int(os.environ[name])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST)


@cache
def hold_blas() -> None:
    """Set the BLAS that NumPy uses, and no other library, to one thread for the rest of the process."""
    from threadpoolctl import ThreadpoolController

    loaded = [lib for lib in ThreadpoolController().lib_controllers if lib.user_api == "blas"]
    packages = Path(np.__file__).resolve().parents[1]
    own = [lib for lib in loaded if _is_of_numpy(Path(lib.filepath).resolve(), packages)]
    for lib in own or (loaded if len(loaded) == 1 else []):  # built from source, NumPy uses the system's
        lib.set_num_threads(1)


def _is_of_numpy(library: Path, packages: Path) -> bool:
    """Whether a library came with NumPy's wheel: in numpy.libs beside it, or in numpy/.dylibs."""
    return packages in library.parents and library.relative_to(packages).parts[0] in ("numpy", "numpy.libs")


class _Job:
    """Tasks 0 .. count - 1. compute(task) runs on any thread, twice if one is late; commit(task, result) runs once."""

    def __init__(self, count: int, compute: Callable[[int], Any], commit: Callable[[int, Any], None]) -> None:
        self._waiting, self._missing = deque(range(count)), set(range(count))
        self._compute, self._commit = compute, commit
        self._lock, self.done = threading.Lock(), threading.Event()

    def work(self) -> float:
        """Do tasks until none waits; seconds of the slowest."""
        slowest = 0.0
        while True:
            try:
                task = self._waiting.popleft()
            except IndexError:
                return slowest
            began = time.perf_counter()
            self.do(task)
            slowest = max(slowest, time.perf_counter() - began)

    def do(self, task: int) -> None:
        """Compute a task; its result counts unless another thread's was there first."""
        result = self._compute(task)
        with self._lock:
            if task in self._missing:
                self._commit(task, result)
                self._missing.discard(task)
                if not self._missing:
                    self.done.set()

    def missing(self) -> list[int]:
        """Tasks without a result."""
        with self._lock:
            return sorted(self._missing)

    def close(self) -> None:
        """Results that come later are dropped: the arrays are the caller's again."""
        self._waiting.clear()
        with self._lock:
            self._missing.clear()


class Team:
    """The calling thread and its helpers, which start with the first job and again in a forked process."""

    def __init__(self, count: int) -> None:
        self.count = count  # threads, the caller included
        self._process = 0
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()

    def run(self, count: int, compute: Callable[[int], Any], commit: Callable[[int, Any], None]) -> None:
        """commit(i, compute(i)) for every i below count, in any order; returns when all are done.

        compute returns new arrays and writes nowhere else. commit is called by one thread at a time."""
        if count == 1 or self.count == 1:
            for task in range(count):
                commit(task, compute(task))
            return
        self._start()
        job = _Job(count, compute, commit)
        for _ in range(min(self.count, count) - 1):
            self._jobs.put(job)
        try:
            slowest = job.work()
            if not job.done.wait(_PATIENCE * slowest):
                for task in job.missing():
                    job.do(task)
        finally:
            job.close()

    def _start(self) -> None:
        if self._process == os.getpid():
            return
        self._process, self._jobs = os.getpid(), queue.SimpleQueue()
        for _ in range(self.count - 1):
            threading.Thread(target=_help, args=(self._jobs,), name="ostinato-numpy", daemon=True).start()


def _help(jobs: queue.SimpleQueue[_Job]) -> None:
    """What a helper does. A task that fails here is done again by the caller, and fails there."""
    with np.errstate(all="ignore"):  # a late task may read arrays that hold something else by now
        while True:
            job = jobs.get()
            with suppress(Exception):
                job.work()
            del job


@cache
def team() -> Team:
    """The process's own; holds BLAS to one thread."""
    hold_blas()
    return Team(threads())
