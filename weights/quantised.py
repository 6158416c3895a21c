"""Quantised weight matrices: integer codes and scales as a file stores them, and the float32 numbers they stand for.

`Quantised` is one matrix of a checkpoint. `numbers` defines its values, in float32. `planes` returns what is stored,
for backends that compute with it. Each format is a subclass: blocks.py has those of GGUF, methods/ those of
safetensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import CheckpointError

CHUNK = 1 << 17  # numbers decoded at a time: temporaries stay in the cache and never grow with the tensor
E4M3 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)  # [256], by code


@dataclass(frozen=True)
class Planes:
    """Some rows of a quantised matrix: integer codes, and scales that groups of `group` codes of a row share.

        w[n, k] = s[n, g] * (codes[n, k] - z[n, g]) + m[n, g],  g = k // group

    in float32 and in this order of operations. s is `scales`, or `d * scales` where there is `d`; m is `mins`, or
    `-(dmin * mins)` where there is `dmin`, and is not added where there is neither; z is `zeros`, or else `zero`."""

    code: str  # "u4", "u5", "u6": unsigned, of so many bits; "s8": signed; "e4m3": FP8
    codes: np.ndarray  # [N, K] uint8; int8 for "s8"
    group: int  # numbers of a row that share a scale; K for one scale a row
    scales: np.ndarray  # [ceil(N / rows), ceil(K / group)] float16, bfloat16 or float32; under `d` uint8 or int8
    zero: int = 0  # zero point of all codes
    rows: int = 1  # rows that share a scale, from row 0 of these planes: 128 for FP8 blocks of 128 x 128
    mins: np.ndarray | None = None  # [N, K / group] float16, bfloat16 or float32; under `dmin` uint8
    zeros: np.ndarray | None = None  # [N, K / group] uint8 or int16, subtracted in place of `zero`
    d: np.ndarray | None = None  # [N, K / 256] float16: the scale of the scales
    dmin: np.ndarray | None = None  # [N, K / 256] float16: the scale of the mins

    def numbers(self, out: np.ndarray | None = None) -> np.ndarray:
        """The rows dequantised, [N, K] float32; written to `out` if given."""
        out = np.empty(self.codes.shape, np.float32) if out is None else out
        out[...] = self._integers()
        with np.errstate(over="ignore"):  # a power of two of MXFP4 may be as large as that
            out *= self._each(self._spread())
        mins = _product(self.dmin, self.mins)
        if mins is not None:
            out += self._each(mins if self.dmin is None else -mins)
        return out

    def _each(self, values: np.ndarray) -> np.ndarray:
        """[N, groups] -> [N, K]: a value of a group repeated for its numbers. The last group may be shorter."""
        return np.repeat(values, self.group, 1)[:, : self.codes.shape[1]]

    def _integers(self) -> np.ndarray:
        """[N, K]: codes minus zero points, in a type that holds every difference."""
        if self.code == "e4m3":
            return np.take(E4M3, self.codes, mode="clip")  # twice as fast as E4M3[codes]
        if self.zeros is not None:
            grouped, zeros = self.codes.reshape(*self.zeros.shape, self.group), self.zeros[..., None]
            if self.code != "s8" and zeros.dtype == np.uint8:  # codes of 6 bits at most, which int8 holds: much faster
                return np.subtract(grouped.view(np.int8), zeros.view(np.int8)).reshape(self.codes.shape)
            return np.subtract(grouped, zeros, dtype=np.int16).reshape(self.codes.shape)
        if not self.zero:
            return self.codes
        return self.codes.view(np.int8) - np.int8(self.zero)

    def _spread(self) -> np.ndarray:
        """Scales [N, groups] float32, repeated for rows that share them."""
        scales = _product(self.d, self.scales)
        return scales if self.rows == 1 else np.repeat(scales, self.rows, 0)[: len(self.codes)]

    def check(self, where: str, first: int = 0) -> None:
        """CheckpointError for a scale, minimum or FP8 code that is NaN or infinite. first: the number of row 0."""
        for field in ("scales", "mins", "d", "dmin"):
            values = getattr(self, field)
            if values is not None and values.dtype.kind not in "iu":
                self._refuse(where, first, field, np.isfinite(values), values)
        if self.code == "e4m3":
            self._refuse(where, first, "codes", (self.codes & 0x7F) != 0x7F, self.codes)

    def _refuse(self, where: str, first: int, field: str, sound: np.ndarray, values: np.ndarray) -> None:
        if sound.all():
            return
        row, place = np.argwhere(~sound)[0]
        rows = self.rows if field == "scales" else 1
        found = "NaN" if field == "codes" else str(float(values[row, place]))
        raise CheckpointError(f"{where}: {field} of row {first + row * rows}, place {place}: expected a finite number, "
                              f"found {found}")  # fmt: skip


def _product(outer: np.ndarray | None, inner: Any) -> Any:
    """`inner` [N, groups] in float32, times the super-block scales `outer` [N, super-blocks] if there are any."""
    if inner is None or outer is None:
        return None if inner is None else inner.astype(np.float32, copy=False)
    split = inner.reshape(*outer.shape, inner.shape[1] // outer.shape[1])
    return (outer.astype(np.float32)[..., None] * split).reshape(inner.shape)


class Quantised(ABC):
    """A quantised matrix of a checkpoint. Nothing is read before `numbers` or `planes`.

    where: "file: tensor name", for messages. kind: "Q4_K", "GPTQ 4-bit g128", ... shape: (N, K), [out, in].
    align: chunks begin at multiples of so many rows."""

    where: str
    kind: str
    shape: tuple[int, int]
    align: int = 1

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes in the file."""

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def take(self, rows: np.ndarray) -> Quantised:
        """Rows by index, rows [M]; nothing is decoded. For RoPE's row order, and for the parts of fused q, k, v."""

    @abstractmethod
    def _planes(self, first: int, last: int) -> Planes | None:
        """The planes, unchecked; or None."""

    def planes(self, first: int = 0, last: int | None = None) -> Planes | None:
        """Rows first .. last - 1 as codes and scales; None if the format has no such form.

        `planes(0, 0)` reads nothing and shows the form: code, group, dtypes. CheckpointError for a scale that is NaN
        or infinite."""
        planes = self._planes(first, self.shape[0] if last is None else last)
        if planes is not None:
            planes.check(self.where, first)
        return planes

    def numbers(self, first: int = 0, last: int | None = None, out: np.ndarray | None = None) -> np.ndarray:
        """Rows first .. last - 1 dequantised, [rows, K] float32. If `out` is given, written there and rounded to its
        dtype. Temporaries are of some chunks.

        CheckpointError for a scale that is NaN or infinite."""
        n, k = self.shape
        last = n if last is None else last
        out = np.empty((last - first, k), np.float32) if out is None else out
        step = max(1, CHUNK // k // self.align) * self.align
        chunk = None if out.dtype == np.float32 else np.empty((min(step, last - first), k), np.float32)
        for i in range(first, last, step):
            end = min(i + step, last)
            rows = out[i - first : end - first]
            if chunk is None:
                self._numbers(i, end, rows)
            else:
                self._numbers(i, end, chunk[: end - i])
                rows[...] = chunk[: end - i]
        return out

    def _numbers(self, first: int, last: int, out: np.ndarray) -> None:
        """Dequantise one chunk into `out` [rows, K] float32. Formats without planes override it."""
        planes = self.planes(first, last)
        if planes is None:
            raise NotImplementedError
        planes.numbers(out)
