"""Shared by GPT-2 and BERT: learned positions, LayerNorm with bias, biases in all linear layers, GELU."""

from __future__ import annotations

from typing import Any

from ...config import LayerSpec, ModelConfig
from ...keys import Keys
from .keys import LIMITS, dtype

GELUS = {  # names in transformers: LayerSpec.activation
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


def size(keys: Keys, key: str, like: str = "") -> int:
    """A size. like: the key of LIMITS that bounds it, if it is not `key`."""
    return keys.integer(key, 1, LIMITS[like or key])


def learned(
    keys: Keys, hidden_key: str, head_key: str, layers: int, ffn: int, activation: str, **fields: Any
) -> ModelConfig:
    """A ModelConfig with equal layers. fields: further fields of ModelConfig."""
    heads, hidden = size(keys, head_key, "num_attention_heads"), size(keys, hidden_key, "hidden_size")
    if hidden % heads:
        keys.wrong(hidden_key, f"a multiple of {head_key} = {heads}", hidden)
    spec = LayerSpec(heads, heads, hidden // heads, ffn, rope=None, qkv_bias=True, activation=activation)
    every = {"vocab": size(keys, "vocab_size"), "dtype": dtype(keys), **fields}
    return ModelConfig(layers=(spec,) * layers, hidden=hidden, **every)


def gelu(keys: Keys, key: str, usual: str) -> str:
    """LayerSpec.activation. usual: default of an absent key."""
    name = keys.get(key, usual)
    if not isinstance(name, str) or name not in GELUS:
        keys.unsupported(key, f"one of {', '.join(GELUS)}", name)
    return GELUS[name]
