"""The scale factors of a family: embeddings, attention scores, residual adds, and logits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from products import cublas
from sides import EPS, F32, SMALL, case, close, decode_step, prefill_step, random, ready, rng, same_numbers

from ostinato.ops.base import PassKind
from ostinato.ops.cuda import CudaOps
from ostinato.ops.numpy import NumpyOps

SCALE = 0.22  # no power of two


@pytest.fixture(autouse=True)
def numbers():
    """Reset the random generator before each test."""
    same_numbers()


def any_step(rows):
    return decode_step(rows) if rows <= 16 else prefill_step(rows, range(5))


STEPS = [pytest.param(n, id=f"{n}-rows") for n in (1, 9, 64)]


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("rows", STEPS)
def test_linear_add(device, dtype, rows):
    t = case(device, dtype, SMALL, any_step(rows))
    x = random(rows, 128).astype(t.gpu.ops.dtype)
    before = device.read(t.gpu.b.x)
    for side in (t.host, t.gpu):
        side.ops.device.write(side.b.attn, x.astype(side.b.attn.dtype))
        side.ops.linear_add(side.b.attn, side.w.o, side.b, side.s, side.w.mlp_norm, SCALE)
    close(device.read(t.gpu.b.x), t.host.b.x, "float32")
    np.testing.assert_allclose(t.host.b.x - before, SCALE * (x.astype(F32) @ t.host.w.o.T), atol=1e-5)


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("rows", STEPS)
def test_embed_tokens(device, dtype, rows):
    t = case(device, dtype, SMALL, any_step(rows))
    ids = rng.integers(0, SMALL.vocab, rows).astype(np.int32)
    for side in (t.host, t.gpu):
        side.ops.device.write(side.s.ids, ids)
        side.ops.embed_tokens(side.s, side.w.head, side.b, side.w.attn_norm, SCALE)
    np.testing.assert_array_equal(device.read(t.gpu.b.x), t.host.b.x)
    np.testing.assert_array_equal(t.host.b.x, t.host.w.head[ids] * F32.type(SCALE))


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("rows", STEPS)
def test_logits_are_scaled_and_bans_are_not(device, dtype, rows):
    c = replace(SMALL, logit_scale=SCALE)
    t, logits = case(device, dtype, c, any_step(rows)), []
    for side in (t.host, t.gpu):
        ready(side, side.w.norm)
        side.ops.norm_head(c, side.w, side.b, side.s)
    close(device.read(t.gpu.b.logits), t.host.b.logits, dtype)
    for config in (SMALL, c):
        t.host.ops.norm_head(config, t.host.w, t.host.b, t.host.s)
        logits.append(t.host.b.logits - t.host.w.head_bias)
    np.testing.assert_allclose(logits[1], SCALE * logits[0], atol=1e-5)


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("rows", STEPS)
def test_attend(device, dtype, rows):
    """Against NumPy; queries twice as large at half the scale give the same result."""
    t, got = case(device, dtype, SMALL, any_step(rows)), []
    qkv = random(rows, SMALL.sizes.qkv).astype(t.gpu.ops.dtype)
    for factor in (1, 2):
        for side in (t.host, t.gpu):
            side.ops.device.write(side.b.qkv, (qkv * factor).astype(side.b.qkv.dtype))
            side.ops.attend(side.b.qkv, side.s, side.cache, 4, 0, side.b.attn, side.b.scratch, scale=SCALE / factor)
            got.append(side.ops.device.read(side.b.attn).astype(F32))
    real = t.host.s.seqs < len(t.host.s.table) - 1  # results of padding rows are not used
    close(got[1][real], got[0][real], dtype, factors=2)
    for once, twice in zip(got[:2], got[2:], strict=True):
        np.testing.assert_array_equal(once[real], twice[real])


@pytest.mark.parametrize("ops", [CudaOps, cublas, NumpyOps])
@pytest.mark.parametrize("rows", [1, 16, 64])
def test_a_scale_is_one_rounding_of_the_sum(device, ops, rows):
    """A power of two rounds nothing: the bits are those of scale 1 with another exponent, with and without bias."""
    on = NumpyOps() if ops is NumpyOps else ops(device, "bfloat16")
    weight, x = on.weight([random(49, 80)]), on.device.upload(random(rows, 80).astype(on.dtype))
    bias, kind = random(49), PassKind.DECODE if rows <= 16 else PassKind.PREFILL
    for given in (None, bias):
        found = []
        for scale in (1.0, 4.0):
            out = on.device.upload(np.full((rows, 49), np.nan, F32))
            shifted = None if given is None else on.device.upload(given * F32.type(scale))
            on.linear(x, weight, out, kind, bias=shifted, scale=scale)
            found.append(on.device.read(out))
        np.testing.assert_array_equal(found[1], found[0] * 4)
