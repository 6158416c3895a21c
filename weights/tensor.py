"""One tensor of a checkpoint file: where its bytes are, and how they are decoded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from ..errors import CheckpointError, UnsupportedModel, found
from .blocks import BLOCKS, Blocks
from .kinds import PLAIN
from .quantised import Quantised

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,254}", re.ASCII)
MAX_DIMS = 8


@dataclass(frozen=True)
class Tensor:
    """A tensor in a mapped file. Nothing is read before `numbers`."""

    file: Path
    name: str  # as the file calls it
    kind: str  # "F32", "BF16", "Q4_1", ...
    shape: tuple[int, ...]  # [out, in]
    raw: np.ndarray  # [bytes] uint8, a view of the mapped file
    heads: int = 0  # not 0: rows of each head are stored for interleaved RoPE, in pairs (i, i + d/2)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of `numbers()`. UnsupportedModel if the type cannot be decoded."""
        if self.kind in BLOCKS:
            return np.dtype(np.float32)
        if self.kind not in PLAIN:
            raise UnsupportedModel(
                f"{self.file}: tensor {self.name}: type {self.kind} is not supported; expected {', '.join(PLAIN)} "
                f"or, in a GGUF file, {', '.join(BLOCKS)}"
            )
        return PLAIN[self.kind]

    @property
    def spans(self) -> tuple[np.ndarray, ...]:
        """The stored bytes, views of mapped files: one, or more where several entries form the tensor."""
        return (self.raw,)

    def numbers(self) -> np.ndarray:
        """The tensor [shape]: a read-only view of the file if it is stored in this form, else a new array."""
        dtype = self.dtype  # first: it refuses types that cannot be decoded
        if self.kind in BLOCKS:
            return self._blocks().numbers().reshape(self.shape)
        plain = self.raw.view(dtype).reshape(self.shape)
        if self.heads:
            return plain[self._halves()]
        return plain if plain.flags.aligned else plain.copy()

    def stored(self) -> Quantised | None:
        """The quantised matrix as the file stores it; None for a tensor of plain numbers."""
        return self._blocks() if self.kind in BLOCKS and len(self.shape) == 2 else None

    def _blocks(self) -> Blocks:
        """The tensor as rows of quantised blocks. All dimensions but the last are rows."""
        k = self.shape[-1]
        rows = prod(self.shape[:-1])
        blocks = Blocks(f"{self.file}: tensor {self.name}", self.kind, (rows, k), self.raw.reshape(rows, -1))
        return blocks.take(self._halves()) if self.heads else blocks

    def _halves(self) -> np.ndarray:
        """Row permutation from interleaved to half-rotation RoPE: of each head all rows 2i, then all rows 2i + 1."""
        rows = np.arange(self.shape[0])
        return rows.reshape(self.heads, -1, 2).swapaxes(1, 2).reshape(-1)


def check_name(where: str, name: str) -> str:
    """The name of a tensor. CheckpointError unless it is plain: names reach messages, and file systems elsewhere."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise CheckpointError(
            f"{where}: tensor name {found(name)}: expected 1 to 255 letters, digits, '_', '.', ':' or '-', no '..'"
        )
    return name


def check_shape(where: str, name: str, dims: object, most: int = MAX_DIMS) -> tuple[int, ...]:
    """Sizes of a tensor, each a positive 63-bit integer, at most `most` of them."""
    if isinstance(dims, list) and len(dims) <= most and all(type(n) is int and 0 < n < 1 << 63 for n in dims):
        return tuple(dims)
    raise CheckpointError(
        f"{where}: tensor {name}: shape: expected at most {most} integers from 1 to 2^63 - 1, found {found(dims)}"
    )
