"""SmolLM3: a Llama in which every fourth layer has no RoPE. SmolLM2 is a plain Llama."""

from __future__ import annotations

from dataclasses import replace

from ...config import ModelConfig
from ...keys import Keys
from .decoder import NEUTRAL, TABLE, decoder, layer_types, sliding
from .family import Family, GgufForm


def _turns(keys: Keys, layers: int) -> list[bool]:
    """Whether each layer has RoPE: from no_rope_layers, where 1 means RoPE; default: all but every fourth layer."""
    given = keys.get("no_rope_layers")
    interval = keys.integer("no_rope_layer_interval", 1, 2**31 - 1) if keys.get("no_rope_layer_interval") else 4
    if given is None:
        return [(i + 1) % interval != 0 for i in range(layers)]
    if not isinstance(given, list) or len(given) != layers or any(type(x) is not int or x not in (0, 1) for x in given):
        keys.wrong("no_rope_layers", f"a list of {layers} zeros and ones", given)
    return [x == 1 for x in given]


def _windows(keys: Keys, layers: int) -> list[int]:
    """No windows by default; else from layer_types, or on the layers without RoPE."""
    keys.skip("sliding_window", "layer_types")
    if not keys.flag("use_sliding_window", False):
        return [0] * layers
    return sliding(keys, layer_types(keys, layers) or [not turns for turns in _turns(keys, layers)])


def _smollm3(keys: Keys) -> ModelConfig:
    c = decoder(keys, optional=("head_dim",), windows=_windows, theta=2e6, tied=True)
    turns = _turns(keys, c.layer_count)
    layers = (spec if on else replace(spec, rope=None) for spec, on in zip(c.layers, turns, strict=True))
    return replace(c, layers=tuple(layers))


SMOLLM3 = Family(
    name="smollm3",
    architectures=("SmolLM3ForCausalLM",),
    config=_smollm3,
    table=TABLE,
    gguf=GgufForm("smollm3", paired=True),
    neutral=NEUTRAL,
)
