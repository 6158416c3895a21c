"""How each running sequence samples, as arrays by slot: a copy on the host, one on the device."""

from __future__ import annotations

import numpy as np

from ..ops.base import Sampling
from ..ops.device import Device
from ..sizes import STOP_IDS
from .sequence import Sequence

# field of Sampling: its dtype, what a slot without a sequence holds (greedy, nothing on), field of SamplingParams
_FIELDS = {
    "temperature": (np.float32, 0, "temperature"),
    "top_k": (np.int32, 0, "top_k"),
    "top_p": (np.float32, 1, "top_p"),
    "min_p": (np.float32, 0, "min_p"),
    "repetition": (np.float32, 1, "repetition_penalty"),
    "presence": (np.float32, 0, "presence_penalty"),
    "frequency": (np.float32, 0, "frequency_penalty"),
    "seed": (np.uint64, 0, ""),
    "stop_from": (np.int32, 0, ""),
}


class SlotSampling:
    """Sampling parameters of `slots` sequences and the spare one. `arrays` is what Ops.sample takes."""

    def __init__(self, device: Device, slots: int, vocab: int) -> None:
        self._device = device
        self._host: dict[str, np.ndarray] = {
            name: np.full(slots + 1, start, kind) for name, (kind, start, _) in _FIELDS.items()
        }
        self._host["stop_ids"] = np.full((slots + 1, STOP_IDS), -1, np.int32)
        arrays = {name: device.upload(host) for name, host in self._host.items()}
        self.arrays = Sampling(**arrays, counts=device.upload(np.zeros((slots + 1, vocab), np.int32)))

    def set(self, sequences: list[Sequence]) -> None:
        """Take over newly admitted sequences, with what they have generated so far."""
        for seq in sequences:
            for name, (_, _, source) in _FIELDS.items():
                if source:
                    self._host[name][seq.slot] = getattr(seq.params, source)
            self._host["seed"][seq.slot] = seq.seed
            self._host["stop_from"][seq.slot] = len(seq.prompt) + seq.params.min_tokens
            self._host["stop_ids"][seq.slot] = -1
            own = seq.request.stop_ids
            self._host["stop_ids"][seq.slot, : len(own)] = own
            if seq.params.penalised:
                counts = self.arrays.counts[seq.slot]
                seen = np.zeros(counts.shape, np.int32)
                seen[seq.prompt] = 1
                np.add.at(seen, seq.tokens[: seq.computed], 2)
                self._device.write(counts, seen)
        for name, host in self._host.items():
            self._device.write(getattr(self.arrays, name), host)
