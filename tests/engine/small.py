"""Random models that run in milliseconds, and functions that complete prompts with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from configs import changed, flat

from ostinato.config import EngineConfig, ModelConfig, Rope, RopeScaling, SamplingParams
from ostinato.models.weights import Weights
from ostinato.ops.base import Ops
from ostinato.ops.numpy import NumpyOps
from ostinato.run.batch import Batch
from ostinato.run.load import weights
from ostinato.run.runner import Runner
from ostinato.run.sequence import Event, Request, Sequence
from ostinato.weights import names

LLAMA = flat(layers=3, hidden=48, heads=6, kv_heads=2, head_dim=16, ffn=80, vocab=131, max_len=512,
                    eps=1e-6, dtype="float32", tied=True)  # fmt: skip
NOPE = ((Rope(), 0), (None, 9), (Rope(interleaved=True), 0))
LONGROPE = RopeScaling("longrope", original_max_len=512, short=(1.0, 1.5, 2.0, 3.0, 4.0, 6.0), attention_factor=1.2)
MODELS = {
    "llama": LLAMA,
    "mistral": changed(LLAMA, window=9, tied=False),
    "qwen2": changed(LLAMA, qkv_bias=True, heads=3, kv_heads=3),
    "qwen3": changed(LLAMA, qk_norm=True, head_dim=32, heads=4, kv_heads=1),
    "smollm3": replace(LLAMA, layers=tuple(replace(LLAMA.sizes, rope=r, window=w) for r, w in NOPE)),
    "phi3": changed(LLAMA, rope=Rope(scaling=LONGROPE, rotary=12)),
    "granite": changed(LLAMA, scale=0.3, residual_scale=0.7, embed_scale=1.5, logit_scale=0.6),
    "gpt2": changed(
        LLAMA, arch="gpt2", family="gpt2", rope=None, heads=3, kv_heads=3, qkv_bias=True, activation="gelu_tanh"
    ),
}


class Tensors:
    """A checkpoint of random tensors for load.weights. Values are large enough that greedy choices differ."""

    def __init__(self, c: ModelConfig, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        shapes = {n: s for entry in names.plan(c) for n, s in zip(entry.tensors, entry.shapes, strict=True)}
        self._arrays = {n: rng.standard_normal(s, np.float32) * (0.2 if len(s) == 2 else 1) for n, s in shapes.items()}
        self.source = "random"

    def names(self) -> list[str]:
        return list(self._arrays)

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def shape(self, name: str) -> tuple[int, ...]:
        return self._arrays[name].shape

    def dtype(self, name: str) -> np.dtype:
        return self._arrays[name].dtype

    def stored(self, name: str) -> str:
        return "F32"

    def quantised(self, name: str) -> None:
        return None

    def tensor(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def let_go(self, name: str) -> None:
        pass


def model(c: ModelConfig = LLAMA, ops: Ops | None = None, **options: Any) -> tuple[Ops, ModelConfig, Weights]:
    """(operations, configuration, weights) of a random model, always the same one. options: of load.weights."""
    ops = ops or NumpyOps()
    return ops, c, weights(ops, Tensors(c), c, **options)  # pyright: ignore[reportArgumentType]


def runner(c: ModelConfig = LLAMA, ops: Ops | None = None, **options: Any) -> Runner:
    """A Runner of a random model. options: fields of EngineConfig."""
    return Runner(*model(c, ops), EngineConfig(**{"max_batch": 4, "cache_tokens": 4096, **options}))


def request(
    prompt: list[int], max_tokens: int = 8, seed: int = 0, stop: tuple[int, ...] = (), **params: Any
) -> Request:
    """A request to complete one prompt."""
    return Request(prompt, SamplingParams(**params), seed, max_tokens, stop)


def sequence(
    prompt: list[int], max_tokens: int = 8, seed: int = 0, stop: tuple[int, ...] = (), **params: Any
) -> Sequence:
    """A sequence: one completion of a prompt."""
    return Sequence(request(prompt, max_tokens, seed, stop, **params))


def events(on: Runner, sequences: list[Sequence], lookahead: bool = True, **options: Any) -> Iterator[Event]:
    """Run the sequences together until all have ended; return their events."""
    batch = Batch(on, lookahead, **options)
    for seq in sequences:
        batch.scheduler.add(seq)
    while not batch.idle:
        yield from batch.step()


def complete(on: Runner, sequences: list[Sequence], lookahead: bool = True) -> list[list[int]]:
    """Run sequences together and return their tokens. Checks that all pages are free afterwards."""
    free = on.table.free
    for _ in events(on, sequences, lookahead):
        pass
    assert on.table.free == free and not on.table.host.any()
    return [seq.tokens for seq in sequences]


def logits(on: Runner, ids: list[int], decode_from: int | None = None) -> np.ndarray:
    """Engine.logits on a runner without sequences."""
    found = Batch(on).logits(ids, decode_from)
    assert found is not None
    return found


def prompts(count: int, seed: int = 1, longest: int = 90) -> list[list[int]]:
    """Random prompts of random lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, LLAMA.vocab, rng.integers(1, longest)).tolist() for _ in range(count)]
