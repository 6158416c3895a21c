"""Matrices of one byte a number, FP8 (E4M3) or int8, with scales of a tensor, a row, a group or a block."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..quantised import Planes
from .module import FLOATS, Module
from .packed import Packed, Rows, sharing

TYPES = {"F8_E4M3": ("e4m3", "FP8"), "I8": ("s8", "int8")}  # of a weight: code of Planes, name
BLOCK = 1 << 20  # rows or columns of a block that a configuration may ask for


@dataclass(frozen=True)
class Bytewise(Packed):
    """One such matrix: w = scale code, or scale (code - zero)."""

    code: str = field(kw_only=True)  # of Planes
    codes: np.ndarray = field(kw_only=True)  # [N, K] uint8 or int8
    scales: np.ndarray = field(kw_only=True)  # [ceil(N / block[0]), ceil(K / block[1])]
    block: tuple[int, int] = field(kw_only=True)  # rows and columns that share a scale
    zeros: np.ndarray | None = None  # as scales, integers; of blocks of one row only

    @property
    def align(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Rows of a block are decoded together, unless they were taken one by one."""
        return self.block[0] if self.order is None and self.block[0] < self.rows else 1

    def _read(self, at: Rows) -> Planes:
        rows, group = self.block
        if isinstance(at, slice) and 1 < rows < self.rows and at.start % rows == 0:
            scales = self.scales[at.start // rows : -(-at.stop // rows)]
            return Planes(self.code, self.codes[at], group, scales, rows=rows)
        places = np.arange(self.rows)[at] // rows  # every row has its scales
        zeros = None if self.zeros is None else self.zeros[places].astype(np.int16)
        return Planes(self.code, self.codes[at], group, self.scales[places], zeros=zeros)


def bytewise(
    m: Module, suffix: str, name: str, block: tuple[int, int] | None, zeros: np.ndarray | None = None
) -> Bytewise:
    """The matrix X.weight whose scales are entry `suffix`.

    name: before its kind. block: rows and columns that share a scale, None for what the shape of the scales says, which
    is one for the tensor or one for each row. zeros: of every row. CheckpointError if shapes do not fit."""
    codes = m.array("weight", *TYPES)
    scales = m.array(suffix, *FLOATS, dims=None)
    n, k = codes.shape
    rows, columns = block or _per_tensor_or_row(m, suffix, scales, n, k)
    shape = -(-n // rows), -(-k // columns)
    if scales.size != shape[0] * shape[1] or (scales.ndim > 1 and scales.shape != shape):
        what = f"shape {list(shape)}, a scale for every {rows} x {columns} of {n} x {k} numbers"
        m.wrong(suffix, what, f"shape {list(scales.shape)}")
    code, kind = TYPES[m.entries["weight"].kind]
    return Bytewise(
        m.where, f"{name}{kind} {sharing((rows, columns), (n, k))}", (n, k), m.nbytes, n,
        code=code, codes=codes, scales=scales.reshape(shape), block=(rows, columns), zeros=zeros,
    )  # fmt: skip


def _per_tensor_or_row(m: Module, suffix: str, scales: np.ndarray, n: int, k: int) -> tuple[int, int]:
    if scales.size == 1:
        return n, k
    if scales.size == n:
        return 1, k
    m.wrong(suffix, f"one scale, or one for each of {n} rows", f"shape {list(scales.shape)}")


def block_size(value: object) -> tuple[int, int] | None:
    """Rows and columns of a block that a configuration names; None if these are not two positive numbers."""
    if isinstance(value, list) and len(value) == 2 and all(type(n) is int and 0 < n <= BLOCK for n in value):
        return value[0], value[1]
    return None
