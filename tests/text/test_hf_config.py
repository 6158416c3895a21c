"""config.json to ModelConfig: the fields that are read, and every rejected case, by file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from configs import flat

from ostinato.config import ModelConfig, Rope, RopeScaling
from ostinato.errors import CheckpointError, UnsupportedModel
from ostinato.models.families import model_config

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 256,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ABSENT = object()  # remove the key


def like(arch: str, **changes: Any) -> dict[str, Any]:
    """LLAMA as another architecture, with changed or removed keys."""
    kinds = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    more: dict[str, Any] = {"architectures": [f"{kinds[arch]}ForCausalLM"], "model_type": arch}
    more |= {"sliding_window": None} if arch == "mistral" else {"head_dim": 16} if arch == "qwen3" else {}
    return {key: value for key, value in {**LLAMA, **more, **changes}.items() if value is not ABSENT}


def read(config: dict[str, Any], generation: dict[str, Any] | None = None) -> ModelConfig:
    return model_config(config, generation or {}, Path("some/model"))


def test_every_field() -> None:
    assert read(LLAMA) == flat(
        layers=4, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab=256, max_len=128,
        eps=1e-5, rope=Rope(500000.0), bos_id=1, eos_ids=(2,),
    )  # fmt: skip


@pytest.mark.parametrize(
    "name", ["llama", "llama-linear", "llama-llama3", "llama-sharded", "mistral", "qwen2", "qwen3"]
)
def test_config_that_transformers_wrote(name: str) -> None:
    config = json.loads((FIXTURES / name / "config.json").read_text())
    generation = json.loads((FIXTURES / name / "generation_config.json").read_text())
    c = model_config(config, generation, FIXTURES / name)
    assert (c.hidden, c.layer_count, c.vocab) == (
        config["hidden_size"],
        config["num_hidden_layers"],
        config["vocab_size"],
    )
    assert c.eos_ids[:1] == (2,)
    assert c.sizes.window == (9 if name == "mistral" else 0)
    assert (c.sizes.qkv_bias, c.sizes.qk_norm) == (name == "qwen2", name == "qwen3")
    scaling = c.sizes.rope.scaling if c.sizes.rope else None
    assert (scaling.kind if scaling else "") == (name.partition("-")[2] if config.get("rope_scaling") or
        config.get("rope_parameters", {}).get("rope_type", "default") != "default" else "")  # fmt: skip


@pytest.mark.parametrize(
    ("config", "generation", "field", "expected"),
    [
        pytest.param(like("llama", num_key_value_heads=ABSENT), {}, "kv_heads", 4, id="kv-heads-as-heads"),
        pytest.param(like("mistral", num_key_value_heads=None), {}, "kv_heads", 4, id="kv-heads-null"),
        pytest.param(like("llama", head_dim=32), {}, "head_dim", 32, id="head-dim-not-hidden-by-heads"),
        pytest.param(like("llama", head_dim=None), {}, "head_dim", 16, id="head-dim-null"),
        pytest.param(like("llama", head_dim=20, hidden_size=63), {}, "head_dim", 20, id="head-dim-frees-hidden"),
        pytest.param(like("qwen2"), {}, "qkv_bias", True, id="qwen2-bias"),
        pytest.param(like("qwen3"), {}, "qk_norm", True, id="qwen3-head-norm"),
        pytest.param(like("llama", architectures=ABSENT), {}, "qk_norm", False, id="model-type-alone"),
        pytest.param(like("qwen3", model_type=ABSENT), {}, "qk_norm", True, id="architectures-alone"),
        pytest.param(like("llama", tie_word_embeddings=True), {}, "tied", True, id="tied"),
        pytest.param(like("llama", tie_word_embeddings=ABSENT), {}, "tied", False, id="untied-by-default"),
        pytest.param(like("llama", torch_dtype="float16"), {}, "dtype", "float16", id="torch-dtype"),
        pytest.param(like("llama", torch_dtype=ABSENT, dtype="torch.float32"), {}, "dtype", "float32", id="dtype"),
        pytest.param(like("llama", torch_dtype=ABSENT), {}, "dtype", "float32", id="no-dtype"),
        pytest.param(like("llama", rope_theta=ABSENT), {}, "rope", Rope(10000.0), id="no-theta"),
        pytest.param(like("llama", rope_theta=10000), {}, "rope", Rope(10000.0), id="integer-theta"),
        pytest.param(LLAMA, {"eos_token_id": 7}, "eos_ids", (7, 2), id="eos-generation-first"),
        pytest.param(LLAMA, {"eos_token_id": [2, 9]}, "eos_ids", (2, 9), id="eos-list-merged"),
        pytest.param(like("llama", eos_token_id=[3, 3, 4]), {}, "eos_ids", (3, 4), id="eos-list-once-each"),
        pytest.param(like("llama", eos_token_id=None), {}, "eos_ids", (), id="eos-none"),
        pytest.param(LLAMA, {"bos_token_id": 5}, "bos_id", 5, id="bos-generation-first"),
        pytest.param(like("llama", bos_token_id=ABSENT), {}, "bos_id", None, id="bos-none"),
        pytest.param(like("mistral", sliding_window=9), {}, "window", 9, id="mistral-window"),
        pytest.param(like("mistral"), {}, "window", 0, id="mistral-no-window"),
        pytest.param(like("mistral", sliding_window=128), {}, "window", 0, id="window-never-reached"),
        pytest.param(like("qwen2", sliding_window=9), {}, "window", 0, id="qwen-window-not-used"),
        pytest.param(
            like("qwen2", sliding_window=9, use_sliding_window=True, max_window_layers=0), {}, "window", 9,
            id="qwen-window-on-all",
        ),
        pytest.param(
            like("qwen2", sliding_window=9, use_sliding_window=True, max_window_layers=28), {}, "window", 0,
            id="qwen-window-on-none",
        ),
        pytest.param(
            like("qwen3", sliding_window=9, use_sliding_window=True, layer_types=["sliding_attention"] * 4), {},
            "window", 9, id="layer-types-all",
        ),
    ],
)  # fmt: skip
def test_reads(config: dict[str, Any], generation: dict[str, Any], field: str, expected: Any) -> None:
    c = read(config, generation)
    assert getattr(c if hasattr(c, field) else c.sizes, field) == expected


QWEN = {"sliding_window": 9, "use_sliding_window": True}
MIXED = ["full_attention", "sliding_attention"] * 2


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(like("qwen2", **QWEN, max_window_layers=3), [0, 0, 0, 9], id="max-window-layers"),
        pytest.param(like("qwen2", **QWEN, layer_types=MIXED), [0, 9, 0, 9], id="layer-types"),
        pytest.param(like("qwen3", **{**QWEN, "sliding_window": 128}, layer_types=MIXED), [0] * 4, id="never-reached"),
    ],
)
def test_windows_of_layers(config: dict[str, Any], expected: list[int]) -> None:
    assert [spec.window for spec in read(config).layers] == expected


OLD_LLAMA3 = {**LLAMA3, "type": "llama3"}
NEW_LLAMA3 = {**LLAMA3, "rope_theta": 1e6}
SCALED = RopeScaling("llama3", 8.0, 1.0, 4.0, 64)


@pytest.mark.parametrize(
    ("changes", "theta", "scaling"),
    [
        pytest.param({"rope_scaling": None}, 5e5, None, id="none"),
        pytest.param({"rope_scaling": {"rope_type": "default"}}, 5e5, None, id="default"),
        pytest.param({"rope_scaling": {"type": "linear", "factor": 2}}, 5e5, RopeScaling("linear", 2.0), id="linear"),
        pytest.param({"rope_scaling": OLD_LLAMA3}, 5e5, SCALED, id="llama3"),
        pytest.param({"rope_parameters": NEW_LLAMA3, "rope_theta": ABSENT}, 1e6, SCALED, id="new-llama3"),
        pytest.param({"rope_parameters": LLAMA3}, 5e5, SCALED, id="new-theta-outside"),
        pytest.param({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5, None, id="new-default"),
        pytest.param({"rope_parameters": LLAMA3, "rope_scaling": OLD_LLAMA3}, 5e5, SCALED, id="both-agree"),
    ],
)
def test_rope(changes: dict[str, Any], theta: float, scaling: RopeScaling | None) -> None:
    assert read(like("llama", **changes)).sizes.rope == Rope(theta, scaling)


SIZES = ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
         "intermediate_size", "vocab_size", "max_position_embeddings"]  # fmt: skip
BAD_SIZES = {
    "zero": 0, "negative": -8, "fraction": 8.5, "whole-float": 8.0, "boolean": True, "text": "8", "list": [8],
    "huge": 2**31, "beyond-float": 10**400, "beyond-print": 10**5000, "nan": float("nan"),
}  # fmt: skip


@pytest.mark.parametrize("value", [pytest.param(value, id=name) for name, value in BAD_SIZES.items()])
@pytest.mark.parametrize("key", SIZES)
def test_bad_size(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"some/model/config\.json: {key}: expected an integer in \[1, ") as e:
        read(like("llama", **{key: value}))
    assert len(str(e.value)) < 250


@pytest.mark.parametrize("key", [key for key in SIZES if key not in ("num_key_value_heads", "head_dim")])
def test_missing_size(key: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {key}: expected .*, found nothing"):
        read(like("llama", **{key: ABSENT}))


WRONG, UNSUPPORTED = CheckpointError, UnsupportedModel


@pytest.mark.parametrize(
    ("error", "key", "config"),
    [
        pytest.param(WRONG, "architectures", like("llama", architectures=ABSENT, model_type=ABSENT), id="no-arch"),
        pytest.param(WRONG, "architectures", like("llama", architectures=[]), id="empty-arch"),
        pytest.param(WRONG, "architectures", like("llama", architectures="LlamaForCausalLM"), id="arch-not-list"),
        pytest.param(WRONG, "model_type", like("llama", model_type="mistral"), id="arch-contradiction"),
        pytest.param(UNSUPPORTED, "architectures", like("llama", architectures=["Mamba"]), id="unknown-arch"),
        pytest.param(UNSUPPORTED, "model_type", like("llama", model_type="gemma2"), id="unknown-type"),
        pytest.param(UNSUPPORTED, "model_type", like("llama", model_type=["llama"]), id="type-not-text"),
        pytest.param(WRONG, "num_key_value_heads", like("llama", num_key_value_heads=3), id="kv-heads-not-divisor"),
        pytest.param(WRONG, "num_key_value_heads", like("llama", num_key_value_heads=8), id="more-kv-heads"),
        pytest.param(WRONG, "num_key_value_heads", like("mistral", num_key_value_heads=ABSENT), id="no-kv-heads"),
        pytest.param(WRONG, "hidden_size", like("llama", hidden_size=66), id="hidden-not-divisible"),
        pytest.param(WRONG, "head_dim", like("llama", head_dim=15), id="odd-head-dim"),
        pytest.param(WRONG, "head_dim", like("qwen3", head_dim=ABSENT), id="qwen3-no-head-dim"),
        pytest.param(WRONG, "rms_norm_eps", like("llama", rms_norm_eps=ABSENT), id="no-eps"),
        pytest.param(WRONG, "rms_norm_eps", like("llama", rms_norm_eps=0), id="zero-eps"),
        pytest.param(WRONG, "rms_norm_eps", like("llama", rms_norm_eps=float("nan")), id="nan-eps"),
        pytest.param(WRONG, "rope_theta", like("llama", rope_theta=float("inf")), id="infinite-theta"),
        pytest.param(WRONG, "rope_theta", like("llama", rope_theta=True), id="boolean-theta"),
        pytest.param(WRONG, "rope_scaling", like("llama", rope_scaling="linear"), id="rope-not-object"),
        pytest.param(WRONG, "rope_scaling: rope_type", like("llama", rope_scaling={"factor": 2.0}), id="rope-untyped"),
        pytest.param(WRONG, "rope_scaling: factor", like("llama", rope_scaling={"type": "yarn"}), id="yarn-no-factor"),
        pytest.param(
            UNSUPPORTED, "rope_parameters: rope_type", like("llama", rope_parameters={"rope_type": "dynamic"}),
            id="rope-dynamic",
        ),
        pytest.param(
            WRONG, "rope_parameters: rope_type", like("llama", rope_parameters={"full_attention": {}}),
            id="rope-for-each-layer-type",
        ),
        pytest.param(
            WRONG, "rope_scaling: type", like("llama", rope_scaling={**LLAMA3, "type": "linear"}), id="rope-two-types"
        ),
        pytest.param(WRONG, "rope_scaling: factor", like("llama", rope_scaling={"type": "linear"}), id="no-factor"),
        pytest.param(
            WRONG, "rope_scaling: factor", like("llama", rope_scaling={**LLAMA3, "factor": 0}), id="rope-zero-factor"
        ),
        pytest.param(
            WRONG, "high_freq_factor", like("llama", rope_scaling={**LLAMA3, "high_freq_factor": 1.0}), id="rope-band"
        ),
        pytest.param(
            WRONG, "rope_theta", like("llama", rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
            id="two-thetas",
        ),
        pytest.param(
            WRONG, "rope_scaling", like("llama", rope_parameters=LLAMA3, rope_scaling={"type": "linear", "factor": 2}),
            id="two-ropes",
        ),
        pytest.param(
            UNSUPPORTED, "partial_rotary_factor", like("llama", partial_rotary_factor=0.5), id="partial-rotary"
        ),
        pytest.param(UNSUPPORTED, "hidden_act", like("llama", hidden_act="gelu"), id="gelu"),
        pytest.param(UNSUPPORTED, "attention_bias", like("llama", attention_bias=True), id="llama-bias"),
        pytest.param(UNSUPPORTED, "attention_bias", like("qwen3", attention_bias=True), id="qwen3-bias"),
        pytest.param(WRONG, "attention_bias", like("llama", attention_bias=1), id="bias-not-boolean"),
        pytest.param(UNSUPPORTED, "mlp_bias", like("llama", mlp_bias=True), id="mlp-bias"),
        pytest.param(WRONG, "tie_word_embeddings", like("llama", tie_word_embeddings="no"), id="tied-not-boolean"),
        pytest.param(UNSUPPORTED, "quantization_config", like("llama", quantization_config={"bits": 4}), id="bits"),
        pytest.param(UNSUPPORTED, "torch_dtype", like("llama", torch_dtype="float8_e4m3fn"), id="unknown-dtype"),
        pytest.param(WRONG, "dtype", like("llama", dtype="float16"), id="two-dtypes"),
        pytest.param(UNSUPPORTED, "sliding_window", like("llama", sliding_window=9), id="llama-window"),
        pytest.param(WRONG, "sliding_window", like("mistral", sliding_window=ABSENT), id="mistral-window-missing"),
        pytest.param(WRONG, "sliding_window", like("mistral", sliding_window=0), id="zero-window"),
        pytest.param(WRONG, "sliding_window", like("qwen2", use_sliding_window=True, max_window_layers=0), id="none"),
        pytest.param(WRONG, "max_window_layers", like("qwen2", **QWEN), id="window-layers-missing"),
        pytest.param(WRONG, "layer_types", like("qwen2", **QWEN, layer_types=["full_attention"]), id="few-layer-types"),
        pytest.param(UNSUPPORTED, "layer_types", like("qwen2", **QWEN, layer_types=["chunked"] * 4), id="layer-type"),
        pytest.param(UNSUPPORTED, "layer_types", like("mistral", sliding_window=9, layer_types=MIXED), id="mixed"),
        pytest.param(WRONG, "eos_token_id", like("llama", eos_token_id=256), id="eos-beyond-vocabulary"),
        pytest.param(WRONG, "eos_token_id", like("llama", eos_token_id=[2, -1]), id="eos-negative"),
        pytest.param(WRONG, "eos_token_id", like("llama", eos_token_id=True), id="eos-boolean"),
        pytest.param(WRONG, "bos_token_id", like("llama", bos_token_id="<s>"), id="bos-text"),
    ],
)  # fmt: skip
def test_refused(error: type[CheckpointError], key: str, config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"^some/model/config\.json: ") as e:
        read(config)
    assert type(e.value) is error
    assert f"{key}: " in str(e.value) and "expected" in str(e.value) and "found" in str(e.value)


@pytest.mark.parametrize(
    "value", [pytest.param([], id="list"), pytest.param("{}", id="text"), pytest.param(None, id="null")]
)
def test_not_an_object(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: expected a JSON object"):
        read(value)


def test_generation_config_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"some/model/generation_config\.json: eos_token_id: "):
        read(LLAMA, {"eos_token_id": 999})


def test_gguf_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"^some/model\.gguf: vocab_size: "):
        model_config({**LLAMA, "vocab_size": 0}, {}, Path("some/model.gguf"))
