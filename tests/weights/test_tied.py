"""Tied weights of which a file has one name only: the model is the same whichever it is, in one file or in shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import entry, refused, safetensors, write_safetensors

from ostinato.models.families import model_config
from ostinato.ops.numpy import NumpyOps
from ostinato.run.load import weights
from ostinato.weights import names
from ostinato.weights.checkpoint import open_checkpoint
from ostinato.weights.safetensors import read_directory

FIXTURES = Path(__file__).parents[1] / "fixtures"
HEADS = {  # fixture: (embedding, the other name of it)
    "llama": ("model.embed_tokens.weight", "lm_head.weight"),
    "mistral": ("model.embed_tokens.weight", "lm_head.weight"),
    "qwen2": ("model.embed_tokens.weight", "lm_head.weight"),
    "qwen3": ("model.embed_tokens.weight", "lm_head.weight"),
    "gpt2": ("wte.weight", "lm_head.weight"),
    "gpt2-gelu": ("transformer.wte.weight", "lm_head.weight"),
    "bert-masked": ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
}
S1, S2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def write(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """A safetensors file with metadata."""
    write_safetensors(path, arrays)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = {"__metadata__": {"format": "pt", **metadata}, **json.loads(raw[8 : 8 + length])}
    path.write_bytes(safetensors(header, raw[8 + length :]))


def save(folder: Path, arrays: dict[str, np.ndarray], config: dict[str, Any], how: str, alias: dict[str, str]) -> None:
    """A checkpoint in one file or in two shards; alias {name that is not stored: the one that is}."""
    (folder / "config.json").write_text(json.dumps(config))
    if how == "one file":
        write(folder / "model.safetensors", arrays, alias)
        return
    where = {name: (S1, S2)[i % 2] for i, name in enumerate(arrays)}
    for file in (S1, S2):
        write(folder / file, {n: a for n, a in arrays.items() if where[n] == file}, {})
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1, **alias}, "weight_map": where}))


def flat(w: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Every array of loaded weights with its place."""
    for owner, prefix in [(w, ""), *((layer, f"{i}.") for i, layer in enumerate(w.layers))]:
        for name, value in vars(owner).items():
            if name != "layers" and value is not None:
                yield prefix + name, np.asarray(value)


@pytest.mark.parametrize("how", ["one file", "shards"])
@pytest.mark.parametrize(
    ("stored", "alias", "tied"),
    [
        pytest.param("embedding", False, True, id="embedding"),
        pytest.param("head", False, True, id="head"),
        pytest.param("embedding", True, True, id="embedding-alias"),
        pytest.param("head", True, True, id="head-alias"),
        pytest.param("embedding", True, False, id="embedding-alias-only"),
        pytest.param("head", True, False, id="head-alias-only"),
    ],
)
@pytest.mark.parametrize("name", HEADS)
def test_either_name_loads(tmp_path: Path, name: str, stored: str, alias: bool, tied: bool, how: str) -> None:
    """alias: the metadata say which name is missing; tied: the configuration says that there are two."""
    embed, head = HEADS[name]
    with open_checkpoint(FIXTURES / name) as ck:
        arrays = {n: np.array(ck.tensor(n)) for n in ck.names() if n != head and ck.stored(n)[0] in "BF"}
        config = {**ck.config, "tie_word_embeddings": tied}
    kept, gone = (embed, head) if stored == "embedding" else (head, embed)
    kept_only = {kept if n == embed else n: a for n, a in arrays.items()}
    save(tmp_path, kept_only, config, how, {gone: kept} if alias else {})
    with open_checkpoint(tmp_path) as ck:
        c = model_config(ck.config, {}, ck.source)
        found = dict(flat(weights(NumpyOps(), ck, c)))
    (tmp_path / "both").mkdir()
    save(tmp_path / "both", {**arrays, head: arrays[embed]}, {**config, "tie_word_embeddings": True}, how, {})
    with open_checkpoint(tmp_path / "both") as ck:
        expected = dict(flat(weights(NumpyOps(), ck, model_config(ck.config, {}, ck.source))))
    assert found.keys() == expected.keys() >= {"embed", "head"}
    for place, array in expected.items():
        np.testing.assert_array_equal(found[place], array, err_msg=place)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(
    ("tied", "alias", "stored"),
    [
        pytest.param(False, {}, 1, id="the configuration says that they differ"),
        pytest.param(True, {}, None, id="neither name"),
        pytest.param(False, {0: 2}, 1, id="alias of what is not there"),
    ],
)
def test_no_embedding_is_refused(tmp_path: Path, name: str, tied: bool, alias: dict, stored: int | None) -> None:
    pair = (*HEADS[name], "absent.weight")
    with open_checkpoint(FIXTURES / name) as ck:
        arrays = {n: np.array(ck.tensor(n)) for n in ck.names() if n not in pair and ck.stored(n)[0] in "BF"}
        shape = ck.shape(pair[0])
        config = {**ck.config, "tie_word_embeddings": tied}
    if stored is not None:
        arrays[pair[stored]] = np.ones(shape, "f4")
    save(tmp_path, arrays, config, "one file", {pair[a]: pair[b] for a, b in alias.items()})
    with open_checkpoint(tmp_path) as ck:
        c = model_config(ck.config, {}, ck.source)
        refused(lambda: names.check(ck, c), pair[0], "is missing")


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        pytest.param({"a.weight": "b.weight"}, {"a.weight"}, id="alias"),
        pytest.param({"a.weight": "b.weight", "c.bias": "b.weight"}, {"a.weight", "c.bias"}, id="two aliases"),
        pytest.param({"b.weight": "c.weight"}, set(), id="alias of a tensor that is stored"),
        pytest.param({"a.weight": "c.weight"}, set(), id="of what is not stored"),
        pytest.param({"c.weight": "a.weight", "a.weight": "b.weight"}, {"a.weight"}, id="alias of an alias"),
        pytest.param({"format": "b.weight", "note": "pt"}, set(), id="other texts"),
        pytest.param({"../x.weight": "b.weight", "é.weight": "b.weight", ".weight": "b.weight"}, set(), id="not plain"),
        pytest.param({"a" * 300 + ".weight": "b.weight"}, set(), id="long"),
    ],
)
@pytest.mark.parametrize("where", ["file", "shard", "index"])
def test_aliases(tmp_path: Path, where: str, metadata: dict[str, str], expected: set[str]) -> None:
    arrays = {"b.weight": np.ones(1, "f4")}
    write(tmp_path / ("model.safetensors" if where == "file" else S1), arrays, metadata if where != "index" else {})
    more = metadata if where == "index" else {}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": more, "weight_map": {"b.weight": S1}}))
    tensors = read_directory(tmp_path)
    assert tensors.keys() == {"b.weight"} | expected
    assert all(tensor is tensors["b.weight"] for tensor in tensors.values())


@pytest.mark.parametrize("value", [[], "x", 1, None, {"a.weight": 1, "c.weight": ["b.weight"]}], ids=repr)
def test_metadata_of_an_index_may_be_anything(tmp_path: Path, value: Any) -> None:
    write(tmp_path / S1, {"b.weight": np.ones(1, "f4")}, {})
    (tmp_path / INDEX).write_text(json.dumps({"metadata": value, "weight_map": {"b.weight": S1}}))
    assert read_directory(tmp_path).keys() == {"b.weight"}


def test_an_alias_in_one_shard_of_a_tensor_in_another(tmp_path: Path) -> None:
    write(tmp_path / S1, {"b.weight": np.ones(1, "f4")}, {})
    (tmp_path / S2).write_bytes(safetensors({"__metadata__": {"a.weight": "b.weight"}, "c": entry()}, bytes(4)))
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"b.weight": S1, "c": S2}}))
    tensors = read_directory(tmp_path)
    assert tensors["a.weight"] is tensors["b.weight"]
