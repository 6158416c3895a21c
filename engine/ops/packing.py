"""Matrices into the order in which the kernels of backend "cuda" read them: packed.cuh and quantised.cuh in kernels/.

Plain parts become numbers of T. Quantised parts keep their codes and scales where there is a form for them
(formats.py); else they become T as well.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DeviceError, UnsupportedModel
from ..weights.quantised import Quantised
from . import dequantise
from .device import Device
from .formats import PLAIN, Form, QuantisedForm, form_of
from .products import c_type, expect

_log = logging.getLogger("ostinato")
_CHUNK = 1 << 24  # codes decoded and uploaded at a time


@dataclass(frozen=True)
class Segment:
    """Row tiles first .. first + tiles - 1 of a matrix, all in one form."""

    form: Form
    data: Any  # [tiles * 16 * k] T, or [bytes] uint8 of codes and scales
    first: int
    tiles: int


@dataclass(frozen=True)
class PackedWeight:
    """A matrix [n, k] in the order in which the tensor cores take it."""

    segments: tuple[Segment, ...]  # one, unless parts are stored in different forms
    n: int
    k: int
    layout: str  # "rows", "qkv" or "gate_up": which rows share a tile
    span: int  # tiles of a group, rows i and i + 8 * span of which share a tile: 1, d / 16 or n / 16

    @property
    def tiles(self) -> int:
        return -(-self.n // 16)

    @property
    def stored_bytes(self) -> int:
        """On the device, if it is kept as codes and scales; else 0."""
        quantised = isinstance(self.segments[0].form, QuantisedForm)
        return sum(part.data.nbytes for part in self.segments) if quantised else 0


class Packer:
    """Packs matrices on a device, for products of rows of dtype T."""

    def __init__(self, device: Device, dtype: np.dtype) -> None:
        self._device, self._dtype, self._t = device, dtype, c_type(dtype)
        self.unpacked: Any = None  # room for a matrix of codes as numbers of T, for products of many rows

    def pack(self, parts: Sequence[Any], layout: str, head_dim: int) -> PackedWeight:
        """See CudaOps.weight."""
        n, k = sum(map(len, parts)), parts[0].shape[1]
        if k % 16:
            raise UnsupportedModel(f"backend cuda: expected a matrix with a multiple of 16 columns, found {[n, k]}")
        for i, part in enumerate(parts):
            if len(part.shape) != 2 or part.shape[1] != k:
                raise DeviceError(f"weight: expected part {i} to be [rows, {k}], found {list(part.shape)}")
        layout, span = _interleave(layout, n, head_dim)
        segments, first = [], 0
        for form, run in self._runs(parts, layout, span):
            last = first + sum(map(len, run))
            tiles = -(-last // 16) - first // 16
            segments.append(Segment(form, self._segment(form, run, tiles, k, span), first // 16, tiles))
            first = last
        return PackedWeight(tuple(segments), n, k, layout, span)

    def room(self, weight: PackedWeight) -> Any:
        """Room for this matrix as numbers of T; what was there before is let go if it is too small."""
        if self.unpacked is None or self.unpacked.size < weight.tiles * 16 * weight.k:
            self.unpacked = None
            self.unpacked = self._device.empty((weight.tiles * 16 * weight.k,), self._dtype)
        return self.unpacked

    def keeps(self, parts: Sequence[Quantised | None], layout: str, head_dim: int) -> bool:
        """See Ops.keeps."""
        given = [part for part in parts if part is not None]
        if len(given) < len(parts):
            return False
        layout, span = _interleave(layout, sum(map(len, given)), head_dim)
        return all(isinstance(form, QuantisedForm) for form in self._forms(given, layout, span))

    def _runs(self, parts: Sequence[Any], layout: str, span: int) -> list[tuple[Form, list[Any]]]:
        """The parts in runs of one form each."""
        runs: list[tuple[Form, list[Any]]] = []
        for form, part in zip(self._forms(parts, layout, span), parts, strict=True):
            if runs and runs[-1][0] == form:
                runs[-1][1].append(part)
            else:
                runs.append((form, [part]))
        return runs

    def _forms(self, parts: Sequence[Any], layout: str, span: int) -> list[Form]:
        """How each part is kept. Parts that share tiles are of one form, and plain ones have no others beside them."""
        plain = PLAIN[self._dtype.itemsize]
        forms = [self._form(part) for part in parts]
        cut = layout != "gate_up" and all(len(part) % (16 * span) == 0 for part in parts[:-1])
        if plain in forms or (not cut and len(set(forms)) > 1):
            return [plain] * len(parts)
        return forms

    def _form(self, part: Any) -> Form:
        plain = PLAIN[self._dtype.itemsize]
        if not isinstance(part, Quantised) or self._t != "bf16":
            return plain
        planes = part.planes(0, 0)
        return plain if planes is None else form_of(planes, part.shape[1]) or plain

    def _segment(self, form: Form, parts: list[Any], tiles: int, k: int, span: int) -> Any:
        """The packed rows of some parts of one form."""
        if isinstance(form, QuantisedForm):
            data = self._device.empty((tiles * (k // form.step) * form.unit,), np.dtype(np.uint8))
        else:
            data = self._device.empty((tiles * 16 * k,), self._dtype)
        first = 0
        for i, part in enumerate(parts):
            end = tiles * 16 if i + 1 == len(parts) else first + part.shape[0]
            if isinstance(form, QuantisedForm):
                self._codes(form, part, data, first, end, span)
            else:
                self._plain(part, data, first, end, span)
            first = first + part.shape[0]
        return data

    def _plain(self, part: Any, data: Any, first: int, end: int, span: int) -> None:
        rows, k = part.shape
        sizes = [np.int32(v) for v in (first, end - first, rows, k, span)]
        args = [self._upload(part), data, *sizes]
        self._launch(f"pack<{self._t}>", -(-(end - first) // 8) * (k // 16) * 32, args)

    def _codes(self, form: QuantisedForm, part: Quantised, data: Any, first: int, end: int, span: int) -> None:
        """Rows of codes and scales, some at a time."""
        rows, k = part.shape
        step = max(1, _CHUNK // k // part.align) * part.align
        for at in range(0, rows, step):
            last = min(at + step, rows)
            planes = part.planes(at, last)
            if planes is None:
                raise DeviceError(f"weight: expected {part.kind} to have planes, as it said, found none")
            count = (end - first if last == rows else last) - at
            sizes = [np.int32(v) for v in (first + at, count, last - at, k, span)]
            arrays = [self._device.upload(a) for a in form.bytes_of(planes)]
            self._launch(f"pack_codes<{form.spelled(self._t)}>", count * (k // 16), [*arrays, data, *sizes])

    def _launch(self, kernel: str, threads: int, args: list[Any]) -> None:
        function = self._device.kernel("pack.cu", kernel)
        self._device.launch(function, (-(-threads // 256),), (256,), args)
        self._device.synchronize()  # what was uploaded for it is let go

    def _upload(self, part: Any) -> Any:
        if isinstance(part, np.ndarray):
            return self._device.upload(np.ascontiguousarray(part, self._dtype))
        if isinstance(part, Quantised):
            plain = self._device.empty(part.shape, self._dtype)
            for at, piece in dequantise.pieces(part, self._dtype):
                self._device.write(plain[at : at + len(piece)], piece)
            return plain
        expect("weight", "part", part, self._dtype, part.shape)
        return part


def _interleave(layout: str, n: int, head_dim: int) -> tuple[str, int]:
    """The layout and its span; "rows" where heads, or gate and up, do not divide into tiles."""
    if layout not in ("rows", "qkv", "gate_up"):
        raise DeviceError(f'weight: expected layout "rows", "qkv" or "gate_up", found {layout!r}')
    if layout == "qkv" and head_dim % 16 == 0:
        return layout, head_dim // 16
    if layout == "gate_up" and n % 16 == 0:
        return layout, n // 16
    return "rows", 1
