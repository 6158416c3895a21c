"""Quantised safetensors made here, method by method: what a module's entries are, and the numbers they stand for.

A packer takes weights [N, K] float32 and gives (entries by suffix, numbers [N, K] float32). It goes the slow way, bit
by bit in Python integers, so that it shares nothing with the readers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from checkpoint_files import write_safetensors

from ostinato.weights.checkpoint import open_checkpoint

Entries = dict[str, np.ndarray]
Packer = Callable[[np.ndarray], tuple[Entries, np.ndarray]]
BF16, E4M3 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)
GROUP = 16


class Kind(NamedTuple):
    """One way to store a model."""

    pack: Packer
    config: dict[str, Any]  # quantization_config
    kind: str  # what the reader calls it, by a prefix
    key: str = "quantization_config"
    file: str = ""  # where the settings are, if not in config.json


def write_model(folder: Path, kind: Kind | None, source: Path) -> None:
    """A checkpoint with the matrices of the layers of another quantised; kind None: its plain float32 numbers."""
    with open_checkpoint(source) as ck:
        config, arrays = {**ck.config}, {}
        for name in ck.names():
            w = np.asarray(ck.tensor(name), "f4")
            matrix = kind is not None and w.ndim == 2 and "layers." in name
            stem = name.removesuffix(".weight")
            arrays |= {f"{stem}.{s}": a for s, a in kind.pack(w)[0].items()} if matrix and kind else {name: w}
    write_directory(folder, kind, config, arrays)


def write_directory(folder: Path, kind: Kind | None, config: dict[str, Any], arrays: Entries) -> None:
    """config.json with the settings of a kind, or these beside it; and the tensors."""
    folder.mkdir(exist_ok=True)
    if kind and kind.file:
        (folder / kind.file).write_text(json.dumps(kind.config))
    elif kind:
        config = {**config, kind.key: kind.config}
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", arrays)


# -- integers ------------------------------------------------------------------------------------------------------


def grid(w: np.ndarray, bits: int, of: np.ndarray, symmetric: bool, dtype: Any) -> tuple[np.ndarray, ...]:
    """Codes [N, K], zeros and scales [N, groups] of weights whose column k is of group of[k]."""
    groups, most = int(of.max()) + 1, 2**bits - 1
    low = np.stack([np.minimum(w[:, of == g].min(1), 0) for g in range(groups)], 1)
    high = np.stack([np.maximum(w[:, of == g].max(1), 0) for g in range(groups)], 1)
    if symmetric:
        high = np.maximum(high, -low)
        low = -high
    scales = ((high - low) / most).astype(dtype)
    s = scales.astype("f8")
    zeros = np.full(s.shape, 2 ** (bits - 1)) if symmetric else np.clip(np.rint(-low / s), 0, most).astype(int)
    codes = np.clip(np.rint(w / s[:, of]) + zeros[:, of], 0, most).astype(int)
    return codes, zeros, scales


def numbers(codes: np.ndarray, zeros: Any, scales: np.ndarray, of: Any) -> np.ndarray:
    """scale (code - zero), which float64 holds exactly, rounded once."""
    zeros = zeros[:, of] if isinstance(zeros, np.ndarray) else zeros
    return (scales.astype("f8")[:, of] * (np.asarray(codes, "f8") - zeros)).astype("f4")


def dense(values: np.ndarray, bits: int) -> np.ndarray:
    """Each row as one long number, its lowest bits first, cut into words.  [n, k] -> [n, ceil(k bits / 32)] int32"""
    words = -(-values.shape[1] * bits // 32)
    rows = [sum(int(v) << (bits * i) for i, v in enumerate(row)) for row in values]
    return np.array([[row >> (32 * i) & 0xFFFFFFFF for i in range(words)] for row in rows], "u4").view("i4")


def gptq(bits: int = 4, symmetric: bool = True, added: int = 1, group: int = GROUP, order: bool = False,
         dtype: Any = "f2", g_idx: bool = True) -> Packer:  # fmt: skip
    """added: what a reader adds to a stored zero. order: groups of columns that are not neighbours."""

    def pack(w: np.ndarray) -> tuple[Entries, np.ndarray]:
        k = w.shape[1]
        of = np.arange(k) // (k if group == -1 else group)
        of = np.random.default_rng(k).permutation(of) if order else of
        codes, zeros, scales = grid(w, bits, of, symmetric, dtype)
        zeros = np.maximum(zeros, added)
        stored = {"qweight": dense(codes, bits).T, "qzeros": dense(zeros.T - added, bits), "scales": scales.T}
        if g_idx:
            stored["g_idx"] = of.astype("i4")
        return stored, numbers(codes, zeros, scales, of)

    return pack


AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # the column in each nibble of a word


def awq(group: int = GROUP) -> Packer:
    def shuffled(values: np.ndarray) -> np.ndarray:
        return dense(values.reshape(len(values), -1, 8)[:, :, AWQ_ORDER].reshape(values.shape), 4)

    def pack(w: np.ndarray) -> tuple[Entries, np.ndarray]:
        of = np.arange(w.shape[1]) // (w.shape[1] if group == -1 else group)
        codes, zeros, scales = grid(w, 4, of, False, "f2")
        stored = {"qweight": shuffled(codes.T), "qzeros": shuffled(zeros.T), "scales": scales.T}
        return stored, numbers(codes, zeros, scales, of)

    return pack


def packed(bits: int = 4, symmetric: bool = True, group: int = GROUP, order: bool = False, old: bool = False,
           tensor: bool = False) -> Packer:  # fmt: skip
    """compressed-tensors' pack-quantized. old: zeros in bytes. tensor: one scale."""

    def pack(w: np.ndarray) -> tuple[Entries, np.ndarray]:
        n, k = w.shape
        of = np.arange(k) // (k if group == -1 else group)
        of = np.random.default_rng(k).permutation(of) if order else of
        if tensor:
            codes, zeros, scales = grid(w.reshape(1, -1), bits, np.zeros(n * k, int), True, BF16)
            codes, zeros, scales = codes.reshape(n, k), np.repeat(zeros, n, 0), np.repeat(scales, n, 0)
        else:
            codes, zeros, scales = grid(w, bits, of, symmetric, BF16)
        stored = {"weight_packed": dense(codes, bits), "weight_scale": scales[:1, 0] if tensor else scales,
                  "weight_shape": np.array(w.shape, "i8")}  # fmt: skip
        if not symmetric:
            bytes_ = (zeros - 2 ** (bits - 1)).astype("i1")
            stored["weight_zero_point"] = bytes_ if old else np.ascontiguousarray(dense(zeros.T, bits).T)
        if order:
            stored["weight_g_idx"] = of.astype("i4")
        return stored, numbers(codes, zeros, scales, of)

    return pack


# -- bytes ---------------------------------------------------------------------------------------------------------


def blocks(w: np.ndarray, block: tuple[int, int], most: float, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Scales of blocks, and the same for every number."""
    rows, columns = np.arange(w.shape[0]) // block[0], np.arange(w.shape[1]) // block[1]
    scales = np.zeros((rows[-1] + 1, columns[-1] + 1), "f8")
    np.maximum.at(scales, (rows[:, None], columns[None]), abs(w))
    scales = (scales / most).astype(dtype)
    return scales, scales[rows][:, columns].astype("f8")


def fp8(block: tuple[int, int] | str, suffix: str, dtype: Any = "f4", more: Entries | None = None) -> Packer:
    """block: rows and columns of one scale, or "tensor", "scalar" (a tensor's, without sizes), "row", "vector"."""

    def pack(w: np.ndarray) -> tuple[Entries, np.ndarray]:
        n, k = w.shape
        size = block if isinstance(block, tuple) else (n, k) if block in ("tensor", "scalar") else (1, k)
        scales, each = blocks(w, size, 448, dtype)
        codes = (w / each).astype(E4M3)
        shape = {"tensor": (1,), "scalar": (), "vector": (n,)}.get(str(block), scales.shape)
        stored = {"weight": codes, suffix: scales.reshape(shape), **(more or {})}
        return stored, (codes.astype("f8") * each).astype("f4")

    return pack


def int8(symmetric: bool = True, group: int = -1) -> Packer:
    """compressed-tensors' int-quantized."""

    def pack(w: np.ndarray) -> tuple[Entries, np.ndarray]:
        of = np.arange(w.shape[1]) // (w.shape[1] if group == -1 else group)
        codes, zeros, scales = grid(w, 8, of, symmetric, BF16)
        stored = {"weight": (codes - 128).astype("i1"), "weight_scale": scales}
        if not symmetric:
            stored["weight_zero_point"] = (zeros - 128).astype("i1")
        return stored, numbers(codes, zeros, scales, of)

    return pack


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def nvfp4(whole: str = "weight_global_scale", codes: str = "weight_packed", divides: bool = True) -> Packer:
    """whole: the scale of all, by which those of groups are divided or multiplied. codes: the entry that has them."""

    def pack(w: np.ndarray) -> tuple[Entries, np.ndarray]:
        factor = np.float32(2688 / abs(w).max())
        scales, _ = blocks(w, (1, 16), 6, "f8")
        scales, factor = (scales * factor).astype(E4M3), factor if divides else 1 / factor
        small = scales.astype("f4") / factor if divides else scales.astype("f4") * factor
        each = np.repeat(small, 16, 1).astype("f8")
        found = np.abs(abs(w / np.maximum(each, 1e-30))[..., None] - E2M1).argmin(-1) + np.where(w < 0, 8, 0)
        values = np.concatenate([E2M1, -E2M1])[found]
        stored = {codes: (found[:, ::2] | found[:, 1::2] << 4).astype("u1"), "weight_scale": scales,
                  whole: np.array([factor], "f4")}  # fmt: skip
        return stored, (values * each).astype("f4")

    return pack


TABLE = np.array([-1, -0.7, -0.52, -0.39, -0.28, -0.18, -0.09, 0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1], "f4")
NESTED = np.linspace(-1, 1, 256).astype("f4")


def nf4(block: int = 64, double: bool = False, kind: str = "nf4", nested: int = 256) -> Packer:
    def pack(w: np.ndarray) -> tuple[Entries, np.ndarray]:
        flat, of = w.reshape(-1), np.arange(w.size) // block
        absmax = np.array([abs(flat[of == b]).max() for b in range(of[-1] + 1)], "f4")
        state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": list(w.shape)}
        stored: Entries = {"weight.quant_map": TABLE, "weight.absmax": absmax}
        if double:
            mean, outer = absmax.mean(), np.arange(len(absmax)) // nested
            scales = np.array([abs(absmax[outer == b] - mean).max() for b in range(outer[-1] + 1)], "f4")
            of_table = (absmax - mean) / np.maximum(scales[outer], 1e-30)
            small = np.abs(of_table[:, None] - NESTED).argmin(1).astype("u1")
            absmax = NESTED[small] * scales[outer] + np.float32(mean)
            stored |= {"weight.absmax": small, "weight.nested_absmax": scales, "weight.nested_quant_map": NESTED}
            state |= {"nested_blocksize": nested, "nested_offset": float(mean), "nested_dtype": "float32"}
        codes = np.array([abs(x - TABLE * a).argmin() for x, a in zip(flat, absmax[of], strict=True)])
        stored["weight"] = (codes[::2] << 4 | codes[1::2]).astype("u1").reshape(-1, 1)
        stored[f"weight.quant_state.bitsandbytes__{kind}"] = np.frombuffer(json.dumps(state).encode(), "u1")
        return stored, (TABLE[codes] * absmax[of]).reshape(w.shape)

    return pack


def bnb_int8(w: np.ndarray) -> tuple[Entries, np.ndarray]:
    most = abs(w).max(1)
    codes = np.rint(w / most[:, None] * 127).astype("i1")
    scales = most * np.float32(1 / 127)
    stored = {"weight": codes, "SCB": most, "weight_format": np.zeros((), "u1")}
    return stored, codes * scales[:, None]


# -- all of them ---------------------------------------------------------------------------------------------------


def ct(pack: Packer, kind: str, form: str, weights: dict[str, Any], activations: bool = False,
       key: str = "quantization_config") -> Kind:  # fmt: skip
    """A kind of compressed-tensors, whose only group has these settings."""
    group = {"targets": ["Linear"], "weights": {"observer": "minmax", **weights},
             "input_activations": {"num_bits": 8, "dynamic": True} if activations else None}  # fmt: skip
    config = {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
              "config_groups": {"group_0": group}, "ignore": ["lm_head"]}  # fmt: skip
    return Kind(pack, config, f"compressed-tensors {kind}" if kind != "NVFP4" else kind, key)


def frozen(kind: Kind) -> Kind:
    """The same as files of 2024 say it: quantised, but of another status."""
    return kind._replace(config={**kind.config, "quantization_status": "frozen"})


def plus(pack: Packer, **more: Callable[[np.ndarray], np.ndarray]) -> Packer:
    """A packer with more entries, made of the weights."""

    def packed_(w: np.ndarray) -> tuple[Entries, np.ndarray]:
        entries, expected = pack(w)
        return {**entries, **{suffix: make(w) for suffix, make in more.items()}}, expected

    return packed_


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
W4: dict[str, Any] = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
W8: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
F8: dict[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
ASYM: dict[str, Any] = {"symmetric": False}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
OLD_AWQ = {"zero_point": True, "q_group_size": GROUP, "w_bit": 4, "version": "GEMM"}
AWQ = {"quant_method": "awq", "zero_point": True, "group_size": GROUP, "bits": 4, "version": "gemm"}
SMALL = (16, 32)  # a block of FP8

KINDS = {
    "gptq": Kind(gptq(), GPTQ, "GPTQ 4-bit g16"),
    "gptq asym": Kind(gptq(symmetric=False), {**GPTQ, "sym": False}, "GPTQ 4-bit g16"),
    "gptq v2": Kind(gptq(added=0, symmetric=False), {**GPTQ, "checkpoint_format": "gptq_v2"}, "GPTQ 4-bit"),
    "gptq v2 sym": Kind(gptq(added=0, g_idx=False), {**GPTQ, "checkpoint_format": "gptq_v2"}, "GPTQ 4-bit"),
    "gptq act-order": Kind(gptq(order=True, symmetric=False), {**GPTQ, "desc_act": True}, "GPTQ 4-bit"),
    "gptq 8 bits": Kind(gptq(8), {**GPTQ, "bits": 8}, "GPTQ 8-bit"),
    "gptq 8 bits asym": Kind(gptq(8, symmetric=False, dtype=BF16), {**GPTQ, "bits": 8}, "GPTQ 8-bit"),
    "gptq 8 bits act-order": Kind(gptq(8, order=True), {**GPTQ, "bits": 8}, "GPTQ 8-bit"),
    "gptq 2 bits": Kind(gptq(2, symmetric=False), {**GPTQ, "bits": 2}, "GPTQ 2-bit"),
    "gptq per row": Kind(gptq(group=-1), {**GPTQ, "group_size": -1}, "GPTQ 4-bit"),
    "gptq beside": Kind(gptq(g_idx=False), {"bits": 4, "group_size": GROUP}, "GPTQ", file="quantize_config.json"),
    "gptq dynamic": Kind(
        gptq(8, group=8), {**GPTQ, "dynamic": {"-:.*head": {}, "+:.*": {"bits": 8, "group_size": 8}}}, "GPTQ 8-bit g8"
    ),
    "awq": Kind(awq(), AWQ, "AWQ 4-bit g16"),
    "awq per row": Kind(awq(-1), {**AWQ, "group_size": -1}, "AWQ 4-bit"),
    "awq beside": Kind(awq(), OLD_AWQ, "AWQ", file="quant_config.json"),
    "ct w4a16": ct(packed(), "int4 g16", "pack-quantized", W4),
    "ct w4a16 asym": ct(packed(symmetric=False), "int4", "pack-quantized", W4 | ASYM),
    "ct w4a16 asym old": ct(packed(symmetric=False, old=True), "int4", "pack-quantized", W4 | ASYM),
    "ct w4a16 actorder": ct(packed(order=True), "int4", "pack-quantized", W4 | {"actorder": "group"}),
    "ct w4a16 no order": ct(plus(packed(), weight_g_idx=lambda w: np.full(w.shape[1], -1, "i4")), "int4 g16",
                            "pack-quantized", W4 | {"actorder": "group"}),
    "ct fp8 frozen": frozen(ct(plus(fp8("tensor", "weight_scale", BF16), weight_zero_point=lambda w: np.zeros(1, E4M3)),
                               "FP8 per tensor", "naive-quantized", F8 | {"strategy": "tensor"}, True)),
    "ct w8a16": ct(packed(8, group=-1), "int8", "pack-quantized", W8),
    "ct w8a16 asym": ct(packed(8, False, -1), "int8", "pack-quantized", W8 | ASYM),
    "ct w4a16 tensor": ct(packed(tensor=True, group=-1), "int4", "pack-quantized", W4 | {"strategy": "tensor"}),
    "ct fp8": ct(fp8("row", "weight_scale", BF16), "FP8 per row", "float-quantized", F8, True),
    "ct fp8 tensor": ct(
        fp8("tensor", "weight_scale", BF16, {"input_scale": np.ones(1, "f4")}), "FP8 per tensor", "float-quantized",
        F8 | {"strategy": "tensor"}, True,
    ),
    "ct fp8 block": ct(
        fp8(SMALL, "weight_scale", BF16), "FP8 16x32", "naive-quantized", 
        F8 | {"strategy": "block", "block_structure": list(SMALL)}, True, "compression_config",
    ),
    "ct w8a8": ct(int8(), "int8 per row", "int-quantized", W8, True),
    "ct w8a8 asym": ct(int8(False), "int8 per row", "int-quantized", W8 | ASYM, True),
    "ct w8a8 group": ct(int8(group=GROUP), "int8 g16", "int-quantized", W8 | {"strategy": "group", "group_size": 16}),
    "ct nvfp4": ct(
        nvfp4(), "NVFP4", "nvfp4-pack-quantized", F8 | {"num_bits": 4, "strategy": "tensor_group", "group_size": 16}
    ),
    "fp8 block": Kind(fp8(SMALL, "weight_scale_inv"), {**FP8, "weight_block_size": list(SMALL)}, "FP8 16x32"),
    "fp8 block bf16": Kind(fp8(SMALL, "weight_scale_inv", BF16), {**FP8, "weight_block_size": [16, 32]}, "FP8 16x32"),
    "fp8 row": Kind(fp8("row", "weight_scale"), {"quant_method": "fbgemm_fp8"}, "FP8 per row"),
    "fp8 vector": Kind(fp8("vector", "weight_scale"), FP8, "FP8 per row"),
    "fp8 tensor": Kind(fp8("scalar", "weight_scale", more={"input_scale": np.ones((), "f4")}), FP8, "FP8 per tensor"),
    "fp8 tensor inv": Kind(
        fp8("scalar", "weight_scale_inv", BF16, {"activation_scale": np.ones((), "f4")}),
        {**FP8, "activation_scheme": "static", "weight_block_size": None}, "FP8 per tensor",
    ),
    "modelopt fp8": Kind(
        fp8("scalar", "weight_scale", more={"input_scale": np.ones((), "f4")}),
        {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}, "FP8 per tensor",
    ),
    "modelopt nvfp4": Kind(
        nvfp4("weight_scale_2", "weight", False),
        {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16,
         "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}}, "NVFP4", file="hf_quant_config.json",
    ),
    "nf4": Kind(nf4(), BNB, "bitsandbytes nf4 b64"),
    "nf4 double": Kind(nf4(double=True, nested=16), BNB, "bitsandbytes nf4 b64"),
    "nf4 across rows": Kind(nf4(128), BNB, "bitsandbytes nf4 b128"),
    "fp4": Kind(nf4(kind="fp4"), BNB, "bitsandbytes fp4"),
    "bnb int8": Kind(bnb_int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes int8"),
}  # fmt: skip
