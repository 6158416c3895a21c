"""The weights of a model on a device, made in one place: load.weights.

Names as in the families' tables. Array: float32. Weight: what Ops.weight returned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Array = Any
Weight = Any


@dataclass(frozen=True)
class LayerWeights:
    """One layer; what the layer has not is None."""

    qkv: Weight  # [(H + 2 G) d, D]
    o: Weight  # [D, H d]
    down: Weight  # [D, F]
    attn_norm: Array  # [D]
    mlp_norm: Array  # [D]
    attn_norm_bias: Array = None  # [D]
    mlp_norm_bias: Array = None  # [D]
    qkv_bias: Array = None  # [(H + 2 G) d]
    q_norm: Array = None  # [d]
    k_norm: Array = None  # [d]
    o_bias: Array = None  # [D]
    gate_up: Weight = None  # [2 F, D], gate rows first
    up: Weight = None  # [F, D], of an MLP without gate
    up_bias: Array = None  # [F]
    down_bias: Array = None  # [D]
    rope: Array = None  # [T, d] cosines, then sines of a position's angles; layers of one Rope share it


@dataclass(frozen=True)
class Weights:
    """A model; what the model has not is None."""

    layers: tuple[LayerWeights, ...]
    embed: Weight  # [V, D]
    norm: Array  # [D]
    head: Weight  # [V, D]; the embedding itself where they are tied
    norm_bias: Array = None  # [D]
    positions: Array = None  # [T, D], learned ones
    head_bias: Array = None  # [V], bans tokens
    max_len: int = 0  # positions that the tables of LayerWeights.rope reach
