"""Models with random weights, generated on the device in seconds. Speed depends on shapes, not on values.

A random model is a Checkpoint that draws a tensor when it is read, so the code that loads files also loads it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...checks import refuse
from ...config import LayerSpec, ModelConfig, Rope, RopeScaling
from ...ops.device import Device, HostDevice
from ...weights import names
from ...weights.checkpoint import Checkpoint
from ...weights.quantised import Quantised
from ...weights.tensor import Tensor
from .quantised import DEVIATION, Mix, drawn

_KINDS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_BYTES_DEVIATION = math.sqrt(4 * (256**2 - 1) / 12)  # of the sum of four independent bytes
_CHUNK = 1 << 20  # numbers drawn at a time on the CPU

SHAPES = {
    "smollm2-135m": ModelConfig(
        "decoder", (LayerSpec(heads=9, kv_heads=3, head_dim=64, ffn=1536, rope=Rope(1e5)),) * 30,
        hidden=576, vocab=49152, max_len=8192, eps=1e-5, tied=True,
    ),
    "llama-3.2-1b": ModelConfig(
        "decoder",
        (LayerSpec(heads=32, kv_heads=8, head_dim=64, ffn=8192, rope=Rope(5e5, RopeScaling("llama3", 32.0))),) * 16,
        hidden=2048, vocab=128256, max_len=131072, eps=1e-5, tied=True,
    ),
    "llama-3.1-8b": ModelConfig(
        "decoder",
        (LayerSpec(heads=32, kv_heads=8, head_dim=128, ffn=14336, rope=Rope(5e5, RopeScaling("llama3", 8.0))),) * 32,
        hidden=4096, vocab=128256, max_len=131072, eps=1e-5,
    ),
    "minilm-l6": ModelConfig(
        "bert",
        (LayerSpec(heads=12, kv_heads=12, head_dim=32, ffn=1536, rope=None, qkv_bias=True, activation="gelu"),) * 6,
        hidden=384, vocab=30522, max_len=512, eps=1e-12, family="bert", causal=False, segments=2,
    ),
}  # fmt: skip


def shape(name: str) -> ModelConfig:
    """The configuration of a known shape. RequestError lists the names."""
    if name not in SHAPES:
        refuse("shape", " or ".join(SHAPES), name)
    return SHAPES[name]


def random(device: Device, shape: tuple[int, ...], dtype: np.dtype, start: int = 0) -> Any:
    """A device array of nearly normal numbers with mean 0. The same start gives the same numbers on every device."""
    count, factor = math.prod(shape), np.float32(DEVIATION / _BYTES_DEVIATION)
    if not device.multiprocessors:
        return _on_host(count, dtype, start, factor).reshape(shape)
    out = device.empty(shape, dtype)
    kind = {"bfloat16": "bf16", "float16": "half", "float32": "float"}[dtype.name]
    kernel = device.kernel("synthetic.cu", f"fill_random<{kind}>")
    grid = max(1, min(-(-count // 256), 16 * device.multiprocessors))
    device.launch(kernel, (grid,), (256,), [out, np.uint64(count), np.uint32(start % 2**32), factor])
    return out


def _on_host(count: int, dtype: np.dtype, start: int, factor: np.float32) -> np.ndarray:
    """kernels/synthetic.cu on NumPy, bit for bit."""
    out = np.empty(count, dtype)
    for first in range(0, count, _CHUNK):
        h = np.arange(first + start, min(first + _CHUNK, count) + start).astype(np.uint32)
        h = (h ^ h >> 16) * np.uint32(0x85EBCA6B)
        h = (h ^ h >> 13) * np.uint32(0xC2B2AE35)
        h ^= h >> 16
        total = h.view(np.uint8).reshape(-1, 4).sum(1, dtype=np.int32)
        out[first : first + len(h)] = (total - 510).astype(np.float32) * factor
    return out


@dataclass(frozen=True)
class RandomTensor(Tensor):
    """A matrix drawn at random, or a vector of ones (zeros for a bias)."""

    device: Device | None = None  # that generates and holds the matrix
    start: int = 0
    quantised: Quantised | None = None  # what is stored instead

    def stored(self) -> Quantised | None:
        return self.quantised

    def numbers(self) -> Any:
        """The tensor [shape]: a matrix as a device array, a vector as a host array."""
        if self.device is None or len(self.shape) == 1:
            return np.full(self.shape, not self.name.endswith(".bias"), np.float32)
        return random(self.device, self.shape, self.dtype, self.start)


def checkpoint(c: ModelConfig, device: Device, dtype: np.dtype, seed: int = 0, mix: Mix | None = None) -> Checkpoint:
    """Random weights of the shape `c`, stored as dtype, or quantised as `mix` says; what load.weights reads."""
    entries = list(names.plan(c))
    plan = [(name, shape, e) for e in entries for name, shape in zip(e.tensors, e.shapes, strict=True)]
    source, empty, kind = Path("random weights"), np.empty(0, np.uint8), _KINDS[dtype.name]
    tensors: dict[str, Tensor] = {}
    for i, (name, shape, entry) in enumerate(plan, 1):
        start = (seed * len(plan) + i) * 0x9E3779B9  # far from the other tensors' counters
        where = device if entry.kind == "weight" else HostDevice()  # the loader transforms the others on the host
        *layer, _ = entry.path.split(".")
        stored = None
        if mix and entry.kind == "weight":
            stored = drawn(c, mix, name, int(layer[1]) if layer else -1, shape, start)
        tensors[name] = RandomTensor(source, name, kind, shape, empty, device=where, start=start, quantised=stored)
    return Checkpoint(source, tensors, config={})
