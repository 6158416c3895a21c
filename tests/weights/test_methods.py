"""Quantised safetensors: what a reader hands out is what the packer stored, and a whole model computes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading import bits, loaded, logits
from packers import KINDS, write_directory, write_model
from products import cublas

from ostinato.errors import CheckpointError, UnsupportedModel
from ostinato.ops import dequantise
from ostinato.ops.cuda import CudaOps
from ostinato.ops.device import Device
from ostinato.ops.numpy import NumpyOps
from ostinato.weights import quantised
from ostinato.weights.checkpoint import open_checkpoint
from ostinato.weights.quantised import Quantised

FIXTURES = Path(__file__).parents[1] / "fixtures"
SHAPES = {"even": (32, 64), "one word": (8, 32), "ragged blocks": (40, 80)}
NO_PLANES = {
    "gptq act-order",
    "gptq 8 bits act-order",
    "ct w4a16 actorder",
    "nf4",
    "nf4 double",
    "nf4 across rows",
    "fp4",
}
each = pytest.mark.parametrize("kind", KINDS)


def opened(folder: Path, kind: str, shape: tuple[int, int] = (32, 64)) -> tuple[Quantised, np.ndarray]:
    """The matrix "x.weight" of a checkpoint with nothing else, and the numbers that its packer stored."""
    w = np.random.default_rng(0).standard_normal(shape).astype("f4")
    w[3, 16:32] *= 5
    entries, expected = KINDS[kind].pack(w)
    write_directory(folder, KINDS[kind], {}, {f"x.{suffix}": a for suffix, a in entries.items()})
    with open_checkpoint(folder) as ck:
        assert (ck.names(), ck.config, ck.shape("x.weight")) == (["x.weight"], {}, shape)
        matrix = ck.quantised("x.weight")
        assert matrix is not None and ck.stored("x.weight") == matrix.kind and ck.dtype("x.weight") == np.float32
        assert ck.tensor("x.weight").tobytes() == matrix.numbers().tobytes()
        stored = sum(a.nbytes for s, a in entries.items() if s not in ("input_scale", "activation_scale"))
        assert matrix.nbytes == sum(span.nbytes for span in ck.spans("x.weight")) == stored
    assert matrix.kind.startswith(KINDS[kind].kind)
    return matrix, expected


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@each
def test_numbers_are_those_of_the_packer(tmp_path: Path, kind: str, shape: tuple[int, int]) -> None:
    matrix, expected = opened(tmp_path, kind, shape)
    found = matrix.numbers()
    assert found.dtype == np.float32 and found.shape == expected.shape == shape
    np.testing.assert_array_equal(found, expected)


@each
def test_planes_are_the_numbers(tmp_path: Path, kind: str) -> None:
    """By the formula written out, in float32; and their codes are what their name says."""
    matrix, expected = opened(tmp_path, kind, (40, 80))
    p = matrix.planes()
    assert (p is None) == (kind in NO_PLANES)
    if p is None:
        return
    most = {"u4": 15, "u5": 31, "u6": 63}.get(p.code)
    assert p.codes.dtype == (np.int8 if p.code == "s8" else np.uint8) and (most is None or p.codes.max() <= most)
    codes = p.codes.view("u1")[..., None] == np.arange(256) if p.code == "e4m3" else None
    values = p.codes.astype("f4") if codes is None else quantised.E4M3[codes.argmax(-1)]
    n, g = np.arange(40)[:, None], np.arange(80) // p.group
    zero = p.zero if p.zeros is None else p.zeros.astype("f4")[n, g]
    w = p.scales.astype("f4")[n // p.rows, g] * (values - zero)
    np.testing.assert_array_equal(w, expected)
    empty = matrix.planes(0, 0)
    assert empty is not None and (empty.code, empty.group, empty.scales.dtype) == (p.code, p.group, p.scales.dtype)
    assert (empty.zero, empty.zeros is None) == (p.zero, p.zeros is None)


SYMMETRIC = {"gptq": 8, "gptq v2 sym": 8, "gptq per row": 8, "ct w4a16": 8, "gptq 8 bits": 0, "ct w8a16": 0}


@pytest.mark.parametrize("kind", SYMMETRIC)
def test_a_symmetric_matrix_has_one_zero(tmp_path: Path, kind: str) -> None:
    p = opened(tmp_path, kind)[0].planes(0, 0)
    assert p is not None and p.zeros is None and p.zero == SYMMETRIC[kind]


@each
def test_some_rows_and_rows_in_another_order_are_those_rows(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, expected = opened(tmp_path, kind, (40, 80))
    monkeypatch.setattr(quantised, "CHUNK", 3 * 80)
    np.testing.assert_array_equal(matrix.numbers(), expected)
    for first, last in ((0, 16), (16, 40), (32, 33), (7, 20)):
        np.testing.assert_array_equal(matrix.numbers(first, last), expected[first:last])
    order = np.random.default_rng(1).permutation(40)
    taken = matrix.take(order)
    np.testing.assert_array_equal(taken.numbers(), expected[order])
    again = taken.take(np.array([5, 5, 39]))
    assert again.shape == (3, 80) and again.nbytes <= matrix.nbytes * 3 // 40 + 1
    np.testing.assert_array_equal(again.numbers(), expected[order][[5, 5, 39]])
    np.testing.assert_array_equal(again.numbers(1, 3), expected[order][[5, 39]])
    planes = again.planes(1, 2)
    assert planes is None or np.array_equal(planes.numbers(), expected[order][[5]])


def stored_and_plain(folder: Path, kind: str, model: str) -> tuple[Path, Path]:
    """The same model quantised and, its numbers in float32, not."""
    write_model(folder / "stored", KINDS[kind], FIXTURES / model)
    with open_checkpoint(folder / "stored") as ck:
        arrays = {name: np.array(ck.tensor(name)) for name in ck.names()}
        assert sum(ck.quantised(name) is not None for name in ck.names()) == (8 if "phi3" in model else 14)
        write_directory(folder / "plain", None, ck.config, arrays)
    return folder / "stored", folder / "plain"


@each
def test_the_logits_are_those_of_the_model_in_float32(tmp_path: Path, kind: str) -> None:
    stored, plain = stored_and_plain(tmp_path, kind, "llama-sharded")
    expected = logits(plain, NumpyOps())
    assert expected.std() > 0.1
    np.testing.assert_array_equal(logits(stored, NumpyOps()), expected)


FUSED = ["gptq asym", "gptq act-order", "awq", "ct w4a16 asym", "ct w8a8", "ct nvfp4", "fp8 block", "nf4 double"]


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("backend", [CudaOps, cublas], ids=["cuda", "cublas"])
def test_a_gpu_has_the_numbers_rounded_to_its_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: Device, backend: Any, kind: str
) -> None:
    """The same bits as of the model in float32; q, k, v are one tensor of the file, and RoPE turns a part of a head."""
    monkeypatch.setattr(dequantise, "PIECE", 5 * 48)
    stored, plain = stored_and_plain(tmp_path, kind, "phi3-longrope")
    ops = backend(device, "bfloat16")
    found, expected = (bits(ops, loaded(path, ops)[1]) for path in (stored, plain))
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes(), name


def test_the_emulated_gpu_gives_the_logits_of_numpy(tmp_path: Path, device: Device) -> None:
    stored, plain = stored_and_plain(tmp_path, "gptq act-order", "llama-sharded")
    np.testing.assert_allclose(logits(stored, CudaOps(device, "float32")), logits(plain, NumpyOps()), atol=1e-4)


def test_settings_of_the_text_model_count(tmp_path: Path) -> None:
    """Of a model that also sees; and those that see are gone from the configuration, which knows of no quantisation."""
    entries = KINDS["awq"].pack(np.ones((8, 32), "f4"))[0]
    config = {"text_config": {"quantization_config": KINDS["awq"].config, "hidden_size": 3}, "vision_config": {}}
    write_directory(tmp_path, None, config, {f"x.{suffix}": a for suffix, a in entries.items()})
    with open_checkpoint(tmp_path) as ck:
        assert ck.config == {"text_config": {"hidden_size": 3}, "vision_config": {}}
        assert ck.stored("x.weight").startswith("AWQ")


def test_a_file_of_another_name_is_read_if_it_is_the_only_one(tmp_path: Path) -> None:
    entries = KINDS["gptq beside"].pack(np.ones((8, 32), "f4"))[0]
    write_directory(tmp_path, KINDS["gptq beside"], {}, {f"x.{suffix}": a for suffix, a in entries.items()})
    (tmp_path / "model.safetensors").rename(tmp_path / "gptq_model-4bit-16g.safetensors")
    with open_checkpoint(tmp_path) as ck:
        assert ck.stored("x.weight") == "GPTQ 4-bit g16"
    (tmp_path / "other.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"found gptq_model-4bit-16g\.safetensors, other\.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("kind", "said"), [("ct w8a8", True), ("fp8 block", True), ("ct w8a16", False), ("gptq", False), ("nf4", False)]
)
def test_a_line_says_that_activations_are_not_quantised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, said: bool
) -> None:
    opened(tmp_path, kind)
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path}: activations are not quantised, so sums are more exact than the file asks for"
    ] * said


def test_a_family_of_transposed_matrices_refuses_quantised_ones(tmp_path: Path) -> None:
    """GPT-2's are [in, out], and one of them is square: its shape would not tell."""
    with open_checkpoint(FIXTURES / "gpt2") as ck:
        config = dict(ck.config)
        arrays = {name: np.asarray(ck.tensor(name)) for name in ck.names() if ck.stored(name) == "F32"}
    w = arrays.pop("h.0.attn.c_proj.weight")
    arrays |= {f"h.0.attn.c_proj.{suffix}": a for suffix, a in KINDS["gptq"].pack(w.T.copy())[0].items()}
    write_directory(tmp_path, KINDS["gptq"], config, arrays)
    with pytest.raises(UnsupportedModel, match=r"tensor h\.0\.attn\.c_proj\.weight: quantised.*\[in, out\]"):
        loaded(tmp_path, NumpyOps())


def test_equal_heads_of_tied_weights_are_compared_entry_by_entry(tmp_path: Path) -> None:
    """A tied model whose file has both names, quantised: they must be the same, scales as well."""
    with open_checkpoint(FIXTURES / "llama") as ck:
        config, arrays = dict(ck.config), {name: np.asarray(ck.tensor(name), "f4") for name in ck.names()}
    w = arrays.pop("model.embed_tokens.weight")
    entries = KINDS["fp8 row"].pack(w)[0]
    arrays |= {f"{stem}.{s}": a for stem in ("model.embed_tokens", "lm_head") for s, a in entries.items()}
    write_directory(tmp_path, KINDS["fp8 row"], config, arrays)
    loaded(tmp_path, NumpyOps())
    arrays["lm_head.weight_scale"] = 2 * arrays["lm_head.weight_scale"]
    write_directory(tmp_path, KINDS["fp8 row"], config, arrays)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: the configuration ties it to model\.embed_tokens"):
        loaded(tmp_path, NumpyOps())


PROGRAMS = [  # that write GPTQ files, and what they say beside the sizes
    pytest.param({"damp_percent": 0.01, "true_sequential": True, "model_name_or_path": None}, id="AutoGPTQ"),
    pytest.param({"meta": {"quantizer": ["gptqmodel:7.7.0"]}, "lm_head": False, "pack_dtype": "int32"}, id="GPTQModel"),
    pytest.param({"autoround_version": "0.4", "iters": 200, "data_type": "int", "enable_norm_bias": 1}, id="AutoRound"),
    pytest.param({"tokenizer": None, "use_exllama": True, "exllama_config": {"version": 1}}, id="transformers"),
]


@pytest.mark.parametrize("keys", PROGRAMS)
def test_keys_that_say_how_a_file_was_made_change_nothing(tmp_path: Path, keys: dict[str, Any]) -> None:
    entries, expected = KINDS["gptq"].pack(np.random.default_rng(2).standard_normal((8, 32)).astype("f4"))
    kind = KINDS["gptq"]._replace(config={**KINDS["gptq"].config, **keys})
    write_directory(tmp_path, kind, {}, {f"x.{suffix}": a for suffix, a in entries.items()})
    with open_checkpoint(tmp_path) as ck:
        np.testing.assert_array_equal(ck.tensor("x.weight"), expected)


OLDER = [  # settings of bitsandbytes from before quant_method
    pytest.param("nf4 double", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, id="4 bits"),
    pytest.param("nf4", {"_load_in_4bit": True, "_load_in_8bit": False}, id="4 bits, underscored"),
    pytest.param("bnb int8", {"load_in_8bit": True, "load_in_4bit": False, "quant_method": None}, id="8 bits"),
]


@pytest.mark.parametrize(("kind", "config"), OLDER)
def test_settings_of_bitsandbytes_without_a_method(tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    entries, expected = KINDS[kind].pack(np.random.default_rng(2).standard_normal((8, 64)).astype("f4"))
    of = KINDS[kind]._replace(config=config)
    write_directory(tmp_path, of, {}, {f"x.{suffix}": a for suffix, a in entries.items()})
    with open_checkpoint(tmp_path) as ck:
        np.testing.assert_array_equal(ck.tensor("x.weight"), expected)
