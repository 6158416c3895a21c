"""Memory of a model's weights on a device: counted and checked before the first one is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np

from ..errors import DeviceError
from ..ops.base import Ops
from ..weights.checkpoint import Checkpoint
from ..weights.names import Entry


@dataclass
class Footprint:
    """Bytes of all weights, and of those that are dequantised."""

    ops: Ops
    bytes: int = 0  # of all weights on the device
    kinds: dict[str, None] = field(default_factory=dict)  # types that are dequantised, in the order of the plan
    tensors: int = 0  # that are dequantised
    stored: int = 0  # their bytes in the file
    loaded: int = 0  # their bytes on the device
    room: int = 0  # bytes that the backend needs to unpack what it keeps quantised

    def add(self, ck: Checkpoint, entry: Entry, head_dim: int) -> None:
        """Count one weight of the plan."""
        if entry.kind in ("weight", "transposed"):
            self._add_matrix(ck, entry, head_dim)
        else:  # float32; a table is as large as its first tensor
            self.bytes += 4 * sum(map(prod, entry.shapes if entry.kind == "vector" else entry.shapes[:1]))

    def _add_matrix(self, ck: Checkpoint, entry: Entry, head_dim: int) -> None:
        parts = [ck.quantised(name) for name in entry.tensors]
        some = any(part is not None for part in parts)
        kept = some and entry.kind == "weight" and self.ops.keeps(parts, entry.layout, head_dim)
        for part, shape in zip(parts, entry.shapes, strict=True):
            plain = prod(shape) * self.ops.dtype.itemsize
            self.bytes += plain if part is None or not kept else part.nbytes
            if part is not None and not kept:
                self.kinds[part.kind] = None
                self.tensors += 1
                self.stored += part.nbytes
                self.loaded += plain
        if kept and self.ops.unpacks and entry.path.startswith("layers."):
            self.room = max(self.room, sum(map(prod, entry.shapes)) * self.ops.dtype.itemsize)

    def about(self) -> str:
        """One line: the types that are dequantised, and their memory; "" if there are none."""
        if not self.kinds:
            return ""
        what = f"{', '.join(self.kinds)} dequantised to {np.dtype(self.ops.dtype).name}: {self.tensors} tensors"
        return f"{what}, {size(self.stored)} in the file, {size(self.loaded)} in memory"

    def check(self) -> None:
        """DeviceError if the weights do not fit into the free memory of the device."""
        device, about = self.ops.device, self.about()
        free, needed = device.free_memory(), self.bytes + self.room
        if needed > free:
            found = f"weights: expected {size(needed)} free on {device.name}, found {size(free)}"
            raise DeviceError(f"{found} ({about})" if about else found)


def size(count: int) -> str:
    """Bytes in MB or GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
