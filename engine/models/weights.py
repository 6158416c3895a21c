"""The weights of a model on a device. run/load.py creates them.

Names are those of the families' tables. Array: float32. Weight: what Ops.weight returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Array = Any
Weight = Any


@dataclass(frozen=True)
class LayerWeights:
    """One layer. A tensor that the layer does not have is None."""

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
    up: Weight = None  # [F, D], of an MLP without a gate
    up_bias: Array = None  # [F]
    down_bias: Array = None  # [D]
    rope: Array = None  # [T, d]: d/2 cosines, then d/2 sines per position; layers with the same Rope share it


@dataclass(frozen=True)
class Weights:
    """A model. A tensor that the model does not have is None."""

    layers: tuple[LayerWeights, ...]
    embed: Weight  # [V, D]
    norm: Array  # [D]
    head: Weight  # [V, D]; tied: the embedding itself
    norm_bias: Array = None  # [D]
    positions: Array = None  # [T, D], learned
    head_bias: Array = None  # [V]: bans tokens that the tokenizer does not have
    max_len: int = 0  # number of positions in the tables LayerWeights.rope
