"""Models of the Hugging Face hub: what the cache holds is used, the rest is asked of the hub's library."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ostinato.errors import DownloadError
from ostinato.weights import hub
from ostinato.weights.fetch import resolve

VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HF_HUB_OFFLINE")
PLAIN = ["config.json", "tokenizer.json", "model.safetensors"]
PARTS = [f"Q4/m-0000{i}-of-00002.gguf" for i in (1, 2)]


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the machine, no cache but this one, and no library unless a test says so."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)


def library(monkeypatch: pytest.MonkeyPatch, folder: Path, files: list[str]) -> dict[str, Any]:
    """A huggingface_hub whose repository has these files; what it was asked."""
    asked: dict[str, Any] = {}

    def snapshot_download(name: str, **options: list[str]) -> str:
        asked.update(options, name=name)
        put(folder, *files)
        return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    return asked


def put(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")


def cached(tmp_path: Path, *names: str, revision: str = "0" * 40) -> Path:
    """The snapshot of org/name in the cache, with files of these names."""
    folder = tmp_path / "hub/models--org--name"
    put(folder / "refs", "main")
    (folder / "refs/main").write_text(revision)
    put(folder / "snapshots" / revision, *names)
    return folder / "snapshots" / revision


INDEX = json.dumps({"weight_map": {"a": "s1.safetensors", "b": "s2.safetensors"}})


@pytest.mark.parametrize(
    ("name", "files"),
    [
        pytest.param("org/name", PLAIN, id="one file"),
        pytest.param("org/name", ["config.json", "tokenizer.model", "model.safetensors"], id="SentencePiece"),
        pytest.param("org/name", ["config.json", "vocab.txt", "s1.safetensors", "s2.safetensors"], id="shards"),
        pytest.param("org/name", ["config.json", "tokenizer.json", "gptq-4bit.safetensors"], id="file of another name"),
        pytest.param("org/name", ["x.gguf", "README.md"], id="a GGUF file"),
        pytest.param("org/name/x.gguf", ["x.gguf", "y.gguf"], id="one GGUF file of two"),
        pytest.param("org/name/Q4/x.GGUF", ["Q4/x.GGUF"], id="in a folder"),
        pytest.param(f"org/name/{PARTS[1]}", PARTS, id="a part"),
    ],
)
@pytest.mark.parametrize("offline", ["", "0", "1", "true"])
def test_what_is_complete_in_the_cache_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, files: list[str], offline: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    folder = cached(tmp_path, *files)
    if "s1.safetensors" in files:
        (folder / "model.safetensors.index.json").write_text(INDEX)
    assert resolve(name) == folder / name.removeprefix("org/name").lstrip("/")


@pytest.mark.parametrize(
    ("name", "files"),
    [
        pytest.param("org/name", [], id="nothing"),
        *(pytest.param("org/name", [f for f in PLAIN if f != left], id=f"no {left}") for left in PLAIN),
        pytest.param("org/name", ["config.json", "tokenizer.json", "s1.safetensors"], id="a shard missing"),
        pytest.param("org/name", ["m-00001-of-00002.gguf"], id="one of two parts"),
        pytest.param("org/name/x.gguf", ["y.gguf"], id="another GGUF file"),
        pytest.param(f"org/name/{PARTS[0]}", PARTS[:1], id="a part missing"),
    ],
)
def test_what_is_not_is_fetched_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, files: list[str]
) -> None:
    folder = cached(tmp_path, *files)
    if "s1.safetensors" in files:
        (folder / "model.safetensors.index.json").write_text(INDEX)
    with pytest.raises(DownloadError, match=rf"{name}'.*{tmp_path}/hub; .*ostinato\[hub\]"):
        resolve(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match=rf"{name}': HF_HUB_OFFLINE is set; expected it in {tmp_path}/hub, found a"):
        resolve(name)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    everything = [*PLAIN, "x.gguf", *PARTS]
    asked = library(monkeypatch, tmp_path / "fetched", everything)
    assert resolve(name) == tmp_path / "fetched" / name.removeprefix("org/name").lstrip("/")
    file = name.removeprefix("org/name").lstrip("/")
    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model"] if not file else PARTS if file in PARTS else [file]
    assert (asked["name"], asked["allow_patterns"]) == ("org/name", wanted)  # no code, no pickles


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        *(pytest.param("org/name", file, id=file) for file in PLAIN),
        *(pytest.param("org/name", f, id=f) for f in ("generation_config.json", "chat_template.jinja")),
        pytest.param("org/name/x.gguf", "x.gguf", id="a GGUF file"),
        pytest.param(f"org/name/{PARTS[0]}", PARTS[1], id="a part"),
    ],
)
def test_a_link_whose_blob_is_gone_is_a_file_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, lost: str
) -> None:
    """Also of a file that a model may lack: this one has it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = cached(tmp_path, *PLAIN, "x.gguf", *PARTS, lost)
    (folder / "pytorch_model.bin").symlink_to("../../blobs/1")  # is not read
    resolve(name)
    (folder / lost).unlink()
    (folder / lost).symlink_to("../../blobs/0")
    with pytest.raises(DownloadError, match=r"HF_HUB_OFFLINE is set; .*found a part of it"):
        resolve(name)


def unlinked(folder: Path) -> None:
    """Moves the revision away that refs/main names."""
    folder.rename(folder.with_name("1" * 40))


def linked_nowhere(folder: Path) -> None:
    ref = folder.parents[1] / "refs/main"
    ref.unlink()
    ref.symlink_to("nowhere")


@pytest.mark.parametrize("spoil", [unlinked, linked_nowhere], ids=["no such revision", "a link to nothing"])
def test_a_branch_that_points_to_nothing_is_no_cached_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    spoil(cached(tmp_path, *PLAIN))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"HF_HUB_OFFLINE is set; .*found nothing"):
        resolve("org/name")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    library(monkeypatch, tmp_path / "fetched", PLAIN)
    assert resolve("org/name") == tmp_path / "fetched"


@pytest.mark.parametrize("revision", ["", "..", "../../x", "a" * 65, "\xff", "0" * 39 + "/"])
def test_a_revision_is_a_plain_name(tmp_path: Path, revision: str) -> None:
    cached(tmp_path, *PLAIN)
    (tmp_path / "hub/models--org--name/refs/main").write_text(revision, encoding="latin-1")
    with pytest.raises(DownloadError, match=r"ostinato\[hub\]"):
        resolve("org/name")


def test_nothing_in_the_cache_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    with pytest.raises(DownloadError, match=r"HF_HUB_OFFLINE is set; .*found nothing"):
        resolve("org/name")


def test_the_hubs_reason_is_given_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(name: str, **_: list[str]) -> str:
        raise ConnectionError(f"no route\nto {name}")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(DownloadError, match="'org/name': Hugging Face: no route to org/name"):
        resolve("org/name")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("org/name", r"no safetensors; .*org/name/FILE\.gguf", id="no safetensors"),
        pytest.param("org/name/x.gguf", r"org/name has no file x\.gguf", id="no such file"),
    ],
)
def test_a_repository_without_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    library(monkeypatch, tmp_path / "fetched", ["config.json"])
    with pytest.raises(DownloadError, match=message):
        resolve(name)


NO_NAMES = ["org", "org/", "/org/name", "org/name/", "org/name/x.bin", "org/../x.gguf", "org/name/../x.gguf", ".a/b",
            "a/b.gguf", "a/b.safetensors", "org/name/.x.gguf", "org/na me"]  # fmt: skip


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_name_of_the_hub(name: str) -> None:
    assert not hub.is_name(name)
    with pytest.raises(DownloadError, match="found none of these"):
        resolve(name)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        pytest.param({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a", id="HF_HUB_CACHE"),
        pytest.param({"HUGGINGFACE_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a", id="its older name"),
        pytest.param({"HF_HOME": "~/b", "XDG_CACHE_HOME": "/c"}, "/h/b/hub", id="HF_HOME"),
        pytest.param({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub", id="XDG"),
        pytest.param({"HF_HUB_CACHE": ""}, "/h/.cache/huggingface/hub", id="home"),
    ],
)
def test_cache_directory(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/h")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert hub.cache_dir() == Path(expected)
