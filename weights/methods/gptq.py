"""GPTQ: codes in words along K, scales and zeros a group, from AutoGPTQ, GPTQModel and those that write their format.

    qweight [K bits / 32, N] int32   code(n, k) at bits (k bits) % 32 of word k bits / 32 of column n
    qzeros  [groups, N bits / 32]    z(n, g), packed along N; `gptq` (version 1) stores z - 1, `gptq_v2` z itself
    scales  [groups, N]              g_idx [K]: the group of each column, k / group_size where it is absent

w = scale (code - z). In version 1 the stored zero plus one may be 2^bits: it is not masked again. Columns in the order
of their activations (`desc_act`) have groups that are not neighbours: such a matrix has no planes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ...keys import Keys
from .method import Method, groups_of
from .module import FLOATS, Module
from .packed import Grouped, Rows, sharing, unpack, unpack_columns

BITS = (2, 4, 8)  # what divides a byte: of 3 bits, codes straddle words
VERSIONS = {"gptq": 1, "gptq_v2": 0}  # checkpoint_format: what is added to a stored zero
_SAME = {"bits": "wbits", "group_size": "q_group_size"}  # keys, and what older files call them


@dataclass(frozen=True)
class Matrix(Grouped):
    """One matrix of a GPTQ checkpoint."""

    qweight: np.ndarray = field(kw_only=True)
    qzeros: np.ndarray = field(kw_only=True)
    scales: np.ndarray = field(kw_only=True)
    added: int = field(kw_only=True)  # to a stored zero

    @cached_property
    def symmetric(self) -> bool:
        stored = unpack(self.qzeros, self.bits)[:, : self.rows]
        return bool((stored == (1 << (self.bits - 1)) - self.added).all())

    def _codes(self, at: Rows) -> np.ndarray:
        return unpack(self.qweight[:, at].T, self.bits)[:, : self.shape[1]]

    def _scales(self, at: Rows) -> np.ndarray:
        return self.scales[:, at].T

    def _zeros(self, at: Rows) -> np.ndarray:
        stored = unpack_columns(self.qzeros, self.bits, at)
        return stored.astype(np.int16) + np.int16(self.added) if self.bits == 8 else stored + np.uint8(self.added)


class Gptq(Method):
    """quant_method "gptq"."""

    about = (
        "2, 4 and 8 bits; `checkpoint_format` gptq (version 1) and gptq_v2; symmetric or not; `desc_act`; "
        "rules of `dynamic`"
    )
    refused = "3 bits; packed for Marlin and other kernels; `rotation`, `adapter`"
    entries = ("qweight", "qzeros", "scales", "g_idx")
    harmless = re.compile(
        r"damp_percent|damp_auto_increment|true_sequential|static_groups|sym|model_name_or_path|model_seqlen"
        r"|model_file_base_name|tokenizer|dataset|block_name_to_quantize|module_name_preceding_first_block|batch_size"
        r"|pad_token_id|use_exllama|disable_exllama|exllama_config|max_input_length|use_cuda_fp16|cache_block_outputs"
        r"|modules_in_block_to_quantize|inside_layer_modules|meta|backend|lm_head|mse|pack_impl|device|offload_\w+"
        r"|autoround_version|iters|lr|minmax_lr|nsamples|seqlen|low_gpu_mem_usage|gradient_accumulate_steps|enable_\w+"
        r"|act_group_aware|gptaq|foem|telemetry|fallback|hessian|method|format|checkpoint_format|\w+_vram_strategy\w*",
        re.ASCII,
    )

    def __init__(self, keys: Keys) -> None:
        for key in ("rotation", "adapter", "activation"):
            keys.neutral(key, (None,))
        keys.neutral("pack_dtype", ("int32", "torch.int32"))
        keys.neutral("is_marlin_format", (False,))
        keys.neutral("data_type", ("int",))
        version = keys.get("checkpoint_format", keys.get("format", "gptq"))
        if not isinstance(version, str) or version not in VERSIONS:
            keys.unsupported("checkpoint_format", " or ".join(VERSIONS), version)
        self._added = VERSIONS[version]
        self._ordered = keys.flag("desc_act", False)
        self._sizes = _sizes(keys)

    def matrix(self, m: Module) -> Matrix:
        qweight, qzeros = m.array("qweight", "I32"), m.array("qzeros", "I32")
        scales, g_idx = m.array("scales", *FLOATS), m.array("g_idx", "I32", dims=1) if "g_idx" in m else None
        n = qweight.shape[1]
        m.expect("scales", (len(scales), n), "as qweight has columns")
        sizes = [(b, k, g) for b, k, g in self._fitting(m, g_idx) if _misfit(m, b, k, g) is None]
        bits, k, group = sizes[0] if sizes else self._refuse(m, g_idx)
        if g_idx is None and self._ordered and group != k:
            m.wrong("qweight", f"{m.name}.g_idx beside it, as desc_act of quantization_config has it", "none")
        return Matrix(
            m.where, f"GPTQ {bits}-bit {sharing((1, group), (n, k))}", (n, k), m.nbytes, n,
            bits=bits, group=group, g_idx=None if g_idx is None else groups_of(m, "g_idx", g_idx, group),
            qweight=qweight, qzeros=qzeros, scales=scales, added=self._added,
        )  # fmt: skip

    def _fitting(self, m: Module, g_idx: np.ndarray | None) -> list[tuple[int, int, int]]:
        """(bits, K, group) of each of the configuration's sizes."""
        words = m.entries["qweight"].shape[0]
        columns = [words * 32 // bits if g_idx is None else len(g_idx) for bits, _ in self._sizes]
        return [(b, k, k if g == -1 else g) for (b, g), k in zip(self._sizes, columns, strict=True)]

    def _refuse(self, m: Module, g_idx: np.ndarray | None) -> Any:
        """The message of the first of the configuration's sizes."""
        suffix, expected = _misfit(m, *self._fitting(m, g_idx)[0]) or ("qweight", "")
        m.wrong(suffix, expected, f"shape {list(m.entries[suffix].shape)}")


def _misfit(m: Module, bits: int, k: int, group: int) -> tuple[str, str] | None:
    """Which entry has not the shape that these sizes ask for, and what was expected of it."""
    n, why = m.entries["qweight"].shape[1], f"as bits = {bits} and group_size = {group} of quantization_config have it"
    if k % group:
        return "qweight", f"a K that group_size = {group} divides, not {k},"
    wanted = {
        "qweight": (-(-k * bits // 32), n),
        "scales": (k // group, n),
        "qzeros": (k // group, -(-n * bits // 32)),
    }
    for suffix, shape in wanted.items():
        if m.entries[suffix].shape != shape:
            return suffix, f"shape {list(shape)} {why}"
    return None


def _sizes(keys: Keys) -> list[tuple[int, int]]:
    """(bits, group_size) of the configuration, then of each of its `dynamic` rules, which give some modules others.

    A rule of "-:" names modules that are not quantised, which their tensors show as well."""
    sizes = [_size(keys, None)]
    dynamic = keys.get("dynamic", {})
    if not isinstance(dynamic, dict):
        keys.wrong("dynamic", "an object of rules", dynamic)
    for pattern, rule in dynamic.items():
        if not pattern.startswith("-:"):
            inner = Keys(rule, f"{keys.name}: dynamic: {pattern[:80]!r}")
            inner.skip("sym", "desc_act", "mse", "damp_percent", "damp_auto_increment")
            sizes.append(_size(inner, sizes[0]))
            if unread := inner.unread():
                inner.unsupported(unread[0], "a key that is known", inner.get(unread[0]))
    return list(dict.fromkeys(sizes))


def _size(keys: Keys, default: tuple[int, int] | None) -> tuple[int, int]:
    bits, group = (keys.get(k, keys.get(old)) for k, old in _SAME.items())
    bits, group = (bits, group) if default is None else (bits or default[0], group or default[1])
    if type(bits) is not int or bits not in BITS:
        keys.unsupported("bits", " or ".join(map(str, BITS)), bits)
    if type(group) is not int or (group != -1 and not 0 < group < 1 << 31):
        keys.wrong("group_size", "-1 or a positive number", group)
    return bits, group
