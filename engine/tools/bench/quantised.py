"""Random quantised matrices: what a file of a kind would hold, with codes and scales drawn at random."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Mix:
    """The forms (keys of ops/formats.py) that a file of some kind keeps its matrices in; "" is not quantised."""

    layers: str
    head: str  # also of the embedding where it is the head
    embedding: str
    more: str = ""  # of v and down in half of the layers, as llama.cpp's *_K_M have it

    def form(self, tensor: str, layer: int, c: ModelConfig) -> str:
        """Of a tensor of this layer; layer -1: of none."""
        if layer < 0:
            return self.head if c.tied or "lm_head" in tensor else self.embedding
        n = c.layer_count
        more = layer < n // 8 or layer >= 7 * n // 8 or (layer - n // 8) % 3 == 2
        return self.more if self.more and more and ("v_proj" in tensor or "down_proj" in tensor) else self.layers


_Q4_K, _Q5_K, _Q6_K = "u4 g32 nested min", "u5 g32 nested min", "u6 g16 nested"
MIXES = {
    "q4_0": Mix("u4 g32", _Q6_K, "u4 g32"),
    "q4_1": Mix("u4 g32 min", _Q6_K, "u4 g32 min"),
    "q4_k_m": Mix(_Q4_K, _Q6_K, _Q4_K, _Q6_K),
    "q5_k_m": Mix(_Q5_K, _Q6_K, _Q5_K, _Q6_K),
    "q6_k": Mix(_Q6_K, _Q6_K, _Q6_K),
    "q8_0": Mix("s8 g32", "s8 g32", "s8 g32"),
    "g128": Mix("u4 g128", "", ""),
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
    kind: str
    shape: tuple[int, int]
    form: QuantisedForm
    start: int = 0

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
    form = FORMS.get(mix.form(name, layer, c))
    if len(shape) != 2 or not isinstance(form, QuantisedForm):
        return None
    if shape[1] % form.step:
        refuse("quant", f"rows of a multiple of {form.step} numbers for {form.key}", f"{list(shape)} in {name}")
    return RandomQuantised(name, f"random {form.key}", (shape[0], shape[1]), form, start)
