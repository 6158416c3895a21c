"""Quantised weights in the kernels of the cuda backend: packed without loss, multiplied without rounding, same bits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import pytest

from ostinato.ops.base import PassKind
from ostinato.ops.cuda import CudaOps
from ostinato.ops.formats import FORMS
from ostinato.weights.quantised import Planes, Quantised

F32, BF16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Given(Quantised):
    """A matrix of these planes."""

    given: Planes
    where: str = "a test"
    kind: str = "given"

    @property
    def shape(self) -> tuple[int, int]:
        return self.given.codes.shape

    @property
    def nbytes(self) -> int:
        return self.given.codes.nbytes

    def take(self, rows: np.ndarray) -> Quantised:
        return replace(self, given=self._rows(rows))

    def _planes(self, first: int, last: int) -> Planes:
        return self._rows(np.s_[first:last])

    def _rows(self, rows) -> Planes:
        fields = ("codes", "scales", "mins", "d", "dmin")
        values = {name: getattr(self.given, name) for name in fields}
        return replace(self.given, **{name: None if v is None else v[rows] for name, v in values.items()})


def given(key: str, n: int, k: int, rng: np.random.Generator, scale: str = "float16") -> Given:
    """A random matrix in the form of this name: all codes and bytes of scales that there are."""
    form = FORMS[key]
    code, group, nested, mins = form.code, form.group, form.nested, form.mins
    if code == "s8":
        codes, zero = rng.integers(-128, 128, (n, k)).astype(np.int8), 0
    else:
        bits = int(code[1])
        codes = rng.integers(0, 1 << bits, (n, k)).astype(np.uint8)
        zero = 0 if mins else 1 << (bits - 1)
    half = lambda width, size: (rng.uniform(0.5, 1.5, (n, width)) * size * rng.choice([-1, 1], (n, width))).astype(  # noqa: E731
        np.float16 if nested else np.dtype(scale)
    )
    if not nested:
        planes = Planes(code, codes, group, half(k // group, 1 / 16), zero)
        return Given(replace(planes, mins=half(k // group, 0.5)) if mins else planes)
    if mins:
        scales, less = (rng.integers(0, 64, (n, k // group)).astype(np.uint8) for _ in range(2))
        return Given(
            Planes(code, codes, group, scales, 0, mins=less, d=half(k // 256, 1e-3), dmin=half(k // 256, 1e-2))
        )
    scales = rng.integers(-128, 128, (n, k // group)).astype(np.int8)
    return Given(Planes(code, codes, group, scales, zero, d=half(k // 256, 1e-3)))


KEYS = [key for key in FORMS if isinstance(key, str)]
LAYOUTS = [
    pytest.param("rows", 0, (49,), id="rows-49"),
    pytest.param("qkv", 32, (64, 32, 32), id="qkv"),
    pytest.param("gate_up", 0, (24, 24), id="gate_up-48"),
]


def ops_of(device) -> CudaOps:
    return CudaOps(device, BF16)


def unwritten(device, shape):
    return device.upload(np.full(shape, np.nan, F32))


@pytest.mark.parametrize(("layout", "head_dim", "sizes"), LAYOUTS)
@pytest.mark.parametrize("key", KEYS)
def test_packed_without_loss(device, key, layout, head_dim, sizes):
    """Every row that is looked up is the definition, bit for bit; so is what prompts multiply, rounded to T."""
    rng, k, ops = np.random.default_rng(3), 512, ops_of(device)
    parts = [given(key, n, k, rng) for n in sizes]
    expected = np.concatenate([part.numbers() for part in parts])
    weight = ops.weight(parts, layout, head_dim)
    assert [part.form.key for part in weight.segments] == [key]
    plain = ops.weight([expected], layout, head_dim)
    found, constant = ops._plain(weight)
    size = weight.tiles * 16 * k
    np.testing.assert_array_equal(
        device.read(found)[:size].astype(F32), device.read(plain.segments[0].data).astype(F32)
    )
    assert not constant
    if layout == "rows":
        ids = device.upload(np.arange(len(expected), dtype=np.int32))
        out = unwritten(device, expected.shape)
        ops.embed(ids, weight, out)
        np.testing.assert_array_equal(device.read(out), expected)


def relative(found, x, w):
    """How far products are off, in units of sqrt(sum (w x)^2): root mean square, and the largest."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    error = (found - x @ w.T) / np.sqrt(x**2 @ (w**2).T)
    return np.sqrt((error**2).mean()), np.abs(error).max()


@pytest.mark.parametrize("key", KEYS)
def test_products_round_nothing(device, key):
    """Against float64 of the definition, with x of a large mean; rounding scales to bf16 would be 100 times worse."""
    rng, ops = np.random.default_rng(5), ops_of(device)
    part = given(key, 49, 1280, rng)
    w, weight = part.numbers(), ops.weight([part])
    x = (rng.standard_normal((9, 1280)) + 0.5).astype(BF16)
    out = unwritten(device, (9, 49))
    ops.linear(device.upload(x), weight, out, PassKind.DECODE)
    rms, largest = relative(device.read(out), x, w)
    assert rms < 3e-6 and largest < 2e-5
