"""compressed-tensors, the files of llm-compressor: integers in words, or FP8, int8 and FP4 (NVFP4) numbers.

    weight_packed [N, ceil(K bits / 32)] int32   code + 2^(bits - 1), along K, lowest bits first
    weight_shape [2] int64                       N, K
    weight_scale [N, groups]                     one for a group, a row or the tensor; of bytes also for a block
    weight_zero_point                            of asymmetric ones; with weight_packed in words along N
    weight_g_idx [K] int32                       the group of each column, of files whose actorder is "group"
    weight [N, K] F8_E4M3 or I8                  in place of weight_packed
    weight_packed [N, K / 2] U8                  FP4, low half first; weight_scale F8_E4M3 [N, K / 16] and a divisor of
    weight_global_scale [1] F32                  all of them

w = scale (code - zero). Which modules are quantised, and how, is what their tensors show; each must be as one of the
`config_groups` has it. Activations are not quantised here, so that sums are more exact than the file asks for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ...keys import Keys
from ..quantised import Quantised
from .bytewise import TYPES, block_size, bytewise
from .fp4 import Fp4, nvfp4
from .method import Method, groups_of
from .module import FLOATS, Module
from .module import TYPES as ALL_TYPES
from .packed import Grouped, Rows, sharing, unpack, unpack_columns

FORMATS = ("pack-quantized", "float-quantized", "int-quantized", "naive-quantized", "nvfp4-pack-quantized")
STRATEGIES = ("tensor", "channel", "group", "block", "tensor_group")
ORDERED = ("group", "dynamic")  # the values of actorder that give a file weight_g_idx
ACTORDERS = (None, False, "weight", "static", *ORDERED)
_WEIGHTS = re.compile(r"observer(_kwargs)?|scale_dtype|zp_dtype|dynamic|is_mx", re.ASCII)  # keys that change nothing


class Scheme(NamedTuple):
    """How one of config_groups stores its weights."""

    bits: int
    floats: bool
    symmetric: bool
    strategy: str
    group: int  # of strategy "group"
    block: tuple[int, int] | None  # of strategy "block"
    ordered: bool  # groups are not neighbours: actorder "group"

    def shared(self, n: int, k: int) -> tuple[int, int]:
        """Rows and columns of [N, K] that share a scale."""
        return self.block or {"tensor": (n, k), "channel": (1, k)}.get(self.strategy, (1, self.group))


@dataclass(frozen=True)
class Matrix(Grouped):
    """A pack-quantized matrix."""

    packed: np.ndarray = field(kw_only=True)
    scales: np.ndarray = field(kw_only=True)  # [N, groups]
    zeros: np.ndarray | None = None  # [N bits / 32, groups] int32; of older files [N, groups] int8

    @cached_property
    def symmetric(self) -> bool:
        return self.zeros is None

    def _codes(self, at: Rows) -> np.ndarray:
        return unpack(self.packed[at], self.bits)[:, : self.shape[1]]

    def _scales(self, at: Rows) -> np.ndarray:
        return self.scales[at]

    def _zeros(self, at: Rows) -> np.ndarray:
        assert self.zeros is not None
        if self.zeros.dtype == np.int8:
            return self.zeros[at] + np.int16(1 << (self.bits - 1))
        return unpack_columns(self.zeros.T, self.bits, at)


class CompressedTensors(Method):
    """quant_method "compressed-tensors"."""

    about = (
        "pack-quantized of 4 and 8 bits, symmetric or not; float-quantized (FP8) and int-quantized (int8) per"
        " tensor, row, group or block; nvfp4-pack-quantized"
    )
    refused = "other formats and bits; sparse ones; `transform_config`"
    entries = ("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx",
               "weight_global_scale")  # fmt: skip
    types = tuple(TYPES)
    ignored = ("input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point",
               "k_scale", "v_scale", "q_scale", "k_zero_point", "v_zero_point", "q_zero_point")  # fmt: skip
    harmless = re.compile(r"ignore|global_compression_ratio|version|kv_cache_scheme|moe_sparsity_config", re.ASCII)

    def __init__(self, keys: Keys) -> None:
        keys.neutral("quantization_status", ("compressed", "frozen"))  # tensors show whether they are compressed
        keys.neutral("transform_config", (None, {}))
        sparse = keys.get("sparsity_config") or {}
        if not isinstance(sparse, dict) or sparse.get("format", "dense") != "dense":
            keys.unsupported("sparsity_config", "none, or format dense", sparse)
        whole = keys.get("format", "mixed-precision")
        if whole != "mixed-precision":
            _known_format(keys, whole)
        groups = keys.get("config_groups")
        if not isinstance(groups, dict) or not groups:
            keys.wrong("config_groups", "an object of groups", groups)
        self._schemes: list[Scheme] = []
        for name in groups:
            self._read_group(keys.inner("config_groups").inner(name))

    def _read_group(self, group: Keys) -> None:
        if group.get("format") is not None:
            _known_format(group, group.get("format"))
        group.skip("targets")
        for key in ("input_activations", "output_activations"):
            self.activations |= group.get(key) is not None
        if group.get("weights") is not None:
            self._schemes.append(_scheme(group.inner("weights")))

    def matrix(self, m: Module) -> Quantised:
        if "weight_packed" not in m:
            return self._bytes(m)
        packed = m.array("weight_packed", "I32", "U8")
        return self._fp4(m, packed) if packed.dtype == np.uint8 else self._words(m, packed)

    def _words(self, m: Module, packed: np.ndarray) -> Matrix:
        n, k = _shape(m)
        scales = m.array("weight_scale", *FLOATS, dims=None)
        scheme = self._fitting(m, [_words_misfit(m, s, n, k) for s in self._schemes])
        rows, group = scheme.shared(n, k)
        scales = scales.reshape(-1, 1 if rows > 1 else k // group)
        zeros = None if scheme.symmetric else m.array("weight_zero_point", "I32", "I8")
        g_idx = m.array("weight_g_idx", "I32", dims=1) if "weight_g_idx" in m else None
        if g_idx is not None:
            m.expect("weight_g_idx", (k,))
            # all -1: the matrix was quantised without an order
            g_idx = None if (g_idx == -1).all() else groups_of(m, "weight_g_idx", g_idx, group)
        return Matrix(
            m.where, f"compressed-tensors int{scheme.bits} {sharing((rows, group), (n, k))}", (n, k), m.nbytes, n,
            bits=scheme.bits, group=group, g_idx=g_idx, packed=packed,
            scales=np.broadcast_to(scales, (n, scales.shape[1])), zeros=zeros,
        )  # fmt: skip

    def _bytes(self, m: Module) -> Quantised:
        n, k = m.array("weight", *TYPES).shape
        m.array("weight_scale", *FLOATS, dims=None)
        scheme = self._fitting(m, [_bytes_misfit(m, s) for s in self._schemes])
        zeros = None
        if not scheme.symmetric:
            zeros = m.array("weight_zero_point", "I8", dims=None).reshape(n, -1)
        return bytewise(m, "weight_scale", "compressed-tensors ", scheme.shared(n, k), zeros)

    def _fp4(self, m: Module, packed: np.ndarray) -> Fp4:
        other = "weight_packed", "type I32", "U8"
        self._fitting(m, [None if s.floats and s.bits == 4 else other for s in self._schemes])
        return nvfp4(m, packed, "weight_global_scale", divides=True)

    def _fitting(self, m: Module, misfits: list[tuple[str, str, str] | None]) -> Scheme:
        """The scheme whose misfit is None; CheckpointError with the first misfit if there is no such scheme.

        A misfit is (entry, expected, found)."""
        if None in misfits:
            return self._schemes[misfits.index(None)]
        none = next(iter(m.entries)), "no quantised tensor, as no group of config_groups has weights", "one"
        m.wrong(*next((misfit for misfit in misfits if misfit), none))


def _known_format(keys: Keys, value: Any) -> None:
    if value not in FORMATS:
        keys.unsupported("format", ", ".join(FORMATS), value)


def _scheme(keys: Keys) -> Scheme:
    kind, bits = keys.get("type", "int"), keys.get("num_bits", 8)
    if kind not in ("int", "float"):
        keys.unsupported("type", "int or float", kind)
    if type(bits) is not int or bits not in (4, 8):
        keys.unsupported("num_bits", "4 or 8", bits)
    group, size, strategy = keys.get("group_size"), keys.get("block_structure"), keys.get("strategy")
    if strategy is None:
        strategy = "tensor" if group is None else "channel" if group == -1 else "group"
    if strategy not in STRATEGIES:
        keys.unsupported("strategy", ", ".join(STRATEGIES), strategy)
    if strategy == "group" and (type(group) is not int or not 0 < group < 1 << 31):
        keys.wrong("group_size", "a positive number", group)
    block = block_size(size)
    if strategy == "block" and block is None:
        keys.wrong("block_structure", "a list of two positive numbers", size)
    order = keys.get("actorder")
    if order not in ACTORDERS:
        keys.unsupported("actorder", "weight, static, group or dynamic", order)
    keys.skip(*(key for key in keys.values if _WEIGHTS.fullmatch(key)))
    return Scheme(
        bits, kind == "float", keys.flag("symmetric", True), strategy,
        group=group if strategy == "group" and type(group) is int else 0, block=block if strategy == "block" else None,
        ordered=order in ORDERED and strategy == "group",
    )  # fmt: skip


def _shape(m: Module) -> tuple[int, int]:
    """N and K by weight_shape, held against weight_packed."""
    sizes = m.array("weight_shape", "I64", dims=1)
    m.expect("weight_shape", (2,))
    n, k = (int(size) for size in sizes)
    rows, words = m.entries["weight_packed"].shape
    if n != rows or not 0 < k <= 8 * words:
        m.wrong("weight_shape", f"{rows} and at most {8 * words}, which weight_packed holds", f"{n} and {k}")
    return n, k


def _words_misfit(m: Module, s: Scheme, n: int, k: int) -> tuple[str, str, str] | None:
    """What a pack-quantized module has that the scheme has not: (entry, expected, found)."""
    if s.floats:
        return "weight_packed", "FP8 or FP4 numbers, as config_groups have type float", "int32 words"
    rows, group = s.shared(n, k)
    if k % group:
        return "weight_shape", f"a K that group_size = {group} divides", str(k)
    wanted: dict[str, list[tuple[int, ...]]] = {"weight_packed": [(n, -(-k * s.bits // 32))]}
    wanted["weight_scale"] = [(n, k // group)] if rows == 1 else [(1,), (1, 1), ()]
    if s.ordered:
        wanted["weight_g_idx"] = [(k,)]
    if not s.symmetric:
        old = "weight_zero_point" in m and m.entries["weight_zero_point"].kind == "I8"
        wanted["weight_zero_point"] = [(n if old else -(-n * s.bits // 32), k // group)]
    return _misfit(m, s, wanted)


def _bytes_misfit(m: Module, s: Scheme) -> tuple[str, str, str] | None:
    """The same of a module of one byte a number; what its scales must be, bytewise says."""
    n, k = m.entries["weight"].shape
    kind = "F8_E4M3" if s.floats else "I8"
    if m.entries["weight"].kind != kind or s.bits != 8:
        return "weight", f"type {kind}, as config_groups have num_bits {s.bits}", m.entries["weight"].kind
    rows, columns = s.shared(n, k)
    shape = -(-n // rows), -(-k // columns)
    same = [shape, *([(shape[0],)] if shape[1] == 1 else []), *([()] if shape == (1, 1) else [])]
    return _misfit(m, s, {"weight_scale": same} | ({} if s.symmetric else {"weight_zero_point": same}))


def _misfit(m: Module, s: Scheme, wanted: dict[str, list[tuple[int, ...]]]) -> tuple[str, str, str] | None:
    order = ", actorder group" if s.ordered else ""
    why = f"as num_bits = {s.bits}, strategy {s.strategy}{order} of config_groups have it"
    for suffix, shapes in wanted.items():
        if suffix not in m:
            return "weight_scale", f"{m.name}.{suffix} beside it, {why}", "none"
        if m.entries[suffix].shape not in shapes:
            return suffix, f"shape {list(shapes[0])} {why}", str(list(m.entries[suffix].shape))
    if s.symmetric and "weight_zero_point" in m:
        zeros = m.array("weight_zero_point", *ALL_TYPES, dims=None)
        if np.any(zeros):  # older files keep those of symmetric matrices, all 0, in one type or another
            return "weight_zero_point", "zeros, as config_groups have symmetric", str(zeros[zeros != 0][0])
    return None
