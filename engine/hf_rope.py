"""Rotary embedding settings of a checkpoint, in the two forms in which they are written.

Until transformers 4 `rope_theta` stands beside `rope_scaling` {type or rope_type, factor, ...}; since 5 both are in
one dict `rope_parameters`. Used by hf_config.py only; touches nothing.
"""

from __future__ import annotations

from typing import Any

from .config import Rope, RopeScaling
from .hf_keys import Keys


def rope(keys: Keys) -> Rope:
    """Theta and scaling, from whichever form is there; both are fine when they say the same."""
    if keys.real("partial_rotary_factor", 0, 1, default=1.0) != 1:
        keys.unsupported("partial_rotary_factor", "1", keys.get("partial_rotary_factor"))
    old, new = keys.get("rope_scaling"), keys.get("rope_parameters")
    theta = keys.real("rope_theta", 0, 1e12, default=10000.0)
    if new is None:
        return _one(keys, "rope_scaling", old, theta)
    result = _one(keys, "rope_parameters", new, theta)
    if keys.get("rope_theta") is not None and result.theta != theta:
        keys.wrong("rope_theta", f"the same as in rope_parameters, {result.theta:g}", theta)
    if old is not None and _one(keys, "rope_scaling", old, result.theta) != result:
        keys.wrong("rope_scaling", "the same as rope_parameters", old)
    return result


def _one(keys: Keys, key: str, value: Any, theta: float) -> Rope:
    """Read one of the two dicts; theta is what is written outside it, or the default."""
    if value is None:
        return Rope(theta)
    inner = Keys(value, f"{keys.name}: {key}")
    kind, old_name = inner.get("rope_type"), inner.get("type")
    if kind is not None and old_name is not None and kind != old_name:
        inner.wrong("type", f"the same as rope_type = {kind}", old_name)
    kind = kind if kind is not None else old_name
    if kind is None:
        inner.wrong("rope_type", "default, linear or llama3", None)
    theta = inner.real("rope_theta", 0, 1e12, default=theta)
    if inner.real("partial_rotary_factor", 0, 1, default=1.0) != 1:
        inner.unsupported("partial_rotary_factor", "1", inner.get("partial_rotary_factor"))
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, RopeScaling("linear", factor=inner.real("factor", 0, 1e6)))
    if kind == "llama3":
        return Rope(theta, _llama3(inner))
    return inner.unsupported("rope_type", "default, linear or llama3", kind)


def _llama3(inner: Keys) -> RopeScaling:
    low, high = inner.real("low_freq_factor", 0, 1e6), inner.real("high_freq_factor", 0, 1e6)
    if low >= high:  # the blend between the two divides by their difference
        inner.wrong("high_freq_factor", f"a number above low_freq_factor = {low:g}", high)
    length = inner.integer("original_max_position_embeddings", 1, 2**24)
    return RopeScaling("llama3", inner.real("factor", 0, 1e6), low, high, length)
