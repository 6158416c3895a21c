"""The fused operations of the cuda backend, against their definitions in base.py on NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from configs import changed
from sides import (
    EPS,
    F32,
    I32,
    SEQUENCES,
    SMALL,
    case,
    close,
    decode_step,
    prefill_step,
    ready,
    rng,
    same_numbers,
    step,
)

from ostinato.errors import DeviceError
from ostinato.ops.base import PassKind
from ostinato.sizes import PAGE

CONFIGS = [
    pytest.param(SMALL, id="gqa-2"),
    pytest.param(changed(SMALL, heads=3, kv_heads=3, head_dim=64, qkv_bias=True), id="bias-heads-of-64"),
    pytest.param(changed(SMALL, hidden=576, heads=8, kv_heads=1, head_dim=16, ffn=16), id="gqa-8-heads-of-16"),
    pytest.param(changed(SMALL, hidden=1040, heads=2, kv_heads=2, head_dim=48, qkv_bias=True), id="heads-of-48"),
    pytest.param(changed(SMALL, qk_norm=True), id="head-norm"),
]


@pytest.fixture(autouse=True)
def numbers():
    """Reset the random generator before each test."""
    same_numbers()


STEPS = [pytest.param(n, id=f"decode-{n}") for n in (1, 3, 8, 9, 16)] + [
    pytest.param(n, id=f"prefill-{n}") for n in (64, 192)
]


def any_step(rows):
    return decode_step(rows) if rows <= 16 else prefill_step(rows, rng.permutation(rows)[:5])


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("c", CONFIGS)
@pytest.mark.parametrize("rows", STEPS)
def test_norm_qkv(device, dtype, c, rows):
    t = case(device, dtype, c, any_step(rows))
    for side in (t.host, t.gpu):
        ready(side, side.w.attn_norm)
        side.ops.norm_qkv(c, c.sizes, side.w, side.b, side.s, side.cache)
    queries = c.sizes.heads * c.sizes.head_dim
    close(device.read(t.gpu.b.qkv)[:, :queries], t.host.b.qkv[:, :queries], dtype)
    for mine, expected in ((t.gpu.cache.k, t.host.cache.k), (t.gpu.cache.v, t.host.cache.v)):
        close(device.read(mine)[1:], expected[1:], dtype)  # page 0 belongs to the padding sequence


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("c", CONFIGS[:3])
@pytest.mark.parametrize("rows", STEPS)
def test_norm_gate_up(device, dtype, c, rows):
    t = case(device, dtype, c, any_step(rows))
    for side in (t.host, t.gpu):
        ready(side, side.w.mlp_norm)
        side.ops.norm_gate_up(c, side.w, side.b, side.s)
    close(device.read(t.gpu.b.ffn), t.host.b.ffn, dtype, factors=2)


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("c", CONFIGS[:4])
@pytest.mark.parametrize("rows", STEPS)
def test_linear_append(device, dtype, c, rows):
    c = changed(c, rope=None)
    t = case(device, dtype, c, any_step(rows))
    for side in (t.host, t.gpu):
        side.ops.linear_append(c.sizes, side.w, side.b, side.s, side.cache)
    queries = c.sizes.heads * c.sizes.head_dim
    close(device.read(t.gpu.b.qkv)[:, :queries], t.host.b.qkv[:, :queries], dtype)
    for mine, expected in ((t.gpu.cache.k, t.host.cache.k), (t.gpu.cache.v, t.host.cache.v)):
        close(device.read(mine)[1:], expected[1:], dtype)


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("c", [SMALL, changed(SMALL, hidden=1040, ffn=200)], ids=["small", "part-of-a-tile"])
@pytest.mark.parametrize("rows", STEPS)
def test_linear_gelu(device, dtype, activation, c, rows):
    c = changed(c, activation=activation)
    t = case(device, dtype, c, any_step(rows))
    for side in (t.host, t.gpu):
        side.ops.linear_gelu(c.sizes, side.w, side.b, side.s)
    close(device.read(t.gpu.b.ffn), t.host.b.ffn, dtype)


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize(
    ("rows", "last"),
    [
        pytest.param(1, [0], id="decode-1"),
        pytest.param(8, range(8), id="decode-8"),
        pytest.param(16, range(16), id="decode-16"),
        pytest.param(64, [63], id="prefill-one"),
        pytest.param(64, [60, 0, 3], id="prefill-any-order"),
        pytest.param(128, range(5, 125, 3), id="prefill-40"),
    ],
)
def test_norm_head(device, dtype, rows, last):
    s = decode_step(rows, last) if rows <= 16 else prefill_step(rows, last)
    t = case(device, dtype, SMALL, s)
    for side in (t.host, t.gpu):
        ready(side, side.w.norm)
        side.ops.norm_head(SMALL, side.w, side.b, side.s)
    close(device.read(t.gpu.b.logits), t.host.b.logits, dtype)


@pytest.mark.parametrize("dtype", EPS)
def test_logits_have_the_same_bits_in_every_batch(device, dtype):
    t = case(device, dtype, SMALL, prefill_step(64, range(64)))
    g = t.gpu
    g.ops.norm_head(SMALL, g.w, g.b, g.s)
    everyone = device.read(g.b.logits)
    for count in (1, 2, 8, 9, 16, 17, 40):
        last = rng.permutation(64)[:count].astype(I32)
        b = replace(g.b, logits=device.upload(np.full((count, SMALL.vocab), np.nan, F32)))
        g.ops.norm_head(SMALL, g.w, b, replace(g.s, last=device.upload(last)))
        np.testing.assert_array_equal(device.read(b.logits), everyone[last], err_msg=f"{count} rows")


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("c", CONFIGS[1:4])
def test_decode_bits_do_not_depend_on_the_batch(device, dtype, c):
    """Every row of a batch of 16 has the same bits alone and in every batch size, in all results."""
    s = step(
        np.arange(16, dtype=I32) % SEQUENCES, rng.permutation(3 * PAGE)[:16].astype(I32), range(16), PassKind.DECODE
    )
    t = case(device, dtype, c, s)
    g, x, h = t.gpu, device.read(t.gpu.b.x), device.read(t.gpu.b.h)
    queries = c.sizes.heads * c.sizes.head_dim

    def run(rows):
        part = {n: device.upload(getattr(s, n)[rows]) for n in ("ids", "seqs", "positions", "visible")}
        some, b = replace(g.s, **part), g.ops.buffers(c, PassKind.DECODE, len(rows), len(rows))
        device.write(b.x, x[rows])
        ready(g, g.w.attn_norm, b)
        g.ops.norm_qkv(c, c.sizes, g.w, b, some, g.cache)
        ready(g, g.w.mlp_norm, b)
        g.ops.norm_gate_up(c, g.w, b, some)
        page, slot = s.table[s.seqs[rows], s.positions[rows] // PAGE], s.positions[rows] % PAGE
        found = [device.read(b.qkv)[:, :queries], device.read(b.ffn)]
        found += [device.read(a)[page, :, slot] for a in (g.cache.k, g.cache.v)]
        for tanh in (False, True):
            device.write(b.h, h[rows])
            g.ops.linear_gelu(replace(c.sizes, activation="gelu_tanh" if tanh else "gelu"), g.w, b, some)
            found.append(device.read(b.ffn))
        return found

    alone = [np.concatenate(a) for a in zip(*(run([r]) for r in range(16)), strict=True)]
    for count in (2, 3, 7, 8, 9, 15, 16):
        rows = rng.permutation(16)[:count]
        for found, expected in zip(run(rows), alone, strict=True):
            np.testing.assert_array_equal(found, expected[rows], err_msg=f"batch of {count}")


@pytest.mark.parametrize(
    ("op", "where", "name", "shape", "message"),
    [
        pytest.param("norm_qkv", "b", "x", (3, 48), r"norm_qkv: expected x to be float32 \[3, 64\]", id="qkv-x"),
        pytest.param("norm_qkv", "w", "attn_norm", (48,), r"norm_qkv: expected norm weight .*\[64\]", id="qkv-norm"),
        pytest.param("norm_qkv", "w", "rope", (9, 16), r"norm_qkv: expected rope .*\[9, 32\], found", id="qkv-rope"),
        pytest.param("norm_gate_up", "b", "x", (3, 48), r"norm_gate_up: expected x .*\[3, 64\]", id="gate_up-x"),
        pytest.param("linear_append", "b", "h", (3, 64), r"linear_append: expected x to be bfloat16", id="append-h"),
        pytest.param(
            "linear_append", "w", "qkv_bias", (9,), r"linear_append: expected bias .*\[256\]", id="append-bias"
        ),
        pytest.param("linear_gelu", "w", "up_bias", (95,), r"linear_gelu: expected bias .*\[96\]", id="gelu-bias"),
        pytest.param("linear_gelu", "b", "ffn", (3, 95), r"linear_gelu: expected out to be .*\[3, 96\]", id="gelu-out"),
        pytest.param("norm_gate_up", "b", "h", (3, 64), r"norm_gate_up: expected h to be bfloat16", id="gate_up-h"),
        pytest.param("norm_head", "s", "last", (2,), r"norm_head: expected last to be int32 \[3\]", id="head-last"),
        pytest.param("norm_head", "b", "logits", (3, 200), r"norm_head: expected out .*\[3, 209\]", id="head-logits"),
        pytest.param("norm_head", "w", "head_bias", (200,), r"norm_head: expected bias .*\[209\]", id="head-bias"),
        pytest.param(
            "linear_add", "b", "attn", (3, 96), r"linear_add: expected x to be bfloat16 \[3, 128\]", id="add-x"
        ),
        pytest.param("linear_add", "b", "x", (3, 48), r"linear_add: expected out to be .*\[3, 64\]", id="add-out"),
        pytest.param("linear_add", "b", "h", (2, 64), r"linear_add: expected h to be bfloat16 \[3, 64\]", id="add-h"),
        pytest.param("linear_add", "w", "norm", (48,), r"linear_add: expected norm weight .*\[64\]", id="add-norm"),
        pytest.param("embed_tokens", "b", "x", (3, 48), r"embed_tokens: expected x to be .*\[3, 64\]", id="embed-x"),
        pytest.param("embed_tokens", "w", "norm", (48,), r"embed_tokens: expected norm weight", id="embed-norm"),
    ],
)
def test_bad_arrays(device, op, where, name, shape, message):
    g = case(device, "bfloat16", changed(SMALL, rope=None), decode_step(3)).gpu
    setattr(getattr(g, where), name, device.empty(shape, F32))
    arguments = {
        "norm_qkv": (SMALL, SMALL.sizes, g.w, g.b, g.s, g.cache),
        "linear_append": (SMALL.sizes, g.w, g.b, g.s, g.cache),
        "linear_gelu": (SMALL.sizes, g.w, g.b, g.s),
        "norm_head": (SMALL, g.w, g.b, g.s),
        "linear_add": (g.b.attn, g.w.o, g.b, g.s, g.w.norm),
        "embed_tokens": (g.s, g.w.head, g.b, g.w.norm),
    }
    with pytest.raises(DeviceError, match=message):
        getattr(g.ops, op)(*arguments.get(op, (SMALL, g.w, g.b, g.s)))


def test_every_schedule_gives_the_same_bits(shuffled):
    for s in (decode_step(3), decode_step(9), prefill_step(64, [63])):
        t = case(shuffled, "bfloat16", changed(SMALL, rope=None), s)
        g = t.gpu
        if len(s.seqs) <= SEQUENCES:  # padding rows write the same place in page 0, in any order
            ready(g, g.w.attn_norm)
            g.ops.norm_qkv(SMALL, SMALL.sizes, g.w, g.b, g.s, g.cache)
            g.ops.linear_append(SMALL.sizes, g.w, g.b, g.s, g.cache)
        g.ops.linear_gelu(SMALL.sizes, g.w, g.b, g.s)
        ready(g, g.w.mlp_norm)
        g.ops.norm_gate_up(SMALL, g.w, g.b, g.s)
        g.ops.norm_head(SMALL, g.w, g.b, g.s)
