"""What a path may be: a GGUF file by suffix or first bytes, a directory with one, "~"; never a Git LFS pointer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from checkpoint_files import llama_keys, refused, write_gguf, write_safetensors

from ostinato.errors import CheckpointError, EngineError, TokenizerError
from ostinato.models.families import model_config
from ostinato.text.template import ChatTemplate
from ostinato.text.tokenizer import Tokenizer
from ostinato.weights import fetch, hub
from ostinato.weights.checkpoint import open_checkpoint
from ostinato.weights.fetch import resolve

EMBED = {"token_embd.weight": np.arange(96, dtype="f4").reshape(12, 8)}
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 98362432\n"
OLD_POINTER = POINTER.replace("git-lfs.github.com", "hawser.github.com")
BLOB = "6e" * 32  # a cache names files after their checksum


def make(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(path, llama_keys(), EMBED)
    return path


def linked(folder: Path) -> Path:
    """A snapshot of the Hugging Face cache: links to blobs."""
    (folder / "snapshots").mkdir()
    link = folder / "snapshots" / "x.gguf"
    link.symlink_to(os.path.relpath(make(folder / "blobs" / BLOB), link.parent))
    return link


def renamed(folder: Path) -> Path:
    link = folder / "latest"
    link.symlink_to(make(folder / "x.gguf"))
    return link


# -- GGUF files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(lambda d: make(d / "x.gguf"), id="suffix"),
        pytest.param(lambda d: make(d / "X.GGUF"), id="suffix in capitals"),
        pytest.param(lambda d: make(d / BLOB), id="blob of a cache"),
        pytest.param(lambda d: make(d / "sha256-1.5"), id="another suffix"),
        pytest.param(linked, id="link to a blob"),
        pytest.param(lambda d: linked(d).resolve(), id="link that was resolved"),
        pytest.param(renamed, id="link without a suffix"),
        pytest.param(lambda d: make(d / "x.gguf").parent, id="directory of one"),
        pytest.param(lambda d: make(d / "X.GGUF").parent, id="directory of one in capitals"),
        pytest.param(lambda d: linked(d).parent, id="directory of one link"),
        pytest.param(lambda d: make(d / "x.gguf" / "y.gguf").parent, id="directory that is named like a file"),
    ],
)
def test_gguf_loads(tmp_path: Path, place) -> None:
    path = resolve(place(tmp_path))
    with open_checkpoint(path) as ck:
        assert ck.names() == ["model.embed_tokens.weight"]
        assert (ck.directory, ck.config["vocab_size"]) == (None, 12)
        named = path if path.is_file() else next(iter(path.iterdir()))
        assert ck.source == named
        with pytest.raises(CheckpointError) as e:  # one definition of what a GGUF file is: no config.json in its place
            model_config({**ck.config, "vocab_size": 0}, {}, ck.source)
        assert str(e.value).startswith(f"{named}: vocab_size")


@pytest.mark.parametrize(
    "others",
    [
        pytest.param(["config.json", "README.md", "tokenizer.json"], id="what a repository has"),
        pytest.param(["mmproj-x-F16.gguf"], id="a file for images"),
        pytest.param(["pytorch_model.bin"], id="a pickle"),
        pytest.param([".x.gguf", "._x.gguf"], id="hidden files"),
    ],
)
def test_files_beside_the_only_gguf_do_not_matter(tmp_path: Path, others: list[str]) -> None:
    for name in others:
        (tmp_path / name).write_text("?")
    make(tmp_path / "x.gguf")
    with open_checkpoint(tmp_path) as ck:
        assert ck.source == tmp_path / "x.gguf"


def test_safetensors_come_before_a_gguf(tmp_path: Path) -> None:
    make(tmp_path / "x.gguf")
    write_safetensors(tmp_path / "model.safetensors", {"a": np.ones(1, "f4")})
    (tmp_path / "config.json").write_text("{}")
    with open_checkpoint(tmp_path) as ck:
        assert (ck.names(), ck.directory) == (["a"], tmp_path)


PARTS = [f"x-0000{i}-of-00003.gguf" for i in (1, 2, 3)]


@pytest.mark.parametrize(
    ("files", "words", "error"),
    [
        pytest.param(["x.gguf", "y.GGUF"], ["x.gguf, y.GGUF", "one of them"], CheckpointError, id="two"),
        pytest.param([f"{i}.gguf" for i in range(8)], ["4.gguf and 3 more"], CheckpointError, id="eight"),
        pytest.param([*PARTS, "y.gguf"], [*PARTS, "y.gguf"], CheckpointError, id="parts and another"),
        pytest.param(["x.txt"], ["config.json"], CheckpointError, id="none"),
    ],
)
def test_other_directories_are_refused(tmp_path: Path, files: list[str], words: list[str], error: type) -> None:
    for name in files:
        make(tmp_path / name)
    refused(lambda: open_checkpoint(tmp_path), str(tmp_path), *words, error=error)


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["~/m/x.gguf", "~/m", "~"])
def test_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make(tmp_path / "m" / "x.gguf")
    assert str(resolve(name)) == str(resolve(Path(name))) == name.replace("~", str(tmp_path))


def test_the_cache_may_be_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OSTINATO_CACHE", "~/models")
    assert fetch.cache_dir() == tmp_path / "models"


@pytest.mark.parametrize("name", ["absent/M.GGUF", "absent/m.Safetensors", "~/absent", "~nobody-of-this-name/x"])
def test_the_hub_is_not_asked_for_files(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(hub, "resolve", lambda name: pytest.fail(f"asked for {name}"))
    with pytest.raises(EngineError, match=r"expected an existing \.gguf file or directory"):
        resolve(name)


# -- Git LFS pointers -------------------------------------------------------------------------------------------------

INDEX = json.dumps({"weight_map": {"a": "m.safetensors"}})


@pytest.mark.parametrize("pointer", [POINTER, OLD_POINTER], ids=["git-lfs", "hawser"])
@pytest.mark.parametrize(
    ("files", "name"),
    [
        pytest.param({}, "config.json", id="config"),
        pytest.param({"config.json": "{}"}, "model.safetensors", id="weights"),
        pytest.param({"config.json": "{}"}, "model.safetensors.index.json", id="index"),
        pytest.param({"config.json": "{}", "model.safetensors.index.json": INDEX}, "m.safetensors", id="shard"),
        pytest.param({"config.json": "{}"}, "x.gguf", id="gguf"),
        pytest.param({}, "X.GGUF", id="gguf in capitals"),
    ],
)
def test_a_pointer_is_called_one(tmp_path: Path, files: dict[str, str], name: str, pointer: str) -> None:
    for file, content in {**files, name: pointer}.items():
        (tmp_path / file).write_text(content)
    message = f"{tmp_path / name}: is a Git LFS pointer; git lfs pull"
    refused(lambda: open_checkpoint(tmp_path), message)
    if name.lower().endswith(".gguf"):
        refused(lambda: open_checkpoint(tmp_path / name), message)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_git_lfs_pointer_instead_of_the_tokenizer_is_named(tmp_path: Path, name: str) -> None:
    fixture = Path(__file__).parents[1] / "fixtures" / "llama"
    (tmp_path / "tokenizer.json").write_bytes((fixture / "tokenizer.json").read_bytes())
    (tmp_path / name).write_text(POINTER)
    ck = SimpleNamespace(directory=tmp_path)
    with pytest.raises(TokenizerError) as e:
        ChatTemplate.from_checkpoint(ck, Tokenizer.from_checkpoint(ck))
    assert str(e.value).startswith(f"{tmp_path / name}: is a Git LFS pointer; git lfs pull")


# -- links that lead nowhere ------------------------------------------------------------------------------------------


LOST = ["config.json", "model.safetensors", "generation_config.json", "quantize_config.json", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja"]  # fmt: skip


@pytest.mark.parametrize("name", LOST)
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, name: str) -> None:
    """A blob of a cache is gone: of a file that may be absent, too, what it said must not count for nothing."""
    fixture = Path(__file__).parents[1] / "fixtures" / "llama"
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / file).symlink_to(fixture / file)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to("../blobs/0")
    with pytest.raises((CheckpointError, TokenizerError)) as e, open_checkpoint(tmp_path) as ck:
        ChatTemplate.from_checkpoint(ck, Tokenizer.from_checkpoint(ck))
    assert str(e.value).startswith(f"{tmp_path / name}: ") and "chat_template: " not in str(e.value)


@pytest.mark.parametrize("parts", [["x.gguf"], PARTS], ids=["one file", "parts"])
@pytest.mark.parametrize("whole", [True, False], ids=["folder", "file"])
def test_a_gguf_link_that_leads_nowhere_is_named(tmp_path: Path, parts: list[str], whole: bool) -> None:
    for name in parts:
        (tmp_path / name).symlink_to("../blobs/0")
    refused(lambda: open_checkpoint(tmp_path if whole else tmp_path / parts[0]), f"{tmp_path / parts[0]}: cannot be op")


def test_an_open_descriptor_is_not_left(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text(POINTER)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        refused(lambda: open_checkpoint(tmp_path), "git lfs pull")
    assert len(os.listdir("/proc/self/fd")) == before
