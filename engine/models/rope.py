"""RoPE: tables of cosines and sines, and the order of a head's rows that they assume. NumPy only, in float64.

Kernels rotate element i of a head with element i + d/2, for all i < d/2. Partial and interleaved RoPE use the same
kernels: the rows of the q and k weights are permuted so that partners are d/2 apart, and pairs that are not rotated get
angle 0.
"""

from __future__ import annotations

import math

import numpy as np

from ..config import Rope, RopeScaling
from ..errors import UnsupportedModel

KINDS = ("linear", "llama3", "yarn", "longrope")


def table(rope: Rope | None, d: int, max_len: int) -> np.ndarray:
    """[max_len, d] float32: row t holds the cosines of the d/2 angles t * frequency, then their sines.

    rope=None: cosines 1 and sines 0, the identity. max_len also selects one of longrope's two lists: the keys of one KV
    cache must all use the same list."""
    turning = 0 if rope is None else (rope.rotary or d) // 2
    cosines, sines = np.ones((max_len, d // 2), np.float32), np.zeros((max_len, d // 2), np.float32)
    if rope is not None:
        angles = np.arange(max_len, dtype=np.float64)[:, None] * frequencies(rope, 2 * turning, max_len)
        factor = rope.scaling.attention_factor if rope.scaling else 1.0
        cosines[:, :turning], sines[:, :turning] = factor * np.cos(angles), factor * np.sin(angles)
    return np.concatenate([cosines, sines], axis=1)


def frequencies(rope: Rope, rotary: int, max_len: int) -> np.ndarray:
    """[rotary/2] float64, radians per token: theta^(-2i/rotary), scaled as the checkpoint says.

    UnsupportedModel for a scaling that is not in KINDS."""
    plain = rope.theta ** (-np.arange(0, rotary, 2, dtype=np.float64) / rotary)
    scaling = rope.scaling
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind == "llama3":
        return _llama3(plain, scaling)
    if scaling.kind == "yarn":
        return _yarn(plain, rope.theta, scaling)
    if scaling.kind == "longrope":
        return plain / np.array(scaling.short if max_len <= scaling.original_max_len else scaling.long)
    raise UnsupportedModel(f"rope_scaling: expected {', '.join(KINDS)}, found {scaling.kind}")


def order(rope: Rope | None, d: int) -> np.ndarray | None:
    """[d]: for each row of a head, the index of the checkpoint's row to put there; None: keep the order."""
    if rope is None:
        return None
    rotary = rope.rotary or d
    turning, rest = np.arange(rotary), np.arange(rotary, d)
    first, second = (turning[::2], turning[1::2]) if rope.interleaved else np.split(turning, 2)
    rows = np.concatenate([first, rest[: len(rest) // 2], second, rest[len(rest) // 2 :]])
    return None if np.array_equal(rows, np.arange(d)) else rows


def _llama3(plain: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Keep short wavelengths, divide the frequency of long ones by the factor, blend in between."""
    turns = scaling.original_max_len * plain / (2 * math.pi)  # full turns within the training length
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = np.clip(blend, 0, 1)
    return blend * plain + (1 - blend) * plain / scaling.factor


def _yarn(plain: np.ndarray, theta: float, scaling: RopeScaling) -> np.ndarray:
    """Keep frequencies of many turns, divide those of few by the factor, interpolate linearly in the index between."""
    rotary = 2 * len(plain)

    def index(turns: float) -> float:  # index of the frequency with this many turns within the training length
        return rotary * math.log(scaling.original_max_len / (2 * math.pi * turns)) / (2 * math.log(theta))

    low, high = index(scaling.beta_fast), index(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary - 1)
    if low == high:
        high += 0.001
    divided = np.clip((np.arange(len(plain)) - low) / (high - low), 0, 1)
    return plain * (1 - divided) + plain / scaling.factor * divided
