"""A checkpoint says the same whether it is a directory or a GGUF file, and refuses what neither can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf as package
import numpy as np
import pytest
from checkpoint_files import gguf, info, llama_keys, refused, write_gguf, write_safetensors

from ostinato.errors import CheckpointError, UnsupportedModel
from ostinato.weights.checkpoint import open_checkpoint

EMBED = {"token_embd.weight": np.arange(96, dtype="f4").reshape(12, 8)}


FACTORS = {f"rope_factors_{name}.weight": np.array(values, "f4")
           for name, values in (("short", [1, 1.5]), ("long", [2, 3]))}  # fmt: skip


def scaling(**keys: Any) -> dict[str, Any]:
    """Keys of rope.scaling."""
    return {f"llama__rope__scaling__{key}": value for key, value in keys.items()}


def _open(path: Path, arrays: dict[str, np.ndarray] | None = None, **keys: Any):
    write_gguf(path / "x.gguf", llama_keys(**keys), {**EMBED, **(arrays or {})})
    return open_checkpoint(path / "x.gguf")


def test_directory(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"a": np.ones((2, 3), "f2")})
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 2}')
    with open_checkpoint(tmp_path) as ck:
        assert (ck.source, ck.directory, ck.metadata) == (tmp_path, tmp_path, None)
        assert (ck.config, ck.generation_config) == ({"model_type": "llama"}, {"eos_token_id": 2})
        assert (ck.names(), "a" in ck, "b" in ck) == (["a"], True, False)
        assert (ck.shape("a"), ck.dtype("a"), ck.stored("a")) == ((2, 3), np.float16, "F16")
        kept = ck.tensor("a")
        refused(lambda: ck.tensor("b"), str(tmp_path), "tensor b", "missing")
    refused(lambda: ck.tensor("a"), str(tmp_path), "closed")
    assert kept.tolist() == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        pytest.param({}, ["config.json"], id="no config"),
        pytest.param({"config.json": ""}, ["config.json", "JSON"], id="config empty"),
        pytest.param({"config.json": "[]"}, ["config.json", "list"], id="config an array"),
        pytest.param({"config.json": b"\xff"}, ["config.json", "UTF-8"], id="config not UTF-8"),
        pytest.param({"config.json": '{"a":1,"a":2}'}, ["config.json", "'a'", "twice"], id="config key twice"),
        pytest.param({"config.json": '{"a":' * 9000}, ["config.json", "nested"], id="config nested deeply"),
        pytest.param({"config.json": None}, ["config.json", "directory"], id="config a directory"),
        pytest.param({"config.json": b" " * (16 << 20) + b"{}"}, ["config.json", "16777216"], id="config too long"),
        pytest.param({"config.json": "{}"}, ["model.safetensors"], id="no weights"),
        pytest.param(
            {"config.json": "{}", "generation_config.json": "x"},
            ["generation_config.json"],
            id="generation config not JSON",
        ),
    ],
)
def test_broken_directory_is_refused(tmp_path: Path, files: dict[str, Any], words: list[str]) -> None:
    if "generation_config.json" in files:
        write_safetensors(tmp_path / "model.safetensors", {"a": np.ones(1, "f4")})
    for name, content in files.items():
        if content is None:
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(lambda: open_checkpoint(tmp_path), str(tmp_path), *words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param("absent", ["nothing there"], id="absent"),
        pytest.param("absent.gguf", ["No such file"], id="absent gguf"),
        pytest.param("x.bin", ["'.bin'"], id="pickle"),
        pytest.param("x.safetensors", ["'.safetensors'"], id="one safetensors file"),
    ],
)
def test_other_paths_are_refused(tmp_path: Path, name: str, words: list[str]) -> None:
    if not name.startswith("absent"):
        (tmp_path / name).write_bytes(b"x")
    refused(lambda: open_checkpoint(tmp_path / name), name, *words)


# -- GGUF in Hugging Face's words -------------------------------------------------------------------------------------

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": 12,
    "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None,
    "hidden_act": "silu", "tie_word_embeddings": True, "torch_dtype": "bfloat16", "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "arrays", "change"),
    [
        pytest.param({}, {}, {}, id="plain"),
        pytest.param({"llama__attention__head_count_kv": None}, {}, {"num_key_value_heads": 2}, id="no grouped heads"),
        pytest.param({"llama__attention__key_length": 6}, {}, {"head_dim": 6}, id="head size"),
        pytest.param({"llama__rope__freq_base": 5e5}, {}, {"rope_theta": 5e5}, id="theta"),
        pytest.param({"llama__attention__sliding_window": 4}, {}, {"sliding_window": 4}, id="window"),
        pytest.param({"llama__vocab_size": 12}, {}, {}, id="vocabulary size given"),
        pytest.param({"llama__rope__dimension_count": 2}, {}, {"partial_rotary_factor": 0.5}, id="partial RoPE"),
        pytest.param({}, {"output.weight": np.ones((12, 8), "f4")}, {"tie_word_embeddings": False}, id="not tied"),
        pytest.param({}, {"blk.0.attn_q.weight": np.ones((8, 8), "f2")}, {"torch_dtype": "float16"}, id="float16"),
        pytest.param(
            {}, {"blk.0.attn_q.bias": np.ones(8, "f4")}, {"attention_bias": True}, id="bias of q"
        ),
        pytest.param(
            {"tokenizer__ggml__bos_token_id": 1, "tokenizer__ggml__eos_token_id": 2}, {},
            {"bos_token_id": 1, "eos_token_id": 2}, id="bos and eos",
        ),
        pytest.param(
            {"tokenizer__ggml__eos_token_id": 2, "tokenizer__ggml__eot_token_id": 3}, {},
            {"eos_token_id": [2, 3]}, id="end of turn differs",
        ),
        pytest.param(
            {"tokenizer__ggml__eos_token_id": 2, "tokenizer__ggml__eot_token_id": 2}, {},
            {"eos_token_id": 2}, id="end of turn is eos",
        ),
        pytest.param(
            {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0}, {},
            {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, id="linear scaling",
        ),
        pytest.param(
            {"llama__rope__scale_linear": 2.0}, {},
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, id="linear scaling, older key",
        ),
        pytest.param(
            {"llama__rope__scaling__type": "yarn", "llama__rope__scaling__factor": 4.0,
             "llama__rope__scaling__original_context_length": 16}, {},
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
            id="YaRN",
        ),
        pytest.param({"llama__rope__scaling__type": "none"}, {}, {}, id="no scaling"),
        pytest.param(scaling(type="none", factor=4.0), {}, {}, id="no scaling by a factor"),
        pytest.param(scaling(factor=4.0), {}, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, id="no type"),
        pytest.param(scaling(factor=1.0), {}, {}, id="no type, a factor of 1"),
        pytest.param(scaling(factor=0.0), {}, {}, id="no type, a factor of 0"),
        pytest.param(
            scaling(type="yarn", factor=2.0, yarn_beta_fast=4.0, yarn_beta_slow=0.5, yarn_attn_factor=0.9,
                    yarn_ext_factor=1.0, yarn_log_multiplier=0.7, attn_factor=1.0, finetuned=True), {},
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 4.0, "beta_slow": 0.5,
                              "attention_factor": 0.9, "mscale_all_dim": 0.7, "mscale": 1.0}}, id="YaRN, every key",
        ),
        pytest.param(
            scaling(type="yarn", factor=2.0, yarn_attn_factor=1.0, yarn_log_multiplier=0.0), {},
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale_all_dim": 0.0}},
            id="YaRN, factors that change nothing",
        ),
        pytest.param(
            scaling(type="longrope", factor=4.0, original_context_length=16, attn_factor=1.25), FACTORS,
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0],
                              "original_max_position_embeddings": 16, "attention_factor": 1.25}}, id="longrope",
        ),
        pytest.param(
            scaling(original_context_length=16), FACTORS,
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0],
                              "original_max_position_embeddings": 16}}, id="longrope by its tensors",
        ),
    ],
)  # fmt: skip
def test_config_from_metadata(tmp_path: Path, keys: dict, arrays: dict, change: dict) -> None:
    with _open(tmp_path, arrays, **keys) as ck:
        assert ck.config == {**CONFIG, **change}
        assert json.loads(json.dumps(ck.config)) == ck.config  # plain Python, as config.json would give
        assert (ck.directory, ck.generation_config) == (None, {})
        assert ck.metadata == pytest.approx(llama_keys(**keys))


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_recognised_by_its_divisors(tmp_path: Path, factor: float) -> None:
    def divisor(i: int) -> float:  # one frequency after the other, from the definition by wavelengths
        wavelength = 2 * np.pi * 5e5 ** (i / 32)
        if wavelength < 8192 / 4:
            return 1.0
        smooth = (8192 / wavelength - 1) / 3
        return factor if wavelength > 8192 else 1 / ((1 - smooth) / factor + smooth)

    divisors = np.array([divisor(i) for i in range(32)], "f4")
    assert len({*divisors.tolist()}) > 3
    with _open(tmp_path, {"rope_freqs.weight": divisors}, llama__rope__freq_base=5e5) as ck:
        assert ck.config["rope_scaling"] == {
            "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }  # fmt: skip
        assert ck.names() == ["model.embed_tokens.weight"]


@pytest.mark.parametrize(
    "divisors",
    [[1, 2, 3, 4], [0, 0], [np.nan], [np.inf, 1], [-1, -1]],
    ids=["others", "zeros", "nan", "inf", "negative"],
)
def test_other_divisors_are_refused(tmp_path: Path, divisors: list[float]) -> None:
    arrays = {"rope_freqs.weight": np.array(divisors, "f4")}
    refused(lambda: _open(tmp_path, arrays), "x.gguf", "rope_freqs.weight", error=UnsupportedModel)


@pytest.mark.parametrize(
    ("keys", "arrays", "words", "error"),
    [
        pytest.param(
            {"general__architecture": None}, {}, ["general.architecture", "None"],
            UnsupportedModel, id="no architecture",
        ),
        pytest.param({"general__architecture": "gemma3"}, {}, ["'gemma3'"], UnsupportedModel, id="other architecture"),
        pytest.param({"general__architecture": [1]}, {}, ["[1]"], UnsupportedModel, id="architecture a list"),
        pytest.param({"llama__block_count": None}, {}, ["llama.block_count"], CheckpointError, id="key missing"),
        pytest.param({"llama__rope__freq_base": "x"}, {}, ["rope.freq_base", "'x'"], CheckpointError, id="theta text"),
        pytest.param({"llama__vocab_size": 13}, {}, ["vocab_size", "12", "13"], CheckpointError, id="vocabulary"),
        pytest.param(
            {"llama__attention__value_length": 8}, {}, ["value_length", "4", "8"], UnsupportedModel, id="wider values"
        ),
        pytest.param({"llama__rope__dimension_count": 6}, {}, ["dimension_count"], CheckpointError, id="RoPE too wide"),
        pytest.param({"llama__expert_count": 8}, {}, ["expert_count"], UnsupportedModel, id="experts"),
        pytest.param(
            {"llama__rope__scaling__type": "yarn"}, {"rope_freqs.weight": np.ones(2, "f4")},
            ["rope_freqs.weight", "'yarn'"], UnsupportedModel, id="two scalings",
        ),
        *(
            pytest.param(scaling(**keys), {}, [f"llama.rope.scaling.{word}", "expected"], UnsupportedModel, id=word)
            for word, keys in {
                "alpha": {"alpha": 1000.0}, "yarn_ext_factor": {"type": "yarn", "factor": 2.0, "yarn_ext_factor": 0.5},
                "attn_factor": {"type": "yarn", "factor": 2.0, "attn_factor": 0.9}, "new_factor": {"new_factor": 1.0},
                "yarn_attn_factor": {"type": "linear", "factor": 2.0, "yarn_attn_factor": 0.9},
            }.items()
        ),
        pytest.param(
            {"llama__rope__freq_base_swa": 1e4}, {}, ["llama.rope.freq_base_swa"], UnsupportedModel, id="two thetas"
        ),
        pytest.param(scaling(factor="4"), {}, ["rope.scaling.factor", "'4'"], CheckpointError, id="factor a string"),
        pytest.param(scaling(type=3, factor=4.0), {}, ["rope.scaling.type", "3"], CheckpointError, id="type a number"),
        pytest.param(
            {}, {"token_embd.weight": np.ones(8, "f4")}, ["token_embd.weight", "[8]"], CheckpointError, id="embedding"
        ),
        pytest.param(
            {"llama__attention__head_count": 3}, {"blk.0.attn_q.weight": np.ones((8, 8), "f4")},
            ["attn_q.weight", "3 heads", "8"], CheckpointError, id="rows for no whole heads",
        ),
        pytest.param(
            {"llama__attention__head_count": [2]}, {"blk.0.attn_q.weight": np.ones((8, 8), "f4")},
            ["attn_q.weight", "[2]"], CheckpointError, id="heads a list",
        ),
        pytest.param(
            {}, {"output_norm.weight": np.ones(8, "f4"), "model.norm.weight": np.ones(8, "f4")},
            ["output_norm.weight", "model.norm.weight"], CheckpointError, id="two names for one tensor",
        ),
    ],
)  # fmt: skip
def test_broken_metadata_is_refused(tmp_path: Path, keys: dict, arrays: dict, words: list[str], error: type) -> None:
    refused(lambda: _open(tmp_path, arrays, **keys), "x.gguf", *words, error=error)


def test_no_embedding_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", llama_keys(), {"output_norm.weight": np.ones(8, "f4")})
    refused(lambda: open_checkpoint(tmp_path / "x.gguf"), "x.gguf", "token_embd.weight", "none")


def test_names_are_translated(tmp_path: Path) -> None:
    names = {
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
        "blk.0.attn_norm.weight": "model.layers.0.input_layernorm.weight",
        "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
        "blk.0.attn_v.bias": "model.layers.0.self_attn.v_proj.bias",
        "blk.0.attn_q_norm.weight": "model.layers.0.self_attn.q_norm.weight",
        "blk.0.attn_k_norm.weight": "model.layers.0.self_attn.k_norm.weight",
        "blk.0.attn_output.weight": "model.layers.0.self_attn.o_proj.weight",
        "blk.0.ffn_norm.weight": "model.layers.0.post_attention_layernorm.weight",
        "blk.0.ffn_gate.weight": "model.layers.0.mlp.gate_proj.weight",
        "blk.0.ffn_up.weight": "model.layers.0.mlp.up_proj.weight",
        "blk.31.ffn_down.weight": "model.layers.31.mlp.down_proj.weight",
        "blk.0.ffn_gate_inp.weight": "blk.0.ffn_gate_inp.weight",
        "other": "other",
    }
    with _open(tmp_path, {n: np.full(2, i, "f4") for i, n in enumerate(names)}) as ck:
        assert ck.names() == ["model.embed_tokens.weight", *names.values()]
        assert [ck.tensor(n)[0] for n in names.values()] == list(range(len(names)))


def _paired(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of half-rotation order as converters store them: row 2 i + j of a head is its row i + j d/2."""
    d = len(rows) // heads
    return np.stack([rows[h * d + i + j * d // 2] for h in range(heads) for i in range(d // 2) for j in (0, 1)])


@pytest.mark.parametrize(("arch", "paired"), [("llama", True), ("qwen2", False), ("qwen3", False)])
def test_rows_of_q_and_k_are_in_half_rotation_order(tmp_path: Path, arch: str, paired: bool) -> None:
    rng = np.random.default_rng(0)
    q, k, v, bias = (rng.standard_normal(s).astype("f4") for s in ((8, 8), (4, 8), (4, 8), (8,)))
    stored = {"attn_q": _paired(q, 2), "attn_k": _paired(k, 1)} if paired else {"attn_q": q, "attn_k": k}
    arrays = {f"blk.0.{n}.weight": a for n, a in {**stored, "attn_v": v}.items()}
    arrays["blk.0.attn_q.bias"] = _paired(bias, 2) if paired else bias
    keys = {key.replace("llama.", f"{arch}."): v for key, v in llama_keys().items()}
    write_gguf(tmp_path / "x.gguf", {**keys, "general.architecture": arch}, {**EMBED, **arrays})
    with open_checkpoint(tmp_path / "x.gguf") as ck:
        for name, expected in {"q_proj.weight": q, "k_proj.weight": k, "v_proj.weight": v, "q_proj.bias": bias}.items():
            np.testing.assert_array_equal(ck.tensor(f"model.layers.0.self_attn.{name}"), expected)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_stored_rows_are_reordered_before_decoding(tmp_path: Path, kind: str) -> None:
    number = package.GGMLQuantizationType[kind]
    rows = np.random.default_rng(0).standard_normal((8, 64)).astype("f4")
    raw = package.quantize(_paired(rows, 2), number)
    infos = [info("token_embd.weight", (32, 1)), info("blk.0.attn_q.weight", (64, 8), number.value, 128)]
    content = gguf(list(llama_keys().items()), infos, bytes(128) + raw.tobytes() + bytes(-raw.nbytes % 32))
    (tmp_path / "x.gguf").write_bytes(content)
    with open_checkpoint(tmp_path / "x.gguf") as ck:
        found = ck.tensor("model.layers.0.self_attn.q_proj.weight")
    expected = package.dequantize(package.quantize(rows, number), number)
    np.testing.assert_array_equal(found.astype("f4"), expected)


def test_a_quantised_bias_to_reorder_is_refused(tmp_path: Path) -> None:
    infos = [info("token_embd.weight", (8, 1)), info("blk.0.attn_q.bias", (64,), 8, 32)]
    (tmp_path / "x.gguf").write_bytes(gguf(list(llama_keys().items()), infos, bytes(32 + 96)))
    refused(lambda: open_checkpoint(tmp_path / "x.gguf"), "attn_q.bias", "Q8_0", error=UnsupportedModel)
