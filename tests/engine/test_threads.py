"""Products shared out among threads: every piece once, the same bits for any number of threads, BLAS left as it was."""

from __future__ import annotations

import multiprocessing
import threading
from collections import Counter

import numpy as np
import pytest

from ostinato.ops import numpy as module
from ostinato.ops.numpy import NumpyOps
from ostinato.ops.threads import Helpers, helpers, one_blas_thread


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("pieces", [range(0), range(1), range(0, 100, 7)])
def test_every_piece_is_done_exactly_once_before_it_returns(count: int, pieces: range) -> None:
    pool, done = Helpers(count), Counter()
    for _ in range(50):
        done.clear()
        pool.each(lambda i: done.update([i]), pieces)
        assert done == Counter(pieces)


def test_helpers_do_take_part_and_the_caller_does_not_wait_for_those_that_do_not() -> None:
    pool, met = Helpers(1), threading.Barrier(2, timeout=10)
    pool.each(lambda i: (met.wait(), None)[1], range(2))  # passes only if two threads are inside at once
    gate, done = threading.Event(), []
    pool._jobs.put(gate.wait)  # pyright: ignore[reportArgumentType]  the only helper is busy
    pool.each(done.append, range(5))
    assert done == [0, 1, 2, 3, 4]
    gate.set()


@pytest.mark.parametrize("bad", [0, 9])
def test_what_a_piece_raises_reaches_the_caller(bad: int) -> None:
    def work(i: int) -> None:
        if i == bad:
            raise ValueError(f"piece {i}")

    pool = Helpers(2)
    with pytest.raises(ValueError, match=f"piece {bad}"):
        pool.each(work, range(10))
    pool.each(lambda i: None, range(10))  # and the helpers live on


@pytest.mark.parametrize("rows", [1, 5, 16, 64])
def test_a_product_has_the_same_bits_on_any_number_of_threads(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((rows, 300), np.float32), rng.standard_normal((2000, 300), np.float32)
    results = []
    for count in (0, 1, 3):
        pool = Helpers(count)
        monkeypatch.setattr(module, "helpers", lambda pool=pool: pool)
        results.append(np.empty((rows, 2000), np.float32))
        NumpyOps().linear(x, w, results[-1])
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_blas_has_its_threads_back_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = [4]
    monkeypatch.setattr("ostinato.ops.threads._openblas", lambda: (lambda: threads[-1], threads.append))
    with pytest.raises(KeyError), one_blas_thread():
        assert threads[-1] == 1
        raise KeyError
    assert threads == [4, 1, 4]
    first, second = one_blas_thread(), one_blas_thread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert threads[-1] == 1  # the second is still inside
    second.__exit__(None, None, None)
    assert threads == [4, 1, 4, 1, 4]


def _product(queue) -> None:
    out = np.empty((1, 4096), np.float32)
    NumpyOps().linear(np.ones((1, 512), np.float32), np.ones((4096, 512), np.float32), out)
    queue.put(float(out.sum()))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_helpers_of_its_own() -> None:
    helpers()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_product, args=(queue,))
    process.start()
    process.join(20)
    assert process.exitcode == 0 and queue.get() == 4096 * 512
