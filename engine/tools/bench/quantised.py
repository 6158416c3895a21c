"""Random quantised matrices: what a file of a kind would hold, with codes and scales drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from ...checks import refuse
from ...config import ModelConfig
from ...ops.formats import FORMS, QuantisedForm
from ...weights.quantised import Planes, Quantised

DEVIATION = 0.02  # of every matrix: keeps activations within a few units in all shapes

POOL = 1 << 25  # random bytes, of which every draw takes a part
_RMS = {"u4": 4.6, "u5": 9.2, "u6": 18.5, "s8": 74.0}  # of codes less their zero


def _more(layer: int, layers: int) -> bool:
    """Whether llama.cpp's mixes keep a layer's v and down in more bits."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


Mix = Callable[[str, int, int], str]  # tensor, its layer (-1: none), layers -> a form's key; "": not quantised


def _k_mix(form: str) -> Mix:
    """llama.cpp's *_K_M: one form, Q6_K for the head, and for v and down of half of the layers."""

    def mix(tensor: str, layer: int, layers: int) -> str:
        more = layer >= 0 and _more(layer, layers) and ("v_proj" in tensor or "down_proj" in tensor)
        return "u6 g16 nested" if more or _is_head(tensor) else form

    return mix


def _is_head(tensor: str) -> bool:
    return "lm_head" in tensor


def _all(form: str, head: str, embedding: str) -> Mix:
    return lambda tensor, layer, layers: form if layer >= 0 else head if _is_head(tensor) else embedding


MIXES: dict[str, Mix] = {
    "q4_0": _all("u4 g32", "u6 g16 nested", "u4 g32"),
    "q4_1": _all("u4 g32 min", "u6 g16 nested", "u4 g32 min"),
    "q4_k_m": _k_mix("u4 g32 nested min"),
    "q5_k_m": _k_mix("u5 g32 nested min"),
    "q6_k": _all("u6 g16 nested", "u6 g16 nested", "u6 g16 nested"),
    "q8_0": _all("s8 g32", "s8 g32", "s8 g32"),
    "g128": _all("u4 g128", "", ""),
}


def mix_of(name: str) -> Mix:
    """The mix of this name; RequestError lists the names."""
    if name not in MIXES:
        refuse("quant", " or ".join(MIXES), name)
    return MIXES[name]


@cache
def _pool() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, POOL, np.uint8)


@dataclass(frozen=True)
class RandomQuantised(Quantised):
    """A matrix of random codes and scales, drawn when it is asked for; the same for the same start."""

    where: str
    shape: tuple[int, int]
    form: QuantisedForm
    start: int = 0

    @property
    def kind(self) -> str:
        return f"random {self.form.key}"

    @property
    def nbytes(self) -> int:
        n, k = self.shape
        return n * k // self.form.step * self.form.unit // 16

    def take(self, rows: np.ndarray) -> Quantised:
        return replace(self, shape=(len(rows), self.shape[1]))  # random rows in another order are random rows

    def _planes(self, first: int, last: int) -> Planes:
        form, (n, k) = self.form, (last - first, self.shape[1])
        mask = 0xFF if form.code == "s8" else (1 << int(form.code[1])) - 1
        codes = self._bytes(first * k, n * k).reshape(n, k)
        codes = codes.view(np.int8) if form.code == "s8" else codes & mask
        zero = 0 if form.code == "s8" or form.mins else (mask + 1) // 2
        groups, size = k // form.group, DEVIATION / _RMS[form.code]
        middle = -size * (mask + 1) / 2
        if not form.nested:
            mins = self._halves(first, n, groups, middle) if form.mins else None
            return Planes(form.code, codes, form.group, self._halves(first, n, groups, size), zero, mins=mins)
        scales = self._bytes(first * groups, n * groups).reshape(n, groups)
        d = self._halves(first, n, k // 256, size / (38 if form.mins else 74))
        if not form.mins:
            return Planes(form.code, codes, form.group, scales.view(np.int8), zero, d=d)
        dmin = self._halves(first, n, k // 256, -middle / 38)
        return Planes(form.code, codes, form.group, scales & 63, zero, mins=scales[:, ::-1] & 63, d=d, dmin=dmin)

    def _bytes(self, first: int, count: int) -> np.ndarray:
        """Random bytes, from a place in the pool that the start and `first` give."""
        if count > POOL // 2:
            return np.concatenate([self._bytes(first, POOL // 2), self._bytes(first + POOL // 2, count - POOL // 2)])
        at = (self.start * 40503 + first * 7) % (POOL // 2)
        return _pool()[at : at + count]

    def _halves(self, first: int, n: int, count: int, size: float) -> np.ndarray:
        """[n, count] scales of about this size."""
        bits = self._bytes(first * count + 1, n * count).reshape(n, count)
        return ((0.5 + bits / np.float32(255)) * np.float32(size)).astype(np.float16)


def drawn(c: ModelConfig, mix: Mix, name: str, layer: int, shape: tuple[int, ...], start: int) -> Quantised | None:
    """The matrix of this name, as a file of this mix would have it; None where it is not quantised."""
    if len(shape) != 2 or not (key := mix(name, layer, c.layer_count)):
        return None
    if c.tied and layer < 0 and mix in (MIXES["q4_k_m"], MIXES["q5_k_m"], MIXES["q4_0"]):
        key = "u6 g16 nested"  # the embedding is the head
    form = FORMS[key]
    assert isinstance(form, QuantisedForm)
    if shape[1] % form.step:
        refuse("quant", f"rows of a multiple of {form.step} numbers for {key}", f"{list(shape)} in {name}")
    return RandomQuantised(name, (shape[0], shape[1]), form, start)
