"""GEMMs of the NumPy backend, in which a row's bits depend on that row only.

The order of sums in BLAS depends on the shape of a product and, in some kernels, on the position of a row. So a weight
is divided into blocks of rows by its own shape, and there are few kinds of calls per block: one GEMV per row of a
decode step, else GEMMs of TILE rows. Larger GEMMs are faster; they are used if they give the same bits, which is tested
once per shape with equal rows. OpenBLAS for AVX2 sums the first and last eight rows in a different order: there, rows
of zeros are added on both sides. The weight is the left operand, which is twice as fast for few rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from .threads import Team

TILE = 32  # rows of the smallest GEMM; missing rows are zeros
SIZES = (256, 128, 64)  # rows of larger GEMMs, used if they give the same bits
MARGIN = 8  # rows of zeros before and after, used if they make all rows equal
_BLOCK = 1 << 20  # approximate bytes of a weight block, so that it stays in a core's cache


def block_rows(n: int, k: int) -> int:
    """Rows of a weight [n, k] per block; the last block may be smaller."""
    return min(n, max(64, _BLOCK // (4 * k) // 64 * 64))


def decode(team: Team, x: np.ndarray, weight: np.ndarray, y: np.ndarray) -> None:
    """y = x @ weight.T, one GEMV per row.  x [R, K], weight [N, K], y [R, N]"""
    step = block_rows(*weight.shape)
    if step == len(weight):
        for row, result in zip(x, y, strict=True):
            np.dot(weight, row, out=result)
        return

    def compute(block: int) -> np.ndarray:
        part = weight[block * step : (block + 1) * step]
        out = np.empty((len(x), len(part)), np.float32)
        for row, result in zip(x, out, strict=True):
            np.dot(part, row, out=result)
        return out

    def commit(block: int, part: np.ndarray) -> None:
        y[:, block * step : block * step + part.shape[1]] = part

    team.run(-(-len(weight) // step), compute, commit)


def prefill(team: Team, x: np.ndarray, weight: np.ndarray, y: np.ndarray) -> None:
    """y = x @ weight.T, in GEMMs of TILE or more rows.  x [R, K], weight [N, K], y [R, N]"""
    n, k = weight.shape
    how = tiling(n, k)
    step, tiles = block_rows(n, k), tiles_of(len(x), how.sizes)

    def compute(task: int) -> np.ndarray:
        (first, size), a = tiles[task % len(tiles)], task // len(tiles) * step
        return _product(weight[a : a + step], x[first : first + size], size, how.margin)

    def commit(task: int, part: np.ndarray) -> None:
        (first, size), a = tiles[task % len(tiles)], task // len(tiles) * step
        y[first : first + size, a : a + step] = part.T[: len(x) - first]

    team.run(-(-n // step) * len(tiles), compute, commit)


def _product(weight: np.ndarray, rows: np.ndarray, size: int, margin: int) -> np.ndarray:
    """weight @ rows.T, [N, size]; missing rows and margins are zeros."""
    if margin or len(rows) < size:
        padded = np.zeros((size + 2 * margin, rows.shape[1]), np.float32)
        padded[margin : margin + len(rows)] = rows
        rows = padded
    return np.matmul(weight, rows.T)[:, margin : margin + size]


def tiles_of(rows: int, allowed: tuple[int, ...]) -> list[tuple[int, int]]:
    """(first row, number of rows) of the GEMMs for `rows` rows, large ones first."""
    found, first = [], 0
    while first < rows:
        size = next((n for n in allowed if n <= rows - first), TILE)
        found.append((first, size))
        first += size
    return found


@dataclass(frozen=True)
class Tiling:
    """How rows are divided into GEMMs with weights of one shape."""

    sizes: tuple[int, ...]  # allowed rows of a GEMM, descending to TILE
    margin: int  # rows of zeros on both sides
    anywhere: bool  # a row has the same bits at every position of a GEMM; else only at equal positions


@cache
def tiling(n: int, k: int) -> Tiling:
    """The tiling for a weight [n, k]: the first margin that makes rows equal, and the sizes with the bits of TILE."""
    step = block_rows(n, k)
    parts = {step, n % step or step}
    for margin in (0, MARGIN):
        if all(_uniform(part, k, margin) for part in parts):
            sizes = (size for size in SIZES if all(_agree(size, part, k, margin) for part in parts))
            return Tiling((*sizes, TILE), margin, anywhere=True)
    return Tiling((TILE,), 0, anywhere=False)


@cache
def _uniform(n: int, k: int, margin: int) -> bool:
    """Whether all rows of a GEMM of TILE equal rows have the same bits."""
    trial = _trial(TILE, n, k, margin)
    return bool((trial == trial[:1]).all())


@cache
def _agree(size: int, n: int, k: int, margin: int) -> bool:
    """Whether a GEMM of `size` rows gives the bits of one of TILE rows."""
    return bool((_trial(size, n, k, margin) == _trial(TILE, n, k, margin)[:1]).all())


def _trial(rows: int, n: int, k: int, margin: int) -> np.ndarray:
    """GEMM [rows, n] of `rows` equal rows. The values do not matter: BLAS chooses the order of sums by shape."""
    rng = np.random.default_rng(0)
    weight, row = rng.random((n, k), np.float32), rng.random(k, np.float32)
    return _product(weight - np.float32(0.5), np.repeat(row[None], rows, 0), rows, margin).T
