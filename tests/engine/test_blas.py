"""NumPy GEMMs: a row has the same bits at every position, alone or with other rows, on any number of threads."""

from __future__ import annotations

import numpy as np
import pytest

from ostinato.ops import blas
from ostinato.ops.threads import Team, hold_blas

SHAPES = [(131, 48), (64, 64), (960, 576), (576, 1536), (100, 1000), (1300, 576)]
ONE, TWO = Team(1), Team(2)


@pytest.fixture(autouse=True)
def _one_blas_thread() -> None:
    hold_blas()


def operands(n: int, k: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n + k)
    return rng.standard_normal((n, k), np.float32), rng.standard_normal((rows, k), np.float32)


def product(x: np.ndarray, weight: np.ndarray, team: Team = ONE, way=blas.prefill) -> np.ndarray:
    out = np.full((len(x), len(weight)), np.nan, np.float32)
    way(team, x, weight, out)
    return out


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_prefill_rows_have_the_same_bits_with_any_other_rows(n: int, k: int) -> None:
    weight, x = operands(n, k, 448)
    step = 1 if blas.tiling(n, k).anywhere else blas.TILE
    alone = np.concatenate([product(x[r : r + blas.TILE], weight) for r in range(0, 448, blas.TILE)])
    np.testing.assert_allclose(alone, x.astype(np.float64) @ weight.T.astype(np.float64), rtol=1e-3, atol=1e-3)
    for team in (ONE, TWO):
        for first, last in ((0, 448), (0, 17), (3 * step, 3 * step + 333), (32 * step % 448, 448), (5 * step, 448)):
            np.testing.assert_array_equal(product(x[first:last], weight, team), alone[first:last])


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_decode_rows_have_the_same_bits_with_any_other_rows(n: int, k: int) -> None:
    weight, x = operands(n, k, 16)
    alone = np.concatenate([product(x[r : r + 1], weight, way=blas.decode) for r in range(16)])
    for rows in (2, 3, 8, 16):
        for team in (ONE, TWO):
            np.testing.assert_array_equal(product(x[:rows], weight, team, blas.decode), alone[:rows])


def test_a_matrix_vector_product_would_be_noticed() -> None:
    """A planted mistake: one row is computed as in a decode step, several rows as in prefill."""
    weight, x = operands(960, 576, 32)
    one = product(x[:1], weight, way=blas.decode)
    assert not np.array_equal(one, product(x, weight)[:1])


@pytest.mark.parametrize(("rows", "expected"), [
    (1, [32]), (32, [32]), (33, [32, 32]), (64, [64]), (96, [64, 32]), (500, [256, 128, 64, 32, 32]), (512, [256, 256]),
])  # fmt: skip
def test_few_shapes_and_little_padding(rows: int, expected: list[int]) -> None:
    tiles = blas.tiles_of(rows, (256, 128, 64, 32))
    assert [size for _, size in tiles] == expected
    assert [first for first, _ in tiles] == np.cumsum([0, *expected[:-1]]).tolist()


def by_itself(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A simulated BLAS that computes every row of a product separately."""
    return np.stack([a.dot(np.ascontiguousarray(row)) for row in b.T], 1)


def at_the_end(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A simulated BLAS that sums the last four rows of large products in a different order."""
    out = by_itself(a, b)
    if b.shape[1] > 64:
        out[:, -4:] = by_itself(a[:, ::-1].copy(), b[::-1, -4:])
    return out


def at_both_ends(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A simulated BLAS that does so with the first and last eight rows of all products, as OpenBLAS does for AVX2."""
    out = by_itself(a, b)
    for ends in (slice(8), slice(-8, None)):
        out[:, ends] = by_itself(a[:, ::-1].copy(), b[::-1, ends])
    return out


def by_place(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A simulated BLAS with one order for even rows and another for odd rows."""
    out = by_itself(a, b)
    out[:, ::2] = by_itself(a[:, ::-1].copy(), b[::-1, ::2])
    return out


@pytest.mark.parametrize(("matmul", "expected"), [
    (by_itself, blas.Tiling((256, 128, 64, 32), 0, True)),
    (at_the_end, blas.Tiling((64, 32), 0, True)),
    (at_both_ends, blas.Tiling((256, 128, 64, 32), 8, True)),
    (by_place, blas.Tiling((32,), 0, False)),
])  # fmt: skip
def test_products_are_made_as_blas_sums_up(monkeypatch: pytest.MonkeyPatch, matmul, expected: blas.Tiling) -> None:
    monkeypatch.setattr(blas.np, "matmul", matmul)
    for known in (blas._agree, blas._uniform):
        known.cache_clear()
    assert blas.tiling.__wrapped__(100, 96) == expected
    for known in (blas._agree, blas._uniform):
        known.cache_clear()
