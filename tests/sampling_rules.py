"""Rules of some sequences for the tests of sampling: all off, but for what a test changes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ostinato.ops import sampling
from ostinato.ops.base import Sampling


def rules(n: int, vocab: int, **changes: Any) -> Sampling:
    """Of n sequences, greedy; a change is a value for all or a list of n."""
    records = sampling.off(n)
    for name, value in changes.items():
        records[name] = np.array(value, records.dtype[name].base)
    return Sampling(sampling.as_bytes(records), np.zeros((n, vocab), np.int32))


def records(g: Sampling) -> Any:
    """The rules as records [n], to be read and changed."""
    return g.rules.view(sampling.RULES)[:, 0]
