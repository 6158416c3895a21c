"""Tables of rotary angles, and the order of a head's rows that they are for. NumPy only; computed in float64.

Kernels turn element i of a head with element i + d/2, for all i < d/2. Partial and interleaved rotary embeddings become
that by the order of the rows of q and k: pairs stand where kernels look for them, and those that do not turn have
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

    None: cosines 1, sines 0, which turn nothing. max_len also chooses between the two lists of longrope: keys of both
    must not meet in one cache."""
    turning = 0 if rope is None else (rope.rotary or d) // 2
    cosines, sines = np.ones((max_len, d // 2), np.float32), np.zeros((max_len, d // 2), np.float32)
    if rope is not None:
        angles = np.arange(max_len, dtype=np.float64)[:, None] * frequencies(rope, 2 * turning, max_len)
        factor = rope.scaling.attention_factor if rope.scaling else 1.0
        cosines[:, :turning], sines[:, :turning] = factor * np.cos(angles), factor * np.sin(angles)
    return np.concatenate([cosines, sines], axis=1)


def frequencies(rope: Rope, rotary: int, max_len: int) -> np.ndarray:
    """[rotary/2] float64, radians a token: theta^(-2i/rotary), scaled as the checkpoint asks.

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
    """[d] which row of a head, as the checkpoint has it, stands at each place; None: all stay where they are."""
    if rope is None:
        return None
    rotary = rope.rotary or d
    turning, rest = np.arange(rotary), np.arange(rotary, d)
    first, second = (turning[::2], turning[1::2]) if rope.interleaved else np.split(turning, 2)
    rows = np.concatenate([first, rest[: len(rest) // 2], second, rest[len(rest) // 2 :]])
    return None if np.array_equal(rows, np.arange(d)) else rows


def _llama3(plain: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Short wavelengths as they are, long ones divided by the factor, those between a blend of the two."""
    turns = scaling.original_max_len * plain / (2 * math.pi)  # full turns within the training length
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = np.clip(blend, 0, 1)
    return blend * plain + (1 - blend) * plain / scaling.factor


def _yarn(plain: np.ndarray, theta: float, scaling: RopeScaling) -> np.ndarray:
    """Frequencies of many turns as they are, those of few divided by the factor, between them a line over the index."""
    rotary = 2 * len(plain)

    def index(turns: float) -> float:  # of the frequency that makes so many turns within the training length
        return rotary * math.log(scaling.original_max_len / (2 * math.pi * turns)) / (2 * math.log(theta))

    low, high = index(scaling.beta_fast), index(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary - 1)
    if low == high:
        high += 0.001
    divided = np.clip((np.arange(len(plain)) - low) / (high - low), 0, 1)
    return plain * (1 - divided) + plain / scaling.factor * divided
