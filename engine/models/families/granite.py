"""Granite 3, dense: a Llama with four scale factors."""

from __future__ import annotations

from dataclasses import replace

from ...config import ModelConfig
from ...keys import Keys
from .decoder import NEUTRAL, TABLE, decoder
from .family import Family, GgufForm


def _granite(keys: Keys) -> ModelConfig:
    def scalar(key: str) -> float:
        return keys.real(key, 0, 1e6, default=1.0)

    c = decoder(keys, scale=scalar("attention_multiplier"), residual_scale=scalar("residual_multiplier"))
    return replace(c, embed_scale=scalar("embedding_multiplier"), logit_scale=1 / scalar("logits_scaling"))


GRANITE = Family(
    name="granite",
    architectures=("GraniteForCausalLM",),
    config=_granite,
    table=TABLE,
    gguf=GgufForm(
        "granite",
        paired=True,
        keys={
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
    ),
    neutral={**NEUTRAL, "sliding_window": (None,), "position_embedding_type": ("rope",)},
)
