"""AWQ as AutoAWQ's "gemm" version stores it: 4-bit codes in words along N, in an order of their own.

    qweight [K, N / 8] int32    qzeros [groups, N / 8]    scales [groups, N]

Of the eight columns of a word, nibble p (bits 4 p) holds column [0, 2, 4, 6, 1, 3, 5, 7][p]. w = scale (code - z).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ...keys import Keys
from .method import Method
from .module import FLOATS, Module
from .packed import Grouped, Rows, sharing, unpack, unpack_columns

PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # the nibble of each of the eight columns of a word


@dataclass(frozen=True)
class Matrix(Grouped):
    """One matrix of an AWQ checkpoint."""

    qweight: np.ndarray = field(kw_only=True)
    qzeros: np.ndarray = field(kw_only=True)
    scales: np.ndarray = field(kw_only=True)

    @cached_property
    def symmetric(self) -> bool:
        return bool((unpack(self.qzeros, 4) == 8).all())

    def _codes(self, at: Rows) -> np.ndarray:
        return unpack_columns(self.qweight, 4, at, PLACES)

    def _scales(self, at: Rows) -> np.ndarray:
        return self.scales[:, at].T

    def _zeros(self, at: Rows) -> np.ndarray:
        return unpack_columns(self.qzeros, 4, at, PLACES)


class Awq(Method):
    """quant_method "awq"."""

    about = "4 bits, version gemm"
    refused = "versions gemv and marlin; `zero_point` false"
    entries = ("qweight", "qzeros", "scales")
    harmless = re.compile(
        r"modules_to_not_convert|backend|do_fuse|fuse_max_seq_len|modules_to_fuse|exllama_config|sym|desc_act|lm_head"
        r"|meta|method|format|damp_\w+|true_sequential|\w+_vram_strategy\w*|model_seqlen|pack_impl|offload_\w+",
        re.ASCII,
    )

    def __init__(self, keys: Keys) -> None:
        bits = keys.get("bits", keys.get("w_bit", 4))
        if bits != 4:
            keys.unsupported("bits", "4", bits)
        keys.neutral("zero_point", (True,))
        keys.neutral("dynamic", (None, {}))
        keys.neutral("pack_dtype", ("int32", "torch.int32"))
        version = keys.get("version", keys.get("checkpoint_format", "gemm"))
        if not isinstance(version, str) or version.lower() != "gemm":
            keys.unsupported("version", "gemm", version)
        self._group = keys.get("group_size", keys.get("q_group_size", 128))
        if type(self._group) is not int or (self._group != -1 and not 0 < self._group < 1 << 31):
            keys.wrong("group_size", "-1 or a positive number", self._group)

    def matrix(self, m: Module) -> Matrix:
        qweight, qzeros, scales = m.array("qweight", "I32"), m.array("qzeros", "I32"), m.array("scales", *FLOATS)
        k, words = qweight.shape
        group = k if self._group == -1 else self._group
        if k % group:
            m.wrong("qweight", f"a K that group_size = {group} divides", k)
        why = f"as bits = 4 and group_size = {group} of quantization_config have it"
        m.expect("scales", (k // group, 8 * words), why)
        m.expect("qzeros", (k // group, words), why)
        return Matrix(
            m.where, f"AWQ 4-bit {sharing((1, group), (8 * words, k))}", (8 * words, k), m.nbytes, 8 * words,
            bits=4, group=group, qweight=qweight, qzeros=qzeros, scales=scales,
        )  # fmt: skip
