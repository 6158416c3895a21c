"""Quantised matrices decoded at load: every row once, in order, in little memory, on any number of threads."""

from __future__ import annotations

import threading
import tracemalloc
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ostinato.errors import CheckpointError
from ostinato.ops import dequantise
from ostinato.weights.quantised import Planes, Quantised

BF16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Rows(Quantised):
    """A matrix whose row n is full of n; rows from `bad` on cannot be read."""

    where: str = "x: tensor t"
    kind: str = "rows"
    shape: tuple[int, int] = (23, 64)
    align: int = 1
    bad: int = 1 << 30

    @property
    def nbytes(self) -> int:
        return self.shape[0]

    def take(self, rows: np.ndarray) -> Rows:
        raise NotImplementedError

    def _planes(self, first: int, last: int) -> Planes:
        assert first % self.align == 0
        if last > self.bad:
            raise CheckpointError(f"{self.where}: row {self.bad}")
        n = np.arange(first, last, dtype=np.float32)[:, None]
        return Planes("u4", np.ones((len(n), self.shape[1]), np.uint8), self.shape[1], n)


@pytest.fixture(params=[1, 2, 5])
def count(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(dequantise, "threads", lambda: request.param)
    return request.param


@pytest.mark.parametrize("piece", [1, 64, 3 * 64, 1 << 20], ids=["a row", "one row", "three rows", "everything"])
@pytest.mark.parametrize("align", [1, 4])
def test_every_row_once_and_in_order(count: int, monkeypatch: pytest.MonkeyPatch, piece: int, align: int) -> None:
    monkeypatch.setattr(dequantise, "PIECE", piece)
    matrix = Rows(align=align)
    expected = np.broadcast_to(np.arange(23, dtype="f4")[:, None], matrix.shape)
    out = np.empty(matrix.shape, "f4")
    dequantise.fill(matrix, out)
    np.testing.assert_array_equal(out, expected)
    for dtype in (BF16, np.dtype("f2"), np.dtype("f4")):
        at, rows = 0, []
        for first, found in dequantise.pieces(matrix, dtype):
            assert first == at and found.dtype == dtype
            at, rows = at + len(found), [*rows, found]
        np.testing.assert_array_equal(np.concatenate(rows), expected.astype(dtype))


def test_a_row_that_cannot_be_read_is_told_and_no_thread_stays(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dequantise, "PIECE", 64)
    matrix = Rows(bad=7)
    with pytest.raises(CheckpointError, match="x: tensor t: row 7"):
        dequantise.fill(matrix, np.empty(matrix.shape, "f4"))
    taken: list[Any] = []
    with pytest.raises(CheckpointError, match="x: tensor t: row 7"):
        taken += [first for first, _ in dequantise.pieces(matrix, BF16)]
    left = dequantise.pieces(Rows(), BF16)
    next(left)
    left.close()  # in the middle
    assert not [t for t in threading.enumerate() if t.name.startswith("ostinato-dequantise")]


def test_a_matrix_is_never_held_twice(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 MB in float32, and some pieces and chunks beside them."""
    monkeypatch.setattr(dequantise, "PIECE", 1 << 16)
    matrix = Rows(shape=(4096, 1024))
    out = np.empty(matrix.shape, "f4")
    for use in (lambda: dequantise.fill(matrix, out), lambda: [len(p) for _, p in dequantise.pieces(matrix, BF16)]):
        tracemalloc.start()
        use()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < (count + 1) * 1.5e6
