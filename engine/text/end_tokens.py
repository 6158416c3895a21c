"""Which tokens end a sequence; docs/end-tokens.md tells users."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..config import ModelConfig


def add(config: ModelConfig, ids: Iterable[int]) -> ModelConfig:
    """The model with these end tokens after its own: the tokenizer's, or in a chat the end of turn."""
    return replace(config, eos_ids=tuple(dict.fromkeys((*config.eos_ids, *ids))))
