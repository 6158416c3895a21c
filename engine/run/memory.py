"""What a decoder takes of the device's memory, and how many pages that leaves for the KV cache."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from ..config import EngineConfig, ModelConfig
from ..errors import DeviceError
from ..ops.base import Ops
from ..ops.device import Device
from ..sizes import PAGE
from .cache import pages_of
from .swap import SwapSpace

_SHARE = {True: 0.85, False: 0.5}  # of the free memory, for the KV cache without gpu_memory: on a GPU, on the host
GRAPHS = 512 << 20  # bytes left for graphs, compiled kernels and what the driver takes, on a GPU


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by use. The KV cache is [2 L, P, G, PAGE, d] T, of which page 0 is for padding rows."""

    weights: int
    activations: int
    graphs: int  # set aside for them
    page: int  # of one page: the keys and values of PAGE tokens in all layers
    pages: int  # P, page 0 included
    shape: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return (self.pages - 1) * PAGE

    def line(self) -> str:
        """The plan for a reader."""
        graphs = f", graphs up to {_gb(self.graphs)}" if self.graphs else ""
        return (f"memory: weights {_gb(self.weights)}, activations {_gb(self.activations)}{graphs}, KV cache "
                f"{_gb(self.pages * self.page)} in {self.pages - 1} pages of {PAGE}: {self.tokens} tokens")  # fmt: skip


def plan(ops: Ops, c: ModelConfig, e: EngineConfig, max_len: int, weights: Any, activations: Any) -> MemoryPlan:
    """How many pages there is room for: those of cache_tokens, else what max_batch sequences of max_len can use, as
    far as gpu_memory allows, or else most of what is free. Weights and activations are on the device already.

    DeviceError names what to change if it is too little."""
    of, device = c.sizes, ops.device
    shape = (2 * c.layer_count, of.kv_heads, PAGE, of.head_dim)
    page = int(np.prod(shape)) * ops.dtype.itemsize
    used = nbytes((weights, ops.workspace)), nbytes(activations)
    graphs = GRAPHS if device.is_gpu else 0
    room, why = _room(device, e, sum(used) + graphs)
    room = room // page - 1  # one more page is the padding rows'
    wish = e.max_batch * pages_of(max_len) if e.cache_tokens is None else pages_of(e.cache_tokens)
    least = 1 if e.cache_tokens is None else wish
    if least > room:
        knob = "gpu_memory, or fewer max_batch or prefill_rows" if e.cache_tokens is None else "cache_tokens"
        raise DeviceError(f"KV cache: expected {(least + 1) * page / 1e9:.3g} GB free on {device.name}, found {why}; "
                          f"change {knob}")  # fmt: skip
    pages = 1 + min(wish, room)
    return MemoryPlan(*used, graphs, page, pages, (shape[0], pages, *shape[1:]))


def swap_space(device: Device, e: EngineConfig, plan: MemoryPlan, dtype: np.dtype) -> SwapSpace | None:
    """Host memory for preempted sequences: swap_gb, but no more than the KV cache has. None without any."""
    places = min(int(e.swap_gb * 1e9) // plan.page, e.max_batch * (plan.pages - 1))
    parts, _, *page = plan.shape
    if not places:
        return None
    return SwapSpace(places, plan.page, lambda n: device.pinned((n, parts, *page), dtype)[1])


def nbytes(found: Any) -> int:
    """Bytes of all arrays in dataclasses, tuples and lists, one that occurs twice counted once."""
    return sum({id(array): array.nbytes for array in _arrays(found)}.values())


def _arrays(found: Any) -> Iterable[Any]:
    if is_dataclass(found):
        found = [getattr(found, f.name) for f in fields(found)]
    if isinstance(found, (tuple, list)):
        for item in found:
            yield from _arrays(item)
    elif hasattr(found, "nbytes"):
        yield found


def _room(device: Device, e: EngineConfig, taken: int) -> tuple[int, str]:
    """Bytes for the KV cache, and where the number comes from."""
    free = device.free_memory()
    if e.gpu_memory is None:
        share = _SHARE[device.is_gpu] if e.cache_tokens is None else 1
        return int(free * share), f"{free / 1e9:.3g} GB"
    total = e.gpu_memory * (device.total_memory() if e.gpu_memory <= 1 else 1e9)
    room = min(int(total) - taken, free)
    of = f"gpu_memory={e.gpu_memory:g}, which is {total / 1e9:.3g} GB, less {taken / 1e9:.3g} GB for the rest"
    return room, f"{max(0, room) / 1e9:.3g} GB, of {free / 1e9:.3g} GB free and {of}"


def _gb(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
