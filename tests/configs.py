"""Configurations of models whose layers are all alike: fields of ModelConfig and of LayerSpec side by side."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from ostinato.config import LayerSpec, ModelConfig

_LAYER = {field.name for field in fields(LayerSpec)}


def flat(arch: str = "decoder", layers: int = 1, **options: Any) -> ModelConfig:
    """A model of so many equal layers."""
    spec = LayerSpec(**{name: value for name, value in options.items() if name in _LAYER})
    rest: dict[str, Any] = {"family": "llama" if arch == "decoder" else arch}
    rest |= {name: value for name, value in options.items() if name not in _LAYER}
    return ModelConfig(arch, layers=(spec,) * layers, **rest)


def changed(c: ModelConfig, layers: int | None = None, **options: Any) -> ModelConfig:
    """The same model with other options, those of a layer in all layers, and with fewer or more of its first layer."""
    c = c if layers is None else replace(c, layers=c.layers[:1] * layers)
    c = c.with_layers(**{name: value for name, value in options.items() if name in _LAYER})
    return replace(c, **{name: value for name, value in options.items() if name not in _LAYER})
