"""RoPE settings of a checkpoint, in both of the forms that transformers writes.

Up to transformers 4: `rope_theta`, and a dict `rope_scaling` {type or rope_type, factor, ...}. Since 5 both are in one
dict `rope_parameters`.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ...config import Rope, RopeScaling
from ...keys import Keys

KINDS = "default, linear, llama3, yarn or longrope"
LENGTH = "original_max_position_embeddings"


def rope(keys: Keys, head_dim: int, max_len: int, theta: float = 10000.0, partial: bool = False) -> Rope:
    """Read the Rope from either form, or from both if they agree.

    theta: default of an absent rope_theta. partial: whether the family allows partial RoPE."""
    theta = keys.real("rope_theta", 0, 1e12, default=theta)
    outer = Rope(theta, rotary=_rotary(keys, head_dim, 0, partial))
    if keys.get("rope_parameters") is None:
        return _one(keys, "rope_scaling", outer, head_dim, max_len, partial)
    result = _one(keys, "rope_parameters", outer, head_dim, max_len, partial)
    if keys.get("rope_theta") is not None and result.theta != theta:
        keys.wrong("rope_theta", f"the same as in rope_parameters, {result.theta:g}", theta)
    if keys.get("rope_scaling") is not None:
        old = _one(keys, "rope_scaling", replace(outer, theta=result.theta), head_dim, max_len, partial)
        if old != result:
            keys.wrong("rope_scaling", "the same as rope_parameters", keys.get("rope_scaling"))
    return result


def _rotary(keys: Keys, head_dim: int, default: int, partial: bool) -> int:
    """Number of rotated elements of a head; 0: all. default: for an absent key."""
    if keys.get("partial_rotary_factor") is None:
        return default
    share = keys.real("partial_rotary_factor", 0, 1)
    rotary = int(head_dim * share)
    if rotary == head_dim:
        return 0
    if not partial:
        keys.unsupported("partial_rotary_factor", "1", share)
    if rotary < 2 or rotary % 2 or head_dim % 2:
        keys.wrong("partial_rotary_factor", f"an even number of the {head_dim} elements of a head", share)
    return rotary


def _one(keys: Keys, key: str, outer: Rope, head_dim: int, max_len: int, partial: bool) -> Rope:
    """Read one of the two dicts. outer: values from outside the dict, or defaults."""
    if keys.get(key) is None:
        return outer
    inner = keys.inner(key)
    kind, old_name = inner.get("rope_type"), inner.get("type")
    if kind is not None and old_name is not None and kind != old_name:
        inner.wrong("type", f"the same as rope_type = {kind}", old_name)
    kind = kind if kind is not None else old_name
    if kind in ("su", "yarn") and "short_factor" in inner:  # the first name in Phi-3's files
        kind = "longrope"
    if kind is None:
        inner.wrong("rope_type", KINDS, None)
    theta = inner.real("rope_theta", 0, 1e12, default=outer.theta)
    result = Rope(theta, rotary=_rotary(inner, head_dim, outer.rotary, partial))
    if kind == "default":
        return result
    if kind == "linear":
        return replace(result, scaling=RopeScaling("linear", factor=inner.real("factor", 0, 1e6)))
    if kind == "llama3":
        return replace(result, scaling=_llama3(inner))
    if kind == "yarn":
        return replace(result, scaling=_yarn(inner, theta, max_len))
    if kind == "longrope":
        return replace(result, scaling=_longrope(keys, inner, (result.rotary or head_dim) // 2, max_len))
    return inner.unsupported("rope_type", KINDS, kind)


def _llama3(inner: Keys) -> RopeScaling:
    low, high = inner.real("low_freq_factor", 0, 1e6), inner.real("high_freq_factor", 0, 1e6)
    if low >= high:  # the blend divides by their difference
        inner.wrong("high_freq_factor", f"a number above low_freq_factor = {low:g}", high)
    length = inner.integer(LENGTH, 1, 2**24)
    return RopeScaling("llama3", inner.real("factor", 0, 1e6), low, high, length)


def _yarn(inner: Keys, theta: float, max_len: int) -> RopeScaling:
    """YaRN. A null factor means max_position_embeddings / training length."""
    if theta <= 1:  # the formula divides by log(theta)
        inner.wrong("rope_theta", "a number above 1", theta)
    length = inner.integer(LENGTH, 1, 2**24) if inner.get(LENGTH) is not None else max_len
    if "factor" not in inner:
        inner.wrong("factor", "a number", None)
    factor = inner.real("factor", 0, 1e6, default=max_len / length)
    fast, slow = inner.real("beta_fast", 0, 1e6, default=32.0), inner.real("beta_slow", 0, 1e6, default=1.0)
    if fast < slow:
        inner.wrong("beta_fast", f"a number of at least beta_slow = {slow:g}", fast)
    of_all = [inner.real(key, -1, 1e6, default=0.0) for key in ("mscale", "mscale_all_dim")]
    usual = _mscale(factor, of_all[0]) / _mscale(factor, of_all[1]) if all(of_all) else _mscale(factor, 1.0)
    return RopeScaling(
        "yarn", factor, original_max_len=length, beta_fast=fast, beta_slow=slow, truncate=inner.flag("truncate", True),
        attention_factor=inner.real("attention_factor", 0, 1e6, default=usual),
    )  # fmt: skip


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(keys: Keys, inner: Keys, count: int, max_len: int) -> RopeScaling:
    """longrope. The training length may be outside the dict, as in Phi-3; factor defaults to max_len / that length."""
    where = keys if keys.get(LENGTH) is not None else inner
    length = where.integer(LENGTH, 2, 2**24)
    factor = inner.real("factor", 0, 1e6, default=max_len / length)
    usual = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(length))
    short, long = (inner.reals(key, 0, 1e6, count) for key in ("short_factor", "long_factor"))
    inner.skip(LENGTH)  # the outer one takes precedence
    return RopeScaling(
        "longrope", original_max_len=length, short=short, long=long,
        attention_factor=inner.real("attention_factor", 0, 1e6, default=usual),
    )  # fmt: skip
