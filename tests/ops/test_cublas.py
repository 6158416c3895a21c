"""The cublas backend: cuBLAS on a GPU, NumPy products with the emulated kernels elsewhere."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from products import cublas

from ostinato.errors import DeviceError
from ostinato.ops.base import PassKind

EPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-20}
F32 = np.dtype(np.float32)
rng = np.random.default_rng(5)
START = rng.bit_generator.state


@pytest.fixture(autouse=True)
def same_numbers():
    """Reset the random generator before each test."""
    rng.bit_generator.state = START


def random(shape, dtype=F32):
    return rng.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("rows", [1, 16, 64])
@pytest.mark.parametrize(
    ("to", "with_bias", "residual"),
    [
        pytest.param("T", False, None, id="T"),
        pytest.param("T", True, None, id="T-bias"),
        pytest.param("float32", False, "in place", id="residual-in-place"),
        pytest.param("float32", True, "view", id="bias-residual-same-memory"),
        pytest.param("float32", True, "apart", id="bias-residual-apart"),
    ],
)
def test_linear(device, dtype, rows, to, with_bias, residual):
    ops = cublas(device, dtype)
    parts = [random((n, 80), ops.dtype) for n in (192, 96)]
    weight, plain = ops.weight(parts, "gate_up"), np.concatenate(parts).astype(float)
    x, bias, added = random((rows, 80), ops.dtype), random(288), random((rows, 288))
    start = added if residual in ("in place", "view") else np.full((rows, 288), np.nan)
    out = device.upload(start.astype(ops.dtype if to == "T" else F32))
    given = {None: None, "in place": out, "view": out[:], "apart": device.upload(added)}[residual]
    given_bias = device.upload(bias) if with_bias else None
    ops.linear(device.upload(x), weight, out, PassKind.DECODE, bias=given_bias, residual=given)
    expected = x.astype(float) @ plain.T + with_bias * bias + (residual is not None) * added
    found = device.read(out).astype(float)
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= EPS[dtype if to == "T" else "float32"] * np.abs(expected).max()


@pytest.mark.parametrize("dtype", EPS)
def test_embed(device, dtype):
    ops = cublas(device, dtype)
    plain = random((769, 80), ops.dtype)
    table, ids = ops.weight([plain]), rng.integers(0, 769, 37).astype(np.int32)
    out = device.upload(np.full((37, 80), np.nan, F32))
    ops.embed(device.upload(ids), table, out)
    np.testing.assert_array_equal(device.read(out), plain[ids].astype(F32))
    places, at = random((9, 80)), rng.integers(0, 9, 37).astype(np.int32)
    ops.embed_at(device.upload(ids), table, device.upload(at), device.upload(places), out)
    np.testing.assert_array_equal(device.read(out), plain[ids].astype(F32) + places[at])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        pytest.param((3, 64), r"linear: expected x to be bfloat16 \[3, 80\], found bfloat16 \[3, 64\]", id="columns"),
        pytest.param((2, 80), r"linear: expected out to be float32 \[2, 32\], found float32 \[3, 32\]", id="rows"),
    ],
)
def test_bad_arrays(device, shape, message):
    ops = cublas(device, "bfloat16")
    weight = ops.weight([random((32, 80))])
    with pytest.raises(DeviceError, match=message):
        ops.linear(
            device.empty(shape, np.dtype(ml_dtypes.bfloat16)), weight, device.empty((3, 32), F32), PassKind.DECODE
        )


def test_bad_parts(device):
    with pytest.raises(DeviceError, match=r"part 1 to be \[rows, 80\], found \[4, 64\]"):
        cublas(device, "bfloat16").weight([random((4, 80)), random((4, 64))])
