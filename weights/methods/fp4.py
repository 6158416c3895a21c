"""NVFP4: FP4 numbers (E2M1), of which 16 of a row share a scale in FP8, and all of a matrix one in float32."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..blocks import FP4
from ..quantised import E4M3, Planes
from .module import Module
from .packed import Packed, Rows

_PAIRS = np.stack([FP4[np.arange(256) & 15], FP4[np.arange(256) >> 4]], -1).view(np.int16)[
    :, 0
]  # twice those of a byte


@dataclass(frozen=True)
class Fp4(Packed):
    """An NVFP4 matrix: w = scale whole e2m1, or scale / whole e2m1. Codes are twice the numbers, scales half."""

    packed: np.ndarray = field(kw_only=True)  # [N, K / 2] uint8, low half first
    scales: np.ndarray = field(kw_only=True)  # [N, K / 16] uint8, E4M3
    whole: np.ndarray = field(kw_only=True)  # [1] float32
    divides: bool = field(kw_only=True)

    def _read(self, at: Rows) -> Planes:
        scales = E4M3[self.scales[at]]
        with np.errstate(all="ignore"):  # what is no number is refused by Planes.check
            scales = scales / self.whole if self.divides else scales * self.whole
        return Planes("s8", np.take(_PAIRS, self.packed[at], mode="clip").view(np.int8), 16, scales / np.float32(2))


def nvfp4(m: Module, packed: np.ndarray, whole: str, divides: bool) -> Fp4:
    """The matrix with these codes, `weight_scale` and the entry `whole`, by which all scales are divided or multiplied.

    CheckpointError if shapes do not fit."""
    n, k = packed.shape[0], 2 * packed.shape[1]
    scales, factor = m.array("weight_scale", "F8_E4M3"), m.array(whole, "F32", dims=None)
    if k % 16:
        m.wrong("weight_scale", "a K that 16 divides", k)
    m.expect("weight_scale", (n, k // 16))
    if factor.size != 1:
        m.wrong(whole, "one number", factor.size)
    return Fp4(
        m.where, "NVFP4", (n, k), m.nbytes, n, packed=packed, scales=scales, whole=factor.reshape(1), divides=divides
    )
