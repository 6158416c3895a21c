"""Sampling rules of the running sequences, one record a slot: on the host, and a copy on the device."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from ..config import SamplingParams
from ..ops import sampling
from ..ops.base import Sampling
from ..ops.device import Device
from .sequence import Sequence

# Fields copied from SamplingParams unchanged. Its seed may be None, so it is not one of them.
_TAKEN = [f.name for f in fields(SamplingParams) if f.name in (sampling.RULES.names or ()) and f.name != "seed"]


class SlotSampling:
    """Sampling rules of `slots` sequences and the padding sequence. `arrays`: the argument of Ops.sample."""

    def __init__(self, device: Device, slots: int, vocab: int) -> None:
        self._device = device
        self._host = sampling.off(slots + 1)
        rules = device.upload(sampling.as_bytes(self._host))
        self.arrays = Sampling(rules, counts=device.upload(np.zeros((slots + 1, vocab), np.int32)))

    def set(self, sequences: list[Sequence]) -> None:
        """Write the rules of admitted sequences, and the token counts of those with penalties."""
        for seq in sequences:
            rules = self._host[seq.slot]
            for name in _TAKEN:
                rules[name] = getattr(seq.params, name)
            rules["seed"], rules["stop_from"] = seq.seed, len(seq.prompt) + seq.params.min_tokens
            rules["stop_ids"] = -1
            rules["stop_ids"][: len(seq.request.stop_ids)] = seq.request.stop_ids
            if sampling.penalised(rules):
                counts = self.arrays.counts[seq.slot]
                seen = np.zeros(counts.shape, np.int32)
                seen[seq.prompt] = 1
                np.add.at(seen, seq.tokens[: seq.computed], 2)
                self._device.write(counts, seen)
        self._device.write(self.arrays.rules, sampling.as_bytes(self._host))
