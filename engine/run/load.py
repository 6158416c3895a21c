"""Chooses the backend and loads a checkpoint's tensors into it. Touches the device through Ops only."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from ..config import LayerSpec, ModelConfig, Rope
from ..errors import DeviceError
from ..models import rope
from ..models.weights import LayerWeights, Weights
from ..ops.base import Ops, Part
from ..ops.numpy import NumpyOps
from ..weights import names
from ..weights.checkpoint import Checkpoint
from ..weights.quantised import Quantised
from .base_runner import Progress, silent
from .footprint import Footprint

_log = logging.getLogger("ostinato")
P = TypeVar("P", np.ndarray, Part)
BANNED = -1e30  # bias of a logit that must never be sampled: finite, so that sums and differences stay numbers


def choose(backend: str, dtype: str, stored: str) -> tuple[Ops, str]:
    """The operations of a backend, and a line on why it was chosen. backend "auto": cuda if it works here, else numpy.

    dtype "auto" is the checkpoint's own on a GPU (`stored`; quantised files say bfloat16) and float32 on NumPy, which
    always computes in float32: another dtype rounds its weights only. DeviceError if a backend that was asked for by
    name cannot run."""
    if backend == "numpy":
        return _numpy(dtype)
    try:
        return _gpu(backend, stored if dtype == "auto" else dtype)
    except DeviceError as e:
        if backend != "auto":
            raise
        ops, about = _numpy(dtype)
        return ops, f"{about}, chosen because {e}"


def _numpy(dtype: str) -> tuple[Ops, str]:
    kind = "float32" if dtype == "auto" else dtype
    return NumpyOps(dtype=kind), "float32" if kind == "float32" else f"float32 with weights rounded to {kind}"


def _gpu(backend: str, dtype: str) -> tuple[Ops, str]:
    from ..ops.cublas import CublasOps
    from ..ops.cuda import CudaOps
    from ..ops.gpu import CupyDevice

    device = CupyDevice()
    if device.arch < 80:
        raise DeviceError(f"backend cuda needs a GPU of compute capability 8.0 or more, and {device.name} has "
                          f"{device.arch / 10}")  # fmt: skip
    ops = (CublasOps if backend == "cublas" else CudaOps)(device, dtype)
    return ops, f"{dtype}, chosen because the GPU is there" if backend == "auto" else dtype


def weights(
    ops: Ops,
    ck: Checkpoint,
    c: ModelConfig,
    max_len: int | None = None,
    banned: tuple[int, ...] = (),
    progress: Progress = silent,
    tell: Callable[[str], None] | None = None,
) -> Weights:
    """The model's weights, loaded one after the other. progress(done, all) is called after each one. tell is called
    with one line if tensors are dequantised.

    max_len: positions that tables of angles reach, as many as the model was made for if None. banned: embedding rows
    the tokenizer has no token for, made impossible to sample. CheckpointError if a tensor is missing, left over or has
    the wrong shape, DeviceError, before any is loaded, if they do not fit into memory."""
    entries = names.check(ck, c)  # first: a config may claim any number of layers
    _room(ops, ck, c, entries, tell)
    reach = max_len or c.max_len
    top: dict[str, Any] = {"head_bias": _ban(ops, c, banned), "max_len": reach}
    layers: list[dict[str, Any]] = [{} for _ in c.layers]
    for done, entry in enumerate(entries, 1):
        *where, name = entry.path.split(".")
        (layers[int(where[1])] if where else top)[name] = _loaded(ops, ck, entry, _spec(c, entry))
        for tensor in entry.tensors:  # the file would stay in memory beside the weights
            ck.let_go(tensor)
        progress(done, len(entries))
    tables: dict[tuple[Rope | None, int], Any] = {}
    for spec, layer in zip(c.layers, layers, strict=True):
        key = spec.rope, spec.head_dim
        if key not in tables:
            tables[key] = ops.device.upload(rope.table(*key, reach))
            _name_long_factors(spec.rope, reach)
        layer["rope"] = tables[key]
    top.setdefault("head", top["embed"])
    w = Weights(layers=tuple(LayerWeights(**layer) for layer in layers), **top)
    ops.loaded(w)
    return w


def _spec(c: ModelConfig, entry: names.Entry) -> LayerSpec:
    """The spec of the entry's layer; of layer 0 if it belongs to none."""
    *where, _ = entry.path.split(".")
    return c.layers[int(where[1])] if where else c.layers[0]


def _room(
    ops: Ops, ck: Checkpoint, c: ModelConfig, entries: list[names.Entry], tell: Callable[[str], None] | None
) -> None:
    """Check that the weights fit into memory, and report what is dequantised."""
    needed = Footprint(ops)
    for entry in entries:
        needed.add(ck, entry, _spec(c, entry).head_dim)
    needed.check()
    if tell and needed.kinds:
        tell(needed.about())


def _name_long_factors(r: Rope | None, reach: int) -> None:
    """Warn that longrope uses its long factors, which are chosen once, for short prompts as well."""
    if r and r.scaling and r.scaling.kind == "longrope" and reach > r.scaling.original_max_len:
        what = "longrope: the long factors, as sequences may have %d tokens; max_len=%d takes the short ones"
        _log.warning(what, reach, r.scaling.original_max_len)


def _loaded(ops: Ops, ck: Checkpoint, entry: names.Entry, spec: LayerSpec) -> Any:
    """A weight made of an entry's tensors, by the kind of the entry: see names.Entry."""
    if entry.kind == "weight":
        stored = [_part(ck, name) for name in entry.tensors]
        return ops.weight(_ordered(entry, stored, spec), entry.layout, spec.head_dim)
    parts = [ck.tensor(name) for name in entry.tensors]
    if entry.kind == "transposed":
        return ops.weight(_ordered(entry, [part.T for part in parts], spec), entry.layout, spec.head_dim)
    parts = _ordered(entry, parts, spec)
    if entry.kind == "table":
        return ops.vector([parts[0].astype(np.float32) + sum(part[0].astype(np.float32) for part in parts[1:])])
    return ops.vector(parts)


def _part(ck: Checkpoint, name: str) -> Part:
    """A matrix as the checkpoint stores it, quantised or not."""
    quantised = ck.quantised(name)
    return ck.tensor(name) if quantised is None else quantised


def _ordered(entry: names.Entry, parts: list[P], spec: LayerSpec) -> list[P]:
    """The parts, with the rows of each head of q and k permuted to half-rotation RoPE: see rope.order."""
    rows = rope.order(spec.rope, spec.head_dim)
    if rows is None or not (entry.layout == "qkv" or entry.path.endswith((".q_norm", ".k_norm"))):
        return parts
    if entry.layout == "qkv":
        ends = np.cumsum([spec.heads, spec.kv_heads]) * spec.head_dim
        q, k, v = parts if len(parts) == 3 else [_rows(parts[0], r) for r in np.split(np.arange(len(parts[0])), ends)]
        return [_by_head(q, rows), _by_head(k, rows), v]
    return [_by_head(part, rows) for part in parts]


def _by_head(part: P, rows: np.ndarray) -> P:
    """The rows of every head, permuted by `rows`.  part [heads * d, ...], rows [d]"""
    heads = np.arange(0, len(part), len(rows))
    return _rows(part, (heads[:, None] + rows).reshape(-1))


def _rows(part: P, rows: np.ndarray) -> P:
    """Rows of a matrix or vector by index. A quantised matrix is not decoded."""
    return part.take(rows) if isinstance(part, Quantised) else part[rows]


def _ban(ops: Ops, c: ModelConfig, ids: tuple[int, ...]) -> Any:
    """[V] float32, a bias of the logits that bans `ids`; None without any."""
    if not ids:
        return None
    bias = np.zeros(c.vocab, np.float32)
    bias[list(ids)] = BANNED
    return ops.vector([bias])
