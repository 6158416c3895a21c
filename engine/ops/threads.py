"""The threads of the NumPy backend: tasks that a slow thread does not delay, and BLAS limited to one thread.

BLAS divides a product equally among threads and spins until the last part is done. If other work occupies one core,
every product waits for that core. Here a thread takes the next task when it is done with one, and the caller repeats a
task that a helper has not finished in time. On idle cores the work uses all of them; on busy ones it takes little
longer than the caller alone. A result depends on its task only, so it does not matter which thread computes it.
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

MOST = 16  # default maximum of threads: more would wait for the GIL
_PATIENCE = 1.0  # how long the caller waits for a helper before it repeats its task, in times of its own slowest task
_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")  # the first one that is set gives the number of threads


def threads() -> int:
    """Number of threads: the environment's setting for BLAS, else the cores of this process, at most MOST."""
    for name in _VARIABLES:
        if os.environ.get(name, "").isdecimal() and int(os.environ[name]) > 0:
            return int(os.environ[name])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST)


@cache
def hold_blas() -> None:
    """Limit the BLAS of NumPy, and no other library, to one thread for the rest of the process."""
    from threadpoolctl import ThreadpoolController

    loaded = [lib for lib in ThreadpoolController().lib_controllers if lib.user_api == "blas"]
    packages = Path(np.__file__).resolve().parents[1]
    own = [lib for lib in loaded if _is_of_numpy(Path(lib.filepath).resolve(), packages)]
    for lib in own or (loaded if len(loaded) == 1 else []):  # a NumPy built from source uses the system's BLAS
        lib.set_num_threads(1)


def _is_of_numpy(library: Path, packages: Path) -> bool:
    """Whether a library belongs to NumPy's wheel: in numpy.libs, or in numpy/.dylibs."""
    return packages in library.parents and library.relative_to(packages).parts[0] in ("numpy", "numpy.libs")


class _Job:
    """Tasks 0 .. count - 1. compute(task) runs on any thread, twice if one is late; commit(task, result) runs once."""

    def __init__(self, count: int, compute: Callable[[int], Any], commit: Callable[[int, Any], None]) -> None:
        self._waiting, self._missing = deque(range(count)), set(range(count))
        self._compute, self._commit = compute, commit
        self._lock, self.done = threading.Lock(), threading.Event()

    def work(self) -> float:
        """Run tasks until none is waiting; return the seconds of the slowest."""
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
        """Compute a task and commit its result, unless another thread has already done so."""
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
        """Drop all later results, because the caller reuses the arrays."""
        self._waiting.clear()
        with self._lock:
            self._missing.clear()


class Team:
    """The calling thread and its helpers. Helpers start with the first job, and again in a forked process."""

    def __init__(self, count: int) -> None:
        self.count = count  # threads, including the caller
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
    """The loop of a helper thread. The caller repeats a task that fails here, and gets its error."""
    with np.errstate(all="ignore"):  # a late task may read arrays that are already reused
        while True:
            job = jobs.get()
            with suppress(Exception):
                job.work()
            del job


@cache
def team() -> Team:
    """The team of this process. Limits BLAS to one thread."""
    hold_blas()
    return Team(threads())
