"""RMSNorm with deferred scale: what embed_tokens and linear_add write beside the residual stream in a decode step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from configs import changed
from sides import EPS, F32, SMALL, case, close, decode_step, prefill_step, random, ready, rng, same_numbers

from ostinato.errors import DeviceError
from ostinato.ops.base import PassKind
from ostinato.ops.scratch import squared_line

FACTOR = {"bfloat16": 1, "float16": 16, "float32": 1}  # as in kernels/norm.cuh
CONFIGS = [
    pytest.param(SMALL, id="64"),
    pytest.param(changed(SMALL, hidden=1040, heads=2, kv_heads=2, head_dim=48), id="1040"),  # 65 sums of squares
    pytest.param(changed(SMALL, hidden=4096, heads=1, kv_heads=1, head_dim=16, vocab=16, ffn=16), id="4096"),
]
ROWS = [pytest.param(n, id=f"{n}-rows") for n in (1, 5, 8, 9, 16)]


@pytest.fixture(autouse=True)
def numbers():
    """Reset the random generator before each test."""
    same_numbers()


def expect_half(device, dtype, c, side, norm):
    """Assert that b.h and the sums of squares match b.x, and that padding floats stay 0."""
    b, weight = side.b, device.read(norm)
    x = device.read(b.x)
    half = x * F32.type(1 / FACTOR[dtype]) * weight
    np.testing.assert_array_equal(device.read(b.h), half.astype(b.h.dtype))
    squared, line = device.read(b.scratch.squared)[: len(x)], squared_line(c.hidden)
    assert squared.shape == (len(x), line) and line % 4 == 0
    exact = np.square(x.astype(np.float64)).reshape(len(x), -1, 16).sum(-1)
    np.testing.assert_allclose(squared[:, : c.hidden // 16], exact, rtol=1e-6)
    assert not squared[:, c.hidden // 16 :].any()


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("c", CONFIGS)
@pytest.mark.parametrize("rows", ROWS)
def test_linear_add(device, dtype, c, rows):
    t = case(device, dtype, c, decode_step(rows))
    x = random(rows, c.sizes.heads * c.sizes.head_dim)
    for side in (t.host, t.gpu):
        side.ops.device.write(side.b.attn, x.astype(t.gpu.ops.dtype).astype(side.b.attn.dtype))
        side.ops.linear_add(side.b.attn, side.w.o, side.b, side.s, side.w.mlp_norm)
    close(device.read(t.gpu.b.x), t.host.b.x, dtype)
    expect_half(device, dtype, c, t.gpu, t.gpu.w.mlp_norm)


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("c", CONFIGS)
@pytest.mark.parametrize("rows", ROWS)
def test_embed_tokens(device, dtype, c, rows):
    t = case(device, dtype, c, decode_step(rows))
    ids = rng.integers(0, c.vocab, rows).astype(np.int32)
    for side in (t.host, t.gpu):
        side.ops.device.write(side.s.ids, ids)
        side.ops.embed_tokens(side.s, side.w.head, side.b, side.w.attn_norm)
    np.testing.assert_array_equal(device.read(t.gpu.b.x), t.host.b.x)
    expect_half(device, dtype, c, t.gpu, t.gpu.w.attn_norm)


@pytest.mark.parametrize("hidden", [2048, 2064, 2112, 2560, 3072, 3584, 4032, 4096, 5120])
def test_scales_of_every_width(device, hidden):
    """A lane of RowScales reads one quad of sums up to 2048 elements, two up to 4096, and loops beyond."""
    c = changed(SMALL, hidden=hidden, heads=1, kv_heads=1, head_dim=16, vocab=16, ffn=16)
    t = case(device, "bfloat16", c, decode_step(3))
    x = device.read(t.gpu.b.x) * (1 + np.arange(hidden, dtype=F32) % 89 / 10)  # all sums of squares differ
    for side in (t.host, t.gpu):
        side.ops.device.write(side.b.x, x)
        ready(side, side.w.mlp_norm)
        side.ops.norm_gate_up(c, side.w, side.b, side.s)
    close(device.read(t.gpu.b.ffn), t.host.b.ffn, "bfloat16", factors=2)


@pytest.mark.parametrize("dtype", EPS)
def test_prompts_leave_it_to_the_norm(device, dtype):
    """In prefill only the residual stream is written."""
    t = case(device, dtype, SMALL, prefill_step(64, [0]))
    before = device.read(t.gpu.b.h)
    for side in (t.host, t.gpu):
        side.ops.embed_tokens(side.s, side.w.head, side.b, side.w.attn_norm)
        side.ops.device.write(side.b.attn, np.ones(side.b.attn.shape, side.b.attn.dtype))
        side.ops.linear_add(side.b.attn, side.w.o, side.b, side.s, side.w.mlp_norm)
    close(device.read(t.gpu.b.x), t.host.b.x, dtype)
    np.testing.assert_array_equal(device.read(t.gpu.b.h), before)


@pytest.mark.parametrize("dtype", EPS)
def test_bits_do_not_depend_on_the_batch(device, dtype):
    g = case(device, dtype, SMALL, decode_step(16)).gpu
    x, values = device.read(g.b.x), random(16, 128).astype(g.ops.dtype)

    def run(rows):
        b = g.ops.buffers(SMALL, PassKind.DECODE, len(rows), len(rows))
        device.write(b.x, x[rows])
        g.ops.linear_add(device.upload(values[rows]), g.w.o, b, g.s, g.w.norm)
        return [device.read(a) for a in (b.x, b.h, b.scratch.squared)]

    alone = [np.concatenate(a) for a in zip(*(run([r]) for r in range(16)), strict=True)]
    for count in (2, 8, 9, 16):
        rows = rng.permutation(16)[:count]
        for found, expected in zip(run(rows), alone, strict=True):
            np.testing.assert_array_equal(found, expected[rows], err_msg=f"batch of {count}")


def test_more_rows_than_the_buffers_were_made_for(device):
    g = case(device, "bfloat16", SMALL, decode_step(3)).gpu
    b = replace(g.ops.buffers(SMALL, PassKind.DECODE, 5, 5), scratch=g.b.scratch)
    with pytest.raises(DeviceError, match=r"linear_add: expected at most 3 rows, .* found 5"):
        g.ops.linear_add(b.attn, g.w.o, b, g.s, g.w.norm)


@pytest.mark.parametrize("layout", ["gate_up", "rows"])
def test_rows_of_weights_stand_in_tiles_of_their_own(device, layout):
    """Every sum of squares covers one tile of sixteen adjacent elements."""
    g = case(device, "bfloat16", SMALL, decode_step(3)).gpu
    rows = 64 if layout == "gate_up" else 72
    weight = g.ops.weight([random(rows // 2, 128)] * 2, layout)
    with pytest.raises(DeviceError, match="linear_add: expected a weight of a multiple of 16 rows"):
        g.ops.linear_add(g.b.attn, weight, replace(g.b, x=device.empty((3, rows), F32)), g.s, g.w.norm)
