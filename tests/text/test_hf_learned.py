"""config.json of GPT-2 and BERT to ModelConfig: the fields that are read, and rejected cases, by file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from configs import changed, flat

from ostinato.config import ModelConfig
from ostinato.errors import CheckpointError, UnsupportedModel
from ostinato.models.families import model_config

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 3,
    "n_positions": 128,
    "n_ctx": 128,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "vocab_size": 256,
    "bos_token_id": 5,
    "eos_token_id": 5,
}
BERT: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
    "vocab_size": 256,
    "pad_token_id": 0,
    "torch_dtype": "float16",
}
ABSENT = object()  # remove the key
GPT2_CONFIG = flat(
    "gpt2", layers=3, hidden=64, heads=4, kv_heads=4, head_dim=16, ffn=256, vocab=256, max_len=128, eps=1e-5,
    rope=None, qkv_bias=True, activation="gelu_tanh", tied=True, dtype="float32", bos_id=5, eos_ids=(5,),
)  # fmt: skip
BERT_CONFIG = flat(
    "bert", layers=3, hidden=64, heads=4, kv_heads=4, head_dim=16, ffn=96, vocab=256, max_len=128, eps=1e-12,
    rope=None, qkv_bias=True, activation="gelu", causal=False, segments=2, tied=True, dtype="float16",
)  # fmt: skip


def read(base: dict[str, Any], **changes: Any) -> ModelConfig:
    config = {key: value for key, value in {**base, **changes}.items() if value is not ABSENT}
    return model_config(config, {}, Path("some/model"))


def test_every_field() -> None:
    assert read(GPT2) == GPT2_CONFIG
    assert read(BERT) == BERT_CONFIG


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", {"arch": "gpt2", "ffn": 192, "activation": "gelu_tanh", "tied": True, "dtype": "float32"}),
        ("gpt2-gelu", {"arch": "gpt2", "ffn": 80, "activation": "gelu", "eps": 1e-3, "vocab": 288, "tied": False}),
        (
            "bert",
            {"arch": "bert", "layer_count": 3, "activation": "gelu", "eps": 1e-12, "causal": False, "segments": 2},
        ),
        ("bert-masked", {"arch": "bert", "activation": "gelu_tanh", "eps": 1e-3, "dtype": "float16", "eos_ids": ()}),
    ],
)
def test_config_that_transformers_wrote(name: str, expected: dict[str, Any]) -> None:
    config = json.loads((FIXTURES / name / "config.json").read_text())
    c = model_config(config, {}, FIXTURES / name)
    assert {key: getattr(c if hasattr(c, key) else c.sizes, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("base", "changes", "expected"),
    [
        pytest.param(GPT2, {"n_inner": ABSENT}, {}, id="no-inner"),
        pytest.param(GPT2, {"n_inner": 96}, {"ffn": 96}, id="inner"),
        pytest.param(GPT2, {"activation_function": ABSENT}, {}, id="gpt2-default-activation"),
        pytest.param(GPT2, {"activation_function": "gelu"}, {"activation": "gelu"}, id="gpt2-exact"),
        pytest.param(GPT2, {"activation_function": "gelu_pytorch_tanh"}, {}, id="gpt2-another-name"),
        pytest.param(GPT2, {"layer_norm_epsilon": 1e-6}, {"eps": 1e-6}, id="gpt2-eps"),
        pytest.param(GPT2, {"layer_norm_epsilon": ABSENT}, {}, id="gpt2-default-eps"),
        pytest.param(GPT2, {"tie_word_embeddings": False}, {"tied": False}, id="gpt2-untied"),
        pytest.param(GPT2, {"architectures": ABSENT}, {}, id="gpt2-type-alone"),
        pytest.param(GPT2, {"model_type": ABSENT}, {}, id="gpt2-architecture-alone"),
        pytest.param(GPT2, {"torch_dtype": "bfloat16"}, {"dtype": "bfloat16"}, id="gpt2-dtype"),
        pytest.param(BERT, {"architectures": ["BertForMaskedLM"]}, {}, id="masked"),
        pytest.param(BERT, {"architectures": ["BertForPreTraining"]}, {}, id="pre-training"),
        pytest.param(BERT, {"architectures": ABSENT}, {}, id="bert-type-alone"),
        pytest.param(BERT, {"hidden_act": "gelu_new"}, {"activation": "gelu_tanh"}, id="bert-tanh"),
        pytest.param(BERT, {"hidden_act": ABSENT, "layer_norm_eps": ABSENT}, {}, id="bert-defaults"),
        pytest.param(BERT, {"position_embedding_type": ABSENT}, {}, id="bert-default-positions"),
        pytest.param(BERT, {"is_decoder": False, "add_cross_attention": False}, {}, id="bert-encoder"),
        pytest.param(BERT, {"type_vocab_size": 1}, {"segments": 1}, id="one-segment"),
    ],
)
def test_reads(base: dict[str, Any], changes: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read(base, **changes) == changed(GPT2_CONFIG if base is GPT2 else BERT_CONFIG, **expected)


SIZES = {
    "gpt2": (GPT2, ["n_embd", "n_head", "n_layer", "n_positions", "vocab_size"]),
    "bert": (BERT, ["hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size",
                    "max_position_embeddings", "type_vocab_size", "vocab_size"]),
}  # fmt: skip
KEYS = [pytest.param(base, key, id=f"{name}-{key}") for name, (base, keys) in SIZES.items() for key in keys]
BAD_SIZES = {"zero": 0, "fraction": 8.5, "boolean": True, "text": "8", "huge": 2**31, "missing": ABSENT, "null": None}


@pytest.mark.parametrize("value", [pytest.param(value, id=name) for name, value in BAD_SIZES.items()])
@pytest.mark.parametrize(("base", "key"), KEYS)
def test_bad_size(base: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"some/model/config\.json: {key}: expected an integer in \[1, .*found"):
        read(base, **{key: value})


WRONG, UNSUPPORTED = CheckpointError, UnsupportedModel


@pytest.mark.parametrize(
    ("error", "key", "base", "value"),
    [
        pytest.param(WRONG, "n_embd", GPT2, 66, id="hidden-not-divisible"),
        pytest.param(WRONG, "n_inner", GPT2, 0, id="inner-zero"),
        pytest.param(WRONG, "layer_norm_epsilon", GPT2, 0, id="gpt2-eps-zero"),
        pytest.param(WRONG, "layer_norm_epsilon", GPT2, "1e-5", id="gpt2-eps-text"),
        pytest.param(WRONG, "tie_word_embeddings", GPT2, "no", id="tied-text"),
        pytest.param(WRONG, "eos_token_id", GPT2, 256, id="eos-beyond-vocabulary"),
        pytest.param(WRONG, "model_type", GPT2, "bert", id="contradiction"),
        pytest.param(UNSUPPORTED, "activation_function", GPT2, "relu", id="relu"),
        pytest.param(UNSUPPORTED, "activation_function", GPT2, ["gelu"], id="activation-list"),
        pytest.param(UNSUPPORTED, "scale_attn_weights", GPT2, False, id="unscaled"),
        pytest.param(UNSUPPORTED, "scale_attn_by_inverse_layer_idx", GPT2, True, id="scaled-by-layer"),
        pytest.param(WRONG, "scale_attn_by_inverse_layer_idx", GPT2, 1, id="scaled-not-boolean"),
        pytest.param(UNSUPPORTED, "add_cross_attention", GPT2, True, id="gpt2-cross-attention"),
        pytest.param(UNSUPPORTED, "quantization_config", GPT2, {"bits": 4}, id="quantised"),
        pytest.param(UNSUPPORTED, "architectures", GPT2, ["GPT2ForSequenceClassification"], id="classifier"),
        pytest.param(WRONG, "hidden_size", BERT, 62, id="bert-hidden-not-divisible"),
        pytest.param(WRONG, "layer_norm_eps", BERT, float("nan"), id="bert-eps-nan"),
        pytest.param(UNSUPPORTED, "hidden_act", BERT, "quick_gelu", id="quick-gelu"),
        pytest.param(UNSUPPORTED, "hidden_act", BERT, "silu", id="silu"),
        pytest.param(UNSUPPORTED, "position_embedding_type", BERT, "relative_key", id="relative"),
        pytest.param(UNSUPPORTED, "is_decoder", BERT, True, id="bert-decoder"),
        pytest.param(WRONG, "is_decoder", BERT, "false", id="decoder-text"),
        pytest.param(UNSUPPORTED, "add_cross_attention", BERT, True, id="bert-cross-attention"),
        pytest.param(UNSUPPORTED, "architectures", BERT, ["BertForSequenceClassification"], id="bert-classifier"),
        pytest.param(UNSUPPORTED, "torch_dtype", BERT, "float64", id="float64"),
    ],
)
def test_refused(error: type[CheckpointError], key: str, base: dict[str, Any], value: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"^some/model/config\.json: {key}: .*expected .*, found ") as e:
        read(base, **{key: value})
    assert type(e.value) is error
