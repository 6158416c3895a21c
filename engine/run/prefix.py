"""Keys of the pages of a prompt: a chain of hashes, so that a page's key stands for all tokens up to its end.

Two pages of one key hold the same bits, if both were written by prefill passes: how a prompt is cut into passes and
who else is in them changes no bit (Ops.exact). Decode steps sum up in another order, so pages with a token that a
decode step has appended are never given a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from ..sizes import PAGE

_BYTES = 16  # of a key


def root(*parts: str) -> bytes:
    """The beginning of every chain: what the bits of a page depend on beside the tokens."""
    return _hash("\0".join(parts).encode())


def page_keys(beginning: bytes, salt: str, ids: Sequence[int]) -> list[bytes]:
    """The keys of all full pages of a prompt. Prompts of different salts have no key in common."""
    key = _hash(beginning + salt.encode("utf-8", "surrogatepass"))
    tokens = np.asarray(ids, np.int32)
    keys = []
    for first in range(0, len(tokens) - PAGE + 1, PAGE):
        keys.append(key := _hash(key + tokens[first : first + PAGE].tobytes()))
    return keys


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=_BYTES).digest()
