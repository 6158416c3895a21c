"""Packing, embed and linear of the cuda backend against float64 NumPy, and their batch invariance."""

from __future__ import annotations

from collections import Counter

import ml_dtypes
import numpy as np
import pytest

from ostinato.errors import DeviceError, UnsupportedModel
from ostinato.ops.base import PassKind
from ostinato.ops.cuda import CudaOps
from ostinato.ops.shapes import PREFILL, DecodeShape, Launch, Shapes
from ostinato.sizes import DECODE_ROWS

TYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16), "float32": np.dtype(np.float32)}
EPS = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-20}  # of a value rounded to T
F32 = np.dtype(np.float32)

# (layout, head size, rows of the parts, K)
MATRICES = [
    pytest.param("rows", 0, (769,), 48, id="rows-769x48"),
    pytest.param("rows", 0, (20, 29), 80, id="rows-49x80-two-parts"),
    pytest.param("rows", 0, (16,), 1040, id="rows-16x1040"),
    pytest.param("qkv", 64, (192, 64, 64), 64, id="qkv-5-heads-of-64"),
    pytest.param("qkv", 16, (48, 16, 16), 576, id="qkv-5-heads-of-16"),
    pytest.param("qkv", 24, (48, 24, 24), 64, id="qkv-heads-of-24-plain"),
    pytest.param("gate_up", 0, (112, 112), 64, id="gate_up-112x64"),
    pytest.param("gate_up", 0, (8, 8), 576, id="gate_up-8x576"),
]
ROWS = (1, 3, 8, 9, 16, 64, 128)
rng = np.random.default_rng(7)
START = rng.bit_generator.state


@pytest.fixture(autouse=True)
def same_numbers():
    """Reset the random generator before each test."""
    rng.bit_generator.state = START


def random(shape, dtype=F32):
    return rng.standard_normal(shape).astype(dtype)


def close(found, expected, eps):
    """Assert that both are finite and at most eps apart, in units of the largest expected value."""
    assert np.isfinite(found.astype(float)).all()
    assert np.abs(found.astype(float) - expected).max() <= eps * max(1.0, np.abs(expected).max())


def kind_of(rows: int) -> PassKind:
    """The kind of a pass with this many rows."""
    return PassKind.DECODE if rows <= DECODE_ROWS else PassKind.PREFILL


def unwritten(device, shape, dtype):
    """A device array of NaN, so that unwritten elements show."""
    return device.upload(np.full(shape, np.nan, dtype))


def matrix(device, dtype, layout, head_dim, sizes, k):
    """(ops, packed weight, the matrix as float64)"""
    ops = CudaOps(device, dtype)
    parts = [random((n, k), ops.dtype) for n in sizes]
    return ops, ops.weight(parts, layout, head_dim), np.concatenate(parts).astype(float)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("layout", "head_dim", "sizes", "k"), MATRICES)
def test_linear(device, dtype, layout, head_dim, sizes, k):
    ops, weight, plain = matrix(device, dtype, layout, head_dim, sizes, k)
    for rows in ROWS:
        x = random((rows, k), ops.dtype)
        out = unwritten(device, (rows, len(plain)), F32)
        ops.linear(device.upload(x), weight, out, kind_of(rows))
        close(device.read(out), x.astype(float) @ plain.T, 2.0**-19)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [3, 16, 64])
@pytest.mark.parametrize(
    ("to", "with_bias", "residual"),
    [
        pytest.param("T", False, None, id="T"),
        pytest.param("T", True, None, id="T-bias"),
        pytest.param("T", True, "apart", id="T-bias-residual"),
        pytest.param("float32", False, "in place", id="float32-residual-in-place"),
        pytest.param("float32", True, "apart", id="float32-bias-residual"),
    ],
)
def test_bias_and_residual(device, dtype, rows, to, with_bias, residual):
    ops, weight, plain = matrix(device, dtype, "rows", 0, (49,), 80)
    x, bias, added = random((rows, 80), ops.dtype), random(49), random((rows, 49))
    out = (
        device.upload(added)
        if residual == "in place"
        else unwritten(device, (rows, 49), ops.dtype if to == "T" else F32)
    )
    given = {None: None, "in place": out, "apart": device.upload(added)}[residual]
    ops.linear(
        device.upload(x), weight, out, kind_of(rows), bias=device.upload(bias) if with_bias else None, residual=given
    )
    expected = x.astype(float) @ plain.T + with_bias * bias + (residual is not None) * added
    close(device.read(out), expected, EPS[dtype] if to == "T" else 2.0**-19)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("k", [64, 576, 1040])
def test_decode_bits_do_not_depend_on_the_batch(device, dtype, k):
    """A row has the same bits alone and at every place of every batch of 2 to 16."""
    ops, weight, _ = matrix(device, dtype, "rows", 0, (49,), k)
    x = random((16, k), ops.dtype)

    def run(rows):
        out = unwritten(device, (len(rows), 49), F32)
        ops.linear(device.upload(x[rows]), weight, out, PassKind.DECODE)
        return device.read(out)

    alone = np.concatenate([run([r]) for r in range(16)])
    for count in range(2, 17):
        rows = rng.permutation(16)[:count]
        np.testing.assert_array_equal(run(rows), alone[rows], err_msg=f"batch of {count}")


@pytest.mark.parametrize("dtype", TYPES)
def test_prefill_bits_do_not_depend_on_the_other_rows(device, dtype):
    """64 rows have the same bits alone and at every place of 128 and 192 rows."""
    ops, weight, _ = matrix(device, dtype, "rows", 0, (209,), 144)
    x = random((64, 144), ops.dtype)
    alone = unwritten(device, (64, 209), F32)
    ops.linear(device.upload(x), weight, alone, PassKind.PREFILL)
    for before, after in ((0, 64), (64, 0), (64, 64), (128, 0)):
        beside = np.concatenate([random((before, 144), ops.dtype), x, random((after, 144), ops.dtype)])
        out = unwritten(device, (len(beside), 209), F32)
        ops.linear(device.upload(beside), weight, out, PassKind.PREFILL)
        np.testing.assert_array_equal(device.read(out)[before : before + 64], device.read(alone))


def test_changed_launch_shapes_take_effect(device):
    """The launch of a decode GEMM is cached, but a change of the launch shapes takes effect."""
    ops, weight, _ = matrix(device, "bfloat16", "rows", 0, (49,), 80)
    names = []
    for warps in (4, 8, 4):
        launch = Launch(1, 2, 1, 1)
        ops.shapes = Shapes({(49, 80, 2): DecodeShape(warps, launch, launch, launch)}, "", device.arch)
        before = Counter(device.launches)
        for _ in range(2):
            ops.linear(
                device.upload(random((1, 80), ops.dtype)), weight, unwritten(device, (1, 49), F32), PassKind.DECODE
            )
        ((name, count),) = (device.launches - before).items()
        assert count == 2
        names.append(name)
    assert names[0] == names[2] and "Shape<4, 1, 1, 1, 2" in names[0] and "Shape<8, 1, 1, 1, 2" in names[1]


@pytest.mark.parametrize("dtype", TYPES)
def test_prefill_bits_do_not_depend_on_the_shape(device, dtype, monkeypatch):
    """In every shape: tiles beyond the last row tile and the last token, and a partial last step of K."""
    ops, weight, plain = matrix(device, dtype, "rows", 0, (209,), 336)
    x, found = random((192, 336), ops.dtype), []
    for shape in PREFILL[ops.dtype.itemsize]:
        monkeypatch.setattr("ostinato.ops.cuda.prefill_shape", lambda *sizes, shape=shape: shape)
        out = unwritten(device, (192, 209), F32)
        ops.linear(device.upload(x), weight, out, PassKind.PREFILL)
        found.append(device.read(out))
    close(found[0], x.astype(float) @ plain.T, 2.0**-19)
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize("rows", [16, 64])
def test_columns_do_not_mix(device, rows):
    """A row of NaN and a row of infinity do not change the other rows."""
    ops, weight, _ = matrix(device, "bfloat16", "rows", 0, (32,), 64)
    x = random((rows, 64), ops.dtype)
    clean, dirty = (unwritten(device, (rows, 32), F32) for _ in range(2))
    ops.linear(device.upload(x), weight, clean, kind_of(rows))
    x[1], x[rows - 1] = np.nan, np.inf
    ops.linear(device.upload(x), weight, dirty, kind_of(rows))
    others = [r for r in range(rows) if r not in (1, rows - 1)]
    np.testing.assert_array_equal(device.read(dirty)[others], device.read(clean)[others])
    assert np.isnan(device.read(dirty)[1]).all()


def test_every_schedule_gives_the_same_bits(shuffled):
    for rows in (3, 16, 64):
        ops, weight, _ = matrix(shuffled, "bfloat16", "rows", 0, (209,), 144)
        out = unwritten(shuffled, (rows, 209), F32)
        ops.linear(shuffled.upload(random((rows, 144), ops.dtype)), weight, out, kind_of(rows))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("vocab", "k"), [(49, 80), (769, 16)])
def test_embed(device, dtype, vocab, k):
    """embed returns the exact rows of the packed table."""
    ops, table, plain = matrix(device, dtype, "rows", 0, (vocab,), k)
    ids = np.concatenate([[0, vocab - 1], rng.integers(0, vocab, 67)]).astype(np.int32)
    out = unwritten(device, (len(ids), k), F32)
    ops.embed(device.upload(ids), table, out)
    np.testing.assert_array_equal(device.read(out), plain[ids].astype(F32))
    places, at = random((9, k)), rng.integers(0, 9, len(ids)).astype(np.int32)
    ops.embed_at(device.upload(ids), table, device.upload(at), device.upload(places), out)
    np.testing.assert_array_equal(device.read(out), plain[ids].astype(F32) + places[at])


def test_packed_layout(device):
    """The first tile of a 32 x 16 matrix, value by value, from the definition in kernels/packed.cuh."""
    ops = CudaOps(device, "float32")
    plain = np.arange(32 * 16, dtype=F32).reshape(32, 16)
    for layout, sizes, step in (("rows", (32,), 8), ("gate_up", (16, 16), 16)):
        parts = np.split(plain, np.cumsum(sizes)[:-1])
        tile = device.read(ops.weight(parts, layout).segments[0].data).reshape(2, 32, 8)[0]
        for lane in range(32):
            g, k = lane // 4, lane % 4 * 4
            a, b = plain[g], plain[g + step]
            assert tile[lane].tolist() == [a[k], a[k + 1], b[k], b[k + 1], a[k + 2], a[k + 3], b[k + 2], b[k + 3]]


BAD = [
    pytest.param({"x": ((3, 48), "bfloat16")}, r"x to be bfloat16 \[3, 64\], found bfloat16 \[3, 48\]", id="x-columns"),
    pytest.param({"x": ((3, 64), "float32")}, r"x to be bfloat16 .*found float32", id="x-dtype"),
    pytest.param({"out": ((3, 48), "float32")}, r"out to be float32 \[3, 32\]", id="out-columns"),
    pytest.param({"out": ((3, 32), "float16")}, r"out to be bfloat16 .*found float16", id="out-dtype"),
    pytest.param({"bias": ((33,), "float32")}, r"bias to be float32 \[32\], found float32 \[33\]", id="bias"),
    pytest.param({"residual": ((4, 32), "float32")}, r"residual to be float32 \[3, 32\]", id="residual"),
]


@pytest.mark.parametrize(("changed", "message"), BAD)
def test_bad_arrays(device, changed, message):
    ops, weight, _ = matrix(device, "bfloat16", "rows", 0, (32,), 64)
    given = {"x": ((3, 64), "bfloat16"), "out": ((3, 32), "float32"), **changed}
    with pytest.raises(DeviceError, match="linear: expected " + message):
        ops.linear(**{k: device.empty(s, TYPES[t]) for k, (s, t) in given.items()}, weight=weight, kind=PassKind.DECODE)


@pytest.mark.parametrize(("rows", "kind"), [(16, PassKind.DECODE), (16, PassKind.PREFILL), (64, PassKind.ENCODER)])
def test_the_kind_of_pass_decides_which_kernel_runs(device, rows, kind):
    """The number of rows does not decide."""
    ops, weight, plain = matrix(device, "bfloat16", "rows", 0, (49,), 80)
    x, out, before = random((rows, 80), ops.dtype), unwritten(device, (rows, 49), F32), Counter(device.launches)
    ops.linear(device.upload(x), weight, out, kind)
    (name,) = device.launches - before
    assert name.startswith("decode_" if kind is PassKind.DECODE else "prefill_")
    close(device.read(out), x.astype(float) @ plain.T, 2.0**-19)


def test_too_many_rows_for_a_decode_pass(device):
    ops, weight, _ = matrix(device, "bfloat16", "rows", 0, (49,), 80)
    with pytest.raises(DeviceError, match="expected at most 16 rows in a decode pass, found 17"):
        ops.linear(device.empty((17, 80), ops.dtype), weight, unwritten(device, (17, 49), F32), PassKind.DECODE)


@pytest.mark.parametrize(
    ("shapes", "layout", "error", "message"),
    [
        pytest.param([(8, 24)], "rows", UnsupportedModel, r"multiple of 16 columns, found \[8, 24\]", id="columns"),
        pytest.param(
            [(8, 32), (8, 16)], "rows", DeviceError, r"part 1 to be \[rows, 32\], found \[8, 16\]", id="parts"
        ),
        pytest.param([(8, 32)], "columns", DeviceError, r"layout .*found 'columns'", id="layout"),
    ],
)
def test_bad_weights(device, shapes, layout, error, message):
    with pytest.raises(error, match=message):
        CudaOps(device, "bfloat16").weight([np.zeros(s, F32) for s in shapes], layout)


def test_bad_embed(device):
    ops, table, _ = matrix(device, "bfloat16", "rows", 0, (32,), 64)
    with pytest.raises(DeviceError, match=r"embed: expected ids to be int32 \[3\], found int64 \[3\]"):
        ops.embed(device.upload(np.zeros(3, np.int64)), table, device.empty((3, 64), F32))
    with pytest.raises(DeviceError, match=r"embed: expected places to be float32 \[9, 64\], found float32 \[9, 48\]"):
        ids = device.upload(np.zeros(3, np.int32))
        ops.embed_at(ids, table, ids, device.empty((9, 48), F32), device.empty((3, 64), F32))
