"""The NumPy operations against naive implementations; rows do not depend on one another."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from ostinato.ops.base import Cache, Mail, PassKind, Step
from ostinato.ops.numpy import NumpyOps
from ostinato.sizes import DECODE_ROWS, MAIL, PAGE

OPS = NumpyOps()
RNG = np.random.default_rng(5)


def kind_of(rows: int) -> PassKind:
    """The kind of a pass with this many rows."""
    return PassKind.DECODE if rows <= DECODE_ROWS else PassKind.PREFILL


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 64, 192])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (131, 48), (40, 769), (2100, 512)])
@pytest.mark.parametrize("extra", ["plain", "bias", "residual", "both"])
def test_linear(rows: int, n: int, k: int, extra: str) -> None:
    x, w, out = normal(rows, k), OPS.weight([normal(n, k)]), normal(rows, n)
    bias = normal(n) if extra in ("bias", "both") else None
    residual = out if extra in ("residual", "both") else None
    expected = x.astype(np.float64) @ w.T.astype(np.float64) + (0 if bias is None else bias)
    expected += 0 if residual is None else residual.copy()
    OPS.linear(x, w, out, kind_of(rows), bias, residual)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("n", "k"), [(131, 48), (960, 576), (3000, 576)])
def test_a_row_of_a_product_does_not_depend_on_the_others(n: int, k: int) -> None:
    w, x = OPS.weight([normal(n, k)]), normal(192, k)

    def product(first: int, last: int) -> np.ndarray:
        out = np.empty((last - first, n), np.float32)
        OPS.linear(x[first:last], w, out, kind_of(last - first))
        return out

    alone = np.concatenate([product(r, r + 1) for r in range(16)])
    for size in (2, 3, 8, 16):
        np.testing.assert_array_equal(product(0, size), alone[:size])
    np.testing.assert_array_equal(product(0, 192), np.concatenate([product(r, r + 64) for r in (0, 64, 128)]))


@pytest.mark.parametrize("source", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weight_stacks_parts_and_rounds_if_asked(source, dtype: str) -> None:
    parts = [normal(3, 8).astype(source), normal(2, 8).astype(source)]
    got = NumpyOps(dtype=dtype).weight(parts)
    kind = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[dtype]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.concatenate(parts).astype(kind).astype(np.float32))


@pytest.mark.parametrize("rows", [None, [2], [4, 0, 2]])
def test_rms_norm(rows: list[int] | None) -> None:
    x, w = normal(5, 33), normal(33)
    wanted = None if rows is None else np.array(rows, np.int32)
    out = np.empty((5 if rows is None else len(rows), 33), np.float32)
    OPS.rms_norm(x, w, 1e-5, out, wanted)
    for i, r in enumerate(range(5) if rows is None else rows):
        scale = math.sqrt(sum(float(v) ** 2 for v in x[r]) / 33 + 1e-5)
        np.testing.assert_allclose(out[i], x[r] / scale * w, rtol=1e-5)


@pytest.mark.parametrize("keep", [False, True], ids=["pre-norm", "post-norm"])
@pytest.mark.parametrize("rows", [None, [2], [4, 0, 2]])
def test_layer_norm(rows: list[int] | None, keep: bool) -> None:
    x, w, bias = 3 + normal(5, 33), normal(33), normal(33)
    wanted = None if rows is None else np.array(rows, np.int32)
    taken = x if rows is None else x[rows]
    expected = (taken - taken.mean(-1, keepdims=True)) / np.sqrt(taken.var(-1, keepdims=True) + 0.5) * w + bias
    out, kept = np.empty_like(taken), x if rows is None else np.empty_like(taken)
    OPS.layer_norm(x, w, bias, 0.5, out, wanted, kept if keep else None)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    if keep:
        np.testing.assert_array_equal(kept, out)


@pytest.mark.parametrize("tanh", [False, True])
def test_gelu(tanh: bool) -> None:
    """Including arguments where the result nearly vanishes, and where a power or an exponential overflows."""
    x = np.concatenate([np.linspace(-14, 14, 3001), [0, -1e-30, 1e20, -1e20]]).astype(np.float32)
    cubic = [math.sqrt(2 / math.pi) * (v + 0.044715 * v**3) for v in x.tolist()]
    share = [(1 + math.tanh(v)) / 2 for v in cubic] if tanh else [math.erfc(-v / math.sqrt(2)) / 2 for v in x.tolist()]
    out = x.copy()
    OPS.gelu(out, tanh, out)
    np.testing.assert_allclose(out, x * np.array(share), rtol=3e-7, atol=4e-7)


def test_head_norm_leaves_values_alone() -> None:
    qkv, q, k = normal(3, (4 + 2 * 2) * 8), normal(8), normal(8)
    before = qkv.reshape(3, 8, 8).copy()
    OPS.head_norm(qkv, q, k, 1e-6, 4, 2)
    heads = qkv.reshape(3, 8, 8)
    np.testing.assert_array_equal(heads[:, 6:], before[:, 6:])
    for h in range(6):
        scale = np.sqrt((before[:, h] ** 2).mean(-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(heads[:, h], before[:, h] / scale * (q if h < 4 else k), rtol=1e-5)


def test_silu_mul_survives_large_negative_gates() -> None:
    gate_up = np.array([[-1000.0, -1.0, 0.0, 1000.0, 2.0, 3.0, 4.0, 5.0]], np.float32)
    out = np.empty((1, 4), np.float32)
    OPS.silu_mul(gate_up, out)
    np.testing.assert_allclose(out[0], [0, -1 / (1 + math.e) * 3, 0, 5000], rtol=1e-6)


def test_embed_and_advance() -> None:
    table, out = normal(10, 4), np.empty((3, 4), np.float32)
    OPS.embed(np.array([9, 0, 9], np.int32), table, out)
    np.testing.assert_array_equal(out, table[[9, 0, 9]])
    OPS.embed_at(np.array([9, 0, 9], np.int32), table, np.array([1, 1, 4], np.int32), table[::-1], out)
    np.testing.assert_array_equal(out, table[[9, 0, 9]] + table[[8, 8, 5]])
    s = step([1, 2, 0], [0, 2, 1], [5, 6, 0], np.zeros((3, 1), np.int32))
    mail = Mail(np.full((3, MAIL), 5, np.int32), np.array([0, 1, MAIL - 1], np.int32))
    OPS.advance(s, np.array([7, 8, -1], np.int32), mail)
    assert (s.ids.tolist(), s.positions.tolist(), s.visible.tolist()) == ([7, 2, 0], [6, 6, 1], [7, 7, 2])
    assert mail.box.tolist() == [[7, 5, 5, 5], [5, 5, 5, 5], [5, 5, 5, -1]] and mail.place.tolist() == [1, 1, 0]


def step(ids: list[int], seqs: list[int], positions: list[int], table: np.ndarray) -> Step:
    i32 = [np.array(v, np.int32) for v in (ids, seqs, positions, [p + 1 for p in positions])]
    return Step(*i32, table=table, last=np.arange(len(ids), dtype=np.int32), kind=kind_of(len(ids)))


def cache_of(pages: int, groups: int, d: int) -> Cache:
    """A KV cache full of NaN: a read of an unwritten token shows in the result."""
    return Cache(*(np.full((pages, groups, PAGE, d), np.nan, np.float32) for _ in "kv"))


def naive_attend(q: np.ndarray, cache: Cache, table: np.ndarray, visible: int, window: int) -> np.ndarray:
    """Naive attention of one row: one head and one token at a time. q: [H, d]."""
    heads, d = q.shape
    share, out = heads // cache.k.shape[1], np.zeros((heads, d))
    for h in range(heads):
        tokens = range(max(0, visible - window) if window else 0, visible)
        places = [(table[t // PAGE], h // share, t % PAGE) for t in tokens]
        score = np.array([np.dot(q[h].astype(np.float64), cache.k[p]) / math.sqrt(d) for p in places])
        weight = np.exp(score - score.max())
        for p, a in zip(places, weight / weight.sum(), strict=True):
            out[h] += a * cache.v[p]
    return out.reshape(-1)


LENGTHS = [1, 2, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE + 7]


@pytest.mark.parametrize("window", [0, 1, 9, 70])
@pytest.mark.parametrize(("heads", "groups"), [(3, 3), (6, 2), (8, 1)])
def test_decode_appends_then_attends(heads: int, groups: int, window: int) -> None:
    """One step with a sequence of each length, scattered pages, and a padding row."""
    d, spare = 8, len(LENGTHS)
    pages = RNG.permutation(np.arange(1, 3 * spare + 1)).astype(np.int32)
    table = np.concatenate([pages.reshape(spare, 3), np.zeros((1, 3), np.int32)])
    table[5] = np.sort(table[5])[0] + np.arange(3) if window == 9 else table[5]  # adjacent: no copy is made
    cache = cache_of(3 * spare + 4, groups, d)
    for seq, length in enumerate(LENGTHS):
        for t in range(length - 1):
            cache.k[table[seq, t // PAGE], :, t % PAGE] = normal(groups, d)
            cache.v[table[seq, t // PAGE], :, t % PAGE] = normal(groups, d)
    s = step([0] * (spare + 1), [*range(spare), spare], [n - 1 for n in LENGTHS] + [0], table)
    qkv, angles = normal(spare + 1, (heads + 2 * groups) * d), normal(200, d)
    before = qkv.reshape(spare + 1, -1, d).copy()
    OPS.rope_append(qkv, angles, s, cache, heads)
    for seq, length in enumerate(LENGTHS):
        cos, sin = angles[length - 1, : d // 2], angles[length - 1, d // 2 :]
        a, b = before[seq, :, : d // 2], before[seq, :, d // 2 :]
        turned = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1)
        place = table[seq, (length - 1) // PAGE], slice(None), (length - 1) % PAGE
        np.testing.assert_allclose(qkv.reshape(spare + 1, -1, d)[seq, :heads], turned[:heads], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(cache.k[place], turned[heads : heads + groups], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(cache.v[place], before[seq, heads + groups :])
    out = np.full((spare + 1, heads * d), np.nan, np.float32)
    OPS.attend(qkv, s, cache, heads, window, out, None)
    assert np.isfinite(out).all()
    queries = qkv.reshape(spare + 1, -1, d)[:, :heads]
    for seq, length in enumerate(LENGTHS):
        expected = naive_attend(queries[seq], cache, table[seq], length, window)
        np.testing.assert_allclose(out[seq], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [0, 9, 70])
@pytest.mark.parametrize("first", [0, 64, 128])
@pytest.mark.parametrize("length", [1, 63, 64, 100])
def test_prefill_attends_causally(first: int, length: int, window: int) -> None:
    """Rows first .. first + length - 1 of a sequence, padded to whole tiles, against naive attention row by row."""
    d, heads, groups = 8, 4, 2
    table = np.array([[3, 1, 4, 2], [0, 0, 0, 0]], np.int32)
    cache = cache_of(5, groups, d)
    for t in range(first + length):
        cache.k[table[0, t // PAGE], :, t % PAGE] = normal(groups, d)
        cache.v[table[0, t // PAGE], :, t % PAGE] = normal(groups, d)
    pad = -length % PAGE
    s = step([0] * (length + pad), [0] * length + [1] * pad, [*range(first, first + length), *[0] * pad], table)
    qkv, out = normal(length + pad, (heads + 2 * groups) * d), np.full((length + pad, heads * d), np.nan, np.float32)
    OPS.attend(qkv, s, cache, heads, window, out, None)
    assert np.isfinite(out).all()
    for r in {0, length // 2, length - 1}:
        q = qkv[r].reshape(-1, d)[:heads]
        expected = naive_attend(q, cache, table[0], first + r + 1, window)
        np.testing.assert_allclose(out[r], expected, rtol=1e-4, atol=1e-5)
