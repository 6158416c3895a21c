"""The plan of a decoder, and the check of a checkpoint against it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import refused, write_safetensors
from configs import changed, flat

from ostinato.config import ModelConfig
from ostinato.errors import CheckpointError, UnsupportedModel
from ostinato.models.families import model_config
from ostinato.weights import names
from ostinato.weights.checkpoint import open_checkpoint

FIXTURES = Path(__file__).parents[1] / "fixtures"
BASE = flat(layers=2, hidden=8, heads=4, kv_heads=2, head_dim=3, ffn=10, vocab=20, max_len=30, eps=1e-5, segments=2,
            tied=True)  # fmt: skip
LAYER = ["attn_norm", "qkv", "o", "mlp_norm", "gate_up", "down"]


def model(**change: Any) -> ModelConfig:
    return changed(BASE, **change)


def arrays(c: Any) -> dict[str, np.ndarray]:
    """A tensor for each name of the plan, each with numbers of its own."""
    rng = np.random.default_rng(0)
    pairs = [pair for e in names.plan(c) for pair in zip(e.tensors, e.shapes, strict=True)]
    return {name: rng.standard_normal(shape).astype("f4") for name, shape in pairs}


def check(folder: Path, c: Any, tensors: dict[str, np.ndarray]) -> list[names.Entry]:
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text("{}")
    with open_checkpoint(folder) as checkpoint:
        return names.check(checkpoint, c)


@pytest.mark.parametrize(
    ("change", "top", "layer"),
    [
        pytest.param({}, ["embed", "norm"], LAYER, id="tied"),
        pytest.param({"tied": False}, ["embed", "norm", "head"], LAYER, id="with a head"),
        pytest.param({"qkv_bias": True}, ["embed", "norm"], [*LAYER, "qkv_bias"], id="bias"),
        pytest.param({"qk_norm": True}, ["embed", "norm"], [*LAYER, "q_norm", "k_norm"], id="norm of heads"),
    ],
)
def test_plan_has_every_weight_once(change: dict, top: list[str], layer: list[str]) -> None:
    entries = list(names.plan(model(**change)))
    paths = [*top, *(f"layers.{i}.{n}" for i in (0, 1) for n in layer)]
    assert Counter(e.path for e in entries) == Counter(paths)
    assert max(Counter(t for e in entries for t in e.tensors).values()) == 1


@pytest.mark.parametrize(
    ("path", "kind", "layout", "shapes"),
    [
        ("embed", "weight", "rows", [(20, 8)]),
        ("head", "weight", "rows", [(20, 8)]),
        ("norm", "vector", "rows", [(8,)]),
        ("layers.1.attn_norm", "vector", "rows", [(8,)]),
        ("layers.1.qkv", "weight", "qkv", [(12, 8), (6, 8), (6, 8)]),
        ("layers.1.qkv_bias", "vector", "qkv", [(12,), (6,), (6,)]),
        ("layers.1.q_norm", "vector", "rows", [(3,)]),
        ("layers.1.k_norm", "vector", "rows", [(3,)]),
        ("layers.1.o", "weight", "rows", [(8, 12)]),
        ("layers.1.mlp_norm", "vector", "rows", [(8,)]),
        ("layers.1.gate_up", "weight", "gate_up", [(10, 8), (10, 8)]),
        ("layers.1.down", "weight", "rows", [(8, 10)]),
    ],
)
def test_kinds_layouts_and_shapes(path: str, kind: str, layout: str, shapes: list[tuple[int, ...]]) -> None:
    c = model(tied=False, qkv_bias=True, qk_norm=True)
    entry = next(e for e in names.plan(c) if e.path == path)
    assert (entry.kind, entry.layout, list(entry.shapes)) == (kind, layout, shapes)


POOLER = {"pooler.dense.weight", "pooler.dense.bias"}
MASKS = {f"h.{i}.attn.{name}" for i in (0, 1) for name in ("bias", "masked_bias")}
PREDICTIONS = {"bert.embeddings.position_ids"} | {
    f"cls.predictions.{name}"
    for name in (
        "bias",
        *(f"transform.{n}" for n in ("dense.weight", "dense.bias", "LayerNorm.gamma", "LayerNorm.beta")),
    )
}
VISION = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.")
NOT_NEEDED = {"bert": POOLER, "bert-masked": PREDICTIONS, "gpt2": MASKS}


@pytest.mark.parametrize("name", sorted(path.parent.name for path in FIXTURES.glob("*/config.json")))
def test_real_layouts_pass(name: str) -> None:
    with open_checkpoint(FIXTURES / name) as checkpoint:
        c = model_config(checkpoint.config, checkpoint.generation_config, checkpoint.source)
        used = [t for e in names.check(checkpoint, c) for t in e.tensors]
        assert len(used) == len(set(used))
        beside = {n for n in checkpoint.names() if VISION.match(n)}
        assert bool(beside) == (name in ("mistral3", "ministral3"))
        assert set(checkpoint.names()) - set(used) == NOT_NEEDED.get(name, set()) | beside


@pytest.mark.parametrize("name", ["bert", "bert-masked", "gpt2", "gpt2-gelu"])
def test_a_prefix_may_be_there_or_not(name: str, tmp_path: Path) -> None:
    """The other spelling of every name gives the same plan; half of them in the other spelling gives none."""
    prefix = "bert." if name.startswith("bert") else "transformer."
    with open_checkpoint(FIXTURES / name) as ck:
        c = model_config(ck.config, ck.generation_config, ck.source)
        before = names.check(ck, c)
        tensors = {n: np.array(ck.tensor(n)) for e in before for n in e.tensors}
    head = {n for n in tensors if n.startswith("lm_head")}
    other = {n: n if n in head else n.removeprefix(prefix) if n.startswith(prefix) else prefix + n for n in tensors}
    after = check(tmp_path, c, {other[n]: array for n, array in tensors.items()})
    assert [e._replace(tensors=tuple(other[n] for n in e.tensors)) for e in before] == after
    half = {other[n] if "LayerNorm" in n or "ln_" in n else n: array for n, array in tensors.items()}
    refused(lambda: check(tmp_path, c, half), "is missing")


O_BIAS = "model.layers.0.self_attn.o_proj.bias"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(lambda t: {"model.layers.1.self_attn.rotary_emb.inv_freq": np.ones(4, "f4")}, id="frequencies"),
        pytest.param(lambda t: {"model.rotary_emb.inv_freq": np.ones(4, "f4")}, id="frequencies of the model"),
        pytest.param(lambda t: {HEAD: t[EMBED]}, id="tied head that is the embedding"),
        pytest.param(lambda t: {O_BIAS: np.zeros(8, "f4")}, id="bias of zeros"),
        pytest.param(lambda t: {O_BIAS: -np.zeros(8, "f2")}, id="bias of minus zeros"),
    ],
)
def test_harmless_leftovers_pass(tmp_path: Path, extra: Callable) -> None:
    tensors = arrays(model())
    assert len(check(tmp_path, model(), {**tensors, **extra(tensors)})) == 2 + 2 * len(LAYER)


DOWN = "model.layers.1.mlp.down_proj.weight"
BAD, LACKS = CheckpointError, UnsupportedModel


def ones(*shape: int, dtype: str = "f4") -> np.ndarray:
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("change", "words", "error"),
    [
        pytest.param({DOWN: None}, [DOWN, "missing", "[8, 10]"], BAD, id="missing"),
        pytest.param({EMBED: None}, [EMBED, "missing", "[20, 8]"], BAD, id="no embedding"),
        pytest.param({DOWN: ones(10, 8)}, [DOWN, "[8, 10]", "[10, 8]"], BAD, id="transposed"),
        pytest.param({DOWN: ones(80)}, [DOWN, "[8, 10]", "[80]"], BAD, id="flat"),
        pytest.param({EMBED: ones(19, 8)}, [EMBED, "[20, 8]", "[19, 8]"], BAD, id="vocabulary short"),
        pytest.param({DOWN: ones(8, 10, dtype="i8")}, [DOWN, "I64"], LACKS, id="integers"),
        pytest.param({O_BIAS: ones(8)}, [O_BIAS, "bias"], LACKS, id="bias of o"),
        pytest.param({O_BIAS: ones(8) * np.nan}, [O_BIAS], LACKS, id="bias not a number"),
        pytest.param(
            {"model.layers.0.mlp.up_proj.bias": ones(10)}, ["0.mlp.up_proj.bias"], LACKS, id="bias in the MLP"
        ),
        pytest.param(
            {"model.layers.0.self_attn.q_proj.bias": ones(12)}, ["q_proj.bias"], LACKS, id="bias not announced"
        ),
        pytest.param({"model.layers.0.self_attn.q_norm.weight": ones(3)}, ["q_norm"], LACKS, id="norm not announced"),
        pytest.param({HEAD: ones(20, 8)}, [HEAD, EMBED], BAD, id="tied head that differs"),
        pytest.param({EMBED: ones(20, 8), HEAD: ones(20, 8, dtype="f2")}, [HEAD], BAD, id="tied head, other type"),
        pytest.param(
            {"model.layers.2.mlp.up_proj.weight": ones(1)}, ["layers.2", "2 layers"], BAD, id="layer too many"
        ),
        pytest.param({"model.layers.0.moe.gate.weight": ones(1)}, ["moe.gate"], LACKS, id="another architecture"),
        pytest.param({"head.bias": ones(1)}, ["head.bias"], LACKS, id="bias of nothing"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, change: dict, words: list[str], error: type) -> None:
    tensors = {name: array for name, array in {**arrays(model()), **change}.items() if array is not None}
    refused(lambda: check(tmp_path, model(), tensors), str(tmp_path), *words, error=error)


BERT = {"arch": "bert", "family": "bert", "kv_heads": 4, "head_dim": 2}
GPT2 = {"arch": "gpt2", "family": "gpt2", "kv_heads": 4, "head_dim": 2}


@pytest.mark.parametrize(
    ("base", "change", "words", "error"),
    [
        pytest.param(BERT, {"bert.embeddings.token_type_embeddings.weight": ones(3, 8)}, ["[2, 8]", "[3, 8]"], BAD,
                     id="segments"),
        pytest.param(BERT, {"bert.embeddings.position_embeddings.weight": ones(29, 8)}, ["[30, 8]", "[29, 8]"], BAD,
                     id="positions"),
        pytest.param(BERT, {"bert.embeddings.LayerNorm.bias": None}, ["embeddings.LayerNorm.bias is missing"], BAD,
                     id="no-norm-bias"),
        pytest.param(BERT, {"bert.encoder.layer.2.output.dense.bias": ones(8)}, ["layer.2", "2 layers"], BAD,
                     id="layer-too-many"),
        pytest.param(BERT, {"bert.encoder.layer.0.crossattention.self.query.weight": ones(8, 8)}, ["crossattention"],
                     LACKS, id="cross-attention"),
        pytest.param(BERT, {"classifier.weight": ones(2, 8)}, ["classifier.weight", "no use"], LACKS, id="classifier"),
        pytest.param(BERT, {"lm_head.weight": ones(20, 8)}, ["lm_head.weight", "no use"], LACKS, id="bert-head"),
        pytest.param(GPT2, {"transformer.h.0.attn.c_attn.weight": ones(24, 8)}, ["[8, 24]", "[24, 8]"], BAD,
                     id="not-transposed"),
        pytest.param(GPT2, {"transformer.h.1.mlp.c_fc.bias": None}, ["h.1.mlp.c_fc.bias is missing"], BAD,
                     id="no-mlp-bias"),
        pytest.param(GPT2, {"transformer.wpe.weight": ones(31, 8)}, ["[30, 8]", "[31, 8]"], BAD, id="gpt2-positions"),
        pytest.param(GPT2, {"transformer.h.0.crossattention.c_attn.weight": ones(1)}, ["crossattention"], LACKS,
                     id="gpt2-cross-attention"),
        pytest.param(GPT2, {HEAD: ones(20, 8)}, [HEAD, "transformer.wte.weight"], BAD, id="tied-head-that-differs"),
        pytest.param(GPT2, {"transformer.h.0.attn.rotary_emb.inv_freq": ones(1)}, ["inv_freq"], LACKS, id="rotary"),
    ],
)  # fmt: skip
def test_what_does_not_fit_gpt2_or_bert(tmp_path: Path, base: dict, change: dict, words: list[str], error: type):
    c = model(**base)
    tensors = {name: array for name, array in {**arrays(c), **change}.items() if array is not None}
    refused(lambda: check(tmp_path, c, tensors), str(tmp_path), *words, error=error)


def test_the_first_missing_layer_is_named(tmp_path: Path) -> None:
    tensors = arrays(model())
    refused(lambda: check(tmp_path, model(layers=1024), tensors), "model.layers.2.input_layernorm.weight", "missing")


def test_unknown_architecture_is_refused() -> None:
    refused(lambda: names.plan(model(family="mamba")), "llama", "'mamba'", error=UnsupportedModel)
