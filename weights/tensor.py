"""One tensor of a checkpoint file: where its bytes are and how they become numbers. Made by safetensors and gguf."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import CheckpointError, UnsupportedModel, found
from .quant import decode, decodes_to

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,254}", re.ASCII)
MAX_DIMS = 8


@dataclass(frozen=True)
class Tensor:
    """Bytes of the mapped file and what they mean; nothing is read before `numbers`."""

    file: Path
    name: str  # as the file calls it
    kind: str  # "F32", "BF16", "Q4_1", ...
    shape: tuple[int, ...]  # [out, in]
    raw: np.ndarray  # [bytes] uint8, a view of the mapped file
    heads: int = 0  # not 0: every head's rows are stored in pairs (i, i + d/2), as interleaved RoPE wants them

    @property
    def dtype(self) -> np.dtype:
        """Type of `numbers()`; UnsupportedModel if the engine cannot use what is stored."""
        dtype = decodes_to(self.kind)
        if dtype is None:
            raise UnsupportedModel(
                f"{self.file}: tensor {self.name}: type {self.kind} is not supported; expected F32, F16, BF16 "
                "or, in a GGUF file, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1"
            )
        return dtype

    def numbers(self) -> np.ndarray:
        """The tensor [shape]: a read-only view where the file holds it as it is wanted, else a new array."""
        dtype = self.dtype  # before decoding: it refuses what cannot be decoded
        raw = self._halves() if self.heads else self.raw
        return decode(self.kind, raw, self.shape).astype(dtype, copy=False)

    def _halves(self) -> np.ndarray:
        """The bytes with each head's rows in half-rotation order: all first members of the pairs, then all second ones.

        Rows are whole blocks, so this moves stored bytes and the numbers are decoded once, in the order wanted."""
        rows = self.shape[0]
        pairs = self.raw.reshape(self.heads, rows // self.heads // 2, 2, -1)
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(-1)


def check_name(where: str, name: str) -> str:
    """The name of a tensor, refused unless it is plain: names reach messages and, in other programs, file systems."""
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
