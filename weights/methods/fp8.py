"""FP8 weights (E4M3) of Qwen, DeepSeek, Mistral and others: a scale for a block of 128 x 128, a row or a tensor.

    weight [N, K] F8_E4M3    weight_scale_inv, or weight_scale

Both are factors, whatever the name: w = scale weight. Blocks at the end may be cut off by N and K.
"""

from __future__ import annotations

import re

from ...keys import Keys
from .bytewise import Bytewise, block_size, bytewise
from .method import Method
from .module import Module

_SCALES = ("weight_scale_inv", "weight_scale")


class Fp8(Method):
    """quant_method "fp8", "fbgemm_fp8"."""

    about = "E4M3 in blocks, per row or per tensor"
    refused = "E5M2"
    entries = ("weight", *_SCALES)
    types = ("F8_E4M3",)
    ignored = ("input_scale", "activation_scale", "input_scale_ub", "k_scale", "v_scale", "q_scale", "output_scale")
    harmless = re.compile(
        r"modules_to_not_convert|ignored_layers|activation_scheme|activation_scale_ub|scale_fmt|dequantize|lm_head"
        r"|kv_cache_scheme|\w*exclude\w*",
        re.ASCII,
    )
    activations = True

    def __init__(self, keys: Keys) -> None:
        keys.neutral("fmt", ("e4m3", "float8_e4m3fn"))
        size = keys.get("weight_block_size")
        self._block = block_size(size)
        if size is not None and self._block is None:
            keys.wrong("weight_block_size", "a list of two positive numbers", size)

    def matrix(self, m: Module) -> Bytewise:
        m.array("weight", *self.types)
        found = [suffix for suffix in _SCALES if suffix in m]
        if len(found) > 1:
            m.wrong(found[1], f"no such tensor beside {m.name}.{found[0]}", "one")
        return bytewise(m, found[0] if found else _SCALES[self._block is None], "", self._block)
