"""RoPE scaling of a GGUF file, as rope_scaling of config.json has it.

    linear     rope.scaling.factor; the type may be absent, and rope.scale_linear is the older spelling
    yarn       factor, original_context_length, yarn_log_multiplier (mscale_all_dim), yarn_beta_fast, yarn_beta_slow,
               yarn_attn_factor (attention_factor)
    longrope   the tensors rope_factors_short and _long, original_context_length, attn_factor (attention_factor)
    llama3     the tensor rope_freqs: the finished divisors of the frequencies

Any other key of rope.scaling is refused unless its value changes nothing; so is every key of rope that nobody reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import UnsupportedModel
from ..keys import Keys
from .gguf import number, value
from .tensor import Tensor

FREQS = "rope_freqs.weight"
FACTORS = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
TENSORS = (FREQS, *FACTORS.values())  # none of them is a weight
_LENGTH = {"original_context_length": "original_max_position_embeddings"}
_KINDS = {  # by rope.scaling.type: its keys, and their names in rope_scaling
    "linear": {},
    "yarn": {**_LENGTH, "yarn_log_multiplier": "mscale_all_dim", "yarn_beta_fast": "beta_fast",
             "yarn_beta_slow": "beta_slow", "yarn_attn_factor": "attention_factor"},
    "longrope": {**_LENGTH, "attn_factor": "attention_factor"},
}  # fmt: skip
_NEUTRAL = {  # values that change nothing, where the type has no use for the key
    "alpha": (0.0, 1.0), "attn_factor": (1.0,), "yarn_attn_factor": (1.0,), "yarn_ext_factor": (1.0, -1.0),
    "yarn_log_multiplier": (0.0,),
}  # fmt: skip


def rope_scaling(keys: Keys, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
    """rope_scaling of config.json, None without any. UnsupportedModel for keys that the engine cannot follow."""
    kind, factor = _kind(keys, tensors)
    if FREQS in tensors:
        if kind != "none":
            keys.unsupported("rope.scaling.type", f"none beside the tensor {FREQS}", kind)
        return _llama3(keys, tensors[FREQS])
    names = _KINDS.get(kind, {})
    for key, values in _NEUTRAL.items():
        if key not in names:
            keys.neutral(f"rope.scaling.{key}", values)
    keys.skip("rope.scaling.finetuned", *(f"rope.scaling.{key}" for key in _KINDS["yarn"]))  # how it was made; unused
    if kind == "none":
        return None
    found = {FACTORS[name]: name for name in FACTORS if FACTORS[name] in tensors}
    scaling: dict[str, Any] = {"rope_type": kind} if found else {"rope_type": kind, "factor": factor}
    for tensor, name in found.items():
        scaling[name] = [float(str(x)) for x in np.asarray(tensors[tensor].numbers(), np.float32).reshape(-1)]
    scaling |= {name: value(keys, f"rope.scaling.{key}") for key, name in names.items()}
    return _completed({name: known for name, known in scaling.items() if known is not None})


def _kind(keys: Keys, tensors: dict[str, Tensor]) -> tuple[str, float]:
    """(rope.scaling.type, factor), "none" where the factor changes nothing."""
    kind, factor = keys.typed("rope.scaling.type", str), number(keys, "rope.scaling.factor", 0.0)
    if kind in (None, "none") and any(name in tensors for name in FACTORS.values()):
        return "longrope", factor  # a converter may leave it to the tensors to say so
    if kind is None:  # llama.cpp takes it for linear
        kind, factor = "linear", factor or number(keys, "rope.scale_linear", 0.0)
    keys.skip("rope.scale_linear")  # the older spelling counts only where there is no other
    if kind == "linear" and factor in (0.0, 1.0):
        return "none", 1.0
    return kind, factor


def _completed(scaling: dict[str, Any]) -> dict[str, Any]:
    """What a converter leaves out, or writes in another sense than transformers reads it."""
    if scaling.get("mscale_all_dim"):  # llama.cpp takes mscale for 1
        scaling["mscale"] = 1.0
    if scaling["rope_type"] == "yarn" and scaling.get("attention_factor") == 1:
        del scaling["attention_factor"]  # times the usual one, in configurations that call it attn_factor
    return scaling


def _llama3(keys: Keys, stored: Tensor) -> dict[str, Any]:
    """The llama3 parameters whose divisors are those in rope_freqs.weight [d/2], or UnsupportedModel.

    Every Llama 3.x was released with low 1, high 4 and length 8192; the factor alone differs."""
    divisors = np.asarray(stored.numbers(), np.float64).reshape(-1)
    low, high, length, factor = 1.0, 4.0, 8192, float(divisors.max())
    theta = number(keys, "rope.freq_base", 10000.0)
    with np.errstate(all="ignore"):  # what is not a number does not match either
        wavelength = 2 * np.pi * theta ** (np.arange(len(divisors)) / len(divisors))
        smooth = np.clip((length / wavelength - low) / (high - low), 0, 1)
        expected = 1 / ((1 - smooth) / factor + smooth)
    if not np.allclose(divisors, expected, rtol=1e-4):
        raise UnsupportedModel(f"{keys.name}: tensor {FREQS}: expected the divisors of Llama 3's RoPE scaling")
    return {
        "rope_type": "llama3",
        "factor": float(np.float32(factor)),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }
