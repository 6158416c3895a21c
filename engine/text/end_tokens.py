"""Which tokens end a sequence. docs/end-tokens.md explains the rules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..config import ModelConfig


def add(config: ModelConfig, ids: Iterable[int]) -> ModelConfig:
    """The model's configuration with more end tokens: the tokenizer's, or in a chat the end of turn."""
    return replace(config, eos_ids=tuple(dict.fromkeys((*config.eos_ids, *ids))))
