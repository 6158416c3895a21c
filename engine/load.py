"""Which backend runs, and a checkpoint's tensors in its hands.

Called by llm.py; touches the device through Ops only.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from .config import ModelConfig
from .errors import DeviceError
from .ops.base import Ops
from .ops.numpy import NumpyOps
from .weights import names
from .weights.checkpoint import Checkpoint

BANNED = -1e30  # bias of a logit that must never be sampled: finite, so that sums and differences stay numbers
_TOP = ("embed", "positions", "norm", "norm_bias", "head", "head_bias", "rope")
_LAYER = (
    "attn_norm", "attn_norm_bias", "qkv", "qkv_bias", "q_norm", "k_norm", "o", "o_bias",
    "mlp_norm", "mlp_norm_bias", "gate_up", "up", "up_bias", "down", "down_bias",
)  # fmt: skip


def choose(backend: str, dtype: str, stored: str) -> tuple[Ops, str]:
    """The operations of a backend, and a word on the choice. backend "auto": cuda if it works here, else numpy.

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
    from .ops.cublas import CublasOps
    from .ops.cuda import CudaOps
    from .ops.gpu import CupyDevice

    device = CupyDevice()
    if device.arch < 80:
        raise DeviceError(f"backend cuda needs a GPU of compute capability 8.0 or more, and {device.name} has "
                          f"{device.arch / 10}")  # fmt: skip
    ops = (CublasOps if backend == "cublas" else CudaOps)(device, dtype)
    return ops, f"{dtype}, chosen because the GPU is there" if backend == "auto" else dtype


def weights(
    ops: Ops, ck: Checkpoint, c: ModelConfig, progress: Callable[[int, int], None] = lambda done, all: None
) -> SimpleNamespace:
    """The model's weights as ops keeps them, one tensor after the other; progress(done, all) is called after each.

    embed, norm, head, head_bias, layers[i].attn_norm ...; what the model has not is None. CheckpointError if a tensor
    is missing, left over or has the wrong shape."""
    entries = names.check(ck, c)  # first: a config may claim any number of layers
    w = SimpleNamespace(**dict.fromkeys(_TOP))
    w.layers = [SimpleNamespace(**dict.fromkeys(_LAYER)) for _ in range(c.layers)]
    for done, entry in enumerate(entries, 1):
        parts = [ck.tensor(name) for name in entry.tensors]
        value = _loaded(ops, entry, parts, c.head_dim)
        *where, attribute = entry.path.split(".")
        setattr(w.layers[int(where[1])] if where else w, attribute, value)
        del parts
        for name in entry.tensors:  # else the file is in memory beside what was made of it
            ck.let_go(name)
        progress(done, len(entries))
    if w.head is None:
        w.head = w.embed
    return w


def _loaded(ops: Ops, entry: names.Entry, parts: list[np.ndarray], head_dim: int) -> Any:
    """What ops keeps of an entry's tensors, by its kind: see names.Entry."""
    if entry.kind == "weight":
        return ops.weight(parts, entry.layout, head_dim)
    if entry.kind == "transposed":
        return ops.weight([part.T for part in parts], entry.layout, head_dim)
    if entry.kind == "table":
        return ops.vector([parts[0].astype(np.float32) + sum(part[0].astype(np.float32) for part in parts[1:])])
    return ops.vector(parts)


def ban(ops: Ops, w: SimpleNamespace, c: ModelConfig, ids: tuple[int, ...]) -> None:
    """Make ids (embedding rows the tokenizer has no token for) impossible to sample."""
    if ids:
        bias = np.zeros(c.vocab, np.float32)
        bias[list(ids)] = BANNED
        w.head_bias = ops.vector([bias])
