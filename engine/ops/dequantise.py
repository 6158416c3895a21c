"""Dequantises matrices at load, for backends that do not compute with quantised weights.

Several threads decode pieces of a matrix, so the host never holds a second copy of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..weights.quantised import Quantised
from .threads import threads

PIECE = 2 << 20  # numbers per task of a thread


def fill(matrix: Quantised, out: np.ndarray) -> None:
    """Dequantise a matrix into out [N, K] float32."""
    with _pool() as pool:
        tasks = [pool.submit(matrix.numbers, first, last, out[first:last]) for first, last in _spans(matrix)]
        for task in tasks:
            task.result()


def pieces(matrix: Quantised, dtype: Any) -> Generator[tuple[int, np.ndarray], None, None]:
    """(first row, rows [n, K] in dtype) of a quantised matrix, piece by piece in order."""

    def decoded(first: int, last: int) -> tuple[int, np.ndarray]:
        return first, matrix.numbers(first, last, np.empty((last - first, matrix.shape[1]), dtype))

    with _pool() as pool:
        ahead: deque[Any] = deque()
        for span in _spans(matrix):
            ahead.append(pool.submit(decoded, *span))
            if len(ahead) > threads():
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _spans(matrix: Quantised) -> Iterator[tuple[int, int]]:
    """(first row, last row + 1) of each piece."""
    rows, k = matrix.shape
    step = max(1, PIECE // k // matrix.align) * matrix.align
    return ((first, min(first + step, rows)) for first in range(0, rows, step))


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for one matrix. On an error or Ctrl-C, pieces that are running end and the others are dropped."""
    pool = ThreadPoolExecutor(threads(), thread_name_prefix="ostinato-dequantise")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
