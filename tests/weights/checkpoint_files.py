"""Checkpoint files made byte by byte, sound and broken; and what a refusal must look like."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ostinato.errors import CheckpointError, UnsupportedModel
from ostinato.weights.blocks import BLOCKS, Blocks
from ostinato.weights.kinds import GGUF_KINDS

DTYPES = {
    np.dtype("f4"): "F32", np.dtype("f2"): "F16", np.dtype(ml_dtypes.bfloat16): "BF16", np.dtype("i8"): "I64",
    np.dtype("i4"): "I32", np.dtype("i1"): "I8", np.dtype("u1"): "U8", np.dtype(ml_dtypes.float8_e4m3fn): "F8_E4M3",
}  # fmt: skip
NUMBERS = {kind: number for number, (kind, _, _) in GGUF_KINDS.items()}  # GGUF's, of its types
TINY = 2 << 20  # bytes of Python and NumPy memory that refusing a file of some hundred bytes may take


def refused(call: Callable[[], Any], *words: str, error: type[CheckpointError] = CheckpointError) -> None:
    """`call` raises `error` in one line with all of `words`, within a second of processor time and in little memory."""
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(error) as caught:
            call()
        took, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert isinstance(caught.value, UnsupportedModel) == (error is UnsupportedModel), message
    assert "\n" not in message and len(message) < 600
    assert [w for w in words if w not in message] == [], message
    assert took < 1
    assert peak < TINY


def flipped(content: bytes, bit: int) -> bytes:
    """`content` with one bit changed."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def in_memory(monkeypatch: pytest.MonkeyPatch, reader: ModuleType, content: bytes) -> None:
    """Lets `reader` find `content` in whatever file it maps: thousands of variants without touching the disk."""
    monkeypatch.setattr(reader, "map_file", lambda _: np.frombuffer(content, np.uint8))


# -- safetensors ------------------------------------------------------------------------------------------------------


def entry(dtype: Any = "F32", shape: Any = (1,), span: Any = (0, 4), **more: Any) -> dict[str, Any]:
    """A header entry, right unless told otherwise."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span), **more}


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of a header (an object, or its bytes), and data; `length` overrides the header length that is written."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def write_safetensors(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A sound file of arrays of the types of DTYPES."""
    header, data = {}, b""
    for name, array in arrays.items():
        header[name] = entry(DTYPES[array.dtype], array.shape, (len(data), len(data) + array.nbytes))
        data += array.tobytes()
    path.write_bytes(safetensors(header, data))


# -- GGUF -------------------------------------------------------------------------------------------------------------


def u32(n: int) -> bytes:
    return struct.pack("<I", n)


def u64(n: int) -> bytes:
    return struct.pack("<Q", n % 2**64)


def text(s: str | bytes, length: int | None = None) -> bytes:
    """A GGUF string; `length` overrides the one that is written."""
    raw = s.encode() if isinstance(s, str) else s
    return u64(len(raw) if length is None else length) + raw


def value(v: Any) -> bytes:
    """Type and bytes of a metadata value; bytes pass as they are."""
    match v:
        case bytes():
            return v
        case bool():
            return u32(7) + bytes([v])
        case int():
            return u32(4) + u32(v)
        case float():
            return u32(6) + struct.pack("<f", v)
        case str():
            return u32(8) + text(v)
        case [str(), *_]:
            return array(8, len(v), b"".join(map(text, v)))
        case [float(), *_]:
            return array(6, len(v), np.array(v, "<f4").tobytes())
        case _:
            return array(5, len(v), np.array(v, "<i4").tobytes())


def array(kind: int, count: int, raw: bytes) -> bytes:
    """Type and bytes of a metadata array, whatever it claims."""
    return u32(9) + u32(kind) + u64(count) + raw


def info(
    name: str | bytes, sizes: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0, dims: int | None = None
) -> bytes:
    """One line of the tensor list; sizes innermost first."""
    return text(name) + u32(len(sizes) if dims is None else dims) + b"".join(map(u64, sizes)) + u32(kind) + u64(offset)


def gguf(
    keys: list[tuple[Any, Any]] | None = None,
    infos: list[bytes] | None = None,
    data: bytes = b"",
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int | None, int | None] = (None, None),
    alignment: int = 32,
) -> bytes:
    """A file of metadata, tensor list and data; `counts` (tensors, keys) override those that are written."""
    keys, infos = keys or [], infos or []
    tensors, pairs = len(infos) if counts[0] is None else counts[0], len(keys) if counts[1] is None else counts[1]
    head = magic + u32(version) + u64(tensors) + u64(pairs)
    head += b"".join((k if isinstance(k, bytes) else text(k)) + value(v) for k, v in keys) + b"".join(infos)
    return head + bytes(-len(head) % alignment if data or infos else 0) + data


FLOATS = {  # bytes at which a block holds a float16
    "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [], "NVFP4": [],
}  # fmt: skip
SMALL = {"MXFP4": [0], "NVFP4": [0, 1, 2, 3]}  # scales of one byte


def random_blocks(kind: str, rows: int, k: int, seed: int = 0, size: float | None = None) -> Blocks:
    """A matrix [rows, k] of a quantised type: any bytes at all, but scales that are finite. size: the largest number
    is about as large, as in a model; None leaves scales at random too."""
    count = rows * k // BLOCKS[kind].numbers
    raw = np.random.default_rng(seed).integers(0, 256, (count, BLOCKS[kind].bytes), np.uint8)
    for at in FLOATS[kind]:
        if size is None:
            raw[:, at + 1] &= 0xFB  # the exponent's lowest bit
        else:
            raw[:, at : at + 2] = np.frombuffer(np.float16(size / _LARGEST[kind]).tobytes(), np.uint8)
    for at in SMALL.get(kind, []):
        raw[:, at] &= 0xFE
        if size is not None:
            raw[:, at] = {"MXFP4": 124, "NVFP4": 32}[kind]
    return Blocks("x.gguf: tensor t", kind, (rows, k), raw.reshape(rows, -1))


_LARGEST = {  # of a block's numbers, over its float16
    "Q8_0": 128, "Q4_0": 8, "Q4_1": 16, "Q5_0": 16, "Q5_1": 32, "Q2_K": 45, "Q3_K": 128, "Q4_K": 945, "Q5_K": 1953,
    "Q6_K": 4096, "IQ4_NL": 127, "IQ4_XS": 4064,
}  # fmt: skip


def llama_keys(**more: Any) -> dict[str, Any]:
    """Metadata of a llama of 1 layer, 2 heads of 4, 1 key/value head; "__" in a name stands for ".", None removes."""
    keys: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.context_length": 32,
        "llama.embedding_length": 8,
        "llama.feed_forward_length": 16,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }
    keys.update({k.replace("__", "."): v for k, v in more.items()})
    return {k: v for k, v in keys.items() if v is not None}


def write_gguf(path: Path, keys: dict[str, Any], arrays: Mapping[str, np.ndarray | Blocks]) -> None:
    """A sound file of float32 and float16 arrays, and of quantised matrices."""
    infos, data = [], b""
    for name, a in arrays.items():
        kind, raw = (a.kind, a.raw) if isinstance(a, Blocks) else ({"f4": "F32", "f2": "F16"}[a.dtype.str[1:]], a)
        infos.append(info(name, a.shape[::-1], NUMBERS[kind], len(data)))
        data += raw.tobytes() + bytes(-raw.nbytes % 32)
    path.write_bytes(gguf(list(keys.items()), infos, data))
