"""The thread team: every task commits once even if a helper is slow, fails or forks; BLAS uses one thread."""

from __future__ import annotations

import multiprocessing
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import threadpoolctl

from ostinato.ops import threads
from ostinato.ops.threads import Team


def squares(team: Team, count: int) -> list[int]:
    """Compute i * i for every i below count on the team."""
    found: list[list[int]] = [[] for _ in range(count)]
    team.run(count, lambda i: i * i, lambda i, result: found[i].append(result))
    assert [len(results) for results in found] == [1] * count
    return [results[0] for results in found]


@pytest.mark.parametrize("count", [1, 2, 3, 50])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_task_is_committed_once(size: int, count: int) -> None:
    team = Team(size)
    for _ in range(20):
        assert squares(team, count) == [i * i for i in range(count)]


def test_the_caller_does_what_a_helper_does_not_finish() -> None:
    """A helper that gets no core delays no one, and its late result is dropped."""
    caller, go_on, late = threading.current_thread(), threading.Event(), threading.Event()
    computed: list[int] = []
    committed: list[tuple[int, str]] = []

    def compute(i: int) -> str:
        if threading.current_thread() is not caller:
            late.set()
            assert go_on.wait(30)
        else:
            late.wait(30)  # until the helper has taken a task
        computed.append(i)
        return threading.current_thread().name

    team = Team(2)
    team.run(4, compute, lambda i, who: committed.append((i, who)))
    assert sorted(i for i, _ in committed) == [0, 1, 2, 3]
    assert {who for _, who in committed} == {caller.name}
    go_on.set()
    assert squares(team, 9)[8] == 64  # works whether or not the helper is free again
    assert len(committed) == 4


@pytest.mark.parametrize("only_helper", [True, False], ids=["once", "always"])
def test_a_task_that_fails_is_done_again_by_the_caller(only_helper: bool) -> None:
    caller = threading.current_thread()

    def compute(i: int) -> int:
        if i == 2 and not (only_helper and threading.current_thread() is caller):
            raise ValueError("task 2")
        return i

    results: dict[int, int] = {}
    if only_helper:
        Team(3).run(5, compute, results.__setitem__)
        assert results == {i: i for i in range(5)}
    else:
        with pytest.raises(ValueError, match="task 2"):
            Team(3).run(5, compute, results.__setitem__)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_helpers_start_again_in_a_forked_process() -> None:
    team = Team(2)
    squares(team, 8)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def child() -> None:
        alive = threading.active_count()
        there.send((squares(team, 8), threading.active_count() - alive))

    process = context.Process(target=child)
    process.start()
    assert here.poll(20)
    assert here.recv() == ([i * i for i in range(8)], 1)
    process.join(20)


@pytest.mark.parametrize(("asked", "expected"), [
    pytest.param({"OPENBLAS_NUM_THREADS": "3"}, 3, id="openblas"),
    pytest.param({"OMP_NUM_THREADS": "2"}, 2, id="openmp"),
    pytest.param({"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "7"}, 1, id="openblas-first"),
    pytest.param({"OPENBLAS_NUM_THREADS": "0", "OMP_NUM_THREADS": "many"}, 5, id="no-numbers"),
    pytest.param({}, 5, id="cores"),
])  # fmt: skip
def test_the_environment_wins(monkeypatch: pytest.MonkeyPatch, asked: dict[str, str], expected: int) -> None:
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(5)), raising=False)
    assert threads.threads() == expected


SITE = "site-packages"
LIBRARIES = {
    "wheel": (["numpy.libs/libscipy_openblas64_.so", "scipy.libs/libscipy_openblas.so", "torch/lib/libmkl_rt.so"], [0]),
    "macos": (["numpy/.dylibs/libopenblas64_.dylib", "scipy/.dylibs/libopenblas.dylib"], [0]),
    "system": (["../../libopenblas.so.0"], [0]),
    "unknown": (["torch/lib/libmkl_rt.so", "scipy.libs/libscipy_openblas.so"], []),
}


@pytest.mark.parametrize(("files", "held"), LIBRARIES.values(), ids=LIBRARIES)
def test_no_other_librarys_threads_are_touched(
    monkeypatch: pytest.MonkeyPatch, files: list[str], held: list[int]
) -> None:
    packages = threads.Path(np.__file__).resolve().parents[1]
    calls: list[str] = []

    def library(file: str, api: str = "blas") -> SimpleNamespace:
        path = str(packages / file)
        return SimpleNamespace(
            user_api=api, filepath=path, set_num_threads=lambda n: calls.append(file) if n == 1 else None
        )

    loaded = [*map(library, files), library("torch/lib/libgomp.so", "openmp")]
    monkeypatch.setattr(threadpoolctl, "ThreadpoolController", lambda: SimpleNamespace(lib_controllers=loaded))
    threads.hold_blas.__wrapped__()
    assert calls == [files[i] for i in held]


def test_blas_has_one_thread_once_the_backend_is_there() -> None:
    threads.team()
    own = [lib for lib in threadpoolctl.threadpool_info() if "numpy" in lib["filepath"]]
    assert all(lib["num_threads"] == 1 for lib in own)
