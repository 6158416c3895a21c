"""What a method of quantisation is: its settings, and how it makes one matrix of a module's entries."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod

import numpy as np

from ...keys import Keys
from ..quantised import Quantised
from .module import Module


class Method(ABC):
    """One quant_method of quantization_config, made of its keys. It has read every key that changes numbers: what is
    left and not `harmless` is refused. UnsupportedModel or CheckpointError, naming file and key."""

    about: str  # what is read, for the table of docs/models.md
    refused: str  # what is refused, for the same table
    entries: tuple[str, ...]  # suffixes of the tensors that form a matrix; X is quantised if it has one beside "weight"
    types: tuple[str, ...] = ()  # or if X.weight is of one of these types
    ignored: tuple[str, ...] = ()  # suffixes that concern activations and KV cache, which are not quantised here
    harmless: re.Pattern[str]  # keys that say how the file was made, or what its tensors say as well
    activations = False  # whether the file asks for quantised activations

    @abstractmethod
    def __init__(self, keys: Keys) -> None: ...

    @abstractmethod
    def matrix(self, m: Module) -> Quantised:
        """The matrix that these entries hold."""

    def quantised(self, m: Module) -> bool:
        """Whether a module's entries are more than plain numbers."""
        return any(suffix != "weight" or t.kind in self.types for suffix, t in m.entries.items())


def groups_of(m: Module, suffix: str, g_idx: np.ndarray, group: int) -> np.ndarray | None:
    """The group of each column [K], checked; None where they are neighbours: k // group."""
    k = len(g_idx)
    count = k // group
    outside = np.flatnonzero((g_idx < 0) | (g_idx >= count))
    if len(outside):
        m.wrong(suffix, f"groups from 0 to {count - 1}", f"{g_idx[outside[0]]} at column {outside[0]}")
    if np.array_equal(g_idx, np.arange(k) // group):
        return None
    members = np.bincount(g_idx, minlength=count)
    if (members != group).any():
        g = int(np.flatnonzero(members != group)[0])
        m.wrong(suffix, f"{group} columns in every group", f"{members[g]} in group {g}")
    return g_idx
