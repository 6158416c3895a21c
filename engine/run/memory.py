"""The memory plan of a decoder: weights, activations, graphs, and the number of pages of the KV cache."""

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
from .footprint import size
from .swap import SwapSpace

_SHARE = {True: 0.85, False: 0.5}  # of free memory for the KV cache, without gpu_memory; by Device.is_gpu
GRAPHS = 512 << 20  # bytes set aside on a GPU for graphs, compiled kernels and the driver


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
        """The plan in one line."""
        graphs = f", graphs up to {size(self.graphs)}" if self.graphs else ""
        parts = f"weights {size(self.weights)}, activations {size(self.activations)}{graphs}"
        cache = f"KV cache {size(self.pages * self.page)} in {self.pages - 1} pages of {PAGE}: {self.tokens} tokens"
        return f"memory: {parts}, {cache}"


def plan(ops: Ops, c: ModelConfig, e: EngineConfig, max_len: int, weights: Any, activations: Any) -> MemoryPlan:
    """Plan the KV cache: cache_tokens, else up to max_batch sequences of max_len, within gpu_memory, or else within
    most of the free memory. Weights and activations are on the device already.

    DeviceError if there is too little memory names the option to change."""
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
        raise DeviceError(f"KV cache: expected {size((least + 1) * page)} free on {device.name}, found {why}; "
                          f"change {knob}")  # fmt: skip
    pages = 1 + min(wish, room)
    return MemoryPlan(*used, graphs, page, pages, (shape[0], pages, *shape[1:]))


def swap_space(device: Device, e: EngineConfig, plan: MemoryPlan, dtype: np.dtype) -> SwapSpace | None:
    """Host memory for preempted sequences, of at most swap_gb; None if that is less than a page."""
    places = min(int(e.swap_gb * 1e9) // plan.page, e.max_batch * (plan.pages - 1))
    parts, _, *page = plan.shape
    if not places:
        return None
    return SwapSpace(places, plan.page, lambda n: device.pinned((n, parts, *page), dtype)[1])


def nbytes(found: Any) -> int:
    """Bytes of all arrays in dataclasses, tuples and lists; each array counts once."""
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
    """Bytes available for the KV cache, and their origin for a message."""
    free = device.free_memory()
    if e.gpu_memory is None:
        share = _SHARE[device.is_gpu] if e.cache_tokens is None else 1
        return int(free * share), size(free)
    total = e.gpu_memory * (device.total_memory() if e.gpu_memory <= 1 else 1e9)
    room = min(int(total) - taken, free)
    of = f"gpu_memory={e.gpu_memory:g}, which is {size(int(total))}, less {size(taken)} for the rest"
    return room, f"{size(max(0, room))}, of {size(free)} free and {of}"
