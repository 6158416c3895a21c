"""The data types that describe a family of models: config keys, tensor names, and unsupported values.

Sizes in tables are letters: V vocabulary, D hidden, Hd query columns, Gd key/value columns, QKV the three together, d
head size, F feed-forward, FF gate and up together, T positions, S segments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...config import ModelConfig
from ...keys import Keys

# (name in Weights, kind, layout, condition: a field of the configuration, "not" negates it; tensor -> sizes)
Row = tuple[str, str, str, str, dict[str, str]]


class Table(NamedTuple):
    """The tensors of a family, by their names in transformers; weights/names.py makes a plan of them."""

    top: tuple[Row, ...]  # outside of the layers; the first row is the embedding
    layer: tuple[Row, ...]
    block: str  # prefix of a layer's tensors; {} is its number
    prefixes: tuple[str, ...]  # prefix of all names: the first one that the checkpoint has, else the last
    ignored: str  # regular expression of tensors to ignore: computed, or for a task that the engine does not have
    old: tuple[tuple[str, str], ...] = ()  # (suffix of a name, suffix in older files)
    head: tuple[Row, ...] = ()  # the LM head; names without a prefix
    shared: str = ""  # second name of the embedding in a model with tied weights, without a prefix


@dataclass(frozen=True)
class GgufForm:
    """The form of a family in GGUF files; weights/translate.py converts it."""

    arch: str  # general.architecture
    paired: bool = False  # rows of q and k are in pairs (2i, 2i + 1), for interleaved RoPE
    # Metadata key after "<arch>." -> key of config.json, beside the common ones.
    keys: dict[str, str] = field(default_factory=dict)
    # GGUF name of a layer's tensor -> name in transformers, beside the common ones.
    names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """One model_type of config.json."""

    name: str  # the model_type
    architectures: tuple[str, ...]  # classes in transformers; a GGUF file is of the first
    config: Callable[[Keys], ModelConfig]  # reads the keys; CheckpointError or UnsupportedModel names the key
    table: Table
    gguf: GgufForm | None = None
    # Key that the engine does not implement -> values that have no effect; the first is the default of an absent key.
    neutral: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    text: str = ""  # multimodal models: default model_type of text_config, the only part that is read
