"""Models of the Hugging Face hub: found in its cache on this machine, or fetched by its library.

    org/name             a repository with config.json, a tokenizer and safetensors
    org/name/FILE.gguf   a GGUF file of a repository, in a folder or not; of a split model any part

A model that is complete in the cache is used without a request to the hub; `hf download` fetches a newer revision. With
HF_HUB_OFFLINE set, the network is never used.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from ..errors import CheckpointError, DownloadError
from . import safetensors, split

_WORD = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(rf"({_WORD}/{_WORD})(?:/((?:{_WORD}/)*{_WORD}\.gguf))?", re.ASCII | re.IGNORECASE)
_REVISION = re.compile(r"[\w-]{1,64}", re.ASCII)
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model"]  # no code, no pickles
_SMALL = (".json", ".jinja", ".model")  # of these, all but the weights
_OTHERS = ["consolidated*", "original/*"]  # the same weights in another form
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt")


def is_name(name: str) -> bool:
    """Whether a name has the form of a repository, or of a GGUF file in one."""
    match = _NAME.fullmatch(name)
    return match is not None and (match[2] is not None or not name.lower().endswith((".gguf", ".safetensors")))


def resolve(name: str) -> Path:
    """Directory or file of a name that passed `is_name`. DownloadError if it is not cached and cannot be fetched."""
    match = _NAME.fullmatch(name)
    assert match, "names are checked by is_name"
    repository, file = match.groups()
    folder = _snapshot(repository)
    if folder is not None and _complete(folder, file):
        return folder / (file or "")
    if _offline():
        raise DownloadError(f"model {name!r}: HF_HUB_OFFLINE is set; expected it in {cache_dir()}, found "
                            + ("a part of it" if folder is not None else "nothing"))  # fmt: skip
    return _fetch(name, repository, file)


def cache_dir() -> Path:
    """The cache directory of huggingface_hub."""
    for variable, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub"),
                            ("XDG_CACHE_HOME", "huggingface/hub")):  # fmt: skip
        if place := os.environ.get(variable):
            return Path(os.path.expanduser(place)) / below
    return Path.home() / ".cache/huggingface/hub"


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _snapshot(repository: str) -> Path | None:
    """The cached snapshot of a repository's main revision, which may lack files; None if there is none."""
    folder = cache_dir() / f"models--{repository.replace('/', '--')}"
    try:
        with open(folder / "refs/main", encoding="ascii") as f:
            revision = f.read(256).strip()
    except (OSError, ValueError):
        return None
    found = folder / "snapshots" / revision
    return found if _REVISION.fullmatch(revision) and found.is_dir() else None


def _complete(folder: Path, file: str | None) -> bool:
    """Whether the folder has every file that the model needs."""
    if file is not None:
        return all(part.exists() for part in split.parts(folder / file))
    with suppress(CheckpointError):  # a damaged index counts as an incomplete snapshot
        if (model := split.find_file(folder)) is not None:
            return all(part.exists() for part in split.parts(model))
        small = [p.name for p in folder.iterdir() if p.suffix in _SMALL]  # links, whose blobs may be gone
        needed = ["config.json", *small, *safetensors.files(folder)]
        complete = all((folder / name).exists() for name in needed)
        return complete and any((folder / name).exists() for name in _TOKENIZERS)
    return False


def _fetch(name: str, repository: str, file: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as e:
        raise DownloadError(
            f"model {name!r}: not a path or alias, nor in {cache_dir()}; a Hugging Face id needs huggingface_hub: "
            "pip install 'ostinato[hub]'"
        ) from e
    wanted = _FILES if file is None else [path.as_posix() for path in split.parts(Path(file))]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=wanted, ignore_patterns=_OTHERS))
    except Exception as e:  # errors of the network, of the server and of the library
        raise DownloadError(f"model {name!r}: Hugging Face: {' '.join(str(e).split()) or type(e).__name__}") from e
    if file is not None and not (folder / file).exists():
        raise DownloadError(f"model {name!r}: Hugging Face: {repository} has no file {file}")
    if file is None and not any(folder.glob("*.safetensors")):
        raise DownloadError(f"model {name!r}: Hugging Face: {repository} has no safetensors; if it has GGUF files, "
                            f"name one of them: {repository}/FILE.gguf")  # fmt: skip
    return folder / (file or "")
