"""NVIDIA's ModelOpt: FP8 matrices with one scale, and NVFP4.

    weight [N, K] F8_E4M3    weight_scale F32, a factor
    weight [N, K / 2] U8     weight_scale [N, K / 16] F8_E4M3 and weight_scale_2 F32, both factors

The settings are in config.json or, under "quantization", in hf_quant_config.json.
"""

from __future__ import annotations

import re

from ...keys import Keys
from ..quantised import Quantised
from .bytewise import bytewise
from .fp4 import nvfp4
from .fp8 import Fp8
from .method import Method
from .module import Module

ALGORITHMS = ("FP8", "NVFP4")


class ModelOpt(Method):
    """quant_method "modelopt"."""

    about = "`quant_algo` FP8 and NVFP4"
    refused = "other algorithms; `pre_quant_scale`"
    entries = ("weight", "weight_scale", "weight_scale_2")
    types = ("F8_E4M3", "U8")
    ignored = Fp8.ignored
    harmless = re.compile(
        r"ignore|exclude_modules|kv_cache_scheme|kv_cache_quant_algo|producer(\..*)?|config_groups|(quantization\.)?("
        r"exclude_modules|kv_cache_quant_algo)",
        re.ASCII,
    )
    activations = True

    def __init__(self, keys: Keys) -> None:
        inner = keys.inner("quantization") if "quantization" in keys else keys
        algorithm = inner.get("quant_algo")
        if algorithm not in ALGORITHMS:
            inner.unsupported("quant_algo", " or ".join(ALGORITHMS), algorithm)
        inner.neutral("group_size", (None, 16))
        for key in ("has_zero_point", "pre_quant_scale"):
            inner.neutral(key, (False,))
        self._type = {"FP8": "F8_E4M3", "NVFP4": "U8"}[algorithm]

    def matrix(self, m: Module) -> Quantised:
        weight = m.array("weight", self._type)
        if self._type == "U8":
            return nvfp4(m, weight, "weight_scale_2", divides=False)
        return bytewise(m, "weight_scale", "", weight.shape)
