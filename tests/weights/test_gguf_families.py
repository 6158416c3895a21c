"""Fixtures written as GGUF files give the configuration and the weights that their directories give."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import llama_keys, write_gguf

from ostinato import LLM, SamplingParams
from ostinato.config import ModelConfig
from ostinato.models import rope
from ostinato.models.families import model_config
from ostinato.weights import names
from ostinato.weights.checkpoint import Checkpoint, open_checkpoint

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
NAMES = {  # as converters spell them
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{x}_proj": f"attn_{x}" for x in ("q", "k", "v", "qkv")},
    **{f"self_attn.{x}_norm": f"attn_{x}_norm" for x in "qk"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")},
    "mlp.gate_up_proj": "ffn_up",
}
SIZES = {
    "hidden_size": "embedding_length", "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv", "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length", "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "head_dim": "attention.key_length", "sliding_window": "attention.sliding_window",
}  # fmt: skip
ENDS = {"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 2}
MULTIPLIERS = {
    "attention.scale": 0.4, "embedding_scale": 1.5, "residual_scale": 0.8, "logit_scale": 0.5,
}  # fmt: skip
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
CASES = [  # fixture, general.architecture, q and k in pairs, keys beside the sizes
    ("llama", "llama", True, {}),
    ("qwen2-yarn", "qwen2", False, YARN),
    ("granite", "granite", True, MULTIPLIERS),
    ("phi3", "phi3", False, {}),
    (
        "phi3-longrope", "phi3", False,
        {"rope.dimension_count": 12, "rope.scaling.original_context_length": 32,
         "rope.scaling.attn_factor": float(np.sqrt(1 + np.log(4) / np.log(32)))},
    ),
    (
        "ministral3", "mistral3", True,
        {**YARN, "rope.scaling.original_context_length": 128, "rope.scaling.factor": 2.0,
         "rope.scaling.yarn_beta_fast": 4.0, "rope.scaling.yarn_log_multiplier": 1.0,
         "attention.temperature_scale": 0.1, "rope.scaling.finetuned": True},
    ),
]  # fmt: skip


def gguf_name(name: str) -> str:
    """Of a tensor of transformers."""
    name = name.replace("model.language_model.", "model.")
    stem, _, kind = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    _, _, layer, what = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[what]}.{kind}"


def in_pairs(a: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head in the order (0, d/2, 1, d/2 + 1, ...)."""
    return a.reshape(heads, 2, -1, *a.shape[1:]).swapaxes(1, 2).reshape(a.shape)


def write(
    path: Path, folder: Checkpoint, arch: str, paired: bool, more: dict[str, Any], vocabulary: dict[str, Any] = ENDS
) -> None:
    config = folder.config.get("text_config", folder.config)
    sizes = {f"{arch}.{gguf}": config[key] for key, gguf in SIZES.items() if config.get(key) is not None}
    arrays = {}
    for name in folder.names():
        if "vision" in name or "projector" in name:
            continue
        a = folder.tensor(name).astype("f4")
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        arrays[gguf_name(name)] = in_pairs(a, config[heads]) if paired and heads else a
    if "longrope" in folder.source.name:
        for key in ("short", "long"):
            factors = np.array(config["rope_scaling"][f"{key}_factor"], "f4")
            arrays[f"rope_factors_{key}.weight"] = factors
    keys = {"general.architecture": arch, **sizes, **{f"{arch}.{k}": v for k, v in more.items()}, **vocabulary}
    write_gguf(path, keys, arrays)


def tables(c: ModelConfig) -> np.ndarray:
    return np.stack([rope.table(spec.rope, spec.head_dim, 64) for spec in c.layers])


@pytest.mark.parametrize(("name", "arch", "paired", "more"), [pytest.param(*case, id=case[0]) for case in CASES])
def test_a_gguf_file_is_the_same_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, arch: str, paired: bool, more: dict[str, Any]
) -> None:
    with open_checkpoint(FIXTURES / name) as folder, caplog.at_level(logging.WARNING, "ostinato"):
        write(tmp_path / "x.gguf", folder, arch, paired, more)
        with open_checkpoint(tmp_path / "x.gguf") as file:
            a, b = (model_config(ck.config, {}, ck.source) for ck in (folder, file))
            plain = [replace(c.with_layers(rope=None), dtype="", family="") for c in (a, b)]
            assert plain[0] == plain[1]
            np.testing.assert_allclose(tables(b), tables(a), atol=1e-5)
            for x, y in zip(names.check(folder, a), names.check(file, b), strict=True):
                for mine, other in zip(x.tensors, y.tensors, strict=True):
                    np.testing.assert_array_equal(file.tensor(other), folder.tensor(mine).astype("f4"))
    assert [m for m in caplog.messages if "does not know" in m] == []


WORDS = ["▁", "a", "b", "c", "ab", "▁ab", "▁c", "<", "/", "s", ">", "</", "s>"]
SENTENCEPIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *WORDS],
    "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i, _ in enumerate(WORDS)],
    "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(WORDS),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


def test_a_file_with_a_sentencepiece_vocabulary_generates(tmp_path: Path) -> None:
    with open_checkpoint(FIXTURES / "llama") as folder:
        write(tmp_path / "x.gguf", folder, "llama", True, {}, SENTENCEPIECE)
    words = ["<s>", "▁ab", "▁", "</", "s>", "▁c"]
    ids = [SENTENCEPIECE["tokenizer.ggml.tokens"].index(word) for word in words]
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    with LLM(tmp_path / "x.gguf", backend="numpy", quiet=True) as llm:
        by_text, by_ids = llm.generate(["ab </s> c", ids], params)
    assert by_text.prompt_token_ids == by_ids.prompt_token_ids == ids
    assert by_text.token_ids == by_ids.token_ids and len(by_text.token_ids) == 6


def test_every_fourth_layer_of_smollm3_has_no_positions(tmp_path: Path) -> None:
    keys = {k.replace("llama.", "smollm3."): v for k, v in llama_keys(llama__block_count=8).items()}
    write_gguf(
        tmp_path / "x.gguf", {**keys, "general.architecture": "smollm3"}, {"token_embd.weight": np.ones((12, 8), "f4")}
    )
    with open_checkpoint(tmp_path / "x.gguf") as ck:
        c = model_config(ck.config, {}, ck.source)
    assert [spec.rope is None for spec in c.layers] == [False, False, False, True] * 2 and c.tied


def test_an_unread_key_of_the_architecture_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = llama_keys(llama__attention__sinks=4, llama__block_scale=2.0, general__name="x", other__key=1)
    write_gguf(tmp_path / "x.gguf", keys, {"token_embd.weight": np.ones((12, 8), "f4")})
    with caplog.at_level(logging.WARNING, "ostinato"), open_checkpoint(tmp_path / "x.gguf") as ck:
        assert json.dumps(ck.config)
    assert caplog.messages == [
        f"{tmp_path / 'x.gguf'}: keys that the engine does not know, and ignores: "
        "llama.attention.sinks, llama.block_scale"
    ]
