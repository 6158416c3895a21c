"""The launch shape of a decode GEMM does not change a bit of its result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from configs import changed
from sides import F32, SMALL, case, close, decode_step, everywhere, ready, same_numbers

from ostinato.ops.shapes import Launch

LONG = changed(SMALL, hidden=1040, heads=2, kv_heads=2, head_dim=48)  # 65 k tiles for 16 warps
EVEN = changed(SMALL, hidden=256, heads=4, kv_heads=2, head_dim=64)  # two k tiles per warp in every matrix
CLUSTER, ONCE = Launch(1, 3, 1, 1, 4, staged=True, ring=True), Launch(2, 2, 1, 1, once=True)
LAUNCHES = [
    pytest.param(LONG, 16, Launch(2, 2, 1, 1, 2), "bfloat16", id="two-blocks"),
    pytest.param(LONG, 16, CLUSTER, "bfloat16", id="four-blocks-ring-staged"),
    pytest.param(LONG, 16, Launch(2, 5, 1, 1, 8, ring=True), "bfloat16", id="eight-blocks-ring"),
    pytest.param(LONG, 16, Launch(1, 12, 1, 1, ring=True), "bfloat16", id="deep-ring"),
    pytest.param(EVEN, 8, ONCE, "bfloat16", id="once"),
    pytest.param(EVEN, 8, replace(ONCE, tiles=1, staged=True), "bfloat16", id="once-staged"),
    pytest.param(EVEN, 8, replace(ONCE, staged=True), "float16", id="once-of-halves"),
    pytest.param(EVEN, 8, replace(ONCE, tiles=1, staged=True), "float32", id="once-of-floats"),
]


@pytest.mark.parametrize(("c", "warps", "launch", "dtype"), LAUNCHES)
def test_launches_do_not_change_bits(device, c, warps, launch, dtype):
    """Clusters, tiles, depth, weight pipeline and staging of x: all give the bits of a plain launch."""
    if launch.split > 1 and device.arch < 90:
        pytest.skip("clusters need a GPU of compute capability 9.0")
    found = []
    for used in (Launch(1, 3, 1, 1), launch):
        same_numbers()
        g = case(device, dtype, c, decode_step(16)).gpu
        g.ops.shapes = everywhere(warps, used)
        for rows in (1, 5, 16):
            b, s = (
                g.b.first(rows),
                replace(g.s, **{n: getattr(g.s, n)[:rows] for n in ("seqs", "positions", "visible")}),
            )
            out = device.upload(np.full((rows, 96), np.nan, F32))
            ready(g, g.w.attn_norm, b)
            g.ops.norm_qkv(c, c.sizes, g.w, b, s, g.cache)
            g.ops.norm_gate_up(c, g.w, b, s)
            g.ops.linear(b.h, g.w.up, out, s.kind)
            queries = device.upload(device.read(b.qkv)[:, : c.sizes.heads * c.sizes.head_dim].copy())
            g.ops.linear_add(queries, g.w.o, b, s, g.w.mlp_norm)
            found.append([device.read(a).astype(F32) for a in (queries, b.ffn, out, b.x, b.h)])
    for plain, other in zip(found[:3], found[3:], strict=True):
        for expected, seen in zip(plain, other, strict=True):
            assert np.isfinite(expected).all()
            np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize(
    ("c", "warps", "launch"),
    [
        pytest.param(LONG, 16, CLUSTER, id="cluster"),
        pytest.param(EVEN, 8, ONCE, id="once"),
        pytest.param(EVEN, 8, replace(ONCE, staged=True), id="once-staged"),
    ],
)
def test_every_schedule_gives_the_same_bits(shuffled, c, warps, launch):
    t = case(shuffled, "bfloat16", c, decode_step(3))
    t.gpu.ops.shapes = everywhere(warps, launch)
    for side in (t.host, t.gpu):
        ready(side, side.w.mlp_norm)
        side.ops.norm_gate_up(c, side.w, side.b, side.s)
    close(shuffled.read(t.gpu.b.ffn), t.host.b.ffn, "bfloat16", factors=2)
    t.gpu.ops.linear(t.gpu.b.h, t.gpu.w.up, shuffled.empty((3, 96), F32), t.gpu.s.kind)
