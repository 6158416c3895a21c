"""The plan: which checkpoint tensors form which weight of the engine; and the check of a checkpoint against it.

The tables of tensor names belong to the families: see engine/models/families.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..errors import CheckpointError, UnsupportedModel
from ..models.families import FAMILIES
from ..models.families.family import Row, Table
from .checkpoint import Checkpoint


class Entry(NamedTuple):
    """One weight of the engine."""

    path: str  # where the engine keeps it: "embed", "layers.3.qkv"
    kind: str  # "weight": a matrix for Ops.weight · "transposed": the same, stored [in, out]
    # · "vector": float32, for Ops.vector · "table": the first tensor and row 0 of the others added, float32
    tensors: tuple[str, ...]  # in the checkpoint, in the order of their rows
    shapes: tuple[tuple[int, ...], ...]  # of these tensors
    layout: str  # how the rows belong together, as Ops.weight wants it: "rows", "qkv", "gate_up"


COMPARED = 16 << 20  # bytes compared at a time


def plan(c: Any, prefix: str | None = None) -> Iterator[Entry]:
    """Every weight of a model of configuration `c`; UnsupportedModel for an unknown family.

    prefix: one of the table's prefixes; None is the first."""
    t = _table(c)
    return _plan(t, c, t.prefixes[0] if prefix is None else prefix)


def _plan(t: Table, c: Any, prefix: str) -> Iterator[Entry]:
    sizes = {"V": c.vocab, "D": c.hidden, "T": c.max_len, "S": c.segments}
    yield from _entries(t.top, c, sizes, "", prefix)
    yield from _entries(t.head, c, sizes, "", "")
    for i, spec in enumerate(c.layers):
        q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        own = {"Hd": q, "Gd": kv, "QKV": q + 2 * kv, "d": spec.head_dim, "F": spec.ffn, "FF": 2 * spec.ffn}
        yield from _entries(t.layer, spec, sizes | own, f"layers.{i}.", prefix + t.block.format(i))


def _table(c: Any) -> Table:
    if c.family not in FAMILIES:
        raise UnsupportedModel(f"family: expected one of {', '.join(FAMILIES)}, found {c.family!r}")
    return FAMILIES[c.family].table


def _entries(rows: tuple[Row, ...], c: Any, sizes: dict[str, int], path: str, prefix: str) -> Iterator[Entry]:
    for name, kind, layout, condition, tensors in rows:
        field = condition.removeprefix("not ")
        if not field or bool(getattr(c, field)) != condition.startswith("not "):
            shapes = tuple(tuple(sizes[letter] for letter in s.split()) for s in tensors.values())
            yield Entry(path + name, kind, tuple(prefix + t for t in tensors), shapes, layout)


def check(checkpoint: Checkpoint, c: Any) -> list[Entry]:
    """The plan of `c`, checked: the checkpoint has every tensor, in its shape and a readable type, and no others.

    CheckpointError names file, tensor, expected and found. UnsupportedModel names a tensor the engine cannot use."""
    t = _table(c)
    prefix = next((p for p in t.prefixes if any(n.startswith(p) for n in checkpoint.names())), t.prefixes[-1])
    entries: list[Entry] = []
    wanted: set[str] = set()
    for planned in plan(c, prefix):  # lazily: a configuration of a billion layers fails at the first missing tensor
        entry = _as_stored(checkpoint, t, c, planned)
        for name, shape in zip(entry.tensors, entry.shapes, strict=True):
            _check_tensor(checkpoint, name, shape)
            if entry.kind == "transposed" and checkpoint.quantised(name) is not None:
                raise UnsupportedModel(f"{checkpoint.source}: tensor {name}: quantised, and of a family that stores "
                                       "matrices as [in, out]: expected F32, F16 or BF16")  # fmt: skip
        wanted.update(entry.tensors)
        entries.append(entry)
    for name in checkpoint.names():
        if name not in wanted and not re.fullmatch(t.ignored, name.removeprefix(prefix), re.ASCII):
            _check_leftover(checkpoint, c, name, prefix, wanted)
    return entries


def _as_stored(checkpoint: Checkpoint, t: Table, c: Any, entry: Entry) -> Entry:
    """The entry with the tensor names of this checkpoint. Of two tied weights a file may have either."""
    found = tuple(_spelled(checkpoint, t, name) for name in entry.tensors)
    if entry.path == "embed" and c.tied and found[0] not in checkpoint and t.shared in checkpoint:
        found = (t.shared,)
    return entry._replace(tensors=found)


def _spelled(checkpoint: Checkpoint, t: Table, name: str) -> str:
    """The name, or its older spelling if the checkpoint uses that."""
    return next((spelling for spelling in _spellings(t, name) if spelling in checkpoint), name)


def _spellings(t: Table, name: str) -> list[str]:
    return [name, *(name.removesuffix(new) + old for new, old in t.old if name.endswith(new))]


def _check_tensor(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> None:
    """Check that the tensor exists, in this shape and a readable type."""
    where = f"{checkpoint.source}: tensor {name}"
    if name not in checkpoint:
        raise CheckpointError(f"{where} is missing; expected shape {list(shape)}")
    if checkpoint.shape(name) != shape:
        raise CheckpointError(f"{where}: expected shape {list(shape)}, found {list(checkpoint.shape(name))}")
    checkpoint.dtype(name)


def _check_leftover(checkpoint: Checkpoint, c: Any, name: str, prefix: str, wanted: set[str]) -> None:
    """Refuse a tensor that is not in the plan, unless the model computes the same without it."""
    t, where = _table(c), f"{checkpoint.source}: tensor {name}"
    layer = re.match(re.escape(prefix + t.block).replace(r"\{\}", r"(\d+)"), name, re.ASCII)
    if layer and int(layer[1]) >= len(c.layers):
        raise CheckpointError(f"{where}: the configuration has {len(c.layers)} layers")
    if t.head and name in _spellings(t, t.shared):
        embed = prefix + next(iter(t.top[0][-1]))
        if not _same(checkpoint, name, embed):
            raise CheckpointError(f"{where}: the configuration ties it to {embed}, and they differ")
        return
    stem = name.removesuffix(".bias")
    if stem != name and f"{stem}.weight" in wanted:
        if np.any(checkpoint.tensor(name)):
            raise UnsupportedModel(f"{where}: expected no bias here, or zeros")
        return
    raise UnsupportedModel(f"{where}: the engine has no use for this tensor, and does not ignore what a model may need")


def _same(checkpoint: Checkpoint, a: str, b: str) -> bool:
    """Whether two tensors have the same type, shape and bytes."""
    if (checkpoint.shape(a), checkpoint.stored(a)) != (checkpoint.shape(b), checkpoint.stored(b)):
        return False
    return all(map(_same_bytes, checkpoint.spans(a), checkpoint.spans(b)))


def _same_bytes(x: np.ndarray, y: np.ndarray) -> bool:
    if x is y or len(x) != len(y):
        return x is y
    return all(np.array_equal(x[i : i + COMPARED], y[i : i + COMPARED]) for i in range(0, len(x), COMPARED))
