"""How packed matrices are kept: plain numbers of T, or the codes and scales of a quantised matrix.

A `Form` is what Python knows of a format of kernels/format.cuh or quantised.cuh: its sizes, and how kernels spell it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..weights.quantised import Planes

_CODES = {"u4": "Nibbles", "u5": "Longer<1>", "u6": "Longer<2>", "s8": "Bytes"}
_BITS = {"u4": 4, "u5": 5, "u6": 6, "s8": 8}
SPAN = 256  # k whose scales share what they are under, where they are nested
_SCALES = {"float16": "half", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Form:
    """A format as launches see it. A step is what a warp multiplies at a time: `step` k of one row tile."""

    key: int | str  # in the tables of launch shapes: bytes of T, or a quantised format's name
    step: int  # k of a step
    unit: int  # bytes of a step in memory, on average
    slot: int  # bytes of a step in shared memory
    columns: int  # bytes of a lane's part of eight columns of x of a step
    itemsize: int  # bytes of T

    def spelled(self, t: str) -> str:
        """As kernels spell it, for x of type t."""
        return t


@dataclass(frozen=True)
class QuantisedForm(Form):
    """Codes and scales: Quantised<CODES, SCALES, K, T> of kernels/quantised.cuh."""

    code: str  # of Planes
    group: int  # k that share a scale in memory, at most `step`
    zero: int
    nested: bool  # scales are bytes under halves
    mins: bool
    scale: str  # dtype of scales that are not nested

    def spelled(self, t: str) -> str:
        scales, mins = f"Nested<{self.group}", str(self.mins).lower()
        if not self.nested:
            scales = f"Grouped<{self.group}, {_SCALES[self.scale]}"
        return f"Quantised<{_CODES[self.code]}, {scales}, {self.zero}, {mins}>, {self.step}, {t}>"

    @property
    def inner(self) -> int:
        """Bytes of a row's scales and mins in a step."""
        return self.step // self.group * (1 + self.mins) * (1 if self.nested else 2)

    def bytes_of(self, planes: Planes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows [N, K] as kernels/pack.cu takes them, uint8: codes [N, K], inner scales [N, *] and outer ones."""
        n, k = planes.codes.shape
        steps, flip = k // self.step, np.uint8(0x80)
        codes = planes.codes.view(np.uint8)
        scales, mins = (None if v is None else _each(v, k // self.group) for v in (planes.scales, planes.mins))
        if scales is not None and scales.dtype == np.int8:
            scales = scales.view(np.uint8) ^ flip
        inner = [v.reshape(n, steps, -1) for v in (scales, mins) if v is not None]
        outer = [v[..., None] for v in (planes.d, planes.dmin) if v is not None]
        return (
            codes ^ flip if planes.code == "s8" else codes,
            _joined(inner, n),
            _joined(outer, n),
        )


def _each(values: np.ndarray, count: int) -> np.ndarray:
    """[N, count]: each of values [N, fewer] for as many groups as it stands for."""
    return values if values.shape[1] == count else np.repeat(values, count // values.shape[1], axis=1)


def _joined(parts: list[np.ndarray], n: int) -> np.ndarray:
    """The bytes of parts [N, steps, *], step by step; [N, bytes]."""
    if not parts:
        return np.zeros((n, 0), np.uint8)
    return np.ascontiguousarray(np.concatenate(parts, axis=2)).view(np.uint8).reshape(n, -1)


PLAIN = {size: Form(size, 16, 256 * size, 256 * size, 4 * size, size) for size in (2, 4)}


def _form(code: str, group: int, step: int, nested: bool = False, mins: bool = False) -> QuantisedForm:
    """The form with no zero and half scales; its sizes are those of Format<Quantised<...>>."""
    key = f"{code} g{group}{' nested' * nested}{' min' * mins}"
    codes = step * 2 * _BITS[code]  # bytes of sixteen rows
    lane, outer = step // group * (1 + mins) * (2 if nested else 4), 4 * (1 + mins) * nested
    unit, slot = codes + 8 * lane + 8 * outer * step // SPAN, codes + 32 * (lane + outer)
    return QuantisedForm(key, step, unit, slot, step // 2, 2, code, group, 0, nested, mins, "float16")


_FORMS = (
    *(_form("u4", group, max(64, group)) for group in (32, 64, 128)),  # Q4_0, GPTQ, compressed-tensors
    *(_form("s8", group, max(64, group)) for group in (32, 64, 128)),  # Q8_0, 8-bit GPTQ and compressed-tensors
    _form("u4", 32, 64, mins=True),  # Q4_1
    _form("u5", 32, 256),  # Q5_0
    _form("u5", 32, 256, mins=True),  # Q5_1
    _form("u4", 16, 128, nested=True, mins=True),  # Q2_K
    _form("u4", 16, 128, nested=True),  # Q3_K
    _form("u4", 32, 128, nested=True, mins=True),  # Q4_K
    _form("u5", 32, 256, nested=True, mins=True),  # Q5_K
    _form("u6", 16, 128, nested=True),  # Q6_K
    _form("s8", 32, 128, nested=True),  # IQ4_XS
)
FORMS: dict[int | str, Form] = {**PLAIN, **{form.key: form for form in _FORMS}}


def form_of(planes: Planes, k: int) -> QuantisedForm | None:
    """How the kernels keep a matrix of rows of k numbers like these, losslessly; None if they have no form for it."""
    nested, mins, scale = planes.d is not None, planes.mins is not None, planes.scales.dtype
    group = min(planes.group, 128)
    form = FORMS.get(f"{planes.code} g{group}{' nested' * nested}{' min' * mins}")
    if not isinstance(form, QuantisedForm) or k % (SPAN if nested else form.step) or planes.group % group:
        return None
    if planes.rows > 1 or planes.zeros is not None or (planes.mins is not None and planes.mins.dtype != scale):
        return None
    if scale.name not in (("uint8" if mins else "int8",) if nested else _SCALES):
        return None
    zero = 128 if planes.code == "s8" else planes.zero
    return replace(form, zero=zero, scale="float16" if nested else scale.name)
