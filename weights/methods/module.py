"""A module of a quantised checkpoint: the entries X.qweight, X.scales, ... that one matrix X.weight is stored in.

`Module` checks entries as a method asks for them; `Joined` is the matrix in the place of its entries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

import ml_dtypes
import numpy as np

from ...errors import CheckpointError
from ..quantised import Quantised
from ..tensor import Tensor

TYPES = {  # of an entry, and the NumPy type it is read as; FP8 as its bytes
    "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16), "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"), "I8": np.dtype("i1"), "U8": np.dtype("u1"), "F8_E4M3": np.dtype("u1"),
}  # fmt: skip
FLOATS = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class Module:
    """The entries of one module by their suffix: "qweight", "scales", ..."""

    name: str
    entries: dict[str, Tensor]
    read: set[str] = field(default_factory=set)  # the suffixes that `array` was asked for

    def __contains__(self, suffix: str) -> bool:
        return suffix in self.entries

    @property
    def where(self) -> str:
        """File and tensor for messages about the matrix as a whole."""
        return f"{next(iter(self.entries.values())).file}: tensor {self.name}.weight"

    @property
    def nbytes(self) -> int:
        """What all entries take in the file."""
        return sum(entry.raw.nbytes for entry in self.entries.values())

    def array(self, suffix: str, *kinds: str, dims: int | None = 2) -> np.ndarray:
        """The numbers of an entry, a view of the file; of FP8 the bytes. dims: how many sizes it has, None for any.

        CheckpointError if it is missing, of another type than `kinds` or has another number of sizes."""
        if suffix not in self.entries:
            file = next(iter(self.entries.values())).file
            raise CheckpointError(f"{file}: tensor {self.name}.{suffix} is missing; the file has "
                                  f"{', '.join(f'{self.name}.{s}' for s in self.entries)}")  # fmt: skip
        self.read.add(suffix)
        tensor = self.entries[suffix]
        if tensor.kind not in kinds:
            self.wrong(suffix, f"type {' or '.join(kinds)}", tensor.kind)
        if dims is not None and len(tensor.shape) != dims:
            self.wrong(suffix, "a matrix" if dims == 2 else f"{dims} size{'s' * (dims != 1)}",
                       f"shape {list(tensor.shape)}")  # fmt: skip
        return tensor.raw.view(TYPES[tensor.kind]).reshape(tensor.shape)

    def expect(self, suffix: str, shape: tuple[int, ...], why: str = "") -> None:
        """CheckpointError unless the entry has this shape. why: what asks for it."""
        found = self.entries[suffix].shape
        if found != shape:
            self.wrong(suffix, f"shape {list(shape)}{why and ' ' + why}", list(found))

    def wrong(self, suffix: str, expected: str, found: object) -> NoReturn:
        """Raise CheckpointError naming file and entry."""
        raise CheckpointError(f"{self.entries[suffix].file}: tensor {self.name}.{suffix}: expected {expected}, "
                              f"found {found}")  # fmt: skip


@dataclass(frozen=True)
class Joined(Tensor):
    """The matrix X.weight that several entries hold; `raw` are its codes."""

    matrix: Quantised | None = None
    entries: tuple[Tensor, ...] = ()

    @property
    def dtype(self) -> np.dtype:
        """float32, as `numbers` gives it."""
        return np.dtype(np.float32)

    @property
    def spans(self) -> tuple[np.ndarray, ...]:
        """The stored bytes of every entry."""
        return tuple(entry.raw for entry in self.entries)

    def stored(self) -> Quantised | None:
        """The matrix as its entries hold it."""
        return self.matrix

    def numbers(self) -> np.ndarray:
        """The matrix [N, K] float32."""
        assert self.matrix is not None
        return self.matrix.numbers()
