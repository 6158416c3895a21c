"""Norms, RoPE, GELU and SiLU against float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from configs import flat
from rows import EPS, F32, I32, TYPES, RowOps, close, step

from ostinato.errors import DeviceError, UnsupportedModel
from ostinato.ops.base import Cache, PassKind
from ostinato.sizes import PAGE

rng = np.random.default_rng(11)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def unwritten(device, shape, dtype=F32):
    return device.upload(np.full(shape, np.nan, dtype))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [None, [3, 0], [4]])
@pytest.mark.parametrize("width", [1, 48, 576, 769, 4096, 5125])
def test_rms_norm(device, dtype, width, rows):
    x, weight = normal(5, width), normal(width)
    taken = x if rows is None else x[rows]
    out = unwritten(device, taken.shape, TYPES[dtype])
    index = None if rows is None else device.upload(np.array(rows, I32))
    RowOps(device, TYPES[dtype]).rms_norm(device.upload(x), device.upload(weight), 1e-5, out, index)
    taken = taken.astype(float)
    close(device.read(out), taken / np.sqrt((taken**2).mean(-1, keepdims=True) + 1e-5) * weight, EPS[dtype])


def test_rms_norm_of_many_rows(device):
    x, weight = normal(1000, 8), np.ones(8, F32)
    out = unwritten(device, x.shape)
    RowOps(device, F32).rms_norm(device.upload(x), device.upload(weight), 0.5, out)
    close(device.read(out), x / np.sqrt((x.astype(float) ** 2).mean(-1, keepdims=True) + 0.5), EPS["float32"])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("form", ["pre-norm", "post-norm", "some-rows", "some-rows-kept"])
@pytest.mark.parametrize("width", [4, 48, 384, 768, 5124])
def test_layer_norm(device, dtype, width, form):
    """A mean far from 0 must not cost accuracy; post-norm works in place."""
    x, weight, bias = 20 + normal(5, width), normal(width), normal(width)
    rows = [3, 0] if "rows" in form else None
    taken = x if rows is None else x[rows]
    on, out = device.upload(x), unwritten(device, taken.shape, TYPES[dtype])
    keep = {"post-norm": on, "some-rows-kept": unwritten(device, taken.shape)}.get(form)
    index = None if rows is None else device.upload(np.array(rows, I32))
    arrays = (on, device.upload(weight), device.upload(bias))
    RowOps(device, TYPES[dtype]).layer_norm(*arrays, 1e-5, out, index, keep)
    taken = taken.astype(float)
    variance = taken.var(-1, keepdims=True)
    expected = (taken - taken.mean(-1, keepdims=True)) / np.sqrt(variance + 1e-5) * weight + bias
    close(device.read(out), expected, EPS[dtype] + 2.0**-18)
    if keep is not None:
        close(device.read(keep), expected, 2.0**-18)
        np.testing.assert_array_equal(device.read(keep).astype(TYPES[dtype]), device.read(out))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("tanh", [False, True], ids=["exact", "tanh"])
@pytest.mark.parametrize("width", [1, 8, 13, 1536])
def test_gelu(device, dtype, width, tanh):
    """Also in place; where a power overflows in T or in float32, the factor is 0 or 1."""
    x = (4 * normal(3, width)).astype(TYPES[dtype])
    x[:, 0] = [-6e4, 6e4, 1e19 if dtype != "float16" else 60]
    value = x.astype(float)
    cubic = np.sqrt(2 / np.pi) * (value + 0.044715 * value**3)
    expected = value * ((1 + np.tanh(cubic)) / 2 if tanh else np.vectorize(math.erfc)(-value / np.sqrt(2)) / 2)
    on, out = device.upload(x), unwritten(device, x.shape, TYPES[dtype])
    for to in (out, on):
        RowOps(device, TYPES[dtype]).gelu(on, tanh, to)
        found = device.read(to).astype(float)
        assert np.abs(found - expected).max(where=np.abs(value) < 1e4, initial=0) <= EPS[dtype] * 16
        np.testing.assert_array_equal(found[:, 0], np.where(value[:, 0] < 0, 0, value[:, 0]))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("heads", "g", "d"), [(2, 1, 16), (3, 3, 80), (5, 2, 128), (1, 1, 256)])
def test_head_norm(device, dtype, heads, g, d):
    x, q, k = normal(3, heads + 2 * g, d).astype(TYPES[dtype]), normal(d), normal(d)
    qkv = device.upload(x.reshape(3, -1))
    RowOps(device, TYPES[dtype]).head_norm(qkv, device.upload(q), device.upload(k), 1e-6, heads, g)
    found, x = device.read(qkv).reshape(x.shape), x.astype(float)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    close(found[:, :heads], expected[:, :heads] * q, EPS[dtype])
    close(found[:, heads : heads + g], expected[:, heads : heads + g] * k, EPS[dtype])
    np.testing.assert_array_equal(found[:, heads + g :], x[:, heads + g :].astype(TYPES[dtype]))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("heads", "g", "d"), [(1, 1, 16), (9, 3, 64), (4, 1, 80), (8, 2, 128), (2, 2, 256)])
def test_rope_append(device, dtype, heads, g, d):
    """Rows of two sequences and one padding row; only their places in the KV cache change."""
    seqs, positions = [1, 0, 1, 2], [PAGE, PAGE - 1, 5, 0]
    table = np.array([[3, 1], [2, 4], [0, 0]])
    angle = rng.uniform(0, 6, (2 * PAGE, d // 2))
    rope = np.concatenate([np.cos(angle), np.sin(angle)], 1).astype(F32)
    x = normal(4, heads + 2 * g, d).astype(TYPES[dtype])
    before = normal(2, 5, g, PAGE, d).astype(TYPES[dtype])
    cache, qkv = Cache(device.upload(before[0]), device.upload(before[1])), device.upload(x.reshape(4, -1))
    s = step(device, seqs, positions, np.array(positions) + 1, table)
    RowOps(device, TYPES[dtype]).rope_append(qkv, device.upload(rope), s, cache, heads)

    x = x.astype(float)
    a, b, turn = x[..., : d // 2], x[..., d // 2 :], angle[positions][:, None]
    rotated = np.concatenate([a * np.cos(turn) - b * np.sin(turn), b * np.cos(turn) + a * np.sin(turn)], -1)
    close(device.read(qkv).reshape(x.shape)[:, :heads], rotated[:, :heads], 2 * EPS[dtype])
    k, v, untouched = device.read(cache.k), device.read(cache.v), np.ones((5, PAGE), bool)
    for r in range(4):
        at = table[seqs[r], positions[r] // PAGE], positions[r] % PAGE
        close(k[at[0], :, at[1]], rotated[r, heads : heads + g], 2 * EPS[dtype])
        np.testing.assert_array_equal(v[at[0], :, at[1]], x[r, heads + g :].astype(TYPES[dtype]))
        untouched[at] = False
    for found, old in ((k, before[0]), (v, before[1])):
        np.testing.assert_array_equal(found.swapaxes(1, 2)[untouched], old.swapaxes(1, 2)[untouched])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("heads", "g", "d"), [(1, 1, 16), (3, 3, 80), (8, 2, 128), (2, 2, 256)])
def test_append(device, dtype, heads, g, d):
    """Rows of two sequences and one padding row; only their places in the KV cache change."""
    seqs, positions, table = [1, 0, 1, 2], [PAGE, PAGE - 1, 5, 0], np.array([[3, 1], [2, 4], [0, 0]])
    x = normal(4, heads + 2 * g, d).astype(TYPES[dtype])
    before = normal(2, 5, g, PAGE, d).astype(TYPES[dtype])
    cache, qkv = Cache(device.upload(before[0]), device.upload(before[1])), device.upload(x.reshape(4, -1))
    s = step(device, seqs, positions, np.array(positions) + 1, table)
    RowOps(device, TYPES[dtype]).append(qkv, s, cache, heads)
    np.testing.assert_array_equal(device.read(qkv), x.reshape(4, -1))
    for found, old, first in ((cache.k, before[0], heads), (cache.v, before[1], heads + g)):
        for r in range(4):
            old[table[seqs[r], positions[r] // PAGE], :, positions[r] % PAGE] = x[r, first : first + g]
        np.testing.assert_array_equal(device.read(found), old)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [1, 8, 13, 1536, 2049])
def test_silu_mul(device, dtype, width):
    x = (4 * normal(3, 2 * width)).astype(TYPES[dtype])
    x[0, 0] = -200  # exp overflows: the product is 0
    out = unwritten(device, (3, width), TYPES[dtype])
    RowOps(device, TYPES[dtype]).silu_mul(device.upload(x), out)
    gate, up = x[:, :width].astype(float), x[:, width:].astype(float)
    close(device.read(out), gate / (1 + np.exp(-gate)) * up, EPS[dtype])


def test_buffers(device):
    sizes = {
        "layers": 1,
        "hidden": 576,
        "heads": 9,
        "kv_heads": 3,
        "ffn": 1536,
        "vocab": 100,
        "max_len": 1000,
        "eps": 1e-5,
    }
    b = RowOps(device, TYPES["bfloat16"]).buffers(flat(head_dim=64, **sizes), PassKind.DECODE, 16, 4)
    assert (b.scratch.splits, len(b.scratch.arrived), len(b.scratch.best)) == (4, 16 * 3, 4)
    assert len(b.scratch.partial) == 16 * 9 * 4 * 64
    b = RowOps(device, TYPES["bfloat16"]).buffers(flat(head_dim=64, **sizes), PassKind.PREFILL, 128, 4)
    assert (b.x.shape, len(b.scratch.best)) == ((128, 576), 4)
    assert not len(b.scratch.partial) and not len(b.scratch.arrived) and not len(b.scratch.squared)
    with pytest.raises(UnsupportedModel, match=r"expected head_dim to be one of .*, found 72"):
        RowOps(device, F32).buffers(flat(head_dim=72, **sizes), PassKind.DECODE, 1, 1)
    with pytest.raises(UnsupportedModel, match=r"expected an encoder's head_dim to be at most 128, found 192"):
        RowOps(device, F32).buffers(flat("bert", head_dim=192, causal=False, **sizes), PassKind.DECODE, 1, 1)


def _norm_of_chosen_rows_in_place(ops, new):
    x = new(2, 8)
    ops.layer_norm(x, new(8), new(8), 1e-5, new(2, 8), ops.device.upload(np.array([1, 0], I32)), x)


def _one_row(device):
    return step(device, [0], [0], [1], np.zeros((2, 1)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(
            lambda ops, new: ops.rms_norm(new(2, 8), new(9), 1e-5, new(2, 8)),
            r"rms_norm: expected weight to be float32 \[8\], found float32 \[9\]",
            id="rms_norm-weight",
        ),
        pytest.param(
            lambda ops, new: ops.layer_norm(new(2, 8), new(8), new(9), 1e-5, new(2, 8)),
            r"layer_norm: expected bias to be float32 \[8\], found float32 \[9\]",
            id="layer_norm-bias",
        ),
        pytest.param(
            lambda ops, new: ops.layer_norm(new(2, 6), new(6), new(6), 1e-5, new(2, 6)),
            r"layer_norm: expected rows of a multiple of 4 and at most 12288 elements, found 6",
            id="layer_norm-width",
        ),
        pytest.param(
            lambda ops, new: ops.layer_norm(new(1, 12292), new(12292), new(12292), 1e-5, new(1, 12292)),
            r"layer_norm: expected rows of a multiple of 4 and at most 12288 elements, found 12292",
            id="layer_norm-too-wide",
        ),
        pytest.param(
            lambda ops, new: ops.layer_norm(new(2, 8), new(8), new(8), 1e-5, new(2, 8), keep=new(1, 8)),
            r"layer_norm: expected keep to be float32 \[2, 8\], found float32 \[1, 8\]",
            id="layer_norm-keep",
        ),
        pytest.param(
            _norm_of_chosen_rows_in_place,
            r"layer_norm: expected keep to be another array than x where rows are chosen",
            id="layer_norm-in-place",
        ),
        pytest.param(
            lambda ops, new: ops.gelu(new(2, 8), True, new(2, 9)),
            r"gelu: expected out to be float32 \[2, 8\], found float32 \[2, 9\]",
            id="gelu-shape",
        ),
        pytest.param(
            lambda ops, new: ops.append(
                new(2, 48), _one_row(ops.device), Cache(new(1, 1, PAGE, 16), new(1, 1, PAGE, 16)), 1
            ),
            r"append: expected seqs to be int32 \[2\], found int32 \[1\]",
            id="append-rows",
        ),
        pytest.param(
            lambda ops, new: ops.silu_mul(new(2, 9), new(2, 4)),
            r"silu_mul: expected gate_up to be float32 \[2, 8\], found float32 \[2, 9\]",
            id="silu_mul-width",
        ),
        pytest.param(
            lambda ops, new: ops.silu_mul(new(8, 2).T, new(2, 4)),
            r"silu_mul: expected gate_up to be float32 \[2, 8\], found .*, not contiguous",
            id="silu_mul-transposed",
        ),
        pytest.param(
            lambda ops, new: ops.head_norm(new(1, 3 * 512), new(512), new(512), 1e-5, 1, 1),
            r"head_norm: expected heads of at most 256 elements, found 512",
            id="head_norm-size",
        ),
    ],
)
def test_errors_name_the_argument(device, call, message):
    with pytest.raises(DeviceError, match=message):
        call(RowOps(device, F32), lambda *shape: device.empty(shape, F32))
