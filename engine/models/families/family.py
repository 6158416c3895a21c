"""What a family of models is, as data: config keys, tensor names, and what of both the engine refuses.

Tables give sizes in letters: V vocabulary, D hidden, Hd query columns, Gd key/value columns, QKV all three together, d
head size, F feed-forward, FF gate and up together, T positions, S segments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...config import ModelConfig
from ...keys import Keys

# path, kind, layout, condition (a field of the configuration, "not" before it reverses), tensors with their sizes
Row = tuple[str, str, str, str, dict[str, str]]


class Table(NamedTuple):
    """The tensors of a family, by their names in transformers; weights/names.py makes a plan of them."""

    top: tuple[Row, ...]  # beside the layers; the first row is the embedding
    layer: tuple[Row, ...]
    block: str  # what the names of a layer's tensors begin with, {} its number
    prefixes: tuple[str, ...]  # before all of them: the first that the checkpoint has, or else the last
    spare: str  # tensors (a regular expression) that are computed, not learned, or serve a task the engine has not
    old: tuple[tuple[str, str], ...] = ()  # endings of names, and what older files have in their place
    head: tuple[Row, ...] = ()  # without the prefix
    shared: str = ""  # without the prefix: another name of the embedding in a model whose weights are tied


@dataclass(frozen=True)
class GgufForm:
    """How a GGUF file writes a family; weights/translate.py undoes it."""

    arch: str  # general.architecture
    paired: bool = False  # rows of q and k are in pairs (2i, 2i + 1), as interleaved RoPE wants them
    # After "<arch>.": the key of config.json it stands for; absent ones stay absent.
    keys: dict[str, str] = field(default_factory=dict)
    # Tensors of a layer: the name in transformers, on top of the usual ones.
    names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """One model_type of config.json."""

    name: str  # the model_type
    architectures: tuple[str, ...]  # classes in transformers, the first of which a GGUF file is of
    config: Callable[[Keys], ModelConfig]  # reads the keys; CheckpointError or UnsupportedModel, naming the key
    table: Table
    gguf: GgufForm | None = None
    # Keys that change the numbers, and the values with which they do not, the first one in place of an absent key.
    neutral: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    text: str = ""  # of a model that also sees or hears: the usual model_type of its text_config, all that is read
