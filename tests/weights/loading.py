"""Whole checkpoints loaded by a backend, and what it has of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ostinato.config import EngineConfig, ModelConfig
from ostinato.models.families import model_config
from ostinato.models.weights import Weights
from ostinato.ops.base import Ops
from ostinato.ops.cuda import CudaOps, PackedWeight
from ostinato.run import load
from ostinato.run.batch import Batch
from ostinato.run.runner import Runner
from ostinato.weights.checkpoint import open_checkpoint


def loaded(path: Path, ops: Ops, **options: Any) -> tuple[ModelConfig, Weights]:
    """A model in the hands of a backend; options of load.weights."""
    with open_checkpoint(path) as ck:
        c = model_config(ck.config, ck.generation_config, ck.source)
        return c, load.weights(ops, ck, c, **options)


def logits(path: Path, ops: Ops) -> np.ndarray:
    """Of a prompt of eight tokens, the last three by decode steps [8, V]."""
    c, w = loaded(path, ops)
    runner = Runner(ops, c, w, EngineConfig(max_batch=1, graph="off", cache_tokens=64))
    found = Batch(runner).logits([3, 1, 4, 1, 5, 9, 2, 6], 5)
    assert found is not None
    return found


def bits(ops: Ops, w: Weights) -> dict[str, np.ndarray]:
    """Every matrix of loaded weights as plain numbers: as the backend keeps it, or multiplies prompts by it."""
    layers = {
        f"{i}.{n}": getattr(layer, n) for i, layer in enumerate(w.layers) for n in ("qkv", "o", "gate_up", "down")
    }
    every = {"embed": w.embed, "head": w.head, **layers}
    return {name: _plain(ops, a) for name, a in every.items()}


def _plain(ops: Ops, weight: Any) -> np.ndarray:
    if isinstance(ops, CudaOps) and isinstance(weight, PackedWeight):
        return ops.device.read(ops._plain(weight)[0])[: weight.tiles * 16 * weight.k]
    return ops.device.read(weight)
