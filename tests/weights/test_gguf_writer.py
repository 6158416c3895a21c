"""Whole models that the gguf package wrote: mixes of types, splits, any name, folders that are read-only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from checkpoint_files import random_blocks
from loading import logits

from ostinato.ops.numpy import NumpyOps
from ostinato.weights.checkpoint import open_checkpoint
from ostinato.weights.fetch import resolve

HIDDEN, FFN, HEADS, KV_HEADS, VOCAB, LAYERS = 256, 288, 4, 2, 40, 2
SHAPES = {  # of the matrices of a layer; 288 is no multiple of 256
    "attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN // 2, HIDDEN), "attn_v": (HIDDEN // 2, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN), "ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN), "ffn_down": (HIDDEN, FFN),
}  # fmt: skip
MIXES = {  # the type of most matrices, that of some in every second layer, and that of some others everywhere
    "Q4_K_M, tied": ("Q4_K", {"attn_v": "Q6_K"}, {"ffn_down": "Q5_0", "token_embd": "Q6_K"}),
    "Q4_K_M, Q8_0 where no block fits": ("Q4_K", {"attn_v": "Q6_K"}, {"ffn_down": "Q8_0", "output": "Q6_K"}),
    "Q5_K_M, tied in Q8_0": ("Q5_K", {"attn_v": "Q6_K"}, {"ffn_down": "Q5_1", "token_embd": "Q8_0"}),
}


def matrices(mix: str) -> dict[str, tuple[str, tuple[int, int]]]:
    """Type and shape of every matrix."""
    kind, second, always = MIXES[mix]
    found = {name: (always.get(name, kind), (VOCAB, HIDDEN)) for name in ("token_embd", "output")}
    if "output" not in always:
        del found["output"]
    for i in range(LAYERS):
        for name, shape in SHAPES.items():
            of = always.get(name) or (second.get(name) if i % 2 else None) or kind
            found[f"blk.{i}.{name}"] = of, shape
    return found


def write(path: Path, mix: str = "Q4_K_M, tied", plain: bool = False, **options: Any) -> Path:
    """A llama of random blocks, or the same numbers in float32 by the package's own decoder; the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama", **options)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    for i, (name, (kind, (n, k))) in enumerate(matrices(mix).items()):
        raw, of = random_blocks(kind, n, k, i, 0.2).raw, gguf.GGMLQuantizationType[kind]
        if plain:
            writer.add_tensor(f"{name}.weight", gguf.dequantize(raw, of).reshape(n, k))
        else:
            writer.add_tensor(f"{name}.weight", raw, raw_dtype=of)
    rng = np.random.default_rng(1)
    for name in ("output_norm", *(f"blk.{i}.{n}_norm" for i in range(LAYERS) for n in ("attn", "ffn"))):
        writer.add_tensor(f"{name}.weight", 1 + rng.standard_normal(HIDDEN).astype("f4") / 8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.parent


@pytest.mark.parametrize("mix", MIXES)
def test_the_logits_are_those_of_the_same_model_in_float32(tmp_path: Path, mix: str) -> None:
    write(tmp_path / "stored.gguf", mix)
    write(tmp_path / "plain.gguf", mix, plain=True)
    expected = logits(tmp_path / "plain.gguf", NumpyOps())
    assert np.isfinite(expected).all() and expected.std() > 0.01
    np.testing.assert_array_equal(logits(tmp_path / "stored.gguf", NumpyOps()), expected)
    with open_checkpoint(tmp_path / "stored.gguf") as ck:
        stored = [ck.stored(name) for name in ck.names() if ck.quantised(name) is not None]
    assert stored == [kind for kind, _ in matrices(mix).values()]


SPLITS = [  # options of the package
    pytest.param({"split_max_tensors": 8}, 3, id="by tensors"),
    pytest.param({"split_max_size": 200_000}, None, id="by size"),
    pytest.param({"split_max_tensors": 8, "small_first_shard": True}, 4, id="metadata in a part of its own"),
]
NAMES = ["model.gguf", "a model of two words.gguf", "größe 模型.gguf", "m-00001-of-00002.gguf", "[a]*?%20.gguf"]


@pytest.mark.parametrize(("options", "count"), SPLITS)
def test_what_the_package_splits_is_one_model(tmp_path: Path, options: dict[str, Any], count: int | None) -> None:
    folder = write(tmp_path / "größe 模型" / "two words.gguf", **options)
    files = sorted(folder.iterdir())
    assert len(files) == count or (count is None and len(files) > 2)
    whole = write(tmp_path / "whole" / "m.gguf") / "m.gguf"
    expected = logits(whole, NumpyOps())
    for path in (folder, files[0], files[-1]):
        np.testing.assert_array_equal(logits(resolve(path), NumpyOps()), expected)
    for path in files:
        with open_checkpoint(resolve(str(path))) as ck:
            assert ck.source == path and len(ck.names()) == 20


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["plain", "two words", "größe 模型", "[a]*?%20"])
def test_any_name_of_a_file_and_its_folder(tmp_path: Path, place: str, name: str) -> None:
    folder = write(tmp_path / place / name)
    for path in (folder, folder / name, str(folder / name)):
        with open_checkpoint(resolve(path)) as ck:
            assert ck.stored("model.embed_tokens.weight") == "Q6_K"


@pytest.mark.parametrize("options", [{}, {"split_max_tensors": 8}], ids=["one file", "split"])
def test_a_read_only_folder_is_enough(tmp_path: Path, options: dict[str, Any]) -> None:
    """Nothing is written or locked beside a model. What is there stays as it was, also where the tests run as root."""
    folder = write(tmp_path / "m" / "m.gguf", **options)
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    try:
        before = [(e.name, e.stat().st_mtime_ns, e.stat().st_size) for e in os.scandir(folder)]
        assert np.isfinite(logits(resolve(folder), NumpyOps())).all()
        assert [(e.name, e.stat().st_mtime_ns, e.stat().st_size) for e in os.scandir(folder)] == before
    finally:
        folder.chmod(0o755)
