"""Llama 2 and 3, SmolLM2, and other models with the structure of Llama."""

from __future__ import annotations

from .decoder import NEUTRAL, TABLE, decoder
from .family import Family, GgufForm

LLAMA = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    config=decoder,
    table=TABLE,
    gguf=GgufForm("llama", paired=True),
    neutral={**NEUTRAL, "sliding_window": (None,), "rope_interleaved": (False,)},
)
