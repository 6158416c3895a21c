"""Quantised matrices decoded at load, for backends that do not compute with what is stored: piece by piece, several
threads at a time, so that memory never holds a second copy of a matrix.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..weights.quantised import Quantised
from .threads import threads

PIECE = 2 << 20  # numbers that a thread decodes at a time


def fill(matrix: Quantised, out: np.ndarray) -> None:
    """The numbers of a quantised matrix, written to out [N, K] float32."""
    with _pool() as pool:
        pieces = [pool.submit(matrix.numbers, first, last, out[first:last]) for first, last in _spans(matrix)]
        for piece in pieces:
            piece.result()


def pieces(matrix: Quantised, dtype: Any) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, some rows [n, K] in dtype) of a quantised matrix, in order."""

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
    """(first row, last row + 1) of the pieces."""
    rows, k = matrix.shape
    step = max(1, PIECE // k // matrix.align) * matrix.align
    return ((first, min(first + step, rows)) for first in range(0, rows, step))


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for one matrix. An error or Ctrl-C waits for the pieces at work, not for those that nobody has begun."""
    pool = ThreadPoolExecutor(threads(), thread_name_prefix="ostinato-dequantise")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
