"""The table of rotary angles, made once at load by the runner. NumPy only; computed in float64."""

from __future__ import annotations

import math

import numpy as np

from .config import ModelConfig, RopeScaling
from .errors import UnsupportedModel


def table(c: ModelConfig, max_len: int) -> np.ndarray:
    """[max_len, d] float32: row t holds the cosines of the d/2 angles t * frequency, then their sines."""
    angles = np.arange(max_len, dtype=np.float64)[:, None] * frequencies(c)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def frequencies(c: ModelConfig) -> np.ndarray:
    """[d/2] float64, radians a token: theta^(-2i/d), scaled as the checkpoint asks. UnsupportedModel for others."""
    plain = c.rope_theta ** (-np.arange(0, c.head_dim, 2, dtype=np.float64) / c.head_dim)
    if c.rope_scaling is None:
        return plain
    if c.rope_scaling.kind == "linear":
        return plain / c.rope_scaling.factor
    if c.rope_scaling.kind == "llama3":
        return _llama3(plain, c.rope_scaling)
    raise UnsupportedModel(f"rope_scaling: expected linear or llama3, found {c.rope_scaling.kind}")


def _llama3(plain: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Short wavelengths as they are, long ones divided by the factor, those between a blend of the two."""
    turns = scaling.original_max_len * plain / (2 * math.pi)  # full turns within the training length
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = np.clip(blend, 0, 1)
    return blend * plain + (1 - blend) * plain / scaling.factor
