"""GGUF models in several files: any part opens all of them; parts that do not belong together are refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import llama_keys, refused, write_gguf

from ostinato.weights.checkpoint import open_checkpoint

E, N, H, F = "token_embd.weight", "output_norm.weight", "output.weight", "blk.0.ffn_norm.weight"
ARRAYS = {E: np.arange(96, dtype="f4").reshape(12, 8), N: np.ones(8, "f4"), F: np.full(8, 2, "f2"),
          H: np.ones((12, 8), "f4")}  # fmt: skip
NAMES = [f"m-Q4_K_M-0000{i}-of-00003.gguf" for i in (1, 2, 3)]


def write(
    folder: Path, no: int, names: list[str], keys: dict[str, Any] | None = None, at: str | None = None, **more: Any
) -> None:
    """Part `no` of three, with these of ARRAYS; the first has all metadata. more: keys that differ, None for none."""
    own = llama_keys() if keys is None and no == 0 else keys or {}
    split = {"split.no": no, "split.count": 3, "split.tensors.count": len(ARRAYS)}
    split |= {k.replace("__", "."): v for k, v in more.items()}
    every = {k: v for k, v in (own | split).items() if v is not None}
    write_gguf(folder / (at or NAMES[no]), every, {n: ARRAYS[n] for n in names})


def sound(folder: Path) -> None:
    for no, names in enumerate(([E], [N, H], [F])):
        write(folder, no, names)


@pytest.mark.parametrize("which", [0, 1, 2, None])
@pytest.mark.parametrize("linked", [False, True], ids=["files", "links"])
def test_any_part_and_the_directory_open_all(tmp_path: Path, which: int | None, linked: bool) -> None:
    sound(tmp_path)
    folder = tmp_path
    if linked:  # as download caches have them
        folder = tmp_path / "snapshot"
        folder.mkdir()
        for i, name in enumerate(NAMES):
            (tmp_path / name).rename(tmp_path / f"{i}{i}")
            (folder / name).symlink_to(f"../{i}{i}")
    with open_checkpoint(folder if which is None else folder / NAMES[which]) as ck:
        assert ck.source == folder / NAMES[which or 0]
        assert ck.names() == ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
                              "model.layers.0.post_attention_layernorm.weight"]  # fmt: skip
        assert ck.config["hidden_size"] == 8 and not ck.config["tie_word_embeddings"]
        np.testing.assert_array_equal(ck.tensor("model.embed_tokens.weight"), ARRAYS[E])
        np.testing.assert_array_equal(ck.tensor("model.layers.0.post_attention_layernorm.weight"), np.full(8, 2, "f2"))


def test_a_first_part_without_tensors_and_one_part_of_one(tmp_path: Path) -> None:
    for no, names in enumerate(([], list(ARRAYS)[:2], list(ARRAYS)[2:])):
        write(tmp_path, no, names)
    write(tmp_path, 0, list(ARRAYS), at="whole.gguf", split__count=1)
    for name in (NAMES[1], "whole.gguf"):
        with open_checkpoint(tmp_path / name) as ck:
            assert len(ck.names()) == 4


def test_parts_may_repeat_metadata_and_say_their_own_alignment(tmp_path: Path) -> None:
    sound(tmp_path)
    repeated = {"general.architecture": "llama", "general.alignment": 32}
    write(tmp_path, 2, [F], repeated)
    with open_checkpoint(tmp_path) as ck:
        assert len(ck.names()) == 4


OTHER = "general.architecture: expected 'llama', as in the first part, found 'qwen2'"
BROKEN: list[tuple[str, Callable[[Path], Any], list[str]]] = [  # what, how, words of the message
    ("a part missing", lambda d: (d / NAMES[1]).unlink(), [NAMES[1], "3 files", "missing"]),
    ("the first part missing", lambda d: (d / NAMES[0]).unlink(), [NAMES[0], "missing"]),
    ("doubled", lambda d: shutil.copy(d / NAMES[1], d / NAMES[2]), [NAMES[2], "split.no: expected 2, by", "found 1"]),
    ("no first", lambda d: shutil.copy(d / NAMES[1], d / NAMES[0]), [NAMES[0], "split.no: expected 0, by", "found 1"]),
    ("no number", lambda d: write(d, 1, [N, F], split__no=None), [NAMES[1], "split.no", "nothing"]),
    ("counts disagree", lambda d: write(d, 1, [N, F], split__count=4), [NAMES[1], "split.count: expected 3"]),
    ("totals disagree", lambda d: write(d, 1, [N, F], split__tensors__count=5), [NAMES[1], "split.tensors.count"]),
    ("another model", lambda d: write(d, 1, [N, F], {"general.architecture": "qwen2"}), [NAMES[1], OTHER]),
    ("its own key", lambda d: write(d, 1, [N, F], {"a": 1}), [NAMES[1], "a: expected it in the first part only"]),
    ("a tensor in two parts", lambda d: write(d, 2, [H, N]), [NAMES[2], "tensor output.weight", NAMES[1]]),
    ("a tensor missing", lambda d: write(d, 2, []), [NAMES[0], "split.tensors.count: expected 3", "found 4"]),
    (
        "2^32 - 1 tensors",
        lambda d: [write(d, no, n, split__tensors__count=2**32 - 1) for no, n in enumerate(([E], [N, F], [H]))],
        [NAMES[0], "split.tensors.count: expected 4", "4294967295"],
    ),
    ("a part cut", lambda d: (d / NAMES[2]).write_bytes(b"GGUF"), [NAMES[2], "version"]),
    ("a part empty", lambda d: (d / NAMES[2]).write_bytes(b""), [NAMES[2], "empty"]),
    ("0 parts", lambda d: write(d, 0, [E], split__count=0), [NAMES[0], "split.count", "found 0"]),
    ("2^32 - 1 parts", lambda d: write(d, 0, [E], split__count=2**32 - 1), [NAMES[0], "split.count", "4294967295"]),
    ("count a string", lambda d: write(d, 0, [E], split__count="3"), [NAMES[0], "split.count", "'3'"]),
    ("more than its name says", lambda d: write(d, 0, [E], split__count=99999), [NAMES[0], "00001-of-99999"]),
]


@pytest.mark.parametrize(("spoil", "words"), [pytest.param(how, words, id=what) for what, how, words in BROKEN])
def test_parts_that_do_not_belong_together_are_refused(
    tmp_path: Path, spoil: Callable[[Path], Any], words: list[str]
) -> None:
    sound(tmp_path)
    spoil(tmp_path)
    refused(lambda: open_checkpoint(tmp_path), *words)


@pytest.mark.parametrize("name", ["x.gguf", "x-00001-of-00002.gguf", "x-00004-of-00003.gguf", "x-00000-of-00003.gguf"])
def test_a_part_of_another_name_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, 0, [E], at=name)
    refused(lambda: open_checkpoint(tmp_path), name, "NAME-00001-of-00003.gguf")
