"""Configurations of models with equal layers, from fields of ModelConfig and LayerSpec together."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from ostinato.config import LayerSpec, ModelConfig

_LAYER = {field.name for field in fields(LayerSpec)}


def flat(arch: str = "decoder", layers: int = 1, **options: Any) -> ModelConfig:
    """A model with equal layers."""
    spec = LayerSpec(**{name: value for name, value in options.items() if name in _LAYER})
    rest: dict[str, Any] = {"family": "llama" if arch == "decoder" else arch}
    rest |= {name: value for name, value in options.items() if name not in _LAYER}
    return ModelConfig(arch, layers=(spec,) * layers, **rest)


def changed(c: ModelConfig, layers: int | None = None, **options: Any) -> ModelConfig:
    """The model with changed fields; a field of LayerSpec changes in all layers, `layers` repeats the first layer."""
    c = c if layers is None else replace(c, layers=c.layers[:1] * layers)
    c = c.with_layers(**{name: value for name, value in options.items() if name in _LAYER})
    return replace(c, **{name: value for name, value in options.items() if name not in _LAYER})
