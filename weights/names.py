"""Which checkpoint tensors form which weight of the engine: tables, and the check of a checkpoint against them.

Called by whoever loads or makes up weights. The configuration is any object with the fields of ModelConfig used here.
Tables give sizes in letters: V vocabulary, D hidden, Hd query columns, Gd key/value columns, d head size, F
feed-forward.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..errors import CheckpointError, UnsupportedModel
from .checkpoint import Checkpoint


class Entry(NamedTuple):
    """One weight of the engine."""

    path: str  # where the engine keeps it: "embed", "layers.3.qkv"
    kind: str  # "weight": a matrix for Ops.weight · "vector": float32, for Ops.vector
    tensors: tuple[str, ...]  # in the checkpoint, in the order of their rows
    shapes: tuple[tuple[int, ...], ...]  # of these tensors
    layout: str  # how the rows belong together, as Ops.weight wants it: "rows", "qkv", "gate_up"


# path, kind, layout, condition (a field of the configuration, "not" before it reverses), tensors with their sizes
Row = tuple[str, str, str, str, dict[str, str]]

DECODER_TOP: tuple[Row, ...] = (
    ("embed", "weight", "rows", "", {"model.embed_tokens.weight": "V D"}),
    ("norm", "vector", "rows", "", {"model.norm.weight": "D"}),
    ("head", "weight", "rows", "not tied", {"lm_head.weight": "V D"}),
)
DECODER_LAYER: tuple[Row, ...] = (
    ("attn_norm", "vector", "rows", "", {"input_layernorm.weight": "D"}),
    ("qkv", "weight", "qkv", "", {
        "self_attn.q_proj.weight": "Hd D", "self_attn.k_proj.weight": "Gd D", "self_attn.v_proj.weight": "Gd D"}),
    ("qkv_bias", "vector", "qkv", "qkv_bias", {
        "self_attn.q_proj.bias": "Hd", "self_attn.k_proj.bias": "Gd", "self_attn.v_proj.bias": "Gd"}),
    ("q_norm", "vector", "rows", "qk_norm", {"self_attn.q_norm.weight": "d"}),
    ("k_norm", "vector", "rows", "qk_norm", {"self_attn.k_norm.weight": "d"}),
    ("o", "weight", "rows", "", {"self_attn.o_proj.weight": "D Hd"}),
    ("mlp_norm", "vector", "rows", "", {"post_attention_layernorm.weight": "D"}),
    ("gate_up", "weight", "gate_up", "", {"mlp.gate_proj.weight": "F D", "mlp.up_proj.weight": "F D"}),
    ("down", "weight", "rows", "", {"mlp.down_proj.weight": "D F"}),
)  # fmt: skip

# tensors that old versions of transformers saved and that are computed, not learned
HARMLESS = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", re.ASCII)
_LAYER = re.compile(r"model\.layers\.(\d+)\.", re.ASCII)
COMPARED = 16 << 20  # bytes compared at a time


def plan(c: Any) -> Iterator[Entry]:
    """Every weight of a model of configuration `c`; UnsupportedModel for an architecture without a table."""
    if c.arch not in PLANS:
        raise UnsupportedModel(f"architecture: expected one of {', '.join(PLANS)}, found {c.arch!r}")
    return PLANS[c.arch](c)


def decoder(c: Any) -> Iterator[Entry]:
    """Weights of models/decoder.py."""
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    sizes = {"V": c.vocab, "D": c.hidden, "Hd": q, "Gd": kv, "d": c.head_dim, "F": c.ffn}
    yield from _entries(DECODER_TOP, c, sizes, "", "")
    for i in range(c.layers):
        yield from _entries(DECODER_LAYER, c, sizes, f"layers.{i}.", f"model.layers.{i}.")


PLANS = {"decoder": decoder}


def _entries(rows: tuple[Row, ...], c: Any, sizes: dict[str, int], path: str, prefix: str) -> Iterator[Entry]:
    for name, kind, layout, condition, tensors in rows:
        field = condition.removeprefix("not ")
        if not field or bool(getattr(c, field)) != condition.startswith("not "):
            shapes = tuple(tuple(sizes[letter] for letter in s.split()) for s in tensors.values())
            yield Entry(path + name, kind, tuple(prefix + t for t in tensors), shapes, layout)


def check(checkpoint: Checkpoint, c: Any) -> list[Entry]:
    """The plan of `c`, once the checkpoint holds every tensor of it in its shape and a usable type, and no others.

    CheckpointError names file, tensor, expected and found; UnsupportedModel a tensor the engine cannot use."""
    entries: list[Entry] = []
    wanted: dict[str, tuple[int, ...]] = {}
    for entry in plan(c):  # one at a time: a configuration of a billion layers ends at the first that is missing
        for name, shape in zip(entry.tensors, entry.shapes, strict=True):
            _check_tensor(checkpoint, name, shape)
            wanted[name] = shape
        entries.append(entry)
    for name in checkpoint.names():
        if name not in wanted and not HARMLESS.fullmatch(name):
            _check_leftover(checkpoint, c, name, wanted)
    return entries


def _check_tensor(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> None:
    """The tensor is there, in this shape and of a type that can be read."""
    where = f"{checkpoint.source}: tensor {name}"
    if name not in checkpoint:
        raise CheckpointError(f"{where} is missing; expected shape {list(shape)}")
    if checkpoint.shape(name) != shape:
        raise CheckpointError(f"{where}: expected shape {list(shape)}, found {list(checkpoint.shape(name))}")
    checkpoint.dtype(name)


def _check_leftover(checkpoint: Checkpoint, c: Any, name: str, wanted: dict[str, tuple[int, ...]]) -> None:
    """A tensor the plan does not use may stay only if the model computes the same without it."""
    where = f"{checkpoint.source}: tensor {name}"
    layer = _LAYER.match(name)
    if layer and int(layer[1]) >= c.layers:
        raise CheckpointError(f"{where}: the configuration has {c.layers} layers")
    if name == "lm_head.weight":
        if not _same(checkpoint, name, "model.embed_tokens.weight"):
            raise CheckpointError(f"{where}: the configuration ties it to model.embed_tokens.weight, and they differ")
        return
    stem = name.removesuffix(".bias")
    if stem != name and f"{stem}.weight" in wanted:
        if np.any(checkpoint.tensor(name)):
            raise UnsupportedModel(f"{where}: expected no bias here, or zeros")
        return
    raise UnsupportedModel(f"{where}: the engine has no use for this tensor, and does not ignore what a model may need")


def _same(checkpoint: Checkpoint, a: str, b: str) -> bool:
    """Whether two tensors hold the same numbers in the same form."""
    if (checkpoint.shape(a), checkpoint.stored(a)) != (checkpoint.shape(b), checkpoint.stored(b)):
        return False
    x, y = checkpoint.bytes(a), checkpoint.bytes(b)
    return all(np.array_equal(x[i : i + COMPARED], y[i : i + COMPARED]) for i in range(0, len(x), COMPARED))
