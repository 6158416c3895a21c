"""Qwen2, Qwen2.5 (biases on q, k, v) and dense Qwen3 (QK-norm); a window on the last layers, or none."""

from __future__ import annotations

from ...config import ModelConfig
from ...keys import Keys
from .decoder import NEUTRAL, TABLE, decoder, layer_types, sliding
from .family import Family, GgufForm


def _windows(keys: Keys, layers: int) -> list[int]:
    """Windows from layer_types; without that key, the first max_window_layers layers have none."""
    keys.skip("sliding_window", "max_window_layers", "layer_types")
    if not keys.flag("use_sliding_window", False):
        return [0] * layers
    types = layer_types(keys, layers)
    if types is None:
        types = [i >= keys.integer("max_window_layers", 0, 2**31 - 1) for i in range(layers)]
    return sliding(keys, types)


def _qwen2(keys: Keys) -> ModelConfig:
    return decoder(keys, optional=("head_dim",), windows=_windows, qkv_bias=True)


def _qwen3(keys: Keys) -> ModelConfig:
    return decoder(keys, optional=(), windows=_windows, qk_norm=True)


QWEN2 = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    config=_qwen2,
    table=TABLE,
    gguf=GgufForm("qwen2"),
    neutral={k: v for k, v in NEUTRAL.items() if k != "attention_bias"},  # q, k, v always have biases
)
QWEN3 = Family("qwen3", ("Qwen3ForCausalLM",), _qwen3, TABLE, GgufForm("qwen3"), NEUTRAL)
