"""Matrix products of NumPy in which a row's bits depend on that row alone.

BLAS sums up in an order that depends on a product's shape and, with some kernels, on where a row stands in it. So a
weight is cut into blocks of rows by its own shape, and every product with a block is one of few calls: a matrix-vector
product for each row of a decode step, else a product of TILE rows. Where more rows at a time give the same bits, which
is tried once for each shape with rows that are all equal, they are taken together, which is faster. OpenBLAS for AVX2
has another order for the first and the last eight rows: there, rows of zeros stand around the others. The weight is the
left operand: with few rows that is twice as fast as the right one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from .threads import Team

TILE = 32  # rows of the smallest product; rows that are not there are zeros
SIZES = (256, 128, 64)  # rows of larger products, where they give the same bits
MARGIN = 8  # rows of zeros before and after, where they make all others equal
_BLOCK = 1 << 20  # bytes of a weight in a product, about: a core's cache holds them for all rows


def block_rows(n: int, k: int) -> int:
    """Rows of a weight [n, k] in one product; the last block may be smaller."""
    return min(n, max(64, _BLOCK // (4 * k) // 64 * 64))


def decode(team: Team, x: np.ndarray, weight: np.ndarray, y: np.ndarray) -> None:
    """y = x @ weight.T, a row at a time.  x [R, K], weight [N, K], y [R, N]"""
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
    """y = x @ weight.T, TILE rows or more at a time.  x [R, K], weight [N, K], y [R, N]"""
    n, k = weight.shape
    way = way_of(n, k)
    step, tiles = block_rows(n, k), tiles_of(len(x), way.sizes)

    def compute(task: int) -> np.ndarray:
        (first, size), a = tiles[task % len(tiles)], task // len(tiles) * step
        return _product(weight[a : a + step], x[first : first + size], size, way.margin)

    def commit(task: int, part: np.ndarray) -> None:
        (first, size), a = tiles[task % len(tiles)], task // len(tiles) * step
        y[first : first + size, a : a + step] = part.T[: len(x) - first]

    team.run(-(-n // step) * len(tiles), compute, commit)


def _product(weight: np.ndarray, rows: np.ndarray, size: int, margin: int) -> np.ndarray:
    """[N, size] weight @ rows.T, with zeros for rows that are not there and for the margins."""
    if margin or len(rows) < size:
        padded = np.zeros((size + 2 * margin, rows.shape[1]), np.float32)
        padded[margin : margin + len(rows)] = rows
        rows = padded
    return np.matmul(weight, rows.T)[:, margin : margin + size]


def tiles_of(rows: int, allowed: tuple[int, ...]) -> list[tuple[int, int]]:
    """(first row, rows) of the products that `rows` rows are cut into, large ones first."""
    found, first = [], 0
    while first < rows:
        size = next((n for n in allowed if n <= rows - first), TILE)
        found.append((first, size))
        first += size
    return found


@dataclass(frozen=True)
class Way:
    """How products with weights of one shape are made."""

    sizes: tuple[int, ...]  # rows of a product, descending to TILE
    margin: int
    anywhere: bool  # a row has the same bits at every place of a product; else at the same place


@cache
def way_of(n: int, k: int) -> Way:
    """The way of a weight [n, k]: the first margin that makes rows equal, and sizes that give the bits of TILE rows."""
    step = block_rows(n, k)
    parts = {step, n % step or step}
    for margin in (0, MARGIN):
        if all(_uniform(part, k, margin) for part in parts):
            sizes = (size for size in SIZES if all(_agree(size, part, k, margin) for part in parts))
            return Way((*sizes, TILE), margin, anywhere=True)
    return Way((TILE,), 0, anywhere=False)


@cache
def _uniform(n: int, k: int, margin: int) -> bool:
    """Whether all of TILE rows have the same bits."""
    trial = _trial(TILE, n, k, margin)
    return bool((trial == trial[:1]).all())


@cache
def _agree(size: int, n: int, k: int, margin: int) -> bool:
    """Whether all of `size` rows have the bits of TILE rows."""
    return bool((_trial(size, n, k, margin) == _trial(TILE, n, k, margin)[:1]).all())


def _trial(rows: int, n: int, k: int, margin: int) -> np.ndarray:
    """[rows, n] products of one row, `rows` times over: BLAS chooses its order without looking at the numbers."""
    rng = np.random.default_rng(0)
    weight, row = rng.random((n, k), np.float32), rng.random(k, np.float32)
    return _product(weight - np.float32(0.5), np.repeat(row[None], rows, 0), rows, margin).T
