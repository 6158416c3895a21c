"""config.json of each family: unknown keys, keys that must be neutral, RoPE tables, nested models."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ostinato.config import ModelConfig, Rope, RopeScaling
from ostinato.errors import CheckpointError, UnsupportedModel
from ostinato.models.families import FAMILIES, model_config

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
BASE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 256,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "dtype": "bfloat16",
}


def read(kind: str, **changes: Any) -> ModelConfig:
    return model_config({"model_type": kind, **BASE, **changes}, {}, Path("some/model"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"attention_sinks": 4, "zebra": None}, "attention_sinks, zebra", id="two"),
        pytest.param({"rope_scaling": {"type": "linear", "factor": 2, "odd": 1}}, "rope_scaling.odd", id="inner"),
        pytest.param({"initializer_range": 1, "attn_pdrop": 0, "image_token_id": 3}, "", id="none"),
    ],
)
def test_unread_keys_are_named_once(caplog: pytest.LogCaptureFixture, changes: dict, expected: str) -> None:
    with caplog.at_level(logging.WARNING, "ostinato"):
        read("llama", **changes)
    what = f"{Path('some/model/config.json')}: keys that the engine does not know, and ignores: {expected}"
    assert [r.getMessage() for r in caplog.records] == ([what] if expected else [])


@pytest.mark.parametrize("name", sorted(path.parent.name for path in FIXTURES.glob("*/config.json")))
def test_all_keys_of_the_fixtures_are_known(caplog: pytest.LogCaptureFixture, name: str) -> None:
    with caplog.at_level(logging.WARNING, "ostinato"):
        model_config(json.loads((FIXTURES / name / "config.json").read_text()), {}, FIXTURES / name)
    assert [m for m in caplog.messages if "does not know" in m] == []


CASES = [(family, key) for family in FAMILIES.values() for key in family.neutral if not family.text]


@pytest.mark.parametrize(("family", "key"), [pytest.param(f, k, id=f"{f.name}-{k}") for f, k in CASES])
def test_a_key_that_changes_the_numbers_is_refused(family: Any, key: str) -> None:
    """The first value is what an absent key means; another one than those listed is refused by name."""
    values = family.neutral[key]
    if values == (True, False):
        pytest.skip("either is fine")
    other = not values[0] if type(values[0]) is bool else 7 if values[0] is None else "other"
    learned = {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 64, "type_vocab_size": 2}
    config = {"model_type": family.name, **BASE, **learned, key: other}
    with pytest.raises(UnsupportedModel, match=f"config.json: {key}: not supported: expected .*, found"):
        model_config(config, {}, Path("some/model"))


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
USUAL = 0.1 * math.log(4) + 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, {}, id="plain"),
        pytest.param({"factor": None, "rope_theta": 1e6}, {}, id="factor-from-the-lengths"),
        pytest.param({"beta_fast": 16, "beta_slow": 2, "truncate": False},
                     {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False}, id="betas"),
        pytest.param({"attention_factor": 1.5}, {"attention_factor": 1.5}, id="attention-factor"),
        pytest.param({"mscale": 1.0, "mscale_all_dim": 1.0}, {"attention_factor": 1.0}, id="mscale"),
        pytest.param({"mscale": 1.0, "mscale_all_dim": 0}, {}, id="mscale-of-one"),
        pytest.param({"factor": 0.5}, {"factor": 0.5, "attention_factor": 1.0}, id="factor-below-one"),
        pytest.param({"original_max_position_embeddings": None}, {"original_max_len": 128}, id="no-length"),
    ],
)  # fmt: skip
def test_yarn(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    usual = {"factor": 4.0, "original_max_len": 32, "attention_factor": USUAL}
    c = read("qwen3", rope_scaling={**YARN, **changes})
    theta = changes.get("rope_theta", 10000.0)
    assert c.sizes.rope == Rope(theta, RopeScaling("yarn", **{**usual, **expected}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"rope_theta": 1.0}, "rope_theta: expected a number above 1", id="theta"),
        pytest.param({"beta_fast": 0.5}, "beta_fast: expected a number of at least beta_slow = 1", id="betas"),
        pytest.param({"truncate": 1}, "truncate: expected true or false", id="truncate"),
        pytest.param({"rope_type": "longrope"}, "short_factor: expected a list of 8 numbers", id="no-list"),
        pytest.param({"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 7 + [0]},
                     r"long_factor: expected numbers in \(0, 1e\+06\]", id="zero-in-list"),
    ],
)  # fmt: skip
def test_wrong_scaling_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json: rope_scaling: {words}"):
        read("llama", rope_scaling={**YARN, **change})


def test_longrope() -> None:
    scaling = {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2] * 8, "original_max_position_embeddings": 32}
    rope = read("llama", rope_scaling=scaling).sizes.rope
    factor = math.sqrt(1 + math.log(4) / math.log(32))
    lists: Any = {"short": (1.0,) * 8, "long": (2.0,) * 8}
    assert rope == Rope(10000.0, RopeScaling("longrope", original_max_len=32, attention_factor=factor, **lists))


@pytest.mark.parametrize("field", ["heads", "kv_heads", "head_dim", "ffn"])
def test_layers_of_different_sizes_are_refused(field: str) -> None:
    c = read("llama")
    other = replace(c.layers[2], **{field: 2 * getattr(c.layers[2], field)})
    mixed = replace(c, layers=(*c.layers[:2], other, c.layers[3]))
    with pytest.raises(UnsupportedModel, match=f"layer 2: {field}: expected .*, as in layer 0, found"):
        mixed.sizes  # noqa: B018


TEXT = {"model_type": "mistral", **BASE}


def test_a_model_that_sees_is_read_by_its_text_config() -> None:
    outer = {"model_type": "mistral3", "tie_word_embeddings": True, "vision_config": {}, "dtype": "float16"}
    c = model_config({**outer, "text_config": TEXT}, {"eos_token_id": 5}, Path("some/model"))
    assert (c.family, c.hidden, c.tied, c.dtype, c.eos_ids) == ("mistral3", 64, True, "float16", (5,))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(None, "text_config: expected a JSON object", id="none"),
        pytest.param(
            {**TEXT, "model_type": "mamba"}, "text_config: model_type: not supported: .*'mamba'", id="unknown"
        ),
        pytest.param({**TEXT, "model_type": "mistral3"}, "text_config: model_type: not", id="nested-twice"),
        pytest.param({**TEXT, "hidden_size": 0}, "text_config: hidden_size: expected an integer", id="wrong-size"),
        pytest.param({**TEXT, "mlp_bias": True}, "text_config: mlp_bias: not supported", id="not-neutral"),
    ],
)
def test_wrong_text_config_is_refused(text: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json: {words}"):
        model_config({"model_type": "mistral3", "text_config": text}, {}, Path("some/model"))


def test_ministral3_ends_where_its_queries_begin_to_be_scaled(caplog: pytest.LogCaptureFixture) -> None:
    rope = {**YARN, "llama_4_scaling_beta": 0.1}
    with caplog.at_level(logging.WARNING, "ostinato"):
        assert read("ministral3", rope_parameters=rope).max_len == 32
        assert read("ministral3", rope_parameters={**rope, "llama_4_scaling_beta": 0}).max_len == 128
    what = "rope_parameters: llama_4_scaling_beta = 0.1 is not supported from position 32 on: sequences end there"
    assert caplog.messages == [f"{Path('some/model/config.json')}: {what}"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, [1, 1, 1, 0], id="every-fourth"),
        pytest.param({"no_rope_layer_interval": 2}, [1, 0, 1, 0], id="interval"),
        pytest.param({"no_rope_layers": [0, 1, 1, 1]}, [0, 1, 1, 1], id="list"),
    ],
)
def test_smollm3_layers_without_positions(changes: dict[str, Any], expected: list[int]) -> None:
    c = read("smollm3", **changes)
    assert [int(spec.rope is not None) for spec in c.layers] == expected
    assert c.tied and c.layers[0].rope in (Rope(2e6), None)


@pytest.mark.parametrize("given", [[1, 0], [1, 1, 1, 2], [True, True, True, True], 4])
def test_wrong_no_rope_layers_are_refused(given: Any) -> None:
    with pytest.raises(CheckpointError, match="no_rope_layers: expected a list of 4 zeros and ones"):
        read("smollm3", no_rope_layers=given)
