"""Matrix products of NumPy in which a row's bits depend on that row alone.

BLAS sums up in an order that depends on a product's shape and, with some kernels, on where a row stands in it. So a
weight is cut into blocks of rows by its own shape, and every product with a block is one of few calls: a matrix-vector
product for each row of a decode step, else a product of TILE rows. Where more rows at a time give the same bits, which
is tried once for each shape with rows that are all equal, they are taken together, which is faster. The weight is the
left operand: with few rows that is twice as fast as the right one.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from .threads import Team

TILE = 32  # rows of the smallest product; rows that are not there are zeros
SIZES = (256, 128, 64)  # rows of larger products, where they give the same bits
_BLOCK = 1 << 21  # bytes of a weight in a product, about: a core's cache holds them for all rows


def block_rows(n: int, k: int) -> int:
    """Rows of a weight [n, k] in one product; the last block may be smaller."""
    return min(n, max(64, _BLOCK // (4 * k) // 64 * 64))


def decode(team: Team, x: np.ndarray, weight: np.ndarray, y: np.ndarray) -> None:
    """y = x @ weight.T, a row at a time.  x [R, K], weight [N, K], y [R, N]"""
    step = block_rows(*weight.shape)

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
    step, tiles = block_rows(n, k), _tiles(len(x), sizes(n, k))

    def compute(task: int) -> np.ndarray:
        (first, size), a = tiles[task % len(tiles)], task // len(tiles) * step
        rows = x[first : first + size]
        if len(rows) < size:
            rows = np.concatenate([rows, np.zeros((size - len(rows), k), np.float32)])
        return np.matmul(weight[a : a + step], rows.T)

    def commit(task: int, part: np.ndarray) -> None:
        (first, size), a = tiles[task % len(tiles)], task // len(tiles) * step
        out = y[first : first + size, a : a + step]
        out[...] = part.T[: len(out)]

    team.run(-(-n // step) * len(tiles), compute, commit)


def _tiles(rows: int, allowed: tuple[int, ...]) -> list[tuple[int, int]]:
    """(first row, rows) of the products that `rows` rows are cut into, large ones first."""
    found, first = [], 0
    while first < rows:
        size = next((n for n in allowed if n <= rows - first), TILE)
        found.append((first, size))
        first += size
    return found


@cache
def sizes(n: int, k: int) -> tuple[int, ...]:
    """Rows that a product with a weight [n, k] may have, descending to TILE: those that give the bits of TILE rows."""
    return (*(size for size in SIZES if all(_agree(size, part, k) for part in _parts(n, k))), TILE)


@cache
def anywhere(n: int, k: int) -> bool:
    """Whether a row has the same bits at every place of a product with a weight [n, k]; if not, at the same place."""
    return all((_trial(TILE, part, k) == _trial(TILE, part, k)[:1]).all() for part in _parts(n, k))


def _parts(n: int, k: int) -> set[int]:
    """Rows of the blocks of a weight [n, k]."""
    step = block_rows(n, k)
    return {step, n % step or step}


@cache
def _agree(size: int, n: int, k: int) -> bool:
    """Whether `size` rows have the bits that they have TILE at a time."""
    return bool((_trial(size, n, k).reshape(-1, TILE, n) == _trial(TILE, n, k)).all())


def _trial(rows: int, n: int, k: int) -> np.ndarray:
    """[rows, n] products of one row, `rows` times over: BLAS chooses its order without looking at the numbers."""
    rng = np.random.default_rng(0)
    weight, row = rng.random((n, k), np.float32), rng.random(k, np.float32)
    return np.matmul(weight - np.float32(0.5), np.repeat(row[None], rows, 0).T).T
