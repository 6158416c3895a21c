"""Opens the files of a checkpoint: memory-mapped, or parsed as a JSON object.

Never reads more than the file holds, never opens a path named in a file. A git clone without git-lfs has pointers, a
few lines of text each, in place of large files. A pointer is refused with a message that says so.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, found

JSON_LIMIT = (
    16 << 20
)  # bytes; parsed JSON takes some twenty times its text, and real files stay below a megabyte or two
GGUF_MAGIC = b"GGUF"
POINTERS = (  # first line of a Git LFS pointer; the second is what versions before 1.0 wrote
    b"version https://git-lfs.github.com/spec/",
    b"version https://hawser.github.com/spec/",
)
POINTER = "is a Git LFS pointer; git lfs pull fetches the file itself"


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file: by its suffix, or by its first four bytes.

    A file in a download cache may be named after its checksum, without a suffix."""
    if os.path.isdir(path):
        return False
    return path.suffix.lower() == ".gguf" or (os.path.isfile(path) and _start(path) == GGUF_MAGIC)


def is_listed(path: Path) -> bool:
    """Whether a directory has an entry of this name, for files that may be absent.

    A link that leads nowhere counts: opening it is an error that names it, and not a default in place of its values."""
    return os.path.lexists(path)


def is_pointer(start: bytes) -> bool:
    """Whether a file that begins with these bytes is a Git LFS pointer."""
    return start.startswith(POINTERS)


def _start(path: Path) -> bytes:
    """The first four bytes of a regular file."""
    fd = _open(path)
    try:
        return os.pread(fd, 4, 0)
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    """File descriptor of a regular file. CheckpointError for anything else; a pipe would block for ever."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CheckpointError(f"{path}: expected a file, found a directory or device")
        fd = os.open(path, os.O_RDONLY)
        pointer = is_pointer(os.pread(fd, 64, 0))
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be opened: {e.strerror}") from e
    if pointer:
        os.close(fd)
        raise CheckpointError(f"{path}: {POINTER}")
    return fd


def map_file(path: Path) -> np.ndarray:
    """The bytes of a file [size] uint8, memory-mapped read-only. The file stays mapped while a view of it lives."""
    fd = _open(path)
    try:
        if os.fstat(fd).st_size == 0:
            raise CheckpointError(f"{path}: the file is empty")
        return np.frombuffer(mmap.mmap(fd, 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as e:  # a mapping holds a file descriptor, and a process may have only so many
        raise CheckpointError(f"{path}: cannot be mapped: {e.strerror}") from e
    finally:
        os.close(fd)


def let_go(view: np.ndarray) -> None:
    """Free the memory of a mapped file's pages that a view of it spans (MADV_DONTNEED). They are read again on use.

    Does nothing if the array is no view of a mapped file, or the system has no madvise."""
    whole: Any = view
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    owner = getattr(whole.base, "obj", None)  # np.frombuffer keeps a memoryview
    if isinstance(owner, mmap.mmap) and hasattr(owner, "madvise") and view.flags.c_contiguous:
        begin = view.ctypes.data - whole.ctypes.data
        first = begin // mmap.PAGESIZE * mmap.PAGESIZE
        owner.madvise(mmap.MADV_DONTNEED, first, begin + view.nbytes - first)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object a file holds; CheckpointError if it is missing, too long or anything but one object."""
    fd = _open(path)
    with os.fdopen(fd, "rb") as f:
        size = os.fstat(fd).st_size
        if size > JSON_LIMIT:
            raise CheckpointError(f"{path}: expected at most {JSON_LIMIT} bytes of JSON, found {size}")
        return parse_json(f.read(size), str(path), bom=True)


def parse_json(raw: bytes, where: str, bom: bool = False) -> dict[str, Any]:
    """One JSON object without repeated keys; `where` names it in messages. bom: skip a byte order mark before it."""
    try:
        text = raw.decode("utf-8")
        value = json.loads(
            text.removeprefix("\ufeff") if bom else text, object_pairs_hook=lambda pairs: _unique(pairs, where)
        )
    except UnicodeDecodeError as e:
        raise CheckpointError(f"{where}: expected UTF-8, found byte 0x{raw[e.start]:02x} at offset {e.start}") from e
    except RecursionError as e:
        raise CheckpointError(f"{where}: JSON is nested too deeply") from e
    except ValueError as e:  # JSONDecodeError, or an integer of thousands of digits
        raise CheckpointError(f"{where}: not valid JSON: {e}") from e
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))
        raise CheckpointError(f"{where}: key {found(twice)} appears twice")
    return values
