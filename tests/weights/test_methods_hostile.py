"""Quantised safetensors that are damaged, contradict themselves or ask for what is not known: refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import entry, refused, safetensors, write_safetensors
from packers import BF16, E4M3, KINDS, Entries, write_directory

from ostinato.errors import CheckpointError, UnsupportedModel
from ostinato.weights.checkpoint import open_checkpoint

SHAPE = (32, 64)


def directory(
    folder: Path, kind: str, config: dict[str, Any] | None = None, changes: dict[str, Any] | None = None
) -> Path:
    """A checkpoint of one module x of a kind, some keys of whose settings and some of whose entries are changed: None
    removes an entry and ... a key, a function gets the entry."""
    w = np.random.default_rng(0).standard_normal(SHAPE).astype("f4")
    entries: Entries = dict(KINDS[kind].pack(w)[0])
    for suffix, change in (changes or {}).items():
        value = change(entries[suffix].copy()) if callable(change) else change
        entries = {k: v for k, v in {**entries, suffix: value}.items() if v is not None}
    settings = {k: v for k, v in {**KINDS[kind].config, **(config or {})}.items() if v is not ...}
    write_directory(folder, KINDS[kind]._replace(config=settings), {}, {f"x.{s}": a for s, a in entries.items()})
    return folder


def read(folder: Path) -> None:
    with open_checkpoint(folder) as ck:
        ck.tensor("x.weight")


def put(value: Any, at: Any = (2, 1)) -> Callable[[np.ndarray], np.ndarray]:
    """Change one number of an entry."""

    def change(array: np.ndarray) -> np.ndarray:
        array[at] = value
        return array

    return change


def fewer(rows: int = 1, columns: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    return lambda a: a[: len(a) - rows, : a.shape[1] - columns] if a.ndim == 2 else a[: len(a) - rows]


def g_idx(**at: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        for place, value in at.items():
            array[int(place[1:])] = value
        return array

    return change


def state(**keys: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda a: np.frombuffer(json.dumps({**json.loads(a.tobytes()), **keys}).encode(), "u1")


STATE = "weight.quant_state.bitsandbytes__nf4"
NO_NUMBERS = {"NaN": np.nan, "infinite": np.inf, "minus infinite": -np.inf}
NAN8 = np.array([0x7F, 0xFF], "u1").view(E4M3)
HUGE = np.array([2**62, 2**62], "i8")
DAMAGED = [
    # GPTQ
    ("gptq", {"qzeros": None}, ["x.qzeros", "missing"]),
    ("gptq", {"scales": None}, ["x.scales", "missing"]),
    ("gptq", {"qweight": None}, ["x.qweight", "missing"]),
    ("gptq", {"qweight": lambda a: a.astype("f4")}, ["x.qweight", "I32", "F32"]),
    ("gptq", {"scales": lambda a: a.astype("i4")}, ["x.scales", "F16", "I32"]),
    ("gptq", {"qweight": lambda a: a.reshape(-1)}, ["x.qweight", "a matrix", "[256]"]),
    ("gptq", {"scales": fewer(0, 1)}, ["x.scales", "[4, 32]", "[4, 31]"]),
    ("gptq", {"scales": fewer(1)}, ["x.scales", "[4, 32]", "[3, 32]", "group_size = 16"]),
    ("gptq", {"qzeros": fewer(0, 1)}, ["x.qzeros", "[4, 4]", "[4, 3]", "bits = 4"]),
    ("gptq", {"qweight": fewer(1)}, ["x.qweight", "[8, 32]", "[7, 32]"]),
    ("gptq", {"g_idx": g_idx(_5=4)}, ["x.g_idx", "from 0 to 3", "4 at column 5"]),
    ("gptq", {"g_idx": g_idx(_63=-1)}, ["x.g_idx", "from 0 to 3", "-1 at column 63"]),
    ("gptq", {"g_idx": g_idx(_5=2**31 - 1)}, ["x.g_idx", "2147483647 at column 5"]),
    ("gptq", {"g_idx": g_idx(_5=3)}, ["x.g_idx", "16 columns in every group", "15 in group 0"]),
    ("gptq", {"g_idx": lambda a: a[:-8]}, ["x.qweight", "a K that group_size = 16 divides"]),
    ("gptq", {"g_idx": lambda a: a[:48]}, ["x.qweight", "[6, 32]", "[8, 32]"]),
    ("gptq", {"g_idx": lambda a: a.astype("i8")}, ["x.g_idx", "I32", "I64"]),
    ("gptq", {"weight": np.ones(SHAPE, "f4")}, ["x.weight", "no such tensor beside"]),
    *(("gptq", {"scales": put(v)}, ["x.weight", "scales of row 1, place 2", "finite"]) for v in NO_NUMBERS.values()),
    *(("gptq act-order", {"scales": put(v)}, ["x.weight", "scales of row 1, place 2"]) for v in NO_NUMBERS.values()),
    ("gptq 8 bits", {"qweight": fewer(8)}, ["x.qweight", "bits = 8"]),
    # AWQ
    ("awq", {"qzeros": None}, ["x.qzeros", "missing"]),
    ("awq", {"scales": None}, ["x.scales", "missing"]),
    ("awq", {"qweight": fewer(8)}, ["x.qweight", "group_size = 16 divides", "56"]),
    ("awq", {"scales": fewer(0, 8)}, ["x.scales", "[4, 32]", "[4, 24]"]),
    ("awq", {"qzeros": fewer(1)}, ["x.qzeros", "[4, 4]", "[3, 4]"]),
    *(("awq", {"scales": put(v)}, ["x.weight", "scales of row 1, place 2"]) for v in NO_NUMBERS.values()),
    # compressed-tensors
    ("ct w4a16", {"weight_scale": None}, ["x.weight_scale", "missing"]),
    ("ct w4a16", {"weight_shape": None}, ["x.weight_shape", "missing"]),
    ("ct w4a16", {"weight_packed": None}, ["x.weight", "missing"]),
    ("ct w4a16", {"weight_shape": HUGE}, ["x.weight_shape", str(2**62)]),
    ("ct w4a16", {"weight_shape": np.array([32, -64])}, ["x.weight_shape", "32 and -64"]),
    ("ct w4a16", {"weight_shape": np.array([64, 32])}, ["x.weight_shape", "64 and 32"]),
    ("ct w4a16", {"weight_shape": np.array([32, 64, 1])}, ["x.weight_shape", "[2]", "[3]"]),
    ("ct w4a16", {"weight_shape": np.array([32, 40])}, ["x.weight_shape", "group_size = 16 divides", "40"]),
    ("ct w4a16", {"weight_shape": np.array([32, 48])}, ["x.weight_packed", "[32, 6]", "[32, 8]"]),
    ("ct w4a16", {"weight_scale": fewer(0, 1)}, ["x.weight_scale", "[32, 4]", "[32, 3]"]),
    ("ct w4a16", {"weight_scale": lambda a: a[..., None]}, ["x.weight_scale", "[32, 4]", "[32, 4, 1]"]),
    ("ct w4a16", {"weight_zero_point": np.ones((4, 4), "i4")}, ["x.weight_zero_point", "symmetric"]),
    ("ct w4a16", {"weight": np.ones(SHAPE, "f4")}, ["x.weight", "no such tensor of a compressed-tensors int4"]),
    ("ct w4a16", {"weight_g_idx": np.full(64, 9, "i4")}, ["x.weight_g_idx", "from 0 to 3", "9 at column 0"]),
    ("ct w4a16", {"weight_g_idx": np.zeros(60, "i4")}, ["x.weight_g_idx", "[64]", "[60]"]),
    ("ct w4a16 asym", {"weight_zero_point": None}, ["x.weight_zero_point", "none"]),
    ("ct w4a16 asym", {"weight_zero_point": fewer(1)}, ["x.weight_zero_point", "[4, 4]", "[3, 4]"]),
    ("ct w8a16", {"weight_packed": fewer(0, 8)}, ["x.weight_packed", "[32, 16]", "[32, 8]"]),
    ("ct fp8", {"weight_scale": None}, ["x.weight_scale", "missing"]),
    ("ct fp8", {"weight_scale": fewer(1)}, ["x.weight_scale", "[32, 1]", "[31, 1]"]),
    ("ct fp8", {"weight": lambda a: a.view("i1")}, ["x.weight", "F8_E4M3", "I8"]),
    ("ct fp8", {"weight": lambda a: a.astype(BF16)}, ["x.weight", "F8_E4M3 or I8", "BF16"]),
    ("ct w8a8", {"weight": lambda a: a.view(E4M3)}, ["x.weight", "I8", "F8_E4M3"]),
    *(("ct fp8", {"weight": put(v)}, ["x.weight", "codes of row 2, place 1", "NaN"]) for v in NAN8),
    *(("ct w8a8", {"weight_scale": put(v, 3)}, ["x.weight", "scales of row 3"]) for v in NO_NUMBERS.values()),
    *(("ct w4a16", {"weight_scale": put(v)}, ["x.weight", "scales of row 2, place 1"]) for v in NO_NUMBERS.values()),
    ("ct nvfp4", {"weight_global_scale": np.zeros(1, "f4")}, ["x.weight", "scales of row 0"]),
    ("ct nvfp4", {"weight_global_scale": np.ones(2, "f4")}, ["x.weight_global_scale", "one number", "2"]),
    ("ct nvfp4", {"weight_global_scale": None}, ["x.weight_global_scale", "missing"]),
    ("ct nvfp4", {"weight_scale": put(NAN8[0])}, ["x.weight", "scales of row 2, place 1"]),
    ("ct nvfp4", {"weight_scale": fewer(0, 1)}, ["x.weight_scale", "[32, 4]", "[32, 3]"]),
    ("ct nvfp4", {"weight_packed": lambda a: a.view("i4")}, ["x.weight_shape", "missing"]),
    ("ct nvfp4", {"weight_packed": fewer(0, 2)}, ["x.weight_scale", "16 divides", "60"]),
    ("modelopt nvfp4", {"weight_scale_2": np.array([np.nan], "f4")}, ["x.weight", "scales of row 0"]),
    ("modelopt nvfp4", {"weight_scale_2": None}, ["x.weight_scale_2", "missing"]),
    ("modelopt fp8", {"weight_scale": np.ones(2, "f4")}, ["x.weight_scale", "32 x 64", "[2]"]),
    ("modelopt fp8", {"weight_scale": None}, ["x.weight_scale", "missing"]),
    # FP8
    ("fp8 block", {"weight_scale_inv": None}, ["x.weight_scale_inv", "missing"]),
    ("fp8 block", {"weight_scale_inv": fewer(1)}, ["x.weight_scale_inv", "[2, 2]", "[1, 2]", "16 x 32"]),
    ("fp8 block", {"weight_scale_inv": lambda a: a.T.copy()[:, :1]}, ["x.weight_scale_inv", "[2, 2]", "[2, 1]"]),
    ("fp8 block", {"weight": lambda a: a.astype("f2")}, ["x.weight", "F8_E4M3", "F16"]),
    ("fp8 block", {"weight": None}, ["x.weight", "missing"]),
    ("fp8 block", {"weight_scale": np.ones(1, "f4")}, ["x.weight_scale", "beside x.weight_scale_inv"]),
    ("fp8 vector", {"weight_scale": fewer(2)}, ["x.weight_scale", "each of 32 rows", "[30]"]),
    *(("fp8 block", {"weight": put(v)}, ["x.weight", "codes of row 2, place 1", "NaN"]) for v in NAN8),
    *(("fp8 block", {"weight_scale_inv": put(v, (1, 1))}, ["scales of row 16"]) for v in NO_NUMBERS.values()),
    *(("fp8 tensor", {"weight_scale": put(v, ())}, ["x.weight", "scales of row 0"]) for v in NO_NUMBERS.values()),
    # bitsandbytes
    ("nf4", {"weight.absmax": None}, ["x.weight.absmax", "missing"]),
    ("nf4", {"weight.quant_map": None}, ["x.weight.quant_map", "missing"]),
    ("nf4", {STATE: None}, [f"x.{STATE}", "missing"]),
    ("nf4", {STATE.replace("nf4", "fp4"): np.ones(3, "u1")}, ["bitsandbytes__fp4", "beside"]),
    ("nf4", {"weight": None}, ["x.weight", "missing"]),
    ("nf4", {"weight": fewer(1)}, ["x.weight", "half a byte", "1023 bytes"]),
    ("nf4", {"weight.absmax": fewer(1)}, ["x.weight.absmax", "[32]", "[31]", "64"]),
    ("nf4", {"weight.quant_map": fewer(1)}, ["x.weight.quant_map", "[16]", "[15]"]),
    ("nf4", {"weight.quant_map": put(np.nan, 3)}, ["x.weight.quant_map", "finite", "nan"]),
    ("nf4", {STATE: lambda a: a[:-1]}, [STATE, "JSON"]),
    ("nf4", {STATE: state(shape=[2**62, 64])}, ["quant_state", "shape", str(2**62)]),
    ("nf4", {STATE: state(shape=[64, 64])}, ["x.weight", "[64, 64]", "1024 bytes"]),
    ("nf4", {STATE: state(shape=[32, 64, 1])}, ["quant_state", "shape"]),
    ("nf4", {STATE: state(blocksize=0)}, ["quant_state", "blocksize", "0"]),
    ("nf4", {STATE: state(blocksize=True)}, ["quant_state", "blocksize"]),
    ("nf4 double", {STATE: state(nested_offset=float("nan"))}, ["quant_state", "nested_offset"]),
    ("nf4 double", {STATE: state(nested_offset="1")}, ["quant_state", "nested_offset", "'1'"]),
    ("nf4 double", {STATE: state(nested_blocksize=1)}, ["x.weight.nested_absmax", "[32]"]),
    ("nf4 double", {"weight.nested_absmax": put(np.inf, 0)}, ["x.weight.nested_absmax", "finite", "inf"]),
    ("nf4 double", {"weight.nested_quant_map": fewer(1)}, ["x.weight.nested_quant_map", "[256]", "[255]"]),
    ("nf4 double", {"weight.absmax": lambda a: a.astype("f4")}, ["x.weight.absmax", "U8", "F32"]),
    *(("nf4", {"weight.absmax": put(v, 5)}, ["x.weight", "absmax of row 5"]) for v in NO_NUMBERS.values()),
    ("bnb int8", {"SCB": fewer(1)}, ["x.SCB", "[32]", "[31]"]),
    ("bnb int8", {"SCB": put(np.nan, 4)}, ["x.weight", "scales of row 4"]),
    ("bnb int8", {"weight_format": np.array(3, "u1")}, ["x.weight_format", "[3]"]),
]


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [pytest.param(*c, id=f"{c[0]}, {i}: {', '.join(c[1])}") for i, c in enumerate(DAMAGED)],
)
def test_damaged_entries_are_refused(tmp_path: Path, kind: str, changes: dict[str, Any], words: list[str]) -> None:
    folder = directory(tmp_path, kind, changes=changes)
    refused(lambda: read(folder), str(tmp_path), *words)


GROUP0 = KINDS["ct w4a16"].config["config_groups"]["group_0"]


def group(key: str = "", value: Any = None, **weights: Any) -> dict[str, Any]:
    """config_groups with one key of the group changed, and some of its weights'."""
    changed = {**GROUP0, "weights": {**GROUP0["weights"], **weights}} | ({key: value} if key else {})
    return {"config_groups": {"group_0": changed}}


CONTRADICTIONS = [  # the settings, not the tensors, are changed
    ("gptq 8 bits", {"bits": 4}, ["x.qweight", "bits = 4"]),
    ("gptq", {"bits": 8}, ["x.qweight", "bits = 8"]),
    ("gptq", {"group_size": 32}, ["x.scales", "[2, 32]", "group_size = 32"]),
    ("gptq", {"group_size": 48}, ["x.qweight", "group_size = 48 divides"]),
    ("gptq", {"group_size": 2**40}, ["quantization_config: group_size"]),
    ("gptq", {"group_size": 0}, ["quantization_config: group_size", "0"]),
    ("gptq", {"group_size": "16"}, ["quantization_config: group_size", "'16'"]),
    ("gptq v2 sym", {"desc_act": True}, ["x.qweight", "x.g_idx beside it", "desc_act"]),
    ("ct w4a16", group(actorder="group"), ["x.weight_scale", "x.weight_g_idx beside it", "actorder group"]),
    ("gptq", {"dynamic": []}, ["quantization_config: dynamic"]),
    ("gptq", {"quant_method": 3}, ["quantization_config: quant_method", "3"]),
    ("gptq", {"quant_method": ...}, ["quantization_config: quant_method", "nothing"]),
    ("nf4", {"quant_method": ..., "load_in_4bit": False}, ["quantization_config: quant_method", "nothing"]),
    ("awq", {"group_size": 32}, ["x.scales", "[2, 32]"]),
    ("awq", {"group_size": -2}, ["group_size", "-2"]),
    ("ct w4a16", group(num_bits=8), ["x.weight_packed", "[32, 16]", "num_bits = 8"]),
    ("ct w8a16", group(strategy="channel"), ["x.weight_packed", "[32, 8]", "num_bits = 4"]),
    ("ct w4a16", group(group_size=32), ["x.weight_scale", "[32, 2]"]),
    ("ct w4a16", group(group_size=None), ["config_groups: group_0: weights: group_size"]),
    ("ct w4a16", group(symmetric=False), ["x.weight_zero_point"]),
    ("ct w4a16", group(symmetric=3), ["weights: symmetric", "true or false"]),
    ("ct w4a16", group(type="float", num_bits=8), ["x.weight_packed", "FP8 or FP4"]),
    ("ct w4a16", group("weights", None), ["x.weight_packed", "no group of config_groups"]),
    ("ct w4a16", {"config_groups": {}}, ["config_groups"]),
    ("ct w4a16", {"config_groups": {"group_0": 1}}, ["config_groups: group_0", "1"]),
    ("ct w4a16", group(num_bits=8, type="float", strategy="block", block_structure=None), ["block_structure"]),
    ("ct fp8 block", group(num_bits=8, type="float", strategy="block", block_structure=[8, 0]), ["block_structure"]),
    ("ct fp8 block", group(num_bits=8, type="float", strategy="block", block_structure=[8, 8]), ["[4, 8]"]),
    ("modelopt fp8", {"quant_algo": "NVFP4"}, ["x.weight", "U8", "F8_E4M3"]),
    ("fp8 block", {"weight_block_size": [8, 8]}, ["x.weight_scale_inv", "[4, 8]"]),
    ("fp8 block", {"weight_block_size": [0, 128]}, ["weight_block_size"]),
    ("fp8 block", {"weight_block_size": 128}, ["weight_block_size", "128"]),
    ("fp8 block", {"weight_block_size": None}, ["x.weight_scale_inv", "each of 32 rows"]),
    ("fp8 block", {"weight_block_size": [2**62, 2**62]}, ["weight_block_size"]),
    ("gptq", {"quant_method": "awq"}, ["x.qweight", "group_size = 16 divides"]),
    ("fp8 row", {"quant_method": "gptq", "bits": 4, "group_size": 16}, ["tensors such as X.qweight"]),
]


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [pytest.param(*c, id=f"{c[0]}, {i}: {', '.join(c[1])}") for i, c in enumerate(CONTRADICTIONS)],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, kind: str, config: dict[str, Any], words: list[str]
) -> None:
    folder = directory(tmp_path, kind, config)
    refused(lambda: read(folder), str(tmp_path), *words)


UNKNOWN = [
    ("gptq", {"quant_method": "exl3"}, ["quant_method", "exl3", "gptq"]),
    ("gptq", {"quant_method": "hqq"}, ["quant_method", "hqq"]),
    ("gptq", {"bits": 3}, ["bits", "2 or 4 or 8", "3"]),
    ("gptq", {"bits": "4"}, ["bits", "'4'"]),
    ("gptq", {"checkpoint_format": "marlin"}, ["checkpoint_format", "marlin", "gptq or gptq_v2"]),
    ("gptq", {"checkpoint_format": ["gptq"]}, ["checkpoint_format", "['gptq']"]),
    ("gptq", {"is_marlin_format": True}, ["is_marlin_format"]),
    ("gptq", {"pack_dtype": "int64"}, ["pack_dtype", "int64"]),
    ("gptq", {"data_type": "mx_fp"}, ["data_type", "mx_fp", "int"]),
    ("gptq", {"rotation": "hadamard"}, ["rotation", "hadamard"]),
    ("gptq", {"adapter": {"name": "lora"}}, ["adapter"]),
    ("gptq", {"dynamic": {"+:.*": {"bits": 3}}}, ["dynamic", "bits", "3"]),
    ("gptq", {"dynamic": {"+:.*": {"outliers": 3}}}, ["dynamic", "outliers"]),
    ("awq", {"quant_method": "gptq"}, ["zero_point"]),
    ("gptq", {"quant_method": "fp8"}, ["bits, desc_act"]),
    ("gptq", {"codebook": 3, "outliers": 1}, ["quantization_config", "codebook, outliers"]),
    ("awq", {"version": "gemv"}, ["version", "gemv", "gemm"]),
    ("awq", {"version": "marlin"}, ["version", "marlin"]),
    ("awq", {"bits": 8}, ["bits", "8"]),
    ("awq", {"zero_point": False}, ["zero_point"]),
    ("awq", {"smooth": 1}, ["smooth"]),
    ("ct w4a16", {"format": "marlin-24"}, ["format", "marlin-24", "pack-quantized"]),
    ("ct w4a16", {"format": "mxfp4-pack-quantized"}, ["format", "mxfp4"]),
    ("ct w4a16", {"quantization_status": "calibration"}, ["quantization_status", "calibration"]),
    ("ct w4a16", {"transform_config": {"config_groups": {}}}, ["transform_config"]),
    ("ct w4a16", {"sparsity_config": {"format": "sparse-24-bitmask"}}, ["sparsity_config"]),
    ("ct w4a16", {"rotations": 1}, ["rotations"]),
    ("ct w4a16", group(num_bits=3), ["num_bits", "3", "4 or 8"]),
    ("ct w4a16", group(num_bits=4.0), ["num_bits", "4.0"]),
    ("ct w4a16", group(actorder={}), ["actorder"]),
    ("ct w4a16", group(strategy=[]), ["strategy"]),
    ("ct w4a16", group(type="codebook"), ["type", "codebook"]),
    ("ct w4a16", group(strategy="token"), ["strategy", "token"]),
    ("ct w4a16", group(actorder="sorted"), ["actorder", "sorted"]),
    ("ct w4a16", group(outliers=2), ["config_groups.group_0.weights.outliers"]),
    ("ct w4a16", group("outliers", 2), ["config_groups.group_0.outliers"]),
    ("ct w4a16", group("format", "mxfp8-quantized"), ["group_0: format", "mxfp8"]),
    ("fp8 row", {"fmt": "e5m2"}, ["fmt", "e5m2", "e4m3"]),
    ("fp8 row", {"weight_bits": 8}, ["weight_bits"]),
    ("nf4", {"codebook": 8}, ["codebook"]),
    ("modelopt fp8", {"quant_algo": "W4A8_AWQ"}, ["quant_algo", "W4A8_AWQ", "FP8 or NVFP4"]),
    ("modelopt fp8", {"pre_quant_scale": True}, ["pre_quant_scale"]),
    ("modelopt nvfp4", {"quantization": {"quant_algo": "NVFP4", "group_size": 32}}, ["quantization: group_size", "32"]),
    ("modelopt nvfp4", {"quantization": {"quant_algo": "NVFP4", "rank": 1}}, ["quantization.rank"]),
]


@pytest.mark.parametrize(
    ("kind", "config", "words"), [pytest.param(*c, id=f"{c[0]}, {i}: {', '.join(c[1])}") for i, c in enumerate(UNKNOWN)]
)
def test_what_is_not_known_is_refused_by_name(
    tmp_path: Path, kind: str, config: dict[str, Any], words: list[str]
) -> None:
    folder = directory(tmp_path, kind, config)
    refused(lambda: read(folder), str(tmp_path), *words, error=UnsupportedModel)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_of_zero_is_a_number(tmp_path: Path, kind: str) -> None:
    """A group of zeros; only what is no number is refused."""
    names = {
        "scales",
        "weight_scale",
        "weight_scale_inv",
        "weight.absmax",
        "weight.nested_absmax",
        "SCB",
        "weight_scale_2",
    }
    stored = set(KINDS[kind].pack(np.ones(SHAPE, "f4"))[0]) & names
    folder = directory(tmp_path, kind, changes=dict.fromkeys(stored, np.zeros_like))
    with open_checkpoint(folder) as ck:
        assert np.isfinite(ck.tensor("x.weight")).all()
        assert kind == "nf4 double" or not ck.tensor("x.weight").any()


def test_shards_that_disagree_are_refused(tmp_path: Path) -> None:
    """Entries of a module in several files: the message names the file with the one that does not fit."""
    folder = directory(tmp_path, "gptq")
    (folder / "model.safetensors").unlink()
    entries = KINDS["gptq"].pack(np.ones(SHAPE, "f4"))[0]
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    where = {f"x.{s}": second if s == "scales" else first for s in entries}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    write_safetensors(folder / first, {f"x.{s}": a for s, a in entries.items() if s != "scales"})
    write_safetensors(folder / second, {"x.scales": entries["scales"]})
    read(folder)
    write_safetensors(folder / second, {"x.scales": entries["scales"][:, :-1].copy()})
    refused(lambda: read(folder), second, "x.scales", "[4, 32]", "[4, 31]")


def test_a_claim_of_many_numbers_takes_no_memory(tmp_path: Path) -> None:
    """A file of a few bytes whose header gives one entry a huge shape."""
    folder = directory(tmp_path, "gptq")
    header = {"x.qweight": entry("I32", (2**40, 2**20), (0, 2**62))}
    (folder / "model.safetensors").write_bytes(safetensors(header, bytes(64)))
    refused(lambda: read(folder), "x.qweight")


def test_every_cut_of_a_quantised_file_is_refused(tmp_path: Path) -> None:
    folder = directory(tmp_path, "awq")
    sound = (folder / "model.safetensors").read_bytes()
    for n in range(1, len(sound), 37):
        (folder / "model.safetensors").write_bytes(sound[:n])
        with pytest.raises(CheckpointError):
            read(folder)
