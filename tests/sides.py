"""One step of a small model in NumPy and with the kernels, for tests of fused operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from configs import flat
from quantised_cases import given

from ostinato.config import ModelConfig
from ostinato.models import rope
from ostinato.ops.base import Cache, PassKind, Step
from ostinato.ops.cuda import CudaOps
from ostinato.ops.numpy import NumpyOps
from ostinato.ops.shapes import DecodeShape, Launch, Shapes
from ostinato.sizes import PAGE

F32, I32 = np.dtype(np.float32), np.dtype(np.int32)
EPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-18}
PAGES, SEQUENCES = 13, 4  # pages of the KV cache; sequences of three pages

SMALL = flat(hidden=64, heads=4, kv_heads=2, head_dim=32, ffn=96, vocab=209, max_len=192, eps=1e-5)
rng = np.random.default_rng(11)
START = rng.bit_generator.state


def same_numbers() -> None:
    """Reset the random generator."""
    rng.bit_generator.state = START


def random(*shape):
    return rng.standard_normal(shape, F32)


@dataclass
class Case:
    """One step: `host` in NumPy, `gpu` on the device, each with ops, w, b, s and cache."""

    c: ModelConfig
    host: Any
    gpu: Any


def decode_step(rows, last=None):
    """Rows of sequences at random positions; padding rows from the fourth row on."""
    seqs = np.minimum(np.arange(rows), SEQUENCES).astype(I32)
    positions = np.where(seqs < SEQUENCES, rng.integers(0, 3 * PAGE, rows), 0).astype(I32)
    return step(seqs, positions, np.arange(rows) if last is None else last, PassKind.DECODE)


def prefill_step(rows, last):
    """A sequence of 64 rows, one of 40 rows and 24 padding rows, and so on."""
    seqs, positions = np.full(rows, SEQUENCES, I32), np.zeros(rows, I32)
    for tile in range(rows // 64):
        count = 64 if tile % 2 == 0 else 40
        seqs[tile * 64 : tile * 64 + count] = tile % SEQUENCES
        positions[tile * 64 : tile * 64 + count] = np.arange(count) + 7 * tile + 50
    return step(seqs, positions, last, PassKind.PREFILL)


def step(seqs, positions, last, kind):
    table = np.zeros((SEQUENCES + 1, 3), I32)
    table[:SEQUENCES] = rng.permutation(np.arange(1, PAGES)).reshape(SEQUENCES, 3)
    return Step(np.zeros_like(seqs), seqs, positions, positions + 1, table, np.asarray(last, I32), kind)


class Everywhere(Shapes):
    """One shape for all matrices."""

    def decode(self, n: int, k: int, form: int | str) -> DecodeShape:
        return self.tuned[0, 0, 0]


def everywhere(warps: int, launch: Launch) -> Shapes:
    """The same launch for all matrices and numbers of rows."""
    return Everywhere({(0, 0, 0): DecodeShape(warps, launch, launch, launch)}, "given")


def case(device, dtype, c, s, forms: Mapping[str, Sequence[str]] | None = None) -> Case:
    """forms: of the parts of matrices that are quantised (quantised_cases.py), by the matrix."""
    rows, last, of = len(s.seqs), len(s.last), c.sizes
    plain = {
        "attn_norm": random(c.hidden), "mlp_norm": random(c.hidden), "norm": random(c.hidden),
        "q_norm": random(of.head_dim), "k_norm": random(of.head_dim), "head_bias": random(c.vocab),
        "qkv_bias": random(of.qkv) if of.qkv_bias else None,
        "rope": random(c.max_len, of.head_dim) if of.rope else rope.table(None, of.head_dim, c.max_len),
        "up_bias": random(of.ffn),
    }  # fmt: skip
    d = of.head_dim
    matrices = {
        "qkv": ([random(n * d, c.hidden) / c.hidden**0.5 for n in (of.heads, of.kv_heads, of.kv_heads)], "qkv", d),
        "gate_up": ([random(of.ffn, c.hidden) / c.hidden**0.5 for _ in range(2)], "gate_up", 0),
        "o": ([random(c.hidden, of.heads * d) / c.hidden**0.5], "rows", 0),
        "head": ([random(c.vocab, c.hidden) / c.hidden**0.5], "rows", 0),
        "up": ([random(of.ffn, c.hidden) / c.hidden**0.5], "rows", 0),
    }
    for name, keys in (forms or {}).items():
        parts, *rest = matrices[name]
        parts = [given(key, *part.shape, rng, size=0.1) for key, part in zip(keys, parts, strict=True)]
        matrices[name] = (parts, *rest)
    x, h, pages = random(rows, c.hidden), random(rows, c.hidden), (PAGES, of.kv_heads, PAGE, d)
    k, v = random(*pages), random(*pages)
    sides = []
    for ops in (NumpyOps(dtype=dtype), CudaOps(device, dtype)):
        up = ops.device.upload
        w = SimpleNamespace(**{name: None if a is None else up(a) for name, a in plain.items()},
                            **{name: ops.weight(*m) for name, m in matrices.items()})  # fmt: skip
        b = ops.buffers(c, s.kind, rows, last)
        for array in (b.qkv, b.ffn, b.gate_up, b.logits):
            ops.device.write(array, np.full(array.shape, np.nan, array.dtype))
        ops.device.write(b.x, x)
        h, k, v = (a.astype(CudaOps(device, dtype).dtype).astype(ops.dtype) for a in (h, k, v))
        ops.device.write(b.h, h)
        cache = Cache(up(k), up(v))
        arrays = {n: up(a) for n, a in vars(s).items() if n != "kind"}
        sides.append(SimpleNamespace(ops=ops, w=w, b=b, s=Step(**arrays, kind=s.kind), cache=cache))
        ops.device.synchronize()
    return Case(c, *sides)


def ready(side, norm, b=None):
    """Prepare the deferred RMSNorm of b.x with this weight, as its writer would: add a GEMM with zeros to b.x."""
    b = b or side.b
    side.ops.device.write(b.attn, np.zeros(b.attn.shape, b.attn.dtype))
    side.ops.linear_add(b.attn, side.w.o, b, side.s, norm)


def close(found, expected, dtype, factors=1):
    """Assert that arrays agree up to rounding. factors: number of rounded values in each product."""
    found, expected = found.astype(float), expected.astype(float)
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= factors * EPS[dtype] * max(1.0, np.abs(expected).max())
