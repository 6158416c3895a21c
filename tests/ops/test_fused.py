"""The composites that the cuda backend fuses, against those of base.py on NumPy operations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ostinato.config import ModelConfig
from ostinato.errors import DeviceError
from ostinato.ops.base import PAGE, Cache, Step
from ostinato.ops.cuda import CudaOps
from ostinato.ops.numpy import NumpyOps

F32, I32 = np.dtype(np.float32), np.dtype(np.int32)
EPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-18}
PAGES, SEQUENCES = 13, 4  # pages of the cache; sequences of three pages

SMALL = ModelConfig(
    arch="decoder", layers=1, hidden=64, heads=4, kv_heads=2, head_dim=32, ffn=96, vocab=209, max_len=192, eps=1e-5
)
CONFIGS = [
    pytest.param(SMALL, id="gqa-2"),
    pytest.param(replace(SMALL, heads=3, kv_heads=3, head_dim=64, qkv_bias=True), id="bias-heads-of-64"),
    pytest.param(replace(SMALL, hidden=576, heads=8, kv_heads=1, head_dim=16, ffn=16), id="gqa-8-heads-of-16"),
    pytest.param(replace(SMALL, hidden=1040, heads=2, kv_heads=2, head_dim=48, qkv_bias=True), id="heads-of-48"),
    pytest.param(replace(SMALL, qk_norm=True), id="head-norm"),
]
rng = np.random.default_rng(11)
START = rng.bit_generator.state


@pytest.fixture(autouse=True)
def same_numbers():
    """Every test draws the same numbers, alone and in any company."""
    rng.bit_generator.state = START


def random(*shape):
    return rng.standard_normal(shape, F32)


@dataclass
class Case:
    """One step on both sides: `host` in NumPy and `gpu` on the device, each with ops, w, b, s and cache."""

    c: ModelConfig
    host: Any
    gpu: Any


def decode_step(rows, last=None):
    """Rows of sequences at any position; from the fourth row on spare ones."""
    seqs = np.minimum(np.arange(rows), SEQUENCES).astype(I32)
    positions = np.where(seqs < SEQUENCES, rng.integers(0, 3 * PAGE, rows), 0).astype(I32)
    return step(seqs, positions, np.arange(rows) if last is None else last)


def prefill_step(rows, last):
    """A sequence of 64 rows, one of 40 and 24 spare rows, and so on."""
    seqs, positions = np.full(rows, SEQUENCES, I32), np.zeros(rows, I32)
    for tile in range(rows // 64):
        count = 64 if tile % 2 == 0 else 40
        seqs[tile * 64 : tile * 64 + count] = tile % SEQUENCES
        positions[tile * 64 : tile * 64 + count] = np.arange(count) + 7 * tile + 50
    return step(seqs, positions, last)


def step(seqs, positions, last):
    table = np.zeros((SEQUENCES + 1, 3), I32)
    table[:SEQUENCES] = rng.permutation(np.arange(1, PAGES)).reshape(SEQUENCES, 3)
    return Step(np.zeros_like(seqs), seqs, positions, positions + 1, table, np.asarray(last, I32))


def case(device, dtype, c, s) -> Case:
    rows, last = len(s.seqs), len(s.last)
    plain = {
        "attn_norm": random(c.hidden), "mlp_norm": random(c.hidden), "norm": random(c.hidden),
        "q_norm": random(c.head_dim), "k_norm": random(c.head_dim), "head_bias": random(c.vocab),
        "qkv_bias": random(c.qkv) if c.qkv_bias else None, "rope": random(c.max_len, c.head_dim),
        "up_bias": random(c.ffn),
    }  # fmt: skip
    d = c.head_dim
    matrices = {
        "qkv": ([random(n * d, c.hidden) / c.hidden**0.5 for n in (c.heads, c.kv_heads, c.kv_heads)], "qkv", d),
        "gate_up": ([random(c.ffn, c.hidden) / c.hidden**0.5 for _ in range(2)], "gate_up", 0),
        "head": ([random(c.vocab, c.hidden) / c.hidden**0.5], "rows", 0),
        "up": ([random(c.ffn, c.hidden) / c.hidden**0.5], "rows", 0),
    }
    x, h, pages = random(rows, c.hidden), random(rows, c.hidden), (PAGES, c.kv_heads, PAGE, d)
    k, v = random(*pages), random(*pages)
    sides = []
    for ops in (NumpyOps(dtype=dtype), CudaOps(device, dtype)):
        up = ops.device.upload
        w = SimpleNamespace(**{name: None if a is None else up(a) for name, a in plain.items()},
                            **{name: ops.weight(*m) for name, m in matrices.items()})  # fmt: skip
        b = ops.buffers(c, rows, last)
        for array in (b.qkv, b.ffn, b.gate_up, b.logits):
            ops.device.write(array, np.full(array.shape, np.nan, array.dtype))
        ops.device.write(b.x, x)
        h, k, v = (a.astype(CudaOps(device, dtype).dtype).astype(ops.dtype) for a in (h, k, v))
        ops.device.write(b.h, h)
        cache = Cache(up(k), up(v))
        arrays = {n: up(a) for n, a in vars(s).items()}
        sides.append(SimpleNamespace(ops=ops, w=w, b=b, s=Step(**arrays), cache=cache))
        ops.device.synchronize()
    return Case(c, *sides)


def close(found, expected, dtype, factors=1):
    """factors: rounded values that are multiplied with one another."""
    found, expected = found.astype(float), expected.astype(float)
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= factors * EPS[dtype] * max(1.0, np.abs(expected).max())


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
        side.ops.norm_qkv(c, side.w, side.b, side.s, side.cache, side.w.rope)
    queries = c.heads * c.head_dim
    close(device.read(t.gpu.b.qkv)[:, :queries], t.host.b.qkv[:, :queries], dtype)
    for mine, expected in ((t.gpu.cache.k, t.host.cache.k), (t.gpu.cache.v, t.host.cache.v)):
        close(device.read(mine)[1:], expected[1:], dtype)  # page 0 belongs to the spare sequence


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("c", CONFIGS[:3])
@pytest.mark.parametrize("rows", STEPS)
def test_norm_gate_up(device, dtype, c, rows):
    t = case(device, dtype, c, any_step(rows))
    for side in (t.host, t.gpu):
        side.ops.norm_gate_up(c, side.w, side.b)
    close(device.read(t.gpu.b.ffn), t.host.b.ffn, dtype, factors=2)


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("c", CONFIGS[:4])
@pytest.mark.parametrize("rows", STEPS)
def test_linear_append(device, dtype, c, rows):
    c = replace(c, rope_theta=0)
    t = case(device, dtype, c, any_step(rows))
    for side in (t.host, t.gpu):
        side.ops.linear_append(c, side.w, side.b, side.s, side.cache)
    queries = c.heads * c.head_dim
    close(device.read(t.gpu.b.qkv)[:, :queries], t.host.b.qkv[:, :queries], dtype)
    for mine, expected in ((t.gpu.cache.k, t.host.cache.k), (t.gpu.cache.v, t.host.cache.v)):
        close(device.read(mine)[1:], expected[1:], dtype)


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("c", [SMALL, replace(SMALL, hidden=1040, ffn=200)], ids=["small", "part-of-a-tile"])
@pytest.mark.parametrize("rows", STEPS)
def test_linear_gelu(device, dtype, activation, c, rows):
    c = replace(c, activation=activation)
    t = case(device, dtype, c, any_step(rows))
    for side in (t.host, t.gpu):
        side.ops.linear_gelu(c, side.w, side.b)
    close(device.read(t.gpu.b.ffn), t.host.b.ffn, dtype)


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize(
    ("rows", "last"),
    [
        pytest.param(1, [0], id="decode-1"),
        pytest.param(8, [7, 0, 3], id="decode-8-any-order"),
        pytest.param(16, list(range(16)), id="decode-16"),
        pytest.param(64, [63], id="prefill-one"),
        pytest.param(128, list(range(5, 125, 3)), id="prefill-40"),
    ],
)
def test_norm_head(device, dtype, rows, last):
    s = decode_step(rows, last) if rows <= 16 else prefill_step(rows, last)
    t = case(device, dtype, SMALL, s)
    for side in (t.host, t.gpu):
        side.ops.norm_head(SMALL, side.w, side.b, side.s)
    close(device.read(t.gpu.b.logits), t.host.b.logits, dtype)


@pytest.mark.parametrize("dtype", EPS)
def test_logits_have_the_same_bits_in_every_company(device, dtype):
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
@pytest.mark.parametrize("c", [CONFIGS[1], CONFIGS[2]])
def test_decode_bits_do_not_depend_on_the_batch(device, dtype, c):
    """Every row of a batch of 16 alone and in batches of every size: the same queries, keys, values and activations."""
    s = step(np.arange(16, dtype=I32) % SEQUENCES, rng.permutation(3 * PAGE)[:16].astype(I32), range(16))
    t = case(device, dtype, c, s)
    g, x, h = t.gpu, device.read(t.gpu.b.x), device.read(t.gpu.b.h)
    queries = c.heads * c.head_dim

    def run(rows):
        part = {n: device.upload(getattr(s, n)[rows]) for n in ("ids", "seqs", "positions", "visible")}
        some, b = replace(g.s, **part), g.ops.buffers(c, len(rows), len(rows))
        device.write(b.x, x[rows])
        g.ops.norm_qkv(c, g.w, b, some, g.cache, g.w.rope)
        g.ops.norm_gate_up(c, g.w, b)
        page, slot = s.table[s.seqs[rows], s.positions[rows] // PAGE], s.positions[rows] % PAGE
        found = [device.read(b.qkv)[:, :queries], device.read(b.ffn)]
        found += [device.read(a)[page, :, slot] for a in (g.cache.k, g.cache.v)]
        for tanh in (False, True):
            device.write(b.h, h[rows])
            g.ops.linear_gelu(replace(c, activation="gelu_tanh" if tanh else "gelu"), g.w, b)
            found.append(device.read(b.ffn))
        return found

    alone = [np.concatenate(a) for a in zip(*(run([r]) for r in range(16)), strict=True)]
    for count in (2, 3, 7, 8, 9, 15, 16):
        rows = rng.permutation(16)[:count]
        for found, expected in zip(run(rows), alone, strict=True):
            np.testing.assert_array_equal(found, expected[rows], err_msg=f"batch of {count}")


@pytest.mark.parametrize("rows", [1, 2, 16])
def test_norm_inside_or_before_the_product(device, rows, monkeypatch):
    """Which of the two a step takes depends on its number of rows, so both must give the same bits."""
    g = case(device, "bfloat16", SMALL, any_step(rows)).gpu

    def run():
        g.ops.norm_qkv(SMALL, g.w, g.b, g.s, g.cache, g.w.rope)
        g.ops.norm_gate_up(SMALL, g.w, g.b)
        g.ops.norm_head(SMALL, g.w, g.b, g.s)
        return [device.read(a) for a in (g.b.qkv[:, :128], g.b.ffn, g.b.logits)]

    inside = run()
    monkeypatch.setattr(CudaOps, "_normalises", lambda *_: False)
    for found, expected in zip(run(), inside, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("op", "where", "name", "shape", "message"),
    [
        pytest.param("norm_qkv", "b", "x", (3, 48), r"norm_qkv: expected x to be float32 \[3, 64\]", id="qkv-x"),
        pytest.param("norm_qkv", "w", "attn_norm", (48,), r"norm_qkv: expected norm weight .*\[64\]", id="qkv-norm"),
        pytest.param("norm_qkv", "w", "rope", (9, 16), r"norm_qkv: expected rope .*\[9, 32\], found", id="qkv-rope"),
        pytest.param("norm_gate_up", "b", "x", (3, 48), r"norm_gate_up: expected x .*\[3, 64\]", id="gate_up-x"),
        pytest.param("linear_append", "b", "h", (3, 64), r"qkv: expected x to be bfloat16 \[3, 64\]", id="append-h"),
        pytest.param(
            "linear_append", "w", "qkv_bias", (9,), r"linear_append: expected bias .*\[256\]", id="append-bias"
        ),
        pytest.param("linear_gelu", "w", "up_bias", (95,), r"linear_gelu: expected bias .*\[96\]", id="gelu-bias"),
        pytest.param("linear_gelu", "b", "ffn", (3, 95), r"linear_gelu: expected out to be .*\[3, 96\]", id="gelu-out"),
        pytest.param("norm_head", "b", "logits", (3, 200), r"norm_head: expected out .*\[3, 209\]", id="head-logits"),
        pytest.param("norm_head", "w", "head_bias", (200,), r"norm_head: expected bias .*\[209\]", id="head-bias"),
    ],
)
def test_bad_arrays(device, op, where, name, shape, message):
    g = case(device, "bfloat16", replace(SMALL, rope_theta=0), decode_step(3)).gpu
    setattr(getattr(g, where), name, device.empty(shape, F32))
    rest = {"norm_qkv": (g.s, g.cache, g.w.rope), "linear_append": (g.s, g.cache), "norm_head": (g.s,)}.get(op, ())
    with pytest.raises(DeviceError, match=message):
        getattr(g.ops, op)(SMALL, g.w, g.b, *rest)


def test_every_schedule_gives_the_same_bits(shuffled):
    for s in (decode_step(3), decode_step(9), prefill_step(64, [63])):
        t = case(shuffled, "bfloat16", replace(SMALL, rope_theta=0), s)
        g = t.gpu
        if len(s.seqs) <= SEQUENCES:  # spare rows share a place in page 0, in any order
            g.ops.norm_qkv(SMALL, g.w, g.b, g.s, g.cache, g.w.rope)
            g.ops.linear_append(SMALL, g.w, g.b, g.s, g.cache)
        g.ops.linear_gelu(SMALL, g.w, g.b)
        g.ops.norm_gate_up(SMALL, g.w, g.b)
        g.ops.norm_head(SMALL, g.w, g.b, g.s)
