"""Safetensors files: one, or many with model.safetensors.index.json.

A file is an 8-byte little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, and the data.
Everything the header claims is checked before a byte of data is touched; data stays in the mapped file. Stricter than
the format in what a model never needs: names that are not plain, dimensions of 0, unknown keys and repeated names are
refused.

Of tensors that share memory (tied weights) only one is stored. safetensors.torch.save_model notes the others in
__metadata__, {other name: stored name}, huggingface_hub for shards in the index's "metadata"; both are followed.
"""

from __future__ import annotations

import re
from math import prod
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, found
from .files import JSON_LIMIT, map_file, parse_json, read_json
from .kinds import SAFETENSORS_BITS
from .tensor import Tensor, check_name, check_shape

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors", re.ASCII)
_PARAMETER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,240}\.(weight|bias)", re.ASCII)
_KEYS = {"dtype", "shape", "data_offsets"}


def files(directory: Path) -> list[str]:
    """Names of the files that hold the weights of a directory: model.safetensors, the shards its index lists, or the
    only file of weights, whatever its name. Those that an index lists may be missing."""
    if (directory / SINGLE).exists():
        return [SINGLE]
    if (directory / INDEX).exists():
        return sorted(set(_weight_map(directory / INDEX)[0].values()))
    names = sorted(p.name for p in directory.iterdir() if p.suffix in (".safetensors", ".bin", ".pt", ".pth"))
    if len(names) == 1 and _SHARD.fullmatch(names[0]):  # gptq_model-4bit-128g.safetensors of older quantised models
        return names
    raise CheckpointError(f"{directory}: expected {SINGLE} or {INDEX}, found {', '.join(names[:5]) or 'no weights'}")


def read_directory(directory: Path) -> dict[str, Tensor]:
    """All tensors of a Hugging Face directory, by name."""
    names = files(directory)
    sharded = not (directory / SINGLE).exists() and (directory / INDEX).exists()
    return _read_shards(directory) if sharded else read_file(directory / names[0])


def read_file(path: Path) -> dict[str, Tensor]:
    """Tensors of one safetensors file by name. Only the header is read."""
    tensors, metadata = _read_file(path)
    return tensors | _aliases(tensors, metadata)


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors that a file stores, and its metadata."""
    data = map_file(path)
    if len(data) < 8:
        raise CheckpointError(f"{path}: expected a header length of 8 bytes, found a file of {len(data)}")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > min(len(data) - 8, JSON_LIMIT):
        raise CheckpointError(
            f"{path}: header of {length} bytes: expected at most {JSON_LIMIT}, and the file has {len(data) - 8} left"
        )
    header = parse_json(data[8 : 8 + length].tobytes(), f"{path}: header")
    metadata = _metadata(path, header.pop("__metadata__", None))
    body = data[8 + length :]
    spans = {check_name(str(path), name): _entry(path, name, entry) for name, entry in header.items()}
    end = 0
    for name, (_, _, begin, stop) in sorted(spans.items(), key=lambda item: item[1][2:]):
        if begin != end:
            raise CheckpointError(f"{path}: tensor {name}: expected data to begin at {end}, found {begin}")
        end = stop
        if end > len(body):
            raise CheckpointError(f"{path}: tensor {name}: data ends at {end}, the file's data at {len(body)}")
    if end != len(body):
        raise CheckpointError(f"{path}: expected {end} bytes of data, found {len(body) - end} more")
    return {name: Tensor(path, name, kind, shape, body[a:b]) for name, (kind, shape, a, b) in spans.items()}, metadata


def _aliases(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> dict[str, Tensor]:
    """Tied tensors by the names under which they are not stored: entries {parameter name: name of a stored tensor} of
    the metadata. Other entries, such as {"format": "pt"}, are ignored."""
    known = {alias: name for alias, name in metadata.items() if isinstance(name, str) and name in tensors}
    return {a: tensors[name] for a, name in known.items() if a not in tensors and _PARAMETER.fullmatch(a)}


def _metadata(path: Path, metadata: Any) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path}: key __metadata__: expected an object of strings, found {found(metadata)}")
    return metadata


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """(kind, shape, begin, end) of one header entry. CheckpointError unless the span fits kind and shape."""
    if not isinstance(entry, dict) or entry.keys() != _KEYS:
        raise CheckpointError(f"{path}: tensor {name}: expected dtype, shape and data_offsets, found {found(entry)}")
    kind, offsets = entry["dtype"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in SAFETENSORS_BITS:
        raise CheckpointError(f"{path}: tensor {name}: unknown dtype {found(kind)}")
    shape = check_shape(str(path), name, entry["shape"])
    numbers = isinstance(offsets, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in offsets)
    if not numbers or len(offsets) != 2:
        raise CheckpointError(
            f"{path}: tensor {name}: expected data_offsets of two integers from 0 to 2^63 - 1, found {found(offsets)}"
        )
    bits, span = prod(shape) * SAFETENSORS_BITS[kind], offsets[1] - offsets[0]
    if bits != span * 8:
        raise CheckpointError(
            f"{path}: tensor {name}: {kind} {found(list(shape))}: expected data_offsets that span "
            f"{found(-(-bits // 8))} bytes, found {found(span)}"
        )
    return kind, shape, offsets[0], offsets[1]


def _weight_map(index: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """The shard of each tensor, by an index; and the index's metadata."""
    listed = read_json(index)
    where, metadata = listed.get("weight_map"), listed.get("metadata")
    if not isinstance(where, dict) or not where:
        raise CheckpointError(f"{index}: key weight_map: expected an object of file names, found {found(where)}")
    for name, file in where.items():
        _check_file_name(index, name, file)
    return where, metadata if isinstance(metadata, dict) else {}


def _read_shards(directory: Path) -> dict[str, Tensor]:
    """Tensors of all shards. CheckpointError if the index and the shards disagree."""
    index = directory / INDEX
    where, metadata = _weight_map(index)
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(where.values())):
        if not (directory / file).exists():
            raise CheckpointError(f"{directory / file}: the shard is missing; {index.name} lists it")
        stored, more = _read_file(directory / file)
        for name in stored:
            if where.get(name) != file:
                other = where.get(name, "nowhere")
                raise CheckpointError(f"{directory / file}: tensor {name}: {index.name} has it in {other}")
        tensors |= stored
        metadata = metadata | more
    tensors |= _aliases(tensors, metadata)
    for name, file in where.items():
        if name not in tensors:
            raise CheckpointError(f"{directory / file}: tensor {name} is missing; {index.name} lists it")
    return tensors


def _check_file_name(index: Path, tensor: str, file: Any) -> None:
    """Check that a shard is a plain file name: an index must not make the loader open other paths."""
    check_name(str(index), tensor)
    if not isinstance(file, str) or not _SHARD.fullmatch(file):
        raise CheckpointError(
            f"{index}: tensor {tensor}: expected a plain file name ending .safetensors, found {found(file)}"
        )
