"""Reads one GGUF file, version 2 or 3: metadata and tensors under their GGUF names.

    "GGUF" · version u32 · tensors u64 · keys u64 · keys x (string, type u32, value) · tensors x (string, dims u32,
    dims x u64, type u32, offset u64) · padding to general.alignment · data, each tensor padded to the alignment

Every count and length is checked against the bytes that remain before anything is read or allocated for it. So time
and memory grow with the size of the file, whatever it claims. Tensors must follow one another in the order of the list.
"""

from __future__ import annotations

import re
import struct
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import CheckpointError, UnsupportedModel, found
from ..keys import Keys
from .files import GGUF_MAGIC, map_file
from .kinds import GGUF_KINDS
from .tensor import Tensor, check_name, check_shape

BOOL, STRING, ARRAY = 7, 8, 9
NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    BOOL: "<u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
ELEMENTS = 4 << 20  # of all arrays together: as Python objects they take more memory than in the file
_KEY = re.compile(r"[!-~]{1,1024}", re.ASCII)
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class Gguf(NamedTuple):
    """Metadata and tensors of a file."""

    metadata: dict[str, Any]  # int, float, bool, str, or a list of one of these
    tensors: dict[str, Tensor]  # by GGUF name


def number(keys: Keys, key: str, default: float = 0.0) -> float:
    """A number of the metadata, rounded to float32 and given as its shortest decimal: 1e-05, not 9.99999974e-06."""
    stored = keys.get(key, default)
    if type(stored) not in (int, float):
        keys.wrong(key, "a number", stored)
    with np.errstate(over="ignore"):  # a float64 key may hold more
        return float(str(np.float32(stored)))


def value(keys: Keys, key: str) -> Any:
    """A value of the metadata; a float as `number` gives it; None when absent."""
    return number(keys, key) if type(keys.get(key)) is float else keys.get(key)


def read_file(path: Path) -> Gguf:
    """Metadata and tensors of a GGUF file; tensor data is not touched."""
    data = map_file(path)
    reader = _Reader(path, data)
    tensor_count, key_count = _header(reader)
    metadata: dict[str, Any] = {}
    for i in range(key_count):
        key = reader.key(i)
        if key in metadata:
            raise CheckpointError(f"{path}: key {key} appears twice")
        metadata[key] = reader.value(f"key {key}")
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise CheckpointError(f"{path}: key general.alignment: expected a power of two, found {found(alignment)}")
    infos = [_tensor_info(reader, i) for i in range(tensor_count)]
    return Gguf(metadata, _place(path, data, infos, -(-reader.at // alignment) * alignment, alignment))


def _header(reader: _Reader) -> tuple[int, int]:
    """(tensors, keys): magic, version and counts."""
    path, magic = reader.path, reader.take(4, "magic")
    if magic != GGUF_MAGIC:
        raise CheckpointError(f"{path}: magic: expected {GGUF_MAGIC!r}, found {magic!r}")
    version = reader.u32("version")
    if version not in (2, 3):
        note = " (a big-endian file)" if version in (2 << 24, 3 << 24) else ""
        raise UnsupportedModel(f"{path}: version: expected GGUF 2 or 3, found {version}{note}")
    counts = reader.u64("tensor count"), reader.u64("key count")
    for count, least, what in zip(counts, (28, 13), ("tensor count", "key count"), strict=True):
        reader.need(count * least, f"{what} {count}")
    return counts


class _Reader:
    """A cursor in the mapped file. Every read checks that the bytes are there."""

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self.path, self.bytes, self.size, self.at = path, data.data, len(data), 0
        self.elements = ELEMENTS

    def need(self, count: int, what: str) -> None:
        if count > self.size - self.at:
            raise CheckpointError(
                f"{self.path}: {what}: expected {count} bytes at offset {self.at}, found {self.size - self.at}"
            )

    def take(self, count: int, what: str) -> bytes:
        self.need(count, what)
        self.at += count
        return self.bytes[self.at - count : self.at].tobytes()

    def u32(self, what: str) -> int:
        return _U32.unpack(self.take(4, what))[0]

    def u64(self, what: str) -> int:
        return _U64.unpack(self.take(8, what))[0]

    def string(self, what: str) -> str:
        raw = self.take(self.u64(f"{what}: string length"), f"{what}: string")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as e:
            raise CheckpointError(f"{self.path}: {what}: expected UTF-8, found {found(raw)}") from e

    def key(self, i: int) -> str:
        key = self.string(f"key number {i}")
        if not _KEY.fullmatch(key):
            raise CheckpointError(
                f"{self.path}: key number {i}: expected 1 to 1024 printable ASCII characters, found {found(key)}"
            )
        return key

    def value(self, what: str) -> Any:
        kind = self.u32(f"{what}: type")
        if kind != ARRAY:
            return self.values(kind, 1, what)[0]
        kind, count = self.u32(f"{what}: element type"), self.u64(f"{what}: length")
        if kind == ARRAY:
            raise CheckpointError(f"{self.path}: {what}: expected an array of numbers or strings, found one of arrays")
        self.elements -= count
        if self.elements < 0:
            raise CheckpointError(f"{self.path}: {what}: expected at most {ELEMENTS} elements in all, found {count}")
        return self.values(kind, count, what)

    def values(self, kind: int, count: int, what: str) -> list[Any]:
        """`count` values of one type that is not an array."""
        if kind == STRING:
            self.need(8 * count, f"{what}: {count} strings")
            return [self.string(what) for _ in range(count)]
        if kind not in NUMBERS:
            raise CheckpointError(f"{self.path}: {what}: expected a value type of 0 to 12, found {kind}")
        dtype = np.dtype(NUMBERS[kind])
        numbers = np.frombuffer(self.take(count * dtype.itemsize, f"{what}: {count} numbers"), dtype)
        if kind == BOOL:
            if numbers.size and numbers.max() > 1:
                raise CheckpointError(f"{self.path}: {what}: expected a boolean of 0 or 1, found {numbers.max()}")
            numbers = numbers.astype(bool)
        return numbers.tolist()


def _tensor_info(reader: _Reader, i: int) -> tuple[str, str, tuple[int, ...], int, int]:
    """(name, kind, shape [out, in], offset in the data, bytes) of the next tensor in the list."""
    where = str(reader.path)
    name = check_name(where, reader.string(f"tensor number {i}: name"))
    dims = reader.u32(f"tensor {name}: dimensions")
    if dims > 4:
        raise CheckpointError(f"{where}: tensor {name}: expected at most 4 dimensions, found {dims}")
    sizes = [reader.u64(f"tensor {name}: shape") for _ in range(dims)]
    shape = check_shape(where, name, sizes[::-1], most=4)  # GGUF lists the innermost size first
    kind = reader.u32(f"tensor {name}: type")
    if kind not in GGUF_KINDS:
        raise CheckpointError(f"{where}: tensor {name}: unknown type {kind}")
    label, block, size = GGUF_KINDS[kind]
    if (shape[-1] if shape else 1) % block:
        raise CheckpointError(
            f"{where}: tensor {name}: {label} needs rows of a multiple of {block}, found shape {shape}"
        )
    return name, label, shape, reader.u64(f"tensor {name}: offset"), prod(shape) // block * size


def _place(path: Path, data: np.ndarray, infos: list, start: int, alignment: int) -> dict[str, Tensor]:
    """Tensors by name. Each offset must be the end of the tensor before, padded to the alignment."""
    tensors: dict[str, Tensor] = {}
    expected = end = 0
    for name, kind, shape, offset, size in infos:
        if name in tensors:
            raise CheckpointError(f"{path}: tensor {name} appears twice")
        if offset != expected:
            raise CheckpointError(f"{path}: tensor {name}: expected its data at offset {expected}, found {offset}")
        end = offset + size
        if start + end > len(data):
            raise CheckpointError(
                f"{path}: tensor {name}: {kind} {list(shape)} ends at byte {start + end}, the file at {len(data)}"
            )
        tensors[name] = Tensor(path, name, kind, shape, data[start + offset : start + end])
        expected = -(-end // alignment) * alignment
    if len(data) > start + expected:
        raise CheckpointError(f"{path}: expected {start + expected} bytes, found {len(data) - start - expected} more")
    return tensors
