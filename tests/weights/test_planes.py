"""Planes of every form: the numbers by the formula written out for one number, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from ostinato.errors import CheckpointError
from ostinato.weights.quantised import Planes

BF16 = ml_dtypes.bfloat16
rng = np.random.default_rng(0)


def u8(n: int, k: int, below: int = 16) -> np.ndarray:
    return rng.integers(0, below, (n, k)).astype(np.uint8)


def real(n: int, k: int, dtype: type = np.float32) -> np.ndarray:
    return rng.standard_normal((n, k)).astype(dtype)


E4M3 = u8(5, 64, 127)  # 127 is NaN
PLANES = {
    "one scale a row": Planes("u4", u8(5, 64), 64, real(5, 1), zero=8),
    "float16 scales": Planes("u4", u8(5, 64), 16, real(5, 4, np.float16), zero=8),
    "bfloat16 scales": Planes("u5", u8(5, 64, 32), 16, real(5, 4, BF16), zero=16),
    "mins": Planes("u5", u8(5, 64, 32), 32, real(5, 2), mins=real(5, 2, np.float16)),
    "zeros, a zero of 16": Planes("u4", u8(5, 64), 16, real(5, 4), zeros=u8(5, 4, 17)),
    "signed zeros": Planes(
        "s8", u8(5, 64, 256).view(np.int8), 16, real(5, 4), zeros=u8(5, 4, 256).astype(np.int16) - np.int16(128)
    ),
    "scales and mins under scales": Planes(
        "u4", u8(5, 512), 32, u8(5, 16, 64), mins=u8(5, 16, 64), d=real(5, 2, np.float16), dmin=real(5, 2, np.float16)
    ),
    "signed scales under a scale": Planes(
        "u6", u8(5, 512, 64), 16, u8(5, 32, 256).view(np.int8), zero=32, d=real(5, 2, np.float16)
    ),
    "signed codes": Planes("s8", u8(5, 64, 256).view(np.int8), 32, real(5, 2, np.float16)),
    "FP8, one scale": Planes("e4m3", E4M3, 64, real(1, 1), rows=5),
    "FP8, one scale a row": Planes("e4m3", E4M3, 64, real(5, 1)),
    "FP8, blocks that do not divide": Planes("e4m3", E4M3, 24, real(3, 3), rows=2),
    "no rows": Planes("u4", u8(0, 64), 16, real(0, 4), zero=8),
}


def number(p: Planes, n: int, k: int) -> np.float32:
    """w[n, k], one float32 operation after the other."""
    g, f32 = k // p.group, np.float32
    s = f32(p.scales[n // p.rows, g])
    if p.d is not None:
        s = f32(p.d[n, k // 256]) * s
    code = f32(p.codes[n : n + 1, k : k + 1].view(ml_dtypes.float8_e4m3fn)[0, 0] if p.code == "e4m3" else p.codes[n, k])
    w = s * (code - f32(p.zero if p.zeros is None else p.zeros[n, g]))
    if p.mins is None:
        return w
    return w + (f32(p.mins[n, g]) if p.dmin is None else -(f32(p.dmin[n, k // 256]) * f32(p.mins[n, g])))


@pytest.mark.parametrize("name", PLANES)
def test_numbers(name: str) -> None:
    p = PLANES[name]
    p.check("x")
    n, k = p.codes.shape
    expected = np.array([number(p, i, j) for i in range(n) for j in range(k)], np.float32).reshape(n, k)
    found = p.numbers()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    into = np.empty((n, k), np.float32)
    assert p.numbers(into) is into and np.array_equal(into, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("name", "field"),
    [(name, field) for name, p in PLANES.items() for field in ("scales", "mins", "d", "dmin")
     if len(p.codes) and getattr(p, field) is not None and getattr(p, field).dtype.kind not in "iu"],
)  # fmt: skip
def test_a_scale_that_is_no_number_is_refused(name: str, field: str, bad: float) -> None:
    p = PLANES[name]
    values = getattr(p, field).copy()
    values[-1, -1] = bad
    row = 100 + (len(values) - 1) * (p.rows if field == "scales" else 1)
    with pytest.raises(
        CheckpointError, match=rf"^x\.gguf: tensor t: {field} of row {row}, place {values.shape[1] - 1}: "
    ):
        replace(p, **{field: values}).check("x.gguf: tensor t", 100)


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_a_code_of_fp8_that_is_no_number_is_refused(code: int) -> None:
    codes = E4M3.copy()
    codes[3, 9] = code
    with pytest.raises(CheckpointError, match=r"^x: codes of row 3, place 9: expected a finite number, found NaN"):
        Planes("e4m3", codes, 64, real(5, 1)).check("x")
