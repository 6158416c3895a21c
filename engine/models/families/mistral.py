"""Mistral 7B and Nemo: a window on every layer, or none. Mistral Small 3 is the same beside a model that sees."""

from __future__ import annotations

from ...config import ModelConfig
from .decoder import NEUTRAL, TABLE, decoder, layer_types, sliding
from .family import Family
from .keys import Keys


def _windows(keys: Keys, layers: int) -> list[int]:
    if "sliding_window" not in keys:  # transformers would take 4096
        keys.wrong("sliding_window", "an integer or null", None)
    types = [keys.get("sliding_window") is not None] * layers
    if layer_types(keys, layers) not in (None, types):  # which transformers would not look at
        keys.unsupported("layer_types", "the window on all layers or on none", keys.get("layer_types"))
    return sliding(keys, types)


def _mistral(keys: Keys) -> ModelConfig:
    return decoder(keys, optional=("head_dim",), windows=_windows)


MISTRAL = Family("mistral", ("MistralForCausalLM",), _mistral, TABLE, neutral=NEUTRAL)
