"""Matrices of integer codes in 32-bit words or bytes, with scales (and zeros) that groups of a row share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from ..quantised import Planes, Quantised

Rows = slice | np.ndarray  # which rows of a matrix
_HALVINGS = {8: (), 4: ((4, 0x0F0F),), 2: ((4, 0x0F0F), (6, 0x0303))}  # a byte becomes two: its lower bits, its upper
M = TypeVar("M", bound="Ordered")


@dataclass(frozen=True)
class Ordered(Quantised):
    """A quantised matrix whose format reads any rows of it."""

    where: str
    kind: str
    shape: tuple[int, int]
    stored: int  # bytes of the whole matrix in the file
    rows: int  # of the whole matrix
    order: np.ndarray | None = None  # [N] rows of the file; None: all of them as they are

    @property
    def nbytes(self) -> int:
        return self.stored * self.shape[0] // self.rows

    def take(self: M, rows: np.ndarray) -> M:
        order = np.asarray(rows) if self.order is None else self.order[rows]
        return replace(self, shape=(len(order), self.shape[1]), order=order)

    def _at(self, first: int, last: int) -> Rows:
        """Rows of the file that are rows first .. last - 1 here."""
        return slice(first, last) if self.order is None else self.order[first:last]


@dataclass(frozen=True)
class Packed(Ordered):
    """One that has planes: `_read` is all that a format adds."""

    def _planes(self, first: int, last: int) -> Planes | None:
        return self._read(self._at(first, last))

    @abstractmethod
    def _read(self, at: Rows) -> Planes:
        """These rows of the file."""


@dataclass(frozen=True)
class Grouped(Packed):
    """Integers of `bits` bits; `group` numbers of a row share a scale and a zero: w = scale (code - zero)."""

    bits: int = 4
    group: int = 128
    g_idx: np.ndarray | None = None  # [K] the group of each column; None: k // group

    @abstractmethod
    def _codes(self, at: Rows) -> np.ndarray:
        """[n, K] uint8."""

    @abstractmethod
    def _scales(self, at: Rows) -> np.ndarray:
        """[n, groups] float16, bfloat16 or float32."""

    @abstractmethod
    def _zeros(self, at: Rows) -> np.ndarray:
        """[n, groups] integers from 0 to 2^bits; not asked for where the matrix is symmetric."""

    @cached_property
    @abstractmethod
    def symmetric(self) -> bool:
        """Whether every zero is 2^(bits - 1)."""

    def _planes(self, first: int, last: int) -> Planes | None:
        return None if self.g_idx is not None else super()._planes(first, last)

    def _numbers(self, first: int, last: int, out: np.ndarray) -> None:
        if self.g_idx is None:
            return super()._numbers(first, last, out)
        p = self._read(self._at(first, last))
        p.check(self.where, first)
        zeros = p.zero if p.zeros is None else p.zeros[:, self.g_idx]
        integers = np.subtract(p.codes, zeros, dtype=np.int16)
        np.multiply(integers, p.scales.astype(np.float32)[:, self.g_idx], out=out)

    def _read(self, at: Rows) -> Planes:
        codes, scales, zeros = self._codes(at), self._scales(at), None if self.symmetric else self._zeros(at)
        if self.bits == 8:  # Planes has no unsigned codes of 8 bits: codes and zeros are less by 128
            zeros = None if zeros is None else zeros.astype(np.int16) - np.int16(128)
            return Planes("s8", (codes ^ 0x80).view(np.int8), self.group, scales, zeros=zeros)
        return Planes("u4", codes, self.group, scales, zero=1 << (self.bits - 1) if zeros is None else 0, zeros=zeros)


def sharing(block: tuple[int, int], shape: tuple[int, int]) -> str:
    """Which numbers of a matrix share a scale, for its kind: blocks of so many rows and columns."""
    if block == shape:
        return "per tensor"
    rows, columns = block
    return f"{rows}x{columns}" if rows > 1 else "per row" if columns == shape[1] else f"g{columns}"


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """Codes of 2, 4 or 8 bits along a row, lowest bits first.  [n, w] int32 or uint8 -> [n, 8 w bytes / bits] uint8"""
    raw = np.ascontiguousarray(words).view(np.uint8)  # little endian, as stored
    for shift, mask in _HALVINGS[bits]:
        wide = raw.astype(np.uint16)
        wide |= wide << shift
        wide &= mask
        raw = wide.view(np.uint8)
    return raw


def unpack_columns(words: np.ndarray, bits: int, at: Rows, places: tuple[int, ...] | None = None) -> np.ndarray:
    """Codes of the columns `at`, which are packed along a row, as rows.  [r, w] int32 -> [len(at), r] uint8

    places: where in its word each of the 32 / bits columns is; None: in order, lowest bits first."""
    per, mask = 32 // bits, (1 << bits) - 1
    places = places or tuple(range(per))
    if not isinstance(at, slice):
        place = np.array(places, np.uint32)[at % per]
        return (words.view(np.uint32)[:, at // per] >> place * np.uint32(bits) & np.uint32(mask)).astype(np.uint8).T
    first, last = at.start // per, -(-at.stop // per)
    raw = np.ascontiguousarray(words[:, first:last].T)[..., None].view(np.uint8)  # [words, r, 4]
    out = np.empty((last - first, per, len(words)), np.uint8)
    for column, place in enumerate(places):
        byte, shift = divmod(place * bits, 8)
        np.right_shift(raw[..., byte], shift, out=out[:, column])
    out &= mask
    return out.reshape(-1, len(words))[at.start - first * per : at.stop - first * per]
